//! What lives on the device: embeddings, models, posteriors and latents.

use std::sync::Arc;

use half::bf16;

use super::driver::{Driver, DriverError, DriverResult};
use super::memory::Buffer;
use super::params;
use crate::backend::{NoiseKey, Precision};
use crate::dtype::Dtype;
use crate::matrix::RowSet;
use crate::model::{FoldedReward, Linear, RewardModel, Vae, VaeSize};

/// Bytes that are joined on the host before a copy; parts of as many go up from where they are.
const JOINED: usize = 1 << 20;

/// Embeddings `[n, d]`: on the device, or, where they do not fit, on the host, from where they go piece by piece.
#[derive(Debug)]
pub struct Embeddings<'a> {
    /// The rows on the host.
    pub rows: RowSet<'a>,
    /// Storage type on the device: that of all parts, or F32 if they differ.
    pub dtype: Dtype,
    /// The rows on the device.
    pub resident: Option<Buffer<u8>>,
}

impl<'a> Embeddings<'a> {
    /// Copies the rows to the device if there is room.
    pub fn new(driver: &Arc<dyn Driver>, rows: RowSet<'a>) -> DriverResult<Embeddings<'a>> {
        let mut dtypes = rows.parts().iter().map(|p| p.dtype());
        let first = dtypes.next().unwrap_or(Dtype::F32);
        let dtype = if dtypes.all(|d| d == first) { first } else { Dtype::F32 };
        let mut made = Embeddings { rows, dtype, resident: None };
        match Buffer::empty(driver, made.rows.rows() * made.row_bytes(), "embeddings") {
            Ok(buffer) => {
                write_rows(driver, buffer.address(), &made.rows, dtype)?;
                made.resident = Some(buffer);
            }
            Err(fault @ DriverError::OutOfMemory { .. }) => {
                let n = made.rows.rows();
                tracing::warn!("{}: {n} embeddings stay on the host: {fault}", driver.name());
            }
            Err(other) => return Err(other),
        }
        Ok(made)
    }

    /// Bytes of a row on the device.
    pub fn row_bytes(&self) -> usize {
        self.rows.cols() * self.dtype.size()
    }
}

/// Copies rows to the device as `dtype`, which is theirs or F32. Many small parts go as few copies.
pub fn write_rows(driver: &Arc<dyn Driver>, to: u64, rows: &RowSet<'_>, dtype: Dtype) -> DriverResult<()> {
    let (mut at, mut joined) = (to, Vec::new());
    let mut wide = vec![0f32; rows.cols()];
    for part in rows.parts() {
        let same = part.dtype() == dtype;
        let bytes = part.values().bytes();
        if same && bytes.len() >= JOINED {
            for bytes in [&joined, bytes] {
                driver.upload(at, bytes)?;
                at += bytes.len() as u64;
            }
            joined.clear();
            continue;
        }
        for row in 0..part.rows() {
            match same {
                true => joined.extend_from_slice(part.row(row).bytes()),
                false => {
                    part.row(row).widen(&mut wide);
                    joined.extend_from_slice(bytemuck::cast_slice(&wide));
                }
            }
            if joined.len() >= JOINED {
                driver.upload(at, &joined)?;
                at += joined.len() as u64;
                joined.clear();
            }
        }
    }
    if joined.is_empty() { Ok(()) } else { driver.upload(at, &joined) }
}

/// A layer on the device, its weight in the precision of the products.
#[derive(Debug)]
pub struct Layer {
    weight: Weight,
    /// Bias, `[outputs]`.
    pub bias: Buffer<f32>,
}

#[derive(Debug)]
enum Weight {
    F32(Buffer<f32>),
    Bf16(Buffer<bf16>),
}

impl Layer {
    /// Copies a layer to the device.
    pub fn new(driver: &Arc<dyn Driver>, linear: &Linear, precision: Precision) -> DriverResult<Layer> {
        let weight = match precision {
            Precision::F32 => Weight::F32(Buffer::upload(driver, &linear.weight, "weight")?),
            Precision::Bf16 => {
                let rounded: Vec<bf16> = linear.weight.iter().map(|&w| bf16::from_f32(w)).collect();
                Weight::Bf16(Buffer::upload(driver, &rounded, "weight")?)
            }
        };
        Ok(Layer { weight, bias: Buffer::upload(driver, &linear.bias, "bias")? })
    }

