//! Latent-space synthesis of preference pairs for reward models: LENS (Tao, Du and Li, NeurIPS 2025).
//!
//! A small VAE learns the space of the embeddings that a language model gives chosen and rejected responses. Gaussian
//! noise in its latent space makes new pairs, a likelihood filter keeps the plausible ones, and a small reward model
//! trains on originals and synthetic pairs. No text is generated.
//!
//! An [`Engine`] is an opened device, a CPU or a GPU, with the whole method on it. What takes embeddings takes them from
//! safetensors files ([`PairSet`], [`EmbeddingSet`], [`CandidateSet`]) or from memory ([`RowSet`]):
//!
//! ```
//! use lensmith::{Dtype, Engine, RewardTraining, RowSet, SynthesisOptions, Updates, VaeTraining};
//!
//! # fn main() -> lensmith::Result<()> {
//! // 50 pairs of embeddings [n, d] with d = 32, row after row; yours come from a language model.
//! let chosen: Vec<f32> = (0..50 * 32).map(|i| (i as f32).sin()).collect();
//! let rejected: Vec<f32> = (0..50 * 32).map(|i| (i as f32).cos()).collect();
//! let seeds = [RowSet::from_f32(&chosen, 32)?, RowSet::from_f32(&rejected, 32)?];
//!
//! let engine = Engine::builder().build()?;
//! let vae_options = VaeTraining { epochs: 3, ..VaeTraining::default() };
//! let vae = engine.train_vae(&seeds, &vae_options, &mut |_, _| ())?.vae;
//!
//! // Four pairs for every seed pair: itself and three synthetic ones.
//! let options = SynthesisOptions { pairs_per_seed: Some(4), ..SynthesisOptions::default() };
//! let mut pairs = 0;
//! for batch in engine.stream(&options, &seeds, &vae, 64, Dtype::F32)? {
//!     pairs += batch?.chosen.rows();
//! }
//! assert_eq!(pairs, 4 * 50);
//!
//! let reward_options = RewardTraining { updates: Updates::Epochs(2), ..RewardTraining::default() };
//! let reward = engine
//!     .train_reward_on_synthetic(&options, &seeds, &vae, None, &reward_options, &mut |_| ())?
//!     .model;
//! println!("{:.1} % of the seeds", 100.0 * engine.evaluate(&reward, &seeds, None)?.report.accuracy);
//! # Ok(())
//! # }
//! ```
//!
//! # What holds
//!
//! - Every random value is a function of the seed and the logical element (row, side, candidate), by Philox4x32-10.
//!   Pair `j` is the same in a stream, in a shard and alone ([`Engine::pair`]), for any batch and number of threads. In
//!   F32 ([`Precision`]) latents, embeddings and rewards have the same bits on every device.
//! - A folder of synthetic pairs ([`Engine::synthesize`]) is resumed after a kill to the same bytes; a shard that has its
//!   name is whole.
//! - Input files that change while they are read are an error ([`Error::Changed`]), never a silent mixture.
//! - The library prints nothing, installs no signal handler unasked ([`EngineBuilder::sigbus_guard`]), and warns through
//!   the `tracing` crate.
//!
//! # Features
//!
//! `cli` (default): the program `lensmith`. `cloud` (default): files in Amazon S3, Google Cloud Storage and Azure Blob
//! Storage, by URL wherever a path is taken. `convert` (default): import and export of npy, npz, Parquet and Arrow files.
//! Without them, few dependencies are left.

// Modules offer each other, the program and the crate's tests more than the library alone uses.
#![cfg_attr(not(feature = "internals"), allow(dead_code, unused_imports))]
// Feature `internals` opens the modules to the crate's own tests; only what is re-exported below is documented.
#![cfg_attr(feature = "internals", allow(missing_docs))]

