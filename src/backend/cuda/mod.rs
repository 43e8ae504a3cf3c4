//! The CUDA backend: hand-written kernels (`kernels/`), launched through one of two drivers, a GPU's or the emulator's.
//!
//! The driver library is loaded when a device is opened, so that one binary runs with and without it. Everything stays on
//! the device until it is asked for; out of memory, outputs and streamed inputs go through it in smaller pieces.

mod data;
mod device;
pub mod driver;
mod emulator;
mod gpu;
pub mod kernels;
mod launch;
pub mod layout;
mod memory;
mod ops;
mod params;
mod pinned;
pub mod rates;
mod replaced;
mod replay;
mod resident;
mod rows;
mod stream;
mod tape;
mod train_reward;
mod train_vae;

use std::path::Path;
use std::sync::Arc;

pub use data::{DeviceFolded, DeviceReward, DeviceVae, Embeddings, Latents, Posteriors};
pub use device::{Device, Summary};
use driver::{Driver, DriverError};
pub use emulator::{Emulated, EmulatedDriver, Emulator, Order, Schedule};
pub use gpu::Gpu;
pub use launch::{Args, Launch};
pub use resident::Decoded;
pub use rows::Rows;
pub use train_reward::RewardTrainer;
pub use train_vae::VaeTrainer;

use self::data::Source;
use self::memory::Buffer;
use self::ops::{Codes, RowsAt};
use super::{
    Backend, DeviceInfo, LatentSource, NoiseKey, PairData, PairRows, Perturbation, PosteriorsHost, Precision,
    Residual, RewardData, RewardObjective, Sample, Selection, Synthetic, SyntheticPath, VaeLoss,
    VaeObjective, check,
};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::matrix::{Matrix, RowSet, RowsBuf, ValuesMut};
use crate::model::{FoldedReward, RewardModel, Standardizer, Vae, VaeSize};

/// Names a library of emulated kernels that stands in for the GPU; for tests.
const EMULATOR: &str = "LENSMITH_CUDA_EMULATOR";
/// Number of emulated devices; 1 where it is not set.
const EMULATED_DEVICES: &str = "LENSMITH_CUDA_EMULATOR_DEVICES";

/// The CUDA backend on one device.
#[derive(Debug)]
pub struct Cuda {
    driver: Arc<dyn Driver>,
    precision: Precision,
}

impl Cuda {
    /// Opens GPU `index`, in the order of the driver, for products in `precision`. With LENSMITH_CUDA_EMULATOR in the
    /// environment, the emulated kernels that it names.
    ///
    /// # Errors
    /// [`Error::Device`] with what is missing and what would help; see [`Device::open`].
    pub fn open(index: usize, precision: Precision) -> Result<Cuda> {
        if let Some(drivers) = emulated_devices()? {
            let count = drivers.len();
            return match drivers.into_iter().nth(index) {
                Some(driver) => Cuda::emulated(driver, precision),
                None => {
                    let reason = format!(
                        "only {count} emulated device{} ({EMULATED_DEVICES})",
                        if count == 1 { "" } else { "s" }
                    );
                    Err(Error::Device { device: format!("cuda:{index}"), reason })
                }
            };
        }
        Cuda::on(Device::open(index)?, precision)
    }

    /// The backend on an opened GPU, for products in `precision`.
    ///
    /// # Errors
    /// [`Error::Device`] if the GPU has no memory for staging, or no tensor cores for BF16.
    pub fn on(device: Device, precision: Precision) -> Result<Cuda> {
        let name = format!("cuda:{}", device.index());
        let gpu = gpu::Gpu::new(device);
        let gpu = gpu.map_err(|fault| Error::Device { device: name, reason: fault.to_string() })?;
        Cuda::over(Arc::new(gpu), precision)
    }

    /// Opens every GPU that the driver lists, in its order; at least one.
    ///
    /// # Errors
    /// As [`Cuda::open`], of the first that cannot be opened.
    pub fn open_all(precision: Precision) -> Result<Vec<Cuda>> {
        if let Some(drivers) = emulated_devices()? {
            return drivers.into_iter().map(|driver| Cuda::emulated(driver, precision)).collect();
        }
        let count = Device::count()?;
        let opened = (0..count).map(|index| {
            Cuda::open(index, precision).map_err(|error| match error {
                // Those before it were opened.
                Error::Device { device, reason } if index > 0 => {
                    let reason = format!("{reason}; CUDA_VISIBLE_DEVICES can leave this GPU out");
                    Error::Device { device, reason }
                }
                other => other,
            })
        });
        opened.collect()
    }

