//! A whole file as bytes: a memory map, or a copy in memory.
//!
//! A map whose file shrinks under it, or whose disk fails, raises SIGBUS where it is read. So that this is an error and
//! not the end of the program, maps are registered: the handler puts zeros in place of what is lost and marks the map,
//! and whoever read it asks [`FileBytes::is_whole`] before anything that came of it is kept.
#![allow(unsafe_code)]

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::str::FromStr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use memmap2::{Advice, Mmap, UncheckedAdvice};
use serde::{Deserialize, Serialize};

use crate::data::source::open_regular;
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
            .ok_or_else(|| Error::option("--io", "mmap or read", text))
    }
}

/// The contents of one file.
#[derive(Debug)]
pub struct FileBytes(Inner);

#[derive(Debug)]
enum Inner {
    // The watch ends before the map does.
    Map(Option<Watch>, Mmap),
    Copy(Vec<u8>),
}

impl FileBytes {
    /// Maps the file at `path`, or reads all of it into memory. Fails if it cannot be opened or is not a
    /// regular file.
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
                // was parsed into owned values once. Pages that are lost to truncation become zeros, see `on_fault`.
                let map = unsafe { Mmap::map(file) }.map_err(Error::io("map", path))?;
                let watch = Watch::over(&map);
                Ok(FileBytes(Inner::Map(watch, map)))
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

    /// Whether every byte that was read so far was there: false once zeros stood in for lost pages of a map.
    pub fn is_whole(&self) -> bool {
        match &self.0 {
            Inner::Map(Some(watch), _) => !watch.slot().lost.load(Ordering::Acquire),
            _ => true,
        }
    }

    /// Asks the system to have `len` bytes from `at` in memory soon. A hint: nothing follows from a failure.
    pub fn prefetch(&self, at: usize, len: usize) {
        if let Inner::Map(_, map) = &self.0 {
            let _ = map.advise_range(Advice::WillNeed, at, len.min(map.len().saturating_sub(at)));
        }
    }
}

impl FileBytes {
    /// Takes `len` bytes from `at` out of this process's memory; the next access brings them back from the file. So a
    /// pass over a file larger than memory does not look as if it held it all.
    pub fn release(&self, at: usize, len: usize) {
        if let Inner::Map(_, map) = &self.0 {
            let len = len.min(map.len().saturating_sub(at));
            // SAFETY: the map is a shared one of a file that is never written to through it, so that what is dropped is
            // a copy: pages come back with the file's bytes, or as zeros where they were lost.
            let _ = unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, at, len) };
        }
    }
}

/// Maps that are watched at a time; what is mapped beyond them is not.
const WATCHED: usize = 4096;

/// A mapped stretch of memory; `end` is 0 where the slot is free.
struct Slot {
    start: AtomicUsize,
    end: AtomicUsize,
    lost: AtomicBool,
}

static SLOTS: [Slot; WATCHED] =
    [const { Slot { start: AtomicUsize::new(0), end: AtomicUsize::new(0), lost: AtomicBool::new(false) } };
        WATCHED];
/// Slots below this have been used.
static USED: AtomicUsize = AtomicUsize::new(0);
/// Bytes of the system's pages.
static PAGE_SIZE: AtomicUsize = AtomicUsize::new(4096);
/// What handled SIGBUS before.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

/// A slot of one map, free again when the map goes.
#[derive(Debug)]
struct Watch(usize);

impl Watch {
    fn over(map: &Mmap) -> Option<Watch> {
        if map.is_empty() {
            return None;
        }
        BEFORE.get()?;
        let start = map.as_ptr().addr();
        // Taking a slot: from free (end 0) to taken (start above end), then to this map.
        let taken = SLOTS
            .iter()
            .position(|slot| slot.end.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Relaxed).is_ok())?;
        let slot = &SLOTS[taken];
        slot.start.store(start, Ordering::Relaxed);
        slot.lost.store(false, Ordering::Relaxed);
        slot.end.store(start + map.len(), Ordering::Release);
        USED.fetch_max(taken + 1, Ordering::AcqRel);
        Some(Watch(taken))
    }

    fn slot(&self) -> &'static Slot {
        &SLOTS[self.0]
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.slot().end.store(0, Ordering::Release);
    }
}

/// Installs the handler of SIGBUS for the whole process, once: see [`crate::EngineBuilder::sigbus_guard`]. Maps that are
/// made from then on are watched.
pub fn install_sigbus_guard() {
    BEFORE.get_or_init(handle_faults);
}

/// Installs [`on_fault`]; gives what was there.
fn handle_faults() -> libc::sigaction {
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

/// A page of a watched map that is not there any more becomes zeros, as do those behind it, and the map is marked.
/// Every other fault goes to whoever handled it before.
extern "C" fn on_fault(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the system gives a handler with SA_SIGINFO a valid structure. Only atomics, mmap and sigaction are used,
    // which are safe in a handler. The new pages lie inside a map that this program owns: its slot
    // is freed before it is unmapped, and a fault inside it means that a thread holds it at this moment.
    unsafe {
        let at = (*info).si_addr().addr();
        for slot in &SLOTS[..USED.load(Ordering::Acquire)] {
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
        // The instruction runs again and faults again, now in the other's hands.
        if let Some(before) = BEFORE.get() {
            libc::sigaction(libc::SIGBUS, before, std::ptr::null_mut());
        }
    }
}
