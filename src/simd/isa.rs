//! The instruction sets that [`Simd`](super::Simd) is compiled for, and the choice among them.

use std::sync::OnceLock;

#[cfg(target_arch = "aarch64")]
use super::neon;
use super::{Task, portable};
#[cfg(target_arch = "x86_64")]
use super::{amx, avx2, avx512};
use crate::error::{Error, Result};

/// An instruction set that this machine has: only [`Isa::available`] makes one, and only after asking the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(Set);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Set {
    /// 512-bit vectors, with products of BF16 matrices.
    #[cfg(target_arch = "x86_64")]
    Amx,
    /// 512-bit vectors, with products of BF16 values.
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
    /// 512-bit vectors.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// 256-bit vectors with fused multiply-add.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// 128-bit vectors with fused multiply-add.
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// What the target guarantees.
    Portable,
    /// The same with the products of BF16 matrices as [`Simd::amx_block`](super::Simd::amx_block) defines them: the bits
    /// of Intel's AMX on any machine, slowly.
    PortableAmx,
}

impl Isa {
    /// The fastest of this machine; `LENSMITH_SIMD` = amx, avx512-bf16, avx512, avx2, neon, portable or portable-amx
    /// asks for another.
    ///
    /// # Errors
    /// One that the machine does not have.
    pub fn detect() -> Result<Isa> {
        let all = Isa::available();
        let wanted = std::env::var("LENSMITH_SIMD").unwrap_or_default();
        match all.iter().find(|isa| wanted.is_empty() || isa.name() == wanted) {
            Some(isa) => Ok(*isa),
            None => {
                let names: Vec<&str> = all.iter().map(|isa| isa.name()).collect();
                Err(Error::argument("LENSMITH_SIMD", names.join(" or "), wanted))
            }
        }
    }

    /// [`Isa::detect`] once for the process, for callers without a backend; the fastest where that fails.
    pub fn current() -> Isa {
        static CURRENT: OnceLock<Isa> = OnceLock::new();
        *CURRENT.get_or_init(|| Isa::detect().unwrap_or_else(|_| Isa::available()[0]))
    }

    /// Every instruction set of this machine, fastest first.
    pub fn available() -> Vec<Isa> {
        let mut all = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            let bf16 = avx512::is_available() && avx512::has_bf16();
            all.extend((bf16 && amx::is_available()).then_some(Set::Amx));
            all.extend(bf16.then_some(Set::Avx512Bf16));
            all.extend(avx512::is_available().then_some(Set::Avx512));
            all.extend(avx2::is_available().then_some(Set::Avx2));
        }
        #[cfg(target_arch = "aarch64")]
        all.extend(neon::is_available().then_some(Set::Neon));
        all.extend([Set::Portable, Set::PortableAmx]);
        all.into_iter().map(Isa).collect()
    }

    /// The name, as in `LENSMITH_SIMD`.
    pub fn name(self) -> &'static str {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Set::Amx => "amx",
            #[cfg(target_arch = "x86_64")]
            Set::Avx512Bf16 => "avx512-bf16",
            #[cfg(target_arch = "x86_64")]
            Set::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => "avx2",
            #[cfg(target_arch = "aarch64")]
            Set::Neon => "neon",
            Set::Portable => "portable",
            Set::PortableAmx => "portable-amx",
        }
    }

    /// Whether products of BF16 are those of matrices, see [`Simd::has_amx`](super::Simd::has_amx).
    pub fn has_amx(self) -> bool {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Set::Amx => true,
            Set::PortableAmx => true,
            _ => false,
        }
    }

    /// Runs a task compiled for this instruction set. What it streamed past the caches is in memory when this returns.
    #[inline]
    pub fn run<T: Task>(self, task: T) -> T::Output {
        // SAFETY: `available` alone makes an `Isa`, and lists a set only where its features were detected.
        unsafe {
            match self.0 {
                #[cfg(target_arch = "x86_64")]
                Set::Amx => avx512::run_with_amx(task),
                #[cfg(target_arch = "x86_64")]
                Set::Avx512Bf16 => avx512::run_with_bf16(task),
                #[cfg(target_arch = "x86_64")]
                Set::Avx512 => avx512::run(task),
                #[cfg(target_arch = "x86_64")]
                Set::Avx2 => avx2::run(task),
                #[cfg(target_arch = "aarch64")]
                Set::Neon => neon::run(task),
                Set::Portable => portable::run(task, false),
                Set::PortableAmx => portable::run(task, true),
            }
        }
    }
}
