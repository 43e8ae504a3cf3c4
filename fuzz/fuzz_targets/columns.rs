//! Arbitrary bytes as files that are imported; the first byte chooses the format. From the root of the repository:
//! `cargo +nightly fuzz run columns fuzz/corpus/columns tests/golden/convert -- -max_total_time=60`
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../formats.rs"]
#[allow(dead_code, reason = "other targets use the rest")]
mod formats;
#[path = "../scratch.rs"]
mod scratch;

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
    formats::columns(&scratch::file(name), bytes);
});
