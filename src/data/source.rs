//! Open files with parsed headers.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::format::{self, Header, TensorInfo};
use super::map::{FileBytes, Io};
use super::place::{FileId, file_id, open_input};
use super::store::{Object, ObjectState, is_url};
use crate::error::{Error, Result};

/// From this many copied bytes on, releasing the mapped pages that they came from is worth a system call.
const RELEASE_BYTES: usize = 1 << 16;

/// One open file: its parsed header, and its payload as a map or through reads.
#[derive(Debug)]
pub(super) struct Source {
    pub path: PathBuf,
    pub header: Header,
    /// Length of the file in bytes.
    pub len: u64,
    access: Access,
}

/// What tells a file from another one at its path, and from itself after a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    place: FileId,
    len: u64,
    /// When its bytes changed. Whoever writes to it may set this back.
    modified: (i64, i64),
    /// When anything about it changed, which nobody can set back.
    changed: (i64, i64),
}

impl Identity {
    fn of(meta: &fs::Metadata) -> Identity {
        Identity {
            place: file_id(meta),
            len: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }

    /// How the file that is there now differs.
    fn difference(&self, now: &Identity) -> Option<String> {
        if self.place != now.place {
            Some("another file took its place".into())
        } else if self.len != now.len {
            Some(format!("it had {} bytes when it was opened and has {} now", self.len, now.len))
        } else if self.modified != now.modified {
            Some("it was written to".into())
        } else if self.changed != now.changed {
            Some("it was written to and its time put back, or its links or rights were changed".into())
        } else {
            None
        }
    }
}

#[derive(Debug)]
enum Access {
    Map(FileBytes, Identity),
    /// Opened for each read: there may be more files than a process may have open.
    Reads(Identity),
    /// An object of a store, read in ranges.
    Object(Object, ObjectState),
}

/// From this many bytes on, the header of an object needs another request.
const PREFIX_BYTES: u64 = 64 << 10;

impl Source {
    /// Opens `path` and parses its header. With [`Io::Read`], and of an object, nothing but the header is read.
    pub fn open(path: &Path, io: Io) -> Result<Source> {
        if is_url(path) {
            return Source::open_object(path);
        }
        let (file, meta) = open_input(path, "safetensors")?;
        let (identity, len) = (Identity::of(&meta), meta.len());
        let (header, len, access) = match io {
            Io::Mmap => {
                let map = FileBytes::from_file(path, &file, len, io)?;
                let header = Header::parse(path, map.bytes())?;
                (header, map.bytes().len() as u64, Access::Map(map, identity))
            }
            Io::Read => {
                let prefix = read_prefix(path, len, 0, |out| read_at(path, &file, 0, out))?;
                (Header::from_prefix(path, &prefix, len)?, len, Access::Reads(identity))
            }
        };
        Ok(Source { path: path.to_path_buf(), header, len, access })
    }

    fn open_object(path: &Path) -> Result<Source> {
        let object = Object::at(path)?;
        let state = object.found()?;
        let len = state.len;
        let prefix = read_prefix(path, len, PREFIX_BYTES, |out| object.read(&state.version, 0, out))?;
        let header = Header::from_prefix(path, &prefix, len)?;
        Ok(Source { path: path.to_path_buf(), header, len, access: Access::Object(object, state) })
    }

    /// What a store calls the version of the object; None for a file, and where the store does not say.
    pub fn version(&self) -> Option<String> {
        match &self.access {
            Access::Object(_, state) => state.version.tag.clone(),
            Access::Map(..) | Access::Reads(_) => None,
        }
    }

