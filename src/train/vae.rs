//! Training of the VAE with divergence (ALGORITHM: section 1; Tao et al. 2025, section 4).

use serde::{Deserialize, Serialize};

use super::Shuffle;
use crate::backend::{Backend, PairData, VaeLoss, VaeObjective};
use crate::error::{Error, Result};
use crate::matrix::RowSet;
use crate::model::{Standardizer, Vae, VaeSize};

/// How a VAE is trained.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct VaeTraining {
    /// Width of the hidden layers.
    pub hidden: usize,
    /// Dimension of the latent space.
    pub latent: usize,
    /// Passes over the seed pairs.
    pub epochs: usize,
    /// The loss and the optimiser; its seed also keys initialisation and shuffles.
    pub objective: VaeObjective,
}

/// A trained VAE and how it came about.
#[derive(Clone, Debug)]
pub struct TrainedVae {
    /// The model, for raw embeddings.
    pub vae: Vae,
    /// Mean loss of each epoch.
    pub history: Vec<VaeLoss>,
}

/// Trains a VAE on seed pairs `[n, d]`. `on_epoch` hears the epoch (from 1) and its loss.
///
/// # Errors
/// Fewer than two pairs, sizes that do not fit, or a loss or a parameter that is no longer finite.
pub fn train_vae<B: Backend>(
    backend: &B,
    chosen: &RowSet<'_>,
    rejected: &RowSet<'_>,
    how: &VaeTraining,
    on_epoch: &mut dyn FnMut(usize, &VaeLoss),
) -> Result<TrainedVae> {
    let pairs = chosen.rows();
    if pairs < 2 {
        return Err(Error::TooFew {
            what: "seed pairs for VAE training".into(),
            needed: 2,
            found: pairs as u64,
        });
    }
    let size = VaeSize::new(chosen.cols(), how.hidden, how.latent)?;
    let standardizer = Standardizer::fit(&[chosen, rejected]);
    let initial = Vae::init(size, how.objective.seed);
    let mut trainer = backend.vae_trainer(&initial, &standardizer, &how.objective)?;
    let (chosen, rejected) = (backend.embeddings(chosen.clone())?, backend.embeddings(rejected.clone())?);
    let data = PairData { chosen: &chosen, rejected: &rejected };
    let mut order: Vec<u32> = (0..pairs as u32).collect();
    let mut history = Vec::new();
    for epoch in 0..how.epochs {
        Shuffle::VaeEpoch(epoch as u32).apply(how.objective.seed, &mut order);
        let loss = backend.vae_epoch(&mut trainer, &data, &order, epoch as u32)?;
        if !loss.total.is_finite() {
            return Err(Error::Diverged {
                what: "VAE training",
                epoch: epoch + 1,
                loss: loss.total,
                hint: "a lower --vae-lr, or --gamma 0 with --reduction sum, usually helps",
            });
        }
        on_epoch(epoch + 1, &loss);
        history.push(loss);
    }
    let vae = backend.vae_parameters(&trainer)?.fold(&standardizer);
    if !vae.is_finite() {
        return Err(Error::Diverged {
            what: "VAE training",
            epoch: how.epochs,
            loss: history.last().map_or(f64::NAN, |l| l.total),
            hint: "a parameter is infinite or NaN; a lower --vae-lr usually helps",
        });
    }
    Ok(TrainedVae { vae, history })
}
