//! The one error type of the crate: what was being done, what was expected, what was found, and where.

use std::fmt::{self, Write};
use std::io;
use std::path::{Path, PathBuf};

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong, one variant per kind of cause. Every message is one line.
#[derive(Debug)]
pub enum Error {
    /// The operating system refused an operation on a file or folder.
    Io {
        /// The verb, as in "open" or "write".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
    /// A file is not what its format demands (bad header, wrong length, overlapping tensors ...).
    Format {
        /// The file.
        path: PathBuf,
        /// The format it was read as.
        format: &'static str,
        /// What is wrong, with expected and found.
        detail: String,
    },
    /// A tensor that the operation needs is not in the file.
    MissingTensor {
        /// The file.
        path: PathBuf,
        /// The name looked for.
        tensor: String,
        /// The names that are there.
        found: Vec<String>,
    },
    /// A tensor's element type is not one that the operation takes.
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
    Shape {
        /// The object and, where known, its file.
        what: String,
        /// The size that was needed.
        expected: String,
        /// The size that was there.
        found: String,
    },
    /// A value that must be finite is NaN or infinite.
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
    TooFew {
        /// What there is too little of, and where.
        what: String,
        /// How many are needed.
        needed: u64,
        /// How many there are.
        found: u64,
    },
    /// An argument has a value outside its range, or arguments exclude each other: wrong usage.
    InvalidArgument {
        /// The field of the options, or the parameter.
        field: &'static str,
        /// What it may be.
        expected: String,
        /// What it was.
        found: String,
    },
    /// The output exists already and would be overwritten.
    Exists {
        /// The output.
        path: PathBuf,
        /// What the user can do.
        hint: String,
    },
    /// A name that would be written holds something that is not ours to write.
    Refused {
        /// The name.
        path: PathBuf,
        /// What it holds.
        why: String,
    },
    /// A checkpoint holds another kind of model than was asked for.
    WrongCheckpoint {
        /// The file.
        path: PathBuf,
        /// The kind that was needed.
        expected: &'static str,
        /// What the file holds.
        found: String,
    },
    /// Stored bytes or recorded facts no longer agree with what is on disk.
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
    Changed {
        /// The file or folder.
        path: PathBuf,
        /// How it differs from what was opened.
        how: String,
    },
    /// An output lacks something that it should hold.
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
    Busy {
        /// The folder.
        path: PathBuf,
    },
    /// The work was asked to stop: [`Interrupt::raise`](crate::Interrupt::raise).
    Interrupted,
    /// The device asked for cannot be used.
    Device {
        /// The device as the user wrote it.
        device: String,
        /// Why not, and what would help.
        reason: String,
    },
    /// Training left the range of numbers: a loss or a parameter is no longer finite.
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

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = &mut Line { out: f, left: MOST_CHARS };
        match self {
            Error::Io { action, path, source } => {
                write!(line, "cannot {action} {}: {source}", path.display())
            }
            Error::Format { path, format, detail } => {
                write!(line, "{}: not a usable {format} file: {detail}", path.display())
            }
            Error::MissingTensor { path, tensor, found } => {
                write!(line, "{}: no tensor named `{tensor}`; found: {}", path.display(), list(found))
            }
            Error::WrongDtype { path, tensor, expected, found } => {
                write!(line, "{}: tensor `{tensor}` has dtype {found}, expected {expected}", path.display())
            }
            Error::Shape { what, expected, found } => {
                write!(line, "{what}: expected {expected}, found {found}")
            }
            Error::NonFinite { path, tensor, row, column, value } => write!(
                line,
                "{}: tensor `{tensor}`, row {row}, column {column}: {value} is not finite",
                path.display()
            ),
            Error::TooFew { what, needed, found } => {
                write!(line, "{what}: {found}, at least {needed} needed")
            }
            Error::InvalidArgument { field, expected, found } => {
                write!(line, "{field}: expected {expected}, found {found}")
            }
            Error::Exists { path, hint } => write!(line, "{} exists already: {hint}", path.display()),
            Error::Refused { path, why } => {
                write!(line, "{}: {why}; remove it, or write to another folder", path.display())
            }
            Error::WrongCheckpoint { path, expected, found } => {
                write!(line, "{}: expected a {expected} checkpoint, found {found}", path.display())
            }
            Error::Mismatch { path, what, expected, found } => {
                write!(line, "{}: {what} differs: expected {expected}, found {found}", path.display())
            }
            Error::Changed { path, how } => {
                write!(line, "{} changed while it was in use: {how}", path.display())
            }
            Error::Incomplete { path, missing, hint, .. } => {
                write!(line, "{}: {missing}; {hint}", path.display())
            }
            Error::Busy { path } => {
                write!(line, "{}: another lensmith process is writing here", path.display())
            }
            Error::Interrupted => write!(line, "interrupted: the work was asked to stop"),
            Error::Device { device, reason } => write!(line, "device {device}: {reason}"),
            Error::Diverged { what, epoch, loss, hint } => {
                write!(line, "{what} diverged in epoch {epoch}: loss is {loss}; {hint}")
            }
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// Most characters of a message.
const MOST_CHARS: usize = 4000;

/// Writes text on one line of at most [`MOST_CHARS`]: names and messages may come from files of strangers, and hold line
/// ends, what terminals obey, or megabytes.
struct Line<'a, 'b> {
    out: &'a mut fmt::Formatter<'b>,
    /// Characters that may still be written.
    left: usize,
}

impl fmt::Write for Line<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            match self.left {
                0 => return Ok(()),
                1 => self.out.write_str("...")?,
                _ if c.is_control() => write!(self.out, "{}", c.escape_default())?,
                _ => self.out.write_char(c)?,
            }
            self.left -= 1;
        }
        Ok(())
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_is_one_bounded_line_that_terminals_only_show() {
        let path = PathBuf::from("a\nb");
        let error = Error::MissingTensor { path, tensor: "\u{1b}[2J".into(), found: vec!["c\rd".into()] };
        assert_eq!(error.to_string(), r"a\nb: no tensor named `\u{1b}[2J`; found: `c\rd`");
        let error = Error::shape("x".repeat(1 << 20), 1, 2).to_string();
        assert!(error.ends_with("x...") && error.chars().count() < MOST_CHARS + 3, "{}", error.len());
    }
}
