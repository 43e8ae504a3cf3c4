//! The kernels of `kernels/` on this machine's CPU, for tests: compiled by the host's C++ compiler with the emulator
//! of `kernels/emulation`, loaded, and driven by name like a CUDA driver's.
//!
//! There are two builds. The fast one finds wrong results, accesses past buffers, divergence and undefined behaviour;
//! the check build finds races, uninitialised reads and accesses past shared arrays as well, with the source line.
//! A missing compiler is a failure, never a skip.
#![allow(dead_code, unused_imports, reason = "every test program uses its own part")]
#![allow(unsafe_code, reason = "a C interface; each block says why it is sound")]

mod build;
mod driver;

use std::path::{Path, PathBuf};
use std::process::Command;

use lensmith::backend::Precision;
use lensmith::backend::cuda::{Cuda, Emulated, EmulatedDriver};

pub use build::library;
pub use driver::{Args, Emulator, Launch, Order, Schedule};

/// The GPU that takes the emulator's place where one is tested: LENSMITH_TEST_GPU, its number.
pub fn tested_gpu() -> Option<usize> {
    let index = std::env::var("LENSMITH_TEST_GPU").ok()?;
    Some(index.parse().unwrap_or_else(|_| panic!("LENSMITH_TEST_GPU: `{index}` is no number of a GPU")))
}

/// Compiles a stand-in for libcuda that runs launches in the emulator, and gives the folder that it is in.
pub fn stand_in(folder: &Path) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kernels/driver.c");
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-Wall", "-Werror", "-o"]).arg(folder.join("libcuda.so")).arg(source);
    compiler.arg("-ldl");
    assert!(compiler.status().expect("cc, which links Rust too").success());
    folder.to_path_buf()
}

/// The CUDA backend over the fast build, or on the tested GPU.
pub fn cuda(precision: Precision) -> Cuda {
    emulated(Build::Fast, Emulated::default(), precision)
}

/// The CUDA backend over a build, on a device that behaves as told.
pub fn emulated(build: Build, options: Emulated, precision: Precision) -> Cuda {
    if let Some(index) = tested_gpu() {
        return Cuda::open(index, precision).unwrap_or_else(|e| panic!("{e}"));
    }
    let driver = EmulatedDriver::new(Emulator::get(build).library(), options);
    Cuda::emulated(driver, precision).expect("an emulated device")
}

/// Which build of the kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Build {
    /// Optimised.
    Fast,
    /// With shadow memory.
    Check,
}
