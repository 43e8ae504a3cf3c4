//! `lensmith verify`: shards against their checksums, and pairs against their recipe.

use std::path::PathBuf;

use clap::Args;
use indicatif::ProgressBar;
use serde_json::json;

use super::again;
use super::args::{Common, MovedArgs};
use super::console::Console;
use super::table::{bytes, count};
use crate::convert::{is_import, verify_import};
use crate::data::{is_folder, verify_shard};
use crate::error::{Error, Result};
use crate::synth::{Recompute, VerifyOptions, VerifyStep};

/// Check shards against their checksums, and pairs against their recipe
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lensmith verify synth/                    every byte against the manifest; 16 pairs made again
  lensmith verify synth/ --recompute all    every pair made again
  lensmith verify synth/ --seeds /new/seeds.safetensors --vae /new/vae.safetensors
  lensmith verify synth/pairs-00003.safetensors

Folders of embeddings and of latents, whole runs and parts of runs. Another --seed draws other
pairs. A run made with --precision bf16 is checked with that, on the same kind of device.")]
pub struct Verify {
    /// A folder made by synth or import, or one shard
    #[arg(value_name = "PATH")]
    path: PathBuf,
    /// Pairs to make again from the recipe and compare bit by bit: a number, or all
    #[arg(long, default_value = "16", value_name = "N")]
    recompute: Recompute,
    #[command(flatten)]
    files: MovedArgs,
}

impl Verify {
    pub fn execute(&self, common: &Common, console: &Console) -> Result<()> {
        if is_folder(&self.path)? {
            if is_import(&self.path) {
                return self.import(common, console);
            }
            return self.folder(common, console);
        }
        if self.files.vae.is_some() || !self.files.seeds.is_empty() {
            return Err(Error::argument("--seeds or --vae", "a folder made by synth", "one shard"));
        }
        let record = verify_shard(&self.path, common.io)?;
        console.result(&json!(record), || {
            format!("{}: in order; {} rows, {}", self.path.display(), count(record.rows), bytes(record.bytes))
        });
        Ok(())
    }

    /// A folder made by import has no recipe to make anything again from.
    fn import(&self, common: &Common, console: &Console) -> Result<()> {
        let bar = console.bar("checksums", 0, "bytes");
        let found = verify_import(&self.path, common.io, &mut |done, total| {
            bar.set_length(total);
            bar.set_position(done);
        })?;
        bar.finish_and_clear();
        console.result(&found, || {
            let (rows, size) = (count(found.rows), bytes(found.bytes));
            format!("{}: in order; {rows} rows in {} shards ({size})", self.path.display(), found.shards)
        });
        Ok(())
    }

    fn folder(&self, common: &Common, console: &Console) -> Result<()> {
        let options = VerifyOptions {
            io: common.io,
            recompute: self.recompute,
            seed: common.seed,
            moved: self.files.moved(),
        };
        let mut read: Option<ProgressBar> = None;
        let mut made: Option<ProgressBar> = None;
        let found = common.engine()?.verify(&self.path, &options, &mut |step| {
            let (bar, what, done, total, unit) = match step {
                VerifyStep::Bytes { done, total } => (&mut read, "checksums", done, total, "bytes"),
                VerifyStep::Pairs { done, total } => (&mut made, "made again", done, total, "pairs"),
            };
            let bar = bar.get_or_insert_with(|| console.bar(what, total, unit));
            bar.set_position(done);
            if done == total {
                bar.finish_and_clear();
            }
        })?;
        console.result(&found, || {
            let (of, missing) = match &found.missing {
                Some(missing) => (format!(" of the run's {}", count(found.run_pairs)), format!("\nnot here: {missing}; {}", again::hint(&self.path, &found.missing_parts))),
                None => (String::new(), String::new()),
            };
            format!(
                "{}: in order; {} pairs{of} in {} shards ({}), {} pairs made again with the same bits{missing}",
                self.path.display(),
                count(found.pairs),
                found.shards,
                bytes(found.bytes),
                count(found.recomputed)
            )
        });
        Ok(())
    }
}
