//! A whole file as bytes: a memory map, or a copy in memory.
//!
//! Where a mapped file shrinks, or its disk fails, reading the lost pages raises SIGBUS, and the system ends the process.
//! A library has no business in its host's signal handlers, so that is what happens unless the program asks for the
//! guard, see [`install_sigbus_guard`]:
//!
//! 1. every map is listed in a table that a signal handler can read;
//! 2. the handler puts pages of zeros in place of the lost ones, marks the map, and lets the read go on;
//! 3. whoever read it asks [`FileBytes::is_whole`] before anything that was made of these bytes is kept.
//!
//! With or without the guard, [`super::PairSet::require_unchanged`] and its like hold the identity of each file (device,
//! inode, length, time of its last change) against that at opening before a result is committed: a file that was
//! replaced, rewritten or cut short without a lost page being read is an error either way. What the guard adds is that
//! reading a lost page is an error as well, and that a disk's failure is found though the file looks the same.
#![allow(unsafe_code)]

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::ptr;
use std::str::FromStr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

use memmap2::{Advice, Mmap, UncheckedAdvice};
use serde::{Deserialize, Serialize};

use super::place::open_input;
use crate::error::{Error, Result};

/// How files are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Io {
    /// Memory map: nothing is copied and the page cache is shared between processes.
    #[default]
    Mmap,
    /// Ordinary reads: one copy. The way round slow page faults on network filesystems, and filesystems without
    /// `mmap`.
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
            .ok_or_else(|| Error::argument("io", "mmap or read", text))
    }
}

/// The contents of one file.
#[derive(Debug)]
pub struct FileBytes(Inner);

#[derive(Debug)]
enum Inner {
    // Fields are dropped in order: the entry in the table goes before the map does.
    Map(Option<TableEntry>, Mmap),
    Copy(Vec<u8>),
}

impl FileBytes {
    /// Maps the file at `path`, or reads all of it into memory. Fails if it cannot be opened or is not a
    /// regular file.
    pub fn open(path: &Path, io: Io) -> Result<FileBytes> {
        let (file, meta) = open_input(path, "safetensors")?;
        FileBytes::from_file(path, &file, meta.len(), io)
    }

    /// As [`FileBytes::open`], for a file of `len` bytes that is open already.
    pub(super) fn from_file(path: &Path, mut file: &File, len: u64, io: Io) -> Result<FileBytes> {
        match io {
            Io::Mmap => {
                // SAFETY: the map is private to this value, read-only, and lent out no longer than `self`
                // lives. Bytes that another process changes meanwhile are only ever read as integers and
                // floats, for which every bit pattern is valid; lengths and offsets come from a header that
                // was parsed into owned values once. Reading a page that was lost to truncation ends the process or,
                // with the guard, gives zeros: it never gives memory of something else.
                let map = unsafe { Mmap::map(file) }.map_err(Error::io("map", path))?;
                let entry = TableEntry::add(&map);
                Ok(FileBytes(Inner::Map(entry, map)))
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
            Inner::Map(_, map) => map,
            Inner::Copy(bytes) => bytes,
        }
    }

    /// Whether every byte that was read so far was there: false once the guard put zeros in place of lost pages. Without
    /// the guard always true, since reading a lost page ends the process.
    pub fn is_whole(&self) -> bool {
        match &self.0 {
            Inner::Map(Some(entry), _) => !entry.0.lost.load(Ordering::Acquire),
            _ => true,
        }
    }

    /// Asks the system to have `len` bytes from `at` in memory soon. A hint: nothing follows from a failure.
    pub fn prefetch(&self, at: usize, len: usize) {
        if let Inner::Map(_, map) = &self.0 {
            let _ = map.advise_range(Advice::WillNeed, at, len.min(map.len().saturating_sub(at)));
        }
    }

    /// Takes `len` bytes from `at` out of this process's memory; the next access brings them back from the file. So a
    /// pass over a file larger than memory does not look as if it held it all.
    pub fn release(&self, at: usize, len: usize) {
        if let Inner::Map(_, map) = &self.0 {
            let len = len.min(map.len().saturating_sub(at));
            // SAFETY: the map is a shared one of a file that is never written to through it, so that only copies of the
            // file's pages are dropped. Pages that the guard replaced come back as zeros.
            let _ = unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, at, len) };
        }
    }
}

/// Slots of a piece of the table.
const SLOTS: usize = 4096;

/// The addresses of a map; `end` is 0 where the slot is free.
struct Slot {
    start: AtomicUsize,
    end: AtomicUsize,
    lost: AtomicBool,
}

/// A piece of the table. Pieces are added as maps become more and never go, since a signal handler may be reading them.
struct Table {
    slots: [Slot; SLOTS],
    next: AtomicPtr<Table>,
}

impl Table {
    const fn new() -> Table {
        let free = [const {
            Slot { start: AtomicUsize::new(0), end: AtomicUsize::new(0), lost: AtomicBool::new(false) }
        }; SLOTS];
        Table { slots: free, next: AtomicPtr::new(ptr::null_mut()) }
    }

