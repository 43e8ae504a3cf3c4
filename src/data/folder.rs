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
//!
//! In a store, where an object appears whole or not at all, a shard counts when it is listed with the length that its
//! record says, or its header does. There are no locks there: each version of a manifest replaces the one before on
//! condition that nobody else did.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::atomic::write_atomic;
use super::contents::{Contents, OPENING, require_apart};
use super::format::Header;
use super::lock::FolderLock;
use super::manifest::Manifest;
use super::map::Io;
use super::place::{create_folder, file_name, is_there};
use super::store::{Object, Version, is_url};
use super::writer::{ShardRecord, ShardWriter, TensorSpec, inspect_shard, verify_shard};
use crate::error::{Error, Result};

/// Most shards of a run: as many as five digits count, so that order by name is order of rows.
pub const MAX_SHARDS: u64 = 100_000;
/// Bytes of a shard where the user does not say otherwise.
const SHARD_BYTES: u64 = 256 << 20;

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
/// 256 MiB, or longer ones where that makes more than [`MAX_SHARDS`]. Fails if `asked` makes more.
pub fn rows_per_shard(asked: Option<u64>, rows: u64, row_bytes: usize) -> Result<u64> {
    let usual = (SHARD_BYTES / row_bytes.max(1) as u64).next_power_of_two().max(1);
    let automatic = usual.max(rows.div_ceil(MAX_SHARDS).next_power_of_two());
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

/// How a command takes possession of a folder.
#[derive(Clone, Copy)]
pub struct FolderOptions<'a> {
    /// Name of the lock: commands that hold different ones may write at once.
    pub lock: &'a str,
    /// File name of the manifest.
    pub manifest: &'a str,
    /// What names of shards start with.
    pub prefix: &'static str,
    /// Whether the output of another run is removed instead of refused.
    pub overwrite: bool,
    /// The files that the output is made from: none of them is removed or replaced.
    pub inputs: &'a [&'a Path],
    /// Whether the manifest of this name may list shards that are to be made. Of the others one is read, which tells
    /// whose folder it is: there may be as many as there are parts, each of which would read all.
    pub may_list: &'a dyn Fn(&str) -> bool,
}

impl std::fmt::Debug for FolderOptions<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FolderOptions").field("manifest", &self.manifest).finish_non_exhaustive()
    }
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
        if !is_there(&self.path)? {
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

    /// The same of an object of `len` bytes.
    fn finished_object(&self, recorded: Option<&ShardRecord>, len: u64) -> Result<Option<ShardRecord>> {
        let whole = |r: &&ShardRecord| r.bytes == len && r.rows == self.rows.end - self.rows.start;
        if let Some(record) = recorded.filter(whole) {
            return Ok(Some(record.clone()));
        }
        let (header, record) = inspect_shard(&self.path)?;
        self.require_metadata(&header)?;
        Ok(record.filter(|record| whole(&record)))
    }
}

/// How the manifest on disk or in a store follows.
#[derive(Debug)]
enum ManifestPlace {
    File,
    /// With the version that this run wrote or found last.
    Object(Object, Option<Version>),
}

impl ManifestPlace {
    fn of(path: &Path) -> Result<ManifestPlace> {
        if !is_url(path) {
            return Ok(ManifestPlace::File);
        }
        let object = Object::at(path)?;
        let version = object.state()?.map(|state| state.version);
        Ok(ManifestPlace::Object(object, version))
    }

