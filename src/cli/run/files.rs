//! The files of a split: which rows it took, and those rows as pairs of their own.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::data::{Data, DataRows};
use crate::data::{is_there, write_atomic, write_pairs};
use crate::error::{Error, Result};
use crate::eval::Split;
use crate::matrix::RowSet;

/// Name of the file that says which rows a split took.
pub const SPLIT: &str = "split.json";
/// The pairs of each part.
pub const PARTS: [&str; 3] = ["seeds.safetensors", "validation.safetensors", "test.safetensors"];

/// split.json: the rows of the data set that each part got, in the order of the part's file.
#[derive(Debug, Serialize, Deserialize)]
pub struct SplitFile {
    /// Version of this layout.
    pub format: u32,
    /// The seed of the shuffle.
    pub seed: u64,
    /// Rows of the data set.
    pub rows: usize,
    pub seeds: Vec<usize>,
    pub validation: Vec<usize>,
    pub test: Vec<usize>,
}

/// Writes split.json and a file of pairs for each part that has some, with their prompts where those are known; gives the
/// files of pairs. A part that is the whole data set gets no file.
pub fn write_split(
    folder: &Path,
    data: &Data,
    rows: &DataRows<'_>,
    split: &Split,
    seed: u64,
) -> Result<[Option<PathBuf>; 3]> {
    let group = data.pairs.group();
    let parts = [&split.seeds, &split.validation, &split.test];
    let mut files = [None, None, None];
    let record = folder.join(SPLIT);
    let replaced = is_there(&record)?;
    for ((name, part), file) in PARTS.iter().zip(parts).zip(&mut files) {
        let path = folder.join(name);
        if part.is_empty() || part.len() == data.pairs.len() {
            // A file of the split that this one replaces would be taken for one of this.
            if replaced && is_there(&path)? {
                std::fs::remove_file(&path).map_err(Error::io("remove", &path))?;
            }
            continue;
        }
        let sides: [RowSet<'_>; 2] = rows.pick(part);
        let group: Option<Vec<i64>> =
            group.as_ref().map(|group| part.iter().map(|&row| group[row]).collect());
        write_pairs(&path, [&sides[0], &sides[1]], group.as_deref())?;
        *file = Some(path);
    }
    data.require_unchanged()?;
    let Split { seeds, validation, test } = split.clone();
    let file = SplitFile { format: 1, seed, rows: data.pairs.len(), seeds, validation, test };
    let text = serde_json::to_string(&file).expect("a split is plain data") + "\n";
    write_atomic(&record, text.as_bytes())?;
    Ok(files)
}
