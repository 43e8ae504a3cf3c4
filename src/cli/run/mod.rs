//! `lensmith run`: the whole method into a run directory.
//!
//! 1. Here: options, checks of everything that can be checked before anything is written, and run.json at the
//!    end.
//! 2. `data`: the files, and the rows that a split takes of them.
//! 3. `repeat`: one split, from training the VAE to the figures of each arm; `files` and `curves` are what it leaves
//!    beside the models.
//! 4. `report`: run.json, and its table for people.

mod curves;
pub mod data;
pub mod files;
pub mod repeat;
pub mod report;

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use data::Data;
use repeat::{Repeats, Settings};
use report::{RUN, RUN_FORMAT, Report, compare};
use serde_json::{Value, json};

use super::args::{Common, Named, PairArgs, RewardArgs, SynthArgs, VaeArgs, positive};
use super::console::Console;
use super::inputs::open_held_out;
use crate::backend::DecodeMode;
use crate::data::{CandidateSet, FolderLock, PairOptions, PairSet, create_folder, write_atomic};
use crate::error::{Error, Result};
use crate::eval::{Additions, Arm, Augmentation, SplitOptions};
use crate::model::VaeSize;
use crate::synth::OutputKind;

/// The whole method: VAE, synthesis, reward models, and their figures, into a run directory
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lensmith run pairs.safetensors --seeds 1000 --validation-pairs 300 --out runs/first
  lensmith run seeds.safetensors --validation val.safetensors --test test.safetensors \\
      --candidates best_of_16.safetensors --fold 8 --mode residual --out runs/second
  lensmith run pairs.safetensors --seeds 1000 --repeats 3 --out runs/third    three random splits

One data set is cut at random (whole groups, if it has a tensor `group`) into --seeds seed pairs,
--validation-pairs for early stopping, and the rest for the test; or give --validation and --test.
The run directory gets run.json (settings, versions, checksums, figures, learning curves, health),
vae.safetensors, the model of each arm (reward.safetensors of the first with latents, else
reward_ARM.safetensors), recipe.json, split.json with the files of its parts, and the curves as
CSV; with --repeats one folder a split.")]
pub struct Run {
    /// Preference pairs: safetensors files, folders or patterns
    #[arg(required = true, value_name = "PAIRS")]
    pairs: Vec<String>,
    #[command(flatten)]
    tensors: PairArgs,
    /// Tensor that says which pairs belong to one prompt [default: `group`, where there is one]
    #[arg(long, value_name = "NAME")]
    group: Option<String>,
    /// Seed pairs to take; the rest is for validation and test [default: all, if --test is given]
    #[arg(long, value_name = "N")]
    seeds: Option<usize>,
    /// Pairs to take for early stopping
    #[arg(
        long,
        value_name = "N",
        default_value_t = SplitOptions::default().validation,
        conflicts_with = "validation"
    )]
    validation_pairs: usize,
    /// Pairs for early stopping, from files of their own
    #[arg(long, value_name = "PAIRS", num_args = 1..)]
    validation: Vec<String>,
    /// Held-out pairs, from files of their own
    #[arg(long, value_name = "PAIRS", num_args = 1..)]
    test: Vec<String>,
    /// Best-of-N sets (`candidates` [prompts, N, d], `gold` [prompts, N])
    #[arg(long, value_name = "SETS", num_args = 1..)]
    candidates: Vec<String>,
    /// Run directory
    #[arg(long, short, value_name = "FOLDER")]
    out: PathBuf,
    /// What reward models are trained on: none, matched, direct, gaussian, mixup, plain, residual,
    /// no-divergence or margin, each with +noise, +across or +ensemble behind it
    /// [default: none,matched and --mode]
    #[arg(long, value_name = "ARMS", value_delimiter = ',', verbatim_doc_comment)]
    arms: Vec<Arm>,
    /// Standard deviations of the input noise that arms with +noise choose from, on the validation pairs
    #[arg(long, value_name = "X", value_delimiter = ',', default_values_t = Additions::default().noise)]
    noise_scales: Vec<f64>,
    /// Random splits (and seeds) to repeat the run over
    #[arg(long, default_value_t = 1, value_name = "N")]
    repeats: usize,
    /// Write the synthetic pairs as well: embeddings or latents
    #[arg(long, value_name = "WHAT")]
    output: Option<Named<OutputKind>>,
    /// Replace an earlier run
    #[arg(long)]
    overwrite: bool,
    #[command(flatten)]
    vae: VaeArgs,
    #[command(flatten)]
    synthesis: SynthArgs,
    #[command(flatten)]
    reward: RewardArgs,
}

