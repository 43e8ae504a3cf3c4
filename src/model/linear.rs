//! A fully connected layer, y = W x + b.

use rand::RngCore;

use crate::error::{Error, Result};
use crate::noise::{Purpose, Stream};

/// A fully connected layer, stored as PyTorch's `nn.Linear` stores it.
#[derive(Clone, Debug, PartialEq)]
pub struct Linear {
    /// Weight, row-major `[outputs, inputs]`.
    pub weight: Vec<f32>,
    /// Bias, `[outputs]`.
    pub bias: Vec<f32>,
    /// Number of inputs.
    pub inputs: usize,
    /// Number of outputs.
    pub outputs: usize,
}

impl Linear {
    /// A layer of these parameters; fails unless their lengths fit the sizes.
    pub fn new(weight: Vec<f32>, bias: Vec<f32>, inputs: usize, outputs: usize) -> Result<Linear> {
        if weight.len() != inputs * outputs {
            return Err(Error::shape("weight", format!("{outputs} x {inputs} values"), weight.len()));
        }
        if bias.len() != outputs {
            return Err(Error::shape("bias", format!("{outputs} values"), bias.len()));
        }
        Ok(Linear { weight, bias, inputs, outputs })
    }

    /// A fresh layer as PyTorch initialises `nn.Linear`: weight and bias uniform in +-1/sqrt(inputs). Layers
    /// of one seed differ by their number `tensor`.
    pub fn init(inputs: usize, outputs: usize, seed: u64, tensor: u64) -> Linear {
        let mut stream = Stream::new(seed, Purpose::Init, tensor);
        let bound = 1.0 / (inputs as f32).sqrt();
        let mut uniform = |_| {
            // Uniform in [-1, 1), from 24 bits.
            let unit = (stream.next_u32() >> 8) as f32 * (2.0 / (1u32 << 24) as f32) - 1.0;
            unit * bound
        };
        let weight = (0..inputs * outputs).map(&mut uniform).collect();
        let bias = (0..outputs).map(&mut uniform).collect();
        Linear { weight, bias, inputs, outputs }
    }

    /// The layer that gives for x what this one gives for (x - mean) / std: W' = W diag(1 / std), b' = b - W'
    /// mean. Computed in F64 and rounded once.
    pub(crate) fn fold_input(&self, mean: &[f32], std: &[f32]) -> Linear {
        let mut folded = self.clone();
        for (row, (weights, bias)) in
            folded.weight.chunks_exact_mut(self.inputs).zip(&mut folded.bias).enumerate()
        {
            let mut shift = f64::from(self.bias[row]);
            for ((w, &m), &s) in weights.iter_mut().zip(mean).zip(std) {
                let scaled = f64::from(*w) / f64::from(s);
                shift -= scaled * f64::from(m);
                *w = scaled as f32;
            }
            *bias = shift as f32;
        }
        folded
    }

    /// This layer followed by y -> std y + mean, elementwise: W' = diag(std) W, b' = std b + mean.
    pub(crate) fn fold_output(&self, mean: &[f32], std: &[f32]) -> Linear {
        let mut folded = self.clone();
        for (row, weights) in folded.weight.chunks_exact_mut(self.inputs).enumerate() {
            let s = f64::from(std[row]);
            weights.iter_mut().for_each(|w| *w = (f64::from(*w) * s) as f32);
            folded.bias[row] = (f64::from(self.bias[row]) * s + f64::from(mean[row])) as f32;
        }
        folded
    }

    /// Whether every parameter is finite.
    pub fn is_finite(&self) -> bool {
        self.weight.iter().chain(&self.bias).all(|v| v.is_finite())
    }
}
