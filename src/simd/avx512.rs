//! AVX-512: a vector is one register, a row of sums two.

use std::arch::x86_64::*;
use std::marker::PhantomData;

use super::{AMX_M, Callee, Line, NR, NrRow, NrRow16, RowsRef, Simd, Task, VLEN, amx, avx2};

/// Proof that AVX-512 F, BW, DQ and VL and what AVX2 needs are there, where `BF16` AVX-512 BF16 too, and where `amx` is
/// set that this thread has its AMX tiles configured. Not `Send`: tiles are a thread's.
#[derive(Clone, Copy)]
pub(super) struct Avx512<const BF16: bool> {
    amx: bool,
    not_send: PhantomData<*const ()>,
}

pub(super) fn is_available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && avx2::is_available()
}

/// Whether AVX-512 BF16 is there beside what [`is_available`] asks for.
pub(super) fn has_bf16() -> bool {
    is_x86_feature_detected!("avx512bf16")
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
pub(super) fn run<T: Task>(task: T) -> T::Output {
    let output = task.run(Avx512::<false> { amx: false, not_send: PhantomData });
    _mm_sfence();
    output
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
pub(super) fn run_with_bf16<T: Task>(task: T) -> T::Output {
    run_bf16(task, false)
}

/// # Safety
/// [`amx::is_available`] must have said so.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
pub(super) unsafe fn run_with_amx<T: Task>(task: T) -> T::Output {
    // SAFETY: the caller vouches for AMX. The tiles are this thread's until the guard goes, which the token does not
    // outlive: no task can keep or send it.
    let _tiles = unsafe { amx::Tiles::configure() };
    run_bf16(task, true)
}

/// One copy of the task for both: whether there is AMX is asked once a product.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
#[inline(never)]
fn run_bf16<T: Task>(task: T, amx: bool) -> T::Output {
    let output = task.run(Avx512::<true> { amx, not_send: PhantomData });
    _mm_sfence();
    output
}

/// Two BF16 values a word, and one of them in each word of the result.
#[inline(always)]
fn halves<const BF16: bool>(_: Avx512<BF16>, words: __m512) -> [__m512; 2] {
    // SAFETY: register arithmetic only; the token proves AVX-512 F.
    unsafe {
        let words = _mm512_castps_si512(words);
        let odd = _mm512_and_si512(words, _mm512_set1_epi32(0xffff_0000_u32 as i32));
        [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(words)), _mm512_castsi512_ps(odd)]
    }
}

/// `acc` and the products of 16 pairs of BF16 values.
#[inline(always)]
fn dot<const BF16: bool>(token: Avx512<BF16>, a: __m512, b: __m512, acc: __m512) -> __m512 {
    // SAFETY: register arithmetic only; the token proves AVX-512 F, and AVX-512 BF16 where it is used.
    unsafe {
        if BF16 {
            let pairs = |words| std::mem::transmute::<__m512, __m512bh>(words);
            return _mm512_dpbf16_ps(acc, pairs(a), pairs(b));
        }
        let ([a_even, a_odd], [b_even, b_odd]) = (halves(token, a), halves(token, b));
        _mm512_fmadd_ps(a_even, b_even, _mm512_fmadd_ps(a_odd, b_odd, acc))
    }
}

/// Whether a value is not zero but below the normal range.
#[inline(always)]
fn any_subnormal<const BF16: bool>(_: Avx512<BF16>, [low, high]: [__m512; 2]) -> bool {
    const SUBNORMAL: i32 = 0x20;
    // SAFETY: register arithmetic only; the token proves AVX-512 DQ.
    unsafe { _mm512_fpclass_ps_mask::<SUBNORMAL>(low) | _mm512_fpclass_ps_mask::<SUBNORMAL>(high) != 0 }
}

/// 32 values rounded to BF16, to nearest even; a NaN keeps its sign and becomes quiet.
#[inline(always)]
fn narrow_bf16<const BF16: bool>(token: Avx512<BF16>, row: [__m512; 2]) -> __m512i {
    if BF16 && !any_subnormal(token, row) {
        return narrow_bf16_flush(token, row);
    }
    let (low, high) = (round_bf16(token, row[0]), round_bf16(token, row[1]));
    // SAFETY: register arithmetic only; the token proves AVX-512 F.
    unsafe { _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high) }
}

