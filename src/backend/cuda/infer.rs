//! Inference: the grid, shared memory and parameters of every launch that encodes, ranks, draws, decodes or
//! scores.
//!
//! Kernels take tiles of rows (or latents) and, where a block's shared memory cannot hold a whole layer,
//! slices of output columns. A grid has as many blocks as the device runs at the same time; each takes tiles
//! in strides of the grid, so that no small last wave of blocks runs alone.

use bytemuck::Pod;

use super::context::Cuda;
use super::data::{
    DeviceFolded, DeviceReward, DeviceVae, DrawnLatents, Embeddings, LatentValues, Latents, Layer,
    Posteriors, ResidualBase, RowsAt,
};
use super::driver::{BoxedMatrix, DriverError, DriverResult};
use super::launch::{Launch, Params, Start, u32_of};
use super::layout::{self, Block};
use super::memory::Buffer;
use super::params::{self, Noise};
use crate::backend::{LatentSource, Likelihood, NoiseKey, Perturbation, Precision, Residual, checked};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::matrix::ValuesMut;

/// The kernel of an operation for a precision and a storage type.
macro_rules! kernel {
    ($operation:literal, $precision:expr, $dtype:expr) => {
        match ($precision, $dtype) {
            (Precision::F32, Dtype::F32) => concat!($operation, "_f32_f32"),
            (Precision::F32, Dtype::F16) => concat!($operation, "_f32_f16"),
            (Precision::F32, Dtype::Bf16) => concat!($operation, "_f32_bf16"),
            (Precision::Bf16, Dtype::F32) => concat!($operation, "_bf16_f32"),
            (Precision::Bf16, Dtype::F16) => concat!($operation, "_bf16_f16"),
            (Precision::Bf16, Dtype::Bf16) => concat!($operation, "_bf16_bf16"),
        }
    };
}
pub(super) use kernel;

/// Addresses that `encode` writes row 0 of its results to; 0 for what is not wanted.
#[derive(Clone, Copy, Debug)]
pub struct EncoderOutputs {
    pub mu: u64,
    pub logvar: u64,
    /// Posterior samples.
    pub z: u64,
}

/// What folded scoring adds to for residual decoding.
#[derive(Debug)]
pub struct FoldedBase {
    /// Pre-activations of the reward model's first layer for the seeds, `[seeds, width]`.
    pub(super) pre: Buffer<f32>,
    /// Address of the seeds' posterior means, `[seeds, latent]`.
    pub(super) mu: u64,
}

impl Cuda {
    /// A launch over `items` in tiles of `block.tile`, for each of `slices` slices of the results.
    pub(super) fn tiled(
        &self,
        kernel: &'static str,
        items: usize,
        block: Block,
        slices: u32,
        params: impl Pod,
    ) -> DriverResult<Launch> {
        let tiles = u32::try_from(items.div_ceil(block.tile)).unwrap_or(u32::MAX);
        let blocks = self.driver.occupancy(kernel, block.threads, block.shared)?;
        let most = self.driver.limits().processors * blocks / slices / block.cluster;
        let clusters = tiles.div_ceil(block.cluster).clamp(1, most.max(1));
        let grid = [clusters * block.cluster, slices, 1];
        let params = Params::of(params);
        Ok(Launch {
            kernel,
            grid,
            threads: block.threads,
            shared: block.shared,
            params,
            start: Start::Behind,
        })
    }

    /// The first of `blocks` whose shared memory the device has.
    fn fitting(&self, blocks: impl IntoIterator<Item = Block>) -> Option<Block> {
        blocks.into_iter().find(|block| block.shared <= self.driver.limits().shared)
    }

    /// mu, logvar and, where wanted, posterior samples of embeddings.
    pub(super) fn encode_chunks(
        &self,
        vae: &DeviceVae,
        embeddings: &Embeddings<'_>,
        to: EncoderOutputs,
        key: Option<NoiseKey>,
    ) -> DriverResult<()> {
        let latent = vae.host.size().latent;
        self.each_chunk(embeddings, &mut |first, rows: RowsAt| {
            let at = |address: u64| match address {
                0 => 0,
                _ => address + (size_of::<f32>() * first * latent) as u64,
            };
            let to = EncoderOutputs { mu: at(to.mu), logvar: at(to.logvar), z: at(to.z) };
            let key = key.map(|key| NoiseKey { first_row: key.first_row + first as u64, ..key });
            self.launch_encode(vae, rows, to, key)
        })
    }

