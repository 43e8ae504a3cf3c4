#![doc = include_str!("../README.md")]

mod api;
mod codes;
mod device;
mod kernels;
mod mapped;
mod settings;
mod tensor_maps;

pub use settings::{Failure, Queue, Settings};
