//! Import: columns of foreign files become shards, in one pass and with the memory of a few blocks.

use std::path::{Path, PathBuf};
use std::time::Instant;

use rayon::prelude::*;
use serde::Serialize;
use serde_json::{Value, json};

use super::annotate::Annotation;
use super::column::{BLOCK_BYTES, Buffer, Kind};
use super::sources::{self, Column, ColumnSource, widest};
use crate::data::{
    FolderOptions, Io, MANIFEST, Manifest, OutputFolder, ShardSequence, TensorSpec, file_state,
    rows_per_shard, verify_shard,
};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::matrix::Side;

/// The entry of a manifest's settings that says that an import made it.
const IMPORT: &str = "import";
/// Most responses of a prompt that pairs are drawn from.
const MAX_RESPONSES: usize = 1 << 16;

/// What the columns mean, and so which tensors the shards get. Embeddings are floats of 16, 32 or 64 bits, rewards
/// floats or integers, groups integers.
#[derive(Clone, Debug)]
pub enum ImportLayout {
    /// Preference pairs: `chosen` and `rejected` `[n, d]`, and `group` `[n]` I64 where there is one.
    Pairs {
        /// Preferred responses `[n, d]`.
        chosen: ColumnSource,
        /// Other responses `[n, d]`.
        rejected: ColumnSource,
        /// Which pairs belong together, `[n]`. `None` takes column `group` of the files of `chosen` if there is one.
        group: Option<ColumnSource>,
    },
    /// Plain embeddings: `embeddings` `[n, d]`.
    Embeddings {
        /// Embeddings `[n, d]`.
        embeddings: ColumnSource,
    },
    /// Sets for best-of-N: `candidates` `[P, N, d]` and `gold` `[P, N]`.
    BestOfN {
        /// Responses `[P, N, d]`, N at least 2.
        candidates: ColumnSource,
        /// Rewards `[P, N]`.
        gold: ColumnSource,
    },
    /// Preference pairs made from several responses with rewards: `chosen`, `rejected` and `group`, the number of the
    /// prompt.
    Annotated {
        /// Responses `[P, N, d]`, N at least 2.
        embeddings: ColumnSource,
        /// Rewards `[P, N]`.
        rewards: ColumnSource,
        /// How pairs are made.
        rule: Annotation,
        /// Most pairs of a prompt; must be `None` for [`Annotation::AllPairs`], else `None` is 1.
        pairs_per_prompt: Option<u64>,
        /// Seed of the draws.
        seed: u64,
    },
}

/// What to import, and where to.
#[derive(Clone, Debug)]
pub struct ImportJob {
    /// What the columns mean.
    pub layout: ImportLayout,
    /// Folder for the shards; made if it is not there.
    pub out: PathBuf,
    /// Storage type of embeddings. `None` keeps that of the source: F32 where files or sides differ, or hold F64,
    /// which shards do not.
    pub dtype: Option<Dtype>,
    /// Rows per shard; `None` chooses shards of about 256 MiB.
    pub shard_rows: Option<u64>,
    /// Whether shards that are there are replaced.
    pub overwrite: bool,
    /// How Arrow files are read; the other formats are never mapped.
    pub io: Io,
}

/// What an import did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ImportSummary {
    /// `pairs`, `embeddings` or `candidates`.
    pub kind: &'static str,
    /// Rows of the shards: pairs, embeddings or prompts.
    pub rows: u64,
    /// Values per embedding d.
    pub dim: usize,
    /// Storage type of the embeddings.
    pub dtype: Dtype,
    /// Prompts that gave no pair, since their rewards are equal.
    pub prompts_without_pair: u64,
    /// Shards written.
    pub shards: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Seconds it took.
    pub seconds: f64,
}

/// Converts foreign data to shards. `on_progress` is told the rows that are done and all rows.
///
/// The shards depend on the values, the dtype and the rows per shard alone, not on the format they came from. A shard
/// that has its name is whole; an import that was interrupted goes on after the shards that it finished, to the same bytes.
///
/// # Errors
/// Sources that cannot be read, lack a column, differ in rows or shape, hold nulls, lists of another length
/// ([`Error::Shape`]), NaN or infinity ([`Error::NonFinite`]) or values too large for `dtype`, each with file, row and
/// column; an output that is complete, or of another import, unless `overwrite` ([`Error::Exists`]).
pub fn import(job: &ImportJob, on_progress: &mut dyn FnMut(u64, u64)) -> Result<ImportSummary> {
    match &job.layout {
        ImportLayout::Pairs { chosen, rejected, group } => {
            pairs(job, chosen, rejected, group.as_ref(), on_progress)
        }
        ImportLayout::Embeddings { embeddings } => plain(job, embeddings, on_progress),
        ImportLayout::BestOfN { candidates, gold } => best_of_n(job, candidates, gold, on_progress),
        ImportLayout::Annotated { embeddings, rewards, rule, pairs_per_prompt, seed } => {
            let rule = PairRule::new(*rule, *pairs_per_prompt, *seed)?;
            annotated(job, embeddings, rewards, &rule, on_progress)
        }
    }
}

