//! Files that appear whole or not at all: written under a temporary name beside their final place, forced to the
//! disk, then renamed.

use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// A file that is written beside its final place and moved there when it is complete. The temporary name is
/// fixed (`.NAME.tmp`), so that a crash leaves at most one file, which the next attempt replaces; a lock on the
/// temporary file, released by the system when its writer ends, keeps two writers of one file apart.
#[derive(Debug)]
pub struct AtomicFile {
    path: PathBuf,
    temporary: PathBuf,
    file: File,
    moved: bool,
}

impl AtomicFile {
    /// Creates the temporary file beside `path`; whatever is at `path` stays as it is. Fails if the folder is
    /// missing or cannot be written, and with [`Error::Busy`] if somebody else is writing the same file.
    pub fn create(path: &Path) -> Result<AtomicFile> {
        AtomicFile::create_locked(path, File::try_lock)
    }

    fn create_locked(
        path: &Path,
        lock: impl Fn(&File) -> std::result::Result<(), TryLockError>,
    ) -> Result<AtomicFile> {
        let name = path.file_name().ok_or(ErrorKind::InvalidFilename);
        let name = name.map_err(|kind| Error::io("create", path)(kind.into()))?;
        let mut hidden = OsString::from(".");
        hidden.push(name);
        hidden.push(".tmp");
        let temporary = path.with_file_name(hidden);
        loop {
            let file = File::options().create(true).truncate(false).write(true).open(&temporary);
            let file = file.map_err(Error::io("create", path))?;
            match lock(&file) {
                Err(TryLockError::WouldBlock) => return Err(Error::Busy { path: path.to_path_buf() }),
                // Some network filesystems have no locks.
                Err(TryLockError::Error(e)) if e.kind() == ErrorKind::Unsupported => {}
                result => result.map_err(|e| Error::io("lock", path)(e.into()))?,
            }
            // Between opening and locking, another writer may have finished and renamed the file that we opened:
            // writing to it would then change its finished output. So the name must still lead to our file.
            let ours = file.metadata().map_err(Error::io("open", path))?;
            if fs::metadata(&temporary).is_ok_and(|m| (m.dev(), m.ino()) == (ours.dev(), ours.ino())) {
                file.set_len(0).map_err(Error::io("write", path))?;
                return Ok(AtomicFile { path: path.to_path_buf(), temporary, file, moved: false });
            }
        }
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    /// Where the file will be once it is complete.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the file lies until it is complete.
    pub fn temporary(&self) -> &Path {
        &self.temporary
    }

    /// Forces the bytes to the disk, moves the file over its final path and forces the folder to the disk.
    /// After a crash the path holds the old file or the new one, never a part.
    pub fn commit(mut self) -> Result<()> {
        self.file.sync_all().map_err(Error::io("write", &self.path))?;
        fs::rename(&self.temporary, &self.path).map_err(Error::io("create", &self.path))?;
        self.moved = true;
        let folder = match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        match File::open(folder).and_then(|f| f.sync_all()) {
            // Some network filesystems cannot force a folder to the disk, and say so.
            Err(e) if matches!(e.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => Ok(()),
            result => result.map_err(Error::io("write folder", folder)),
        }
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if !self.moved {
            // The error that led here is the one to report; a leftover is replaced by the next attempt.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// Writes a small file, whole or not at all; waits while somebody else writes it.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let out = AtomicFile::create_locked(path, |file| file.lock().map_err(TryLockError::Error))?;
    out.file().write_all_at(bytes, 0).map_err(Error::io("write", path))?;
    out.commit()
}

/// Fails with [`Error::Exists`] and `hint` (what the user can do) if anything is at `path`.
pub fn require_absent(path: &Path, hint: &str) -> Result<()> {
    // A dangling link counts: writing to it would create a file somewhere else.
    match fs::symlink_metadata(path) {
        Ok(_) => Err(Error::Exists { path: path.to_path_buf(), hint: hint.to_string() }),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Error::io("open", path)(e)),
    }
}