    /// The piece behind this one. Safe in a signal handler.
    fn next(&self) -> Option<&'static Table> {
        // SAFETY: null, or from `Box::leak` in `next_or_new`, and never freed or written to but through its atomics.
        unsafe { self.next.load(Ordering::Acquire).as_ref() }
    }

    fn next_or_new(&self) -> &'static Table {
        if let Some(next) = self.next() {
            return next;
        }
        let new = Box::into_raw(Box::new(Table::new()));
        let null = ptr::null_mut();
        if self.next.compare_exchange(null, new, Ordering::AcqRel, Ordering::Acquire).is_err() {
            // Another thread was faster.
            // SAFETY: it came from a box just now, and nobody else has seen it.
            drop(unsafe { Box::from_raw(new) });
        }
        self.next().expect("it is there now")
    }
}

static TABLE: Table = Table::new();
/// Bytes of the system's pages.
static PAGE_SIZE: AtomicUsize = AtomicUsize::new(4096);
/// What handled SIGBUS before the guard; set while the guard is installed.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

/// The slot of one map, free again when the map goes. Maps are listed whether the guard is installed or not, so that a
/// guard that comes later covers them too.
struct TableEntry(&'static Slot);

impl fmt::Debug for TableEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TableEntry")
    }
}

impl TableEntry {
    fn add(map: &Mmap) -> Option<TableEntry> {
        if map.is_empty() {
            return None;
        }
        // Taking a slot: from free (end 0) to taken (end 1, below any start), then to this map.
        // Looked at first, since trying to take each of thousands of slots that are taken is slow.
        let free = |slot: &Slot| slot.end.load(Ordering::Relaxed) == 0;
        let take = |slot: &Slot| {
            free(slot) && slot.end.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        };
        let mut table: &'static Table = &TABLE;
        let slot = loop {
            match table.slots.iter().find(|slot| take(slot)) {
                Some(slot) => break slot,
                None => table = table.next_or_new(),
            }
        };
        let start = map.as_ptr().addr();
        slot.start.store(start, Ordering::Relaxed);
        slot.lost.store(false, Ordering::Relaxed);
        slot.end.store(start + map.len(), Ordering::Release);
        Some(TableEntry(slot))
    }
}

impl Drop for TableEntry {
    fn drop(&mut self) {
        self.0.end.store(0, Ordering::Release);
    }
}

/// Handles SIGBUS for this process from now on, so that a mapped file that is cut short, or whose disk fails, becomes
/// an [`Error::Changed`] instead of the end of the process. Faults outside this crate's maps go to the handler that was
/// there before. Calling it again does nothing.
///
/// For programs, which own their process's signal handlers; a library should leave the choice to its user.
pub fn install_sigbus_guard() {
    BEFORE.get_or_init(install_handler);
}

/// Has writes past the process's limit of file sizes (`ulimit -f`) fail as those to a full disk do, instead of ending the
/// process. For programs, as [`install_sigbus_guard`].
pub fn ignore_file_size_signal() {
    // SAFETY: no handler is installed, the signal is ignored.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Installs [`on_fault`]; gives what was there.
fn install_handler() -> libc::sigaction {
    // SAFETY: both structures are plain data for which zeros are valid, and are filled or read by the call alone; the
    // handler does nothing but what a signal handler may.
    unsafe {
        if let Ok(size @ 1..) = usize::try_from(libc::sysconf(libc::_SC_PAGESIZE)) {
            PAGE_SIZE.store(size, Ordering::Relaxed);
        }
        let mut action: libc::sigaction = std::mem::zeroed();
        let mut before: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_fault as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
        libc::sigaction(libc::SIGBUS, &action, &mut before);
        before
    }
}

/// The signal handler: a page of a listed map that is not there any more becomes zeros, as do those behind it, and the
/// map is marked. Every other fault goes to whoever handled it before.
extern "C" fn on_fault(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the system gives a handler with SA_SIGINFO a valid structure. Only atomics, mmap and sigaction are used,
    // which are safe in a handler. The new pages are inside a map that this program owns: its slot
    // is freed before it is unmapped, and a fault inside it means that a thread is reading it at this moment.
    unsafe {
        let at = (*info).si_addr().addr();
        let slots = std::iter::successors(Some(&TABLE), |table| table.next()).flat_map(|table| &table.slots);
        for slot in slots {
            let end = slot.end.load(Ordering::Acquire);
            if at < slot.start.load(Ordering::Relaxed) || at >= end {
                continue;
            }
            slot.lost.store(true, Ordering::Release);
            let page = PAGE_SIZE.load(Ordering::Relaxed);
            let from = at / page * page;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
            let len = end.next_multiple_of(page) - from;
            let place = std::ptr::without_provenance_mut(from);
            if libc::mmap(place, len, libc::PROT_READ, flags, -1, 0) != libc::MAP_FAILED {
                return;
            }
        }
        // On return the instruction runs again and faults again, which the earlier handler then sees.
        if let Some(before) = BEFORE.get() {
            libc::sigaction(libc::SIGBUS, before, std::ptr::null_mut());
        }
    }
}
