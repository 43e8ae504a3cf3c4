//! The microkernel: `MR` rows of A past a panel of B, with `MR x NR` sums (or half as many columns at a time) in
//! registers.

use std::marker::PhantomData;

use crate::simd::{Callee, NR, NrRow, RowsRef, Simd, VLEN};

/// How words are multiplied.
pub trait Terms {
    /// `acc` and the products of a word of A with words of B.
    fn fma<S: Simd>(simd: S, a: f32, b: S::Vector, acc: S::Vector) -> S::Vector;
}

/// Words are F32 values.
pub struct F32;

impl Terms for F32 {
    #[inline(always)]
    fn fma<S: Simd>(simd: S, a: f32, b: S::Vector, acc: S::Vector) -> S::Vector {
        simd.fma(a, b, acc)
    }
}

/// Words are two BF16 values, see [`Simd::dot_bf16`].
pub struct Bf16x2;

impl Terms for Bf16x2 {
    #[inline(always)]
    fn fma<S: Simd>(simd: S, a: f32, b: S::Vector, acc: S::Vector) -> S::Vector {
        simd.dot_bf16(a, b, acc)
    }
}

/// Adds A B to sums, a row of them for each row of `a`. A [`Callee`]: compiled once for each instruction set, with the
/// registers to itself.
pub struct Microkernel<'a, T> {
    a: RowsRef<'a>,
    b: &'a [NrRow],
    sums: &'a mut [NrRow],
    terms: PhantomData<T>,
}

impl<'a, T> Microkernel<'a, T> {
    pub fn new(a: RowsRef<'a>, b: &'a [NrRow], sums: &'a mut [NrRow]) -> Microkernel<'a, T> {
        Microkernel { a, b, sums, terms: PhantomData }
    }
}

impl<T: Terms> Callee for Microkernel<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        match (S::MR, S::NV) {
            (8, 2) => tiles::<S, T, 8, 2>(simd, self.a, self.b, self.sums),
            (6, 1) => tiles::<S, T, 6, 1>(simd, self.a, self.b, self.sums),
            (4, 1) => tiles::<S, T, 4, 1>(simd, self.a, self.b, self.sums),
            (mr, nv) => unreachable!("no microkernel of {mr} rows of {nv} vectors"),
        }
    }
}

#[inline(always)]
fn tiles<S: Simd, T: Terms, const MR: usize, const NV: usize>(
    simd: S,
    a: RowsRef<'_>,
    b: &[NrRow],
    sums: &mut [NrRow],
) {
    for (i, sums) in sums.chunks_mut(MR).enumerate() {
        // Past the last row it is repeated, and the result left unused.
        let mut rows = [&a.words[..0]; MR];
        for (r, row) in rows.iter_mut().enumerate() {
            *row = a.row(i * MR + r.min(sums.len() - 1), b.len());
        }
        for first in (0..NR / VLEN).step_by(NV) {
            tile::<S, T, MR, NV>(simd, rows, b, sums, first);
        }
    }
}

/// Vectors `first` to `first + NV - 1` of the sums. All loops but that over k are of constant length, so that the sums
/// stay in registers.
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "an iterator would move the sums to memory")]
fn tile<S: Simd, T: Terms, const MR: usize, const NV: usize>(
    simd: S,
    a: [&[f32]; MR],
    b: &[NrRow],
    sums: &mut [NrRow],
    first: usize,
) {
    let mut acc = [[simd.splat(0.0); NV]; MR];
    for r in 0..MR {
        let row = vectors(&sums[r.min(sums.len() - 1)]);
        for v in 0..NV {
            acc[r][v] = simd.load(&row[first + v]);
        }
    }
    for (k, b) in b.iter().enumerate() {
        let row = vectors(b);
        let mut b = [simd.load(&row[first]); NV];
        for v in 1..NV {
            b[v] = simd.load(&row[first + v]);
        }
        for r in 0..MR {
            for v in 0..NV {
                acc[r][v] = T::fma(simd, a[r][k], b[v], acc[r][v]);
            }
        }
    }
    for r in 0..MR {
        if let Some(row) = sums.get_mut(r) {
            for v in 0..NV {
                simd.store(acc[r][v], &mut row.as_chunks_mut::<VLEN>().0[first + v]);
            }
        }
    }
}

#[inline(always)]
pub fn vectors(row: &NrRow) -> &[[f32; VLEN]; NR / VLEN] {
    row.as_chunks::<VLEN>().0.try_into().expect("a row is whole vectors")
}
