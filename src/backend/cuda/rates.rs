//! Rates of the kernels on resident data, beside the device's own memory rates: what `benches/gpu.rs` prints and
//! `tools/gpu_check` records. Data is random and not zero, results stay on the device.

use std::sync::Arc;
use std::time::Instant;

use half::bf16;
use serde::Serialize;

use super::Cuda;
use super::data::{Latents, Posteriors, Source};
use super::driver::Outcome;
use super::memory::Buffer;
use super::ops::{Codes, RowsAt};
use crate::backend::{Backend, LatentSource, Likelihood, Origin, Perturbation};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::model::{FoldedReward, RewardModel, Vae};
use crate::noise::{Address, Purpose, Side, fill_normals};

/// Seconds that a measurement takes at least.
const LONG_ENOUGH: f64 = 0.2;

/// One rate.
#[derive(Clone, Debug, Serialize)]
pub struct Rate {
    /// What ran.
    pub what: String,
    /// Rows, latents or bytes a second.
    pub per_second: f64,
    /// Their name.
    pub unit: &'static str,
    /// Bytes that a row must move through device memory; 0 for none.
    pub bytes: usize,
    /// Floating-point operations of a row.
    pub flop: usize,
    /// Share of the memory rate that was measured in the same run, of writes for what mostly writes.
    pub of_memory: Option<f64>,
}

/// Sizes of a measurement.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Embeddings that are encoded, decoded and scored.
    pub rows: usize,
    /// Latents that are scored by folding.
    pub latents: usize,
    /// Bytes of the memory floors.
    pub bytes: usize,
}

fn normals(n: usize, row: u64) -> Vec<f32> {
    let mut out = vec![0f32; n];
    let address = Address { purpose: Purpose::Simulation, side: Side::Chosen, row, candidate: 5 };
    fill_normals(11, address, &mut out);
    out
}

impl Cuda {
    /// Waits until everything that was launched is done.
    fn finish(&self) -> Outcome<()> {
        let word = Buffer::<u32>::zeros(&self.driver, 1, "a word")?;
        word.download().map(drop)
    }

    /// The same for callers outside the backend.
    ///
    /// # Errors
    /// What the device failed with meanwhile.
    pub fn wait(&self) -> Result<()> {
        self.run(|| self.finish())
    }

    /// Seconds of one call of `work`, over as many as fill the time.
    fn seconds(&self, work: &mut dyn FnMut() -> Outcome<()>) -> Outcome<f64> {
        work()?;
        self.finish()?;
        let mut calls = 1;
        loop {
            let start = Instant::now();
            for _ in 0..calls {
                work()?;
            }
            self.finish()?;
            let seconds = start.elapsed().as_secs_f64();
            if seconds >= LONG_ENOUGH {
                return Ok(seconds / f64::from(calls));
            }
            calls *= 2;
        }
    }

