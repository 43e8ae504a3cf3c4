//! Rows that pairs are made of, on the host: where the decoder's output is there anyway, threads put it in order.

use rayon::prelude::*;

use super::{Backend, Synthetic, check};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::matrix::{RowSet, RowsBuf};

/// Rows that one thread copies at a time.
const COPIED: usize = 64;

/// Originals and decoded samples of one storage type: row r < n is original r, row n + j is sample j. Filled again and
/// again.
#[derive(Debug)]
pub struct HostRows {
    originals: RowsBuf,
    decoded: RowsBuf,
}

impl HostRows {
    /// No rows yet, of width `dim`.
    pub fn new(dtype: Dtype, dim: usize) -> HostRows {
        HostRows { originals: RowsBuf::zeros(dtype, 0, dim), decoded: RowsBuf::zeros(dtype, 0, dim) }
    }

    /// Stores the originals alone, and shows them.
    pub fn store_originals(&mut self, originals: &RowSet<'_>) -> &RowsBuf {
        self.originals.resize_rows(originals.rows());
        originals.copy_rows(&|row| row, &mut self.originals);
        &self.originals
    }

    /// Stores originals and the samples that `b` decodes.
    pub fn store<'e, B: Backend + check::Shapes + 'e>(
        &mut self,
        b: &B,
        originals: &RowSet<'_>,
        samples: &Synthetic<'_, 'e, B>,
    ) -> Result<()> {
        check::width("rows of pairs", self.originals.cols(), originals.cols())?;
        self.store_originals(originals);
        self.decoded.resize_rows(B::latents_shape(samples.latents).1.len());
        b.decode(samples.vae, samples.latents, samples.residual, self.decoded.values_mut())
    }

    /// Row and column of the first value that is NaN or infinite.
    pub fn first_non_finite(&self) -> Option<(usize, usize)> {
        let first = |rows: &RowsBuf, before: usize| {
            let (at, _) = rows.view().values().first_non_finite()?;
            Some((before + at / rows.cols(), at % rows.cols()))
        };
        first(&self.originals, 0).or_else(|| first(&self.decoded, self.originals.rows()))
    }

    /// Copies the rows that `index` names, in its order, into `out`.
    pub fn pick(&self, index: &[u32], out: &mut RowsBuf) -> Result<()> {
        let all = self.originals.rows() + self.decoded.rows();
        check::picked(index, (self.originals.dtype(), all, self.originals.cols()), out)?;
        let row = out.cols() * out.dtype().size();
        let (originals, decoded) = (self.originals.bytes(), self.decoded.bytes());
        out.bytes_mut().par_chunks_mut(COPIED * row).zip(index.par_chunks(COPIED)).for_each(|(to, index)| {
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
