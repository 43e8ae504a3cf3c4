//! `lensmith bench`.

use std::path::PathBuf;

use clap::Args;

use super::args::{Common, named};
use super::console::Console;
use super::pages::{self, write_page};
use super::table::table;
use crate::backend::{AnyBackend, Resource};
use crate::bench::{Entry, Operation, Options, Report, Ticks, limit_of, measure, rate};
use crate::error::{Error, Result};
use crate::report::roofline;

/// Rows of one call at most.
const MOST_ROWS: usize = 1 << 26;
/// Share of the processors that others may take before the figures come with a warning.
const DISTURBED: f64 = 0.05;
/// How long the machine is watched before anything is measured.
const WATCHED: std::time::Duration = std::time::Duration::from_millis(300);

/// Measure every operation and the whole method on this device, beside the device's own limits
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lensmith bench                                    the table, at d = 4096
  lensmith bench --only decode --only encode        two operations
  lensmith bench --plot roofline.svg --json         a picture, and every figure

Operations: normals, encode, select, perturb, decode, score, folded, vae-epoch, reward-epoch,
synthesise, disk, verify, run. The limits (memory, arithmetic, disk) are measured in the same
process; the share is of what the nearest of them allows. Compare rates of one machine only, and
only while nothing else runs there: what others take of the processors is measured too.")]
pub struct Bench {
    /// Dimension of the embeddings
    #[arg(long, default_value_t = 4096, value_name = "D")]
    dim: usize,
    /// Embeddings of one call
    #[arg(long, default_value_t = 16384, value_name = "N")]
    rows: usize,
    /// Trials of each operation; the median counts
    #[arg(long, default_value_t = 5, value_name = "N")]
    repeat: usize,
    /// What to measure; all of it where nothing is named
    #[arg(long, value_parser = named::<Operation>, value_name = "OPERATION")]
    only: Vec<Operation>,
    /// Seed pairs of synthesis and of the whole run
    #[arg(long, default_value_t = 1000, value_name = "N")]
    seeds: usize,
    /// Pairs per seed of the whole run
    #[arg(long, default_value_t = 8, value_name = "M")]
    fold: u64,
    /// Width of the VAE's hidden layers, a multiple of 16
    #[arg(long, default_value_t = 64, value_name = "N")]
    hidden: usize,
    /// Dimension of the latent space, a multiple of 16
    #[arg(long, default_value_t = 16, value_name = "N")]
    latent: usize,
    /// Width of the reward model's hidden layer, a multiple of 16
    #[arg(long, default_value_t = 256, value_name = "N")]
    reward_hidden: usize,
    /// Seed pairs of the whole run instead of simulated ones: a safetensors file
    #[arg(long, value_name = "FILE")]
    pairs: Option<PathBuf>,
    /// Folder on the disk to measure; about 1 GiB is written there and removed
    #[arg(long, default_value = ".", value_name = "FOLDER")]
    folder: PathBuf,
    /// Leave the limits out, and with them the shares
    #[arg(long, conflicts_with = "plot")]
    no_limits: bool,
    /// Draw the roofline into an SVG file
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// Write an HTML page
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

impl Bench {
    pub fn execute(&self, common: &Common, console: &Console) -> Result<()> {
        let options = self.options(common.seed)?;
        let device = AnyBackend::open(common.device, common.threads, common.precision)?;
        if !console.is_json()
            && !common.quiet
            && let Some(warning) = watched().and_then(|share| disturbance(share, "take"))
        {
            console.warning(&warning);
        }
        let bar = console.bar("bench", 0, "");
        let report = measure(&device, &options, &mut |what| bar.set_message(what.to_string()))?;
        bar.finish_and_clear();
        if let Some(path) = &self.plot {
            if limit_of(&report.limits, Resource::Copy).is_none() {
                let name = &report.device.name;
                return Err(Error::argument("--plot", "a device with a measured limit of memory", name));
            }
            roofline(&report, path)?;
        }
        if let Some(path) = &self.report {
            write_page(&pages::bench::page(&report), path)?;
        }
        console.result(&report, || text(&report));
        Ok(())
    }

