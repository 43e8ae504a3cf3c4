//! Narrow layers in training: parameters, gradients and Adam moments side by side.

use super::adam::Rates;
use super::gemm::{Mat, product};
use crate::backend::Adam;
use crate::model::Linear;

/// A fully connected layer in training.
#[derive(Debug)]
pub struct Dense {
    /// Parameters.
    pub linear: Linear,
    /// Gradients of the last batch.
    pub gradient: Linear,
    first: Linear,
    second: Linear,
}

impl Dense {
    /// Starts from `linear` with zero moments.
    pub fn new(linear: &Linear) -> Dense {
        let zeros = || Linear {
            weight: vec![0.0; linear.weight.len()],
            bias: vec![0.0; linear.bias.len()],
            ..*linear
        };
        Dense { gradient: zeros(), first: zeros(), second: zeros(), linear: linear.clone() }
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
    pub fn step(&mut self, how: &Adam, step: i32) {
        let Dense { linear, gradient, first, second } = self;
        let rates = Rates::new(how, step);
        rates.step(&mut linear.weight, &mut first.weight, &mut second.weight, &gradient.weight);
        rates.step(&mut linear.bias, &mut first.bias, &mut second.bias, &gradient.bias);
    }
}

/// ReLU in place.
pub fn relu(values: &mut [f32]) {
    // Written so that NaN stays NaN.
    values.iter_mut().for_each(|v| *v = if *v < 0.0 { 0.0 } else { *v });
}

/// Zeroes the gradient where the activation (after ReLU) is not positive.
pub fn relu_backward(activation: &[f32], gradient: &mut [f32]) {
    for (g, a) in gradient.iter_mut().zip(activation) {
        *g = if *a > 0.0 { *g } else { 0.0 };
    }
}