impl ImportJob {
    /// The storage type of embeddings from columns of `kind`.
    fn stored_as(&self, kind: Kind) -> Dtype {
        self.dtype.unwrap_or(match kind {
            Kind::F16 => Dtype::F16,
            Kind::Bf16 => Dtype::Bf16,
            _ => Dtype::F32,
        })
    }

    /// Starts a folder of shards called `prefix` for `rows` rows of `row_bytes` bytes, made of `columns`.
    fn start(
        &self,
        prefix: &'static str,
        layout: Value,
        dtype: Dtype,
        tensors: Vec<TensorSpec>,
        (rows, row_bytes): (u64, usize),
        columns: &[&Column],
    ) -> Result<ShardSequence> {
        let shard_rows = rows_per_shard(self.shard_rows, rows, row_bytes)?;
        // What determines the bytes of the shards, as far as the names, lengths and times of files tell.
        let paths: Vec<&Path> = columns.iter().flat_map(|column| column.paths()).collect();
        let mut sources = Vec::new();
        for path in &paths {
            let (bytes, modified) = file_state(path)?;
            sources.push(json!({ "file": path, "bytes": bytes, "modified": modified }));
        }
        let settings = json!({
            IMPORT: { "layout": layout, "dtype": dtype, "shard_rows": shard_rows, "sources": sources },
        });
        let options = FolderOptions {
            lock: "import",
            manifest: MANIFEST,
            prefix,
            overwrite: self.overwrite,
            inputs: &paths,
            may_list: &|_| true,
        };
        let manifest = Manifest::new(settings, rows, shard_rows, None);
        ShardSequence::start(OutputFolder::open(&self.out, manifest, options)?, tensors)
    }

    /// Copies columns of equally many rows as the tensors of shards: each as the name and kind beside it. `row_bytes`
    /// are those of a row's embeddings.
    fn copy(
        &self,
        kind: &'static str,
        layout: &str,
        mut columns: Vec<(Column, &str, Kind)>,
        (dim, dtype): (usize, Dtype),
        row_bytes: usize,
        on_progress: &mut dyn FnMut(u64, u64),
    ) -> Result<ImportSummary> {
        let start = Instant::now();
        let rows = columns[0].0.rows();
        let block = block_rows(columns[0].0.tail().iter().product::<usize>() * 8);
        let mut buffers: Vec<Buffer> = columns.iter().map(|&(.., kind)| Buffer::new(kind)).collect();
        let tensors = columns.iter().map(|(column, name, kind)| spec(name, (*kind).into(), column.tail()));
        let (tensors, sources) =
            (tensors.collect(), columns.iter().map(|(column, ..)| column).collect::<Vec<_>>());
        let mut output = self.start(kind, json!(layout), dtype, tensors, (rows, row_bytes), &sources)?;
        let mut done = output.done();
        columns.iter_mut().try_for_each(|(column, ..)| column.skip(done))?;
        while done < rows {
            let count = block.min(rows - done) as usize;
            let read = columns.par_iter_mut().zip(&mut buffers).map(|((column, ..), buffer)| {
                buffer.clear();
                column.read(count, buffer)
            });
            // All of them first, so that of several errors the first column's is given every time.
            let read: Vec<Result<()>> = read.collect();
            read.into_iter().collect::<Result<()>>()?;
            output.append(count, &buffers.iter().map(Buffer::bytes).collect::<Vec<_>>())?;
            done += count as u64;
            on_progress(done, rows);
        }
        summary(kind, output, dim, dtype, start)
    }
}

fn spec(name: &str, dtype: safetensors::Dtype, tail: &[usize]) -> TensorSpec {
    TensorSpec { name: name.into(), dtype, shape_tail: tail.to_vec() }
}

