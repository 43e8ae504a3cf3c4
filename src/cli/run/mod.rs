//! `lensmith run`: the whole method into a run directory.

mod report;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use report::{Repeat, Report};
use serde_json::json;

use super::args::{Common, Named, PairArgs, RewardArgs, SynthArgs, VaeArgs, positive};
use super::console::Console;
use super::inputs::open_held_out;
use super::training::{save, show_reward_epochs, show_vae_epochs};
use super::writing::{PROGRESS_EVERY, write_shards};
use crate::data::{
    CandidateSet, FolderLock, PairOptions, PairSet, RowBlock, SourceFile, WriteMode, write_atomic,
    write_pairs,
};
use crate::dtype::Dtype;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::eval::{Arm, Candidates, Experiment, Split, SplitOptions, split};
use crate::matrix::{RowSet, Side};
use crate::model::{RewardSize, VaeSize};
use crate::synth::{OutputKind, Part, Recipe, SynthJob, SynthesisOptions};
use crate::train::{RewardTraining, Shuffle, VaeTraining};

/// The whole method: VAE, synthesis, reward models, and their figures, into a run directory
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lensmith run pairs.safetensors --seeds 1000 --validation-pairs 300 --out runs/first
  lensmith run seeds.safetensors --validation val.safetensors --test test.safetensors \\
      --candidates best_of_16.safetensors --fold 8 --mode residual --out runs/second
  lensmith run pairs.safetensors --seeds 1000 --repeats 3 --out runs/third    three random splits

One data set is cut at random (whole groups, if it has a tensor `group`) into --seeds seed pairs,
--validation-pairs for early stopping, and the rest for the test; or give --validation and --test.
The run directory gets run.json (settings, versions, checksums, figures), vae.safetensors,
reward.safetensors, reward_none.safetensors and recipe.json; with --repeats one folder a split.")]
pub struct Run {
    /// Preference pairs: safetensors files, folders or patterns
    #[arg(required = true, value_name = "PAIRS")]
    pairs: Vec<String>,
    #[command(flatten)]
    tensors: PairArgs,
    /// Tensor that says which pairs belong to one prompt [default: `group`, where there is one]
    #[arg(long, value_name = "NAME")]
    group: Option<String>,
    /// Seed pairs to take; the rest is for validation and test [default: all, if --test is given]
    #[arg(long, value_name = "N")]
    seeds: Option<usize>,
    /// Pairs to take for early stopping
    #[arg(long, value_name = "N", default_value_t = SplitOptions::default().validation, conflicts_with = "validation")]
    validation_pairs: usize,
    /// Pairs for early stopping, from files of their own
    #[arg(long, value_name = "PAIRS", num_args = 1..)]
    validation: Vec<String>,
    /// Held-out pairs, from files of their own
    #[arg(long, value_name = "PAIRS", num_args = 1..)]
    test: Vec<String>,
    /// Best-of-N sets (`candidates` [prompts, N, d], `gold` [prompts, N])
    #[arg(long, value_name = "SETS", num_args = 1..)]
    candidates: Vec<String>,
    /// Run directory
    #[arg(long, short, value_name = "FOLDER")]
    out: PathBuf,
    /// Random splits (and seeds) to repeat the run over
    #[arg(long, default_value_t = 1, value_name = "N")]
    repeats: usize,
    /// Write the synthetic pairs as well: embeddings or latents
    #[arg(long, value_name = "WHAT")]
    output: Option<Named<OutputKind>>,
    /// Replace an earlier run
    #[arg(long)]
    overwrite: bool,
    #[command(flatten)]
    vae: VaeArgs,
    #[command(flatten)]
    synthesis: SynthArgs,
    #[command(flatten)]
    reward: RewardArgs,
}

/// The data of a run, opened and checked.
struct Data {
    pairs: PairSet,
    validation: Option<PairSet>,
    test: Option<PairSet>,
    candidates: Option<CandidateSet>,
    sources: Vec<SourceFile>,
}

impl Data {
    /// Fails if a file was altered since it was opened; called before anything made from the data is saved.
    fn require_unchanged(&self) -> Result<()> {
        let sets = [Some(&self.pairs), self.validation.as_ref(), self.test.as_ref()];
        sets.into_iter().flatten().try_for_each(PairSet::require_unchanged)?;
        self.candidates.as_ref().map_or(Ok(()), CandidateSet::require_unchanged)
    }
}