    /// The backend over the emulator.
    pub fn emulated(driver: EmulatedDriver, precision: Precision) -> Result<Cuda> {
        Cuda::over(Arc::new(driver), precision)
    }

    /// The backend over any driver.
    ///
    /// # Errors
    /// [`Error::Device`] for BF16 where the driver has no tensor cores.
    pub fn over(driver: Arc<dyn Driver>, precision: Precision) -> Result<Cuda> {
        let cuda = Cuda { driver, precision };
        if precision == Precision::Bf16 && !cuda.driver.limits().tensor_cores {
            return Err(cuda.error(DriverError::Other(format!(
                "{}: --precision bf16 needs BF16 tensor cores (compute capability 8.0); use --precision f32",
                cuda.driver.detail()
            ))));
        }
        Ok(cuda)
    }

    /// A driver's fault as the crate's error.
    fn error(&self, fault: DriverError) -> Error {
        let help = match fault {
            DriverError::OutOfMemory { .. } => "; use fewer seed pairs at a time, or --device cpu",
            DriverError::Other(_) => "",
        };
        Error::Device { device: self.driver.name().into(), reason: format!("{fault}{help}") }
    }

    /// Runs `work` and names the device in its fault.
    fn run<T>(&self, work: impl FnOnce() -> driver::DriverResult<T>) -> Result<T> {
        work().map_err(|fault| self.error(fault))
    }

    fn buffer<T: bytemuck::Pod>(&self, len: usize, label: &'static str) -> driver::DriverResult<Buffer<T>> {
        Buffer::empty(&self.driver, len, label)
    }

    /// Latents in device memory, `[count, latent]`: those stored, or a copy of those drawn.
    fn stored(&self, latents: &Latents) -> driver::DriverResult<Option<Buffer<f32>>> {
        match &latents.source {
            Source::Stored { .. } => Ok(None),
            Source::Drawn { .. } => {
                Ok(Some(self.drawn(&latents.params(0), latents.count(), latents.latent)?))
            }
        }
    }

    /// What the candidates of each row start from: one posterior sample of it, `[rows, latent]`.
    fn starts(&self, p: &Posteriors, origin: NoiseKey) -> driver::DriverResult<Buffer<f32>> {
        let starts = self.buffer(p.rows * p.latent, "starts")?;
        if p.rows > 0 {
            self.launch_starts(p, origin, &starts)?;
        }
        Ok(starts)
    }

    /// `count` drawn latents, written out.
    fn drawn(
        &self,
        latents: &params::Latents,
        count: usize,
        latent: usize,
    ) -> driver::DriverResult<Buffer<f32>> {
        let z = self.buffer(count * latent, "latents")?;
        if count > 0 {
            self.launch_perturb(latents, count, latent, z.address())?;
        }
        Ok(z)
    }

    fn encode_into(
        &self,
        vae: &DeviceVae,
        embeddings: &Embeddings<'_>,
        codes: Codes,
        origin: Option<NoiseKey>,
    ) -> driver::DriverResult<()> {
        let latent = vae.host.size().latent;
        self.each_stretch(embeddings, &mut |first, rows: RowsAt| {
            // 0 stays 0: not wanted.
            let at = |address: u64| {
                if address == 0 { 0 } else { address + (4 * first * latent) as u64 }
            };
            let codes = Codes { mu: at(codes.mu), logvar: at(codes.logvar), z: at(codes.z) };
            let origin = origin.map(|o| NoiseKey { first_row: o.first_row + first as u64, ..o });
            self.launch_encode(vae, rows, codes, origin)
        })
    }
}

/// The devices that the environment wants emulated.
fn emulated_devices() -> Result<Option<Vec<EmulatedDriver>>> {
    let Some(path) = std::env::var_os(EMULATOR) else { return Ok(None) };
    let count = match std::env::var(EMULATED_DEVICES) {
        Ok(text) => match text.parse::<usize>() {
            Ok(count @ 1..=64) => count,
            _ => return Err(Error::argument(EMULATED_DEVICES, "1 to 64", text)),
        },
        Err(_) => 1,
    };
    let first = EmulatedDriver::open(Path::new(&path))?;
    let others: Vec<EmulatedDriver> = (1..count).map(|index| first.beside(index)).collect();
    Ok(Some([vec![first], others].concat()))
}

