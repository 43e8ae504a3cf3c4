//! Narrow layers in training: parameters, gradients and Adam moments side by side, packed once a step for both
//! directions. A layer this small is nothing beside the layers of d inputs, so simplicity wins.

use super::adam::Rates;
use crate::backend::cpu::gemm::{
    self, Finish, Inference, PackedB, RowsOut, Start, ZERO, pad_rows, transpose,
};
use crate::backend::{Adam, Precision};
use crate::dtype::Dtype;
use crate::model::Linear;
use crate::simd::{Isa, NR, NrRow, RowsRef, Simd, Task, VLEN};

/// A fully connected layer in training.
#[derive(Debug)]
pub struct NarrowLinear {
    /// Parameters.
    pub linear: Linear,
    /// Gradients of the last batch.
    pub gradient: Linear,
    first: Linear,
    second: Linear,
    packed: Packed,
}

/// The parameters as operands: W with its bias, and the transpose of W.
#[derive(Debug)]
struct Packed {
    forward: PackedB,
    bias: Vec<NrRow>,
    backward: PackedB,
}

impl Packed {
    fn new(linear: &Linear) -> Packed {
        let &Linear { inputs, outputs, .. } = linear;
        let transposed: Vec<f32> =
            (0..inputs * outputs).map(|i| linear.weight[i % outputs * inputs + i / outputs]).collect();
        Packed {
            forward: PackedB::new(&linear.weight, inputs, outputs, Precision::F32),
            bias: pad_rows(&linear.bias),
            backward: PackedB::new(&transposed, outputs, inputs, Precision::F32),
        }
    }
}

impl NarrowLinear {
    /// Starts from `linear` with zero moments.
    pub fn new(linear: &Linear) -> NarrowLinear {
        let zeros = || Linear {
            weight: vec![0.0; linear.weight.len()],
            bias: vec![0.0; linear.bias.len()],
            ..*linear
        };
        let packed = Packed::new(linear);
        NarrowLinear { gradient: zeros(), first: zeros(), second: zeros(), linear: linear.clone(), packed }
    }

    /// `out = x W^T + b`; x `[rows, inputs]`, out `[rows, outputs]`.
    #[inline(always)]
    pub fn forward<S: Simd>(&self, simd: S, x: &[f32], out: &mut [f32]) {
        multiply(
            simd,
            x,
            self.linear.inputs,
            &self.packed.forward,
            &self.packed.bias,
            out,
            self.linear.outputs,
        );
    }

    /// The input gradient `dx = dy W`.
    #[inline(always)]
    pub fn backward<S: Simd>(&self, simd: S, dy: &[f32], dx: &mut [f32]) {
        let zeros = vec![ZERO; self.packed.backward.panels()];
        multiply(simd, dy, self.linear.outputs, &self.packed.backward, &zeros, dx, self.linear.inputs);
    }

    /// Gradients of W and b from input x and output gradient dy.
    pub fn gradients(&mut self, isa: Isa, x: &[f32], dy: &[f32]) {
        isa.run(Gradients { layer: self, x, dy });
    }

    /// One step of Adam; `step` counts from 1.
    pub fn step(&mut self, adam: &Adam, step: i32) {
        let NarrowLinear { linear, gradient, first, second, packed } = self;
        let rates = Rates::new(adam, step);
        rates.step(&mut linear.weight, &mut first.weight, &mut second.weight, &gradient.weight);
        rates.step(&mut linear.bias, &mut first.bias, &mut second.bias, &gradient.bias);
        *packed = Packed::new(linear);
    }
}

/// `out = a b + bias`; a `[rows, inputs]`, out `[rows, outputs]`.
#[inline(always)]
fn multiply<S: Simd>(
    simd: S,
    a: &[f32],
    inputs: usize,
    b: &PackedB,
    bias: &[NrRow],
    out: &mut [f32],
    outputs: usize,
) {
    let a = RowsRef { words: a, count: a.len() / inputs, stride: inputs };
    let mut epilogue = Inference { start: Start::Bias(bias), finish: stored(out, outputs) };
    gemm::gemm(simd, a, b, 0..b.words(), 0..b.panels(), &mut epilogue);
}

/// Sums into the rows of a matrix.
fn stored(out: &mut [f32], dim: usize) -> Finish<'_> {
    let bytes = bytemuck::cast_slice_mut(out);
    Finish::Stored(RowsOut { bytes, dtype: Dtype::F32, dim, stream: false })
}

struct Gradients<'a> {
    layer: &'a mut NarrowLinear,
    x: &'a [f32],
    dy: &'a [f32],
}

impl Task for Gradients<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Gradients { layer, x, dy } = self;
        let Linear { weight, bias, inputs, outputs } = &mut layer.gradient;
        let (inputs, outputs) = (*inputs, *outputs);
        let rows = x.len() / inputs;
        // dW = dy^T x, a panel of inputs at a time.
        let stride = rows.next_multiple_of(VLEN);
        let mut turned = vec![0f32; outputs * stride];
        transpose(simd, RowsRef { words: dy, count: rows, stride: outputs }, outputs, &mut turned, stride);
        let turned = RowsRef { words: &turned, count: outputs, stride };
        let zeros = vec![ZERO; inputs.div_ceil(NR)];
        let mut panel = vec![ZERO; rows];
        let mut epilogue = Inference { start: Start::Bias(&zeros), finish: stored(weight, inputs) };
        for p in 0..zeros.len() {
            let columns = p * NR..((p + 1) * NR).min(inputs);
            for (to, x) in panel.iter_mut().zip(x.chunks_exact(inputs)) {
                to[..columns.len()].copy_from_slice(&x[columns.clone()]);
            }
            gemm::product(simd, Precision::F32, turned, &panel, p, &mut epilogue);
        }
        // In F64, where a pair's opposite terms cancel exactly: Adam would make whole steps of what F32 leaves.
        let mut sums = vec![0f64; outputs];
        for row in dy.chunks_exact(outputs) {
            for (sum, g) in sums.iter_mut().zip(row) {
                *sum += f64::from(*g);
            }
        }
        for (bias, sum) in bias.iter_mut().zip(sums) {
            *bias = sum as f32;
        }
    }
}

/// Zeroes the gradient where the activation (after ReLU) is not positive.
#[inline(always)]
pub fn relu_backward(activation: &[f32], gradient: &mut [f32]) {
    for (g, a) in gradient.iter_mut().zip(activation) {
        *g = if *a > 0.0 { *g } else { 0.0 };
    }
}