    /// The same for rows on the device. Without a key there must be no samples to write.
    pub(super) fn launch_encode(
        &self,
        vae: &DeviceVae,
        rows: RowsAt,
        to: EncoderOutputs,
        key: Option<NoiseKey>,
    ) -> DriverResult<()> {
        let size = vae.host.size();
        let [w1, b1, w2, b2] = layers(&vae.encoder);
        let params = params::Encode {
            embeddings: rows.address,
            rows: rows.rows as u64,
            w1,
            b1,
            w2,
            b2,
            mu: to.mu,
            logvar: to.logvar,
            z: to.z,
            noise: key.map_or(Noise::default(), |key| Noise::new(key, 0.0)),
            dim: u32_of(size.dim),
            hidden: u32_of(size.hidden),
            latent: u32_of(size.latent),
            ..Default::default()
        };
        let block = layout::encode_tma(rows.dtype, size.latent);
        if size.hidden <= layout::TMA_HIDDEN && self.takes_boxes(&rows, size.dim, block) {
            let params = params::EncodeTma {
                embeddings: self.boxes(&rows, size.dim, block.tile)?,
                w1: self.boxes(&RowsAt::weights(w1, size.hidden), size.dim, layout::TMA_HIDDEN)?,
                of: params,
                ..Default::default()
            };
            let kernel = kernel!("encode_tma", self.precision, rows.dtype);
            return self.driver.launch(&self.tiled(kernel, rows.rows, block, 1, params)?);
        }
        let Some(block) = self.fitting([layout::encode(self.precision, size)]) else {
            return self.encode_by_layers(vae, rows, to, key);
        };
        let kernel = kernel!("encode", self.precision, rows.dtype);
        self.driver.launch(&self.tiled(kernel, rows.rows, block, 1, params)?)
    }

    /// The k candidates of every row with the highest likelihood, `[rows, k]`.
    pub(super) fn launch_select(
        &self,
        p: &Posteriors,
        key: NoiseKey,
        options: &Perturbation,
        out: &Buffer<u32>,
    ) -> DriverResult<()> {
        let (top_k, drawn) = (options.top_k as usize, options.drawn() as usize);
        let ranked = options.likelihood != Likelihood::None;
        if ranked && top_k > layout::MOST_KEPT {
            let most = layout::MOST_KEPT;
            return Err(DriverError::Other(format!(
                "ranking keeps at most {most} candidates a seed, not {top_k}"
            )));
        }
        let block = layout::select(p.latent, top_k, if ranked { drawn } else { 1 });
        let limit = self.driver.limits().shared;
        if block.shared > limit {
            let wanted = block.shared;
            return Err(DriverError::Other(format!(
                "ranking latents this wide takes {wanted} bytes of shared memory, and a block of this GPU has \
                 {limit}: use `device` cpu, or a smaller `vae.latent`"
            )));
        }
        let params = params::Select {
            mu: p.mu.address(),
            logvar: p.logvar.address(),
            out: out.address(),
            rows: p.rows as u64,
            noise: Noise::new(key, options.sigma()),
            latent: u32_of(p.latent),
            keep: options.top_k,
            drawn: options.drawn(),
            likelihood: likelihood(options.likelihood),
            mean: u32::from(options.source == LatentSource::Mean),
            ..Default::default()
        };
        self.driver.launch(&self.tiled("select_f32", p.rows, block, 1, params)?)
    }

    /// One posterior sample of each row, `[rows, latent]`: what its candidates start from.
    pub(super) fn starts(&self, p: &Posteriors, key: NoiseKey) -> DriverResult<Buffer<f32>> {
        let starts = self.buffer(p.rows * p.latent, "starts")?;
        if p.rows > 0 {
            let of = EncoderOutputs { mu: p.mu.address(), logvar: p.logvar.address(), z: starts.address() };
            self.launch_start(of, (p.rows, p.latent), key)?;
        }
        Ok(starts)
    }

