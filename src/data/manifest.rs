//! The manifest of a folder of shards: which run it belongs to, the settings that determine its bytes, and the shards
//! that are finished.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use xxhash_rust::xxh3::xxh3_128;

use super::atomic::write_atomic;
use super::format::hex;
use super::place::read_small;
use super::writer::ShardRecord;
use crate::error::{Error, Result};

/// The version of the manifest that this code reads and writes.
const FORMAT: u32 = 1;
/// Most bytes that are read as a manifest: several times those of a run of the most shards.
const MOST_BYTES: u64 = 256 << 20;

/// The contents of a folder of shards, kept beside them as JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of this structure; 1.
    pub format: u32,
    /// Whether every shard is there.
    pub complete: bool,
    /// [`Manifest::digest`] of the settings.
    pub fingerprint: String,
    /// Everything that determines the bytes of the shards, for people and for [`Manifest::difference`].
    pub settings: Value,
    /// Rows over all shards.
    pub pairs: u64,
    /// Rows of each shard but the last.
    pub shard_rows: u64,
    /// Part i of N of a run that was cut, as `(i, N)`.
    pub part: Option<(u64, u64)>,
    /// The shards that are finished, in order.
    pub shards: Vec<ShardRecord>,
}

/// The first thing that is read of a manifest.
#[derive(Deserialize)]
struct Version {
    #[serde(default)]
    format: Value,
}

/// A [`Manifest`] as it is written.
#[derive(Serialize)]
struct Listing<'a> {
    format: u32,
    complete: bool,
    fingerprint: &'a str,
    settings: &'a Value,
    pairs: u64,
    shard_rows: u64,
    part: Option<(u64, u64)>,
    shards: Vec<&'a ShardRecord>,
}

impl Manifest {
    /// The manifest of a run that has no shard yet.
    pub fn new(settings: Value, rows: u64, shard_rows: u64, part: Option<(u64, u64)>) -> Manifest {
        let fingerprint = Manifest::digest(&settings);
        let (format, complete, pairs, shards) = (FORMAT, false, rows, Vec::new());
        Manifest { format, complete, fingerprint, settings, pairs, shard_rows, part, shards }
    }

    /// Reads a manifest. Fails with [`Error::Format`] if it is not one, or of another version.
    pub fn read(path: &Path) -> Result<Manifest> {
        let bad = |detail| Error::Format { path: path.to_path_buf(), format: "manifest", detail };
        let bytes = read_small(path, "manifest", MOST_BYTES)?;
        // The version first: another version may lack fields, and their names would be a poor explanation.
        let Version { format } = serde_json::from_slice(&bytes).map_err(|e| bad(e.to_string()))?;
        if format.as_u64() != Some(u64::from(FORMAT)) {
            return Err(bad(format!("expected version {FORMAT}, found {format}")));
        }
        serde_json::from_slice(&bytes).map_err(|e| bad(e.to_string()))
    }

    /// Writes the manifest, whole or not at all.
    pub fn write(&self, path: &Path) -> Result<()> {
        write_atomic(path, &self.to_bytes(path)?)
    }

    /// What [`Manifest::write`] writes; `path` is for messages.
    pub fn to_bytes(&self, path: &Path) -> Result<Vec<u8>> {
        self.to_bytes_with(self.shards.iter(), path)
    }

    /// The same with other shards: there may be many, which are not to be copied for it.
    pub fn to_bytes_with<'s>(
        &self,
        shards: impl Iterator<Item = &'s ShardRecord>,
        path: &Path,
    ) -> Result<Vec<u8>> {
        let Manifest { format, complete, fingerprint, settings, pairs, shard_rows, part, shards: _ } = self;
        let listing = Listing {
            format: *format,
            complete: *complete,
            fingerprint,
            settings,
            pairs: *pairs,
            shard_rows: *shard_rows,
            part: *part,
            shards: shards.collect(),
        };
        let mut json = serde_json::to_vec_pretty(&listing).map_err(|e| Error::Format {
            path: path.to_path_buf(),
            format: "manifest",
            detail: e.to_string(),
        })?;
        json.push(b'\n');
        Ok(json)
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
