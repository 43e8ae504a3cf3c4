//! Matrices in device memory that callers hold: rows that are read where they lie, and results that stay there.

use std::sync::Arc;

use super::context::Cuda;
use super::data::{DeviceReward, DeviceVae, LatentValues, Latents, RowsAt};
use super::driver::{DriverError, DriverResult};
use super::infer::EncoderOutputs;
use super::memory::Buffer;
use crate::backend::DeviceArray;
use crate::dtype::Dtype;
use crate::matrix::RowsBuf;

/// Kernels read 16 bytes at a time from rows that lie on multiples of it.
const ALIGN: u64 = 16;

/// Rows where a caller has them, or a copy of those that lie where kernels do not read.
struct Lent {
    at: RowsAt,
    _copy: Option<Buffer<u8>>,
}

impl Cuda {
    /// Memory of this device for a matrix.
    pub(super) fn new_array(&self, rows: usize, cols: usize, dtype: Dtype) -> DriverResult<DeviceArray> {
        let buffer = self.buffer::<u8>(rows * cols * dtype.size(), "an array of the caller's")?;
        let address = buffer.address();
        // SAFETY: the buffer has these bytes, and whoever asked for it writes them before it is given out.
        #[allow(unsafe_code)]
        Ok(unsafe { DeviceArray::from_raw(self.index(), address, (rows, cols), dtype, Arc::new(buffer)) })
    }

    fn lend(&self, array: &DeviceArray) -> DriverResult<Lent> {
        if array.device() != self.index() {
            return Err(DriverError::Other(format!(
                "the rows lie in the memory of cuda:{}: open the engine there, or copy them",
                array.device()
            )));
        }
        // Whoever wrote them may have done so on another stream.
        self.driver.synchronize()?;
        let (rows, dtype, bytes) =
            (array.rows(), array.dtype(), array.rows() * array.cols() * array.dtype().size());
        let copy = match array.address() % ALIGN {
            0 => None,
            _ => {
                let copy = self.buffer::<u8>(bytes, "a copy of rows")?;
                self.driver.copy(copy.address(), array.address(), bytes)?;
                Some(copy)
            }
        };
        let address = copy.as_ref().map_or(array.address(), Buffer::address);
        Ok(Lent { at: RowsAt { address, rows, dtype }, _copy: copy })
    }

    pub(super) fn score_lent(&self, model: &DeviceReward, x: &DeviceArray) -> DriverResult<DeviceArray> {
        let (rows, out) = (self.lend(x)?, self.new_array(x.rows(), 1, Dtype::F32)?);
        if x.rows() > 0 {
            self.launch_score(model, rows.at, (out.address(), 0))?;
        }
        self.driver.synchronize()?;
        Ok(out)
    }

    pub(super) fn encode_lent(&self, vae: &DeviceVae, x: &DeviceArray) -> DriverResult<[DeviceArray; 2]> {
        let latent = vae.host.size().latent;
        let [mu, logvar] = [0, 1].map(|_| self.new_array(x.rows(), latent, Dtype::F32));
        let (mu, logvar, rows) = (mu?, logvar?, self.lend(x)?);
        if x.rows() > 0 {
            let to = EncoderOutputs { mu: mu.address(), logvar: logvar.address(), z: 0 };
            self.launch_encode(vae, rows.at, to, None)?;
        }
        self.driver.synchronize()?;
        Ok([mu, logvar])
    }

    pub(super) fn decode_lent(
        &self,
        vae: &DeviceVae,
        z: &DeviceArray,
        dtype: Dtype,
    ) -> DriverResult<DeviceArray> {
        let (size, count) = (vae.host.size(), z.rows());
        let (from, out) = (self.lend(z)?, self.new_array(count, size.dim, dtype)?);
        if count > 0 {
            // Some kilobytes beside the embeddings; of the latents' seeds none is asked for.
            let copy = self.buffer::<f32>(count * size.latent, "latents")?;
            self.driver.copy(copy.address(), from.at.address, count * size.latent * size_of::<f32>())?;
            let owners = Buffer::zeros(&self.driver, count, "rows of latents")?;
            let values = LatentValues::Stored { z: copy, owners };
            let latents = Latents { values, rows: vec![0; count], latent: size.latent };
            self.launch_decode(vae, (&latents, 0, count), None, (out.address(), dtype))?;
        }
        self.driver.synchronize()?;
        Ok(out)
    }

    pub(super) fn upload_array(&self, rows: &RowsBuf) -> DriverResult<DeviceArray> {
        let out = self.new_array(rows.rows(), rows.cols(), rows.dtype())?;
        self.driver.upload(out.address(), rows.bytes())?;
        self.driver.synchronize()?;
        Ok(out)
    }

    pub(super) fn download_array(&self, array: &DeviceArray) -> DriverResult<RowsBuf> {
        let rows = self.lend(array)?;
        let mut out = RowsBuf::zeros(array.dtype(), array.rows(), array.cols());
        let event = self.driver.event()?;
        self.driver.download(&*event, out.bytes_mut(), rows.at.address)?;
        Ok(out)
    }
}
