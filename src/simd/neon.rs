//! NEON, which every aarch64 machine has: half a lane is four registers, and so is a vector of noise.

use std::arch::aarch64::*;

use half::f16;

use super::portable::{narrow, widen};
use super::{HalfLane, LANES, Lane, Simd, Task};

/// Proof that NEON is there.
#[derive(Clone, Copy, Debug)]
pub struct Neon(());

/// Columns of a part of a lane.
const HALF: usize = 16;
/// Columns of a register.
const QUARTER: usize = 4;

impl Neon {
    /// The token: the architecture has the instructions.
    pub fn detect() -> Option<Neon> {
        std::arch::is_aarch64_feature_detected!("neon").then_some(Neon(()))
    }

    /// Runs a task compiled with these instructions.
    #[inline]
    pub fn run<T: Task>(self, task: T) -> T::Output {
        task.run(self)
    }
}

/// The four columns of a register of a part.
#[inline(always)]
fn quarter<T>(values: &[T; 32], part: usize, register: usize) -> &[T; QUARTER] {
    values[part * HALF + register * QUARTER..][..QUARTER].try_into().expect("a quarter of a part")
}

/// The same, for writing.
#[inline(always)]
fn quarter_mut<T>(values: &mut [T; 32], part: usize, register: usize) -> &mut [T; QUARTER] {
    (&mut values[part * HALF + register * QUARTER..][..QUARTER]).try_into().expect("a quarter of a part")
}

/// Two registers of F32 from 8 BF16 values; exact.
#[inline(always)]
unsafe fn widen_bf16(values: uint16x8_t) -> [float32x4_t; 2] {
    // SAFETY: register arithmetic only; the caller has NEON.
    unsafe {
        let zero = vdupq_n_u16(0);
        [vreinterpretq_f32_u16(vzip1q_u16(zero, values)), vreinterpretq_f32_u16(vzip2q_u16(zero, values))]
    }
}

/// A register of F32 from 4 BF16 values; exact.
#[inline(always)]
unsafe fn widen_four(values: &[u16]) -> float32x4_t {
    assert!(values.len() == QUARTER, "a register");
    // SAFETY: four values; the caller has NEON.
    unsafe { vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(values.as_ptr()))) }
}

/// 4 values rounded to BF16 on the bit pattern, to nearest even; a NaN keeps its sign and becomes quiet.
#[inline(always)]
unsafe fn round_bf16(values: float32x4_t) -> uint16x4_t {
    // SAFETY: register arithmetic only; the caller has NEON.
    unsafe {
        let bits = vreinterpretq_u32_f32(values);
        let odd = vandq_u32(vshrq_n_u32::<16>(bits), vdupq_n_u32(1));
        let up = vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), odd);
        let quiet = vorrq_u32(bits, vdupq_n_u32(0x40_0000));
        vshrn_n_u32::<16>(vbslq_u32(vceqq_f32(values, values), up, quiet))
    }
}

/// The first BF16 value of each word.
#[inline(always)]
unsafe fn even(words: float32x4_t) -> float32x4_t {
    // SAFETY: register arithmetic only; the caller has NEON.
    unsafe { vreinterpretq_f32_u32(vshlq_n_u32::<16>(vreinterpretq_u32_f32(words))) }
}

/// The second BF16 value of each word.
#[inline(always)]
unsafe fn odd(words: float32x4_t) -> float32x4_t {
    // SAFETY: register arithmetic only; the caller has NEON.
    unsafe { vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(words), vdupq_n_u32(0xffff_0000))) }
}

#[inline(always)]
unsafe fn mul_wide(a: uint32x4_t, b: u32) -> (uint32x4_t, uint32x4_t) {
    // SAFETY: register arithmetic only; the caller has NEON.
    unsafe {
        let low = vreinterpretq_u32_u64(vmull_n_u32(vget_low_u32(a), b));
        let high = vreinterpretq_u32_u64(vmull_high_n_u32(a, b));
        (vuzp2q_u32(low, high), vuzp1q_u32(low, high))
    }
}

/// Four vectors of 4, value w of lane l at `4 l + w` of the four that come out.
#[inline(always)]
unsafe fn interleave([a, b, c, d]: [float32x4_t; 4]) -> [float32x4_t; 4] {
    // SAFETY: register arithmetic only; the caller has NEON.
    unsafe {
        let (ab0, ab1) = (vzip1q_f32(a, b), vzip2q_f32(a, b));
        let (cd0, cd1) = (vzip1q_f32(c, d), vzip2q_f32(c, d));
        [
            vcombine_f32(vget_low_f32(ab0), vget_low_f32(cd0)),
            vcombine_f32(vget_high_f32(ab0), vget_high_f32(cd0)),
            vcombine_f32(vget_low_f32(ab1), vget_low_f32(cd1)),
            vcombine_f32(vget_high_f32(ab1), vget_high_f32(cd1)),
        ]
    }
}

