//! The levels of [`Simd`](super::Simd) and the choice among them.

use std::sync::OnceLock;

#[cfg(target_arch = "aarch64")]
use super::neon;
use super::{Portable, Task};
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};
use crate::error::{Error, Result};

/// The instruction sets this build knows, as run-time proof that they are there.
#[derive(Clone, Copy, Debug)]
pub enum Isa {
    /// 512-bit vectors, with products of BF16 matrices.
    #[cfg(target_arch = "x86_64")]
    Amx(avx512::Avx512<true, true>),
    /// 512-bit vectors, with products of BF16 values.
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16(avx512::Avx512<true, false>),
    /// 512-bit vectors.
    #[cfg(target_arch = "x86_64")]
    Avx512(avx512::Avx512<false, false>),
    /// 256-bit vectors with fused multiply-add.
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Avx2),
    /// 128-bit vectors with fused multiply-add.
    #[cfg(target_arch = "aarch64")]
    Neon(neon::Neon),
    /// What the target guarantees.
    Portable(Portable<false>),
    /// The same with the products of BF16 matrices as [`Simd::block`](super::Simd::block) defines them: the bits of
    /// Intel's AMX on any machine, slowly.
    PortableAmx(Portable<true>),
}

impl Isa {
    /// The fastest level of this machine; `LENSMITH_SIMD` = amx, avx512-bf16, avx512, avx2, neon, portable or
    /// portable-amx asks for another.
    ///
    /// # Errors
    /// A level that the machine does not have.
    pub fn detect() -> Result<Isa> {
        let levels = Isa::available();
        let wanted = std::env::var("LENSMITH_SIMD").unwrap_or_default();
        match levels.iter().find(|level| wanted.is_empty() || level.name() == wanted) {
            Some(level) => Ok(*level),
            None => {
                let names: Vec<&str> = levels.iter().map(|level| level.name()).collect();
                Err(Error::argument("LENSMITH_SIMD", names.join(" or "), wanted))
            }
        }
    }

    /// [`Isa::detect`] once for the process, for work whose caller has no level; the fastest where that fails.
    pub fn current() -> Isa {
        static CURRENT: OnceLock<Isa> = OnceLock::new();
        *CURRENT.get_or_init(|| Isa::detect().unwrap_or_else(|_| Isa::available()[0]))
    }

    /// Every level of this machine, fastest first.
    pub fn available() -> Vec<Isa> {
        let mut levels = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            levels.extend(avx512::Avx512::detect().map(Isa::Amx));
            levels.extend(avx512::Avx512::detect().map(Isa::Avx512Bf16));
            levels.extend(avx512::Avx512::detect().map(Isa::Avx512));
            levels.extend(avx2::Avx2::detect().map(Isa::Avx2));
        }
        #[cfg(target_arch = "aarch64")]
        levels.extend(neon::Neon::detect().map(Isa::Neon));
        levels.push(Isa::Portable(Portable));
        levels.push(Isa::PortableAmx(Portable));
        levels
    }

    /// The name, as in `LENSMITH_SIMD`.
    pub fn name(self) -> &'static str {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Amx(_) => "amx",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16(_) => "avx512-bf16",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(_) => "avx512",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(_) => "avx2",
            #[cfg(target_arch = "aarch64")]
            Isa::Neon(_) => "neon",
            Isa::Portable(_) => "portable",
            Isa::PortableAmx(_) => "portable-amx",
        }
    }

    /// Whether products of BF16 are those of matrices, [`Simd::MATRIX`](super::Simd::MATRIX).
    pub fn is_matrix(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Amx(_) => true,
            Isa::PortableAmx(_) => true,
            _ => false,
        }
    }

    /// Runs a task compiled for this level.
    #[inline]
    pub fn run<T: Task>(self, task: T) -> T::Output {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Amx(token) => token.run(task),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16(token) => token.run(task),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(token) => token.run(task),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(token) => token.run(task),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon(token) => token.run(task),
            Isa::Portable(token) => task.run(token),
            Isa::PortableAmx(token) => task.run(token),
        }
    }
}
