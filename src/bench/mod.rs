//! Rates of every operation and of the whole method on one device, beside the limits of that device measured in the
//! same process.
//!
//! Inputs are random and larger than caches. A rate is the median of several trials. Bytes and FLOP are those of the
//! operation's definition, so that the share of the limit is one of the work, not of what an implementation does besides.
//! An implementation that does less (terms of hidden units that are zero need not be added) has a share past 1.

mod operations;
mod plot;
mod scaling;
mod timing;
mod whole;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::backend::device::dispatch;
use crate::backend::{AnyBackend, DeviceInfo, Limit, Resident, Resource, Roofline};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::model::{RewardModel, RewardSize, Vae, VaeSize};

pub use plot::{roofline, scaling as scaling_plot};
pub use scaling::{Point, Scaling};
pub use timing::Timing;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    /// Standard normals from the counter, on one core.
    Normals,
    /// Embeddings to posteriors.
    Encode,
    /// Drawing candidates and keeping the likeliest.
    Select,
    /// Latents of the candidates kept.
    Perturb,
    /// Latents to embeddings, for every storage type.
    Decode,
    /// Rewards of embeddings.
    Score,
    /// Rewards of synthetic samples without decoding: perturbation and the folded reward model.
    Folded,
    /// One epoch of VAE training.
    VaeEpoch,
    /// One epoch of reward training on originals.
    RewardEpoch,
    /// Synthetic pairs in memory: seeds to embeddings.
    Synthesise,
    /// Synthetic pairs on disk.
    Disk,
    /// Checksums of what was written.
    Verify,
    /// VAE, synthesis and reward model from first to last.
    Run,
}

impl Operation {
    /// All of them, in the order in which they are measured.
    pub const ALL: [Operation; 13] = [
        Operation::Normals,
        Operation::Encode,
        Operation::Select,
        Operation::Perturb,
        Operation::Decode,
        Operation::Score,
        Operation::Folded,
        Operation::VaeEpoch,
        Operation::RewardEpoch,
        Operation::Synthesise,
        Operation::Disk,
        Operation::Verify,
        Operation::Run,
    ];
}

/// Sizes of the measurement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Options {
    /// Dimension of the embeddings, d.
    pub dim: usize,
    /// Width of the VAE's hidden layers.
    pub hidden: usize,
    /// Dimension of the latent space.
    pub latent: usize,
    /// Width of the reward model's hidden layer.
    pub reward_hidden: usize,
    /// Embeddings of one call.
    pub rows: usize,
    /// Trials of each operation.
    pub repeat: usize,
    /// Seed pairs of training and of the whole method.
    pub seeds: usize,
    /// Pairs per seed of the whole method.
    pub pairs_per_seed: u64,
    /// What is measured.
    pub only: Vec<Operation>,
    /// Whether limits are measured too, without which there are no shares.
    pub limits: bool,
    /// Folder on the disk that is measured.
    pub folder: PathBuf,
    /// Seed pairs of the whole method; simulated ones where there are none.
    pub pairs: Option<PathBuf>,
    /// Seed of all randomness.
    pub seed: u64,
}

/// Sizes at which the two decoders and the reward model of a measurement are made.
#[derive(Clone, Debug)]
struct Models {
    vae: Vae,
    reward: RewardModel,
}

impl Options {
    fn check(&self) -> Result<Models> {
        for (name, value) in [("--rows", self.rows), ("--repeat", self.repeat)] {
            if value == 0 {
                return Err(Error::option(name, "1 or more", value));
            }
        }
        if self.rows > 1 << 26 {
            return Err(Error::option("--rows", format!("at most {}", 1 << 26), self.rows));
        }
        if self.seeds < 2 {
            return Err(Error::option("--seeds", "2 or more", self.seeds));
        }
        self.models(self.dim)
    }

    fn models(&self, dim: usize) -> Result<Models> {
        Ok(Models {
            vae: Vae::init(VaeSize::new(dim, self.hidden, self.latent)?, self.seed),
            reward: RewardModel::init(RewardSize::new(dim, self.reward_hidden)?, self.seed),
        })
    }
}

/// What an operation needs of a resource, for each of its units.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Need {
    /// The resource.
    pub resource: Resource,
    /// FLOP, bytes or normals.
    pub amount: f64,
}

/// The figures of one operation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// The operation.
    pub operation: Operation,
    /// What ran, in words.
    pub what: String,
    /// What is counted, as in "embeddings".
    pub unit: String,
    /// Units per second: the median.
    pub per_second: f64,
    /// The slowest and the fastest trial, units per second.
    pub spread: [f64; 2],
    /// Trials.
    pub trials: usize,
    /// What a unit needs.
    pub needs: Vec<Need>,
    /// The rate as a share of the highest that the limits allow; None where no limit was measured.
    pub share: Option<f64>,
    /// The limit that it is a share of.
    pub bound_by: Option<Resource>,
    /// Losses and other figures that show what was done.
    pub details: serde_json::Value,
}

