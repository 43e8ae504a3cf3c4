//! The report of a run: run.json, and a table for people.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::backend::{DeviceInfo, VaeLoss};
use crate::cli::table::{count, mean_spread, table};
use crate::cli::training::{capped_text, health_text};
use crate::data::read_small;
use crate::error::{Error, Result};
use crate::eval::{Arm, ArmResult, Augmentation, LatentMap, Paired, VaeHealth, paired};

/// Name of the report in a run directory.
pub const RUN: &str = "run.json";
/// Version of its layout, which docs/json.md describes.
pub const RUN_FORMAT: u32 = 2;

/// Everything a run used and found: run.json.
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    pub format: u32,
    pub lensmith: String,
    pub device: DeviceInfo,
    pub seed: u64,
    pub sources: Value,
    pub settings: Value,
    /// Paired differences of the arms over the splits.
    pub comparisons: Vec<Comparison>,
    pub repeats: Vec<Repeat>,
    pub seconds: f64,
}

/// One split's part of run.json.
#[derive(Debug, Serialize, Deserialize)]
pub struct Repeat {
    pub seed: u64,
    pub folder: PathBuf,
    pub pairs: Value,
    pub health: VaeHealth,
    /// The loss of each epoch of the VAE.
    pub vae_history: Vec<VaeLoss>,
    pub vae_seconds: f64,
    /// Latents in the plane of their largest variance.
    pub latent_map: LatentMap,
    pub arms: Vec<ArmResult>,
}

/// A measure of an arm's model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// Share of the test pairs that are ordered as people do.
    Accuracy,
    /// Loss on the test pairs.
    Loss,
    /// Gold score of the best of all candidates.
    BestOfN,
}

impl Measure {
    /// All of them.
    pub const ALL: [Measure; 3] = [Measure::Accuracy, Measure::Loss, Measure::BestOfN];

    /// Its name for people.
    pub fn name(self) -> &'static str {
        match self {
            Measure::Accuracy => "pair accuracy",
            Measure::Loss => "pair loss",
            Measure::BestOfN => "best-of-N gold",
        }
    }

    /// An arm's figure.
    pub fn of(self, result: &ArmResult) -> Option<f64> {
        match self {
            Measure::Accuracy => Some(result.test.as_ref()?.report.accuracy),
            Measure::Loss => Some(result.test.as_ref()?.report.loss),
            Measure::BestOfN => Some(result.best_of_n.as_ref()?.points.last()?.model),
        }
    }
}

/// The difference of two arms on the same splits.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Comparison {
    pub measure: Measure,
    /// The arm.
    pub arm: Arm,
    /// What its figure is taken from.
    pub against: Arm,
    /// The arm's figure minus the other's.
    pub difference: Paired,
}

/// Each arm against the seeds alone with as many updates, or without that arm against the seeds alone.
pub fn compare(repeats: &[Repeat]) -> Vec<Comparison> {
    let Some(first) = repeats.first() else { return Vec::new() };
    let position = |augmentation: Augmentation| {
        first.arms.iter().position(|result| result.arm == Arm::from(augmentation))
    };
    let Some(base) = position(Augmentation::Matched).or_else(|| position(Augmentation::None)) else {
        return Vec::new();
    };
    let figures = |arm: usize, measure: Measure| -> Option<Vec<f64>> {
        repeats.iter().map(|repeat| measure.of(&repeat.arms[arm])).collect()
    };
    let mut comparisons = Vec::new();
    for measure in Measure::ALL {
        for (i, result) in first.arms.iter().enumerate().filter(|(i, _)| *i != base) {
            let (Some(own), Some(other)) = (figures(i, measure), figures(base, measure)) else { continue };
            let (arm, against) = (result.arm, first.arms[base].arm);
            comparisons.push(Comparison { measure, arm, against, difference: paired(&own, &other) });
        }
    }
    comparisons
}

impl Report {
    /// Most bytes that are read as a report.
    const MOST_BYTES: u64 = 64 << 20;

    /// Reads a run.json.
    pub fn read(path: &Path) -> Result<Report> {
        let bad = |detail: String| Error::Format { path: path.to_path_buf(), format: "run", detail };
        let bytes = read_small(path, "run", Report::MOST_BYTES)?;
        let report: Report = serde_json::from_slice(&bytes).map_err(|e| bad(e.to_string()))?;
        if report.format != RUN_FORMAT {
            return Err(bad(format!("expected format {RUN_FORMAT}, found {}", report.format)));
        }
        let arms = |repeat: &Repeat| repeat.arms.iter().map(|arm| arm.arm).collect::<Vec<_>>();
        match report.repeats.first().map(arms) {
            Some(first) if !first.is_empty() && report.repeats.iter().all(|r| arms(r) == first) => Ok(report),
            _ => Err(bad("its repeats are not of the same arms, or there is none".into())),
        }
    }

