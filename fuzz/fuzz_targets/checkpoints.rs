//! Arbitrary bytes as models. From the root of the repository:
//! `cargo +nightly fuzz run checkpoints fuzz/corpus/checkpoints fuzz/seeds/checkpoints -- -max_total_time=60`
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../formats.rs"]
#[allow(dead_code, reason = "other targets use the rest")]
mod formats;
#[path = "../scratch.rs"]
mod scratch;

fuzz_target!(|bytes: &[u8]| {
    formats::checkpoints(&scratch::file("model.safetensors"), bytes);
});
