//! Files that go beside an output: copied there once, on disk or in a store.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::atomic::AtomicFile;
use super::place::{create_folder, file_state, is_there, open_input};
use crate::error::{Error, Result};

/// Whether a file or an object is at `path`.
///
/// # Errors
/// A store that does not answer or does not let this be known.
pub fn file_exists(path: &Path) -> Result<bool> {
    is_there(path)
}

/// All bytes of a file or an object.
///
/// # Errors
/// What cannot be read, or has more than `most` bytes.
pub fn read_file(path: &Path, most: u64) -> Result<Vec<u8>> {
    super::place::read_small(path, "file", most)
}

/// Copies the file `from` to `to`, a path or a URL, unless the same bytes are there: a file that a recipe names is not to
/// change its time. Nobody sees half of it.
///
/// # Errors
/// [`Error::Exists`] where other bytes are there and `used` says that an output was made with them.
pub fn keep_file(from: &Path, to: &Path, used: bool) -> Result<()> {
    let there = is_there(to)?;
    if there && same(from, to)? {
        return Ok(());
    }
    if there && used {
        let hint = "the output in this folder was made with it: expected the same bytes, found others; `overwrite` \
                    replaces the output";
        return Err(Error::Exists { path: to.to_path_buf(), hint: hint.into() });
    }
    if let Some(folder) = to.parent() {
        create_folder(folder)?;
    }
    let (mut source, _) = open_input(from, "file")?;
    let out = AtomicFile::create(to)?;
    io::copy(&mut source, &mut out.file()).map_err(Error::io("write", to))?;
    out.commit()
}

/// Whether two files hold the same bytes.
fn same(a: &Path, b: &Path) -> Result<bool> {
    if file_state(a)?.0 != file_state(b)?.0 {
        return Ok(false);
    }
    let open = |path: &Path| Ok::<File, Error>(open_input(path, "file")?.0);
    let (mut left, mut right) = (open(a)?, open(b)?);
    let mut blocks = [vec![0; 1 << 20], vec![0; 1 << 20]];
    loop {
        let [one, other] = &mut blocks;
        let count = left.read(one).map_err(Error::io("read", a))?;
        right.read_exact(&mut other[..count]).map_err(Error::io("read", b))?;
        match count {
            0 => return Ok(true),
            _ if one[..count] != other[..count] => return Ok(false),
            _ => {}
        }
    }
}
