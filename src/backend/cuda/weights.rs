//! A model's parameters in training: all layers in one allocation, with gradients and Adam's moments in three more of the
//! same layout, so that Adam is one launch.

use super::context::Cuda;
use super::driver::DriverResult;
use super::memory::Buffer;
use crate::backend::Adam;
use crate::model::Linear;

/// Every tensor starts on a multiple of this many values, for 16-byte accesses. What lies between two tensors stays 0.
const TENSOR_ALIGNMENT: usize = 64;

/// Parameters, gradients and moments of a model.
#[derive(Debug)]
pub struct Parameters {
    layers: Vec<Shape>,
    /// Values of each buffer.
    pub len: usize,
    pub values: Buffer<f32>,
    pub gradients: Buffer<f32>,
    pub first_moments: Buffer<f32>,
    pub second_moments: Buffer<f32>,
    pub adam: Adam,
    /// Steps taken.
    pub steps: i32,
}

/// A layer's sizes and where its tensors start.
#[derive(Clone, Copy, Debug)]
struct Shape {
    inputs: usize,
    outputs: usize,
    weight: usize,
    bias: usize,
}

/// Addresses of a layer's tensors and of their gradients.
#[derive(Clone, Copy, Debug)]
pub struct LayerAt {
    /// `[outputs, inputs]`.
    pub weight: u64,
    /// `[outputs]`.
    pub bias: u64,
    pub dweight: u64,
    pub dbias: u64,
    pub inputs: usize,
    pub outputs: usize,
}

impl Parameters {
    /// Copies layers to the device, with zero moments.
    pub fn new(cuda: &Cuda, layers: &[&Linear], adam: Adam) -> DriverResult<Parameters> {
        let mut len = 0;
        let mut place = |count: usize| {
            let at = len;
            len += count.next_multiple_of(TENSOR_ALIGNMENT);
            at
        };
        let shapes: Vec<Shape> = layers
            .iter()
            .map(|l| Shape {
                inputs: l.inputs,
                outputs: l.outputs,
                weight: place(l.weight.len()),
                bias: place(l.bias.len()),
            })
            .collect();
        let mut values = vec![0f32; len];
        for (layer, at) in layers.iter().zip(&shapes) {
            values[at.weight..][..layer.weight.len()].copy_from_slice(&layer.weight);
            values[at.bias..][..layer.bias.len()].copy_from_slice(&layer.bias);
        }
        let driver = &cuda.driver;
        Ok(Parameters {
            layers: shapes,
            len,
            values: Buffer::upload(driver, &values, "parameters")?,
            gradients: Buffer::zeros(driver, len, "gradients")?,
            first_moments: Buffer::zeros(driver, len, "first moments")?,
            second_moments: Buffer::zeros(driver, len, "second moments")?,
            adam,
            steps: 0,
        })
    }

    /// Where layer `i` lies.
    pub fn layer(&self, i: usize) -> LayerAt {
        let Shape { inputs, outputs, weight, bias } = self.layers[i];
        LayerAt {
            weight: self.values.at(weight),
            bias: self.values.at(bias),
            dweight: self.gradients.at(weight),
            dbias: self.gradients.at(bias),
            inputs,
            outputs,
        }
    }

    fn layers_of(&self, values: &Buffer<f32>) -> DriverResult<Vec<Linear>> {
        let all = values.download()?;
        let layer = |s: &Shape| Linear {
            weight: all[s.weight..][..s.inputs * s.outputs].to_vec(),
            bias: all[s.bias..][..s.outputs].to_vec(),
            inputs: s.inputs,
            outputs: s.outputs,
        };
        Ok(self.layers.iter().map(layer).collect())
    }

    /// The layers.
    pub fn download(&self) -> DriverResult<Vec<Linear>> {
        self.layers_of(&self.values)
    }

    /// The gradients of the last batch.
    pub fn download_gradients(&self) -> DriverResult<Vec<Linear>> {
        self.layers_of(&self.gradients)
    }

    /// The two scalars of Adam that change from step to step, for the step after `steps + ahead` others: the learning
    /// rate over the first bias correction, and one over the root of the second.
    pub fn rates(&self, ahead: usize) -> (f32, f32) {
        let step = self.steps + 1 + i32::try_from(ahead).unwrap_or(i32::MAX);
        let Adam { lr, beta1, beta2, .. } = self.adam;
        let rate = (lr / (1.0 - beta1.powi(step))) as f32;
        (rate, (1.0 / (1.0 - beta2.powi(step)).sqrt()) as f32)
    }
}