/// Four registers, each from its number. (A macro: registers go through memory where a closure is not inlined.)
macro_rules! four {
    ($i:ident => $value:expr) => {
        // SAFETY: what is read or written are slices of as many values; the token proves NEON.
        unsafe {
            [
                {
                    let $i = 0;
                    $value
                },
                {
                    let $i = 1;
                    $value
                },
                {
                    let $i = 2;
                    $value
                },
                {
                    let $i = 3;
                    $value
                },
            ]
        }
    };
}

/// One operation on each of four registers.
macro_rules! each {
    ($operation:ident($($vector:expr),+ $(; $rest:expr)*)) => {
        four!(i => $operation($($vector[i]),+ $(, $rest)*))
    };
}

impl Simd for Neon {
    const ROWS: usize = 6;
    const PARTS: usize = 2;
    type Row = [float32x4_t; 4];
    type Words = [uint32x4_t; 4];
    type Floats = [float32x4_t; 4];

    #[inline(always)]
    fn load(self, from: &Lane, part: usize) -> Self::Row {
        four!(i => vld1q_f32(quarter(from, part, i).as_ptr()))
    }

    #[inline(always)]
    fn store(self, row: Self::Row, to: &mut Lane, part: usize) {
        four!(i => vst1q_f32(quarter_mut(to, part, i).as_mut_ptr(), row[i]));
    }

    #[inline(always)]
    fn stream(self, row: Self::Row, to: &mut Lane, part: usize) {
        self.store(row, to, part);
    }

    #[inline(always)]
    fn fence(self) {}

    #[inline(always)]
    fn prefetch<T>(self, from: &T) {
        // SAFETY: a hint about a valid address, which changes nothing.
        unsafe {
            std::arch::asm!(
                "prfm pldl2keep, [{0}]",
                in(reg) std::ptr::from_ref(from),
                options(nostack, preserves_flags, readonly)
            );
        }
    }

    #[inline(always)]
    fn load_bf16(self, from: &HalfLane, part: usize) -> Self::Row {
        let p = from[part * HALF..][..HALF].as_ptr();
        // SAFETY: 16 values behind the pointer, two loads of 8; the token proves NEON.
        let ([a, b], [c, d]) = unsafe { (widen_bf16(vld1q_u16(p)), widen_bf16(vld1q_u16(p.add(8)))) };
        [a, b, c, d]
    }

    #[inline(always)]
    fn load_f16(self, from: &HalfLane, part: usize) -> Self::Row {
        self.load_floats(&widen::<f16>(from, part))
    }

    #[inline(always)]
    fn store_bf16(self, row: Self::Row, to: &mut HalfLane, part: usize) {
        four!(i => vst1_u16(quarter_mut(to, part, i).as_mut_ptr(), round_bf16(row[i])));
    }

    #[inline(always)]
    fn store_f16(self, row: Self::Row, to: &mut HalfLane, part: usize) {
        let mut values = [0f32; HALF];
        self.store_floats(row, &mut values);
        narrow::<f16>(values, to, part);
    }

    #[inline(always)]
    fn fma(self, a: f32, b: Self::Row, acc: Self::Row) -> Self::Row {
        each!(vfmaq_n_f32(acc, b; a))
    }

    #[inline(always)]
    fn dot(self, a: f32, b: Self::Row, acc: Self::Row) -> Self::Row {
        let bits = a.to_bits();
        let acc = self.fma(f32::from_bits(bits & 0xffff_0000), four!(i => odd(b[i])), acc);
        self.fma(f32::from_bits(bits << 16), four!(i => even(b[i])), acc)
    }

    #[inline(always)]
    fn dot_apart(self, a: f32, even: &HalfLane, odd: &HalfLane, part: usize, acc: Self::Row) -> Self::Row {
        // Of every eight places four are this part's.
        let even = four!(i => widen_four(&even[8 * i + QUARTER * part..][..QUARTER]));
        let odd = four!(i => widen_four(&odd[8 * i + QUARTER * part..][..QUARTER]));
        let bits = a.to_bits();
        let acc = self.fma(f32::from_bits(bits & 0xffff_0000), odd, acc);
        self.fma(f32::from_bits(bits << 16), even, acc)
    }

    #[inline(always)]
    fn fma_rows(self, a: Self::Row, b: Self::Row, acc: Self::Row) -> Self::Row {
        each!(vfmaq_f32(acc, a, b))
    }

