//! Latent-space synthesis of preference pairs for reward models.

pub mod backend;
pub mod dtype;
pub mod error;
pub mod eval;
pub mod matrix;
pub mod model;
pub mod noise;
pub mod shard;
pub mod synth;
pub mod train;

pub use error::{Error, Result};
