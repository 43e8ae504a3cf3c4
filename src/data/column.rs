//! One tensor over one or more files, read as one matrix: the part that every reader of embeddings is made of.
//!
//! Rows of a mapped file are borrowed where they are aligned for their type, else copied; a range that reaches over
//! several files is a list of such parts.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::Dtype as FileDtype;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use super::expand::expand;
use super::format::{TensorInfo, hex};
use super::map::Io;
use super::place::at_once;
use super::source::Source;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::matrix::{RowSet, Rows, RowsBuf, Values};

/// Bytes that a pass over all data holds at a time.
const BLOCK_BYTES: usize = 16 << 20;
const EMBEDDING_DTYPES: &str = "F32, F16 or BF16";

/// One file of a set.
#[derive(Clone, Debug, PartialEq)]
pub struct ShardFile {
    /// Where it is.
    pub path: PathBuf,
    /// Rows of each of its tensors.
    pub rows: usize,
    /// Storage type of its embeddings.
    pub dtype: Dtype,
    /// Length of the file.
    pub bytes: u64,
}

impl ShardFile {
    /// The paths of files.
    pub fn paths(files: &[ShardFile]) -> Vec<&Path> {
        files.iter().map(|file| file.path.as_path()).collect()
    }
}

/// What identifies the data of one file, wherever the file is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceFile {
    /// File name without its folder.
    pub file: String,
    /// Rows of each tensor.
    pub rows: u64,
    /// Storage type.
    pub dtype: String,
    /// Values per row.
    pub dim: u64,
    /// Length of the file.
    pub bytes: u64,
    /// xxh3-128 over the payload of the tensors that were read (of a pair set: chosen, then rejected), as 32
    /// hexadecimal digits.
    pub xxh3: String,
}

/// The result of a pass over all data: every value is finite.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scan {
    /// The files in order.
    pub sources: Vec<SourceFile>,
}

/// Consecutive rows of a set, borrowed from memory maps where possible, else copied.
#[derive(Debug)]
pub struct RowBlock<'a>(Vec<BlockRows<'a>>);

/// The rows of a block that are in one file.
#[derive(Debug)]
enum BlockRows<'a> {
    Borrowed(Rows<'a>),
    Owned(RowsBuf),
}

impl RowBlock<'_> {
    /// The rows, numbered from 0 within the block.
    pub fn view(&self) -> RowSet<'_> {
        let parts = self.0.iter().map(|part| match part {
            BlockRows::Borrowed(rows) => *rows,
            BlockRows::Owned(buf) => buf.view(),
        });
        RowSet::new(parts.collect()).expect("a block has a part, and its parts have one width")
    }

    /// Whether every row is borrowed: nothing was copied.
    pub fn is_borrowed(&self) -> bool {
        self.0.iter().all(|part| matches!(part, BlockRows::Borrowed(_)))
    }
}

/// Opens the files that `sources` stand for, in order.
pub(super) fn open_all(sources: &[String], io: Io) -> Result<Vec<Arc<Source>>> {
    at_once(&expand(sources)?, |path| Source::open(path, io).map(Arc::new))
}

/// One tensor's rows in one file.
#[derive(Debug)]
struct FileTensor {
    source: Arc<Source>,
    /// First byte in the file.
    at: u64,
    rows: usize,
    dtype: Dtype,
}

/// The tensor called `name` in each of several files, joined in order.
#[derive(Debug)]
pub(super) struct Column {
    name: String,
    tensors: Vec<FileTensor>,
    /// First row of each file, and the total at the end.
    starts: Vec<usize>,
    dim: usize,
}

