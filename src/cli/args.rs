//! Options that several commands share, named after the paper's terms. Their defaults are those of the
//! library's option structs, which are the paper's values.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::Args;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::backend::cpu::MAX_THREADS;
use crate::backend::{
    Adam, DecodeMode, DeviceChoice, Divergence, LatentSource, Likelihood, Precision, Reduction,
    RewardObjective, SyntheticPath, VaeObjective,
};
use crate::data::{Io, PairOptions, is_folder, is_url, require_absent};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::model::Head;
use crate::synth::{Moved, Pairing, SynthesisOptions};
use crate::train::{RewardTraining, Updates, VaeTraining};

/// Options of every command.
#[derive(Debug, Args)]
pub struct Common {
    /// Device: auto, cpu, cuda, cuda:N, cuda:all (synth spreads its shards over every GPU, all else
    /// is done on the first) or reference (the slow F64 oracle)
    #[arg(
        long,
        global = true,
        help_heading = "General",
        default_value_t = DeviceChoice::Auto,
        env = "LENSMITH_DEVICE",
        hide_env_values = true,
        value_name = "DEVICE"
    )]
    pub device: DeviceChoice,
    /// Operands of products: f32 (the same bits on every device) or bf16 (rounded; faster on tensor
    /// cores, with Intel AMX, and with AMD's AVX-512 BF16)
    #[arg(
        long,
        global = true,
        help_heading = "General",
        default_value_t = Precision::default(),
        value_name = "TYPE"
    )]
    pub precision: Precision,
    /// Threads; 0 takes one per core
    #[arg(long, global = true, help_heading = "General", default_value_t = 0, value_name = "N")]
    pub threads: usize,
    /// Seed of all randomness: the same seed gives the same bytes
    #[arg(long, global = true, help_heading = "General", default_value_t = 0, value_name = "S")]
    pub seed: u64,
    /// How input is read: mmap, or read (network file systems)
    #[arg(long, global = true, help_heading = "General", default_value_t = Io::default(), value_name = "HOW")]
    pub io: Io,
    /// Results as one JSON object on standard output
    #[arg(long, global = true, help_heading = "General")]
    pub json: bool,
    /// No progress bars or lines
    #[arg(long, short, global = true, help_heading = "General")]
    pub quiet: bool,
}

impl Common {
    /// Limits the work outside the device (checks of input, baselines, the simulation) to `--threads` as
    /// well.
    pub fn bind_threads(&self) -> Result<()> {
        if self.threads > MAX_THREADS {
            return Err(Error::argument("--threads", format!("0 to {MAX_THREADS}"), self.threads));
        }
        // Fails only where the pool is running already, in a program that calls the command as a function.
        let _ = rayon::ThreadPoolBuilder::new().num_threads(self.threads).build_global();
        Ok(())
    }

    pub fn engine(&self) -> Result<Engine> {
        Engine::builder().device(self.device).threads(self.threads).precision(self.precision).build()
    }
}

/// Which tensors hold the pairs.
#[derive(Clone, Debug, Args)]
pub struct PairArgs {
    /// Tensor of the preferred responses
    #[arg(long, default_value_t = PairOptions::default().chosen, value_name = "NAME")]
    pub chosen: String,
    /// Tensor of the other responses
    #[arg(long, default_value_t = PairOptions::default().rejected, value_name = "NAME")]
    pub rejected: String,
    #[command(flatten)]
    pub partial: PartialArgs,
}

/// Whether folders of unfinished runs are read.
#[derive(Clone, Debug, Args)]
pub struct PartialArgs {
    /// Take the shards that are there of a folder whose run is not complete
    #[arg(long)]
    pub allow_partial: bool,
}

impl PartialArgs {
    /// Sources with folders as patterns, if what is there of them is to be taken.
    pub fn sources(&self, sources: &[String]) -> Vec<String> {
        let pattern =
            |source: &String| match self.allow_partial && is_folder(Path::new(source)).unwrap_or(false) {
                true => format!("{}/*.safetensors", glob::Pattern::escape(source.trim_end_matches('/'))),
                false => source.clone(),
            };
        sources.iter().map(pattern).collect()
    }
}

