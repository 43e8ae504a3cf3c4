//! The words in which a [`super::Backend`] is asked and answers: options, keys of noise, objectives and
//! losses. Plain values that know no device. `Default` is what the paper states, and where it is silent what
//! the command line defaults to.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::matrix::Matrix;
use crate::noise::Side;

/// A device, for reports.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeviceInfo {
    /// Short name, as given to `--device`.
    pub name: String,
    /// Hardware and instruction set in words.
    pub detail: String,
    /// Host threads at work.
    pub threads: usize,
}

/// Arithmetic of a device's products. How values are stored is another matter, [`crate::dtype::Dtype`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// F32 throughout: the same bits of latents, candidates, embeddings and rewards on every device.
    #[default]
    F32,
    /// BF16 operands with F32 sums: tensor cores on a GPU, dot-product instructions on a CPU. Normals,
    /// candidates' noise, losses and the optimiser stay F32; on a CPU so do all layers but those with d
    /// inputs or outputs and the folded one.
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

/// Where a perturbation starts from: z_i in z' = z_i + sigma eta.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LatentSource {
    /// One posterior sample per seed and side.
    #[default]
    Sample,
    /// The posterior mean.
    Mean,
}

/// Which likelihood ranks the candidates of one seed and side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Likelihood {
    /// log q(z' | e): the posterior of the seed.
    #[default]
    Posterior,
    /// log p(z'): the standard normal prior.
    Prior,
    /// No ranking: the first k candidates are kept.
    None,
}

/// How a latent becomes an embedding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DecodeMode {
    /// e' = decoder(z'), as in the paper.
    #[default]
    Plain,
    /// e' = e + decoder(z') - decoder(mu(e)): keeps what the bottleneck loses.
    Residual,
}

/// How candidates are drawn and filtered.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Perturbation {
    /// Variance sigma^2 of the noise eta.
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

impl Default for Perturbation {
    /// The paper's sigma^2 = 0.01, and k = 2: as many samples a side as combine to its four pairs per seed.
    fn default() -> Perturbation {
        Perturbation {
            sigma2: 0.01,
            top_k: 2,
            oversample: 4,
            likelihood: Likelihood::default(),
            source: LatentSource::default(),
        }
    }
}

impl Perturbation {
    /// Standard deviation sigma of the noise, as every device multiplies with it: the root in F64, rounded
    /// once.
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

/// Whose noise a block of seeds draws: row r of the block is row `first_row + r` of the data set. With
/// purpose, candidate and row it makes a [`crate::noise::NoiseCounter`], so that noise depends on no batch,
/// thread or device.
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

/// The candidates that were kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// Candidates per row, k.
    pub top_k: usize,
    /// Candidate numbers, `[rows, k]`, in order of falling likelihood; ties by the lower number.
    pub candidates: Vec<u32>,
}

impl Selection {
    /// The candidates with their rows, in the same order.
    pub fn samples(&self) -> Vec<Sample> {
        let sample = |(i, &candidate): (usize, &u32)| Sample { row: (i / self.top_k) as u32, candidate };
        self.candidates.iter().enumerate().map(sample).collect()
    }
}

/// How well a row is decoded from its code: sums over its standardised values.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Reconstruction {
    /// Squared differences of the decoded row from the row.
    pub error: f64,
    /// Squares of the row.
    pub total: f64,
}

/// Approximate posteriors q(z|e) = N(mu, diag(exp(logvar))), on the host.
#[derive(Clone, Debug, PartialEq)]
pub struct PosteriorsHost {
    /// Means, `[rows, latent]`.
    pub mu: Matrix,
    /// Logarithms of the variances, `[rows, latent]`.
    pub logvar: Matrix,
}

/// Hyperparameters of Adam (Kingma and Ba, 2015), with weight decay AdamW.
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
    /// Decoupled weight decay of all parameters (Loshchilov and Hutter, 2019): before each step they are multiplied
    /// with 1 - lr weight_decay.
    #[serde(default)]
    pub weight_decay: f64,
}

impl Default for Adam {
    /// The paper's learning rate of 1e-4.
    fn default() -> Adam {
        Adam::with_lr(1e-4)
    }
}

impl Adam {
    /// PyTorch's defaults at learning rate `lr`.
    pub fn with_lr(lr: f64) -> Adam {
        Adam { lr, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 }
    }

    /// What parameters are multiplied with before each step.
    pub fn decay(&self) -> f32 {
        (1.0 - self.lr * self.weight_decay) as f32
    }
}

/// How the squared reconstruction error is reduced over the d dimensions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reduction {
    /// Mean over dimensions (beta about 1e-2).
    #[default]
    Mean,
    /// Sum over dimensions (beta about 1).
    Sum,
}

/// The divergence between the posteriors of a pair.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Divergence {
    /// The 2-Wasserstein distance, stabilised: sqrt(W2^2 + 1e-8).
    #[default]
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

impl Default for VaeObjective {
    /// The paper's gamma = 0.1; beta = 1e-2, which belongs to [`Reduction::Mean`], and batches of 128 pairs
    /// are ours.
    fn default() -> VaeObjective {
        VaeObjective {
            reconstruction: Reduction::default(),
            beta: 1e-2,
            gamma: 0.1,
            divergence: Divergence::default(),
            batch: 128,
            adam: Adam::default(),
            seed: 0,
        }
    }
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
    pub(crate) fn add_scaled(&mut self, other: &VaeLoss, weight: f64) {
        self.total += weight * other.total;
        self.reconstruction += weight * other.reconstruction;
        self.kl += weight * other.kl;
        self.divergence += weight * other.divergence;
    }
}

/// How synthetic samples take part in reward training. The results are equal up to rounding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SyntheticPath {
    /// Through the decoder's last layer folded into the reward model's first: no sample passes through d
    /// dimensions.
    #[default]
    Folded,
    /// Decoded in every step: slow, a check of the other. GPUs do not offer it; the reference always decodes.
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

/// What reward training minimises: -log sigmoid(r(a) - r(b)), the Bradley-Terry model, of each head by itself.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RewardObjective {
    /// Pairs per step.
    pub batch: usize,
    /// The optimiser.
    pub adam: Adam,
    /// How synthetic samples take part.
    #[serde(default)]
    pub synthetic: SyntheticPath,
    /// Standard deviation of the noise that every step adds to the standardised embeddings of its batch, drawn anew for
    /// every pair, side and step.
    #[serde(default)]
    pub input_noise: f64,
    /// Seed of that noise: element (row = place of the pair in its batch, side, candidate = steps before) of
    /// `Purpose::InputNoise`. In training it keys initialisation and shuffles too.
    #[serde(default)]
    pub seed: u64,
}

impl Default for RewardObjective {
    fn default() -> RewardObjective {
        RewardObjective {
            batch: 128,
            adam: Adam::default(),
            synthetic: SyntheticPath::default(),
            input_noise: 0.0,
            seed: 0,
        }
    }
}

/// A training pair: row of the chosen side, row of the rejected side (numbering of [`super::RewardSide`]).
pub type PairRows = [u32; 2];