#[cfg(not(feature = "internals"))]
mod backend;
#[cfg(all(feature = "cli", not(feature = "internals")))]
mod bench;
#[cfg(all(feature = "convert", not(feature = "internals")))]
mod convert;
#[cfg(not(feature = "internals"))]
mod data;
#[cfg(not(feature = "internals"))]
mod dtype;
#[cfg(not(feature = "internals"))]
mod error;
#[cfg(not(feature = "internals"))]
mod eval;
#[cfg(not(feature = "internals"))]
mod matrix;
#[cfg(not(feature = "internals"))]
mod model;
#[cfg(not(feature = "internals"))]
mod noise;
#[cfg(all(feature = "cli", not(feature = "internals")))]
mod report;
#[cfg(not(feature = "internals"))]
mod simd;
#[cfg(not(feature = "internals"))]
mod synth;
#[cfg(not(feature = "internals"))]
mod train;

#[cfg(feature = "internals")]
pub mod backend;
#[cfg(all(feature = "cli", feature = "internals"))]
pub mod bench;
#[cfg(all(feature = "convert", feature = "internals"))]
pub mod convert;
#[cfg(feature = "internals")]
pub mod data;
#[cfg(feature = "internals")]
pub mod dtype;
#[cfg(feature = "internals")]
pub mod error;
#[cfg(feature = "internals")]
pub mod eval;
#[cfg(feature = "internals")]
pub mod matrix;
#[cfg(feature = "internals")]
pub mod model;
#[cfg(feature = "internals")]
pub mod noise;
#[cfg(all(feature = "cli", feature = "internals"))]
pub mod report;
#[cfg(feature = "internals")]
pub mod simd;
#[cfg(feature = "internals")]
pub mod synth;
#[cfg(feature = "internals")]
pub mod train;

#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod cli;
mod engine;
mod interrupt;
mod memory;
mod side;
mod stream;
mod timing;

pub use backend::{
    Adam, DecodeMode, DeviceArray, DeviceChoice, DeviceInfo, Divergence, LatentSource, Likelihood,
    Perturbation, PosteriorsHost, Precision, Reduction, RewardObjective, SyntheticPath, VaeLoss,
    VaeObjective,
};
pub use data::{
    Block, CandidateSet, Checkpoint, EmbeddingSet, Io, LatentSet, PairOptions, PairSet, PairSource,
    Provenance, ResponseColumns, ResponseRow, ResponseSet, RowSource, Talk, WriteMode, file_exists,
    is_folder, keep_file, read_file, write_pairs, write_pairs_until,
};
pub use dtype::Dtype;
pub use engine::{Engine, EngineBuilder, SpreadSink};
pub use error::{Error, Result};
pub use eval::{
    Additions, Arm, ArmResult, Augmentation, BestOfNCurve, BestOfNPoint, Calibration, CalibrationBin,
    Candidates, Experiment, Histogram, Interval, LeftOut, Margins, OrderPoint, OrderPreservation,
    PairFigures, PairReport, Paired, RankCorrelation, SelectForm, SelectOptions, SelectSummary, Selected,
    SelectedFigures, SelectedText, Split, SplitOptions, VaeHealth, holm, paired, split,
};
pub use interrupt::Interrupt;
pub use matrix::{Matrix, RowSet, Rows, RowsBuf, Values, ValuesMut};
pub use model::{Head, Linear, RewardModel, RewardSize, Vae, VaeSize};
pub use noise::Permutation;
pub use side::Side;
pub use stream::{PairIndex, PairStream};
pub use synth::{
    Merged, Moved, OutputKind, Overlap, PairBatch, Pairing, Part, Plan, Progress, Recipe, StoredRun,
    SynthJob, SynthSummary, SynthesisOptions, Verified, VerifyOptions, VerifyStep, leading_originals,
    merge_manifests,
};
pub use train::{PairMetrics, RewardPoint, RewardTraining, TrainedReward, TrainedVae, Updates, VaeTraining};

/// The README's example compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
