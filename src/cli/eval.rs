//! `lensmith eval`: accuracy, loss, calibration and margins of a reward model on held-out pairs.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::args::{Common, OutsideArgs, PairArgs};
use super::console::Console;
use super::inputs::{open_checked, require_model_dim};
use super::table::count;
use crate::data::Checkpoint;
use crate::error::Result;
use crate::eval::Interval;
use crate::model::RewardModel;
use crate::synth::Recipe;

/// Accuracy, loss, calibration and margins of a reward model on held-out pairs
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lensmith eval test.safetensors --model reward.safetensors
  lensmith eval test.safetensors --model reward.safetensors --recipe synth/recipe.json

Intervals are bootstrapped over pairs, or over prompts where the pairs have a tensor `group`.
With --recipe also the share of synthetic pairs that the model orders as their seeds (order
preservation).")]
pub struct Eval {
    /// Held-out pairs: safetensors files, folders or patterns
    #[arg(required = true, value_name = "PAIRS")]
    pairs: Vec<String>,
    #[command(flatten)]
    tensors: PairArgs,
    /// Reward model checkpoint
    #[arg(long, value_name = "FILE")]
    model: PathBuf,
    /// Recipe whose synthetic pairs are looked at for order preservation
    #[arg(long, value_name = "FILE")]
    recipe: Option<PathBuf>,
    #[command(flatten)]
    outside: OutsideArgs,
}

impl Eval {
    pub fn execute(&self, common: &Common, console: &Console) -> Result<()> {
        let (model, _) = RewardModel::load(&self.model)?;
        let pairs = open_checked(&self.tensors.partial.sources(&self.pairs), &self.tensors.options(common))?;
        require_model_dim(&self.model, &model, pairs.dim())?;
        let engine = common.engine()?;
        let metrics = engine.evaluate(&model, &pairs, pairs.group().as_deref())?;
        let order = match &self.recipe {
            Some(path) => {
                let recipe = Recipe::read(path)?;
                let (seeds, vae) = recipe.open(path, common.io, &self.outside.moved())?;
                require_model_dim(&self.model, &model, seeds.dim())?;
                Some(engine.order_preservation(&recipe.options(), &seeds, &vae, &model)?)
            }
            None => None,
        };
        console.result(&json!({ "pairs": metrics, "order": order }), || {
            let r = &metrics.report;
            let interval = |interval: &Option<Interval>| match interval {
                Some(i) => format!(" (95 %: {:.4} to {:.4})", i.low, i.high),
                None => String::new(),
            };
            let mut text = format!(
                "accuracy {:.4}{}, loss {:.4}{} on {} pairs\n\
                 calibration error {:.4}, Brier score {:.4}; margins {:.3}, half of them from {:.3} to {:.3}",
                r.accuracy,
                interval(&metrics.accuracy_interval),
                r.loss,
                interval(&metrics.loss_interval),
                count(r.pairs),
                r.calibration.expected_error,
                r.calibration.brier,
                r.margins.mean,
                r.margins.quantiles[1],
                r.margins.quantiles[3],
            );
            if let Some(o) = order {
                text.push_str(&format!(
                    "\norder preserved in {:.4} of {} synthetic pairs; chosen higher in {:.4}",
                    o.preserved,
                    count(o.pairs),
                    o.chosen_higher
                ));
            }
            text
        });
        Ok(())
    }
}