/// The checked settings of a run.
struct Settings {
    vae: VaeTraining,
    synthesis: SynthesisOptions,
    reward: RewardTraining,
}

impl Run {
    pub fn execute(&self, common: &Common, console: &Console) -> Result<()> {
        positive("--repeats", self.repeats)?;
        self.settings(common.seed)?;
        let data = self.open(common)?;
        self.check(common, &data)?;
        let run_json = self.out.join("run.json");
        if !self.overwrite && fs::exists(&run_json).map_err(Error::io("open", &run_json))? {
            return Err(Error::Exists { path: run_json, hint: "--overwrite replaces the run".into() });
        }
        fs::create_dir_all(&self.out).map_err(Error::io("create", &self.out))?;
        let _lock = FolderLock::acquire(&self.out, "run")?;
        let engine = common.engine()?;
        let start = Instant::now();
        let mut repeats = Vec::new();
        for r in 0..self.repeats {
            let seed = common.seed.wrapping_add(r as u64);
            let folder = match self.repeats {
                1 => self.out.clone(),
                _ => self.out.join(format!("seed-{seed}")),
            };
            fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
            repeats.push(self.repeat(&engine, console, common, &data, seed, &folder)?);
        }
        let settings = self.settings(common.seed)?;
        let report = Report {
            format: 1,
            lensmith: env!("CARGO_PKG_VERSION"),
            device: engine.info(),
            seed: common.seed,
            sources: json!({
                "pairs": data.sources,
                "validation": data.validation.as_ref().map(|v| v.scan()).transpose()?.map(|s| s.sources),
                "test": data.test.as_ref().map(|v| v.scan()).transpose()?.map(|s| s.sources),
                "candidates": self.candidates,
            }),
            settings: json!({
                "vae": settings.vae,
                "reward": settings.reward,
                "fold": settings.synthesis.pairs_per_seed,
                "per_side": settings.synthesis.per_side,
                "pairing": settings.synthesis.pairing,
                "sigma2": settings.synthesis.sigma2,
                "oversample": settings.synthesis.oversample,
                "likelihood": settings.synthesis.likelihood,
                "source": settings.synthesis.source,
                "mode": settings.synthesis.mode,
            }),
            repeats,
            seconds: start.elapsed().as_secs_f64(),
        };
        let mut text = serde_json::to_string_pretty(&report).expect("a report is plain data");
        text.push('\n');
        write_atomic(&run_json, text.as_bytes())?;
        console.result(&report, || report.text(&run_json));
        Ok(())
    }

    fn settings(&self, seed: u64) -> Result<Settings> {
        Ok(Settings {
            vae: self.vae.training(seed)?,
            synthesis: self.synthesis.options(seed),
            reward: self.reward.training(seed)?,
        })
    }

    fn open(&self, common: &Common) -> Result<Data> {
        let options = PairOptions { group: self.group.clone(), ..self.tensors.options(common) };
        let pairs = PairSet::open(&self.pairs, &options)?;
        let sources = pairs.scan()?.sources;
        let held = PairOptions { group: None, ..options };
        let validation = open_held_out(&self.validation, &held, pairs.dim())?;
        let test = open_held_out(&self.test, &held, pairs.dim())?;
        let candidates = match self.candidates.as_slice() {
            [] => None,
            sets => Some(CandidateSet::open(sets, "candidates", "gold", common.io)?),
        };
        if let Some(set) = candidates.as_ref().filter(|c| c.dim() != pairs.dim()) {
            let what = format!("{}: embedding dimension", self.candidates.join(", "));
            return Err(Error::shape(what, format!("{}, that of the pairs", pairs.dim()), set.dim()));
        }
        if self.seeds.is_none() && test.is_none() {
            return Err(Error::option(
                "--seeds",
                format!("how many of the {} pairs are seeds, or --test with held-out pairs", pairs.len()),
                "neither",
            ));
        }
        Ok(Data { pairs, validation, test, candidates, sources })
    }

