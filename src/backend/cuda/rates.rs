//! Rates of single kernels on data that stays on the device, and the device's own peak rates beside them:
//! what `lensmith bench` prints and `tools/gpu_check` records. A [`Workload`] is a kernel with its inputs and
//! outputs; trials of at least 40 ms are timed by the clock of the host, which waits at their end. Data is
//! random, as zeros draw less power and run at higher clocks.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use half::bf16;
use serde::Serialize;

use super::context::Cuda;
use super::data::{DrawnLatents, LatentValues, Latents, Posteriors, ResidualBase, RowsAt};
use super::driver::{DriverError, DriverResult};
use super::infer::EncoderOutputs;
use super::launch::{Launch, Params, Start};
use super::memory::Buffer;
use super::params;
use crate::backend::{Backend, DecodeMode, NoiseKey, Perturbation, Precision};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::model::{FoldedReward, RewardModel, Standardizer, Vae};
use crate::noise::{NoiseCounter, Purpose, Side, fill_normals};
use crate::timing::{Timing, calibrate};

/// Least seconds of all trials of a measurement, and of one.
const TRIALS_SECONDS: f64 = 0.25;
const TRIAL_SECONDS: f64 = 0.04;
/// Bytes of an output by which two images of a kernel are compared.
const COMPARED: usize = 1 << 20;
/// Threads of a block of `kernels/floor.cu`.
const PEAK_THREADS: u32 = 256;
/// `floor_mma_bf16` does one round of products for so many bytes of the memory measurements, and so takes
/// about as long.
const BYTES_PER_ROUND: usize = 1 << 20;

/// Peak rates of a device, the ceilings of its roofline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Peak {
    /// Bytes read.
    Read,
    /// Bytes written.
    Write,
    /// Bytes read and as many written.
    Copy,
    /// Floating-point operations on BF16 tensor cores.
    Flop,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    PeakRead,
    PeakWrite,
    PeakCopy,
    PeakProducts,
    Memset,
    Memcpy,
    Encode,
    Score,
    Select,
    ScoreLatents,
    DecodeBf16,
    DecodeF32,
    DecodeResidual,
    Synthesize,
    SynthesizeResidual,
    Reconstruct,
}

impl Work {
    /// Whether there is a kernel for it in a precision: ranking is F32 in both, passes of several operations are BF16.
    fn is_in(self, precision: Precision) -> bool {
        match self {
            Work::Select => precision == Precision::F32,
            Work::Synthesize | Work::SynthesizeResidual | Work::Reconstruct => precision == Precision::Bf16,
            _ => true,
        }
    }
}

/// A kernel, or a peak of the device, whose rate can be measured; its name by [`fmt::Display`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measurement {
    work: Work,
    precision: Precision,
}

impl Measurement {
    /// The device's peaks: kernels of `kernels/floor.cu`, and the driver's own ways to set and copy memory.
    const PEAKS: [Work; 6] =
        [Work::PeakRead, Work::PeakWrite, Work::PeakCopy, Work::PeakProducts, Work::Memset, Work::Memcpy];
    /// Inference, kernel by kernel.
    const KERNELS: [Work; 10] = [
        Work::Encode,
        Work::Score,
        Work::Select,
        Work::ScoreLatents,
        Work::DecodeBf16,
        Work::DecodeF32,
        Work::DecodeResidual,
        Work::Synthesize,
        Work::SynthesizeResidual,
        Work::Reconstruct,
    ];

    /// Everything that can be measured, peaks first.
    pub fn all() -> Vec<Measurement> {
        let peaks = Self::PEAKS.map(|work| Measurement { work, precision: Precision::Bf16 });
        let of = |precision| Self::KERNELS.map(|work| Measurement { work, precision });
        let mut all = [&peaks[..], &of(Precision::Bf16), &of(Precision::F32)].concat();
        all.retain(|m| m.is_peak() || m.work.is_in(m.precision));
        all
    }

    /// The measurement of a name.
    pub fn named(name: &str) -> Option<Measurement> {
        Self::all().into_iter().find(|m| m.to_string() == name)
    }

    /// The precision of the backend that it is measured on.
    pub fn precision(self) -> Precision {
        self.precision
    }

