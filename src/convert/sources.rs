//! From what a user names (files, folders, patterns) to columns that are joined over several files.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::column::{Buffer, ColumnInfo, FileColumn, Kind};
use super::{ipc, npy, parquet, tensors};
use crate::data::{Io, expand_sources, file_name, is_there, is_url, list, read_small, require_whole};
use crate::error::{Error, Result};

/// A file format that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// One array of NumPy's.
    Npy,
    /// A zip of arrays of NumPy's.
    Npz,
    /// safetensors, under any tensor names.
    Safetensors,
    /// Parquet.
    Parquet,
    /// Arrow IPC, the stream format or the file format.
    Arrow,
}

impl Format {
    const ALL: [Format; 5] = [Format::Npy, Format::Npz, Format::Safetensors, Format::Parquet, Format::Arrow];
    const EXPECTED: &str = "npy, npz, safetensors, parquet or arrow";

    fn extensions(self) -> &'static [&'static str] {
        match self {
            Format::Npy => &["npy"],
            Format::Npz => &["npz"],
            Format::Safetensors => &["safetensors"],
            Format::Parquet => &["parquet", "pq"],
            Format::Arrow => &["arrow", "arrows", "feather", "ipc"],
        }
    }

    /// The format by a file's extension.
    pub fn of(path: &Path) -> Option<Format> {
        let extension = path.extension()?.to_str()?.to_ascii_lowercase();
        Format::ALL.into_iter().find(|format| format.extensions().contains(&extension.as_str()))
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Format::Npy => "npy",
            Format::Npz => "npz",
            Format::Safetensors => "safetensors",
            Format::Parquet => "parquet",
            Format::Arrow => "arrow",
        })
    }
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(text: &str) -> Result<Format> {
        let found = Format::ALL.into_iter().find(|format| format.to_string().eq_ignore_ascii_case(text));
        found.ok_or_else(|| Error::argument("format", Format::EXPECTED, text))
    }
}

/// A column and the files that hold it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnSource {
    /// Files, folders and glob patterns, joined in the order given. A folder is the data set that Hugging Face's
    /// `datasets` saved there, or else all files of one format directly inside, by name.
    pub files: Vec<String>,
    /// Their format; `None` goes by the names of the files.
    pub format: Option<Format>,
    /// Name of the column (tensor, array); .npy files have but one, and no name for it.
    pub name: String,
}

/// Names of the columns of the first file that `source` stands for; none for .npy.
pub fn column_names(files: &[String], format: Option<Format>) -> Result<Vec<String>> {
    match expand(files, format)?.first() {
        Some((path, format)) => names(path, *format),
        None => Ok(Vec::new()),
    }
}

fn names(path: &Path, format: Format) -> Result<Vec<String>> {
    match format {
        Format::Npy => Ok(Vec::new()),
        Format::Npz => npy::members(path),
        Format::Safetensors => tensors::names(path),
        Format::Parquet => parquet::names(path),
        Format::Arrow => ipc::names(path),
    }
}

fn open(path: &Path, format: Format, name: &str, io: Io) -> Result<FileColumn> {
    if !is_url(path) && !fs::metadata(path).map_err(Error::io("open", path))?.is_file() {
        // A pipe has no length that its contents could be compared with.
        let detail = "it is not a regular file".to_string();
        return Err(Error::Format { path: path.to_path_buf(), format: "data", detail });
    }
    let (info, reader) = match format {
        Format::Npy => npy::open(path, name),
        Format::Npz => npy::open_member(path, name),
        Format::Safetensors => tensors::open(path, name),
        Format::Parquet => parquet::open(path, name),
        Format::Arrow => ipc::open(path, name, io),
    }?;
    Ok(FileColumn::new(path, name, info, reader))
}

/// One column over all its files.
pub(super) struct Column {
    name: String,
    files: Vec<(PathBuf, Format, ColumnInfo)>,
    io: Io,
    kind: Kind,
    /// The file that is being read, and its rows that are left.
    current: Option<(FileColumn, u64)>,
    /// The file after it.
    next: usize,
    /// Rows read.
    taken: u64,
}