impl PairArgs {
    /// The options of [`crate::PairSet::open`].
    pub fn options(&self, common: &Common) -> PairOptions {
        PairOptions {
            chosen: self.chosen.clone(),
            rejected: self.rejected.clone(),
            group: None,
            io: common.io,
        }
    }
}

/// Where the files of a recipe are now.
#[derive(Clone, Debug, Args)]
pub struct MovedArgs {
    /// Seed pairs of the recipe, where they are not where it says; checksums tell that they are the same
    #[arg(long, num_args = 1.., value_name = "PAIRS")]
    pub seeds: Vec<String>,
    /// VAE of the recipe, likewise
    #[arg(long, value_name = "FILE")]
    pub vae: Option<PathBuf>,
    #[command(flatten)]
    pub outside: OutsideArgs,
}

impl MovedArgs {
    /// The argument of [`crate::Recipe::open`].
    pub fn moved(&self) -> Moved {
        Moved { seeds: self.seeds.clone(), vae: self.vae.clone(), ..self.outside.moved() }
    }
}

/// Whether a recipe may name any file.
#[derive(Clone, Debug, Args)]
pub struct OutsideArgs {
    /// Take the files that a recipe names wherever they are, not only around it and in the working folder
    #[arg(long)]
    pub allow_outside: bool,
}

impl OutsideArgs {
    /// The argument of [`crate::Recipe::open`] where nothing has moved.
    pub fn moved(&self) -> Moved {
        Moved { allow_outside: self.allow_outside, ..Moved::default() }
    }
}

/// Reads a value by its serde name, so that the command line and the files agree on the names.
pub fn named<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_value(Value::String(text.into())).map_err(|e| e.to_string())
}

/// A value that is read and shown by its serde name.
#[derive(Clone, Copy, Debug)]
pub struct Named<T>(pub T);

impl<T: DeserializeOwned> FromStr for Named<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<Named<T>, String> {
        named(text).map(Named)
    }
}

impl<T: Serialize> fmt::Display for Named<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = serde_json::to_value(&self.0).map_err(|_| fmt::Error)?;
        f.pad(name.as_str().unwrap_or_default())
    }
}

/// How the VAE is trained.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "VAE")]
pub struct VaeArgs {
    /// Width of the VAE's hidden layers, a multiple of 16
    #[arg(long, default_value_t = vae_defaults().hidden, value_name = "N")]
    pub hidden: usize,
    /// Dimension of the latent space, a multiple of 16
    #[arg(long, default_value_t = vae_defaults().latent, value_name = "N")]
    pub latent: usize,
    /// Passes over the seed pairs
    #[arg(long, default_value_t = vae_defaults().epochs, value_name = "N")]
    pub vae_epochs: usize,
    /// Pairs per step
    #[arg(long, default_value_t = vae_defaults().objective.batch, value_name = "N")]
    pub vae_batch: usize,
    /// Learning rate of Adam
    #[arg(
        long,
        allow_negative_numbers = true,
        default_value_t = vae_defaults().objective.adam.lr,
        value_name = "X"
    )]
    pub vae_lr: f64,
    /// Weight of the KL term [default: 0.01 with --reduction mean, 1 with sum]
    #[arg(long, allow_negative_numbers = true, value_name = "X")]
    pub beta: Option<f64>,
    /// Weight of the divergence between the posteriors of a pair
    #[arg(
        long,
        allow_negative_numbers = true,
        default_value_t = vae_defaults().objective.gamma,
        value_name = "X"
    )]
    pub gamma: f64,
    /// Reduction of the reconstruction error over dimensions: mean or sum
    #[arg(long, default_value_t = Named(vae_defaults().objective.reconstruction), value_name = "HOW")]
    pub reduction: Named<Reduction>,
    /// Divergence: w2 (2-Wasserstein distance) or w2-squared
    #[arg(long, default_value_t = Named(vae_defaults().objective.divergence), value_name = "HOW")]
    pub divergence: Named<Divergence>,
}