    /// The kernel that runs, by the name of its symbol; `None` where the driver does the work.
    pub fn symbol(self) -> Option<String> {
        let name = self.to_string();
        match self.work {
            Work::Memset | Work::Memcpy => None,
            _ => Some(name.strip_suffix("_residual").map_or(name.clone(), str::to_string)),
        }
    }

    fn is_peak(self) -> bool {
        Self::PEAKS.contains(&self.work)
    }
}

impl fmt::Display for Measurement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let p = self.precision;
        match self.work {
            Work::PeakRead => f.write_str("floor_read"),
            Work::PeakWrite => f.write_str("floor_write"),
            Work::PeakCopy => f.write_str("floor_copy"),
            Work::PeakProducts => f.write_str("floor_mma_bf16"),
            Work::Memset => f.write_str("memset"),
            Work::Memcpy => f.write_str("memcpy"),
            Work::Encode => write!(f, "encode_{p}_bf16"),
            Work::Score => write!(f, "score_{p}_bf16"),
            Work::Select => f.write_str("select_f32"),
            Work::ScoreLatents => write!(f, "score_latents_{p}"),
            Work::DecodeBf16 => write!(f, "decode_{p}_bf16"),
            Work::DecodeF32 => write!(f, "decode_{p}_f32"),
            Work::DecodeResidual => write!(f, "decode_{p}_bf16_residual"),
            Work::Synthesize => f.write_str("synthesize_bf16_bf16"),
            Work::SynthesizeResidual => f.write_str("synthesize_bf16_bf16_residual"),
            Work::Reconstruct => f.write_str("reconstruct_bf16"),
        }
    }
}

/// One rate.
#[derive(Clone, Debug, Serialize)]
pub struct Rate {
    /// Name of what was measured.
    pub name: String,
    /// The same in words.
    pub what: String,
    /// Units a second, the median of the trials.
    pub per_second: f64,
    /// The slowest trial.
    pub low: f64,
    /// The fastest trial.
    pub high: f64,
    /// What is counted: rows, or for peaks bytes and FLOP.
    pub unit: &'static str,
    /// Bytes that a row must move through device memory; 0 for none.
    pub bytes: usize,
    /// Floating-point operations of a row.
    pub flop: usize,
    /// The peak of memory that bounds a kernel, or the peak that was measured.
    #[serde(rename = "floor")]
    pub peak: Peak,
    /// Whether its products are on BF16 tensor cores, so that [`Peak::Flop`] bounds it too.
    pub tensor_cores: bool,
}

/// Sizes of a measurement.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Embeddings that are encoded, decoded and scored.
    pub rows: usize,
    /// Latents that are ranked, and scored by folding.
    pub latents: usize,
    /// Bytes that the memory peaks move.
    pub bytes: usize,
}

/// A kernel with its inputs and outputs on the device, ready to run any number of times.
pub struct Workload<'c> {
    cuda: &'c Cuda,
    rate: Rate,
    /// Units of a run.
    count: usize,
    /// Address and bytes of what it writes.
    out: (u64, usize),
    run: Box<dyn Fn() -> DriverResult<()> + 'c>,
}

impl Workload<'_> {
    fn seconds_of(&self, calls: u32) -> DriverResult<f64> {
        let start = Instant::now();
        for _ in 0..calls {
            (self.run)()?;
        }
        self.cuda.synchronize_stream()?;
        Ok(start.elapsed().as_secs_f64())
    }

    /// Runs once and waits.
    ///
    /// # Errors
    /// What the device fails with.
    pub fn once(&self) -> Result<()> {
        self.cuda.run(|| self.seconds_of(1).map(drop))
    }

    /// The median rate of several trials.
    ///
    /// # Errors
    /// What the device fails with.
    pub fn measure(&self) -> Result<Rate> {
        let timing = self.cuda.run(|| {
            let (calls, first) = calibrate(TRIAL_SECONDS, &mut |calls| self.seconds_of(calls))?;
            let mut seconds = vec![first];
            while seconds.iter().sum::<f64>() < TRIALS_SECONDS {
                seconds.push(self.seconds_of(calls)?);
            }
            Ok(Timing::of(seconds).per(f64::from(calls)))
        })?;
        let rate = |seconds: f64| self.count as f64 / seconds;
        let (per_second, low, high) = (rate(timing.median), rate(timing.slowest), rate(timing.fastest));
        Ok(Rate { per_second, low, high, ..self.rate.clone() })
    }

    /// Rates of this and another workload, measured in turns.
    ///
    /// # Errors
    /// What the device fails with.
    pub fn in_turns(&self, other: &Workload<'_>, turns: usize) -> Result<[Vec<f64>; 2]> {
        self.cuda.run(|| {
            let calls_of = |w: &Workload<'_>| calibrate(TRIAL_SECONDS, &mut |calls| w.seconds_of(calls));
            let calls = [calls_of(self)?.0, calls_of(other)?.0];
            let mut rates = [Vec::new(), Vec::new()];
            for _ in 0..turns {
                for (i, workload) in [self, other].into_iter().enumerate() {
                    let units = workload.count as f64 * f64::from(calls[i]);
                    rates[i].push(units / workload.seconds_of(calls[i])?);
                }
            }
            Ok(rates)
        })
    }

    /// The first bytes of what the last run wrote, at most 1 MiB.
    ///
    /// # Errors
    /// What the device fails with.
    pub fn output(&self) -> Result<Vec<u8>> {
        let (address, bytes) = self.out;
        let mut out = vec![0; bytes.min(COMPARED)];
        self.cuda.run(|| {
            let event = self.cuda.driver.event()?;
            self.cuda.driver.download(&*event, &mut out, address)
        })?;
        Ok(out)
    }
}

