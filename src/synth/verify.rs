//! Checking a folder of shards: every byte against its checksum, and pairs made again from the recipe.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use rand::RngCore;
use serde::{Deserialize, Serialize};

use super::pipeline::shard_name;
use super::{Part, Recipe, Synthesizer};
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::matrix::Side;
use crate::noise::{Purpose, Stream};
use crate::shard::{Io, Manifest, PairOptions, PairSet, verify_shard};

/// What a check of a folder found in order.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Verified {
    /// Shards read.
    pub shards: usize,
    /// Pairs in them.
    pub pairs: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Pairs made again from the recipe and found equal in every bit.
    pub recomputed: u64,
}

/// Re-reads the shards of a folder and compares sizes and checksums with its manifests; then makes `recompute` pairs
/// again, if that is asked for and the folder holds embeddings, and compares them bit by bit.
///
/// # Errors
/// [`Error::Mismatch`] with the first difference; a missing shard; a run that is not complete.
pub fn verify_folder<B: Backend>(folder: &Path, io: Io, backend: &B, recompute: u64) -> Result<Verified> {
    let mut verified = Verified::default();
    let mut fingerprint: Option<(PathBuf, String)> = None;
    let paths = manifests(folder)?;
    if paths.is_empty() {
        return Err(Error::TooFew { what: format!("{}: manifests", folder.display()), needed: 1, found: 0 });
    }
    let mut last = None;
    let mut seen = BTreeSet::new();
    for path in paths {
        let manifest = Manifest::read(&path)?;
        if !manifest.complete {
            return Err(Error::Mismatch {
                path,
                what: "state of the run".into(),
                expected: "complete".into(),
                found: "interrupted; run the same command again to finish it".into(),
            });
        }
        if let Some((first, expected)) = fingerprint.as_ref().filter(|f| f.1 != manifest.fingerprint) {
            return Err(Error::Mismatch {
                path,
                what: format!("fingerprint (against {})", first.display()),
                expected: expected.clone(),
                found: manifest.fingerprint,
            });
        }
        check_list(&path, &manifest)?;
        for record in &manifest.shards {
            // A shard may stand in the manifests of several cuts.
            if !seen.insert(record.file.clone()) {
                continue;
            }
            let shard = folder.join(&record.file);
            let found = verify_shard(&shard, io)?;
            if found != *record {
                return Err(Error::Mismatch {
                    path: shard,
                    what: "record in the manifest".into(),
                    expected: format!("{record:?}"),
                    found: format!("{found:?}"),
                });
            }
            verified.shards += 1;
            verified.pairs += record.rows;
            verified.bytes += record.bytes;
        }
        fingerprint = Some((path.clone(), manifest.fingerprint.clone()));
        last = Some(manifest);
    }
    let Some(manifest) = last else { return Ok(verified) };
    let all_shards = manifest.pairs.div_ceil(manifest.shard_rows);
    let embeddings = manifest.settings["output"]["kind"] == "embeddings";
    let whole = verified.pairs == manifest.pairs;
    if recompute > 0 && embeddings && whole {
        verified.recomputed = recompute_pairs(folder, io, backend, recompute, all_shards)?;
    }
    Ok(verified)
}

/// Fails unless a manifest lists exactly the shards of its part, with all their pairs.
fn check_list(path: &Path, manifest: &Manifest) -> Result<()> {
    let differs = |what: String, expected: String, found: String| {
        Err(Error::Mismatch { path: path.to_path_buf(), what, expected, found })
    };
    let (index, count) = manifest.part.unwrap_or((0, 1));
    if manifest.shard_rows == 0 || index >= count {
        let found = format!("{} rows, part {index} of {count}", manifest.shard_rows);
        return differs(
            "rows of a shard or part".into(),
            "1 row or more, a part below their number".into(),
            found,
        );
    }
    let shards = Part { index, count }.of(manifest.pairs.div_ceil(manifest.shard_rows));
    if manifest.shards.len() as u64 != shards.end - shards.start {
        let expected = (shards.end - shards.start).to_string();
        return differs("number of shards".into(), expected, manifest.shards.len().to_string());
    }
    for (record, index) in manifest.shards.iter().zip(shards) {
        let rows = manifest.shard_rows.min(manifest.pairs - index * manifest.shard_rows);
        if (record.file.as_str(), record.rows) != (shard_name(index).as_str(), rows) {
            let expected = format!("{} with {rows} pairs", shard_name(index));
            return differs(
                "list of shards".into(),
                expected,
                format!("{} with {}", record.file, record.rows),
            );
        }
    }
    Ok(())
}

/// The manifests in a folder, of a whole run and of parts, by name.
pub fn manifests(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io("list", folder))? {
        let path = entry.map_err(Error::io("list", folder))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with("manifest.") && name.ends_with(".json") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn recompute_pairs<B: Backend>(folder: &Path, io: Io, backend: &B, count: u64, shards: u64) -> Result<u64> {
    let recipe_path = folder.join("recipe.json");
    let recipe = Recipe::read(&recipe_path)?;
    let (seeds, vae) = recipe.open(&recipe_path, io)?;
    let setup = (recipe.plan, recipe.perturbation);
    let make = Synthesizer::new(backend, &vae, &seeds, setup, recipe.mode)?;
    let files: Vec<String> =
        (0..shards).map(|i| folder.join(shard_name(i)).to_string_lossy().into_owned()).collect();
    let written = PairSet::open(&files, &PairOptions { io, ..PairOptions::default() })?;
    let mut stream = Stream::new(recipe.plan.seed, Purpose::Shuffle, 3 << 32);
    let count = count.min(recipe.plan.pairs());
    for _ in 0..count {
        let j = stream.next_u64() % recipe.plan.pairs();
        let mut made = None;
        for side in Side::BOTH {
            let block = written.rows(side, j as usize..j as usize + 1)?;
            let there = block.view();
            let values = there.row(0);
            let pair = match &made {
                Some(pair) => pair,
                None => made.insert(make.pair(j, values.dtype())?),
            };
            let here = if side == Side::Chosen { &pair.chosen } else { &pair.rejected };
            let here = here.view().values();
            if here.bytes() != values.bytes() {
                return Err(Error::Mismatch {
                    path: folder.to_path_buf(),
                    what: format!("pair {j} ({}), made again from the recipe,", side.name()),
                    expected: "the same bytes".into(),
                    found: "other bytes".into(),
                });
            }
        }
    }
    Ok(count)
}
