//! Plain Rust, on every target; the compiler vectorises it for the target's baseline. Bits equal the others'; without a
//! hardware fused multiply-add it is slow.

use std::array::from_fn;

use super::{Callee, Simd, Task, VLEN, bf16x2};

/// Nothing to prove; `amx` asks for the products of BF16 matrices.
#[derive(Clone, Copy)]
pub(super) struct Portable {
    amx: bool,
}

pub(super) fn run<T: Task>(task: T, amx: bool) -> T::Output {
    task.run(Portable { amx })
}

impl Simd for Portable {
    const MR: usize = 4;
    const NV: usize = 1;
    type Vector = [f32; VLEN];

    #[inline(always)]
    fn call<C: Callee>(self, callee: C) -> C::Output {
        #[inline(never)]
        fn out_of_line<C: Callee>(token: Portable, callee: C) -> C::Output {
            callee.run(token)
        }
        out_of_line(self, callee)
    }

    #[inline(always)]
    fn has_amx(self) -> bool {
        self.amx
    }

    #[inline(always)]
    fn splat(self, value: f32) -> Self::Vector {
        [value; VLEN]
    }

    #[inline(always)]
    fn load(self, from: &[f32; VLEN]) -> Self::Vector {
        *from
    }

    #[inline(always)]
    fn store(self, vector: Self::Vector, to: &mut [f32; VLEN]) {
        *to = vector;
    }

    #[inline(always)]
    fn fma(self, a: f32, b: Self::Vector, acc: Self::Vector) -> Self::Vector {
        from_fn(|i| a.mul_add(b[i], acc[i]))
    }

    #[inline(always)]
    fn dot_bf16(self, a: f32, b: Self::Vector, acc: Self::Vector) -> Self::Vector {
        let [even, odd] = bf16x2(a);
        from_fn(|i| {
            let [b_even, b_odd] = bf16x2(b[i]);
            even.mul_add(b_even, odd.mul_add(b_odd, acc[i]))
        })
    }
}
