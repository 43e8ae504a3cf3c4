//! Export: tensors of shards become the columns of one Parquet file, or one of them a .npy file.

use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Instant;

use ::parquet::arrow::ArrowWriter;
use ::parquet::basic::{Compression as Codec, ZstdLevel};
use ::parquet::file::properties::{EnabledStatistics, WriterProperties};
use arrow_array::types::{ArrowPrimitiveType, Float16Type, Float32Type, Float64Type, Int64Type};
use arrow_array::{ArrayRef, FixedSizeListArray, PrimitiveArray, RecordBatch};
use arrow_schema::{DataType, Field, Schema};
use serde::{Deserialize, Serialize};

use super::column::{BLOCK_BYTES, Buffer, Kind};
use super::npy;
use super::sources::{Column, ColumnSource, Format, column_names};
use crate::data::{AtomicFile, Io, require_absent, require_apart};
use crate::error::{Error, Result};

/// Bytes of a row group, before compression, where the user does not say otherwise. One is held in memory.
const ROW_GROUP_BYTES: usize = 64 << 20;

/// Format of the file that is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExportFormat {
    /// Parquet: `[n]` as numbers, `[n, d]` as fixed-size lists, `[n, N, d]` as fixed-size lists of them.
    Parquet,
    /// One tensor as .npy.
    Npy,
}

impl FromStr for ExportFormat {
    type Err = Error;

    fn from_str(text: &str) -> Result<ExportFormat> {
        match text {
            "parquet" => Ok(ExportFormat::Parquet),
            "npy" => Ok(ExportFormat::Npy),
            _ => Err(Error::argument("format", "parquet or npy", text)),
        }
    }
}

impl ExportFormat {
    /// The format by a file's extension.
    pub fn of(path: &Path) -> Option<ExportFormat> {
        match Format::of(path) {
            Some(Format::Parquet) => Some(ExportFormat::Parquet),
            Some(Format::Npy) => Some(ExportFormat::Npy),
            _ => None,
        }
    }
}

/// How the pages of a Parquet file are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Zstandard, level 1.
    #[default]
    Zstd,
    /// Snappy.
    Snappy,
    /// None.
    None,
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Compression::Zstd => "zstd",
            Compression::Snappy => "snappy",
            Compression::None => "none",
        })
    }
}

impl FromStr for Compression {
    type Err = Error;

    fn from_str(text: &str) -> Result<Compression> {
        let found = [Compression::Zstd, Compression::Snappy, Compression::None];
        let found = found.into_iter().find(|c| c.to_string() == text);
        found.ok_or_else(|| Error::argument("compression", "zstd, snappy or none", text))
    }
}

/// A tensor, and what its column is called: `chosen`, or `chosen=preferred` for another name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportColumn {
    /// Tensor in the shards.
    pub tensor: String,
    /// Column in the file.
    pub column: String,
}

impl FromStr for ExportColumn {
    type Err = Error;

    fn from_str(text: &str) -> Result<ExportColumn> {
        let (tensor, column) = text.split_once('=').unwrap_or((text, text));
        if tensor.is_empty() || column.is_empty() {
            return Err(Error::argument("columns", "TENSOR or TENSOR=COLUMN", text));
        }
        Ok(ExportColumn { tensor: tensor.into(), column: column.into() })
    }
}

/// What to export, and where to.
#[derive(Clone, Debug)]
pub struct ExportJob {
    /// Shards: files, folders (every `*.safetensors` directly inside, by name) and glob patterns.
    pub sources: Vec<String>,
    /// Which tensors; empty for all of the first shard. All have one length.
    pub columns: Vec<ExportColumn>,
    /// The file to write.
    pub out: PathBuf,
    /// Its format.
    pub format: ExportFormat,
    /// Compression of Parquet.
    pub compression: Compression,
    /// Rows of a row group of Parquet; `None` for about 64 MiB. The memory needed grows with it.
    pub row_group_rows: Option<usize>,
    /// Whether a file that is there is replaced.
    pub overwrite: bool,
}

/// What an export did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ExportSummary {
    /// Rows.
    pub rows: u64,
    /// Names of the columns.
    pub columns: Vec<String>,
    /// Length of the file.
    pub bytes: u64,
    /// Seconds it took.
    pub seconds: f64,
}

