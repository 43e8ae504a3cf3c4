//! The level that every target has. Bits equal the others'; without a hardware fused multiply-add it is slow.

use std::array::from_fn;

use half::{bf16, f16};

use super::{HalfLane, LANES, Lane, Simd, apart};
use crate::dtype::Element;

/// Plain Rust; the compiler vectorises it for the target's baseline. With `MATRIX` products of BF16 are those of matrices.
#[derive(Clone, Copy, Debug)]
pub struct Portable<const MATRIX: bool>;

/// Columns of a part of a lane.
const HALF: usize = 16;

/// A part of a lane as F32; exact.
#[inline(always)]
pub fn widen<T: Element>(from: &HalfLane, part: usize) -> [f32; HALF] {
    let mut row = [0f32; HALF];
    T::widen(bytemuck::cast_slice(&from[part * HALF..][..HALF]), &mut row);
    row
}

/// A part of a lane rounded to a 16-bit type.
#[inline(always)]
pub fn narrow<T: Element>(row: [f32; HALF], to: &mut HalfLane, part: usize) {
    T::narrow(&row, bytemuck::cast_slice_mut(&mut to[part * HALF..][..HALF]));
}

/// The two BF16 values of a word.
#[inline(always)]
fn halves(word: f32) -> [f32; 2] {
    let bits = word.to_bits();
    [f32::from_bits(bits << 16), f32::from_bits(bits & 0xffff_0000)]
}

impl<const MATRIX: bool> Simd for Portable<MATRIX> {
    const ROWS: usize = 4;
    const PARTS: usize = 2;
    const MATRIX: bool = MATRIX;
    type Row = [f32; HALF];
    type Words = [u32; LANES];
    type Floats = [f32; LANES];

    #[inline(always)]
    fn load(self, from: &Lane, part: usize) -> Self::Row {
        from_fn(|i| from[part * HALF + i])
    }

    #[inline(always)]
    fn store(self, row: Self::Row, to: &mut Lane, part: usize) {
        to[part * HALF..][..HALF].copy_from_slice(&row);
    }

    #[inline(always)]
    fn stream(self, row: Self::Row, to: &mut Lane, part: usize) {
        self.store(row, to, part);
    }

    #[inline(always)]
    fn fence(self) {}

    #[inline(always)]
    fn prefetch<T>(self, _: &T) {}

    #[inline(always)]
    fn load_bf16(self, from: &HalfLane, part: usize) -> Self::Row {
        widen::<bf16>(from, part)
    }

    #[inline(always)]
    fn load_f16(self, from: &HalfLane, part: usize) -> Self::Row {
        widen::<f16>(from, part)
    }

    #[inline(always)]
    fn store_bf16(self, row: Self::Row, to: &mut HalfLane, part: usize) {
        narrow::<bf16>(row, to, part);
    }

    #[inline(always)]
    fn store_f16(self, row: Self::Row, to: &mut HalfLane, part: usize) {
        narrow::<f16>(row, to, part);
    }

    #[inline(always)]
    fn fma(self, a: f32, b: Self::Row, acc: Self::Row) -> Self::Row {
        from_fn(|i| a.mul_add(b[i], acc[i]))
    }

    #[inline(always)]
    fn dot(self, a: f32, b: Self::Row, acc: Self::Row) -> Self::Row {
        let [even, odd] = halves(a);
        from_fn(|i| {
            let [b_even, b_odd] = halves(b[i]);
            even.mul_add(b_even, odd.mul_add(b_odd, acc[i]))
        })
    }

    #[inline(always)]
    fn dot_apart(self, a: f32, even: &HalfLane, odd: &HalfLane, part: usize, acc: Self::Row) -> Self::Row {
        let place = |i: usize| apart(part * HALF + i);
        let widen = |half: u16| f32::from_bits(u32::from(half) << 16);
        let [a_even, a_odd] = halves(a);
        from_fn(|i| {
            let (even, odd) = (widen(even[place(i)]), widen(odd[place(i)]));
            a_even.mul_add(even, a_odd.mul_add(odd, acc[i]))
        })
    }