impl Entry {
    /// An entry from the time of one unit.
    fn new(
        operation: Operation,
        what: impl Into<String>,
        unit: &str,
        timing: Timing,
        needs: &[(Resource, f64)],
    ) -> Entry {
        Entry {
            operation,
            what: what.into(),
            unit: unit.into(),
            per_second: 1.0 / timing.median,
            spread: [1.0 / timing.slowest, 1.0 / timing.fastest],
            trials: timing.trials,
            needs: needs.iter().map(|&(resource, amount)| Need { resource, amount }).collect(),
            share: None,
            bound_by: None,
            details: serde_json::Value::Null,
        }
    }

    /// What a unit needs of a resource.
    pub fn need(&self, resource: Resource) -> Option<f64> {
        self.needs.iter().find(|n| n.resource == resource).map(|n| n.amount)
    }

    /// Bytes that a unit moves through memory, or to disk.
    pub fn bytes(&self) -> Option<f64> {
        [Resource::Write, Resource::Copy, Resource::Disk].into_iter().find_map(|r| self.need(r))
    }

    /// Holds the rate against the limit that allows least.
    fn hold_against(mut self, limits: &[Limit]) -> Entry {
        let allowed = self.needs.iter().filter_map(|need| {
            let limit = limit_of(limits, need.resource)?;
            (need.amount > 0.0).then(|| (limit / need.amount, need.resource))
        });
        if let Some((rate, resource)) = allowed.min_by(|a, b| a.0.total_cmp(&b.0)) {
            self.share = Some(self.per_second / rate);
            self.bound_by = Some(resource);
        }
        self
    }
}

/// The highest limit of a resource.
pub fn limit_of(limits: &[Limit], resource: Resource) -> Option<f64> {
    limits.iter().filter(|l| l.resource == resource).map(|l| l.per_second).max_by(f64::total_cmp)
}

/// Everything that was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Version of the program.
    pub lensmith: String,
    /// Hash of the kernels' sources.
    pub kernels: String,
    /// The device.
    pub device: DeviceInfo,
    /// The sizes.
    pub options: Options,
    /// Limits of the device and of the disk.
    pub limits: Vec<Limit>,
    /// Figures of the operations.
    pub entries: Vec<Entry>,
    /// Costs over numbers of rows and dimensions, where they were asked for.
    pub scaling: Option<Scaling>,
}

/// Measures what `options` names; `says` hears what is under way.
///
/// # Errors
/// Sizes out of range, what the device fails with, and a folder that cannot be written.
pub fn measure(any: &AnyBackend, options: &Options, says: &mut dyn FnMut(&str)) -> Result<Report> {
    let models = options.check()?;
    let (mut limits, mut entries) = (Vec::new(), Vec::new());
    if options.limits {
        says("limits of the device");
        let rows = options.rows;
        let (measured, resident) =
            dispatch!(any, b => Roofline::measure(b, &models.vae, &models.reward, rows))?;
        limits = measured;
        entries.extend(resident.iter().filter_map(|r| kernel_entry(r, &options.only)));
    }
    let asked = options.only.contains(&Operation::Normals);
    if options.limits || asked {
        let normals = operations::normals(options)?;
        if options.limits {
            limits.push(Limit {
                what: "normals, all threads".into(),
                resource: Resource::Normals,
                per_second: normals.per_second * any.info().threads.max(1) as f64,
            });
        }
        entries.extend(asked.then_some(normals));
    }
    if options.limits && options.only.contains(&Operation::Disk) {
        says("limits of the disk");
        limits.push(whole::disk_limit(options)?);
    }
    let resident: Vec<Operation> =
        entries.iter().map(|e| e.operation).filter(|&o| o != Operation::Normals).collect();
    let before = entries.len();
    dispatch!(any, b => {
        operations::measure(b, options, &models, says, &mut entries)?;
        whole::measure(b, options, &models, says, &mut entries)?;
    });
    if options.limits && !entries.is_empty() {
        // Once more: a machine that others use too is not equally fast all the time, and the highest counts.
        says("limits of the device");
        let (again, _) =
            dispatch!(any, b => Roofline::measure(b, &models.vae, &models.reward, options.rows))?;
        for (limit, again) in limits.iter_mut().zip(again) {
            limit.per_second = limit.per_second.max(again.per_second);
        }
    }
    // Where a kernel alone was measured, the call with its copies to the host is held against nothing.
    for entry in entries[before..].iter_mut().filter(|e| resident.contains(&e.operation)) {
        entry.what.push_str(", to the host");
        entry.needs.clear();
    }
    Ok(Report {
        lensmith: env!("CARGO_PKG_VERSION").into(),
        kernels: format!("{:016x}", crate::backend::KERNELS),
        device: any.info(),
        options: options.clone(),
        entries: entries.into_iter().map(|e| e.hold_against(&limits)).collect(),
        limits,
        scaling: None,
    })
}

/// Measures how costs grow with rows and dimensions; see [`Scaling`].
///
/// # Errors
/// As [`measure`].
pub fn measure_scaling(
    any: &AnyBackend,
    options: &Options,
    seconds: f64,
    says: &mut dyn FnMut(&str),
) -> Result<Scaling> {
    options.check()?;
    dispatch!(any, b => scaling::measure(b, options, seconds, says))
}

