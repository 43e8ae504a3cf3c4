//! Joining the manifests of a run's parts into that of the whole run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::parts::{Part, PartManifest, all_shards, check_header, check_length, read_run, require_complete};
use crate::data::{FolderLock, Manifest, ShardRecord, file_name, lengths, read_small, write_atomic};
use crate::error::{Error, Result};

/// What was joined.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Merged {
    /// The manifest of the whole run.
    pub manifest: PathBuf,
    /// Whether it was there already, with the same bytes.
    pub already: bool,
    /// Complete manifests of parts that it was joined from.
    pub parts: usize,
    /// Shards of the run.
    pub shards: u64,
    /// Pairs of the run.
    pub pairs: u64,
    /// Bytes of its shards.
    pub bytes: u64,
    /// Shards that are in more than one part, as happens where one run was cut in different ways.
    pub overlapping: u64,
    /// Which parts share them.
    pub overlaps: Vec<Overlap>,
}

/// Two manifests that list the same shards, with equal records.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Overlap {
    /// File names of the manifests.
    pub manifests: [String; 2],
    /// Number of shards that the second lists after the first.
    pub shards: u64,
}

/// Joins the manifests of parts in `folder` (`manifest.part-I-of-N.json`) into `manifest.json`, with the bytes that one
/// whole run writes. The parts may be of different cuts. Sizes of all shards are checked, and their headers where they are
/// files; payloads are not:
/// that is what [`Engine::verify`](crate::Engine::verify) does.
///
/// # Errors
/// [`Error::Mismatch`] for manifests of different runs (the setting is named) or with different records of one shard,
/// and for a shard that is not as recorded; [`Error::Incomplete`] for shards that are missing, with their parts and the
/// command that makes them; [`Error::Busy`] while a whole run writes to the folder.
pub fn merge_manifests(folder: &Path) -> Result<Merged> {
    let manifests = read_run(folder)?;
    let run = &manifests[0].manifest;
    let shards = all_shards(run);
    require_complete(folder, &manifests, 0..shards)?;

    let mut records: BTreeMap<u64, (&PartManifest, &ShardRecord)> = BTreeMap::new();
    let mut overlaps: BTreeMap<(&Path, &Path), u64> = BTreeMap::new();
    let complete = || manifests.iter().filter(|m| m.manifest.complete);
    let parts = || complete().filter(|m| m.part() != Part::WHOLE);
    for part in parts() {
        for (index, record) in part.records() {
            let (first, _) = *records.entry(index).or_insert((part, record));
            if first.path != part.path {
                *overlaps.entry((&first.path, &part.path)).or_default() += 1;
            }
        }
    }
    let overlapping = parts().map(|p| p.manifest.shards.len() as u64).sum::<u64>() - records.len() as u64;
    for whole in complete().filter(|m| m.part() == Part::WHOLE) {
        for (index, record) in whole.records() {
            records.entry(index).or_insert((whole, record));
        }
    }
    match lengths(folder)? {
        // An object that has its name is whole, so that its length is enough.
        Some(lengths) => {
            for (part, record) in records.values() {
                check_length(folder, part, record, lengths.get(&record.file).copied())?;
            }
        }
        None => {
            for (&index, (part, record)) in &records {
                check_header(folder, part, index, record)?;
            }
        }
    }

    let whole =
        Manifest { complete: true, ..Manifest::new(run.settings.clone(), run.pairs, run.shard_rows, None) };
    let path = folder.join(Part::WHOLE.manifest_name());
    let listed = || records.values().map(|(_, record)| *record);
    let bytes = whole.to_bytes_with(listed(), &path)?;
    // An interrupted run of the whole leaves a manifest of its own, which this one completes.
    let already = match read_small(&path, "manifest", bytes.len() as u64) {
        Ok(found) => found == bytes,
        // A longer one is another one.
        Err(Error::Format { .. }) => false,
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => false,
        Err(error) => return Err(error),
    };
    if !already {
        let _lock = FolderLock::acquire(folder, "synth")?;
        write_atomic(&path, &bytes)?;
    }
    Ok(Merged {
        manifest: path,
        already,
        parts: parts().count(),
        shards,
        pairs: whole.pairs,
        bytes: listed().map(|s| s.bytes).sum(),
        overlapping,
        overlaps: overlaps
            .into_iter()
            .map(|((a, b), shards)| Overlap { manifests: [file_name(a), file_name(b)], shards })
            .collect(),
    })
}
