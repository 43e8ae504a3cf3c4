//! The reward model: one head, or the mean of several.
//!
//! ```text
//! mlp     r(e) = Linear(d, hidden), ReLU, Linear(hidden, 1)
//! linear  r(e) = Linear(d, 1)
//! ```
//!
//! The heads of an ensemble lie side by side: their first layers are one layer of `heads * hidden` outputs, so that a
//! batch passes through all of them at once.

use std::borrow::Cow;

use super::config::{Head, RewardSize};
use super::linear::Linear;
use super::standardizer::Standardizer;
use crate::error::{Error, Result};

/// Hidden units of the MLP that stands for a linear head: the least that a model has.
const LINEAR_AS_MLP: usize = 16;

/// A reward model. Training works on standardised embeddings; [`RewardModel::fold`] makes the model for raw
/// ones.
#[derive(Clone, Debug, PartialEq)]
pub struct RewardModel {
    /// Of MLPs two layers: weights `[heads * hidden, d]` and `[heads, hidden]`, whose row k belongs to head k. Of linear
    /// heads one: `[heads, d]`.
    pub layers: Vec<Linear>,
}

impl RewardModel {
    /// A fresh model, each head as PyTorch initialises it, from `seed`.
    pub fn init(size: RewardSize, seed: u64) -> RewardModel {
        // Numbers of the layers: head k has 16 + 2k and 17 + 2k; a VAE of the same seed has 0 to 3.
        let layer = |inputs, outputs, first: u64| {
            let heads = (0..size.heads as u64).map(|k| Linear::init(inputs, outputs, seed, first + 2 * k));
            stack(heads.collect())
        };
        let layers = match size.head {
            Head::Mlp => vec![layer(size.dim, size.hidden, 16), layer(size.hidden, 1, 17)],
            Head::Linear => vec![layer(size.dim, 1, 16)],
        };
        RewardModel { layers }
    }

    /// A model of these layers; fails unless their sizes fit each other.
    pub fn new(layers: impl Into<Vec<Linear>>) -> Result<RewardModel> {
        let layers = layers.into();
        let (dim, units) = match layers.as_slice() {
            [linear] => {
                RewardSize::of_heads(linear.inputs, Head::Linear, 1, linear.outputs)?;
                return Ok(RewardModel { layers });
            }
            [first, _] => (first.inputs, first.outputs),
            _ => return Err(Error::shape("reward model, layers", "1 or 2", layers.len())),
        };
        let second = &layers[1];
        if second.outputs == 0 {
            return Err(Error::shape("reward model, outputs of layer 2", "1 or more", 0));
        }
        if second.inputs.checked_mul(second.outputs) != Some(units) {
            let expected = match second.outputs {
                1 => units.to_string(),
                heads => format!("{units} / {heads}, of the units of each head"),
            };
            return Err(Error::shape("reward model, inputs of layer 2", expected, second.inputs));
        }
        RewardSize::of_heads(dim, Head::Mlp, second.inputs, second.outputs)?;
        Ok(RewardModel { layers })
    }

    /// The sizes.
    pub fn size(&self) -> RewardSize {
        let dim = self.layers[0].inputs;
        match self.layers.as_slice() {
            [_, second] => RewardSize { dim, head: Head::Mlp, hidden: second.inputs, heads: second.outputs },
            layers => RewardSize { dim, head: Head::Linear, hidden: 1, heads: layers[0].outputs },
        }
    }

    /// Head `k` alone.
    ///
    /// # Panics
    /// If there are not so many heads.
    pub fn head(&self, k: usize) -> RewardModel {
        let size = self.size();
        assert!(k < size.heads, "head {k} of {}", size.heads);
        let mut layers = vec![rows(&self.layers[0], k * size.hidden, size.hidden)];
        layers.extend(self.layers.get(1).map(|second| rows(second, k, 1)));
        RewardModel { layers }
    }

    /// One MLP that gives the reward, the mean over the heads: what devices score with. It is made exactly but for the
    /// division by the number of heads: an ensemble's second layers lie side by side, and a linear head x is
    /// relu(x) - relu(-x).
    pub fn as_mlp(&self) -> Cow<'_, RewardModel> {
        let RewardSize { dim, head, heads, .. } = self.size();
        let mean = |v: f64| (v / heads as f64) as f32;
        let first = &self.layers[0];
        let layers = match head {
            Head::Mlp if heads == 1 => return Cow::Borrowed(self),
            Head::Mlp => {
                let second = &self.layers[1];
                let weight = second.weight.iter().map(|&w| mean(w.into())).collect();
                let bias = vec![mean(second.bias.iter().map(|&b| f64::from(b)).sum())];
                vec![first.clone(), Linear { weight, bias, inputs: first.outputs, outputs: 1 }]
            }
            Head::Linear => {
                let mut weight = vec![0f32; LINEAR_AS_MLP * dim];
                for (i, w) in weight[..dim].iter_mut().enumerate() {
                    *w = mean(first.weight.iter().skip(i).step_by(dim).map(|&w| f64::from(w)).sum());
                }
                let (own, rest) = weight.split_at_mut(dim);
                rest.iter_mut().zip(own).for_each(|(minus, w)| *minus = -*w);
                let (mut bias, mut signs) = (vec![0f32; LINEAR_AS_MLP], vec![0f32; LINEAR_AS_MLP]);
                bias[0] = mean(first.bias.iter().map(|&b| f64::from(b)).sum());
                bias[1] = -bias[0];
                signs[..2].copy_from_slice(&[1.0, -1.0]);
                vec![
                    Linear { weight, bias, inputs: dim, outputs: LINEAR_AS_MLP },
                    Linear { weight: signs, bias: vec![0.0], inputs: LINEAR_AS_MLP, outputs: 1 },
                ]
            }
        };
        Cow::Owned(RewardModel { layers })
    }

    /// The model for raw embeddings, given one for standardised embeddings.
    pub fn fold(&self, standardizer: &Standardizer) -> RewardModel {
        let mut layers = self.layers.clone();
        layers[0] = layers[0].fold_input(&standardizer.mean, &standardizer.std);
        RewardModel { layers }
    }

    /// Whether every parameter is finite.
    pub fn is_finite(&self) -> bool {
        self.layers.iter().all(Linear::is_finite)
    }
}

/// Layers of the same inputs, one below the other.
fn stack(layers: Vec<Linear>) -> Linear {
    let (inputs, outputs) = (layers[0].inputs, layers.iter().map(|l| l.outputs).sum());
    Linear {
        weight: layers.iter().flat_map(|l| &l.weight).copied().collect(),
        bias: layers.iter().flat_map(|l| &l.bias).copied().collect(),
        inputs,
        outputs,
    }
}

/// `count` outputs of a layer from `from` on.
fn rows(layer: &Linear, from: usize, count: usize) -> Linear {
    Linear {
        weight: layer.weight[from * layer.inputs..][..count * layer.inputs].to_vec(),
        bias: layer.bias[from..][..count].to_vec(),
        inputs: layer.inputs,
        outputs: count,
    }
}
