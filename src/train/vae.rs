//! Training of the VAE with divergence (Tao et al. 2025, section 4).
//!
//! With the posteriors q+ and q- of the two sides of a pair, the loss of that pair is
//!
//! ```text
//! reconstruction error + beta KL(q || N(0, I)) - gamma divergence(q+, q-)
//! ```
//!
//! where the first two terms are summed over both sides. A step minimises the mean over a batch of pairs.

use serde::{Deserialize, Serialize};

use super::check::{learning_rate, positive, weight};
use super::shuffle::Shuffle;
use crate::backend::{Backend, PairData, VaeLoss, VaeObjective};
use crate::error::{Error, Result};
use crate::matrix::RowSet;
use crate::model::{Standardizer, Vae, VaeSize};

/// How a VAE is trained; the paper's values by default.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct VaeTraining {
    /// Width of the hidden layers, a multiple of 16.
    pub hidden: usize,
    /// Dimension of the latent space, a multiple of 16.
    pub latent: usize,
    /// Passes over the seed pairs.
    pub epochs: usize,
    /// The loss and the optimiser; its seed also keys initialisation and shuffles.
    pub objective: VaeObjective,
}

impl Default for VaeTraining {
    fn default() -> VaeTraining {
        VaeTraining { hidden: 64, latent: 16, epochs: 100, objective: VaeObjective::default() }
    }
}

impl VaeTraining {
    /// Fails on values that no training could start with; the sizes are checked by [`VaeSize::new`].
    pub fn check(&self) -> Result<()> {
        let VaeObjective { beta, gamma, batch, adam, .. } = self.objective;
        positive("vae.epochs", self.epochs)?;
        positive("vae.batch", batch)?;
        weight("vae.beta", beta)?;
        weight("vae.gamma", gamma)?;
        learning_rate("vae.lr", adam.lr)
    }
}

/// A trained VAE and how it came about.
#[derive(Clone, Debug)]
pub struct TrainedVae {
    /// The model, for raw embeddings.
    pub vae: Vae,
    /// Mean loss of each epoch.
    pub history: Vec<VaeLoss>,
}

/// Terms of a loss beyond this are those of a training that grows without end: standardised embeddings give thousands.
const EXPLODED: f64 = 1e9;

/// Trains a VAE on seed pairs `[n, d]`. Calls `on_epoch` with the epoch (from 1) and its loss.
///
/// # Errors
/// Fewer than two pairs, options out of range, or, as [`Error::Diverged`], a loss or a parameter that is no longer
/// finite, or a loss beyond 10^9.
pub fn train_vae<B: Backend>(
    backend: &B,
    chosen: &RowSet<'_>,
    rejected: &RowSet<'_>,
    options: &VaeTraining,
    on_epoch: &mut dyn FnMut(usize, &VaeLoss),
) -> Result<TrainedVae> {
    options.check()?;
    let pairs = chosen.rows();
    if pairs < 2 {
        return Err(Error::TooFew {
            what: "seed pairs for VAE training".into(),
            needed: 2,
            found: pairs as u64,
        });
    }
    let size = VaeSize::new(chosen.cols(), options.hidden, options.latent)?;
    size.require_memory()?;
    let standardizer = Standardizer::fit(&[chosen, rejected]);
    let initial = Vae::init(size, options.objective.seed);
    let mut trainer = backend.vae_trainer(&initial, &standardizer, &options.objective)?;
    let (chosen, rejected) = (backend.embeddings(chosen.clone())?, backend.embeddings(rejected.clone())?);
    let data = PairData { chosen: &chosen, rejected: &rejected };
    let mut order: Vec<u32> = (0..pairs as u32).collect();
    let mut history = Vec::new();
    for epoch in 0..options.epochs {
        Shuffle::VaeEpoch(epoch as u32).apply(options.objective.seed, &mut order);
        let loss = backend.vae_epoch(&mut trainer, &data, &order, epoch as u32)?;
        let terms = [loss.total, loss.reconstruction, loss.kl, loss.divergence];
        // NaN is not below either.
        if !terms.iter().all(|term| term.abs() < EXPLODED) {
            return Err(Error::Diverged {
                what: "VAE training",
                epoch: epoch + 1,
                loss: loss.total,
                hint: "a lower `vae.lr`, another divergence, or `vae.gamma` 0 with `vae.reconstruction` sum, usually helps",
            });
        }
        on_epoch(epoch + 1, &loss);
        history.push(loss);
    }
    let vae = backend.vae_parameters(&trainer)?.fold(&standardizer);
    if !vae.is_finite() {
        return Err(Error::Diverged {
            what: "VAE training",
            epoch: options.epochs,
            loss: history.last().map_or(f64::NAN, |l| l.total),
            hint: "a parameter is infinite or NaN; a lower `vae.lr` usually helps",
        });
    }
    Ok(TrainedVae { vae, history })
}