fn normals(n: usize, row: u64) -> Vec<f32> {
    let mut out = vec![0f32; n];
    let counter = NoiseCounter { purpose: Purpose::Simulation, side: Side::Chosen, row, candidate: 5 };
    fill_normals(11, counter, &mut out);
    out
}

impl Cuda {
    /// Waits for everything that was launched: for a copy behind it.
    fn synchronize_stream(&self) -> DriverResult<()> {
        Buffer::<u32>::zeros(&self.driver, 1, "a word")?.download().map(drop)
    }

    /// Waits for everything that was launched.
    ///
    /// # Errors
    /// What the device failed with since the last wait.
    pub fn wait(&self) -> Result<()> {
        self.run(|| self.synchronize_stream())
    }

    /// Measures the driver's setting and copying of memory, and every inference kernel in the backend's
    /// precision, on models of `vae` and `reward`.
    ///
    /// # Errors
    /// What the device fails with.
    pub fn rates(&self, vae: &Vae, reward: &RewardModel, load: Load) -> Result<Vec<Rate>> {
        let peaks = [Work::Memset, Work::Memcpy];
        let mut work = [&peaks[..], &Measurement::KERNELS].concat();
        // The ranking is measured with either precision's backend, and a pass where there is one for these sizes.
        let Perturbation { top_k, .. } = Perturbation::default();
        let drawn = Perturbation::default().drawn() as usize;
        let passes = self.one_pass(vae.size(), top_k as usize, drawn).is_some();
        work.retain(|work| match work {
            Work::Synthesize | Work::SynthesizeResidual | Work::Reconstruct => passes,
            _ => true,
        });
        let all = work.into_iter().map(|work| Measurement { work, precision: self.precision });
        all.map(|m| self.workload(m, (vae, reward), load)?.measure()).collect()
    }

