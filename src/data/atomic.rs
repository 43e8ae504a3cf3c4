//! Files that appear whole or not at all: written under a temporary name beside their final place, forced to the
//! disk, then renamed. An object of a store is written to a file without a name and uploaded.

use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::fault::{change, number};
use super::lock;
use super::place::{Folder, is_there};
use super::store::{Object, is_url};
use crate::error::{Error, Result};

/// A file that is written beside its final place and moved there when it is complete. The temporary name is
/// fixed (`.NAME.tmp`), so that a crash leaves at most one file, which the next attempt replaces; a lock on the
/// temporary file, released by the system when its writer ends, keeps two writers of one file apart.
#[derive(Debug)]
pub struct AtomicFile {
    path: PathBuf,
    file: File,
    place: Place,
}

/// Where the file goes when it is complete.
#[derive(Debug)]
enum Place {
    Named(Named),
    Object(Object),
}

/// The names of a file in its folder. The temporary one goes with this value, unless the file was moved.
#[derive(Debug)]
struct Named {
    folder: Folder,
    name: OsString,
    temporary: OsString,
    moved: bool,
}

impl AtomicFile {
    /// Creates the temporary file beside `path`; whatever is at `path` stays as it is. Fails if the folder is
    /// missing or cannot be written, with [`Error::Busy`] if somebody else is writing the same file, and with
    /// [`Error::Refused`] if something else than our own file has the temporary name.
    pub fn create(path: &Path) -> Result<AtomicFile> {
        AtomicFile::create_locked(path, File::try_lock)
    }

    fn create_locked(
        path: &Path,
        lock: impl Fn(&File) -> std::result::Result<(), TryLockError>,
    ) -> Result<AtomicFile> {
        if is_url(path) {
            let object = Object::at(path)?;
            let file = object.temporary()?;
            return Ok(AtomicFile { path: path.to_path_buf(), file, place: Place::Object(object) });
        }
        let name = path.file_name().ok_or(ErrorKind::InvalidFilename);
        let name = name.map_err(|kind| Error::io("create", path)(kind.into()))?.to_os_string();
        // Errors name the file that was asked for.
        let create = |error| match error {
            Error::Io { source, .. } => Error::io("create", path)(source),
            other => other,
        };
        let folder = Folder::of(path).map_err(create)?;
        let mut temporary = OsString::from(".");
        temporary.push(&name);
        temporary.push(".tmp");
        loop {
            let file = folder.own_file(&temporary).map_err(create)?;
            // Without locks nothing keeps two writers apart.
            lock::take(&file, &lock, path)?;
            // Between opening and locking, another writer may have finished and renamed the file that we opened:
            // writing to it would then change its finished output. So the name must still lead to our file.
            if folder.holds(&temporary, &file).map_err(Error::io("open", path))? {
                file.set_len(0).map_err(Error::io("write", path))?;
                let place = Place::Named(Named { folder, name, temporary, moved: false });
                return Ok(AtomicFile { path: path.to_path_buf(), file, place });
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

    /// Whether it will be uploaded, so that its bytes are read once more.
    pub(super) fn is_object(&self) -> bool {
        matches!(self.place, Place::Object(_))
    }

    /// Forces the bytes to the disk, moves the file over its final path and forces the folder to the disk; or uploads
    /// it. After a crash the path holds the old file or the new one, never a part.
    pub fn commit(mut self) -> Result<()> {
        let named = match &mut self.place {
            Place::Object(object) => return object.upload(&self.file),
            Place::Named(named) => named,
        };
        change(|| self.file.sync_all(), |()| format!("sync {}", number(&self.file)))
            .map_err(Error::io("write", &self.path))?;
        named.folder.rename(&named.temporary, &named.name).map_err(Error::io("create", &self.path))?;
        named.moved = true;
        named.folder.sync()
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        if !self.moved {
            // The error that led here is the one to report; a leftover is replaced by the next attempt.
            let _ = self.folder.remove(&self.temporary);
        }
    }
}

/// Writes a small file, whole or not at all; waits while somebody else writes it.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let out = AtomicFile::create_locked(path, lock::wait)?;
    change(|| out.file().write_all_at(bytes, 0), |()| format!("write {}", number(out.file())))
        .map_err(Error::io("write", path))?;
    out.commit()
}

/// Fails with [`Error::Exists`] and `hint` (what the user can do) if anything is at `path`.
pub fn require_absent(path: &Path, hint: &str) -> Result<()> {
    let exists = || Err(Error::Exists { path: path.to_path_buf(), hint: hint.to_string() });
    if is_url(path) {
        return if is_there(path)? { exists() } else { Ok(()) };
    }
    // A dangling link counts: writing to it would create a file somewhere else.
    match fs::symlink_metadata(path) {
        Ok(_) => exists(),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Error::io("open", path)(e)),
    }
}
