//! The kernels on the CPU: the emulator's own tests, and kernels against the crate. Needs a C++20 compiler, on Linux.
#![cfg(target_os = "linux")]

mod common;

use common::emulation;

#[path = "emulation/adam.rs"]
mod adam;
#[path = "emulation/checker.rs"]
mod checker;
#[path = "emulation/floor.rs"]
mod floor;
#[path = "emulation/perturb.rs"]
mod perturb;
#[path = "emulation/probes.rs"]
mod probes;
#[path = "emulation/products.rs"]
mod products;
#[path = "emulation/rows.rs"]
mod rows;
#[path = "emulation/sources.rs"]
mod sources;
