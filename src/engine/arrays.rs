//! What an engine does with matrices that lie in the memory of its GPU.

use super::Engine;
use crate::backend::device::dispatch;
use crate::backend::{Backend, DeviceArray};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::matrix::RowsBuf;
use crate::model::{RewardModel, Vae};

impl Engine {
    /// [`Engine::score`] of rows `[n, d]` in the memory of the engine's GPU; the rewards `[n, 1]`, F32, stay there. Values that
    /// are not finite pass.
    ///
    /// # Errors
    /// [`Shape`](crate::Error::Shape) where the model does not fit, [`InvalidArgument`](crate::Error::InvalidArgument) for
    /// an engine that is no GPU's, [`Device`](crate::Error::Device) for rows of another GPU.
    pub fn score_array(&self, model: &RewardModel, x: &DeviceArray) -> Result<DeviceArray> {
        dispatch!(&self.backend, b => b.score_array(&b.load_reward(model)?, x))
    }

    /// [`Engine::encode`] of rows in the memory of the engine's GPU: means and logarithms of variances `[n, latent]`, F32.
    ///
    /// # Errors
    /// As [`Engine::score_array`].
    pub fn encode_array(&self, vae: &Vae, x: &DeviceArray) -> Result<[DeviceArray; 2]> {
        dispatch!(&self.backend, b => b.encode_array(&b.load_vae(vae)?, x))
    }

    /// [`Engine::decode`] of latents `[n, latent]`, F32, in the memory of the engine's GPU to embeddings of `dtype` there.
    ///
    /// # Errors
    /// As [`Engine::score_array`].
    pub fn decode_array(&self, vae: &Vae, z: &DeviceArray, dtype: Dtype) -> Result<DeviceArray> {
        dispatch!(&self.backend, b => b.decode_array(&b.load_vae(vae)?, z, dtype))
    }

    /// Copies rows to the memory of the engine's GPU.
    ///
    /// # Errors
    /// An engine that is no GPU's, or a GPU without room.
    pub fn to_device(&self, rows: &RowsBuf) -> Result<DeviceArray> {
        dispatch!(&self.backend, b => b.upload_array(rows))
    }

    /// Copies rows in the memory of the engine's GPU to the host.
    ///
    /// # Errors
    /// An engine that is no GPU's, or rows of another GPU.
    pub fn to_host(&self, array: &DeviceArray) -> Result<RowsBuf> {
        dispatch!(&self.backend, b => b.download_array(array))
    }
}
