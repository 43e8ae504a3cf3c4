//! Arbitrary bytes as the contents of a file, through every reader of shards. From the root of the repository:
//! `cargo +nightly fuzz run shard_reader fuzz/corpus/shard_reader fuzz/seeds/shard_reader -- -max_total_time=60`
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../exercise.rs"]
mod exercise;
#[path = "../scratch.rs"]
mod scratch;

fuzz_target!(|bytes: &[u8]| {
    exercise::exercise(&scratch::file("shard.safetensors"), bytes);
});
