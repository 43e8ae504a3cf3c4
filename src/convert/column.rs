//! Columns: rows of one shape and type, read in order, a block at a time, from any format.

use std::path::{Path, PathBuf};

use half::{bf16, f16};

use crate::dtype::{Dtype, Element};
use crate::error::{Error, Result};

/// Bytes of a column that are read at a time.
pub(super) const BLOCK_BYTES: usize = 8 << 20;

/// Element type of a column. Integers of every width are read as I64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    F16,
    Bf16,
    F32,
    F64,
    I64,
}

impl Kind {
    pub const FLOATS: &str = "F16, BF16, F32 or F64";

    pub fn size(self) -> usize {
        match self {
            Kind::F16 | Kind::Bf16 => 2,
            Kind::F32 => 4,
            Kind::F64 | Kind::I64 => 8,
        }
    }

    pub fn is_float(self) -> bool {
        self != Kind::I64
    }

    pub fn name(self) -> &'static str {
        match self {
            Kind::F16 => "F16",
            Kind::Bf16 => "BF16",
            Kind::F32 => "F32",
            Kind::F64 => "F64",
            Kind::I64 => "I64",
        }
    }
}

/// How values of a kind are called in a shard.
impl From<Kind> for safetensors::Dtype {
    fn from(kind: Kind) -> safetensors::Dtype {
        match kind {
            Kind::F16 => safetensors::Dtype::F16,
            Kind::Bf16 => safetensors::Dtype::BF16,
            Kind::F32 => safetensors::Dtype::F32,
            Kind::F64 => safetensors::Dtype::F64,
            Kind::I64 => safetensors::Dtype::I64,
        }
    }
}

impl From<Dtype> for Kind {
    fn from(dtype: Dtype) -> Kind {
        match dtype {
            Dtype::F16 => Kind::F16,
            Dtype::Bf16 => Kind::Bf16,
            Dtype::F32 => Kind::F32,
        }
    }
}

/// What a column holds in one file: `rows` rows, each of shape `tail` (nothing for single values).
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ColumnInfo {
    pub rows: u64,
    pub tail: Vec<usize>,
    pub kind: Kind,
}

impl ColumnInfo {
    /// Values per row.
    pub fn width(&self) -> usize {
        self.tail.iter().product()
    }

    /// Fails unless the bytes of the column can be counted, so that no later product of its sizes overflows.
    pub fn check(self, path: &Path, name: &str) -> Result<ColumnInfo> {
        let bytes = self.tail.iter().try_fold(self.kind.size(), |n, &axis| n.checked_mul(axis));
        let all = bytes.and_then(|n| usize::try_from(self.rows).ok()?.checked_mul(n));
        match all.filter(|&n| n <= isize::MAX as usize) {
            Some(_) => Ok(self),
            None => {
                let what = format!("{}: column `{name}`", path.display());
                let found = format!("{} rows of shape {:?}", self.rows, self.tail);
                Err(Error::shape(what, "a size that memory can address", found))
            }
        }
    }
}

/// Values of one type.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Buffer {
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
    F32(Vec<f32>),
    F64(Vec<f64>),
    I64(Vec<i64>),
}

/// Runs the same code on whichever vector a buffer holds.
macro_rules! each {
    ($buffer:expr, $v:ident => $body:expr) => {
        match $buffer {
            Buffer::F16($v) => $body,
            Buffer::Bf16($v) => $body,
            Buffer::F32($v) => $body,
            Buffer::F64($v) => $body,
            Buffer::I64($v) => $body,
        }
    };
}

impl Buffer {
    pub fn new(kind: Kind) -> Buffer {
        match kind {
            Kind::F16 => Buffer::F16(Vec::new()),
            Kind::Bf16 => Buffer::Bf16(Vec::new()),
            Kind::F32 => Buffer::F32(Vec::new()),
            Kind::F64 => Buffer::F64(Vec::new()),
            Kind::I64 => Buffer::I64(Vec::new()),
        }
    }

    pub fn kind(&self) -> Kind {
        match self {
            Buffer::F16(_) => Kind::F16,
            Buffer::Bf16(_) => Kind::Bf16,
            Buffer::F32(_) => Kind::F32,
            Buffer::F64(_) => Kind::F64,
            Buffer::I64(_) => Kind::I64,
        }
    }

    pub fn len(&self) -> usize {
        each!(self, v => v.len())
    }

    pub fn clear(&mut self) {
        each!(self, v => v.clear());
    }

    /// The values as they lie in memory: little endian on every machine that this crate runs on.
    pub fn bytes(&self) -> &[u8] {
        each!(self, v => bytemuck::cast_slice(v))
    }

