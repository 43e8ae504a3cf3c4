//! How files are opened: inputs that are plain files, outputs that are nobody else's.
//!
//! A folder may be shared with others or come from a download, and hold anything under any name. So everything that this
//! crate opens goes through here:
//!
//! 1. An input is a regular file. Pipes and devices are refused without waiting for them, and what is read whole is
//!    bounded ([`open_input`], [`read_small`]).
//! 2. A file that is written under a known name is new, or was left by an earlier run: a regular file of this user
//!    without other names. Links are never followed ([`Folder::own_file`]).
//! 3. Names are looked up in the folder that was opened, wherever it is by now ([`Folder`]).

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, openat, renameat, statat, unlinkat};
use rustix::io::Errno;

use super::fault::{change, number};
use crate::error::{Error, Result};

/// What tells a file from every other one: device and inode.
pub type FileId = (u64, u64);

/// The identity of an open file or of what a path leads to.
pub fn file_id(meta: &fs::Metadata) -> FileId {
    (meta.dev(), meta.ino())
}

/// The last component of a path, as text.
pub fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Opens a regular file, which is to be of a format, and tells what the system knows of it. A pipe or a device is
/// refused, and not waited for.
pub fn open_input(path: &Path, format: &'static str) -> Result<(File, fs::Metadata)> {
    let refused = |meta: &fs::Metadata| {
        let kind = if meta.is_dir() { "it is a folder" } else { "it is not a regular file" };
        Error::Format { path: path.to_path_buf(), format, detail: kind.into() }
    };
    // Looked at first, since opening alone has effects on some devices, and again when it is open.
    let meta = fs::metadata(path).map_err(Error::io("open", path))?;
    if !meta.is_file() {
        return Err(refused(&meta));
    }
    let nonblocking = OFlags::NONBLOCK.bits() as i32;
    let file = File::options().read(true).custom_flags(nonblocking).open(path);
    let file = file.map_err(Error::io("open", path))?;
    let meta = file.metadata().map_err(Error::io("open", path))?;
    if meta.is_file() { Ok((file, meta)) } else { Err(refused(&meta)) }
}

/// Reads a whole file of at most `most` bytes. What grows meanwhile is not read further.
pub fn read_small(path: &Path, format: &'static str, most: u64) -> Result<Vec<u8>> {
    let (file, meta) = open_input(path, format)?;
    let too_long = || {
        let detail = format!("it is longer than {most} bytes, the most that is read here");
        Error::Format { path: path.to_path_buf(), format, detail }
    };
    if meta.len() > most {
        return Err(too_long());
    }
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes).map_err(Error::io("read", path))?;
    if bytes.len() as u64 > most { Err(too_long()) } else { Ok(bytes) }
}

/// Whether something is at `path`.
pub fn is_there(path: &Path) -> Result<bool> {
    fs::exists(path).map_err(Error::io("open", path))
}

/// Makes a folder and those that it lies in, and forces their names to the disk.
pub fn create_folder(path: &Path) -> Result<()> {
    let missing: Vec<&Path> =
        path.ancestors().take_while(|p| !p.as_os_str().is_empty() && !p.exists()).collect();
    change(|| fs::create_dir_all(path), |()| format!("mkdir {}", path.display()))
        .map_err(Error::io("create", path))?;
    missing.iter().try_for_each(|made| Folder::of(made)?.sync())
}

/// An open folder, in which names are looked up.
#[derive(Debug)]
pub struct Folder {
    file: File,
    path: PathBuf,
}

impl Folder {
    /// Opens the folder at `path`.
    pub fn open(path: &Path) -> Result<Folder> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let flags = (OFlags::DIRECTORY | OFlags::NONBLOCK).bits() as i32;
        let file = File::options().read(true).custom_flags(flags).open(path);
        Ok(Folder { file: file.map_err(Error::io("open folder", path))?, path: path.to_path_buf() })
    }

    /// Opens the folder that `path` lies in.
    pub fn of(path: &Path) -> Result<Folder> {
        Folder::open(path.parent().unwrap_or(Path::new("")))
    }

    /// Opens `name` for writing. It is new and empty, or a regular file of this user that has no other name; its
    /// content stays as it is.
    ///
    /// # Errors
    /// [`Error::Refused`] for anything else: a link of either kind, a pipe, a file of somebody else.
    pub fn own_file(&self, name: &OsStr) -> Result<File> {
        let path = self.path.join(name);
        let described =
            |file: &File| format!("create {} {} {}", self.path.display(), name.display(), number(file));
        change(|| self.open_own(name), described).map_err(|error| match error.get_ref().is_some() {
            true => Error::Refused { path: path.clone(), why: error.to_string() },
            false => Error::io("create", &path)(error),
        })
    }

    /// [`Folder::own_file`], whose refusals are errors of a text.
    fn open_own(&self, name: &OsStr) -> io::Result<File> {
        let refused = |why: &str| Err(io::Error::other(why.to_string()));
        let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        loop {
            match openat(&self.file, name, flags | OFlags::CREATE | OFlags::EXCL, Mode::from_raw_mode(0o666))
            {
                Ok(made) => return Ok(made.into()),
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
            let file: File = match openat(&self.file, name, flags, Mode::empty()) {
                Ok(found) => found.into(),
                // It went in between.
                Err(Errno::NOENT) => continue,
                Err(Errno::LOOP | Errno::MLINK) => return refused("it is a symbolic link"),
                Err(Errno::NXIO | Errno::ISDIR) => return refused("it is not a regular file"),
                Err(error) => return Err(error.into()),
            };
            let meta = file.metadata()?;
            return match meta.nlink() {
                _ if !meta.is_file() => refused("it is not a regular file"),
                _ if meta.uid() != rustix::process::geteuid().as_raw() => {
                    refused("it belongs to another user")
                }
                0 => continue,
                1 => Ok(file),
                _ => refused("it is a hard link of another file"),
            };
        }
    }

    /// Whether `name` is this very file.
    pub fn holds(&self, name: &OsStr, file: &File) -> io::Result<bool> {
        let ours = file_id(&file.metadata()?);
        match statat(&self.file, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) => Ok((found.st_dev, found.st_ino) == ours),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Moves `from` over `to`, whatever that is; a link at `to` is replaced and not followed.
    pub fn rename(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        change(
            || renameat(&self.file, from, &self.file, to).map_err(io::Error::from),
            |()| format!("rename {} {} {}", self.path.display(), from.display(), to.display()),
        )
    }

    /// Removes a name.
    pub fn remove(&self, name: &OsStr) -> io::Result<()> {
        change(
            || unlinkat(&self.file, name, AtFlags::empty()).map_err(io::Error::from),
            |()| format!("remove {} {}", self.path.display(), name.display()),
        )
    }

    /// Forces the names in it to the disk.
    pub fn sync(&self) -> Result<()> {
        match change(|| self.file.sync_all(), |()| format!("sync-folder {}", self.path.display())) {
            // Some network file systems cannot force a folder to the disk, and say so.
            Err(e) if matches!(e.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => Ok(()),
            result => result.map_err(Error::io("write folder", &self.path)),
        }
    }
}

/// The same open file once more, with other flags; None where the system offers no way.
#[cfg(target_os = "linux")]
pub fn reopen(file: &File, flags: OFlags) -> Option<File> {
    use std::os::fd::AsRawFd;
    // By descriptor: at its path there may be something else by now.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    File::options().write(true).custom_flags(flags.bits() as i32).open(path).ok()
}
