//! The reward model, r(e) = Linear(d, hidden), ReLU, Linear(hidden, 1).

use super::config::RewardSize;
use super::linear::Linear;
use super::standardizer::Standardizer;
use crate::error::{Error, Result};

/// A reward model. Training works on standardised embeddings; [`RewardModel::fold`] makes the model for raw
/// ones.
#[derive(Clone, Debug, PartialEq)]
pub struct RewardModel {
    /// The two layers.
    pub layers: [Linear; 2],
}

impl RewardModel {
    /// A fresh model as PyTorch initialises it, from `seed`.
    pub fn init(size: RewardSize, seed: u64) -> RewardModel {
        // Numbers of the layers; a VAE of the same seed has 0 to 3.
        RewardModel {
            layers: [Linear::init(size.dim, size.hidden, seed, 16), Linear::init(size.hidden, 1, seed, 17)],
        }
    }

    /// A model of these layers; fails unless their sizes fit each other.
    pub fn new(layers: [Linear; 2]) -> Result<RewardModel> {
        if layers[1].inputs != layers[0].outputs {
            return Err(Error::shape("reward model, inputs of layer 2", layers[0].outputs, layers[1].inputs));
        }
        if layers[1].outputs != 1 {
            return Err(Error::shape("reward model, outputs of layer 2", 1, layers[1].outputs));
        }
        RewardSize::new(layers[0].inputs, layers[0].outputs)?;
        Ok(RewardModel { layers })
    }

    /// The sizes.
    pub fn size(&self) -> RewardSize {
        RewardSize { dim: self.layers[0].inputs, hidden: self.layers[0].outputs }
    }

    /// The model for raw embeddings, given one for standardised embeddings.
    pub fn fold(&self, standardizer: &Standardizer) -> RewardModel {
        let first = self.layers[0].fold_input(&standardizer.mean, &standardizer.std);
        RewardModel { layers: [first, self.layers[1].clone()] }
    }

    /// Whether every parameter is finite.
    pub fn is_finite(&self) -> bool {
        self.layers.iter().all(Linear::is_finite)
    }
}