    fn write(&mut self, bytes: &[u8], path: &Path) -> Result<()> {
        match self {
            ManifestPlace::File => write_atomic(path, bytes),
            ManifestPlace::Object(object, version) => {
                *version = Some(object.replace(bytes, version.as_ref())?);
                Ok(())
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
    manifest_place: ManifestPlace,
    /// Lengths of the objects that were there, by name, where the folder is in a store.
    lengths: Option<BTreeMap<String, u64>>,
    /// What manifests of this run say of its shards, by file name.
    recorded: BTreeMap<String, ShardRecord>,
    /// Whether the manifest of this output is there and complete, and every shard is as recorded: it stays as it is.
    unchanged: bool,
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
        let Found { recorded, complete, emptied } = resume_or_replace(&contents, &manifest, &options)?;
        // What is there with a shard's name is replaced where it is no finished shard.
        require_apart(&contents.outputs, options.inputs)?;
        let manifest_path = dir.join(options.manifest);
        Ok(OutputFolder {
            dir: dir.to_path_buf(),
            identity,
            prefix: options.prefix,
            manifest,
            manifest_place: ManifestPlace::of(&manifest_path)?,
            manifest_path,
            lengths: contents.lengths.map(|lengths| if emptied { BTreeMap::new() } else { lengths }),
            recorded,
            unchanged: complete,
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
            let name = shard_name(self.prefix, index);
            // Taken out: of many records there are not to be two copies.
            let recorded = self.recorded.remove(&name);
            let found = match self.lengths.as_ref().map(|lengths| lengths.get(&name)) {
                None => shard.finished(recorded.as_ref()),
                Some(None) => Ok(None),
                Some(Some(&len)) => shard.finished_object(recorded.as_ref(), len),
            };
            self.unchanged &= found.as_ref().is_ok_and(|found| found.is_some() && *found == recorded);
            match found {
                Ok(Some(record)) => drop(self.done.insert(index, record)),
                Ok(None) => missing.push(shard),
                Err(error) => drop(damaged.get_or_insert(error)),
            }
        }
        // From now on others can tell what the files that appear belong to.
        if !self.unchanged {
            self.save()?;
        }
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
        let bytes = self.manifest.to_bytes_with(self.done.values(), &self.manifest_path)?;
        self.manifest_place.write(&bytes, &self.manifest_path)?;
        self.opening = None;
        self.written = Instant::now();
        self.pause = BETWEEN_MANIFESTS.max(PAUSE_FACTOR * (self.written - start));
        Ok(())
    }

    /// Completes the manifest; gives the number of shards and their bytes.
    pub fn finish(mut self) -> Result<(usize, u64)> {
        if !self.unchanged {
            self.manifest.complete = true;
            self.save()?;
        }
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

/// What lay in a folder.
#[derive(Default)]
struct Found {
    /// The shards that manifests of the same run list.
    recorded: BTreeMap<String, ShardRecord>,
    /// Whether the manifest of the same output is complete.
    complete: bool,
    /// Whether the output of another run was removed.
    emptied: bool,
}

/// Looks at the manifests in a folder. Refuses a folder that holds something else, or empties it. Whoever wrote a manifest
/// there has done the same, so that all are of one run.
fn resume_or_replace(contents: &Contents, manifest: &Manifest, options: &FolderOptions<'_>) -> Result<Found> {
    let overwrite = options.overwrite;
    let mut lying = Found::default();
    let (mut same_run, mut other_run) = (false, None);
    let ours = |path: &&PathBuf| (options.may_list)(&file_name(path));
    let (first, others): (Vec<&PathBuf>, Vec<&PathBuf>) = contents.manifests().partition(ours);
    for path in first.into_iter().chain(others) {
        if same_run && !ours(&path) {
            break;
        }
        match Manifest::read(path) {
            Ok(found) if found.fingerprint == manifest.fingerprint => {
                same_run = true;
                lying.complete |= found.complete && file_name(path) == options.manifest;
                lying.recorded.extend(found.shards.into_iter().map(|r| (r.file.clone(), r)));
            }
            // A run that came to no shard is in nobody's way.
            Ok(found) if !found.complete && contents.is_only(path, options.manifest) => {}
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
    let mut strange = contents.outputs.iter().filter(|path| !contents.is_only(path, options.manifest));
    if let Some(first) = strange.next().filter(|_| !same_run && other_run.is_none()) {
        other_run = Some((first, "it does not belong to a run with a manifest".into()));
    }
    match other_run {
        None => Ok(lying),
        Some(_) if overwrite => {
            contents.remove(options.inputs, options.lock)?;
            Ok(Found { emptied: true, ..Found::default() })
        }
        Some((path, why)) => {
            Err(Error::Exists { path: path.clone(), hint: format!("{why}; `overwrite` replaces it") })
        }
    }
}

/// Rows that come in order and fill one shard of a folder after the other. The shards hold no metadata: equal values
/// make equal shards, whatever they came from. So what ties a shard to an earlier run is its record in a manifest of it.
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
    /// Starts the run of the folder, after the shards at its beginning that an earlier run finished.
    pub fn start(mut folder: OutputFolder, tensors: Vec<TensorSpec>) -> Result<ShardSequence> {
        let mut done = 0;
        while done < folder.manifest.pairs {
            let index = done / folder.manifest.shard_rows;
            let shard = PlannedShard::new(&folder.dir, folder.prefix, &folder.manifest, index);
            let Some(recorded) = folder.recorded.remove(&shard_name(folder.prefix, index)) else { break };
            match inspect_shard(&shard.path) {
                Ok((_, Some(found))) if found == recorded && found.rows == shard.rows.end - done => {
                    folder.done.insert(index, found);
                    done = shard.rows.end;
                }
                _ => break,
            }
        }
        folder.unchanged &= done == folder.manifest.pairs;
        if !folder.unchanged {
            folder.save()?;
        }
        let row_bytes = |t: &TensorSpec| t.shape_tail.iter().product::<usize>() * t.dtype.bitsize() / 8;
        let row_bytes = tensors.iter().map(row_bytes).collect();
        Ok(ShardSequence { folder, tensors, row_bytes, open: None, done })
    }

    /// Rows that are written: at the start, those of finished shards.
    pub fn done(&self) -> u64 {
        self.done
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
    fn shards_are_as_long_as_their_number_needs() {
        let rows = |rows, row_bytes| rows_per_shard(None, rows, row_bytes).expect("rows");
        assert_eq!(rows(10, 16_384), 16_384);
        // 10^10 pairs of 16 KiB: 610,352 shards of 256 MiB.
        assert_eq!(rows(10_000_000_000, 16_384), 131_072);
        assert_eq!(rows(u64::MAX / 2, 1 << 30), 1 << 47);
        assert!(rows_per_shard(Some(16_384), 10_000_000_000, 16_384).is_err());
    }

    #[test]
    fn shards_are_known_by_their_names_alone() {
        assert_eq!(shard_number("pairs", "pairs-00042.safetensors"), Some(42));
        for name in ["pairs-42.safetensors", "pairs-+0042.safetensors", "pairs-00042", "x-00042.safetensors"]
        {
            assert_eq!(shard_number("pairs", name), None, "{name}");
        }
    }
}
