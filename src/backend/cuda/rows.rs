//! Rows that pairs are made of, put in order on the device: originals and decoded samples lie behind each
//! other in device memory, a kernel gathers the rows that are picked, and they are copied to their place on
//! the host.

use super::context::Cuda;
use super::data::{DeviceVae, Embeddings, RowsAt};
use super::driver::{DriverError, DriverResult};
use super::launch::u32_of;
use super::layout::Block;
use super::memory::Buffer;
use super::params;
use super::synthesize::HowToSample;
use crate::backend::{DeviceArray, HostRows, NoiseKey, PairRowStore, Selection, Synthetic, checked};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::matrix::RowsBuf;

/// Threads of a block of the kernels of `kernels/rows.cu`, and what it takes at a time.
const THREADS: u32 = 256;
const PICKED_ROWS: usize = 8;
const SCANNED_BYTES: usize = 16 * THREADS as usize;

/// Rows of pairs on the device, or on the host where the device has no memory for them.
#[derive(Debug)]
pub struct Rows {
    dtype: Dtype,
    dim: usize,
    /// The rows and their number.
    device: Option<(Buffer<u8>, usize)>,
    host: HostRows,
    /// Whether the log already says that there is no memory.
    warned: bool,
}

impl PairRowStore<Cuda> for Rows {
    fn new(dtype: Dtype, dim: usize) -> Rows {
        Rows { dtype, dim, device: None, host: HostRows::empty(dtype, dim), warned: false }
    }

    fn store(
        &mut self,
        cuda: &Cuda,
        originals: &Embeddings<'_>,
        samples: &Synthetic<'_, '_, Cuda>,
    ) -> Result<()> {
        checked::store_rows::<Cuda>(originals, samples, self.dim)?;
        self.device = None;
        match self.on_device(cuda, originals, samples) {
            Ok(made) => {
                self.device = Some(made);
                Ok(())
            }
            Err(error @ DriverError::OutOfMemory { .. }) => {
                if !std::mem::replace(&mut self.warned, true) {
                    let name = cuda.driver.name();
                    tracing::warn!("{name}: short of memory: rows are put in order on the host: {error}");
                }
                self.host.store(cuda, originals, samples)
            }
            Err(error) => Err(cuda.error(error)),
        }
    }

    fn first_non_finite(&self, cuda: &Cuda) -> Result<Option<(usize, usize)>> {
        let Some((buffer, rows)) = &self.device else { return Ok(self.host.find_non_finite()) };
        let kernel = match self.dtype {
            Dtype::F32 => "find_non_finite_f32",
            Dtype::F16 => "find_non_finite_f16",
            Dtype::Bf16 => "find_non_finite_bf16",
        };
        let values = rows * self.dim;
        let at = cuda.run(|| {
            let first = Buffer::upload(&cuda.driver, &[u64::MAX], "the first value that is not finite")?;
            let (at, count) = (buffer.address(), values as u64);
            let params = params::FindNonFinite { values: at, first: first.address(), count };
            let block = Block { threads: THREADS, tile: SCANNED_BYTES, shared: 0, cluster: 1 };
            cuda.driver.launch(&cuda.tiled(kernel, values * self.dtype.size(), block, 1, params)?)?;
            Ok(first.download()?[0] as usize)
        })?;
        Ok((at < values).then_some((at / self.dim, at % self.dim)))
    }

    fn pick(&self, cuda: &Cuda, index: &[u32], out: &mut RowsBuf) -> Result<()> {
        cuda.driver.register(out);
        let Some((buffer, rows)) = &self.device else { return self.host.pick_rows(index, out) };
        checked::pick_rows(index, (self.dtype, *rows, self.dim), out)?;
        cuda.run(|| {
            let index_at = Buffer::upload(&cuda.driver, index, "index of rows")?;
            cuda.download_chunks(out.bytes_mut(), index.len(), &mut |first, count, to| {
                self.launch_pick(cuda, buffer, (index_at.at(first), count), to)
            })
        })
    }

    fn pick_on_device(&self, cuda: &Cuda, index: &[u32]) -> Result<DeviceArray> {
        let Some((buffer, rows)) = &self.device else {
            let mut out = RowsBuf::zeros(self.dtype, index.len(), self.dim);
            self.host.pick_rows(index, &mut out)?;
            return cuda.run(|| Cuda::upload_array(cuda, &out));
        };
        checked::picked(index, *rows)?;
        cuda.run(|| {
            let index_at = Buffer::upload(&cuda.driver, index, "index of rows")?;
            let out = cuda.new_array(index.len(), self.dim, self.dtype)?;
            if !index.is_empty() {
                self.launch_pick(cuda, buffer, (index_at.address(), index.len()), out.address())?;
            }
            cuda.driver.synchronize()?;
            Ok(out)
        })
    }
}

