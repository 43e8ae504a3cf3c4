//! `lensmith best-of-n`: the mean gold score of the candidates that a reward model ranks first.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::args::Common;
use super::console::Console;
use super::inputs::require_model_dim;
use super::table::{count, table};
use crate::data::{CandidateSet, Checkpoint};
use crate::error::Result;
use crate::eval::BestOfNPoint;
use crate::model::RewardModel;

/// Mean gold score of the best of N candidates by a reward model, for every N
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
        let engine = common.engine()?;
        let (curve, rank) = engine.best_of_n(&model, &set, set.gold(), set.per_prompt())?;
        console.result(&json!({ "curve": curve, "rank": rank }), || {
            let line = |point: &BestOfNPoint| {
                [
                    point.candidates.to_string(),
                    format!("{:.4}", point.model),
                    format!("{:.4}", point.oracle),
                    format!("{:.2}", point.kl),
                ]
                .to_vec()
            };
            // Powers of two, and all.
            let shown = |point: &&BestOfNPoint| {
                point.candidates.is_power_of_two() || point.candidates == curve.per_prompt
            };
            let rows: Vec<_> = curve.points.iter().filter(shown).map(line).collect();
            let mut text = format!(
                "{}\ngold {:.4} at random; {} prompts of {} candidates",
                table(&["best of N", "by the model", "by the oracle", "KL (nats)"], &rows),
                curve.random,
                count(curve.prompts),
                curve.per_prompt,
            );
            if let Some(within) = rank.within_prompts {
                text.push_str(&format!(
                    "\nSpearman correlation of reward and gold within prompts {within:.4}"
                ));
            }
            text
        });
        Ok(())
    }
}
