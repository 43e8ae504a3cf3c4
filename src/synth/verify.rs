//! Checking a folder of shards: every byte against its checksum, and pairs made again from the recipe.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::str::FromStr;

use rand::RngCore;
use serde::{Deserialize, Serialize};

use super::generate::{LatentBatch, PairBatch, Synthesizer};
use super::parts::{
    MANIFEST_AGAIN, PartManifest, SHARD_AGAIN, advise, all_shards, check_header, read_run, require_complete,
};
use super::recipe::{Moved, Recipe};
use crate::backend::Backend;
use crate::data::{
    Io, LATENT_CANDIDATE, LATENT_SEED, LATENT_Z, LatentSet, PairOptions, PairSet, PlannedShard, RECIPE,
    ShardRecord, inspect_shard, verify_shard,
};
use crate::error::{Error, Result};
use crate::matrix::Side;
use crate::model::Vae;
use crate::noise::{Purpose, Stream};

/// Which pairs are made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recompute {
    /// A random sample of so many, or all where there are no more.
    Sample(u64),
    /// All of them.
    All,
}

impl Recompute {
    /// No pair at all.
    pub const NONE: Recompute = Recompute::Sample(0);
}

impl Default for Recompute {
    fn default() -> Recompute {
        Recompute::Sample(16)
    }
}

impl FromStr for Recompute {
    type Err = Error;

    fn from_str(text: &str) -> Result<Recompute> {
        match (text, text.parse()) {
            ("all", _) => Ok(Recompute::All),
            (_, Ok(count)) => Ok(Recompute::Sample(count)),
            (_, Err(_)) => Err(Error::argument("recompute", "a number of pairs, or all", text)),
        }
    }
}

impl fmt::Display for Recompute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Recompute::Sample(count) => count.fmt(f),
            Recompute::All => f.pad("all"),
        }
    }
}

/// What a check of a folder found in order.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Verified {
    /// Shards read.
    pub shards: usize,
    /// Pairs in them.
    pub pairs: u64,
    /// Pairs of the whole run: more than `pairs` where some parts are elsewhere.
    pub run_pairs: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Pairs made again from the recipe and found equal in every bit.
    pub recomputed: u64,
    /// Which shards of the run are not here, and which parts make them, where some are elsewhere.
    pub missing: Option<String>,
    /// Those parts, as index and count.
    pub missing_parts: Vec<(u64, u64)>,
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
        /// Bytes read so far.
        done: u64,
        /// Bytes of the folder.
        total: u64,
    },
    /// Pairs made again.
    Pairs {
        /// Pairs made so far.
        done: u64,
        /// Pairs to be made.
        total: u64,
    },
}

/// Re-reads the shards of a folder and compares sizes, headers and checksums with its manifests, and these with the
/// recipe; then makes pairs again, as embeddings or latents, and compares them bit by bit. `on_step` is told how far it is.
///
/// # Errors
/// [`Error::Mismatch`] with the first difference, and [`Error::Incomplete`] for a shard that is missing or a run that
/// was interrupted, each with what the user can do. An interrupted part is no error where another cut of the same run
/// has made its shards; neither are parts that are elsewhere.
pub fn verify_folder<B: Backend>(
    folder: &Path,
    backend: &B,
    options: &VerifyOptions,
    on_step: &mut dyn FnMut(VerifyStep),
) -> Result<Verified> {
    let parts = read_run(folder).map_err(|e| advise(e, MANIFEST_AGAIN))?;
    for interrupted in parts.iter().filter(|p| !p.manifest.complete) {
        require_complete(folder, &parts, interrupted.shards.clone())?;
    }
    let manifest = &parts[0].manifest;
    let recipe_path = folder.join(RECIPE);
    let recipe = match Recipe::read(&recipe_path) {
        Ok(recipe) => Some(recipe),
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(advise(error, RECIPE_AGAIN)),
    };
    if let Some((setting, expected, found)) = recipe.as_ref().and_then(|r| r.difference(manifest)) {
        let what = format!("setting `{setting}` (against {})", parts[0].name());
        let error = Error::Mismatch { path: recipe_path, what, expected, found };
        return Err(advise(error, RECIPE_AGAIN));
    }

    // A shard may be in several manifests, where the run was cut in different ways; their records are equal.
    let mut records: BTreeMap<u64, (&PartManifest, &ShardRecord)> = BTreeMap::new();
    for part in parts.iter().filter(|p| p.manifest.complete) {
        for (index, record) in part.records() {
            records.entry(index).or_insert((part, record));
        }
    }
    let total = records.values().map(|(_, record)| record.bytes).sum();
    let mut verified = Verified { run_pairs: manifest.pairs, ..Verified::default() };
    let mut shards = Vec::with_capacity(records.len());
    on_step(VerifyStep::Bytes { done: 0, total });
    for (&index, &(part, record)) in &records {
        let shard = check_header(folder, part, index, record)?;
        verify_shard(&shard.path, options.io).map_err(|e| advise(e, SHARD_AGAIN))?;
        verified.shards += 1;
        verified.pairs += record.rows;
        verified.bytes += record.bytes;
        shards.push(shard);
        on_step(VerifyStep::Bytes { done: verified.bytes, total });
    }
    match require_complete(folder, &parts, 0..all_shards(manifest)) {
        Err(Error::Incomplete { missing, parts, .. }) => {
            (verified.missing, verified.missing_parts) = (Some(missing), parts);
        }
        other => other?,
    }
    if options.recompute == Recompute::NONE || shards.is_empty() {
        return Ok(verified);
    }
    let Some(recipe) = recipe else {
        return Err(Error::Incomplete {
            path: recipe_path,
            missing: "No such file, and without it no pair can be made again".into(),
            hint: format!("{RECIPE_AGAIN}; `recompute` 0 does without"),
            parts: Vec::new(),
        });
    };
    let made_in = &manifest.settings["output"]["precision"];
    if *made_in != serde_json::json!(backend.arithmetic()) {
        let expected =
            format!("{made_in}, in which {} was made (recomputing 0 pairs does without)", folder.display());
        return Err(Error::argument("precision and device", expected, backend.arithmetic()));
    }
    let (seeds, vae) = recipe.open(&recipe_path, options.io, &options.moved)?;
    verified.recomputed = recompute((&recipe, &seeds, &vae), backend, &shards, options, on_step)?;
    Ok(verified)
}