impl Run {
    pub fn execute(&self, common: &Common, console: &Console) -> Result<()> {
        positive("--repeats", self.repeats)?;
        let settings = self.settings(common.seed)?;
        let data = self.open(common)?;
        self.check(&data, &settings)?;
        let run_json = self.out.join(RUN);
        if !self.overwrite && fs::exists(&run_json).map_err(Error::io("open", &run_json))? {
            return Err(Error::Exists { path: run_json, hint: "--overwrite replaces the run".into() });
        }
        create_folder(&self.out)?;
        let _lock = FolderLock::acquire(&self.out, "run")?;
        let engine = common.engine()?;
        let start = Instant::now();
        let all = Repeats {
            engine: &engine,
            console,
            data: &data,
            rows: &data.rows()?,
            sources: &self.tensors.partial.sources(&self.pairs),
            options: &self.tensors.options(common),
            output: self.output.map(|kind| kind.0),
            overwrite: self.overwrite,
        };
        let mut repeats = Vec::new();
        for r in 0..self.repeats {
            let seed = common.seed.wrapping_add(r as u64);
            let folder = match self.repeats {
                1 => self.out.clone(),
                _ => self.out.join(format!("seed-{seed}")),
            };
            create_folder(&folder)?;
            let split = data.split(self.seeds, self.validation_pairs, seed)?;
            repeats.push(all.run(&self.settings(seed)?, &split, &folder)?);
        }
        let sources = |set: &Option<PairSet>| -> Result<Value> {
            Ok(json!(set.as_ref().map(PairSet::scan).transpose()?.map(|scan| scan.sources)))
        };
        let report = Report {
            format: RUN_FORMAT,
            lensmith: env!("CARGO_PKG_VERSION").into(),
            device: engine.info(),
            seed: common.seed,
            sources: json!({
                "pairs": data.sources,
                "validation": sources(&data.validation)?,
                "test": sources(&data.test)?,
                "candidates": self.candidates,
            }),
            settings: json!(settings),
            comparisons: compare(&repeats),
            repeats,
            seconds: start.elapsed().as_secs_f64(),
        };
        let mut text = serde_json::to_string_pretty(&report).expect("a report is plain data");
        text.push('\n');
        write_atomic(&run_json, text.as_bytes())?;
        console.result(&report, || report.text(&run_json));
        Ok(())
    }

    fn settings(&self, seed: u64) -> Result<Settings> {
        Ok(Settings {
            vae: self.vae.training(seed)?,
            synthesis: self.synthesis.options(seed),
            reward: self.reward.training(seed)?,
            additions: self.additions()?,
            arms: self.arms(),
        })
    }

    fn arms(&self) -> Vec<Arm> {
        if !self.arms.is_empty() {
            return self.arms.clone();
        }
        let lens = match self.synthesis.mode.0 {
            DecodeMode::Plain => Augmentation::Plain,
            DecodeMode::Residual => Augmentation::Residual,
        };
        [Augmentation::None, Augmentation::Matched, lens].map(Arm::from).to_vec()
    }

    fn additions(&self) -> Result<Additions> {
        if let Some(wrong) = self.noise_scales.iter().find(|scale| !(scale.is_finite() && **scale >= 0.0)) {
            return Err(Error::argument("--noise-scales", "finite numbers, 0 or more", wrong));
        }
        Ok(Additions { noise: self.noise_scales.clone(), ..Additions::default() })
    }

    fn open(&self, common: &Common) -> Result<Data> {
        let options = PairOptions { group: self.group.clone(), ..self.tensors.options(common) };
        let given = |sources: &[String]| self.tensors.partial.sources(sources);
        let pairs = PairSet::open(&given(&self.pairs), &options)?;
        let sources = pairs.scan()?.sources;
        let held = PairOptions { group: None, ..options };
        let validation = open_held_out(&given(&self.validation), &held, pairs.dim())?;
        let test = open_held_out(&given(&self.test), &held, pairs.dim())?;
        let candidates = match self.candidates.as_slice() {
            [] => None,
            sets => Some(CandidateSet::open(sets, "candidates", "gold", common.io)?),
        };
        if let Some(set) = candidates.as_ref().filter(|c| c.dim() != pairs.dim()) {
            let what = format!("{}: embedding dimension", self.candidates.join(", "));
            return Err(Error::shape(what, format!("{}, that of the pairs", pairs.dim()), set.dim()));
        }
        if self.seeds.is_none() && test.is_none() {
            return Err(Error::argument(
                "--seeds",
                format!("how many of the {} pairs are seeds, or --test with held-out pairs", pairs.len()),
                "neither",
            ));
        }
        Ok(Data { pairs, validation, test, candidates, sources })
    }

    /// Fails on the sizes, plans and splits that training would fail on, before anything is written.
    fn check(&self, data: &Data, settings: &Settings) -> Result<()> {
        VaeSize::new(data.pairs.dim(), settings.vae.hidden, settings.vae.latent)?;
        settings.reward.size(data.pairs.dim())?;
        let split = data.split(self.seeds, self.validation_pairs, settings.synthesis.seed)?;
        settings.synthesis.plan(split.seeds.len())?;
        Ok(())
    }
}
