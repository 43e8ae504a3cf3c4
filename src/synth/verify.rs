//! Checking a folder of shards: every byte against its checksum, and pairs made again from the recipe.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::folder::{
    Listed, MANIFEST_AGAIN, SHARD_AGAIN, advise, check_header, read_run, recipe_difference, require_complete,
};
use super::remake::{Here, remake};
use super::{Moved, Recipe, Recompute};
use crate::backend::Backend;
use crate::data::{Io, ShardRecord, verify_shard};
use crate::error::{Error, Result};

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

/// How a folder is checked.
#[derive(Clone, Debug, Default)]
pub struct VerifyOptions {
    /// How files are read.
    pub io: Io,
    /// Which pairs are made again.
    pub recompute: Recompute,
    /// What the sample of pairs is drawn from: other seeds draw other pairs.
    pub seed: u64,
    /// Where the seeds and the VAE of the recipe are, if they have moved.
    pub moved: Moved,
}

/// How far a check is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VerifyStep {
    /// Bytes held against their checksums.
    Bytes {
        /// So far.
        done: u64,
        /// Of so many.
        total: u64,
    },
    /// Pairs made again.
    Pairs {
        /// So far.
        done: u64,
        /// Of so many.
        total: u64,
    },
}

/// Re-reads the shards of a folder and compares sizes, headers and checksums with its manifests, and these with the
/// recipe; then makes pairs again, as embeddings or latents, and compares them bit by bit. `progress` hears how far it is.
///
/// # Errors
/// [`Error::Mismatch`] with the first difference, and [`Error::Incomplete`] for a shard that is missing or a run that
/// was interrupted, each with what the user can do. An interrupted part is no error where another cut of the same run
/// has made its shards; neither are parts that lie elsewhere.
pub fn verify_folder<B: Backend>(
    folder: &Path,
    backend: &B,
    options: &VerifyOptions,
    progress: &mut dyn FnMut(VerifyStep),
) -> Result<Verified> {
    let listed = read_run(folder).map_err(|e| advise(e, MANIFEST_AGAIN))?;
    for begun in listed.iter().filter(|l| !l.manifest.complete) {
        require_complete(folder, &listed, begun.mine.clone())?;
    }
    let manifest = &listed[0].manifest;
    let recipe_path = folder.join("recipe.json");
    let recipe = match Recipe::read(&recipe_path) {
        Ok(recipe) => Some(recipe),
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(advise(error, RECIPE_AGAIN)),
    };
    if let Some((setting, expected, found)) = recipe.as_ref().and_then(|r| recipe_difference(manifest, r)) {
        let what = format!("setting `{setting}` (against {})", listed[0].name());
        let error = Error::Mismatch { path: recipe_path, what, expected, found };
        return Err(advise(error, RECIPE_AGAIN));
    }

    // A shard may stand in the manifests of several cuts.
    let mut records: BTreeMap<u64, (&Listed, &ShardRecord)> = BTreeMap::new();
    for part in listed.iter().filter(|l| l.manifest.complete) {
        for (index, record) in part.records() {
            records.entry(index).or_insert((part, record));
        }
    }
    let total = records.values().map(|(_, record)| record.bytes).sum();
    let mut verified = Verified { run_pairs: manifest.pairs, ..Verified::default() };
    let mut here = Vec::with_capacity(records.len());
    progress(VerifyStep::Bytes { done: 0, total });
    for (&index, &(part, record)) in &records {
        check_header(folder, part, index, record)?;
        let path = folder.join(&record.file);
        verify_shard(&path, options.io).map_err(|e| advise(e, SHARD_AGAIN))?;
        verified.shards += 1;
        verified.pairs += record.rows;
        verified.bytes += record.bytes;
        let first = part.first_pair(index);
        here.push(Here { path, pairs: first..first + record.rows });
        progress(VerifyStep::Bytes { done: verified.bytes, total });
    }
    if options.recompute == Recompute::NONE || here.is_empty() {
        return Ok(verified);
    }
    let Some(recipe) = recipe else {
        return Err(Error::Incomplete {
            path: recipe_path,
            missing: "No such file, and without it no pair can be made again".into(),
            hint: format!("{RECIPE_AGAIN}; --recompute 0 does without"),
        });
    };
    let made_in = &manifest.settings["output"]["precision"];
    if *made_in != serde_json::json!(backend.arithmetic()) {
        let expected =
            format!("{made_in}, in which {} was made (--recompute 0 does without)", folder.display());
        return Err(Error::option("--precision and --device", expected, backend.arithmetic()));
    }
    let (seeds, vae) = recipe.open_moved(&recipe_path, options.io, &options.moved)?;
    verified.recomputed = remake((&recipe, &seeds, &vae), backend, &here, options, progress)?;
    Ok(verified)
}

/// What makes a damaged recipe good.
const RECIPE_AGAIN: &str =
    "the same synth command writes recipe.json anew: remove what is left of it and run that again";
