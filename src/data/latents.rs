//! Latents of pairs, as `synth --output latents` writes them.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use safetensors::Dtype as FileDtype;

use super::column::{ShardFile, check_rank, open_all, wrong_dtype};
use super::format;
use super::map::Io;
use super::source::Source;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::matrix::Side;

/// Tensors of z, `[n, latent]` F32, by side.
pub const LATENT_Z: [&str; 2] = ["chosen_z", "rejected_z"];
/// Tensors of candidate numbers, `[n]` I32, by side.
pub const LATENT_CANDIDATE: [&str; 2] = ["chosen_candidate", "rejected_candidate"];
/// Tensor of the seed pairs' rows, `[n]` I64.
pub const LATENT_SEED: &str = "seed";

/// Consecutive pairs of a [`LatentSet`], in memory.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LatentRows {
    /// Row of each pair's seed pair, `[count]`; 0 or more.
    pub seed: Vec<i64>,
    /// Latents of both sides, chosen first, `[count, latent]`; all finite.
    pub z: [Vec<f32>; 2],
    /// Candidate numbers of both sides, `[count]`; -1 for an original, else 0 or more.
    pub candidate: [Vec<i32>; 2],
}

/// Pairs as latents on disk, over one or more files.
#[derive(Debug)]
pub struct LatentSet {
    per_file: Vec<FileLatents>,
    /// First pair of each file, and the total at the end.
    starts: Vec<usize>,
    latent: usize,
    files: Vec<ShardFile>,
}

/// One file: where each tensor's bytes begin.
#[derive(Debug)]
struct FileLatents {
    source: Arc<Source>,
    rows: usize,
    seed: u64,
    z: [u64; 2],
    candidate: [u64; 2],
}

impl LatentSet {
    /// Opens files, folders (every `*.safetensors` directly inside, by name) and glob patterns, joined in the order
    /// given. Reads headers only.
    ///
    /// Fails if a file cannot be opened or is not a safetensors file, if a tensor is missing or of another type or
    /// shape than those that `synth` writes, if the widths of two files differ, if there is no pair, or if a file is
    /// given twice.
    pub fn open(sources: &[String], io: Io) -> Result<LatentSet> {
        let mut set = LatentSet { per_file: Vec::new(), starts: vec![0], latent: 0, files: Vec::new() };
        let mut total = 0usize;
        for source in open_all(sources, io)? {
            let (file, latent) = FileLatents::new(source)?;
            let path = &file.source.path;
            if let Some(first) = set.files.first().filter(|_| latent != set.latent) {
                let what = format!("{}: columns of tensor `{}`", path.display(), LATENT_Z[0]);
                return Err(Error::shape(
                    what,
                    format!("{} as in {}", set.latent, first.path.display()),
                    latent,
                ));
            }
            set.latent = latent;
            total = total.checked_add(file.rows).ok_or_else(|| {
                Error::shape(format!("{}: rows", path.display()), "a countable number", "more")
            })?;
            set.starts.push(total);
            let bytes = file.source.len;
            set.files.push(ShardFile { path: path.clone(), rows: file.rows, dtype: Dtype::F32, bytes });
            set.per_file.push(file);
        }
        if total == 0 {
            let path = set.files.first().map_or(String::new(), |f| format!("{}: ", f.path.display()));
            let what = format!("{path}rows of tensor `{}`", LATENT_Z[0]);
            return Err(Error::TooFew { what, needed: 1, found: 0 });
        }
        Ok(set)
    }

    /// Number of pairs n.
    pub fn len(&self) -> usize {
        self.starts.last().copied().unwrap_or(0)
    }

    /// Whether there are no pairs; never, since opening demands one.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Values per latent.
    pub fn latent(&self) -> usize {
        self.latent
    }

    /// The files in order.
    pub fn files(&self) -> &[ShardFile] {
        &self.files
    }

    /// Fails with [`Error::Changed`] if a file is no longer the one that was opened: what was read since may be wrong.
    pub fn require_unchanged(&self) -> Result<()> {
        self.per_file.iter().try_for_each(|s| s.source.require_unchanged())
    }

