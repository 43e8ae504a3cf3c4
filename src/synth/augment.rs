//! A recipe's samples as latents in memory, for training straight from a recipe without writing anything.

use super::{Plan, Seeds};
use crate::backend::{
    Backend, DecodeMode, NoiseKey, PairRows, Perturbation, Residual, RewardData, RewardSide, Sample,
    Synthetic,
};
use crate::error::{Error, Result};
use crate::matrix::Side;
use crate::model::Vae;

/// The synthetic samples of a whole plan on a device: k latents per seed and side, and the pairs over them.
pub struct Augmented<B: Backend> {
    vae: B::Vae,
    posteriors: [B::Posteriors; 2],
    latents: [B::Latents; 2],
    mode: DecodeMode,
    /// The plan's pairs as rows of [`RewardSide`]: see [`Plan::rows`].
    pub pairs: Vec<PairRows>,
}

impl<B: Backend> Augmented<B> {
    /// Encodes, selects and perturbs all seeds of a plan.
    pub fn new(
        backend: &B,
        vae: &Vae,
        seeds: &dyn Seeds,
        plan: &Plan,
        perturbation: &Perturbation,
        mode: DecodeMode,
    ) -> Result<Augmented<B>> {
        let (n, k) = (plan.seeds, u64::from(plan.per_side));
        if n * (k + 1) > u64::from(u32::MAX) {
            return Err(Error::option(
                "--fold or --per-side",
                format!("at most {} samples per side for training", u32::MAX),
                n * (k + 1),
            ));
        }
        let vae = backend.load_vae(vae)?;
        let make = |side: Side| -> Result<(B::Posteriors, B::Latents)> {
            let block = seeds.block(side, 0..seeds.pairs())?;
            let rows = block.view();
            let posteriors = backend.encode(&vae, &backend.embeddings(rows.clone())?)?;
            let origin = NoiseKey { seed: plan.seed, side, first_row: 0 };
            let selection = backend.select(&posteriors, origin, perturbation)?;
            let samples: Vec<Sample> = selection
                .candidates
                .iter()
                .enumerate()
                .map(|(i, &candidate)| Sample { row: (i / selection.top_k) as u32, candidate })
                .collect();
            let latents = backend.perturb(&posteriors, origin, perturbation, &samples)?;
            Ok((posteriors, latents))
        };
        let (chosen, rejected) = (make(Side::Chosen)?, make(Side::Rejected)?);
        Ok(Augmented {
            vae,
            posteriors: [chosen.0, rejected.0],
            latents: [chosen.1, rejected.1],
            mode,
            pairs: plan.rows(),
        })
    }

    /// The samples beside the originals they were made from, for [`crate::train::train_reward`].
    pub fn data<'r, 'e>(
        &'r self,
        chosen: &'r B::Embeddings<'e>,
        rejected: &'r B::Embeddings<'e>,
    ) -> RewardData<'r, 'e, B>
    where
        B: 'e,
    {
        let side = |side: usize, originals: &'r B::Embeddings<'e>| RewardSide {
            originals,
            synthetic: Some(Synthetic {
                vae: &self.vae,
                latents: &self.latents[side],
                residual: (self.mode == DecodeMode::Residual)
                    .then_some(Residual { embeddings: originals, posteriors: &self.posteriors[side] }),
            }),
        };
        RewardData { chosen: side(0, chosen), rejected: side(1, rejected) }
    }
}
