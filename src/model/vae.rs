//! The variational auto-encoder of embeddings.
//!
//! ```text
//! encoder   Linear(d, hidden), ReLU, Linear(hidden, 2 latent) -> (mu, logvar)
//! decoder   Linear(latent, hidden), ReLU, Linear(hidden, d)
//! ```

use super::config::VaeSize;
use super::linear::Linear;
use super::standardizer::Standardizer;
use crate::error::{Error, Result};

/// A VAE. Training works on standardised embeddings; [`Vae::fold`] makes the model for raw ones.
#[derive(Clone, Debug, PartialEq)]
pub struct Vae {
    /// The two layers of the encoder.
    pub encoder: [Linear; 2],
    /// The two layers of the decoder.
    pub decoder: [Linear; 2],
}

impl Vae {
    /// A fresh model as PyTorch initialises it, from `seed`.
    pub fn init(size: VaeSize, seed: u64) -> Vae {
        let VaeSize { dim, hidden, latent } = size;
        Vae {
            encoder: [Linear::init(dim, hidden, seed, 0), Linear::init(hidden, 2 * latent, seed, 1)],
            decoder: [Linear::init(latent, hidden, seed, 2), Linear::init(hidden, dim, seed, 3)],
        }
    }

    /// A model of these layers; fails unless their sizes fit each other.
    pub fn new(encoder: [Linear; 2], decoder: [Linear; 2]) -> Result<Vae> {
        let vae = Vae { encoder, decoder };
        let size = vae.size();
        let fits = [
            ("encoder.2 inputs", size.hidden, vae.encoder[1].inputs),
            ("encoder.2 outputs", 2 * size.latent, vae.encoder[1].outputs),
            ("decoder.0 outputs", size.hidden, vae.decoder[0].outputs),
            ("decoder.2 inputs", size.hidden, vae.decoder[1].inputs),
            ("decoder.2 outputs", size.dim, vae.decoder[1].outputs),
        ];
        match fits.iter().find(|(_, want, got)| want != got) {
            Some((what, want, got)) => Err(Error::shape(format!("VAE, {what}"), want, got)),
            None => VaeSize::new(size.dim, size.hidden, size.latent).map(|_| vae),
        }
    }

    /// The sizes.
    pub fn size(&self) -> VaeSize {
        VaeSize {
            dim: self.encoder[0].inputs,
            hidden: self.encoder[0].outputs,
            latent: self.decoder[0].inputs,
        }
    }

    /// The model for raw embeddings, given one for standardised embeddings.
    pub fn fold(&self, standardizer: &Standardizer) -> Vae {
        let Standardizer { mean, std } = standardizer;
        Vae {
            encoder: [self.encoder[0].fold_input(mean, std), self.encoder[1].clone()],
            decoder: [self.decoder[0].clone(), self.decoder[1].fold_output(mean, std)],
        }
    }

    /// Whether every parameter is finite.
    pub fn is_finite(&self) -> bool {
        self.encoder.iter().chain(&self.decoder).all(Linear::is_finite)
    }
}
