//! One packed matrix product, C = A B, in the terms of BLIS (Van Zee and van de Geijn, 2015).
//!
//! A holds rows of inputs ([`RowsRef`]), B the weights, packed in panels of [`NR`](crate::simd::NR) outputs ([`PackedB`]). The simple
//! algorithm:
//!
//! ```text
//! for each panel of B:              NR outputs
//!     for each MC rows of A:        few enough for the first-level cache
//!         C = epilogue.start        a bias, zeros, or sums so far
//!         C += A B                  MR x NR values at a time, in registers (microkernel.rs)
//!         epilogue.finish(C)        ReLU, rounding, storing, Adam
//! ```
//!
//! 1. Every value of C is one chain of fused multiply-adds over k in rising order, from where the epilogue starts it.
//!    No blocking changes that order, so a row's bits depend on nothing but the row.
//! 2. Operands come in words of 32 bits: an F32 value, or two BF16 values. Packing differs, the loops do not.
//! 3. The microkernel is compiled once for each instruction set and kind of word; epilogues work on C in memory, which
//!    is in the first-level cache, and cost one load and one store of C.
//! 4. Where a machine multiplies BF16 matrices, `amx.rs` takes the microkernel's place: it sums all of A B first, and
//!    what the epilogue starts from comes last.

mod active;
mod amx;
mod epilogue;
mod microkernel;
mod pack;

use std::ops::Range;

pub use active::{ActiveRows, gemm_active};
pub use epilogue::{Add, Epilogue, Finish, Inference, Keep, RowsOut, Start, Tile};
use microkernel::{Bf16x2, F32, Microkernel};
pub use pack::{
    AlignedRows, PackedA, PackedB, ZERO, bf16x2, inputs_per_word, pack_pairs, pack_stored, pack_words,
    pad_rows, transpose, transpose_bf16x2,
};

use crate::backend::Precision;
use crate::simd::{AMX_M, NrRow, RowsRef, Simd};

/// Rows of A that pass a panel at a time: whole tiles of 4, 6 and 8 rows.
const MC: usize = 24;

/// Whether products of this precision are those of matrices.
#[inline(always)]
pub fn is_amx<S: Simd>(simd: S, precision: Precision) -> bool {
    precision == Precision::Bf16 && simd.has_amx()
}

/// C = A B for words `k` of the panels asked for, of which `a` holds words `k`.
#[inline(always)]
pub fn gemm<S: Simd>(
    simd: S,
    a: RowsRef<'_>,
    b: &PackedB,
    k: Range<usize>,
    panels: Range<usize>,
    epilogue: &mut impl Epilogue,
) {
    for panel in panels {
        product(simd, b.precision(), a, b.panel(panel, &k), panel, epilogue);
    }
}

/// C = A B for one panel.
#[inline(always)]
pub fn product<S: Simd>(
    simd: S,
    precision: Precision,
    a: RowsRef<'_>,
    b: &[NrRow],
    panel: usize,
    epilogue: &mut impl Epilogue,
) {
    #[repr(align(64))]
    struct Sums([NrRow; AMX_M]);
    let mut sums = Sums([ZERO; AMX_M]);
    let mc = if is_amx(simd, precision) { AMX_M } else { MC };
    for row in (0..a.count).step_by(mc) {
        let count = (a.count - row).min(mc);
        let (tile, sums) = (Tile { row, panel }, &mut sums.0[..count]);
        start(simd, precision, tile, sums, epilogue);
        accumulate(simd, precision, a.rows(row, count), b, sums);
        finish(simd, precision, tile, sums, epilogue);
    }
}

/// Sets what [`accumulate`] adds to, before the first of k.
#[inline(always)]
pub fn start<S: Simd>(
    simd: S,
    precision: Precision,
    tile: Tile,
    sums: &mut [NrRow],
    epilogue: &impl Epilogue,
) {
    if is_amx(simd, precision) {
        sums.fill(ZERO);
    } else {
        sums.iter_mut().zip(tile.row..).for_each(|(sum, row)| *sum = *epilogue.start(row, tile.panel));
    }
}

/// Adds A B to sums, a row of them for each row of `a`.
#[inline(always)]
pub fn accumulate<S: Simd>(simd: S, precision: Precision, a: RowsRef<'_>, b: &[NrRow], sums: &mut [NrRow]) {
    match precision {
        Precision::F32 => simd.call(Microkernel::<F32>::new(a, b, sums)),
        Precision::Bf16 if simd.has_amx() => amx::accumulate(simd, a, b, sums),
        Precision::Bf16 => simd.call(Microkernel::<Bf16x2>::new(a, b, sums)),
    }
}

/// Adds A B to sums: the terms of every `kc` words of k in a sum of their own, all of them with AMX.
#[inline(always)]
pub fn add<S: Simd>(
    simd: S,
    precision: Precision,
    a: RowsRef<'_>,
    b: &[NrRow],
    kc: usize,
    sums: &mut [NrRow],
) {
    if is_amx(simd, precision) {
        return amx::accumulate(simd, a, b, sums);
    }
    for (i, b) in b.chunks(kc).enumerate() {
        let a = RowsRef { words: &a.words[i * kc..], ..a };
        product(simd, precision, a, b, 0, &mut Add(sums));
    }
}

/// Hands sums on, after the last of k.
#[inline(always)]
pub fn finish<S: Simd>(
    simd: S,
    precision: Precision,
    tile: Tile,
    sums: &mut [NrRow],
    epilogue: &mut impl Epilogue,
) {
    if is_amx(simd, precision) {
        amx::add_start(tile, sums, epilogue);
    }
    epilogue.finish(simd, tile, sums);
}
