//! `lensmith demo`: every arm of the paper's table on simulated data.

use std::time::Instant;

use clap::Args;
use serde::Serialize;

use super::args::{Common, positive};
use super::console::Console;
use super::table::{count, mean_spread, table};
use crate::backend::{
    Adam, DecodeMode, DeviceInfo, Divergence, Reduction, RewardObjective, VaeLoss, VaeObjective,
};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::eval::{Arm, ArmResult, BestOfN, Candidates, Experiment, Simulated, SimulationOptions, simulate};
use crate::synth::SynthesisOptions;
use crate::train::{RewardTraining, Updates, VaeTraining};

/// Simulated embeddings wider than this would not fit most machines.
const WIDEST: usize = 1 << 16;

/// See the whole method on simulated data: baselines and LENS in one table, no files needed
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lensmith demo                                      the table; minutes on two cores
  lensmith demo --repeats 1                          a third of that
  lensmith demo --dim 64 --seeds 60 --repeats 1      seconds, to see that everything works
  lensmith demo --json > demo.json                   every figure of every repeat

The data is simulated: embeddings and the gold reward come from a random formula, not from a
language model. The table is printed as it comes out; it says nothing about your embeddings
(`lensmith run` does).")]
pub struct Demo {
    /// Simulations to repeat everything over, each with its own seed
    #[arg(long, default_value_t = 3, value_name = "N")]
    repeats: usize,
    /// Dimension of the simulated embeddings
    #[arg(long, default_value_t = 4096, value_name = "D")]
    dim: usize,
    /// Seed pairs
    #[arg(long, default_value_t = 1000, value_name = "N")]
    seeds: usize,
}

const ARMS: [Arm; 8] = [
    Arm::None,
    Arm::NoneMatched { fold: 8 },
    Arm::DirectPerturbation { fold: 4 },
    Arm::GaussianSampling { fold: 4 },
    Arm::Lens { fold: 4, mode: DecodeMode::Plain },
    Arm::Lens { fold: 8, mode: DecodeMode::Plain },
    Arm::Lens { fold: 4, mode: DecodeMode::Residual },
    Arm::Lens { fold: 8, mode: DecodeMode::Residual },
];

/// Everything the demo used and found.
#[derive(Debug, Serialize)]
struct Report {
    simulated: bool,
    lensmith: &'static str,
    device: DeviceInfo,
    data: SimulationOptions,
    vae: VaeTraining,
    reward: RewardTraining,
    repeats: Vec<Repeat>,
    seconds: f64,
}

/// One simulation.
#[derive(Debug, Serialize)]
struct Repeat {
    seed: u64,
    /// Share of the test labels that the gold reward itself agrees with.
    gold_accuracy: f64,
    simulation_seconds: f64,
    vae_seconds: f64,
    vae_loss: Option<VaeLoss>,
    arms: Vec<ArmResult>,
}

impl Demo {
    pub fn execute(&self, common: &Common, console: &Console) -> Result<()> {
        positive("--repeats", self.repeats)?;
        if !(1..=WIDEST).contains(&self.dim) {
            return Err(Error::option("--dim", format!("1 to {WIDEST}"), self.dim));
        }
        if self.seeds < 2 {
            return Err(Error::option("--seeds", "2 or more", self.seeds));
        }
        let engine = common.engine()?;
        let start = Instant::now();
        let bar = console.bar("demo", self.repeats.saturating_mul(ARMS.len() + 1) as u64, "models");
        let seeds = (0..self.repeats as u64).map(|r| common.seed.wrapping_add(r));
        let repeats = seeds
            .map(|seed| {
                let mut says = |what: &str, done: bool| {
                    bar.set_message(what.to_string());
                    bar.inc(u64::from(done));
                };
                self.repeat(&engine, seed, &mut says)
            })
            .collect::<Result<Vec<_>>>()?;
        bar.finish_and_clear();
        let report = Report {
            simulated: true,
            lensmith: env!("CARGO_PKG_VERSION"),
            device: engine.info(),
            data: self.data(common.seed),
            vae: vae_training(common.seed),
            reward: reward_training(common.seed),
            repeats,
            seconds: start.elapsed().as_secs_f64(),
        };
        console.result(&report, || report.text());
        Ok(())
    }

    fn data(&self, seed: u64) -> SimulationOptions {
        SimulationOptions { dim: self.dim, seeds: self.seeds, seed, ..SimulationOptions::default() }
    }

    fn repeat(&self, engine: &Engine, seed: u64, says: &mut dyn FnMut(&str, bool)) -> Result<Repeat> {
        says("simulation", false);
        let start = Instant::now();
        let options = self.data(seed);
        let Simulated { seeds, validation, test, candidates, gold } = simulate(&options);
        let simulation_seconds = start.elapsed().as_secs_f64();

        says("VAE", false);
        let start = Instant::now();
        let trained = engine.train_vae_rows(&seeds.view(), &vae_training(seed), &mut |_, _| ())?;
        let vae_seconds = start.elapsed().as_secs_f64();
        says("VAE", true);
        let experiment = Experiment {
            seeds: seeds.view(),
            validation: Some(validation.view()),
            test: Some(test.view()),
            candidates: Some(Candidates {
                rows: candidates.view().into(),
                gold: &gold,
                per_prompt: options.per_prompt,
            }),
            vae: Some(&trained.vae),
            synthesis: SynthesisOptions { seed, ..SynthesisOptions::default() },
            reward: reward_training(seed),
        };
        let run = |arm: Arm| {
            says(&arm.to_string(), false);
            let (result, _) = engine.experiment(&experiment, arm, &mut |_| ())?;
            says(&arm.to_string(), true);
            Ok(result)
        };
        Ok(Repeat {
            seed,
            gold_accuracy: test.gold_accuracy,
            simulation_seconds,
            vae_seconds,
            vae_loss: trained.history.last().copied(),
            arms: ARMS.into_iter().map(run).collect::<Result<_>>()?,
        })
    }
}

