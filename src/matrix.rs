//! Checked row-major views: [`Rows`] (one stretch of memory, one dtype), [`RowSet`] (several under one row
//! numbering, as a folder of shards is), [`RowsBuf`] (owned) and [`Matrix`] (owned F32).

mod pages;

use std::ops::Range;

use half::{bf16, f16};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::dtype::{Dtype, Element};
use crate::error::{Error, Result};

pub use pages::{PAGE, Pages};

/// Which response of a preference pair an embedding belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// The preferred response, e+.
    Chosen = 0,
    /// The other response, e-.
    Rejected = 1,
}

impl Side {
    /// Both sides, chosen first.
    pub const BOTH: [Side; 2] = [Side::Chosen, Side::Rejected];

    /// The tensor name of this side in a shard.
    pub const fn name(self) -> &'static str {
        match self {
            Side::Chosen => "chosen",
            Side::Rejected => "rejected",
        }
    }
}

/// Borrowed values of one storage type.
#[derive(Clone, Copy, Debug)]
pub enum Values<'a> {
    /// Single precision.
    F32(&'a [f32]),
    /// Half precision.
    F16(&'a [f16]),
    /// bfloat16.
    Bf16(&'a [bf16]),
}

/// Runs `$body` with `$slice` bound to the typed slice inside a [`Values`] or [`ValuesMut`].
macro_rules! for_dtype {
    ($kind:ident, $value:expr, $slice:ident => $body:expr) => {
        match $value {
            $kind::F32($slice) => $body,
            $kind::F16($slice) => $body,
            $kind::Bf16($slice) => $body,
        }
    };
}

impl<'a> Values<'a> {
    /// Number of values.
    pub fn len(&self) -> usize {
        for_dtype!(Values, self, s => s.len())
    }

    /// Whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Storage type.
    pub fn dtype(&self) -> Dtype {
        match self {
            Values::F32(_) => Dtype::F32,
            Values::F16(_) => Dtype::F16,
            Values::Bf16(_) => Dtype::Bf16,
        }
    }

    /// The values in `range`, which must lie inside.
    pub fn slice(&self, range: Range<usize>) -> Values<'a> {
        match self {
            Values::F32(s) => Values::F32(&s[range]),
            Values::F16(s) => Values::F16(&s[range]),
            Values::Bf16(s) => Values::Bf16(&s[range]),
        }
    }

    /// Views little-endian bytes as values; None where their address or number does not suit the type.
    pub fn from_bytes(dtype: Dtype, bytes: &'a [u8]) -> Option<Values<'a>> {
        match dtype {
            Dtype::F32 => bytemuck::try_cast_slice(bytes).ok().map(Values::F32),
            Dtype::F16 => bytemuck::try_cast_slice(bytes).ok().map(Values::F16),
            Dtype::Bf16 => bytemuck::try_cast_slice(bytes).ok().map(Values::Bf16),
        }
    }

    /// Index and value of the first value that is NaN or infinite.
    pub fn first_non_finite(&self) -> Option<(usize, f32)> {
        match self {
            Values::F32(v) => first_bad(v, |x| x.to_bits() & 0x7f80_0000 == 0x7f80_0000, |x| x),
            Values::F16(v) => first_bad(v, |x| x.to_bits() & 0x7c00 == 0x7c00, f16::to_f32),
            Values::Bf16(v) => first_bad(v, |x| x.to_bits() & 0x7f80 == 0x7f80, bf16::to_f32),
        }
    }

    /// Widens all values into `out` (same length).
    pub fn widen(&self, out: &mut [f32]) {
        for_dtype!(Values, self, s => Element::widen(s, out))
    }

    /// The bytes as they are stored (little endian on every supported machine).
    pub fn bytes(&self) -> &'a [u8] {
        match self {
            Values::F32(s) => bytemuck::cast_slice(s),
            Values::F16(s) => bytemuck::cast_slice(s),
            Values::Bf16(s) => bytemuck::cast_slice(s),
        }
    }
}

/// Rows that one thread copies at a time.
const COPIED: usize = 64;
/// Values that one thread looks at, at a time.
const CHECKED: usize = 1 << 16;

fn first_bad<T: Copy + Sync>(
    values: &[T],
    bad: impl Fn(T) -> bool + Sync,
    widen: impl Fn(T) -> f32,
) -> Option<(usize, f32)> {
    // A fold without an early exit becomes SIMD code; the search runs only over the one chunk that failed.
    let chunk = values
        .par_chunks(CHECKED)
        .position_first(|chunk| chunk.iter().fold(false, |any, &v| any | bad(v)))?;
    let start = chunk * CHECKED;
    let at = start + values[start..].iter().position(|&v| bad(v))?;
    Some((at, widen(values[at])))
}

/// A borrowed row-major matrix `[rows, cols]` of embeddings.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    values: Values<'a>,
    rows: usize,
    cols: usize,
}

