//! The two models: sizes, parameters, initialisation, and the affine map of the data.

mod config;
mod folded;
mod linear;
mod reward;
mod standardizer;
mod vae;

pub use config::{RewardSize, VaeSize};
pub use folded::FoldedReward;
pub use linear::Linear;
pub use reward::RewardModel;
pub use standardizer::Standardizer;
pub use vae::Vae;