    /// Posterior samples `of.z` of rows whose codes are there.
    pub(super) fn launch_start(
        &self,
        of: EncoderOutputs,
        (rows, latent): (usize, usize),
        key: NoiseKey,
    ) -> DriverResult<()> {
        let params = params::Start {
            mu: of.mu,
            logvar: of.logvar,
            out: of.z,
            rows: rows as u64,
            noise: Noise::new(key, 0.0),
            latent: u32_of(latent),
            ..Default::default()
        };
        self.driver.launch(&self.tiled("start_f32", rows, layout::perturb(latent), 1, params)?)
    }

    /// Latents `first .. first + count` as kernels take them, with values in memory: drawn once, not by every kernel or
    /// slice of columns that reads them. The buffer of those that were drawn may be freed when the launches are made, as
    /// the stream's order protects it.
    pub(super) fn in_memory(
        &self,
        latents: &Latents,
        first: usize,
        count: usize,
    ) -> DriverResult<(params::Latents, Option<Buffer<f32>>)> {
        let mut source = latents.params(first);
        let drawn = match &latents.values {
            LatentValues::Stored { .. } => None,
            LatentValues::Drawn(drawn) => Some(self.draw(drawn, first, count, latents.latent)?),
        };
        source.z = drawn.as_ref().map_or(source.z, Buffer::address);
        Ok((source, drawn))
    }

    /// Latents `first .. first + count` in memory, `[count, latent]`.
    pub(super) fn draw(
        &self,
        drawn: &DrawnLatents,
        first: usize,
        count: usize,
        latent: usize,
    ) -> DriverResult<Buffer<f32>> {
        let z = self.buffer(count * latent, "latents")?;
        self.launch_perturb(drawn, (first, count), latent, z.address())?;
        Ok(z)
    }

    /// The same at an address.
    pub(super) fn launch_perturb(
        &self,
        drawn: &DrawnLatents,
        (first, count): (usize, usize),
        latent: usize,
        out: u64,
    ) -> DriverResult<()> {
        if count == 0 {
            return Ok(());
        }
        let params = params::Perturb {
            starts: drawn.starts.address(),
            samples: drawn.samples.at(first),
            out,
            count: count as u64,
            noise: Noise::new(drawn.key, drawn.sigma),
            latent: u32_of(latent),
            ..Default::default()
        };
        self.driver.launch(&self.tiled("perturb_f32", count, layout::perturb(latent), 1, params)?)
    }

    /// Latents `first .. first + count` as embeddings of `dtype` at `out`.
    pub(super) fn launch_decode(
        &self,
        vae: &DeviceVae,
        (latents, first, count): (&Latents, usize, usize),
        base: Option<ResidualBase>,
        (out, dtype): (u64, Dtype),
    ) -> DriverResult<()> {
        let size = vae.host.size();
        let Some((columns, block)) =
            self.fitting_columns(size.dim, |columns| layout::decode(self.precision, size, columns))
        else {
            return self.decode_by_layers(vae, (latents, first, count), base, (out, dtype));
        };
        let (source, _drawn) = self.in_memory(latents, first, count)?;
        let seeds = base.map_or(params::Seeds::default(), |b| params::Seeds {
            embeddings: b.embeddings,
            mu: b.mu,
            dtype: b.dtype as u32,
            ..Default::default()
        });
        let [w1, b1, w2, b2] = layers(&vae.decoder);
        let params = params::Decode {
            source,
            count: count as u64,
            w1,
            b1,
            w2,
            b2,
            seeds,
            out,
            dim: u32_of(size.dim),
            hidden: u32_of(size.hidden),
            latent: u32_of(size.latent),
            columns,
        };
        let slices = u32_of(size.dim).div_ceil(columns);
        let kernel = kernel!("decode", self.precision, dtype);
        self.driver.launch(&self.tiled(kernel, count, block, slices, params)?)
    }

