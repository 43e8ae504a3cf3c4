//! The method at work: pairs into memory and onto disk, checksums, and the whole run from seed pairs to reward model.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::operations::{objectives, random_rows};
use super::report::{Entry, Models, Operation, Options};
use super::work;
use crate::backend::{DecodeMode, Limit, Resource, RewardObjective, Roofline};
use crate::data::{Checkpoint, PairOptions, PairSet, Provenance, sequential_write, write_pairs};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::eval::{Augmentation, Experiment, SimulationOptions, simulate};
use crate::matrix::{RowSet, Side};
use crate::synth::{
    Recipe, Recompute, SynthJob, SynthesisOptions, Synthesizer, VerifyOptions, verify_folder, write_synthetic,
};
use crate::timing::{Timing, time, time_once};
use crate::train::{RewardTraining, Updates, VaeTraining, train_vae};

/// Bytes of one write when the limit of the disk is measured.
const BLOCK: usize = 8 << 20;
/// Trials of the disk.
const DISK_TRIALS: usize = 3;
/// Epochs of the whole run.
const VAE_EPOCHS: usize = 100;
const REWARD_EPOCHS: usize = 20;

/// A folder that is removed with everything in it.
struct Scratch(PathBuf);

impl Scratch {
    fn new(within: &Path) -> Result<Scratch> {
        let path = within.join(format!("lensmith-bench-{}", std::process::id()));
        fs::create_dir_all(&path).map_err(Error::io("create", &path))?;
        Ok(Scratch(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed can be recognised by its name.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Pairs that are written to disk: about a gibibyte at the usual sizes.
fn pairs_on_disk(options: &Options) -> u64 {
    (4 * options.rows as u64).next_multiple_of(options.seeds as u64)
}

/// The rate at which the disk takes as many bytes as the synthesis writes.
pub fn disk_limit(options: &Options) -> Result<Limit> {
    let scratch = Scratch::new(&options.folder)?;
    let bytes = pairs_on_disk(options) * 4 * options.dim as u64;
    let rates = (0..DISK_TRIALS).map(|_| sequential_write(&scratch.0, bytes, BLOCK));
    let seconds = rates.map(|rate| Ok(1.0 / rate?)).collect::<Result<Vec<f64>>>()?;
    Ok(Limit {
        what: "disk, sequential writes and sync".into(),
        resource: Resource::Disk,
        per_second: 1.0 / Timing::of(seconds).median,
    })
}

/// Measures what `options` names.
pub fn measure<B: Roofline + 'static>(
    b: &B,
    options: &Options,
    models: &Models,
    on_status: &mut dyn FnMut(&str),
    entries: &mut Vec<Entry>,
) -> Result<()> {
    let wants = |op| options.only.contains(&op);
    if wants(Operation::Synthesise) {
        on_status("synthesis in memory");
        entries.push(synthesise(b, options, models)?);
    }
    if wants(Operation::Disk) || wants(Operation::Verify) {
        on_status("synthesis to disk");
        to_disk(b, options, models, entries)?;
    }
    if wants(Operation::Run) {
        on_status("whole run");
        entries.push(run(b, options)?);
    }
    Ok(())
}

fn synthesise<B: Roofline + 'static>(b: &B, options: &Options, models: &Models) -> Result<Entry> {
    let sides = [1, 2].map(|set| random_rows(options, options.seeds, options.dim, set));
    let seeds: [RowSet<'_>; 2] = [sides[0].view().into(), sides[1].view().into()];
    let synthesis = SynthesisOptions {
        pairs_per_seed: Some(options.pairs_per_seed),
        seed: options.seed,
        ..SynthesisOptions::default()
    };
    let setup = synthesis.plan(options.seeds)?;
    let synthesizer = Synthesizer::new(b, &models.vae, &seeds, setup, DecodeMode::Plain)?;
    let pairs = synthesizer.plan().pairs();
    let timing = time(options.repeat, || {
        synthesizer.embeddings(0..pairs, Dtype::Bf16, &mut |batch| {
            std::hint::black_box(batch);
            Ok(())
        })
    })?;
    let needs = [
        (Resource::Flop, work::synthesis(models.vae.size(), setup.0.per_side, options.pairs_per_seed)),
        (Resource::Write, 4.0 * options.dim as f64),
    ];
    let what = format!("synthesise pairs, {}-fold, BF16", options.pairs_per_seed);
    Ok(Entry::new(Operation::Synthesise, what, "pairs", timing.per(pairs as f64), &needs))
}

fn to_disk<B: Roofline + 'static>(
    b: &B,
    options: &Options,
    models: &Models,
    entries: &mut Vec<Entry>,
) -> Result<()> {
    let scratch = Scratch::new(&options.folder)?;
    let (seeds, vae) = (scratch.0.join("seeds.safetensors"), scratch.0.join("vae.safetensors"));
    let sides = [1, 2].map(|set| random_rows(options, options.seeds, options.dim, set));
    let views: [RowSet<'_>; 2] = [sides[0].view().into(), sides[1].view().into()];
    write_pairs(&seeds, [&views[0], &views[1]], None)?;
    models.vae.save(&vae, &Provenance::default())?;
    let fold = pairs_on_disk(options) / options.seeds as u64;
    let synthesis =
        SynthesisOptions { pairs_per_seed: Some(fold), seed: options.seed, ..SynthesisOptions::default() };
    let sources = [seeds.to_string_lossy().into_owned()];
    let (recipe, seeds, vae) = Recipe::new(&sources, &PairOptions::default(), &vae, &synthesis)?;
    let recipe = recipe.with_absolute_paths()?;
    let out = scratch.0.join("pairs");
    let job = SynthJob::new(&recipe, &out);
    let (mut bytes, mut speed) = (0, None);
    let timing = time_once(DISK_TRIALS, || {
        if out.exists() {
            fs::remove_dir_all(&out).map_err(Error::io("remove", &out))?;
        }
        let setup = (recipe.plan, recipe.perturbation);
        let synthesizer = Synthesizer::new(b, &vae, &seeds, setup, recipe.mode)?;
        let summary = write_synthetic(&job, &[synthesizer], &mut |_| ())?;
        (bytes, speed) = (summary.bytes, summary.speed);
        Ok(())
    })?;
    let pairs = recipe.plan.pairs() as f64;
    if options.only.contains(&Operation::Disk) {
        let needs = [
            (Resource::Flop, work::synthesis(models.vae.size(), recipe.plan.per_side, fold)),
            (Resource::Disk, bytes as f64 / pairs),
        ];
        let mut entry =
            Entry::new(Operation::Disk, "synthesise pairs to disk, BF16", "pairs", timing.per(pairs), &needs);
        entry.details = json!({ "bytes": bytes, "speed": speed });
        entries.push(entry);
    }
    if options.only.contains(&Operation::Verify) {
        let verify = VerifyOptions { recompute: Recompute::NONE, ..VerifyOptions::default() };
        let timing = time(options.repeat, || verify_folder(&out, b, &verify, &mut |_| ()).map(drop))?;
        let needs = [(Resource::Copy, bytes as f64 / pairs)];
        entries.push(Entry::new(
            Operation::Verify,
            "verify checksums, from the page cache",
            "pairs",
            timing.per(pairs),
            &needs,
        ));
    }
    Ok(())
}

/// The paper's settings, trained to the end.
fn trainings(options: &Options) -> (VaeTraining, RewardTraining) {
    let (objective, reward_objective) = objectives(options);
    let vae = VaeTraining { hidden: options.hidden, latent: options.latent, epochs: VAE_EPOCHS, objective };
    let reward = RewardTraining {
        hidden: options.reward_hidden,
        updates: Updates::Epochs(REWARD_EPOCHS),
        patience: None,
        objective: RewardObjective { seed: options.seed, ..reward_objective },
        ..RewardTraining::default()
    };
    (vae, reward)
}

fn run<B: Roofline + 'static>(b: &B, options: &Options) -> Result<Entry> {
    match &options.pairs {
        Some(path) => {
            let source = [path.to_string_lossy().into_owned()];
            let pairs = PairSet::open(&source, &PairOptions::default())?;
            let sides = [Side::Chosen, Side::Rejected].map(|side| pairs.rows(side, 0..pairs.len()));
            let [chosen, rejected] = sides;
            let (chosen, rejected) = (chosen?, rejected?);
            run_on(b, options, [chosen.view(), rejected.view()])
        }
        None => {
            let data = simulate(&SimulationOptions {
                dim: options.dim,
                seeds: options.seeds,
                validation: 0,
                test: 0,
                prompts: 0,
                per_prompt: 1,
                seed: options.seed,
                ..SimulationOptions::default()
            })?;
            run_on(b, options, data.seeds.view())
        }
    }
}

fn run_on<B: Roofline + 'static>(b: &B, options: &Options, seeds: [RowSet<'_>; 2]) -> Result<Entry> {
    let (n, dim) = (seeds[0].rows(), seeds[0].cols());
    let (vae_training, reward_training) = trainings(options);
    let (mut vae_terms, mut vae_seconds) = (None, Vec::new());
    let (mut first_reward_loss, mut reward_loss, mut steps) = (f64::NAN, f64::NAN, 0);
    let synthesis = SynthesisOptions {
        pairs_per_seed: Some(options.pairs_per_seed),
        seed: options.seed,
        ..SynthesisOptions::default()
    };
    let timing = time_once(options.repeat.min(3), || {
        let start = std::time::Instant::now();
        let trained = train_vae(b, &seeds[0], &seeds[1], &vae_training, &mut |_, _| ())?;
        vae_seconds.push(start.elapsed().as_secs_f64());
        vae_terms = trained.history.last().copied();
        let mut experiment = Experiment::new(seeds.clone(), synthesis, reward_training);
        experiment.vae = Some(&trained.vae);
        let arm = Augmentation::Plain.into();
        // Without the figures of `run`, which no peer computes.
        let (trained, _) = experiment.train(b, arm, 0.0, &mut |point| {
            if point.epoch == 1 {
                first_reward_loss = point.train_loss;
            }
            reward_loss = point.train_loss;
        })?;
        steps = trained.steps;
        b.finish()
    })?;
    let models = options.models(dim)?;
    let (plan, _) = synthesis.plan(n)?;
    let run = work::Run {
        seeds: n,
        per_side: plan.per_side,
        pairs_per_seed: options.pairs_per_seed,
        vae_epochs: VAE_EPOCHS,
        reward_epochs: REWARD_EPOCHS,
        steps,
    };
    let needs = [(Resource::Flop, work::run(models.vae.size(), models.reward.size(), run))];
    let what = format!(
        "whole run: VAE {VAE_EPOCHS} epochs, {}-fold, reward model {REWARD_EPOCHS} epochs, {n} seeds",
        options.pairs_per_seed
    );
    let mut entry = Entry::new(Operation::Run, what, "runs", timing, &needs);
    entry.details = json!({
        "vae_loss": vae_terms.map_or(f64::NAN, |terms| terms.total), "vae_terms": vae_terms,
        "first_reward_loss": first_reward_loss, "reward_loss": reward_loss, "steps": steps,
        "vae_seconds": Timing::of(vae_seconds).median, "pairs": plan.pairs(), "seeds": n,
    });
    Ok(entry)
}
