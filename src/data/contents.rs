//! What lies in a folder of shards: which of its files are outputs of this program, and whether they are all.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::checkpoint::is_checkpoint;
use super::lock::FolderLock;
use super::manifest::Manifest;
use super::place::{FileId, Folder, file_id, file_name, list, read_small};
use super::store::{Object, is_url};
use super::writer::inspect_shard;
use crate::error::{Error, Result};

/// The manifest of a whole run.
pub const MANIFEST: &str = "manifest.json";
/// The recipe of a run.
pub const RECIPE: &str = "recipe.json";
/// Most bytes that are read as a recipe, of which nearly all are those of its list of seed files.
pub const MOST_RECIPE: u64 = 64 << 20;
/// What names of shards start with, over all commands.
const PREFIXES: [&str; 3] = ["pairs", "embeddings", "candidates"];
/// Lock that is held while a folder is looked at and a first manifest is written, so that two runs cannot both find it
/// empty.
pub(super) const OPENING: &str = "opening";

/// The files of a folder that commands of this program wrote, as far as names tell.
pub(super) struct Contents {
    dir: PathBuf,
    /// Manifests, recipe and shards, by name.
    pub outputs: Vec<PathBuf>,
    /// Shards that were being written when a run was killed.
    unfinished: Vec<PathBuf>,
    /// Names of locks.
    locks: Vec<String>,
    /// Lengths of outputs by name, where the folder is in a store.
    pub lengths: Option<BTreeMap<String, u64>>,
}

fn is_manifest(path: &Path) -> bool {
    let name = file_name(path);
    name.starts_with("manifest.") && name.ends_with(".json")
}

impl Contents {
    pub fn of(dir: &Path) -> Result<Contents> {
        let is_shard = |name: &str| PREFIXES.iter().any(|p| name.starts_with(&format!("{p}-")));
        let (outputs, unfinished, locks) = (Vec::new(), Vec::new(), Vec::new());
        let lengths = is_url(dir).then(BTreeMap::new);
        let mut contents = Contents { dir: dir.to_path_buf(), outputs, unfinished, locks, lengths };
        for (path, len) in list(dir)? {
            let name = file_name(&path);
            let listing = name == RECIPE || is_manifest(&path);
            if listing || is_shard(&name) && name.ends_with(".safetensors") {
                if let Some((lengths, len)) = contents.lengths.as_mut().zip(len) {
                    lengths.insert(name, len);
                }
                contents.outputs.push(path);
            } else if name.starts_with('.') && is_shard(&name[1..]) && name.ends_with(".safetensors.tmp") {
                contents.unfinished.push(path);
            } else if let Some(lock) = name.strip_prefix('.').and_then(|name| name.strip_suffix(".lock")) {
                contents.locks.push(lock.to_string());
            }
        }
        contents.outputs.sort();
        Ok(contents)
    }

    pub fn manifests(&self) -> impl Iterator<Item = &PathBuf> {
        self.outputs.iter().filter(|path| is_manifest(path))
    }

    /// Whether `path` is the manifest called `name`, and nothing beside it.
    pub fn is_only(&self, path: &Path, name: &str) -> bool {
        self.outputs.len() == 1 && path == self.dir.join(name) && is_manifest(path)
    }

    /// Removes everything, for a run that holds the lock `held`.
    ///
    /// # Errors
    /// Before anything is removed: one of `inputs` would go as well, something in the folder is not shown to be an output
    /// of this program, or another part is being written.
    pub fn remove(&self, inputs: &[&Path], held: &str) -> Result<()> {
        let all = || self.outputs.iter().chain(&self.unfinished);
        require_apart(all(), inputs)?;
        let listed: HashSet<String> = self
            .manifests()
            .filter_map(|path| Manifest::read(path).ok())
            .flat_map(|manifest| manifest.shards.into_iter().map(|record| record.file))
            .collect();
        if let Some(path) = self.outputs.iter().find(|path| !is_output(path, &listed)) {
            let hint = "nothing shows that lensmith made it: move it away, or write to another folder";
            return Err(Error::Exists { path: path.clone(), hint: hint.into() });
        }
        let others = self.locks.iter().filter(|lock| *lock != held && *lock != OPENING);
        let _locks = others.map(|lock| FolderLock::acquire(&self.dir, lock)).collect::<Result<Vec<_>>>()?;
        // Manifests last: as long as one is there, a run that is killed meanwhile is known by it.
        let (manifests, others): (Vec<&PathBuf>, Vec<&PathBuf>) = all().partition(|path| is_manifest(path));
        // Opened once: names are looked up where the folder is by now.
        let folder = (!is_url(&self.dir)).then(|| Folder::open(&self.dir)).transpose()?;
        for path in others.into_iter().chain(manifests) {
            match &folder {
                Some(folder) => {
                    let name = path.file_name().unwrap_or_default();
                    folder.remove(name).map_err(Error::io("remove", path))?;
                }
                None => Object::at(path)?.remove()?,
            }
        }
        folder.map_or(Ok(()), |folder| folder.sync())
    }
}

