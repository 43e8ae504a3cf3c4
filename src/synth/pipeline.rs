//! Writing a recipe's pairs as shards, so that a killed run resumes to the same bytes.
//!
//! A shard gets its name only when it is whole and on disk, and its header says which run and pairs it belongs to. The
//! manifest lists what is done; a shard that got its name after the manifest was last written is read against its
//! checksums before it counts. So a run killed at any moment loses at most the shards it was writing.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use safetensors::Dtype as Stored;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::lanes::{Event, Shard, write_shards};
use super::progress::{Busy, Progress, Speed};
use super::{LatentBatch, PairBatch, Recipe, Synthesizer};
use crate::backend::Backend;
use crate::data::{
    FolderLock, LATENT_CANDIDATE, LATENT_SEED, LATENT_Z, LatentSet, Manifest, ShardRecord, TensorSpec,
    WriteMode,
};
use crate::dtype::Dtype;
use crate::error::{Error, Result};

/// Bytes of a shard where the user does not say otherwise.
const SHARD_BYTES: u64 = 256 << 20;

/// Most shards of a run: as many as their names can count, so that order by name is order of pairs.
pub(super) const MAX_SHARDS: u64 = 100_000;

/// What a run writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OutputKind {
    /// Decoded embeddings: tensors `chosen` and `rejected`, `[rows, d]`.
    Embeddings,
    /// Latents: `chosen_z` and `rejected_z` `[rows, latent]` F32, `chosen_candidate` and `rejected_candidate`
    /// `[rows]` I32 (-1: the original), `seed` `[rows]` I64.
    Latents,
    /// The recipe alone.
    Recipe,
}

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
}

impl std::str::FromStr for Part {
    type Err = Error;

    fn from_str(text: &str) -> Result<Part> {
        let parse = || {
            let (index, count) = text.split_once('/')?;
            let (index, count) = (index.parse().ok()?, count.parse().ok()?);
            (index < count).then_some(Part { index, count })
        };
        parse().ok_or_else(|| Error::option("--part", "i/N with i from 0 to N - 1, as in 0/4", text))
    }
}

/// What to write, and where.
#[derive(Clone, Debug)]
pub struct SynthJob<'a> {
    /// The recipe.
    pub recipe: &'a Recipe,
    /// The output folder; made if it is not there.
    pub out: &'a Path,
    /// What is written.
    pub kind: OutputKind,
    /// Storage type of embeddings.
    pub dtype: Dtype,
    /// Pairs per shard; None chooses shards of about 256 MiB.
    pub shard_rows: Option<u64>,
    /// Which part of the run.
    pub part: Part,
    /// Whether an output made with other settings is replaced.
    pub overwrite: bool,
    /// How shards are written.
    pub write: WriteMode,
    /// Latents of the recipe's pairs, to be decoded in place of making them again.
    pub latents: Option<&'a LatentSet>,
}

/// What a run did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SynthSummary {
    /// Pairs of this part.
    pub pairs: u64,
    /// Pairs that an earlier run had written already.
    pub resumed: u64,
    /// Shards of this part.
    pub shards: usize,
    /// Bytes of those shards.
    pub bytes: u64,
    /// Seconds of this run.
    pub seconds: f64,
    /// How fast it was, and what held it up; None if nothing was left to make.
    pub speed: Option<Speed>,
}