    /// The pairs in `range`, copied.
    ///
    /// # Errors
    /// A range past the end; a file that cannot be read; [`Error::NonFinite`] on a latent that is NaN or infinite;
    /// [`Error::Format`] on a seed below 0 or a candidate below -1.
    pub fn rows(&self, range: Range<usize>) -> Result<LatentRows> {
        if range.start > range.end || range.end > self.len() {
            let what = format!("rows of tensor `{}`", LATENT_Z[0]);
            return Err(Error::shape(what, format!("a range in 0..{}", self.len()), format!("{range:?}")));
        }
        let count = range.len();
        let mut out = LatentRows {
            seed: vec![0; count],
            z: [(); 2].map(|()| vec![0.0; count * self.latent]),
            candidate: [(); 2].map(|()| vec![0; count]),
        };
        for (file, &start) in self.per_file.iter().zip(&self.starts) {
            let from = range.start.max(start);
            let to = range.end.min(start + file.rows);
            if from < to {
                file.read(from - start..to - start, from - range.start, self.latent, &mut out)?;
            }
        }
        Ok(out)
    }
}

impl FileLatents {
    /// Finds the tensors of a file; gives the width of z as well.
    fn new(source: Arc<Source>) -> Result<(FileLatents, usize)> {
        let path = &source.path;
        let find = |name: &str, dtype: FileDtype, words: &'static str, rank: usize| {
            let info = source.header.tensor(path, name)?;
            check_rank(path, info, rank)?;
            if info.dtype != dtype {
                return Err(wrong_dtype(path, info, words));
            }
            Ok((info.range.start as u64, &info.shape))
        };
        let [(chosen_z, shape), (rejected_z, other)] =
            [find(LATENT_Z[0], FileDtype::F32, "F32", 2)?, find(LATENT_Z[1], FileDtype::F32, "F32", 2)?];
        let (rows, latent) = (shape[0], shape[1]);
        if latent == 0 {
            let what = format!("{}: columns of tensor `{}`", path.display(), LATENT_Z[0]);
            return Err(Error::TooFew { what, needed: 1, found: 0 });
        }
        if other != shape {
            let what = format!("{}: tensor `{}`", path.display(), LATENT_Z[1]);
            return Err(Error::shape(
                what,
                format!("{shape:?} as in `{}`", LATENT_Z[0]),
                format!("{other:?}"),
            ));
        }
        let list = |name: &str, dtype, words| {
            let (at, shape) = find(name, dtype, words, 1)?;
            if shape[0] != rows {
                let what = format!("{}: length of tensor `{name}`", path.display());
                return Err(Error::shape(what, rows, shape[0]));
            }
            Ok(at)
        };
        let seed = list(LATENT_SEED, FileDtype::I64, "I64")?;
        let [chosen, rejected] = LATENT_CANDIDATE.map(|name| list(name, FileDtype::I32, "I32"));
        let candidate = [chosen?, rejected?];
        Ok((FileLatents { rows, seed, z: [chosen_z, rejected_z], candidate, source }, latent))
    }

    /// Copies rows `range` of this file to place `at` of `out`, and checks them.
    fn read(&self, range: Range<usize>, at: usize, latent: usize, out: &mut LatentRows) -> Result<()> {
        let to = at..at + range.len();
        let after = |start: u64, bytes: usize| start + (range.start * bytes) as u64;
        let source = &self.source;
        source.read(after(self.seed, 8), bytemuck::cast_slice_mut(&mut out.seed[to.clone()]))?;
        require(&source.path, LATENT_SEED, &out.seed[to.clone()], range.start, 0)?;
        for side in Side::BOTH {
            let s = side as usize;
            let candidates = &mut out.candidate[s][to.clone()];
            source.read(after(self.candidate[s], 4), bytemuck::cast_slice_mut(candidates))?;
            require(&source.path, LATENT_CANDIDATE[s], candidates, range.start, -1)?;
            let z = &mut out.z[s][to.start * latent..to.end * latent];
            source.read(after(self.z[s], 4 * latent), bytemuck::cast_slice_mut(z))?;
            if let Some(i) = z.iter().position(|v| !v.is_finite()) {
                return Err(Error::NonFinite {
                    path: source.path.clone(),
                    tensor: LATENT_Z[s].into(),
                    row: (range.start + i / latent) as u64,
                    column: (i % latent) as u64,
                    value: z[i],
                });
            }
        }
        Ok(())
    }
}

/// Fails on the first number below `least`; `first` is the row of the first of them.
fn require<T: Copy + Into<i64>>(
    path: &Path,
    tensor: &str,
    found: &[T],
    first: usize,
    least: i64,
) -> Result<()> {
    match found.iter().position(|&v| v.into() < least) {
        None => Ok(()),
        Some(i) => {
            let (row, value) = (first + i, found[i].into());
            let detail = format!("tensor `{tensor}`, row {row}: expected {least} or more, found {value}");
            Err(format::bad(path, detail))
        }
    }
}