    /// Fails with [`Error::Changed`] if the file is no longer the one that was opened (by device, inode, length and time
    /// of its last change) or, with the SIGBUS guard, if pages of a map were lost while they were read.
    pub fn require_unchanged(&self) -> Result<()> {
        let changed = |how: String| Err(Error::Changed { path: self.path.clone(), how });
        let identity = match &self.access {
            Access::Map(_, identity) | Access::Reads(identity) => identity,
            Access::Object(object, state) => {
                return match object.state()? {
                    Some(now) if now == *state => Ok(()),
                    Some(_) => changed("another object took its place".into()),
                    None => Err(gone(&self.path)),
                };
            }
        };
        match fs::metadata(&self.path) {
            Ok(meta) => {
                if let Some(how) = identity.difference(&Identity::of(&meta)) {
                    return changed(how);
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(gone(&self.path));
            }
            Err(error) => return Err(Error::io("open", &self.path)(error)),
        }
        match &self.access {
            Access::Map(map, _) if !map.is_whole() => {
                changed("bytes could not be read: it was cut short, or its disk failed".into())
            }
            _ => Ok(()),
        }
    }

    /// Takes `len` bytes from `at` out of this process's memory, where the file is mapped.
    pub fn release(&self, at: u64, len: usize) {
        if let Access::Map(map, _) = &self.access {
            map.release(at as usize, len);
        }
    }

    /// Asks the system to have `len` bytes from `at` in memory soon.
    pub fn prefetch(&self, at: u64, len: usize) {
        if let Access::Map(map, _) = &self.access {
            map.prefetch(at as usize, len);
        }
    }

    /// The `len` bytes from `at`, where the file is mapped.
    pub fn mapped(&self, at: u64, len: usize) -> Option<&[u8]> {
        match &self.access {
            Access::Map(map, _) => map.bytes().get(at as usize..)?.get(..len),
            Access::Reads(_) | Access::Object(..) => None,
        }
    }

    /// All bytes of a tensor.
    pub fn bytes(&self, tensor: &TensorInfo) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        // A file may claim more than there is memory, and hold it too: with holes it takes no room.
        let len = tensor.range.len();
        bytes.try_reserve_exact(len).map_err(|e| {
            format::bad(
                &self.path,
                format!("tensor `{}` of {len} bytes does not fit memory: {e}", format::quote(&tensor.name)),
            )
        })?;
        bytes.resize(len, 0);
        self.read(tensor.range.start as u64, &mut bytes)?;
        Ok(bytes)
    }

    /// Copies the bytes from `at` into `out`.
    pub fn read(&self, at: u64, out: &mut [u8]) -> Result<()> {
        match &self.access {
            Access::Map(..) => {
                let bytes = self.mapped(at, out.len()).ok_or_else(|| changed(&self.path))?;
                out.copy_from_slice(bytes);
                // Only the copy is used from here on.
                if out.len() >= RELEASE_BYTES {
                    self.release(at, out.len());
                }
                Ok(())
            }
            Access::Object(object, state) => object.read(&state.version, at, out),
            Access::Reads(identity) => {
                let (file, now) = open_input(&self.path, "safetensors").map_err(|error| match error {
                    Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                        gone(&self.path)
                    }
                    other => other,
                })?;
                match identity.difference(&Identity::of(&now)) {
                    Some(how) => Err(Error::Changed { path: self.path.clone(), how }),
                    None => read_at(&self.path, &file, at, out),
                }
            }
        }
    }
}

fn gone(path: &Path) -> Error {
    Error::Changed { path: path.to_path_buf(), how: "it was removed or moved away".into() }
}

fn changed(path: &Path) -> Error {
    Error::Changed { path: path.to_path_buf(), how: "it is shorter than when it was opened".into() }
}

fn read_at(path: &Path, file: &File, at: u64, out: &mut [u8]) -> Result<()> {
    file.read_exact_at(out, at).map_err(|source| match source.kind() {
        std::io::ErrorKind::UnexpectedEof => changed(path),
        _ => Error::Io { action: "read", path: path.to_path_buf(), source },
    })
}

/// The bytes before the payload of a file of `len` bytes, which `read` reads from its start. The first time it reads
/// `first` bytes, or as many as tell the length of the header; what they claim is checked before anything of that size is
/// allocated.
fn read_prefix(path: &Path, len: u64, first: u64, read: impl Fn(&mut [u8]) -> Result<()>) -> Result<Vec<u8>> {
    let mut prefix = vec![0; first.max(format::LEN_BYTES as u64).min(len) as usize];
    read(&mut prefix)?;
    let end = format::header_end(&prefix, len).map_err(|detail| format::bad(path, detail))?;
    if end > prefix.len() {
        prefix.resize(end, 0);
        read(&mut prefix)?;
    }
    prefix.truncate(end);
    Ok(prefix)
}
