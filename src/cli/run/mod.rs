//! `lensmith run`: the whole method into a run directory.
//!
//! 1. Here: options, checks of everything that can be checked before anything is written, and run.json at the
//!    end.
//! 2. `data`: the files, and the rows that a split takes of them.
//! 3. `repeat`: one split, from training the VAE to the figures of each arm.

mod data;
mod repeat;
pub mod report;

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use data::Data;
use repeat::{Repeats, Settings};
use report::{RUN, Report};
use serde_json::{Value, json};

use super::args::{Common, Named, PairArgs, RewardArgs, SynthArgs, VaeArgs, positive};
use super::console::Console;
use super::inputs::open_held_out;
use crate::data::{CandidateSet, FolderLock, PairOptions, PairSet, create_folder, write_atomic};
use crate::error::{Error, Result};
use crate::eval::SplitOptions;
use crate::model::{RewardSize, VaeSize};
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
The run directory gets run.json (settings, versions, checksums, figures), vae.safetensors,
reward.safetensors, reward_none.safetensors and recipe.json; with --repeats one folder a split.")]
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
            format: 1,
            lensmith: env!("CARGO_PKG_VERSION").into(),
            device: engine.info(),
            seed: common.seed,
            sources: json!({
                "pairs": data.sources,
                "validation": sources(&data.validation)?,
                "test": sources(&data.test)?,
                "candidates": self.candidates,
            }),
            settings: json!({
                "vae": settings.vae,
                "reward": settings.reward,
                "fold": settings.synthesis.pairs_per_seed,
                "per_side": settings.synthesis.per_side,
                "pairing": settings.synthesis.pairing,
                "sigma2": settings.synthesis.sigma2,
                "oversample": settings.synthesis.oversample,
                "likelihood": settings.synthesis.likelihood,
                "source": settings.synthesis.source,
                "mode": settings.synthesis.mode,
            }),
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
        })
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
        RewardSize::new(data.pairs.dim(), settings.reward.hidden)?;
        let split = data.split(self.seeds, self.validation_pairs, settings.synthesis.seed)?;
        settings.synthesis.plan(split.seeds.len())?;
        Ok(())
    }
}
