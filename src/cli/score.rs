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
`reward` [n]. With --spread, beside each reward how far an ensemble's heads disagree: their standard
deviation, as a second column or as tensor `spread` [n].")]
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
    /// The standard deviation over an ensemble's heads beside each reward
    #[arg(long)]
    spread: bool,
    /// Output file
    #[arg(long, short, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Replace the output if it exists
    #[arg(long)]
    overwrite: bool,
}

/// Takes rewards, and their spread where it is asked for, a block at a time.
type Sink<'a> = dyn FnMut(&[f32], Option<&[f32]>) -> Result<()> + 'a;

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
        // Hands rewards, and with --spread their spread, to `sink` a block at a time.
        let score = |sink: &mut Sink<'_>| match self.spread {
            true => {
                engine.score_with_spread(&model, &set, &mut |rewards, spread| sink(rewards, Some(spread)))
            }
            false => engine.score(&model, &set, &mut |rewards| sink(rewards, None)),
        };
        match &self.out {
            Some(out) => {
                let names = if self.spread { &["reward", "spread"][..] } else { &["reward"] };
                let spec = |name: &&str| TensorSpec {
                    name: name.to_string(),
                    dtype: safetensors::Dtype::F32,
                    shape_tail: Vec::new(),
                };
                let specs: Vec<TensorSpec> = names.iter().map(spec).collect();
                let mut writer = ShardWriter::create(out, &specs, set.len(), &BTreeMap::new())?;
                score(&mut |rewards, spread| {
                    bar.inc(rewards.len() as u64);
                    writer.append(0, bytemuck::cast_slice(rewards))?;
                    spread.map_or(Ok(()), |spread| writer.append(1, bytemuck::cast_slice(spread)))
                })?;
                writer.finish()?;
                bar.finish_and_clear();
                console.result(&json!({ "out": out, "rows": set.len() }), || {
                    format!("{}: {} rewards", out.display(), count(set.len() as u64))
                });
            }
            None => {
                let (mut all, mut spreads) = (Vec::new(), Vec::new());
                score(&mut |rewards, spread| {
                    bar.inc(rewards.len() as u64);
                    if console.is_json() {
                        all.extend_from_slice(rewards);
                        spreads.extend_from_slice(spread.unwrap_or_default());
                        return Ok(());
                    }
                    let line = |(i, reward): (usize, &f32)| match spread {
                        Some(spread) => format!("{reward}\t{}", spread[i]),
                        None => reward.to_string(),
                    };
                    print_line(&rewards.iter().enumerate().map(line).collect::<Vec<_>>().join("\n"));
                    Ok(())
                })?;
                bar.finish_and_clear();
                if console.is_json() {
                    let mut value = json!({ "reward": all });
                    if self.spread {
                        value["spread"] = json!(spreads);
                    }
                    console.result(&value, String::new);
                }
            }
        }
        Ok(())
    }
}
