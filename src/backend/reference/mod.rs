//! The oracle: every operation as one plain loop in F64. Slow, obvious, and what every other backend is
//! tested against. Inputs are the stored values and F32 parameters; nothing is rounded until a result leaves.

mod infer;
mod layers;
mod train;

pub use infer::{Latents, Posteriors, Reference};
use infer::{decode_latent, encode_row, reward_of, row_f64};
use layers::{Layer, Optimizer, narrow, widen};
pub use train::{RewardTrainer, VaeTrainer};

use super::{
    Backend, DeviceInfo, HostRows, LatentSource, NoiseKey, PairData, PairRows, Perturbation, PosteriorsHost,
    Reconstruction, Residual, RewardData, RewardObjective, Sample, Selection, VaeLoss, VaeObjective, checked,
    steps,
};
use crate::error::Result;
use crate::matrix::{Matrix, RowSet, ValuesMut};
use crate::model::{FoldedReward, RewardModel, Standardizer, Vae, VaeSize};

impl checked::Shapes for Reference {
    fn host_rows<'r, 'e: 'r>(embeddings: &'r RowSet<'e>) -> &'r RowSet<'e> {
        embeddings
    }

    fn posteriors_shape(posteriors: &Posteriors) -> (usize, usize) {
        (posteriors.rows(), posteriors.latent)
    }

    fn latents_shape(latents: &Latents) -> (usize, &[u32]) {
        (latents.latent, &latents.rows)
    }

    fn vae_size(vae: &Self::Vae) -> VaeSize {
        vae.size()
    }

    fn reward_dim(model: &RewardModel) -> usize {
        model.size().dim
    }

    fn folded_size(folded: &FoldedReward) -> VaeSize {
        folded.vae_size()
    }

    fn vae_trainer_dim(trainer: &VaeTrainer) -> usize {
        trainer.layers[0].inputs
    }

    fn reward_trainer_dim(trainer: &RewardTrainer) -> usize {
        trainer.layers[0].inputs
    }
}

impl Backend for Reference {
    type Embeddings<'a> = RowSet<'a>;
    type Vae = Vae;
    type Reward = RewardModel;
    type Folded = FoldedReward;
    type Posteriors = Posteriors;
    type Latents = Latents;
    type Rows = HostRows;
    type VaeTrainer = VaeTrainer;
    type RewardTrainer = RewardTrainer;

    fn info(&self) -> DeviceInfo {
        DeviceInfo { name: "reference".into(), detail: "plain F64 loops".into(), threads: 1 }
    }

    fn embeddings<'a>(&'a self, rows: RowSet<'a>) -> Result<RowSet<'a>> {
        Ok(rows)
    }

    fn load_vae(&self, vae: &Vae) -> Result<Vae> {
        Ok(vae.clone())
    }

    fn load_reward(&self, model: &RewardModel) -> Result<RewardModel> {
        Ok(model.as_mlp().into_owned())
    }

    fn load_latents(&self, z: &Matrix, rows: &[u32]) -> Result<Latents> {
        checked::load_latents(z, rows)?;
        Ok(Latents { z: widen(&z.values), latent: z.cols, rows: rows.to_vec() })
    }

    fn encode(&self, vae: &Vae, embeddings: &RowSet<'_>) -> Result<Posteriors> {
        checked::encode::<Self>(vae, embeddings)?;
        let latent = vae.size().latent;
        let layers = [Layer::new(&vae.encoder[0]), Layer::new(&vae.encoder[1])];
        let (mut mu, mut logvar) = (Vec::new(), Vec::new());
        for row in 0..embeddings.rows() {
            let (_, out) = encode_row([&layers[0], &layers[1]], &row_f64(embeddings, row));
            mu.extend_from_slice(&out[..latent]);
            logvar.extend_from_slice(&out[latent..]);
        }
        Ok(Posteriors { mu, logvar, latent })
    }

