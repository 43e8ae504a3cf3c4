//! Instruction sets, chosen at run time.
//!
//! A loop is written once as a [`Task`] over the vector operations of [`Simd`]. [`Isa::run`] compiles it for every
//! instruction set and runs the one that the machine has:
//!
//! ```text
//! struct Double<'a>(&'a mut [f32; VLEN]);
//! impl Task for Double<'_> {
//!     type Output = ();
//!     #[inline(always)]
//!     fn run<S: Simd>(self, simd: S) {
//!         let x = simd.load(self.0);
//!         simd.store(simd.fma(2.0, x, simd.splat(0.0)), self.0);
//!     }
//! }
//! isa.run(Double(&mut values));
//! ```
//!
//! 1. What runs inside a task must be `#[inline(always)]`: only then is it compiled with the task's instructions. That
//!    holds for plain loops too, which the compiler then vectorises; most code needs no method of [`Simd`] at all.
//! 2. [`Simd::call`] is the exception: it makes a function of its own, once per instruction set, for a hot loop that
//!    needs the registers to itself or that many tasks share.
//! 3. Every implementation performs the same IEEE operations in the same order, so results agree in every bit. Products
//!    of BF16 matrices ([`Simd::amx_block`]) have an order of their own.
//!
//! A value of a type that implements [`Simd`] is a token: proof that its instructions are there, and for AMX that this
//! thread has its tiles configured. Tokens are made by [`Isa::run`] only, cannot change threads and cannot be kept, as
//! no task knows their type.

#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod isa;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
#[cfg(test)]
mod tests;

use half::{bf16, f16};

use crate::dtype::Element;

pub use isa::Isa;

/// Columns of a packed row of B: the microkernel makes `MR` rows of `NR` sums.
pub const NR: usize = 32;
/// Values of [`Simd::Vector`].
pub const VLEN: usize = 16;
/// Rows of a block of [`Simd::amx_block`].
pub const AMX_M: usize = 32;
/// Words of a step of [`Simd::amx_block`].
pub const AMX_K: usize = 16;
/// Rows that an AMX tile holds: operands are readable up to a multiple of it.
pub const AMX_TILE: usize = 16;

/// One packed row of B, or one row of sums.
pub type NrRow = [f32; NR];
/// The same in a 16-bit type.
pub type NrRow16 = [u16; NR];
/// A cache line.
pub type Line = [u8; 64];

/// Rows of the left operand of a product, in words of 32 bits: one F32 value each, or two BF16 values (the first in the
/// low half), called bf16x2.
#[derive(Clone, Copy, Debug)]
pub struct RowsRef<'a> {
    /// From the first row's first word on.
    pub words: &'a [f32],
    /// Number of rows.
    pub count: usize,
    /// Distance from a row to the next.
    pub stride: usize,
}

impl<'a> RowsRef<'a> {
    /// `count` rows from row `first` on.
    #[inline(always)]
    pub fn rows(self, first: usize, count: usize) -> RowsRef<'a> {
        RowsRef { words: &self.words[first * self.stride..], count, ..self }
    }

    /// The first `len` words of row `r`.
    #[inline(always)]
    pub fn row(self, r: usize, len: usize) -> &'a [f32] {
        &self.words[r * self.stride..][..len]
    }
}

/// Vector arithmetic; an implementation is a token that proves its instructions are there.
///
/// Each method names its intrinsic as AVX2 / AVX-512 / NEON; where one has none, the default is what is compiled.
pub trait Simd: Copy {
    /// Rows of a microkernel tile: with [`Simd::NV`] vectors a row, as many sums as the registers hold.
    const MR: usize;
    /// Vectors of a row of sums that a tile holds side by side.
    const NV: usize;
    /// [`VLEN`] values in registers: two `__m256`, one `__m512`, four `float32x4_t`.
    type Vector: Copy;

    /// Runs `callee` as a function of its own, compiled for this instruction set.
    fn call<C: Callee>(self, callee: C) -> C::Output;

    /// The value in every place. `_mm256_set1_ps` / `_mm512_set1_ps` / `vdupq_n_f32`.
    fn splat(self, value: f32) -> Self::Vector;
    /// `_mm256_loadu_ps` / `_mm512_loadu_ps` / `vld1q_f32`.
    fn load(self, from: &[f32; VLEN]) -> Self::Vector;
    /// `_mm256_storeu_ps` / `_mm512_storeu_ps` / `vst1q_f32`.
    fn store(self, vector: Self::Vector, to: &mut [f32; VLEN]);
    /// a b + acc, rounded once. `_mm256_fmadd_ps` / `_mm512_fmadd_ps` / `vfmaq_n_f32`.
    fn fma(self, a: f32, b: Self::Vector, acc: Self::Vector) -> Self::Vector;
    /// Products of bf16x2 words: acc + a1 b1, then + a0 b0, each rounded once to F32. What is below the normal range of
    /// F32 may count as zero. Two `_mm256_fmadd_ps` / `_mm512_dpbf16_ps` (without AVX-512 BF16 two `_mm512_fmadd_ps`) /
    /// two `vfmaq_n_f32`.
    fn dot_bf16(self, a: f32, b: Self::Vector, acc: Self::Vector) -> Self::Vector;

    /// Whether the machine multiplies BF16 matrices: [`Simd::amx_block`] takes the place of [`Simd::dot_bf16`].
    #[inline(always)]
    fn has_amx(self) -> bool {
        false
    }