/// Whether a manifest or a header shows that this program wrote a file; `listed` are the shards that manifests list.
fn is_output(path: &Path, listed: &HashSet<String>) -> bool {
    let name = file_name(path);
    if is_manifest(path) {
        return Manifest::read(path).is_ok();
    }
    if name == RECIPE {
        let recipe = read_small(path, "recipe", MOST_RECIPE).ok();
        let recipe = recipe.and_then(|text| serde_json::from_slice::<serde_json::Value>(&text).ok());
        return recipe
            .is_some_and(|recipe| ["seeds", "vae", "plan"].iter().all(|key| recipe.get(key).is_some()));
    }
    let written =
        || inspect_shard(path).is_ok_and(|(header, record)| record.is_some() && !is_checkpoint(&header));
    listed.contains(&name) || written()
}

/// What two paths have in common that lead to the same bytes.
#[derive(PartialEq, Eq, Hash)]
enum Place {
    File(FileId),
    Url(PathBuf),
}

impl Place {
    /// None where nothing is.
    fn of(path: &Path) -> Option<Place> {
        match is_url(path) {
            true => Some(Place::Url(path.to_path_buf())),
            false => fs::metadata(path).ok().map(|meta| Place::File(file_id(&meta))),
        }
    }
}

/// Fails if one of `outputs` is one of the files that they are made from, under whatever name.
pub fn require_apart<P: AsRef<Path>>(outputs: impl IntoIterator<Item = P>, inputs: &[&Path]) -> Result<()> {
    let inputs: HashMap<Place, &Path> =
        inputs.iter().filter_map(|path| Some((Place::of(path)?, *path))).collect();
    for output in outputs {
        let output = output.as_ref();
        if let Some(input) = Place::of(output).and_then(|there| inputs.get(&there)) {
            let expected = format!("another place than {}, from which it is made", input.display());
            return Err(Error::argument("out", expected, output.display()));
        }
    }
    Ok(())
}

/// The manifests in a folder, of a whole run and of parts, by name.
pub fn manifests(dir: &Path) -> Result<Vec<PathBuf>> {
    Ok(Contents::of(dir)?.manifests().cloned().collect())
}

/// Fails if `dir` holds the shards of a run and not all of them, as its manifests tell: who reads half of a run takes it
/// for the whole. A folder without manifests of ours is whatever it is.
pub fn require_whole(dir: &Path) -> Result<()> {
    let contents = Contents::of(dir)?;
    let found: Vec<Manifest> = contents.manifests().filter_map(|path| Manifest::read(path).ok()).collect();
    let Some(first) = found.first() else { return Ok(()) };
    let incomplete = |missing: String| {
        let hint = "make what is missing, or take what is there with `allow_partial` or by a pattern, as in `*.safetensors`";
        Err(Error::Incomplete { path: dir.to_path_buf(), missing, hint: hint.into(), parts: Vec::new() })
    };
    let complete: HashSet<Option<(u64, u64)>> = found.iter().filter(|m| m.complete).map(|m| m.part).collect();
    let done = |part| complete.contains(&part);
    if !done(None) {
        let Some((_, count)) = found.iter().filter(|m| m.complete).find_map(|m| m.part).or(first.part) else {
            return incomplete("its run was interrupted and has not made all shards".into());
        };
        // A manifest may claim any number of parts; as many as there are can be complete.
        let missing = (0..count).filter(|&index| !done(Some((index, count)))).take(2).collect::<Vec<_>>();
        match missing[..] {
            [] => {}
            [one] => return incomplete(format!("part {one}/{count} of its run is missing or not complete")),
            [one, ..] => {
                let all = count - complete.iter().flatten().filter(|part| part.1 == count).count() as u64;
                return incomplete(format!(
                    "{all} of {count} parts of its run are missing or not complete, as {one}/{count}"
                ));
            }
        }
    }
    let listed = found.iter().filter(|m| m.complete).flat_map(|m| &m.shards);
    let is_there = |file: &String| match &contents.lengths {
        Some(lengths) => lengths.contains_key(file),
        None => dir.join(file).exists(),
    };
    match listed.map(|record| &record.file).find(|file| !is_there(file)) {
        Some(file) => incomplete(format!("no {file}, though a manifest lists it")),
        None => Ok(()),
    }
}
