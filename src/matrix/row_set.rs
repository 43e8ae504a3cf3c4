//! A matrix in several pieces under one row numbering.

use std::ops::Range;

use rayon::prelude::*;

use super::rows::{Rows, RowsBuf};
use super::values::Values;
use crate::dtype::Dtype;
use crate::error::{Error, Result};

/// Rows that one thread of [`RowSet::copy_rows`] copies at a time.
const COPY_CHUNK: usize = 64;

/// Several [`Rows`] of equal width under one row numbering; dtypes may differ between parts.
#[derive(Clone, Debug, Default)]
pub struct RowSet<'a> {
    parts: Vec<Rows<'a>>,
    /// First row of each part, then the total: one entry more than there are parts.
    starts: Vec<usize>,
    cols: usize,
}

impl<'a> RowSet<'a> {
    /// Rows `[n, cols]` in memory, one after the other. Fails if `values` is not whole rows.
    pub fn from_f32(values: &'a [f32], cols: usize) -> Result<RowSet<'a>> {
        Rows::from_f32(values, cols).map(RowSet::from)
    }

    /// Joins parts in order. Fails if their widths differ or if there is no part.
    pub fn new(parts: Vec<Rows<'a>>) -> Result<RowSet<'a>> {
        let Some(first) = parts.first() else {
            return Err(Error::TooFew { what: "row set".into(), needed: 1, found: 0 });
        };
        let cols = first.cols();
        let mut starts = vec![0];
        for (i, part) in parts.iter().enumerate() {
            if part.cols() != cols {
                return Err(Error::shape(format!("columns of part {i}"), cols, part.cols()));
            }
            starts.push(starts[i] + part.rows());
        }
        Ok(RowSet { parts, starts, cols })
    }

    /// Number of rows over all parts.
    pub fn rows(&self) -> usize {
        self.starts.last().copied().unwrap_or(0)
    }

    /// Number of columns, the dimension d of the embeddings.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The parts in order.
    pub fn parts(&self) -> &[Rows<'a>] {
        &self.parts
    }

    /// The part that holds row `row`, and the row's number in it.
    fn locate(&self, row: usize) -> (usize, usize) {
        let part = self.starts.partition_point(|&start| start <= row) - 1;
        (part, row - self.starts[part])
    }

    /// The stored values of one row.
    pub fn row(&self, row: usize) -> Values<'a> {
        let (part, row) = self.locate(row);
        self.parts[part].row(row)
    }

    /// The rows in `range` without a copy; None if more than one part holds them.
    pub fn span(&self, range: Range<usize>) -> Option<Rows<'a>> {
        let (part, first) = self.locate(range.start);
        let part = self.parts.get(part)?;
        let end = first + range.len();
        (end <= part.rows()).then(|| part.slice(first..end))
    }

    /// The rows in `range` (which must lie inside), as a set of its own.
    pub fn slice(&self, range: Range<usize>) -> RowSet<'a> {
        let mut parts = Vec::new();
        let mut starts = vec![0];
        for (part, &start) in self.parts.iter().zip(&self.starts) {
            let from = range.start.max(start).min(start + part.rows());
            let to = range.end.min(start + part.rows()).max(from);
            if from < to {
                starts.push(starts[starts.len() - 1] + (to - from));
                parts.push(part.slice(from - start..to - start));
            }
        }
        debug_assert_eq!(starts.last().copied().unwrap_or(0), range.len());
        RowSet { parts, starts, cols: self.cols }
    }

    /// The rows with these numbers, in this order, each a part of its own.
    pub fn pick(&self, rows: &[usize]) -> RowSet<'a> {
        let one = |&row: &usize| {
            let (part, row) = self.locate(row);
            self.parts[part].slice(row..row + 1)
        };
        let parts: Vec<Rows<'a>> = rows.iter().map(one).collect();
        RowSet { starts: (0..=parts.len()).collect(), parts, cols: self.cols }
    }

    /// Row i of `to` becomes row `which(i)` of the set, rounded to the type of `to`. Several threads copy.
    pub fn copy_rows(&self, which: &(dyn Fn(usize) -> usize + Sync), to: &mut RowsBuf) {
        let (dtype, row_bytes) = (to.dtype(), self.cols * to.dtype().size());
        to.bytes_mut().par_chunks_mut(COPY_CHUNK * row_bytes).enumerate().for_each(|(chunk, out)| {
            let mut wide = vec![0f32; self.cols];
            for (i, out) in out.chunks_exact_mut(row_bytes).enumerate() {
                self.copy_row(which(chunk * COPY_CHUNK + i), dtype, out, &mut wide);
            }
        });
    }

    /// One row rounded to `dtype`, as bytes; `wide` has room for a row.
    pub(crate) fn copy_row(&self, row: usize, dtype: Dtype, out: &mut [u8], wide: &mut [f32]) {
        let from = self.row(row);
        if from.dtype() == dtype {
            out.copy_from_slice(from.bytes());
        } else {
            from.widen(wide);
            dtype.narrow_bytes(wide, out);
        }
    }

    /// Widens the rows in `range` into `out`, row-major.
    pub fn widen(&self, range: Range<usize>, out: &mut [f32]) {
        for (row, out) in range.zip(out.chunks_exact_mut(self.cols)) {
            self.row(row).widen(out);
        }
    }
}

impl<'a> From<Rows<'a>> for RowSet<'a> {
    fn from(rows: Rows<'a>) -> RowSet<'a> {
        RowSet { starts: vec![0, rows.rows()], cols: rows.cols(), parts: vec![rows] }
    }
}
