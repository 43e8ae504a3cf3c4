//! Typed launches of the inference kernels: every grid, shared-memory size and argument list is made here.

use super::data::{DeviceFolded, DeviceReward, DeviceVae, Embeddings, Latents, Layer, Posteriors};
use super::driver::{DriverError, DriverResult};
use super::launch::{Args, Launch, u32_of};
use super::layout::{self, Block};
use super::memory::Buffer;
use super::{Cuda, params};
use crate::backend::{LatentSource, Likelihood, NoiseKey, Perturbation, Precision};
use crate::dtype::Dtype;

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

/// What residual decoding and scoring add to, on the device.
#[derive(Clone, Copy, Debug)]
pub struct Base {
    /// Embeddings of the seeds, `[seeds, d]`.
    pub embeddings: u64,
    /// Their storage type.
    pub dtype: Dtype,
    /// Their posterior means, `[seeds, latent]`.
    pub mu: u64,
}

/// A stretch of stored rows on the device.
#[derive(Clone, Copy, Debug)]
pub struct RowsAt {
    /// The first.
    pub address: u64,
    /// How many.
    pub rows: usize,
    /// Their storage type.
    pub dtype: Dtype,
}

impl RowsAt {
    /// All rows of resident embeddings.
    pub fn all(embeddings: &Embeddings<'_>, buffer: &Buffer<u8>) -> RowsAt {
        RowsAt { address: buffer.address(), rows: embeddings.rows.rows(), dtype: embeddings.dtype }
    }
}

/// Where `encode` writes: row 0 of the stretch at each address; 0 for what is not wanted.
#[derive(Clone, Copy, Debug)]
pub struct Codes {
    /// Means.
    pub mu: u64,
    /// Logarithms of the variances.
    pub logvar: u64,
    /// Posterior samples.
    pub z: u64,
}

impl Cuda {
    /// A launch over `items` in tiles of `block.tile`, for `slices` slices of the results: as many blocks as run side by
    /// side, each of which takes its share of the tiles, so that the last ones do not run alone.
    fn tiled(
        &self,
        kernel: &'static str,
        items: usize,
        block: Block,
        slices: u32,
        args: Args,
    ) -> DriverResult<Launch> {
        let tiles = u32::try_from(items.div_ceil(block.tile)).unwrap_or(u32::MAX);
        let resident = self.driver.resident(kernel, block.threads, block.shared)?;
        let most = (self.driver.limits().processors * resident / slices).max(1);
        let grid = [tiles.clamp(1, most), slices, 1];
        Ok(Launch { kernel, grid, threads: block.threads, shared: block.shared, args })
    }

    /// The first of `blocks` whose shared memory the device has.
    fn fitting(&self, what: &str, blocks: impl IntoIterator<Item = Block>) -> DriverResult<Block> {
        let limit = self.driver.limits().shared;
        let mut least = usize::MAX;
        for block in blocks {
            if block.shared <= limit {
                return Ok(block);
            }
            least = least.min(block.shared);
        }
        Err(DriverError::Other(format!(
            "{what} of a model this wide takes {least} bytes of shared memory, and a block of this GPU has {limit}: \
             use --device cpu, or smaller --hidden, --latent or --reward-hidden"
        )))
    }

    /// mu, logvar and, where wanted, posterior samples of rows.
    pub(super) fn launch_encode(
        &self,
        vae: &DeviceVae,
        rows: RowsAt,
        codes: Codes,
        origin: Option<NoiseKey>,
    ) -> DriverResult<()> {
        let size = vae.host.size();
        let block = self.fitting("encoding", [layout::encode(self.precision, size)])?;
        let (seed, side, first_row) = origin.map_or((0, 0, 0), |o| (o.seed, o.side as u32, o.first_row));
        let args = Args::new()
            .address(rows.address)
            .value(rows.rows as u64)
            .value(u32_of(size.dim))
            .value(u32_of(size.hidden))
            .value(u32_of(size.latent));
        let args = layers(args, &vae.encoder)
            .address(codes.mu)
            .address(codes.logvar)
            .address(codes.z)
            .value(seed)
            .value(side)
            .value(first_row);
        let kernel = kernel!("encode", self.precision, rows.dtype);
        self.driver.launch(&self.tiled(kernel, rows.rows, block, 1, args)?)
    }

