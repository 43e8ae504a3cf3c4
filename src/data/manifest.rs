//! A folder of shards: what is in it, under which settings it was made, and who writes there.

use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use xxhash_rust::xxh3::xxh3_128;

use crate::data::column::hex;
use crate::data::writer::{ShardRecord, write_atomic};
use crate::error::{Error, Result};

/// The version of the manifest that this code reads and writes.
const FORMAT: u32 = 1;

/// The contents of a folder of shards, kept beside them as JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of this structure; 1.
    pub format: u32,
    /// Whether every shard is there.
    pub complete: bool,
    /// Digest of the settings and the data that the shards were made from.
    pub fingerprint: String,
    /// The settings, for people and for [`Manifest::difference`].
    pub settings: Value,
    /// Pairs over all shards.
    pub pairs: u64,
    /// Pairs of each shard but the last.
    pub shard_rows: u64,
    /// Part i of N of a run that was cut, as `(i, N)`.
    pub part: Option<(u64, u64)>,
    /// The shards that are finished, in order.
    pub shards: Vec<ShardRecord>,
}

impl Manifest {
    /// Reads a manifest. Fails with [`Error::Format`] if it is not one, or of another version.
    pub fn read(path: &Path) -> Result<Manifest> {
        let bad = |detail| Error::Format { path: path.to_path_buf(), format: "manifest", detail };
        let bytes = fs::read(path).map_err(Error::io("read", path))?;
        let value: Value = serde_json::from_slice(&bytes).map_err(|e| bad(e.to_string()))?;
        // The version first: another version may lack fields, and their names would be a poor explanation.
        let version = value.get("format").unwrap_or(&Value::Null);
        if version.as_u64() != Some(u64::from(FORMAT)) {
            return Err(bad(format!("expected version {FORMAT}, found {version}")));
        }
        serde_json::from_value(value).map_err(|e| bad(e.to_string()))
    }

    /// Writes the manifest, whole or not at all.
    pub fn write(&self, path: &Path) -> Result<()> {
        write_atomic(path, &self.to_bytes(path)?)
    }

    /// What [`Manifest::write`] writes; `path` is for messages.
    pub fn to_bytes(&self, path: &Path) -> Result<Vec<u8>> {
        let json = serde_json::to_string_pretty(self).map_err(|e| Error::Format {
            path: path.to_path_buf(),
            format: "manifest",
            detail: e.to_string(),
        })?;
        Ok((json + "\n").into_bytes())
    }

    /// The fingerprint of settings: xxh3-128 of their JSON, 32 hexadecimal digits.
    pub fn digest(settings: &Value) -> String {
        hex(xxh3_128(settings.to_string().as_bytes()))
    }

    /// The first setting that differs from `other_settings`: its path (as in `vae.latent` or `hidden[1]`), the
    /// value recorded here, and the other value.
    pub fn difference(&self, other_settings: &Value) -> Option<(String, String, String)> {
        first_difference("", Some(&self.settings), Some(other_settings))
    }
}

fn first_difference(path: &str, a: Option<&Value>, b: Option<&Value>) -> Option<(String, String, String)> {
    match (a, b) {
        _ if a == b => None,
        (Some(Value::Object(a)), Some(Value::Object(b))) => {
            let added = b.keys().filter(|key| !a.contains_key(*key));
            a.keys().chain(added).find_map(|key| {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                first_difference(&path, a.get(key), b.get(key))
            })
        }
        (Some(Value::Array(a)), Some(Value::Array(b))) => (0..a.len().max(b.len()))
            .find_map(|i| first_difference(&format!("{path}[{i}]"), a.get(i), b.get(i))),
        _ => {
            let text = |value: Option<&Value>| value.map_or("nothing".to_string(), Value::to_string);
            Some((path.to_string(), text(a), text(b)))
        }
    }
}

/// The right to write something in a folder, held by one process at a time.
#[derive(Debug)]
pub struct FolderLock(#[expect(dead_code, reason = "the lock lasts as long as this file is open")] File);

impl FolderLock {
    /// Locks `name` in the folder `dir`, which must exist, through a file `.NAME.lock` that stays behind. Fails
    /// with [`Error::Busy`] at once if another process, or another lock of this one, holds it. The system
    /// releases it when the process ends, however it ends.
    pub fn acquire(dir: &Path, name: &str) -> Result<FolderLock> {
        let path = dir.join(format!(".{name}.lock"));
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(Error::io("create", &path))?;
        match file.try_lock() {
            Ok(()) => Ok(FolderLock(file)),
            Err(TryLockError::WouldBlock) => Err(Error::Busy { path: dir.to_path_buf() }),
            Err(TryLockError::Error(source)) => Err(Error::Io { action: "lock", path, source }),
        }
    }
}

/// Fails with [`Error::Exists`] and `hint` (what the user can do) if anything is at `path`.
pub fn require_absent(path: &Path, hint: &str) -> Result<()> {
    // A dangling link counts: writing to it would create a file somewhere else.
    match fs::symlink_metadata(path) {
        Ok(_) => Err(Error::Exists { path: path.to_path_buf(), hint: hint.to_string() }),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Error::io("open", path)(e)),
    }
}
