//! Embeddings as users hold them: preference pairs, candidates with gold scores, plain embeddings.

use std::ops::Range;
use std::sync::Arc;

use half::{bf16, f16};
use safetensors::Dtype as FileDtype;

use super::column::{self, Column, RowBlock, Scan, ShardFile, check_rank, wrong_dtype};
use super::format::TensorInfo;
use super::map::Io;
use super::source::Source;
use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::matrix::Side;

/// Which tensors hold the pairs, and how files are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PairOptions {
    /// Tensor of the preferred responses, `[n, d]`.
    pub chosen: String,
    /// Tensor of the other responses, `[n, d]`.
    pub rejected: String,
    /// I64 tensor `[n]` that says which pairs belong together (one prompt, say). `None` takes `group` if
    /// there is one. Where one file has it, all must.
    pub group: Option<String>,
    /// How files are read.
    pub io: Io,
}

impl Default for PairOptions {
    fn default() -> PairOptions {
        PairOptions {
            chosen: Side::Chosen.name().into(),
            rejected: Side::Rejected.name().into(),
            group: None,
            io: Io::default(),
        }
    }
}

/// The name under which groups are looked for when none is given.
const GROUP: &str = "group";
/// The metadata entry with the digests of the responses that candidates were made of: 16 hexadecimal digits a prompt.
const MADE_OF: &str = "responses_xxh3";

/// Preference pairs on disk: two matrices `[n, d]` of equal shape, over one or more files.
#[derive(Debug)]
pub struct PairSet {
    sides: [Column; 2],
    files: Vec<ShardFile>,
    group: Option<Vec<i64>>,
}

impl PairSet {
    /// Opens files, folders (every `*.safetensors` directly inside, by name) and glob patterns, joined in the
    /// order given.
    ///
    /// Reads headers and groups only; [`PairSet::scan`] looks at the values. Fails if a file cannot be opened
    /// or is not a safetensors file, if a tensor is missing or not `[n, d]` of F32, F16 or BF16, if the two
    /// sides of a file or the widths of two files differ, if there is no row, or if a file is given twice.
    pub fn open(sources: &[String], options: &PairOptions) -> Result<PairSet> {
        let sources = column::open_all(sources, options.io)?;
        let chosen = Column::new(&sources, &options.chosen, 2)?;
        let rejected = Column::new(&sources, &options.rejected, 2)?;
        chosen.require_same_shape(&rejected)?;
        let files = chosen.files();
        let implied = || sources.iter().any(|s| s.header.find(GROUP).is_some()).then_some(GROUP);
        let group = match options.group.as_deref().or_else(implied) {
            Some(name) => Some(read_group(&sources, &files, name)?),
            None => None,
        };
        Ok(PairSet { sides: [chosen, rejected], files, group })
    }

    /// Number of pairs n.
    pub fn len(&self) -> usize {
        self.sides[0].len()
    }

    /// Whether there are no pairs; never, since opening demands one.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Values per embedding d.
    pub fn dim(&self) -> usize {
        self.sides[0].dim()
    }

    /// The files in order.
    pub fn files(&self) -> &[ShardFile] {
        &self.files
    }

    /// The group of each pair `[n]`, where the files say.
    pub fn group(&self) -> Option<Vec<i64>> {
        self.group.clone()
    }

    /// The embeddings of one side for the pairs in `range`: borrowed where the file is mapped and aligned,
    /// else copied. Fails if `range` reaches past the end or a file cannot be read.
    pub fn rows(&self, side: Side, range: Range<usize>) -> Result<RowBlock<'_>> {
        self.sides[side as usize].rows(range)
    }

    /// Asks the system to have the pairs in `range` in memory soon, where files are mapped.
    pub(crate) fn prefetch(&self, range: Range<usize>) {
        self.sides.iter().for_each(|side| side.prefetch(range.clone()));
    }

    /// Takes the pairs in `range` out of this process's memory, where files are mapped; they come back when they are
    /// read again.
    pub(crate) fn release(&self, range: Range<usize>) {
        self.sides.iter().for_each(|side| side.release(range.clone()));
    }

    /// Fails with [`Error::Changed`] if a file was altered, replaced, removed or cut short since it was opened: what
    /// was made of it in between may be wrong.
    pub fn require_unchanged(&self) -> Result<()> {
        self.sides[0].require_unchanged()
    }

    /// What the store calls the versions of the objects that were opened, in order; None where some are files.
    pub(crate) fn versions(&self) -> Option<Vec<String>> {
        self.sides[0].versions()
    }

    /// Reads everything once: fails with [`Error::NonFinite`] on the first value (by file, row, side) that is
    /// NaN or infinite, else gives each file's fingerprint. Holds some 16 MiB at a time.
    pub fn scan(&self) -> Result<Scan> {
        self.scan_until(&Interrupt::default())
    }

    /// As [`PairSet::scan`]; fails with [`Error::Interrupted`] once `interrupt` is raised.
    pub fn scan_until(&self, interrupt: &Interrupt) -> Result<Scan> {
        column::scan(&[&self.sides[0], &self.sides[1]], interrupt)
    }
}

