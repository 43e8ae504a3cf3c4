//! The CPU backend: machines without a GPU, and the oracle of F32 bits.
//!
//! 1. `gemm` is one packed product with a microkernel for each instruction set. Every value of C is one chain of fused
//!    multiply-adds over k in rising order, so that in inference a row's bits depend on nothing but the row.
//! 2. `infer` takes blocks of rows through all their layers on one core each: encode, decode, score.
//! 3. `latents` draws noise where it is wanted: posterior samples, candidates, perturbed latents.
//! 4. `train` takes one pass a step over the weights of layers of d inputs or outputs; its results do not depend on the
//!    number of threads.
//!
//! BF16 is a choice of operands of the same products; where a machine has no instruction for it, it is slower than F32.

mod gemm;
mod infer;
mod latents;
pub mod peak;
mod train;

pub use infer::{PackedFolded, PackedReward, PackedVae};
pub use latents::{Latents, Posteriors};
pub use train::{RewardTrainer, VaeTrainer};

use rayon::{ThreadPool, ThreadPoolBuilder};

use super::{
    Backend, DeviceInfo, HostRows, NoiseKey, PairData, PairRows, Perturbation, PosteriorsHost, Precision,
    Reconstruction, Residual, RewardData, RewardObjective, RewardSide, Sample, Selection, VaeLoss,
    VaeObjective, checked, steps,
};
use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::matrix::{Matrix, RowSet, RowsBuf, ValuesMut};
use crate::model::{FoldedReward, RewardModel, Standardizer, Vae, VaeSize};
use crate::simd::Isa;

/// Most worker threads: more than any machine has cores.
pub const MAX_THREADS: usize = 1024;

/// The CPU backend with its own thread pool.
#[derive(Debug)]
pub struct Cpu {
    pool: ThreadPool,
    isa: Isa,
    threads: usize,
    precision: Precision,
    interrupt: Interrupt,
}

impl Cpu {
    /// Starts `threads` workers (0: one per core) with the machine's fastest instruction set.
    pub fn new(threads: usize, precision: Precision) -> Result<Cpu> {
        Cpu::with_isa(threads, precision, Isa::detect()?)
    }

    /// The same with a given instruction set.
    pub fn with_isa(threads: usize, precision: Precision, isa: Isa) -> Result<Cpu> {
        if threads > MAX_THREADS {
            return Err(Error::argument("threads", format!("0 to {MAX_THREADS}"), threads));
        }
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        let threads = if threads == 0 { cores } else { threads };
        let pool = ThreadPoolBuilder::new().num_threads(threads).build();
        let pool = pool.map_err(|e| Error::Device { device: "cpu".into(), reason: e.to_string() })?;
        Ok(Cpu { pool, isa, threads, precision, interrupt: Interrupt::default() })
    }
}

