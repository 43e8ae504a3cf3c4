//! The two models: sizes, parameters, initialisation, the affine map of the data, and checkpoints on disk.

mod config;
mod folded;
mod linear;
mod reward;
mod standardizer;
mod vae;
mod weights;

pub use config::{RewardSize, VaeSize};
pub use folded::FoldedReward;
pub use linear::Linear;
pub use reward::RewardModel;
pub use standardizer::Standardizer;
pub use vae::Vae;
pub use weights::{Checkpoint, Provenance, file_fingerprint};
