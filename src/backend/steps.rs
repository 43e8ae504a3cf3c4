//! Operations of a [`Backend`] that are others one after the other, for devices that do not make them in one pass.

use super::{
    Backend, DecodeMode, NoiseKey, Perturbation, Reconstruction, Residual, Selection, Synthetic, checked,
};
use crate::error::Result;
use crate::matrix::{RowSet, ValuesMut};
use crate::model::Standardizer;

/// [`Backend::synthesize`] by encode, select, perturb and decode.
pub fn synthesize<B: Backend>(
    b: &B,
    vae: &B::Vae,
    originals: &B::Embeddings<'_>,
    (key, options, mode): (NoiseKey, &Perturbation, DecodeMode),
    to: &mut B::Rows,
) -> Result<Selection> {
    let posteriors = b.encode(vae, originals)?;
    let selection = b.select(&posteriors, key, options)?;
    let latents = b.perturb(&posteriors, key, options, &selection.samples())?;
    let residual =
        (mode == DecodeMode::Residual).then_some(Residual { embeddings: originals, posteriors: &posteriors });
    b.store_rows(originals, &Synthetic { vae, latents: &latents, residual }, to)?;
    Ok(selection)
}

/// [`Backend::reconstruct`] by encode and decode; the squares are summed here, in F64.
pub fn reconstruct<B: checked::Shapes>(
    b: &B,
    vae: &B::Vae,
    embeddings: &B::Embeddings<'_>,
    standardizer: &Standardizer,
    key: Option<NoiseKey>,
) -> Result<(B::Posteriors, Vec<Reconstruction>)> {
    checked::reconstruct::<B>(vae, embeddings, standardizer)?;
    let posteriors = b.encode(vae, embeddings)?;
    let latents = match key {
        Some(key) => b.encode_sample(vae, embeddings, key)?,
        None => {
            let mu = b.posteriors(&posteriors)?.mu;
            b.load_latents(&mu, &(0..mu.rows as u32).collect::<Vec<u32>>())?
        }
    };
    let rows: &RowSet<'_> = B::host_rows(embeddings);
    let (mut decoded, mut original) = (vec![0f32; rows.rows() * rows.cols()], vec![0f32; rows.cols()]);
    b.decode(vae, &latents, None, ValuesMut::F32(&mut decoded))?;
    let sums = decoded.chunks_exact_mut(rows.cols()).enumerate().map(|(row, decoded)| {
        rows.row(row).widen(&mut original);
        standardizer.apply(&mut original);
        standardizer.apply(decoded);
        let mut sums = Reconstruction::default();
        for (&there, &here) in original.iter().zip(&*decoded) {
            sums.total += f64::from(there).powi(2);
            sums.error += (f64::from(here) - f64::from(there)).powi(2);
        }
        sums
    });
    let sums = sums.collect();
    Ok((posteriors, sums))
}
