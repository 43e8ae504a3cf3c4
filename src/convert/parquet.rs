//! Parquet files: one reader a column, which decodes pages as it goes.

use std::fs::File;
use std::path::{Path, PathBuf};

use ::parquet::arrow::ProjectionMask;
use ::parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder,
};
use arrow_array::{Array, RecordBatch};

use super::arrays::{self, Place, guarded};
use super::column::{BLOCK_BYTES, Buffer, ColumnInfo, ColumnReader};
use super::pages;
use crate::data::open_input;
use crate::error::{Error, Result};

fn bad(path: &Path, detail: impl std::fmt::Display) -> Error {
    Error::Format {
        path: path.to_path_buf(),
        format: "Parquet",
        detail: arrays::one_line(&detail.to_string()),
    }
}

fn metadata(path: &Path) -> Result<(File, ArrowReaderMetadata)> {
    let (file, _) = open_input(path, "Parquet")?;
    let metadata = guarded(|| ArrowReaderMetadata::load(&file, ArrowReaderOptions::new()));
    let metadata = metadata.map_err(|e| bad(path, e))?.map_err(|e| bad(path, e))?;
    Ok((file, metadata))
}

/// Names of the top-level columns.
pub(super) fn names(path: &Path) -> Result<Vec<String>> {
    Ok(metadata(path)?.1.schema().fields().iter().map(|f| f.name().clone()).collect())
}

type Batches = Box<dyn Iterator<Item = std::result::Result<RecordBatch, arrow_schema::ArrowError>> + Send>;

/// A column in an open file.
struct InFile {
    path: PathBuf,
    file: File,
    metadata: ArrowReaderMetadata,
    /// Number of the column.
    root: usize,
}

impl InFile {
    /// Its rows from `first` on, `rows` at a time.
    fn batches(&self, first: usize, rows: usize) -> Result<Batches> {
        let InFile { path, file, metadata, root } = self;
        let file = file.try_clone().map_err(Error::io("open", path))?;
        let mask = ProjectionMask::roots(metadata.parquet_schema(), [*root]);
        let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(file, metadata.clone());
        let builder = builder.with_projection(mask).with_batch_size(rows).with_offset(first);
        let reader = guarded(|| builder.build());
        Ok(Box::new(reader.map_err(|e| bad(path, e))?.map_err(|e| bad(path, e))?))
    }
}

/// Opens column `name` of a file.
pub(super) fn open(path: &Path, name: &str) -> Result<(ColumnInfo, Box<dyn ColumnReader + Send>)> {
    let (file, metadata) = metadata(path)?;
    let fields = metadata.schema().fields().clone();
    let Some((root, field)) = fields.iter().enumerate().find(|(_, f)| f.name() == name) else {
        let found = fields.iter().map(|f| f.name().clone()).collect();
        return Err(Error::MissingTensor { path: path.to_path_buf(), tensor: name.into(), found });
    };
    check_sizes(path, name, root, (&file, &metadata))?;
    let place = Place { path, name, row: 0 };
    let (kind, depth) = arrays::kind(place, field.data_type())?;
    let shape = arrays::fixed_shape(field.data_type());
    let rows = metadata.metadata().file_metadata().num_rows();
    let rows = u64::try_from(rows).map_err(|_| bad(path, format!("it claims {rows} rows")))?;
    let in_file = InFile { path: path.to_path_buf(), file, metadata, root };
    let tail = match shape {
        Some(shape) => shape,
        None if rows == 0 => vec![0; depth],
        None => {
            let mut first = in_file.batches(0, 1)?;
            let first = guarded(|| first.next()).map_err(|e| bad(path, e))?;
            let first =
                first.ok_or_else(|| bad(path, "its first row is missing"))?.map_err(|e| bad(path, e))?;
            arrays::first_shape(place, first.column(0).as_ref())?
        }
    };
    let info = ColumnInfo { rows, tail, kind }.check(path, name)?;
    // Batches of about the size of a block; a reader decodes no more at a time.
    let per_batch = (BLOCK_BYTES / (info.width() * kind.size()).max(1)).clamp(1, 1 << 16);
    let reader = Column {
        batches: in_file.batches(0, per_batch)?,
        in_file,
        name: name.to_string(),
        per_batch,
        tail: info.tail.clone(),
        batch: None,
        row: 0,
    };
    Ok((info, Box::new(reader)))
}