    /// The widest slice of output columns whose block fits.
    fn fitting_columns(&self, dim: usize, block: impl Fn(usize) -> Block) -> Option<(u32, Block)> {
        let needed = dim.next_multiple_of(layout::COLUMNS);
        let widths = layout::SLICES.into_iter().filter(|&w| w == layout::COLUMNS || w <= needed);
        widths
            .map(|width| (u32_of(width), block(width)))
            .find(|(_, b)| b.shared <= self.driver.limits().shared)
    }

    /// Rewards of rows to `out`, or pre-activations of the first layer to `pre`; 0 for what is not wanted.
    pub(super) fn launch_score(
        &self,
        model: &DeviceReward,
        rows: RowsAt,
        (out, pre): (u64, u64),
    ) -> DriverResult<()> {
        let size = model.host.size();
        let params = params::Score {
            w1: model.first.weight(),
            b1: model.first.bias.address(),
            w2: model.second.address(),
            out,
            pre,
            dim: u32_of(size.dim),
            width: u32_of(size.hidden),
            b2: model.host.layers[1].bias[0],
            ..Default::default()
        };
        self.launch_score_of(rows, params)
    }

    /// Runs `score` on rows with the weights that `params` names.
    pub(super) fn launch_score_of(&self, rows: RowsAt, params: params::Score) -> DriverResult<()> {
        let (dim, width) = (params.dim as usize, params.width as usize);
        let params = params::Score { embeddings: rows.address, rows: rows.rows as u64, ..params };
        let block = layout::score_wgmma(rows.dtype);
        if self.driver.limits().architecture.has_wgmma() && self.takes_boxes(&rows, dim, block) {
            let w1 = RowsAt::weights(params.w1, width);
            let params = params::ScoreWgmma {
                embeddings: self.boxes(&rows, dim, block.tile)?,
                w1: self.boxes(&w1, dim, layout::WGMMA_BOX)?,
                of: params,
                ..Default::default()
            };
            let kernel = kernel!("score_wgmma", self.precision, rows.dtype);
            return self.driver.launch(&self.tiled(kernel, rows.rows, block, 1, params)?);
        }
        let block = layout::score(self.precision);
        let kernel = kernel!("score", self.precision, rows.dtype);
        self.driver.launch(&self.tiled(kernel, rows.rows, block, 1, params)?)
    }

    /// Whether the copy engine can bring in rows and the weights that they meet, and a block with boxes of them fits.
    fn takes_boxes(&self, rows: &RowsAt, dim: usize, block: Block) -> bool {
        let limits = self.driver.limits();
        // Rows of both, BF16 ones too, start on multiples of 16 bytes.
        let aligned = dim.is_multiple_of(8) && rows.address.is_multiple_of(16);
        let bf16 = self.precision == Precision::Bf16 && limits.architecture.has_tensor_maps();
        // It counts rows and columns in signed 32 bits.
        bf16 && aligned && i32::try_from(rows.rows.max(dim)).is_ok() && block.shared <= limits.shared
    }

    /// What kernels hand to the copy engine for a matrix.
    fn boxes(&self, rows: &RowsAt, columns: usize, box_rows: usize) -> DriverResult<params::TensorMap> {
        let RowsAt { address, rows, dtype } = *rows;
        let matrix = BoxedMatrix { address, dtype, rows, columns, box_rows: u32_of(box_rows) };
        Ok(params::TensorMap { opaque: self.driver.tensor_map(matrix)? })
    }

    /// What residual scoring adds to.
    pub(super) fn folded_base(
        &self,
        folded: &DeviceFolded,
        residual: Residual<'_, '_, Cuda>,
    ) -> DriverResult<FoldedBase> {
        let width = folded.reward.host.size().hidden;
        let pre = self.buffer::<f32>(residual.embeddings.rows.rows() * width, "pre-activations")?;
        self.each_chunk(residual.embeddings, &mut |first, rows| {
            self.launch_score(&folded.reward, rows, (0, pre.at(first * width)))
        })?;
        Ok(FoldedBase { pre, mu: residual.posteriors.mu.address() })
    }

