//! Runs in parts: each part of a run writes its own manifest beside the others. Here manifests are read and checked, each
//! alone and against the others, and missing shards are named together with the parts that make them.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::data::{
    MANIFEST, MAX_SHARDS, Manifest, PairSet, PlannedShard, ShardRecord, at_once, file_name, inspect_shard,
    is_folder, is_there, manifests, shard_name, shard_number,
};
use crate::error::{Error, Result};

/// What names of shards start with.
pub(super) const PREFIX: &str = "pairs";

/// Most parts that a message names.
const NAMED: usize = 4;

/// Part `index` (from 0) of `count` of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Which part.
    pub index: u64,
    /// Of how many.
    pub count: u64,
}

impl Part {
    /// The whole run.
    pub const WHOLE: Part = Part { index: 0, count: 1 };

    /// Which of `all` shards this part makes.
    pub fn of(self, all: u64) -> std::ops::Range<u64> {
        // In 128 bits: a manifest may claim any numbers.
        let cut = |i: u64| (u128::from(i) * u128::from(all) / u128::from(self.count)) as u64;
        cut(self.index)..cut(self.index + 1)
    }

    /// File name of its manifest.
    pub(super) fn manifest_name(self) -> String {
        match self {
            Part::WHOLE => MANIFEST.into(),
            Part { index, count } => format!("manifest.part-{index}-of-{count}.json"),
        }
    }

    /// The part whose manifest is called so.
    pub(super) fn of_manifest(name: &str) -> Option<Part> {
        if name == MANIFEST {
            return Some(Part::WHOLE);
        }
        let part = name.strip_prefix("manifest.part-")?.strip_suffix(".json")?;
        let (index, count) = part.split_once("-of-")?;
        let (index, count) = (index.parse().ok()?, count.parse().ok()?);
        (index < count).then_some(Part { index, count })
    }

    /// The part of `count` that holds shard `index` of `all`.
    fn holding(index: u64, all: u64, count: u64) -> Part {
        // The last one that starts at this shard or before it.
        let part = ((u128::from(index) + 1) * u128::from(count) - 1) / u128::from(all);
        Part { index: part as u64, count }
    }
}

impl std::str::FromStr for Part {
    type Err = Error;

    fn from_str(text: &str) -> Result<Part> {
        let parse = || {
            let (index, count) = text.split_once('/')?;
            let (index, count) = (index.parse().ok()?, count.parse().ok()?);
            (index < count).then_some(Part { index, count })
        };
        parse().ok_or_else(|| Error::argument("part", "i/N with i from 0 to N - 1, as in 0/4", text))
    }
}

/// How many leading pairs are original ones, if `pairs`, opened from `sources`, are one folder that
/// [`Engine::synthesize`](crate::Engine::synthesize) made as a whole. Training on them standardises embeddings by those, as
/// training from the recipe does.
///
/// # Errors
/// A manifest that cannot be read.
pub fn leading_originals(sources: &[String], pairs: &PairSet) -> Result<Option<usize>> {
    let [folder] = sources else { return Ok(None) };
    if !is_folder(Path::new(folder))? {
        return Ok(None);
    }
    // Any manifest will do: all parts of a run have the same settings.
    let Some(path) = manifests(Path::new(folder))?.into_iter().next() else { return Ok(None) };
    let manifest = Manifest::read(&path)?;
    let seeds = manifest.settings["plan"]["seeds"].as_u64();
    Ok(seeds.filter(|_| manifest.pairs == pairs.len() as u64).map(|n| n as usize))
}

/// The manifest of a part or of a whole run, which does not contradict itself.
#[derive(Debug)]
pub(super) struct PartManifest {
    pub path: PathBuf,
    pub manifest: Manifest,
    /// Numbers of the shards of its part.
    pub shards: Range<u64>,
}