impl Column {
    /// Looks at every file. Fails if one cannot be read or lacks the column, if shapes of rows differ, or if there is
    /// no row at all.
    pub fn open(source: &ColumnSource, io: Io) -> Result<Column> {
        let mut files: Vec<(PathBuf, Format, ColumnInfo)> = Vec::new();
        for (path, format) in expand(&source.files, source.format)? {
            let info = open(&path, format, &source.name, io)?.info;
            // A file without rows may not know the shape of a row.
            if info.rows == 0 {
                continue;
            }
            if let Some((first, _, expected)) = files.first() {
                let what = || format!("{}: column `{}`", path.display(), source.name);
                if expected.tail != info.tail {
                    let expected = format!("rows of shape {:?} as in {}", expected.tail, first.display());
                    return Err(Error::shape(what(), expected, format!("{:?}", info.tail)));
                }
                if expected.kind.is_float() != info.kind.is_float() {
                    let expected = format!("{} as in {}", expected.kind.name(), first.display());
                    return Err(Error::shape(what(), expected, info.kind.name()));
                }
            }
            files.push((path, format, info));
        }
        let Some((_, _, first)) = files.first() else {
            let what = format!("{}: rows of column `{}`", source.files.join(", "), source.name);
            return Err(Error::TooFew { what, needed: 1, found: 0 });
        };
        let kind = files.iter().fold(first.kind, |kind, (.., info)| widest(kind, info.kind));
        Ok(Column { name: source.name.clone(), files, io, kind, current: None, next: 0, taken: 0 })
    }

    pub fn rows(&self) -> u64 {
        self.files.iter().map(|(.., info)| info.rows).sum()
    }

    /// Rows that are not read yet.
    pub fn left(&self) -> u64 {
        self.rows() - self.taken
    }

    /// Shape of a row.
    pub fn tail(&self) -> &[usize] {
        &self.files[0].2.tail
    }

    /// The type of all files, or one that holds the values of all.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// "column `x` of a.npy", for messages.
    pub fn title(&self) -> String {
        let more = if self.files.len() > 1 { " and others" } else { "" };
        format!("{}{more}: column `{}`", self.files[0].0.display(), self.name)
    }

    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|(path, ..)| path.as_path())
    }

    /// Fails unless a row has `axes` axes, none of them empty.
    pub fn require_axes(&self, axes: usize, meaning: &str) -> Result<()> {
        let tail = self.tail();
        if tail.len() != axes || tail.contains(&0) {
            let mut shape = vec![self.rows() as usize];
            shape.extend(tail);
            return Err(Error::shape(format!("{}: shape", self.title()), meaning, format!("{shape:?}")));
        }
        Ok(())
    }

    /// Fails unless the column holds floats.
    pub fn require_floats(&self) -> Result<()> {
        if !self.kind.is_float() {
            return Err(Error::WrongDtype {
                path: self.files[0].0.clone(),
                tensor: self.name.clone(),
                expected: Kind::FLOATS,
                found: self.kind.name().into(),
            });
        }
        Ok(())
    }

    /// Fails unless the column holds integers.
    pub fn require_integers(&self) -> Result<()> {
        if self.kind.is_float() {
            return Err(Error::WrongDtype {
                path: self.files[0].0.clone(),
                tensor: self.name.clone(),
                expected: "integers",
                found: self.kind.name().into(),
            });
        }
        Ok(())
    }

    /// Fails unless `other` has as many rows.
    pub fn require_rows_of(&self, other: &Column) -> Result<()> {
        if self.rows() != other.rows() {
            let expected = format!("{} as in {}", other.rows(), other.title());
            return Err(Error::shape(format!("{}: rows", self.title()), expected, self.rows()));
        }
        Ok(())
    }

    /// Appends the next `rows` rows to `out`, in its type. Fails if fewer are left.
    pub fn read(&mut self, rows: usize, out: &mut Buffer) -> Result<()> {
        self.advance(rows as u64, |file, count| file.read(count as usize, out))
    }

    /// Leaves out the next `rows` rows, whose values are not looked at. Fails if fewer are left.
    pub fn skip(&mut self, rows: u64) -> Result<()> {
        self.advance(rows, FileColumn::skip)
    }

    /// Goes on by `rows` rows, of which `take` takes some from a file.
    fn advance(&mut self, rows: u64, mut take: impl FnMut(&mut FileColumn, u64) -> Result<()>) -> Result<()> {
        let mut wanted = rows;
        while wanted > 0 {
            let Some((file, left)) = self.current.as_mut().filter(|(_, left)| *left > 0) else {
                let Some((path, format, info)) = self.files.get(self.next) else {
                    return Err(Error::shape(format!("{}: rows", self.title()), self.rows(), "more wanted"));
                };
                let file = open(path, *format, &self.name, self.io)?;
                if file.info != *info {
                    let (path, detail) = (path.clone(), "it changed while it was read".to_string());
                    return Err(Error::Format { path, format: "data", detail });
                }
                self.current = Some((file, info.rows));
                self.next += 1;
                continue;
            };
            let count = wanted.min(*left);
            take(file, count)?;
            *left -= count;
            wanted -= count;
            self.taken += count;
        }
        Ok(())
    }
}

