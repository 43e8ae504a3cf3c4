//! The reward of a latent, without its embedding.
//!
//! The decoder's last layer (W_d, b_d) and the reward model's first (W_r, b_r) are both linear, with nothing
//! in between. For the decoder's hidden layer h
//!
//! ```text
//! W_r (W_d h + b_d) + b_r = (W_r W_d) h + (W_r b_d + b_r)
//! ```
//!
//! so a latent is scored through latent -> hidden -> width -> 1, where hidden and width are a few hundred at
//! most, instead of through all d dimensions. But for rounding the result is the same.

use super::config::VaeSize;
use super::linear::Linear;
use super::reward::RewardModel;
use super::vae::Vae;
use crate::error::{Error, Result};

/// A VAE's decoder and a reward model as one network on latents.
#[derive(Clone, Debug, PartialEq)]
pub struct FoldedReward {
    /// hidden -> width: W_r W_d and W_r b_d + b_r, summed in F64 and rounded once.
    pub folded: Linear,
    /// The VAE that it was made from.
    pub vae: Vae,
    /// The reward model that it was made from, as one MLP.
    pub reward: RewardModel,
}

impl FoldedReward {
    /// Folds models for raw embeddings.
    ///
    /// # Errors
    /// [`Error::Shape`] if they are not of one dimension d.
    pub fn new(vae: &Vae, reward: &RewardModel) -> Result<FoldedReward> {
        let reward = reward.as_mlp();
        let (VaeSize { dim, hidden, .. }, width) = (vae.size(), reward.size().hidden);
        if reward.size().dim != dim {
            return Err(Error::shape("embedding dimension of the reward model", dim, reward.size().dim));
        }
        let (last, first) = (&vae.decoder[1], &reward.layers[0]);
        let (mut weight, mut bias) = (Vec::with_capacity(width * hidden), Vec::with_capacity(width));
        let mut sums = vec![0f64; hidden];
        for (row, &b) in first.weight.chunks_exact(dim).zip(&first.bias) {
            let mut shift = f64::from(b);
            sums.fill(0.0);
            for ((&w, columns), &b) in row.iter().zip(last.weight.chunks_exact(hidden)).zip(&last.bias) {
                let w = f64::from(w);
                shift += w * f64::from(b);
                for (sum, &v) in sums.iter_mut().zip(columns) {
                    *sum += w * f64::from(v);
                }
            }
            weight.extend(sums.iter().map(|&s| s as f32));
            bias.push(shift as f32);
        }
        Ok(FoldedReward {
            folded: Linear::new(weight, bias, hidden, width)?,
            vae: vae.clone(),
            reward: reward.into_owned(),
        })
    }

    pub fn vae_size(&self) -> VaeSize {
        self.vae.size()
    }

    /// latent -> hidden, the decoder's first layer.
    pub fn decoder(&self) -> &Linear {
        &self.vae.decoder[0]
    }
}
