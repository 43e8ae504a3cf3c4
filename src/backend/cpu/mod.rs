//! The CPU backend: threads over blocks of rows, one source for all SIMD levels, F32 or BF16 operands.
//!
//! Inference (encode, select, perturb, decode, score) uses our own fixed-order products (`panel.rs`; `direct.rs` of rows
//! where they are stored, `active.rs` behind a ReLU), so that a row's bits never depend on its neighbours, the thread
//! count or the instruction set. Training takes one pass a step over the weights of its wide layers (`wide.rs`); narrow
//! layers use the `gemm` crate. BF16 is a choice of operands of the same products: where a machine has no instruction for
//! it, it takes longer than F32.

mod active;
mod adam;
mod between;
mod direct;
mod ends;
pub mod floors;
mod forward;
mod gemm;
mod halves;
mod infer;
mod lanes;
mod latent;
mod layers;
mod panel;
mod reconstruct;
mod samples;
mod scratch;
mod tile;
mod train_reward;
mod train_vae;
mod wide;

pub use infer::{PackedFolded, PackedReward, PackedVae};
pub use latent::{Latents, Posteriors};
use rayon::{ThreadPool, ThreadPoolBuilder};
pub use train_reward::RewardTrainer;
pub use train_vae::VaeTrainer;

use super::{
    Backend, DeviceInfo, HostRows, NoiseKey, PairData, PairRows, Perturbation, PosteriorsHost, Precision,
    Residual, RewardData, RewardObjective, RewardSide, Sample, Selection, VaeLoss, VaeObjective, checked,
};
use crate::error::{Error, Result};
use crate::matrix::{Matrix, RowSet, ValuesMut};
use crate::model::{FoldedReward, RewardModel, Standardizer, Vae, VaeSize};
use crate::simd::Isa;

/// Most worker threads: more than any machine has cores.
pub const MAX_THREADS: usize = 4096;

/// The CPU backend with its own thread pool.
#[derive(Debug)]
pub struct Cpu {
    pool: ThreadPool,
    level: Isa,
    threads: usize,
    precision: Precision,
}

impl Cpu {
    /// Starts `threads` workers (0: one per core) at the machine's best SIMD level.
    pub fn new(threads: usize, precision: Precision) -> Result<Cpu> {
        Cpu::with_level(threads, precision, Isa::detect()?)
    }

    /// The same at a given level.
    pub fn with_level(threads: usize, precision: Precision, level: Isa) -> Result<Cpu> {
        if threads > MAX_THREADS {
            return Err(Error::argument("threads", format!("0 to {MAX_THREADS}"), threads));
        }
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        let threads = if threads == 0 { cores } else { threads };
        let pool = ThreadPoolBuilder::new().num_threads(threads).build();
        let pool = pool.map_err(|e| Error::Device { device: "cpu".into(), reason: e.to_string() })?;
        Ok(Cpu { pool, level, threads, precision })
    }
}

impl Cpu {
    /// Makes latents that would otherwise be made where they are wanted.
    pub fn make_latents<'a>(&self, latents: &'a Latents) -> &'a [f32] {
        self.pool.install(|| latents.values(self.level))
    }

    fn side<'a>(&self, side: &'a RewardSide<'_, '_, Cpu>) -> samples::Rows<'a> {
        samples::Rows {
            originals: side.originals,
            synthetic: side.synthetic.as_ref().map(|s| samples::SyntheticRows {
                vae: s.vae,
                z: s.latents.values(self.level),
                rows: s.latents.rows(),
                residual: s.residual.map(|r| (r.embeddings, r.posteriors)),
            }),
        }
    }
}

impl checked::Shapes for Cpu {
    fn host_rows<'r, 'e: 'r>(embeddings: &'r RowSet<'e>) -> &'r RowSet<'e> {
        embeddings
    }

    fn posteriors_shape(posteriors: &Posteriors) -> (usize, usize) {
        (posteriors.rows(), posteriors.latent)
    }

    fn latents_shape(latents: &Latents) -> (usize, &[u32]) {
        (latents.latent(), latents.rows())
    }

    fn vae_size(vae: &Self::Vae) -> VaeSize {
        vae.size()
    }

    fn reward_dim(model: &Self::Reward) -> usize {
        model.dim()
    }

    fn folded_size(folded: &Self::Folded) -> VaeSize {
        folded.size()
    }

    fn vae_trainer_dim(trainer: &Self::VaeTrainer) -> usize {
        trainer.dim()
    }

    fn reward_trainer_dim(trainer: &Self::RewardTrainer) -> usize {
        trainer.dim()
    }
}

