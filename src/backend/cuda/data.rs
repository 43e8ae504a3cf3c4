//! What lives on the device: embeddings, models, posteriors and latents, and the addresses that launches take
//! of them.

use std::sync::{Arc, OnceLock};

use half::bf16;

use super::driver::{Driver, DriverError, DriverResult, HostMemory};
use super::memory::Buffer;
use super::params;
use crate::backend::{NoiseKey, Precision};
use crate::dtype::Dtype;
use crate::matrix::RowSet;
use crate::model::{FoldedReward, Linear, RewardModel, Vae, VaeSize};

/// Parts smaller than this are gathered on the host into copies of about this size; larger ones are copied as
/// they are.
const GATHERED_BYTES: usize = 1 << 20;

/// Embeddings `[n, d]`: on the device, or, where they do not fit, on the host, from where every operation
/// copies them chunk by chunk.
#[derive(Debug)]
pub struct Embeddings<'a> {
    /// The rows on the host.
    pub(super) rows: RowSet<'a>,
    /// Storage type on the device: that of all parts, or F32 if they differ.
    pub(super) dtype: Dtype,
    /// The rows on the device, if they fit.
    pub(super) resident: Option<Buffer<u8>>,
    /// The rows in pinned memory, which kernels read over the bus, once an operation needs them all that do not fit.
    mapped: OnceLock<Box<dyn HostMemory>>,
}

impl<'a> Embeddings<'a> {
    /// Copies the rows to the device if there is room.
    pub(super) fn new(driver: &Arc<dyn Driver>, rows: RowSet<'a>) -> DriverResult<Embeddings<'a>> {
        let mut dtypes = rows.parts().iter().map(|p| p.dtype());
        let first = dtypes.next().unwrap_or(Dtype::F32);
        let dtype = if dtypes.all(|d| d == first) { first } else { Dtype::F32 };
        let mut made = Embeddings { rows, dtype, resident: None, mapped: OnceLock::new() };
        match Buffer::empty(driver, made.rows.rows() * made.row_bytes(), "embeddings") {
            Ok(buffer) => {
                write_rows(driver, buffer.address(), &made.rows, dtype)?;
                made.resident = Some(buffer);
            }
            Err(error @ DriverError::OutOfMemory { .. }) => {
                let n = made.rows.rows();
                tracing::warn!("{}: {n} embeddings stay on the host: {error}", driver.name());
            }
            Err(other) => return Err(other),
        }
        Ok(made)
    }

    /// Where the device finds all rows: in its memory, or in the host's, to where they are copied at the first call.
    pub(super) fn reachable(&self, driver: &Arc<dyn Driver>, what: &str) -> DriverResult<u64> {
        if let Some(buffer) = &self.resident {
            return Ok(buffer.address());
        }
        if let Some(memory) = self.mapped.get() {
            return Ok(memory.address());
        }
        let bytes = self.rows.rows() * self.row_bytes();
        let gib = bytes as f64 / f64::from(1 << 30);
        let memory = driver.allocate_host(bytes.max(1)).map_err(|error| {
            DriverError::Other(format!(
                "{what} needs all embeddings where the GPU can read them, and there is no room for their {gib:.1} GiB: \
                 {error}; use fewer seed pairs, or `device` cpu"
            ))
        })?;
        write_rows(driver, memory.address(), &self.rows, self.dtype)?;
        let name = driver.name();
        tracing::warn!("{name}: {what} reads {gib:.1} GiB of embeddings from pinned memory, over the bus");
        Ok(self.mapped.get_or_init(|| memory).address())
    }

    /// Bytes of a row on the device.
    pub(super) fn row_bytes(&self) -> usize {
        self.rows.cols() * self.dtype.size()
    }
}

/// Copies rows to the device as `dtype`, which is theirs or F32. Many small parts go as few copies.
pub fn write_rows(driver: &Arc<dyn Driver>, to: u64, rows: &RowSet<'_>, dtype: Dtype) -> DriverResult<()> {
    let (mut at, mut gathered) = (to, Vec::new());
    let mut wide = vec![0f32; rows.cols()];
    for part in rows.parts() {
        let same = part.dtype() == dtype;
        let bytes = part.values().bytes();
        if same && bytes.len() >= GATHERED_BYTES {
            for bytes in [&gathered, bytes] {
                driver.upload(at, bytes)?;
                at += bytes.len() as u64;
            }
            gathered.clear();
            continue;
        }
        for row in 0..part.rows() {
            match same {
                true => gathered.extend_from_slice(part.row(row).bytes()),
                false => {
                    part.row(row).widen(&mut wide);
                    gathered.extend_from_slice(bytemuck::cast_slice(&wide));
                }
            }
            if gathered.len() >= GATHERED_BYTES {
                driver.upload(at, &gathered)?;
                at += gathered.len() as u64;
                gathered.clear();
            }
        }
    }
    if gathered.is_empty() { Ok(()) } else { driver.upload(at, &gathered) }
}

/// A layer on the device, its weight in the precision of the products.
#[derive(Debug)]
pub struct Layer {
    weight: Weight,
    /// Bias, `[outputs]`.
    pub(super) bias: Buffer<f32>,
}

#[derive(Debug)]
enum Weight {
    F32(Buffer<f32>),
    Bf16(Buffer<bf16>),
}

impl Layer {
    pub(super) fn new(
        driver: &Arc<dyn Driver>,
        linear: &Linear,
        precision: Precision,
    ) -> DriverResult<Layer> {
        let weight = match precision {
            Precision::F32 => Weight::F32(Buffer::upload(driver, &linear.weight, "weight")?),
            Precision::Bf16 => {
                let rounded: Vec<bf16> = linear.weight.iter().map(|&w| bf16::from_f32(w)).collect();
                Weight::Bf16(Buffer::upload(driver, &rounded, "weight")?)
            }
        };
        Ok(Layer { weight, bias: Buffer::upload(driver, &linear.bias, "bias")? })
    }

