//! The paper's evaluation.
//!
//! 1. [`split`] makes seed, validation and test pairs of one data set; [`simulate`] draws them where there
//!    are none.
//! 2. [`Experiment`] trains a reward model for each [`Arm`]: without augmentation, with the baselines
//!    ([`direct_perturbation`], [`gaussian_sampling`]), and with LENS.
//! 3. [`vae_health`] tells whether the VAE has learnt, and whether its latent space is one to perturb in.
//! 4. Each is measured on held-out pairs and by [`best_of_n`]; [`order_preservation`] looks at synthetic
//!    pairs alone.

mod baselines;
mod best_of_n;
mod experiment;
mod health;
mod order;
mod simulate;
mod split;

pub use baselines::{direct_perturbation, gaussian_sampling};
pub use best_of_n::{BestOfN, best_of_n};
pub use experiment::{Arm, ArmResult, Candidates, Experiment};
pub use health::{VaeHealth, vae_health};
pub use order::{OrderPreservation, order_preservation};
pub use simulate::{Simulated, SimulatedPairs, SimulationOptions, simulate};
pub use split::{Split, SplitOptions, split};
