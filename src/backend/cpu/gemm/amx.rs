//! Products of BF16 matrices in place of the microkernel: blocks of [`AMX_M`] rows.

use super::epilogue::{Epilogue, Tile};
use super::pack::ZERO;
use crate::simd::{AMX_M, NrRow, RowsRef, Simd};

/// Adds A B to sums. Rows of `a` must be readable up to a multiple of 16.
#[inline(always)]
pub fn accumulate<S: Simd>(simd: S, a: RowsRef<'_>, b: &[NrRow], sums: &mut [NrRow]) {
    for (i, sums) in sums.chunks_mut(AMX_M).enumerate() {
        let a = a.rows(i * AMX_M, sums.len());
        match <&mut [NrRow; AMX_M]>::try_from(&mut *sums) {
            Ok(sums) => simd.amx_block(a, b, sums),
            Err(_) => {
                let mut block = [ZERO; AMX_M];
                block[..sums.len()].copy_from_slice(sums);
                simd.amx_block(a, b, &mut block);
                sums.copy_from_slice(&block[..sums.len()]);
            }
        }
    }
}

/// Adds what the epilogue starts from to whole sums.
#[inline(always)]
pub fn add_start(Tile { row, panel }: Tile, sums: &mut [NrRow], epilogue: &impl Epilogue) {
    for (sums, row) in sums.iter_mut().zip(row..) {
        let start = *epilogue.start(row, panel);
        for (sum, start) in sums.iter_mut().zip(start) {
            *sum += start;
        }
    }
}
