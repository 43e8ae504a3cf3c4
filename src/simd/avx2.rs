//! AVX2 with FMA and F16C: half a lane is two registers, and so is a vector of noise.

use std::arch::x86_64::*;

use super::{HalfLane, LANES, Lane, Simd, Task};

/// Proof that AVX2, FMA, F16C, BMI1 and POPCNT are there.
#[derive(Clone, Copy, Debug)]
pub struct Avx2(());

/// Columns of a part of a lane.
const HALF: usize = 16;

impl Avx2 {
    /// The token, where the machine has the instructions.
    pub fn detect() -> Option<Avx2> {
        let there = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
            && is_x86_feature_detected!("bmi1")
            && is_x86_feature_detected!("popcnt");
        there.then_some(Avx2(()))
    }

    /// Runs a task compiled with these instructions.
    #[inline]
    pub fn run<T: Task>(self, task: T) -> T::Output {
        #[target_feature(enable = "avx2,fma,f16c,bmi1,popcnt")]
        fn inner<T: Task>(token: Avx2, task: T) -> T::Output {
            task.run(token)
        }
        // SAFETY: the token exists only where `detect` found every feature that `inner` enables.
        unsafe { inner(self, task) }
    }
}

/// The 16 columns of a part.
#[inline(always)]
fn part_of<T>(values: &[T; 32], part: usize) -> &[T; HALF] {
    values[part * HALF..][..HALF].try_into().expect("half a lane")
}

/// The same, for writing.
#[inline(always)]
fn part_of_mut<T>(values: &mut [T; 32], part: usize) -> &mut [T; HALF] {
    (&mut values[part * HALF..][..HALF]).try_into().expect("half a lane")
}

/// 8 values rounded to BF16 on the bit pattern, to nearest even, in 32-bit words; a NaN keeps its sign and becomes
/// quiet.
#[inline(always)]
fn round_bf16(_: Avx2, values: __m256) -> __m256i {
    // SAFETY: register arithmetic only; the token proves AVX2.
    unsafe {
        let bits = _mm256_castps_si256(values);
        let high = _mm256_srli_epi32::<16>(bits);
        let odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
        let up = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
        let rounded = _mm256_srli_epi32::<16>(up);
        let quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
        let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(values, values));
        _mm256_blendv_epi8(rounded, quiet, nan)
    }
}

#[inline(always)]
fn widen_bf16(_: Avx2, values: __m128i) -> __m256 {
    // SAFETY: register arithmetic only; the token proves AVX2.
    unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(values))) }
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

/// The values of part `part` among 16 halves in the order of [`super::apart`], widened.
#[inline(always)]
fn apart(_: Avx2, halves: &[u16; HALF], part: usize) -> __m256 {
    // SAFETY: one unaligned load of the 16 values; the token proves AVX2.
    unsafe {
        let (halves, zero) = (_mm256_loadu_si256(halves.as_ptr().cast()), _mm256_setzero_si256());
        _mm256_castsi256_ps(match part {
            0 => _mm256_unpacklo_epi16(zero, halves),
            _ => _mm256_unpackhi_epi16(zero, halves),
        })
    }
}

#[inline(always)]
fn mul_wide(_: Avx2, a: __m256i, b: u32) -> (__m256i, __m256i) {
    // SAFETY: register arithmetic only; the token proves AVX2.
    unsafe {
        let b = _mm256_set1_epi32(b as i32);
        let even = _mm256_mul_epu32(a, b);
        let odd = _mm256_mul_epu32(_mm256_srli_epi64::<32>(a), b);
        let high = _mm256_blend_epi32::<0b1010_1010>(_mm256_srli_epi64::<32>(even), odd);
        let low = _mm256_blend_epi32::<0b1010_1010>(even, _mm256_slli_epi64::<32>(odd));
        (high, low)
    }
}

#[inline(always)]
fn unsigned_to_floats(_: Avx2, a: __m256i) -> __m256 {
    // The halves and the scaled high half are exact; their sum rounds once.
    // SAFETY: register arithmetic only; the token proves AVX2 and FMA.
    unsafe {
        let high = _mm256_cvtepi32_ps(_mm256_srli_epi32::<16>(a));
        let low = _mm256_cvtepi32_ps(_mm256_and_si256(a, _mm256_set1_epi32(0xffff)));
        _mm256_fmadd_ps(high, _mm256_set1_ps(65536.0), low)
    }
}

