//! `lensmith materialize`: latents or a recipe become embeddings.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::args::{Common, MovedArgs};
use super::console::Console;
use super::writing::{WriteArgs, summary_json, summary_text, write_shards};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::synth::{OutputKind, StoredRun};

/// Turn latents or a recipe into embeddings, later or elsewhere
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lensmith materialize latents/ --out embeddings/
  lensmith materialize recipe.json --dtype f32 --part 3/40 --out embeddings/
  lensmith materialize latents/ --seeds /new/seeds.safetensors --vae /new/vae.safetensors --out e/

The shards are, byte for byte, those of `lensmith synth --output embeddings` with the same options.
A folder of latents is decoded from them, without encoding its seeds again (but for --mode residual,
which needs their means). It needs the seeds for the original pairs; checksums tell that seeds and
VAE are those of the recipe, wherever they are now. Killed at any moment, the same command goes on
where it stopped.")]
pub struct Materialize {
    /// A folder that synth made, or a recipe
    #[arg(value_name = "PATH")]
    path: PathBuf,
    /// Output folder
    #[arg(long, short, value_name = "FOLDER")]
    out: PathBuf,
    /// Storage type of embeddings: f32, f16 or bf16
    #[arg(long, default_value = "bf16", value_name = "TYPE")]
    dtype: Dtype,
    #[command(flatten)]
    writing: WriteArgs,
    #[command(flatten)]
    files: MovedArgs,
}

impl Materialize {
    pub fn execute(&self, common: &Common, console: &Console) -> Result<()> {
        let engine = common.engine()?;
        let source = StoredRun::open(&self.path, &self.files.moved(), common.io)?;
        let (found, made_in) = (engine.arithmetic(), source.latents.as_ref().map(|(_, made_in)| made_in));
        if let Some(made_in) = made_in.filter(|made_in| *made_in != found) {
            let expected = format!("{made_in}, in which these latents were made");
            return Err(Error::argument("--precision and --device", expected, found));
        }
        let latents = source.latents.as_ref().map(|(set, _)| set);
        let kind = (OutputKind::Embeddings, self.dtype);
        let job = self.writing.job(&source.recipe, &self.out, kind, latents);
        let progress = ("materialize", self.writing.every()?);
        let summary = write_shards(&engine, console, progress, &job, &source.seeds, &source.vae)?;
        let from = if source.latents.is_some() { "latents" } else { "recipe" };
        let mut value = summary_json(&summary);
        value["out"] = json!(self.out);
        value["from"] = json!(from);
        value["device"] = json!(engine.info());
        value["devices"] = json!(engine.devices());
        console.result(&value, || {
            let text = summary_text(&summary, &engine.devices());
            self.writing.summary(&self.out, &format!("from the {from}, {text}"))
        });
        Ok(())
    }
}
