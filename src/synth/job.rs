//! A job writes a recipe's pairs as shards into a folder; `data/folder.rs` sees to it that a killed run resumes to the
//! same bytes. The other way round, [`StoredRun`] opens such a folder, or a recipe alone, to make embeddings of it.

use std::path::{Path, PathBuf};
use std::time::Instant;

use safetensors::Dtype as Stored;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::generate::{LatentBatch, PairBatch, Synthesizer};
use super::parts::{PREFIX, Part, all_shards, read_run};
use super::recipe::{Moved, Recipe};
use super::write::{Busy, Progress, ShardFormat, Speed, WriteEvent, write_shards};
use crate::backend::Backend;
use crate::data::{
    FolderOptions, Io, LATENT_CANDIDATE, LATENT_SEED, LATENT_Z, LatentSet, Manifest, OutputFolder, PairSet,
    RECIPE, ShardFile, TensorSpec, WriteMode, file_name, is_folder, lengths, rows_per_shard, shard_name,
};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::model::Vae;

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

/// What to write, and where.
#[derive(Clone, Debug)]
pub struct SynthJob<'a> {
    /// What determines the pairs.
    pub recipe: &'a Recipe,
    /// The output folder; made if it is not there.
    pub out: &'a Path,
    /// Embeddings, latents, or the recipe alone.
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
    /// Stored latents of the recipe's pairs, which are decoded instead of made again.
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
    /// How fast it was, and which stage was the slower one; None if nothing was left to make.
    pub speed: Option<Speed>,
}

impl<'a> SynthJob<'a> {
    /// The whole recipe as embeddings in BF16, into a folder of its own.
    pub fn new(recipe: &'a Recipe, out: &'a Path) -> SynthJob<'a> {
        SynthJob {
            recipe,
            out,
            kind: OutputKind::Embeddings,
            dtype: Dtype::Bf16,
            shard_rows: None,
            part: Part::WHOLE,
            overwrite: false,
            write: WriteMode::default(),
            latents: None,
        }
    }
}

