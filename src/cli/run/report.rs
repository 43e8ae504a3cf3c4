//! The report of a run: run.json, and a table for people.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::backend::DeviceInfo;
use crate::cli::table::{count, mean_spread, table};
use crate::cli::training::health_text;
use crate::data::read_small;
use crate::error::{Error, Result};
use crate::eval::{Arm, ArmResult, VaeHealth};

/// Name of the report in a run directory.
pub const RUN: &str = "run.json";

/// Everything a run used and found: run.json.
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    pub format: u32,
    pub lensmith: String,
    pub device: DeviceInfo,
    pub seed: u64,
    pub sources: Value,
    pub settings: Value,
    pub repeats: Vec<Repeat>,
    pub seconds: f64,
}

/// One split's part of run.json.
#[derive(Debug, Serialize, Deserialize)]
pub struct Repeat {
    pub seed: u64,
    pub folder: PathBuf,
    pub pairs: Value,
    pub vae_loss: Value,
    pub health: VaeHealth,
    /// Arms whose best epoch was the last that they were allowed.
    pub capped: Vec<Arm>,
    pub vae_seconds: f64,
    pub arms: Vec<ArmResult>,
}

impl Report {
    /// Most bytes that are read as a report.
    const MOST_BYTES: u64 = 64 << 20;

    /// Reads a run.json.
    pub fn read(path: &Path) -> Result<Report> {
        let bad = |detail: String| Error::Format { path: path.to_path_buf(), format: "run", detail };
        let bytes = read_small(path, "run", Report::MOST_BYTES)?;
        let report: Report = serde_json::from_slice(&bytes).map_err(|e| bad(e.to_string()))?;
        if report.format != 1 {
            return Err(bad(format!("expected format 1, found {}", report.format)));
        }
        let arms = |repeat: &Repeat| repeat.arms.iter().map(|arm| arm.arm).collect::<Vec<_>>();
        match report.repeats.first().map(arms) {
            Some(first) if !first.is_empty() && report.repeats.iter().all(|r| arms(r) == first) => Ok(report),
            _ => Err(bad("its repeats are not of the same arms, or there is none".into())),
        }
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
                    first.arms[a].arm.to_string(),
                    count(first.arms[a].pairs),
                    cell(column(a, &|r| r.test.map(|t| t.accuracy)), 3),
                    cell(column(a, &|r| r.test.map(|t| t.loss)), 3),
                ];
                if with_candidates {
                    row.push(cell(column(a, &|r| r.best_of_n.map(|b| b.model)), 3));
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
        if let Some(b) = first.arms[0].best_of_n {
            text.push_str(&format!(
                "best-of-{} gold at random {:.3}, by the oracle {:.3}\n",
                b.per_prompt, b.random, b.oracle
            ));
        }
        for repeat in &self.repeats {
            let seed = if self.repeats.len() > 1 { format!("seed {}: ", repeat.seed) } else { String::new() };
            text.push_str(&format!("\n{seed}VAE: {}\n", health_text(&repeat.health)));
            for arm in &repeat.capped {
                text.push_str(&format!(
                    "warning: the best epoch of `{arm}` was the last that it was allowed: with more --epochs it may do \
                     better, and until then whatever takes more steps looks better than it is\n"
                ));
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
