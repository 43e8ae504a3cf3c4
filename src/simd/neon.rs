//! NEON, which every aarch64 machine has: a vector is four registers.

use std::arch::aarch64::*;
use std::marker::PhantomData;

use super::{Callee, Simd, Task, VLEN};

/// Proof that NEON is there. Not `Send`, as no token is.
#[derive(Clone, Copy)]
pub(super) struct Neon(PhantomData<*const ()>);

/// Values of a register.
const QUARTER: usize = 4;

pub(super) fn is_available() -> bool {
    std::arch::is_aarch64_feature_detected!("neon")
}

#[target_feature(enable = "neon")]
pub(super) fn run<T: Task>(task: T) -> T::Output {
    task.run(Neon(PhantomData))
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
    const MR: usize = 6;
    const NV: usize = 1;
    type Vector = [float32x4_t; 4];

    #[inline(always)]
    fn call<C: Callee>(self, callee: C) -> C::Output {
        #[inline(never)]
        fn out_of_line<C: Callee>(token: Neon, callee: C) -> C::Output {
            callee.run(token)
        }
        out_of_line(self, callee)
    }

    #[inline(always)]
    fn splat(self, value: f32) -> Self::Vector {
        // SAFETY: register arithmetic only; the token proves NEON.
        unsafe { [vdupq_n_f32(value); 4] }
    }

    #[inline(always)]
    fn load(self, from: &[f32; VLEN]) -> Self::Vector {
        four!(i => vld1q_f32(from[QUARTER * i..][..QUARTER].as_ptr()))
    }

    #[inline(always)]
    fn store(self, vector: Self::Vector, to: &mut [f32; VLEN]) {
        four!(i => vst1q_f32(to[QUARTER * i..][..QUARTER].as_mut_ptr(), vector[i]));
    }

    #[inline(always)]
    fn fma(self, a: f32, b: Self::Vector, acc: Self::Vector) -> Self::Vector {
        each!(vfmaq_n_f32(acc, b; a))
    }

    #[inline(always)]
    fn dot_bf16(self, a: f32, b: Self::Vector, acc: Self::Vector) -> Self::Vector {
        let bits = a.to_bits();
        let acc = self.fma(f32::from_bits(bits & 0xffff_0000), four!(i => odd(b[i])), acc);
        self.fma(f32::from_bits(bits << 16), four!(i => even(b[i])), acc)
    }
}
