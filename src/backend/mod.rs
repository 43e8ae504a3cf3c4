//! What a device does for the engine: the [`Backend`] trait, the devices that implement it, and the choice of
//! one.
//!
//! Data flow of synthesis: host rows -> `embeddings` -> `encode` -> posteriors -> `select` -> candidates ->
//! `perturb` -> latents -> `decode` (or `score_latents`) -> host. A backend owns its buffers through
//! associated types and keeps what it made; values cross to the host only when asked for. In training an
//! epoch crosses the boundary, not a step. Every operation is defined per row, so that a result never depends
//! on how rows are cut into calls.

mod checked;
pub mod cpu;
pub mod cuda;
pub(crate) mod device;
mod options;
pub mod reference;
mod roofline;
mod rows;
mod steps;

pub use cuda::DeviceArray;
pub use device::{AnyBackend, DeviceChoice};
pub use options::*;
pub use roofline::{KERNELS, Limit, Resident, Resource, Roofline};
pub use rows::HostRows;

use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::matrix::{Matrix, RowSet, RowsBuf, ValuesMut};
use crate::model::{FoldedReward, RewardModel, Standardizer, Vae};

/// What a device does for the engine. Shapes are `[rows, columns]`, row-major; n is the number of rows of a
/// call. Each implementation of an operation with preconditions starts with its function in `checked`.
pub trait Backend: Send + Sync + Sized + 'static {
    /// Embeddings `[n, d]` where the device reads them; borrows the host rows where that is possible.
    type Embeddings<'a>: Send + Sync;
    /// A VAE ready for inference.
    type Vae: Send + Sync;
    /// A reward model ready for inference.
    type Reward: Send + Sync;
    /// A reward model on a VAE's latents.
    type Folded: Send + Sync;
    /// Posteriors of a block of rows.
    type Posteriors: Send + Sync;
    /// Latents `[m, latent]`, each with the row of the block it belongs to.
    type Latents: Send + Sync;
    /// Rows that pairs are made of.
    type Rows: PairRowStore<Self>;
    /// Parameters, moments and scratch of VAE training.
    type VaeTrainer: Send;
    /// Parameters, moments and scratch of reward training.
    type RewardTrainer: Send;

    /// What the device is.
    fn info(&self) -> DeviceInfo;
    /// The arithmetic of its products.
    fn precision(&self) -> Precision {
        Precision::F32
    }
    /// The name of the arithmetic that bits of results depend on: F32 has the same on every device, BF16 has
    /// those of tensor cores on a GPU and others on a CPU.
    fn arithmetic(&self) -> &'static str {
        match self.precision() {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
        }
    }

    /// Makes rows readable by the device.
    fn embeddings<'a>(&'a self, rows: RowSet<'a>) -> Result<Self::Embeddings<'a>>;
    /// Prepares a VAE for raw embeddings.
    fn load_vae(&self, vae: &Vae) -> Result<Self::Vae>;
    /// Prepares a reward model for raw embeddings.
    fn load_reward(&self, model: &RewardModel) -> Result<Self::Reward>;
    /// Prepares a reward model for scoring a VAE's latents without decoding them; both for raw embeddings.
    fn load_folded(&self, folded: &FoldedReward) -> Result<Self::Folded>;
    /// Latents from the host: `z` is `[m, latent]`, `rows[j]` the block row that latent j belongs to.
    fn load_latents(&self, z: &Matrix, rows: &[u32]) -> Result<Self::Latents>;

    /// Posteriors of embeddings.
    fn encode(&self, vae: &Self::Vae, embeddings: &Self::Embeddings<'_>) -> Result<Self::Posteriors>;
    /// One posterior sample of every row, z_i of [`LatentSource::Sample`]: encoding and reparameterisation in
    /// one pass.
    fn encode_sample(
        &self,
        vae: &Self::Vae,
        embeddings: &Self::Embeddings<'_>,
        key: NoiseKey,
    ) -> Result<Self::Latents>;
    /// Posteriors of embeddings, and how well each row is decoded from its posterior mean or, given a key, from the
    /// sample of [`Backend::encode_sample`]. For checks of a model: decoded rows of all embeddings may be in memory.
    fn reconstruct(
        &self,
        vae: &Self::Vae,
        embeddings: &Self::Embeddings<'_>,
        standardizer: &Standardizer,
        key: Option<NoiseKey>,
    ) -> Result<(Self::Posteriors, Vec<Reconstruction>)>;
    /// Copies posteriors to the host.
    fn posteriors(&self, posteriors: &Self::Posteriors) -> Result<PosteriorsHost>;
    /// The k candidates of every row with the highest likelihood.
    fn select(
        &self,
        posteriors: &Self::Posteriors,
        key: NoiseKey,
        options: &Perturbation,
    ) -> Result<Selection>;
    /// The latents z' = z + sigma eta of the samples.
    fn perturb(
        &self,
        posteriors: &Self::Posteriors,
        key: NoiseKey,
        options: &Perturbation,
        samples: &[Sample],
    ) -> Result<Self::Latents>;
    /// Copies latents to the host, `[m, latent]`.
    fn latents(&self, latents: &Self::Latents) -> Result<Matrix>;
    /// Decodes latents into `out`, `[m, d]` of any dtype; `residual` chooses [`DecodeMode::Residual`].
    fn decode(
        &self,
        vae: &Self::Vae,
        latents: &Self::Latents,
        residual: Option<Residual<'_, '_, Self>>,
        out: ValuesMut<'_>,
    ) -> Result<()>;
    /// Rewards of embeddings, one per row.
    fn score(&self, model: &Self::Reward, embeddings: &Self::Embeddings<'_>, out: &mut [f32]) -> Result<()>;
    /// Rewards of latents, as if decoded (`residual` chooses [`DecodeMode::Residual`]) and scored: one per
    /// latent.
    fn score_latents(
        &self,
        folded: &Self::Folded,
        latents: &Self::Latents,
        residual: Option<Residual<'_, '_, Self>>,
        out: &mut [f32],
    ) -> Result<()>;

    /// Room for rows of pairs, of `dtype` and width `dim`.
    fn rows(&self, dtype: Dtype, dim: usize) -> Self::Rows {
        Self::Rows::new(dtype, dim)
    }
    /// [`PairRowStore::store`].
    fn store_rows(
        &self,
        originals: &Self::Embeddings<'_>,
        samples: &Synthetic<'_, '_, Self>,
        to: &mut Self::Rows,
    ) -> Result<()> {
        to.store(self, originals, samples)
    }
    /// Fills rows with originals and, behind them, the k samples of each that `options` keeps, best first; gives their
    /// candidates. What [`Backend::encode`], `select`, `perturb` and `store_rows` do of all samples, bit for bit;
    /// a device may do it in one pass.
    fn synthesize(
        &self,
        vae: &Self::Vae,
        originals: &Self::Embeddings<'_>,
        (key, options, mode): (NoiseKey, &Perturbation, DecodeMode),
        to: &mut Self::Rows,
    ) -> Result<Selection> {
        steps::synthesize(self, vae, originals, (key, options, mode), to)
    }
    /// [`PairRowStore::first_non_finite`].
    fn first_non_finite(&self, rows: &Self::Rows) -> Result<Option<(usize, usize)>> {
        rows.first_non_finite(self)
    }
    /// [`PairRowStore::pick`].
    fn pick_rows(&self, rows: &Self::Rows, index: &[u32], out: &mut RowsBuf) -> Result<()> {
        rows.pick(self, index, out)
    }

    /// Registers host memory with the device, if that gains anything, for as long as it is kept.
    fn pin(&self, _rows: &mut RowsBuf) {}
    /// [`PairRowStore::pick_on_device`].
    fn pick_on_device(&self, rows: &Self::Rows, index: &[u32]) -> Result<DeviceArray> {
        rows.pick_on_device(self, index)
    }

    /// [`Backend::score`] of rows in the device's memory; the rewards `[n, 1]` stay there.
    fn score_array(&self, _model: &Self::Reward, _x: &DeviceArray) -> Result<DeviceArray> {
        Err(no_arrays(self))
    }
    /// [`Backend::encode`] of rows in the device's memory: mu and logvar `[n, latent]`, which stay there.
    fn encode_array(&self, _vae: &Self::Vae, _x: &DeviceArray) -> Result<[DeviceArray; 2]> {
        Err(no_arrays(self))
    }
    /// [`Backend::decode`] of latents `[n, latent]` in F32 in the device's memory; the embeddings stay there.
    fn decode_array(&self, _vae: &Self::Vae, _z: &DeviceArray, _dtype: Dtype) -> Result<DeviceArray> {
        Err(no_arrays(self))
    }
    /// Copies rows to the device's memory.
    fn upload_array(&self, _rows: &RowsBuf) -> Result<DeviceArray> {
        Err(no_arrays(self))
    }
    /// Copies rows in the device's memory to the host.
    fn download_array(&self, _array: &DeviceArray) -> Result<RowsBuf> {
        Err(no_arrays(self))
    }

    /// Starts VAE training from `initial`, a model for standardised embeddings.
    fn vae_trainer(
        &self,
        initial: &Vae,
        standardizer: &Standardizer,
        objective: &VaeObjective,
    ) -> Result<Self::VaeTrainer>;
    /// One pass over the pairs in `order`, in batches; gives the mean loss before each step, averaged over
    /// pairs.
    fn vae_epoch(
        &self,
        trainer: &mut Self::VaeTrainer,
        data: &PairData<'_, '_, Self>,
        order: &[u32],
        epoch: u32,
    ) -> Result<VaeLoss>;
    /// Loss and gradients of one batch, without a step; the gradients have the layout of the model.
    fn vae_gradients(
        &self,
        trainer: &mut Self::VaeTrainer,
        data: &PairData<'_, '_, Self>,
        batch: &[u32],
        epoch: u32,
    ) -> Result<(VaeLoss, Vae)>;
    /// The trained parameters, for standardised embeddings.
    fn vae_parameters(&self, trainer: &Self::VaeTrainer) -> Result<Vae>;

    /// Starts reward training from `initial`, a model for standardised embeddings.
    fn reward_trainer(
        &self,
        initial: &RewardModel,
        standardizer: &Standardizer,
        objective: &RewardObjective,
    ) -> Result<Self::RewardTrainer>;
    /// One pass over `pairs` in their order, in batches; gives the mean loss before each step, averaged over
    /// pairs.
    fn reward_epoch(
        &self,
        trainer: &mut Self::RewardTrainer,
        data: &RewardData<'_, '_, Self>,
        pairs: &[PairRows],
    ) -> Result<f64>;
    /// Loss and gradients of one batch, without a step.
    fn reward_gradients(
        &self,
        trainer: &mut Self::RewardTrainer,
        data: &RewardData<'_, '_, Self>,
        batch: &[PairRows],
    ) -> Result<(f64, RewardModel)>;
    /// The trained parameters, for standardised embeddings.
    fn reward_parameters(&self, trainer: &Self::RewardTrainer) -> Result<RewardModel>;
}

/// Rows that pairs are made of, where a device puts them in order: row r < n is original r, row n + j is
/// sample j decoded. Filled again and again.
pub trait PairRowStore<B: Backend>: Send {
    /// No rows yet, of width `dim`.
    fn new(dtype: Dtype, dim: usize) -> Self;
    /// Fills it with originals and, as [`Backend::decode`] does it, samples.
    fn store(&mut self, b: &B, originals: &B::Embeddings<'_>, samples: &Synthetic<'_, '_, B>) -> Result<()>;
    /// Row and column of the first value that is NaN or infinite, in the order of the rows.
    fn first_non_finite(&self, b: &B) -> Result<Option<(usize, usize)>>;
    /// Copies the rows that `index` names, in its order, into `out`, whose rows are as many and of the same
    /// kind. A device may keep the memory of `out` registered for further copies.
    fn pick(&self, b: &B, index: &[u32], out: &mut RowsBuf) -> Result<()>;
    /// The same into the device's memory, where they stay.
    fn pick_on_device(&self, b: &B, _index: &[u32]) -> Result<DeviceArray> {
        Err(no_arrays(b))
    }
}

/// The error of a device whose memory is the host's.
fn no_arrays<B: Backend>(b: &B) -> Error {
    Error::argument("device", "a GPU, in whose memory arrays can lie", b.info().name)
}

/// What residual decoding adds to: the seeds' embeddings and posteriors. Each latent knows its row in them.
pub struct Residual<'r, 'e, B: Backend> {
    /// The block's embeddings.
    pub embeddings: &'r B::Embeddings<'e>,
    /// Their posteriors.
    pub posteriors: &'r B::Posteriors,
}

impl<B: Backend> Clone for Residual<'_, '_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Backend> Copy for Residual<'_, '_, B> {}

/// The seed pairs, resident on a device; both sides `[n, d]`.
pub struct PairData<'r, 'e, B: Backend> {
    /// Embeddings of preferred responses.
    pub chosen: &'r B::Embeddings<'e>,
    /// Embeddings of the others.
    pub rejected: &'r B::Embeddings<'e>,
}

/// One side of the rows that a reward model trains on: row r < n is original r, row n + j is latent j
/// decoded.
pub struct RewardSide<'r, 'e, B: Backend> {
    /// The originals, `[n, d]`.
    pub originals: &'r B::Embeddings<'e>,
    /// The synthetic samples, if any.
    pub synthetic: Option<Synthetic<'r, 'e, B>>,
}

/// Synthetic samples of one side, as latents.
pub struct Synthetic<'r, 'e, B: Backend> {
    /// The VAE that decodes them.
    pub vae: &'r B::Vae,
    /// The latents.
    pub latents: &'r B::Latents,
    /// The seeds, for [`DecodeMode::Residual`].
    pub residual: Option<Residual<'r, 'e, B>>,
}

/// Both sides of the rows that a reward model trains on.
pub struct RewardData<'r, 'e, B: Backend> {
    /// Preferred responses.
    pub chosen: RewardSide<'r, 'e, B>,
    /// The others.
    pub rejected: RewardSide<'r, 'e, B>,
}
