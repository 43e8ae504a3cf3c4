//! The paper's evaluation: held-out pairs, best-of-N, order preservation, baselines, and all of them as one table.

mod baselines;
mod best_of_n;
mod experiment;
mod order;
mod simulate;
mod split;

pub use baselines::{direct_perturbation, gaussian_sampling};
pub use best_of_n::{BestOfN, best_of_n};
pub use experiment::{Arm, ArmResult, Candidates, Experiment};
pub use order::{OrderPreservation, order_preservation};
pub use simulate::{Simulated, SimulatedPairs, SimulationOptions, simulate};
pub use split::{Split, split};