/// The paper's settings but for the learning rate: with its 1e-4, a thousand pairs and 100 epochs (800 steps) leave
/// the VAE far from trained.
fn vae_training(seed: u64) -> VaeTraining {
    VaeTraining {
        hidden: 64,
        latent: 16,
        epochs: 100,
        objective: VaeObjective {
            reconstruction: Reduction::Mean,
            beta: 1e-3,
            gamma: 0.1,
            divergence: Divergence::W2,
            batch: 128,
            adam: Adam::with_lr(1e-3),
            seed,
        },
    }
}

/// The paper's settings.
fn reward_training(seed: u64) -> RewardTraining {
    RewardTraining {
        hidden: 256,
        updates: Updates::Epochs(20),
        patience: Some(5),
        evaluate_every: 1,
        objective: RewardObjective { batch: 128, adam: Adam::with_lr(1e-4) },
        seed,
    }
}

impl Report {
    fn text(&self) -> String {
        let Report { data, vae, reward, device, .. } = self;
        let seconds = |of: fn(&Repeat) -> f64| mean_spread(&[mean(self.repeats.iter().map(of))], 1);
        format!(
            "{}\n\n{}\n\n{}\n\
             VAE {} -> {} -> {}, {} epochs, lr {:e}: {} s a repeat. Reward model {} -> {} -> 1, at most {} epochs, lr {:e}, \
             patience {}.\n\
             {} threads on {} ({}); {:.1} s in all, {} s a repeat of it to simulate.",
            self.header(),
            self.table(),
            self.reading(),
            data.dim,
            vae.hidden,
            vae.latent,
            vae.epochs,
            vae.objective.adam.lr,
            seconds(|r| r.vae_seconds),
            data.dim,
            reward.hidden,
            match reward.updates {
                Updates::Epochs(n) | Updates::Steps(n) => n,
            },
            reward.objective.adam.lr,
            reward.patience.unwrap_or(0),
            device.threads,
            device.name,
            device.detail,
            self.seconds,
            seconds(|r| r.simulation_seconds),
        )
    }

    fn header(&self) -> String {
        let SimulationOptions { dim, seeds, validation, test, prompts, per_prompt, .. } = self.data;
        let gold = self.over(|r| r.gold_accuracy);
        format!(
            "Simulated data: made-up embeddings and a made-up gold reward, no language model and no people.\n\
             d = {dim}; {} seed, {} validation and {} test pairs; {per_prompt} candidates for each of {} prompts.\n\
             Labels are noisy: the gold reward itself agrees with {} of the test labels.",
            count(seeds as u64),
            count(validation as u64),
            count(test as u64),
            count(prompts as u64),
            mean_spread(&gold, 3),
        )
    }

    fn table(&self) -> String {
        let per_prompt = self.data.per_prompt;
        let gold = format!("best-of-{per_prompt} gold");
        let header = ["arm", "training pairs", "pair accuracy", &gold, "seconds"];
        let mut rows: Vec<Vec<String>> = (0..ARMS.len())
            .map(|a| {
                let seconds = mean(self.repeats.iter().map(|r| r.arms[a].seconds));
                vec![
                    ARMS[a].to_string(),
                    count(self.repeats[0].arms[a].pairs),
                    mean_spread(&self.over(|r| r.arms[a].test.map_or(f64::NAN, |t| t.accuracy)), 3),
                    self.best_of_n(a, |b| b.model),
                    format!("{seconds:.1}"),
                ]
            })
            .collect();
        let bound = |what: &str, of: fn(BestOfN) -> f64| {
            vec![what.to_string(), String::new(), String::new(), self.best_of_n(0, of), String::new()]
        };
        rows.push(bound("random choice", |b| b.random));
        rows.push(bound("oracle (gold's choice)", |b| b.oracle));
        table(&header, &rows)
    }

    /// How to read the table; says nothing of what it holds.
    fn reading(&self) -> String {
        let n = self.repeats.len();
        let spread = match n {
            1 => "One repeat: nothing here says how much is chance.".to_string(),
            _ => format!(
                "± is the standard deviation over {n} repeats, each with data, VAE and reward models of its own seed: \
                 {n} are few,\nand arms whose means lie within it of each other are not told apart."
            ),
        };
        format!(
            "{spread} Seconds are synthesis and reward training,\nwithout the VAE. `updates of 8x` takes as many steps \
             as the 8x arms may: what it gains over the first\nline is training time, not data."
        )
    }

    fn over(&self, value: impl Fn(&Repeat) -> f64) -> Vec<f64> {
        self.repeats.iter().map(value).collect()
    }

    fn best_of_n(&self, arm: usize, value: impl Fn(BestOfN) -> f64) -> String {
        mean_spread(&self.over(|r| r.arms[arm].best_of_n.map_or(f64::NAN, &value)), 3)
    }
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let n = values.len().max(1) as f64;
    values.sum::<f64>() / n
}
