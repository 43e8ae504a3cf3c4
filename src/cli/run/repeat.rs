//! One split of a run, into one folder:
//!
//! ```text
//! seeds -> vae.safetensors -> reward model of each arm -> figures; recipe.json, and synthetic/ on request
//! ```

use std::path::Path;
use std::time::Instant;

use serde_json::json;

use super::curves::{CURVES, write_curves};
use super::data::{Data, DataRows};
use super::files::{PARTS, SPLIT, write_split};
use super::report::Repeat;
use crate::cli::console::Console;
use crate::cli::method::Settings;
use crate::cli::training::{save, show_reward_curve, show_vae_epochs};
use crate::cli::writing::{PROGRESS_EVERY, write_shards};
use crate::data::{PairOptions, PairSource, RECIPE, require_apart};
use crate::engine::Engine;
use crate::error::Result;
use crate::eval::{Arm, ArmResult, Augmentation, Experiment, Split, main_arm};
use crate::matrix::RowSet;
use crate::synth::{OutputKind, Recipe, SynthJob, SynthesisOptions};
use crate::train::{RewardTraining, TrainedVae, VaeTraining};

/// The files of a repeat beside its reward models and the parts of the split.
const FILES: [&str; 6] = [VAE, VAE_WITHOUT_DIVERGENCE, RECIPE, SPLIT, CURVES[0], CURVES[1]];
const VAE: &str = "vae.safetensors";
const VAE_WITHOUT_DIVERGENCE: &str = "vae_no_divergence.safetensors";

/// The file of an arm's model.
fn model_file(arms: &[Arm], arm: Arm) -> String {
    match main_arm(arms) == Some(arm) {
        true => "reward.safetensors".into(),
        false => format!("reward_{arm}.safetensors"),
    }
}

/// What all repeats of a run share.
pub struct Repeats<'a> {
    pub engine: &'a Engine,
    pub console: &'a Console,
    pub data: &'a Data,
    pub rows: &'a DataRows<'a>,
    /// The pairs as the user gave them.
    pub sources: &'a [String],
    pub options: &'a PairOptions,
    /// The synthetic pairs to write beside the recipe, if any.
    pub output: Option<OutputKind>,
    pub overwrite: bool,
}

