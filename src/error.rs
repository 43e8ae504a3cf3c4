//! The one error type of the crate: what was being done, what was expected, what was found, and where.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong, one variant per kind of cause. Every message is one line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused an operation on a file or folder.
    #[error("cannot {action} {}: {source}", .path.display())]
    Io {
        /// The verb, as in "open" or "write".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
    /// A file is not what its format demands (bad header, wrong length, overlapping tensors ...).
    #[error("{}: not a usable {format} file: {detail}", .path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// The format it was read as.
        format: &'static str,
        /// What is wrong, with expected and found.
        detail: String,
    },
    /// A tensor that the operation needs is not in the file.
    #[error("{}: no tensor named `{tensor}`; found: {}", .path.display(), list(.found))]
    MissingTensor {
        /// The file.
        path: PathBuf,
        /// The name looked for.
        tensor: String,
        /// The names that are there.
        found: Vec<String>,
    },
    /// A tensor's element type is not one that the operation takes.
    #[error("{}: tensor `{tensor}` has dtype {found}, expected {expected}", .path.display())]
    WrongDtype {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The accepted types.
        expected: &'static str,
        /// The type in the file.
        found: String,
    },
    /// Sizes that should agree do not. `what` names the object, and the file where there is one.
    #[error("{what}: expected {expected}, found {found}")]
    Shape {
        /// The object and, where known, its file.
        what: String,
        /// The size that was needed.
        expected: String,
        /// The size that was there.
        found: String,
    },
    /// A value that must be finite is NaN or infinite.
    #[error("{}: tensor `{tensor}`, row {row}, column {column}: {value} is not finite", .path.display())]
    NonFinite {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Row in that tensor, from 0.
        row: u64,
        /// Column, from 0.
        column: u64,
        /// The value found.
        value: f32,
    },
    /// There is too little data to work on.
    #[error("{what}: {found}, at least {needed} needed")]
    TooFew {
        /// What there is too little of, and where.
        what: String,
        /// How many are needed.
        needed: u64,
        /// How many there are.
        found: u64,
    },
    /// An argument has a value outside its range, or arguments exclude each other: wrong usage.
    #[error("{field}: {found} is out of range: expected {expected}")]
    InvalidArgument {
        /// The field of the options, or the parameter.
        field: &'static str,
        /// What it may be.
        expected: String,
        /// What it was.
        found: String,
    },
    /// The output exists already and would be overwritten.
    #[error("{} exists already: {hint}", .path.display())]
    Exists {
        /// The output.
        path: PathBuf,
        /// What the user can do.
        hint: String,
    },
    /// A name that would be written holds something that is not ours to write.
    #[error("{}: {why}; remove it, or write to another folder", .path.display())]
    Refused {
        /// The name.
        path: PathBuf,
        /// What it holds.
        why: String,
    },
    /// A checkpoint holds another kind of model than was asked for.
    #[error("{}: expected a {expected} checkpoint, found {found}", .path.display())]
    WrongCheckpoint {
        /// The file.
        path: PathBuf,
        /// The kind that was needed.
        expected: &'static str,
        /// What the file holds.
        found: String,
    },
    /// Stored bytes or recorded facts no longer agree with what is on disk.
    #[error("{}: {what} differs: expected {expected}, found {found}", .path.display())]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// The fact that differs, as in "checksum of tensor `chosen`".
        what: String,
        /// The recorded value.
        expected: String,
        /// The value found.
        found: String,
    },
    /// A file was altered, replaced or lost while it was in use.
    #[error("{} changed while it was in use: {how}", .path.display())]
    Changed {
        /// The file or folder.
        path: PathBuf,
        /// How it differs from what was opened.
        how: String,
    },
    /// An output lacks something that it should hold.
    #[error("{}: {missing}; {hint}", .path.display())]
    Incomplete {
        /// The folder or file.
        path: PathBuf,
        /// What is missing.
        missing: String,
        /// What the user can do.
        hint: String,
        /// Parts of the run, as index and count, that make what is missing.
        parts: Vec<(u64, u64)>,
    },
    /// Another process holds the output folder.
    #[error("{}: another lensmith process is writing here", .path.display())]
    Busy {
        /// The folder.
        path: PathBuf,
    },
    /// The device asked for cannot be used.
    #[error("device {device}: {reason}")]
    Device {
        /// The device as the user wrote it.
        device: String,
        /// Why not, and what would help.
        reason: String,
    },
    /// Training left the range of numbers: a loss or a parameter is no longer finite.
    #[error("{what} diverged in epoch {epoch}: loss is {loss}; {hint}")]
    Diverged {
        /// The model being trained.
        what: &'static str,
        /// Epoch, from 1.
        epoch: usize,
        /// The loss found.
        loss: f64,
        /// What usually helps.
        hint: &'static str,
    },
}

impl Error {
    /// Wraps an operating-system error with the verb and the path it concerns.
    pub fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::Io { action, path: path.as_ref().to_path_buf(), source }
    }

    /// A size mismatch.
    pub fn shape(what: impl fmt::Display, expected: impl fmt::Display, found: impl fmt::Display) -> Error {
        Error::Shape { what: what.to_string(), expected: expected.to_string(), found: found.to_string() }
    }

    /// A wrong value of a field of options, or of a parameter.
    pub fn argument(field: &'static str, expected: impl fmt::Display, found: impl fmt::Display) -> Error {
        Error::InvalidArgument { field, expected: expected.to_string(), found: found.to_string() }
    }
}

/// Names in a list, shortened past eight.
fn list(names: &[String]) -> String {
    const SHOWN: usize = 8;
    if names.is_empty() {
        return "no tensors".into();
    }
    let mut text = names.iter().take(SHOWN).map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        text.push_str(&format!(" and {} more", names.len() - SHOWN));
    }
    text
}
