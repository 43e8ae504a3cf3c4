//! Inputs and outputs that need not fit into device memory. They go through it in chunks of 64 MiB, or of as
//! many rows as there is memory for, halved until an allocation succeeds.

use super::context::Cuda;
use super::data::{Embeddings, ResidualBase, RowsAt, write_rows};
use super::driver::{DriverError, DriverResult};
use super::memory::Buffer;
use crate::backend::Residual;

/// Bytes of a chunk, if there is memory: enough to fill a GPU and to hide the latency of starting a copy.
const CHUNK_BYTES: usize = 64 << 20;
/// Chunks are not halved below this many rows.
const MIN_ROWS: usize = 128;

impl Cuda {
    /// Allocates for `rows` rows by `allocate`, or for half as many, again and again, while memory is short.
    /// Gives what was allocated and the rows it is for.
    fn allocate_or_halve<T>(
        &self,
        what: &str,
        mut rows: usize,
        allocate: impl Fn(usize) -> DriverResult<T>,
    ) -> DriverResult<(T, usize)> {
        let wanted = rows;
        loop {
            match allocate(rows) {
                Err(DriverError::OutOfMemory { .. }) if rows > MIN_ROWS => rows = (rows / 2).max(MIN_ROWS),
                Err(error) => return Err(error),
                Ok(made) => {
                    if rows < wanted {
                        let name = self.driver.name();
                        tracing::warn!(
                            "{name}: short of memory: {what} {rows} rows at a time instead of {wanted}"
                        );
                    }
                    return Ok((made, rows));
                }
            }
        }
    }

    /// Hands embeddings to `each` as rows on the device, with the number of the first: all at once if they
    /// are resident, else chunk by chunk.
    pub(super) fn each_chunk(
        &self,
        embeddings: &Embeddings<'_>,
        each: &mut dyn FnMut(usize, RowsAt) -> DriverResult<()>,
    ) -> DriverResult<()> {
        let n = embeddings.rows.rows();
        if n == 0 {
            return Ok(());
        }
        if let Some(buffer) = &embeddings.resident {
            return each(0, RowsAt::all(embeddings, buffer.address()));
        }
        let row = embeddings.row_bytes();
        let most = (CHUNK_BYTES / row).clamp(1, n);
        let (buffer, rows) = self.allocate_or_halve("reading", most, |rows| {
            self.buffer::<u8>(rows * row, "a chunk of embeddings")
        })?;
        for first in (0..n).step_by(rows) {
            let range = first..(first + rows).min(n);
            let count = range.len();
            write_rows(&self.driver, buffer.address(), &embeddings.rows.slice(range), embeddings.dtype)?;
            each(first, RowsAt { address: buffer.address(), rows: count, dtype: embeddings.dtype })?;
        }
        Ok(())
    }

    /// Fills `out`, `rows` rows of equal size, from the device: `make(first, count, address)` launches what
    /// writes rows `first .. first + count` to an address. There are two buffers, so that a chunk is made
    /// while the one before it is copied to the host.
    pub(super) fn download_chunks(
        &self,
        out: &mut [u8],
        rows: usize,
        make: &mut dyn FnMut(usize, usize, u64) -> DriverResult<()>,
    ) -> DriverResult<()> {
        if rows == 0 {
            return Ok(());
        }
        let row = out.len() / rows;
        let most = (CHUNK_BYTES / row).clamp(1, rows);
        let (buffers, step) = self.allocate_or_halve("writing", most, |step| {
            let chunk = || self.buffer::<u8>(step * row, "a chunk of output");
            // A single chunk needs no second buffer.
            Ok(if step == rows { vec![chunk()?] } else { vec![chunk()?, chunk()?] })
        })?;
        let mut pending = None;
        let chunks = (0..rows).step_by(step).zip(out.chunks_mut(step * row)).enumerate();
        for (chunk, (first, to)) in chunks {
            let buffer: &Buffer<u8> = &buffers[chunk % buffers.len()];
            make(first, to.len() / row, buffer.address())?;
            let event = self.driver.event()?;
            if let Some((event, to, from)) = pending.replace((event, to, buffer.address())) {
                self.driver.download(&*event, to, from)?;
            }
        }
        match pending {
            Some((event, to, from)) => self.driver.download(&*event, to, from),
            None => Ok(()),
        }
    }

    /// What residual decoding adds to.
    pub(super) fn residual_base(&self, residual: Residual<'_, '_, Cuda>) -> DriverResult<ResidualBase> {
        let embeddings = self.reachable(residual.embeddings, "residual decoding")?;
        Ok(ResidualBase {
            embeddings: embeddings.address,
            dtype: embeddings.dtype,
            mu: residual.posteriors.mu.address(),
        })
    }

    /// All rows of embeddings that an operation, `what`, reads in any order: in device memory, or over the bus.
    pub(super) fn reachable(&self, embeddings: &Embeddings<'_>, what: &str) -> DriverResult<RowsAt> {
        Ok(RowsAt::all(embeddings, embeddings.reachable(&self.driver, what)?))
    }
}
