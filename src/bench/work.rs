//! How much work each operation is by its definition: floating-point operations, a multiply-add counting as two.

use crate::model::{RewardSize, VaeSize};

/// Operations of one normal, those of its share of Philox included.
pub const NORMAL: f64 = 65.0;

/// Decoding one latent.
pub fn decode(size: VaeSize) -> f64 {
    2.0 * (size.latent * size.hidden + size.hidden * size.dim) as f64
}

/// Encoding one embedding.
pub fn encode(size: VaeSize) -> f64 {
    2.0 * (size.dim * size.hidden + size.hidden * 2 * size.latent) as f64
}

/// Scoring one embedding.
pub fn score(reward: RewardSize) -> f64 {
    2.0 * (reward.dim * reward.hidden + reward.hidden) as f64
}

/// Scoring one latent by the folded model.
pub fn folded(size: VaeSize, reward: RewardSize) -> f64 {
    2.0 * (size.latent * size.hidden + size.hidden * reward.hidden + reward.hidden) as f64
}

/// A VAE training step, per pair: forward, gradients of every weight, and of every input but the embeddings.
pub fn vae_step(size: VaeSize) -> f64 {
    let VaeSize { dim, hidden, latent } = size;
    2.0 * 2.0 * (5 * dim * hidden + 9 * hidden * latent) as f64
}

/// A reward training step, per pair of originals.
pub fn reward_step(reward: RewardSize) -> f64 {
    2.0 * 2.0 * (2 * reward.dim * reward.hidden + 3 * reward.hidden) as f64
}

/// Synthesis, per pair, with `per_side` samples of each seed on each side.
pub fn synthesis(size: VaeSize, per_side: u32, pairs_per_seed: u64) -> f64 {
    2.0 * (encode(size) + f64::from(per_side) * decode(size)) / pairs_per_seed as f64
}

/// What a whole run trains on, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    pub seeds: usize,
    pub per_side: u32,
    pub pairs_per_seed: u64,
    pub vae_epochs: usize,
    pub reward_epochs: usize,
    /// Steps of reward training.
    pub steps: u64,
}

/// The whole method. A synthetic sample takes part in a reward step by its decoder's hidden layer, through the product of
/// the reward model's weights and the decoder's, made once a step and once more for its gradient.
pub fn run(size: VaeSize, reward: RewardSize, run: Run) -> f64 {
    let (n, k, epochs) = (run.seeds as f64, f64::from(run.per_side), run.reward_epochs as f64);
    let vae = run.vae_epochs as f64 * n * vae_step(size);
    let encode = 2.0 * n * encode(size);
    let hidden = 2.0 * n * k * 2.0 * (size.latent * size.hidden) as f64;
    let synthetic_pairs = n * (run.pairs_per_seed - 1) as f64;
    // Of the (k + 1)^2 - 1 pairs of a seed that are not its original, k have the original on one side.
    let original = k / ((k + 1.0).powi(2) - 1.0);
    let originals = epochs * (n + synthetic_pairs * original) * reward_step(reward);
    let synthetic = epochs * synthetic_pairs * (1.0 - original) * 2.0 * 3.0 * folded(size, reward);
    let joint = run.steps as f64 * 4.0 * (reward.hidden * size.hidden * size.dim) as f64;
    vae + encode + hidden + originals + synthetic + joint
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The counts at the paper's sizes that recorded shares are based on.
    #[test]
    fn work_at_the_usual_sizes() {
        let (size, reward) = (VaeSize::new(4096, 64, 16).unwrap(), RewardSize::new(4096, 256).unwrap());
        assert_eq!(decode(size), 526_336.0);
        assert_eq!(encode(size), 528_384.0);
        assert_eq!(score(reward), 2_097_664.0);
        assert_eq!(folded(size, reward), 35_328.0);
        assert_eq!(vae_step(size), 4.0 * (5.0 * 4096.0 * 64.0 + 9.0 * 64.0 * 16.0));
        assert_eq!(reward_step(reward), 4.0 * (2.0 * 4096.0 * 256.0 + 3.0 * 256.0));
        assert_eq!(synthesis(size, 3, 8), (528_384.0 + 3.0 * 526_336.0) / 4.0);
    }
}