impl check::Shapes for Cuda {
    fn embeddings_shape(embeddings: &Self::Embeddings<'_>) -> (usize, usize) {
        (embeddings.rows.rows(), embeddings.rows.cols())
    }

    fn posteriors_shape(posteriors: &Posteriors) -> (usize, usize) {
        (posteriors.rows, posteriors.latent)
    }

    fn latents_shape(latents: &Latents) -> (usize, &[u32]) {
        (latents.latent, &latents.rows)
    }

    fn vae_size(vae: &Self::Vae) -> VaeSize {
        vae.host.size()
    }
}

impl Backend for Cuda {
    type Embeddings<'a> = Embeddings<'a>;
    type Vae = DeviceVae;
    type Reward = DeviceReward;
    type Folded = DeviceFolded;
    type Posteriors = Posteriors;
    type Latents = Latents;
    type Rows = Rows;
    type VaeTrainer = VaeTrainer;
    type RewardTrainer = RewardTrainer;

    fn precision(&self) -> Precision {
        self.precision
    }

    fn info(&self) -> DeviceInfo {
        let detail = format!("{}, {} products", self.driver.detail(), self.precision);
        DeviceInfo { name: self.driver.name().into(), detail, threads: 1 }
    }

    fn embeddings<'a>(&'a self, rows: RowSet<'a>) -> Result<Embeddings<'a>> {
        self.run(|| Embeddings::new(&self.driver, rows))
    }

    fn load_vae(&self, vae: &Vae) -> Result<DeviceVae> {
        self.run(|| DeviceVae::new(&self.driver, vae, self.precision))
    }

    fn load_reward(&self, model: &RewardModel) -> Result<DeviceReward> {
        self.run(|| DeviceReward::new(&self.driver, model, self.precision))
    }

    fn load_latents(&self, z: &Matrix, rows: &[u32]) -> Result<Latents> {
        check::latent_rows(z, rows)?;
        self.run(|| {
            let source = Source::Stored {
                z: Buffer::upload(&self.driver, &z.values, "latents")?,
                owners: Buffer::upload(&self.driver, rows, "rows of latents")?,
            };
            Ok(Latents { source, rows: rows.to_vec(), latent: z.cols })
        })
    }

    fn encode(&self, vae: &DeviceVae, embeddings: &Embeddings<'_>) -> Result<Posteriors> {
        let size = vae.host.size();
        check::width("VAE", size.dim, embeddings.rows.cols())?;
        let rows = embeddings.rows.rows();
        self.run(|| {
            let mu = self.buffer(rows * size.latent, "mu")?;
            let logvar = self.buffer(rows * size.latent, "logvar")?;
            let codes = Codes { mu: mu.address(), logvar: logvar.address(), z: 0 };
            self.encode_into(vae, embeddings, codes, None)?;
            Ok(Posteriors { mu: Arc::new(mu), logvar: Arc::new(logvar), rows, latent: size.latent })
        })
    }

    fn encode_sample(
        &self,
        vae: &DeviceVae,
        embeddings: &Embeddings<'_>,
        origin: NoiseKey,
    ) -> Result<Latents> {
        let size = vae.host.size();
        check::width("VAE", size.dim, embeddings.rows.cols())?;
        let rows = check::sample_rows(embeddings.rows.rows())?;
        self.run(|| {
            let scratch = [(); 2].map(|()| self.buffer::<f32>(rows.len() * size.latent, "codes"));
            let [mu, logvar] = scratch;
            let (mu, logvar) = (mu?, logvar?);
            let z = self.buffer(rows.len() * size.latent, "latents")?;
            let codes = Codes { mu: mu.address(), logvar: logvar.address(), z: z.address() };
            self.encode_into(vae, embeddings, codes, Some(origin))?;
            let owners = Buffer::upload(&self.driver, &rows, "rows of latents")?;
            Ok(Latents { source: Source::Stored { z, owners }, rows, latent: size.latent })
        })
    }

