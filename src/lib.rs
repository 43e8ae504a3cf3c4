#![doc = include_str!("../README.md")]

pub mod backend;
pub mod bench;
pub mod cli;
pub mod convert;
pub mod data;
pub mod dtype;
mod engine;
pub mod error;
pub mod eval;
pub mod matrix;
pub mod model;
pub mod noise;
pub mod report;
pub mod simd;
pub mod synth;
mod timing;
pub mod train;

pub use data::PairSet;
pub use engine::{Engine, PairStream};
pub use error::{Error, Result};
pub use model::{RewardModel, Vae};
pub use synth::Recipe;
