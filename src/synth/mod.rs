//! Latent synthesis: making synthetic pairs of a recipe, and writing them as shards.
//!
//! Data flows down this list, and no file imports one below it:
//!
//! 1. `plan`: which pairs a run makes;
//! 2. `recipe`: everything that determines them, on disk;
//! 3. `seeds`: reading seed pairs block by block;
//! 4. `generate`: making the pairs of a block on a backend;
//! 5. `lookup`: making pairs in any order;
//! 6. `write`: making and writing shards at once;
//! 7. `parts`: the manifests of runs that were cut into parts;
//! 8. `job`: a whole run into a folder;
//! 9. `verify` and `merge`: checking a folder, and joining the manifests of its parts.
mod generate;
mod job;
mod lookup;
mod merge;
mod parts;
mod plan;
mod recipe;
mod seeds;
mod verify;
mod write;

pub use generate::{Augmented, BatchSink, LatentBatch, PairBatch, Synthesizer};
pub use job::{OutputKind, StoredRun, SynthJob, SynthSummary, write_synthetic};
pub use lookup::PairLookup;
pub use merge::{Merged, Overlap, merge_manifests};
pub use parts::{Part, leading_originals};
pub use plan::{MAX_PER_SIDE, PairId, Pairing, Plan};
pub use recipe::{Moved, Recipe, SeedSource, SynthesisOptions, VaeSource};
pub use verify::{Recompute, Verified, VerifyOptions, VerifyStep, verify_folder};
pub use write::{Bound, Progress, Speed};
