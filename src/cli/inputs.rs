//! Checks of input files that several commands make before any work.

use std::path::Path;

use crate::data::{PairOptions, PairSet};
use crate::error::{Error, Result};
use crate::model::RewardModel;

/// Opens pairs and checks that every value is finite.
pub fn open_checked(sources: &[String], options: &PairOptions) -> Result<PairSet> {
    let pairs = PairSet::open(sources, options)?;
    pairs.scan()?;
    Ok(pairs)
}

/// [`open_checked`], where held-out pairs are given at all; they must have the training pairs' dimension.
pub fn open_held_out(sources: &[String], options: &PairOptions, dim: usize) -> Result<Option<PairSet>> {
    if sources.is_empty() {
        return Ok(None);
    }
    let held = open_checked(sources, options)?;
    if held.dim() != dim {
        let file = held.files().first().map(|f| f.path.display().to_string()).unwrap_or_default();
        let expected = format!("{dim}, that of the training pairs");
        return Err(Error::shape(format!("{file}: embedding dimension"), expected, held.dim()));
    }
    Ok(Some(held))
}

/// The reward model in `path` must take embeddings of dimension `dim`.
pub fn require_model_dim(path: &Path, model: &RewardModel, dim: usize) -> Result<()> {
    if model.size().dim != dim {
        let what = format!("{}: embedding dimension of the reward model", path.display());
        return Err(Error::shape(what, format!("{dim}, that of the data"), model.size().dim));
    }
    Ok(())
}