impl Column {
    /// Takes tensor `name`, of `rank` axes, from every file: the last axis is the width, the others together
    /// number the rows. Fails on a missing tensor, another rank or type, no columns, widths that differ
    /// between files, or no row at all.
    pub fn new(sources: &[Arc<Source>], name: &str, rank: usize) -> Result<Column> {
        let mut column = Column { name: name.into(), tensors: Vec::new(), starts: vec![0], dim: 0 };
        let mut total = 0usize;
        for source in sources {
            let info = source.header.tensor(&source.path, name)?;
            check_rank(&source.path, info, rank)?;
            let dtype = embedding_dtype(&source.path, info)?;
            let (rows, dim) = (info.shape[..rank - 1].iter().product(), info.shape[rank - 1]);
            if dim == 0 {
                let what = format!("{}: columns of tensor `{name}`", source.path.display());
                return Err(Error::TooFew { what, needed: 1, found: 0 });
            }
            if let Some(first) = column.tensors.first().filter(|_| dim != column.dim) {
                let what = format!("{}: columns of tensor `{name}`", source.path.display());
                let expected = format!("{} as in {}", column.dim, first.source.path.display());
                return Err(Error::shape(what, expected, dim));
            }
            column.dim = dim;
            // Each file's rows fit the address space, but their sum over sparse files may not.
            total = total.checked_add(rows).ok_or_else(|| {
                Error::shape(format!("{}: rows", source.path.display()), "a countable number", "more")
            })?;
            column.starts.push(total);
            let at = info.range.start as u64;
            column.tensors.push(FileTensor { source: source.clone(), at, rows, dtype });
        }
        if total == 0 {
            let path = sources.first().map_or(String::new(), |s| format!("{}: ", s.path.display()));
            return Err(Error::TooFew {
                what: format!("{path}rows of tensor `{name}`"),
                needed: 1,
                found: 0,
            });
        }
        Ok(column)
    }

    /// Fails unless `other`, which was made from the same files, has the same rows, width and type in each.
    pub fn require_same_shape(&self, other: &Column) -> Result<()> {
        for (a, b) in self.tensors.iter().zip(&other.tensors) {
            let path = &b.source.path;
            if (a.rows, self.dim) != (b.rows, other.dim) {
                let what = format!("{}: tensor `{}`", path.display(), other.name);
                let expected = format!("{:?} as in `{}`", [a.rows, self.dim], self.name);
                return Err(Error::shape(what, expected, format!("{:?}", [b.rows, other.dim])));
            }
            if a.dtype != b.dtype {
                return Err(Error::WrongDtype {
                    path: path.clone(),
                    tensor: other.name.clone(),
                    expected: "the dtype of the other side",
                    found: b.dtype.to_string(),
                });
            }
        }
        Ok(())
    }

    pub fn len(&self) -> usize {
        self.starts.last().copied().unwrap_or(0)
    }

    pub fn dim(&self) -> usize {
        self.dim
    }

    pub fn files(&self) -> Vec<ShardFile> {
        let file = |s: &FileTensor| ShardFile {
            path: s.source.path.clone(),
            rows: s.rows,
            dtype: s.dtype,
            bytes: s.source.len,
        };
        self.tensors.iter().map(file).collect()
    }

    /// As [`PairSet::versions`](super::PairSet::versions).
    pub fn versions(&self) -> Option<Vec<String>> {
        self.tensors.iter().map(|tensor| tensor.source.version()).collect()
    }

    /// Fails with [`Error::Changed`] if a file is no longer the one that was opened.
    pub fn require_unchanged(&self) -> Result<()> {
        self.tensors.iter().try_for_each(|tensor| tensor.source.require_unchanged())
    }

    /// Asks the system to have the rows in `range` in memory soon, where files are mapped.
    pub fn prefetch(&self, range: Range<usize>) {
        self.for_bytes(range, Source::prefetch);
    }

    /// Takes the rows in `range` out of this process's memory, where files are mapped; they come back when they are read.
    pub fn release(&self, range: Range<usize>) {
        self.for_bytes(range, Source::release);
    }

    /// Tells `each` where the bytes of the rows in `range` are.
    fn for_bytes(&self, range: Range<usize>, each: impl Fn(&Source, u64, usize)) {
        for (tensor, &start) in self.tensors.iter().zip(&self.starts) {
            let (from, to) = (range.start.max(start), range.end.min(start + tensor.rows));
            if from < to {
                let row = self.dim * tensor.dtype.size();
                each(&tensor.source, tensor.at + ((from - start) * row) as u64, (to - from) * row);
            }
        }
    }

    /// The rows in `range`; fails if it reaches past the end or a file cannot be read.
    pub fn rows(&self, range: Range<usize>) -> Result<RowBlock<'_>> {
        if range.start > range.end || range.end > self.len() {
            let what = format!("rows of tensor `{}`", self.name);
            return Err(Error::shape(what, format!("a range in 0..{}", self.len()), format!("{range:?}")));
        }
        let mut parts = Vec::new();
        for (tensor, &start) in self.tensors.iter().zip(&self.starts) {
            let from = range.start.max(start);
            let to = range.end.min(start + tensor.rows);
            if from < to {
                parts.push(tensor.rows(from - start..to - start, self.dim)?);
            }
        }
        if parts.is_empty() {
            parts.push(BlockRows::Owned(RowsBuf::zeros(self.tensors[0].dtype, 0, self.dim)));
        }
        Ok(RowBlock(parts))
    }
}