    /// Makes room for `values` more, as zeros, and lends their bytes.
    pub fn grow(&mut self, values: usize) -> &mut [u8] {
        let old = self.len();
        match self {
            Buffer::F16(v) => v.resize(old + values, f16::ZERO),
            Buffer::Bf16(v) => v.resize(old + values, bf16::ZERO),
            Buffer::F32(v) => v.resize(old + values, 0.0),
            Buffer::F64(v) => v.resize(old + values, 0.0),
            Buffer::I64(v) => v.resize(old + values, 0),
        }
        each!(self, v => bytemuck::cast_slice_mut(&mut v[old..]))
    }

    /// Index and value of the first NaN or infinity.
    fn first_non_finite(&self) -> Option<(usize, f64)> {
        /// The fold has no early exit, so that it becomes SIMD code; the search runs only where it found one.
        fn find<T: Copy>(v: &[T], bad: impl Fn(T) -> bool, wide: impl Fn(T) -> f64) -> Option<(usize, f64)> {
            if !v.iter().fold(false, |any, &x| any | bad(x)) {
                return None;
            }
            v.iter().position(|&x| bad(x)).map(|at| (at, wide(v[at])))
        }
        match self {
            Buffer::F16(v) => find(v, |x| x.to_bits() & 0x7c00 == 0x7c00, f16::to_f64),
            Buffer::Bf16(v) => find(v, |x| x.to_bits() & 0x7f80 == 0x7f80, bf16::to_f64),
            Buffer::F32(v) => find(v, |x| !x.is_finite(), f64::from),
            Buffer::F64(v) => find(v, |x| !x.is_finite(), |x| x),
            Buffer::I64(_) => None,
        }
    }

    /// Appends the values as another kind, rounded to nearest, ties to even, once. What is too large becomes
    /// infinite. I64 becomes I64 (groups) or F64 (scores).
    fn append_to(&self, out: &mut Buffer) {
        fn narrow<T: Element>(wide: &[f32], out: &mut Vec<T>) {
            let old = out.len();
            out.resize(old + wide.len(), T::zeroed());
            T::narrow(wide, &mut out[old..]);
        }
        let wide = |buffer: &Buffer| -> Vec<f32> {
            match buffer {
                Buffer::F16(v) => widened(v),
                Buffer::Bf16(v) => widened(v),
                Buffer::F32(v) => v.clone(),
                Buffer::F64(v) => v.iter().map(|&x| round_to_odd(x)).collect(),
                Buffer::I64(v) => v.iter().map(|&x| round_to_odd(x as f64)).collect(),
            }
        };
        match (self, out) {
            (Buffer::F16(v), Buffer::F16(o)) => o.extend_from_slice(v),
            (Buffer::Bf16(v), Buffer::Bf16(o)) => o.extend_from_slice(v),
            (Buffer::F32(v), Buffer::F32(o)) => o.extend_from_slice(v),
            (Buffer::F64(v), Buffer::F64(o)) => o.extend_from_slice(v),
            (Buffer::I64(v), Buffer::I64(o)) => o.extend_from_slice(v),
            (Buffer::F64(v), Buffer::F32(o)) => o.extend(v.iter().map(|&x| x as f32)),
            (Buffer::I64(v), Buffer::F64(o)) => o.extend(v.iter().map(|&x| x as f64)),
            (from, Buffer::F64(o)) => o.extend(wide(from).iter().map(|&x| f64::from(x))),
            (from, Buffer::F16(o)) => narrow(&wide(from), o),
            (from, Buffer::Bf16(o)) => narrow(&wide(from), o),
            (from, Buffer::F32(o)) => o.extend(wide(from)),
            (from, Buffer::I64(_)) => unreachable!("{:?} columns are refused as integers", from.kind()),
        }
    }
}

fn widened<T: Element>(from: &[T]) -> Vec<f32> {
    let mut wide = vec![0f32; from.len()];
    T::widen(from, &mut wide);
    wide
}

/// Rounds to F32 so that a second rounding, to a type of at most 22 significant bits, gives what a single one would:
/// towards zero, with the last bit set if anything was cut off. A plain cast would round to nearest twice.
fn round_to_odd(x: f64) -> f32 {
    let near = x as f32;
    if f64::from(near) == x || !near.is_finite() {
        return near;
    }
    let down = if f64::from(near).abs() > x.abs() { near.to_bits() - 1 } else { near.to_bits() };
    f32::from_bits(down | 1)
}

/// Reads the rows of one column of one file in order.
pub(super) trait ColumnReader {
    /// Appends the next `rows` rows to `out`, which has the kind of the column. Fails if there are fewer.
    fn read(&mut self, rows: usize, out: &mut Buffer) -> Result<()>;

    /// Leaves out the next `rows` rows, of which there are as many.
    fn skip(&mut self, rows: u64) -> Result<()>;
}

/// A column of one file, with the name and path that messages need.
pub(super) struct FileColumn {
    pub path: PathBuf,
    pub name: String,
    pub info: ColumnInfo,
    reader: Box<dyn ColumnReader + Send>,
    /// Next row.
    at: u64,
    raw: Buffer,
}

