//! `lensmith score`: embeddings and a reward model give rewards, on standard output or in a file.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::args::{Common, PartialArgs};
use super::console::{Console, print_line};
use super::table::count;
use crate::data::{
    Checkpoint, EmbeddingSet, ShardFile, ShardWriter, TensorSpec, require_absent, require_apart,
};
use crate::error::{Error, Result};
use crate::model::RewardModel;

/// Rewards of embeddings
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lensmith score answers.safetensors --tensor embeddings --model reward.safetensors
  lensmith score answers/ --model reward.safetensors --out rewards.safetensors

Without --out one reward a line goes to standard output; with it, a safetensors file with tensor
`reward` [n].")]
pub struct Score {
    /// Embeddings: safetensors files, folders or patterns
    #[arg(required = true, value_name = "EMBEDDINGS")]
    embeddings: Vec<String>,
    /// Tensor to score, [n, d]
    #[arg(long, default_value = "embeddings", value_name = "NAME")]
    tensor: String,
    #[command(flatten)]
    partial: PartialArgs,
    /// Reward model checkpoint
    #[arg(long, value_name = "FILE")]
    model: PathBuf,
    /// Output file
    #[arg(long, short, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Replace the output if it exists
    #[arg(long)]
    overwrite: bool,
}

impl Score {
    pub fn execute(&self, common: &Common, console: &Console) -> Result<()> {
        if let Some(out) = self.out.as_ref().filter(|_| !self.overwrite) {
            require_absent(out, "--overwrite replaces it")?;
        }
        let (model, _) = RewardModel::load(&self.model)?;
        let set = EmbeddingSet::open(&self.partial.sources(&self.embeddings), &self.tensor, common.io);
        let set = set.map_err(|error| match error {
            Error::MissingTensor { path, found, .. } => {
                let expected = format!("one of the tensors of {}: {}", path.display(), found.join(", "));
                Error::argument("--tensor", expected, &self.tensor)
            }
            other => other,
        })?;
        if let Some(out) = &self.out {
            let mut inputs = ShardFile::paths(set.files());
            inputs.push(&self.model);
            require_apart([out], &inputs)?;
        }
        if set.dim() != model.size().dim {
            let file = set.files().first().map(|f| f.path.display().to_string()).unwrap_or_default();
            let expected = format!("{}, that of {}", model.size().dim, self.model.display());
            return Err(Error::shape(format!("{file}: embedding dimension"), expected, set.dim()));
        }
        set.scan()?;
        let engine = common.engine()?;
        let bar = console.bar("scores", set.len() as u64, "rows");
        let mut rewards = Vec::new();
        match &self.out {
            Some(out) => {
                let spec = TensorSpec {
                    name: "reward".into(),
                    dtype: safetensors::Dtype::F32,
                    shape_tail: Vec::new(),
                };
                let mut writer = ShardWriter::create(out, &[spec], set.len(), &BTreeMap::new())?;
                engine.score(&model, &set, &mut |part| {
                    bar.inc(part.len() as u64);
                    writer.append(0, bytemuck::cast_slice(part))
                })?;
                writer.finish()?;
                bar.finish_and_clear();
                console.result(&json!({ "out": out, "rows": set.len() }), || {
                    format!("{}: {} rewards", out.display(), count(set.len() as u64))
                });
            }
            None => {
                engine.score(&model, &set, &mut |part| {
                    bar.inc(part.len() as u64);
                    if console.is_json() {
                        rewards.extend_from_slice(part);
                    } else {
                        let lines: Vec<String> = part.iter().map(|r| r.to_string()).collect();
                        print_line(&lines.join("\n"));
                    }
                    Ok(())
                })?;
                bar.finish_and_clear();
                if console.is_json() {
                    console.result(&json!({ "reward": rewards }), String::new);
                }
            }
        }
        Ok(())
    }
}
