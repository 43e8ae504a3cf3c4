//! Order preservation: the share of synthetic pairs that a reward function orders as it orders their seed
//! pair. The paper's Theorem 1 says that it is close to 1 for small perturbations.

use serde::{Deserialize, Serialize};

use crate::backend::Backend;
use crate::error::Result;
use crate::synth::Synthesizer;

/// Order preservation of one reward model on one recipe.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct OrderPreservation {
    /// Number of synthetic pairs.
    pub pairs: u64,
    /// Share that the reward function orders as their seed pair.
    pub preserved: f64,
    /// Share whose chosen embedding has the higher reward.
    pub chosen_higher: f64,
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
    let (mut pairs, mut preserved, mut higher) = (0u64, 0u64, 0u64);
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
        }
        Ok(())
    })?;
    let share = |count: u64| count as f64 / pairs.max(1) as f64;
    Ok(OrderPreservation { pairs, preserved: share(preserved), chosen_higher: share(higher) })
}
