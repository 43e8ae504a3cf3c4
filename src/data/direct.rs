//! Direct writes: a file of known length, filled with positioned writes past the page cache (O_DIRECT).
//!
//! The kernel takes direct writes only in whole pages from page-aligned memory, so bytes on their way into a tensor go
//! one of three ways:
//!
//! 1. whole aligned pages are written from where they lie, without a copy;
//! 2. everything else is gathered in a page-aligned buffer and written once that is full;
//! 3. the ends of a tensor, which share a page with its neighbours, are written through the page cache.
//!
//! Beside cached writes followed by a sync this saves a copy, leaves the page cache to others, and is several times as
//! fast. Where the file system refuses direct writes, everything goes through the page cache.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use super::atomic::AtomicFile;
use super::fault::{change, number};
use crate::error::{Error, Result};
use crate::matrix::{PAGE, Pages};

/// Bytes gathered for one write where they come in smaller or unaligned pieces.
const STAGE: usize = 4 << 20;
/// Files below this are written through the page cache.
const SMALL: u64 = 1 << 20;

/// A file of known length, open for positioned writes through the page cache (`plain`) and past it.
#[derive(Debug)]
pub(super) struct DirectFile {
    plain: File,
    direct: Option<File>,
}

impl DirectFile {
    /// Takes the temporary file of `out`, which will have `len` bytes, and reserves the space for them, so that a full
    /// disk is found out at once. `direct` false writes through the page cache.
    pub fn new(out: &AtomicFile, len: u64, direct: bool) -> io::Result<DirectFile> {
        let plain = out.file().try_clone()?;
        if len < SMALL {
            return Ok(DirectFile { plain, direct: None });
        }
        reserve(&plain, len)?;
        // File systems without direct writes (tmpfs on older systems) refuse to open.
        let direct = if direct { open_direct(out.file()) } else { None };
        Ok(DirectFile { plain, direct })
    }

    fn write_plain(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        change(|| self.plain.write_all_at(bytes, at), |()| format!("write {}", number(&self.plain)))
    }

    /// Writes whole pages from page-aligned memory to a page boundary of the file.
    fn write_blocks(&mut self, bytes: &[u8], at: u64) -> io::Result<()> {
        if let Some(direct) = &self.direct {
            let write = || direct.write_all_at(bytes, at);
            match change(write, |()| format!("write {}", number(direct))) {
                // Some network file systems accept O_DIRECT when the file is opened and refuse the write.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => self.direct = None,
                result => return result,
            }
        }
        self.write_plain(bytes, at)
    }
}

#[cfg(target_os = "linux")]
fn open_direct(file: &File) -> Option<File> {
    super::place::reopen(file, rustix::fs::OFlags::DIRECT)
}

#[cfg(not(target_os = "linux"))]
fn open_direct(_: &File) -> Option<File> {
    None
}

#[cfg(target_os = "linux")]
fn reserve(file: &File, len: u64) -> io::Result<()> {
    use rustix::fs::{FallocateFlags, fallocate};
    use rustix::io::Errno;
    match fallocate(file, FallocateFlags::empty(), 0, len) {
        // Not every file system can reserve space; writing extends the file then.
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::NODEV) => Ok(()),
        result => result.map_err(io::Error::from),
    }
}

#[cfg(not(target_os = "linux"))]
fn reserve(_: &File, _: u64) -> io::Result<()> {
    Ok(())
}

/// Where the next bytes of one tensor go, with those that wait to be written.
#[derive(Debug)]
pub(super) struct TensorCursor {
    /// Place in the file of the first byte that is not written yet; a page boundary where bytes wait.
    at: u64,
    /// The first `waiting` bytes of `stage` are gathered and not written yet.
    stage: Pages,
    waiting: usize,
}

impl TensorCursor {
    /// Starts at byte `at` of the file.
    pub fn new(at: u64) -> TensorCursor {
        TensorCursor { at, stage: Pages::default(), waiting: 0 }
    }

    /// Appends bytes to the tensor; see the head of this file.
    pub fn append(&mut self, file: &mut DirectFile, mut bytes: &[u8]) -> io::Result<()> {
        if file.direct.is_none() {
            self.flush(file)?;
            file.write_plain(bytes, self.at)?;
            self.at += bytes.len() as u64;
            return Ok(());
        }
        let off_boundary = self.at as usize % PAGE;
        if self.waiting == 0 && off_boundary > 0 {
            // Up to the boundary through the page cache: the page is shared with the tensor before.
            let (head, rest) = bytes.split_at((PAGE - off_boundary).min(bytes.len()));
            file.write_plain(head, self.at)?;
            self.at += head.len() as u64;
            bytes = rest;
        }
        while !bytes.is_empty() {
            let aligned = bytes.len() >= PAGE && bytes.as_ptr().addr().is_multiple_of(PAGE);
            if aligned && self.waiting.is_multiple_of(PAGE) {
                self.flush(file)?;
                let (blocks, rest) = bytes.split_at(bytes.len() / PAGE * PAGE);
                file.write_blocks(blocks, self.at)?;
                self.at += blocks.len() as u64;
                bytes = rest;
                continue;
            }
            let (now, later) = bytes.split_at((STAGE - self.waiting).min(bytes.len()));
            self.stage.resize(STAGE);
            self.stage.bytes_mut()[self.waiting..][..now.len()].copy_from_slice(now);
            self.waiting += now.len();
            bytes = later;
            if self.waiting == STAGE {
                self.flush(file)?;
            }
        }
        Ok(())
    }