impl SynthJob<'_> {
    fn check(&self) -> Result<u64> {
        let plan = &self.recipe.plan;
        let row = match self.kind {
            OutputKind::Embeddings => 2 * self.recipe.vae.size.dim * self.dtype.size(),
            _ => 8 * self.recipe.vae.size.latent + 16,
        } as u64;
        let automatic = (SHARD_BYTES / row).next_power_of_two().max(1);
        let shard_rows = self.shard_rows.unwrap_or(automatic);
        if shard_rows == 0 {
            return Err(Error::option("--shard-rows", "1 or more", 0));
        }
        let shards = plan.pairs().div_ceil(shard_rows);
        if shards > MAX_SHARDS && self.kind != OutputKind::Recipe {
            let least = plan.pairs().div_ceil(MAX_SHARDS);
            return Err(Error::option(
                "--shard-rows",
                format!("{least} or more for {MAX_SHARDS} shards"),
                shard_rows,
            ));
        }
        if self.part.count > shards {
            let expected = format!("at most {shards} parts: there are {shards} shards of {shard_rows} pairs");
            let found = format!("{}/{}", self.part.index, self.part.count);
            return Err(Error::option("--part", expected, found));
        }
        Ok(shard_rows)
    }

    /// Numbers of this part's shards.
    fn shards(&self, shard_rows: u64) -> std::ops::Range<u64> {
        if self.kind == OutputKind::Recipe {
            return 0..0;
        }
        self.part.of(self.recipe.plan.pairs().div_ceil(shard_rows))
    }

    /// Pairs of this part.
    pub fn pairs(&self) -> Result<u64> {
        let shard_rows = self.check()?;
        let shards = self.shards(shard_rows);
        let all = self.recipe.plan.pairs();
        Ok((shards.end * shard_rows).min(all) - (shards.start * shard_rows).min(all))
    }

    /// What determines the bytes of the folder.
    fn settings(&self, shard_rows: u64, arithmetic: &str) -> Value {
        let mut settings = self.recipe.settings();
        settings["output"] = serde_json::json!({ "kind": self.kind, "shard_rows": shard_rows });
        if self.kind != OutputKind::Recipe {
            settings["output"]["precision"] = serde_json::json!(arithmetic);
        }
        if self.kind == OutputKind::Embeddings {
            settings["output"]["dtype"] = serde_json::json!(self.dtype);
        }
        settings
    }

    fn manifest_path(&self) -> PathBuf {
        match self.part {
            Part::WHOLE => self.out.join("manifest.json"),
            Part { index, count } => self.out.join(format!("manifest.part-{index}-of-{count}.json")),
        }
    }

    pub(super) fn tensors(&self) -> Vec<TensorSpec> {
        let spec = |name: &str, dtype, shape_tail: &[usize]| TensorSpec {
            name: name.into(),
            dtype,
            shape_tail: shape_tail.to_vec(),
        };
        let size = self.recipe.vae.size;
        let stored = Stored::from(self.dtype);
        match self.kind {
            OutputKind::Latents => vec![
                spec(LATENT_Z[0], Stored::F32, &[size.latent]),
                spec(LATENT_Z[1], Stored::F32, &[size.latent]),
                spec(LATENT_SEED, Stored::I64, &[]),
                spec(LATENT_CANDIDATE[0], Stored::I32, &[]),
                spec(LATENT_CANDIDATE[1], Stored::I32, &[]),
            ],
            _ => vec![spec("chosen", stored, &[size.dim]), spec("rejected", stored, &[size.dim])],
        }
    }
}

/// File name of shard `index`.
pub fn shard_name(index: u64) -> String {
    format!("pairs-{index:05}.safetensors")
}

