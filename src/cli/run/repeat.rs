//! One split of a run, into one folder:
//!
//! ```text
//! seeds -> vae.safetensors -> reward model of each arm -> figures; recipe.json, and synthetic/ on request
//! ```

use std::path::Path;
use std::time::Instant;

use serde_json::json;

use super::data::{Data, DataRows};
use super::report::Repeat;
use crate::cli::console::Console;
use crate::cli::training::{save, show_reward_epochs, show_vae_epochs};
use crate::cli::writing::{PROGRESS_EVERY, write_shards};
use crate::data::{PairOptions, PairSource, RECIPE, require_apart, write_pairs};
use crate::engine::Engine;
use crate::error::Result;
use crate::eval::{Arm, ArmResult, Experiment, Split};
use crate::matrix::RowSet;
use crate::synth::{OutputKind, Recipe, SynthJob, SynthesisOptions};
use crate::train::{RewardTraining, TrainedVae, VaeTraining};

/// The files of a repeat.
const FILES: [&str; 5] =
    ["vae.safetensors", "reward_none.safetensors", "reward.safetensors", RECIPE, "seeds.safetensors"];

/// The settings of a run, for one seed.
pub struct Settings {
    pub vae: VaeTraining,
    pub synthesis: SynthesisOptions,
    pub reward: RewardTraining,
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
        require_apart(FILES.iter().map(|name| folder.join(name)), &self.data.paths())?;
        let seeds = self.rows.seeds(split);
        let start = Instant::now();
        let trained = self.train_vae(&seeds, &settings.vae, folder)?;
        let vae_seconds = start.elapsed().as_secs_f64();
        let (validation, test) = (self.rows.validation(split), self.rows.test(split));
        let pairs = json!({
            "seeds": split.seeds.len(),
            "validation": validation.as_ref().map_or(0, |v| v[0].rows()),
            "test": test[0].rows(),
        });
        let held_out = validation.as_ref().map(|pairs| pairs as &dyn PairSource);
        let health =
            self.engine.vae_health(&trained.vae, &seeds, held_out, &settings.synthesis, &trained.history)?;
        let experiment = Experiment {
            seeds,
            validation,
            test: Some(test),
            candidates: self.rows.candidates(),
            vae: Some(&trained.vae),
            synthesis: settings.synthesis,
            reward: settings.reward,
        };
        let (plan, _) = settings.synthesis.plan(split.seeds.len())?;
        let pairs_per_seed = plan.pairs_per_seed;
        let lens = Arm::Lens { pairs_per_seed, mode: settings.synthesis.mode };
        let arms = vec![
            self.run_arm(&experiment, Arm::None, folder, Some("reward_none.safetensors"))?,
            self.run_arm(&experiment, Arm::NoneMatched { pairs_per_seed }, folder, None)?,
            self.run_arm(&experiment, lens, folder, Some("reward.safetensors"))?,
        ];
        // Without validation the last epoch is kept by rule.
        let at_cap = |result: &&ArmResult| {
            experiment.validation.is_some()
                && result.best_epoch as u64 == most_epochs(&settings.reward, result.arm)
        };
        let capped = arms.iter().filter(at_cap).map(|result| result.arm).collect();
        self.write_recipe(&experiment.seeds, &settings.synthesis, folder)?;
        Ok(Repeat {
            seed: settings.synthesis.seed,
            folder: folder.to_path_buf(),
            pairs,
            vae_loss: json!(trained.history.last()),
            health,
            capped,
            vae_seconds,
            arms,
        })
    }

    fn train_vae(&self, seeds: &[RowSet<'_>; 2], options: &VaeTraining, folder: &Path) -> Result<TrainedVae> {
        let bar = self.console.bar("VAE", options.epochs as u64, "epochs");
        let trained = self.engine.train_vae(seeds, options, &mut show_vae_epochs(&bar))?;
        bar.finish_and_clear();
        self.data.require_unchanged()?;
        save(&trained.vae, &folder.join("vae.safetensors"), [("training", json!(options))])?;
        Ok(trained)
    }

    /// Trains and measures the reward model of an arm; saves it as `name`, if there is one.
    fn run_arm(
        &self,
        experiment: &Experiment<'_>,
        arm: Arm,
        folder: &Path,
        name: Option<&str>,
    ) -> Result<ArmResult> {
        let bar = self.console.bar(&arm.to_string(), most_epochs(&experiment.reward, arm), "epochs");
        let (result, model) = self.engine.experiment(experiment, arm, &mut show_reward_epochs(&bar))?;
        bar.finish_and_clear();
        self.data.require_unchanged()?;
        if let Some(name) = name {
            // Without the time that it took: the same seed gives the same bytes.
            let mut result = json!(result);
            result.as_object_mut().map(|figures| figures.remove("seconds"));
            save(&model, &folder.join(name), [("result", result)])?;
        }
        Ok(result)
    }

    /// Writes the recipe, before it the seeds if they are a part of the data, and on request the synthetic
    /// pairs.
    fn write_recipe(&self, seeds: &[RowSet<'_>; 2], options: &SynthesisOptions, folder: &Path) -> Result<()> {
        let vae = folder.join("vae.safetensors");
        let is_part = seeds[0].rows() < self.data.pairs.len();
        let (recipe, seeds, vae) = if is_part {
            let path = folder.join("seeds.safetensors");
            write_pairs(&path, [&seeds[0], &seeds[1]])?;
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
fn most_epochs(training: &RewardTraining, arm: Arm) -> u64 {
    let epochs = training.updates.count() as u64;
    match arm {
        Arm::NoneMatched { pairs_per_seed } => epochs.saturating_mul(pairs_per_seed),
        _ => epochs,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::DecodeMode;
    use crate::train::Updates;

    #[test]
    fn matched_arms_show_all_their_epochs() {
        let training = RewardTraining { updates: Updates::Epochs(20), ..RewardTraining::default() };
        assert_eq!(most_epochs(&training, Arm::NoneMatched { pairs_per_seed: 8 }), 160);
        assert_eq!(most_epochs(&training, Arm::Lens { pairs_per_seed: 8, mode: DecodeMode::Plain }), 20);
        let endless = RewardTraining { updates: Updates::Epochs(usize::MAX), ..training };
        assert_eq!(most_epochs(&endless, Arm::NoneMatched { pairs_per_seed: 8 }), u64::MAX);
    }
}
