//! Kernels one by one, against the crate or plain loops: in the machine for PTX, or on a GPU.
#![cfg(target_os = "linux")]

mod common;

use common::device;

#[path = "single/adam.rs"]
mod adam;
#[path = "single/floor.rs"]
mod floor;
#[path = "single/gather.rs"]
mod gather;
#[path = "single/perturb.rs"]
mod perturb;
#[path = "single/probes.rs"]
mod probes;
#[path = "single/products.rs"]
mod products;
#[path = "single/rows.rs"]
mod rows;
#[path = "single/sources.rs"]
mod sources;