impl Rows {
    /// Launches what copies the picked rows to an address.
    fn launch_pick(
        &self,
        cuda: &Cuda,
        from: &Buffer<u8>,
        (index, count): (u64, usize),
        to: u64,
    ) -> DriverResult<()> {
        let params = params::PickRows {
            from: from.address(),
            index,
            out: to,
            count: count as u64,
            row_bytes: u32_of(self.row_bytes()),
            ..Default::default()
        };
        let block = Block { threads: THREADS, tile: PICKED_ROWS, shared: 0, cluster: 1 };
        cuda.driver.launch(&cuda.tiled("pick_rows", count, block, 1, params)?)
    }

    fn row_bytes(&self) -> usize {
        self.dim * self.dtype.size()
    }

    /// Originals, and samples behind them, in one buffer.
    fn on_device(
        &mut self,
        cuda: &Cuda,
        originals: &Embeddings<'_>,
        samples: &Synthetic<'_, '_, Cuda>,
    ) -> DriverResult<(Buffer<u8>, usize)> {
        let (row, n, count) = (self.row_bytes(), originals.rows.rows(), samples.latents.count());
        let rows = cuda.buffer::<u8>((n + count) * row, "rows of pairs")?;
        self.each_chunk(cuda, originals, &rows, &mut |_, _| Ok(()))?;
        if count > 0 {
            let base = samples.residual.map(|r| cuda.residual_base(r)).transpose()?;
            let to = (rows.at(n * row), self.dtype);
            cuda.launch_decode(samples.vae, (samples.latents, 0, count), base, to)?;
        }
        Ok((rows, n + count))
    }

    /// Hands chunks of originals to `each` that are in device memory, and puts them where rows of pairs start.
    fn each_chunk(
        &mut self,
        cuda: &Cuda,
        originals: &Embeddings<'_>,
        rows: &Buffer<u8>,
        each: &mut dyn FnMut(usize, RowsAt) -> DriverResult<()>,
    ) -> DriverResult<()> {
        let row = self.row_bytes();
        let same = originals.dtype == self.dtype;
        if !same {
            cuda.driver.upload(rows.address(), self.host.store_originals(&originals.rows).bytes())?;
        }
        cuda.each_chunk(originals, &mut |first, chunk| {
            if same {
                cuda.driver.copy(rows.at(first * row), chunk.address, chunk.rows * row)?;
            }
            each(first, chunk)
        })
    }

    /// Fills it as [`crate::backend::Backend::synthesize`] does, by one launch a chunk of originals; None, with nothing done, where there is
    /// no such launch or no memory.
    pub(super) fn store_in_one_pass(
        &mut self,
        cuda: &Cuda,
        vae: &DeviceVae,
        originals: &Embeddings<'_>,
        (key, options, mode): HowToSample<'_>,
    ) -> Result<Option<Selection>> {
        checked::synthesize::<Cuda>(vae, originals, options, self.dim)?;
        let Some(block) = cuda.synthesis_block(vae, options) else { return Ok(None) };
        cuda.interrupt.check()?;
        self.device = None;
        let (n, keep, row) = (originals.rows.rows(), options.top_k as usize, self.row_bytes());
        let (dtype, mut made) = (self.dtype, None);
        let mut run = || -> DriverResult<Vec<u32>> {
            let rows = cuda.buffer::<u8>((n + n * keep) * row, "rows of pairs")?;
            let candidates = cuda.buffer::<u32>(n * keep, "candidates")?;
            self.each_chunk(cuda, originals, &rows, &mut |first, chunk| {
                let key = NoiseKey { first_row: key.first_row + first as u64, ..key };
                let to = (rows.at((n + first * keep) * row), dtype, candidates.at(first * keep));
                cuda.launch_synthesize((vae, block), &chunk, (key, options, mode), to)
            })?;
            made = Some((rows, n + n * keep));
            candidates.download()
        };
        match run() {
            Ok(candidates) => {
                self.device = made;
                Ok(Some(Selection { top_k: keep, candidates }))
            }
            Err(DriverError::OutOfMemory { .. }) => Ok(None),
            Err(error) => Err(cuda.error(error)),
        }
    }
}