/// A kernel that ran on data resident on the device, under the operation that it does.
fn kernel_entry(resident: &Resident, only: &[Operation]) -> Option<Entry> {
    let operation = if resident.what.contains("decode") {
        Operation::Decode
    } else if resident.what.contains("folded") {
        Operation::Folded
    } else if resident.what.contains("score") {
        Operation::Score
    } else if resident.what.contains("select") {
        Operation::Select
    } else {
        Operation::Encode
    };
    let timing = Timing::of(vec![1.0 / resident.per_second]);
    let needs = [(Resource::Flop, resident.flop), (resident.resource, resident.bytes)];
    let what = format!("{}, on the device", resident.what);
    only.contains(&operation).then(|| Entry::new(operation, what, "rows", timing, &needs))
}

/// FLOP of decoding one latent: multiply-adds count as two.
fn decode_flop(size: VaeSize) -> f64 {
    2.0 * (size.latent * size.hidden + size.hidden * size.dim) as f64
}

/// FLOP of encoding one embedding.
fn encode_flop(size: VaeSize) -> f64 {
    2.0 * (size.dim * size.hidden + size.hidden * 2 * size.latent) as f64
}

/// FLOP of scoring one latent by the folded model.
fn folded_flop(size: VaeSize, reward: RewardSize) -> f64 {
    2.0 * (size.latent * size.hidden + size.hidden * reward.hidden + reward.hidden) as f64
}

/// FLOP of a VAE training step for one pair: forward, gradients of every weight, gradients of every input but the
/// embeddings.
fn vae_step_flop(size: VaeSize) -> f64 {
    let VaeSize { dim, hidden, latent } = size;
    2.0 * 2.0 * (5 * dim * hidden + 9 * hidden * latent) as f64
}

/// FLOP of a reward training step for one pair of originals.
fn reward_step_flop(reward: RewardSize) -> f64 {
    2.0 * 2.0 * (2 * reward.dim * reward.hidden + 3 * reward.hidden) as f64
}

/// Operations of one normal, those of its share of Philox included.
const NORMAL_FLOP: f64 = 65.0;

/// Storage types of decoded embeddings.
const DTYPES: [Dtype; 3] = [Dtype::Bf16, Dtype::F16, Dtype::F32];

/// A rate with three digits and a unit of thousands: "412 k", "1.25 M".
pub fn rate(per_second: f64) -> String {
    let (value, unit) = match per_second {
        r if r >= 1e9 => (r / 1e9, " G"),
        r if r >= 1e6 => (r / 1e6, " M"),
        r if r >= 1e3 => (r / 1e3, " k"),
        r => (r, ""),
    };
    let decimals = match value {
        v if v >= 99.95 => 0,
        v if v >= 9.995 => 1,
        _ => 2,
    };
    format!("{value:.decimals$}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_have_three_digits() {
        for (value, text) in [
            (412_345.0, "412 k"),
            (1_254_000.0, "1.25 M"),
            (9.996e9, "10.0 G"),
            (0.5, "0.50"),
            (99.96, "100"),
        ] {
            assert_eq!(rate(value), text);
        }
    }

    /// The counts of the paper's sizes that the project's figures are based on.
    #[test]
    fn work_of_the_usual_sizes() {
        let (size, reward) = (VaeSize::new(4096, 64, 16).unwrap(), RewardSize::new(4096, 256).unwrap());
        assert_eq!(decode_flop(size), 526_336.0);
        assert_eq!(encode_flop(size), 528_384.0);
        assert_eq!(folded_flop(size, reward), 35_328.0);
        assert_eq!(vae_step_flop(size), 4.0 * (5.0 * 4096.0 * 64.0 + 9.0 * 64.0 * 16.0));
        assert_eq!(reward_step_flop(reward), 4.0 * (2.0 * 4096.0 * 256.0 + 3.0 * 256.0));
    }

    #[test]
    fn the_nearest_limit_counts() {
        let limit = |resource, per_second| Limit { what: String::new(), resource, per_second };
        let limits =
            [limit(Resource::Flop, 100.0), limit(Resource::Write, 10.0), limit(Resource::Write, 30.0)];
        let entry = |flop, bytes| {
            let timing = Timing::of(vec![0.5]);
            let needs = [(Resource::Flop, flop), (Resource::Write, bytes)];
            Entry::new(Operation::Decode, "decode", "rows", timing, &needs).hold_against(&limits)
        };
        // Two rows a second, where arithmetic allows 4 and the faster stores 30.
        let bound = entry(25.0, 1.0);
        assert_eq!((bound.share, bound.bound_by), (Some(0.5), Some(Resource::Flop)));
        let bound = entry(1.0, 10.0);
        assert_eq!((bound.share, bound.bound_by), (Some(2.0 / 3.0), Some(Resource::Write)));
        assert_eq!(entry(0.0, 0.0).share, None);
    }
}