    /// Writes the bytes that wait.
    pub fn flush(&mut self, file: &mut DirectFile) -> io::Result<()> {
        let (blocks, rest) = self.stage.bytes()[..self.waiting].split_at(self.waiting / PAGE * PAGE);
        if !blocks.is_empty() {
            file.write_blocks(blocks, self.at)?;
        }
        if !rest.is_empty() {
            file.write_plain(rest, self.at + blocks.len() as u64)?;
        }
        self.at += self.waiting as u64;
        self.waiting = 0;
        Ok(())
    }
}

/// Bytes per second that the disk of `folder` takes in one file of `bytes` bytes, written as shards are (space
/// reserved, `block` bytes at a time past the page cache where possible) and synced: the most that a run can write
/// there. The file is removed.
///
/// # Errors
/// The folder cannot be written, or the disk is full.
pub fn sequential_write(folder: &Path, bytes: u64, block: usize) -> Result<f64> {
    let path = folder.join(format!("write-rate-{}", std::process::id()));
    let failed = |e| Error::io("write", &path)(e);
    let mut pages = Pages::zeros(block.next_multiple_of(PAGE));
    // Random bytes: some disks store zeros, or what they can compress, faster.
    let mut state = 1u64;
    for byte in pages.bytes_mut() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *byte = (state >> 56) as u8;
    }
    let start = Instant::now();
    let out = AtomicFile::create(&path)?;
    let mut file = DirectFile::new(&out, bytes, true).map_err(failed)?;
    let mut cursor = TensorCursor::new(0);
    let mut left = bytes;
    while left > 0 {
        let now = left.min(pages.bytes().len() as u64);
        cursor.append(&mut file, &pages.bytes()[..now as usize]).map_err(failed)?;
        left -= now;
    }
    cursor.flush(&mut file).map_err(failed)?;
    drop(file);
    out.commit()?;
    let seconds = start.elapsed().as_secs_f64();
    fs::remove_file(&path).map_err(Error::io("remove", &path))?;
    Ok(bytes as f64 / seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pieces of odd sizes from aligned and unaligned memory, into two tensors that share a block.
    #[test]
    fn every_byte_lands_where_it_belongs() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        let (first, second) = (3 * STAGE + 5000, 2 * STAGE + 77);
        let mut pages = Pages::zeros(first.max(second) + 1);
        for (i, byte) in pages.bytes_mut().iter_mut().enumerate() {
            *byte = (i * 7 + i / 251) as u8;
        }
        for direct in [false, true] {
            let out = AtomicFile::create(&path).expect("creates");
            let mut file = DirectFile::new(&out, (first + second) as u64, direct).expect("opens");
            let mut cursors = [TensorCursor::new(0), TensorCursor::new(first as u64)];
            let sizes = [PAGE, 1, 4095, 3 * PAGE, 8, 100_000, PAGE - 1, 1 << 20, 2 * PAGE + 1];
            for (cursor, (offset, len)) in cursors.iter_mut().zip([(0, first), (1, second)]) {
                let (mut done, mut piece) = (0, 0);
                while done < len {
                    let now = sizes[piece % sizes.len()].min(len - done);
                    let bytes = &pages.bytes()[offset + done..][..now];
                    cursor.append(&mut file, bytes).expect("writes");
                    (done, piece) = (done + now, piece + 1);
                }
                cursor.flush(&mut file).expect("writes");
            }
            drop(file);
            out.commit().expect("commits");
            let written = fs::read(&path).expect("reads");
            assert_eq!(written.len(), first + second);
            assert!(written[..first] == pages.bytes()[..first], "first tensor, direct {direct}");
            assert!(written[first..] == pages.bytes()[1..=second], "second tensor, direct {direct}");
        }
    }

    #[test]
    fn the_rate_of_a_disk_is_a_rate() {
        let folder = tempfile::tempdir().expect("a folder");
        let rate = sequential_write(folder.path(), (2 << 20) + 17, 1 << 20).expect("writes");
        assert!(rate.is_finite() && rate > 0.0, "{rate}");
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 0, "left behind");
    }
}
