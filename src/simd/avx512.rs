//! AVX-512: a lane is two registers, a vector of noise one.

use std::arch::x86_64::*;

use super::avx2::Avx2;
use super::{HalfLane, LANES, Lane, Piece, Rows, Simd, TALL, Task, WIDTH, amx, pack, shuffle};

/// Proof that AVX-512 F, BW, DQ and VL and what [`Avx2`] proves are there, where `BF16` AVX-512 BF16 and VBMI2, and where `AMX`
/// tiles of BF16 and the system's leave to use them.
#[derive(Clone, Copy, Debug)]
pub struct Avx512<const BF16: bool, const AMX: bool>(());

impl<const BF16: bool, const AMX: bool> Avx512<BF16, AMX> {
    /// The token, where the machine has the instructions.
    pub fn detect() -> Option<Self> {
        let there = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && (!AMX || amx::is_there())
            && (!BF16 || is_x86_feature_detected!("avx512bf16") && is_x86_feature_detected!("avx512vbmi2"))
            && Avx2::detect().is_some();
        there.then_some(Avx512(()))
    }

    /// Runs a task compiled with these instructions.
    #[inline]
    pub fn run<T: Task>(self, task: T) -> T::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi1,popcnt")]
        fn plain<T: Task, S: Simd>(token: S, task: T) -> T::Output {
            task.run(token)
        }
        #[target_feature(
            enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vbmi2,avx2,fma,f16c,bmi1,popcnt"
        )]
        fn bf16<T: Task, S: Simd>(token: S, task: T) -> T::Output {
            task.run(token)
        }
        // SAFETY: the token exists only where `detect` found every feature that the function enables.
        unsafe {
            if AMX {
                // The tiles are this thread's until the guard goes.
                let _tiles = amx::Tiles::new();
                return bf16(self, task);
            }
            if BF16 { bf16(self, task) } else { plain(self, task) }
        }
    }
}

/// Two BF16 values a word, and one of them in each word of the result.
#[inline(always)]
fn halves<const BF16: bool, const AMX: bool>(_: Avx512<BF16, AMX>, words: __m512) -> [__m512; 2] {
    // SAFETY: register arithmetic only; the token proves AVX-512 F.
    unsafe {
        let words = _mm512_castps_si512(words);
        let odd = _mm512_and_si512(words, _mm512_set1_epi32(0xffff_0000_u32 as i32));
        [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(words)), _mm512_castsi512_ps(odd)]
    }
}

/// `acc` and the products of 16 pairs of BF16 values.
#[inline(always)]
fn dot<const BF16: bool, const AMX: bool>(
    token: Avx512<BF16, AMX>,
    a: __m512,
    b: __m512,
    acc: __m512,
) -> __m512 {
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

/// Which of a lane's values are not zero; NaN is not.
#[inline(always)]
fn nonzero<const BF16: bool, const AMX: bool>(_: Avx512<BF16, AMX>, [low, high]: [__m512; 2]) -> [u16; 2] {
    // SAFETY: register arithmetic only; the token proves AVX-512 F.
    unsafe {
        let zero = _mm512_setzero_ps();
        [_mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(low, zero), _mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(high, zero)]
    }
}

/// 32 values rounded to BF16, to nearest even; a NaN keeps its sign and becomes quiet.
#[inline(always)]
fn narrow_bf16<const BF16: bool, const AMX: bool>(token: Avx512<BF16, AMX>, row: [__m512; 2]) -> __m512i {
    if BF16 && !token.any_subnormal(row) {
        return narrow_bf16_normal(token, row);
    }
    let (low, high) = (round_bf16(token, row[0]), round_bf16(token, row[1]));
    // SAFETY: register arithmetic only; the token proves AVX-512 F.
    unsafe { _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high) }
}

