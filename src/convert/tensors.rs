//! safetensors files of any program: every tensor is a column whose rows run along its first axis.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use safetensors::Dtype;

use super::column::{Buffer, ColumnInfo, ColumnReader, Kind};
use crate::data::{TensorInfo, inspect_shard, open_input};
use crate::error::{Error, Result};

/// Names of the tensors in a file.
pub(super) fn names(path: &Path) -> Result<Vec<String>> {
    Ok(inspect_shard(path)?.0.tensors.into_iter().map(|t| t.name).collect())
}

/// What a tensor is as a column, and bytes per stored value.
pub(super) fn info(path: &Path, tensor: &TensorInfo) -> Result<(ColumnInfo, usize)> {
    let (kind, size) = match tensor.dtype {
        Dtype::F16 => (Kind::F16, 2),
        Dtype::BF16 => (Kind::Bf16, 2),
        Dtype::F32 => (Kind::F32, 4),
        Dtype::F64 => (Kind::F64, 8),
        Dtype::I64 => (Kind::I64, 8),
        Dtype::I32 => (Kind::I64, 4),
        other => {
            return Err(Error::WrongDtype {
                path: path.to_path_buf(),
                tensor: tensor.name.clone(),
                expected: "F64, F32, F16, BF16, I64 or I32",
                found: other.to_string(),
            });
        }
    };
    let Some((&rows, tail)) = tensor.shape.split_first() else {
        let what = format!("{}: axes of tensor `{}`", path.display(), tensor.name);
        return Err(Error::shape(what, "1 or more", "0 (a single value)"));
    };
    let info = ColumnInfo { rows: rows as u64, tail: tail.to_vec(), kind };
    Ok((info.check(path, &tensor.name)?, size))
}

/// Opens tensor `name` of a file.
pub(super) fn open(path: &Path, name: &str) -> Result<(ColumnInfo, Box<dyn ColumnReader + Send>)> {
    let header = inspect_shard(path)?.0;
    let tensor = header.tensor(path, name)?;
    let (info, size) = info(path, tensor)?;
    let (file, _) = open_input(path, "safetensors")?;
    let at = tensor.range.start as u64;
    let reader = Tensor { path: path.to_path_buf(), file, at, width: info.width(), size, bytes: Vec::new() };
    Ok((info, Box::new(reader)))
}

struct Tensor {
    path: PathBuf,
    file: File,
    /// Next byte.
    at: u64,
    width: usize,
    /// Bytes per stored value.
    size: usize,
    bytes: Vec<u8>,
}

impl ColumnReader for Tensor {
    fn read(&mut self, rows: usize, out: &mut Buffer) -> Result<()> {
        let values = rows * self.width;
        let read =
            |bytes: &mut [u8]| self.file.read_exact_at(bytes, self.at).map_err(Error::io("read", &self.path));
        match out {
            Buffer::I64(out) if self.size == 4 => {
                self.bytes.resize(values * 4, 0);
                read(&mut self.bytes)?;
                out.extend(self.bytes.as_chunks().0.iter().map(|&b| i64::from(i32::from_le_bytes(b))));
            }
            out => read(out.grow(values))?,
        }
        self.skip(rows as u64)
    }

    fn skip(&mut self, rows: u64) -> Result<()> {
        self.at += rows * (self.width * self.size) as u64;
        Ok(())
    }
}
