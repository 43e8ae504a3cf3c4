//! What a device owes the engine: the [`Backend`] trait, its vocabulary, and the choice of a device.
//!
//! A backend owns its buffers through associated types and keeps what it made: data crosses to the host only when
//! asked for. In training an epoch, not a step, is what crosses the boundary. Every operation is defined per row, so
//! that a result never depends on how rows are cut into calls.

mod check;
pub mod cpu;
pub mod cuda;
pub(crate) mod device;
mod limits;
pub mod reference;
mod rows;

pub use device::{AnyBackend, DeviceChoice};
pub use limits::{KERNELS, Limit, Measurable, Resident, Resource};
pub use rows::HostRows;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::matrix::{Matrix, RowSet, RowsBuf, ValuesMut};
use crate::model::{FoldedReward, RewardModel, Standardizer, Vae};
use crate::noise::Side;

/// What a device is, for reports.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeviceInfo {
    /// Short name, as given to `--device`.
    pub name: String,
    /// Hardware and instruction set in words.
    pub detail: String,
    /// Host threads at work.
    pub threads: usize,
}

/// Arithmetic of a device's products. What is stored has a type of its own, [`crate::dtype::Dtype`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// F32 throughout: the same bits of latents, candidates, embeddings and rewards on every device.
    #[default]
    F32,
    /// BF16 operands with F32 sums, on tensor cores or by a CPU's dot products. Normals, candidates' noise, losses and
    /// optimiser stay F32, and on a CPU all layers but those of d inputs or outputs and the folded one.
    Bf16,
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
        })
    }
}

impl FromStr for Precision {
    type Err = Error;

    fn from_str(text: &str) -> Result<Precision> {
        [Precision::F32, Precision::Bf16]
            .into_iter()
            .find(|p| p.to_string().eq_ignore_ascii_case(text))
            .ok_or_else(|| Error::argument("precision", "f32 or bf16", text))
    }
}

/// Where a perturbation starts from (ALGORITHM: z_i).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LatentSource {
    /// One posterior sample per seed and side.
    Sample,
    /// The posterior mean.
    Mean,
}

/// Which likelihood ranks the candidates of one seed and side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Likelihood {
    /// log q(z' | e): the posterior of the seed.
    Posterior,
    /// log p(z'): the standard normal prior.
    Prior,
    /// No filter: the first k candidates stay.
    None,
}

/// How a latent becomes an embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DecodeMode {
    /// e' = decoder(z'), as in the paper.
    Plain,
    /// e' = e + decoder(z') - decoder(mu(e)): keeps what the bottleneck loses.
    Residual,
}

/// How candidates are drawn and filtered.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Perturbation {
    /// Variance sigma^2 of the noise eta; the paper's is 0.01.
    pub sigma2: f64,
    /// Candidates kept per seed and side, k.
    #[serde(rename = "keep")]
    pub top_k: u32,
    /// Candidates drawn per candidate kept.
    pub oversample: u32,
    /// What ranks the candidates.
    pub likelihood: Likelihood,
    /// What they start from.
    pub source: LatentSource,
}

impl Perturbation {
    /// Standard deviation sigma of the noise, as every device multiplies with it: the root in F64, rounded once.
    pub fn sigma(&self) -> f32 {
        self.sigma2.sqrt() as f32
    }

    /// Candidates drawn per seed and side.
    pub fn drawn(&self) -> u32 {
        match self.likelihood {
            Likelihood::None => self.top_k,
            _ => self.top_k * self.oversample,
        }
    }
}

/// The logical place of a block of seeds, for noise: row r of the block is row `first_row + r` of the data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoiseKey {
    /// The run's 64-bit seed.
    pub seed: u64,
    /// The side that the block holds.
    pub side: Side,
    /// The data-set row of the block's first row.
    pub first_row: u64,
}

/// One synthetic sample: a candidate of a row of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Row within the block.
    pub row: u32,
    /// Candidate number.
    pub candidate: u32,
}