/// The narrower of the two types that hold both: F32 for two types that differ, unless one is F64.
pub(super) fn widest(a: Kind, b: Kind) -> Kind {
    match (a, b) {
        _ if a == b => a,
        (Kind::F64, _) | (_, Kind::F64) => Kind::F64,
        _ => Kind::F32,
    }
}

/// The files that `sources` stand for, with their formats.
fn expand(sources: &[String], format: Option<Format>) -> Result<Vec<(PathBuf, Format)>> {
    let file = |path: PathBuf| format_of(&path, format).map(|format| (path, format));
    expand_sources(sources, |path| folder(path, format), file, |(path, _)| path)
}

fn format_of(path: &Path, given: Option<Format>) -> Result<Format> {
    given.or_else(|| Format::of(path)).ok_or_else(|| {
        let expected = format!("{} where the name of a file does not tell", Format::EXPECTED);
        Error::argument("format", expected, format!("none for {}", path.display()))
    })
}

/// The files of a folder: those that its `state.json` lists, where `datasets` saved it, or all of one format.
fn folder(path: &Path, format: Option<Format>) -> Result<Vec<(PathBuf, Format)>> {
    let state = path.join("state.json");
    if is_there(&state)? {
        return dataset(path, &state);
    }
    let splits = path.join("dataset_dict.json");
    if is_there(&splits)? {
        let names = json(&splits)?;
        let names = names["splits"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let names: Vec<String> = names.map(|name| path.join(name).display().to_string()).collect();
        let detail = format!("it holds several splits: name one of them, {}", names.join(" or "));
        return Err(Error::Format { path: path.to_path_buf(), format: "data set", detail });
    }
    require_whole(path)?;
    let mut files = Vec::new();
    for (path, _) in list(path)? {
        let hidden = file_name(&path).starts_with('.');
        let found = Format::of(&path).filter(|&found| format.is_none_or(|wanted| wanted == found));
        if let Some(found) = found.filter(|_| !hidden && (is_url(&path) || path.is_file())) {
            files.push((path, found));
        }
    }
    files.sort();
    let formats: BTreeSet<Format> = files.iter().map(|(_, format)| *format).collect();
    if formats.len() > 1 {
        let names: Vec<String> = formats.iter().map(Format::to_string).collect();
        let found = format!("{} in {}", names.join(" and "), path.display());
        return Err(Error::argument("format", "one of the formats that the folder holds", found));
    }
    if files.is_empty() {
        let what = format!("{}: files of a known format in this folder", path.display());
        return Err(Error::TooFew { what, needed: 1, found: 0 });
    }
    Ok(files)
}

/// Most bytes of a data set's descriptions, which hold no data.
const MOST_JSON: u64 = 16 << 20;

fn json(path: &Path) -> Result<Value> {
    let bytes = read_small(path, "data set", MOST_JSON)?;
    serde_json::from_slice(&bytes).map_err(|e| Error::Format {
        path: path.to_path_buf(),
        format: "data set",
        detail: e.to_string(),
    })
}

/// The files of a folder made by `Dataset.save_to_disk`.
fn dataset(path: &Path, state: &Path) -> Result<Vec<(PathBuf, Format)>> {
    let bad = |detail: &str| Error::Format {
        path: state.to_path_buf(),
        format: "data set",
        detail: detail.to_string(),
    };
    let value = json(state)?;
    // Old releases kept a selection of rows beside the data instead of applying it.
    let indices = &value["_indices_data_files"];
    if indices.as_array().is_some_and(|files| !files.is_empty()) {
        return Err(bad("it selects rows through indices: flatten_indices() and save it again"));
    }
    let listed = value["_data_files"].as_array().ok_or_else(|| bad("no `_data_files`"))?;
    let mut files = Vec::new();
    for file in listed {
        let name = file["filename"].as_str().ok_or_else(|| bad("a data file without `filename`"))?;
        // A name that leads elsewhere is not what `datasets` writes.
        if Path::new(name).file_name() != Some(OsStr::new(name)) {
            return Err(bad(&format!("a data file outside the folder: {}", name.escape_debug())));
        }
        files.push((path.join(name), Format::Arrow));
    }
    if files.is_empty() {
        return Err(bad("it lists no data files"));
    }
    Ok(files)
}