impl PartManifest {
    fn read(path: PathBuf) -> Result<PartManifest> {
        let manifest = Manifest::read(&path)?;
        let shards = check(&path, &manifest)?;
        Ok(PartManifest { path, manifest, shards })
    }

    /// File name of the manifest.
    pub fn name(&self) -> String {
        file_name(&self.path)
    }

    pub fn part(&self) -> Part {
        self.manifest.part.map_or(Part::WHOLE, |(index, count)| Part { index, count })
    }

    /// The numbers of the shards it lists, with their records.
    pub fn records(&self) -> impl Iterator<Item = (u64, &ShardRecord)> {
        let number = |record: &ShardRecord| shard_number(PREFIX, &record.file).expect("the list was checked");
        self.manifest.shards.iter().map(move |record| (number(record), record))
    }
}

/// Reads the manifests of a folder, by name; at least one.
///
/// # Errors
/// [`Error::Mismatch`] if one contradicts itself, if two are of different runs (the first setting that differs is
/// named), or if two know the same shard by different records.
pub(super) fn read_run(folder: &Path) -> Result<Vec<PartManifest>> {
    let paths = manifests(folder)?;
    if paths.is_empty() {
        return Err(Error::TooFew { what: format!("{}: manifests", folder.display()), needed: 1, found: 0 });
    }
    let parts = at_once(&paths, |path| PartManifest::read(path.clone()))?;
    let first = &parts[0];
    let mut known: BTreeMap<&str, (&PartManifest, &ShardRecord)> = BTreeMap::new();
    for other in &parts {
        let differs = |what: String, expected: String, found: String| {
            Err(Error::Mismatch { path: other.path.clone(), what, expected, found })
        };
        let against = format!("(against {})", first.name());
        if let Some((setting, there, here)) = first.manifest.difference(&other.manifest.settings) {
            return differs(format!("setting `{setting}` {against}"), there, here);
        }
        if other.manifest.pairs != first.manifest.pairs {
            let [expected, found] = [first, other].map(|l| l.manifest.pairs.to_string());
            return differs(format!("number of pairs {against}"), expected, found);
        }
        for record in &other.manifest.shards {
            let (whose, expected) = known.entry(record.file.as_str()).or_insert((other, record));
            if *expected != record {
                let what = format!("record of {} (against {})", record.file, whose.name());
                return differs(what, format!("{expected:?}"), format!("{record:?}"));
            }
        }
    }
    Ok(parts)
}

/// Number of shards of the whole run; a recipe has none.
pub(super) fn all_shards(manifest: &Manifest) -> u64 {
    match manifest.settings["output"]["kind"] == "recipe" {
        true => 0,
        false => manifest.pairs.div_ceil(manifest.shard_rows),
    }
}

