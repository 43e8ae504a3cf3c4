//! The two models of the method. They hold parameters; backends do the arithmetic.
//!
//! ```text
//! VAE      e -> Linear(d, hidden), ReLU, Linear(hidden, 2 latent) -> (mu, logvar)
//!          z -> Linear(latent, hidden), ReLU, Linear(hidden, d)   -> e
//! reward   e -> Linear(d, hidden), ReLU, Linear(hidden, 1)        -> r     (or Linear(d, 1); or the mean of several)
//! ```
//!
//! Both are trained on embeddings that a [`Standardizer`] has mapped to mean 0 and standard deviation 1.
//! Since the map is affine, it is folded into the first and last layers afterwards: saved models take and
//! give raw embeddings. [`FoldedReward`] goes a step further and joins the decoder's last layer with the
//! reward model's first.

mod config;
mod folded;
mod linear;
mod reward;
mod standardizer;
mod vae;

pub use config::{Head, RewardSize, VaeSize};
pub use folded::FoldedReward;
pub use linear::Linear;
pub use reward::RewardModel;
pub use standardizer::Standardizer;
pub use vae::Vae;
