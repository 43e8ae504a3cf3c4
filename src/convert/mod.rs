//! The door to other programs' data: [`import`] makes shards of NumPy, safetensors, Parquet and Arrow files, and
//! [`export`] makes Parquet or NumPy files of shards. Both stream: they hold some blocks, never a file.
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
mod output;
mod parquet;
mod sources;
mod tensors;

pub use annotate::Annotation;
pub use export::{Compression, ExportColumn, ExportFormat, ExportJob, ExportSummary, export};
pub use import::{ImportJob, ImportLayout, ImportSummary, import};
pub use output::{VerifiedImport, is_import, verify_import};
pub use sources::{ColumnSource, Format, column_names};

/// Bytes of a column that are read at a time.
const BLOCK_BYTES: usize = 8 << 20;

/// Bytes of a shard where the user does not say otherwise.
const SHARD_BYTES: u64 = 256 << 20;

/// Runs a decoder of another crate on a file that may hold anything: what it answers with a panic becomes an error
/// like any other. The text says what it said.
fn guarded<T>(decode: impl FnOnce() -> T) -> std::result::Result<T, String> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(decode)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("its decoder gave up");
        text.split('\n').map(str::trim).collect::<Vec<_>>().join(" ")
    })
}