    /// Fails on the sizes, plans and splits that training would fail on, before anything is written.
    fn check(&self, common: &Common, data: &Data) -> Result<()> {
        let Settings { vae, synthesis, reward } = self.settings(common.seed)?;
        VaeSize::new(data.pairs.dim(), vae.hidden, vae.latent)?;
        RewardSize::new(data.pairs.dim(), reward.hidden)?;
        synthesis.plan(self.cut(data, common.seed)?.seeds.len())?;
        Ok(())
    }

    /// Which rows of the pairs are seeds, validation and test.
    fn cut(&self, data: &Data, seed: u64) -> Result<Split> {
        let n = data.pairs.len();
        let everything = |n: usize| (0..n).collect::<Vec<usize>>();
        match (self.seeds, data.validation.is_some(), data.test.is_some()) {
            (None, _, _) => Ok(Split { seeds: everything(n), validation: Vec::new(), test: Vec::new() }),
            (Some(seeds), validation_apart, test_apart) => {
                let validation = if validation_apart { 0 } else { self.validation_pairs };
                // Nothing is left for a test set, and with one of its own nothing needs to be.
                if test_apart && seeds.checked_add(validation) == Some(n) {
                    let mut rows = everything(n);
                    Shuffle::Split.apply(seed, &mut rows);
                    let held = rows.split_off(seeds);
                    return Ok(Split { seeds: rows, validation: held, test: Vec::new() });
                }
                let options = SplitOptions { seeds, validation, seed };
                split(n, data.pairs.group().as_deref(), &options)
            }
        }
    }

    fn repeat(
        &self,
        engine: &Engine,
        console: &Console,
        common: &Common,
        data: &Data,
        seed: u64,
        folder: &Path,
    ) -> Result<Repeat> {
        let Settings { vae, synthesis, reward } = self.settings(seed)?;
        let cut = self.cut(data, seed)?;
        let blocks = sides(&data.pairs)?;
        let all = [blocks[0].view(), blocks[1].view()];
        let pick = |rows: &[usize]| [all[0].pick(rows), all[1].pick(rows)];
        let seeds = pick(&cut.seeds);
        synthesis.plan(cut.seeds.len())?;

        let validation_blocks = data.validation.as_ref().map(sides).transpose()?;
        let validation = match &validation_blocks {
            Some(v) => Some([v[0].view(), v[1].view()]),
            None => (!cut.validation.is_empty()).then(|| pick(&cut.validation)),
        };
        let test_blocks = data.test.as_ref().map(sides).transpose()?;
        let test = match &test_blocks {
            Some(t) => [t[0].view(), t[1].view()],
            None => pick(&cut.test),
        };
        let candidate_rows = match &data.candidates {
            Some(c) => Some((c.rows(0..c.gold().len())?, c)),
            None => None,
        };

        let bar = console.bar("VAE", vae.epochs as u64, "epochs");
        let start = Instant::now();
        let trained = engine.train_vae_rows(&seeds, &vae, &mut show_vae_epochs(&bar))?;
        bar.finish_and_clear();
        let vae_seconds = start.elapsed().as_secs_f64();
        data.require_unchanged()?;
        save(&trained.vae, &folder.join("vae.safetensors"), [("training", json!(vae))])?;

        let counts = json!({
            "seeds": cut.seeds.len(),
            "validation": validation.as_ref().map_or(0, |v| v[0].rows()),
            "test": test[0].rows(),
        });
        let experiment = Experiment {
            seeds,
            validation,
            test: Some(test),
            candidates: candidate_rows.as_ref().map(|(rows, set)| Candidates {
                rows: rows.view(),
                gold: set.gold(),
                per_prompt: set.per_prompt(),
            }),
            vae: Some(&trained.vae),
            synthesis,
            reward,
        };
        let (plan, _) = synthesis.plan(cut.seeds.len())?;
        let pairs_per_seed = plan.pairs_per_seed;
        let arms = [
            Arm::None,
            Arm::NoneMatched { pairs_per_seed },
            Arm::Lens { pairs_per_seed, mode: synthesis.mode },
        ];
        let mut results = Vec::new();
        for arm in arms {
            let bar = console.bar(&arm.to_string(), reward_epochs(&reward, arm), "epochs");
            let (result, model) = engine.experiment(&experiment, arm, &mut show_reward_epochs(&bar))?;
            bar.finish_and_clear();
            data.require_unchanged()?;
            let name = match arm {
                Arm::None => Some("reward_none.safetensors"),
                Arm::Lens { .. } => Some("reward.safetensors"),
                _ => None,
            };
            if let Some(name) = name {
                save(&model, &folder.join(name), [("result", json!(result))])?;
            }
            results.push(result);
        }
        let subset = cut.seeds.len() < data.pairs.len();
        self.write_recipe(engine, console, common, (&experiment.seeds, subset), &synthesis, folder)?;
        Ok(Repeat {
            seed,
            folder: folder.to_path_buf(),
            pairs: counts,
            vae_loss: json!(trained.history.last()),
            vae_seconds,
            arms: results,
        })
    }