    /// Device address of the weight.
    pub(super) fn weight(&self) -> u64 {
        self.weight_at(0)
    }

    /// Device address of value `index` of the weight.
    pub(super) fn weight_at(&self, index: usize) -> u64 {
        match &self.weight {
            Weight::F32(buffer) => buffer.at(index),
            Weight::Bf16(buffer) => buffer.at(index),
        }
    }
}

/// A VAE on the device.
#[derive(Debug)]
pub struct DeviceVae {
    pub(super) encoder: [Layer; 2],
    pub(super) decoder: [Layer; 2],
    /// The model on the host: its sizes, and what training derives from it.
    pub(super) host: Vae,
}

impl DeviceVae {
    pub(super) fn new(driver: &Arc<dyn Driver>, vae: &Vae, precision: Precision) -> DriverResult<DeviceVae> {
        let layer = |linear| Layer::new(driver, linear, precision);
        Ok(DeviceVae {
            encoder: [layer(&vae.encoder[0])?, layer(&vae.encoder[1])?],
            decoder: [layer(&vae.decoder[0])?, layer(&vae.decoder[1])?],
            host: vae.clone(),
        })
    }
}

/// A reward model on the device.
#[derive(Debug)]
pub struct DeviceReward {
    pub(super) first: Layer,
    /// Weight of the second, `[hidden]`.
    pub(super) second: Buffer<f32>,
    /// The model on the host, as one MLP.
    pub(super) host: RewardModel,
}

impl DeviceReward {
    pub(super) fn new(
        driver: &Arc<dyn Driver>,
        model: &RewardModel,
        precision: Precision,
    ) -> DriverResult<DeviceReward> {
        let host = model.as_mlp().into_owned();
        Ok(DeviceReward {
            first: Layer::new(driver, &host.layers[0], precision)?,
            second: Buffer::upload(driver, &host.layers[1].weight, "second weight")?,
            host,
        })
    }
}

/// A reward model on a VAE's latents, on the device.
#[derive(Debug)]
pub struct DeviceFolded {
    /// The decoder's first layer.
    pub(super) decoder: Layer,
    /// The decoder's second layer times the reward model's first: hidden -> width.
    pub(super) folded: Layer,
    /// The reward model itself, for the pre-activations of seeds.
    pub(super) reward: DeviceReward,
    /// Sizes of the VAE.
    pub(super) size: VaeSize,
}

impl DeviceFolded {
    pub(super) fn new(
        driver: &Arc<dyn Driver>,
        model: &FoldedReward,
        precision: Precision,
    ) -> DriverResult<DeviceFolded> {
        Ok(DeviceFolded {
            decoder: Layer::new(driver, model.decoder(), precision)?,
            folded: Layer::new(driver, &model.folded, precision)?,
            reward: DeviceReward::new(driver, &model.reward, precision)?,
            size: model.vae_size(),
        })
    }
}

/// Posteriors of a block of rows.
#[derive(Clone, Debug)]
pub struct Posteriors {
    /// Means, `[rows, latent]`.
    pub(super) mu: Arc<Buffer<f32>>,
    /// Logarithms of the variances.
    pub(super) logvar: Arc<Buffer<f32>>,
    /// Number of rows.
    pub(super) rows: usize,
    /// Dimension of the latent space.
    pub(super) latent: usize,
}

/// Latents `[count, latent]`, each of a row of its block.
#[derive(Debug)]
pub struct Latents {
    pub(super) values: LatentValues,
    /// The row of each.
    pub(super) rows: Vec<u32>,
    /// Dimension of the latent space.
    pub(super) latent: usize,
}

/// Latents in memory, or what they are drawn from. Kernels take either.
#[derive(Debug)]
pub enum LatentValues {
    /// In device memory.
    Stored {
        z: Buffer<f32>,
        /// The row of each.
        owners: Buffer<u32>,
    },
    /// Computed by every kernel that reads them: noise counters take less memory traffic than latents.
    Drawn(DrawnLatents),
}

/// z' = start of the row + sigma eta, with eta from noise counters.
#[derive(Debug)]
pub struct DrawnLatents {
    /// Where each row's candidates start, `[rows, latent]`: a posterior sample or the mean.
    pub(super) starts: Arc<Buffer<f32>>,
    /// (row, candidate) of each latent.
    pub(super) samples: Buffer<[u32; 2]>,
    pub(super) key: NoiseKey,
    pub(super) sigma: f32,
}

impl Latents {
    pub(super) fn count(&self) -> usize {
        self.rows.len()
    }

