//! A folder of shards as its manifests tell it: one run, in one cut or in several.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::lanes::{FINGERPRINT, FIRST_PAIR};
use super::pipeline::{MAX_SHARDS, shard_name};
use super::{Part, Recipe};
use crate::data::{Manifest, ShardRecord, inspect_shard};
use crate::error::{Error, Result};

/// Most parts that a message names.
const NAMED: usize = 4;

/// A manifest of a folder, in order in itself.
#[derive(Debug)]
pub(super) struct Listed {
    /// Where it is.
    pub path: PathBuf,
    /// What it says.
    pub manifest: Manifest,
    /// Numbers of the shards of its part.
    pub mine: Range<u64>,
}

impl Listed {
    /// Reads a manifest and checks that what it says goes together.
    fn read(path: PathBuf) -> Result<Listed> {
        let manifest = Manifest::read(&path)?;
        let mine = check(&path, &manifest)?;
        Ok(Listed { path, manifest, mine })
    }

    /// File name of the manifest.
    pub fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Its part of the run.
    pub fn part(&self) -> Part {
        self.manifest.part.map_or(Part::WHOLE, |(index, count)| Part { index, count })
    }

    /// The numbers of the shards it lists, with their records.
    pub fn records(&self) -> impl Iterator<Item = (u64, &ShardRecord)> {
        let number = |record: &ShardRecord| shard_number(&record.file).expect("the list was checked");
        self.manifest.shards.iter().map(move |record| (number(record), record))
    }