    fn posteriors(&self, p: &Posteriors) -> Result<PosteriorsHost> {
        let (mu, logvar) = self.run(|| Ok((p.mu.download()?, p.logvar.download()?)))?;
        Ok(PosteriorsHost {
            mu: Matrix::new(mu, p.rows, p.latent)?,
            logvar: Matrix::new(logvar, p.rows, p.latent)?,
        })
    }

    fn select(&self, p: &Posteriors, origin: NoiseKey, how: &Perturbation) -> Result<Selection> {
        check::perturbation(how)?;
        let keep = how.top_k as usize;
        let candidates = self.run(|| {
            let out = self.buffer(p.rows * keep, "candidates")?;
            if p.rows > 0 {
                self.launch_select(p, origin, how, &out)?;
            }
            out.download()
        })?;
        Ok(Selection { top_k: keep, candidates })
    }

    fn perturb(
        &self,
        p: &Posteriors,
        origin: NoiseKey,
        how: &Perturbation,
        samples: &[Sample],
    ) -> Result<Latents> {
        check::perturbation(how)?;
        check::samples(samples, p.rows)?;
        let pairs: Vec<[u32; 2]> = samples.iter().map(|s| [s.row, s.candidate]).collect();
        self.run(|| {
            let starts = match how.source {
                LatentSource::Mean => p.mu.clone(),
                LatentSource::Sample => Arc::new(self.starts(p, origin)?),
            };
            let source = Source::Drawn {
                starts,
                samples: Buffer::upload(&self.driver, &pairs, "samples")?,
                origin,
                sigma: how.sigma(),
            };
            Ok(Latents { source, rows: samples.iter().map(|s| s.row).collect(), latent: p.latent })
        })
    }

    fn latents(&self, latents: &Latents) -> Result<Matrix> {
        let z = self.run(|| match (&latents.source, self.stored(latents)?) {
            (Source::Stored { z, .. }, _) => z.download(),
            (_, Some(z)) => z.download(),
            (_, None) => unreachable!("drawn latents were stored"),
        })?;
        Matrix::new(z, latents.count(), latents.latent)
    }

