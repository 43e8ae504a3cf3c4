//! The preconditions of [`Backend`] operations, one function an operation, so that every device refuses the
//! same calls in the same words. A new backend calls the function of an operation before it does anything
//! else.

use super::{
    Backend, DeviceArray, PairData, PairRows, Perturbation, Residual, RewardData, RewardObjective, Sample,
    Synthetic, VaeObjective,
};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::matrix::{Matrix, RowSet, RowsBuf};
use crate::model::{RewardModel, Standardizer, Vae, VaeSize};

/// Sizes of a backend's own types, for the checks that all backends share.
pub trait Shapes: Backend {
    /// The rows on the host that embeddings were made from.
    fn host_rows<'r, 'e: 'r>(embeddings: &'r Self::Embeddings<'e>) -> &'r RowSet<'e>;
    /// Rows and latent dimension of posteriors.
    fn posteriors_shape(posteriors: &Self::Posteriors) -> (usize, usize);
    /// Latent dimension of latents, and the block row of each.
    fn latents_shape(latents: &Self::Latents) -> (usize, &[u32]);
    fn vae_size(vae: &Self::Vae) -> VaeSize;
    /// Width of the embeddings that a reward model scores.
    fn reward_dim(model: &Self::Reward) -> usize;
    /// Sizes of the VAE whose latents are scored.
    fn folded_size(folded: &Self::Folded) -> VaeSize;
    /// Width of the embeddings that the VAE is trained on.
    fn vae_trainer_dim(trainer: &Self::VaeTrainer) -> usize;
    /// Width of the embeddings that the reward model is trained on.
    fn reward_trainer_dim(trainer: &Self::RewardTrainer) -> usize;
}

/// Every latent has the row it belongs to.
pub fn load_latents(z: &Matrix, rows: &[u32]) -> Result<()> {
    length("the rows of latents", z.rows, rows.len())
}

pub fn encode<B: Shapes>(vae: &B::Vae, embeddings: &B::Embeddings<'_>) -> Result<()> {
    width("VAE", B::vae_size(vae).dim, shape::<B>(embeddings).1)
}

/// As [`encode`]; gives the row of each sample, of which there is one a row. Row numbers have 32 bits.
pub fn encode_sample<B: Shapes>(vae: &B::Vae, embeddings: &B::Embeddings<'_>) -> Result<Vec<u32>> {
    encode::<B>(vae, embeddings)?;
    let (rows, _) = shape::<B>(embeddings);
    let rows = u32::try_from(rows)
        .map_err(|_| Error::shape("rows to sample", format!("at most {}", u32::MAX), rows))?;
    Ok((0..rows).collect())
}

/// As [`encode`], and the standardisation is as wide as the rows.
pub fn reconstruct<B: Shapes>(
    vae: &B::Vae,
    embeddings: &B::Embeddings<'_>,
    standardizer: &Standardizer,
) -> Result<()> {
    encode::<B>(vae, embeddings)?;
    width("standardisation", standardizer.mean.len(), shape::<B>(embeddings).1)
}

/// As [`encode`] and [`select`], and the rows are as wide as those that they are stored as.
pub fn synthesize<B: Shapes>(
    vae: &B::Vae,
    originals: &B::Embeddings<'_>,
    options: &Perturbation,
    dim: usize,
) -> Result<()> {
    encode::<B>(vae, originals)?;
    select(options)?;
    width("rows of pairs", dim, shape::<B>(originals).1)
}

/// At least one candidate is kept, all that are kept are drawn, and their numbers fit 32 bits.
pub fn select(options: &Perturbation) -> Result<()> {
    if !(options.sigma2.is_finite() && options.sigma2 >= 0.0) {
        return Err(Error::argument("sigma2", "a finite number, 0 or more", options.sigma2));
    }
    if options.top_k == 0
        || options.oversample == 0
        || options.top_k.checked_mul(options.oversample).is_none()
    {
        let found = format!("{} kept, {} drawn for each", options.top_k, options.oversample);
        return Err(Error::shape("candidates", "at least one kept, and at most 2^32 - 1 drawn", found));
    }
    Ok(())
}

