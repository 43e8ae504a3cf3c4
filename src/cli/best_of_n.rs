//! `lensmith best-of-n`: the mean gold score of the candidates that a reward model ranks first, and these candidates.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::args::Common;
use super::console::Console;
use super::inputs::require_model_dim;
use super::select::{SelectArgs, open_sets};
use super::table::{count, table};
use crate::data::Checkpoint;
use crate::error::Result;
use crate::eval::{BestOfNCurve, BestOfNPoint, RankCorrelation};
use crate::model::RewardModel;

/// Gold score of a reward model's best of N candidates, or these candidates as text
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lensmith best-of-n candidates.safetensors --model reward.safetensors
  lensmith best-of-n sets/ --model reward.safetensors --texts sampled.jsonl --select sft.jsonl
  lensmith best-of-n sets/ --model m.safetensors --texts t.jsonl --select dpo.jsonl --form dpo

Sets hold `candidates` [prompts, N, d] and `gold` [prompts, N]. Printed is the mean gold score of the
candidate that the model ranks first, for every N.

With --select, which needs no gold scores, the responses themselves are written: the first by reward,
or with --form dpo the first and the last, as TRL's trainers read them. Limits of length and
uncertainty leave out responses; then a prompt is left out if its first response misses --min-reward
or --min-margin. Sets of lm.embed_candidates know their texts, and other texts are refused.")]
pub struct BestOfNArgs {
    /// Best-of-N sets: safetensors files, folders or patterns
    #[arg(required = true, value_name = "SETS")]
    sets: Vec<String>,
    /// Tensor of the candidates' embeddings
    #[arg(long, default_value = "candidates", value_name = "NAME")]
    candidates: String,
    /// Tensor of the gold scores [default: gold; with --select where there is one]
    #[arg(long, value_name = "NAME")]
    gold: Option<String>,
    /// Reward model checkpoint
    #[arg(long, value_name = "FILE")]
    model: PathBuf,
    #[command(flatten)]
    selection: SelectArgs,
}

impl BestOfNArgs {
    pub fn execute(&self, common: &Common, console: &Console) -> Result<()> {
        self.selection.check()?;
        let (model, _) = RewardModel::load(&self.model)?;
        let select = self.selection.select.is_some();
        let gold = self.gold.as_deref();
        let (set, scored) = open_sets(&self.sets, &self.candidates, gold, select, common.io)?;
        require_model_dim(&self.model, &model, set.dim())?;
        let responses = self.selection.responses(&set, (&self.model, &model))?;
        let engine = common.engine()?;
        let figures =
            scored.then(|| engine.best_of_n(&model, &set, set.gold(), set.per_prompt())).transpose()?;
        let selected = responses
            .map(|responses| self.selection.write(&engine, &model, &set, &responses, console))
            .transpose()?;
        let (curve, rank) = figures.unzip();
        let mut value = json!({ "curve": curve, "rank": rank, "select": selected });
        if selected.is_some() {
            value["select"]["out"] = json!(self.selection.select);
        }
        console.result(&value, || {
            let curve = curve.as_ref().zip(rank.as_ref()).map(|(curve, rank)| text(curve, rank));
            let selected = selected.as_ref().map(|summary| self.selection.text(summary));
            curve.into_iter().chain(selected).collect::<Vec<_>>().join("\n\n")
        });
        Ok(())
    }
}

/// The curve for people.
fn text(curve: &BestOfNCurve, rank: &RankCorrelation) -> String {
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
    let shown =
        |point: &&BestOfNPoint| point.candidates.is_power_of_two() || point.candidates == curve.per_prompt;
    let rows: Vec<_> = curve.points.iter().filter(shown).map(line).collect();
    let mut text = format!(
        "{}\ngold {:.4} at random; {} prompts of {} candidates",
        table(&["best of N", "by the model", "by the oracle", "KL (nats)"], &rows),
        curve.random,
        count(curve.prompts),
        curve.per_prompt,
    );
    if let Some(within) = rank.within_prompts {
        text.push_str(&format!("\nSpearman correlation of reward and gold within prompts {within:.4}"));
    }
    text
}
