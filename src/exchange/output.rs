//! The folder that an import fills: shards, one after the other, and the manifest that lists them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::Dtype as Stored;
use serde_json::Value;

use super::column::Kind;
use super::import::{ImportJob, same_file};
use super::sources::Column;
use crate::error::{Error, Result};
use crate::shard::{FolderLock, Manifest, ShardWriter, TensorSpec};

/// Most shards of a folder: as many as their names can count, so that order by name is order of rows.
const MAX_SHARDS: u64 = 100_000;

/// The first part of the names of shards.
const PREFIXES: [&str; 3] = ["pairs", "embeddings", "candidates"];

/// How values of a kind are called in a shard.
pub(super) fn stored(kind: Kind) -> Stored {
    match kind {
        Kind::F16 => Stored::F16,
        Kind::Bf16 => Stored::BF16,
        Kind::F32 => Stored::F32,
        Kind::F64 => Stored::F64,
        Kind::I64 => Stored::I64,
    }
}

/// Shards that are being written.
pub(super) struct Output<'a> {
    out: &'a Path,
    prefix: &'static str,
    tensors: Vec<TensorSpec>,
    /// Bytes per row of each tensor.
    row_bytes: Vec<usize>,
    rows: u64,
    manifest: Manifest,
    /// The shard at hand, and its rows that are still to come.
    writer: Option<(ShardWriter, u64)>,
    done: u64,
    _lock: FolderLock,
}

impl<'a> Output<'a> {
    /// Prepares the folder of `job` for `rows` rows in shards of `shard_rows`. Fails if the folder holds something
    /// that may not be replaced, or one of the sources among what would be.
    pub fn create(
        job: &'a ImportJob,
        prefix: &'static str,
        tensors: Vec<TensorSpec>,
        (rows, shard_rows): (u64, u64),
        settings: Value,
        sources: &[&Column],
    ) -> Result<Output<'a>> {
        if rows.div_ceil(shard_rows) > MAX_SHARDS {
            let expected = format!("{} or more for {MAX_SHARDS} shards", rows.div_ceil(MAX_SHARDS));
            return Err(Error::option("--shard-rows", expected, shard_rows));
        }
        let out = job.out.as_path();
        fs::create_dir_all(out).map_err(Error::io("create", out))?;
        let lock = FolderLock::acquire(out, "import")?;
        let manifest = Manifest {
            format: 1,
            complete: false,
            fingerprint: format!("{:032x}", xxhash_rust::xxh3::xxh3_128(settings.to_string().as_bytes())),
            settings,
            pairs: rows,
            shard_rows,
            part: None,
            shards: Vec::new(),
        };
        prepare(out, &manifest, job.overwrite, sources)?;
        manifest.write(&out.join(MANIFEST))?;
        let row_bytes = tensors.iter().map(row_bytes).collect();
        Ok(Output { out, prefix, tensors, row_bytes, rows, manifest, writer: None, done: 0, _lock: lock })
    }

    /// Appends `rows` rows: the bytes of each tensor.
    pub fn append(&mut self, rows: usize, bytes: &[&[u8]]) -> Result<()> {
        let mut at = 0;
        while at < rows {
            let (mut writer, left) = match self.writer.take() {
                Some(open) => open,
                None => {
                    let number = self.manifest.shards.len();
                    let path = self.out.join(format!("{}-{number:05}.safetensors", self.prefix));
                    let left = self.manifest.shard_rows.min(self.rows - self.done);
                    // No metadata: equal values make equal shards, whatever they came from.
                    let none = BTreeMap::new();
                    (ShardWriter::create(&path, &self.tensors, left as usize, &none)?, left)
                }
            };
            let count = ((rows - at) as u64).min(left);
            for (tensor, (bytes, size)) in bytes.iter().zip(&self.row_bytes).enumerate() {
                writer.append(tensor, &bytes[at * size..(at + count as usize) * size])?;
            }
            at += count as usize;
            self.done += count;
            if count < left {
                self.writer = Some((writer, left - count));
            } else {
                self.manifest.shards.push(writer.finish()?);
            }
        }
        Ok(())
    }

    /// Completes the manifest; gives rows, shards and bytes.
    pub fn finish(mut self) -> Result<(u64, usize, u64)> {
        if self.done != self.rows {
            return Err(Error::shape(format!("{}: rows", self.out.display()), self.rows, self.done));
        }
        self.manifest.complete = true;
        self.manifest.write(&self.out.join(MANIFEST))?;
        let bytes = self.manifest.shards.iter().map(|shard| shard.bytes).sum();
        Ok((self.rows, self.manifest.shards.len(), bytes))
    }
}

const MANIFEST: &str = "manifest.json";

fn row_bytes(tensor: &TensorSpec) -> usize {
    tensor.shape_tail.iter().product::<usize>() * tensor.dtype.bitsize() / 8
}

/// Refuses a folder that holds something else, or empties it of an earlier output.
fn prepare(out: &Path, manifest: &Manifest, overwrite: bool, sources: &[&Column]) -> Result<()> {
    let (mut earlier, mut begun) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(out).map_err(Error::io("list", out))? {
        let path = entry.map_err(Error::io("list", out))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let shard = |name: &str| PREFIXES.iter().any(|p| name.starts_with(&format!("{p}-")));
        let listing = name == "recipe.json" || name.starts_with("manifest.") && name.ends_with(".json");
        if listing || shard(&name) && name.ends_with(".safetensors") {
            earlier.push(path);
        } else if name.starts_with('.') && shard(&name[1..]) && name.ends_with(".safetensors.tmp") {
            begun.push(path);
        }
    }
    earlier.sort();
    let Some(first) = earlier.first() else { return Ok(()) };
    let ours = match Manifest::read(&out.join(MANIFEST)) {
        Ok(found) => found.fingerprint == manifest.fingerprint && !found.complete,
        Err(_) => false,
    };
    if !ours && !overwrite {
        let hint = "the folder holds the output of another run; --overwrite replaces it".to_string();
        return Err(Error::Exists { path: first.clone(), hint });
    }
    let remove: Vec<&PathBuf> = earlier.iter().chain(&begun).collect();
    for source in sources.iter().flat_map(|column| column.paths()) {
        if remove.iter().any(|path| same_file(path, source)) {
            let expected = "a folder other than that of the sources";
            return Err(Error::option("--out", expected, source.display()));
        }
    }
    for path in remove {
        fs::remove_file(path).map_err(Error::io("remove", path))?;
    }
    Ok(())
}