/// The shards of a manifest's part. Fails unless its settings have its fingerprint, its numbers go with its settings
/// and its name, and it lists shards of its part, in order and with all their pairs; all of them if it is complete.
fn check(path: &Path, manifest: &Manifest) -> Result<Range<u64>> {
    let require = |what: &str, expected: String, found: String| match expected == found {
        true => Ok(()),
        false => Err(Error::Mismatch { path: path.to_path_buf(), what: what.into(), expected, found }),
    };
    require(
        "fingerprint of the settings",
        Manifest::digest(&manifest.settings),
        manifest.fingerprint.clone(),
    )?;
    let (index, count) = manifest.part.unwrap_or((0, 1));
    if manifest.shard_rows == 0 || index >= count {
        let found = format!("{} rows, part {index} of {count}", manifest.shard_rows);
        let expected = "1 row or more, a part below their number";
        return require("rows of a shard or part", expected.into(), found).map(|()| 0..0);
    }
    let setting = |pointer: &str| manifest.settings.pointer(pointer).and_then(Value::as_u64);
    if let Some(rows) = setting("/output/shard_rows") {
        require("rows of a shard", rows.to_string(), manifest.shard_rows.to_string())?;
    }
    if let (Some(seeds), Some(fold)) = (setting("/plan/seeds"), setting("/plan/fold")) {
        let pairs = seeds.saturating_mul(fold);
        require("number of pairs", pairs.to_string(), manifest.pairs.to_string())?;
    }
    let named = Part { index, count }.manifest_name();
    let name = file_name(path);
    require("part, by the file's name,", name, named)?;

    let all = all_shards(manifest);
    if all > MAX_SHARDS {
        return require("number of shards of the run", format!("at most {MAX_SHARDS}"), all.to_string())
            .map(|()| 0..0);
    }
    let mine = Part { index, count }.of(all);
    let listed = manifest.shards.len() as u64;
    if manifest.complete {
        require("number of shards", (mine.end - mine.start).to_string(), listed.to_string())?;
    }
    let mut next = mine.start;
    for record in &manifest.shards {
        let found = format!("{} with {} pairs", record.file, record.rows);
        // A complete list has no gaps.
        let number = shard_number(PREFIX, &record.file).filter(|i| mine.contains(i) && *i >= next);
        let at = number.filter(|i| !manifest.complete || *i == next).unwrap_or(next);
        let rows =
            manifest.shard_rows.min(manifest.pairs.saturating_sub(at.saturating_mul(manifest.shard_rows)));
        require("list of shards", format!("{} with {rows} pairs", shard_name(PREFIX, at)), found)?;
        next = at + 1;
    }
    Ok(mine)
}

/// Fails unless shard `index` is there with the size and the header that `part` records.
pub(super) fn check_header(
    folder: &Path,
    part: &PartManifest,
    index: u64,
    record: &ShardRecord,
) -> Result<PlannedShard> {
    let shard = PlannedShard::new(folder, PREFIX, &part.manifest, index);
    if !is_there(&shard.path)? {
        return Err(missing_file(part, shard.path));
    }
    let check = || {
        let (header, found) = inspect_shard(&shard.path)?;
        if found.as_ref() != Some(record) {
            let what = format!("record in the manifest ({})", part.name());
            let found = found.map_or("no checksums".into(), |f| format!("{f:?}"));
            let (path, expected) = (shard.path.clone(), format!("{record:?}"));
            return Err(Error::Mismatch { path, what, expected, found });
        }
        shard.require_metadata(&header)
    };
    check().map_err(|e| advise(e, SHARD_AGAIN))?;
    Ok(shard)
}

/// Fails unless a shard in a store has the length that `part` records; `found` is its length, if it is there.
pub(super) fn check_length(
    folder: &Path,
    part: &PartManifest,
    record: &ShardRecord,
    found: Option<u64>,
) -> Result<()> {
    let path = folder.join(&record.file);
    match found {
        Some(len) if len == record.bytes => Ok(()),
        None => Err(missing_file(part, path)),
        Some(len) => {
            let what = format!("length in the manifest ({})", part.name());
            let (expected, found) =
                (format!("{} bytes", record.bytes), format!("{len} bytes; {SHARD_AGAIN}"));
            Err(Error::Mismatch { path, what, expected, found })
        }
    }
}

/// What the user can do about a damaged shard.
pub(super) const SHARD_AGAIN: &str =
    "remove the file and run the same synth command again: it makes the shard anew";

/// What the user can do about a damaged manifest.
pub(super) const MANIFEST_AGAIN: &str = "if the file is damaged, put a copy in its place, or remove it and run the same \
                                         synth command again (overwriting the folder where no other manifest is left)";

/// The error for a shard that a manifest lists and that is gone.
fn missing_file(part: &PartManifest, path: PathBuf) -> Error {
    let missing = format!("No such file, though {} lists it", part.name());
    missing_parts(path, missing, &[part.part()])
}