/// The same where no value is subnormal, which the instruction takes as zero.
#[inline(always)]
fn narrow_bf16_normal<const BF16: bool, const AMX: bool>(
    token: Avx512<BF16, AMX>,
    row: [__m512; 2],
) -> __m512i {
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
fn narrow_f16<const BF16: bool, const AMX: bool>(_: Avx512<BF16, AMX>, [low, high]: [__m512; 2]) -> __m512i {
    const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    // SAFETY: register arithmetic only; the token proves AVX-512 F.
    unsafe {
        let (low, high) = (_mm512_cvtps_ph::<NEAREST>(low), _mm512_cvtps_ph::<NEAREST>(high));
        _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
    }
}

/// Writes a lane of halves, past the caches where it starts a cache line.
#[inline(always)]
fn stream_halves<const BF16: bool, const AMX: bool>(
    _: Avx512<BF16, AMX>,
    values: __m512i,
    to: &mut HalfLane,
) {
    let p = to.as_mut_ptr();
    // SAFETY: a `HalfLane` holds 32 values, one store whose alignment is checked where it matters; the token proves
    // AVX-512 F.
    unsafe {
        if p.addr().is_multiple_of(64) {
            _mm512_stream_si512(p.cast(), values);
        } else {
            _mm512_storeu_si512(p.cast(), values);
        }
    }
}

/// 16 values rounded to BF16 on the bit pattern, to nearest even; a NaN keeps its sign and becomes quiet.
#[inline(always)]
fn round_bf16<const BF16: bool, const AMX: bool>(_: Avx512<BF16, AMX>, values: __m512) -> __m256i {
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

impl<const BF16: bool, const AMX: bool> Simd for Avx512<BF16, AMX> {
    const ROWS: usize = 12;
    const PARTS: usize = 1;
    const MATRIX: bool = AMX;
    type Row = [__m512; 2];
    type Words = __m512i;
    type Floats = __m512;

    #[inline(always)]
    fn outline<P: Piece<Self>>(self, piece: P) -> P::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi1,popcnt")]
        #[inline(never)]
        fn plain<S, P: Piece<S>>(token: S, piece: P) -> P::Output {
            piece.run(token)
        }
        #[target_feature(
            enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vbmi2,avx2,fma,f16c,bmi1,popcnt"
        )]
        #[inline(never)]
        fn bf16<S, P: Piece<S>>(token: S, piece: P) -> P::Output {
            piece.run(token)
        }
        // SAFETY: the token exists only where `detect` found every feature that the function enables.
        unsafe { if BF16 { bf16(self, piece) } else { plain(self, piece) } }
    }

    #[inline(always)]
    fn load(self, from: &Lane, _: usize) -> Self::Row {
        let p = from.as_ptr();
        // SAFETY: a `Lane` holds 32 values, two unaligned loads of 16; the token proves AVX-512 F.
        unsafe { [_mm512_loadu_ps(p), _mm512_loadu_ps(p.add(16))] }
    }

    #[inline(always)]
    fn store(self, row: Self::Row, to: &mut Lane, _: usize) {
        let p = to.as_mut_ptr();
        // SAFETY: a `Lane` holds 32 values, two unaligned stores of 16; the token proves AVX-512 F.
        unsafe {
            _mm512_storeu_ps(p, row[0]);
            _mm512_storeu_ps(p.add(16), row[1]);
        }
    }

    #[inline(always)]
    fn stream(self, row: Self::Row, to: &mut Lane, part: usize) {
        let p = to.as_mut_ptr();
        if !p.addr().is_multiple_of(64) {
            return self.store(row, to, part);
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
    fn prefetch<T>(self, from: &T) {
        // SAFETY: a hint about a valid address; the token proves more than SSE.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(std::ptr::from_ref(from).cast()) }
    }

    #[inline(always)]
    fn load_bf16(self, from: &HalfLane, _: usize) -> Self::Row {
        let p = from.as_ptr();
        // SAFETY: two unaligned loads of 16 of the 32 values; the token proves AVX-512 F and AVX2.
        unsafe {
            let low = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
            let high = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.add(16).cast()));
            let [low, high] = [_mm512_slli_epi32::<16>(low), _mm512_slli_epi32::<16>(high)];
            [_mm512_castsi512_ps(low), _mm512_castsi512_ps(high)]
        }
    }

    #[inline(always)]
    fn load_f16(self, from: &HalfLane, _: usize) -> Self::Row {
        let p = from.as_ptr();
        // SAFETY: two unaligned loads of 16 of the 32 values; the token proves AVX-512 F and AVX2.
        unsafe {
            let (low, high) = (_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(16).cast()));
            [_mm512_cvtph_ps(low), _mm512_cvtph_ps(high)]
        }
    }

    #[inline(always)]
    fn store_bf16(self, row: Self::Row, to: &mut HalfLane, _: usize) {
        // SAFETY: a `HalfLane` holds 32 values, one unaligned store; the token proves AVX-512 F.
        unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), narrow_bf16(self, row)) }
    }

    #[inline(always)]
    fn store_f16(self, row: Self::Row, to: &mut HalfLane, _: usize) {
        // SAFETY: a `HalfLane` holds 32 values, one unaligned store; the token proves AVX-512 F.
        unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), narrow_f16(self, row)) }
    }

    #[inline(always)]
    fn stream_bf16(self, row: Self::Row, to: &mut HalfLane, _: usize) {
        stream_halves(self, narrow_bf16(self, row), to);
    }

    #[inline(always)]
    fn any_subnormal(self, [low, high]: Self::Row) -> bool {
        const SUBNORMAL: i32 = 0x20;
        // SAFETY: register arithmetic only; the token proves AVX-512 DQ.
        unsafe { _mm512_fpclass_ps_mask::<SUBNORMAL>(low) | _mm512_fpclass_ps_mask::<SUBNORMAL>(high) != 0 }
    }

    #[inline(always)]
    fn store_bf16_normal(self, row: Self::Row, to: &mut HalfLane, _: usize, stream: bool) {
        let values = narrow_bf16_normal(self, row);
        if stream {
            return stream_halves(self, values, to);
        }
        // SAFETY: a `HalfLane` holds 32 values, one unaligned store; the token proves AVX-512 F.
        unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), values) }
    }

    #[inline(always)]
    fn stream_f16(self, row: Self::Row, to: &mut HalfLane, _: usize) {
        stream_halves(self, narrow_f16(self, row), to);
    }

    #[inline(always)]
    fn fma(self, a: f32, b: Self::Row, acc: Self::Row) -> Self::Row {
        // SAFETY: register arithmetic only; the token proves AVX-512 F.
        unsafe {
            let a = _mm512_set1_ps(a);
            [_mm512_fmadd_ps(a, b[0], acc[0]), _mm512_fmadd_ps(a, b[1], acc[1])]
        }
    }

    #[inline(always)]
    fn fma_pair(self, a: f32, [b0, b1]: [Self::Row; 2], acc: Self::Row) -> Self::Row {
        // SAFETY: register arithmetic only; the token proves AVX-512 F.
        unsafe {
            let [even, odd] = halves(self, _mm512_set1_ps(a));
            let acc = [_mm512_fmadd_ps(even, b0[0], acc[0]), _mm512_fmadd_ps(even, b0[1], acc[1])];
            [_mm512_fmadd_ps(odd, b1[0], acc[0]), _mm512_fmadd_ps(odd, b1[1], acc[1])]
        }
    }

    #[inline(always)]
    fn dot(self, a: f32, b: Self::Row, acc: Self::Row) -> Self::Row {
        // SAFETY: register arithmetic only; the token proves AVX-512 F.
        let a = unsafe { _mm512_set1_ps(a) };
        [dot(self, a, b[0], acc[0]), dot(self, a, b[1], acc[1])]
    }

    #[inline(always)]
    fn block(self, a: Rows<'_>, b: &[Lane], acc: &mut [Lane; TALL], add: bool) {
        assert!(AMX, "only where products are those of matrices");
        // SAFETY: the token proves tiles, and `run` has given them their shape.
        unsafe { amx::block(a, b, acc, add) }
    }

    #[inline(always)]
    fn dot_apart(self, a: f32, even: &HalfLane, odd: &HalfLane, _: usize, acc: Self::Row) -> Self::Row {
        // SAFETY: a `HalfLane` holds 32 values, one unaligned load; the token proves AVX-512 F and BW.
        let pairs = unsafe {
            let even = _mm512_loadu_si512(even.as_ptr().cast());
            let odd = _mm512_loadu_si512(odd.as_ptr().cast());
            let (low, high) = (_mm512_unpacklo_epi16(even, odd), _mm512_unpackhi_epi16(even, odd));
            [_mm512_castsi512_ps(low), _mm512_castsi512_ps(high)]
        };
        self.dot(a, pairs, acc)
    }

    #[inline(always)]
    fn nonzero(self, from: &Lane, values: &mut Lane) -> u32 {
        let lane = self.load(from, 0);
        let [low, high] = nonzero(self, lane);
        // SAFETY: 16 values each, unaligned, the second from value 16 on at most; the token proves AVX-512 F and BW.
        unsafe {
            // Compressed in a register: to memory the instruction is slow on some machines.
            let to = values.as_mut_ptr();
            _mm512_storeu_ps(to, _mm512_maskz_compress_ps(low, lane[0]));
            _mm512_storeu_ps(to.add(low.count_ones() as usize), _mm512_maskz_compress_ps(high, lane[1]));
            _mm512_kunpackw(high.into(), low.into())
        }
    }

    #[inline(always)]
    fn nonzero_bf16(self, from: &Lane, values: &mut HalfLane) -> u32 {
        let lane = self.load(from, 0);
        let rounded = narrow_bf16(self, lane);
        // SAFETY: 32 halves each, unaligned; the token proves AVX-512 F and BW, and VBMI2 where it is used.
        unsafe {
            if BF16 {
                let [low, high] = nonzero(self, lane);
                let kept = _mm512_kunpackw(high.into(), low.into());
                // Compressed in a register: to memory the instruction is slow on some machines.
                let rounded = _mm512_maskz_compress_epi16(kept, rounded);
                _mm512_storeu_si512(values.as_mut_ptr().cast(), rounded);
                return kept;
            }
            let mut halves: HalfLane = [0; WIDTH];
            _mm512_storeu_si512(halves.as_mut_ptr().cast(), rounded);
            pack(from, &halves, values)
        }
    }

    #[inline(always)]
    fn pair(self, even: &Lane, odd: &Lane, out: &mut Lane) {
        let (even, odd) = (self.load(even, 0), self.load(odd, 0));
        // SAFETY: register arithmetic only; the token proves AVX-512 BW.
        let words = unsafe {
            let low = shuffle::pairs(narrow_bf16_normal(self, [even[0], odd[0]]));
            [low, shuffle::pairs(narrow_bf16_normal(self, [even[1], odd[1]]))]
        };
        self.store(words, out, 0);
    }

    #[inline(always)]
    fn turn(self, rows: &[[f32; LANES]; LANES]) -> [[f32; LANES]; LANES] {
        // SAFETY: the token proves AVX-512 F.
        unsafe { shuffle::turn(rows) }
    }

    #[inline(always)]
    fn sum(self, lane: &Lane) -> f32 {
        let [low, high] = self.load(lane, 0);
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
    fn fma_rows(self, a: Self::Row, b: Self::Row, acc: Self::Row) -> Self::Row {
        // SAFETY: register arithmetic only; the token proves AVX-512 F.
        unsafe { [_mm512_fmadd_ps(a[0], b[0], acc[0]), _mm512_fmadd_ps(a[1], b[1], acc[1])] }
    }

    #[inline(always)]
    fn add_rows(self, a: Self::Row, b: Self::Row) -> Self::Row {
        // SAFETY: register arithmetic only; the token proves AVX-512 F.
        unsafe { [_mm512_add_ps(a[0], b[0]), _mm512_add_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn relu(self, row: Self::Row) -> Self::Row {
        // Of equal zeros and of NaN the maximum is its second operand.
        // SAFETY: register arithmetic only; the token proves AVX-512 F.
        unsafe {
            let zero = _mm512_setzero_ps();
            [_mm512_max_ps(zero, row[0]), _mm512_max_ps(zero, row[1])]
        }
    }

    #[inline(always)]
    fn words(self, value: u32) -> __m512i {
        // SAFETY: register arithmetic only; the token proves AVX-512 F.
        unsafe { _mm512_set1_epi32(value as i32) }
    }

    #[inline(always)]
    fn load_words(self, from: &[u32; LANES]) -> __m512i {
        // SAFETY: 16 values behind the pointer, one unaligned load; the token proves AVX-512 F.
        unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
    }

    #[inline(always)]
    fn each_of_four(self, [a, b, c, d]: [u32; 4]) -> __m512i {
        // SAFETY: register arithmetic only; the token proves AVX-512 F.
        unsafe {
            // In registers: a load would have to wait for the values to be written.
            let values = _mm_setr_epi32(a as i32, b as i32, c as i32, d as i32);
            let place = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
            _mm512_permutexvar_epi32(place, _mm512_castsi128_si512(values))
        }
    }

    #[inline(always)]
    fn add_words(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: register arithmetic only; the token proves AVX-512 F.
        unsafe { _mm512_add_epi32(a, b) }
    }

    #[inline(always)]
    fn sub_words(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: register arithmetic only; the token proves AVX-512 F.
        unsafe { _mm512_sub_epi32(a, b) }
    }

    #[inline(always)]
    fn and(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: register arithmetic only; the token proves AVX-512 F.
        unsafe { _mm512_and_si512(a, b) }
    }

    #[inline(always)]
    fn xor(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: register arithmetic only; the token proves AVX-512 F.
        unsafe { _mm512_xor_si512(a, b) }
    }

    #[inline(always)]
    fn shl<const N: u32>(self, a: __m512i) -> __m512i {
        // SAFETY: register arithmetic only; the token proves AVX-512 F.
        unsafe { _mm512_slli_epi32::<N>(a) }
    }

    #[inline(always)]
    fn shr<const N: u32>(self, a: __m512i) -> __m512i {
        // SAFETY: register arithmetic only; the token proves AVX-512 F.
        unsafe { _mm512_srli_epi32::<N>(a) }
    }

    #[inline(always)]
    fn mul_wide(self, a: __m512i, b: u32) -> (__m512i, __m512i) {
        // SAFETY: register arithmetic only; the token proves AVX-512 F.
        unsafe {
            let b = _mm512_set1_epi32(b as i32);
            let even = _mm512_mul_epu32(a, b);
            let odd = _mm512_mul_epu32(_mm512_srli_epi64::<32>(a), b);
            let high = _mm512_mask_shuffle_epi32::<0b11_11_01_01>(odd, 0x5555, even);
            let low = _mm512_mask_shuffle_epi32::<0b10_10_00_00>(even, 0xaaaa, odd);
            (high, low)
        }
    }

    #[inline(always)]
    fn signed_to_floats(self, a: __m512i) -> __m512 {
        // SAFETY: register arithmetic only; the token proves AVX-512 F.
        unsafe { _mm512_cvtepi32_ps(a) }
    }

    #[inline(always)]
    fn unsigned_to_floats(self, a: __m512i) -> __m512 {
        // SAFETY: register arithmetic only; the token proves AVX-512 F.
        unsafe { _mm512_cvtepu32_ps(a) }
    }

    #[inline(always)]
    fn bits(self, a: __m512) -> __m512i {
        // SAFETY: register arithmetic only; the token proves AVX-512 F.
        unsafe { _mm512_castps_si512(a) }
    }

    #[inline(always)]
    fn with_bits(self, a: __m512i) -> __m512 {
        // SAFETY: register arithmetic only; the token proves AVX-512 F.
        unsafe { _mm512_castsi512_ps(a) }
    }

    #[inline(always)]
    fn choose(self, words: __m512i, a: __m512, b: __m512) -> __m512 {
        // SAFETY: register arithmetic only; the token proves AVX-512 F.
        unsafe { _mm512_mask_blend_ps(_mm512_test_epi32_mask(words, _mm512_set1_epi32(1)), a, b) }
    }

    #[inline(always)]
    fn floats(self, value: f32) -> __m512 {
        // SAFETY: register arithmetic only; the token proves AVX-512 F.
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    fn load_floats(self, from: &[f32; LANES]) -> __m512 {
        // SAFETY: 16 values behind the pointer, one unaligned load; the token proves AVX-512 F.
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }

    #[inline(always)]
    fn store_floats(self, a: __m512, to: &mut [f32; LANES]) {
        // SAFETY: room for 16 values behind the pointer, one unaligned store; the token proves AVX-512 F.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), a) }
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: register arithmetic only; the token proves AVX-512 F.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: register arithmetic only; the token proves AVX-512 F.
        unsafe { _mm512_sub_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: register arithmetic only; the token proves AVX-512 F.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: register arithmetic only; the token proves AVX-512 F.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn sqrt(self, a: __m512) -> __m512 {
        // SAFETY: register arithmetic only; the token proves AVX-512 F.
        unsafe { _mm512_sqrt_ps(a) }
    }

    #[inline(always)]
    fn interleave(self, values: [__m512; 4]) -> [__m512; 4] {
        // SAFETY: the token proves AVX-512 F.
        unsafe { shuffle::interleave(values) }
    }
}