impl Cpu {
    /// The flag that stops this backend's work.
    pub fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    /// Does work on one of the pool's threads.
    pub fn install<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.pool.install(work)
    }

    /// Does work in the thread pool; fails if it was interrupted, since it may then be incomplete.
    fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        self.interrupt.check()?;
        let done = self.pool.install(work);
        self.interrupt.check().map(|()| done)
    }

    /// Makes latents that would otherwise be made where they are wanted.
    pub fn make_latents<'a>(&self, latents: &'a Latents) -> &'a [f32] {
        self.pool.install(|| latents.values(self.isa))
    }

    fn side<'a>(&self, side: &'a RewardSide<'_, '_, Cpu>) -> train::Side<'a> {
        train::Side {
            originals: side.originals,
            synthetic: side.synthetic.as_ref().map(|s| train::SyntheticSide {
                vae: s.vae,
                z: s.latents.values(self.isa),
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
            detail: format!("{} {}", std::env::consts::ARCH, self.isa.name()),
            threads: self.threads,
        }
    }

    fn precision(&self) -> Precision {
        self.precision
    }

    fn arithmetic(&self) -> &'static str {
        match self.precision {
            Precision::F32 => "f32",
            Precision::Bf16 if self.isa.has_amx() => "bf16-amx",
            Precision::Bf16 => "bf16-dot",
        }
    }

    fn embeddings<'a>(&'a self, rows: RowSet<'a>) -> Result<RowSet<'a>> {
        Ok(rows)
    }

    fn load_vae(&self, vae: &Vae) -> Result<PackedVae> {
        Ok(PackedVae::new(vae, self.precision))
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
        let (mu, logvar) = self.run(|| infer::encode(self.isa, vae, embeddings, &self.interrupt))?;
        Ok(Posteriors { mu: mu.into(), logvar: logvar.into(), latent: vae.size().latent })
    }

    fn encode_sample(&self, vae: &PackedVae, embeddings: &RowSet<'_>, origin: NoiseKey) -> Result<Latents> {
        let rows = checked::encode_sample::<Self>(vae, embeddings)?;
        let p = self.encode(vae, embeddings)?;
        let z = self.run(|| latents::posterior_samples(self.isa, &p, origin))?;
        Ok(Latents::new(z, p.latent, rows))
    }

    fn reconstruct(
        &self,
        vae: &Self::Vae,
        embeddings: &Self::Embeddings<'_>,
        standardizer: &Standardizer,
        key: Option<NoiseKey>,
    ) -> Result<(Self::Posteriors, Vec<Reconstruction>)> {
        steps::reconstruct(self, vae, embeddings, standardizer, key)
    }

    fn posteriors(&self, p: &Posteriors) -> Result<PosteriorsHost> {
        Ok(PosteriorsHost {
            mu: Matrix::new(p.mu.to_vec(), p.rows(), p.latent)?,
            logvar: Matrix::new(p.logvar.to_vec(), p.rows(), p.latent)?,
        })
    }

    fn select(&self, p: &Posteriors, origin: NoiseKey, how: &Perturbation) -> Result<Selection> {
        checked::select(how)?;
        let candidates = self.run(|| latents::select(self.isa, p, origin, how))?;
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
        self.run(|| infer::decode(self.isa, vae, latents.source(), base, out, &self.interrupt))
    }

    fn score(&self, model: &PackedReward, embeddings: &RowSet<'_>, out: &mut [f32]) -> Result<()> {
        checked::score::<Self>(model, embeddings, out.len())?;
        self.run(|| infer::score(self.isa, model, embeddings, out, &self.interrupt))
    }

    fn pick_rows(&self, rows: &HostRows, index: &[u32], out: &mut RowsBuf) -> Result<()> {
        self.interrupt.check()?;
        rows.pick_rows(index, out)
    }

    fn load_folded(&self, folded: &FoldedReward) -> Result<PackedFolded> {
        Ok(PackedFolded::new(folded, self.precision))
    }

    fn score_latents(
        &self,
        folded: &PackedFolded,
        latents: &Latents,
        residual: Option<Residual<'_, '_, Self>>,
        out: &mut [f32],
    ) -> Result<()> {
        checked::score_latents::<Self>(folded, latents, residual, out.len())?;
        let base = residual.map(|r| infer::Base {
            embeddings: r.embeddings,
            mu: &r.posteriors.mu,
            rows: latents.rows(),
        });
        self.run(|| infer::score_latents(self.isa, folded, latents.source(), base, out, &self.interrupt))
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
        let sides = [data.chosen, data.rejected];
        self.run(|| trainer.epoch(self.isa, sides, order, epoch, &self.interrupt))
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
        let loss = self.pool.install(|| trainer.batch(self.isa, sides, batch, epoch));
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
        self.run(|| {
            let (chosen, rejected) = (self.side(&data.chosen), self.side(&data.rejected));
            trainer.epoch(self.isa, [&chosen, &rejected], pairs, &self.interrupt)
        })
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
            trainer.batch(self.isa, [&chosen, &rejected], batch)
        });
        Ok((loss, trainer.gradients()))
    }

    fn reward_parameters(&self, trainer: &RewardTrainer) -> Result<RewardModel> {
        Ok(trainer.parameters())
    }
}