/// Candidates that stayed, best first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// Candidates per row, k.
    pub top_k: usize,
    /// Candidate numbers, `[rows, k]`, in order of falling likelihood; ties by the lower number.
    pub candidates: Vec<u32>,
}

/// Approximate posteriors q(z|e) = N(mu, diag(exp(logvar))), on the host.
#[derive(Clone, Debug, PartialEq)]
pub struct PosteriorsHost {
    /// Means, `[rows, latent]`.
    pub mu: Matrix,
    /// Logarithms of the variances, `[rows, latent]`.
    pub logvar: Matrix,
}

/// What residual decoding adds to: the seeds' embeddings and posteriors. Each latent knows its row in them.
pub struct Residual<'r, 'e, B: Backend + 'e> {
    /// The block's embeddings.
    pub embeddings: &'r B::Embeddings<'e>,
    /// Their posteriors.
    pub posteriors: &'r B::Posteriors,
}

impl<'e, B: Backend + 'e> Clone for Residual<'_, 'e, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<'e, B: Backend + 'e> Copy for Residual<'_, 'e, B> {}

/// Hyperparameters of Adam (Kingma and Ba, 2015), with PyTorch's defaults but for the rate.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Adam {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
}

impl Adam {
    /// PyTorch's defaults at learning rate `lr`.
    pub fn with_lr(lr: f64) -> Adam {
        Adam { lr, beta1: 0.9, beta2: 0.999, eps: 1e-8 }
    }
}

/// How the squared reconstruction error is reduced over the d dimensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reduction {
    /// Mean over dimensions (beta about 1e-3).
    Mean,
    /// Sum over dimensions (beta about 1).
    Sum,
}

/// The divergence between the posteriors of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Divergence {
    /// The 2-Wasserstein distance, stabilised: sqrt(W2^2 + 1e-8).
    W2,
    /// Its square.
    W2Squared,
}

/// Added under the root of the W2 distance, whose gradient is unbounded at 0.
pub const W2_EPS: f64 = 1e-8;

/// What VAE training minimises, per pair: reconstruction + beta KL over both sides, minus gamma W2.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct VaeObjective {
    /// Reduction of the reconstruction error.
    pub reconstruction: Reduction,
    /// Weight of the KL term.
    pub beta: f64,
    /// Weight of the divergence term.
    pub gamma: f64,
    /// Form of the divergence term.
    pub divergence: Divergence,
    /// Pairs per step.
    pub batch: usize,
    /// The optimiser.
    pub adam: Adam,
    /// Seed of the reparameterisation noise: element (row, side, candidate = epoch) of `Purpose::TrainVae`.
    pub seed: u64,
}

/// Mean loss per pair and its terms; `total = reconstruction + beta kl + gamma divergence`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct VaeLoss {
    /// The whole loss.
    pub total: f64,
    /// Reconstruction error, summed over the two sides.
    pub reconstruction: f64,
    /// KL divergence from the prior, summed over the two sides.
    pub kl: f64,
    /// L_div: minus the W2 distance (or its square).
    pub divergence: f64,
}

impl VaeLoss {
    /// Adds `weight` times `other`, term by term.
    pub fn add_scaled(&mut self, other: &VaeLoss, weight: f64) {
        self.total += weight * other.total;
        self.reconstruction += weight * other.reconstruction;
        self.kl += weight * other.kl;
        self.divergence += weight * other.divergence;
    }
}

/// How synthetic samples take part in reward training. Equal up to rounding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SyntheticPath {
    /// Through the decoder's last layer folded into the reward model's first: no sample passes through d dimensions.
    #[default]
    Folded,
    /// Decoded in every step: slow, to check the other. Not on GPUs; the reference knows nothing else.
    Decoded,
}

impl fmt::Display for SyntheticPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            SyntheticPath::Folded => "folded",
            SyntheticPath::Decoded => "decoded",
        })
    }
}

/// What reward training minimises: -log sigmoid(r(a) - r(b)), the Bradley-Terry model.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RewardObjective {
    /// Pairs per step.
    pub batch: usize,
    /// The optimiser.
    pub adam: Adam,
    /// How synthetic samples take part.
    #[serde(default)]
    pub synthetic: SyntheticPath,
}

