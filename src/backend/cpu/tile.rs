//! Products of training, in register tiles: what a tile made goes straight to what comes next (a sum, a loss, a step
//! of Adam) and need not travel through memory. Each element is one chain of fused multiply-adds in rising order.
//! Operands come in words, see [`Arithmetic`].

use super::panel::Arithmetic;
use crate::simd::{Lane, Rows, Simd, TALL, WIDTH};

/// A lane of zeros.
pub const ZERO: Lane = [0.0; WIDTH];

/// What becomes of a tile's rows: row `at + i` of the product is `made[i]`. `take` must be `#[inline(always)]`.
pub trait Sink {
    /// Takes some rows.
    fn take(&mut self, at: usize, made: &[Lane]);

    /// Asks for what taking `count` rows from row `at` on will need.
    #[inline(always)]
    fn ask<S: Simd>(&self, _: S, _at: usize, _count: usize) {}
}

/// Adds to what is there.
pub struct Add<'a>(pub &'a mut [Lane]);

impl Sink for Add<'_> {
    #[inline(always)]
    fn take(&mut self, at: usize, made: &[Lane]) {
        // One loop over all values: compilers vectorise it, but not one a lane.
        let to = self.0[at..at + made.len()].as_flattened_mut();
        for (to, made) in to.iter_mut().zip(made.as_flattened()) {
            *to += made;
        }
    }
}

/// Replaces what is there.
pub struct Keep<'a>(pub &'a mut [Lane]);

impl Sink for Keep<'_> {
    #[inline(always)]
    fn take(&mut self, at: usize, made: &[Lane]) {
        self.0[at..at + made.len()].copy_from_slice(made);
    }
}

/// The heights that tiles come in.
const HEIGHTS: [usize; 5] = [8, 6, 4, 3, 2];

/// The tallest tile that the registers and what is left allow.
#[inline(always)]
fn height<S: Simd>(left: usize) -> usize {
    HEIGHTS.into_iter().find(|&h| h <= S::ROWS && h <= left).unwrap_or(1)
}

/// Calls a tile of the height that what is left allows. (A macro: closures there cost speed.)
macro_rules! by_height {
    ($left:expr, $tile:ident($($argument:expr),*)) => {
        match height::<S>($left) {
            8 => $tile::<S, A, T, 8>($($argument),*),
            6 => $tile::<S, A, T, 6>($($argument),*),
            4 => $tile::<S, A, T, 4>($($argument),*),
            3 => $tile::<S, A, T, 3>($($argument),*),
            2 => $tile::<S, A, T, 2>($($argument),*),
            _ => $tile::<S, A, T, 1>($($argument),*),
        }
    };
}

/// Row r of the product is the sum over k of `a[r * stride + k] * b[k]`, for `count` rows. Where products are those of
/// matrices, `a` has room for a multiple of 16 rows.
#[inline(always)]
pub fn rows<S: Simd, A: Arithmetic, T: Sink>(
    simd: S,
    a: &[f32],
    stride: usize,
    count: usize,
    b: &[Lane],
    sink: &mut T,
) {
    if S::MATRIX && A::INPUTS == 2 {
        return blocks(simd, a, stride, count, b, sink);
    }
    let mut at = 0;
    while at < count {
        let a = &a[at * stride..];
        at += by_height!(count - at, row_tile(simd, a, stride, b, at, sink));
    }
}

#[inline(always)]
fn blocks<S: Simd, T: Sink>(simd: S, a: &[f32], stride: usize, count: usize, b: &[Lane], sink: &mut T) {
    #[repr(align(64))]
    struct Made([Lane; TALL]);
    let mut made = Made([ZERO; TALL]);
    for at in (0..count).step_by(TALL) {
        let count = (count - at).min(TALL);
        simd.block(Rows::side_by_side(&a[at * stride..], count, stride), b, &mut made.0, false);
        sink.take(at, &made.0[..count]);
    }
}

#[inline(always)]
fn row_tile<S: Simd, A: Arithmetic, T: Sink, const R: usize>(
    simd: S,
    a: &[f32],
    stride: usize,
    b: &[Lane],
    at: usize,
    sink: &mut T,
) -> usize {
    let rows: [&[f32]; R] = std::array::from_fn(|r| &a[r * stride..][..b.len()]);
    let mut made = [ZERO; R];
    for part in 0..S::PARTS {
        let mut acc = [simd.load(&ZERO, part); R];
        for (k, lane) in b.iter().enumerate() {
            let lane = simd.load(lane, part);
            for r in 0..R {
                acc[r] = A::add(simd, rows[r][k], lane, acc[r]);
            }
        }
        finish(simd, acc, part, &mut made);
    }
    sink.take(at, &made);
    R
}

/// Row c of the product is the sum over k of `a[k * stride + c] * b[k]`, for `count` columns c of `a`.
#[inline(always)]
pub fn columns<S: Simd, A: Arithmetic, T: Sink>(
    simd: S,
    a: &[f32],
    stride: usize,
    count: usize,
    b: &[Lane],
    sink: &mut T,
) {
    let mut at = 0;
    while at < count {
        at += by_height!(count - at, column_tile(simd, a, stride, b, at, sink));
    }
}

#[inline(always)]
fn column_tile<S: Simd, A: Arithmetic, T: Sink, const R: usize>(
    simd: S,
    a: &[f32],
    stride: usize,
    b: &[Lane],
    at: usize,
    sink: &mut T,
) -> usize {
    assert!(a.len() >= b.len() * stride, "a row of a for every lane of b");
    sink.ask(simd, at, R);
    let mut made = [ZERO; R];
    for part in 0..S::PARTS {
        let mut acc = [simd.load(&ZERO, part); R];
        for (row, lane) in a.chunks_exact(stride).zip(b) {
            let row = &row[at..at + R];
            let lane = simd.load(lane, part);
            for r in 0..R {
                acc[r] = A::add(simd, row[r], lane, acc[r]);
            }
        }
        finish(simd, acc, part, &mut made);
    }
    sink.take(at, &made);
    R
}

#[inline(always)]
fn finish<S: Simd, const R: usize>(simd: S, acc: [S::Row; R], part: usize, made: &mut [Lane; R]) {
    for r in 0..R {
        simd.store(acc[r], &mut made[r], part);
    }
}
