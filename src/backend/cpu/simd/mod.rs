//! One loop, several instruction sets: kernels are written once over [`Simd`] and compiled for each level, chosen at
//! run time. Every level performs the same IEEE operations in the same order, so results agree in every bit.

#![allow(unsafe_code)]

mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use portable::Portable;

use crate::error::{Error, Result};

/// Columns that one vector operation covers, on every level: 2 AVX-512 registers, 4 AVX ones.
pub const WIDTH: usize = 32;

/// One row of a weight panel.
pub type Lane = [f32; WIDTH];

/// Arithmetic on [`WIDTH`] values at once. An implementation is a token that proves its instructions are there.
pub trait Simd: Copy + Send + Sync {
    /// Rows that share one pass over a panel: as many accumulators as the register file holds.
    const ROWS: usize;
    /// [`WIDTH`] values in registers.
    type Row: Copy;

    /// Reads a row.
    fn load(self, from: &Lane) -> Self::Row;
    /// Writes a row.
    fn store(self, row: Self::Row, to: &mut Lane);
    /// Writes a row past the caches where `to` is aligned to 64 bytes and the level can, else as [`Simd::store`] does.
    /// [`Simd::fence`] must follow before another thread reads it.
    fn stream(self, row: Self::Row, to: &mut Lane);
    /// Orders the rows that [`Simd::stream`] wrote before all later writes.
    fn fence(self);
    /// a * b + acc, rounded once.
    fn fma(self, a: f32, b: Self::Row, acc: Self::Row) -> Self::Row;
}

/// A computation that [`Level::run`] compiles for every instruction set. `run` must be `#[inline(always)]`.
pub trait Task {
    /// What it gives.
    type Output;
    /// The computation.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// The instruction sets this build knows, as run-time proof that they are there.
#[derive(Clone, Copy, Debug)]
pub enum Level {
    /// 512-bit vectors.
    #[cfg(target_arch = "x86_64")]
    Avx512(x86::Avx512),
    /// 256-bit vectors with fused multiply-add.
    #[cfg(target_arch = "x86_64")]
    Avx2(x86::Avx2),
    /// What the target guarantees (NEON on aarch64).
    Portable(Portable),
}

impl Level {
    /// The fastest level of this machine; `LENSMITH_SIMD` = avx512, avx2 or portable asks for another. Fails if the
    /// machine does not have it.
    pub fn detect() -> Result<Level> {
        let levels = Level::available();
        let wanted = std::env::var("LENSMITH_SIMD").unwrap_or_default();
        match levels.iter().find(|level| wanted.is_empty() || level.name() == wanted) {
            Some(level) => Ok(*level),
            None => {
                let names: Vec<&str> = levels.iter().map(|level| level.name()).collect();
                Err(Error::option("LENSMITH_SIMD", names.join(" or "), wanted))
            }
        }
    }

    /// Every level of this machine, fastest first.
    pub fn available() -> Vec<Level> {
        let mut levels = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            levels.extend(x86::Avx512::detect().map(Level::Avx512));
            levels.extend(x86::Avx2::detect().map(Level::Avx2));
        }
        levels.push(Level::Portable(Portable));
        levels
    }

    /// The name, as in `LENSMITH_SIMD`.
    pub fn name(self) -> &'static str {
        match self {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512(_) => "avx512",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2(_) => "avx2",
            Level::Portable(_) => "portable",
        }
    }

    /// Runs a task compiled for this level.
    #[inline]
    pub fn run<T: Task>(self, task: T) -> T::Output {
        match self {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512(token) => token.run(task),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2(token) => token.run(task),
            Level::Portable(token) => task.run(token),
        }
    }
}
