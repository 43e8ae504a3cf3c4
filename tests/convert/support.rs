//! Jobs over the golden files, and the values that they hold.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use half::f16;
use lensmith::Result;
use lensmith::convert::{ColumnSource, ImportJob, ImportLayout, ImportSummary, import};
use lensmith::data::Io;
use safetensors::{Dtype, SafeTensors};

pub const ROWS: usize = 7;
pub const DIM: usize = 5;
pub const PROMPTS: usize = 6;
pub const RESPONSES: usize = 4;

/// `values` of the tool script: side 0 is chosen, 1 rejected, 2 responses, 3 rewards.
pub fn values(side: i64, count: usize) -> Vec<f32> {
    (0..count as i64).map(|i| ((i * 37 + side * 101) % 257 - 128) as f32 / 32.0).collect()
}

pub fn group() -> Vec<i64> {
    (0..ROWS as i64).map(|i| i.div_euclid(2) - 1).collect()
}

pub fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

pub fn f16_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect()
}

pub fn i64_bytes(values: &[i64]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

pub fn golden(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/convert").join(name).display().to_string()
}

pub fn column(file: &str, name: &str) -> ColumnSource {
    ColumnSource { files: vec![file.into()], format: None, name: name.into() }
}

/// Pairs of one golden file.
pub fn pairs_of(file: &str, chosen: &str, rejected: &str) -> ImportLayout {
    let file = golden(file);
    ImportLayout::Pairs { chosen: column(&file, chosen), rejected: column(&file, rejected), group: None }
}

pub fn job(layout: ImportLayout, out: &Path) -> ImportJob {
    ImportJob { layout, out: out.into(), dtype: None, shard_rows: None, overwrite: false, io: Io::Mmap }
}

pub fn run(job: &ImportJob) -> Result<ImportSummary> {
    import(job, &mut |done, rows| assert!(done <= rows))
}

/// The message of an import that must fail.
#[track_caller]
pub fn refusal(layout: ImportLayout) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("out");
    let error = run(&job(layout, &out)).expect_err("it must fail").to_string();
    assert!(!error.contains('\n'), "{error}");
    assert_eq!(shards(&out), Vec::<PathBuf>::new(), "no shard may be left: {error}");
    error
}

/// The shards of a folder, in order.
pub fn shards(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut found: Vec<PathBuf> = entries.map(|e| e.expect("an entry").path()).collect();
    found.retain(|path| path.to_string_lossy().ends_with(".safetensors"));
    found.sort();
    found
}

pub fn contents(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let name = |path: &PathBuf| PathBuf::from(path.file_name().expect("a name"));
    shards(folder).iter().map(|path| (name(path), fs::read(path).expect("a shard"))).collect()
}

/// Type, shape and bytes of each tensor of a shard, read by the safetensors crate.
pub fn tensors(shard: &Path) -> BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)> {
    let bytes = fs::read(shard).expect("a shard");
    let read = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    read.iter()
        .map(|(name, t)| (name.to_string(), (t.dtype(), t.shape().to_vec(), t.data().to_vec())))
        .collect()
}