    fn options(&self, seed: u64) -> Result<Options> {
        for (name, value) in [("--rows", self.rows), ("--repeat", self.repeat)] {
            if value == 0 {
                return Err(Error::argument(name, "1 or more", value));
            }
        }
        if self.rows > MOST_ROWS {
            return Err(Error::argument("--rows", format!("at most {MOST_ROWS}"), self.rows));
        }
        if self.seeds < 2 {
            return Err(Error::argument("--seeds", "2 or more", self.seeds));
        }
        Ok(Options {
            dim: self.dim,
            hidden: self.hidden,
            latent: self.latent,
            reward_hidden: self.reward_hidden,
            rows: self.rows,
            repeat: self.repeat,
            seeds: self.seeds,
            pairs_per_seed: self.fold,
            only: if self.only.is_empty() { Operation::ALL.to_vec() } else { self.only.clone() },
            limits: !self.no_limits,
            folder: self.folder.clone(),
            pairs: self.pairs.clone(),
            seed,
        })
    }
}

/// What others take of the processors while this program does nothing.
fn watched() -> Option<f64> {
    let start = Ticks::now()?;
    std::thread::sleep(WATCHED);
    Ticks::now()?.others_since(start)
}

/// A warning, if others take too much of the machine.
fn disturbance(share: f64, take: &str) -> Option<String> {
    (share > DISTURBED).then(|| {
        format!(
            "warning: other processes {take} {:.0} % of the processors, so the rates are lower than what this machine \
             can do",
            100.0 * share
        )
    })
}

/// The report for people.
fn text(report: &Report) -> String {
    let device = &report.device;
    let head = format!(
        "{}: {}, {} threads; d = {}, {} rows a call; medians",
        device.name, device.detail, device.threads, report.options.dim, report.options.rows
    );
    let limits: Vec<Vec<String>> = report
        .limits
        .iter()
        .map(|l| {
            let unit = match l.resource {
                Resource::Flop => "FLOP/s",
                Resource::Normals => "/s",
                Resource::Write | Resource::Copy | Resource::Disk => "B/s",
            };
            vec![l.what.clone(), format!("{}{unit}", spaced(&rate(l.per_second)))]
        })
        .collect();
    let mut parts = vec![head];
    if !limits.is_empty() {
        parts.push(table(&["limit", "rate"], &limits));
    }
    let rows: Vec<Vec<String>> = report.entries.iter().map(row).collect();
    let header = ["operation", "rate", "±", "bytes", "FLOP", "GB/s", "GFLOP/s", "share", "bound by"];
    parts.push(table(&header, &rows));
    parts.push(
        "Bytes and FLOP are those of one row, latent or pair; ± is half the spread of the trials. The share is\n\
         that of the highest rate which the limits above allow. FLOP are those of whole products: decode and the\n\
         folded score leave out hidden units that are zero, which can bring a share past 100 %."
            .into(),
    );
    parts.extend(report.entries.iter().filter_map(whole_run));
    parts.extend(report.others.and_then(|share| disturbance(share, "took")));
    parts.join("\n\n")
}

/// A space before a unit where the number has no prefix.
fn spaced(rate: &str) -> String {
    if rate.ends_with(|c: char| c.is_ascii_digit()) { format!("{rate} ") } else { rate.to_string() }
}

fn row(entry: &Entry) -> Vec<String> {
    let or_none = |value: Option<f64>| value.map_or(String::new(), |v| format!("{v:.1}"));
    let amount = |value: Option<f64>| value.map_or(String::new(), rate);
    let flop = entry.need(Resource::Flop);
    let spread = 50.0 * (entry.spread[1] - entry.spread[0]) / entry.per_second;
    let rate_text = match entry.operation {
        Operation::Run => format!("{:.2} s", 1.0 / entry.per_second),
        _ => format!("{} {}/s", rate(entry.per_second), entry.unit),
    };
    vec![
        entry.what.clone(),
        rate_text,
        format!("{spread:.0} %"),
        amount(entry.bytes()),
        amount(flop),
        or_none(entry.bytes().map(|b| b * entry.per_second / 1e9)),
        or_none(flop.map(|f| f * entry.per_second / 1e9)),
        entry.share.map_or(String::new(), |s| format!("{:.0} %", 100.0 * s)),
        entry.bound_by.map_or(String::new(), |r| r.name().into()),
    ]
}

/// Losses of the whole run: they show that it trained.
fn whole_run(entry: &Entry) -> Option<String> {
    let figure = |name: &str| entry.details.get(name).and_then(serde_json::Value::as_f64).unwrap_or(f64::NAN);
    (entry.operation == Operation::Run).then(|| {
        format!(
            "Whole run: VAE loss {:.4} after {:.2} s; reward loss {:.4} in the first epoch, {:.4} in the last.",
            figure("vae_loss"),
            figure("vae_seconds"),
            figure("first_reward_loss"),
            figure("reward_loss"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_are_named_only_where_they_disturb() {
        assert_eq!(disturbance(0.05, "took"), None);
        let warning = disturbance(0.312, "took").unwrap();
        assert!(warning.starts_with("warning: other processes took 31 % of the processors"), "{warning}");
    }
}