/// The seed pairs, resident on a device; both sides `[n, d]`.
pub struct PairData<'r, 'e, B: Backend + 'e> {
    /// Embeddings of preferred responses.
    pub chosen: &'r B::Embeddings<'e>,
    /// Embeddings of the others.
    pub rejected: &'r B::Embeddings<'e>,
}

/// One side of the rows that a reward model trains on: row r < n is original r, row n + j is latent j decoded.
pub struct RewardSide<'r, 'e, B: Backend + 'e> {
    /// The originals, `[n, d]`.
    pub originals: &'r B::Embeddings<'e>,
    /// The synthetic samples, if any.
    pub synthetic: Option<Synthetic<'r, 'e, B>>,
}

/// Synthetic samples of one side, as latents.
pub struct Synthetic<'r, 'e, B: Backend + 'e> {
    /// The VAE that decodes them.
    pub vae: &'r B::Vae,
    /// The latents.
    pub latents: &'r B::Latents,
    /// The seeds, for [`DecodeMode::Residual`].
    pub residual: Option<Residual<'r, 'e, B>>,
}

/// Both sides of the rows that a reward model trains on.
pub struct RewardData<'r, 'e, B: Backend + 'e> {
    /// Preferred responses.
    pub chosen: RewardSide<'r, 'e, B>,
    /// The others.
    pub rejected: RewardSide<'r, 'e, B>,
}

/// A training pair: row of the chosen side, row of the rejected side (numbering of [`RewardSide`]).
pub type PairRows = [u32; 2];

/// What a device does for the engine. Shapes are `[rows, columns]`, row-major; n is the number of rows of a call.
pub trait Backend: Send + Sync {
    /// Embeddings `[n, d]` where the device reads them; borrows the host rows where that is possible.
    type Embeddings<'a>: Send + Sync
    where
        Self: 'a;
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
    /// Rows that pairs are made of, where they are put in order.
    type Rows: Send;
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
    /// The name of the arithmetic that bits of results depend on: F32 has the same on every device, BF16 has those of
    /// tensor cores on a GPU and others on a CPU.
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
    /// Latents from the host: `z` is `[m, latent]`, `rows[j]` the block row that latent j belongs to.
    fn load_latents(&self, z: &Matrix, rows: &[u32]) -> Result<Self::Latents>;

