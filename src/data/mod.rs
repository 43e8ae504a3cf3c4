//! Embedding shards on disk: safetensors files, read through memory maps and written atomically.
//!
//! Reading: [`PairSet`], [`CandidateSet`], [`EmbeddingSet`] and [`LatentSet`] join files, folders or glob patterns to
//! one matrix each. They are made of columns (one tensor over several files), these of sources (one open file with its
//! parsed header), and these of memory maps. [`ResponseSet`] reads what candidates were made of, as text.
//!
//! Files may be objects of a store, by URL: what reads and writes them is in `store`, and `place` tells which is which.
//!
//! Writing: [`ShardWriter`] writes one shard whose checksums travel in its header, [`Manifest`] lists the shards of a
//! folder, and [`OutputFolder`] fills a folder so that an interrupted run can be continued.

mod atomic;
mod checkpoint;
mod column;
mod contents;
mod direct;
mod expand;
mod fault;
mod folder;
mod format;
mod inputs;
mod keep;
mod latents;
mod lines;
mod lock;
mod manifest;
mod map;
mod place;
mod reader;
mod responses;
mod source;
mod store;
mod writer;

pub use atomic::{AtomicFile, require_absent, write_atomic};
pub use checkpoint::{Checkpoint, Provenance, file_fingerprint};
pub use column::{RowBlock, Scan, ShardFile, SourceFile};
pub use contents::{MANIFEST, MOST_RECIPE, RECIPE, manifests, require_apart, require_whole};
pub use direct::sequential_write;
pub use expand::{expand_folder, expand_sources, require_utf8};
pub use folder::{
    FolderOptions, MAX_SHARDS, OutputFolder, PlannedShard, ShardSequence, rows_per_shard, shard_name,
    shard_number,
};
pub use format::{Header, TensorInfo};
pub use inputs::{Block, PairSource, RowSource};
pub use keep::{file_exists, keep_file, read_file};
pub use latents::{LATENT_CANDIDATE, LATENT_SEED, LATENT_Z, LatentRows, LatentSet};
pub use lines::LineFile;
pub use lock::FolderLock;
pub use manifest::Manifest;
pub use map::{FileBytes, Io, ignore_file_size_signal, install_sigbus_guard};
pub use place::{
    absolute, at_once, create_folder, file_name, file_state, is_folder, is_there, lengths, list, open_input,
    read_small,
};
pub use reader::{CandidateSet, EmbeddingSet, PairOptions, PairSet};
pub use responses::{ResponseColumns, ResponseRow, ResponseSet, Talk};
pub use store::{Object, is_url};
pub use writer::{
    NamedTensor, ShardRecord, ShardWriter, TensorSpec, WriteMode, inspect_shard, verify_shard, write_pairs,
    write_pairs_until, write_tensors,
};