fn vae_defaults() -> VaeTraining {
    VaeTraining::default()
}

impl VaeArgs {
    /// The training options with the run's seed, checked.
    pub fn training(&self, seed: u64) -> Result<VaeTraining> {
        let beta = self.beta.unwrap_or(match self.reduction.0 {
            Reduction::Mean => vae_defaults().objective.beta,
            Reduction::Sum => 1.0,
        });
        let options = VaeTraining {
            hidden: self.hidden,
            latent: self.latent,
            epochs: self.vae_epochs,
            objective: VaeObjective {
                reconstruction: self.reduction.0,
                beta,
                gamma: self.gamma,
                divergence: self.divergence.0,
                batch: self.vae_batch,
                adam: Adam::with_lr(self.vae_lr),
                seed,
            },
        };
        options.check().map(|()| options)
    }
}

/// How pairs are synthesised.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Synthesis")]
pub struct SynthArgs {
    /// Pairs per seed in total, originals included (m-fold) [default: 4, or all of --per-side]
    #[arg(long, value_name = "M")]
    pub fold: Option<u64>,
    /// Samples per seed and side, k [default: the smallest that allows the fold]
    #[arg(long, value_name = "K")]
    pub per_side: Option<u32>,
    /// Variance of the Gaussian noise in latent space
    #[arg(
        long,
        allow_negative_numbers = true,
        default_value_t = synthesis_defaults().sigma2,
        value_name = "X"
    )]
    pub sigma2: f64,
    /// Candidates drawn per sample kept
    #[arg(long, default_value_t = synthesis_defaults().oversample, value_name = "N")]
    pub oversample: u32,
    /// Likelihood that ranks candidates: posterior, prior or none
    #[arg(long, default_value_t = Named(synthesis_defaults().likelihood), value_name = "HOW")]
    pub likelihood: Named<Likelihood>,
    /// What is perturbed: sample (of the posterior) or mean
    #[arg(long, default_value_t = Named(synthesis_defaults().source), value_name = "HOW")]
    pub source: Named<LatentSource>,
    /// Decoding: plain (the paper's) or residual (e + decoder(z') - decoder(mu))
    #[arg(long, default_value_t = Named(synthesis_defaults().mode), value_name = "HOW")]
    pub mode: Named<DecodeMode>,
    /// Which samples of a seed meet: combine (all with all) or match (a-th with a-th)
    #[arg(long, default_value_t = Named(synthesis_defaults().pairing), value_name = "HOW")]
    pub pairing: Named<Pairing>,
}

fn synthesis_defaults() -> SynthesisOptions {
    SynthesisOptions::default()
}

impl SynthArgs {
    /// The options with the run's seed; they are checked when a plan is made of them.
    pub fn options(&self, seed: u64) -> SynthesisOptions {
        let pairs_per_seed = match (self.fold, self.per_side) {
            (None, None) => synthesis_defaults().pairs_per_seed,
            (fold, _) => fold,
        };
        SynthesisOptions {
            pairs_per_seed,
            per_side: self.per_side,
            pairing: self.pairing.0,
            sigma2: self.sigma2,
            oversample: self.oversample,
            likelihood: self.likelihood.0,
            source: self.source.0,
            mode: self.mode.0,
            seed,
        }
    }
}

