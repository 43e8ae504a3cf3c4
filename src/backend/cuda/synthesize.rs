//! Synthesis and reconstruction in one launch: encoder, selection and decoder of a tile of rows by one block, with
//! codes and latents in its shared memory.
//!
//! For BF16, whose separate kernels wait for memory: what they compute hides behind each other's traffic here, and rows
//! on their way through a device are copied to it once. F32 waits for its multiplications, of which there are as many
//! either way.

use std::sync::Arc;

use super::context::Cuda;
use super::data::{DeviceVae, Embeddings, Posteriors, RowsAt};
use super::driver::DriverResult;
use super::infer::{layers, likelihood};
use super::launch::u32_of;
use super::layout::{self, Block};
use super::memory::Buffer;
use super::params::{self, Noise};
use crate::backend::{
    DecodeMode, LatentSource, Likelihood, NoiseKey, Perturbation, Precision, Reconstruction,
};
use crate::dtype::Dtype;
use crate::model::{Standardizer, VaeSize};

/// What a launch makes samples of: whose noise, how many of which, and how they are decoded.
pub type HowToSample<'a> = (NoiseKey, &'a Perturbation, DecodeMode);

/// What reconstruction takes and makes on the device.
#[derive(Debug)]
pub struct Reconstructed {
    /// Means and inverse deviations of dimensions.
    mean: Buffer<f32>,
    scale: Buffer<f32>,
    /// Codes, `[rows, latent]`.
    mu: Buffer<f32>,
    logvar: Buffer<f32>,
    latent: usize,
    /// Errors and totals, `[rows, 2]`.
    pub(super) sums: Buffer<f32>,
}

impl Cuda {
    /// The block of one launch from rows to samples, if there is one for these sizes.
    pub(super) fn synthesis_block(&self, vae: &DeviceVae, options: &Perturbation) -> Option<Block> {
        let drawn = if options.likelihood == Likelihood::None { 0 } else { options.drawn() };
        let keep = options.top_k as usize;
        // Numbers of a tile's samples have 32 bits, and those that are kept of a row stay in shared memory.
        (keep <= layout::MOST_KEPT).then(|| self.one_pass(vae.host.size(), keep, drawn as usize))?
    }

    /// The block of one launch from rows to errors of reconstruction, if there is one for these sizes.
    pub(super) fn reconstruction_block(&self, vae: &DeviceVae) -> Option<Block> {
        self.one_pass(vae.host.size(), 0, 0)
    }

    /// The block of a launch that takes both halves of a VAE.
    pub(super) fn one_pass(&self, size: VaeSize, keep: usize, drawn: usize) -> Option<Block> {
        let block = layout::synthesize(size, keep, drawn);
        let bf16 = self.precision == Precision::Bf16 && size.dim.is_multiple_of(layout::COLUMNS);
        (bf16 && block.shared <= self.driver.limits().shared).then_some(block)
    }

    /// Samples of `rows` to `out`, `[rows, keep, d]` of `dtype`, and their candidates, `[rows, keep]`.
    pub(super) fn launch_synthesize(
        &self,
        (vae, block): (&DeviceVae, Block),
        rows: &RowsAt,
        (key, options, mode): HowToSample<'_>,
        (out, dtype, candidates): (u64, Dtype, u64),
    ) -> DriverResult<()> {
        let mean = options.source == LatentSource::Mean;
        let params = params::Synthesize {
            of: autoencoder(vae, rows, Noise::new(key, options.sigma()), mean),
            out,
            candidates,
            keep: options.top_k,
            drawn: options.drawn(),
            likelihood: likelihood(options.likelihood),
            residual: u32::from(mode == DecodeMode::Residual),
        };
        let kernel = match dtype {
            Dtype::F32 => "synthesize_bf16_f32",
            Dtype::F16 => "synthesize_bf16_f16",
            Dtype::Bf16 => "synthesize_bf16_bf16",
        };
        self.driver.launch(&self.tiled(kernel, rows.rows, block, 1, params)?)
    }

    /// Room for what reconstruction of `rows` rows makes.
    pub(super) fn reconstructed(
        &self,
        rows: usize,
        latent: usize,
        standardizer: &Standardizer,
    ) -> DriverResult<Reconstructed> {
        let scale: Vec<f32> = standardizer.std.iter().map(|std| 1.0 / std).collect();
        Ok(Reconstructed {
            mean: Buffer::upload(&self.driver, &standardizer.mean, "means")?,
            scale: Buffer::upload(&self.driver, &scale, "deviations")?,
            mu: self.buffer(rows * latent, "mu")?,
            logvar: self.buffer(rows * latent, "logvar")?,
            latent,
            sums: self.buffer(2 * rows, "errors of reconstruction")?,
        })
    }

    /// Codes and errors of rows, those of the first one to row `first` of `to`.
    pub(super) fn launch_reconstruct(
        &self,
        (vae, block): (&DeviceVae, Block),
        rows: &RowsAt,
        key: Option<NoiseKey>,
        (to, first): (&Reconstructed, usize),
    ) -> DriverResult<()> {
        let noise = key.map_or(Noise::default(), |key| Noise::new(key, 0.0));
        let params = params::Reconstruct {
            of: autoencoder(vae, rows, noise, key.is_none()),
            mean: to.mean.address(),
            scale: to.scale.address(),
            mu: to.mu.at(first * to.latent),
            logvar: to.logvar.at(first * to.latent),
            out: to.sums.at(2 * first),
        };
        self.driver.launch(&self.tiled("reconstruct_bf16", rows.rows, block, 1, params)?)
    }

    /// Codes and errors of all rows by one launch a chunk; None where there is no such launch.
    pub(super) fn reconstruct_in_one_pass(
        &self,
        vae: &DeviceVae,
        embeddings: &Embeddings<'_>,
        standardizer: &Standardizer,
        key: Option<NoiseKey>,
    ) -> DriverResult<Option<(Posteriors, Vec<Reconstruction>)>> {
        let Some(block) = self.reconstruction_block(vae) else { return Ok(None) };
        let (rows, latent) = (embeddings.rows.rows(), vae.host.size().latent);
        let to = self.reconstructed(rows, latent, standardizer)?;
        self.each_chunk(embeddings, &mut |first, chunk| {
            let key = key.map(|key| NoiseKey { first_row: key.first_row + first as u64, ..key });
            self.launch_reconstruct((vae, block), &chunk, key, (&to, first))
        })?;
        let mut sums = vec![[0f32; 2]; rows];
        to.sums.download_into(sums.as_flattened_mut())?;
        let sums = sums
            .into_iter()
            .map(|[error, total]| Reconstruction { error: f64::from(error), total: f64::from(total) });
        let posteriors = Posteriors { mu: Arc::new(to.mu), logvar: Arc::new(to.logvar), rows, latent };
        Ok(Some((posteriors, sums.collect())))
    }
}

/// A VAE over rows, as kernels take both.
fn autoencoder(vae: &DeviceVae, rows: &RowsAt, noise: Noise, mean: bool) -> params::Autoencoder {
    let size = vae.host.size();
    let ([w1, b1, w2, b2], [w3, b3, w4, b4]) = (layers(&vae.encoder), layers(&vae.decoder));
    params::Autoencoder {
        embeddings: rows.address,
        rows: rows.rows as u64,
        w1,
        b1,
        w2,
        b2,
        w3,
        b3,
        w4,
        b4,
        noise,
        dim: u32_of(size.dim),
        hidden: u32_of(size.hidden),
        latent: u32_of(size.latent),
        dtype: rows.dtype as u32,
        mean: u32::from(mean),
        ..Default::default()
    }
}
