//! From what a user names (files, folders, patterns) to files.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use super::contents::require_whole;
use super::place::{file_name, is_folder, is_there, list};
use super::store::is_url;
use crate::error::{Error, Result};

/// The files that `sources` stand for, in order: a file itself; every `*.safetensors` directly in a folder,
/// by name; the matches of a glob pattern, by name. Fails if a source stands for no file, or two for the same one.
pub(super) fn expand(sources: &[String]) -> Result<Vec<PathBuf>> {
    expand_sources(sources, folder, Ok, |path| path)
}

/// What `sources` stand for, in order: `file` of a file, the entries `folder` of a folder, and the matches of a glob
/// pattern, by name. A pattern's `*` finds no hidden files and does not reach into subfolders.
///
/// # Errors
/// A source that stands for nothing, a file that is given twice (`path` tells the file of an entry), an invalid pattern,
/// and what `file` and `folder` fail with.
pub fn expand_sources<T>(
    sources: &[String],
    folder: impl Fn(&Path) -> Result<Vec<T>>,
    file: impl Fn(PathBuf) -> Result<T>,
    path: impl Fn(&T) -> &Path,
) -> Result<Vec<T>> {
    if sources.is_empty() {
        return Err(Error::TooFew { what: "data sources".into(), needed: 1, found: 0 });
    }
    let mut entries = Vec::new();
    for source in sources {
        let named = Path::new(source);
        // A path that exists is never a pattern, whatever characters it holds.
        if is_folder(named)? {
            entries.extend(folder(named)?);
        } else if source.contains(['*', '?', '[']) && !is_there(named).is_ok_and(|there| there) {
            let before = entries.len();
            for found in glob_matches(source)? {
                if !is_url(&found) && found.is_dir() {
                    entries.extend(folder(&found)?);
                } else if !found.file_name().is_some_and(hidden_or_temporary) {
                    entries.push(file(found)?);
                }
            }
            if entries.len() == before {
                let what = format!("{source}: files that match this pattern");
                return Err(Error::TooFew { what, needed: 1, found: 0 });
            }
        } else {
            entries.push(file(named.to_path_buf())?);
        }
    }
    let mut seen = HashSet::new();
    for file in entries.iter().map(path) {
        require_utf8(file)?;
        let place = if is_url(file) { Ok(file.to_path_buf()) } else { fs::canonicalize(file) };
        if !seen.insert(place.map_err(Error::io("open", file))?) {
            return Err(Error::shape(format!("{}: times it is given as a source", file.display()), 1, 2));
        }
    }
    Ok(entries)
}

/// Fails for a path that is no text, and cannot be part of a manifest or recipe.
pub fn require_utf8(path: &Path) -> Result<()> {
    match path.to_str() {
        Some(_) => Ok(()),
        None => {
            Err(Error::shape(format!("name {path:?}"), "UTF-8, as manifests and recipes are", "other bytes"))
        }
    }
}

fn hidden_or_temporary(name: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    name.starts_with(b".") || name.ends_with(b".tmp")
}

fn folder(path: &Path) -> Result<Vec<PathBuf>> {
    require_whole(path)?;
    expand_folder(path)
}

/// Every `*.safetensors` directly in a folder, by name; at least one.
pub fn expand_folder(path: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for (path, _) in list(path)? {
        let name = path.file_name().unwrap_or_default();
        if !hidden_or_temporary(name) && name.as_encoded_bytes().ends_with(b".safetensors") {
            require_utf8(&path)?;
            files.push(path);
        }
    }
    files.sort();
    if files.is_empty() {
        let what = format!("{}: *.safetensors files in this folder", path.display());
        return Err(Error::TooFew { what, needed: 1, found: 0 });
    }
    Ok(files)
}

fn glob_matches(pattern: &str) -> Result<Vec<PathBuf>> {
    let options = glob::MatchOptions {
        case_sensitive: true,
        require_literal_separator: true,
        require_literal_leading_dot: true,
    };
    let invalid = |e: glob::PatternError| {
        Error::argument("data source", "a file, a folder or a glob pattern", format!("`{pattern}` ({e})"))
    };
    let path = Path::new(pattern);
    if is_url(path) {
        // In a store the last name alone may be a pattern.
        let names = glob::Pattern::new(&file_name(path)).map_err(invalid)?;
        let found = list(path.parent().unwrap_or(path))?.into_iter().map(|(path, _)| path);
        let mut found: Vec<PathBuf> =
            found.filter(|path| names.matches_with(&file_name(path), options)).collect();
        found.sort();
        return Ok(found);
    }
    let matches = glob::glob_with(pattern, options).map_err(invalid)?;
    let found = matches.map(|found| {
        found.map_err(|e| {
            let path = e.path().to_path_buf();
            Error::Io { action: "read folder", path, source: e.into() }
        })
    });
    found.collect()
}
