//! Decoded embeddings that stay on the device: all of them from one launch, where [`Backend::decode`] goes through
//! pieces on their way to the host.

use super::Cuda;
use super::data::{DeviceVae, Latents};
use super::memory::Buffer;
use crate::backend::{Backend, check};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::matrix::ValuesMut;

/// Embeddings `[rows, dim]` on the device.
#[derive(Debug)]
pub struct Decoded {
    buffer: Buffer<u8>,
    rows: usize,
    dim: usize,
    dtype: Dtype,
}

impl Cuda {
    /// Decodes all latents by one launch, `[count, d]` of `dtype`.
    ///
    /// # Errors
    /// Latents of another dimension than the model's, and what the device fails with: above all, out of memory.
    pub fn decode_resident(&self, vae: &DeviceVae, latents: &Latents, dtype: Dtype) -> Result<Decoded> {
        let size = vae.host.size();
        check::latents::<Self>(size, latents, None)?;
        let rows = latents.count();
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
    /// [`Error::Device`] if `out` has another dtype, no whole rows, or more rows than there are from `first` on; and
    /// what the device fails with.
    pub fn copy_rows(&self, decoded: &Decoded, first: usize, out: ValuesMut<'_>) -> Result<()> {
        let (dtype, row) = (decoded.dtype, decoded.dim * decoded.dtype.size());
        let found = out.dtype();
        let bytes = out.into_bytes();
        let last = first + bytes.len() / row;
        if found != dtype || !bytes.len().is_multiple_of(row) || last > decoded.rows {
            let (device, rows) = (self.info().name, decoded.rows);
            let reason =
                format!("expected whole rows of {dtype} below {rows}, found {found} up to row {last}");
            return Err(Error::Device { device, reason });
        }
        self.run(|| {
            let mark = self.driver.mark()?;
            self.driver.download(&*mark, bytes, decoded.buffer.address() + (first * row) as u64)
        })
    }
}
