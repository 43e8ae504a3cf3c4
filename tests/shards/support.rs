//! Files made by hand, and how errors are looked at.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use lensmith::Error;
use lensmith::data::{Io, PairOptions, PairSet, ShardRecord, ShardWriter, TensorSpec};
use lensmith::dtype::Dtype;
use lensmith::matrix::{RowSet, RowsBuf};
use safetensors::Dtype as FileDtype;
use tempfile::TempDir;

pub const BOTH: [Io; 2] = [Io::Mmap, Io::Read];

pub fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// A tensor for [`file`]: name, dtype, shape, bytes.
pub type Tensor<'a> = (&'a str, &'a str, &'a [usize], Vec<u8>);

/// A file with exactly this header and payload.
pub fn raw(header: &str, payload: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), payload].concat()
}

/// The header of tensors placed one behind the other.
pub fn header(tensors: &[Tensor<'_>]) -> String {
    let mut entries = Vec::new();
    let mut at = 0;
    for (name, dtype, shape, bytes) in tensors {
        let end = at + bytes.len();
        let name = serde_json::to_string(name).unwrap();
        entries.push(format!(
            "{name}:{{\"dtype\":\"{dtype}\",\"shape\":{shape:?},\"data_offsets\":[{at},{end}]}}"
        ));
        at = end;
    }
    format!("{{{}}}", entries.join(","))
}

/// A file of tensors whose payload starts `misalign` bytes past a multiple of 16.
pub fn file_at(tensors: &[Tensor<'_>], misalign: usize) -> Vec<u8> {
    let mut header = header(tensors);
    while (8 + header.len()) % 16 != misalign {
        header.push(' ');
    }
    let payload: Vec<u8> = tensors.iter().flat_map(|t| t.3.clone()).collect();
    raw(&header, &payload)
}

pub fn file(tensors: &[Tensor<'_>]) -> Vec<u8> {
    file_at(tensors, 0)
}

/// Values that differ from place to place, side to side and file to file, exact in every dtype.
pub fn values(len: usize, seed: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 7 + seed * 31) % 251) as f32 / 2.0 - 60.0).collect()
}

pub fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

pub fn f16_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect()
}

pub fn bf16_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect()
}

pub fn i64_bytes(values: &[i64]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// A valid F32 file of `rows` pairs of width `dim`.
pub fn pairs(rows: usize, dim: usize, seed: usize) -> Vec<u8> {
    let side = |s| f32_bytes(&values(rows * dim, seed + s));
    file(&[("chosen", "F32", &[rows, dim], side(0)), ("rejected", "F32", &[rows, dim], side(100))])
}

pub fn put(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, bytes).unwrap();
    path
}

pub fn text(path: &Path) -> String {
    path.to_str().unwrap().to_string()
}

pub fn options(io: Io) -> PairOptions {
    PairOptions { io, ..PairOptions::default() }
}

pub fn open(path: &Path, io: Io) -> Result<PairSet, Error> {
    PairSet::open(&[text(path)], &options(io))
}

/// All values of a set of rows, widened.
pub fn widened(rows: &RowSet<'_>) -> Vec<f32> {
    let mut out = vec![f32::NAN; rows.rows() * rows.cols()];
    rows.widen(0..rows.rows(), &mut out);
    out
}

/// A message must be one line and name the file.
pub fn check_message(error: &Error, names: &str) {
    let message = error.to_string();
    assert_eq!(message.lines().count(), 1, "not one line: {message:?}");
    assert!(!message.chars().any(char::is_control), "control character: {message:?}");
    assert!(message.contains(names), "does not name {names}: {message}");
    assert!(message.len() < 4000, "{} bytes of message", message.len());
}

pub fn file_dtype(dtype: Dtype) -> FileDtype {
    match dtype {
        Dtype::F32 => FileDtype::F32,
        Dtype::F16 => FileDtype::F16,
        Dtype::Bf16 => FileDtype::BF16,
    }
}

pub fn spec(name: &str, dtype: FileDtype, shape_tail: &[usize]) -> TensorSpec {
    TensorSpec { name: name.into(), dtype, shape_tail: shape_tail.to_vec() }
}

pub fn metadata() -> BTreeMap<String, String> {
    BTreeMap::from([("recipe".to_string(), "seed \"7\" \\ ü\n".to_string())])
}

/// Writes a shard of pairs with our own writer and returns its record and the two sides.
pub fn write_pairs(path: &Path, dtype: Dtype, rows: usize, dim: usize) -> (ShardRecord, [RowsBuf; 2]) {
    let sides = [0, 100].map(|s| RowsBuf::from_f32(dtype, &values(rows * dim, s), dim).unwrap());
    let specs = ["chosen", "rejected"].map(|name| spec(name, file_dtype(dtype), &[dim]));
    let mut writer = ShardWriter::create(path, &specs, rows, &metadata()).unwrap();
    for (i, side) in sides.iter().enumerate() {
        writer.append(i, side.view().values().bytes()).unwrap();
    }
    (writer.finish().unwrap(), sides)
}
