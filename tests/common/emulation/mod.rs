//! The kernels of `kernels/` on this machine's CPU, for tests: compiled by the host's C++ compiler with the emulator
//! of `kernels/emulation`, loaded, and driven by name like a CUDA driver's.
//!
//! There are two builds. The fast one finds wrong results, accesses past buffers, divergence and undefined behaviour;
//! the check build finds races, uninitialised reads and accesses past shared arrays as well, with the source line.
//! A missing compiler is a failure, never a skip.
#![allow(dead_code, reason = "every test program uses its own part")]
#![allow(unsafe_code, reason = "a C interface; each block says why it is sound")]

mod build;
mod driver;

pub use driver::{Args, Emulator, Launch, Order, Schedule};

/// Which build of the kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Build {
    /// Optimised.
    Fast,
    /// With shadow memory.
    Check,
}