    /// The candidates of every row that stay, `[rows, keep]`.
    pub(super) fn launch_select(
        &self,
        p: &Posteriors,
        origin: NoiseKey,
        how: &Perturbation,
        out: &Buffer<u32>,
    ) -> DriverResult<()> {
        let (keep, drawn) = (how.top_k as usize, how.drawn() as usize);
        let ranked = how.likelihood != Likelihood::None;
        if ranked && keep > layout::MOST_KEPT {
            let most = layout::MOST_KEPT;
            return Err(DriverError::Other(format!(
                "ranking keeps at most {most} candidates a seed, not {keep}"
            )));
        }
        let block =
            self.fitting("ranking", [layout::select(p.latent, keep, if ranked { drawn } else { 1 })])?;
        let likelihood = match how.likelihood {
            Likelihood::Posterior => 0u32,
            Likelihood::Prior => 1,
            Likelihood::None => 2,
        };
        let args = Args::new()
            .buffer(&*p.mu)
            .buffer(&*p.logvar)
            .buffer(out)
            .value(p.rows as u64)
            .value(u32_of(p.latent))
            .value(how.top_k)
            .value(how.drawn())
            .value(how.sigma())
            .value(likelihood)
            .value(u32::from(how.source == LatentSource::Mean))
            .value(origin.seed)
            .value(origin.side as u32)
            .value(origin.first_row);
        self.driver.launch(&self.tiled("select_f32", p.rows, block, 1, args)?)
    }

    /// What the candidates of each row start from, `[rows, latent]`.
    pub(super) fn launch_starts(
        &self,
        p: &Posteriors,
        origin: NoiseKey,
        out: &Buffer<f32>,
    ) -> DriverResult<()> {
        let args = Args::new()
            .buffer(&*p.mu)
            .buffer(&*p.logvar)
            .buffer(out)
            .value(p.rows as u64)
            .value(u32_of(p.latent))
            .value(origin.seed)
            .value(origin.side as u32)
            .value(origin.first_row);
        self.driver.launch(&self.tiled("start_f32", p.rows, layout::perturb(p.latent), 1, args)?)
    }

    /// Drawn latents written out, `[count, latent]`.
    pub(super) fn launch_perturb(
        &self,
        drawn: &params::Latents,
        count: usize,
        latent: usize,
        out: u64,
    ) -> DriverResult<()> {
        let block = layout::perturb(latent);
        let args = Args::new()
            .address(drawn.starts)
            .address(drawn.samples)
            .address(out)
            .value(count as u64)
            .value(u32_of(latent))
            .value(drawn.sigma)
            .value(drawn.seed)
            .value(drawn.side)
            .value(drawn.first_row);
        self.driver.launch(&self.tiled("perturb_f32", count, block, 1, args)?)
    }

