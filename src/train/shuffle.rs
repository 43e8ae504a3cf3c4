//! Orders of rows, drawn from the run's seed.

use crate::noise::{Purpose, Stream};

/// What an order is for: shuffles for different uses draw from different streams.
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
        // The use in the high word, the epoch in the low word.
        let stream = match self {
            Shuffle::VaeEpoch(epoch) => u64::from(epoch),
            Shuffle::RewardEpoch(epoch) => 1 << 32 | u64::from(epoch),
            Shuffle::Split => 2 << 32,
        };
        Stream::new(seed, Purpose::Shuffle, stream).shuffle(items);
    }
}