    /// The latents from `first` on, as kernels take them.
    pub(super) fn params(&self, first: usize) -> params::Latents {
        let mut out = params::Latents::default();
        match &self.values {
            LatentValues::Stored { z, owners } => {
                (out.z, out.owners) = (z.at(first * self.latent), owners.at(first));
            }
            LatentValues::Drawn(DrawnLatents { starts, samples, key, sigma }) => {
                (out.samples, out.starts) = (samples.at(first), starts.address());
                out.noise = params::Noise::new(*key, *sigma);
            }
        }
        out
    }
}

/// Consecutive stored rows on the device.
#[derive(Clone, Copy, Debug)]
pub struct RowsAt {
    /// Address of the first.
    pub(super) address: u64,
    /// How many.
    pub(super) rows: usize,
    /// Their storage type.
    pub(super) dtype: Dtype,
}

impl RowsAt {
    /// The rows of a weight of products in BF16.
    pub(super) fn weights(address: u64, rows: usize) -> RowsAt {
        RowsAt { address, rows, dtype: Dtype::Bf16 }
    }

    /// All rows of embeddings at an address.
    pub(super) fn all(embeddings: &Embeddings<'_>, address: u64) -> RowsAt {
        RowsAt { address, rows: embeddings.rows.rows(), dtype: embeddings.dtype }
    }
}

/// What residual decoding adds to: e - decoder(mu) of a latent's seed.
#[derive(Clone, Copy, Debug)]
pub struct ResidualBase {
    /// Address of the seeds' embeddings, `[seeds, d]`.
    pub(super) embeddings: u64,
    /// Their storage type.
    pub(super) dtype: Dtype,
    /// Address of their posterior means, `[seeds, latent]`.
    pub(super) mu: u64,
}