/// What the user can do about a damaged recipe.
const RECIPE_AGAIN: &str =
    "the same synth command writes recipe.json anew: remove what is left of it and run that again";

/// Makes pairs of `shards`, which are in rising order, again, and gives how many were equal in every bit.
fn recompute<B: Backend>(
    (recipe, seeds, vae): (&Recipe, &PairSet, &Vae),
    backend: &B,
    shards: &[PlannedShard],
    options: &VerifyOptions,
    on_step: &mut dyn FnMut(VerifyStep),
) -> Result<u64> {
    let make = Synthesizer::new(backend, vae, seeds, (recipe.plan, recipe.perturbation), recipe.mode)?;
    let all: u64 = shards.iter().map(|shard| shard.rows.end - shard.rows.start).sum();
    let sample = match options.recompute {
        Recompute::Sample(count) if count < all => Some(draw(count, all, options.seed)),
        _ => None,
    };
    let total = sample.as_ref().map_or(all, |s| s.len() as u64);
    let mut done = 0;
    on_step(VerifyStep::Pairs { done, total });
    // Pairs in the shards before this one.
    let mut before = 0;
    for shard in shards {
        let count = shard.rows.end - shard.rows.start;
        let ranges: Vec<Range<u64>> = match &sample {
            None => vec![shard.rows.clone()],
            Some(sample) => {
                let drawn = sample.range(before..before + count).map(|at| shard.rows.start + at - before);
                drawn.map(|pair| pair..pair + 1).collect()
            }
        };
        before += count;
        if ranges.is_empty() {
            continue;
        }
        let on_disk = ShardOnDisk::open(shard, &make, options.io)?;
        for range in ranges {
            let compared = on_disk.compare(&make, shard, range, &mut |pairs| {
                done += pairs;
                on_step(VerifyStep::Pairs { done, total });
            });
            if let Err(error) = compared {
                // A file that changed during the check explains the difference better.
                seeds.require_unchanged()?;
                on_disk.require_unchanged()?;
                return Err(error);
            }
        }
        on_disk.require_unchanged()?;
    }
    seeds.require_unchanged()?;
    Ok(done)
}

/// `count` different numbers below `all`, which are more (Floyd's algorithm).
fn draw(count: u64, all: u64, seed: u64) -> BTreeSet<u64> {
    let mut stream = Stream::new(seed, Purpose::Shuffle, 3 << 32);
    let mut drawn = BTreeSet::new();
    for most in all - count..all {
        let at = stream.next_u64() % (most + 1);
        if !drawn.insert(at) {
            drawn.insert(most);
        }
    }
    drawn
}

enum ShardOnDisk {
    Embeddings(PairSet),
    Latents(LatentSet),
}

impl ShardOnDisk {
    /// Opens a shard of embeddings or latents, and checks that its sizes are the recipe's.
    fn open<B: Backend>(shard: &PlannedShard, make: &Synthesizer<'_, B>, io: Io) -> Result<ShardOnDisk> {
        let source = [shard.path.to_string_lossy().into_owned()];
        let (header, _) = inspect_shard(&shard.path)?;
        let latents = header.tensors.iter().any(|t| t.name == LATENT_Z[0]);
        let (on_disk, found, width) = if latents {
            let set = LatentSet::open(&source, io)?;
            let found = (set.len(), set.latent());
            (ShardOnDisk::Latents(set), found, make.latent())
        } else {
            let set = PairSet::open(&source, &PairOptions { io, ..PairOptions::default() })?;
            let found = (set.len(), set.dim());
            (ShardOnDisk::Embeddings(set), found, make.dim())
        };
        let expected = ((shard.rows.end - shard.rows.start) as usize, width);
        if found != expected {
            return Err(Error::Mismatch {
                path: shard.path.clone(),
                what: "number of pairs and width".into(),
                expected: format!("{expected:?}"),
                found: format!("{found:?}; {SHARD_AGAIN}"),
            });
        }
        Ok(on_disk)
    }

