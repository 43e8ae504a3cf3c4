//! Sizes of the models, checked when they are made.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::memory;

/// Hidden and latent sizes are multiples of this, so that they are whole vectors and whole tiles of tensor
/// cores.
const GRANULE: usize = 16;
/// Far above any use; products of two sizes stay far below 2^64.
const LARGEST: usize = 1 << 24;

/// Sizes of a VAE: encoder d -> hidden -> 2 x latent, decoder latent -> hidden -> d.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VaeSize {
    /// Dimension of the embeddings, d.
    pub dim: usize,
    /// Width of the hidden layers; the paper's is 64.
    pub hidden: usize,
    /// Dimension of the latent space; the paper's is 16.
    pub latent: usize,
}

impl VaeSize {
    /// Checks the sizes: d at least 1, hidden and latent multiples of 16.
    pub fn new(dim: usize, hidden: usize, latent: usize) -> Result<VaeSize> {
        check_dim(dim)?;
        check_granule("vae.hidden", hidden)?;
        check_granule("vae.latent", latent)?;
        Ok(VaeSize { dim, hidden, latent })
    }

    /// Fails if training such a model takes more memory than is free: weights, gradients and two moments.
    pub(crate) fn require_memory(&self) -> Result<()> {
        memory::require("vae.hidden", self.hidden, self.parameters() as u128 * 16)
    }

    /// Number of parameters (531,616 at d = 4096, hidden 64, latent 16).
    pub fn parameters(&self) -> usize {
        let VaeSize { dim, hidden, latent } = *self;
        hidden * (dim + 1) + 2 * latent * (hidden + 1) + hidden * (latent + 1) + dim * (hidden + 1)
    }
}

/// Sizes of a reward model: d -> hidden -> 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RewardSize {
    /// Dimension of the embeddings, d.
    pub dim: usize,
    /// Width of the hidden layer; the paper's is 256.
    pub hidden: usize,
}

impl RewardSize {
    /// Checks the sizes: d at least 1, hidden a multiple of 16.
    pub fn new(dim: usize, hidden: usize) -> Result<RewardSize> {
        check_dim(dim)?;
        check_granule("reward.hidden", hidden)?;
        Ok(RewardSize { dim, hidden })
    }

    /// Fails if training such a model takes more memory than is free: weights, gradients and two moments.
    pub(crate) fn require_memory(&self) -> Result<()> {
        memory::require("reward.hidden", self.hidden, self.parameters() as u128 * 16)
    }

    /// Number of parameters.
    pub fn parameters(&self) -> usize {
        self.hidden * (self.dim + 1) + self.hidden + 1
    }
}

fn check_dim(dim: usize) -> Result<()> {
    if dim == 0 || dim > LARGEST {
        return Err(Error::shape("embedding dimension", format!("1 to {LARGEST}"), dim));
    }
    Ok(())
}

fn check_granule(name: &'static str, size: usize) -> Result<()> {
    if size == 0 || size > LARGEST || !size.is_multiple_of(GRANULE) {
        return Err(Error::argument(
            name,
            format!("a multiple of {GRANULE} from {GRANULE} to {LARGEST}"),
            size,
        ));
    }
    Ok(())
}
