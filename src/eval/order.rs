//! Order preservation: the share of synthetic pairs that a reward function orders as it orders their seed
//! pair. The paper's Theorem 1 says that it is close to 1 for small perturbations.

use serde::{Deserialize, Serialize};

use crate::backend::{Backend, LatentSource, Likelihood};
use crate::data::PairSource;
use crate::error::Result;
use crate::model::{FoldedReward, RewardModel, Vae};
use crate::synth::{SynthesisOptions, Synthesizer};

/// Order preservation of one reward model on one recipe.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct OrderPreservation {
    /// Number of synthetic pairs.
    pub pairs: u64,
    /// Share that the reward function orders as their seed pair.
    pub preserved: f64,
    /// Share whose chosen embedding has the higher reward.
    pub chosen_higher: f64,
    /// Mean margin of the synthetic pairs, r(chosen) - r(rejected), in the direction of their seed pair.
    pub margin: f64,
    /// Mean size of the seed pairs' margins.
    pub seed_margin: f64,
}

/// Variances of the noise at which order preservation is looked at.
pub const ORDER_SIGMA2: [f64; 7] = [0.001, 0.01, 0.1, 0.3, 1.0, 3.0, 10.0];

/// Order preservation at one scale of the noise.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct OrderPoint {
    /// Variance of the noise in latent space.
    pub sigma2: f64,
    /// What it does.
    #[serde(flatten)]
    pub order: OrderPreservation,
}

/// Order preservation by `model` of synthetic pairs at several scales of the noise, each perturbed from the posterior mean
/// without likelihood filter, so that only the noise grows.
///
/// # Errors
/// Models or seeds that do not fit each other.
pub fn order_curve<B: Backend>(
    backend: &B,
    seeds: &dyn PairSource,
    vae: &Vae,
    model: &RewardModel,
    (synthesis, sigma2): (&SynthesisOptions, &[f64]),
) -> Result<Vec<OrderPoint>> {
    let (reward, folded) =
        (backend.load_reward(model)?, backend.load_folded(&FoldedReward::new(vae, model)?)?);
    let at = |&sigma2: &f64| {
        let (source, likelihood) = (LatentSource::Mean, Likelihood::None);
        let options = SynthesisOptions { sigma2, source, likelihood, ..*synthesis };
        let make = Synthesizer::new(backend, vae, seeds, options.plan(seeds.pairs())?, options.mode)?;
        Ok(OrderPoint { sigma2, order: order_preservation(&make, &reward, &folded)? })
    };
    sigma2.iter().map(at).collect()
}

/// Scores all synthetic pairs of a plan, and their seeds. `reward` scores embeddings and `folded`, the same
/// model, scores latents, so that nothing is decoded.
pub fn order_preservation<B: Backend>(
    make: &Synthesizer<'_, B>,
    reward: &B::Reward,
    folded: &B::Folded,
) -> Result<OrderPreservation> {
    let plan = *make.plan();
    let mut margins = Vec::new();
    let (mut pairs, mut preserved, mut higher, mut sum) = (0u64, 0u64, 0u64, 0f64);
    make.rewards(0..plan.pairs(), reward, folded, &mut |first, [plus, minus]| {
        for (i, (a, b)) in plus.iter().zip(minus).enumerate() {
            let j = first + i as u64;
            let margin = a - b;
            // A plan lists the seed pairs first, then the synthetic pairs seed after seed.
            if j < plan.seeds {
                margins.push(margin);
                continue;
            }
            let seed = ((j - plan.seeds) / (plan.pairs_per_seed - 1)) as usize;
            pairs += 1;
            preserved += u64::from(margin * margins[seed] > 0.0);
            higher += u64::from(margin > 0.0);
            sum += f64::from(if margins[seed] < 0.0 { -margin } else { margin });
        }
        Ok(())
    })?;
    let share = |count: u64| count as f64 / pairs.max(1) as f64;
    let seed_sum: f64 = margins.iter().map(|&m: &f32| f64::from(m.abs())).sum();
    Ok(OrderPreservation {
        pairs,
        preserved: share(preserved),
        chosen_higher: share(higher),
        margin: sum / pairs.max(1) as f64,
        seed_margin: seed_sum / margins.len().max(1) as f64,
    })
}
