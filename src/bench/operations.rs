//! The operations of a device one by one, on random rows in memory.

use rayon::prelude::*;

use super::timing::time;
use super::{
    DTYPES, Entry, Models, NORMAL_FLOP, Operation, Options, decode_flop, encode_flop, folded_flop,
    reward_step_flop, vae_step_flop,
};
use crate::backend::{
    Adam, Divergence, LatentSource, Likelihood, NoiseKey, PairData, Perturbation, Reduction, Resource,
    RewardData, RewardObjective, RewardSide, Roofline, Sample, SyntheticPath, VaeObjective,
};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::matrix::{RowSet, RowsBuf};
use crate::model::{FoldedReward, Standardizer};
use crate::noise::{NoiseCounter, Purpose, Side, fill_normals};

/// Synthetic samples kept for each seed and side.
pub const KEEP: u32 = 4;
/// Pairs of a training epoch, and of a step.
const PAIRS: usize = 1024;
const BATCH: usize = 128;

/// The paper's perturbation at [`KEEP`] samples.
pub fn perturbation() -> Perturbation {
    Perturbation {
        sigma2: 0.01,
        top_k: KEEP,
        oversample: 4,
        likelihood: Likelihood::Posterior,
        source: LatentSource::Sample,
    }
}

/// Where the noise of rows from `first_row` on comes from.
pub fn origin(options: &Options, first_row: u64) -> NoiseKey {
    NoiseKey { seed: options.seed, side: Side::Chosen, first_row }
}

/// The samples that a selection keeps.
pub fn samples(candidates: &[u32], keep: usize) -> Vec<Sample> {
    let sample = |(i, &candidate): (usize, &u32)| Sample { row: (i / keep) as u32, candidate };
    candidates.iter().enumerate().map(sample).collect()
}

/// Standard normal rows as BF16; `set` keeps several of them apart.
pub fn random_rows(options: &Options, rows: usize, dim: usize, set: u32) -> RowsBuf {
    let mut out = RowsBuf::zeros(Dtype::Bf16, rows, dim);
    out.bytes_mut().par_chunks_mut(2 * dim).enumerate().for_each_init(
        || vec![0f32; dim],
        |wide, (row, to)| {
            let address = NoiseCounter {
                purpose: Purpose::Simulation,
                side: Side::Chosen,
                row: row as u64,
                candidate: u32::MAX - set,
            };
            fill_normals(options.seed, address, wide);
            Dtype::Bf16.narrow_bytes(wide, to);
        },
    );
    out
}

/// Normals on one core, in stretches that stay in the first-level cache.
pub fn normals(options: &Options) -> Result<Entry> {
    const STRETCH: usize = 4096;
    const STRETCHES: usize = 64;
    let mut out = vec![0f32; STRETCH];
    let timing = time(options.repeat, &mut || {
        for row in 0..STRETCHES as u64 {
            let address =
                NoiseCounter { purpose: Purpose::Simulation, side: Side::Chosen, row, candidate: 0 };
            fill_normals(options.seed, address, &mut out);
            std::hint::black_box(&mut out);
        }
        Ok(())
    })?;
    let per = timing.per((STRETCH * STRETCHES) as f64);
    Ok(Entry::new(Operation::Normals, "normals, one core", "normals", per, &[(Resource::Flop, NORMAL_FLOP)]))
}

/// Measures the operations that `options` names.
pub fn measure<B: Roofline + 'static>(
    b: &B,
    options: &Options,
    models: &Models,
    says: &mut dyn FnMut(&str),
    entries: &mut Vec<Entry>,
) -> Result<()> {
    use Operation as Op;
    let inference = [Op::Encode, Op::Select, Op::Perturb, Op::Decode, Op::Score, Op::Folded];
    if inference.iter().any(|op| options.only.contains(op)) {
        says("inference");
        infer(b, options, models, entries)?;
    }
    if options.only.contains(&Op::VaeEpoch) || options.only.contains(&Op::RewardEpoch) {
        says("training epochs");
        train(b, options, models, entries)?;
    }
    Ok(())
}