/// Rows that are read at a time.
fn block_rows(row_bytes: usize) -> u64 {
    (BLOCK_BYTES / row_bytes.max(1)).max(1) as u64
}

/// Completes the output.
fn summary(
    kind: &'static str,
    output: ShardSequence,
    dim: usize,
    dtype: Dtype,
    start: Instant,
) -> Result<ImportSummary> {
    let (rows, shards, bytes) = output.finish()?;
    let seconds = start.elapsed().as_secs_f64();
    Ok(ImportSummary { kind, rows, dim, dtype, prompts_without_pair: 0, shards, bytes, seconds })
}

fn pairs(
    job: &ImportJob,
    chosen: &ColumnSource,
    rejected: &ColumnSource,
    group: Option<&ColumnSource>,
    on_progress: &mut dyn FnMut(u64, u64),
) -> Result<ImportSummary> {
    let sides = [Column::open(chosen, job.io)?, Column::open(rejected, job.io)?];
    for side in &sides {
        side.require_axes(1, "[n, d] with d of at least 1")?;
        side.require_floats()?;
    }
    sides[1].require_rows_of(&sides[0])?;
    let dim = sides[0].tail()[0];
    if sides[1].tail() != sides[0].tail() {
        let what = format!("{}: values per row", sides[1].title());
        return Err(Error::shape(what, format!("{dim} as in {}", sides[0].title()), sides[1].tail()[0]));
    }
    let implied = || -> Result<Option<ColumnSource>> {
        let there = sources::column_names(&chosen.files, chosen.format)?.iter().any(|name| name == "group");
        Ok(there.then(|| ColumnSource { name: "group".into(), ..chosen.clone() }))
    };
    let group = match group {
        Some(group) => Some(group.clone()),
        None => implied()?,
    };
    let group = group.map(|group| Column::open(&group, job.io)).transpose()?;
    if let Some(group) = &group {
        group.require_axes(0, "[n]")?;
        group.require_integers()?;
        group.require_rows_of(&sides[0])?;
    }
    let dtype = job.stored_as(widest(sides[0].kind(), sides[1].kind()));
    let sides = sides.into_iter().zip(Side::BOTH);
    let mut columns: Vec<_> = sides.map(|(column, side)| (column, side.name(), dtype.into())).collect();
    columns.extend(group.map(|group| (group, "group", Kind::I64)));
    job.copy("pairs", "pairs", columns, (dim, dtype), 2 * dim * dtype.size(), on_progress)
}

fn plain(
    job: &ImportJob,
    source: &ColumnSource,
    on_progress: &mut dyn FnMut(u64, u64),
) -> Result<ImportSummary> {
    let column = Column::open(source, job.io)?;
    column.require_axes(1, "[n, d] with d of at least 1")?;
    column.require_floats()?;
    let (dim, dtype) = (column.tail()[0], job.stored_as(column.kind()));
    let columns = vec![(column, "embeddings", dtype.into())];
    job.copy("embeddings", "embeddings", columns, (dim, dtype), dim * dtype.size(), on_progress)
}

/// Responses `[P, N, d]` and rewards `[P, N]` that belong together.
fn responses(job: &ImportJob, embeddings: &ColumnSource, rewards: &ColumnSource) -> Result<[Column; 2]> {
    let (embeddings, rewards) = (Column::open(embeddings, job.io)?, Column::open(rewards, job.io)?);
    embeddings.require_axes(2, "[prompts, responses, d], none of them 0")?;
    embeddings.require_floats()?;
    rewards.require_axes(1, "[prompts, responses]")?;
    rewards.require_rows_of(&embeddings)?;
    let per_prompt = embeddings.tail()[0];
    if rewards.tail()[0] != per_prompt {
        let what = format!("{}: rewards per prompt", rewards.title());
        let expected = format!("{per_prompt} as responses in {}", embeddings.title());
        return Err(Error::shape(what, expected, rewards.tail()[0]));
    }
    if per_prompt < 2 {
        let what = format!("{}: responses per prompt", embeddings.title());
        return Err(Error::TooFew { what, needed: 2, found: per_prompt as u64 });
    }
    Ok([embeddings, rewards])
}

