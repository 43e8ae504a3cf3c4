//! Latent synthesis: what to make ([`Recipe`], [`Plan`]), making it ([`Synthesizer`]), and writing it down
//! ([`write_synthetic`]).

mod augment;
mod blocks;
mod folder;
mod lanes;
mod make;
mod materialize;
mod merge;
mod pairing;
mod pipeline;
mod progress;
mod recipe;
mod remake;
mod seeds;
mod verify;

pub use augment::Augmented;
pub use folder::manifests;
pub use make::{LatentBatch, PairBatch, Sink, Synthesizer};
pub use materialize::Source;
pub use merge::{Merged, Overlap, merge_manifests};
pub use pairing::{MAX_PER_SIDE, PairId, Pairing, Plan};
pub use pipeline::{OutputKind, Part, SynthJob, SynthSummary, write_synthetic};
pub use progress::{Bound, Progress, Speed};
pub use recipe::{Moved, Recipe, SeedSource, SynthesisOptions, VaeSource};
pub use remake::Recompute;
pub use seeds::{SeedBlock, Seeds};
pub use verify::{Verified, VerifyOptions, VerifyStep, verify_folder};