/// Writes a job's shards, manifest and recipe, one stream of shards for each synthesizer; they are of one recipe and may
/// be on devices of their own. `progress` hears how far this part is.
///
/// A folder with the same settings is continued: whole shards are kept, the rest is made. The bytes do not depend on
/// interruptions, batch sizes, threads, devices or parts.
///
/// # Errors
/// An output made with other settings ([`Error::Exists`], unless `overwrite`), another process at work on the same
/// part, a disk that is full or not writable, seeds that changed meanwhile, or values that the dtype cannot hold.
pub fn write_synthetic<B: Backend>(
    job: &SynthJob<'_>,
    makers: &[Synthesizer<'_, B>],
    progress: &mut dyn FnMut(&Progress),
) -> Result<SynthSummary> {
    let start = Instant::now();
    let shard_rows = job.check()?;
    fs::create_dir_all(job.out).map_err(Error::io("create", job.out))?;
    let name = match job.part {
        Part::WHOLE => "synth".to_string(),
        Part { index, count } => format!("synth-{index}-of-{count}"),
    };
    let _lock = FolderLock::acquire(job.out, &name)?;
    let folder = folder_of(job.out)?;
    let settings = job.settings(shard_rows, makers.first().map_or("f32", Synthesizer::arithmetic));
    let fingerprint = Manifest::digest(&settings);
    let plan = &job.recipe.plan;
    let manifest = Manifest {
        format: 1,
        complete: false,
        fingerprint: fingerprint.clone(),
        settings,
        pairs: plan.pairs(),
        shard_rows,
        part: (job.part != Part::WHOLE).then_some((job.part.index, job.part.count)),
        shards: Vec::new(),
    };
    let recorded = prepare_folder(job, &manifest)?;

    let Stock { mut done, todo, damaged } = take_stock(job, shard_rows, &fingerprint, &recorded);
    // Before anything else: it is how others that start now know what the rest belongs to.
    let mut kept = KeptManifest::new(manifest, job.manifest_path());
    kept.write(&done, false)?;
    job.recipe.write(&job.out.join("recipe.json"))?;
    if let Some(error) = damaged {
        return Err(error);
    }

    let resumed: u64 = done.values().map(|r| r.rows).sum();
    let made: u64 = todo.iter().map(|s| s.pairs.end - s.pairs.start).sum();
    let mut now = Progress::start(resumed, made);
    progress(&now);
    if !todo.is_empty() {
        let begun = Instant::now();
        let mut hear = |event: Event, busy: &Busy| {
            match event {
                Event::Wrote { pairs, bytes } => now.wrote(pairs, bytes),
                Event::Done(index, record) => {
                    done.insert(index, record);
                    kept.write_now_and_then(&done)?;
                }
            }
            now.measure(begun.elapsed(), busy, makers.len());
            progress(&now);
            Ok(())
        };
        let result = match job.kind {
            OutputKind::Latents => write_shards::<B, LatentBatch>(job, makers, &todo, &mut hear),
            _ => write_shards::<B, PairBatch>(job, makers, &todo, &mut hear),
        };
        if let Err(error) = result {
            if folder_of(job.out)? != folder {
                return Err(Error::Changed { path: job.out.to_path_buf(), how: MOVED.into() });
            }
            // What failed says more than a manifest that cannot be written for the same reason.
            let _ = kept.write(&done, false);
            return Err(error);
        }
    }
    kept.write(&done, true)?;
    Ok(SynthSummary {
        pairs: resumed + made,
        resumed,
        shards: done.len(),
        bytes: done.values().map(|r| r.bytes).sum(),
        seconds: start.elapsed().as_secs_f64(),
        speed: (made > 0).then(|| now.speed()),
    })
}

const MOVED: &str = "it was moved or removed while pairs were written to it; where it went, everything finished is \
                     whole: run the same command with --out there";

/// What tells a folder from another one at its path; None where there is none.
fn folder_of(path: &Path) -> Result<Option<(u64, u64)>> {
    match fs::metadata(path) {
        Ok(meta) => Ok(Some((meta.dev(), meta.ino()))),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("open", path)(error)),
    }
}

/// The shards of a part, by what an earlier run left of them.
struct Stock<'a> {
    done: BTreeMap<u64, ShardRecord>,
    todo: Vec<Shard<'a>>,
    /// What is wrong with the first shard that is there and cannot be used.
    damaged: Option<Error>,
}

fn take_stock<'a>(
    job: &SynthJob<'_>,
    shard_rows: u64,
    fingerprint: &'a str,
    recorded: &BTreeMap<String, ShardRecord>,
) -> Stock<'a> {
    let mut stock = Stock { done: BTreeMap::new(), todo: Vec::new(), damaged: None };
    for index in job.shards(shard_rows) {
        let pairs = index * shard_rows..((index + 1) * shard_rows).min(job.recipe.plan.pairs());
        let shard = Shard { index, path: job.out.join(shard_name(index)), pairs, fingerprint };
        match shard.finished(recorded.get(&shard_name(index))) {
            Ok(Some(record)) => drop(stock.done.insert(index, record)),
            Ok(None) => stock.todo.push(shard),
            Err(error) => drop(stock.damaged.get_or_insert(error)),
        }
    }
    stock
}

