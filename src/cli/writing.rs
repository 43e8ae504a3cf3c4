//! What commands that write pairs share: options, progress and the summary.

use std::path::Path;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::ProgressBar;
use serde_json::{Value, json};

use super::args::Named;
use super::console::Console;
use super::table::{bytes, count, duration};
use crate::backend::DeviceInfo;
use crate::data::{LatentSet, PairSet, WriteMode};
use crate::dtype::Dtype;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::model::Vae;
use crate::synth::{Bound, OutputKind, Part, Progress, Recipe, Speed, SynthJob, SynthSummary};

/// Time between progress lines, unless `--progress-every` says otherwise.
pub const PROGRESS_EVERY: Duration = Duration::from_secs(30);

/// How pairs are written.
#[derive(Clone, Debug, Args)]
pub struct WriteArgs {
    /// Pairs per shard [default: about 256 MiB]
    #[arg(long, value_name = "N")]
    pub shard_rows: Option<u64>,
    /// Part i of N of the run, i from 0: the parts' shards are those of the whole run
    #[arg(long, value_name = "i/N", default_value = "0/1")]
    pub part: Part,
    /// Replace an output that was made with other settings
    #[arg(long)]
    pub overwrite: bool,
    /// How shards are written: direct (past the page cache, where the disk allows it) or cached
    #[arg(long, default_value_t = Named(WriteMode::default()), value_name = "HOW")]
    pub write: Named<WriteMode>,
    /// Seconds between progress lines where there is no terminal (with --json: JSON lines on standard error)
    #[arg(
        long,
        allow_negative_numbers = true,
        default_value_t = PROGRESS_EVERY.as_secs_f64(),
        value_name = "SECONDS"
    )]
    pub progress_every: f64,
}

impl WriteArgs {
    /// The job of writing `recipe` as `kind` into the folder `out`, from latents if there are some.
    pub fn job<'a>(
        &self,
        recipe: &'a Recipe,
        out: &'a Path,
        (kind, dtype): (OutputKind, Dtype),
        latents: Option<&'a LatentSet>,
    ) -> SynthJob<'a> {
        SynthJob {
            recipe,
            out,
            kind,
            dtype,
            shard_rows: self.shard_rows,
            part: self.part,
            overwrite: self.overwrite,
            write: self.write.0,
            latents,
        }
    }

    /// A summary of what was written to `out`. A part names itself, and what comes after it.
    pub fn summary(&self, out: &Path, text: &str) -> String {
        let out = out.display();
        match self.part {
            Part::WHOLE => format!("{out}: {text}"),
            Part { index, count } => format!(
                "{out}, part {index}/{count}: {text}\nonce all {count} parts are there: lensmith merge-manifests {out}"
            ),
        }
    }

    /// Time between progress lines.
    pub fn every(&self) -> Result<Duration> {
        Duration::try_from_secs_f64(self.progress_every)
            .map_err(|_| Error::argument("--progress-every", "seconds, 0 or more", self.progress_every))
    }
}

/// Writes a recipe's pairs and shows the progress: a bar on a terminal, elsewhere a line `every` so often.
pub fn write_shards(
    engine: &Engine,
    console: &Console,
    (what, every): (&str, Duration),
    job: &SynthJob<'_>,
    seeds: &PairSet,
    vae: &Vae,
) -> Result<SynthSummary> {
    let mut shown = Shown::new(console, what, job.pairs()?, every);
    let summary = engine.synthesize(job, seeds, vae, &mut |progress| shown.update(progress))?;
    shown.bar.finish_and_clear();
    Ok(summary)
}

struct Shown<'c> {
    console: &'c Console,
    bar: ProgressBar,
    every: Duration,
    last: Instant,
}

impl<'c> Shown<'c> {
    fn new(console: &'c Console, what: &str, pairs: u64, every: Duration) -> Shown<'c> {
        let bar = console.bar(what, pairs, "pairs");
        Shown { console, bar, every, last: Instant::now() }
    }

    fn update(&mut self, progress: &Progress) {
        if progress.done == 0 {
            // Pairs written by an earlier run: they say nothing about the rate.
            self.bar.set_position(progress.resumed);
            self.bar.reset_eta();
            return;
        }
        self.bar.set_position(progress.resumed + progress.done);
        let speed = progress.speed();
        self.bar.set_message(bottleneck(&speed));
        if self.last.elapsed() < self.every {
            return;
        }
        self.last = Instant::now();
        let eta = progress.eta().unwrap_or(0.0);
        self.console.event(
            || {
                let mut event = json!(speed);
                event["event"] = json!("progress");
                event["pairs"] = json!(progress.resumed + progress.done);
                event["resumed"] = json!(progress.resumed);
                event["of"] = json!(progress.resumed + progress.total);
                event["bytes"] = json!(progress.bytes);
                event["seconds"] = json!(progress.seconds);
                event["eta_seconds"] = json!(eta);
                event
            },
            || {
                format!(
                    "{} of {} pairs, {}, {} left; {}",
                    count(progress.resumed + progress.done),
                    count(progress.resumed + progress.total),
                    rates(&speed),
                    duration(eta),
                    bottleneck(&speed),
                )
            },
        );
    }
}

fn rates(speed: &Speed) -> String {
    format!("{} pairs/s ({}/s)", count(speed.pairs_per_second as u64), bytes(speed.bytes_per_second as u64))
}

/// The slower of device and disk, as in "bound by the disk: 93 % of its 2.1 GiB/s".
fn bottleneck(speed: &Speed) -> String {
    let (stage, rate) = match speed.bound_by {
        Bound::Disk => ("disk", format!("{}/s", bytes(speed.disk_bytes_per_second as u64))),
        Bound::Device => ("device", format!("{} pairs/s", count(speed.device_pairs_per_second as u64))),
    };
    format!("bound by the {stage}: {:.0} % of its {rate}", 100.0 * speed.share_of_floor)
}

/// A summary as the fields of a JSON object.
pub fn summary_json(summary: &SynthSummary) -> Value {
    json!({
        "pairs": summary.pairs, "resumed": summary.resumed, "shards": summary.shards, "bytes": summary.bytes,
        "seconds": summary.seconds, "speed": summary.speed,
    })
}

/// A summary for people: what is there, how long it took, and what limited the speed.
pub fn summary_text(summary: &SynthSummary, devices: &[DeviceInfo]) -> String {
    let device = devices.iter().map(|d| d.name.as_str()).collect::<Vec<_>>().join(", ");
    let resumed = match summary.resumed {
        0 => String::new(),
        all if all == summary.pairs => " (all there already: nothing to do)".into(),
        some => format!(" ({} were there already)", count(some)),
    };
    let speed = match &summary.speed {
        Some(speed) => {
            format!("\n{} in {} on {device}; {}", rates(speed), duration(summary.seconds), bottleneck(speed))
        }
        None => String::new(),
    };
    format!(
        "{} pairs{resumed} in {} shards, {}{speed}",
        count(summary.pairs),
        summary.shards,
        bytes(summary.bytes),
    )
}
