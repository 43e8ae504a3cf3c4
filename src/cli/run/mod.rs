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

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use data::DataArgs;
use repeat::Repeats;
use report::{RUN, RUN_FORMAT, Report, compare};
use serde_json::{Value, json};

use super::args::{Common, Named, positive};
use super::console::Console;
use super::method::MethodArgs;
use super::pages::{self, write_page};
use crate::data::{FolderLock, PairSet, create_folder, is_there, write_atomic};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::report::REPORT;
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
CSV; with --repeats one folder a split. report.html shows it all.")]
pub struct Run {
    #[command(flatten)]
    data: DataArgs,
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
    pub method: MethodArgs,
}

impl Run {
    pub fn execute(&self, common: &Common, console: &Console) -> Result<()> {
        self.execute_on(|| common.engine(), common, console)
    }

    /// The same on an engine that is asked for once everything else has been checked.
    pub fn execute_on(
        &self,
        engine: impl FnOnce() -> Result<Engine>,
        common: &Common,
        console: &Console,
    ) -> Result<()> {
        positive("--repeats", self.repeats)?;
        let settings = self.method.settings(common.seed)?;
        let data = self.data.open(common)?;
        self.data.check(&data, &self.data.split(&data, common.seed)?, &settings)?;
        let run_json = self.out.join(RUN);
        if !self.overwrite && is_there(&run_json)? {
            return Err(Error::Exists { path: run_json, hint: "--overwrite replaces the run".into() });
        }
        create_folder(&self.out)?;
        let _lock = FolderLock::acquire(&self.out, "run")?;
        let engine = engine()?;
        let start = Instant::now();
        let all = Repeats {
            engine: &engine,
            console,
            data: &data,
            rows: &data.rows()?,
            sources: &self.data.sources(),
            options: &self.data.tensors.options(common),
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
            let split = self.data.split(&data, seed)?;
            repeats.push(all.run(&self.method.settings(seed)?, &split, &folder)?);
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
                "candidates": self.data.candidates,
            }),
            settings: json!(settings),
            comparisons: compare(&repeats),
            repeats,
            seconds: start.elapsed().as_secs_f64(),
        };
        let mut text = serde_json::to_string_pretty(&report).expect("a report is plain data");
        text.push('\n');
        write_atomic(&run_json, text.as_bytes())?;
        write_page(&pages::run::page(&report, &report.data_name()), &self.out.join(REPORT))?;
        console.result(&report, || report.text(&run_json));
        Ok(())
    }
}