/// Adds to an error what the user can do.
pub(super) fn advise(error: Error, hint: &str) -> Error {
    match error {
        Error::Mismatch { path, what, expected, found } => {
            Error::Mismatch { path, what, expected, found: format!("{found}; {hint}") }
        }
        Error::Format { path, format, detail } => {
            Error::Format { path, format, detail: format!("{detail}; {hint}") }
        }
        other => other,
    }
}

/// Fails with [`Error::Incomplete`] unless complete manifests list every shard of `wanted`. The error names what is
/// missing by parts.
pub(super) fn require_complete(folder: &Path, parts: &[PartManifest], wanted: Range<u64>) -> Result<()> {
    let mut covered = vec![false; (wanted.end - wanted.start) as usize];
    for part in parts.iter().filter(|p| p.manifest.complete) {
        let within = part.shards.start.max(wanted.start)..part.shards.end.min(wanted.end);
        within.for_each(|index| covered[(index - wanted.start) as usize] = true);
    }
    let gaps: Vec<u64> = wanted.clone().filter(|i| !covered[(i - wanted.start) as usize]).collect();
    if gaps.is_empty() {
        return Ok(());
    }
    // The number of parts that most manifests have.
    let mut votes: BTreeMap<u64, usize> = BTreeMap::new();
    parts.iter().for_each(|p| *votes.entry(p.part().count).or_default() += 1);
    let usual = votes.into_iter().max_by_key(|&(count, votes)| (votes, count)).map_or(1, |v| v.0);
    let interrupted: Vec<&PartManifest> = parts.iter().filter(|p| !p.manifest.complete).collect();
    let manifest = &parts[0].manifest;
    // Missing shards by the part that makes them: one that was interrupted, else one of the usual number.
    let mut makers: Vec<(Part, Option<&PartManifest>, Vec<u64>)> = Vec::new();
    for &index in &gaps {
        let begun = interrupted.iter().copied().find(|p| p.shards.contains(&index));
        let part =
            begun.map_or_else(|| Part::holding(index, all_shards(manifest), usual), PartManifest::part);
        match makers.last_mut().filter(|m| m.0 == part) {
            Some((.., shards)) => shards.push(index),
            None => makers.push((part, begun, vec![index])),
        }
    }
    let described = makers.iter().take(NAMED).map(|(part, begun, shards)| {
        let name = |index| shard_name(PREFIX, index);
        let range = match shards[..] {
            [one] => name(one),
            _ => format!("{} to {}", name(shards[0]), name(shards[shards.len() - 1])),
        };
        let state = match begun {
            Some(manifest) => format!("{} was interrupted", manifest.name()),
            None => format!("no complete {}", part.manifest_name()),
        };
        match *part {
            Part::WHOLE => format!("{range} ({state})"),
            Part { index, count } => format!("{range} of part {index}/{count} ({state})"),
        }
    });
    let mut missing = described.collect::<Vec<_>>().join(", ");
    if makers.len() > NAMED {
        missing.push_str(&format!(" and those of {} more parts", makers.len() - NAMED));
    }
    let (gaps, all) = (gaps.len(), all_shards(manifest));
    let missing = format!("{gaps} of the run's {all} shards are missing: {missing}");
    let makers: Vec<Part> = makers.iter().map(|maker| maker.0).collect();
    Err(missing_parts(folder.to_path_buf(), missing, &makers))
}

/// The error for what is missing and is made by parts of the run.
fn missing_parts(path: PathBuf, missing: String, parts: &[Part]) -> Error {
    let parts = parts.iter().map(|part| (part.index, part.count)).collect();
    Error::Incomplete { path, missing, hint: "made by the same job again".into(), parts }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_part_that_holds_a_shard_is_found() {
        for (shards, count) in [(1, 1), (5, 2), (7, 3), (16, 16), (100_000, 7), (17, 13)] {
            for index in 0..shards {
                let part = Part::holding(index, shards, count);
                assert!(part.of(shards).contains(&index), "{index} of {shards}: {part:?}");
            }
        }
    }
}