/// Several candidate responses per prompt with gold scores, for best-of-N.
#[derive(Debug)]
pub struct CandidateSet {
    candidates: Column,
    per_prompt: usize,
    gold: Vec<f32>,
    made_of: Option<Vec<u64>>,
    files: Vec<ShardFile>,
}

impl CandidateSet {
    /// Opens tensors `candidates` `[P, N, d]` (F32, F16 or BF16) and `gold` `[P, N]` (these or F64), joined
    /// along P over all files, and reads every value once to check that it is finite.
    ///
    /// Fails as [`PairSet::open`] does, if N differs between files or is below 2, and with
    /// [`Error::NonFinite`], whose row counts candidates (prompt times N plus candidate) in `candidates` and
    /// prompts in `gold`.
    pub fn open(sources: &[String], candidates: &str, gold: &str, io: Io) -> Result<CandidateSet> {
        CandidateSet::read(sources, candidates, Some(gold), io)
    }

    /// Opens candidates without gold scores, as [`CandidateSet::open`] does all else.
    pub fn without_gold(sources: &[String], candidates: &str, io: Io) -> Result<CandidateSet> {
        CandidateSet::read(sources, candidates, None, io)
    }

    fn read(sources: &[String], candidates: &str, gold: Option<&str>, io: Io) -> Result<CandidateSet> {
        let sources = column::open_all(sources, io)?;
        let column = Column::new(&sources, candidates, 3)?;
        let mut per_prompt = None;
        let mut scores = Vec::new();
        let mut made_of = Some(Vec::<u64>::new());
        for source in &sources {
            let shape = &source.header.tensor(&source.path, candidates)?.shape[..2];
            let expected = *per_prompt.get_or_insert(shape[1]);
            if shape[1] != expected {
                let what = format!("{}: candidates per prompt", source.path.display());
                let expected = format!("{expected} as in {}", sources[0].path.display());
                return Err(Error::shape(what, expected, shape[1]));
            }
            if shape[1] < 2 {
                let what = format!("{}: candidates per prompt", source.path.display());
                return Err(Error::TooFew { what, needed: 2, found: shape[1] as u64 });
            }
            if let Some(gold) = gold {
                read_gold(source, gold, shape, &mut scores)?;
            }
            made_of = made_of.zip(digests(source, shape[0])?).map(|(mut all, part)| {
                all.extend(part);
                all
            });
        }
        column::scan(&[&column], &Interrupt::default())?;
        let files = column.files();
        Ok(CandidateSet {
            candidates: column,
            per_prompt: per_prompt.unwrap_or(0),
            gold: scores,
            made_of,
            files,
        })
    }

    /// Number of prompts P.
    pub fn prompts(&self) -> usize {
        self.candidates.len() / self.per_prompt
    }

    /// Candidates per prompt N.
    pub fn per_prompt(&self) -> usize {
        self.per_prompt
    }

    /// Values per embedding d.
    pub fn dim(&self) -> usize {
        self.candidates.dim()
    }

    /// The files in order; their rows count candidates.
    pub fn files(&self) -> &[ShardFile] {
        &self.files
    }

    /// The embeddings of the candidates in `range`, of P x N: those of prompt p are p x N and the N - 1 that
    /// follow. Fails if `range` reaches past the end or a file cannot be read.
    pub fn rows(&self, range: Range<usize>) -> Result<RowBlock<'_>> {
        self.candidates.rows(range)
    }

    /// As [`PairSet::require_unchanged`].
    pub fn require_unchanged(&self) -> Result<()> {
        self.candidates.require_unchanged()
    }

    /// The gold score of every candidate, `[P x N]`; all finite. Empty of a set that was opened without.
    pub fn gold(&self) -> &[f32] {
        &self.gold
    }

    /// A digest of each prompt's responses, for [`ResponseSet::pair_with`](super::ResponseSet::pair_with), where every file
    /// has them.
    pub fn made_of(&self) -> Option<&[u64]> {
        self.made_of.as_deref()
    }
}

/// One matrix `[n, d]` over one or more files, with no partner.
#[derive(Debug)]
pub struct EmbeddingSet {
    column: Column,
    files: Vec<ShardFile>,
}

