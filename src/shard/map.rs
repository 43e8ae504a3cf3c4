//! A whole file as bytes: a memory map, or a copy in memory.
#![allow(unsafe_code)]

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::str::FromStr;

use memmap2::Mmap;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::shard::source::open_regular;

/// How files are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Io {
    /// Memory map: nothing is copied and the page cache is shared between processes. If another process
    /// truncates the file meanwhile, or a network filesystem fails, the system ends the program with SIGBUS.
    #[default]
    Mmap,
    /// Ordinary reads: one copy, and every failure is an [`Error`]. The way round SIGBUS, slow page faults on
    /// network filesystems, and filesystems without `mmap`.
    Read,
}

impl fmt::Display for Io {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Io::Mmap => "mmap",
            Io::Read => "read",
        })
    }
}

impl FromStr for Io {
    type Err = Error;

    fn from_str(text: &str) -> Result<Io> {
        [Io::Mmap, Io::Read]
            .into_iter()
            .find(|io| io.to_string().eq_ignore_ascii_case(text))
            .ok_or_else(|| Error::option("--io", "mmap or read", text))
    }
}

/// The contents of one file.
#[derive(Debug)]
pub struct FileBytes(Inner);

#[derive(Debug)]
enum Inner {
    Map(Mmap),
    Copy(Vec<u8>),
}

impl FileBytes {
    /// Maps the file at `path`, or reads all of it into memory. Fails if it cannot be opened or is not a
    /// regular file. See [`Io::Mmap`] for what happens to a mapped file that shrinks.
    pub fn open(path: &Path, io: Io) -> Result<FileBytes> {
        let (file, len) = open_regular(path)?;
        FileBytes::from_file(path, &file, len, io)
    }

    /// As [`FileBytes::open`], for a file of `len` bytes that is open already.
    pub(super) fn from_file(path: &Path, mut file: &File, len: u64, io: Io) -> Result<FileBytes> {
        match io {
            Io::Mmap => {
                // SAFETY: the map is private to this value, read-only, and lent out no longer than `self`
                // lives. Bytes that another process changes meanwhile are only ever read as integers and
                // floats, for which every bit pattern is valid; lengths and offsets come from a header that
                // was parsed into owned values once. Truncation by another process raises SIGBUS, which
                // ends the program and is documented at `Io::Mmap`.
                let map = unsafe { Mmap::map(file) }.map_err(Error::io("map", path))?;
                Ok(FileBytes(Inner::Map(map)))
            }
            Io::Read => {
                let mut bytes = Vec::with_capacity(usize::try_from(len).unwrap_or(0));
                file.read_to_end(&mut bytes).map_err(Error::io("read", path))?;
                Ok(FileBytes(Inner::Copy(bytes)))
            }
        }
    }

    /// All bytes of the file. A memory map starts at a page boundary; a copy has no particular alignment.
    pub fn bytes(&self) -> &[u8] {
        match &self.0 {
            Inner::Map(map) => map,
            Inner::Copy(bytes) => bytes,
        }
    }
}
