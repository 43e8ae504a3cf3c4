//! AVX-512 and AVX2 + FMA.

use std::arch::x86_64::{
    __m256, __m512, _mm_sfence, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps, _mm256_storeu_ps,
    _mm256_stream_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_set1_ps, _mm512_storeu_ps, _mm512_stream_ps,
};

use super::{Lane, Simd, Task};

/// Proof that AVX-512 F, BW, DQ and VL, AVX2, FMA and F16C are there.
#[derive(Clone, Copy, Debug)]
pub struct Avx512(());

/// Proof that AVX2, FMA and F16C are there.
#[derive(Clone, Copy, Debug)]
pub struct Avx2(());

impl Avx512 {
    /// The token, where the machine has the instructions.
    pub fn detect() -> Option<Avx512> {
        let there = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && Avx2::detect().is_some();
        there.then_some(Avx512(()))
    }

    /// Runs a task compiled with these instructions.
    #[inline]
    pub fn run<T: Task>(self, task: T) -> T::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
        fn inner<T: Task>(token: Avx512, task: T) -> T::Output {
            task.run(token)
        }
        // SAFETY: the token exists only where `detect` found every feature that `inner` enables.
        unsafe { inner(self, task) }
    }
}

impl Avx2 {
    /// The token, where the machine has the instructions.
    pub fn detect() -> Option<Avx2> {
        let there = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        there.then_some(Avx2(()))
    }

    /// Runs a task compiled with these instructions.
    #[inline]
    pub fn run<T: Task>(self, task: T) -> T::Output {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn inner<T: Task>(token: Avx2, task: T) -> T::Output {
            task.run(token)
        }
        // SAFETY: the token exists only where `detect` found every feature that `inner` enables.
        unsafe { inner(self, task) }
    }
}

impl Simd for Avx512 {
    const ROWS: usize = 8;
    type Row = [__m512; 2];

    #[inline(always)]
    fn load(self, from: &Lane) -> Self::Row {
        let p = from.as_ptr();
        // SAFETY: a `Lane` holds 32 values, two unaligned loads of 16; the token proves AVX-512 F.
        unsafe { [_mm512_loadu_ps(p), _mm512_loadu_ps(p.add(16))] }
    }

    #[inline(always)]
    fn store(self, row: Self::Row, to: &mut Lane) {
        let p = to.as_mut_ptr();
        // SAFETY: a `Lane` holds 32 values, two unaligned stores of 16; the token proves AVX-512 F.
        unsafe {
            _mm512_storeu_ps(p, row[0]);
            _mm512_storeu_ps(p.add(16), row[1]);
        }
    }

    #[inline(always)]
    fn stream(self, row: Self::Row, to: &mut Lane) {
        let p = to.as_mut_ptr();
        if !p.addr().is_multiple_of(64) {
            return self.store(row, to);
        }
        // SAFETY: a `Lane` holds 32 values, two stores of 16 whose alignment was checked; the token proves AVX-512 F.
        unsafe {
            _mm512_stream_ps(p, row[0]);
            _mm512_stream_ps(p.add(16), row[1]);
        }
    }

    #[inline(always)]
    fn fence(self) {
        // SAFETY: the token proves more than SSE.
        unsafe { _mm_sfence() }
    }

    #[inline(always)]
    fn fma(self, a: f32, b: Self::Row, acc: Self::Row) -> Self::Row {
        // SAFETY: register arithmetic only; the token proves AVX-512 F.
        unsafe {
            let a = _mm512_set1_ps(a);
            [_mm512_fmadd_ps(a, b[0], acc[0]), _mm512_fmadd_ps(a, b[1], acc[1])]
        }
    }
}

impl Simd for Avx2 {
    const ROWS: usize = 3;
    type Row = [__m256; 4];

    #[inline(always)]
    fn load(self, from: &Lane) -> Self::Row {
        let p = from.as_ptr();
        // SAFETY: a `Lane` holds 32 values, four unaligned loads of 8; the token proves AVX.
        unsafe {
            [
                _mm256_loadu_ps(p),
                _mm256_loadu_ps(p.add(8)),
                _mm256_loadu_ps(p.add(16)),
                _mm256_loadu_ps(p.add(24)),
            ]
        }
    }

    #[inline(always)]
    fn store(self, row: Self::Row, to: &mut Lane) {
        for (i, part) in row.into_iter().enumerate() {
            // SAFETY: i < 4, so the 8 values lie within the 32 of a `Lane`; the token proves AVX.
            unsafe { _mm256_storeu_ps(to.as_mut_ptr().add(8 * i), part) };
        }
    }

    #[inline(always)]
    fn stream(self, row: Self::Row, to: &mut Lane) {
        if !to.as_ptr().addr().is_multiple_of(64) {
            return self.store(row, to);
        }
        for (i, part) in row.into_iter().enumerate() {
            // SAFETY: i < 4, so the 8 values lie within the 32 of a `Lane`, whose alignment was checked; the token
            // proves AVX.
            unsafe { _mm256_stream_ps(to.as_mut_ptr().add(8 * i), part) };
        }
    }

    #[inline(always)]
    fn fence(self) {
        // SAFETY: the token proves more than SSE.
        unsafe { _mm_sfence() }
    }

    #[inline(always)]
    fn fma(self, a: f32, b: Self::Row, acc: Self::Row) -> Self::Row {
        // SAFETY: register arithmetic only; the token proves FMA.
        unsafe {
            let a = _mm256_set1_ps(a);
            [
                _mm256_fmadd_ps(a, b[0], acc[0]),
                _mm256_fmadd_ps(a, b[1], acc[1]),
                _mm256_fmadd_ps(a, b[2], acc[2]),
                _mm256_fmadd_ps(a, b[3], acc[3]),
            ]
        }
    }
}
