//! Inputs and outputs that need not fit on the device: piece by piece, each as large as memory allows.

use super::Cuda;
use super::data::{Embeddings, write_rows};
use super::driver::{DriverError, DriverResult};
use super::memory::Buffer;
use super::ops::{Base, RowsAt};
use crate::backend::Residual;

/// Bytes of a piece, if there is room: enough to fill a GPU and to hide the start of a copy.
const PIECE: usize = 64 << 20;
/// Rows below which a piece is not cut.
const FEWEST: usize = 128;

impl Cuda {
    /// Runs `make` for as many rows as there is memory for, from `rows` downwards, and says so when there is not enough.
    /// Gives what it made and the rows it is for.
    fn shrinking<T>(
        &self,
        what: &str,
        mut rows: usize,
        make: impl Fn(usize) -> DriverResult<T>,
    ) -> DriverResult<(T, usize)> {
        let wanted = rows;
        loop {
            match make(rows) {
                Err(DriverError::OutOfMemory { .. }) if rows > FEWEST => rows = (rows / 2).max(FEWEST),
                Err(fault) => return Err(fault),
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

    /// Hands stretches of embeddings on the device to `each`, with the number of their first row: all at once where they
    /// are resident.
    pub(super) fn each_stretch(
        &self,
        embeddings: &Embeddings<'_>,
        each: &mut dyn FnMut(usize, RowsAt) -> DriverResult<()>,
    ) -> DriverResult<()> {
        let n = embeddings.rows.rows();
        if n == 0 {
            return Ok(());
        }
        if let Some(buffer) = &embeddings.resident {
            return each(0, RowsAt::all(embeddings, buffer));
        }
        let row = embeddings.row_bytes();
        let most = (PIECE / row).clamp(1, n);
        let (buffer, rows) = self.shrinking("reading", most, |rows| {
            Buffer::<u8>::empty(&self.driver, rows * row, "a stretch of embeddings")
        })?;
        for first in (0..n).step_by(rows) {
            let range = first..(first + rows).min(n);
            let count = range.len();
            write_rows(&self.driver, buffer.address(), &embeddings.rows.slice(range), embeddings.dtype)?;
            each(first, RowsAt { address: buffer.address(), rows: count, dtype: embeddings.dtype })?;
        }
        Ok(())
    }

    /// Fills `out`, `rows` rows of equal size, from the device: `make` launches what writes rows `first .. first + count`
    /// to an address, and the next piece is made while one is copied to the host.
    pub(super) fn each_download(
        &self,
        out: &mut [u8],
        rows: usize,
        make: &mut dyn FnMut(usize, usize, u64) -> DriverResult<()>,
    ) -> DriverResult<()> {
        if rows == 0 {
            return Ok(());
        }
        let row = out.len() / rows;
        let most = (PIECE / row).clamp(1, rows);
        let (buffers, step) = self.shrinking("writing", most, |step| {
            let piece = || Buffer::<u8>::empty(&self.driver, step * row, "a piece of output");
            // One piece needs no second buffer.
            Ok(if step == rows { vec![piece()?] } else { vec![piece()?, piece()?] })
        })?;
        let mut pending = None;
        let pieces = (0..rows).step_by(step).zip(out.chunks_mut(step * row)).enumerate();
        for (piece, (first, to)) in pieces {
            let buffer = &buffers[piece % buffers.len()];
            make(first, to.len() / row, buffer.address())?;
            let mark = self.driver.mark()?;
            if let Some((mark, to, from)) = pending.replace((mark, to, buffer.address())) {
                self.driver.download(&*mark, to, from)?;
            }
        }
        match pending {
            Some((mark, to, from)) => self.driver.download(&*mark, to, from),
            None => Ok(()),
        }
    }

    /// What residual decoding adds to, which must be resident.
    pub(super) fn base(&self, residual: Residual<'_, '_, Cuda>) -> DriverResult<Base> {
        let embeddings = self.resident(residual.embeddings, "residual decoding")?;
        Ok(Base {
            embeddings: embeddings.address,
            dtype: embeddings.dtype,
            mu: residual.posteriors.mu.address(),
        })
    }

    /// Embeddings that an operation needs on the device as a whole.
    pub(super) fn resident(&self, embeddings: &Embeddings<'_>, what: &str) -> DriverResult<RowsAt> {
        match &embeddings.resident {
            Some(buffer) => Ok(RowsAt::all(embeddings, buffer)),
            None => {
                let gib = (embeddings.rows.rows() * embeddings.row_bytes()) as f64 / f64::from(1 << 30);
                Err(DriverError::Other(format!(
                    "{what} needs all embeddings on the GPU, and their {gib:.1} GiB do not fit: use fewer seed pairs, \
                     or --device cpu"
                )))
            }
        }
    }
}