impl EmbeddingSet {
    /// Opens tensor `tensor` `[n, d]` of every file; fails as [`PairSet::open`] does.
    pub fn open(sources: &[String], tensor: &str, io: Io) -> Result<EmbeddingSet> {
        let column = Column::new(&column::open_all(sources, io)?, tensor, 2)?;
        let files = column.files();
        Ok(EmbeddingSet { column, files })
    }

    /// Number of embeddings n.
    pub fn len(&self) -> usize {
        self.column.len()
    }

    /// Whether there are no embeddings; never, since opening demands one.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Values per embedding d.
    pub fn dim(&self) -> usize {
        self.column.dim()
    }

    /// The files in order.
    pub fn files(&self) -> &[ShardFile] {
        &self.files
    }

    /// The embeddings in `range`; fails if it reaches past the end or a file cannot be read.
    pub fn rows(&self, range: Range<usize>) -> Result<RowBlock<'_>> {
        self.column.rows(range)
    }

    /// As [`PairSet::require_unchanged`].
    pub fn require_unchanged(&self) -> Result<()> {
        self.column.require_unchanged()
    }

    /// As [`PairSet::scan`], over the one tensor.
    pub fn scan(&self) -> Result<Scan> {
        column::scan(&[&self.column], &Interrupt::default())
    }
}

/// All bytes of a small tensor.
fn payload(source: &Source, info: &TensorInfo) -> Result<Vec<u8>> {
    let mut bytes = vec![0; info.range.len()];
    source.read(info.range.start as u64, &mut bytes)?;
    Ok(bytes)
}

fn read_group(sources: &[Arc<Source>], files: &[ShardFile], name: &str) -> Result<Vec<i64>> {
    let mut group = Vec::new();
    for (source, file) in sources.iter().zip(files) {
        let info = source.header.tensor(&source.path, name)?;
        if info.dtype != FileDtype::I64 {
            return Err(wrong_dtype(&source.path, info, "I64"));
        }
        check_rank(&source.path, info, 1)?;
        if info.shape[0] != file.rows {
            let what = format!("{}: length of tensor `{name}`", source.path.display());
            return Err(Error::shape(what, file.rows, info.shape[0]));
        }
        let bytes = payload(source, info)?;
        group.extend(bytes.as_chunks::<8>().0.iter().map(|&b| i64::from_le_bytes(b)));
    }
    Ok(group)
}

/// The digests of `prompts` prompts' responses, where a file has them.
fn digests(source: &Source, prompts: usize) -> Result<Option<Vec<u64>>> {
    let Some(text) = source.header.metadata.get(MADE_OF) else { return Ok(None) };
    let digits = text.as_bytes().as_chunks::<16>();
    let number = |digits: &[u8; 16]| u64::from_str_radix(str::from_utf8(digits).ok()?, 16).ok();
    let found = digits.0.iter().map(number).collect::<Option<Vec<u64>>>();
    match found.filter(|found| found.len() == prompts && digits.1.is_empty()) {
        Some(found) => Ok(Some(found)),
        None => Err(Error::Format {
            path: source.path.clone(),
            format: "safetensors",
            detail: format!(
                "metadata `{MADE_OF}`: expected 16 hexadecimal digits for each of {prompts} prompts"
            ),
        }),
    }
}

/// Appends the gold scores of one file, `shape` = `[P, N]`.
fn read_gold(source: &Source, name: &str, shape: &[usize], scores: &mut Vec<f32>) -> Result<()> {
    let info = source.header.tensor(&source.path, name)?;
    if info.shape != shape {
        let what = format!("{}: shape of tensor `{name}`", source.path.display());
        return Err(Error::shape(what, format!("{shape:?}"), format!("{:?}", info.shape)));
    }
    if !matches!(info.dtype, FileDtype::F64 | FileDtype::F32 | FileDtype::F16 | FileDtype::BF16) {
        return Err(wrong_dtype(&source.path, info, "F64, F32, F16 or BF16"));
    }
    let bytes = payload(source, info)?;
    let first = scores.len();
    match info.dtype {
        FileDtype::F64 => scores.extend(bytes.as_chunks().0.iter().map(|&b| f64::from_le_bytes(b) as f32)),
        FileDtype::F32 => scores.extend(bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b))),
        FileDtype::F16 => scores.extend(bytes.as_chunks().0.iter().map(|&b| f16::from_le_bytes(b).to_f32())),
        _ => scores.extend(bytes.as_chunks().0.iter().map(|&b| bf16::from_le_bytes(b).to_f32())),
    }
    if let Some(at) = scores[first..].iter().position(|score| !score.is_finite()) {
        return Err(Error::NonFinite {
            path: source.path.clone(),
            tensor: name.to_string(),
            row: (at / shape[1]) as u64,
            column: (at % shape[1]) as u64,
            value: scores[first + at],
        });
    }
    Ok(())
}
