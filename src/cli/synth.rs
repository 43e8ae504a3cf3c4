//! `lensmith synth`: seed pairs and a VAE become a recipe and, shard by shard, synthetic pairs.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::args::{Common, Named, PairArgs, SynthArgs};
use super::console::Console;
use super::method::PresetArgs;
use super::table::count;
use super::writing::{WriteArgs, summary_json, summary_text, write_shards};
use crate::data::RECIPE;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::synth::{OutputKind, Part, Recipe};

/// Make synthetic pairs from seed pairs and a VAE
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lensmith synth seeds.safetensors --vae vae.safetensors --fold 8 --out synth/
  lensmith synth seeds.safetensors --vae vae.safetensors --per-side 31 --output latents --out z/
  lensmith synth seeds.safetensors --vae vae.safetensors --fold 8 --part 3/40 --out synth/
  lensmith synth s3://bucket/seeds.safetensors --vae vae.safetensors --out s3://bucket/synth/

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
    #[arg(long, default_value_t = Named(OutputKind::Embeddings), value_name = "WHAT")]
    output: Named<OutputKind>,
    /// Storage type of embeddings: f32, f16 or bf16
    #[arg(long, default_value = "bf16", value_name = "TYPE")]
    dtype: Dtype,
    #[command(flatten)]
    writing: WriteArgs,
    #[command(flatten)]
    preset: PresetArgs,
    #[command(flatten)]
    synthesis: SynthArgs,
}

impl Synth {
    pub fn execute(&self, common: &Common, console: &Console) -> Result<()> {
        if self.output.0 == OutputKind::Recipe && self.writing.part != Part::WHOLE {
            return Err(Error::argument("--part", "no --part with --output recipe", "both"));
        }
        let engine = common.engine()?;
        let options = self.synthesis.options(common.seed);
        let (recipe, seeds, vae) = Recipe::new(
            &self.tensors.partial.sources(&self.pairs),
            &self.tensors.options(common),
            &self.vae,
            &options,
        )?;
        let recipe = recipe.with_absolute_paths()?;
        let job = self.writing.job(&recipe, &self.out, (self.output.0, self.dtype), None);
        let progress = ("synthesis", self.writing.every()?);
        let summary = write_shards(&engine, console, progress, &job, &seeds, &vae)?;
        let mut value = summary_json(&summary);
        value["out"] = json!(self.out);
        value["kind"] = json!(self.output.0);
        value["seeds"] = json!(recipe.plan.seeds);
        value["fold"] = json!(recipe.plan.pairs_per_seed);
        value["per_side"] = json!(recipe.plan.per_side);
        value["device"] = json!(engine.info());
        value["devices"] = json!(engine.devices());
        console.result(&value, || {
            if self.output.0 == OutputKind::Recipe {
                let pairs = count(recipe.plan.pairs());
                return format!("{}: a recipe for {pairs} pairs", self.out.join(RECIPE).display());
            }
            self.writing.summary(&self.out, &summary_text(&summary, &engine.devices()))
        });
        Ok(())
    }
}