fn best_of_n(
    job: &ImportJob,
    candidates: &ColumnSource,
    gold: &ColumnSource,
    on_progress: &mut dyn FnMut(u64, u64),
) -> Result<ImportSummary> {
    let [candidates, gold] = responses(job, candidates, gold)?;
    let (per_prompt, dim) = (candidates.tail()[0], candidates.tail()[1]);
    let dtype = job.stored_as(candidates.kind());
    let gold_kind = if gold.kind().is_float() { gold.kind() } else { Kind::F64 };
    let columns = vec![(candidates, "candidates", dtype.into()), (gold, "gold", gold_kind)];
    let row_bytes = per_prompt * dim * dtype.size();
    job.copy("candidates", "best-of-n", columns, (dim, dtype), row_bytes, on_progress)
}

/// How pairs are made of the rewards of a prompt.
struct PairRule {
    rule: Annotation,
    count: u64,
    seed: u64,
}

impl PairRule {
    fn new(rule: Annotation, count: Option<u64>, seed: u64) -> Result<PairRule> {
        let count = match (rule, count) {
            (Annotation::AllPairs, Some(count)) => {
                let expected = "none with all-pairs, which makes every pair";
                return Err(Error::argument("pairs_per_prompt", expected, count));
            }
            (Annotation::AllPairs, None) => u64::MAX,
            (_, Some(0)) => return Err(Error::argument("pairs_per_prompt", "1 or more", 0)),
            (_, count) => count.unwrap_or(1),
        };
        Ok(PairRule { rule, count, seed })
    }

    fn pairs(&self, prompt: u64, rewards: &[f64]) -> Vec<(u32, u32)> {
        self.rule.pairs(self.seed, prompt, rewards, self.count)
    }
}

fn annotated(
    job: &ImportJob,
    embeddings: &ColumnSource,
    rewards: &ColumnSource,
    rule: &PairRule,
    on_progress: &mut dyn FnMut(u64, u64),
) -> Result<ImportSummary> {
    let start = Instant::now();
    let [mut column, scores] = responses(job, embeddings, rewards)?;
    let (prompts, per_prompt, dim) = (column.rows(), column.tail()[0], column.tail()[1]);
    if per_prompt > MAX_RESPONSES {
        let what = format!("{}: responses per prompt", column.title());
        return Err(Error::shape(what, format!("{MAX_RESPONSES} at most"), per_prompt));
    }
    let most = rule.rule.most_pairs(per_prompt as u32);
    if rule.rule != Annotation::AllPairs && rule.count > most {
        let expected = format!("1 to {most}: {} of {per_prompt} responses gives no more", rule.rule);
        return Err(Error::argument("pairs_per_prompt", expected, rule.count));
    }
    // Equal rewards make no pair, so that a pass over the rewards has to count the pairs first.
    let mut scores = Rewards { column: scores, per_prompt, values: Buffer::new(Kind::F64), prompt: 0 };
    let (mut rows, mut without) = (0u64, 0u64);
    for prompt in 0..prompts {
        let count = rule.pairs(prompt, scores.next()?).len() as u64;
        rows += count;
        without += u64::from(count == 0);
    }
    let mut scores = Rewards { column: Column::open(rewards, job.io)?, prompt: 0, ..scores };
    if rows == 0 {
        let what = format!("{}: prompts whose rewards differ", scores.column.title());
        return Err(Error::TooFew { what, needed: 1, found: 0 });
    }

    let dtype = job.stored_as(column.kind());
    let layout = json!({ "annotate": rule.rule, "pairs_per_prompt": rule.count, "seed": rule.seed });
    let tensors = vec![
        spec("chosen", dtype.into(), &[dim]),
        spec("rejected", dtype.into(), &[dim]),
        spec("group", safetensors::Dtype::I64, &[]),
    ];
    let (size, columns) = ((rows, 2 * dim * dtype.size()), [&column, &scores.column]);
    let mut output = job.start("pairs", layout, dtype, tensors, size, &columns)?;

    let row_bytes = dim * dtype.size();
    let block = block_rows(per_prompt * dim * 8);
    let mut buffer = Buffer::new(dtype.into());
    let mut sides = [Vec::new(), Vec::new()];
    let mut groups: Vec<i64> = Vec::new();
    // Pairs of finished shards, which are not made again.
    let mut skip = output.done();
    let (mut done, mut written) = (0, skip);
    let mut flush = |sides: &mut [Vec<u8>; 2], groups: &mut Vec<i64>| -> Result<()> {
        output.append(groups.len(), &[&sides[0], &sides[1], bytemuck::cast_slice(groups)])?;
        written += groups.len() as u64;
        on_progress(written, rows);
        sides.iter_mut().for_each(Vec::clear);
        groups.clear();
        Ok(())
    };
    while done < prompts {
        let numbers = done..prompts.min(done + block);
        let pairs = numbers.clone().map(|number| Ok(rule.pairs(number, scores.next()?)));
        let pairs = pairs.collect::<Result<Vec<_>>>()?;
        done = numbers.end;
        let made = pairs.iter().map(|pairs| pairs.len() as u64).sum::<u64>();
        if made <= skip {
            skip -= made;
            column.skip(numbers.end - numbers.start)?;
            continue;
        }
        buffer.clear();
        column.read(pairs.len(), &mut buffer)?;
        let prompts = buffer.bytes().chunks_exact(per_prompt * row_bytes);
        for ((number, pairs), prompt) in numbers.zip(pairs).zip(prompts) {
            for (a, b) in pairs {
                if skip > 0 {
                    skip -= 1;
                    continue;
                }
                for (side, response) in sides.iter_mut().zip([a as usize, b as usize]) {
                    side.extend_from_slice(&prompt[response * row_bytes..][..row_bytes]);
                }
                groups.push(number as i64);
                if sides[0].len() >= BLOCK_BYTES {
                    flush(&mut sides, &mut groups)?;
                }
            }
        }
    }
    flush(&mut sides, &mut groups)?;
    let mut summary = summary("pairs", output, dim, dtype, start)?;
    summary.prompts_without_pair = without;
    Ok(summary)
}