impl FileColumn {
    pub fn new(
        path: &Path,
        name: &str,
        info: ColumnInfo,
        reader: Box<dyn ColumnReader + Send>,
    ) -> FileColumn {
        let raw = Buffer::new(info.kind);
        FileColumn { path: path.to_path_buf(), name: name.to_string(), info, reader, at: 0, raw }
    }

    /// Appends the next `rows` rows to `out` in its type. Fails on a value that is not finite, and on one that is
    /// too large for that type, with the file, row and column.
    pub fn read(&mut self, rows: usize, out: &mut Buffer) -> Result<()> {
        self.raw.clear();
        self.reader.read(rows, &mut self.raw)?;
        let width = self.info.width();
        if self.raw.len() != rows * width {
            let what = format!("{}: values of column `{}`", self.path.display(), self.name);
            return Err(Error::shape(what, rows * width, self.raw.len()));
        }
        let place = |at: usize| (self.at + (at / width) as u64, (at % width) as u64);
        if let Some((at, value)) = self.raw.first_non_finite() {
            let (row, column) = place(at);
            let (path, tensor) = (self.path.clone(), self.name.clone());
            return Err(Error::NonFinite { path, tensor, row, column, value: value as f32 });
        }
        let before = out.len();
        self.raw.append_to(out);
        if out.kind() != self.raw.kind() {
            // Earlier values were checked when they were appended.
            if let Some(at) = overflow(out, before) {
                let (row, column) = place(at);
                let mut value = Buffer::F64(Vec::new());
                self.raw.append_to(&mut value);
                let Buffer::F64(values) = value else { unreachable!("it was made as F64") };
                let what =
                    format!("{}: column `{}`, row {row}, value {column}", self.path.display(), self.name);
                let expected = format!("a value within the range of {}", out.kind().name());
                return Err(Error::shape(what, expected, values[at]));
            }
        }
        self.at += rows as u64;
        Ok(())
    }

    /// Leaves out the next `rows` rows.
    pub fn skip(&mut self, rows: u64) -> Result<()> {
        self.at += rows;
        self.reader.skip(rows)
    }
}

/// Where, from value `from` on, a conversion ended in infinity.
fn overflow(out: &Buffer, from: usize) -> Option<usize> {
    match out {
        Buffer::F16(v) => v[from..].iter().position(|x| !x.is_finite()),
        Buffer::Bf16(v) => v[from..].iter().position(|x| !x.is_finite()),
        Buffer::F32(v) => v[from..].iter().position(|x| !x.is_finite()),
        Buffer::F64(v) => v[from..].iter().position(|x| !x.is_finite()),
        Buffer::I64(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn converted(value: f64, kind: Kind) -> Buffer {
        let mut out = Buffer::new(kind);
        Buffer::F64(vec![value]).append_to(&mut out);
        out
    }

    #[test]
    fn f64_is_rounded_once() {
        // Half way between two F16 values is 1 + 2^-11: a little more goes up, though F32 cannot tell the two apart.
        let half = 1.0 + 2f64.powi(-11);
        let up = f16::from_bits(f16::ONE.to_bits() + 1);
        assert_eq!(converted(half, Kind::F16), Buffer::F16(vec![f16::ONE]), "ties to even");
        assert_eq!(converted(half + 2f64.powi(-40), Kind::F16), Buffer::F16(vec![up]));
        assert_eq!(converted(half - 2f64.powi(-40), Kind::F16), Buffer::F16(vec![f16::ONE]));
        let half = -(1.0 + 2f64.powi(-8));
        let up = bf16::from_bits(bf16::NEG_ONE.to_bits() + 1);
        assert_eq!(converted(half - 2f64.powi(-40), Kind::Bf16), Buffer::Bf16(vec![up]));
        assert_eq!(converted(half, Kind::Bf16), Buffer::Bf16(vec![bf16::NEG_ONE]));
        // Below the smallest subnormal of F32, and beyond the largest value.
        assert_eq!(converted(1e-60, Kind::F32), Buffer::F32(vec![0.0]));
        assert_eq!(converted(65_519.999, Kind::F16), Buffer::F16(vec![f16::MAX]));
        assert_eq!(converted(65_520.0, Kind::F16), Buffer::F16(vec![f16::INFINITY]));
    }

    #[test]
    fn f64_halves_agree_with_exact_arithmetic() {
        // Every positive finite F16 and its successor: around their midpoint the nearest of the two must win.
        for bits in 0..f16::MAX.to_bits() {
            let (low, high) = (f16::from_bits(bits), f16::from_bits(bits + 1));
            let middle = (low.to_f64() + high.to_f64()) / 2.0;
            let tiny = middle * 2f64.powi(-45);
            assert_eq!(converted(middle - tiny, Kind::F16), Buffer::F16(vec![low]), "{bits}");
            assert_eq!(converted(middle + tiny, Kind::F16), Buffer::F16(vec![high]), "{bits}");
        }
    }
}