/// Writes tensors of shards as one file, whole or not at all. `on_progress` is told the
/// rows that are done and all rows.
///
/// F32, F16 and F64 stay what they are; BF16, which neither Arrow nor NumPy has, becomes F32, and I32 becomes I64: both
/// exactly.
///
/// # Errors
/// Shards that cannot be read, lack a tensor or hold NaN or infinity; tensors of different lengths; several for .npy;
/// an output that is there, unless `overwrite`.
pub fn export(job: &ExportJob, on_progress: &mut dyn FnMut(u64, u64)) -> Result<ExportSummary> {
    let start = Instant::now();
    if !job.overwrite {
        require_absent(&job.out, "`overwrite` replaces it")?;
    }
    let format = Some(Format::Safetensors);
    let mut wanted = job.columns.clone();
    if wanted.is_empty() {
        let all = column_names(&job.sources, format)?.into_iter();
        wanted = all.map(|name| ExportColumn { tensor: name.clone(), column: name }).collect();
    }
    let names: Vec<String> = wanted.iter().map(|c| c.column.clone()).collect();
    if let Some(twice) = names.iter().enumerate().find(|(i, name)| names[..*i].contains(name)) {
        return Err(Error::argument("columns", "columns of different names", format!("`{}` twice", twice.1)));
    }
    let mut columns = Vec::new();
    for name in &wanted {
        let source = ColumnSource { files: job.sources.clone(), format, name: name.tensor.clone() };
        let column = Column::open(&source, Io::Read)?;
        if let Some(first) = columns.first() {
            column.require_rows_of(first)?;
        }
        columns.push(column);
    }
    let Some(rows) = columns.first().map(Column::rows) else {
        let what = format!("{}: tensors", job.sources.join(", "));
        return Err(Error::TooFew { what, needed: 1, found: 0 });
    };
    require_apart([&job.out], &columns.iter().flat_map(Column::paths).collect::<Vec<_>>())?;
    let out = AtomicFile::create(&job.out)?;
    match job.format {
        ExportFormat::Parquet => parquet(job, &out, &names, &mut columns, rows, on_progress)?,
        ExportFormat::Npy => {
            let [column] = columns.as_mut_slice() else {
                let found = format!("{} ({})", names.len(), names.join(", "));
                return Err(Error::argument("columns", "one tensor for a .npy file", found));
            };
            array(job, &out, column, rows, on_progress)?;
        }
    }
    let bytes = out.file().metadata().map_err(Error::io("write", &job.out))?.len();
    out.commit()?;
    Ok(ExportSummary { rows, columns: names, bytes, seconds: start.elapsed().as_secs_f64() })
}

/// The type in which a column is written.
fn written(kind: Kind) -> Kind {
    if kind == Kind::Bf16 { Kind::F32 } else { kind }
}

/// Bytes of a row of a column as it is written.
fn row_bytes(column: &Column) -> usize {
    column.tail().iter().product::<usize>() * written(column.kind()).size()
}

fn array(
    job: &ExportJob,
    out: &AtomicFile,
    column: &mut Column,
    rows: u64,
    on_progress: &mut dyn FnMut(u64, u64),
) -> Result<()> {
    let kind = written(column.kind());
    let mut shape = vec![rows];
    shape.extend(column.tail().iter().map(|&axis| axis as u64));
    let mut file = out.file();
    let mut write = |bytes: &[u8]| file.write_all(bytes).map_err(Error::io("write", &job.out));
    write(&npy::header(kind, &shape))?;
    let block = (BLOCK_BYTES / row_bytes(column).max(1)).max(1) as u64;
    let mut buffer = Buffer::new(kind);
    let mut done = 0;
    while done < rows {
        let count = block.min(rows - done);
        buffer.clear();
        column.read(count as usize, &mut buffer)?;
        write(buffer.bytes())?;
        done += count;
        on_progress(done, rows);
    }
    Ok(())
}

