//! How much memory there is: asked before much of it is taken ([`require`]), and what happens where the system refuses it
//! all the same ([`Allocator`]).

#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::fmt::Display;
use std::fs;

use crate::error::{Error, Result};

/// Bytes that can be taken before the system runs out of memory, where it tells.
fn free() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let kib = |name: &str| -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix(" kB")?.parse().ok()
    };
    Some((kib("MemAvailable:")? + kib("SwapFree:").unwrap_or(0)) << 10)
}

/// Fails if `bytes`, which `value` of the field `field` takes at least, are more than are free.
pub(crate) fn require(field: &'static str, value: impl Display, bytes: u128) -> Result<()> {
    const MIB: u128 = 1 << 20;
    match free().map(u128::from) {
        Some(free) if bytes > free => {
            let expected = format!("a size that fits in the {} MiB of memory that are free", free / MIB);
            Err(Error::argument(field, expected, format!("{value}, which takes {} MiB", bytes.div_ceil(MIB))))
        }
        _ => Ok(()),
    }
}

/// The system's allocator for a program that is one command. Where memory is refused, the process ends with exit code 1
/// and one line, not with a signal; as after any other end, the same command goes on where it was.
///
/// With the feature `internals`, `LENSMITH_FAULT=memory:12` has the thirteenth allocation of 16 KiB or more refused.
#[derive(Debug)]
pub struct Allocator;

impl Allocator {
    /// `made`, if it is memory.
    fn checked(made: *mut u8, bytes: usize) -> *mut u8 {
        if made.is_null() { end(bytes) } else { made }
    }
}

// SAFETY: every call goes to the system's allocator as it came, and what that gives is given.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        refuse_if_planned(layout.size());
        // SAFETY: as the caller promises.
        Allocator::checked(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        refuse_if_planned(layout.size());
        // SAFETY: as the caller promises.
        Allocator::checked(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        refuse_if_planned(size);
        // SAFETY: as the caller promises.
        Allocator::checked(unsafe { System.realloc(old, layout, size) }, size)
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(old, layout) }
    }
}

/// Ends the process. Nothing here allocates, takes a lock or runs a destructor: the allocation that failed may hold any.
#[cold]
fn end(bytes: usize) -> ! {
    let mut digits = [0; 20];
    let (mut at, mut left) = (digits.len(), bytes);
    loop {
        at -= 1;
        digits[at] = b'0' + (left % 10) as u8;
        left /= 10;
        if left == 0 {
            break;
        }
    }
    let stderr = std::io::stderr();
    let _ = rustix::io::write(&stderr, b"lensmith: out of memory: the system refused ");
    let _ = rustix::io::write(&stderr, &digits[at..]);
    let _ =
        rustix::io::write(&stderr, b" bytes; with more memory, or smaller sizes, the same command goes on\n");
    // SAFETY: it ends the process at once, whatever state that is in.
    unsafe { libc::_exit(1) }
}

#[cfg(feature = "internals")]
fn refuse_if_planned(bytes: usize) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicUsize, Ordering};

    static PLAN: OnceLock<Option<usize>> = OnceLock::new();
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    // Reading the plan allocates less than this.
    if bytes < 16 << 10 {
        return;
    }
    let plan = PLAN.get_or_init(|| {
        std::env::var("LENSMITH_FAULT").ok()?.strip_prefix("memory:").and_then(|at| at.parse().ok())
    });
    if plan.is_some_and(|at| COUNT.fetch_add(1, Ordering::Relaxed) == at) {
        end(bytes);
    }
}

#[cfg(not(feature = "internals"))]
fn refuse_if_planned(_: usize) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_free_can_be_had_and_no_more() {
        require("rows", 1, 1).expect("a byte is free");
        let error = require("rows", 7, u128::MAX).expect_err("no machine has as much").to_string();
        assert!(error.starts_with("rows: expected a size that fits in the "), "{error}");
        assert!(error.contains("found 7, which takes "), "{error}");
    }
}
