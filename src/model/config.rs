//! Sizes of the models, checked when they are made.

use std::fmt;

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

/// What follows the embedding in a reward model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Head {
    /// Linear(d, hidden), ReLU, Linear(hidden, 1): the paper's.
    #[default]
    Mlp,
    /// Linear(d, 1): what a Transformers model for sequence classification has as `score`.
    Linear,
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Head::Mlp => "mlp",
            Head::Linear => "linear",
        })
    }
}

/// Sizes of a reward model: one head d -> hidden -> 1 or d -> 1, or several, whose mean is the reward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RewardSize {
    /// Dimension of the embeddings, d.
    pub dim: usize,
    /// The kind of every head.
    pub head: Head,
    /// Width of each MLP's hidden layer, the paper's is 256; 1 for linear heads, which have none.
    pub hidden: usize,
    /// Number of heads: an ensemble where there are several.
    pub heads: usize,
}

impl RewardSize {
    /// Hidden layers of an ensemble are multiples of this, so that no vector of hidden units is shared by two heads.
    const ENSEMBLE_GRANULE: usize = 32;

    /// Checks the sizes of one MLP: d at least 1, hidden a multiple of 16.
    pub fn new(dim: usize, hidden: usize) -> Result<RewardSize> {
        check_dim(dim)?;
        check_granule("reward.hidden", hidden)?;
        Ok(RewardSize { dim, head: Head::Mlp, hidden, heads: 1 })
    }

    /// Checks the sizes of `heads` heads, at least 1; hidden layers of several MLPs are multiples of 32. `hidden` is
    /// not looked at for linear heads.
    pub fn of_heads(dim: usize, head: Head, hidden: usize, heads: usize) -> Result<RewardSize> {
        let hidden = if head == Head::Linear { 1 } else { hidden };
        if heads == 0 || heads.saturating_mul(hidden) > LARGEST {
            let most = LARGEST / hidden.clamp(1, LARGEST);
            return Err(Error::argument("reward.ensemble", format!("1 to {most} heads"), heads));
        }
        if head == Head::Linear {
            check_dim(dim)?;
            return Ok(RewardSize { dim, head, hidden, heads });
        }
        let granule = RewardSize::ENSEMBLE_GRANULE;
        if heads > 1 && !hidden.is_multiple_of(granule) {
            let expected = format!("a multiple of {granule} in an ensemble");
            return Err(Error::argument("reward.hidden", expected, hidden));
        }
        Ok(RewardSize { heads, ..RewardSize::new(dim, hidden)? })
    }

    /// Outputs of the first layer: the hidden units of all MLPs, or one for each linear head.
    pub fn units(&self) -> usize {
        self.heads * self.hidden
    }

    /// Fails if training such a model takes more memory than is free: weights, gradients and two moments.
    pub(crate) fn require_memory(&self) -> Result<()> {
        let (field, found) = match self.heads {
            1 => ("reward.hidden", self.hidden),
            heads => ("reward.ensemble", heads),
        };
        memory::require(field, found, self.parameters() as u128 * 16)
    }

    /// Number of parameters.
    pub fn parameters(&self) -> usize {
        let head = match self.head {
            Head::Mlp => self.hidden * (self.dim + 1) + self.hidden + 1,
            Head::Linear => self.dim + 1,
        };
        self.heads * head
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
