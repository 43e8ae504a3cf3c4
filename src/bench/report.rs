//! What a benchmark is asked for, and what it finds.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::backend::{DeviceInfo, Limit, Resource};
use crate::error::Result;
use crate::memory;
use crate::model::{RewardModel, RewardSize, Vae, VaeSize};
use crate::timing::Timing;

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

/// What is measured, and at which sizes.
#[derive(Clone, Debug, PartialEq, Serialize)]
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
    #[serde(rename = "fold")]
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

/// The models that operations work with, untrained: rates do not depend on weights.
#[derive(Clone, Debug)]
pub(super) struct Models {
    pub vae: Vae,
    pub reward: RewardModel,
}

impl Options {
    /// The models of these sizes, for embeddings of dimension `dim`.
    ///
    /// # Errors
    /// A size out of range, or models that do not fit in memory.
    pub(super) fn models(&self, dim: usize) -> Result<Models> {
        let vae = VaeSize::new(dim, self.hidden, self.latent)?;
        let reward = RewardSize::new(dim, self.reward_hidden)?;
        memory::require("rows", self.rows, self.rows as u128 * dim as u128 * 4)?;
        vae.require_memory()?;
        reward.require_memory()?;
        Ok(Models { vae: Vae::init(vae, self.seed), reward: RewardModel::init(reward, self.seed) })
    }
}

/// What one unit of an operation needs of a resource.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Need {
    /// The resource.
    pub resource: Resource,
    /// FLOP, bytes or normals.
    pub amount: f64,
}

/// The figures of one operation.
#[derive(Clone, Debug, PartialEq, Serialize)]
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
    pub(super) fn new(
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

    /// What a unit needs of a resource, if anything.
    pub fn need(&self, resource: Resource) -> Option<f64> {
        self.needs.iter().find(|n| n.resource == resource).map(|n| n.amount)
    }

    /// Bytes that a unit moves through memory, or to disk.
    pub fn bytes(&self) -> Option<f64> {
        [Resource::Write, Resource::Copy, Resource::Disk].into_iter().find_map(|r| self.need(r))
    }

    /// Sets the share of the limit that allows the lowest rate.
    pub(super) fn with_share(mut self, limits: &[Limit]) -> Entry {
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
#[derive(Clone, Debug, PartialEq, Serialize)]
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
    /// Share of the processors' time that other processes took meanwhile; None where the system does not tell.
    pub others: Option<f64>,
}

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

    #[test]
    fn the_nearest_limit_counts() {
        let limit = |resource, per_second| Limit { what: String::new(), resource, per_second };
        let limits =
            [limit(Resource::Flop, 100.0), limit(Resource::Write, 10.0), limit(Resource::Write, 30.0)];
        let entry = |flop, bytes| {
            let timing = Timing::of(vec![0.5]);
            let needs = [(Resource::Flop, flop), (Resource::Write, bytes)];
            Entry::new(Operation::Decode, "decode", "rows", timing, &needs).with_share(&limits)
        };
        // Two rows a second, where arithmetic allows 4 and the faster stores 30.
        let bound = entry(25.0, 1.0);
        assert_eq!((bound.share, bound.bound_by), (Some(0.5), Some(Resource::Flop)));
        let bound = entry(1.0, 10.0);
        assert_eq!((bound.share, bound.bound_by), (Some(2.0 / 3.0), Some(Resource::Write)));
        assert_eq!(entry(0.0, 0.0).share, None);
    }
}
