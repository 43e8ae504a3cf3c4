//! Locks of folders.

use std::ffi::OsStr;
use std::fs::{File, TryLockError};
use std::io::ErrorKind;
use std::path::Path;

use super::place::Folder;
use super::store::is_url;
use crate::error::{Error, Result};

/// Takes the lock of a file by `lock`; false where its file system has none.
pub(super) fn take(
    file: &File,
    lock: impl Fn(&File) -> std::result::Result<(), TryLockError>,
    path: &Path,
) -> Result<bool> {
    match lock(file) {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Err(Error::Busy { path: path.to_path_buf() }),
        Err(TryLockError::Error(error)) if error.kind() == ErrorKind::Unsupported => Ok(false),
        Err(TryLockError::Error(error)) => Err(Error::io("lock", path)(error)),
    }
}

/// [`File::lock`] as [`take`] wants it: waits, and is never refused.
pub(super) fn wait(file: &File) -> std::result::Result<(), TryLockError> {
    file.lock().map_err(TryLockError::Error)
}

/// The right to write something in a folder, held by one process at a time. Stores have no locks: there manifests are
/// replaced on condition that nobody else did.
#[derive(Debug)]
pub struct FolderLock(
    #[expect(dead_code, reason = "the lock lasts as long as this file is open")] Option<File>,
);

impl FolderLock {
    /// Locks `name` in the folder `dir`, which must exist, through a file `.NAME.lock` that stays behind. Fails
    /// with [`Error::Busy`] at once if another process, or another lock of this one, holds it. The system
    /// releases it when the process ends, however it ends.
    pub fn acquire(dir: &Path, name: &str) -> Result<FolderLock> {
        FolderLock::lock(dir, name, File::try_lock)
    }

    /// As [`FolderLock::acquire`], but waits.
    pub(super) fn wait(dir: &Path, name: &str) -> Result<FolderLock> {
        FolderLock::lock(dir, name, wait)
    }

    fn lock(
        dir: &Path,
        name: &str,
        lock: impl Fn(&File) -> std::result::Result<(), TryLockError>,
    ) -> Result<FolderLock> {
        if is_url(dir) {
            return Ok(FolderLock(None));
        }
        let name = format!(".{name}.lock");
        let file = Folder::open(dir)?.own_file(OsStr::new(&name))?;
        if !take(&file, lock, dir)? {
            let dir = dir.display();
            tracing::warn!("{dir}: its file system has no locks: let one process at a time write there");
        }
        Ok(FolderLock(Some(file)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// M4: some file systems have no locks. What is written there is written all the same.
    #[test]
    fn m4_a_file_system_without_locks_is_no_error() {
        let dir = tempfile::tempdir().expect("a folder");
        let unsupported = |_: &File| Err(TryLockError::Error(ErrorKind::Unsupported.into()));
        let lock = FolderLock::lock(dir.path(), "synth", unsupported).expect("a warning at most");
        // Nothing is held: another one gets the same.
        FolderLock::lock(dir.path(), "synth", unsupported).expect("a warning at most");
        FolderLock::acquire(dir.path(), "synth").expect("nobody holds it");
        drop(lock);
        let broken = |_: &File| Err(TryLockError::Error(ErrorKind::StorageFull.into()));
        let error = FolderLock::lock(dir.path(), "synth", broken).expect_err("any other error is one");
        assert!(matches!(error, Error::Io { .. }), "{error}");
        let _held = FolderLock::acquire(dir.path(), "synth").expect("nobody holds it");
        let error = FolderLock::acquire(dir.path(), "synth").expect_err("it is held");
        assert!(matches!(error, Error::Busy { .. }), "{error}");
    }
}
