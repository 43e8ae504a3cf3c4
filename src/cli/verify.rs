//! `lensmith verify`.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::args::Common;
use super::console::Console;
use super::table::{bytes, count};
use crate::error::Result;
use crate::shard::verify_shard;

/// Check shards against their checksums, and pairs against their recipe
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lensmith verify synth/                    every byte against the manifest; 16 pairs made again
  lensmith verify synth/pairs-00003.safetensors")]
pub struct Verify {
    /// A folder made by synth, or one shard
    #[arg(value_name = "PATH")]
    path: PathBuf,
    /// Pairs to make again from the recipe and compare bit by bit
    #[arg(long, default_value_t = 16, value_name = "N")]
    recompute: u64,
}

impl Verify {
    pub fn execute(&self, common: &Common, console: &Console) -> Result<()> {
        if self.path.is_dir() {
            let found = common.engine()?.verify(&self.path, common.io, self.recompute)?;
            console.result(&found, || {
                let of = match found.run_pairs > found.pairs {
                    true => format!(" of the run's {}; the rest lies elsewhere", count(found.run_pairs)),
                    false => String::new(),
                };
                format!(
                    "{}: in order; {} pairs{of} in {} shards ({}), {} pairs made again with the same bits",
                    self.path.display(),
                    count(found.pairs),
                    found.shards,
                    bytes(found.bytes),
                    found.recomputed
                )
            });
        } else {
            let record = verify_shard(&self.path, common.io)?;
            console.result(&json!(record), || {
                format!(
                    "{}: in order; {} rows, {}",
                    self.path.display(),
                    count(record.rows),
                    bytes(record.bytes)
                )
            });
        }
        Ok(())
    }
}
