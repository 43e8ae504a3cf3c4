//! The preconditions of [`super::Backend`] operations, checked alike by every backend.

use super::{Backend, PairRows, Perturbation, Residual, RewardData, Sample};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::matrix::{Matrix, RowSet, RowsBuf};
use crate::model::{Standardizer, VaeSize};

/// Embeddings must have the model's dimension.
pub fn width(model: &str, expected: usize, found: usize) -> Result<()> {
    if expected != found {
        return Err(Error::shape(format!("embedding dimension for the {model}"), expected, found));
    }
    Ok(())
}

/// An output must hold exactly what is asked for.
pub fn length(what: &str, expected: usize, found: usize) -> Result<()> {
    if expected != found {
        return Err(Error::shape(format!("length of {what}"), expected, found));
    }
    Ok(())
}

/// Rows that are picked must be there (their storage type, number and width), and fit the output in number and shape.
pub fn picked(index: &[u32], (dtype, rows, cols): (Dtype, usize, usize), out: &RowsBuf) -> Result<()> {
    length("the rows to be picked", out.rows(), index.len())?;
    if (dtype, cols) != (out.dtype(), out.cols()) {
        let text = |dtype: Dtype, cols: usize| format!("{cols} values of {dtype}");
        return Err(Error::shape("rows to be picked", text(dtype, cols), text(out.dtype(), out.cols())));
    }
    match index.iter().max() {
        Some(&row) if row as usize >= rows => {
            Err(Error::shape("rows to be picked", format!("below {rows}"), row))
        }
        _ => Ok(()),
    }
}

/// Every latent needs the row it belongs to.
pub fn latent_rows(z: &Matrix, rows: &[u32]) -> Result<()> {
    length("the rows of latents", z.rows, rows.len())
}

/// At least one candidate is kept, all that are kept are drawn, and their numbers fit 32 bits.
pub fn perturbation(how: &Perturbation) -> Result<()> {
    if !(how.sigma2.is_finite() && how.sigma2 >= 0.0) {
        return Err(Error::argument("sigma2", "a finite number, 0 or more", how.sigma2));
    }
    if how.top_k == 0 || how.oversample == 0 || how.top_k.checked_mul(how.oversample).is_none() {
        let found = format!("{} kept, {} drawn for each", how.top_k, how.oversample);
        return Err(Error::shape("candidates", "at least one kept, and at most 2^32 - 1 drawn", found));
    }
    Ok(())
}

/// A trainer needs a batch of at least one pair and a standardiser of its dimension.
pub fn trainer(dim: usize, standardizer: &Standardizer, batch: usize) -> Result<()> {
    length("the standardiser's mean", dim, standardizer.mean.len())?;
    length("the standardiser's standard deviation", dim, standardizer.std.len())?;
    if batch == 0 {
        return Err(Error::argument("batch", "1 or more", batch));
    }
    Ok(())
}

/// The row of each of `rows` latents, one a row; row numbers have 32 bits.
pub fn sample_rows(rows: usize) -> Result<Vec<u32>> {
    let rows = u32::try_from(rows)
        .map_err(|_| Error::shape("rows to sample", format!("at most {}", u32::MAX), rows))?;
    Ok((0..rows).collect())
}

/// Samples must lie in the block.
pub fn samples(samples: &[Sample], rows: usize) -> Result<()> {
    match samples.iter().map(|s| s.row as usize).max() {
        Some(row) if row >= rows => Err(Error::shape("rows of samples", format!("below {rows}"), row)),
        _ => Ok(()),
    }
}

/// How large a backend's own types are, for the checks that all backends share.
pub trait Shapes: Backend + Sized {
    /// Rows and columns of embeddings.
    fn embeddings_shape(embeddings: &Self::Embeddings<'_>) -> (usize, usize);
    /// Rows and latent dimension of posteriors.
    fn posteriors_shape(posteriors: &Self::Posteriors) -> (usize, usize);
    /// Latent dimension of latents, and the block row of each.
    fn latents_shape(latents: &Self::Latents) -> (usize, &[u32]);
    /// Sizes of a VAE.
    fn vae_size(vae: &Self::Vae) -> VaeSize;
}

/// Latents and, where residual, the seeds must fit the VAE and each other.
pub fn latents<'e, B: Shapes + 'e>(
    size: VaeSize,
    latents: &B::Latents,
    residual: Option<Residual<'_, 'e, B>>,
) -> Result<()> {
    let (latent, rows) = B::latents_shape(latents);
    let latent_dimension = |found: usize| match found == size.latent {
        true => Ok(()),
        false => Err(Error::shape("latent dimension for the VAE", size.latent, found)),
    };
    latent_dimension(latent)?;
    if let Some(Residual { embeddings, posteriors }) = residual {
        let (seeds, dim) = B::embeddings_shape(embeddings);
        let (posteriors, latent) = B::posteriors_shape(posteriors);
        width("VAE", size.dim, dim)?;
        latent_dimension(latent)?;
        length("the seeds' posteriors", seeds, posteriors)?;
        match rows.iter().max() {
            Some(&row) if row as usize >= seeds => {
                return Err(Error::shape("seed rows of latents", format!("below {seeds}"), row));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Both sides of reward training must fit the model, and the pairs must name rows of theirs.
pub fn reward_data<'e, B: Shapes + 'e>(
    dim: usize,
    data: &RewardData<'_, 'e, B>,
    pairs: &[PairRows],
) -> Result<()> {
    for (column, side) in [&data.chosen, &data.rejected].into_iter().enumerate() {
        let (mut rows, originals_dim) = B::embeddings_shape(side.originals);
        width("reward model", dim, originals_dim)?;
        if let Some(s) = &side.synthetic {
            let size = B::vae_size(s.vae);
            width("reward model", dim, size.dim)?;
            latents::<B>(size, s.latents, s.residual)?;
            rows += B::latents_shape(s.latents).1.len();
        }
        pair_rows(pairs, column, rows)?;
    }
    Ok(())
}

/// Both sides must have the trainer's dimension and equally many rows, and the order must stay within them.
pub fn pair_data(dim: usize, chosen: &RowSet<'_>, rejected: &RowSet<'_>, order: &[u32]) -> Result<()> {
    width("VAE", dim, chosen.cols())?;
    width("VAE", dim, rejected.cols())?;
    length("the rejected side", chosen.rows(), rejected.rows())?;
    batch_not_empty(order.len())?;
    match order.iter().max() {
        Some(&row) if row as usize >= chosen.rows() => {
            Err(Error::shape("training rows", format!("below {}", chosen.rows()), row))
        }
        _ => Ok(()),
    }
}

/// Pairs must exist and name rows of their side.
fn pair_rows(pairs: &[PairRows], column: usize, rows: usize) -> Result<()> {
    batch_not_empty(pairs.len())?;
    match pairs.iter().map(|p| p[column] as usize).max() {
        Some(row) if row >= rows => Err(Error::shape("training rows", format!("below {rows}"), row)),
        _ => Ok(()),
    }
}

fn batch_not_empty(len: usize) -> Result<()> {
    if len == 0 {
        return Err(Error::TooFew { what: "training pairs".into(), needed: 1, found: 0 });
    }
    Ok(())
}