impl SynthJob<'_> {
    /// Rows per shard. Fails on options that do not go together.
    fn shard_rows(&self) -> Result<u64> {
        let size = self.recipe.vae.size;
        let row_bytes = match self.kind {
            OutputKind::Embeddings => 2 * size.dim * self.dtype.size(),
            _ => 8 * size.latent + 16,
        };
        let pairs = self.recipe.plan.pairs();
        // A recipe has no shards, so that its pairs may be any number.
        let written = if self.kind == OutputKind::Recipe { 0 } else { pairs };
        let shard_rows = rows_per_shard(self.shard_rows, written, row_bytes)?;
        let shards = pairs.div_ceil(shard_rows);
        if self.part.count > shards {
            let expected = format!("at most {shards} parts: there are {shards} shards of {shard_rows} pairs");
            let found = format!("{}/{}", self.part.index, self.part.count);
            return Err(Error::argument("part", expected, found));
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
        let shard_rows = self.shard_rows()?;
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

/// Writes a job's shards, manifest and recipe, one stream of shards for each synthesizer; they are of one recipe and may
/// be on devices of their own. `on_progress` is told how far this part is.
///
/// A folder with the same settings is continued: finished shards are kept, the others are made. The bytes do not depend
/// on interruptions, batch sizes, threads, devices or parts.
///
/// # Errors
/// An output made with other settings ([`Error::Exists`], unless `overwrite`), another process at work on the same
/// part, a disk that is full or not writable, seeds that changed meanwhile, or values that the dtype cannot hold.
pub fn write_synthetic<B: Backend>(
    job: &SynthJob<'_>,
    synthesizers: &[Synthesizer<'_, B>],
    on_progress: &mut dyn FnMut(&Progress),
) -> Result<SynthSummary> {
    let start = Instant::now();
    let shard_rows = job.shard_rows()?;
    let settings = job.settings(shard_rows, synthesizers.first().map_or("f32", Synthesizer::arithmetic));
    let Part { index, count } = job.part;
    let (part, lock) = match job.part {
        Part::WHOLE => (None, "synth".to_string()),
        _ => (Some((index, count)), format!("synth-{index}-of-{count}")),
    };
    let mut inputs = vec![job.recipe.vae.path.as_path()];
    inputs.extend(synthesizers.iter().flat_map(Synthesizer::paths));
    inputs.extend(job.latents.iter().flat_map(|latents| ShardFile::paths(latents.files())));
    let all = job.recipe.plan.pairs().div_ceil(shard_rows);
    let shards = job.shards(shard_rows);
    let may_list = |name: &str| {
        let other = Part::of_manifest(name).map_or(0..all, |part| part.of(all));
        name == job.part.manifest_name() || other.start < shards.end && shards.start < other.end
    };
    let options = FolderOptions {
        lock: &lock,
        manifest: &job.part.manifest_name(),
        prefix: PREFIX,
        overwrite: job.overwrite,
        inputs: &inputs,
        may_list: &may_list,
    };
    let manifest = Manifest::new(settings, job.recipe.plan.pairs(), shard_rows, part);
    let mut folder = OutputFolder::open(job.out, manifest, options)?;
    let todo = folder.resume(shards)?;
    job.recipe.write(&job.out.join(RECIPE))?;

    let resumed: u64 = folder.done().map(|r| r.rows).sum();
    let total: u64 = todo.iter().map(|s| s.rows.end - s.rows.start).sum();
    let mut progress = Progress::start(resumed, total);
    on_progress(&progress);
    if !todo.is_empty() {
        let format = ShardFormat {
            tensors: job.tensors(),
            dtype: job.dtype,
            dim: job.recipe.vae.size.dim,
            mode: job.write,
        };
        let begun = Instant::now();
        let mut on_event = |event: WriteEvent, busy: &Busy| {
            match event {
                WriteEvent::Wrote { pairs, bytes } => progress.wrote(pairs, bytes),
                WriteEvent::Finished(index, record) => folder.record(index, record)?,
            }
            progress.measure(begun.elapsed(), busy, synthesizers.len());
            on_progress(&progress);
            Ok(())
        };
        let result = match job.kind {
            OutputKind::Latents => {
                write_shards::<B, LatentBatch>(&format, synthesizers, &todo, &mut on_event)
            }
            _ => write_shards::<B, PairBatch>(&format, synthesizers, &todo, &mut on_event),
        };
        if let Err(error) = result {
            folder.require_in_place()?;
            // The first error says more than a manifest that cannot be written for the same reason.
            let _ = folder.save();
            return Err(error);
        }
    }
    let (shards, bytes) = folder.finish()?;
    Ok(SynthSummary {
        pairs: resumed + total,
        resumed,
        shards,
        bytes,
        seconds: start.elapsed().as_secs_f64(),
        speed: (total > 0).then(|| progress.speed()),
    })
}

/// A run on disk, as latents or as a recipe, that can be made into embeddings.
#[derive(Debug)]
pub struct StoredRun {
    /// Its recipe, with the paths under which its files were found.
    pub recipe: Recipe,
    /// The seed pairs.
    pub seeds: PairSet,
    /// The VAE.
    pub vae: Vae,
    /// The latents of its pairs, where they are stored, and the arithmetic that they were made in.
    pub latents: Option<(LatentSet, String)>,
}

impl StoredRun {
    /// Opens a folder that `synth` made (of latents, a recipe, or embeddings to be made in another type) or a recipe
    /// file. `moved` says where seeds and VAE are, if not where the recipe says.
    ///
    /// # Errors
    /// Files that are missing or not those of the recipe; latents of another recipe, or not of all pairs.
    pub fn open(path: &Path, moved: &Moved, io: Io) -> Result<StoredRun> {
        let is_folder = is_folder(path)?;
        let file = if is_folder { path.join(RECIPE) } else { path.to_path_buf() };
        let recipe = Recipe::read(&file)?;
        let (seeds, vae) = recipe.open(&file, io, moved)?;
        let latents = if is_folder { latents(path, &recipe, io)? } else { None };
        Ok(StoredRun { recipe: recipe.located(&file, moved)?, seeds, vae, latents })
    }
}

/// The latents in a folder; None if it holds something else.
fn latents(folder: &Path, recipe: &Recipe, io: Io) -> Result<Option<(LatentSet, String)>> {
    let run = read_run(folder)?;
    let (path, manifest) = (&run[0].path, &run[0].manifest);
    if let Some((setting, expected, found)) = recipe.difference(manifest) {
        let what = format!("setting `{setting}` (of recipe.json)");
        return Err(Error::Mismatch { path: path.clone(), what, expected, found });
    }
    let output = &manifest.settings["output"];
    if output["kind"] != serde_json::json!(OutputKind::Latents) {
        return Ok(None);
    }
    let shards = (0..all_shards(manifest)).map(|i| folder.join(shard_name(PREFIX, i)));
    let shards: Vec<PathBuf> = shards.collect();
    let listed = lengths(folder)?;
    let is_there = |path: &Path| match &listed {
        Some(listed) => listed.contains_key(&file_name(path)),
        None => path.exists(),
    };
    if let Some(missing) = shards.iter().find(|path| !is_there(path)) {
        return Err(Error::Incomplete {
            path: missing.clone(),
            missing: "No such file, which is a shard of the run".into(),
            hint: "bring the shards of all parts together, or run the synth command again: it makes what is missing"
                .into(),
            parts: Vec::new(),
        });
    }
    let names: Vec<String> = shards.iter().map(|path| path.to_string_lossy().into_owned()).collect();
    let arithmetic = serde_json::from_value(output["precision"].clone()).map_err(|e| Error::Format {
        path: path.clone(),
        format: "manifest",
        detail: format!("setting `output.precision`: {e}"),
    })?;
    Ok(Some((LatentSet::open(&names, io)?, arithmetic)))
}
