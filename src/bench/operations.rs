//! The operations of a device one by one, on random rows in memory.

use rayon::prelude::*;
use serde_json::json;

use super::report::{Entry, Models, Operation, Options};
use super::work;
use crate::backend::{
    Adam, Divergence, LatentSource, Likelihood, NoiseKey, PairData, Perturbation, Reduction, Resource,
    RewardData, RewardObjective, RewardSide, Roofline, Sample, VaeObjective,
};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::matrix::{RowSet, RowsBuf};
use crate::model::{FoldedReward, Standardizer};
use crate::noise::{NoiseCounter, Purpose, Side, fill_normals};
use crate::timing::time;

/// Synthetic samples kept for each seed and side.
const KEEP: u32 = 4;
/// Pairs of a training epoch, and of a step.
const PAIRS: usize = 1024;
const BATCH: usize = 128;

/// Standard normal rows as BF16; `set` keeps several of them apart.
pub fn random_rows(options: &Options, rows: usize, dim: usize, set: u32) -> RowsBuf {
    let mut out = RowsBuf::zeros(Dtype::Bf16, rows, dim);
    out.bytes_mut().par_chunks_mut(2 * dim).enumerate().for_each_init(
        || vec![0f32; dim],
        |values, (row, to)| {
            let counter = NoiseCounter {
                purpose: Purpose::Simulation,
                side: Side::Chosen,
                row: row as u64,
                candidate: u32::MAX - set,
            };
            fill_normals(options.seed, counter, values);
            Dtype::Bf16.narrow_bytes(values, to);
        },
    );
    out
}

/// Normals on one core, in stretches that stay in the first-level cache.
pub fn normals(options: &Options) -> Result<Entry> {
    const STRETCH: usize = 4096;
    const STRETCHES: usize = 64;
    let mut out = vec![0f32; STRETCH];
    let timing = time(options.repeat, || {
        for row in 0..STRETCHES as u64 {
            let counter =
                NoiseCounter { purpose: Purpose::Simulation, side: Side::Chosen, row, candidate: 0 };
            fill_normals(options.seed, counter, &mut out);
            std::hint::black_box(&mut out);
        }
        Ok(())
    })?;
    let per = timing.per((STRETCH * STRETCHES) as f64);
    Ok(Entry::new(Operation::Normals, "normals, one core", "normals", per, &[(Resource::Flop, work::NORMAL)]))
}

/// Measures the operations that `options` names.
pub fn measure<B: Roofline + 'static>(
    b: &B,
    options: &Options,
    models: &Models,
    on_status: &mut dyn FnMut(&str),
    entries: &mut Vec<Entry>,
) -> Result<()> {
    use Operation as Op;
    let inference = [Op::Encode, Op::Select, Op::Perturb, Op::Decode, Op::Score, Op::Folded];
    let mut measured = Measured { b, options, entries };
    if inference.iter().any(|&op| measured.wants(op)) {
        on_status("inference");
        infer(&mut measured, models)?;
    }
    if measured.wants(Op::VaeEpoch) || measured.wants(Op::RewardEpoch) {
        on_status("training epochs");
        train(&mut measured, models)?;
    }
    Ok(())
}

/// Times one operation after the other and collects the entries of those that were asked for.
struct Measured<'a, B> {
    b: &'a B,
    options: &'a Options,
    entries: &'a mut Vec<Entry>,
}

impl<B: Roofline> Measured<'_, B> {
    fn wants(&self, operation: Operation) -> bool {
        self.options.only.contains(&operation)
    }

    /// Times `work`, which does `count` units; `needs` are those of one unit. Gives the new entry, if it was asked for.
    fn time(
        &mut self,
        (operation, what): (Operation, &str),
        (count, unit): (usize, &str),
        needs: &[(Resource, f64)],
        mut work: impl FnMut() -> Result<()>,
    ) -> Result<Option<&mut Entry>> {
        if !self.wants(operation) {
            return Ok(None);
        }
        let timing = time(self.options.repeat, || {
            work()?;
            self.b.finish()
        })?;
        self.entries.push(Entry::new(operation, what, unit, timing.per(count as f64), needs));
        Ok(self.entries.last_mut())
    }
}