/// The same where no value is subnormal, which the instruction takes as zero.
#[inline(always)]
fn narrow_bf16_flush<const BF16: bool>(token: Avx512<BF16>, row: [__m512; 2]) -> __m512i {
    // SAFETY: register arithmetic only; the token proves AVX-512 F, and AVX-512 BF16 where it is used.
    unsafe {
        if BF16 {
            return std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(row[1], row[0]));
        }
        let (low, high) = (round_bf16(token, row[0]), round_bf16(token, row[1]));
        _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
    }
}

/// 32 values rounded to F16, to nearest even.
#[inline(always)]
fn narrow_f16<const BF16: bool>(_: Avx512<BF16>, [low, high]: [__m512; 2]) -> __m512i {
    const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    // SAFETY: register arithmetic only; the token proves AVX-512 F.
    unsafe {
        let (low, high) = (_mm512_cvtps_ph::<NEAREST>(low), _mm512_cvtps_ph::<NEAREST>(high));
        _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
    }
}

/// 16 values rounded to BF16 on the bit pattern, to nearest even; a NaN keeps its sign and becomes quiet.
#[inline(always)]
fn round_bf16<const BF16: bool>(_: Avx512<BF16>, values: __m512) -> __m256i {
    // SAFETY: register arithmetic only; the token proves AVX-512 F and BW.
    unsafe {
        let bits = _mm512_castps_si512(values);
        let high = _mm512_srli_epi32::<16>(bits);
        let odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
        let up = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
        let rounded = _mm512_srli_epi32::<16>(up);
        let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(values, values);
        _mm512_cvtepi32_epi16(_mm512_mask_or_epi32(rounded, nan, high, _mm512_set1_epi32(0x40)))
    }
}

/// [`Simd::transpose`].
///
/// # Safety
/// The machine must have AVX-512 F.
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "indices that pair up, and no closures: they are not inlined")]
unsafe fn transpose(rows: &[[f32; VLEN]; VLEN]) -> [[f32; VLEN]; VLEN] {
    // SAFETY: each row is one unaligned load or store of 16 values; the caller vouches for AVX-512 F.
    unsafe {
        let zero = _mm512_setzero_ps();
        let (mut a, mut b) = ([zero; VLEN], [zero; VLEN]);
        for i in 0..VLEN {
            a[i] = _mm512_loadu_ps(rows[i].as_ptr());
        }
        // Squares of 4 in every fourth of a register, by pairs of values, then by pairs of pairs.
        for i in 0..VLEN / 2 {
            b[2 * i] = _mm512_unpacklo_ps(a[2 * i], a[2 * i + 1]);
            b[2 * i + 1] = _mm512_unpackhi_ps(a[2 * i], a[2 * i + 1]);
        }
        for i in 0..VLEN / 4 {
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
        let mut out = [[0f32; VLEN]; VLEN];
        for i in 0..VLEN {
            _mm512_storeu_ps(out[i].as_mut_ptr(), a[i]);
        }
        out
    }
}

/// Value i of the first half and of the second as word i.
///
/// # Safety
/// The machine must have AVX-512 BW.
#[inline(always)]
unsafe fn interleave_halves(halves: __m512i) -> __m512 {
    const PLACES: NrRow16 = {
        let mut places = [0; NR];
        let mut i = 0;
        while i < NR {
            places[i] = (i / 2 + i % 2 * VLEN) as u16;
            i += 1;
        }
        places
    };
    // SAFETY: a `NrRow16` is one register; the caller vouches for AVX-512 BW.
    unsafe {
        let places = _mm512_loadu_si512(PLACES.as_ptr().cast());
        _mm512_castsi512_ps(_mm512_permutexvar_epi16(places, halves))
    }
}

/// A row of values in two registers.
#[inline(always)]
fn load_row<const BF16: bool>(_: Avx512<BF16>, from: &NrRow) -> [__m512; 2] {
    let p = from.as_ptr();
    // SAFETY: 32 values, two unaligned loads of 16; the token proves AVX-512 F.
    unsafe { [_mm512_loadu_ps(p), _mm512_loadu_ps(p.add(16))] }
}

/// Writes 32 values of 16 bits.
#[inline(always)]
fn store_halves<const BF16: bool>(_: Avx512<BF16>, values: __m512i, to: &mut NrRow16) {
    // SAFETY: room for 32 values, one unaligned store; the token proves AVX-512 F.
    unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), values) }
}

impl<const BF16: bool> Simd for Avx512<BF16> {
    const MR: usize = 8;
    const NV: usize = 2;
    type Vector = __m512;