    /// acc += A B for up to [`AMX_M`] rows `a` of bf16x2 words; rows behind them up to a multiple of [`AMX_TILE`] are
    /// read too, whatever they hold.
    ///
    /// For every [`AMX_K`] words in turn (what is missing of the last is zeros) the products of the words' first values
    /// make one chain of fused multiply-adds from zero on, those of the second values another; the sum of both goes to
    /// `acc`. This is the order of Intel's TDPBF16PS; as there, what is below the normal range of F32 counts as zero
    /// (which this definition leaves out). Rows of `acc` past `a.count` are of no meaning. - / `tdpbf16ps` / -.
    #[inline(always)]
    fn amx_block(self, a: RowsRef<'_>, b: &[NrRow], acc: &mut [NrRow; AMX_M]) {
        for (r, acc) in acc.iter_mut().enumerate().take(a.count) {
            let a = a.row(r, b.len());
            for (column, acc) in acc.iter_mut().enumerate() {
                for (a, b) in a.chunks(AMX_K).zip(b.chunks(AMX_K)) {
                    let (mut even, mut odd) = (0f32, 0f32);
                    for (&a, b) in a.iter().zip(b) {
                        let ([a_even, a_odd], [b_even, b_odd]) = (bf16x2(a), bf16x2(b[column]));
                        even = a_even.mul_add(b_even, even);
                        odd = a_odd.mul_add(b_odd, odd);
                    }
                    *acc += even + odd;
                }
            }
        }
    }

    /// ReLU; -0 and NaN stay. `_mm256_max_ps` / - / -.
    #[inline(always)]
    fn relu(self, values: &mut [f32]) {
        relu(values);
    }

    /// Rounds to BF16, as [`Element::narrow`] does. - / `_mm512_cvtne2ps_pbh` unless a value is subnormal / -.
    #[inline(always)]
    fn narrow_bf16(self, from: &NrRow, to: &mut NrRow16) {
        bf16::narrow(from, bytemuck::cast_slice_mut(to));
    }

    /// The same, but what is below the normal range may count as zero. - / `_mm512_cvtne2ps_pbh` / -.
    #[inline(always)]
    fn narrow_bf16_flush(self, from: &NrRow, to: &mut NrRow16) {
        self.narrow_bf16(from, to);
    }

    /// Rounds to F16, as [`Element::narrow`] does. `_mm256_cvtps_ph` / `_mm512_cvtps_ph` / -.
    #[inline(always)]
    fn narrow_f16(self, from: &NrRow, to: &mut NrRow16) {
        f16::narrow(from, bytemuck::cast_slice_mut(to));
    }

    /// bf16x2 words of two rows of values, the first in the low halves. What is below the normal range may count as
    /// zero. - / `_mm512_cvtne2ps_pbh` and `_mm512_permutexvar_epi16` / -.
    #[inline(always)]
    fn pack_bf16x2(self, even: &NrRow, odd: &NrRow, out: &mut NrRow) {
        let (mut low, mut high): (NrRow16, NrRow16) = ([0; NR], [0; NR]);
        self.narrow_bf16_flush(even, &mut low);
        self.narrow_bf16_flush(odd, &mut high);
        for ((out, &low), &high) in out.iter_mut().zip(&low).zip(&high) {
            *out = f32::from_bits(u32::from(low) | u32::from(high) << 16);
        }
    }

    /// Transposes a square. `_mm256_unpacklo_ps` and `_mm256_permute2f128_ps` / `_mm512_unpacklo_ps` and
    /// `_mm512_shuffle_f32x4` / -.
    #[inline(always)]
    fn transpose(self, rows: &[[f32; VLEN]; VLEN]) -> [[f32; VLEN]; VLEN] {
        std::array::from_fn(|i| std::array::from_fn(|j| rows[j][i]))
    }

    /// The sum of a row by halves: value i and value i + 16, then i + 8, and so on. - / `_mm512_add_ps` and narrower /
    /// -.
    #[inline(always)]
    fn sum(self, row: &NrRow) -> f32 {
        let mut row = *row;
        let mut width = NR / 2;
        while width > 0 {
            for i in 0..width {
                row[i] += row[i + width];
            }
            width /= 2;
        }
        row[0]
    }

    /// Writes a cache line past the caches where `to` is aligned to one. [`Isa::run`] ends with the fence that must
    /// follow before another thread reads it. `_mm256_stream_ps` / `_mm512_stream_ps` / -.
    #[inline(always)]
    fn stream(self, from: &Line, to: &mut Line) {
        *to = *from;
    }
}

/// The definition of [`Simd::relu`].
#[inline(always)]
fn relu(values: &mut [f32]) {
    for value in values {
        if *value < 0.0 {
            *value = 0.0;
        }
    }
}

/// The two BF16 values of a word.
#[inline(always)]
pub fn bf16x2(word: f32) -> [f32; 2] {
    [word.to_bits() << 16, word.to_bits() & 0xffff_0000].map(f32::from_bits)
}

/// A computation that [`Isa::run`] compiles for every instruction set. `run` must be `#[inline(always)]`.
pub trait Task {
    /// What it gives.
    type Output;
    /// The computation.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// A computation that [`Simd::call`] makes a function of. `run` must be `#[inline(always)]`.
pub use Task as Callee;
