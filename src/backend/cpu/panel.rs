//! Matrix products for inference, with results that do not depend on how rows are cut into blocks.
//!
//! A library GEMM chooses its blocking from all three sizes, and with it the order of additions; here every output
//! element is one chain of fused multiply-adds over k in rising order, from where its caller starts it. So the same
//! row gives the same bits in a block of any size, on any thread, at any SIMD level.

use std::ops::Range;

use crate::simd::{Lane, Simd, WIDTH};

/// Inputs of a row that stand side by side in [`Inputs`].
pub const DEPTH: usize = 64;
/// Lanes of a [`Stretch`].
const LANES: usize = DEPTH / WIDTH;

/// [`DEPTH`] inputs of one row.
type Stretch = [f32; DEPTH];

/// A weight matrix `[outputs, inputs]` packed for [`products`]: panels of 32 outputs, each `[inputs][32]`, the last
/// one padded with zeros.
#[derive(Clone, Debug)]
pub struct Panels {
    lanes: Vec<Lane>,
    inputs: usize,
    outputs: usize,
}

impl Panels {
    /// Packs a row-major `[outputs, inputs]` weight.
    pub fn pack(weight: &[f32], inputs: usize, outputs: usize) -> Panels {
        let mut lanes = vec![[0f32; WIDTH]; outputs.div_ceil(WIDTH) * inputs];
        for (o, row) in weight.chunks_exact(inputs).enumerate() {
            let panel = &mut lanes[o / WIDTH * inputs..][..inputs];
            for (lane, &w) in panel.iter_mut().zip(row) {
                lane[o % WIDTH] = w;
            }
        }
        Panels { lanes, inputs, outputs }
    }

    /// Number of inputs, the length of the products' sums.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Number of panels.
    pub fn count(&self) -> usize {
        self.outputs.div_ceil(WIDTH)
    }

    /// Inputs `k` of panel `p`, `[k][32]`.
    fn panel(&self, p: usize, k: &Range<usize>) -> &[Lane] {
        &self.lanes[p * self.inputs..(p + 1) * self.inputs][k.clone()]
    }
}

/// A vector padded with zeros to whole lanes: a bias beside [`Panels`].
pub fn pad_lanes(values: &[f32]) -> Vec<Lane> {
    let mut lanes = vec![[0f32; WIDTH]; values.len().div_ceil(WIDTH)];
    lanes.as_flattened_mut()[..values.len()].copy_from_slice(values);
    lanes
}

/// The inputs of a block of rows, a stretch of every row after the other: one pointer and constant distances reach
/// all rows of a tile. The block is padded to whole tiles; what the padding holds reaches no other row.
#[derive(Debug, Default)]
pub struct Inputs {
    stretches: Vec<Stretch>,
    rows: usize,
}

impl Inputs {
    /// Makes room for `rows` rows, which must be whole tiles, of `inputs` inputs. What was there stays there.
    pub fn resize(&mut self, rows: usize, inputs: usize) {
        self.rows = rows;
        self.stretches.resize(rows * inputs.div_ceil(DEPTH), [0.0; DEPTH]);
    }

    /// Inputs `32 p` to `32 p + 31` of a row.
    #[inline(always)]
    pub fn lane_mut(&mut self, row: usize, p: usize) -> &mut Lane {
        let stretch = &mut self.stretches[p / LANES * self.rows + row];
        (&mut stretch[p % LANES * WIDTH..][..WIDTH]).try_into().expect("a lane")
    }

    /// Sets all inputs of a row.
    #[inline(always)]
    pub fn set_row(&mut self, row: usize, values: &[f32]) {
        for (i, values) in values.chunks(DEPTH).enumerate() {
            self.stretches[i * self.rows + row][..values.len()].copy_from_slice(values);
        }
    }

    /// Takes row `from` of `other`, a block of as many inputs, from row `row`.
    #[inline(always)]
    pub fn subtract(&mut self, row: usize, other: &Inputs, from: usize) {
        let own = self.stretches.iter_mut().skip(row).step_by(self.rows);
        for (own, other) in own.zip(other.stretches.iter().skip(from).step_by(other.rows)) {
            for (a, b) in own.iter_mut().zip(other) {
                *a -= b;
            }
        }
    }
}