fn infer<B: Roofline + 'static>(
    b: &B,
    options: &Options,
    models: &Models,
    entries: &mut Vec<Entry>,
) -> Result<()> {
    let wants = |op| options.only.contains(&op);
    let (size, width) = (models.vae.size(), models.reward.size());
    let (rows, dim, latent) = (options.rows, size.dim, size.latent);
    let vae = b.load_vae(&models.vae)?;
    let reward = b.load_reward(&models.reward)?;
    let values = random_rows(options, rows, dim, 0);
    let view: RowSet<'_> = values.view().into();
    let embeddings = b.embeddings(view)?;
    let mut timed = |op,
                     what: &str,
                     unit: &str,
                     count: usize,
                     needs: &[(Resource, f64)],
                     work: &mut dyn FnMut() -> Result<()>| {
        if wants(op) {
            let timing = time(options.repeat, &mut || {
                work()?;
                b.finish()
            })?;
            entries.push(Entry::new(op, what, unit, timing.per(count as f64), needs));
        }
        Ok::<(), crate::error::Error>(())
    };
    let stored = (2 * dim) as f64;
    let codes = (8 * latent) as f64;
    timed(
        Operation::Encode,
        "encode from BF16",
        "embeddings",
        rows,
        &[(Resource::Flop, encode_flop(size)), (Resource::Copy, stored + codes)],
        &mut || b.encode(&vae, &embeddings).map(drop),
    )?;
    let mut rewards = vec![0f32; rows];
    timed(
        Operation::Score,
        "score BF16 embeddings",
        "embeddings",
        rows,
        &[(Resource::Flop, 2.0 * (width.dim * width.hidden + width.hidden) as f64), (Resource::Copy, stored)],
        &mut || b.score(&reward, &embeddings, &mut rewards),
    )?;

    let posteriors = b.encode(&vae, &embeddings)?;
    let (how, origin) = (perturbation(), origin(options, 0));
    let drawn = how.drawn() as usize;
    // One normal more for each latent of a row: the posterior sample that is perturbed.
    timed(
        Operation::Select,
        &format!("select {KEEP} of {drawn} candidates"),
        "candidates",
        rows * drawn,
        &[
            (Resource::Normals, latent as f64 * (1.0 + 1.0 / drawn as f64)),
            (Resource::Copy, codes / drawn as f64),
        ],
        &mut || b.select(&posteriors, origin, &how).map(drop),
    )?;
    let selection = b.select(&posteriors, origin, &how)?;
    let kept = samples(&selection.candidates, selection.top_k);
    let share = latent as f64 * (1.0 + 1.0 / f64::from(KEEP));
    timed(
        Operation::Perturb,
        "perturb",
        "latents",
        kept.len(),
        &[(Resource::Normals, share), (Resource::Copy, codes / f64::from(KEEP) + 4.0 * latent as f64)],
        &mut || b.perturb(&posteriors, origin, &how, &kept).map(|latents| b.materialize(&latents)),
    )?;
    let folded = b.load_folded(&FoldedReward::new(&models.vae, &models.reward)?)?;
    let mut rewards = vec![0f32; kept.len()];
    timed(
        Operation::Folded,
        "perturb and score, folded",
        "latents",
        kept.len(),
        &[
            (Resource::Flop, folded_flop(size, width)),
            (Resource::Normals, share),
            (Resource::Copy, codes / f64::from(KEEP) + 4.0),
        ],
        &mut || {
            let latents = b.perturb(&posteriors, origin, &how, &kept)?;
            b.score_latents(&folded, &latents, None, &mut rewards)
        },
    )?;
    let one_each: Vec<Sample> = kept.iter().step_by(KEEP as usize).copied().collect();
    let latents = b.perturb(&posteriors, origin, &how, &one_each)?;
    for dtype in DTYPES {
        if !wants(Operation::Decode) {
            break;
        }
        let mut out = RowsBuf::zeros(dtype, rows, dim);
        timed(
            Operation::Decode,
            &format!("decode to {}", dtype.to_string().to_uppercase()),
            "embeddings",
            rows,
            &[(Resource::Flop, decode_flop(size)), (Resource::Write, (dim * dtype.size()) as f64)],
            &mut || b.decode(&vae, &latents, None, out.values_mut()),
        )?;
    }
    Ok(())
}

fn train<B: Roofline + 'static>(
    b: &B,
    options: &Options,
    models: &Models,
    entries: &mut Vec<Entry>,
) -> Result<()> {
    let dim = options.dim;
    let sides = [random_rows(options, PAIRS, dim, 1), random_rows(options, PAIRS, dim, 2)];
    let views: [RowSet<'_>; 2] = [sides[0].view().into(), sides[1].view().into()];
    let standardizer = Standardizer::fit(&[&views[0], &views[1]]);
    let (chosen, rejected) = (b.embeddings(views[0].clone())?, b.embeddings(views[1].clone())?);
    let order: Vec<u32> = (0..PAIRS as u32).collect();
    if options.only.contains(&Operation::VaeEpoch) {
        let (objective, _) = objectives(options);
        let mut trainer = b.vae_trainer(&models.vae, &standardizer, &objective)?;
        let data = PairData { chosen: &chosen, rejected: &rejected };
        let mut loss = f64::NAN;
        let timing = time(options.repeat, &mut || {
            loss = b.vae_epoch(&mut trainer, &data, &order, 0)?.total;
            b.finish()
        })?;
        let needs = [(Resource::Flop, vae_step_flop(models.vae.size())), (Resource::Copy, 4.0 * dim as f64)];
        let mut entry = Entry::new(
            Operation::VaeEpoch,
            "VAE epoch, batch 128",
            "pairs",
            timing.per(PAIRS as f64),
            &needs,
        );
        entry.details = serde_json::json!({ "loss": loss });
        entries.push(entry);
    }
    if options.only.contains(&Operation::RewardEpoch) {
        let (_, objective) = objectives(options);
        let mut trainer = b.reward_trainer(&models.reward, &standardizer, &objective)?;
        let data = RewardData {
            chosen: RewardSide { originals: &chosen, synthetic: None },
            rejected: RewardSide { originals: &rejected, synthetic: None },
        };
        let pairs: Vec<[u32; 2]> = order.iter().map(|&i| [i, i]).collect();
        let mut loss = f64::NAN;
        let timing = time(options.repeat, &mut || {
            loss = b.reward_epoch(&mut trainer, &data, &pairs)?;
            b.finish()
        })?;
        let needs =
            [(Resource::Flop, reward_step_flop(models.reward.size())), (Resource::Copy, 4.0 * dim as f64)];
        let mut entry = Entry::new(
            Operation::RewardEpoch,
            "reward epoch on originals, batch 128",
            "pairs",
            timing.per(PAIRS as f64),
            &needs,
        );
        entry.details = serde_json::json!({ "loss": loss });
        entries.push(entry);
    }
    Ok(())
}

/// What the paper minimises, for the VAE and for the reward model.
pub(super) fn objectives(options: &Options) -> (VaeObjective, RewardObjective) {
    let adam = Adam::with_lr(1e-4);
    let vae = VaeObjective {
        reconstruction: Reduction::Mean,
        beta: 1e-3,
        gamma: 0.1,
        divergence: Divergence::W2,
        batch: BATCH,
        adam,
        seed: options.seed,
    };
    (vae, RewardObjective { batch: BATCH, adam, synthetic: SyntheticPath::default() })
}