    /// Latents `first` and on as embeddings of `dtype` at `out`. Latents that are drawn are drawn once before, not by
    /// every slice of columns: 4 bytes a value of a latent beside the `dim` values of a row.
    pub(super) fn launch_decode(
        &self,
        vae: &DeviceVae,
        (latents, first, count): (&Latents, usize, usize),
        base: Option<Base>,
        (out, dtype): (u64, Dtype),
    ) -> DriverResult<()> {
        let size = vae.host.size();
        let (columns, block) = self
            .fitting_columns("decoding", size.dim, |columns| layout::decode(self.precision, size, columns))?;
        let mut source = latents.params(first);
        // Lives until the launch is made: the stream's order keeps what comes next from using its memory earlier.
        let drawn = match source.z {
            0 => Some(self.drawn(&source, count, size.latent)?),
            _ => None,
        };
        source.z = drawn.as_ref().map_or(source.z, Buffer::address);
        let args = Args::new()
            .value(source)
            .value(count as u64)
            .value(u32_of(size.dim))
            .value(u32_of(size.hidden))
            .value(u32_of(size.latent))
            .value(columns);
        let args = layers(args, &vae.decoder)
            .address(base.map_or(0, |b| b.embeddings))
            .value(base.map_or(0u32, |b| b.dtype as u32))
            .address(base.map_or(0, |b| b.mu))
            .address(out);
        let slices = u32_of(size.dim).div_ceil(columns);
        let kernel = kernel!("decode", self.precision, dtype);
        self.driver.launch(&self.tiled(kernel, count, block, slices, args)?)
    }

    /// The widest slice of output columns whose block fits.
    fn fitting_columns(
        &self,
        what: &str,
        dim: usize,
        block: impl Fn(usize) -> Block,
    ) -> DriverResult<(u32, Block)> {
        let needed = dim.next_multiple_of(layout::COLUMNS);
        let widths = layout::SLICES.into_iter().filter(|&w| w == layout::COLUMNS || w <= needed);
        let mut chosen = 0;
        let block = self.fitting(
            what,
            widths.map(|width| {
                chosen = width;
                block(width)
            }),
        )?;
        Ok((u32_of(chosen), block))
    }

    /// Rewards, or pre-activations of the first layer, of rows; 0 for what is not wanted.
    pub(super) fn launch_score(
        &self,
        model: &DeviceReward,
        rows: RowsAt,
        (out, pre): (u64, u64),
    ) -> DriverResult<()> {
        let size = model.host.size();
        let block = self.fitting("scoring", [layout::score(self.precision)])?;
        let args = Args::new()
            .address(rows.address)
            .value(rows.rows as u64)
            .value(u32_of(size.dim))
            .value(u32_of(size.hidden))
            .address(model.first.weight())
            .buffer(&model.first.bias)
            .buffer(&model.second)
            .value(model.host.layers[1].bias[0])
            .address(out)
            .address(pre);
        let kernel = kernel!("score", self.precision, rows.dtype);
        self.driver.launch(&self.tiled(kernel, rows.rows, block, 1, args)?)
    }
}

/// Pre-activations `[seeds, width]` and means `[seeds, latent]` of what residual scoring adds to.
pub type FoldedBase = (u64, u64);

impl Cuda {
    /// Rewards of latents.
    pub(super) fn launch_score_latents(
        &self,
        folded: &DeviceFolded,
        latents: &Latents,
        base: Option<FoldedBase>,
        out: &Buffer<f32>,
    ) -> DriverResult<()> {
        let (size, width) = (folded.size, folded.reward.host.size().hidden);
        let block = self.fitting("scoring latents", [layout::score_latents(self.precision, size, width)])?;
        let (pre, mu) = base.unwrap_or((0, 0));
        let args = Args::new()
            .value(latents.params(0))
            .value(latents.count() as u64)
            .value(u32_of(size.latent))
            .value(u32_of(size.hidden))
            .value(u32_of(width))
            .address(folded.decoder.weight())
            .buffer(&folded.decoder.bias)
            .address(folded.folded.weight())
            .buffer(&folded.folded.bias)
            .buffer(&folded.reward.second)
            .value(folded.reward.host.layers[1].bias[0])
            .address(pre)
            .address(mu)
            .buffer(out);
        let kernel = match self.precision {
            Precision::F32 => "score_latents_f32",
            Precision::Bf16 => "score_latents_bf16",
        };
        self.driver.launch(&self.tiled(kernel, latents.count(), block, 1, args)?)
    }
}

/// Weights and biases of two layers.
fn layers(args: Args, layers: &[Layer; 2]) -> Args {
    layers.iter().fold(args, |args, layer| args.address(layer.weight()).buffer(&layer.bias))
}
