//! Layers, activations and Adam in F64.

use crate::backend::Adam;
use crate::model::Linear;

/// A layer in F64.
#[derive(Clone, Debug)]
pub(super) struct Layer {
    pub(super) weight: Vec<f64>,
    pub(super) bias: Vec<f64>,
    pub(super) inputs: usize,
}

impl Layer {
    pub(super) fn new(linear: &Linear) -> Layer {
        Layer { weight: widen(&linear.weight), bias: widen(&linear.bias), inputs: linear.inputs }
    }

    pub(super) fn zeros_like(&self) -> Layer {
        Layer { weight: vec![0.0; self.weight.len()], bias: vec![0.0; self.bias.len()], inputs: self.inputs }
    }

    pub(super) fn to_linear(&self) -> Linear {
        let (weight, bias) = (narrow(&self.weight), narrow(&self.bias));
        Linear { weight, bias, inputs: self.inputs, outputs: self.bias.len() }
    }

    /// W x + b.
    pub(super) fn forward(&self, x: &[f64]) -> Vec<f64> {
        let dot = |w: &[f64]| w.iter().zip(x).map(|(w, x)| w * x).sum::<f64>();
        self.weight.chunks_exact(self.inputs).zip(&self.bias).map(|(w, b)| dot(w) + b).collect()
    }

    /// Adds the gradients of W and b for input x and output gradient dy; gives the input gradient W^T dy.
    pub(super) fn backward(&self, x: &[f64], dy: &[f64], gradient: &mut Layer) -> Vec<f64> {
        let mut dx = vec![0.0; self.inputs];
        for (o, &g) in dy.iter().enumerate() {
            gradient.bias[o] += g;
            let row = o * self.inputs..(o + 1) * self.inputs;
            for ((dw, w), (x, dx)) in
                gradient.weight[row.clone()].iter_mut().zip(&self.weight[row]).zip(x.iter().zip(&mut dx))
            {
                *dw += g * x;
                *dx += g * w;
            }
        }
        dx
    }
}

pub(super) fn widen(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

pub(super) fn narrow(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&v| v as f32).collect()
}

pub(super) fn relu(x: &[f64]) -> Vec<f64> {
    x.iter().map(|&v| v.max(0.0)).collect()
}

/// The gradient through ReLU: zero where the input was not positive.
pub(super) fn relu_backward(x: &[f64], dy: &[f64]) -> Vec<f64> {
    x.iter().zip(dy).map(|(&x, &g)| if x > 0.0 { g } else { 0.0 }).collect()
}

/// Adam over several layers.
#[derive(Debug)]
pub(super) struct Optimizer {
    adam: Adam,
    steps: i32,
    first: Vec<Layer>,
    second: Vec<Layer>,
}

impl Optimizer {
    /// Steps taken.
    pub(super) fn steps(&self) -> u32 {
        self.steps as u32
    }

    pub(super) fn new(adam: Adam, layers: &[Layer]) -> Optimizer {
        let zeros = || layers.iter().map(Layer::zeros_like).collect();
        Optimizer { adam, steps: 0, first: zeros(), second: zeros() }
    }

    pub(super) fn step(&mut self, layers: &mut [Layer], gradients: &[Layer]) {
        self.steps += 1;
        let Adam { lr, beta1, beta2, eps, weight_decay } = self.adam;
        let correct1 = 1.0 - beta1.powi(self.steps);
        let correct2 = 1.0 - beta2.powi(self.steps);
        let update = |w: &mut [f64], g: &[f64], m: &mut [f64], v: &mut [f64]| {
            for i in 0..w.len() {
                m[i] = beta1 * m[i] + (1.0 - beta1) * g[i];
                v[i] = beta2 * v[i] + (1.0 - beta2) * g[i] * g[i];
                w[i] *= 1.0 - lr * weight_decay;
                w[i] -= lr * (m[i] / correct1) / ((v[i] / correct2).sqrt() + eps);
            }
        };
        for (i, (layer, gradient)) in layers.iter_mut().zip(gradients).enumerate() {
            let (m, v) = (&mut self.first[i], &mut self.second[i]);
            update(&mut layer.weight, &gradient.weight, &mut m.weight, &mut v.weight);
            update(&mut layer.bias, &gradient.bias, &mut m.bias, &mut v.bias);
        }
    }
}
