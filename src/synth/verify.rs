//! Checking a folder of shards: every byte against its checksum, and pairs made again from the recipe.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};

use rand::RngCore;
use serde::{Deserialize, Serialize};

use super::pipeline::shard_name;
use super::{Part, Recipe, Synthesizer, manifests};
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
    /// Pairs of the whole run: more than are here where parts of it lie elsewhere.
    pub run_pairs: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Pairs made again from the recipe and found equal in every bit.
    pub recomputed: u64,
}

/// Re-reads the shards of a folder and compares sizes and checksums with its manifests; then makes `recompute` pairs
/// again, if that is asked for and the folder holds embeddings, and compares them bit by bit.
///
/// # Errors
/// [`Error::Mismatch`] with the first difference; a missing shard; a run that is not complete. An interrupted part is
/// no error where another cut of the same run has made its shards.
pub fn verify_folder<B: Backend>(folder: &Path, io: Io, backend: &B, recompute: u64) -> Result<Verified> {
    let mut verified = Verified::default();
    let mut fingerprint: Option<(PathBuf, String)> = None;
    let paths = manifests(folder)?;
    if paths.is_empty() {
        return Err(Error::TooFew { what: format!("{}: manifests", folder.display()), needed: 1, found: 0 });
    }
    let mut last = None;
    let mut seen = BTreeSet::new();
    let mut interrupted = Vec::new();
    for path in paths {
        let manifest = Manifest::read(&path)?;
        if let Some((first, expected)) = fingerprint.as_ref().filter(|f| f.1 != manifest.fingerprint) {
            return Err(Error::Mismatch {
                path,
                what: format!("fingerprint (against {})", first.display()),
                expected: expected.clone(),
                found: manifest.fingerprint,
            });
        }
        fingerprint = Some((path.clone(), manifest.fingerprint.clone()));
        let mine = check_list(&path, &manifest)?;
        if !manifest.complete {
            interrupted.push((path, mine));
            last = Some(manifest);
            continue;
        }
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
        last = Some(manifest);
    }
    for (path, mine) in interrupted {
        if mine.into_iter().any(|index| !seen.contains(&shard_name(index))) {
            return Err(Error::Mismatch {
                path,
                what: "state of the run".into(),
                expected: "complete".into(),
                found: "interrupted; run the same command again to finish it".into(),
            });
        }
    }
    let Some(manifest) = last else { return Ok(verified) };
    let all_shards = manifest.pairs.div_ceil(manifest.shard_rows);
    let embeddings = manifest.settings["output"]["kind"] == "embeddings";
    verified.run_pairs = manifest.pairs;
    let whole = verified.pairs == manifest.pairs;
    if recompute > 0 && embeddings && whole {
        verified.recomputed = recompute_pairs(folder, io, backend, recompute, all_shards)?;
    }
    Ok(verified)
}

/// The shards of a manifest's part. Fails unless a complete manifest lists exactly them, with all their pairs.
fn check_list(path: &Path, manifest: &Manifest) -> Result<Range<u64>> {
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
    if !manifest.complete {
        return Ok(shards);
    }
    if manifest.shards.len() as u64 != shards.end - shards.start {
        let expected = (shards.end - shards.start).to_string();
        return differs("number of shards".into(), expected, manifest.shards.len().to_string());
    }
    for (record, index) in manifest.shards.iter().zip(shards.clone()) {
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
    Ok(shards)
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
