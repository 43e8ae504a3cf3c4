//! `lensmith demo`: every arm of the paper's table on simulated data.

use std::time::Instant;

use clap::Args;
use serde::Serialize;

use super::args::{Common, positive};
use super::console::Console;
use super::table::{count, mean_spread, table};
use crate::backend::{Adam, DeviceInfo, RewardObjective, VaeLoss, VaeObjective};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::eval::{
    Arm, ArmResult, Augmentation, BestOfNCurve, Candidates, Experiment, Simulated, SimulationOptions,
    simulate,
};
use crate::synth::SynthesisOptions;
use crate::train::{RewardTraining, VaeTraining};

/// Wider simulated embeddings would not fit in the memory of most machines.
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
    #[arg(long, default_value_t = SimulationOptions::default().dim, value_name = "D")]
    dim: usize,
    /// Seed pairs
    #[arg(long, default_value_t = SimulationOptions::default().seeds, value_name = "N")]
    seeds: usize,
}

/// Pairs per seed of the arms.
const FOLD: u64 = 8;
const ARMS: [Augmentation; 6] = [
    Augmentation::None,
    Augmentation::Matched,
    Augmentation::Direct,
    Augmentation::Gaussian,
    Augmentation::Plain,
    Augmentation::Residual,
];

/// The result: settings, data and figures.
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
            return Err(Error::argument("--dim", format!("1 to {WIDEST}"), self.dim));
        }
        if self.seeds < 2 {
            return Err(Error::argument("--seeds", "2 or more", self.seeds));
        }
        let engine = common.engine()?;
        let bar = console.bar("demo", self.repeats.saturating_mul(ARMS.len() + 1) as u64, "models");
        let report = self.report(&engine, common.seed, &mut |what, done| {
            bar.set_message(what.to_string());
            bar.inc(u64::from(done));
        })?;
        bar.finish_and_clear();
        console.result(&report, || report.text());
        Ok(())
    }

    /// Runs everything. Calls `on_status` with what is under way, and whether one more model is trained.
    fn report(&self, engine: &Engine, seed: u64, on_status: &mut dyn FnMut(&str, bool)) -> Result<Report> {
        let start = Instant::now();
        let seeds = (0..self.repeats as u64).map(|r| seed.wrapping_add(r));
        let repeats = seeds.map(|seed| self.repeat(engine, seed, on_status)).collect::<Result<_>>()?;
        Ok(Report {
            simulated: true,
            lensmith: env!("CARGO_PKG_VERSION"),
            device: engine.info(),
            data: self.data(seed),
            vae: vae_training(seed),
            reward: reward_training(seed),
            repeats,
            seconds: start.elapsed().as_secs_f64(),
        })
    }

    fn data(&self, seed: u64) -> SimulationOptions {
        SimulationOptions { dim: self.dim, seeds: self.seeds, seed, ..SimulationOptions::default() }
    }

    fn repeat(&self, engine: &Engine, seed: u64, on_status: &mut dyn FnMut(&str, bool)) -> Result<Repeat> {
        on_status("simulation", false);
        let start = Instant::now();
        let options = self.data(seed);
        let Simulated { seeds, validation, test, candidates, gold } = simulate(&options)?;
        let simulation_seconds = start.elapsed().as_secs_f64();

        on_status("VAE", false);
        let start = Instant::now();
        let trained = engine.train_vae(&seeds.view(), &vae_training(seed), &mut |_, _| ())?;
        let vae_seconds = start.elapsed().as_secs_f64();
        on_status("VAE", true);
        let synthesis = SynthesisOptions { pairs_per_seed: Some(FOLD), seed, ..SynthesisOptions::default() };
        let mut experiment = Experiment::new(seeds.view(), synthesis, reward_training(seed));
        experiment.validation = Some(validation.view());
        experiment.test = Some(test.view());
        experiment.candidates =
            Some(Candidates { rows: candidates.view().into(), gold: &gold, per_prompt: options.per_prompt });
        experiment.vae = Some(&trained.vae);
        let run = |augmentation: Augmentation| {
            let arm = Arm::from(augmentation);
            on_status(&arm.title(FOLD), false);
            let (result, _) = engine.experiment(&experiment, arm, &mut |_| ())?;
            on_status(&arm.title(FOLD), true);
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

/// The paper's settings but for the learning rate. With its 1e-4, 100 epochs of a thousand pairs (800 steps)
/// are too few: the reconstruction then explains about a third of the variance that it does with 1e-3.
fn vae_training(seed: u64) -> VaeTraining {
    let paper = VaeTraining::default();
    let objective = VaeObjective { adam: Adam::with_lr(1e-3), seed, ..paper.objective };
    VaeTraining { objective, ..paper }
}

/// The paper's settings.
fn reward_training(seed: u64) -> RewardTraining {
    let objective = RewardObjective { seed, ..RewardObjective::default() };
    RewardTraining { objective, ..RewardTraining::default() }
}

impl Report {
    fn text(&self) -> String {
        [self.header(), self.table(), self.reading(), self.settings()].join("\n\n")
    }

    fn settings(&self) -> String {
        let Report { data, vae, reward, device, .. } = self;
        let average = |of: &dyn Fn(&Repeat) -> f64| mean(&self.over(of));
        let loss = |of: fn(VaeLoss) -> f64| average(&|r| r.vae_loss.map_or(f64::NAN, of));
        let epochs = reward.updates.count();
        format!(
            "VAE {} -> {} -> {}, {} epochs, batch {}, lr {:e} (the paper's: 1e-4), gamma {}, beta {:e}:\n\
             {:.1} s a repeat; at the end reconstruction {:.3} (of 2 for the mean), KL {:.0}, W2 {:.1}.\n\
             Reward model {} -> {} -> 1, at most {epochs} epochs, batch {}, lr {:e}, patience {}.\n\
             {} threads on {} ({}); {:.1} s in all, of which {:.1} s a repeat to simulate.",
            data.dim,
            vae.hidden,
            vae.latent,
            vae.epochs,
            vae.objective.batch,
            vae.objective.adam.lr,
            vae.objective.gamma,
            vae.objective.beta,
            average(&|r| r.vae_seconds),
            loss(|l| l.reconstruction),
            loss(|l| l.kl),
            loss(|l| -l.divergence),
            data.dim,
            reward.hidden,
            reward.objective.batch,
            reward.objective.adam.lr,
            reward.patience.unwrap_or(epochs),
            device.threads,
            device.name,
            device.detail,
            self.seconds,
            average(&|r| r.simulation_seconds),
        )
    }

    fn header(&self) -> String {
        let SimulationOptions { dim, seeds, validation, test, prompts, per_prompt, .. } = self.data;
        format!(
            "Simulated data: made-up embeddings and a made-up gold reward, no language model and no people.\n\
             d = {dim}; {} seed, {} validation and {} test pairs; best of {per_prompt} for {} prompts.\n\
             Labels are noisy: the gold reward itself agrees with {} of the test labels.",
            count(seeds as u64),
            count(validation as u64),
            count(test as u64),
            count(prompts as u64),
            mean_spread(&self.over(|r| r.gold_accuracy), 3),
        )
    }

    fn table(&self) -> String {
        let per_prompt = self.data.per_prompt;
        let best_of = format!("best-of-{per_prompt} gold");
        let header = ["arm", "training pairs", "pair accuracy", &best_of, "seconds"];
        let mut rows: Vec<Vec<String>> = (0..ARMS.len())
            .map(|a| {
                vec![
                    self.repeats[0].arms[a].title(),
                    count(self.repeats[0].arms[a].pairs),
                    mean_spread(
                        &self.over(|r| r.arms[a].test.as_ref().map_or(f64::NAN, |t| t.report.accuracy)),
                        3,
                    ),
                    self.best_of_n(a, |b| b.points.last().map_or(f64::NAN, |p| p.model)),
                    format!("{:.1}", mean(&self.over(|r| r.arms[a].seconds))),
                ]
            })
            .collect();
        let bound = |what: &str, accuracy: String, of: fn(&BestOfNCurve) -> f64| {
            vec![what.to_string(), String::new(), accuracy, self.best_of_n(0, of), String::new()]
        };
        let gold = mean_spread(&self.over(|r| r.gold_accuracy), 3);
        rows.push(bound("random choice", String::new(), |b| b.random));
        rows.push(bound("oracle (the gold reward)", gold, |b| {
            b.points.last().map_or(f64::NAN, |p| p.oracle)
        }));
        table(&header, &rows)
    }

    /// How to read the table; says nothing of what it holds.
    fn reading(&self) -> String {
        let spread = match self.repeats.len() {
            1 => "One repeat: nothing here says how much of a difference is chance.".to_string(),
            n => format!(
                "± is the standard deviation over {n} repeats, each with data and models of its own. {n}\n\
                 are few, and arms whose means lie within it of each other are not told apart."
            ),
        };
        format!(
            "{spread}\n\
             The arm with the updates of 8x may take as many steps as the 8x arms: what it gains over the\n\
             first line is longer training, not more data. All arms stop early on the validation pairs.\n\
             Seconds are synthesis and reward training, without the VAE."
        )
    }

    fn over(&self, value: impl Fn(&Repeat) -> f64) -> Vec<f64> {
        self.repeats.iter().map(value).collect()
    }

    fn best_of_n(&self, arm: usize, value: impl Fn(&BestOfNCurve) -> f64) -> String {
        mean_spread(&self.over(|r| r.arms[arm].best_of_n.as_ref().map_or(f64::NAN, &value)), 3)
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::DeviceChoice;
    use crate::cli::console::exit_code;

    const TINY: Demo = Demo { repeats: 2, dim: 16, seeds: 20 };

    #[test]
    fn text_says_that_it_is_simulated_and_shows_every_arm() {
        let engine = Engine::builder().device(DeviceChoice::Cpu).threads(1).build().unwrap();
        let mut trained = 0;
        let report = TINY.report(&engine, u64::MAX, &mut |_, done| trained += usize::from(done)).unwrap();
        assert_eq!(trained, 2 * (ARMS.len() + 1));
        assert_eq!(report.repeats.iter().map(|r| r.seed).collect::<Vec<_>>(), [u64::MAX, 0]);
        let text = report.text();
        assert!(text.starts_with("Simulated data"), "{text}");
        assert!(
            ARMS.iter().all(|&arm| text.contains(&format!("\n{}", Arm::from(arm).title(FOLD)))),
            "{text}"
        );
        assert!(!text.contains("NaN") && text.lines().all(|l| l.chars().count() <= 110), "{text}");
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["simulated"], true);
        assert_eq!(json["repeats"][1]["arms"].as_array().unwrap().len(), ARMS.len());
    }

    #[test]
    fn the_same_seed_gives_the_same_figures() {
        let engine = Engine::builder().device(DeviceChoice::Cpu).threads(1).build().unwrap();
        let figures = || {
            let repeat =
                Demo { repeats: 1, ..TINY }.report(&engine, 5, &mut |_, _| ()).unwrap().repeats.remove(0);
            let arms = repeat.arms.into_iter().map(|arm| ArmResult { seconds: 0.0, ..arm });
            (repeat.gold_accuracy, repeat.vae_loss, arms.collect::<Vec<_>>())
        };
        assert_eq!(figures(), figures());
    }

    #[test]
    fn wrong_sizes_are_wrong_usage() {
        let common = Common {
            device: DeviceChoice::Cpu,
            precision: crate::backend::Precision::F32,
            threads: 1,
            seed: 0,
            io: crate::data::Io::Mmap,
            json: false,
            quiet: true,
        };
        let console = Console::new(&common);
        for (repeats, dim, seeds) in [(0, 16, 20), (1, 0, 20), (1, WIDEST + 1, 20), (1, 16, 1)] {
            let error = Demo { repeats, dim, seeds }.execute(&common, &console).unwrap_err();
            assert_eq!(exit_code(&error), 2, "{error}");
        }
    }
}
