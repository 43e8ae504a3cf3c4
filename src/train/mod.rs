//! Training loops over any [`Backend`](crate::backend::Backend), which computes the epochs.
//!
//! 1. [`train_vae`]: the VAE, on the seed pairs.
//! 2. [`train_reward`]: the reward model, on seed pairs and synthetic samples, with early stopping on
//!    held-out pairs.
//! 3. [`pair_metrics`]: accuracy and loss of a reward model on pairs.
//!
//! Models are trained on standardised embeddings. The standardisation is folded into the model that comes
//! out, which so takes and gives raw embeddings.

mod check;
mod early_stop;
mod reward;
mod shuffle;
mod vae;

pub use reward::{
    PairMetrics, RewardPoint, RewardTraining, TrainedReward, Updates, Validation, bradley_terry,
    pair_margins, pair_metrics, require_finite, train_reward,
};
pub use shuffle::Shuffle;
pub use vae::{TrainedVae, VaeTraining, train_vae};
