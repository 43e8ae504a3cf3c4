//! What commands that write pairs show meanwhile and in the end.

use std::time::{Duration, Instant};

use clap::Args;
use indicatif::ProgressBar;
use serde_json::{Value, json};

use super::console::Console;
use super::table::{bytes, count, duration};
use crate::backend::DeviceInfo;
use crate::data::WriteMode;
use crate::error::{Error, Result};
use crate::synth::{Bound, Part, Progress, Speed, SynthSummary};

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
    #[arg(long, default_value = "direct", value_parser = super::args::named::<WriteMode>, value_name = "HOW")]
    pub write: WriteMode,
    /// Seconds between progress lines where there is no terminal (with --json: JSON lines on standard error)
    #[arg(long, allow_negative_numbers = true, default_value_t = 30.0, value_name = "SECONDS")]
    pub progress_every: f64,
}

impl WriteArgs {
    /// Time between progress lines.
    pub fn every(&self) -> Result<Duration> {
        Duration::try_from_secs_f64(self.progress_every)
            .map_err(|_| Error::option("--progress-every", "seconds, 0 or more", self.progress_every))
    }
}

/// Tells of a run that writes pairs: a bar on a terminal, else a line now and then.
pub struct Writing<'c> {
    console: &'c Console,
    bar: ProgressBar,
    every: Duration,
    last: Instant,
}

impl<'c> Writing<'c> {
    /// Starts with nothing of `pairs` pairs done; a line every `every`.
    pub fn new(console: &'c Console, what: &str, pairs: u64, every: Duration) -> Writing<'c> {
        let bar = console.bar(what, pairs, "pairs");
        Writing { console, bar, every, last: Instant::now() }
    }

    /// Hears how far the run is.
    pub fn hear(&mut self, progress: &Progress) {
        if progress.done == 0 {
            // What was there already says nothing about the rate.
            self.bar.set_position(progress.resumed);
            self.bar.reset_eta();
            return;
        }
        self.bar.set_position(progress.resumed + progress.done);
        let speed = progress.speed();
        self.bar.set_message(floor(&speed));
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
                    floor(&speed),
                )
            },
        );
    }

    /// Takes the bar away.
    pub fn finish(self) {
        self.bar.finish_and_clear();
    }
}

fn rates(speed: &Speed) -> String {
    format!("{} pairs/s ({}/s)", count(speed.pairs_per_second as u64), bytes(speed.bytes_per_second as u64))
}

/// "disk at work 93 % of the time (2.1 GiB/s)".
fn floor(speed: &Speed) -> String {
    let (stage, rate) = match speed.bound_by {
        Bound::Disk => ("disk", format!("{}/s", bytes(speed.disk_bytes_per_second as u64))),
        Bound::Device => ("device", format!("{} pairs/s", count(speed.device_pairs_per_second as u64))),
    };
    format!("bound by the {stage}: {:.0} % of its {rate}", 100.0 * speed.share_of_floor)
}

/// The fields of a summary.
pub fn summary_json(summary: &SynthSummary) -> Value {
    json!({
        "pairs": summary.pairs, "resumed": summary.resumed, "shards": summary.shards, "bytes": summary.bytes,
        "seconds": summary.seconds, "speed": summary.speed,
    })
}

/// A summary for people: what is there, how fast it came, and what held it up.
pub fn summary_text(summary: &SynthSummary, devices: &[DeviceInfo]) -> String {
    let device = devices.iter().map(|d| d.name.as_str()).collect::<Vec<_>>().join(", ");
    let resumed = match summary.resumed {
        0 => String::new(),
        all if all == summary.pairs => " (all there already: nothing to do)".into(),
        some => format!(" ({} were there already)", count(some)),
    };
    let speed = match &summary.speed {
        Some(speed) => {
            format!("\n{} in {} on {device}; {}", rates(speed), duration(summary.seconds), floor(speed))
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
