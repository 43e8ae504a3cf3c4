//! Arbitrary bytes as manifests and recipes. From the root of the repository:
//! `cargo +nightly fuzz run documents fuzz/corpus/documents -- -max_total_time=60`
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
    let folder = folder.join(format!("lensmith-fuzz-documents-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a scratch folder");
    folder
});

fuzz_target!(|bytes: &[u8]| {
    formats::documents(&SCRATCH.join("document.json"), bytes);
});
