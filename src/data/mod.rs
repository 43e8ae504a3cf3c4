//! Embedding shards on disk: safetensors files, read through memory maps and written atomically.
//!
//! [`PairSet`], [`CandidateSet`], [`EmbeddingSet`] and [`LatentSet`] read files, folders or glob patterns as one matrix;
//! [`ShardWriter`] writes a shard whose checksums travel in its header; [`Manifest`] lists a folder of them.

mod block;
mod checkpoint;
mod column;
mod format;
mod inputs;
mod latents;
mod manifest;
mod map;
mod reader;
mod source;
mod writer;

pub use block::sequential_write;
pub use checkpoint::{Checkpoint, Provenance, file_fingerprint};
pub use column::{RowBlock, Scan, ShardFile, SourceFile};
pub use format::{Header, TensorInfo};
pub use inputs::{Block, PairSource, RowSource};
pub use latents::{LATENT_CANDIDATE, LATENT_SEED, LATENT_Z, LatentRows, LatentSet};
pub use manifest::{FolderLock, Manifest, require_absent};
pub use map::{FileBytes, Io, install_sigbus_guard};
pub use reader::{CandidateSet, EmbeddingSet, PairOptions, PairSet};
pub use source::{glob_matches, require_matches};
pub use writer::{
    AtomicFile, NamedTensor, ShardRecord, ShardWriter, TensorSpec, WriteMode, inspect_shard, verify_shard,
    write_atomic, write_pairs, write_tensors,
};
