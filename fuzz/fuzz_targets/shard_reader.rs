//! Arbitrary bytes as the contents of a file, through every reader of shards. From the root of the repository:
//! `cargo +nightly fuzz run shard_reader fuzz/corpus/shard_reader fuzz/seeds -- -max_total_time=60`
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

#[path = "../exercise.rs"]
mod exercise;

/// In memory, where the system has such a folder; one file per process, so that workers do not collide.
static SCRATCH: LazyLock<PathBuf> = LazyLock::new(|| {
    let memory = PathBuf::from("/dev/shm");
    let folder = if memory.is_dir() { memory } else { std::env::temp_dir() };
    folder.join(format!("lensmith-fuzz-{}.safetensors", std::process::id()))
});

fuzz_target!(|bytes: &[u8]| {
    exercise::exercise(&SCRATCH, bytes);
});
