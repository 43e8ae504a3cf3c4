//! Values that change places among AVX-512 registers.

use std::arch::x86_64::*;

use super::{HalfLane, LANES, WIDTH};

/// [`Simd::turn`](super::Simd::turn).
///
/// # Safety
/// The machine must have AVX-512 F.
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "indices that pair up, and no closures: they are not inlined")]
pub unsafe fn turn(rows: &[[f32; LANES]; LANES]) -> [[f32; LANES]; LANES] {
    // SAFETY: each row is one unaligned load or store of 16 values; the caller vouches for AVX-512 F.
    unsafe {
        let zero = _mm512_setzero_ps();
        let (mut a, mut b) = ([zero; LANES], [zero; LANES]);
        for i in 0..LANES {
            a[i] = _mm512_loadu_ps(rows[i].as_ptr());
        }
        // Squares of 4 in every fourth of a register, by pairs of values, then by pairs of pairs.
        for i in 0..LANES / 2 {
            b[2 * i] = _mm512_unpacklo_ps(a[2 * i], a[2 * i + 1]);
            b[2 * i + 1] = _mm512_unpackhi_ps(a[2 * i], a[2 * i + 1]);
        }
        for i in 0..LANES / 4 {
            for half in 0..2 {
                let low = _mm512_castps_pd(b[4 * i + half]);
                let high = _mm512_castps_pd(b[4 * i + 2 + half]);
                a[4 * i + 2 * half] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
                a[4 * i + 2 * half + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
            }
        }
        // The squares themselves.
        for j in 0..4 {
            b[j] = _mm512_shuffle_f32x4::<0x88>(a[j], a[4 + j]);
            b[4 + j] = _mm512_shuffle_f32x4::<0xdd>(a[j], a[4 + j]);
            b[8 + j] = _mm512_shuffle_f32x4::<0x88>(a[8 + j], a[12 + j]);
            b[12 + j] = _mm512_shuffle_f32x4::<0xdd>(a[8 + j], a[12 + j]);
        }
        for j in 0..4 {
            a[j] = _mm512_shuffle_f32x4::<0x88>(b[j], b[8 + j]);
            a[4 + j] = _mm512_shuffle_f32x4::<0x88>(b[4 + j], b[12 + j]);
            a[8 + j] = _mm512_shuffle_f32x4::<0xdd>(b[j], b[8 + j]);
            a[12 + j] = _mm512_shuffle_f32x4::<0xdd>(b[4 + j], b[12 + j]);
        }
        let mut out = [[0f32; LANES]; LANES];
        for i in 0..LANES {
            _mm512_storeu_ps(out[i].as_mut_ptr(), a[i]);
        }
        out
    }
}

/// [`Simd::interleave`](super::Simd::interleave).
///
/// # Safety
/// The machine must have AVX-512 F.
#[inline(always)]
pub unsafe fn interleave([a, b, c, d]: [__m512; 4]) -> [__m512; 4] {
    // SAFETY: register arithmetic only; the caller vouches for AVX-512 F.
    unsafe {
        let ab = (_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
        let cd = (_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
        // Quarter q of l0 to l3 is lane 4 q + l with its four values.
        let [ab0, ab1, cd0, cd1] =
            [_mm512_castps_pd(ab.0), _mm512_castps_pd(ab.1), _mm512_castps_pd(cd.0), _mm512_castps_pd(cd.1)];
        let l0 = _mm512_castpd_ps(_mm512_unpacklo_pd(ab0, cd0));
        let l1 = _mm512_castpd_ps(_mm512_unpackhi_pd(ab0, cd0));
        let l2 = _mm512_castpd_ps(_mm512_unpacklo_pd(ab1, cd1));
        let l3 = _mm512_castpd_ps(_mm512_unpackhi_pd(ab1, cd1));
        let a = _mm512_shuffle_f32x4::<0b01_00_01_00>(l0, l1);
        let b = _mm512_shuffle_f32x4::<0b01_00_01_00>(l2, l3);
        let c = _mm512_shuffle_f32x4::<0b11_10_11_10>(l0, l1);
        let d = _mm512_shuffle_f32x4::<0b11_10_11_10>(l2, l3);
        [
            _mm512_shuffle_f32x4::<0b10_00_10_00>(a, b),
            _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b),
            _mm512_shuffle_f32x4::<0b10_00_10_00>(c, d),
            _mm512_shuffle_f32x4::<0b11_01_11_01>(c, d),
        ]
    }
}

/// Words of values of the first half and of the second, one of each.
///
/// # Safety
/// The machine must have AVX-512 BW.
#[inline(always)]
pub unsafe fn pairs(halves: __m512i) -> __m512 {
    const PLACES: HalfLane = {
        let mut places = [0; WIDTH];
        let mut i = 0;
        while i < WIDTH {
            places[i] = (i / 2 + i % 2 * LANES) as u16;
            i += 1;
        }
        places
    };
    // SAFETY: a `HalfLane` is one register; the caller vouches for AVX-512 BW.
    unsafe {
        let places = _mm512_loadu_si512(PLACES.as_ptr().cast());
        _mm512_castsi512_ps(_mm512_permutexvar_epi16(places, halves))
    }
}