#[inline(always)]
fn choose(_: Avx2, words: __m256i, a: __m256, b: __m256) -> __m256 {
    // SAFETY: register arithmetic only; the token proves AVX2.
    unsafe { _mm256_blendv_ps(a, b, _mm256_castsi256_ps(_mm256_slli_epi32::<31>(words))) }
}

/// Four vectors of 8, value w of lane l at `4 l + w` of the four that come out.
#[inline(always)]
fn interleave(_: Avx2, a: __m256, b: __m256, c: __m256, d: __m256) -> [[__m256; 2]; 2] {
    // SAFETY: register arithmetic only; the token proves AVX.
    unsafe {
        let (ab0, ab1) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
        let (cd0, cd1) = (_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
        // The halves of l[n] are lanes n and 4 + n with their four values.
        let l = [
            _mm256_shuffle_ps::<0b01_00_01_00>(ab0, cd0),
            _mm256_shuffle_ps::<0b11_10_11_10>(ab0, cd0),
            _mm256_shuffle_ps::<0b01_00_01_00>(ab1, cd1),
            _mm256_shuffle_ps::<0b11_10_11_10>(ab1, cd1),
        ];
        [
            [_mm256_permute2f128_ps::<0x20>(l[0], l[1]), _mm256_permute2f128_ps::<0x20>(l[2], l[3])],
            [_mm256_permute2f128_ps::<0x31>(l[0], l[1]), _mm256_permute2f128_ps::<0x31>(l[2], l[3])],
        ]
    }
}

impl Simd for Avx2 {
    const ROWS: usize = 6;
    const PARTS: usize = 2;
    type Row = [__m256; 2];
    type Words = [__m256i; 2];
    type Floats = [__m256; 2];

    #[inline(always)]
    fn load(self, from: &Lane, part: usize) -> Self::Row {
        self.load_floats(part_of(from, part))
    }

    #[inline(always)]
    fn store(self, row: Self::Row, to: &mut Lane, part: usize) {
        self.store_floats(row, part_of_mut(to, part));
    }

    #[inline(always)]
    fn stream(self, row: Self::Row, to: &mut Lane, part: usize) {
        let to = part_of_mut(to, part);
        let p = to.as_mut_ptr();
        if !p.addr().is_multiple_of(64) {
            return self.store_floats(row, to);
        }
        // SAFETY: room for 16 values, two stores of 8 whose alignment was checked; the token proves AVX.
        unsafe {
            _mm256_stream_ps(p, row[0]);
            _mm256_stream_ps(p.add(8), row[1]);
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
    fn load_bf16(self, from: &HalfLane, part: usize) -> Self::Row {
        let p = part_of(from, part).as_ptr();
        // SAFETY: two unaligned loads of 8 of the 16 values; the token proves AVX2.
        unsafe {
            [widen_bf16(self, _mm_loadu_si128(p.cast())), widen_bf16(self, _mm_loadu_si128(p.add(8).cast()))]
        }
    }

    #[inline(always)]
    fn load_f16(self, from: &HalfLane, part: usize) -> Self::Row {
        let p = part_of(from, part).as_ptr();
        // SAFETY: i + 8 values lie within the 16; the token proves F16C.
        unsafe {
            [_mm256_cvtph_ps(_mm_loadu_si128(p.cast())), _mm256_cvtph_ps(_mm_loadu_si128(p.add(8).cast()))]
        }
    }

    #[inline(always)]
    fn store_bf16(self, row: Self::Row, to: &mut HalfLane, part: usize) {
        let p = part_of_mut(to, part).as_mut_ptr();
        // SAFETY: room for 16 values behind the pointer, one unaligned store; the token proves AVX2.
        unsafe {
            let packed = _mm256_packus_epi32(round_bf16(self, row[0]), round_bf16(self, row[1]));
            _mm256_storeu_si256(p.cast(), _mm256_permute4x64_epi64::<0b11_01_10_00>(packed));
        }
    }

    #[inline(always)]
    fn store_f16(self, row: Self::Row, to: &mut HalfLane, part: usize) {
        let p = part_of_mut(to, part).as_mut_ptr();
        // SAFETY: room for 16 values behind the pointer, two unaligned stores of 8; the token proves F16C.
        unsafe {
            _mm_storeu_si128(p.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(row[0]));
            _mm_storeu_si128(p.add(8).cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(row[1]));
        }
    }

    #[inline(always)]
    fn fma(self, a: f32, b: Self::Row, acc: Self::Row) -> Self::Row {
        // SAFETY: register arithmetic only; the token proves FMA.
        unsafe {
            let a = _mm256_set1_ps(a);
            [_mm256_fmadd_ps(a, b[0], acc[0]), _mm256_fmadd_ps(a, b[1], acc[1])]
        }
    }

    #[inline(always)]
    fn fma_pair(self, a: f32, [b0, b1]: [Self::Row; 2], acc: Self::Row) -> Self::Row {
        // SAFETY: register arithmetic only; the token proves AVX2 and FMA.
        unsafe {
            let [even, odd] = halves(self, _mm256_set1_ps(a));
            let acc = [_mm256_fmadd_ps(even, b0[0], acc[0]), _mm256_fmadd_ps(even, b0[1], acc[1])];
            [_mm256_fmadd_ps(odd, b1[0], acc[0]), _mm256_fmadd_ps(odd, b1[1], acc[1])]
        }
    }

    #[inline(always)]
    fn dot(self, a: f32, b: Self::Row, acc: Self::Row) -> Self::Row {
        // SAFETY: register arithmetic only; the token proves AVX.
        let a = halves(self, unsafe { _mm256_set1_ps(a) });
        [dot(self, a, b[0], acc[0]), dot(self, a, b[1], acc[1])]
    }

    #[inline(always)]
    fn dot_apart(self, a: f32, even: &HalfLane, odd: &HalfLane, part: usize, acc: Self::Row) -> Self::Row {
        let even = [apart(self, part_of(even, 0), part), apart(self, part_of(even, 1), part)];
        let odd = [apart(self, part_of(odd, 0), part), apart(self, part_of(odd, 1), part)];
        let bits = a.to_bits();
        let acc = self.fma(f32::from_bits(bits & 0xffff_0000), odd, acc);
        self.fma(f32::from_bits(bits << 16), even, acc)
    }

    #[inline(always)]
    fn fma_rows(self, a: Self::Row, b: Self::Row, acc: Self::Row) -> Self::Row {
        self.mul_add(a, b, acc)
    }

    #[inline(always)]
    fn add_rows(self, a: Self::Row, b: Self::Row) -> Self::Row {
        // SAFETY: register arithmetic only; the token proves AVX2.
        unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn relu(self, row: Self::Row) -> Self::Row {
        // Of equal zeros and of NaN the maximum is its second operand.
        // SAFETY: register arithmetic only; the token proves AVX.
        unsafe { [_mm256_max_ps(_mm256_setzero_ps(), row[0]), _mm256_max_ps(_mm256_setzero_ps(), row[1])] }
    }

    #[inline(always)]
    fn words(self, value: u32) -> Self::Words {
        // SAFETY: register arithmetic only; the token proves AVX.
        unsafe { [_mm256_set1_epi32(value as i32); 2] }
    }

    #[inline(always)]
    fn load_words(self, from: &[u32; LANES]) -> Self::Words {
        // SAFETY: i + 8 values lie within the 16; the token proves AVX.
        unsafe { [_mm256_loadu_si256(from.as_ptr().cast()), _mm256_loadu_si256(from.as_ptr().add(8).cast())] }
    }

    #[inline(always)]
    fn add_words(self, a: Self::Words, b: Self::Words) -> Self::Words {
        // SAFETY: register arithmetic only; the token proves AVX2.
        unsafe { [_mm256_add_epi32(a[0], b[0]), _mm256_add_epi32(a[1], b[1])] }
    }

    #[inline(always)]
    fn sub_words(self, a: Self::Words, b: Self::Words) -> Self::Words {
        // SAFETY: register arithmetic only; the token proves AVX2.
        unsafe { [_mm256_sub_epi32(a[0], b[0]), _mm256_sub_epi32(a[1], b[1])] }
    }

    #[inline(always)]
    fn and(self, a: Self::Words, b: Self::Words) -> Self::Words {
        // SAFETY: register arithmetic only; the token proves AVX2.
        unsafe { [_mm256_and_si256(a[0], b[0]), _mm256_and_si256(a[1], b[1])] }
    }

    #[inline(always)]
    fn xor(self, a: Self::Words, b: Self::Words) -> Self::Words {
        // SAFETY: register arithmetic only; the token proves AVX2.
        unsafe { [_mm256_xor_si256(a[0], b[0]), _mm256_xor_si256(a[1], b[1])] }
    }

    #[inline(always)]
    fn shl<const N: u32>(self, a: Self::Words) -> Self::Words {
        // SAFETY: register arithmetic only; the token proves AVX2.
        unsafe {
            [
                _mm256_sll_epi32(a[0], _mm_cvtsi32_si128(N as i32)),
                _mm256_sll_epi32(a[1], _mm_cvtsi32_si128(N as i32)),
            ]
        }
    }

    #[inline(always)]
    fn shr<const N: u32>(self, a: Self::Words) -> Self::Words {
        // SAFETY: register arithmetic only; the token proves AVX2.
        unsafe {
            [
                _mm256_srl_epi32(a[0], _mm_cvtsi32_si128(N as i32)),
                _mm256_srl_epi32(a[1], _mm_cvtsi32_si128(N as i32)),
            ]
        }
    }

    #[inline(always)]
    fn mul_wide(self, a: Self::Words, b: u32) -> (Self::Words, Self::Words) {
        let (first, second) = (mul_wide(self, a[0], b), mul_wide(self, a[1], b));
        ([first.0, second.0], [first.1, second.1])
    }

    #[inline(always)]
    fn signed_to_floats(self, a: Self::Words) -> Self::Floats {
        // SAFETY: register arithmetic only; the token proves AVX.
        unsafe { [_mm256_cvtepi32_ps(a[0]), _mm256_cvtepi32_ps(a[1])] }
    }

    #[inline(always)]
    fn unsigned_to_floats(self, a: Self::Words) -> Self::Floats {
        [unsigned_to_floats(self, a[0]), unsigned_to_floats(self, a[1])]
    }

    #[inline(always)]
    fn bits(self, a: Self::Floats) -> Self::Words {
        // SAFETY: register arithmetic only; the token proves AVX.
        unsafe { [_mm256_castps_si256(a[0]), _mm256_castps_si256(a[1])] }
    }

    #[inline(always)]
    fn with_bits(self, a: Self::Words) -> Self::Floats {
        // SAFETY: register arithmetic only; the token proves AVX.
        unsafe { [_mm256_castsi256_ps(a[0]), _mm256_castsi256_ps(a[1])] }
    }

    #[inline(always)]
    fn choose(self, words: Self::Words, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        [choose(self, words[0], a[0], b[0]), choose(self, words[1], a[1], b[1])]
    }

    #[inline(always)]
    fn floats(self, value: f32) -> Self::Floats {
        // SAFETY: register arithmetic only; the token proves AVX.
        unsafe { [_mm256_set1_ps(value); 2] }
    }

    #[inline(always)]
    fn load_floats(self, from: &[f32; LANES]) -> Self::Floats {
        // SAFETY: i + 8 values lie within the 16; the token proves AVX.
        unsafe { [_mm256_loadu_ps(from.as_ptr()), _mm256_loadu_ps(from.as_ptr().add(8))] }
    }

    #[inline(always)]
    fn store_floats(self, a: Self::Floats, to: &mut [f32; LANES]) {
        // SAFETY: room for 16 values behind the pointer, two unaligned stores of 8; the token proves AVX.
        unsafe {
            _mm256_storeu_ps(to.as_mut_ptr(), a[0]);
            _mm256_storeu_ps(to.as_mut_ptr().add(8), a[1]);
        }
    }

    #[inline(always)]
    fn add(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        // SAFETY: register arithmetic only; the token proves AVX.
        unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn sub(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        // SAFETY: register arithmetic only; the token proves AVX.
        unsafe { [_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        // SAFETY: register arithmetic only; the token proves AVX.
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn mul_add(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        // SAFETY: register arithmetic only; the token proves FMA.
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }

    #[inline(always)]
    fn sqrt(self, a: Self::Floats) -> Self::Floats {
        // SAFETY: register arithmetic only; the token proves AVX.
        unsafe { [_mm256_sqrt_ps(a[0]), _mm256_sqrt_ps(a[1])] }
    }

    #[inline(always)]
    fn interleave(self, [a, b, c, d]: [Self::Floats; 4]) -> [Self::Floats; 4] {
        let ([first, second], [third, fourth]) =
            (interleave(self, a[0], b[0], c[0], d[0]), interleave(self, a[1], b[1], c[1], d[1]));
        [first, second, third, fourth]
    }
}
