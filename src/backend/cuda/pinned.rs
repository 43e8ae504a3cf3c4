//! Pinned host memory: the buffers that copies from and to ordinary memory go through. Asynchronous copies take their
//! bytes late, so what they read or write must neither be paged out nor change before they are done.

#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::ffi::c_void;
use std::slice;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use cudarc::driver::result::{self, DriverError, event};
use cudarc::driver::sys;
use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

/// Copies up to this size take a buffer of a ring of their own: large buffers are not pinned for a few numbers.
const SMALL: usize = 64 << 10;
/// Buffers of the ring for small copies, and for large ones: enough for host and device to be at work on several.
const SMALL_BUFFERS: usize = 16;
const LARGE_BUFFERS: usize = 4;
/// Bytes of a large buffer: enough to hide the start of a copy, and of the threads that fill it.
const LARGE: usize = 8 << 20;
/// Bytes from which on several threads copy, and what each of them takes at a time. One thread copies about 10 GB/s,
/// a fifth of what a PCIe 5 link carries.
const SHARED: usize = 1 << 20;
const SLICE: usize = 256 << 10;
/// Most threads that copy: enough for any link.
const COPIERS: usize = 8;

/// Waits for a lock; a thread that panicked has left nothing half done behind ours.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Threads that do nothing but copy: those of another pool might wait for a lock that who waits for them holds.
fn copiers() -> Option<&'static ThreadPool> {
    static POOL: OnceLock<Option<ThreadPool>> = OnceLock::new();
    let cores = || std::thread::available_parallelism().map_or(1, |n| n.get());
    let start = || ThreadPoolBuilder::new().num_threads(cores().min(COPIERS)).build().ok();
    POOL.get_or_init(start).as_ref()
}

/// Copies bytes, with several threads where there are many.
fn copy(to: &mut [u8], from: &[u8]) {
    // A worker that waits for others takes up other tasks meanwhile, which may wait for the lock that is held here.
    let alone = to.len() < SHARED || rayon::current_thread_index().is_some();
    let pool = if alone { None } else { copiers() };
    match pool {
        None => to.copy_from_slice(from),
        Some(pool) => pool.install(|| {
            let slices = to.par_chunks_mut(SLICE).zip(from.par_chunks(SLICE));
            slices.for_each(|(to, from)| to.copy_from_slice(from));
        }),
    }
}

/// The buffers of one direction: at most 33 MiB, pinned when they are first used.
pub struct Staging {
    small: Mutex<Ring>,
    large: Mutex<Ring>,
}

impl Staging {
    /// Buffers yet to be pinned.
    pub fn new() -> Staging {
        Staging {
            small: Mutex::new(Ring::new(SMALL_BUFFERS, SMALL)),
            large: Mutex::new(Ring::new(LARGE_BUFFERS, LARGE)),
        }
    }

    fn ring(&self, bytes: usize) -> MutexGuard<'_, Ring> {
        lock(if bytes <= SMALL { &self.small } else { &self.large })
    }

    /// Starts copies to the device; `from` may change when this returns. `order` is held while a copy is put on the stream.
    ///
    /// # Safety
    /// The context is bound, `stream` is live, and `to` has room.
    pub unsafe fn send(
        &self,
        to: u64,
        from: &[u8],
        stream: sys::CUstream,
        order: &Mutex<()>,
    ) -> Result<(), DriverError> {
        let mut ring = self.ring(from.len());
        for (piece, from) in from.chunks(ring.size).enumerate() {
            let slot = ring.take()?;
            let at = to + (piece * ring.size) as u64;
            // SAFETY: no copy uses a slot that was taken until the one below, which its event follows.
            let pinned = unsafe { ring.bytes(slot, from.len()) };
            copy(pinned, from);
            let _order = lock(order);
            // SAFETY: the caller answers for stream and destination; the buffer stays as it is until the event.
            unsafe {
                result::memcpy_htod_async(at, pinned, stream)?;
                ring.follow(slot, stream)?;
            }
        }
        Ok(())
    }

    /// Copies from the device in the stream's order, and waits for it.
    ///
    /// # Safety
    /// The context is bound, `stream` is live, and there are as many bytes at `from` as `to` takes.
    pub unsafe fn receive(&self, to: &mut [u8], from: u64, stream: sys::CUstream) -> Result<(), DriverError> {
        let mut ring = self.ring(to.len());
        let size = ring.size;
        let mut under_way = VecDeque::new();
        for (piece, to) in to.chunks_mut(size).enumerate() {
            if under_way.len() == ring.count
                && let Some((slot, to)) = under_way.pop_front()
            {
                ring.land(slot, to)?;
            }
            let slot = ring.take()?;
            // SAFETY: no copy uses a slot that was taken, and what it held was copied out above.
            let pinned = unsafe { ring.bytes(slot, to.len()) };
            // SAFETY: the caller answers for stream and source; nobody looks at the buffer before its event.
            unsafe {
                result::memcpy_dtoh_async(pinned, from + (piece * size) as u64, stream)?;
                ring.follow(slot, stream)?;
            }
            under_way.push_back((slot, to));
        }
        under_way.into_iter().try_for_each(|(slot, to)| ring.land(slot, to))
    }
}

