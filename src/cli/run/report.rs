//! The report of a run: run.json, and a table for people.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::backend::{DeviceInfo, VaeLoss};
use crate::cli::table::{count, mean_spread, table};
use crate::cli::training::{capped_text, health_text};
use crate::data::{self, read_small};
use crate::error::{Error, Result};
use crate::eval::{
    Arm, ArmResult, Augmentation, LatentMap, OrderPoint, Paired, VaeHealth, baseline, main_arm, paired,
};
use crate::report::REPORT;

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
    /// How many synthetic pairs the gold model orders as their seeds, by the scale of the noise; empty without one.
    #[serde(default)]
    pub gold_order: Vec<OrderPoint>,
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
    let arms = first.arms();
    let base = baseline(&arms).and_then(|arm| Some((arm, arms.iter().position(|other| *other == arm)?)));
    let Some((against, base)) = base else { return Vec::new() };
    let figures = |arm: usize, measure: Measure| -> Option<Vec<f64>> {
        repeats.iter().map(|repeat| measure.of(&repeat.arms[arm])).collect()
    };
    let mut comparisons = Vec::new();
    for measure in Measure::ALL {
        for (i, result) in first.arms.iter().enumerate().filter(|(i, _)| *i != base) {
            let (Some(own), Some(other)) = (figures(i, measure), figures(base, measure)) else { continue };
            let difference = paired(&own, &other);
            comparisons.push(Comparison { measure, arm: result.arm, against, difference });
        }
    }
    comparisons
}

/// A difference beyond two standard errors is told apart from none; those over few splits are uncertain themselves.
pub const TOLD_APART: f64 = 2.0;

/// What a paired difference of `what` says, in words; `up` says that more is better.
pub fn verdict(what: &str, difference: &Paired, up: bool) -> String {
    let of = match difference.splits {
        1 => "one split".to_string(),
        n => format!("{n} splits"),
    };
    let Some(error) = difference.standard_error else {
        return format!("{what} {difference} on {of}: one split says nothing about chance");
    };
    let better = (difference.mean > 0.0) == up;
    let sure = difference.mean.abs() > TOLD_APART * error && difference.mean != 0.0;
    let said = match (sure, better) {
        (true, true) => "better, by more than two standard errors",
        (true, false) => "worse, by more than two standard errors",
        (false, _) => "not told apart: within two standard errors",
    };
    format!("{what} {difference} over {of}: {said}")
}

impl Repeat {
    /// The arms, in their order.
    pub fn arms(&self) -> Vec<Arm> {
        self.arms.iter().map(|result| result.arm).collect()
    }

    /// The result of an arm.
    pub fn of(&self, arm: Arm) -> Option<&ArmResult> {
        self.arms.iter().find(|result| result.arm == arm)
    }

    /// The arm that the run is about.
    ///
    /// # Panics
    /// Without arms, which no report lacks that was read or made.
    pub fn main(&self) -> &ArmResult {
        main_arm(&self.arms()).and_then(|arm| self.of(arm)).expect("a report has arms")
    }

    /// An arm's title, for tables.
    pub fn title_of(&self, arm: Arm) -> String {
        self.of(arm).map_or_else(|| arm.to_string(), ArmResult::title)
    }
}

