//! A folder of shards: how its files are called, and how a command fills it.
//!
//! Every command that writes a folder goes the same way:
//!
//! 1. [`OutputFolder::open`] takes the lock, so that one process at a time writes there, and looks at what is in the
//!    folder: the output of another run is refused, or removed if the user asked for that.
//! 2. [`OutputFolder::resume`] finds the shards that an earlier run finished, and gives those that are still to be made.
//! 3. [`OutputFolder::record`] notes each shard that is finished; the manifest on disk follows every few seconds.
//! 4. [`OutputFolder::finish`] writes the manifest as complete.
//!
//! A shard gets its name only when it is whole and on disk, and its header says which run and rows it belongs to. A
//! shard that got its name after the manifest was last written is read against its checksums before it counts. So a run
//! that is killed at any moment loses at most the shards that it was writing.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::checkpoint::is_checkpoint;
use super::format::Header;
use super::manifest::Manifest;
use super::map::Io;
use super::place::{Folder, create_folder, file_id, read_small};
use super::writer::{ShardRecord, ShardWriter, TensorSpec, inspect_shard, verify_shard};
use crate::error::{Error, Result};

/// The manifest of a whole run.
pub const MANIFEST: &str = "manifest.json";
/// The recipe of a run.
pub const RECIPE: &str = "recipe.json";
/// Most bytes that are read as a recipe, of which nearly all are those of its list of seed files.
pub const MOST_RECIPE: u64 = 64 << 20;
/// Most shards of a run: as many as five digits count, so that order by name is order of rows.
pub const MAX_SHARDS: u64 = 100_000;
/// Bytes of a shard where the user does not say otherwise.
const SHARD_BYTES: u64 = 256 << 20;
/// What names of shards start with, over all commands.
const PREFIXES: [&str; 3] = ["pairs", "embeddings", "candidates"];

/// Metadata entries of a shard that say where it belongs.
const FINGERPRINT: &str = "lensmith.fingerprint";
const FIRST_ROW: &str = "lensmith.first_pair";

/// Time between two versions of a manifest while shards are written: not after every shard, since thousands of shards
/// would be listed thousands of times.
const BETWEEN_MANIFESTS: Duration = Duration::from_secs(2);
/// The pause is at least this many times what writing the manifest took.
const PAUSE_FACTOR: u32 = 50;

const MOVED: &str = "it was moved or removed while pairs were written to it; where it went, everything finished is \
                     whole: run the same command with --out there";

/// File name of shard `index` of a folder whose shards are called `prefix`.
pub fn shard_name(prefix: &str, index: u64) -> String {
    format!("{prefix}-{index:05}.safetensors")
}

/// The number of a shard by its file name.
pub fn shard_number(prefix: &str, name: &str) -> Option<u64> {
    let number = name.strip_prefix(prefix)?.strip_prefix('-')?.strip_suffix(".safetensors")?.parse().ok()?;
    (shard_name(prefix, number) == name).then_some(number)
}

/// Rows per shard for `rows` rows of `row_bytes` bytes each: as `asked`, else a power of two for shards of about
/// 256 MiB. Fails if that makes more than [`MAX_SHARDS`].
pub fn rows_per_shard(asked: Option<u64>, rows: u64, row_bytes: usize) -> Result<u64> {
    let automatic = (SHARD_BYTES / row_bytes.max(1) as u64).next_power_of_two().max(1);
    let shard_rows = asked.unwrap_or(automatic);
    if shard_rows == 0 {
        return Err(Error::argument("shard_rows", "1 or more", 0));
    }
    if rows.div_ceil(shard_rows) > MAX_SHARDS {
        let expected = format!("{} or more for {MAX_SHARDS} shards", rows.div_ceil(MAX_SHARDS));
        return Err(Error::argument("shard_rows", expected, shard_rows));
    }
    Ok(shard_rows)
}

