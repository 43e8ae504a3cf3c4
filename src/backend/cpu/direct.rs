//! Products of rows from where they are stored, in the order of `panel.rs` and with its bits: rows that stand one after
//! the other are not copied first.

use std::marker::PhantomData;
use std::ops::Range;

use super::panel::{Arithmetic, DEPTH, Pairs, Panels, Place, Single, Sums, finish_tile, start_tile};
use crate::simd::{Rows, Simd};

/// How the words of stored rows meet weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direct {
    /// F32 values with F32 weights.
    Single,
    /// Two BF16 values with words of two weights.
    Pairs,
    /// Two BF16 values with F32 weights.
    Widened,
}

impl Direct {
    /// Lanes of weights for a word.
    pub fn lanes(self) -> usize {
        match self {
            Direct::Single | Direct::Pairs => 1,
            Direct::Widened => 2,
        }
    }
}

/// Rows of a tile of [`products`]: fewer than of rows that were copied, as each has a pointer of its own; and fewer still of
/// pairs where registers are few.
pub const fn rows_of_tile<S: Simd>(how: Direct) -> usize {
    match (S::ROWS, how) {
        (12, _) | (_, Direct::Widened) => 8,
        (6, Direct::Single) => 6,
        _ => 4,
    }
}

/// The products of rows with words `k` of the weights, for the panels asked for; `a` starts at word `k.start` of the first
/// row.
#[inline(always)]
pub fn products<S: Simd>(
    simd: S,
    a: Rows<'_>,
    how: Direct,
    weights: &Panels,
    k: Range<usize>,
    panels: Range<usize>,
    sums: &mut impl Sums<S>,
) {
    match how {
        Direct::Single => match rows_of_tile::<S>(how) {
            8 => sweep::<S, Stored<Single>, 8>(simd, a, weights, k, panels, sums),
            6 => sweep::<S, Stored<Single>, 6>(simd, a, weights, k, panels, sums),
            _ => sweep::<S, Stored<Single>, 4>(simd, a, weights, k, panels, sums),
        },
        Direct::Pairs => match rows_of_tile::<S>(how) {
            8 => sweep::<S, Stored<Pairs>, 8>(simd, a, weights, k, panels, sums),
            _ => sweep::<S, Stored<Pairs>, 4>(simd, a, weights, k, panels, sums),
        },
        Direct::Widened => sweep::<S, Widened, 8>(simd, a, weights, k, panels, sums),
    }
}

/// [`Direct`] as arithmetic.
trait Terms {
    /// Lanes of weights for a word.
    const LANES: usize;
    /// `acc` and the products of a word of inputs with its first and last lane.
    fn add<S: Simd>(simd: S, a: f32, b: [S::Row; 2], acc: S::Row) -> S::Row;
}

/// Words as those of weights.
struct Stored<A>(PhantomData<A>);

impl<A: Arithmetic> Terms for Stored<A> {
    const LANES: usize = 1;

    #[inline(always)]
    fn add<S: Simd>(simd: S, a: f32, [b, _]: [S::Row; 2], acc: S::Row) -> S::Row {
        A::add(simd, a, b, acc)
    }
}

/// [`Direct::Widened`].
struct Widened;

impl Terms for Widened {
    const LANES: usize = 2;

    #[inline(always)]
    fn add<S: Simd>(simd: S, a: f32, b: [S::Row; 2], acc: S::Row) -> S::Row {
        simd.fma_pair(a, b, acc)
    }
}

#[inline(always)]
fn sweep<S: Simd, A: Terms, const R: usize>(
    simd: S,
    a: Rows<'_>,
    weights: &Panels,
    k: Range<usize>,
    panels: Range<usize>,
    sums: &mut impl Sums<S>,
) {
    for panel in panels {
        let weights = weights.panel(panel, &k);
        for first in (0..a.count).step_by(R) {
            // What is past the last row repeats it, and is not taken.
            let mut rows = [&a.words[..0]; R];
            for (r, row) in rows.iter_mut().enumerate() {
                *row = &a.words[(first + r).min(a.count - 1) * a.stride..][..weights.len() / A::LANES];
            }
            for part in 0..S::PARTS {
                let (at, count) = (Place { panel, row: first, part }, a.count);
                let mut acc: [S::Row; R] = start_tile(simd, sums, at, count);
                for (i, b) in weights.chunks(A::LANES * DEPTH).enumerate() {
                    let mut a = [&rows[0][..0]; R];
                    for (a, row) in a.iter_mut().zip(&rows) {
                        *a = &row[i * DEPTH..][..b.len() / A::LANES];
                    }
                    sums.meanwhile(simd);
                    for (k, b) in b.chunks_exact(A::LANES).enumerate() {
                        let b = [simd.load(&b[0], part), simd.load(&b[A::LANES - 1], part)];
                        for r in 0..R {
                            acc[r] = A::add(simd, a[r][k], b, acc[r]);
                        }
                    }
                }
                finish_tile(simd, sums, at, count, acc);
            }
        }
    }
}