impl<'a> Rows<'a> {
    /// Views `values` as `[rows, cols]`. Fails unless the length is exactly `rows * cols` and `cols > 0`.
    pub fn new(values: Values<'a>, rows: usize, cols: usize) -> Result<Rows<'a>> {
        let fits = cols > 0 && rows.checked_mul(cols) == Some(values.len());
        if !fits {
            return Err(Error::shape("matrix view", format!("{rows} x {cols} values"), values.len()));
        }
        Ok(Rows { values, rows, cols })
    }

    /// Views F32 values as `[len / cols, cols]`; fails if `cols` does not divide the length.
    pub fn from_f32(values: &'a [f32], cols: usize) -> Result<Rows<'a>> {
        Rows::new(Values::F32(values), values.len().checked_div(cols).unwrap_or(0), cols)
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns, the dimension d of the embeddings.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Storage type.
    pub fn dtype(&self) -> Dtype {
        self.values.dtype()
    }

    /// All values, row after row.
    pub fn values(&self) -> Values<'a> {
        self.values
    }

    /// The rows in `range`, which must lie inside.
    pub fn slice(&self, range: Range<usize>) -> Rows<'a> {
        let rows = range.len();
        Rows {
            values: self.values.slice(range.start * self.cols..range.end * self.cols),
            rows,
            cols: self.cols,
        }
    }

    /// The stored values of row `row`.
    pub fn row(&self, row: usize) -> Values<'a> {
        self.values.slice(row * self.cols..(row + 1) * self.cols)
    }
}

/// Several [`Rows`] of equal width under one row numbering; dtypes may differ between parts.
#[derive(Clone, Debug, Default)]
pub struct RowSet<'a> {
    parts: Vec<Rows<'a>>,
    /// First row of each part, and the total at the end.
    starts: Vec<usize>,
    cols: usize,
}

impl<'a> RowSet<'a> {
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

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The parts in order.
    pub fn parts(&self) -> &[Rows<'a>] {
        &self.parts
    }