/// How the reward model is trained.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Reward model")]
pub struct RewardArgs {
    /// Head of the reward model: mlp (the paper's) or linear
    #[arg(long, default_value_t = Named(reward_defaults().head), value_name = "HEAD")]
    pub head: Named<Head>,
    /// Width of an MLP's hidden layer, a multiple of 16, in an ensemble of 32
    #[arg(long, default_value_t = reward_defaults().hidden, value_name = "N")]
    pub reward_hidden: usize,
    /// Heads trained at once, whose mean is the reward
    #[arg(long, default_value_t = reward_defaults().ensemble, value_name = "K")]
    pub ensemble: usize,
    /// Most passes over the pairs
    #[arg(long, default_value_t = reward_defaults().updates.count(), value_name = "N")]
    pub epochs: usize,
    /// Pairs per step
    #[arg(long, default_value_t = reward_defaults().objective.batch, value_name = "N")]
    pub batch: usize,
    /// Learning rate of Adam
    #[arg(
        long,
        allow_negative_numbers = true,
        default_value_t = reward_defaults().objective.adam.lr,
        value_name = "X"
    )]
    pub lr: f64,
    /// Decoupled weight decay of the optimiser (AdamW)
    #[arg(
        long,
        allow_negative_numbers = true,
        default_value_t = reward_defaults().objective.adam.weight_decay,
        value_name = "X"
    )]
    pub weight_decay: f64,
    /// Standard deviation of fresh noise on the standardised embeddings of every step
    #[arg(
        long,
        allow_negative_numbers = true,
        default_value_t = reward_defaults().objective.input_noise,
        value_name = "X"
    )]
    pub input_noise: f64,
    /// Share of the pairs whose rejected response comes from another pair, drawn anew every epoch
    #[arg(
        long,
        allow_negative_numbers = true,
        default_value_t = reward_defaults().across_prompts,
        value_name = "SHARE"
    )]
    pub across_prompts: f64,
    /// Epochs without a lower validation loss before training stops; 0 trains to the end
    #[arg(long, default_value_t = reward_defaults().patience.unwrap_or(0), value_name = "N")]
    pub patience: usize,
    /// Steps between evaluations on the validation pairs [default: an epoch; in run, a pass over the seeds]
    #[arg(long, value_name = "STEPS")]
    pub validate_every: Option<usize>,
    /// Synthetic samples in training: folded (never decoded) or decoded (slow, to check the other)
    #[arg(long, default_value_t = Named(reward_defaults().objective.synthetic), value_name = "HOW")]
    pub synthetic_path: Named<SyntheticPath>,
}

fn reward_defaults() -> RewardTraining {
    RewardTraining::default()
}

impl RewardArgs {
    /// The training options with the run's seed, checked.
    pub fn training(&self, seed: u64) -> Result<RewardTraining> {
        let options = RewardTraining {
            head: self.head.0,
            hidden: self.reward_hidden,
            ensemble: self.ensemble,
            updates: Updates::Epochs(self.epochs),
            patience: (self.patience > 0).then_some(self.patience),
            validate_every: self.validate_every,
            across_prompts: self.across_prompts,
            objective: RewardObjective {
                batch: self.batch,
                adam: Adam { weight_decay: self.weight_decay, ..Adam::with_lr(self.lr) },
                synthetic: self.synthetic_path.0,
                input_noise: self.input_noise,
                seed,
            },
        };
        options.check().map(|()| options)
    }
}

/// Where a single-file result goes.
#[derive(Clone, Debug, Args)]
pub struct OutArgs {
    /// Output file
    #[arg(long, short, value_name = "FILE")]
    pub out: PathBuf,
    /// Replace the output if it exists
    #[arg(long)]
    pub overwrite: bool,
}

impl OutArgs {
    /// Fails before any work if the output exists or its folder does not.
    pub fn check(&self) -> Result<&Path> {
        if !self.overwrite {
            require_absent(&self.out, "--overwrite replaces it")?;
        }
        let folder = match self.out.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        if !is_url(folder) && !folder.is_dir() {
            let source = std::io::Error::from(std::io::ErrorKind::NotFound);
            return Err(Error::io("find folder", folder)(source));
        }
        Ok(&self.out)
    }
}

/// A count of at least 1.
pub fn positive(name: &'static str, value: usize) -> Result<usize> {
    if value == 0 {
        return Err(Error::argument(name, "1 or more", value));
    }
    Ok(value)
}