/// The outcome in a sentence or two.
pub fn run_verdict(report: &Report) -> String {
    let first = &report.repeats[0];
    let main = first.main();
    let find = |arm: Arm| report.comparisons.iter().find(|c| c.measure == Measure::Accuracy && c.arm == arm);
    let said = |c: &Comparison| {
        let what = format!("{} against {}: pair accuracy", first.title_of(c.arm), first.title_of(c.against));
        verdict(&what, &c.difference, true) + "."
    };
    let Some(own) = find(main.arm) else {
        return format!("{}: nothing to compare with.", main.title());
    };
    // The best of the others, if it is another.
    let others = report.comparisons.iter().filter(|c| {
        c.measure == Measure::Accuracy && c.arm != main.arm && c.arm != Arm::from(Augmentation::None)
    });
    let best = others.max_by(|a, b| a.difference.mean.total_cmp(&b.difference.mean));
    match best.filter(|best| best.difference.mean > own.difference.mean.max(0.0)) {
        Some(best) => format!("{} Best here: {}", said(own), said(best)),
        None => said(own),
    }
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
        match report.repeats.first().map(Repeat::arms) {
            Some(first) if !first.is_empty() && report.repeats.iter().all(|r| r.arms() == first) => {
                Ok(report)
            }
            _ => Err(bad("its repeats are not of the same arms, or there is none".into())),
        }
    }

    /// The files of pairs, by name.
    pub fn data_name(&self) -> String {
        let files = self.sources["pairs"].as_array().into_iter().flatten();
        let names = files.filter_map(|file| Some(data::file_name(Path::new(file["file"].as_str()?))));
        names.take(3).collect::<Vec<_>>().join(", ")
    }

    /// Every kind of warning once, with how many splits it is for. Warnings of a kind differ in their numbers.
    pub fn warnings(&self, of: &dyn Fn(&Repeat) -> Vec<String>) -> Vec<String> {
        let mut found: Vec<(String, String, usize)> = Vec::new();
        for warning in self.repeats.iter().flat_map(of) {
            let kind: String = warning.chars().filter(|c| !c.is_ascii_digit() && *c != '.').collect();
            match found.iter_mut().find(|(known, ..)| *known == kind) {
                Some((_, _, count)) => *count += 1,
                None => found.push((kind, warning, 1)),
            }
        }
        let all = self.repeats.len();
        let line = |(_, warning, count): (String, String, usize)| match all {
            1 => warning,
            _ => format!("{warning} ({count} of {all} splits)"),
        };
        found.into_iter().map(line).collect()
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
                    cell(column(a, &|r| Measure::Accuracy.of(r)), 3),
                    cell(column(a, &|r| Measure::Loss.of(r)), 3),
                ];
                if with_candidates {
                    row.push(cell(column(a, &|r| Measure::BestOfN.of(r)), 3));
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
            text.push_str(&format!("\n{seed}VAE: {}", health_text(&repeat.health)));
        }
        let warnings = self.warnings(&|repeat| {
            let capped = repeat.arms.iter().filter(|arm| arm.capped);
            let capped = capped.map(|arm| capped_text(&format!("`{}`", arm.title())));
            repeat.health.warnings.iter().cloned().chain(capped).collect()
        });
        text.extend(warnings.into_iter().map(|warning| format!("\nwarning: {warning}")));
        text.push_str(&format!("\n\n{}\n", run_verdict(self)));
        let vae: f64 = self.repeats.iter().map(|r| r.vae_seconds).sum();
        text.push_str(&format!(
            "VAE {vae:.1} s; all {:.1} s. Everything is in {}, its picture in {}",
            self.seconds,
            run_json.display(),
            run_json.with_file_name(REPORT).display()
        ));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::paired;

    #[test]
    fn verdicts_follow_two_standard_errors() {
        let sure = paired(&[0.61, 0.63, 0.62], &[0.60, 0.62, 0.605]);
        assert!(verdict("accuracy", &sure, true).contains("better, by more"));
        assert!(verdict("loss", &sure, false).contains("worse, by more"));
        let unsure = paired(&[0.61, 0.60, 0.62], &[0.60, 0.62, 0.60]);
        assert!(verdict("accuracy", &unsure, true).contains("not told apart"));
        let one = paired(&[0.61], &[0.60]);
        assert!(verdict("accuracy", &one, true).contains("nothing about chance"));
        let none = paired(&[0.5, 0.5], &[0.5, 0.5]);
        assert!(verdict("accuracy", &none, true).contains("not told apart"));
    }
}