    /// Posteriors of embeddings. Fails if their width is not the model's.
    fn encode(&self, vae: &Self::Vae, embeddings: &Self::Embeddings<'_>) -> Result<Self::Posteriors>;
    /// One posterior sample of every row, z_i of [`LatentSource::Sample`]: encoding and reparameterisation in one pass.
    fn encode_sample(
        &self,
        vae: &Self::Vae,
        embeddings: &Self::Embeddings<'_>,
        origin: NoiseKey,
    ) -> Result<Self::Latents>;
    /// Copies posteriors to the host.
    fn posteriors(&self, posteriors: &Self::Posteriors) -> Result<PosteriorsHost>;
    /// The k candidates of every row with the highest likelihood.
    fn select(
        &self,
        posteriors: &Self::Posteriors,
        origin: NoiseKey,
        how: &Perturbation,
    ) -> Result<Selection>;
    /// The latents z' = z + sigma eta of the samples.
    fn perturb(
        &self,
        posteriors: &Self::Posteriors,
        origin: NoiseKey,
        how: &Perturbation,
        samples: &[Sample],
    ) -> Result<Self::Latents>;
    /// Copies latents to the host, `[m, latent]`.
    fn latents(&self, latents: &Self::Latents) -> Result<Matrix>;
    /// Decodes latents into `out`, `[m, d]` of any dtype; `residual` chooses [`DecodeMode::Residual`].
    fn decode<'e>(
        &self,
        vae: &Self::Vae,
        latents: &Self::Latents,
        residual: Option<Residual<'_, 'e, Self>>,
        out: ValuesMut<'_>,
    ) -> Result<()>
    where
        Self: Sized + 'e;
    /// Room for rows of `dtype` and width `dim`, to be filled again and again.
    fn rows(&self, dtype: Dtype, dim: usize) -> Self::Rows;
    /// Fills `to`: row r < n is original r, row n + j is latent j decoded, as [`Backend::decode`] does it.
    fn store_rows<'e>(
        &self,
        originals: &Self::Embeddings<'e>,
        samples: &Synthetic<'_, 'e, Self>,
        to: &mut Self::Rows,
    ) -> Result<()>
    where
        Self: Sized + 'e;
    /// Row and column of the first value that is NaN or infinite, in the order of the rows.
    fn first_non_finite(&self, rows: &Self::Rows) -> Result<Option<(usize, usize)>>;
    /// Copies the rows that `index` names, in its order, into `out`, whose rows are as many and of the same kind. A device
    /// may keep the memory of `out` registered for further copies.
    fn pick_rows(&self, rows: &Self::Rows, index: &[u32], out: &mut RowsBuf) -> Result<()>;
    /// Rewards of embeddings, one per row.
    fn score(&self, model: &Self::Reward, embeddings: &Self::Embeddings<'_>, out: &mut [f32]) -> Result<()>;

    /// Prepares a reward model for scoring a VAE's latents without decoding them (see [`FoldedReward`]). Both for raw
    /// embeddings.
    fn load_folded(&self, folded: &FoldedReward) -> Result<Self::Folded>;
    /// Rewards of latents, as if decoded (`residual` chooses [`DecodeMode::Residual`]) and scored: one per latent.
    fn score_latents<'e>(
        &self,
        folded: &Self::Folded,
        latents: &Self::Latents,
        residual: Option<Residual<'_, 'e, Self>>,
        out: &mut [f32],
    ) -> Result<()>
    where
        Self: Sized + 'e;

    /// Starts VAE training from `initial`, a model for standardised embeddings.
    fn vae_trainer(
        &self,
        initial: &Vae,
        standardizer: &Standardizer,
        objective: &VaeObjective,
    ) -> Result<Self::VaeTrainer>;
    /// One pass over the pairs in `order`, in batches; gives the mean loss before each step, averaged over pairs.
    fn vae_epoch<'e>(
        &self,
        trainer: &mut Self::VaeTrainer,
        data: &PairData<'_, 'e, Self>,
        order: &[u32],
        epoch: u32,
    ) -> Result<VaeLoss>
    where
        Self: Sized + 'e;
    /// Loss and gradients of one batch, without a step; the gradients have the layout of the model.
    fn vae_gradients<'e>(
        &self,
        trainer: &mut Self::VaeTrainer,
        data: &PairData<'_, 'e, Self>,
        batch: &[u32],
        epoch: u32,
    ) -> Result<(VaeLoss, Vae)>
    where
        Self: Sized + 'e;
    /// The trained parameters, for standardised embeddings.
    fn vae_parameters(&self, trainer: &Self::VaeTrainer) -> Result<Vae>;

    /// Starts reward training from `initial`, a model for standardised embeddings.
    fn reward_trainer(
        &self,
        initial: &RewardModel,
        standardizer: &Standardizer,
        objective: &RewardObjective,
    ) -> Result<Self::RewardTrainer>;
    /// One pass over `pairs` in their order, in batches; gives the mean loss before each step, averaged over pairs.
    fn reward_epoch<'e>(
        &self,
        trainer: &mut Self::RewardTrainer,
        data: &RewardData<'_, 'e, Self>,
        pairs: &[PairRows],
    ) -> Result<f64>
    where
        Self: Sized + 'e;
    /// Loss and gradients of one batch, without a step.
    fn reward_gradients<'e>(
        &self,
        trainer: &mut Self::RewardTrainer,
        data: &RewardData<'_, 'e, Self>,
        batch: &[PairRows],
    ) -> Result<(f64, RewardModel)>
    where
        Self: Sized + 'e;
    /// The trained parameters, for standardised embeddings.
    fn reward_parameters(&self, trainer: &Self::RewardTrainer) -> Result<RewardModel>;
}
