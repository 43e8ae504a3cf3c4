//! The CUDA backend: hand-written kernels (`kernels/`) and the host code that launches them.
//!
//! An operation goes through these files, from top to bottom:
//! 1. this one: the [`Backend`] trait, preconditions, allocation of results;
//! 2. `infer.rs`, `synthesize.rs`, `rows.rs`, `train_vae.rs`, `train_reward.rs`: grid, shared memory and parameters of every
//!    launch; `chunks.rs` cuts inputs and outputs that do not fit into device memory, `step_graph.rs` records
//!    a training step, `vae_epoch.rs` makes one launch of an epoch;
//! 3. `launch.rs`, `params.rs`, `layout.rs`, `memory.rs`: a launch as plain data, and typed device memory;
//! 4. `driver.rs`: the [`driver::Driver`] trait, and `gpu.rs`, a GPU by the CUDA driver library, which is loaded
//!    when a device is opened, so that one binary runs with and without it. Tests put a stand-in in the library's
//!    place (`ptx/driver`), which runs the kernels' PTX.
//!
//! What is on the device stays there until it is asked for. All work of a device is in the order of one
//! stream, so that nothing waits for a launch but a copy to the host.

mod architecture;
mod arrays;
mod chunks;
mod context;
mod data;
mod device;
mod device_array;
pub mod driver;
mod gpu;
mod infer;
pub mod kernels;
mod launch;
mod layers;
pub mod layout;
mod memory;
pub mod params;
mod pinned;
pub mod rates;
mod rows;
mod step_graph;
mod synthesize;
mod train_reward;
mod train_vae;
mod vae_epoch;
mod weights;

use std::sync::Arc;

pub use context::Cuda;
pub use data::{DeviceFolded, DeviceReward, DeviceVae, Embeddings, Latents, Posteriors};
pub use device::{Device, Summary};
pub use device_array::DeviceArray;
pub use gpu::Gpu;
pub use infer::Decoded;
pub use launch::{Launch, Params, Start};
pub use rows::Rows;
pub use train_reward::RewardTrainer;
pub use train_vae::VaeTrainer;

use self::data::{DrawnLatents, LatentValues};
use self::infer::EncoderOutputs;
use self::memory::Buffer;
use self::synthesize::HowToSample;
use super::{
    Backend, DeviceInfo, LatentSource, NoiseKey, PairData, PairRows, Perturbation, PosteriorsHost, Precision,
    Reconstruction, Residual, RewardData, RewardObjective, Sample, Selection, SyntheticPath, VaeLoss,
    VaeObjective, checked, steps,
};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::matrix::{Matrix, RowSet, RowsBuf, ValuesMut};
use crate::model::{FoldedReward, RewardModel, Standardizer, Vae, VaeSize};