/// Pinned buffers of one size that are used in turn, each again only when the copy that used it last is done.
struct Ring {
    count: usize,
    size: usize,
    /// All buffers, one behind the other; null until they are first used.
    memory: *mut c_void,
    /// One a buffer, behind its last copy.
    events: Vec<sys::CUevent>,
    next: usize,
}

// SAFETY: pinned memory and events are handles that the driver lets any thread use, one at a time by `&mut`.
unsafe impl Send for Ring {}

impl Ring {
    fn new(count: usize, size: usize) -> Ring {
        Ring { count, size, memory: std::ptr::null_mut(), events: Vec::new(), next: 0 }
    }

    /// The next buffer's number, once its last copy is done.
    fn take(&mut self) -> Result<usize, DriverError> {
        while self.events.len() < self.count {
            self.events.push(event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)?);
        }
        if self.memory.is_null() {
            // SAFETY: any bytes are fine, as they are written before they are read.
            self.memory = unsafe { result::malloc_host(self.count * self.size, 0) }?;
        }
        let slot = self.next;
        self.next = (slot + 1) % self.count;
        // SAFETY: the event is live; one that was never recorded is done.
        unsafe { event::synchronize(self.events[slot]) }?;
        Ok(slot)
    }

    /// The first `len` bytes of a buffer that was taken.
    ///
    /// # Safety
    /// No copy uses the buffer, nor does another slice of it.
    unsafe fn bytes<'b>(&self, slot: usize, len: usize) -> &'b mut [u8] {
        assert!(slot < self.count && len <= self.size && !self.memory.is_null(), "a piece of one buffer");
        // SAFETY: inside the ring's memory, which lives as long as the ring and is used by nobody else.
        unsafe { slice::from_raw_parts_mut(self.memory.cast::<u8>().add(slot * self.size), len) }
    }

    /// Sets a buffer's event behind what the stream was given so far.
    ///
    /// # Safety
    /// The stream is live.
    unsafe fn follow(&self, slot: usize, stream: sys::CUstream) -> Result<(), DriverError> {
        // SAFETY: the event is live, and so is the stream.
        unsafe { event::record(self.events[slot], stream) }
    }

    /// Waits for the copy into a buffer and takes its bytes.
    fn land(&self, slot: usize, to: &mut [u8]) -> Result<(), DriverError> {
        // SAFETY: the event is live.
        unsafe { event::synchronize(self.events[slot]) }?;
        // SAFETY: the only copy that uses the buffer is done.
        copy(to, unsafe { self.bytes(slot, to.len()) });
        Ok(())
    }
}

impl Drop for Ring {
    /// The context is bound, and nothing runs any more: the owner sees to that.
    fn drop(&mut self) {
        for &event in &self.events {
            // SAFETY: made by this object and destroyed once.
            let _ = unsafe { event::destroy(event) };
        }
        if !self.memory.is_null() {
            // SAFETY: pinned by this object, and no copy is under way.
            let _ = unsafe { result::free_host(self.memory) };
        }
    }
}
