#![doc = include_str!("../README.md")]

pub mod backend;
pub mod bench;
pub mod cli;
pub mod dtype;
mod engine;
pub mod error;
pub mod eval;
pub mod exchange;
pub mod matrix;
pub mod model;
pub mod noise;
pub mod shard;
pub mod simd;
pub mod synth;
pub mod train;

pub use engine::{Engine, PairStream};
pub use error::{Error, Result};
pub use model::{RewardModel, Vae};
pub use shard::PairSet;
pub use synth::Recipe;
