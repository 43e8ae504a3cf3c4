//! Arbitrary bytes as files that are imported; the first byte chooses the format. From the root of the repository:
//! `cargo +nightly fuzz run columns fuzz/corpus/columns tests/golden/convert -- -max_total_time=60`
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

#[path = "../formats.rs"]
#[allow(dead_code, reason = "other targets use the rest")]
mod formats;

/// In memory, where the system has such a folder; of each process its own, so that workers do not collide.
static SCRATCH: LazyLock<PathBuf> = LazyLock::new(|| {
    let memory = PathBuf::from("/dev/shm");
    let folder = if memory.is_dir() { memory } else { std::env::temp_dir() };
    let folder = folder.join(format!("lensmith-fuzz-columns-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a scratch folder");
    folder
});

/// The names that a first byte chooses from.
const NAMES: [&str; 4] = ["file.npy", "file.npz", "file.arrow", "file.parquet"];

fuzz_target!(|bytes: &[u8]| {
    // Files of the corpus keep their first byte: it tells the formats apart.
    let name = match bytes.first() {
        Some(0x93) => NAMES[0],
        Some(b'P') if bytes.get(1) == Some(&b'K') => NAMES[1],
        Some(b'P') => NAMES[3],
        _ => NAMES[2],
    };
    formats::columns(&SCRATCH.join(name), bytes);
});
