//! A file written in whole blocks past the page cache, where the file system allows it: one copy less, no cache
//! displaced, and several times the rate of cached writes followed by a sync.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use super::writer::AtomicFile;
use crate::error::{Error, Result};
use crate::matrix::{PAGE, Pages};

/// Bytes that are gathered for one write where they come in smaller or unaligned pieces.
const STAGE: usize = 4 << 20;
/// Files below this are written through the page cache.
const SMALL: u64 = 1 << 20;

/// A file of known length, open for positioned writes.
#[derive(Debug)]
pub(super) struct BlockFile {
    plain: File,
    direct: Option<File>,
}

impl BlockFile {
    /// Takes the temporary file of `out`, which will have `len` bytes, and reserves the space for them, so that a full
    /// disk is found out at once. `direct` false writes through the page cache.
    pub fn new(out: &AtomicFile, len: u64, direct: bool) -> io::Result<BlockFile> {
        let plain = out.file().try_clone()?;
        if len < SMALL {
            return Ok(BlockFile { plain, direct: None });
        }
        reserve(&plain, len)?;
        let direct = if direct { open_direct(out.temporary()) } else { None };
        Ok(BlockFile { plain, direct })
    }

    fn write_plain(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.plain.write_all_at(bytes, at)
    }

    /// Writes whole blocks from page-aligned memory at a multiple of the block.
    fn write_blocks(&mut self, bytes: &[u8], at: u64) -> io::Result<()> {
        if let Some(direct) = &self.direct {
            match direct.write_all_at(bytes, at) {
                // A file system that takes the flag and refuses the write, as some network ones do.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => self.direct = None,
                result => return result,
            }
        }
        self.write_plain(bytes, at)
    }
}

#[cfg(target_os = "linux")]
fn open_direct(path: &Path) -> Option<File> {
    use std::os::unix::fs::OpenOptionsExt;
    // File systems without it (tmpfs on older systems) refuse to open.
    File::options().write(true).custom_flags(rustix::fs::OFlags::DIRECT.bits() as i32).open(path).ok()
}

#[cfg(not(target_os = "linux"))]
fn open_direct(_: &Path) -> Option<File> {
    None
}

#[cfg(target_os = "linux")]
fn reserve(file: &File, len: u64) -> io::Result<()> {
    use rustix::fs::{FallocateFlags, fallocate};
    use rustix::io::Errno;
    match fallocate(file, FallocateFlags::empty(), 0, len) {
        // Not every file system can; writing extends the file then.
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::NODEV) => Ok(()),
        result => result.map_err(io::Error::from),
    }
}

#[cfg(not(target_os = "linux"))]
fn reserve(_: &File, _: u64) -> io::Result<()> {
    Ok(())
}

/// The bytes of one tensor on their way into a file, in order.
#[derive(Debug)]
pub(super) struct Lane {
    /// Where the first byte goes that is not in the file yet.
    at: u64,
    /// Bytes waiting for a whole block; they start at `at`, a multiple of the block unless there are none.
    stage: Pages,
    waiting: usize,
}

impl Lane {
    /// Starts at byte `at` of the file.
    pub fn new(at: u64) -> Lane {
        Lane { at, stage: Pages::default(), waiting: 0 }
    }

    /// Appends bytes; what is aligned goes to the file from where it lies.
    pub fn append(&mut self, file: &mut BlockFile, mut bytes: &[u8]) -> io::Result<()> {
        if file.direct.is_none() {
            self.flush(file)?;
            file.write_plain(bytes, self.at)?;
            self.at += bytes.len() as u64;
            return Ok(());
        }
        let off_boundary = self.at as usize % PAGE;
        if self.waiting == 0 && off_boundary > 0 {
            // Up to the boundary the ordinary way: the block is shared with the tensor before.
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

    /// Writes what waits.
    pub fn flush(&mut self, file: &mut BlockFile) -> io::Result<()> {
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
/// reserved, whole blocks of `block` bytes past the page cache where possible) and synced: the floor of writing there.
/// The file is removed.
///
/// # Errors
/// The folder cannot be written, or the disk is full.
pub fn sequential_write(folder: &Path, bytes: u64, block: usize) -> Result<f64> {
    let path = folder.join(format!("write-rate-{}", std::process::id()));
    let failed = |e| Error::io("write", &path)(e);
    let mut pages = Pages::zeros(block.next_multiple_of(PAGE));
    // Not zeros, which disks may store otherwise.
    let mut state = 1u64;
    for byte in pages.bytes_mut() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *byte = (state >> 56) as u8;
    }
    let start = Instant::now();
    let out = AtomicFile::create(&path)?;
    let mut file = BlockFile::new(&out, bytes, true).map_err(failed)?;
    let mut lane = Lane::new(0);
    let mut left = bytes;
    while left > 0 {
        let now = left.min(pages.bytes().len() as u64);
        lane.append(&mut file, &pages.bytes()[..now as usize]).map_err(failed)?;
        left -= now;
    }
    lane.flush(&mut file).map_err(failed)?;
    drop(file);
    out.commit()?;
    let seconds = start.elapsed().as_secs_f64();
    fs::remove_file(&path).map_err(Error::io("remove", &path))?;
    Ok(bytes as f64 / seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pieces of odd sizes from aligned and unaligned memory, into two lanes that share a block.
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
            let mut file = BlockFile::new(&out, (first + second) as u64, direct).expect("opens");
            let mut lanes = [Lane::new(0), Lane::new(first as u64)];
            let sizes = [PAGE, 1, 4095, 3 * PAGE, 8, 100_000, PAGE - 1, 1 << 20, 2 * PAGE + 1];
            for (lane, (offset, len)) in lanes.iter_mut().zip([(0, first), (1, second)]) {
                let (mut done, mut turn) = (0, 0);
                while done < len {
                    let now = sizes[turn % sizes.len()].min(len - done);
                    let bytes = &pages.bytes()[offset + done..][..now];
                    lane.append(&mut file, bytes).expect("writes");
                    (done, turn) = (done + now, turn + 1);
                }
                lane.flush(&mut file).expect("writes");
            }
            drop(file);
            out.commit().expect("commits");
            let written = fs::read(&path).expect("reads");
            assert_eq!(written.len(), first + second);
            assert!(written[..first] == pages.bytes()[..first], "first lane, direct {direct}");
            assert!(written[first..] == pages.bytes()[1..=second], "second lane, direct {direct}");
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