impl checked::Shapes for Cuda {
    fn host_rows<'r, 'e: 'r>(embeddings: &'r Embeddings<'e>) -> &'r RowSet<'e> {
        &embeddings.rows
    }

    fn posteriors_shape(posteriors: &Posteriors) -> (usize, usize) {
        (posteriors.rows, posteriors.latent)
    }

    fn latents_shape(latents: &Latents) -> (usize, &[u32]) {
        (latents.latent, &latents.rows)
    }

    fn vae_size(vae: &DeviceVae) -> VaeSize {
        vae.host.size()
    }

    fn reward_dim(model: &DeviceReward) -> usize {
        model.host.size().dim
    }

    fn folded_size(folded: &DeviceFolded) -> VaeSize {
        folded.size
    }

    fn vae_trainer_dim(trainer: &VaeTrainer) -> usize {
        trainer.dim()
    }

    fn reward_trainer_dim(trainer: &RewardTrainer) -> usize {
        trainer.dim()
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

    fn info(&self) -> DeviceInfo {
        let detail = format!("{}, {} products", self.driver.detail(), self.precision);
        DeviceInfo { name: self.driver.name().into(), detail, threads: 1 }
    }

    fn precision(&self) -> Precision {
        self.precision
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

    fn load_folded(&self, folded: &FoldedReward) -> Result<DeviceFolded> {
        self.run(|| DeviceFolded::new(&self.driver, folded, self.precision))
    }

    fn load_latents(&self, z: &Matrix, rows: &[u32]) -> Result<Latents> {
        checked::load_latents(z, rows)?;
        self.run(|| {
            let values = LatentValues::Stored {
                z: Buffer::upload(&self.driver, &z.values, "latents")?,
                owners: Buffer::upload(&self.driver, rows, "rows of latents")?,
            };
            Ok(Latents { values, rows: rows.to_vec(), latent: z.cols })
        })
    }

    fn encode(&self, vae: &DeviceVae, embeddings: &Embeddings<'_>) -> Result<Posteriors> {
        checked::encode::<Self>(vae, embeddings)?;
        let (rows, latent) = (embeddings.rows.rows(), vae.host.size().latent);
        self.run(|| {
            let mu = self.buffer(rows * latent, "mu")?;
            let logvar = self.buffer(rows * latent, "logvar")?;
            let to = EncoderOutputs { mu: mu.address(), logvar: logvar.address(), z: 0 };
            self.encode_chunks(vae, embeddings, to, None)?;
            Ok(Posteriors { mu: Arc::new(mu), logvar: Arc::new(logvar), rows, latent })
        })
    }

    fn encode_sample(&self, vae: &DeviceVae, embeddings: &Embeddings<'_>, key: NoiseKey) -> Result<Latents> {
        let rows = checked::encode_sample::<Self>(vae, embeddings)?;
        let latent = vae.host.size().latent;
        self.run(|| {
            // The kernel samples from mu and logvar, which nobody else needs here.
            let mu = self.buffer::<f32>(rows.len() * latent, "mu")?;
            let logvar = self.buffer::<f32>(rows.len() * latent, "logvar")?;
            let z = self.buffer(rows.len() * latent, "latents")?;
            let to = EncoderOutputs { mu: mu.address(), logvar: logvar.address(), z: z.address() };
            self.encode_chunks(vae, embeddings, to, Some(key))?;
            let owners = Buffer::upload(&self.driver, &rows, "rows of latents")?;
            Ok(Latents { values: LatentValues::Stored { z, owners }, rows, latent })
        })
    }

    fn reconstruct(
        &self,
        vae: &DeviceVae,
        embeddings: &Embeddings<'_>,
        standardizer: &Standardizer,
        key: Option<NoiseKey>,
    ) -> Result<(Posteriors, Vec<Reconstruction>)> {
        checked::reconstruct::<Self>(vae, embeddings, standardizer)?;
        match self.run(|| self.reconstruct_in_one_pass(vae, embeddings, standardizer, key))? {
            Some(made) => Ok(made),
            None => steps::reconstruct(self, vae, embeddings, standardizer, key),
        }
    }

    fn posteriors(&self, p: &Posteriors) -> Result<PosteriorsHost> {
        let (mu, logvar) = self.run(|| Ok((p.mu.download()?, p.logvar.download()?)))?;
        Ok(PosteriorsHost {
            mu: Matrix::new(mu, p.rows, p.latent)?,
            logvar: Matrix::new(logvar, p.rows, p.latent)?,
        })
    }

    fn select(&self, p: &Posteriors, key: NoiseKey, options: &Perturbation) -> Result<Selection> {
        checked::select(options)?;
        let top_k = options.top_k as usize;
        let candidates = self.run(|| {
            let out = self.buffer(p.rows * top_k, "candidates")?;
            if p.rows > 0 {
                self.launch_select(p, key, options, &out)?;
            }
            out.download()
        })?;
        Ok(Selection { top_k, candidates })
    }

    fn perturb(
        &self,
        p: &Posteriors,
        key: NoiseKey,
        options: &Perturbation,
        samples: &[Sample],
    ) -> Result<Latents> {
        checked::perturb::<Self>(p, options, samples)?;
        let pairs: Vec<[u32; 2]> = samples.iter().map(|s| [s.row, s.candidate]).collect();
        self.run(|| {
            let starts = match options.source {
                LatentSource::Mean => p.mu.clone(),
                LatentSource::Sample => Arc::new(self.starts(p, key)?),
            };
            let samples = Buffer::upload(&self.driver, &pairs, "samples")?;
            let drawn = DrawnLatents { starts, samples, key, sigma: options.sigma() };
            let rows = pairs.iter().map(|&[row, _]| row).collect();
            Ok(Latents { values: LatentValues::Drawn(drawn), rows, latent: p.latent })
        })
    }

    fn latents(&self, latents: &Latents) -> Result<Matrix> {
        let z = self.run(|| match &latents.values {
            LatentValues::Stored { z, .. } => z.download(),
            LatentValues::Drawn(drawn) => self.draw(drawn, 0, latents.count(), latents.latent)?.download(),
        })?;
        Matrix::new(z, latents.count(), latents.latent)
    }

    fn decode(
        &self,
        vae: &DeviceVae,
        latents: &Latents,
        residual: Option<Residual<'_, '_, Self>>,
        out: ValuesMut<'_>,
    ) -> Result<()> {
        checked::decode::<Self>(vae, latents, residual, out.len())?;
        self.run(|| {
            let base = residual.map(|r| self.residual_base(r)).transpose()?;
            let dtype = out.dtype();
            self.download_chunks(out.into_bytes(), latents.count(), &mut |first, count, to| {
                self.launch_decode(vae, (latents, first, count), base, (to, dtype))
            })
        })
    }

    fn synthesize(
        &self,
        vae: &DeviceVae,
        originals: &Embeddings<'_>,
        how: HowToSample<'_>,
        to: &mut Rows,
    ) -> Result<Selection> {
        match to.store_in_one_pass(self, vae, originals, how)? {
            Some(selection) => Ok(selection),
            None => steps::synthesize(self, vae, originals, how, to),
        }
    }

    fn score(&self, model: &DeviceReward, embeddings: &Embeddings<'_>, out: &mut [f32]) -> Result<()> {
        checked::score::<Self>(model, embeddings, out.len())?;
        self.run(|| {
            let rewards = self.buffer::<f32>(out.len(), "rewards")?;
            self.each_chunk(embeddings, &mut |first, rows| {
                self.launch_score(model, rows, (rewards.at(first), 0))
            })?;
            rewards.download_into(out)
        })
    }

    fn score_latents(
        &self,
        folded: &DeviceFolded,
        latents: &Latents,
        residual: Option<Residual<'_, '_, Self>>,
        out: &mut [f32],
    ) -> Result<()> {
        checked::score_latents::<Self>(folded, latents, residual, out.len())?;
        if latents.count() == 0 {
            return Ok(());
        }
        self.run(|| {
            let base = residual.map(|r| self.folded_base(folded, r)).transpose()?;
            let rewards = self.buffer::<f32>(latents.count(), "rewards")?;
            self.launch_score_latents(folded, latents, base.as_ref(), &rewards)?;
            rewards.download_into(out)
        })
    }

    fn pin(&self, rows: &mut RowsBuf) {
        self.driver.register(rows);
    }

    fn score_array(&self, model: &DeviceReward, x: &DeviceArray) -> Result<DeviceArray> {
        checked::array("embeddings", model.host.size().dim, x)?;
        self.run(|| self.score_lent(model, x))
    }

    fn encode_array(&self, vae: &DeviceVae, x: &DeviceArray) -> Result<[DeviceArray; 2]> {
        checked::array("embeddings", vae.host.size().dim, x)?;
        self.run(|| self.encode_lent(vae, x))
    }

    fn decode_array(&self, vae: &DeviceVae, z: &DeviceArray, dtype: Dtype) -> Result<DeviceArray> {
        checked::array("latents", vae.host.size().latent, z)?;
        if z.dtype() != Dtype::F32 {
            return Err(Error::shape("storage type of the latents", Dtype::F32, z.dtype()));
        }
        self.run(|| self.decode_lent(vae, z, dtype))
    }

    fn upload_array(&self, rows: &RowsBuf) -> Result<DeviceArray> {
        self.run(|| Cuda::upload_array(self, rows))
    }

    fn download_array(&self, array: &DeviceArray) -> Result<RowsBuf> {
        self.run(|| Cuda::download_array(self, array))
    }

    fn vae_trainer(
        &self,
        initial: &Vae,
        standardizer: &Standardizer,
        objective: &VaeObjective,
    ) -> Result<VaeTrainer> {
        checked::vae_trainer(initial, standardizer, objective)?;
        self.run(|| VaeTrainer::new(self, initial, standardizer, objective))
    }

    fn vae_epoch(
        &self,
        trainer: &mut VaeTrainer,
        data: &PairData<'_, '_, Self>,
        order: &[u32],
        epoch: u32,
    ) -> Result<VaeLoss> {
        checked::vae_training::<Self>(trainer, data, order)?;
        self.run(|| trainer.epoch(self, data, order, epoch))
    }

    fn vae_gradients(
        &self,
        trainer: &mut VaeTrainer,
        data: &PairData<'_, '_, Self>,
        batch: &[u32],
        epoch: u32,
    ) -> Result<(VaeLoss, Vae)> {
        checked::vae_training::<Self>(trainer, data, batch)?;
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
        checked::reward_trainer(initial, standardizer, objective)?;
        if objective.synthetic != SyntheticPath::Folded {
            return Err(Error::argument("reward.synthetic", "folded on a GPU", objective.synthetic));
        }
        self.run(|| RewardTrainer::new(self, initial, standardizer, objective))
    }

    fn reward_epoch(
        &self,
        trainer: &mut RewardTrainer,
        data: &RewardData<'_, '_, Self>,
        pairs: &[PairRows],
    ) -> Result<f64> {
        checked::reward_training::<Self>(trainer, data, pairs)?;
        self.run(|| trainer.epoch(self, data, pairs))
    }

    fn reward_gradients(
        &self,
        trainer: &mut RewardTrainer,
        data: &RewardData<'_, '_, Self>,
        batch: &[PairRows],
    ) -> Result<(f64, RewardModel)> {
        checked::reward_training::<Self>(trainer, data, batch)?;
        self.run(|| trainer.gradients(self, data, batch))
    }

    fn reward_parameters(&self, trainer: &RewardTrainer) -> Result<RewardModel> {
        self.run(|| trainer.parameters())
    }
}
