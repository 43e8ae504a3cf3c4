//! `lensmith merge-manifests`: the manifests of the parts of a run become one.

use std::path::PathBuf;

use clap::Args;

use super::console::Console;
use super::table::{bytes, count};
use crate::error::Result;
use crate::synth::merge_manifests;

/// Overlaps in the text; `--json` lists all.
const SHOWN: usize = 3;

/// Join the manifests of the parts of a run into that of the whole run
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lensmith merge-manifests synth/        after the last job of synth --part i/N

Checks that every shard of the run is there, with the size and the header that its part recorded;
names the parts that are missing, interrupted or made with other settings, and the command that
makes them. Parts of different cuts (2/7 beside 1/2) may share shards. The bytes of manifest.json
are those of one whole run. `lensmith verify` reads the shards themselves.")]
pub struct MergeManifests {
    /// The folder that the parts wrote to
    #[arg(value_name = "FOLDER")]
    folder: PathBuf,
}

impl MergeManifests {
    pub fn execute(&self, console: &Console) -> Result<()> {
        let merged = merge_manifests(&self.folder)?;
        console.result(&merged, || {
            let joined = match (merged.already, merged.parts) {
                (true, _) => "already merged".to_string(),
                (false, 1) => "joined from 1 part".to_string(),
                (false, parts) => format!("joined from {} parts", count(parts as u64)),
            };
            let mut text = format!(
                "{}: {joined}; {} pairs in {} shards ({})",
                merged.manifest.display(),
                count(merged.pairs),
                count(merged.shards),
                bytes(merged.bytes)
            );
            for overlap in merged.overlaps.iter().take(SHOWN) {
                let [a, b] = &overlap.manifests;
                text.push_str(&format!(
                    "\n{b} shares {} shards with {a}: equal records",
                    count(overlap.shards)
                ));
            }
            if merged.overlaps.len() > SHOWN {
                text.push_str(&format!(
                    "\n{} shards in more than one part, all with equal records",
                    count(merged.overlapping)
                ));
            }
            text
        });
        Ok(())
    }
}