/// Time between two versions of a manifest while shards are written.
const BETWEEN_MANIFESTS: Duration = Duration::from_secs(2);
/// At least so many times what writing one took.
const MANIFEST_SHARE: u32 = 50;

/// The manifest of a run at work.
struct KeptManifest {
    manifest: Manifest,
    path: PathBuf,
    written: Instant,
    pause: Duration,
}

impl KeptManifest {
    fn new(manifest: Manifest, path: PathBuf) -> KeptManifest {
        KeptManifest { manifest, path, written: Instant::now(), pause: BETWEEN_MANIFESTS }
    }

    fn write(&mut self, done: &BTreeMap<u64, ShardRecord>, complete: bool) -> Result<()> {
        let start = Instant::now();
        self.manifest.complete = complete;
        self.manifest.shards = done.values().cloned().collect();
        self.manifest.write(&self.path)?;
        self.written = Instant::now();
        self.pause = BETWEEN_MANIFESTS.max(MANIFEST_SHARE * (self.written - start));
        Ok(())
    }

    /// Not after every shard: thousands would be listed thousands of times.
    fn write_now_and_then(&mut self, done: &BTreeMap<u64, ShardRecord>) -> Result<()> {
        if self.written.elapsed() < self.pause { Ok(()) } else { self.write(done, false) }
    }
}

/// Refuses a folder that holds something else, or empties it of an earlier output if that was asked for. Gives the
/// shards that the manifests of this run list.
fn prepare_folder(job: &SynthJob<'_>, manifest: &Manifest) -> Result<BTreeMap<String, ShardRecord>> {
    let other = |path: PathBuf, hint: String| -> Result<()> {
        if job.overwrite { Ok(()) } else { Err(Error::Exists { path, hint }) }
    };
    let (mut earlier, mut begun) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(job.out).map_err(Error::io("list", job.out))? {
        let path = entry.map_err(Error::io("list", job.out))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with("manifest.") && name.ends_with(".json") {
            earlier.push((path, true));
        } else if name == "recipe.json" || (name.starts_with("pairs-") && name.ends_with(".safetensors")) {
            earlier.push((path, false));
        } else if name.starts_with(".pairs-") && name.ends_with(".safetensors.tmp") {
            begun.push(path);
        }
    }
    let mut recorded = BTreeMap::new();
    let mut ours = false;
    let mut replace = false;
    for (path, _) in earlier.iter().filter(|e| e.1) {
        match Manifest::read(path) {
            Ok(found) if found.fingerprint == manifest.fingerprint => {
                ours = true;
                recorded.extend(found.shards.into_iter().map(|r| (r.file.clone(), r)));
            }
            Ok(found) => {
                let what = match found.difference(&manifest.settings) {
                    Some((setting, there, here)) => format!("`{setting}` is {there} there and {here} now"),
                    None => "the settings differ".into(),
                };
                other(
                    path.clone(),
                    format!("it was made with other settings: {what}; --overwrite replaces it"),
                )?;
                replace = true;
            }
            Err(_) if job.overwrite => replace = true,
            Err(error) => return Err(error),
        }
    }
    if !ours && !replace && !earlier.is_empty() {
        let hint = "it does not belong to a run with a manifest; --overwrite replaces it".to_string();
        other(earlier[0].0.clone(), hint)?;
        replace = true;
    }
    if replace {
        for path in earlier.iter().map(|e| &e.0).chain(&begun) {
            fs::remove_file(path).map_err(Error::io("remove", path))?;
        }
        recorded.clear();
    }
    Ok(recorded)
}