/// As [`select`], and the samples lie in the block.
pub fn perturb<B: Shapes>(
    posteriors: &B::Posteriors,
    options: &Perturbation,
    samples: &[Sample],
) -> Result<()> {
    select(options)?;
    let (rows, _) = B::posteriors_shape(posteriors);
    below("rows of samples", rows, samples.iter().map(|s| s.row))
}

pub fn decode<B: Shapes>(
    vae: &B::Vae,
    latents: &B::Latents,
    residual: Option<Residual<'_, '_, B>>,
    out: usize,
) -> Result<()> {
    let size = B::vae_size(vae);
    latents_fit(size, latents, residual)?;
    length("the decoded embeddings", B::latents_shape(latents).1.len() * size.dim, out)
}

/// Originals and decoded samples are as wide as the rows that they are stored as.
pub fn store_rows<B: Shapes>(
    originals: &B::Embeddings<'_>,
    samples: &Synthetic<'_, '_, B>,
    dim: usize,
) -> Result<()> {
    let size = B::vae_size(samples.vae);
    let (_, cols) = shape::<B>(originals);
    latents_fit(size, samples.latents, samples.residual)?;
    width("rows of pairs", dim, cols)?;
    width("VAE", size.dim, cols)
}

/// An array has the columns that are wanted.
pub fn array(what: &str, cols: usize, array: &DeviceArray) -> Result<()> {
    match array.cols() == cols {
        true => Ok(()),
        false => Err(Error::shape(format!("columns of the {what}"), cols, array.cols())),
    }
}

/// The rows that are picked are there (storage type, number and width of what is stored), and fit the output.
pub fn pick_rows(index: &[u32], (dtype, rows, cols): (Dtype, usize, usize), out: &RowsBuf) -> Result<()> {
    length("the rows to be picked", out.rows(), index.len())?;
    if (dtype, cols) != (out.dtype(), out.cols()) {
        let text = |dtype: Dtype, cols: usize| format!("{cols} values of {dtype}");
        return Err(Error::shape("rows to be picked", text(dtype, cols), text(out.dtype(), out.cols())));
    }
    picked(index, rows)
}

/// The rows that are picked are there.
pub fn picked(index: &[u32], rows: usize) -> Result<()> {
    below("rows to be picked", rows, index.iter().copied())
}

pub fn score<B: Shapes>(model: &B::Reward, embeddings: &B::Embeddings<'_>, out: usize) -> Result<()> {
    let (rows, cols) = shape::<B>(embeddings);
    width("reward model", B::reward_dim(model), cols)?;
    length("scores", rows, out)
}

pub fn score_latents<B: Shapes>(
    folded: &B::Folded,
    latents: &B::Latents,
    residual: Option<Residual<'_, '_, B>>,
    out: usize,
) -> Result<()> {
    latents_fit(B::folded_size(folded), latents, residual)?;
    length("scores", B::latents_shape(latents).1.len(), out)
}

pub fn vae_trainer(initial: &Vae, standardizer: &Standardizer, objective: &VaeObjective) -> Result<()> {
    trainer(initial.size().dim, standardizer, objective.batch)
}

pub fn reward_trainer(
    initial: &RewardModel,
    standardizer: &Standardizer,
    objective: &RewardObjective,
) -> Result<()> {
    let noise = objective.input_noise;
    if !(noise.is_finite() && noise >= 0.0) {
        return Err(Error::argument("reward.input_noise", "a finite number, 0 or more", noise));
    }
    trainer(initial.size().dim, standardizer, objective.batch)
}

