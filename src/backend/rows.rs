//! Rows that pairs are made of, in host memory. Originals and decoded samples lie in one buffer each; threads copy the
//! rows that are picked. For backends whose decoder writes host memory anyway, and GPUs that are short of memory.

use rayon::prelude::*;

use super::checked::{self, Shapes};
use super::{PairRowStore, Synthetic};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::matrix::{RowSet, RowsBuf};

/// Rows that one thread copies at a time.
const ROWS_PER_TASK: usize = 64;

/// Originals and decoded samples of one storage type.
#[derive(Debug)]
pub struct HostRows {
    originals: RowsBuf,
    decoded: RowsBuf,
}

impl<B: Shapes> PairRowStore<B> for HostRows {
    fn new(dtype: Dtype, dim: usize) -> HostRows {
        HostRows::empty(dtype, dim)
    }

    fn store(&mut self, b: &B, originals: &B::Embeddings<'_>, samples: &Synthetic<'_, '_, B>) -> Result<()> {
        checked::store_rows::<B>(originals, samples, self.originals.cols())?;
        self.store_originals(B::host_rows(originals));
        self.decoded.resize_rows(B::latents_shape(samples.latents).1.len());
        b.decode(samples.vae, samples.latents, samples.residual, self.decoded.values_mut())
    }

    fn first_non_finite(&self, _: &B) -> Result<Option<(usize, usize)>> {
        Ok(self.find_non_finite())
    }

    fn pick(&self, _: &B, index: &[u32], out: &mut RowsBuf) -> Result<()> {
        self.pick_rows(index, out)
    }
}

impl HostRows {
    /// No rows yet, of width `dim`.
    pub fn empty(dtype: Dtype, dim: usize) -> HostRows {
        HostRows { originals: RowsBuf::zeros(dtype, 0, dim), decoded: RowsBuf::zeros(dtype, 0, dim) }
    }

    /// Stores the originals alone, and gives them.
    pub fn store_originals(&mut self, originals: &RowSet<'_>) -> &RowsBuf {
        self.originals.resize_rows(originals.rows());
        originals.copy_rows(&|row| row, &mut self.originals);
        &self.originals
    }

    /// Row and column of the first value that is NaN or infinite.
    pub fn find_non_finite(&self) -> Option<(usize, usize)> {
        let first = |rows: &RowsBuf, rows_before: usize| {
            let (at, _) = rows.view().values().first_non_finite()?;
            Some((rows_before + at / rows.cols(), at % rows.cols()))
        };
        first(&self.originals, 0).or_else(|| first(&self.decoded, self.originals.rows()))
    }

    /// Copies the rows that `index` names, in its order, into `out`.
    pub fn pick_rows(&self, index: &[u32], out: &mut RowsBuf) -> Result<()> {
        let rows = self.originals.rows() + self.decoded.rows();
        checked::pick_rows(index, (self.originals.dtype(), rows, self.originals.cols()), out)?;
        let row = out.cols() * out.dtype().size();
        let (originals, decoded) = (self.originals.bytes(), self.decoded.bytes());
        let tasks = out.bytes_mut().par_chunks_mut(ROWS_PER_TASK * row).zip(index.par_chunks(ROWS_PER_TASK));
        tasks.for_each(|(to, index)| {
            for (to, &i) in to.chunks_exact_mut(row).zip(index) {
                let at = i as usize * row;
                let from = match at.checked_sub(originals.len()) {
                    None => &originals[at..],
                    Some(at) => &decoded[at..],
                };
                to.copy_from_slice(&from[..row]);
            }
        });
        Ok(())
    }
}
