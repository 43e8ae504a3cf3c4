//! The product of rows behind a ReLU, of which about half of the inputs are zero: they are left out.
//!
//! The simple algorithm, for a row and a panel: sums += a\[k\] B\[k\] for every word k that is not zero.
//!
//! 1. Words that are not zero are listed once for all panels ([`ActiveRows`]).
//! 2. Each row has other words, so that rows share no tile of B. A row passes several panels at a time: its sums take
//!    eight registers, enough that no multiply-add waits for the one before it.
//! 3. B is read once for each multiply-add, from the first-level cache. So this is worth it for few inputs, which stay
//!    there, and where half of them are zero: see docs/design/14-cpu-zero-units.md.
//!
//! fma(0, w, sum) is the sum, so bits are those of [`gemm`](super::gemm()) where sums do not start from -0.

use std::marker::PhantomData;
use std::ops::Range;

use super::epilogue::{Epilogue, Tile};
use super::microkernel::{Bf16x2, F32, Terms, vectors};
use super::pack::{PackedB, ZERO};
use super::{MC, finish, start};
use crate::backend::Precision;
use crate::simd::{Callee, NR, NrRow, RowsRef, Simd, VLEN};

/// Most panels that a row passes at a time: 2 [`Simd::NV`].
const PANELS: usize = 4;

/// A word that is not zero.
#[derive(Clone, Copy, Debug, Default)]
struct Active {
    k: u32,
    word: f32,
}

/// The words of rows that are not zero.
#[derive(Debug, Default)]
pub struct ActiveRows {
    /// `[rows][words]`, of each row as many as `counts` says.
    words: Vec<Active>,
    counts: Vec<usize>,
    stride: usize,
}

impl ActiveRows {
    /// Lists the first `words` words of rows.
    #[inline(always)]
    pub fn list(&mut self, rows: RowsRef<'_>, words: usize, precision: Precision) {
        // Zeros of both signs are zero.
        let magnitude: u32 = match precision {
            Precision::F32 => 0x7fff_ffff,
            Precision::Bf16 => 0x7fff_7fff,
        };
        self.stride = words;
        self.words.resize(rows.count * words, Active::default());
        self.counts.clear();
        for (row, list) in self.words.chunks_exact_mut(words).enumerate() {
            let mut count = 0;
            for (k, &word) in rows.row(row, words).iter().enumerate() {
                // Written in any case and counted where it is not zero: a branch would be guessed wrong half the time.
                list[count] = Active { k: k as u32, word };
                count += usize::from(word.to_bits() & magnitude != 0);
            }
            self.counts.push(count);
        }
    }

    #[inline(always)]
    fn row(&self, row: usize) -> &[Active] {
        &self.words[row * self.stride..][..self.counts[row]]
    }
}

/// C = A B for the panels asked for.
#[inline(always)]
pub fn gemm_active<S: Simd>(
    simd: S,
    a: &ActiveRows,
    b: &PackedB,
    panels: Range<usize>,
    epilogue: &mut impl Epilogue,
) {
    #[repr(align(64))]
    struct Sums([[NrRow; MC]; PANELS]);
    let mut sums = Sums([[ZERO; MC]; PANELS]);
    let words = 0..b.words();
    for first in panels.clone().step_by(2 * S::NV) {
        let panels = first..(first + 2 * S::NV).min(panels.end);
        let mut weights = [&[][..]; PANELS];
        for (weights, panel) in weights.iter_mut().zip(panels.clone()) {
            *weights = b.panel(panel, &words);
        }
        let weights = &weights[..panels.len()];
        for row in (0..a.counts.len()).step_by(MC) {
            let rows = row..(row + MC).min(a.counts.len());
            for (sums, panel) in sums.0.iter_mut().zip(panels.clone()) {
                start(simd, b.precision(), Tile { row, panel }, &mut sums[..rows.len()], epilogue);
            }
            match b.precision() {
                Precision::F32 => simd.call(Kernel::<F32>::new(a, rows.clone(), weights, &mut sums.0)),
                Precision::Bf16 => simd.call(Kernel::<Bf16x2>::new(a, rows.clone(), weights, &mut sums.0)),
            }
            for (sums, panel) in sums.0.iter_mut().zip(panels.clone()) {
                finish(simd, b.precision(), Tile { row, panel }, &mut sums[..rows.len()], epilogue);
            }
        }
    }
}

/// Adds A B to sums, `[panel][row]`, for some rows of A. A function of its own for each instruction set.
struct Kernel<'a, T> {
    a: &'a ActiveRows,
    rows: Range<usize>,
    b: &'a [&'a [NrRow]],
    sums: &'a mut [[NrRow; MC]; PANELS],
    terms: PhantomData<T>,
}

impl<'a, T> Kernel<'a, T> {
    fn new(
        a: &'a ActiveRows,
        rows: Range<usize>,
        b: &'a [&'a [NrRow]],
        sums: &'a mut [[NrRow; MC]; PANELS],
    ) -> Kernel<'a, T> {
        Kernel { a, rows, b, sums, terms: PhantomData }
    }
}