/// Both sides have the trainer's width and equally many rows, and `order` names some of them.
pub fn vae_training<B: Shapes>(
    trainer: &B::VaeTrainer,
    data: &PairData<'_, '_, B>,
    order: &[u32],
) -> Result<()> {
    let dim = B::vae_trainer_dim(trainer);
    let (chosen, rejected) = (shape::<B>(data.chosen), shape::<B>(data.rejected));
    width("VAE", dim, chosen.1)?;
    width("VAE", dim, rejected.1)?;
    length("the rejected side", chosen.0, rejected.0)?;
    some_pairs(order.len())?;
    below("training rows", chosen.0, order.iter().copied())
}

/// Both sides fit the model, and the pairs name rows of theirs.
pub fn reward_training<B: Shapes>(
    trainer: &B::RewardTrainer,
    data: &RewardData<'_, '_, B>,
    pairs: &[PairRows],
) -> Result<()> {
    let dim = B::reward_trainer_dim(trainer);
    for (column, side) in [&data.chosen, &data.rejected].into_iter().enumerate() {
        let (mut rows, originals_dim) = shape::<B>(side.originals);
        width("reward model", dim, originals_dim)?;
        if let Some(s) = &side.synthetic {
            let size = B::vae_size(s.vae);
            width("reward model", dim, size.dim)?;
            latents_fit(size, s.latents, s.residual)?;
            rows += B::latents_shape(s.latents).1.len();
        }
        some_pairs(pairs.len())?;
        below("training rows", rows, pairs.iter().map(|p| p[column]))?;
    }
    Ok(())
}

/// Rows and columns of embeddings.
fn shape<B: Shapes>(embeddings: &B::Embeddings<'_>) -> (usize, usize) {
    let rows = B::host_rows(embeddings);
    (rows.rows(), rows.cols())
}

/// Latents and, where residual, the seeds fit the VAE and each other.
fn latents_fit<B: Shapes>(
    size: VaeSize,
    latents: &B::Latents,
    residual: Option<Residual<'_, '_, B>>,
) -> Result<()> {
    let (latent, rows) = B::latents_shape(latents);
    let latent_dimension = |found: usize| match found == size.latent {
        true => Ok(()),
        false => Err(Error::shape("latent dimension for the VAE", size.latent, found)),
    };
    latent_dimension(latent)?;
    if let Some(Residual { embeddings, posteriors }) = residual {
        let (seeds, dim) = shape::<B>(embeddings);
        let (posteriors, latent) = B::posteriors_shape(posteriors);
        width("VAE", size.dim, dim)?;
        latent_dimension(latent)?;
        length("the seeds' posteriors", seeds, posteriors)?;
        below("seed rows of latents", seeds, rows.iter().copied())?;
    }
    Ok(())
}

fn trainer(dim: usize, standardizer: &Standardizer, batch: usize) -> Result<()> {
    length("the standardiser's mean", dim, standardizer.mean.len())?;
    length("the standardiser's standard deviation", dim, standardizer.std.len())?;
    if batch == 0 {
        return Err(Error::argument("batch", "1 or more", batch));
    }
    Ok(())
}

fn width(model: &str, expected: usize, found: usize) -> Result<()> {
    if expected != found {
        return Err(Error::shape(format!("embedding dimension for the {model}"), expected, found));
    }
    Ok(())
}

fn length(what: &str, expected: usize, found: usize) -> Result<()> {
    if expected != found {
        return Err(Error::shape(format!("length of {what}"), expected, found));
    }
    Ok(())
}

/// All of `rows` are numbers of `count` rows.
fn below(what: &str, count: usize, rows: impl Iterator<Item = u32>) -> Result<()> {
    match rows.max() {
        Some(row) if row as usize >= count => Err(Error::shape(what, format!("below {count}"), row)),
        _ => Ok(()),
    }
}

fn some_pairs(count: usize) -> Result<()> {
    if count == 0 {
        return Err(Error::TooFew { what: "training pairs".into(), needed: 1, found: 0 });
    }
    Ok(())
}
