//! AVX2 with FMA and F16C: a vector is two registers.

use std::arch::x86_64::*;
use std::marker::PhantomData;

use super::{Callee, Line, NrRow, NrRow16, Simd, Task, VLEN, relu};

/// Proof that AVX2, FMA and F16C are there. Not `Send`, as no token is.
#[derive(Clone, Copy)]
pub(super) struct Avx2(PhantomData<*const ()>);

pub(super) fn is_available() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn run<T: Task>(task: T) -> T::Output {
    let output = task.run(Avx2(PhantomData));
    _mm_sfence();
    output
}

/// Two BF16 values a word, and one of them in each word of the result.
#[inline(always)]
fn halves(_: Avx2, words: __m256) -> [__m256; 2] {
    // SAFETY: register arithmetic only; the token proves AVX2.
    unsafe {
        let words = _mm256_castps_si256(words);
        let odd = _mm256_and_si256(words, _mm256_set1_epi32(0xffff_0000_u32 as i32));
        [_mm256_castsi256_ps(_mm256_slli_epi32::<16>(words)), _mm256_castsi256_ps(odd)]
    }
}

/// `acc` and the products of 8 words with the two values of another.
#[inline(always)]
fn dot(token: Avx2, [a_even, a_odd]: [__m256; 2], words: __m256, acc: __m256) -> __m256 {
    let [even, odd] = halves(token, words);
    // SAFETY: register arithmetic only; the token proves FMA.
    unsafe { _mm256_fmadd_ps(a_even, even, _mm256_fmadd_ps(a_odd, odd, acc)) }
}

/// Transposes 8 x 8 values from column `from.1` of rows `from.0..` on to column `from.0` of rows `from.1..`.
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "indices that pair up, and no closures: they are not inlined")]
fn transpose_8(_: Avx2, rows: &[[f32; VLEN]; VLEN], from: (usize, usize), out: &mut [[f32; VLEN]; VLEN]) {
    // SAFETY: each slice is checked to hold the 8 values of one unaligned load or store; the token proves AVX.
    unsafe {
        let (mut a, mut b) = ([_mm256_setzero_ps(); 8], [_mm256_setzero_ps(); 8]);
        for i in 0..8 {
            a[i] = _mm256_loadu_ps(rows[from.0 + i][from.1..][..8].as_ptr());
        }
        // Squares of 4 in each half of a register, by pairs of values, then by pairs of pairs.
        for i in 0..4 {
            b[2 * i] = _mm256_unpacklo_ps(a[2 * i], a[2 * i + 1]);
            b[2 * i + 1] = _mm256_unpackhi_ps(a[2 * i], a[2 * i + 1]);
        }
        for i in 0..2 {
            for half in 0..2 {
                let (low, high) = (b[4 * i + half], b[4 * i + 2 + half]);
                a[4 * i + 2 * half] = _mm256_shuffle_ps::<0b01_00_01_00>(low, high);
                a[4 * i + 2 * half + 1] = _mm256_shuffle_ps::<0b11_10_11_10>(low, high);
            }
        }
        for i in 0..4 {
            b[i] = _mm256_permute2f128_ps::<0x20>(a[i], a[4 + i]);
            b[4 + i] = _mm256_permute2f128_ps::<0x31>(a[i], a[4 + i]);
        }
        for i in 0..8 {
            _mm256_storeu_ps(out[from.1 + i][from.0..][..8].as_mut_ptr(), b[i]);
        }
    }
}

impl Simd for Avx2 {
    const MR: usize = 6;
    const NV: usize = 1;
    type Vector = [__m256; 2];

    #[inline(always)]
    fn call<C: Callee>(self, callee: C) -> C::Output {
        #[target_feature(enable = "avx2,fma,f16c")]
        #[inline(never)]
        fn out_of_line<C: Callee>(token: Avx2, callee: C) -> C::Output {
            callee.run(token)
        }
        // SAFETY: the token proves every feature that the function enables.
        unsafe { out_of_line(self, callee) }
    }