    fn decode<'e>(
        &self,
        vae: &DeviceVae,
        latents: &Latents,
        residual: Option<Residual<'_, 'e, Self>>,
        out: ValuesMut<'_>,
    ) -> Result<()>
    where
        Self: 'e,
    {
        let size = vae.host.size();
        check::latents::<Self>(size, latents, residual)?;
        check::length("the decoded embeddings", latents.count() * size.dim, out.len())?;
        self.run(|| {
            let base = residual.map(|r| self.base(r)).transpose()?;
            let dtype = out.dtype();
            self.each_download(out.into_bytes(), latents.count(), &mut |first, count, to| {
                self.launch_decode(vae, (latents, first, count), base, (to, dtype))
            })
        })
    }

    fn rows(&self, dtype: Dtype, dim: usize) -> Rows {
        Rows::new(dtype, dim)
    }

    fn store_rows<'e>(
        &self,
        originals: &Embeddings<'e>,
        samples: &Synthetic<'_, 'e, Self>,
        to: &mut Rows,
    ) -> Result<()>
    where
        Self: 'e,
    {
        check::latents::<Self>(samples.vae.host.size(), samples.latents, samples.residual)?;
        check::width("VAE", samples.vae.host.size().dim, originals.rows.cols())?;
        check::width("rows of pairs", to.dim(), originals.rows.cols())?;
        self.store_rows_in(originals, samples, to)
    }

    fn first_non_finite(&self, rows: &Rows) -> Result<Option<(usize, usize)>> {
        self.run(|| self.first_non_finite_in(rows))
    }

    fn pick_rows(&self, rows: &Rows, index: &[u32], out: &mut RowsBuf) -> Result<()> {
        self.pick_rows_into(rows, index, out)
    }

    fn score(&self, model: &DeviceReward, embeddings: &Embeddings<'_>, out: &mut [f32]) -> Result<()> {
        check::width("reward model", model.host.size().dim, embeddings.rows.cols())?;
        check::length("scores", embeddings.rows.rows(), out.len())?;
        self.run(|| {
            let rewards = self.buffer::<f32>(out.len(), "rewards")?;
            self.each_stretch(embeddings, &mut |first, rows| {
                self.launch_score(model, rows, (rewards.at(first), 0))
            })?;
            rewards.download_into(out)
        })
    }

    fn load_folded(&self, folded: &FoldedReward) -> Result<DeviceFolded> {
        self.run(|| DeviceFolded::new(&self.driver, folded, self.precision))
    }

    fn score_latents<'e>(
        &self,
        folded: &DeviceFolded,
        latents: &Latents,
        residual: Option<Residual<'_, 'e, Self>>,
        out: &mut [f32],
    ) -> Result<()>
    where
        Self: 'e,
    {
        check::latents::<Self>(folded.size, latents, residual)?;
        check::length("scores", latents.count(), out.len())?;
        self.run(|| {
            if latents.count() == 0 {
                return Ok(());
            }
            let base = residual
                .map(|r| {
                    let width = folded.reward.host.size().hidden;
                    let pre = self.buffer::<f32>(r.embeddings.rows.rows() * width, "pre-activations")?;
                    self.each_stretch(r.embeddings, &mut |first, rows| {
                        self.launch_score(&folded.reward, rows, (0, pre.at(first * width)))
                    })?;
                    Ok((pre, r.posteriors.mu.address()))
                })
                .transpose()?;
            let rewards = self.buffer::<f32>(latents.count(), "rewards")?;
            let base = base.as_ref().map(|(pre, mu)| (pre.address(), *mu));
            self.launch_score_latents(folded, latents, base, &rewards)?;
            rewards.download_into(out)
        })
    }

    fn vae_trainer(
        &self,
        initial: &Vae,
        standardizer: &Standardizer,
        objective: &VaeObjective,
    ) -> Result<VaeTrainer> {
        check::trainer(initial.size().dim, standardizer, objective.batch)?;
        self.run(|| VaeTrainer::new(self, initial, standardizer, objective))
    }

    fn vae_epoch<'e>(
        &self,
        trainer: &mut VaeTrainer,
        data: &PairData<'_, 'e, Self>,
        order: &[u32],
        epoch: u32,
    ) -> Result<VaeLoss>
    where
        Self: 'e,
    {
        check::pair_data(trainer.dim(), &data.chosen.rows, &data.rejected.rows, order)?;
        self.run(|| trainer.epoch(self, data, order, epoch))
    }

    fn vae_gradients<'e>(
        &self,
        trainer: &mut VaeTrainer,
        data: &PairData<'_, 'e, Self>,
        batch: &[u32],
        epoch: u32,
    ) -> Result<(VaeLoss, Vae)>
    where
        Self: 'e,
    {
        check::pair_data(trainer.dim(), &data.chosen.rows, &data.rejected.rows, batch)?;
        self.run(|| trainer.gradients(self, data, batch, epoch))
    }

    fn vae_parameters(&self, trainer: &VaeTrainer) -> Result<Vae> {
        self.run(|| trainer.parameters())
    }

    fn reward_trainer(
        &self,
        initial: &RewardModel,
        standardizer: &Standardizer,
        objective: &RewardObjective,
    ) -> Result<RewardTrainer> {
        check::trainer(initial.size().dim, standardizer, objective.batch)?;
        if objective.synthetic != SyntheticPath::Folded {
            return Err(Error::argument("reward.synthetic", "folded on a GPU", objective.synthetic));
        }
        self.run(|| RewardTrainer::new(self, initial, standardizer, objective))
    }

    fn reward_epoch<'e>(
        &self,
        trainer: &mut RewardTrainer,
        data: &RewardData<'_, 'e, Self>,
        pairs: &[PairRows],
    ) -> Result<f64>
    where
        Self: 'e,
    {
        check::reward_data(trainer.dim(), data, pairs)?;
        self.run(|| trainer.epoch(self, data, pairs))
    }

    fn reward_gradients<'e>(
        &self,
        trainer: &mut RewardTrainer,
        data: &RewardData<'_, 'e, Self>,
        batch: &[PairRows],
    ) -> Result<(f64, RewardModel)>
    where
        Self: 'e,
    {
        check::reward_data(trainer.dim(), data, batch)?;
        self.run(|| trainer.gradients(self, data, batch))
    }

    fn reward_parameters(&self, trainer: &RewardTrainer) -> Result<RewardModel> {
        self.run(|| trainer.parameters())
    }
}