    #[inline(always)]
    fn add_rows(self, a: Self::Row, b: Self::Row) -> Self::Row {
        each!(vaddq_f32(a, b))
    }

    #[inline(always)]
    fn relu(self, row: Self::Row) -> Self::Row {
        // Bits stay where the value is not less than zero: of -0 and of NaN too.
        four!(i => vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(row[i]), vcltzq_f32(row[i]))))
    }

    #[inline(always)]
    fn words(self, value: u32) -> Self::Words {
        // SAFETY: register arithmetic only; the token proves NEON.
        unsafe { [vdupq_n_u32(value); 4] }
    }

    #[inline(always)]
    fn load_words(self, from: &[u32; LANES]) -> Self::Words {
        four!(i => vld1q_u32(from[QUARTER * i..][..QUARTER].as_ptr()))
    }

    #[inline(always)]
    fn add_words(self, a: Self::Words, b: Self::Words) -> Self::Words {
        each!(vaddq_u32(a, b))
    }

    #[inline(always)]
    fn sub_words(self, a: Self::Words, b: Self::Words) -> Self::Words {
        each!(vsubq_u32(a, b))
    }

    #[inline(always)]
    fn and(self, a: Self::Words, b: Self::Words) -> Self::Words {
        each!(vandq_u32(a, b))
    }

    #[inline(always)]
    fn xor(self, a: Self::Words, b: Self::Words) -> Self::Words {
        each!(veorq_u32(a, b))
    }

    #[inline(always)]
    fn shl<const N: u32>(self, a: Self::Words) -> Self::Words {
        // SAFETY: register arithmetic only; the token proves NEON.
        let by = unsafe { vdupq_n_s32(N as i32) };
        each!(vshlq_u32(a; by))
    }

    #[inline(always)]
    fn shr<const N: u32>(self, a: Self::Words) -> Self::Words {
        // A shift to the left by a negative count is one to the right.
        // SAFETY: register arithmetic only; the token proves NEON.
        let by = unsafe { vdupq_n_s32(-(N as i32)) };
        each!(vshlq_u32(a; by))
    }

    #[inline(always)]
    fn mul_wide(self, a: Self::Words, b: u32) -> (Self::Words, Self::Words) {
        let [p, q, r, s] = four!(i => mul_wide(a[i], b));
        ([p.0, q.0, r.0, s.0], [p.1, q.1, r.1, s.1])
    }

    #[inline(always)]
    fn signed_to_floats(self, a: Self::Words) -> Self::Floats {
        four!(i => vcvtq_f32_s32(vreinterpretq_s32_u32(a[i])))
    }

    #[inline(always)]
    fn unsigned_to_floats(self, a: Self::Words) -> Self::Floats {
        each!(vcvtq_f32_u32(a))
    }

    #[inline(always)]
    fn bits(self, a: Self::Floats) -> Self::Words {
        each!(vreinterpretq_u32_f32(a))
    }

    #[inline(always)]
    fn with_bits(self, a: Self::Words) -> Self::Floats {
        each!(vreinterpretq_f32_u32(a))
    }

    #[inline(always)]
    fn choose(self, words: Self::Words, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        four!(i => vbslq_f32(vtstq_u32(words[i], vdupq_n_u32(1)), b[i], a[i]))
    }

    #[inline(always)]
    fn floats(self, value: f32) -> Self::Floats {
        // SAFETY: register arithmetic only; the token proves NEON.
        unsafe { [vdupq_n_f32(value); 4] }
    }

    #[inline(always)]
    fn load_floats(self, from: &[f32; LANES]) -> Self::Floats {
        four!(i => vld1q_f32(from[QUARTER * i..][..QUARTER].as_ptr()))
    }

    #[inline(always)]
    fn store_floats(self, a: Self::Floats, to: &mut [f32; LANES]) {
        four!(i => vst1q_f32(to[QUARTER * i..][..QUARTER].as_mut_ptr(), a[i]));
    }

    #[inline(always)]
    fn add(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        each!(vaddq_f32(a, b))
    }

    #[inline(always)]
    fn sub(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        each!(vsubq_f32(a, b))
    }

    #[inline(always)]
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        each!(vmulq_f32(a, b))
    }

    #[inline(always)]
    fn mul_add(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        each!(vfmaq_f32(c, a, b))
    }

    #[inline(always)]
    fn sqrt(self, a: Self::Floats) -> Self::Floats {
        each!(vsqrtq_f32(a))
    }

    #[inline(always)]
    fn interleave(self, [a, b, c, d]: [Self::Floats; 4]) -> [Self::Floats; 4] {
        four!(i => interleave([a[i], b[i], c[i], d[i]]))
    }
}