    /// Measures every inference kernel on models of `vae` and `reward`, with embeddings stored as BF16.
    ///
    /// # Errors
    /// What the device fails with.
    pub fn rates(&self, vae: &Vae, reward: &RewardModel, load: Load) -> Result<Vec<Rate>> {
        let folded = FoldedReward::new(vae, reward)?;
        let (size, width) = (vae.size(), reward.size().hidden);
        let folded = self.load_folded(&folded)?;
        let vae = self.load_vae(vae)?;
        let reward = self.load_reward(reward)?;
        self.run(|| {
            let mut rates = Vec::new();
            // Floors: bytes written, and bytes read and written.
            let from = Buffer::<u8>::zeros(&self.driver, load.bytes, "floor")?;
            let to = Buffer::<u8>::zeros(&self.driver, load.bytes, "floor")?;
            let write =
                load.bytes as f64 / self.seconds(&mut || self.driver.clear(to.address(), load.bytes))?;
            let copy = 2.0 * load.bytes as f64
                / self.seconds(&mut || self.driver.copy(to.address(), from.address(), load.bytes))?;
            drop((from, to));
            for (what, per_second) in [("memory, write", write), ("memory, copy (read + write)", copy)] {
                let what = what.to_string();
                rates.push(Rate { what, per_second, unit: "bytes", bytes: 1, flop: 0, of_memory: None });
            }
            let mut add =
                |what: &str, rows: usize, (bytes, flop): (usize, usize), floor: f64, seconds: f64| {
                    let per_second = rows as f64 / seconds;
                    let of_memory = (bytes > 0).then(|| per_second * bytes as f64 / floor);
                    let what = format!("{what} {}", self.precision);
                    rates.push(Rate { what, per_second, unit: "rows", bytes, flop, of_memory });
                };

            let (dim, hidden, latent) = (size.dim, size.hidden, size.latent);
            let stored: Vec<bf16> = normals(dim * 64, 1).iter().map(|&v| bf16::from_f32(v)).collect();
            let embeddings = Buffer::<bf16>::empty(&self.driver, load.rows * dim, "embeddings")?;
            for first in (0..load.rows).step_by(64) {
                embeddings.write(first * dim, &stored[..(load.rows - first).min(64) * dim])?;
            }
            let rows = RowsAt { address: embeddings.address(), rows: load.rows, dtype: Dtype::Bf16 };
            let codes = [(); 2]
                .map(|()| Buffer::<f32>::empty(&self.driver, load.latents.max(load.rows) * latent, "codes"));
            let [mu, logvar] = codes;
            let (mu, logvar) = (mu?, logvar?);
            let to = Codes { mu: mu.address(), logvar: logvar.address(), z: 0 };
            let work = (2 * dim + 8 * latent, 2 * (dim * hidden + 2 * hidden * latent));
            let seconds = self.seconds(&mut || self.launch_encode(&vae, rows, to, None))?;
            add("encode from BF16", load.rows, work, copy, seconds);

            let rewards = Buffer::<f32>::empty(&self.driver, load.latents.max(load.rows), "rewards")?;
            let work = (2 * dim, 2 * dim * width);
            let seconds = self.seconds(&mut || self.launch_score(&reward, rows, (rewards.address(), 0)))?;
            add("score BF16 embeddings", load.rows, work, copy, seconds);

            for (address, values) in [(&mu, 2), (&logvar, 3)] {
                let block = normals(latent * 1024, values);
                for first in (0..load.latents).step_by(1024) {
                    address.write(first * latent, &block[..(load.latents - first).min(1024) * latent])?;
                }
            }
            let posteriors =
                Posteriors { mu: Arc::new(mu), logvar: Arc::new(logvar), rows: load.latents, latent };
            let origin = Origin { seed: 1, side: Side::Chosen, first_row: 0 };
            let how = Perturbation {
                sigma2: 0.01,
                keep: 3,
                oversample: 4,
                likelihood: Likelihood::Posterior,
                source: LatentSource::Sample,
            };
            let kept = Buffer::<u32>::empty(&self.driver, load.latents * 3, "candidates")?;
            let work = (8 * latent + 12, 65 * latent * 12);
            let seconds = self.seconds(&mut || self.launch_select(&posteriors, origin, &how, &kept))?;
            add("select 3 of 12 candidates", load.latents, work, copy, seconds);

            let pairs: Vec<[u32; 2]> = (0..load.latents).map(|i| [i as u32, 3]).collect();
            let drawn = Latents {
                source: Source::Drawn {
                    starts: Arc::new(self.starts(&posteriors, origin)?),
                    samples: Buffer::upload(&self.driver, &pairs, "samples")?,
                    origin,
                    sigma: how.sigma(),
                },
                rows: pairs.iter().map(|p| p[0]).collect(),
                latent,
            };
            let work = (8 * latent + 12, 2 * (latent * hidden + hidden * width + width) + 130 * latent);
            let seconds = self.seconds(&mut || self.launch_score_latents(&folded, &drawn, None, &rewards))?;
            add("draw and score latents, folded", load.latents, work, copy, seconds);

            for (dtype, name) in [(Dtype::Bf16, "BF16"), (Dtype::F32, "F32")] {
                let bytes = load.rows * dim * dtype.size();
                let out = Buffer::<u8>::empty(&self.driver, bytes, "decoded")?;
                let count = load.rows.min(load.latents);
                let work = (dim * dtype.size(), 2 * (latent * hidden + hidden * dim));
                let seconds = self.seconds(&mut || {
                    self.launch_decode(&vae, (&drawn, 0, count), None, (out.address(), dtype))
                })?;
                add(&format!("draw and decode to {name}"), count, work, write, seconds);
            }
            Ok(rates)
        })
    }
}
