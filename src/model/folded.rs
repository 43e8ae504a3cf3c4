//! A reward model on the latents of a VAE, without embeddings between them.

use super::{Linear, RewardModel, Vae, VaeSize};
use crate::error::{Error, Result};

/// The decoder's last layer and the reward model's first are both linear with nothing between them, so for the decoder's
/// hidden layer h: W_r (W_d h + b_d) + b_r = (W_r W_d) h + (W_r b_d + b_r). Scoring a latent so takes latent -> hidden ->
/// width -> 1 instead of the way through d dimensions, and is exact but for rounding.
#[derive(Clone, Debug, PartialEq)]
pub struct FoldedReward {
    /// hidden -> width: W_r W_d and W_r b_d + b_r, summed in F64 and rounded once.
    pub folded: Linear,
    /// The VAE that it was made from.
    pub vae: Vae,
    /// The reward model that it was made from.
    pub reward: RewardModel,
}

impl FoldedReward {
    /// Folds models for raw embeddings.
    ///
    /// # Errors
    /// [`Error::Shape`] if they are not of one dimension d.
    pub fn new(vae: &Vae, reward: &RewardModel) -> Result<FoldedReward> {
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
            reward: reward.clone(),
        })
    }

    /// Sizes of the VAE.
    pub fn vae_size(&self) -> VaeSize {
        self.vae.size()
    }

    /// latent -> hidden, the decoder's first layer.
    pub fn decoder(&self) -> &Linear {
        &self.vae.decoder[0]
    }
}
