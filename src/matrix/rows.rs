//! Matrices in one piece: [`Rows`] borrows, [`RowsBuf`] owns any storage type, [`Matrix`] owns F32.

use std::ops::Range;

use super::pages::Pages;
use super::values::{Values, ValuesMut};
use crate::dtype::Dtype;
use crate::error::{Error, Result};

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

    /// Changes the number of rows, within the allocation where there is room. New rows hold zeros or what was
    /// there before: write them before they are read.
    pub(crate) fn resize_rows(&mut self, rows: usize) {
        self.pages.resize(rows * self.cols * self.dtype.size());
        self.rows = rows;
    }

    /// Attaches a guard to the memory, such as its registration with a GPU driver.
    pub(crate) fn attach_guard(&mut self, take: impl FnOnce(&mut [u8]) -> Option<Box<dyn Send + Sync>>) {
        self.pages.attach_guard(take);
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