impl Repeats<'_> {
    /// Trains and measures everything on one split.
    pub fn run(&self, settings: &Settings, split: &Split, folder: &Path) -> Result<Repeat> {
        let models = settings.arms.iter().map(|&arm| model_file(&settings.arms, arm));
        let written = FILES.iter().chain(&PARTS).map(|name| name.to_string()).chain(models);
        require_apart(written.map(|name| folder.join(name)), &self.data.paths())?;
        let files = write_split(folder, self.data, self.rows, split, settings.synthesis.seed)?;
        let seeds = self.rows.seeds(split);
        let start = Instant::now();
        let trained = self.train_vae(&seeds, &settings.vae, &folder.join(VAE))?;
        let vae_seconds = start.elapsed().as_secs_f64();
        let mut no_divergence = settings.vae;
        no_divergence.objective.gamma = 0.0;
        let wanted = settings.arms.iter().any(|arm| arm.augmentation == Augmentation::NoDivergence);
        let without = wanted
            .then(|| self.train_vae(&seeds, &no_divergence, &folder.join(VAE_WITHOUT_DIVERGENCE)))
            .transpose()?;
        let mut experiment = self.rows.experiment(self.data, split, settings);
        experiment.vae = Some(&trained.vae);
        experiment.vae_without_divergence = without.as_ref().map(|without| &without.vae);
        let pairs = json!({
            "seeds": split.seeds.len(),
            "validation": experiment.validation.as_ref().map_or(0, |v| v[0].rows()),
            "test": experiment.test.as_ref().map_or(0, |t| t[0].rows()),
        });
        let held_out = experiment.validation.as_ref().map(|pairs| pairs as &dyn PairSource);
        let health =
            self.engine.vae_health(&trained.vae, &seeds, held_out, &settings.synthesis, &trained.history)?;
        let arms = settings
            .arms
            .iter()
            .map(|&arm| self.run_arm(&experiment, arm, &folder.join(model_file(&settings.arms, arm))));
        let arms = arms.collect::<Result<Vec<_>>>()?;
        write_curves(folder, &trained.history, &arms)?;
        self.write_recipe(files[0].as_deref(), &settings.synthesis, folder)?;
        let map = self.engine.latent_map(&trained.vae, &experiment.seeds, &settings.synthesis)?;
        let gold_order = match &self.data.gold {
            Some(gold) => {
                self.engine.order_curve(&trained.vae, &experiment.seeds, &settings.synthesis, gold)?
            }
            None => Vec::new(),
        };
        Ok(Repeat {
            seed: settings.synthesis.seed,
            folder: folder.to_path_buf(),
            pairs,
            health,
            vae_history: trained.history,
            vae_seconds,
            latent_map: map,
            gold_order,
            arms,
        })
    }

    fn train_vae(&self, seeds: &[RowSet<'_>; 2], options: &VaeTraining, path: &Path) -> Result<TrainedVae> {
        let bar = self.console.bar("VAE", options.epochs as u64, "epochs");
        let trained = self.engine.train_vae(seeds, options, &mut show_vae_epochs(&bar))?;
        bar.finish_and_clear();
        self.data.require_unchanged()?;
        save(&trained.vae, path, [("training", json!(options))])?;
        Ok(trained)
    }

    /// Trains, measures and saves the reward model of an arm.
    fn run_arm(&self, experiment: &Experiment<'_>, arm: Arm, path: &Path) -> Result<ArmResult> {
        let m = experiment.pairs_per_seed()?;
        let bar = self.console.bar(&arm.title(m), most_epochs(&experiment.reward, arm, m), "epochs");
        let (result, model) = self.engine.experiment(experiment, arm, &mut show_reward_curve(&bar))?;
        bar.finish_and_clear();
        self.data.require_unchanged()?;
        // What a reader of the model wants; without the time that it took: the same seed gives the same bytes.
        let figures = json!({
            "arm": arm, "fold": m, "pairs": result.pairs, "steps": result.steps, "best_step": result.best_step,
            "input_noise": result.input_noise, "test": result.test.as_ref().map(|test| &test.report),
        });
        save(&model, path, [("result", figures)])?;
        Ok(result)
    }

    /// Writes the recipe, of the seeds in `file` if they are a part of the data, and on request the synthetic pairs.
    fn write_recipe(&self, file: Option<&Path>, options: &SynthesisOptions, folder: &Path) -> Result<()> {
        let vae = folder.join(VAE);
        let is_part = file.is_some();
        let (recipe, seeds, vae) = if let Some(path) = file {
            let pair_options = PairOptions { io: self.options.io, ..PairOptions::default() };
            Recipe::new(&[path.to_string_lossy().into_owned()], &pair_options, &vae, options)?
        } else {
            Recipe::new(self.sources, self.options, &vae, options)?
        };
        let recipe = recipe.with_absolute_paths()?;
        // Files of the run directory are named relative to the recipe, so that the directory can be moved.
        let recipe_from = |directory: &str| {
            let mut recipe = recipe.clone();
            recipe.vae.path = format!("{directory}vae.safetensors").into();
            if is_part {
                recipe.seeds.sources = vec![format!("{directory}seeds.safetensors")];
            }
            recipe
        };
        recipe_from("").write(&folder.join(RECIPE))?;
        let Some(kind) = self.output.filter(|kind| *kind != OutputKind::Recipe) else { return Ok(()) };
        let (recipe, out) = (recipe_from("../"), folder.join("synthetic"));
        let job = SynthJob { kind, overwrite: self.overwrite, ..SynthJob::new(&recipe, &out) };
        write_shards(self.engine, self.console, ("synthesis", PROGRESS_EVERY), &job, &seeds, &vae).map(drop)
    }
}

/// Most epochs of an arm, for its progress bar.
fn most_epochs(training: &RewardTraining, arm: Arm, pairs_per_seed: u64) -> u64 {
    let epochs = training.updates.count() as u64;
    match arm.augmentation {
        Augmentation::Matched => epochs.saturating_mul(pairs_per_seed),
        _ => epochs,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::Updates;

    #[test]
    fn matched_arms_show_all_their_epochs() {
        let training = RewardTraining { updates: Updates::Epochs(20), ..RewardTraining::default() };
        assert_eq!(most_epochs(&training, Augmentation::Matched.into(), 8), 160);
        assert_eq!(most_epochs(&training, Augmentation::Plain.into(), 8), 20);
        let endless = RewardTraining { updates: Updates::Epochs(usize::MAX), ..training };
        assert_eq!(most_epochs(&endless, Augmentation::Matched.into(), 8), u64::MAX);
    }
}