    /// The stored values of one row.
    pub fn row(&self, row: usize) -> Values<'a> {
        let part = self.starts.partition_point(|&s| s <= row) - 1;
        self.parts[part].row(row - self.starts[part])
    }

    /// The rows in `range` where they stand in memory one after the other: all in one part.
    pub fn span(&self, range: Range<usize>) -> Option<Rows<'a>> {
        let part = self.starts.partition_point(|&s| s <= range.start) - 1;
        let start = self.starts[part];
        let rows = self.parts.get(part)?;
        (range.end <= start + rows.rows()).then(|| rows.slice(range.start - start..range.end - start))
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
        let parts: Vec<Rows<'a>> =
            rows.iter().map(|&r| Rows { values: self.row(r), rows: 1, cols: self.cols }).collect();
        RowSet { starts: (0..=parts.len()).collect(), parts, cols: self.cols }
    }

    /// Fills `to` with rows, rounded to its type by several threads: its row i is row `which(i)` of the set.
    pub fn copy_rows(&self, which: &(dyn Fn(usize) -> usize + Sync), to: &mut RowsBuf) {
        let (dtype, row) = (to.dtype(), self.cols * to.dtype().size());
        to.bytes_mut().par_chunks_mut(COPIED * row).enumerate().for_each(|(chunk, out)| {
            let mut wide = vec![0f32; self.cols];
            for (i, out) in out.chunks_exact_mut(row).enumerate() {
                let from = self.row(which(chunk * COPIED + i));
                if from.dtype() == dtype {
                    out.copy_from_slice(from.bytes());
                } else {
                    from.widen(&mut wide);
                    dtype.narrow_bytes(&wide, out);
                }
            }
        });
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

/// Values to be written, of one storage type.
#[derive(Debug)]
pub enum ValuesMut<'a> {
    /// Single precision.
    F32(&'a mut [f32]),
    /// Half precision.
    F16(&'a mut [f16]),
    /// bfloat16.
    Bf16(&'a mut [bf16]),
}

impl<'a> ValuesMut<'a> {
    /// The storage as bytes.
    pub fn into_bytes(self) -> &'a mut [u8] {
        for_dtype!(ValuesMut, self, s => bytemuck::cast_slice_mut(s))
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        for_dtype!(ValuesMut, self, s => s.len())
    }

    /// Whether there is no room for any value.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Storage type.
    pub fn dtype(&self) -> Dtype {
        match self {
            ValuesMut::F32(_) => Dtype::F32,
            ValuesMut::F16(_) => Dtype::F16,
            ValuesMut::Bf16(_) => Dtype::Bf16,
        }
    }

    /// Rounds `from` into the values that start at `at`.
    pub fn narrow_at(&mut self, at: usize, from: &[f32]) {
        for_dtype!(ValuesMut, self, s => Element::narrow(from, &mut s[at..at + from.len()]))
    }
}

/// An owned row-major matrix of any storage type; its values start at a page boundary.
#[derive(Clone, Debug)]
pub struct RowsBuf {
    pages: Pages,
    dtype: Dtype,
    rows: usize,
    cols: usize,
}

impl RowsBuf {
    /// A matrix of zeros.
    pub fn zeros(dtype: Dtype, rows: usize, cols: usize) -> RowsBuf {
        RowsBuf { pages: Pages::zeros(rows * cols * dtype.size()), dtype, rows, cols }
    }

    /// Rounds F32 values into a matrix of `dtype`. Fails if `cols` does not divide the length.
    pub fn from_f32(dtype: Dtype, values: &[f32], cols: usize) -> Result<RowsBuf> {
        let rows = Rows::from_f32(values, cols)?.rows();
        let mut buf = RowsBuf::zeros(dtype, rows, cols);
        buf.values_mut().narrow_at(0, values);
        Ok(buf)
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Storage type.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Changes the number of rows and keeps the allocation. Rows that come to the end hold zeros or the remains of
    /// earlier ones: write them before they are read.
    pub fn resize_rows(&mut self, rows: usize) {
        self.pages.resize(rows * self.cols * self.dtype.size());
        self.rows = rows;
    }

    /// Keeps a note about the memory as long as it is there: see [`Pages::note`].
    pub fn note(&mut self, take: impl FnOnce(&mut [u8]) -> Option<Box<dyn Send + Sync>>) {
        self.pages.note(take);
    }

    /// Borrows the matrix.
    pub fn view(&self) -> Rows<'_> {
        let values = Values::from_bytes(self.dtype, self.pages.bytes()).expect("pages suit every type");
        Rows { values, rows: self.rows, cols: self.cols }
    }

    /// Borrows the values for writing, row after row.
    pub fn values_mut(&mut self) -> ValuesMut<'_> {
        let bytes = self.pages.bytes_mut();
        match self.dtype {
            Dtype::F32 => ValuesMut::F32(bytemuck::cast_slice_mut(bytes)),
            Dtype::F16 => ValuesMut::F16(bytemuck::cast_slice_mut(bytes)),
            Dtype::Bf16 => ValuesMut::Bf16(bytemuck::cast_slice_mut(bytes)),
        }
    }

    /// The storage as bytes, row after row.
    pub fn bytes(&self) -> &[u8] {
        self.pages.bytes()
    }

    /// The storage as bytes, for reading a file into it.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.pages.bytes_mut()
    }
}

/// Equal in type, size and every bit.
impl PartialEq for RowsBuf {
    fn eq(&self, other: &RowsBuf) -> bool {
        (self.dtype, self.rows, self.cols) == (other.dtype, other.rows, other.cols)
            && self.bytes() == other.bytes()
    }
}

/// An owned row-major F32 matrix.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Matrix {
    /// Values, row after row.
    pub values: Vec<f32>,
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub cols: usize,
}

impl Matrix {
    /// A matrix of zeros.
    pub fn zeros(rows: usize, cols: usize) -> Matrix {
        Matrix { values: vec![0.0; rows * cols], rows, cols }
    }

    /// Takes `values` as `[rows, cols]`. Fails unless the length is `rows * cols`.
    pub fn new(values: Vec<f32>, rows: usize, cols: usize) -> Result<Matrix> {
        if rows.checked_mul(cols) != Some(values.len()) {
            return Err(Error::shape("matrix", format!("{rows} x {cols} values"), values.len()));
        }
        Ok(Matrix { values, rows, cols })
    }

    /// One row.
    pub fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.cols..(row + 1) * self.cols]
    }

    /// One row, for writing.
    pub fn row_mut(&mut self, row: usize) -> &mut [f32] {
        &mut self.values[row * self.cols..(row + 1) * self.cols]
    }
}