fn parquet(
    job: &ExportJob,
    out: &AtomicFile,
    names: &[String],
    columns: &mut [Column],
    rows: u64,
    on_progress: &mut dyn FnMut(u64, u64),
) -> Result<()> {
    let row: usize = columns.iter().map(row_bytes).sum();
    let group = match job.row_group_rows {
        Some(0) => return Err(Error::argument("row_group_rows", "1 or more", 0)),
        Some(rows) => rows,
        None => (ROW_GROUP_BYTES / row.max(1)).clamp(1, 1 << 20),
    };
    let fields: Result<Vec<Field>> = names
        .iter()
        .zip(columns.iter())
        .map(|(name, column)| Ok(Field::new(name, data_type(&job.out, name, column)?, false)))
        .collect();
    let schema = Arc::new(Schema::new(fields?));
    let properties = WriterProperties::builder()
        .set_max_row_group_row_count(Some(group))
        // Embeddings hardly repeat, so that a dictionary saves nothing, and nobody filters by their values.
        .set_dictionary_enabled(false)
        .set_statistics_enabled(EnabledStatistics::None)
        .set_compression(match job.compression {
            Compression::Zstd => Codec::ZSTD(ZstdLevel::default()),
            Compression::Snappy => Codec::SNAPPY,
            Compression::None => Codec::UNCOMPRESSED,
        })
        .build();
    let failed = |e: ::parquet::errors::ParquetError| {
        // The crate wraps the error of the file that it writes to.
        Error::Io { action: "write", path: job.out.clone(), source: std::io::Error::other(e) }
    };
    let mut writer = ArrowWriter::try_new(out.file(), schema.clone(), Some(properties)).map_err(failed)?;
    let block = (BLOCK_BYTES / row.max(1)).clamp(1, group) as u64;
    let mut done = 0;
    while done < rows {
        let count = block.min(rows - done);
        let mut arrays: Vec<ArrayRef> = Vec::new();
        for (column, field) in columns.iter_mut().zip(schema.fields()) {
            let mut buffer = Buffer::new(written(column.kind()));
            column.read(count as usize, &mut buffer)?;
            arrays.push(lists(field.data_type(), numbers(buffer)));
        }
        let batch = RecordBatch::try_new(schema.clone(), arrays)
            .map_err(|e| Error::shape(job.out.display(), "columns that fit their schema", e))?;
        writer.write(&batch).map_err(failed)?;
        done += count;
        on_progress(done, rows);
    }
    writer.close().map_err(failed)?;
    Ok(())
}

/// Numbers, or lists of lists of numbers, as deep as the rows of the column are.
fn data_type(out: &Path, name: &str, column: &Column) -> Result<DataType> {
    let mut found = match written(column.kind()) {
        Kind::F16 => DataType::Float16,
        Kind::Bf16 | Kind::F32 => DataType::Float32,
        Kind::F64 => DataType::Float64,
        Kind::I64 => DataType::Int64,
    };
    for &axis in column.tail().iter().rev() {
        let size = i32::try_from(axis).ok().filter(|&size| size > 0).ok_or_else(|| {
            let what = format!("{}: column `{name}`: values of a list", out.display());
            Error::shape(what, format!("1 to {}", i32::MAX), axis)
        })?;
        found = DataType::FixedSizeList(Arc::new(Field::new("element", found, false)), size);
    }
    Ok(found)
}

fn numbers(buffer: Buffer) -> ArrayRef {
    fn array<T: ArrowPrimitiveType>(values: Vec<T::Native>) -> ArrayRef {
        Arc::new(PrimitiveArray::<T>::new(values.into(), None))
    }
    match buffer {
        Buffer::F16(values) => array::<Float16Type>(values),
        Buffer::F32(values) => array::<Float32Type>(values),
        Buffer::F64(values) => array::<Float64Type>(values),
        Buffer::I64(values) => array::<Int64Type>(values),
        Buffer::Bf16(_) => unreachable!("BF16 is written as F32"),
    }
}

/// Numbers in the lists of `data_type`.
fn lists(data_type: &DataType, numbers: ArrayRef) -> ArrayRef {
    match data_type {
        DataType::FixedSizeList(field, size) => {
            let below = lists(field.data_type(), numbers);
            Arc::new(FixedSizeListArray::new(field.clone(), *size, below, None))
        }
        _ => numbers,
    }
}
