//! Narrow layers in training: parameters, gradients and Adam moments side by side. Products are those of the `gemm`
//! crate, on one thread: where sums may be in any order, as long as it is always the same.

#![allow(unsafe_code)]

use super::adam::Rates;
use crate::backend::Adam;
use crate::model::Linear;

/// A fully connected layer in training.
#[derive(Debug)]
pub struct NarrowLinear {
    /// Parameters.
    pub linear: Linear,
    /// Gradients of the last batch.
    pub gradient: Linear,
    first: Linear,
    second: Linear,
}

impl NarrowLinear {
    /// Starts from `linear` with zero moments.
    pub fn new(linear: &Linear) -> NarrowLinear {
        let zeros = || Linear {
            weight: vec![0.0; linear.weight.len()],
            bias: vec![0.0; linear.bias.len()],
            ..*linear
        };
        NarrowLinear { gradient: zeros(), first: zeros(), second: zeros(), linear: linear.clone() }
    }

    fn weight(&self) -> Mat<'_> {
        Mat::new(&self.linear.weight, self.linear.outputs, self.linear.inputs)
    }

    /// `out = x W^T + b`; x `[rows, inputs]`, out `[rows, outputs]`.
    pub fn forward(&self, x: &[f32], out: &mut [f32]) {
        let rows = x.len() / self.linear.inputs;
        for row in out.chunks_exact_mut(self.linear.outputs) {
            row.copy_from_slice(&self.linear.bias);
        }
        product(Mat::new(x, rows, self.linear.inputs), self.weight().t(), out, true);
    }

    /// Gradients of W and b from input x and output gradient dy.
    pub fn gradients(&mut self, x: &[f32], dy: &[f32]) {
        let (inputs, outputs) = (self.linear.inputs, self.linear.outputs);
        let rows = x.len() / inputs;
        let dy_mat = Mat::new(dy, rows, outputs);
        product(dy_mat.t(), Mat::new(x, rows, inputs), &mut self.gradient.weight, false);
        // In F64, where a pair's opposite terms cancel exactly: Adam would make whole steps of what F32 leaves.
        let mut sums = vec![0f64; outputs];
        for row in dy.chunks_exact(outputs) {
            for (sum, g) in sums.iter_mut().zip(row) {
                *sum += f64::from(*g);
            }
        }
        for (bias, sum) in self.gradient.bias.iter_mut().zip(sums) {
            *bias = sum as f32;
        }
    }

    /// The input gradient `dx = dy W`.
    pub fn backward(&self, dy: &[f32], dx: &mut [f32]) {
        let rows = dy.len() / self.linear.outputs;
        product(Mat::new(dy, rows, self.linear.outputs), self.weight(), dx, false);
    }

    /// One step of Adam; `step` counts from 1.
    pub fn step(&mut self, adam: &Adam, step: i32) {
        let NarrowLinear { linear, gradient, first, second } = self;
        let rates = Rates::new(adam, step);
        rates.step(&mut linear.weight, &mut first.weight, &mut second.weight, &gradient.weight);
        rates.step(&mut linear.bias, &mut first.bias, &mut second.bias, &gradient.bias);
    }
}

/// Zeroes the gradient where the activation (after ReLU) is not positive.
pub fn relu_backward(activation: &[f32], gradient: &mut [f32]) {
    for (g, a) in gradient.iter_mut().zip(activation) {
        *g = if *a > 0.0 { *g } else { 0.0 };
    }
}

/// A borrowed F32 matrix `[rows, cols]` with any strides, so that a transpose costs nothing.
#[derive(Clone, Copy, Debug)]
struct Mat<'a> {
    values: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Mat<'a> {
    /// Row-major values.
    fn new(values: &'a [f32], rows: usize, cols: usize) -> Mat<'a> {
        assert_eq!(values.len(), rows * cols, "a matrix holds rows * cols values");
        Mat { values, rows, cols, row_stride: cols, col_stride: 1 }
    }

    /// The transpose.
    fn t(self) -> Mat<'a> {
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
fn product(a: Mat<'_>, b: Mat<'_>, out: &mut [f32], add: bool) {
    assert_eq!(a.cols, b.rows, "inner sizes agree");
    assert_eq!(out.len(), a.rows * b.cols, "the output holds one value per row and column");
    // SAFETY: `Mat::new` checked that rows * cols values lie behind each pointer and `t` only swaps the strides, so
    // every index below rows and cols stays inside; `out` was checked above and is borrowed for writing alone.
    unsafe {
        ::gemm::gemm(
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
            ::gemm::Parallelism::None,
        );
    }
}
