//! One split of an experiment: a VAE, and a reward model for each arm.

use std::sync::Mutex;

use lensmith::{
    Additions, Arm, Augmentation, Block, Experiment, PairSource, RewardTraining, RowSet, Side,
    SynthesisOptions, VaeTraining,
};
use pyo3::prelude::*;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::engine::Engine;
use crate::error::{raise, settings};
use crate::pairs::Pairs;

/// Settings of the whole method.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    vae: VaeTraining,
    synthesis: SynthesisOptions,
    reward: RewardTraining,
    additions: Additions,
}

fn rows<'b>(sides: &'b [Block<'_>; 2]) -> [RowSet<'b>; 2] {
    sides.each_ref().map(|side| side.view())
}

/// Trains and measures arms on the seed, validation and test pairs of a split; gives figures as JSON, as an entry of
/// `repeats` in the program's run.json. `on_step` gets the name of each step before it starts.
#[pyfunction]
pub fn compare_split(
    py: Python<'_>,
    engine: &Bound<'_, Engine>,
    split: [Bound<'_, Pairs>; 3],
    arms: Vec<String>,
    method: &str,
    on_step: Option<Py<PyAny>>,
) -> PyResult<String> {
    let method: Settings = settings(method)?;
    let arms: Vec<Arm> = arms.iter().map(|arm| arm.parse().map_err(raise)).collect::<PyResult<_>>()?;
    let (opened, failed) = (engine.get().get()?, Mutex::new(None));
    let [seeds, validation, test] = split.each_ref().map(|pairs| pairs.get());
    let figures = opened.work(py, &failed, |engine| {
        let step = |name: &str| {
            if let Some(on_step) = &on_step {
                opened.call(&failed, |py| on_step.call1(py, (name,)).map(drop));
            }
        };
        step("vae");
        let trained = engine.train_vae(seeds, &method.vae, &mut |_, _| ())?;
        let mut no_divergence = method.vae;
        no_divergence.objective.gamma = 0.0;
        let wanted = arms.iter().any(|arm| arm.augmentation == Augmentation::NoDivergence);
        let without = wanted.then(|| engine.train_vae(seeds, &no_divergence, &mut |_, _| ())).transpose()?;
        let blocks = [seeds, validation, test].map(|pairs| {
            let all = 0..pairs.pairs();
            Ok::<_, lensmith::Error>([pairs.block(Side::Chosen, all.clone())?, pairs.block(Side::Rejected, all)?])
        });
        let [seed_rows, validation_rows, test_rows] = blocks;
        let (seed_rows, validation_rows, test_rows) = (seed_rows?, validation_rows?, test_rows?);
        let mut experiment = Experiment::new(rows(&seed_rows), method.synthesis, method.reward);
        experiment.validation = Some(rows(&validation_rows));
        experiment.test = Some(rows(&test_rows));
        experiment.test_groups = test.prompts().map(<[i64]>::to_vec);
        experiment.additions = method.additions.clone();
        experiment.vae = Some(&trained.vae);
        experiment.vae_without_divergence = without.as_ref().map(|without| &without.vae);
        let synthesis = &method.synthesis;
        let health = engine.vae_health(&trained.vae, seeds, Some(validation), synthesis, &trained.history)?;
        let mut results = Vec::new();
        for &arm in &arms {
            step(&arm.to_string());
            let (result, _) = engine.experiment(&experiment, arm, &mut |_| ())?;
            results.push(json!(result));
        }
        let pairs = json!({ "seeds": seeds.pairs(), "validation": validation.pairs(), "test": test.pairs() });
        Ok::<Value, lensmith::Error>(json!({
            "seed": synthesis.seed, "pairs": pairs, "health": health, "vae_history": trained.history, "arms": results,
        }))
    })?;
    Ok(figures.to_string())
}