    #[inline(always)]
    fn fma_rows(self, a: Self::Row, b: Self::Row, acc: Self::Row) -> Self::Row {
        from_fn(|i| a[i].mul_add(b[i], acc[i]))
    }

    #[inline(always)]
    fn add_rows(self, a: Self::Row, b: Self::Row) -> Self::Row {
        from_fn(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn relu(self, row: Self::Row) -> Self::Row {
        row.map(|v| if v < 0.0 { 0.0 } else { v })
    }

    #[inline(always)]
    fn words(self, value: u32) -> Self::Words {
        [value; LANES]
    }

    #[inline(always)]
    fn load_words(self, from: &[u32; LANES]) -> Self::Words {
        *from
    }

    #[inline(always)]
    fn add_words(self, a: Self::Words, b: Self::Words) -> Self::Words {
        from_fn(|i| a[i].wrapping_add(b[i]))
    }

    #[inline(always)]
    fn sub_words(self, a: Self::Words, b: Self::Words) -> Self::Words {
        from_fn(|i| a[i].wrapping_sub(b[i]))
    }

    #[inline(always)]
    fn and(self, a: Self::Words, b: Self::Words) -> Self::Words {
        from_fn(|i| a[i] & b[i])
    }

    #[inline(always)]
    fn xor(self, a: Self::Words, b: Self::Words) -> Self::Words {
        from_fn(|i| a[i] ^ b[i])
    }

    #[inline(always)]
    fn shl<const N: u32>(self, a: Self::Words) -> Self::Words {
        a.map(|a| a << N)
    }

    #[inline(always)]
    fn shr<const N: u32>(self, a: Self::Words) -> Self::Words {
        a.map(|a| a >> N)
    }

    #[inline(always)]
    fn mul_wide(self, a: Self::Words, b: u32) -> (Self::Words, Self::Words) {
        let products = a.map(|a| u64::from(a) * u64::from(b));
        (products.map(|p| (p >> 32) as u32), products.map(|p| p as u32))
    }

    #[inline(always)]
    fn signed_to_floats(self, a: Self::Words) -> Self::Floats {
        a.map(|a| a as i32 as f32)
    }

    #[inline(always)]
    fn unsigned_to_floats(self, a: Self::Words) -> Self::Floats {
        a.map(|a| a as f32)
    }

    #[inline(always)]
    fn bits(self, a: Self::Floats) -> Self::Words {
        a.map(f32::to_bits)
    }

    #[inline(always)]
    fn with_bits(self, a: Self::Words) -> Self::Floats {
        a.map(f32::from_bits)
    }

    #[inline(always)]
    fn choose(self, words: Self::Words, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        from_fn(|i| if words[i] & 1 == 1 { b[i] } else { a[i] })
    }

    #[inline(always)]
    fn floats(self, value: f32) -> Self::Floats {
        [value; LANES]
    }

    #[inline(always)]
    fn load_floats(self, from: &[f32; LANES]) -> Self::Floats {
        *from
    }

    #[inline(always)]
    fn store_floats(self, a: Self::Floats, to: &mut [f32; LANES]) {
        *to = a;
    }

    #[inline(always)]
    fn add(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        from_fn(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn sub(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        from_fn(|i| a[i] - b[i])
    }

    #[inline(always)]
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        from_fn(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn mul_add(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        from_fn(|i| a[i].mul_add(b[i], c[i]))
    }

    #[inline(always)]
    fn sqrt(self, a: Self::Floats) -> Self::Floats {
        a.map(f32::sqrt)
    }

    #[inline(always)]
    fn interleave(self, values: [Self::Floats; 4]) -> [Self::Floats; 4] {
        from_fn(|q| from_fn(|i| values[i % 4][(q * LANES + i) / 4]))
    }
}
