//! `lensmith export`: shards become a Parquet or npy file.

use clap::Args;

use super::args::{Common, OutArgs, PartialArgs};
use super::console::Console;
use super::table::{bytes, count};
use crate::convert::{Compression, ExportColumn, ExportFormat, ExportJob, export};
use crate::error::{Error, Result};

/// Make a Parquet or npy file of shards
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lensmith export synth/ --out synth.parquet
  lensmith export pairs/ --columns chosen=preferred,rejected=other --out pairs.parquet
  lensmith export pairs/ --columns chosen --out chosen.npy

Tensors [n, d] become fixed-size lists, [n] numbers, [n, N, d] lists of lists. F16, F32 and F64
stay; BF16, which neither Arrow nor NumPy has, becomes F32, and I32 becomes I64. `import` makes the
same shards of them again, BF16 with --dtype bf16.")]
pub struct Export {
    /// Shards of pairs, candidates, embeddings or latents: files, folders or patterns
    #[arg(required = true, value_name = "SHARDS")]
    shards: Vec<String>,
    #[command(flatten)]
    partial: PartialArgs,
    /// Tensors to write, each as TENSOR or TENSOR=COLUMN [default: all]
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    columns: Vec<ExportColumn>,
    /// Format: parquet, or npy for one tensor [default: as the name of the output tells]
    #[arg(long, value_name = "FORMAT")]
    format: Option<ExportFormat>,
    /// Compression of Parquet: zstd, snappy or none
    #[arg(long, default_value_t = Compression::Zstd, value_name = "HOW")]
    compression: Compression,
    /// Rows of a row group of Parquet, one of which is held in memory [default: about 64 MiB]
    #[arg(long, value_name = "N")]
    row_group_rows: Option<usize>,
    #[command(flatten)]
    out: OutArgs,
}

impl Export {
    pub fn execute(&self, _common: &Common, console: &Console) -> Result<()> {
        let out = self.out.check()?;
        let format = self.format.or_else(|| ExportFormat::of(out)).ok_or_else(|| {
            let found = format!("none for {}", out.display());
            Error::argument("--format", "parquet or npy where the name of the output does not tell", found)
        })?;
        let job = ExportJob {
            sources: self.partial.sources(&self.shards),
            columns: self.columns.clone(),
            out: out.to_path_buf(),
            format,
            compression: self.compression,
            row_group_rows: self.row_group_rows,
            overwrite: self.out.overwrite,
        };
        let bar = console.bar("export", 0, "rows");
        let summary = export(&job, &mut |done, rows| {
            bar.set_length(rows);
            bar.set_position(done);
        })?;
        bar.finish_and_clear();
        console.result(&summary, || {
            format!(
                "{}: {} rows of {}, {}",
                out.display(),
                count(summary.rows),
                summary.columns.join(", "),
                bytes(summary.bytes)
            )
        });
        Ok(())
    }
}