fn infer<B: Roofline + 'static>(measured: &mut Measured<'_, B>, models: &Models) -> Result<()> {
    let (b, options) = (measured.b, measured.options);
    let (size, reward_size) = (models.vae.size(), models.reward.size());
    let (rows, dim, latent) = (options.rows, size.dim, size.latent);
    let vae = b.load_vae(&models.vae)?;
    let reward = b.load_reward(&models.reward)?;
    let values = random_rows(options, rows, dim, 0);
    let view: RowSet<'_> = values.view().into();
    let embeddings = b.embeddings(view)?;
    // Bytes of an embedding, and of a posterior's mean and log-variance.
    let (stored, posterior) = ((2 * dim) as f64, (8 * latent) as f64);
    measured.time(
        (Operation::Encode, "encode from BF16"),
        (rows, "embeddings"),
        &[(Resource::Flop, work::encode(size)), (Resource::Copy, stored + posterior)],
        || b.encode(&vae, &embeddings).map(drop),
    )?;
    let mut rewards = vec![0f32; rows];
    measured.time(
        (Operation::Score, "score BF16 embeddings"),
        (rows, "embeddings"),
        &[(Resource::Flop, work::score(reward_size)), (Resource::Copy, stored)],
        || b.score(&reward, &embeddings, &mut rewards),
    )?;

    let posteriors = b.encode(&vae, &embeddings)?;
    let perturbation = Perturbation {
        sigma2: 0.01,
        top_k: KEEP,
        oversample: 4,
        likelihood: Likelihood::Posterior,
        source: LatentSource::Sample,
    };
    let key = NoiseKey { seed: options.seed, side: Side::Chosen, first_row: 0 };
    let drawn = perturbation.drawn() as usize;
    // Beside its own normal, every latent has its part of the posterior sample that all candidates of a row share.
    let normals_of = |candidates: f64| latent as f64 * (1.0 + 1.0 / candidates);
    measured.time(
        (Operation::Select, &format!("select {KEEP} of {drawn} candidates")),
        (rows * drawn, "candidates"),
        &[(Resource::Normals, normals_of(drawn as f64)), (Resource::Copy, posterior / drawn as f64)],
        || b.select(&posteriors, key, &perturbation).map(drop),
    )?;
    let kept = b.select(&posteriors, key, &perturbation)?.samples();
    let (normals, posterior) = (normals_of(f64::from(KEEP)), posterior / f64::from(KEEP));
    measured.time(
        (Operation::Perturb, "perturb"),
        (kept.len(), "latents"),
        &[(Resource::Normals, normals), (Resource::Copy, posterior + 4.0 * latent as f64)],
        || b.perturb(&posteriors, key, &perturbation, &kept).map(|latents| b.materialize(&latents)),
    )?;
    let folded = b.load_folded(&FoldedReward::new(&models.vae, &models.reward)?)?;
    let mut rewards = vec![0f32; kept.len()];
    measured.time(
        (Operation::Folded, "perturb and score, folded"),
        (kept.len(), "latents"),
        &[
            (Resource::Flop, work::folded(size, reward_size)),
            (Resource::Normals, normals),
            (Resource::Copy, posterior + 4.0),
        ],
        || {
            let latents = b.perturb(&posteriors, key, &perturbation, &kept)?;
            b.score_latents(&folded, &latents, None, &mut rewards)
        },
    )?;
    let one_each: Vec<Sample> = kept.iter().step_by(KEEP as usize).copied().collect();
    let latents = b.perturb(&posteriors, key, &perturbation, &one_each)?;
    for dtype in [Dtype::Bf16, Dtype::F16, Dtype::F32] {
        if !measured.wants(Operation::Decode) {
            break;
        }
        let mut out = RowsBuf::zeros(dtype, rows, dim);
        measured.time(
            (Operation::Decode, &format!("decode to {}", dtype.to_string().to_uppercase())),
            (rows, "embeddings"),
            &[(Resource::Flop, work::decode(size)), (Resource::Write, (dim * dtype.size()) as f64)],
            || b.decode(&vae, &latents, None, out.values_mut()),
        )?;
    }
    Ok(())
}

fn train<B: Roofline + 'static>(measured: &mut Measured<'_, B>, models: &Models) -> Result<()> {
    let (b, options) = (measured.b, measured.options);
    let dim = options.dim;
    let sides = [random_rows(options, PAIRS, dim, 1), random_rows(options, PAIRS, dim, 2)];
    let views: [RowSet<'_>; 2] = [sides[0].view().into(), sides[1].view().into()];
    let standardizer = Standardizer::fit(&[&views[0], &views[1]]);
    let (chosen, rejected) = (b.embeddings(views[0].clone())?, b.embeddings(views[1].clone())?);
    let order: Vec<u32> = (0..PAIRS as u32).collect();
    let (vae_objective, reward_objective) = objectives(options);
    let stored = 4.0 * dim as f64;
    let mut loss = f64::NAN;

    let mut trainer = b.vae_trainer(&models.vae, &standardizer, &vae_objective)?;
    let data = PairData { chosen: &chosen, rejected: &rejected };
    let entry = measured.time(
        (Operation::VaeEpoch, "VAE epoch, batch 128"),
        (PAIRS, "pairs"),
        &[(Resource::Flop, work::vae_step(models.vae.size())), (Resource::Copy, stored)],
        || b.vae_epoch(&mut trainer, &data, &order, 0).map(|losses| loss = losses.total),
    )?;
    if let Some(entry) = entry {
        entry.details = json!({ "loss": loss });
    }

    let mut trainer = b.reward_trainer(&models.reward, &standardizer, &reward_objective)?;
    let data = RewardData {
        chosen: RewardSide { originals: &chosen, synthetic: None },
        rejected: RewardSide { originals: &rejected, synthetic: None },
    };
    let pairs: Vec<[u32; 2]> = order.iter().map(|&i| [i, i]).collect();
    let entry = measured.time(
        (Operation::RewardEpoch, "reward epoch on originals, batch 128"),
        (PAIRS, "pairs"),
        &[(Resource::Flop, work::reward_step(models.reward.size())), (Resource::Copy, stored)],
        || b.reward_epoch(&mut trainer, &data, &pairs).map(|mean| loss = mean),
    )?;
    if let Some(entry) = entry {
        entry.details = json!({ "loss": loss });
    }
    Ok(())
}

/// What the paper minimises, for the VAE and for the reward model.
pub fn objectives(options: &Options) -> (VaeObjective, RewardObjective) {
    let adam = Adam::with_lr(1e-4);
    let vae = VaeObjective {
        reconstruction: Reduction::Mean,
        beta: 1e-2,
        gamma: 0.1,
        divergence: Divergence::W2,
        batch: BATCH,
        adam,
        seed: options.seed,
    };
    (vae, RewardObjective { batch: BATCH, adam, ..RewardObjective::default() })
}