/// The right to write something in a folder, held by one process at a time.
#[derive(Debug)]
pub struct FolderLock(#[expect(dead_code, reason = "the lock lasts as long as this file is open")] File);

impl FolderLock {
    /// Locks `name` in the folder `dir`, which must exist, through a file `.NAME.lock` that stays behind. Fails
    /// with [`Error::Busy`] at once if another process, or another lock of this one, holds it. The system
    /// releases it when the process ends, however it ends.
    pub fn acquire(dir: &Path, name: &str) -> Result<FolderLock> {
        FolderLock::lock(dir, name, File::try_lock)
    }

    /// As [`FolderLock::acquire`], but waits.
    fn wait(dir: &Path, name: &str) -> Result<FolderLock> {
        FolderLock::lock(dir, name, |file| file.lock().map_err(TryLockError::Error))
    }

    fn lock(
        dir: &Path,
        name: &str,
        lock: impl Fn(&File) -> std::result::Result<(), TryLockError>,
    ) -> Result<FolderLock> {
        let name = format!(".{name}.lock");
        let file = Folder::open(dir)?.own_file(OsStr::new(&name))?;
        match lock(&file) {
            Ok(()) => Ok(FolderLock(file)),
            Err(TryLockError::WouldBlock) => Err(Error::Busy { path: dir.to_path_buf() }),
            Err(TryLockError::Error(error)) if error.kind() == ErrorKind::Unsupported => {
                let dir = dir.display();
                tracing::warn!("{dir}: its file system has no locks: let one process at a time write there");
                Ok(FolderLock(file))
            }
            Err(TryLockError::Error(error)) => Err(Error::io("lock", dir.join(name))(error)),
        }
    }
}

/// Held while a folder is looked at and a first manifest is written, so that two runs cannot both find it empty.
const OPENING: &str = "opening";

/// The files of a folder that commands of this program wrote, as far as names tell.
struct Contents {
    dir: PathBuf,
    /// Manifests, recipe and shards, by name.
    outputs: Vec<PathBuf>,
    /// Shards that were being written when a run was killed.
    unfinished: Vec<PathBuf>,
    /// Names of locks.
    locks: Vec<String>,
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn is_manifest(path: &Path) -> bool {
    let name = file_name(path);
    name.starts_with("manifest.") && name.ends_with(".json")
}

impl Contents {
    fn of(dir: &Path) -> Result<Contents> {
        let is_shard = |name: &str| PREFIXES.iter().any(|p| name.starts_with(&format!("{p}-")));
        let (outputs, unfinished, locks) = (Vec::new(), Vec::new(), Vec::new());
        let mut contents = Contents { dir: dir.to_path_buf(), outputs, unfinished, locks };
        for entry in fs::read_dir(dir).map_err(Error::io("list", dir))? {
            let path = entry.map_err(Error::io("list", dir))?.path();
            let name = file_name(&path);
            let listing = name == RECIPE || is_manifest(&path);
            if listing || is_shard(&name) && name.ends_with(".safetensors") {
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

    fn manifests(&self) -> impl Iterator<Item = &PathBuf> {
        self.outputs.iter().filter(|path| is_manifest(path))
    }

    /// Removes everything, for a run that holds the lock `held`.
    ///
    /// # Errors
    /// Before anything is removed: one of `inputs` would go as well, something in the folder is not shown to be an output
    /// of this program, or another part is being written.
    fn remove(&self, inputs: &[&Path], held: &str) -> Result<()> {
        let all = || self.outputs.iter().chain(&self.unfinished);
        all().try_for_each(|path| require_apart(path, inputs))?;
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
        let folder = Folder::open(&self.dir)?;
        for path in others.into_iter().chain(manifests) {
            let name = path.file_name().unwrap_or_default();
            folder.remove(name).map_err(Error::io("remove", path))?;
        }
        folder.sync()
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

/// Fails if `output` is one of the files that it is made from, under whatever name.
pub fn require_apart(output: &Path, inputs: &[&Path]) -> Result<()> {
    let id = |path: &Path| fs::metadata(path).ok().map(|meta| file_id(&meta));
    let Some(there) = id(output) else { return Ok(()) };
    match inputs.iter().find(|input| id(input) == Some(there)) {
        Some(input) => {
            let expected = format!("another place than {}, from which it is made", input.display());
            Err(Error::argument("out", expected, output.display()))
        }
        None => Ok(()),
    }
}

/// The manifests in a folder, of a whole run and of parts, by name.
pub fn manifests(dir: &Path) -> Result<Vec<PathBuf>> {
    Ok(Contents::of(dir)?.manifests().cloned().collect())
}

/// What happens to the output of an earlier run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Earlier {
    /// Finished shards of the same run are kept, and what is missing is made.
    Resume,
    /// An interrupted run of the same settings is begun again.
    Restart,
}

/// How a command takes possession of a folder.
#[derive(Clone, Copy, Debug)]
pub struct FolderOptions<'a> {
    /// Name of the lock: commands that hold different ones may write at once.
    pub lock: &'a str,
    /// File name of the manifest.
    pub manifest: &'a str,
    /// What names of shards start with.
    pub prefix: &'static str,
    pub earlier: Earlier,
    /// Whether the output of another run is removed instead of refused.
    pub overwrite: bool,
    /// The files that the output is made from: none of them is removed or replaced.
    pub inputs: &'a [&'a Path],
}

/// A shard of a run, made or still to be made.
#[derive(Clone, Debug)]
pub struct PlannedShard {
    pub index: u64,
    pub path: PathBuf,
    /// Numbers of its rows in the run.
    pub rows: Range<u64>,
    /// Of the run.
    fingerprint: String,
}

impl PlannedShard {
    /// Shard `index` of the run of `manifest` in folder `dir`.
    pub fn new(dir: &Path, prefix: &str, manifest: &Manifest, index: u64) -> PlannedShard {
        let first = |index: u64| index.saturating_mul(manifest.shard_rows).min(manifest.pairs);
        PlannedShard {
            index,
            path: dir.join(shard_name(prefix, index)),
            rows: first(index)..first(index + 1),
            fingerprint: manifest.fingerprint.clone(),
        }
    }

    /// The metadata that ties a shard to its run.
    pub fn metadata(&self) -> BTreeMap<String, String> {
        BTreeMap::from([
            (FINGERPRINT.to_string(), self.fingerprint.clone()),
            (FIRST_ROW.to_string(), self.rows.start.to_string()),
        ])
    }

    /// Fails unless `header`, read at its path, has its metadata.
    pub fn require_metadata(&self, header: &Header) -> Result<()> {
        for (key, expected) in self.metadata() {
            let found = header.metadata.get(&key).cloned().unwrap_or_default();
            if found != expected {
                let what = format!("metadata `{key}`");
                return Err(Error::Mismatch { path: self.path.clone(), what, expected, found });
            }
        }
        Ok(())
    }

    /// The record of this shard if an earlier run finished it; `recorded` is what a manifest says of it.
    fn finished(&self, recorded: Option<&ShardRecord>) -> Result<Option<ShardRecord>> {
        if !fs::exists(&self.path).map_err(Error::io("open", &self.path))? {
            return Ok(None);
        }
        let (header, record) = inspect_shard(&self.path)?;
        self.require_metadata(&header)?;
        let Some(record) = record.filter(|r| r.rows == self.rows.end - self.rows.start) else {
            return Ok(None);
        };
        if recorded == Some(&record) {
            return Ok(Some(record));
        }
        // The manifest does not know it yet: every byte is read before it counts.
        match verify_shard(&self.path, Io::Read) {
            Ok(record) => Ok(Some(record)),
            Err(error) => {
                tracing::warn!("{error}: the shard is made anew");
                Ok(None)
            }
        }
    }
}

/// What tells a folder from another one at its path; None where there is none.
fn identity(dir: &Path) -> Result<Option<(u64, u64)>> {
    match fs::metadata(dir) {
        Ok(meta) => Ok(Some((meta.dev(), meta.ino()))),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("open", dir)(error)),
    }
}

/// A folder that a command is filling.
#[derive(Debug)]
pub struct OutputFolder {
    dir: PathBuf,
    identity: Option<(u64, u64)>,
    prefix: &'static str,
    manifest: Manifest,
    manifest_path: PathBuf,
    /// What manifests of this run say of its shards, by file name.
    recorded: BTreeMap<String, ShardRecord>,
    /// Finished shards by number.
    done: BTreeMap<u64, ShardRecord>,
    /// When the manifest was last written, and how long it is left alone after that.
    written: Instant,
    pause: Duration,
    _lock: FolderLock,
    /// Held until the first manifest is written.
    opening: Option<FolderLock>,
}

impl OutputFolder {
    /// Takes possession of `dir`, which is made if it is not there, for the run of `manifest`.
    ///
    /// # Errors
    /// [`Error::Busy`] while another process holds the lock, and [`Error::Exists`] where the folder holds the output of
    /// another run, unless it is to be replaced.
    pub fn open(dir: &Path, manifest: Manifest, options: FolderOptions<'_>) -> Result<OutputFolder> {
        create_folder(dir)?;
        let lock = FolderLock::acquire(dir, options.lock)?;
        let opening = Some(FolderLock::wait(dir, OPENING)?);
        let identity = identity(dir)?;
        let contents = Contents::of(dir)?;
        let recorded = match options.earlier {
            Earlier::Resume => resume_or_replace(&contents, &manifest, &options)?,
            Earlier::Restart => {
                require_replaceable(dir, &contents, &manifest, options.overwrite)?;
                contents.remove(options.inputs, options.lock)?;
                BTreeMap::new()
            }
        };
        // What is there with a shard's name is replaced where it is no finished shard.
        Contents::of(dir)?.outputs.iter().try_for_each(|path| require_apart(path, options.inputs))?;
        Ok(OutputFolder {
            dir: dir.to_path_buf(),
            identity,
            prefix: options.prefix,
            manifest,
            manifest_path: dir.join(options.manifest),
            recorded,
            done: BTreeMap::new(),
            written: Instant::now(),
            pause: BETWEEN_MANIFESTS,
            _lock: lock,
            opening,
        })
    }

    /// Looks for shards `range` of the run, writes the manifest with those that are finished, and gives the others.
    ///
    /// # Errors
    /// A shard that is there and belongs to another run, or has a damaged header; the manifest is written all the same.
    pub fn resume(&mut self, range: Range<u64>) -> Result<Vec<PlannedShard>> {
        let (mut missing, mut damaged) = (Vec::new(), None);
        for index in range {
            let shard = PlannedShard::new(&self.dir, self.prefix, &self.manifest, index);
            match shard.finished(self.recorded.get(&shard_name(self.prefix, index))) {
                Ok(Some(record)) => drop(self.done.insert(index, record)),
                Ok(None) => missing.push(shard),
                Err(error) => drop(damaged.get_or_insert(error)),
            }
        }
        // From now on others can tell what the files that appear belong to.
        self.save()?;
        damaged.map_or(Ok(missing), Err)
    }

    /// The shards that are finished.
    pub fn done(&self) -> impl Iterator<Item = &ShardRecord> {
        self.done.values()
    }

    /// Notes a finished shard; the manifest is written if the last time is long enough ago.
    pub fn record(&mut self, index: u64, record: ShardRecord) -> Result<()> {
        self.done.insert(index, record);
        if self.written.elapsed() < self.pause { Ok(()) } else { self.save() }
    }

    /// Writes the manifest as it stands.
    pub fn save(&mut self) -> Result<()> {
        let start = Instant::now();
        self.manifest.shards = self.done.values().cloned().collect();
        self.manifest.write(&self.manifest_path)?;
        self.opening = None;
        self.written = Instant::now();
        self.pause = BETWEEN_MANIFESTS.max(PAUSE_FACTOR * (self.written - start));
        Ok(())
    }

    /// Completes the manifest; gives the number of shards and their bytes.
    pub fn finish(mut self) -> Result<(usize, u64)> {
        self.manifest.complete = true;
        self.save()?;
        Ok((self.done.len(), self.done.values().map(|record| record.bytes).sum()))
    }

    /// Fails with [`Error::Changed`] if the folder is no longer at its path.
    pub fn require_in_place(&self) -> Result<()> {
        match identity(&self.dir)? == self.identity {
            true => Ok(()),
            false => Err(Error::Changed { path: self.dir.clone(), how: MOVED.into() }),
        }
    }
}

/// Gives the shards that the manifests of the same run list. Refuses a folder that holds something else, or empties it.
fn resume_or_replace(
    contents: &Contents,
    manifest: &Manifest,
    options: &FolderOptions<'_>,
) -> Result<BTreeMap<String, ShardRecord>> {
    let overwrite = options.overwrite;
    let mut recorded = BTreeMap::new();
    let (mut same_run, mut other_run) = (false, None);
    for path in contents.manifests() {
        match Manifest::read(path) {
            Ok(found) if found.fingerprint == manifest.fingerprint => {
                same_run = true;
                recorded.extend(found.shards.into_iter().map(|r| (r.file.clone(), r)));
            }
            Ok(found) => {
                let what = match found.difference(&manifest.settings) {
                    Some((setting, there, here)) => format!("`{setting}` is {there} there and {here} now"),
                    None => "the settings differ".into(),
                };
                other_run = Some((path, format!("it was made with other settings: {what}")));
            }
            Err(_) if overwrite => other_run = Some((path, String::new())),
            Err(error) => return Err(error),
        }
        if !overwrite && other_run.is_some() {
            break;
        }
    }
    if let Some(first) = contents.outputs.first().filter(|_| !same_run && other_run.is_none()) {
        other_run = Some((first, "it does not belong to a run with a manifest".into()));
    }
    match other_run {
        None => Ok(recorded),
        Some(_) if overwrite => contents.remove(options.inputs, options.lock).map(|()| BTreeMap::new()),
        Some((path, why)) => {
            Err(Error::Exists { path: path.clone(), hint: format!("{why}; `overwrite` replaces it") })
        }
    }
}

/// Fails if the folder holds the output of another run, unless that may be replaced.
fn require_replaceable(dir: &Path, contents: &Contents, manifest: &Manifest, overwrite: bool) -> Result<()> {
    let Some(first) = contents.outputs.first() else { return Ok(()) };
    // A run that was interrupted is begun again by the same command, and one that came to no shard by any.
    let no_shard = contents.outputs.len() == 1;
    let replaceable = Manifest::read(&dir.join(MANIFEST))
        .is_ok_and(|found| !found.complete && (no_shard || found.fingerprint == manifest.fingerprint));
    if replaceable || overwrite {
        return Ok(());
    }
    let hint = "the folder holds the output of another run; `overwrite` replaces it".to_string();
    Err(Error::Exists { path: first.clone(), hint })
}

/// Rows that come in order and fill one shard of a folder after the other. The shards hold no metadata: equal values
/// make equal shards, whatever they came from.
pub struct ShardSequence {
    folder: OutputFolder,
    tensors: Vec<TensorSpec>,
    /// Bytes per row of each tensor.
    row_bytes: Vec<usize>,
    /// The shard at hand and its rows that are still to come.
    open: Option<(ShardWriter, u64)>,
    done: u64,
}

impl ShardSequence {
    /// Starts the run of the folder, from its first row.
    pub fn start(mut folder: OutputFolder, tensors: Vec<TensorSpec>) -> Result<ShardSequence> {
        folder.save()?;
        let row_bytes = |t: &TensorSpec| t.shape_tail.iter().product::<usize>() * t.dtype.bitsize() / 8;
        let row_bytes = tensors.iter().map(row_bytes).collect();
        Ok(ShardSequence { folder, tensors, row_bytes, open: None, done: 0 })
    }

    /// Appends `rows` rows: the bytes of each tensor.
    pub fn append(&mut self, rows: usize, bytes: &[&[u8]]) -> Result<()> {
        let mut at = 0;
        while at < rows {
            let manifest = &self.folder.manifest;
            let index = self.done / manifest.shard_rows;
            let (mut writer, left) = match self.open.take() {
                Some(open) => open,
                None => {
                    let path = self.folder.dir.join(shard_name(self.folder.prefix, index));
                    let left = manifest.shard_rows.min(manifest.pairs - self.done);
                    (ShardWriter::create(&path, &self.tensors, left as usize, &BTreeMap::new())?, left)
                }
            };
            let count = ((rows - at) as u64).min(left);
            for (tensor, (bytes, size)) in bytes.iter().zip(&self.row_bytes).enumerate() {
                writer.append(tensor, &bytes[at * size..(at + count as usize) * size])?;
            }
            at += count as usize;
            self.done += count;
            if count < left {
                self.open = Some((writer, left - count));
            } else {
                self.folder.record(index, writer.finish()?)?;
            }
        }
        Ok(())
    }

    /// Completes the manifest; gives rows, shards and bytes. Fails unless all rows have come.
    pub fn finish(self) -> Result<(u64, usize, u64)> {
        let rows = self.folder.manifest.pairs;
        if self.done != rows {
            return Err(Error::shape(format!("{}: rows", self.folder.dir.display()), rows, self.done));
        }
        let (shards, bytes) = self.folder.finish()?;
        Ok((rows, shards, bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_known_by_their_names_alone() {
        assert_eq!(shard_number("pairs", "pairs-00042.safetensors"), Some(42));
        for name in ["pairs-42.safetensors", "pairs-+0042.safetensors", "pairs-00042", "x-00042.safetensors"]
        {
            assert_eq!(shard_number("pairs", name), None, "{name}");
        }
    }
}
