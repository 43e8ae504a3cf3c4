//! Epochs and schedules over a [`crate::backend::Backend`].

mod early_stop;
mod reward;
mod vae;

pub use early_stop::EarlyStop;
pub use reward::{PairMetrics, bradley_terry};
pub use reward::{
    RewardEpoch, RewardTraining, TrainedReward, Updates, Validation, pair_metrics, train_reward,
};
pub use vae::{TrainedVae, VaeTraining, train_vae};

use crate::noise::{Purpose, Stream};

/// Which shuffle: high words keep the shuffles of different uses apart.
#[derive(Clone, Copy, Debug)]
pub enum Shuffle {
    /// Pairs of VAE training, by epoch.
    VaeEpoch(u32),
    /// Pairs of reward training, by epoch.
    RewardEpoch(u32),
    /// The split of a data set into seeds, validation and test.
    Split,
}

impl Shuffle {
    /// Shuffles `items` for this use under `seed`.
    pub fn apply<T>(self, seed: u64, items: &mut [T]) {
        let index = match self {
            Shuffle::VaeEpoch(epoch) => u64::from(epoch),
            Shuffle::RewardEpoch(epoch) => 1 << 32 | u64::from(epoch),
            Shuffle::Split => 2 << 32,
        };
        Stream::new(seed, Purpose::Shuffle, index).shuffle(items);
    }
}
