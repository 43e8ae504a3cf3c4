//! `lensmith best-of-n`: the mean gold score of the candidates that a reward model ranks first.

use std::path::PathBuf;

use clap::Args;

use super::args::Common;
use super::console::Console;
use super::inputs::require_model_dim;
use super::table::count;
use crate::data::{CandidateSet, Checkpoint};
use crate::error::Result;
use crate::model::RewardModel;

/// Mean gold score of the candidate that a reward model ranks first
#[derive(Debug, Args)]
#[command(after_help = "Example:
  lensmith best-of-n candidates.safetensors --model reward.safetensors

Sets hold `candidates` [prompts, N, d] and `gold` [prompts, N].")]
pub struct BestOfNArgs {
    /// Best-of-N sets: safetensors files, folders or patterns
    #[arg(required = true, value_name = "SETS")]
    sets: Vec<String>,
    /// Tensor of the candidates' embeddings
    #[arg(long, default_value = "candidates", value_name = "NAME")]
    candidates: String,
    /// Tensor of the gold scores
    #[arg(long, default_value = "gold", value_name = "NAME")]
    gold: String,
    /// Reward model checkpoint
    #[arg(long, value_name = "FILE")]
    model: PathBuf,
}

impl BestOfNArgs {
    pub fn execute(&self, common: &Common, console: &Console) -> Result<()> {
        let (model, _) = RewardModel::load(&self.model)?;
        let set = CandidateSet::open(&self.sets, &self.candidates, &self.gold, common.io)?;
        require_model_dim(&self.model, &model, set.dim())?;
        let found = common.engine()?.best_of_n(&model, &set, set.gold(), set.per_prompt())?;
        console.result(&found, || {
            format!(
                "best-of-{}: {:.4} by the model, {:.4} at random, {:.4} by the oracle ({} prompts)",
                found.per_prompt,
                found.model,
                found.random,
                found.oracle,
                count(found.prompts)
            )
        });
        Ok(())
    }
}
