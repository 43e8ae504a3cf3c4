//! The level that every target has. Bits equal the others'; without a hardware fused multiply-add it is slow.

use super::{Lane, Simd, WIDTH};

/// Plain Rust; the compiler vectorises it for the target's baseline.
#[derive(Clone, Copy, Debug)]
pub struct Portable;

impl Simd for Portable {
    const ROWS: usize = 2;
    type Row = Lane;

    #[inline(always)]
    fn load(self, from: &Lane) -> Lane {
        *from
    }

    #[inline(always)]
    fn store(self, row: Lane, to: &mut Lane) {
        *to = row;
    }

    #[inline(always)]
    fn stream(self, row: Lane, to: &mut Lane) {
        *to = row;
    }

    #[inline(always)]
    fn fence(self) {}

    #[inline(always)]
    fn fma(self, a: f32, b: Lane, acc: Lane) -> Lane {
        let mut out = [0f32; WIDTH];
        for i in 0..WIDTH {
            out[i] = a.mul_add(b[i], acc[i]);
        }
        out
    }
}