    #[inline(always)]
    fn call<C: Callee>(self, callee: C) -> C::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
        #[inline(never)]
        fn plain<S: Simd, C: Callee>(token: S, callee: C) -> C::Output {
            callee.run(token)
        }
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
        #[inline(never)]
        fn bf16<S: Simd, C: Callee>(token: S, callee: C) -> C::Output {
            callee.run(token)
        }
        // SAFETY: the token proves every feature that the function enables.
        unsafe { if BF16 { bf16(self, callee) } else { plain(self, callee) } }
    }

    #[inline(always)]
    fn has_amx(self) -> bool {
        self.amx
    }

    #[inline(always)]
    fn splat(self, value: f32) -> __m512 {
        // SAFETY: register arithmetic only; the token proves AVX-512 F.
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    fn load(self, from: &[f32; VLEN]) -> __m512 {
        // SAFETY: 16 values behind the pointer, one unaligned load; the token proves AVX-512 F.
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, vector: __m512, to: &mut [f32; VLEN]) {
        // SAFETY: room for 16 values behind the pointer, one unaligned store; the token proves AVX-512 F.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), vector) }
    }

    #[inline(always)]
    fn fma(self, a: f32, b: __m512, acc: __m512) -> __m512 {
        // SAFETY: register arithmetic only; the token proves AVX-512 F.
        unsafe { _mm512_fmadd_ps(_mm512_set1_ps(a), b, acc) }
    }

    #[inline(always)]
    fn dot_bf16(self, a: f32, b: __m512, acc: __m512) -> __m512 {
        // SAFETY: register arithmetic only; the token proves AVX-512 F.
        let a = unsafe { _mm512_set1_ps(a) };
        dot(self, a, b, acc)
    }

    #[inline(always)]
    fn amx_block(self, a: RowsRef<'_>, b: &[NrRow], acc: &mut [NrRow; AMX_M]) {
        assert!(self.amx, "this thread has no tiles");
        // SAFETY: the token proves that this thread has its tiles configured.
        unsafe { amx::block(a, b, acc) }
    }

    #[inline(always)]
    fn narrow_bf16(self, from: &NrRow, to: &mut NrRow16) {
        store_halves(self, narrow_bf16(self, load_row(self, from)), to);
    }

    #[inline(always)]
    fn narrow_bf16_flush(self, from: &NrRow, to: &mut NrRow16) {
        store_halves(self, narrow_bf16_flush(self, load_row(self, from)), to);
    }

    #[inline(always)]
    fn narrow_f16(self, from: &NrRow, to: &mut NrRow16) {
        store_halves(self, narrow_f16(self, load_row(self, from)), to);
    }

    #[inline(always)]
    fn pack_bf16x2(self, even: &NrRow, odd: &NrRow, out: &mut NrRow) {
        let (even, odd) = (load_row(self, even), load_row(self, odd));
        let p = out.as_mut_ptr();
        // SAFETY: room for 32 values, two unaligned stores of 16; the token proves AVX-512 F and BW.
        unsafe {
            _mm512_storeu_ps(p, interleave_halves(narrow_bf16_flush(self, [even[0], odd[0]])));
            _mm512_storeu_ps(p.add(16), interleave_halves(narrow_bf16_flush(self, [even[1], odd[1]])));
        }
    }

    #[inline(always)]
    fn transpose(self, rows: &[[f32; VLEN]; VLEN]) -> [[f32; VLEN]; VLEN] {
        // SAFETY: the token proves AVX-512 F.
        unsafe { transpose(rows) }
    }

    #[inline(always)]
    fn sum(self, row: &NrRow) -> f32 {
        let [low, high] = load_row(self, row);
        // SAFETY: register arithmetic only; the token proves AVX-512 F and DQ.
        unsafe {
            let sum = _mm512_add_ps(low, high);
            let sum = _mm256_add_ps(_mm512_castps512_ps256(sum), _mm512_extractf32x8_ps::<1>(sum));
            let sum = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps::<1>(sum));
            let sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
            _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)))
        }
    }

    #[inline(always)]
    fn stream(self, from: &Line, to: &mut Line) {
        let (from, p): (*const f32, *mut f32) = (from.as_ptr().cast(), to.as_mut_ptr().cast());
        // SAFETY: 64 bytes are read and written, unaligned where the address is not a multiple of 64; the token proves
        // AVX-512 F.
        unsafe {
            let values = _mm512_loadu_ps(from);
            if p.addr().is_multiple_of(64) {
                _mm512_stream_ps(p, values);
            } else {
                _mm512_storeu_ps(p, values);
            }
        }
    }
}
