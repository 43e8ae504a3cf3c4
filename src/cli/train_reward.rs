//! `lensmith train-reward`: pairs, or a recipe, become a reward model checkpoint.

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use serde_json::json;

use super::args::{Common, OutArgs, OutsideArgs, PairArgs, RewardArgs};
use super::console::Console;
use super::inputs::open_held_out;
use super::method::PresetArgs;
use super::table::count;
use super::training::{capped_text, save, show_reward_curve};
use crate::data::{PairSet, PairSource, require_apart};
use crate::error::Result;
use crate::synth::{Recipe, leading_originals};

/// Train a reward model on pairs, or straight from a recipe
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lensmith train-reward synth/ --validation val.safetensors --out reward.safetensors
  lensmith train-reward --recipe synth/recipe.json --validation val.safetensors --out r.safetensors

From a recipe nothing is written, and nothing read but the seeds: synthetic samples stay latents
until a batch needs them. A folder made by synth and its recipe give the same model up to the
rounding of the stored type.")]
pub struct TrainReward {
    /// Pairs: safetensors files, folders or patterns
    #[arg(value_name = "PAIRS", required_unless_present = "recipe", conflicts_with = "recipe")]
    pairs: Vec<String>,
    /// Recipe made by synth
    #[arg(long, value_name = "FILE")]
    recipe: Option<PathBuf>,
    #[command(flatten)]
    outside: OutsideArgs,
    /// Real pairs for early stopping: safetensors files, folders or patterns
    #[arg(long, value_name = "PAIRS", num_args = 1..)]
    validation: Vec<String>,
    #[command(flatten)]
    tensors: PairArgs,
    #[command(flatten)]
    preset: PresetArgs,
    #[command(flatten)]
    reward: RewardArgs,
    #[command(flatten)]
    out: OutArgs,
}

impl TrainReward {
    pub fn execute(&self, common: &Common, console: &Console) -> Result<()> {
        let training = self.reward.training(common.seed)?;
        let out = self.out.check()?;
        let engine = common.engine()?;
        let options = self.tensors.options(common);
        let validation = self.tensors.partial.sources(&self.validation);
        let bar = console.bar("reward model", self.reward.epochs as u64, "epochs");
        let on_point = &mut show_reward_curve(&bar);
        let start = Instant::now();
        let (trained, pairs, source) = match &self.recipe {
            Some(path) => {
                let recipe = Recipe::read(path)?;
                let (seeds, vae) = recipe.open(path, common.io, &self.outside.moved())?;
                let held = open_held_out(&validation, &options, seeds.dim())?;
                let vae_path = recipe.vae_path(path);
                let mut inputs = paths(&seeds, &held);
                inputs.extend([path.as_path(), &vae_path]);
                require_apart([out], &inputs)?;
                let trained = engine.train_reward_on_synthetic(
                    &recipe.options(),
                    &seeds,
                    &vae,
                    held.as_ref().map(|h| h as &dyn PairSource),
                    &training,
                    on_point,
                )?;
                (trained, recipe.plan.pairs(), json!({ "recipe": recipe.settings() }))
            }
            None => {
                let pairs = PairSet::open(&self.tensors.partial.sources(&self.pairs), &options)?;
                let held = open_held_out(&validation, &options, pairs.dim())?;
                require_apart([out], &paths(&pairs, &held))?;
                let scan = pairs.scan()?.sources;
                let leading = leading_originals(&self.pairs, &pairs)?;
                let trained = engine.train_reward(
                    &pairs,
                    leading,
                    held.as_ref().map(|h| h as &dyn PairSource),
                    &training,
                    on_point,
                )?;
                (trained, pairs.len() as u64, json!({ "sources": scan }))
            }
        };
        bar.finish_and_clear();
        let seconds = start.elapsed().as_secs_f64();
        save(&trained.model, out, [("training", json!(training)), ("data", source)])?;
        let best = trained.history.iter().find(|point| point.step == trained.best_step);
        let value = json!({
            "out": out, "size": trained.model.size(), "pairs": pairs, "best_epoch": trained.best_epoch,
            "best_step": trained.best_step, "steps": trained.steps, "capped": trained.capped,
            "history": trained.history, "seconds": seconds, "device": engine.info(),
        });
        console.result(&value, || {
            let held = match best.and_then(|b| b.validation) {
                Some(v) => format!("; validation accuracy {:.3}, loss {:.4}", v.accuracy, v.loss),
                None => "; no validation pairs: the last epoch is kept".into(),
            };
            format!(
                "{}: reward model from {} pairs, epoch {} of {} kept{held}; {:.1} s on {}",
                out.display(),
                count(pairs),
                trained.best_epoch,
                trained.history.last().map_or(0, |point| point.epoch),
                seconds,
                engine.info().name,
            ) + &if trained.capped {
                format!("\nwarning: {}", capped_text("the reward model"))
            } else {
                String::new()
            }
        });
        Ok(())
    }
}

/// The files of pairs and of validation pairs.
fn paths<'a>(pairs: &'a PairSet, held: &'a Option<PairSet>) -> Vec<&'a Path> {
    pairs.paths().into_iter().chain(held.iter().flat_map(PairSet::paths)).collect()
}