impl Backend for Cpu {
    type Embeddings<'a> = RowSet<'a>;
    type Vae = PackedVae;
    type Reward = PackedReward;
    type Folded = PackedFolded;
    type Posteriors = Posteriors;
    type Latents = Latents;
    type Rows = HostRows;
    type VaeTrainer = VaeTrainer;
    type RewardTrainer = RewardTrainer;

    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            name: "cpu".into(),
            detail: format!("{} {}", std::env::consts::ARCH, self.level.name()),
            threads: self.threads,
        }
    }

    fn precision(&self) -> Precision {
        self.precision
    }

    fn arithmetic(&self) -> &'static str {
        match self.precision {
            Precision::F32 => "f32",
            Precision::Bf16 if self.level.is_matrix() => "bf16-amx",
            Precision::Bf16 => "bf16-cpu",
        }
    }

    fn embeddings<'a>(&'a self, rows: RowSet<'a>) -> Result<RowSet<'a>> {
        Ok(rows)
    }

    fn load_vae(&self, vae: &Vae) -> Result<PackedVae> {
        Ok(PackedVae::new(vae, self.precision, self.level))
    }

    fn load_reward(&self, model: &RewardModel) -> Result<PackedReward> {
        Ok(PackedReward::new(model, self.precision))
    }

    fn load_latents(&self, z: &Matrix, rows: &[u32]) -> Result<Latents> {
        checked::load_latents(z, rows)?;
        Ok(Latents::new(z.values.clone(), z.cols, rows.to_vec()))
    }

    fn encode(&self, vae: &PackedVae, embeddings: &RowSet<'_>) -> Result<Posteriors> {
        checked::encode::<Self>(vae, embeddings)?;
        let (mu, logvar) = self.pool.install(|| infer::encode(self.level, vae, embeddings));
        Ok(Posteriors { mu: mu.into(), logvar: logvar.into(), latent: vae.size().latent })
    }

    fn encode_sample(&self, vae: &PackedVae, embeddings: &RowSet<'_>, origin: NoiseKey) -> Result<Latents> {
        let rows = checked::encode_sample::<Self>(vae, embeddings)?;
        let p = self.encode(vae, embeddings)?;
        let z = self.pool.install(|| latent::start(self.level, &p, origin));
        Ok(Latents::new(z, p.latent, rows))
    }

    fn posteriors(&self, p: &Posteriors) -> Result<PosteriorsHost> {
        Ok(PosteriorsHost {
            mu: Matrix::new(p.mu.to_vec(), p.rows(), p.latent)?,
            logvar: Matrix::new(p.logvar.to_vec(), p.rows(), p.latent)?,
        })
    }

    fn select(&self, p: &Posteriors, origin: NoiseKey, how: &Perturbation) -> Result<Selection> {
        checked::select(how)?;
        let candidates = self.pool.install(|| latent::select(self.level, p, origin, how));
        Ok(Selection { top_k: how.top_k as usize, candidates })
    }

    fn perturb(
        &self,
        p: &Posteriors,
        origin: NoiseKey,
        how: &Perturbation,
        samples: &[Sample],
    ) -> Result<Latents> {
        checked::perturb::<Self>(p, how, samples)?;
        Ok(Latents::perturbed(p, origin, how, samples))
    }

    fn latents(&self, latents: &Latents) -> Result<Matrix> {
        let z = self.make_latents(latents);
        Matrix::new(z.to_vec(), latents.rows().len(), latents.latent())
    }

    fn decode(
        &self,
        vae: &PackedVae,
        latents: &Latents,
        residual: Option<Residual<'_, '_, Self>>,
        out: ValuesMut<'_>,
    ) -> Result<()> {
        checked::decode::<Self>(vae, latents, residual, out.len())?;
        let base = residual.map(|r| infer::Base {
            embeddings: r.embeddings,
            mu: &r.posteriors.mu,
            rows: latents.rows(),
        });
        self.pool.install(|| infer::decode(self.level, vae, latents.codes(), base, out));
        Ok(())
    }

    fn score(&self, model: &PackedReward, embeddings: &RowSet<'_>, out: &mut [f32]) -> Result<()> {
        checked::score::<Self>(model, embeddings, out.len())?;
        self.pool.install(|| infer::score(self.level, model, embeddings, out));
        Ok(())
    }

    fn load_folded(&self, folded: &FoldedReward) -> Result<PackedFolded> {
        Ok(PackedFolded::new(folded, self.precision, self.level))
    }

    fn score_latents(
        &self,
        folded: &PackedFolded,
        latents: &Latents,
        residual: Option<Residual<'_, '_, Self>>,
        out: &mut [f32],
    ) -> Result<()> {
        checked::score_latents::<Self>(folded, latents, residual, out.len())?;
        self.pool.install(|| {
            let pre = residual.map(|r| {
                let pre = infer::preactivations(self.level, folded.reward(), r.embeddings);
                (pre, &r.posteriors.mu)
            });
            let base = pre.as_ref().map(|(pre, mu)| infer::FoldedBase { pre, mu, rows: latents.rows() });
            infer::score_latents(self.level, folded, latents.codes(), base, out);
        });
        Ok(())
    }

    fn vae_trainer(
        &self,
        initial: &Vae,
        standardizer: &Standardizer,
        objective: &VaeObjective,
    ) -> Result<VaeTrainer> {
        checked::vae_trainer(initial, standardizer, objective)?;
        Ok(VaeTrainer::new(initial, standardizer, objective, self.precision))
    }

    fn vae_epoch(
        &self,
        trainer: &mut VaeTrainer,
        data: &PairData<'_, '_, Self>,
        order: &[u32],
        epoch: u32,
    ) -> Result<VaeLoss> {
        checked::vae_training::<Self>(trainer, data, order)?;
        Ok(self.pool.install(|| trainer.epoch(self.level, [data.chosen, data.rejected], order, epoch)))
    }

    fn vae_gradients(
        &self,
        trainer: &mut VaeTrainer,
        data: &PairData<'_, '_, Self>,
        batch: &[u32],
        epoch: u32,
    ) -> Result<(VaeLoss, Vae)> {
        checked::vae_training::<Self>(trainer, data, batch)?;
        let sides = [data.chosen, data.rejected];
        let loss = self.pool.install(|| trainer.batch(self.level, sides, batch, epoch));
        Ok((loss, trainer.gradients()))
    }

    fn vae_parameters(&self, trainer: &VaeTrainer) -> Result<Vae> {
        Ok(trainer.parameters())
    }

    fn reward_trainer(
        &self,
        initial: &RewardModel,
        standardizer: &Standardizer,
        objective: &RewardObjective,
    ) -> Result<RewardTrainer> {
        checked::reward_trainer(initial, standardizer, objective)?;
        Ok(RewardTrainer::new(initial, standardizer, objective, self.precision))
    }

    fn reward_epoch(
        &self,
        trainer: &mut RewardTrainer,
        data: &RewardData<'_, '_, Self>,
        pairs: &[PairRows],
    ) -> Result<f64> {
        checked::reward_training::<Self>(trainer, data, pairs)?;
        Ok(self.pool.install(|| {
            let (chosen, rejected) = (self.side(&data.chosen), self.side(&data.rejected));
            trainer.epoch(self.level, [&chosen, &rejected], pairs)
        }))
    }

    fn reward_gradients(
        &self,
        trainer: &mut RewardTrainer,
        data: &RewardData<'_, '_, Self>,
        batch: &[PairRows],
    ) -> Result<(f64, RewardModel)> {
        checked::reward_training::<Self>(trainer, data, batch)?;
        let loss = self.pool.install(|| {
            let (chosen, rejected) = (self.side(&data.chosen), self.side(&data.rejected));
            trainer.batch(self.level, [&chosen, &rejected], batch)
        });
        Ok((loss, trainer.gradients()))
    }

    fn reward_parameters(&self, trainer: &RewardTrainer) -> Result<RewardModel> {
        Ok(trainer.parameters())
    }
}