    /// Brings what a measurement needs to the device. Embeddings are stored as BF16.
    ///
    /// # Errors
    /// What the device fails with.
    pub fn workload<'c>(
        &'c self,
        what: Measurement,
        (vae, reward): (&Vae, &RewardModel),
        load: Load,
    ) -> Result<Workload<'c>> {
        if what.is_peak() {
            return self.run(|| self.peak_workload(what, load.bytes));
        }
        let (size, width) = (vae.size(), reward.size().hidden);
        let (dim, hidden, latent) = (size.dim, size.hidden, size.latent);
        let decoded = 2 * (latent * hidden + hidden * dim);
        let options = Perturbation { top_k: 3, ..Perturbation::default() };
        let key = NoiseKey { seed: 1, side: Side::Chosen, first_row: 0 };
        let rate = |words: &str, bytes, flop, peak| {
            let what_in_words = format!("{words} {}", self.precision);
            let tensor_cores = self.precision == Precision::Bf16 && what.work != Work::Select;
            let (name, unit) = (what.to_string(), "rows");
            let (per_second, low, high) = (0.0, 0.0, 0.0);
            Rate { name, what: what_in_words, per_second, low, high, unit, bytes, flop, peak, tensor_cores }
        };
        let (rate, count, out, run): (Rate, usize, _, Box<dyn Fn() -> DriverResult<()> + 'c>) = match what
            .work
        {
            Work::Encode => {
                let vae = self.load_vae(vae)?;
                let (embeddings, mu, logvar) = self.run(|| {
                    let output = |label| Buffer::<f32>::empty(&self.driver, load.rows * latent, label);
                    Ok((self.embeddings_of(load.rows, dim)?, output("mu")?, output("logvar")?))
                })?;
                let out = (mu.address(), 4 * mu.len());
                let to = EncoderOutputs { mu: mu.address(), logvar: logvar.address(), z: 0 };
                let run = move || {
                    let rows = rows_at(&embeddings, load.rows);
                    // Moved into the closure, so that they live as long as launches write them.
                    let _ = (&mu, &logvar);
                    self.launch_encode(&vae, rows, to, None)
                };
                let flop = 2 * (dim * hidden + 2 * hidden * latent);
                (
                    rate("encode from BF16", 2 * dim + 8 * latent, flop, Peak::Read),
                    load.rows,
                    out,
                    Box::new(run),
                )
            }
            Work::Score => {
                let reward = self.load_reward(reward)?;
                let embeddings = self.run(|| self.embeddings_of(load.rows, dim))?;
                let rewards = self.run(|| Buffer::<f32>::empty(&self.driver, load.rows, "rewards"))?;
                let out = (rewards.address(), 4 * rewards.len());
                let run = move || {
                    self.launch_score(&reward, rows_at(&embeddings, load.rows), (rewards.address(), 0))
                };
                let rate = rate("score BF16 embeddings", 2 * dim, 2 * dim * width, Peak::Read);
                (rate, load.rows, out, Box::new(run))
            }
            Work::Select => {
                let posteriors = self.run(|| self.posteriors_of(load.latents, latent))?;
                let kept = self.run(|| Buffer::<u32>::empty(&self.driver, load.latents * 3, "candidates"))?;
                let out = (kept.address(), 4 * kept.len());
                let run = move || self.launch_select(&posteriors, key, &options, &kept);
                let rate = rate("select 3 of 12 candidates", 8 * latent + 12, 65 * latent * 12, Peak::Read);
                (rate, load.latents, out, Box::new(run))
            }
            Work::ScoreLatents => {
                let folded = self.load_folded(&FoldedReward::new(vae, reward)?)?;
                let drawn = self.run(|| self.latents_of(load.latents, latent, key, &options))?;
                let rewards = self.run(|| Buffer::<f32>::empty(&self.driver, load.latents, "rewards"))?;
                let out = (rewards.address(), 4 * rewards.len());
                let run = move || self.launch_score_latents(&folded, &drawn, None, &rewards);
                let flop = 2 * (latent * hidden + hidden * width + width) + 130 * latent;
                let rate = rate("draw and score latents, folded", 8 * latent + 12, flop, Peak::Read);
                (rate, load.latents, out, Box::new(run))
            }
            Work::DecodeBf16 | Work::DecodeF32 => {
                let dtype = if what.work == Work::DecodeF32 { Dtype::F32 } else { Dtype::Bf16 };
                let vae = self.load_vae(vae)?;
                let drawn = self.run(|| self.latents_of(load.rows, latent, key, &options))?;
                let bytes = dim * dtype.size();
                let made = self.run(|| Buffer::<u8>::empty(&self.driver, load.rows * bytes, "decoded"))?;
                let out = (made.address(), made.len());
                let run =
                    move || self.launch_decode(&vae, (&drawn, 0, load.rows), None, (made.address(), dtype));
                let rate = rate(&format!("draw and decode to {dtype}"), bytes, decoded, Peak::Write);
                (rate, load.rows, out, Box::new(run))
            }
            Work::Synthesize | Work::SynthesizeResidual => {
                let residual = what.work == Work::SynthesizeResidual;
                let mode = if residual { DecodeMode::Residual } else { DecodeMode::Plain };
                // As many rows are written, two for each that is read.
                let (options, seeds) = (Perturbation::default(), load.rows.div_ceil(2));
                let (keep, vae) = (options.top_k as usize, self.load_vae(vae)?);
                let embeddings = self.run(|| self.embeddings_of(seeds, dim))?;
                let made = self.run(|| Buffer::<bf16>::empty(&self.driver, seeds * keep * dim, "decoded"))?;
                let kept = self.run(|| Buffer::<u32>::empty(&self.driver, seeds * keep, "candidates"))?;
                let out = (made.address(), 2 * made.len());
                let block = self.synthesis_block(&vae, &options).ok_or_else(|| self.no_room(what))?;
                let run = move || {
                    let to = (made.address(), Dtype::Bf16, kept.address());
                    let how = (key, &options, mode);
                    self.launch_synthesize((&vae, block), &rows_at(&embeddings, seeds), how, to)
                };
                let flop = (dim * hidden + 2 * hidden * latent) + decoded * if residual { 2 } else { 1 };
                let rate = rate("encode, select 2 of 8, decode, BF16", 2 * dim + dim, flop, Peak::Copy);
                (rate, seeds * keep, out, Box::new(run))
            }
            Work::Reconstruct => {
                let vae = self.load_vae(vae)?;
                let embeddings = self.run(|| self.embeddings_of(load.rows, dim))?;
                let host = Standardizer::identity(dim);
                let to = self.run(|| self.reconstructed(load.rows, latent, &host))?;
                let out = (to.sums.address(), 4 * to.sums.len());
                let block = self.reconstruction_block(&vae).ok_or_else(|| self.no_room(what))?;
                let run = move || {
                    self.launch_reconstruct((&vae, block), &rows_at(&embeddings, load.rows), None, (&to, 0))
                };
                let flop = 2 * (dim * hidden + 2 * hidden * latent) + decoded + 6 * dim;
                let rate = rate("encode, decode, compare, BF16", 2 * dim + 8 * latent, flop, Peak::Read);
                (rate, load.rows, out, Box::new(run))
            }
            _ => {
                let vae = self.load_vae(vae)?;
                let drawn = self.run(|| self.latents_of(load.rows, latent, key, &options))?;
                let embeddings = self.run(|| self.embeddings_of(load.rows, dim))?;
                let made = self.run(|| Buffer::<bf16>::empty(&self.driver, load.rows * dim, "decoded"))?;
                let out = (made.address(), 2 * made.len());
                let posteriors = self.run(|| self.posteriors_of(load.rows, latent))?;
                let run = move || {
                    let mu = posteriors.mu.address();
                    let base = ResidualBase { embeddings: embeddings.address(), dtype: Dtype::Bf16, mu };
                    let to = (made.address(), Dtype::Bf16);
                    self.launch_decode(&vae, (&drawn, 0, load.rows), Some(base), to)
                };
                let rate = rate("draw, decode and add, BF16", 4 * dim, 2 * decoded, Peak::Copy);
                (rate, load.rows, out, Box::new(run))
            }
        };
        Ok(Workload { cuda: self, rate, count, out, run })
    }

    fn no_room(&self, what: Measurement) -> Error {
        self.error(DriverError::Other(format!("{what}: there is no such launch for these sizes on this GPU")))
    }

    fn peak_workload(&self, what: Measurement, bytes: usize) -> DriverResult<Workload<'_>> {
        let bytes = bytes / 16 * 16;
        let driver = &self.driver;
        let from = self.embeddings_of(1, bytes / 2)?;
        let blocks = driver.limits().processors * if what.work == Work::PeakProducts { 2 } else { 8 };
        let threads = (blocks * PEAK_THREADS) as usize;
        // A fragment of four sums for each thread, where products are made.
        let to = Buffer::<u8>::empty(driver, bytes.max(16 * threads), "peak")?;
        let out = (to.address(), if what.work == Work::PeakRead { 4 * threads } else { bytes });
        let launch = |kernel, n| {
            let params = Params::of(params::Floor { from: from.address(), out: to.address(), n });
            Launch {
                kernel,
                grid: [blocks, 1, 1],
                threads: PEAK_THREADS,
                shared: 0,
                params,
                start: Start::Behind,
            }
        };
        let vectors = (bytes / 16) as u64;
        type Run<'a> = Box<dyn Fn() -> DriverResult<()> + 'a>;
        let launched = |launch: Launch| -> Run<'_> { Box::new(move || driver.launch(&launch)) };
        let (words, count, peak, run): (_, _, _, Run<'_>) = match what.work {
            Work::PeakRead => ("memory, read", bytes, Peak::Read, launched(launch("floor_read", vectors))),
            Work::PeakWrite => {
                ("memory, written by a kernel", bytes, Peak::Write, launched(launch("floor_write", vectors)))
            }
            Work::PeakCopy => {
                let what = "memory, copied by a kernel (read + write)";
                (what, 2 * bytes, Peak::Copy, launched(launch("floor_copy", vectors)))
            }
            Work::PeakProducts => {
                let operands: Vec<[bf16; 2]> = normals(2 * 16 * 32, 4)
                    .chunks_exact(2)
                    .map(|v| [bf16::from_f32(v[0]), bf16::from_f32(v[1])])
                    .collect();
                from.write(0, operands.as_flattened())?;
                let rounds = (bytes / BYTES_PER_ROUND).clamp(1, 4096);
                let flop = threads / 32 * rounds * 32_768;
                let what = "products on BF16 tensor cores (mma.sync)";
                (what, flop, Peak::Flop, launched(launch("floor_mma_bf16", rounds as u64)))
            }
            Work::Memset => {
                let at = to.address();
                ("memory, write", bytes, Peak::Write, Box::new(move || driver.clear(at, bytes)))
            }
            _ => {
                let (to, from) = (to.address(), from.address());
                let run = move || driver.copy(to, from, bytes);
                ("memory, copy (read + write)", 2 * bytes, Peak::Copy, Box::new(run))
            }
        };
        let (bytes, unit) = if peak == Peak::Flop { (0, "FLOP") } else { (1, "bytes") };
        let rate = Rate {
            name: what.to_string(),
            what: words.into(),
            per_second: 0.0,
            low: 0.0,
            high: 0.0,
            unit,
            bytes,
            flop: 1 - bytes,
            peak,
            tensor_cores: peak == Peak::Flop,
        };
        // Moved into the closure, so that the buffers live as long as it.
        let run = Box::new(move || {
            let _ = (&from, &to);
            run()
        });
        Ok(Workload { cuda: self, rate, count, out, run })
    }

    /// Random embeddings `[rows, dim]`.
    fn embeddings_of(&self, rows: usize, dim: usize) -> DriverResult<Buffer<bf16>> {
        let all = rows * dim;
        let block: Vec<bf16> = normals(all.min(1 << 18), 1).into_iter().map(bf16::from_f32).collect();
        let buffer = Buffer::empty(&self.driver, all, "embeddings")?;
        self.repeated(&buffer, &block)?;
        Ok(buffer)
    }

    /// Fills a buffer with copies of `block`, doubling what is there by copies on the device.
    fn repeated<T: bytemuck::Pod>(&self, buffer: &Buffer<T>, block: &[T]) -> DriverResult<()> {
        let mut filled = block.len().min(buffer.len());
        buffer.write(0, &block[..filled])?;
        while filled < buffer.len() {
            let more = filled.min(buffer.len() - filled);
            self.driver.copy(buffer.at(filled), buffer.address(), more * size_of::<T>())?;
            filled += more;
        }
        Ok(())
    }

    fn posteriors_of(&self, rows: usize, latent: usize) -> DriverResult<Posteriors> {
        let filled = |row| -> DriverResult<_> {
            let buffer = Buffer::<f32>::empty(&self.driver, rows * latent, "posteriors")?;
            self.repeated(&buffer, &normals((latent * 1024).min(rows * latent), row))?;
            Ok(Arc::new(buffer))
        };
        Ok(Posteriors { mu: filled(2)?, logvar: filled(3)?, rows, latent })
    }

    /// A sample of each of `rows` posteriors.
    fn latents_of(
        &self,
        rows: usize,
        latent: usize,
        key: NoiseKey,
        options: &Perturbation,
    ) -> DriverResult<Latents> {
        let pairs: Vec<[u32; 2]> = (0..rows).map(|i| [i as u32, 3]).collect();
        let values = LatentValues::Drawn(DrawnLatents {
            starts: Arc::new(self.starts(&self.posteriors_of(rows, latent)?, key)?),
            samples: Buffer::upload(&self.driver, &pairs, "samples")?,
            key,
            sigma: options.sigma(),
        });
        Ok(Latents { values, rows: pairs.iter().map(|p| p[0]).collect(), latent })
    }
}

fn rows_at(embeddings: &Buffer<bf16>, rows: usize) -> RowsAt {
    RowsAt { address: embeddings.address(), rows, dtype: Dtype::Bf16 }
}