    /// Writes the seeds (where they are a part of the data) and the recipe, and on request the synthetic pairs.
    fn write_recipe(
        &self,
        engine: &Engine,
        console: &Console,
        common: &Common,
        (seeds, cut): (&[RowSet<'_>; 2], bool),
        options: &SynthesisOptions,
        folder: &Path,
    ) -> Result<()> {
        let vae = folder.join("vae.safetensors");
        let (sources, pair_options) = if cut {
            let path = folder.join("seeds.safetensors");
            write_pairs(&path, [&seeds[0], &seeds[1]])?;
            (
                vec![path.to_string_lossy().into_owned()],
                PairOptions { io: common.io, ..PairOptions::default() },
            )
        } else {
            (self.pairs.clone(), PairOptions { group: None, ..self.tensors.options(common) })
        };
        let (mut recipe, set, vae) = Recipe::new(&sources, &pair_options, &vae, options)?;
        // The recipe names files of the run directory relative to itself, so that the directory can be moved.
        recipe = recipe.with_absolute_paths()?;
        recipe.vae.path = "vae.safetensors".into();
        if cut {
            recipe.seeds.sources = vec!["seeds.safetensors".into()];
        }
        recipe.write(&folder.join("recipe.json"))?;
        let kind = match self.output {
            None | Some(Named(OutputKind::Recipe)) => return Ok(()),
            Some(Named(kind)) => kind,
        };
        let out = folder.join("synthetic");
        recipe.vae.path = "../vae.safetensors".into();
        if cut {
            recipe.seeds.sources = vec!["../seeds.safetensors".into()];
        }
        let job = SynthJob {
            recipe: &recipe,
            out: &out,
            kind,
            dtype: Dtype::Bf16,
            shard_rows: None,
            part: Part::WHOLE,
            overwrite: self.overwrite,
            write: WriteMode::default(),
            latents: None,
        };
        write_shards(engine, console, ("synthesis", PROGRESS_EVERY), &job, &set, &vae)?;
        Ok(())
    }
}

/// Most epochs of an arm, for its progress bar.
fn reward_epochs(training: &RewardTraining, arm: Arm) -> u64 {
    let epochs = training.updates.count() as u64;
    match arm {
        Arm::NoneMatched { pairs_per_seed } => epochs.saturating_mul(pairs_per_seed),
        _ => epochs,
    }
}

/// Both sides of a set in full.
fn sides(pairs: &PairSet) -> Result<[RowBlock<'_>; 2]> {
    Ok([pairs.rows(Side::Chosen, 0..pairs.len())?, pairs.rows(Side::Rejected, 0..pairs.len())?])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::DecodeMode;
    use crate::train::Updates;

    #[test]
    fn matched_arms_show_all_their_epochs() {
        let training = RewardTraining { updates: Updates::Epochs(20), ..RewardTraining::default() };
        assert_eq!(reward_epochs(&training, Arm::NoneMatched { pairs_per_seed: 8 }), 160);
        assert_eq!(reward_epochs(&training, Arm::Lens { pairs_per_seed: 8, mode: DecodeMode::Plain }), 20);
        let endless = RewardTraining { updates: Updates::Epochs(usize::MAX), ..training };
        assert_eq!(reward_epochs(&endless, Arm::NoneMatched { pairs_per_seed: 8 }), u64::MAX);
    }
}