    /// Where the weight lies.
    pub fn weight(&self) -> u64 {
        match &self.weight {
            Weight::F32(buffer) => buffer.address(),
            Weight::Bf16(buffer) => buffer.address(),
        }
    }
}

/// A VAE on the device.
#[derive(Debug)]
pub struct DeviceVae {
    /// The two layers of the encoder.
    pub encoder: [Layer; 2],
    /// The two layers of the decoder.
    pub decoder: [Layer; 2],
    /// The model on the host, for what is derived from it.
    pub host: Vae,
}

impl DeviceVae {
    /// Copies a model to the device.
    pub fn new(driver: &Arc<dyn Driver>, vae: &Vae, precision: Precision) -> DriverResult<DeviceVae> {
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
    /// The first layer.
    pub first: Layer,
    /// Weight of the second, `[hidden]`.
    pub second: Buffer<f32>,
    /// The model on the host.
    pub host: RewardModel,
}

impl DeviceReward {
    /// Copies a model to the device.
    pub fn new(
        driver: &Arc<dyn Driver>,
        model: &RewardModel,
        precision: Precision,
    ) -> DriverResult<DeviceReward> {
        Ok(DeviceReward {
            first: Layer::new(driver, &model.layers[0], precision)?,
            second: Buffer::upload(driver, &model.layers[1].weight, "second weight")?,
            host: model.clone(),
        })
    }
}

/// A reward model on a VAE's latents, on the device.
#[derive(Debug)]
pub struct DeviceFolded {
    /// The decoder's first layer.
    pub decoder: Layer,
    /// hidden -> width.
    pub folded: Layer,
    /// The reward model itself, for the pre-activations of seeds.
    pub reward: DeviceReward,
    /// Sizes of the VAE.
    pub size: VaeSize,
}

impl DeviceFolded {
    /// Copies a model to the device.
    pub fn new(
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
    pub mu: Arc<Buffer<f32>>,
    /// Logarithms of the variances.
    pub logvar: Arc<Buffer<f32>>,
    /// Number of rows.
    pub rows: usize,
    /// Dimension of the latent space.
    pub latent: usize,
}

/// Latents `[count, latent]`: stored, or drawn by each kernel that needs them.
#[derive(Debug)]
pub struct Latents {
    /// Where they come from.
    pub source: Source,
    /// The row of each.
    pub rows: Vec<u32>,
    /// Dimension of the latent space.
    pub latent: usize,
}

/// Where latents come from.
#[derive(Debug)]
pub enum Source {
    /// Memory.
    Stored {
        /// The latents.
        z: Buffer<f32>,
        /// The row of each.
        owners: Buffer<u32>,
    },
    /// Noise counters: whoever reads a latent draws it.
    Drawn {
        /// What each row's candidates start from, `[rows, latent]`: a posterior sample or the mean.
        starts: Arc<Buffer<f32>>,
        /// (row, candidate) of each.
        samples: Buffer<[u32; 2]>,
        /// Whose noise.
        origin: NoiseKey,
        /// How much.
        sigma: f32,
    },
}

impl Latents {
    /// Number of latents.
    pub fn count(&self) -> usize {
        self.rows.len()
    }

    /// The latents from `first` on, as kernels take them.
    pub fn params(&self, first: usize) -> params::Latents {
        let mut out: params::Latents = bytemuck::Zeroable::zeroed();
        match &self.source {
            Source::Stored { z, owners } => {
                (out.z, out.owners) = (z.at(first * self.latent), owners.at(first));
            }
            Source::Drawn { starts, samples, origin, sigma } => {
                (out.samples, out.starts) = (samples.at(first), starts.address());
                (out.seed, out.first_row, out.side) = (origin.seed, origin.first_row, origin.side as u32);
                out.sigma = *sigma;
            }
        }
        out
    }
}
