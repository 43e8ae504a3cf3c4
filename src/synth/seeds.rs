//! Where seed pairs come from: shards on disk, or rows in memory.

pub use crate::data::{Block as SeedBlock, PairSource as Seeds};