    /// Differences of arms, a line for each arm.
    fn comparison_table(&self) -> String {
        let first = &self.repeats[0];
        let there = |measure: &Measure| self.comparisons.iter().any(|c| c.measure == *measure);
        let measures: Vec<Measure> = Measure::ALL.into_iter().filter(there).collect();
        let mut header = vec!["arm"];
        header.extend(measures.iter().map(|measure| measure.name()));
        let against = self.comparisons.first().map(|c| c.against);
        let rows = first.arms.iter().filter(|result| Some(result.arm) != against).map(|result| {
            let cell = |measure: &Measure| {
                let found = self.comparisons.iter().find(|c| c.measure == *measure && c.arm == result.arm);
                found.map_or("-".to_string(), |c| c.difference.to_string())
            };
            let mut row = vec![result.title()];
            row.extend(measures.iter().map(cell));
            row
        });
        table(&header, &rows.collect::<Vec<_>>())
    }

    /// The report for people; `run_json` is where the rest is.
    pub fn text(&self, run_json: &Path) -> String {
        let first = &self.repeats[0];
        let arms = first.arms.len();
        let column = |arm: usize, value: &dyn Fn(&ArmResult) -> Option<f64>| -> Option<Vec<f64>> {
            self.repeats.iter().map(|r| value(&r.arms[arm])).collect()
        };
        let cell = |values: Option<Vec<f64>>, decimals: usize| {
            values.map_or_else(|| "-".to_string(), |v| mean_spread(&v, decimals))
        };
        let with_candidates = first.arms[0].best_of_n.is_some();
        let mut header = vec!["arm", "training pairs", "pair accuracy", "pair loss"];
        if with_candidates {
            header.push("best-of-N gold");
        }
        header.extend(["epoch kept", "seconds"]);
        let rows: Vec<Vec<String>> = (0..arms)
            .map(|a| {
                let mut row = vec![
                    first.arms[a].title(),
                    count(first.arms[a].pairs),
                    cell(column(a, &|r| Some(r.test.as_ref()?.report.accuracy)), 3),
                    cell(column(a, &|r| Some(r.test.as_ref()?.report.loss)), 3),
                ];
                if with_candidates {
                    row.push(cell(column(a, &|r| Some(r.best_of_n.as_ref()?.points.last()?.model)), 3));
                }
                row.push(cell(column(a, &|r| Some(r.best_epoch as f64)), 0));
                row.push(cell(column(a, &|r| Some(r.seconds)), 1));
                row
            })
            .collect();
        let mut text = format!(
            "{} seed, {} validation and {} test pairs; {} on {} ({} threads)\n\n{}\n",
            first.pairs["seeds"],
            first.pairs["validation"],
            first.pairs["test"],
            match self.repeats.len() {
                1 => "one split".to_string(),
                n => format!("mean ± standard deviation over {n} splits"),
            },
            self.device.name,
            self.device.threads,
            table(&header, &rows),
        );
        if let Some((b, all)) = first.arms[0].best_of_n.as_ref().and_then(|b| Some((b, b.points.last()?))) {
            text.push_str(&format!(
                "best-of-{} gold at random {:.3}, by the oracle {:.3}\n",
                b.per_prompt, b.random, all.oracle
            ));
        }
        if let (Some(c), true) = (self.comparisons.first(), self.repeats.len() > 1) {
            let m = first.arms[0].pairs_per_seed;
            text.push_str(&format!(
                "\nagainst {}, paired over the splits, ± standard error\n{}\n",
                c.against.title(m),
                self.comparison_table()
            ));
        }
        for repeat in &self.repeats {
            let seed = if self.repeats.len() > 1 { format!("seed {}: ", repeat.seed) } else { String::new() };
            text.push_str(&format!("\n{seed}VAE: {}\n", health_text(&repeat.health)));
            for arm in repeat.arms.iter().filter(|arm| arm.capped) {
                text.push_str(&capped_text(&format!("`{}`", arm.title())));
            }
        }
        let vae: f64 = self.repeats.iter().map(|r| r.vae_seconds).sum();
        text.push_str(&format!(
            "VAE {vae:.1} s; all {:.1} s. Everything is in {}",
            self.seconds,
            run_json.display()
        ));
        text
    }
}