/// Fails if a row group of a column claims, in the metadata or in its pages, to unpack to more than
/// [`arrays::most_unpacked`], or its rows to be longer than embeddings are.
fn check_sizes(
    path: &Path,
    name: &str,
    root: usize,
    (file, metadata): (&File, &ArrowReaderMetadata),
) -> Result<()> {
    /// Most values of a row.
    const MOST_VALUES: u64 = 1 << 24;
    let schema = metadata.parquet_schema();
    for (at, group) in metadata.metadata().row_groups().iter().enumerate() {
        let of_column = |leaf: &usize| schema.get_column_root_idx(*leaf) == root;
        for leaf in (0..group.num_columns()).filter(of_column) {
            let chunk = group.column(leaf);
            let number = |value: i64| u64::try_from(value).unwrap_or(u64::MAX);
            let (packed, unpacked) = (number(chunk.compressed_size()), number(chunk.uncompressed_size()));
            let most = arrays::most_unpacked(packed);
            let what = format!("row group {at} of column `{name}`");
            let start = number(chunk.dictionary_page_offset().unwrap_or(chunk.data_page_offset()));
            let pages = pages::unpacked(file, start..start.saturating_add(packed));
            let pages =
                pages.ok_or_else(|| bad(path, format!("{what}: a page whose header cannot be read")))?;
            let unpacked = unpacked.max(pages);
            if unpacked > most {
                let what = format!("{what}: {packed} bytes that unpack to {unpacked}");
                return Err(bad(path, format!("{what}, at most {most} are taken")));
            }
            let (values, rows) = (number(chunk.num_values()), number(group.num_rows()).max(1));
            if values / rows > MOST_VALUES {
                let what = format!("row group {at} of column `{name}`: {values} values in {rows} rows");
                return Err(bad(path, format!("{what}, at most {MOST_VALUES} a row are taken")));
            }
        }
    }
    Ok(())
}

struct Column {
    in_file: InFile,
    name: String,
    batches: Batches,
    /// Rows of a batch.
    per_batch: usize,
    tail: Vec<usize>,
    /// The batch at hand, and how many of its rows are taken.
    batch: Option<(RecordBatch, usize)>,
    /// Row of the file that comes next.
    row: u64,
}

impl ColumnReader for Column {
    fn read(&mut self, rows: usize, out: &mut Buffer) -> Result<()> {
        let mut wanted = rows;
        while wanted > 0 {
            let Some((batch, taken)) = self.batch.as_mut().filter(|(batch, taken)| *taken < batch.num_rows())
            else {
                let next = guarded(|| self.batches.next()).map_err(|e| bad(&self.in_file.path, e))?;
                let next =
                    next.ok_or_else(|| bad(&self.in_file.path, "it holds fewer rows than it claims"))?;
                self.batch = Some((next.map_err(|e| bad(&self.in_file.path, e))?, 0));
                continue;
            };
            let count = wanted.min(batch.num_rows() - *taken);
            let place = Place { path: &self.in_file.path, name: &self.name, row: self.row };
            let array: &dyn Array = batch.column(0).as_ref();
            arrays::extract(place, array, *taken..*taken + count, &self.tail, out)?;
            *taken += count;
            self.row += count as u64;
            wanted -= count;
        }
        Ok(())
    }

    fn skip(&mut self, rows: u64) -> Result<()> {
        // Whole pages are not decoded.
        self.row += rows;
        self.batches = self.in_file.batches(self.row as usize, self.per_batch)?;
        self.batch = None;
        Ok(())
    }
}
