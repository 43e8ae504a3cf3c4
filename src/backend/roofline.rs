//! The roofline of a device: its peak arithmetic and memory rates, measured in the same process as the operations that they
//! bound. A rate means something only beside its limit.

use serde::{Deserialize, Serialize};

use super::cpu::{Cpu, peak};
use super::cuda::Cuda;
use super::cuda::rates::{Load, Peak};
use super::reference::Reference;
use super::{Backend, Precision};
use crate::error::Result;
use crate::model::{RewardModel, Vae};

/// Hash of the kernels' sources: recorded rates of GPUs hold for these kernels only.
pub const KERNELS: u64 = super::cuda::kernels::SOURCES;

/// What a limit bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Resource {
    /// Floating-point operations.
    Flop,
    /// Bytes written to the device's memory.
    Write,
    /// Bytes moved through the device's memory, read and written together.
    Copy,
    /// Normals drawn.
    Normals,
    /// Bytes written to disk, synced.
    Disk,
}

impl Resource {
    /// The resource in words, for the column "bound by".
    pub fn name(self) -> &'static str {
        match self {
            Resource::Flop => "arithmetic",
            Resource::Write => "memory writes",
            Resource::Copy => "memory",
            Resource::Normals => "normals",
            Resource::Disk => "disk",
        }
    }
}

/// A measured peak rate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Limit {
    /// How it was measured, in words.
    pub what: String,
    /// What it bounds. Of several limits of one resource the highest holds.
    pub resource: Resource,
    /// FLOP, bytes or normals per second.
    pub per_second: f64,
}

/// The rate of a kernel whose inputs and outputs stay on the device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Resident {
    /// The kernel in words.
    pub what: String,
    /// Rows per second.
    pub per_second: f64,
    /// Bytes that a row moves through device memory; 0 for none.
    pub bytes: f64,
    /// Floating-point operations of a row.
    pub flop: f64,
    /// The memory limit that bounds it.
    pub resource: Resource,
}

/// A device whose peak rates can be measured.
pub trait Roofline: Backend {
    /// Measures the device's limits and, on a GPU, where calls of [`Backend`] end with a copy to the host, the kernels
    /// without that copy, on about `rows` embeddings of the models.
    ///
    /// # Errors
    /// What the device fails with.
    fn measure(&self, vae: &Vae, reward: &RewardModel, rows: usize) -> Result<(Vec<Limit>, Vec<Resident>)>;

    /// Waits for everything that was launched.
    ///
    /// # Errors
    /// What the device failed with since the last wait.
    fn finish(&self) -> Result<()> {
        Ok(())
    }

    /// Computes latents now that the device would compute only when they are read.
    fn materialize(&self, _latents: &Self::Latents) {}
}

impl Roofline for Cpu {
    fn materialize(&self, latents: &Self::Latents) {
        self.make_latents(latents);
    }

    fn measure(&self, _: &Vae, _: &RewardModel, _: usize) -> Result<(Vec<Limit>, Vec<Resident>)> {
        let limit = |what: &str, resource, per_second| Limit { what: what.to_string(), resource, per_second };
        let arithmetic = match self.precision() {
            Precision::F32 => "F32 multiply-adds on registers",
            Precision::Bf16 => "BF16 products on registers",
        };
        let limits = vec![
            limit(arithmetic, Resource::Flop, peak::flops(self, self.precision())),
            limit("memory writes, ordinary stores", Resource::Write, peak::write_bytes(self, false)),
            limit("memory writes, non-temporal stores", Resource::Write, peak::write_bytes(self, true)),
            limit("memory copy, read + write", Resource::Copy, peak::copy_bytes(self)),
        ];
        Ok((limits, Vec::new()))
    }
}

impl Roofline for Reference {
    /// The oracle is not made to be fast.
    fn measure(&self, _: &Vae, _: &RewardModel, _: usize) -> Result<(Vec<Limit>, Vec<Resident>)> {
        Ok((Vec::new(), Vec::new()))
    }
}

impl Roofline for Cuda {
    fn measure(&self, vae: &Vae, reward: &RewardModel, rows: usize) -> Result<(Vec<Limit>, Vec<Resident>)> {
        let load = Load { rows, latents: 16 * rows, bytes: 4 * rows * vae.size().dim };
        let (mut limits, mut resident) = (Vec::new(), Vec::new());
        for rate in self.rates(vae, reward, load)? {
            let resource = match rate.peak {
                Peak::Write => Resource::Write,
                Peak::Flop => Resource::Flop,
                Peak::Read | Peak::Copy => Resource::Copy,
            };
            // Peaks count bytes, kernels rows.
            if rate.unit == "bytes" {
                limits.push(Limit { what: rate.what, resource, per_second: rate.per_second });
            } else {
                resident.push(Resident {
                    what: rate.what,
                    per_second: rate.per_second,
                    bytes: rate.bytes as f64,
                    flop: rate.flop as f64,
                    resource,
                });
            }
        }
        Ok((limits, resident))
    }

    fn finish(&self) -> Result<()> {
        self.wait()
    }
}