    fn require_unchanged(&self) -> Result<()> {
        match self {
            ShardOnDisk::Embeddings(set) => set.require_unchanged(),
            ShardOnDisk::Latents(set) => set.require_unchanged(),
        }
    }

    /// Makes `pairs` again and compares them with the shard's bytes; `on_equal` is told how many more were equal.
    fn compare<B: Backend>(
        &self,
        make: &Synthesizer<'_, B>,
        shard: &PlannedShard,
        pairs: Range<u64>,
        on_equal: &mut dyn FnMut(u64),
    ) -> Result<()> {
        match self {
            ShardOnDisk::Embeddings(set) => make.embeddings(pairs, set.files()[0].dtype, &mut |batch| {
                compare_embeddings(set, shard, batch)?;
                on_equal(batch.chosen.rows() as u64);
                Ok(())
            }),
            ShardOnDisk::Latents(set) => make.latents(pairs, &mut |batch| {
                compare_latents(set, shard, batch)?;
                on_equal(batch.seed.len() as u64);
                Ok(())
            }),
        }
    }
}

fn compare_embeddings(set: &PairSet, shard: &PlannedShard, batch: &PairBatch) -> Result<()> {
    let at = (batch.first - shard.rows.start) as usize;
    for (side, made) in Side::BOTH.into_iter().zip([&batch.chosen, &batch.rejected]) {
        let block = set.rows(side, at..at + made.rows())?;
        let (there, made) = (block.view(), made.view());
        for row in 0..made.rows() {
            let (there, here) = (there.row(row).bytes(), made.row(row).bytes());
            require_same(shard, batch.first + row as u64, side.name(), there, here, made.dtype().size())?;
        }
    }
    Ok(())
}

fn compare_latents(set: &LatentSet, shard: &PlannedShard, batch: &LatentBatch) -> Result<()> {
    let at = (batch.first - shard.rows.start) as usize;
    let there = set.rows(at..at + batch.seed.len()).map_err(|e| advise(e, SHARD_AGAIN))?;
    for row in 0..batch.seed.len() {
        let pair = batch.first + row as u64;
        let same =
            |tensor, there: &[u8], here: &[u8], size| require_same(shard, pair, tensor, there, here, size);
        let one = row..row + 1;
        let wide = row * set.latent()..(row + 1) * set.latent();
        let seeds = [&there.seed[one.clone()], &batch.seed[one.clone()]].map(bytemuck::cast_slice);
        same(LATENT_SEED, seeds[0], seeds[1], 8)?;
        for s in 0..2 {
            let numbers = [&there.candidate[s][one.clone()], &batch.candidate[s][one.clone()]]
                .map(bytemuck::cast_slice);
            same(LATENT_CANDIDATE[s], numbers[0], numbers[1], 4)?;
            let z = [&there.z[s][wide.clone()], &batch.z[s][wide.clone()]].map(bytemuck::cast_slice);
            same(LATENT_Z[s], z[0], z[1], 4)?;
        }
    }
    Ok(())
}

/// Fails unless the stored row of `pair` has the bytes of the one that was made; values take `size` bytes.
fn require_same(
    shard: &PlannedShard,
    pair: u64,
    tensor: &str,
    there: &[u8],
    here: &[u8],
    size: usize,
) -> Result<()> {
    if there == here {
        return Ok(());
    }
    let at = there.iter().zip(here).position(|(a, b)| a != b).map_or(0, |at| at / size);
    Err(Error::Mismatch {
        path: shard.path.clone(),
        what: format!("pair {pair} (tensor `{tensor}`), made again from the recipe,"),
        expected: "the same bytes".into(),
        found: format!(
            "other bytes from column {at} on; if the run computed in BF16, check it in BF16; else {SHARD_AGAIN}"
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_distinct_within_range_and_drawn_anew() {
        for (count, all) in [(0, 5), (1, 2), (16, 17), (100, 1000)] {
            let drawn = draw(count, all, 3);
            assert_eq!(drawn.len() as u64, count);
            assert!(drawn.iter().all(|&at| at < all));
        }
        assert_ne!(draw(16, 1000, 3), draw(16, 1000, 4));
        // Every number as likely: 400 draws of 5 of 20, 100 times each but for some 9.
        let mut hits = [0i32; 20];
        (0..400).for_each(|seed| draw(5, 20, seed).iter().for_each(|&at| hits[at as usize] += 1));
        assert!(hits.iter().all(|h| (h - 100).abs() < 50), "{hits:?}");
    }

    #[test]
    fn numbers_and_all_are_read() {
        for (text, value) in [("0", Recompute::NONE), ("16", Recompute::default()), ("all", Recompute::All)] {
            assert_eq!(text.parse::<Recompute>().unwrap(), value);
            assert_eq!(value.to_string(), text);
        }
        for text in ["", "some", "-1", "All"] {
            let error = text.parse::<Recompute>().unwrap_err();
            assert!(error.to_string().starts_with("recompute: "), "{error}");
        }
    }
}
