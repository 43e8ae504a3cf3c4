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
//! 4. A path may be the URL of an object in a store, or of a prefix that stands for a folder there ([`Object`]).

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use rustix::fs::{AtFlags, Mode, OFlags, openat, renameat, statat, unlinkat};
use rustix::io::Errno;

use super::fault::{change, number};
use super::store::{Object, is_url};
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
/// refused, and not waited for. Of an object this is a temporary copy.
pub fn open_input(path: &Path, format: &'static str) -> Result<(File, fs::Metadata)> {
    if is_url(path) {
        let file = Object::at(path)?.download()?;
        let meta = file.metadata().map_err(Error::io("open", path))?;
        return Ok((file, meta));
    }
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
    let too_long = || {
        let detail = format!("it is longer than {most} bytes, the most that is read here");
        Error::Format { path: path.to_path_buf(), format, detail }
    };
    if is_url(path) {
        let (bytes, state) = Object::at(path)?.read_small(most)?;
        return if state.len <= most { Ok(bytes) } else { Err(too_long()) };
    }
    let (file, meta) = open_input(path, format)?;
    if meta.len() > most {
        return Err(too_long());
    }
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes).map_err(Error::io("read", path))?;
    if bytes.len() as u64 > most { Err(too_long()) } else { Ok(bytes) }
}

/// Whether something is at `path`.
pub fn is_there(path: &Path) -> Result<bool> {
    match is_url(path) {
        true => Ok(Object::at(path)?.state()?.is_some()),
        false => fs::exists(path).map_err(Error::io("open", path)),
    }
}

/// Whether a folder is at `path`. Of a URL this is a prefix: one that ends with a slash, or that objects lie below.
///
/// # Errors
/// A store that does not answer or does not let this be known.
pub fn is_folder(path: &Path) -> Result<bool> {
    if !is_url(path) {
        return Ok(path.is_dir());
    }
    if path.as_os_str().as_encoded_bytes().ends_with(b"/") {
        return Ok(true);
    }
    // An object first: who may read it may not be allowed to list.
    let object = Object::at(path)?;
    Ok(object.state()?.is_none() && object.is_folder()?)
}

/// What lies directly in a folder, in no order: paths and, in a store, lengths.
pub fn list(folder: &Path) -> Result<Vec<(PathBuf, Option<u64>)>> {
    if is_url(folder) {
        let found = Object::at(folder)?.list()?.into_iter();
        return Ok(found.map(|(name, len)| (folder.join(name), Some(len))).collect());
    }
    let entries = fs::read_dir(folder).map_err(Error::io("read folder", folder))?;
    let path = |entry: io::Result<fs::DirEntry>| Ok((entry?.path(), None));
    entries.map(path).collect::<io::Result<_>>().map_err(Error::io("read folder", folder))
}

/// Requests to stores that wait for their answers at once where many objects are opened.
const AT_ONCE: usize = 32;

/// What `open` gives for each path, in order: one after the other for files, many at once for objects.
///
/// # Errors
/// The first one, by the order of the paths.
pub fn at_once<T: Send>(paths: &[PathBuf], open: impl Fn(&PathBuf) -> Result<T> + Sync) -> Result<Vec<T>> {
    if paths.len() < 2 || !paths.iter().all(|path| is_url(path)) {
        return paths.iter().map(open).collect();
    }
    // Threads that wait and do not compute: more than there are cores.
    let threads = rayon::ThreadPoolBuilder::new().num_threads(AT_ONCE.min(paths.len()));
    let threads =
        threads.build().map_err(|e| Error::io("start threads for", &paths[0])(io::Error::other(e)))?;
    let found: Vec<Result<T>> = threads.install(|| paths.par_iter().map(&open).collect());
    found.into_iter().collect()
}

/// Lengths of what lies directly in a folder of a store, by name: who looks at many objects there asks once. None for a
/// folder on disk, where asking for each is cheap.
pub fn lengths(folder: &Path) -> Result<Option<BTreeMap<String, u64>>> {
    match is_url(folder) {
        true => Ok(Some(Object::at(folder)?.list()?.into_iter().collect())),
        false => Ok(None),
    }
}

/// Length of a file and what changes when it does: the time of its last change, or the version of an object.
pub fn file_state(path: &Path) -> Result<(u64, String)> {
    if is_url(path) {
        let state = Object::at(path)?.found()?;
        return Ok((state.len, state.version.tag.or(state.version.number).unwrap_or_default()));
    }
    let meta = fs::metadata(path).map_err(Error::io("open", path))?;
    Ok((meta.len(), format!("{}.{:09}", meta.mtime(), meta.mtime_nsec())))
}

/// The path from the root. A URL is one.
pub fn absolute(path: &Path) -> Result<PathBuf> {
    match is_url(path) {
        true => Ok(path.to_path_buf()),
        false => std::path::absolute(path).map_err(Error::io("resolve", path)),
    }
}

/// Makes a folder and those that it lies in, and forces their names to the disk. A store has none.
pub fn create_folder(path: &Path) -> Result<()> {
    if is_url(path) {
        return Ok(());
    }
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