impl FileTensor {
    fn rows(&self, range: Range<usize>, dim: usize) -> Result<BlockRows<'_>> {
        let row_bytes = dim * self.dtype.size();
        let at = self.at + (range.start * row_bytes) as u64;
        let mapped = self.source.mapped(at, range.len() * row_bytes);
        if let Some(values) = mapped.and_then(|bytes| Values::from_bytes(self.dtype, bytes)) {
            return Ok(BlockRows::Borrowed(Rows::new(values, range.len(), dim)?));
        }
        let mut buf = RowsBuf::zeros(self.dtype, range.len(), dim);
        self.source.read(at, buf.bytes_mut())?;
        Ok(BlockRows::Owned(buf))
    }

    /// Feeds the bytes of all rows to `hash` and finds the first value among the first `limit` rows that is
    /// not finite: its row, column and value.
    fn scan(
        &self,
        dim: usize,
        limit: usize,
        hash: &mut Xxh3,
        interrupt: &Interrupt,
    ) -> Result<Option<(usize, usize, f32)>> {
        let step = (BLOCK_BYTES / (dim * self.dtype.size())).max(1);
        let mut worst = None;
        for start in (0..self.rows).step_by(step) {
            interrupt.check()?;
            let part = self.rows(start..self.rows.min(start + step), dim)?;
            let values = match &part {
                BlockRows::Borrowed(rows) => rows.values(),
                BlockRows::Owned(buf) => buf.view().values(),
            };
            let wanted = worst.is_none() && start < limit;
            let find = || if wanted { values.first_non_finite() } else { None };
            let (found, ()) = rayon::join(find, || hash.update(values.bytes()));
            if let Some((at, value)) = found.filter(|(at, _)| start + at / dim < limit) {
                worst = Some((start + at / dim, at % dim, value));
            }
            let row_bytes = dim * self.dtype.size();
            self.source.release(self.at + (start * row_bytes) as u64, step * row_bytes);
        }
        Ok(worst)
    }
}

/// One pass over all rows of columns that share their files: checks that every value is finite and takes the
/// fingerprint of each file. The error names the lowest file, then row, then column of this list.
pub(super) fn scan(columns: &[&Column], interrupt: &Interrupt) -> Result<Scan> {
    let Some(first) = columns.first() else { return Ok(Scan { sources: Vec::new() }) };
    let mut sources = Vec::new();
    for (i, file) in first.tensors.iter().enumerate() {
        let mut hash = Xxh3::new();
        let mut error = None;
        let mut limit = usize::MAX;
        for column in columns {
            if let Some((row, at, value)) = column.tensors[i].scan(column.dim, limit, &mut hash, interrupt)? {
                limit = row;
                error = Some(Error::NonFinite {
                    path: file.source.path.clone(),
                    tensor: column.name.clone(),
                    row: row as u64,
                    column: at as u64,
                    value,
                });
            }
        }
        if let Some(error) = error {
            return Err(error);
        }
        let name = file.source.path.file_name().unwrap_or_default();
        sources.push(SourceFile {
            file: name.to_string_lossy().into_owned(),
            rows: file.rows as u64,
            dtype: file.dtype.to_string(),
            dim: first.dim as u64,
            bytes: file.source.len,
            xxh3: hex(hash.digest128()),
        });
    }
    Ok(Scan { sources })
}

/// Fails unless `info` has `rank` axes.
pub(super) fn check_rank(path: &Path, info: &TensorInfo, rank: usize) -> Result<()> {
    if info.shape.len() != rank {
        let what = format!("{}: axes of tensor `{}`", path.display(), info.name);
        return Err(Error::shape(what, rank, format!("{} ({:?})", info.shape.len(), info.shape)));
    }
    Ok(())
}

fn embedding_dtype(path: &Path, info: &TensorInfo) -> Result<Dtype> {
    match info.dtype {
        FileDtype::F32 => Ok(Dtype::F32),
        FileDtype::F16 => Ok(Dtype::F16),
        FileDtype::BF16 => Ok(Dtype::Bf16),
        _ => Err(wrong_dtype(path, info, EMBEDDING_DTYPES)),
    }
}

pub(super) fn wrong_dtype(path: &Path, info: &TensorInfo, expected: &'static str) -> Error {
    let (path, tensor) = (path.to_path_buf(), info.name.clone());
    Error::WrongDtype { path, tensor, expected, found: info.dtype.to_string() }
}
