//! A safe face for the `gemm` crate: general matrix products for training, where the sum's order may be the
//! library's.

#![allow(unsafe_code)]

use gemm::Parallelism;

/// A borrowed F32 matrix `[rows, cols]` with any strides, so that a transpose costs nothing.
#[derive(Clone, Copy, Debug)]
pub struct Mat<'a> {
    values: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Mat<'a> {
    /// Row-major values.
    pub fn new(values: &'a [f32], rows: usize, cols: usize) -> Mat<'a> {
        assert_eq!(values.len(), rows * cols, "a matrix holds rows * cols values");
        Mat { values, rows, cols, row_stride: cols, col_stride: 1 }
    }

    /// The transpose.
    pub fn t(self) -> Mat<'a> {
        Mat {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }
}

/// `out = a b`, or `out += a b`, on this thread; `out` is row-major.
pub fn product(a: Mat<'_>, b: Mat<'_>, out: &mut [f32], add: bool) {
    assert_eq!(a.cols, b.rows, "inner sizes agree");
    assert_eq!(out.len(), a.rows * b.cols, "the output holds one value per row and column");
    // SAFETY: `Mat::new` checked that rows * cols values lie behind each pointer and `t` only swaps the strides, so
    // every index below rows and cols stays inside; `out` was checked above and is borrowed for writing alone.
    unsafe {
        gemm::gemm(
            a.rows,
            b.cols,
            a.cols,
            out.as_mut_ptr(),
            1,
            b.cols as isize,
            add,
            a.values.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.values.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            1.0f32,
            1.0f32,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}