    /// Rewards of latents.
    pub(super) fn launch_score_latents(
        &self,
        folded: &DeviceFolded,
        latents: &Latents,
        base: Option<&FoldedBase>,
        out: &Buffer<f32>,
    ) -> DriverResult<()> {
        let (size, width) = (folded.size, folded.reward.host.size().hidden);
        let Some(block) = self.fitting([layout::score_latents(self.precision, size, width)]) else {
            return self.score_latents_by_layers(folded, latents, base, out);
        };
        let params = params::ScoreLatents {
            source: latents.params(0),
            count: latents.count() as u64,
            w1: folded.decoder.weight(),
            b1: folded.decoder.bias.address(),
            folded: folded.folded.weight(),
            folded_bias: folded.folded.bias.address(),
            w2: folded.reward.second.address(),
            base_pre: base.map_or(0, |b| b.pre.address()),
            base_mu: base.map_or(0, |b| b.mu),
            out: out.address(),
            latent: u32_of(size.latent),
            hidden: u32_of(size.hidden),
            width: u32_of(width),
            b2: folded.reward.host.layers[1].bias[0],
        };
        let kernel = match self.precision {
            Precision::F32 => "score_latents_f32",
            Precision::Bf16 => "score_latents_bf16",
        };
        self.driver.launch(&self.tiled(kernel, latents.count(), block, 1, params)?)
    }
}

/// The number of a likelihood in `kernels/include/ranking.cuh`.
pub(super) fn likelihood(of: Likelihood) -> u32 {
    match of {
        Likelihood::Posterior => 0,
        Likelihood::Prior => 1,
        Likelihood::None => 2,
    }
}

/// Addresses of weights and biases of two layers.
pub(super) fn layers([first, second]: &[Layer; 2]) -> [u64; 4] {
    [first.weight(), first.bias.address(), second.weight(), second.bias.address()]
}

/// Embeddings `[rows, dim]` that were decoded on the device and stay there.
#[derive(Debug)]
pub struct Decoded {
    buffer: Buffer<u8>,
    rows: usize,
    dim: usize,
    dtype: Dtype,
}

impl Cuda {
    /// Decodes all latents by one launch, where [`crate::backend::Backend::decode`] goes through chunks.
    ///
    /// # Errors
    /// Latents of another dimension than the model's, and what the device fails with: above all, out of
    /// memory.
    pub fn decode_resident(&self, vae: &DeviceVae, latents: &Latents, dtype: Dtype) -> Result<Decoded> {
        let (size, rows) = (vae.host.size(), latents.count());
        checked::decode::<Cuda>(vae, latents, None, rows * size.dim)?;
        self.run(|| {
            let buffer = self.buffer::<u8>(rows * size.dim * dtype.size(), "decoded embeddings")?;
            if rows > 0 {
                self.launch_decode(vae, (latents, 0, rows), None, (buffer.address(), dtype))?;
            }
            Ok(Decoded { buffer, rows, dim: size.dim, dtype })
        })
    }

    /// Copies rows from `first` on to the host, as many as `out` takes.
    ///
    /// # Errors
    /// [`Error::Device`] if `out` has another dtype, no whole rows, or more rows than there are from `first`
    /// on; and what the device fails with.
    pub fn copy_rows(&self, decoded: &Decoded, first: usize, out: ValuesMut<'_>) -> Result<()> {
        let (dtype, row) = (decoded.dtype, decoded.dim * decoded.dtype.size());
        let found = out.dtype();
        let bytes = out.into_bytes();
        let last = first + bytes.len() / row;
        if found != dtype || !bytes.len().is_multiple_of(row) || last > decoded.rows {
            let (device, rows) = (self.driver.name().into(), decoded.rows);
            let reason =
                format!("expected whole rows of {dtype} below {rows}, found {found} up to row {last}");
            return Err(Error::Device { device, reason });
        }
        self.run(|| {
            let event = self.driver.event()?;
            self.driver.download(&*event, bytes, decoded.buffer.at(first * row))
        })
    }
}