    /// Numbers of the first pair of shard `index`.
    pub fn first_pair(&self, index: u64) -> u64 {
        index * self.manifest.shard_rows
    }
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

/// Reads the manifests of a folder, by name; at least one.
///
/// # Errors
/// [`Error::Mismatch`] if one contradicts itself, if two are of different runs (the first setting that differs is
/// named), or if two know the same shard by different records.
pub(super) fn read_run(folder: &Path) -> Result<Vec<Listed>> {
    let paths = manifests(folder)?;
    if paths.is_empty() {
        return Err(Error::TooFew { what: format!("{}: manifests", folder.display()), needed: 1, found: 0 });
    }
    let listed = paths.into_iter().map(Listed::read).collect::<Result<Vec<_>>>()?;
    let first = &listed[0];
    let mut known: BTreeMap<&str, (&Listed, &ShardRecord)> = BTreeMap::new();
    for other in &listed {
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
    Ok(listed)
}

impl Part {
    /// File name of its manifest.
    pub(super) fn manifest_name(self) -> String {
        match self {
            Part::WHOLE => "manifest.json".into(),
            Part { index, count } => format!("manifest.part-{index}-of-{count}.json"),
        }
    }

    /// The part of `count` that holds shard `index` of `all`.
    fn holding(index: u64, all: u64, count: u64) -> Part {
        // The last one that starts at this shard or before it.
        let part = ((u128::from(index) + 1) * u128::from(count) - 1) / u128::from(all);
        Part { index: part as u64, count }
    }
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
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
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
        // A complete list leaves none out.
        let number = shard_number(&record.file).filter(|i| mine.contains(i) && *i >= next);
        let at = number.filter(|i| !manifest.complete || *i == next).unwrap_or(next);
        let rows =
            manifest.shard_rows.min(manifest.pairs.saturating_sub(at.saturating_mul(manifest.shard_rows)));
        require("list of shards", format!("{} with {rows} pairs", shard_name(at)), found)?;
        next = at + 1;
    }
    Ok(mine)
}

/// The number of a shard by its file name.
fn shard_number(name: &str) -> Option<u64> {
    let number = name.strip_prefix("pairs-")?.strip_suffix(".safetensors")?.parse().ok()?;
    (shard_name(number) == name).then_some(number)
}

/// Fails unless a shard's file is there with the size and the header that the manifest records.
pub(super) fn check_header(folder: &Path, listed: &Listed, index: u64, record: &ShardRecord) -> Result<()> {
    let path = folder.join(&record.file);
    if !fs::exists(&path).map_err(Error::io("open", &path))? {
        return Err(missing_file(folder, listed, path));
    }
    let (header, found) = inspect_shard(&path).map_err(|e| advise(e, SHARD_AGAIN))?;
    let differs = |what: String, expected: String, found: String| {
        Err(advise(Error::Mismatch { path: path.clone(), what, expected, found }, SHARD_AGAIN))
    };
    if found.as_ref() != Some(record) {
        let found = found.map_or("no checksums".into(), |f| format!("{f:?}"));
        return differs(format!("record in the manifest ({})", listed.name()), format!("{record:?}"), found);
    }
    let expected = [
        (FINGERPRINT, listed.manifest.fingerprint.clone()),
        (FIRST_PAIR, listed.first_pair(index).to_string()),
    ];
    for (key, expected) in expected {
        let found = header.metadata.get(key).cloned().unwrap_or_default();
        if found != expected {
            return differs(format!("metadata `{key}`"), expected, found);
        }
    }
    Ok(())
}

/// What makes a damaged shard good.
pub(super) const SHARD_AGAIN: &str =
    "remove the file and run the same synth command again: it makes the shard anew";

/// What makes a damaged manifest good.
pub(super) const MANIFEST_AGAIN: &str = "if the file is damaged, put a copy in its place, or remove it and run the same \
                                         synth command again (with --overwrite where no other manifest is left)";

/// The error for a shard that a manifest lists and that is gone.
fn missing_file(folder: &Path, listed: &Listed, path: PathBuf) -> Error {
    let missing = format!("No such file, though {} lists it", listed.name());
    let hint = format!("it is made again by {}", command(folder, &listed.manifest, listed.part()));
    Error::Incomplete { path, missing, hint }
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

/// Fails with [`Error::Incomplete`] unless a complete manifest lists every shard of `wanted`. The error names the parts
/// that lack and the commands that make them.
pub(super) fn require_complete(folder: &Path, listed: &[Listed], wanted: Range<u64>) -> Result<()> {
    let mut covered = vec![false; (wanted.end - wanted.start) as usize];
    for part in listed.iter().filter(|l| l.manifest.complete) {
        let within = part.mine.start.max(wanted.start)..part.mine.end.min(wanted.end);
        within.for_each(|index| covered[(index - wanted.start) as usize] = true);
    }
    let gaps: Vec<u64> = wanted.clone().filter(|i| !covered[(i - wanted.start) as usize]).collect();
    if gaps.is_empty() {
        return Ok(());
    }
    // The cut that most manifests belong to.
    let mut votes: BTreeMap<u64, usize> = BTreeMap::new();
    listed.iter().for_each(|l| *votes.entry(l.part().count).or_default() += 1);
    let usual = votes.into_iter().max_by_key(|&(count, votes)| (votes, count)).map_or(1, |v| v.0);
    let begun: Vec<&Listed> = listed.iter().filter(|l| !l.manifest.complete).collect();
    let manifest = &listed[0].manifest;
    // Shards that lack, by the part that is to make them: one that was interrupted, or one of the usual cut.
    let mut parts: Vec<(Part, Option<&Listed>, Vec<u64>)> = Vec::new();
    for &index in &gaps {
        let begun = begun.iter().copied().find(|l| l.mine.contains(&index));
        let part = begun.map_or_else(|| Part::holding(index, all_shards(manifest), usual), Listed::part);
        match parts.last_mut().filter(|p| p.0 == part) {
            Some((.., shards)) => shards.push(index),
            None => parts.push((part, begun, vec![index])),
        }
    }
    let described = parts.iter().take(NAMED).map(|(part, begun, shards)| {
        let range = match shards[..] {
            [one] => shard_name(one),
            _ => format!("{} to {}", shard_name(shards[0]), shard_name(shards[shards.len() - 1])),
        };
        let state = match begun {
            Some(listed) => format!("{} was interrupted", listed.name()),
            None => format!("no complete {}", part.manifest_name()),
        };
        match *part {
            Part::WHOLE => format!("{range} ({state})"),
            Part { index, count } => format!("{range} of part {index}/{count} ({state})"),
        }
    });
    let mut lacks = described.collect::<Vec<_>>().join(", ");
    if parts.len() > NAMED {
        lacks.push_str(&format!(" and those of {} more parts", parts.len() - NAMED));
    }
    let others = parts[1..].iter().take(NAMED - 1).map(|(p, ..)| format!("--part {}/{}", p.index, p.count));
    let others = others.collect::<Vec<_>>();
    let others = match others.is_empty() {
        true => String::new(),
        false => format!(", and with {}", others.join(", ")),
    };
    Err(Error::Incomplete {
        path: folder.to_path_buf(),
        missing: format!("{} of the run's {} shards are missing: {lacks}", gaps.len(), all_shards(manifest)),
        hint: format!("they are made by {}{others}", command(folder, manifest, parts[0].0)),
    })
}

/// The command that makes a part of the run in `folder`, for people to copy.
fn command(folder: &Path, manifest: &Manifest, part: Part) -> String {
    let cut = match part {
        Part::WHOLE => String::new(),
        Part { index, count } => format!(" --part {index}/{count}"),
    };
    let recipe = Recipe::read(&folder.join("recipe.json")).ok();
    let recipe = recipe.filter(|r| recipe_difference(manifest, r).is_none());
    match recipe.and_then(|r| synth_command(folder, manifest, &r)) {
        Some(command) => format!("`{command}{cut}`"),
        None if cut.is_empty() => "the same synth command".into(),
        None => format!("the same synth command with{cut}"),
    }
}

/// The first setting in which a recipe is not the one of a manifest: its name, the manifest's value, the recipe's.
pub(super) fn recipe_difference(manifest: &Manifest, recipe: &Recipe) -> Option<(String, String, String)> {
    let mut settings = recipe.settings();
    settings["output"] = manifest.settings["output"].clone();
    manifest.difference(&settings)
}

fn synth_command(folder: &Path, manifest: &Manifest, recipe: &Recipe) -> Option<String> {
    let text = |value: &Value| match value {
        Value::String(text) => quoted(text),
        other => other.to_string(),
    };
    let mut words = vec!["lensmith synth".to_string()];
    words.extend(recipe.seeds.sources.iter().map(|s| quoted(s)));
    words.push(format!("--vae {}", quoted(&recipe.vae.path.to_string_lossy())));
    words.push(format!("--out {}", quoted(&folder.to_string_lossy())));
    let settings = &manifest.settings;
    for (option, pointer, usual) in [
        ("--chosen", "/chosen_tensor", Value::from("chosen")),
        ("--rejected", "/rejected_tensor", Value::from("rejected")),
        ("--output", "/output/kind", Value::from("embeddings")),
        ("--dtype", "/output/dtype", Value::from("bf16")),
        ("--shard-rows", "/output/shard_rows", Value::Null),
        ("--fold", "/plan/fold", Value::Null),
        ("--per-side", "/plan/per_side", Value::Null),
        ("--pairing", "/plan/pairing", Value::from("combine")),
        ("--seed", "/plan/seed", Value::from(0)),
        ("--sigma2", "/perturbation/sigma2", Value::from(0.01)),
        ("--oversample", "/perturbation/oversample", Value::from(4)),
        ("--likelihood", "/perturbation/likelihood", Value::from("posterior")),
        ("--source", "/perturbation/source", Value::from("sample")),
        ("--mode", "/mode", Value::from("plain")),
    ] {
        match settings.pointer(pointer) {
            Some(value) if *value != usual => words.push(format!("{option} {}", text(value))),
            Some(_) => {}
            // Latents have no dtype.
            None if pointer == "/output/dtype" => {}
            None => return None,
        }
    }
    Some(words.join(" "))
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:,@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.into();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_known_by_their_names_alone() {
        assert_eq!(shard_number("pairs-00042.safetensors"), Some(42));
        for name in ["pairs-42.safetensors", "pairs-+0042.safetensors", "pairs-00042", "x-00042.safetensors"]
        {
            assert_eq!(shard_number(name), None, "{name}");
        }
    }

    #[test]
    fn the_part_that_holds_a_shard_is_found() {
        for (shards, count) in [(1, 1), (5, 2), (7, 3), (16, 16), (100_000, 7), (17, 13)] {
            for index in 0..shards {
                let part = Part::holding(index, shards, count);
                assert!(part.of(shards).contains(&index), "{index} of {shards}: {part:?}");
            }
        }
    }

    #[test]
    fn words_of_a_command_are_safe_to_paste() {
        assert_eq!(quoted("/data/seeds.safetensors"), "/data/seeds.safetensors");
        assert_eq!(quoted("it's a *.file"), r"'it'\''s a *.file'");
        assert_eq!(quoted(""), "''");
    }
}
