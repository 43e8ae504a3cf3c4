//! The folder that an import fills: shards, one after the other, and the manifest that lists them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::Dtype as Stored;
use serde::Serialize;
use serde_json::Value;

use super::column::Kind;
use super::import::{ImportJob, same_file};
use super::sources::Column;
use crate::data::{FolderLock, Io, Manifest, ShardWriter, TensorSpec, verify_shard};
use crate::error::{Error, Result};

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
/// The entry of a manifest's settings that says that an import made it.
pub(super) const IMPORT: &str = "import";

/// Whether `folder` holds the manifest of an import.
pub fn is_import(folder: &Path) -> bool {
    Manifest::read(&folder.join(MANIFEST)).is_ok_and(|found| found.settings.get(IMPORT).is_some())
}

/// What a check of an import's folder found in order.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct VerifiedImport {
    /// Shards read.
    pub shards: usize,
    /// Rows in them.
    pub rows: u64,
    /// Bytes read.
    pub bytes: u64,
}

/// Re-reads the shards of an import and compares sizes and checksums with its manifest. `progress` hears how many
/// bytes are done, and of how many. Fails with [`Error::Mismatch`] on the first difference, also if the import is not
/// complete.
pub fn verify_import(folder: &Path, io: Io, progress: &mut dyn FnMut(u64, u64)) -> Result<VerifiedImport> {
    let path = folder.join(MANIFEST);
    let manifest = Manifest::read(&path)?;
    let differs = |path: &Path, what: &str, expected: String, found: String| {
        Err(Error::Mismatch { path: path.to_path_buf(), what: what.into(), expected, found })
    };
    if !manifest.complete {
        let found = "interrupted; run the same import again".to_string();
        return differs(&path, "state of the import", "complete".into(), found);
    }
    let rows = manifest.shards.iter().try_fold(0u64, |n, shard| n.checked_add(shard.rows));
    if rows != Some(manifest.pairs) {
        return differs(&path, "rows of the shards", manifest.pairs.to_string(), format!("{rows:?}"));
    }
    let total = manifest.shards.iter().fold(0u64, |n, shard| n.saturating_add(shard.bytes));
    let mut verified = VerifiedImport { shards: 0, rows: manifest.pairs, bytes: 0 };
    for record in &manifest.shards {
        // The name of a file in this folder, not a way out of it.
        let name = Path::new(&record.file).file_name().unwrap_or_default();
        let shard = folder.join(name);
        let found = verify_shard(&shard, io)?;
        if found != *record {
            return differs(&shard, "record in the manifest", format!("{record:?}"), format!("{found:?}"));
        }
        verified.shards += 1;
        verified.bytes += record.bytes;
        progress(verified.bytes, total);
    }
    Ok(verified)
}

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
    // An import that was interrupted is begun again by the same command, and one that came to no shard by any.
    let no_shard = earlier.len() == 1;
    let ours = match Manifest::read(&out.join(MANIFEST)) {
        Ok(found) if found.complete || found.settings.get(IMPORT).is_none() => false,
        Ok(found) => no_shard || found.fingerprint == manifest.fingerprint,
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
