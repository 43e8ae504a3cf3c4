//! Operands of products in BF16: words of two values, see [`Simd::dot`]. Parameters, moments, sums and losses
//! stay F32; what enters a product is rounded to nearest even.

use crate::simd::{Lane, Simd, WIDTH};

/// A value rounded to BF16 on its bit pattern, in the high half of the word; NaN stays NaN.
#[inline(always)]
fn round(value: f32) -> u32 {
    let bits = value.to_bits();
    let up = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    (if value.is_nan() { bits | 0x0040_0000 } else { up }) & 0xffff_0000
}

/// The word of two values.
#[inline(always)]
pub fn word(even: f32, odd: f32) -> f32 {
    f32::from_bits(round(even) >> 16 | round(odd))
}

/// Words of `even[i]` and `odd[i]`.
#[inline(always)]
fn pair(even: &Lane, odd: &Lane, out: &mut Lane) {
    for ((out, &even), &odd) in out.iter_mut().zip(even).zip(odd) {
        *out = word(even, odd);
    }
}

/// Lanes of words from twice as many lanes of values, an odd one paired with zeros.
#[inline(always)]
pub fn pair_lanes(lanes: &[Lane], out: &mut [Lane]) {
    for (two, out) in lanes.chunks(2).zip(out) {
        pair(&two[0], two.get(1).unwrap_or(&[0.0; WIDTH]), out);
    }
}

/// Words of whole lanes of values that stand side by side. What is below the normal range may count as zero.
#[inline(always)]
pub fn halve<S: Simd>(simd: S, row: &[f32], out: &mut [f32]) {
    let lanes = row.as_chunks::<WIDTH>().0;
    for (lane, out) in lanes.iter().zip(out.as_chunks_mut::<{ WIDTH / 2 }>().0) {
        for part in 0..S::PARTS {
            simd.store_bf16_normal(simd.load(lane, part), bytemuck::cast_mut(out), part, false);
        }
    }
}

/// Words of two rows of halves, one below the other; an odd row is paired with zeros.
#[inline(always)]
pub fn interleave(even: &[f32], odd: Option<&[f32]>, out: &mut [f32]) {
    let even: &[u16] = bytemuck::cast_slice(even);
    match odd {
        Some(odd) => {
            let odd: &[u16] = bytemuck::cast_slice(odd);
            for ((out, &even), &odd) in out.iter_mut().zip(even).zip(odd) {
                *out = f32::from_bits(u32::from(even) | u32::from(odd) << 16);
            }
        }
        None => {
            for (out, &even) in out.iter_mut().zip(even) {
                *out = f32::from_bits(u32::from(even));
            }
        }
    }
}
