//! `lensmith synth`.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::args::{Common, PairArgs, SynthArgs, named};
use super::console::Console;
use super::table::{bytes, count};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::synth::{OutputKind, Part, Recipe, SynthJob};

/// Make synthetic pairs from seed pairs and a VAE
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lensmith synth seeds.safetensors --vae vae.safetensors --fold 8 --out synth/
  lensmith synth seeds.safetensors --vae vae.safetensors --per-side 31 --output latents --out z/
  lensmith synth seeds.safetensors --vae vae.safetensors --fold 8 --part 3/40 --out synth/

The folder gets recipe.json, manifest.json and shards pairs-00000.safetensors and so on. Killed
at any moment, the same command goes on where it stopped; the bytes depend on the seeds, the VAE,
the options and --seed alone.")]
pub struct Synth {
    /// Seed pairs: safetensors files, folders or patterns
    #[arg(required = true, value_name = "PAIRS")]
    pairs: Vec<String>,
    #[command(flatten)]
    tensors: PairArgs,
    /// VAE checkpoint
    #[arg(long, value_name = "FILE")]
    vae: PathBuf,
    /// Output folder
    #[arg(long, short, value_name = "FOLDER")]
    out: PathBuf,
    /// What to write: embeddings, latents (z alone) or recipe (a few KB; pairs are made on demand)
    #[arg(long, default_value = "embeddings", value_parser = named::<OutputKind>, value_name = "WHAT")]
    output: OutputKind,
    /// Storage type of embeddings: f32, f16 or bf16
    #[arg(long, default_value = "bf16", value_name = "TYPE")]
    dtype: Dtype,
    /// Pairs per shard [default: about 256 MiB]
    #[arg(long, value_name = "N")]
    shard_rows: Option<u64>,
    /// Part i of N of the run, i from 0: the parts' shards are those of the whole run
    #[arg(long, value_name = "i/N", default_value = "0/1")]
    part: Part,
    /// Replace an output that was made with other settings
    #[arg(long)]
    overwrite: bool,
    #[command(flatten)]
    synthesis: SynthArgs,
}

impl Synth {
    pub fn execute(&self, common: &Common, console: &Console) -> Result<()> {
        if self.output == OutputKind::Recipe && self.part != Part::WHOLE {
            return Err(Error::option("--part", "no --part with --output recipe", "both"));
        }
        let engine = common.engine()?;
        let how = self.synthesis.options(common.seed);
        let (recipe, seeds, vae) = Recipe::new(&self.pairs, &self.tensors.options(common), &self.vae, &how)?;
        let recipe = recipe.with_absolute_paths()?;
        let job = SynthJob {
            recipe: &recipe,
            out: &self.out,
            kind: self.output,
            dtype: self.dtype,
            shard_rows: self.shard_rows,
            part: self.part,
            overwrite: self.overwrite,
        };
        let bar = console.bar("synthesis", job.pairs()?, "pairs");
        let summary = engine.write(&job, &seeds, &vae, &mut |done| bar.set_position(done))?;
        bar.finish_and_clear();
        let value = json!({
            "out": self.out, "kind": self.output, "pairs": summary.pairs, "resumed": summary.resumed,
            "shards": summary.shards, "bytes": summary.bytes, "seconds": summary.seconds,
            "seeds": recipe.plan.seeds, "fold": recipe.plan.fold, "per_side": recipe.plan.per_side,
            "device": engine.info(),
        });
        console.result(&value, || {
            let made = summary.pairs - summary.resumed;
            let resumed = match summary.resumed {
                0 => String::new(),
                all if all == summary.pairs => " (all there already: nothing to do)".into(),
                some => format!(" ({} were there already)", count(some)),
            };
            if self.output == OutputKind::Recipe {
                let pairs = count(recipe.plan.pairs());
                return format!("{}: a recipe for {pairs} pairs", self.out.join("recipe.json").display());
            }
            format!(
                "{}: {} pairs{resumed} in {} shards, {}; {} pairs/s on {}",
                self.out.display(),
                count(summary.pairs),
                summary.shards,
                bytes(summary.bytes),
                count((made as f64 / summary.seconds) as u64),
                engine.info().name,
            )
        });
        Ok(())
    }
}
