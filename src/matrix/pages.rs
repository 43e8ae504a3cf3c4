//! Memory in whole pages.
//!
//! Direct I/O, which goes past the page cache, reads and writes whole aligned pages only. Large buffers are
//! in huge pages besides: a write then reaches the disk as one piece of physical memory instead of thousands,
//! and runs at twice the rate.

use bytemuck::{Pod, Zeroable};
use memmap2::MmapMut;

/// Bytes of a page: what direct reads and writes are aligned to, in memory and in files.
pub const PAGE: usize = 4096;

/// Bytes of a huge page; buffers from this size on are mapped, in whole huge pages where the system has them.
const HUGE_PAGE: usize = 2 << 20;

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(4096))]
struct Page([u8; PAGE]);

/// Bytes that start at a page boundary.
#[derive(Default)]
pub struct Pages {
    /// Before `memory`, since fields are dropped in order and the guard must go first.
    guard: Option<Box<dyn Send + Sync>>,
    memory: Memory,
    len: usize,
}

enum Memory {
    Heap(Vec<Page>),
    Map(MmapMut),
}

impl Default for Memory {
    fn default() -> Memory {
        Memory::Heap(Vec::new())
    }
}

impl Memory {
    fn zeros(len: usize) -> Memory {
        if len >= HUGE_PAGE
            && let Ok(map) = MmapMut::map_anon(len.next_multiple_of(HUGE_PAGE))
        {
            #[cfg(target_os = "linux")]
            let _ = map.advise(memmap2::Advice::HugePage);
            return Memory::Map(map);
        }
        Memory::Heap(bytemuck::zeroed_vec(len.div_ceil(PAGE)))
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Memory::Heap(pages) => bytemuck::cast_slice(pages),
            Memory::Map(map) => map,
        }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Memory::Heap(pages) => bytemuck::cast_slice_mut(pages),
            Memory::Map(map) => map,
        }
    }
}

impl Pages {
    pub fn zeros(len: usize) -> Pages {
        Pages { guard: None, memory: Memory::zeros(len), len }
    }

    /// Changes the length, in place where there is room. New bytes are zeros, or what they were before the
    /// length was last made smaller.
    pub fn resize(&mut self, len: usize) {
        if len > self.memory.bytes().len() {
            let mut memory = Memory::zeros(len);
            memory.bytes_mut()[..self.len].copy_from_slice(self.bytes());
            self.guard = None;
            self.memory = memory;
        }
        self.len = len;
    }

    /// Attaches a guard, such as a registration of this memory with a GPU driver. `take` gets the whole
    /// allocation, room beyond the length included; the guard that it returns is dropped just before the
    /// allocation is freed or replaced. Does nothing if there is a guard already.
    pub fn attach_guard(&mut self, take: impl FnOnce(&mut [u8]) -> Option<Box<dyn Send + Sync>>) {
        let bytes = self.memory.bytes_mut();
        if self.guard.is_none() && !bytes.is_empty() {
            self.guard = take(bytes);
        }
    }

    pub fn bytes(&self) -> &[u8] {
        &self.memory.bytes()[..self.len]
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory.bytes_mut()[..self.len]
    }
}

impl Clone for Pages {
    fn clone(&self) -> Pages {
        let mut copy = Pages::zeros(self.len);
        copy.bytes_mut().copy_from_slice(self.bytes());
        copy
    }
}

impl std::fmt::Debug for Pages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pages({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn pages_start_at_a_boundary_and_keep_what_they_held() {
        let mut pages = Pages::zeros(5000);
        assert!(pages.bytes().as_ptr().addr().is_multiple_of(PAGE));
        assert_eq!((pages.bytes().len(), pages.bytes()[4999]), (5000, 0));
        pages.bytes_mut()[4000] = 7;
        pages.resize(10);
        assert_eq!(pages.bytes().len(), 10);
        pages.resize(20_000);
        assert_eq!((pages.bytes()[19], pages.bytes()[19_999]), (0, 0));
        pages.bytes_mut()[19_999] = 9;
        pages.resize(3 * HUGE_PAGE - 5);
        assert!(pages.bytes().as_ptr().addr().is_multiple_of(PAGE));
        assert_eq!((pages.bytes()[19_999], pages.bytes()[3 * HUGE_PAGE - 6]), (9, 0));
        assert_eq!(pages.clone().bytes(), pages.bytes());
    }

    #[test]
    fn a_guard_lives_as_long_as_its_memory() {
        let kept = Arc::new(());
        let guards = || Arc::strong_count(&kept) - 1;
        let take = |bytes: &mut [u8]| {
            assert_eq!(bytes.len() % PAGE, 0, "whole pages");
            Some(Box::new(kept.clone()) as Box<dyn Send + Sync>)
        };
        let mut pages = Pages::default();
        pages.attach_guard(take);
        assert_eq!(guards(), 0, "no memory, no guard");
        pages.resize(3 * PAGE);
        pages.attach_guard(|_| None);
        pages.attach_guard(take);
        pages.attach_guard(|_| panic!("there is one"));
        let copy = pages.clone();
        pages.resize(PAGE);
        pages.resize(3 * PAGE - 5);
        assert_eq!(guards(), 1, "the same memory; the copy has other memory");
        pages.resize(3 * PAGE + 1);
        assert_eq!(guards(), 0, "moved");
        pages.attach_guard(take);
        drop(copy);
        assert_eq!(guards(), 1);
        drop(pages);
        assert_eq!(guards(), 0);
    }
}
