//! The preconditions of [`super::Backend`] operations, checked alike by every backend.

use super::{PairRows, Sample};
use crate::error::{Error, Result};
use crate::matrix::{Matrix, RowSet};
use crate::model::VaeSize;

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

/// Every latent needs the row it belongs to.
pub fn latent_rows(z: &Matrix, rows: &[u32]) -> Result<()> {
    length("the rows of latents", z.rows, rows.len())
}

/// Samples must lie in the block.
pub fn samples(samples: &[Sample], rows: usize) -> Result<()> {
    match samples.iter().map(|s| s.row as usize).max() {
        Some(row) if row >= rows => Err(Error::shape("rows of samples", format!("below {rows}"), row)),
        _ => Ok(()),
    }
}

/// Latents, seeds and output of a decode must fit the VAE and each other. `latents` is their width and the block
/// row of each; `seeds` the rows and columns of the residual's embeddings.
pub fn decode(
    size: VaeSize,
    latents: (usize, &[u32]),
    seeds: Option<(usize, usize)>,
    out: usize,
) -> Result<()> {
    let (latent, rows) = latents;
    if latent != size.latent {
        return Err(Error::shape("latent dimension for the VAE", size.latent, latent));
    }
    length("the decoded embeddings", rows.len() * size.dim, out)?;
    if let Some((seeds, cols)) = seeds {
        width("VAE", size.dim, cols)?;
        match rows.iter().max() {
            Some(&row) if row as usize >= seeds => {
                return Err(Error::shape("seed rows of latents", format!("below {seeds}"), row));
            }
            _ => {}
        }
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
pub fn pair_rows(pairs: &[PairRows], column: usize, rows: usize) -> Result<()> {
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
