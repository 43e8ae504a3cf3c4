//! `lensmith train-reward`.

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use serde_json::json;

use super::args::{Common, OutArgs, PairArgs, RewardArgs};
use super::console::Console;
use super::table::count;
use crate::data::{Manifest, PairSet, manifests};
use crate::error::{Error, Result};
use crate::model::{Checkpoint, Provenance};
use crate::synth::Recipe;

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
    /// Real pairs for early stopping: safetensors files, folders or patterns
    #[arg(long, value_name = "PAIRS", num_args = 1..)]
    validation: Vec<String>,
    #[command(flatten)]
    tensors: PairArgs,
    #[command(flatten)]
    reward: RewardArgs,
    #[command(flatten)]
    out: OutArgs,
}

impl TrainReward {
    pub fn execute(&self, common: &Common, console: &Console) -> Result<()> {
        let how = self.reward.training(common.seed)?;
        let out = self.out.check()?;
        let engine = common.engine()?;
        let options = self.tensors.options(common);
        let validation = match self.validation.as_slice() {
            [] => None,
            sources => Some(open_checked(sources, &options)?),
        };
        let bar = console.bar("reward model", self.reward.epochs as u64, "epochs");
        let mut on_epoch = |epoch: &crate::train::RewardEpoch| {
            bar.inc(1);
            bar.set_message(match epoch.validation {
                Some(v) => {
                    format!("loss {:.4}, validation {:.4} / {:.3}", epoch.train_loss, v.loss, v.accuracy)
                }
                None => format!("loss {:.4}", epoch.train_loss),
            });
        };
        let start = Instant::now();
        let (trained, pairs, source) = match &self.recipe {
            Some(path) => {
                let recipe = Recipe::read(path)?;
                let (seeds, vae) = recipe.open(path, common.io)?;
                same_dim(validation.as_ref(), seeds.dim())?;
                let held = validation.as_ref();
                let trained =
                    engine.train_reward_from_recipe(&recipe, &seeds, &vae, held, &how, &mut on_epoch)?;
                (trained, recipe.plan.pairs(), json!({ "recipe": recipe.settings() }))
            }
            None => {
                let pairs = PairSet::open(&self.pairs, &options)?;
                same_dim(validation.as_ref(), pairs.dim())?;
                let scan = pairs.scan()?.sources;
                let leading = leading_originals(&self.pairs, &pairs)?;
                let held = validation.as_ref();
                let trained = engine.train_reward(&pairs, leading, held, &how, &mut on_epoch)?;
                (trained, pairs.len() as u64, json!({ "sources": scan }))
            }
        };
        bar.finish_and_clear();
        let seconds = start.elapsed().as_secs_f64();
        let provenance = Provenance::from([
            ("lensmith.version".into(), env!("CARGO_PKG_VERSION").into()),
            ("lensmith.training".into(), json!(how).to_string()),
            ("lensmith.data".into(), source.to_string()),
        ]);
        trained.model.save(out, &provenance)?;
        let best = trained.history.get(trained.best_epoch.saturating_sub(1)).copied();
        let value = json!({
            "out": out, "size": trained.model.size(), "pairs": pairs, "best_epoch": trained.best_epoch,
            "steps": trained.steps, "history": trained.history, "seconds": seconds, "device": engine.info(),
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
                trained.history.len(),
                seconds,
                engine.info().name,
            )
        });
        Ok(())
    }
}

/// Opens pairs and looks at every value.
pub fn open_checked(sources: &[String], options: &crate::data::PairOptions) -> Result<PairSet> {
    let pairs = PairSet::open(sources, options)?;
    pairs.scan()?;
    Ok(pairs)
}

/// Held-out pairs must have the training pairs' dimension.
pub fn same_dim(held: Option<&PairSet>, dim: usize) -> Result<()> {
    match held {
        Some(held) if held.dim() != dim => {
            let file = held.files().first().map(|f| f.path.display().to_string()).unwrap_or_default();
            let expected = format!("{dim}, that of the training pairs");
            Err(Error::shape(format!("{file}: embedding dimension"), expected, held.dim()))
        }
        _ => Ok(()),
    }
}

/// For one folder made by `synth` as a whole: the number of leading pairs that are the originals, with which a recipe
/// standardises.
fn leading_originals(sources: &[String], pairs: &PairSet) -> Result<Option<usize>> {
    let [folder] = sources else { return Ok(None) };
    if !Path::new(folder).is_dir() {
        return Ok(None);
    }
    // Any of them: parts of a run have the same settings.
    let Some(path) = manifests(Path::new(folder))?.into_iter().next() else { return Ok(None) };
    let manifest = Manifest::read(&path)?;
    let seeds = manifest.settings["plan"]["seeds"].as_u64();
    Ok(seeds.filter(|_| manifest.pairs == pairs.len() as u64).map(|n| n as usize))
}