impl<T: Terms> Callee for Kernel<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Kernel { a, rows, b, sums, .. } = self;
        match (S::NV, b) {
            (2, &[b0, b1, b2, b3]) => pass::<S, T, 4>(simd, a, rows, [b0, b1, b2, b3], sums),
            (1, &[b0, b1]) => pass::<S, T, 2>(simd, a, rows, [b0, b1], sums),
            _ => {
                for (b, sums) in b.iter().zip(sums) {
                    pass::<S, T, 1>(simd, a, rows.clone(), [b], std::slice::from_mut(sums));
                }
            }
        }
    }
}

/// Loops over panels and vectors are of constant length, so that the sums stay in registers.
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "an iterator would move the sums to memory")]
fn pass<S: Simd, T: Terms, const P: usize>(
    simd: S,
    a: &ActiveRows,
    rows: Range<usize>,
    b: [&[NrRow]; P],
    sums: &mut [[NrRow; MC]],
) {
    // Equal lengths, so that one check of k serves all panels.
    let words = b[0].len();
    let mut weights = b;
    for p in 0..P {
        weights[p] = &b[p][..words];
    }
    for (i, row) in rows.enumerate() {
        let mut acc = [[simd.splat(0.0); NR / VLEN]; P];
        for p in 0..P {
            for v in 0..NR / VLEN {
                acc[p][v] = simd.load(&vectors(&sums[p][i])[v]);
            }
        }
        for &Active { k, word } in a.row(row) {
            let k = k as usize;
            assert!(k < words, "words are those of the weights");
            for p in 0..P {
                for v in 0..NR / VLEN {
                    acc[p][v] = T::fma(simd, word, simd.load(&vectors(&weights[p][k])[v]), acc[p][v]);
                }
            }
        }
        for p in 0..P {
            for v in 0..NR / VLEN {
                simd.store(acc[p][v], &mut sums[p][i].as_chunks_mut::<VLEN>().0[v]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Keep, gemm, pack_words};
    use super::*;
    use crate::simd::{Isa, Task};

    const ROWS: usize = 61;
    const INPUTS: usize = 80;

    /// Sums of 5 panels, of all words and of those that are not zero.
    struct Both<'a>(&'a [NrRow], &'a PackedB);

    impl Task for Both<'_> {
        type Output = [Vec<NrRow>; 2];
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> Self::Output {
            let Both(values, b) = self;
            let stride = INPUTS.next_multiple_of(NR);
            let mut words = values.as_flattened().to_vec();
            if b.precision() == Precision::Bf16 {
                let rows = values.as_flattened().chunks_exact(stride).zip(words.chunks_exact_mut(stride));
                rows.for_each(|(values, words)| pack_words(simd, values, words));
            }
            let rows = RowsRef { words: &words, count: ROWS, stride };
            let mut active = ActiveRows::default();
            active.list(rows, b.words(), b.precision());
            let mut sums = [vec![ZERO; 5 * ROWS], vec![ZERO; 5 * ROWS]];
            for panel in 0..5 {
                let keep = &mut Keep(&mut sums[0][panel * ROWS..][..ROWS]);
                gemm(simd, rows, b, 0..b.words(), panel..panel + 1, keep);
            }
            gemm_active(simd, &active, b, 0..5, &mut Panels(&mut sums[1]));
            sums
        }
    }

    /// Keeps the sums of all panels, `[panel][rows]`.
    struct Panels<'a>(&'a mut [NrRow]);

    impl Epilogue for Panels<'_> {
        #[inline(always)]
        fn finish<S: Simd>(&mut self, _: S, tile: Tile, sums: &mut [NrRow]) {
            self.0[tile.panel * ROWS + tile.row..][..sums.len()].copy_from_slice(sums);
        }
    }

    #[test]
    fn leaving_zeros_out_changes_no_bit() {
        let mut state = 1u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        let weight: Vec<f32> = (0..5 * NR * INPUTS).map(|_| random()).collect();
        let mut rows = vec![ZERO; ROWS * INPUTS.div_ceil(NR)];
        for row in rows.as_flattened_mut().chunks_exact_mut(INPUTS.next_multiple_of(NR)) {
            row[..INPUTS].iter_mut().for_each(|v| *v = random().max(-0.0));
        }
        // A row of zeros alone, and one without any.
        rows.as_flattened_mut()[..INPUTS].fill(0.0);
        rows.as_flattened_mut()[INPUTS.next_multiple_of(NR)..][..INPUTS].fill(0.7);
        for precision in [Precision::F32, Precision::Bf16] {
            let b = PackedB::new(&weight, INPUTS, 5 * NR, precision);
            for isa in Isa::available().into_iter().filter(|isa| !isa.has_amx()) {
                let [all, active] = isa.run(Both(&rows, &b));
                assert!(all.as_flattened().iter().any(|v| *v != 0.0));
                let bits = |sums: Vec<NrRow>| bytemuck::cast_vec::<_, [u32; NR]>(sums);
                assert!(bits(all) == bits(active), "{} {precision}", isa.name());
            }
        }
    }
}
