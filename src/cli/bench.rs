//! `lensmith bench`.

use std::path::PathBuf;

use clap::Args;

use super::args::{Common, named};
use super::console::Console;
use super::table::table;
use crate::backend::{AnyBackend, Resource};
use crate::bench::{
    Entry, Operation, Options, Report, Scaling, measure, measure_scaling, rate, roofline, scaling_plot,
};
use crate::error::{Error, Result};

/// Measure every operation and the whole method on this device, beside the device's own limits
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lensmith bench                                    the table, at d = 4096
  lensmith bench --only decode --only encode        two operations
  lensmith bench --plot roofline.svg --json         a picture, and every figure
  lensmith bench --scaling --plot scaling.svg       costs over rows and dimensions: minutes

Operations: normals, encode, select, perturb, decode, score, folded, vae-epoch, reward-epoch,
synthesise, disk, verify, run. The limits (memory, arithmetic, disk) are measured in the same
process; the share is of what the nearest of them allows. Compare rates of one machine only.")]
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
    /// Costs over 10^4 to 10^7 rows and d = 512 to 8192 instead
    #[arg(long)]
    scaling: bool,
    /// Seconds that one point of --scaling may take; larger ones are left out
    #[arg(long, default_value_t = 60.0, value_name = "SECONDS")]
    point_seconds: f64,
    /// Draw the roofline, or with --scaling the costs, into an SVG file
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

impl Bench {
    pub fn execute(&self, common: &Common, console: &Console) -> Result<()> {
        if !(self.point_seconds.is_finite() && self.point_seconds > 0.0) {
            return Err(Error::option("--point-seconds", "seconds above 0", self.point_seconds));
        }
        let device = AnyBackend::open(common.device, common.threads, common.precision)?;
        let bar = console.bar("bench", 0, "");
        let mut says = |what: &str| bar.set_message(what.to_string());
        let mut options = self.options(common.seed);
        if self.scaling {
            // The report then holds the limits alone.
            options.only.clear();
        }
        let mut report = measure(&device, &options, &mut says)?;
        if self.scaling {
            report.scaling = Some(measure_scaling(&device, &options, self.point_seconds, &mut says)?);
        }
        bar.finish_and_clear();
        if let Some(path) = &self.plot {
            match &report.scaling {
                Some(scaling) => scaling_plot(&report, scaling, path)?,
                None => roofline(&report, path)?,
            }
        }
        console.result(&report, || text(&report));
        Ok(())
    }

    fn options(&self, seed: u64) -> Options {
        Options {
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
        }
    }
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
    if !report.entries.is_empty() {
        let rows: Vec<Vec<String>> = report.entries.iter().map(row).collect();
        let header = ["operation", "rate", "±", "bytes", "FLOP", "GB/s", "GFLOP/s", "share", "bound by"];
        parts.push(table(&header, &rows));
        parts.push(
            "Bytes and FLOP are those of one row, latent or pair; ± is half the spread of the trials. The share is\n\
             that of the highest rate which the limits above allow. FLOP are those of whole products: decode and the\n\
             folded score leave out the terms of hidden units that are zero, which can bring a share past 100 %."
                .into(),
        );
    }
    parts.extend(report.entries.iter().filter_map(whole_run));
    parts.extend(report.scaling.as_ref().map(scaling_text));
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

/// What the whole run came to.
fn whole_run(entry: &Entry) -> Option<String> {
    let figure = |name: &str| entry.details.get(name).and_then(serde_json::Value::as_f64);
    (entry.operation == Operation::Run).then(|| {
        let or_nan = |name| figure(name).unwrap_or(f64::NAN);
        format!(
            "Whole run: VAE loss {:.4} after {:.2} s; reward loss {:.4} in the first epoch, {:.4} in the last.",
            or_nan("vae_loss"),
            or_nan("vae_seconds"),
            or_nan("first_reward_loss"),
            or_nan("reward_loss"),
        )
    })
}

fn scaling_text(scaling: &Scaling) -> String {
    let mut rows = Vec::new();
    for name in scaling.operations() {
        for p in scaling.over_rows.iter().chain(&scaling.over_dims).filter(|p| p.what == name) {
            rows.push(vec![
                name.to_string(),
                p.dim.to_string(),
                super::table::count(p.rows),
                format!("{:.1}", 1e9 * p.seconds_per_row),
                p.seconds_per_byte.map_or(String::new(), |s| format!("{:.4}", 1e9 * s)),
            ]);
        }
    }
    let mut parts = vec![table(&["operation", "d", "rows", "ns/row", "ns/byte"], &rows)];
    for name in scaling.operations() {
        let percent = |spread: Option<f64>| 100.0 * spread.unwrap_or(f64::NAN);
        parts.push(format!(
            "{name}: the dearest number of rows costs {:.0} % more a row than the cheapest, the dearest d {:.0} %",
            percent(Scaling::spread(&scaling.over_rows, name, |p| p.seconds_per_row)),
            percent(Scaling::spread(&scaling.over_dims, name, |p| p.cost_over_dims())),
        ));
    }
    if !scaling.left_out.is_empty() {
        parts.push(format!("Left out, as too slow: {}", scaling.left_out.join("; ")));
    }
    parts.join("\n")
}
