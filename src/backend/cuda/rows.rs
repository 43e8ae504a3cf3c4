//! Rows that pairs are made of, put in order on the device: they land in their places on the host without a copy there.

use super::data::Embeddings;
use super::driver::{DriverError, DriverResult};
use super::launch::{Args, Launch, u32_of};
use super::memory::Buffer;
use super::{Cuda, check};
use crate::backend::{HostRows, Synthetic};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::matrix::RowsBuf;

/// Threads of a block of the kernels of `rows.cu`, rows that it picks and bytes that it looks at in a turn.
const THREADS: u32 = 256;
const PICKED: usize = 8;
const SEEN: usize = 16 * THREADS as usize;
/// Blocks per multiprocessor, which take what there is in turns.
const WAVES: u32 = 8;

/// Rows of pairs on the device, or on the host where the device has no room.
#[derive(Debug)]
pub struct Rows {
    dtype: Dtype,
    dim: usize,
    /// The rows and their number.
    device: Option<(Buffer<u8>, usize)>,
    host: HostRows,
    /// Whether it was said that there is no room.
    said: bool,
}

impl Rows {
    /// No rows yet, of width `dim`.
    pub fn new(dtype: Dtype, dim: usize) -> Rows {
        Rows { dtype, dim, device: None, host: HostRows::new(dtype, dim), said: false }
    }

    /// Width of the rows.
    pub fn dim(&self) -> usize {
        self.dim
    }

    fn row_bytes(&self) -> usize {
        self.dim * self.dtype.size()
    }
}

impl Cuda {
    /// Originals, and samples behind them, in the type of `to`.
    pub(super) fn store_rows_in<'e>(
        &self,
        originals: &Embeddings<'e>,
        samples: &Synthetic<'_, 'e, Cuda>,
        to: &mut Rows,
    ) -> Result<()> {
        to.device = None;
        match self.rows_on_device(originals, samples, to) {
            Ok(made) => {
                to.device = Some(made);
                Ok(())
            }
            Err(fault @ DriverError::OutOfMemory { .. }) => {
                if !std::mem::replace(&mut to.said, true) {
                    let name = self.driver.name();
                    tracing::warn!("{name}: short of memory: rows are put in order on the host: {fault}");
                }
                to.host.store(self, &originals.rows, samples)
            }
            Err(fault) => Err(self.error(fault)),
        }
    }

    fn rows_on_device<'e>(
        &self,
        originals: &Embeddings<'e>,
        samples: &Synthetic<'_, 'e, Cuda>,
        to: &mut Rows,
    ) -> DriverResult<(Buffer<u8>, usize)> {
        let (row, n, count) = (to.row_bytes(), originals.rows.rows(), samples.latents.count());
        let rows = Buffer::<u8>::empty(&self.driver, (n + count) * row, "rows of pairs")?;
        if originals.dtype == to.dtype {
            self.each_stretch(originals, &mut |first, stretch| {
                self.driver.copy(rows.at(first * row), stretch.address, stretch.rows * row)
            })?;
        } else {
            self.driver.upload(rows.address(), to.host.store_originals(&originals.rows).bytes())?;
        }
        if count > 0 {
            let base = samples.residual.map(|r| self.base(r)).transpose()?;
            self.launch_decode(samples.vae, (samples.latents, 0, count), base, (rows.at(n * row), to.dtype))?;
        }
        Ok((rows, n + count))
    }

    /// Row and column of the first value that is NaN or infinite.
    pub(super) fn first_non_finite_in(&self, rows: &Rows) -> DriverResult<Option<(usize, usize)>> {
        let Some((buffer, count)) = &rows.device else { return Ok(rows.host.first_non_finite()) };
        let kernel = match rows.dtype {
            Dtype::F32 => "find_non_finite_f32",
            Dtype::F16 => "find_non_finite_f16",
            Dtype::Bf16 => "find_non_finite_bf16",
        };
        let first = Buffer::upload(&self.driver, &[u64::MAX], "the first value that is not finite")?;
        let values = count * rows.dim;
        let args = Args::new().buffer(buffer).value(values as u64).buffer(&first);
        self.driver.launch(&self.in_turns(kernel, (values * rows.dtype.size()).div_ceil(SEEN), args))?;
        let at = first.download()?[0] as usize;
        Ok((at < values).then_some((at / rows.dim, at % rows.dim)))
    }

    /// Copies the rows that `index` names, in its order, into `out`, which the device then knows.
    pub(super) fn pick_rows_into(&self, rows: &Rows, index: &[u32], out: &mut RowsBuf) -> Result<()> {
        self.driver.register(out);
        let Some((buffer, count)) = &rows.device else { return rows.host.pick(index, out) };
        check::picked(index, (rows.dtype, *count, rows.dim), out)?;
        self.run(|| {
            let places = Buffer::upload(&self.driver, index, "places of rows")?;
            self.each_download(out.bytes_mut(), index.len(), &mut |first, count, to| {
                let args = Args::new()
                    .buffer(buffer)
                    .address(places.at(first))
                    .value(count as u64)
                    .value(u32_of(rows.row_bytes()))
                    .address(to);
                self.driver.launch(&self.in_turns("pick_rows", count.div_ceil(PICKED), args))
            })
        })
    }

    /// A launch of as many blocks as are needed or run side by side.
    fn in_turns(&self, kernel: &'static str, blocks: usize, args: Args) -> Launch {
        let most = self.driver.limits().processors * WAVES;
        let blocks = u32::try_from(blocks).unwrap_or(u32::MAX).clamp(1, most);
        Launch { kernel, grid: [blocks, 1, 1], threads: THREADS, shared: 0, args }
    }
}