/// Rewards, a prompt at a time.
struct Rewards {
    column: Column,
    per_prompt: usize,
    values: Buffer,
    /// Which of the prompts in `values` comes next.
    prompt: usize,
}

impl Rewards {
    fn next(&mut self) -> Result<&[f64]> {
        const PROMPTS: u64 = 1024;
        if (self.prompt + 1) * self.per_prompt > self.values.len() || self.prompt == 0 {
            self.values.clear();
            self.column.read(PROMPTS.min(self.column.left()) as usize, &mut self.values)?;
            self.prompt = 0;
        }
        let Buffer::F64(values) = &self.values else { unreachable!("it was made as F64") };
        let at = self.prompt * self.per_prompt;
        self.prompt += 1;
        values
            .get(at..at + self.per_prompt)
            .ok_or_else(|| Error::shape(format!("{}: rows", self.column.title()), "one more", "none left"))
    }
}

/// Whether `folder` holds the manifest of an import.
pub fn is_import(folder: &Path) -> bool {
    Manifest::read(&folder.join(MANIFEST)).is_ok_and(|found| found.settings.get(IMPORT).is_some())
}

/// What a check of an import's folder found in order.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct VerifiedImport {
    /// Shards read.
    pub shards: usize,
    /// Rows in them.
    pub rows: u64,
    /// Bytes read.
    pub bytes: u64,
}

/// Re-reads the shards of an import and compares sizes and checksums with its manifest. `on_progress` is told the
/// bytes that are done and all bytes. Fails with [`Error::Mismatch`] on the first difference, also if the import is not
/// complete.
pub fn verify_import(folder: &Path, io: Io, on_progress: &mut dyn FnMut(u64, u64)) -> Result<VerifiedImport> {
    let path = folder.join(MANIFEST);
    let manifest = Manifest::read(&path)?;
    let differs = |path: &Path, what: &str, expected: String, found: String| {
        Err(Error::Mismatch { path: path.to_path_buf(), what: what.into(), expected, found })
    };
    if !manifest.complete {
        let found = "interrupted; run the same import again".to_string();
        return differs(&path, "state of the import", "complete".into(), found);
    }
    let rows = manifest.shards.iter().try_fold(0u64, |n, shard| n.checked_add(shard.rows));
    if rows != Some(manifest.pairs) {
        return differs(&path, "rows of the shards", manifest.pairs.to_string(), format!("{rows:?}"));
    }
    let total = manifest.shards.iter().fold(0u64, |n, shard| n.saturating_add(shard.bytes));
    let mut verified = VerifiedImport { shards: 0, rows: manifest.pairs, bytes: 0 };
    for record in &manifest.shards {
        // The last component alone: a manifest must not lead out of its folder.
        let name = Path::new(&record.file).file_name().unwrap_or_default();
        let shard = folder.join(name);
        let found = verify_shard(&shard, io)?;
        if found != *record {
            return differs(&shard, "record in the manifest", format!("{record:?}"), format!("{found:?}"));
        }
        verified.shards += 1;
        verified.bytes += record.bytes;
        on_progress(verified.bytes, total);
    }
    Ok(verified)
}