    #[inline(always)]
    fn splat(self, value: f32) -> Self::Vector {
        // SAFETY: register arithmetic only; the token proves AVX.
        unsafe { [_mm256_set1_ps(value); 2] }
    }

    #[inline(always)]
    fn load(self, from: &[f32; VLEN]) -> Self::Vector {
        // SAFETY: i + 8 values lie within the 16; the token proves AVX.
        unsafe { [_mm256_loadu_ps(from.as_ptr()), _mm256_loadu_ps(from.as_ptr().add(8))] }
    }

    #[inline(always)]
    fn store(self, vector: Self::Vector, to: &mut [f32; VLEN]) {
        // SAFETY: room for 16 values behind the pointer, two unaligned stores of 8; the token proves AVX.
        unsafe {
            _mm256_storeu_ps(to.as_mut_ptr(), vector[0]);
            _mm256_storeu_ps(to.as_mut_ptr().add(8), vector[1]);
        }
    }

    #[inline(always)]
    fn fma(self, a: f32, b: Self::Vector, acc: Self::Vector) -> Self::Vector {
        // SAFETY: register arithmetic only; the token proves FMA.
        unsafe {
            let a = _mm256_set1_ps(a);
            [_mm256_fmadd_ps(a, b[0], acc[0]), _mm256_fmadd_ps(a, b[1], acc[1])]
        }
    }

    #[inline(always)]
    fn dot_bf16(self, a: f32, b: Self::Vector, acc: Self::Vector) -> Self::Vector {
        // SAFETY: register arithmetic only; the token proves AVX.
        let a = halves(self, unsafe { _mm256_set1_ps(a) });
        [dot(self, a, b[0], acc[0]), dot(self, a, b[1], acc[1])]
    }

    /// In vectors, as compilers make masked stores of the definition, which take some machines twenty times as long.
    #[inline(always)]
    fn relu(self, values: &mut [f32]) {
        let (vectors, rest) = values.as_chunks_mut::<8>();
        for values in vectors {
            // SAFETY: 8 values are read and written, unaligned; the token proves AVX. Of zeros of both signs and of NaN
            // the second operand is the result.
            unsafe {
                let positive = _mm256_max_ps(_mm256_setzero_ps(), _mm256_loadu_ps(values.as_ptr()));
                _mm256_storeu_ps(values.as_mut_ptr(), positive);
            }
        }
        relu(rest);
    }

    #[inline(always)]
    fn narrow_f16(self, from: &NrRow, to: &mut NrRow16) {
        for (from, to) in from.as_chunks::<8>().0.iter().zip(to.as_chunks_mut::<8>().0) {
            // SAFETY: 8 values are read and 8 written, unaligned; the token proves F16C.
            unsafe {
                let halves = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm256_loadu_ps(from.as_ptr()));
                _mm_storeu_si128(to.as_mut_ptr().cast(), halves);
            }
        }
    }

    #[inline(always)]
    fn transpose(self, rows: &[[f32; VLEN]; VLEN]) -> [[f32; VLEN]; VLEN] {
        let mut out = [[0f32; VLEN]; VLEN];
        for from in [(0, 0), (0, 8), (8, 0), (8, 8)] {
            transpose_8(self, rows, from, &mut out);
        }
        out
    }

    #[inline(always)]
    fn stream(self, from: &Line, to: &mut Line) {
        let (from, p): (*const f32, *mut f32) = (from.as_ptr().cast(), to.as_mut_ptr().cast());
        // SAFETY: 64 bytes are read and written, unaligned where the address is not a multiple of 64; the token proves
        // AVX.
        unsafe {
            let values = [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))];
            if p.addr().is_multiple_of(64) {
                _mm256_stream_ps(p, values[0]);
                _mm256_stream_ps(p.add(8), values[1]);
            } else {
                _mm256_storeu_ps(p, values[0]);
                _mm256_storeu_ps(p.add(8), values[1]);
            }
        }
    }
}
