//! `lensmith materialize`.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::args::{Common, MovedArgs};
use super::console::Console;
use super::writing::{WriteArgs, Writing, summary_json, summary_text};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::synth::{OutputKind, StoredRun, SynthJob};

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
        let here = engine.arithmetic();
        if let Some((_, there)) = source.latents.as_ref().filter(|l| l.1 != here) {
            let expected = format!("{there}, in which these latents were made");
            return Err(Error::option("--precision and --device", expected, here));
        }
        let job = SynthJob {
            recipe: &source.recipe,
            out: &self.out,
            kind: OutputKind::Embeddings,
            dtype: self.dtype,
            shard_rows: self.writing.shard_rows,
            part: self.writing.part,
            overwrite: self.writing.overwrite,
            write: self.writing.write,
            latents: source.latents.as_ref().map(|l| &l.0),
        };
        let mut writing = Writing::new(console, "materialize", job.pairs()?, self.writing.every()?);
        let summary = engine.write(&job, &source.seeds, &source.vae, &mut |p| writing.hear(p))?;
        writing.finish();
        let from = if source.latents.is_some() { "latents" } else { "recipe" };
        let mut value = summary_json(&summary);
        value["out"] = json!(self.out);
        value["from"] = json!(from);
        value["device"] = json!(engine.info());
        value["devices"] = json!(engine.devices());
        console.result(&value, || {
            let text = summary_text(&summary, &engine.devices());
            format!("{}: from the {from}, {text}", self.out.display())
        });
        Ok(())
    }
}