    fn encode_sample(&self, vae: &Vae, embeddings: &RowSet<'_>, key: NoiseKey) -> Result<Latents> {
        let rows = checked::encode_sample::<Self>(vae, embeddings)?;
        let p = self.encode(vae, embeddings)?;
        let z = (0..p.rows()).flat_map(|row| p.start(row, key, LatentSource::Sample)).collect();
        Ok(Latents { z, latent: p.latent, rows })
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
            mu: Matrix::new(narrow(&p.mu), p.rows(), p.latent)?,
            logvar: Matrix::new(narrow(&p.logvar), p.rows(), p.latent)?,
        })
    }

    fn select(&self, p: &Posteriors, key: NoiseKey, options: &Perturbation) -> Result<Selection> {
        checked::select(options)?;
        let keep = options.top_k as usize;
        let mut candidates = Vec::with_capacity(p.rows() * keep);
        for row in 0..p.rows() {
            let mut ranked: Vec<(f64, u32)> = (0..options.drawn())
                .map(|c| (p.log_likelihood(row, &p.candidate(row, c, key, options), options.likelihood), c))
                .collect();
            ranked.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            candidates.extend(ranked[..keep].iter().map(|r| r.1));
        }
        Ok(Selection { top_k: keep, candidates })
    }

    fn perturb(
        &self,
        p: &Posteriors,
        key: NoiseKey,
        options: &Perturbation,
        samples: &[Sample],
    ) -> Result<Latents> {
        checked::perturb::<Self>(p, options, samples)?;
        let z = samples.iter().flat_map(|s| p.candidate(s.row as usize, s.candidate, key, options)).collect();
        Ok(Latents { z, latent: p.latent, rows: samples.iter().map(|s| s.row).collect() })
    }

    fn latents(&self, latents: &Latents) -> Result<Matrix> {
        Matrix::new(narrow(&latents.z), latents.rows.len(), latents.latent)
    }

    fn decode(
        &self,
        vae: &Vae,
        latents: &Latents,
        residual: Option<Residual<'_, '_, Self>>,
        mut out: ValuesMut<'_>,
    ) -> Result<()> {
        checked::decode::<Self>(vae, latents, residual, out.len())?;
        for j in 0..latents.rows.len() {
            out.narrow_at(j * vae.size().dim, &narrow(&decode_latent(vae, latents, j, residual)));
        }
        Ok(())
    }

    fn score(&self, model: &RewardModel, embeddings: &RowSet<'_>, out: &mut [f32]) -> Result<()> {
        checked::score::<Self>(model, embeddings, out.len())?;
        let layers = layers_of(model);
        for (row, score) in out.iter_mut().enumerate() {
            *score = reward_of(&layers, &row_f64(embeddings, row)) as f32;
        }
        Ok(())
    }

    fn load_folded(&self, folded: &FoldedReward) -> Result<FoldedReward> {
        Ok(folded.clone())
    }

    /// Decodes and scores: what folding must equal.
    fn score_latents(
        &self,
        folded: &FoldedReward,
        latents: &Latents,
        residual: Option<Residual<'_, '_, Self>>,
        out: &mut [f32],
    ) -> Result<()> {
        checked::score_latents::<Self>(folded, latents, residual, out.len())?;
        let layers = layers_of(&folded.reward);
        for (j, score) in out.iter_mut().enumerate() {
            *score = reward_of(&layers, &decode_latent(&folded.vae, latents, j, residual)) as f32;
        }
        Ok(())
    }

    fn vae_trainer(
        &self,
        initial: &Vae,
        standardizer: &Standardizer,
        objective: &VaeObjective,
    ) -> Result<VaeTrainer> {
        checked::vae_trainer(initial, standardizer, objective)?;
        let layers: Vec<Layer> = initial.encoder.iter().chain(&initial.decoder).map(Layer::new).collect();
        Ok(VaeTrainer {
            optimizer: Optimizer::new(objective.adam, &layers),
            layers,
            objective: *objective,
            standardizer: standardizer.clone(),
            latent: initial.size().latent,
        })
    }

    fn vae_epoch(
        &self,
        trainer: &mut VaeTrainer,
        data: &PairData<'_, '_, Self>,
        order: &[u32],
        epoch: u32,
    ) -> Result<VaeLoss> {
        checked::vae_training::<Self>(trainer, data, order)?;
        let mut mean = VaeLoss::default();
        for batch in order.chunks(trainer.objective.batch) {
            self.interrupt().check()?;
            let (loss, gradients) = trainer.batch(data, batch, epoch);
            mean.add_scaled(&loss, batch.len() as f64 / order.len() as f64);
            trainer.optimizer.step(&mut trainer.layers, &gradients);
        }
        Ok(mean)
    }

    fn vae_gradients(
        &self,
        trainer: &mut VaeTrainer,
        data: &PairData<'_, '_, Self>,
        batch: &[u32],
        epoch: u32,
    ) -> Result<(VaeLoss, Vae)> {
        checked::vae_training::<Self>(trainer, data, batch)?;
        let (loss, gradients) = trainer.batch(data, batch, epoch);
        Ok((loss, vae_of(&gradients)))
    }

    fn vae_parameters(&self, trainer: &VaeTrainer) -> Result<Vae> {
        Ok(vae_of(&trainer.layers))
    }

    fn reward_trainer(
        &self,
        initial: &RewardModel,
        standardizer: &Standardizer,
        objective: &RewardObjective,
    ) -> Result<RewardTrainer> {
        checked::reward_trainer(initial, standardizer, objective)?;
        let layers: Vec<Layer> = initial.layers.iter().map(Layer::new).collect();
        Ok(RewardTrainer {
            optimizer: Optimizer::new(objective.adam, &layers),
            layers,
            objective: *objective,
            standardizer: standardizer.clone(),
        })
    }

    fn reward_epoch(
        &self,
        trainer: &mut RewardTrainer,
        data: &RewardData<'_, '_, Self>,
        pairs: &[PairRows],
    ) -> Result<f64> {
        checked::reward_training::<Self>(trainer, data, pairs)?;
        let mut mean = 0.0;
        for batch in pairs.chunks(trainer.objective.batch) {
            self.interrupt().check()?;
            let (loss, gradients) = trainer.batch(data, batch);
            mean += loss * batch.len() as f64 / pairs.len() as f64;
            trainer.optimizer.step(&mut trainer.layers, &gradients);
        }
        Ok(mean)
    }

    fn reward_gradients(
        &self,
        trainer: &mut RewardTrainer,
        data: &RewardData<'_, '_, Self>,
        batch: &[PairRows],
    ) -> Result<(f64, RewardModel)> {
        checked::reward_training::<Self>(trainer, data, batch)?;
        let (loss, gradients) = trainer.batch(data, batch);
        Ok((loss, reward_of_layers(&gradients)))
    }

    fn reward_parameters(&self, trainer: &RewardTrainer) -> Result<RewardModel> {
        Ok(reward_of_layers(&trainer.layers))
    }
}

/// Both layers of one MLP.
fn layers_of(model: &RewardModel) -> [Layer; 2] {
    [Layer::new(&model.layers[0]), Layer::new(&model.layers[1])]
}

fn reward_of_layers(layers: &[Layer]) -> RewardModel {
    RewardModel { layers: layers.iter().map(Layer::to_linear).collect() }
}

fn vae_of(layers: &[Layer]) -> Vae {
    Vae {
        encoder: [layers[0].to_linear(), layers[1].to_linear()],
        decoder: [layers[2].to_linear(), layers[3].to_linear()],
    }
}
