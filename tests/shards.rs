//! Shards on disk: what is written is read back, whichever way, and nothing hostile gets through.

#[path = "../fuzz/exercise.rs"]
mod exercise;
#[path = "shards/hostile.rs"]
mod hostile;
#[path = "shards/latents.rs"]
mod latents;
#[path = "shards/manifest.rs"]
mod manifest;
#[path = "shards/mutation.rs"]
mod mutation;
#[path = "shards/reading.rs"]
mod reading;
#[path = "shards/sources.rs"]
mod sources;
#[path = "shards/support.rs"]
mod support;
#[path = "shards/writing.rs"]
mod writing;
