//! `lensmith split`: one set of pairs becomes seed, validation and test pairs, as `run` would take them.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::args::{Common, PairArgs};
use super::console::Console;
use super::run::data::Data;
use super::run::files::{PARTS, SPLIT, write_split};
use super::table::count;
use crate::data::{FolderLock, PairOptions, PairSet, create_folder, require_absent, require_apart};
use crate::error::Result;
use crate::eval::SplitOptions;

/// Cut pairs at random into seed, validation and test pairs, prompts whole
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lensmith split pairs.safetensors --seeds 1000 --validation-pairs 300 --out split/
  lensmith run split/seeds.safetensors --validation split/validation.safetensors \\
      --test split/test.safetensors --out runs/first

The same --seed gives the split that `run` takes. The folder gets seeds.safetensors,
validation.safetensors, test.safetensors and split.json, which says which rows went where.")]
pub struct SplitPairs {
    /// Preference pairs: safetensors files, folders or patterns
    #[arg(required = true, value_name = "PAIRS")]
    pairs: Vec<String>,
    #[command(flatten)]
    tensors: PairArgs,
    /// Tensor that says which pairs belong to one prompt [default: `group`, where there is one]
    #[arg(long, value_name = "NAME")]
    group: Option<String>,
    /// Seed pairs to take
    #[arg(long, value_name = "N", default_value_t = SplitOptions::default().seeds)]
    seeds: usize,
    /// Pairs to take for early stopping
    #[arg(long, value_name = "N", default_value_t = SplitOptions::default().validation)]
    validation_pairs: usize,
    /// Output folder
    #[arg(long, short, value_name = "FOLDER")]
    out: PathBuf,
    /// Replace an earlier split
    #[arg(long)]
    overwrite: bool,
}

impl SplitPairs {
    pub fn execute(&self, common: &Common, console: &Console) -> Result<()> {
        let options = PairOptions { group: self.group.clone(), ..self.tensors.options(common) };
        let pairs = PairSet::open(&self.tensors.partial.sources(&self.pairs), &options)?;
        let sources = pairs.scan()?.sources;
        let data = Data { pairs, validation: None, test: None, candidates: None, gold: None, sources };
        let split = data.split(Some(self.seeds), self.validation_pairs, common.seed)?;
        let files = PARTS.iter().chain([&SPLIT]).map(|name| self.out.join(name));
        require_apart(files, &data.paths())?;
        let record = self.out.join(SPLIT);
        if !self.overwrite {
            require_absent(&record, "--overwrite replaces the split")?;
        }
        create_folder(&self.out)?;
        let _lock = FolderLock::acquire(&self.out, "split")?;
        write_split(&self.out, &data, &data.rows()?, &split, common.seed)?;
        let counts = [split.seeds.len(), split.validation.len(), split.test.len()];
        let value = json!({
            "format": 1, "out": self.out, "seed": common.seed, "rows": data.pairs.len(),
            "seeds": counts[0], "validation": counts[1], "test": counts[2], "sources": data.sources,
        });
        console.result(&value, || {
            let [seeds, validation, test] = counts.map(|n| count(n as u64));
            let groups = if data.pairs.group().is_some() { ", prompts whole" } else { "" };
            format!(
                "{}: {seeds} seed, {validation} validation and {test} test pairs of {}{groups}",
                self.out.display(),
                count(data.pairs.len() as u64),
            )
        });
        Ok(())
    }
}
