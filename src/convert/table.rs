//! A small table of texts and numbers as one Parquet file, for results.

use std::path::Path;
use std::sync::Arc;

use arrow_array::{ArrayRef, Float64Array, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Schema};

use crate::data::AtomicFile;
use crate::error::{Error, Result};

/// A column of a table.
#[derive(Clone, Debug, PartialEq)]
pub enum TableColumn {
    /// Texts, of which some may be missing.
    Text(Vec<Option<String>>),
    /// F64 numbers, of which some may be missing.
    Number(Vec<Option<f64>>),
}

/// Writes named columns of equal length, whole or not at all.
///
/// # Errors
/// Columns of different lengths, or a file that cannot be written.
pub fn write_table(path: &Path, columns: &[(String, TableColumn)]) -> Result<()> {
    let field = |(name, column): &(String, TableColumn)| {
        let kind = match column {
            TableColumn::Text(_) => DataType::Utf8,
            TableColumn::Number(_) => DataType::Float64,
        };
        Field::new(name, kind, true)
    };
    let array = |(_, column): &(String, TableColumn)| -> ArrayRef {
        match column {
            TableColumn::Text(values) => {
                Arc::new(StringArray::from_iter(values.iter().map(Option::as_deref)))
            }
            TableColumn::Number(values) => Arc::new(Float64Array::from(values.clone())),
        }
    };
    let schema = Arc::new(Schema::new(columns.iter().map(field).collect::<Vec<_>>()));
    let batch = RecordBatch::try_new(schema.clone(), columns.iter().map(array).collect())
        .map_err(|e| Error::shape(path.display(), "columns of equal length", e))?;
    let out = AtomicFile::create(path)?;
    let failed = |e: ::parquet::errors::ParquetError| Error::Io {
        action: "write",
        path: path.to_path_buf(),
        source: std::io::Error::other(e),
    };
    let mut writer = ::parquet::arrow::ArrowWriter::try_new(out.file(), schema, None).map_err(failed)?;
    writer.write(&batch).map_err(failed)?;
    writer.close().map_err(failed)?;
    out.commit()
}
