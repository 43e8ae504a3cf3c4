//! The paper's evaluation.
//!
//! 1. [`split`] makes seed, validation and test pairs of one data set; [`simulate`] draws them where there
//!    are none.
//! 2. [`Experiment`] trains a reward model for each [`Arm`]: without augmentation, with the baselines
//!    ([`direct_perturbation`], [`gaussian_sampling`], [`mixup`]), and with LENS.
//! 3. [`vae_health`] tells whether the VAE has learnt, and whether its latent space is one to perturb in.
//! 4. Each is measured on held-out pairs ([`pair_figures`]) and candidates ([`best_of_n_curve`],
//!    [`rank_correlation`]); [`order_preservation`] looks at synthetic pairs alone.
//! 5. [`Selection`] takes the responses that a reward model ranks first, for training on them.
//! 6. [`paired`] compares two models over splits; [`holm`] corrects for several comparisons.

mod arm;
mod baselines;
mod best_of_n;
mod bootstrap;
mod experiment;
mod figures;
mod health;
mod histogram;
mod latent_map;
mod order;
mod pair_report;
mod paired;
mod quantile;
mod rank;
mod select;
mod simulate;
mod split;
mod student;

pub use arm::{Arm, Augmentation, baseline, main_arm};
pub use baselines::{direct_perturbation, gaussian_sampling, mixup};
pub use best_of_n::{BestOfNCurve, BestOfNPoint, best_of_n_curve};
pub use bootstrap::{Interval, bootstrap_mean};
pub use experiment::{Additions, ArmResult, Candidates, Experiment, check_arm};
pub use figures::{PairFigures, pair_figures};
pub use health::{VaeHealth, vae_health};
pub use histogram::{Histogram, histogram};
pub use latent_map::{LatentMap, latent_map};
pub use order::{ORDER_SIGMA2, OrderPoint, OrderPreservation, order_curve, order_preservation};
pub use pair_report::{Calibration, CalibrationBin, Margins, PairReport, pair_report};
pub use paired::{Paired, holm, paired};
pub use quantile::quantile;
pub use rank::{RankCorrelation, average_ranks, rank_correlation, spearman};
pub use select::{
    LeftOut, SelectForm, SelectOptions, SelectSummary, Selected, SelectedFigures, SelectedText, Selection,
};
pub use simulate::{Simulated, SimulatedPairs, SimulationOptions, simulate};
pub use split::{Split, SplitOptions, split};
pub use student::{incomplete_beta, student_p};
