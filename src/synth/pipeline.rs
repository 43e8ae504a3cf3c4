//! Writing a recipe's pairs as shards, so that a killed run resumes to the same bytes.
//!
//! A shard gets its name only when it is whole and on disk, and its header says which run and pairs it belongs to;
//! so a shard that is there is done, and a run killed at any moment loses at most the shard it was writing.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use safetensors::Dtype as Stored;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

use super::{Recipe, Synthesizer};
use crate::backend::Backend;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::shard::{FolderLock, Manifest, ShardRecord, ShardWriter, TensorSpec, inspect_shard};

/// Bytes of a shard where the user does not say otherwise.
const SHARD_BYTES: u64 = 256 << 20;

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
    fn settings(&self, shard_rows: u64) -> Value {
        let mut settings = self.recipe.settings();
        settings["output"] = serde_json::json!({ "kind": self.kind, "shard_rows": shard_rows });
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

    fn tensors(&self) -> Vec<TensorSpec> {
        let spec = |name: &str, dtype, shape_tail: &[usize]| TensorSpec {
            name: name.into(),
            dtype,
            shape_tail: shape_tail.to_vec(),
        };
        let size = self.recipe.vae.size;
        let stored = Stored::from(self.dtype);
        match self.kind {
            OutputKind::Latents => vec![
                spec("chosen_z", Stored::F32, &[size.latent]),
                spec("rejected_z", Stored::F32, &[size.latent]),
                spec("seed", Stored::I64, &[]),
                spec("chosen_candidate", Stored::I32, &[]),
                spec("rejected_candidate", Stored::I32, &[]),
            ],
            _ => vec![spec("chosen", stored, &[size.dim]), spec("rejected", stored, &[size.dim])],
        }
    }
}

/// File name of shard `index`.
pub fn shard_name(index: u64) -> String {
    format!("pairs-{index:05}.safetensors")
}

/// Writes a job's shards, manifest and recipe. `progress` hears how many pairs of this part are done.
///
/// A folder with the same settings is continued: whole shards are kept, the rest is made. The bytes do not depend on
/// interruptions, batch sizes, threads or parts.
///
/// # Errors
/// An output made with other settings ([`Error::Exists`], unless `overwrite`), another process at work on the same
/// part, a disk that is full or not writable, or values that the dtype cannot hold.
pub fn write_synthetic<B: Backend>(
    job: &SynthJob<'_>,
    make: &Synthesizer<'_, B>,
    progress: &mut dyn FnMut(u64),
) -> Result<SynthSummary> {
    let start = Instant::now();
    let shard_rows = job.check()?;
    fs::create_dir_all(job.out).map_err(Error::io("create", job.out))?;
    let name = match job.part {
        Part::WHOLE => "synth".to_string(),
        Part { index, count } => format!("synth-{index}-of-{count}"),
    };
    let _lock = FolderLock::acquire(job.out, &name)?;
    let settings = job.settings(shard_rows);
    let fingerprint = format!("{:032x}", xxhash_rust::xxh3::xxh3_128(settings.to_string().as_bytes()));
    let plan = make.plan();
    let mut manifest = Manifest {
        format: 1,
        complete: false,
        fingerprint: fingerprint.clone(),
        settings,
        pairs: plan.pairs(),
        shard_rows,
        part: (job.part != Part::WHOLE).then_some((job.part.index, job.part.count)),
        shards: Vec::new(),
    };
    prepare_folder(job, &manifest)?;
    job.recipe.write(&job.out.join("recipe.json"))?;
    manifest.write(&job.manifest_path())?;

    let mut summary = SynthSummary { pairs: 0, resumed: 0, shards: 0, bytes: 0, seconds: 0.0 };
    for index in job.shards(shard_rows) {
        let pairs = index * shard_rows..((index + 1) * shard_rows).min(plan.pairs());
        let count = pairs.end - pairs.start;
        let path = job.out.join(shard_name(index));
        let record = match finished_shard(&path, &fingerprint, pairs.start, count)? {
            Some(record) => {
                summary.resumed += count;
                record
            }
            None => write_shard(job, make, &path, &fingerprint, pairs.clone(), &mut |done| {
                progress(summary.pairs + done);
            })?,
        };
        summary.pairs += count;
        summary.shards += 1;
        summary.bytes += record.bytes;
        manifest.shards.push(record);
        progress(summary.pairs);
    }
    manifest.complete = true;
    manifest.write(&job.manifest_path())?;
    summary.seconds = start.elapsed().as_secs_f64();
    Ok(summary)
}

/// Refuses a folder that holds something else, or empties it of an earlier output if that was asked for.
fn prepare_folder(job: &SynthJob<'_>, manifest: &Manifest) -> Result<()> {
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
    let mut ours = false;
    let mut replace = false;
    for (path, _) in earlier.iter().filter(|e| e.1) {
        match Manifest::read(path) {
            Ok(found) if found.fingerprint == manifest.fingerprint => ours = true,
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
            Err(error) if job.overwrite => {
                let _ = error;
                replace = true;
            }
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
    }
    Ok(())
}

/// The record of a shard that an earlier run finished.
fn finished_shard(path: &Path, fingerprint: &str, first: u64, rows: u64) -> Result<Option<ShardRecord>> {
    if !fs::exists(path).map_err(Error::io("open", path))? {
        return Ok(None);
    }
    let (header, record) = inspect_shard(path)?;
    let found = |key: &str| header.metadata.get(key).cloned().unwrap_or_default();
    for (key, expected) in [(FINGERPRINT, fingerprint.to_string()), (FIRST_PAIR, first.to_string())] {
        if found(key) != expected {
            return Err(Error::Mismatch {
                path: path.to_path_buf(),
                what: format!("metadata `{key}`"),
                expected,
                found: found(key),
            });
        }
    }
    Ok(record.filter(|r| r.rows == rows))
}

const FINGERPRINT: &str = "lensmith.fingerprint";
const FIRST_PAIR: &str = "lensmith.first_pair";

fn write_shard<B: Backend>(
    job: &SynthJob<'_>,
    make: &Synthesizer<'_, B>,
    path: &Path,
    fingerprint: &str,
    pairs: std::ops::Range<u64>,
    progress: &mut dyn FnMut(u64),
) -> Result<ShardRecord> {
    let metadata = BTreeMap::from([
        (FINGERPRINT.to_string(), fingerprint.to_string()),
        (FIRST_PAIR.to_string(), pairs.start.to_string()),
    ]);
    let first = pairs.start;
    let rows = (pairs.end - pairs.start) as usize;
    let mut writer = ShardWriter::create(path, &job.tensors(), rows, &metadata)?;
    if job.kind == OutputKind::Latents {
        make.latents(pairs, &mut |batch| {
            for side in 0..2 {
                writer.append(side, bytemuck::cast_slice(&batch.z[side]))?;
                writer.append(3 + side, bytemuck::cast_slice(&batch.candidate[side]))?;
            }
            writer.append(2, bytemuck::cast_slice(&batch.seed))?;
            progress(batch.first - first + batch.seed.len() as u64);
            Ok(())
        })?;
    } else {
        make.embeddings(pairs, job.dtype, &mut |batch| {
            writer.append(0, batch.chosen.view().values().bytes())?;
            writer.append(1, batch.rejected.view().values().bytes())?;
            progress(batch.first - first + batch.chosen.rows() as u64);
            Ok(())
        })?;
    }
    writer.finish()
}