/// A part of a lane of the outputs: of which panel, and in which row of the block.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The panel.
    pub panel: usize,
    /// The row.
    pub row: usize,
    /// The part, as in [`Simd::load`].
    pub part: usize,
}

/// Where sums start from. (Traits rather than closures: what [`products`] calls must be inlined into the code of a
/// level, which only `#[inline(always)]` ensures.)
pub trait Start<S: Simd> {
    /// What the sums of a place start from.
    fn start(&self, simd: S, at: Place) -> S::Row;
}

/// Where sums go to.
pub trait Finish<S: Simd> {
    /// Takes the sums of a place.
    fn finish(&mut self, simd: S, at: Place, sums: S::Row);
}

/// Both ends of sums.
pub trait Sums<S: Simd>: Start<S> + Finish<S> {}

impl<S: Simd, T: Start<S> + Finish<S>> Sums<S> for T {}

/// Two ends of sums that know nothing of each other.
pub struct Ends<A, Z>(pub A, pub Z);

impl<S: Simd, A: Start<S>, Z> Start<S> for Ends<A, Z> {
    #[inline(always)]
    fn start(&self, simd: S, at: Place) -> S::Row {
        self.0.start(simd, at)
    }
}

impl<S: Simd, A, Z: Finish<S>> Finish<S> for Ends<A, Z> {
    #[inline(always)]
    fn finish(&mut self, simd: S, at: Place, sums: S::Row) {
        self.1.finish(simd, at, sums);
    }
}

impl<S: Simd, Z: Finish<S>> Finish<S> for &mut Z {
    #[inline(always)]
    fn finish(&mut self, simd: S, at: Place, sums: S::Row) {
        Z::finish(self, simd, at, sums);
    }
}

/// The products of the first `rows` rows of a block with inputs `k` of the weights, for the panels asked for; `a`
/// holds inputs `k` of every row.
#[inline(always)]
pub fn products<S: Simd>(
    simd: S,
    (a, rows): (&Inputs, usize),
    weights: &Panels,
    k: Range<usize>,
    panels: Range<usize>,
    sums: &mut impl Sums<S>,
) {
    match S::ROWS {
        12 => sweep::<S, 12>(simd, (a, rows), weights, k, panels, sums),
        6 => sweep::<S, 6>(simd, (a, rows), weights, k, panels, sums),
        _ => sweep::<S, 4>(simd, (a, rows), weights, k, panels, sums),
    }
}

#[inline(always)]
fn sweep<S: Simd, const R: usize>(
    simd: S,
    (a, rows): (&Inputs, usize),
    weights: &Panels,
    k: Range<usize>,
    panels: Range<usize>,
    sums: &mut impl Sums<S>,
) {
    for panel in panels {
        let weights = weights.panel(panel, &k);
        for first in (0..rows).step_by(R) {
            for part in 0..S::PARTS {
                let place = |r: usize| Place { panel, row: (first + r).min(rows - 1), part };
                let mut acc: [S::Row; R] = [sums.start(simd, place(0)); R];
                for (r, acc) in acc.iter_mut().enumerate().skip(1) {
                    *acc = sums.start(simd, place(r));
                }
                for (stretch, b) in a.stretches.chunks_exact(a.rows).zip(weights.chunks(DEPTH)) {
                    let a: &[Stretch; R] = stretch[first..][..R].try_into().expect("whole tiles");
                    for k in 0..b.len().min(DEPTH) {
                        let b = simd.load(&b[k], part);
                        for r in 0..R {
                            acc[r] = simd.fma(a[r][k], b, acc[r]);
                        }
                    }
                }
                // Counted to R, so that the sums stay in registers.
                for (r, acc) in acc.into_iter().enumerate() {
                    if first + r < rows {
                        sums.finish(simd, place(r), acc);
                    }
                }
            }
        }
    }
}
