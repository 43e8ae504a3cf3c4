//! Other programs' files in and out: [`import`] makes shards of NumPy, safetensors, Parquet and Arrow files, and
//! [`export`] makes Parquet or NumPy files of shards.
//!
//! Data flows one way, a block of some MiB at a time, so that no file is ever held whole: `npy`, `tensors`, `parquet` and
//! `ipc` read one column of one file; `sources` joins a column over files; `import` appends the columns to a folder of
//! shards, and `export` writes them as one file.
//!
//! ```no_run
//! use lensmith::convert::{ColumnSource, ImportJob, ImportLayout, import};
//! use lensmith::data::Io;
//!
//! # fn main() -> lensmith::Result<()> {
//! let column = |name: &str| ColumnSource {
//!     files: vec!["train.parquet".into()],
//!     format: None,
//!     name: name.into(),
//! };
//! let job = ImportJob {
//!     layout: ImportLayout::Pairs { chosen: column("chosen"), rejected: column("rejected"), group: None },
//!     out: "pairs".into(),
//!     dtype: None,
//!     shard_rows: None,
//!     overwrite: false,
//!     io: Io::Mmap,
//! };
//! let summary = import(&job, &mut |done, rows| eprintln!("{done} of {rows}"))?;
//! println!("{} pairs of dimension {}", summary.rows, summary.dim);
//! # Ok(())
//! # }
//! ```

mod annotate;
mod arrays;
mod column;
mod export;
mod import;
mod ipc;
mod npy;
mod pages;
mod parquet;
mod sources;
mod table;
mod tensors;

pub use annotate::Annotation;
pub use export::{Compression, ExportColumn, ExportFormat, ExportJob, ExportSummary, export};
pub use import::{ImportJob, ImportLayout, ImportSummary, VerifiedImport, import, is_import, verify_import};
pub use sources::{ColumnSource, Format, column_names};
pub use table::{TableColumn, write_table};
