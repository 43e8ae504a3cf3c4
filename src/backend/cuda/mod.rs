//! CUDA: the compiled kernels and the devices that take them. No operation of [`Backend`](super::Backend) runs here
//! yet.
//!
//! The driver library is loaded when a device is opened, so that one binary runs with and without it.

mod device;
pub mod kernels;

pub use device::{Device, Summary};
