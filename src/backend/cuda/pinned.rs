//! Pinned host memory: the buffers that copies between ordinary host memory and the device go through. An asynchronous copy
//! reads or writes host memory after its call has returned, so that memory must be pinned and must not change until then.
//!
//! Upload: threads fill the next buffer of a ring -> an asynchronous copy takes it from there. Download: asynchronous copies
//! fill the buffers of a ring -> threads empty the oldest. The host copies while the device does, several buffers apart.

#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::ffi::c_void;
use std::slice;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use cudarc::driver::result::{self, DriverError, event};
use cudarc::driver::sys;
use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

/// Copies up to this size have a ring of their own, so that a few numbers need no large buffers.
const SMALL: usize = 64 << 10;
/// Buffers of the ring of small copies, and of large ones: enough for host and device to work on several.
const SMALL_BUFFERS: usize = 16;
const LARGE_BUFFERS: usize = 4;
/// Bytes of a large buffer: enough to hide the latency of starting a copy and the threads that fill it.
const LARGE: usize = 8 << 20;
/// Several threads copy from this many bytes on, and each takes so many at a time. One thread copies about 10 GB/s, a fifth
/// of what a PCIe 5 link carries.
const PARALLEL: usize = 1 << 20;
const SLICE: usize = 256 << 10;
/// Most threads that copy: enough for any link.
const COPY_THREADS: usize = 8;

/// Waits for a lock. Poison is ignored: what the mutexes of this room protect is whole between any two statements.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Threads that do nothing but copy. In a shared pool a thread that waits for its copies may take up another task, which waits
/// for the ring that this thread has locked: a deadlock.
fn copy_pool() -> Option<&'static ThreadPool> {
    static POOL: OnceLock<Option<ThreadPool>> = OnceLock::new();
    let cores = || std::thread::available_parallelism().map_or(1, |n| n.get());
    let start = || ThreadPoolBuilder::new().num_threads(cores().min(COPY_THREADS)).build().ok();
    POOL.get_or_init(start).as_ref()
}

/// Copies bytes: many by several threads, but not from a worker of a rayon pool, for the reason of [`copy_pool`].
fn copy(to: &mut [u8], from: &[u8]) {
    let alone = to.len() < PARALLEL || rayon::current_thread_index().is_some();
    let pool = if alone { None } else { copy_pool() };
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
    /// Pins nothing yet.
    pub fn new() -> Staging {
        Staging {
            small: Mutex::new(Ring::new(SMALL_BUFFERS, SMALL)),
            large: Mutex::new(Ring::new(LARGE_BUFFERS, LARGE)),
        }
    }

    fn ring(&self, bytes: usize) -> MutexGuard<'_, Ring> {
        lock(if bytes <= SMALL { &self.small } else { &self.large })
    }

    /// Starts copies to the device; `from` may change when this returns. `stream_lock` is held while a copy is put on the
    /// stream.
    ///
    /// # Safety
    /// The context is bound, `stream` is live, and `to` has room.
    pub unsafe fn send(
        &self,
        to: u64,
        from: &[u8],
        stream: sys::CUstream,
        stream_lock: &Mutex<()>,
    ) -> Result<(), DriverError> {
        let mut ring = self.ring(from.len());
        for (chunk, from) in from.chunks(ring.size).enumerate() {
            let slot = ring.take()?;
            let at = to + (chunk * ring.size) as u64;
            // SAFETY: `take` waited for the last copy of the slot, and the next one is below.
            let pinned = unsafe { ring.bytes(slot, from.len()) };
            copy(pinned, from);
            let _guard = lock(stream_lock);
            // SAFETY: the caller answers for stream and destination; the buffer stays as it is until the event.
            unsafe {
                result::memcpy_htod_async(at, pinned, stream)?;
                ring.record_event(slot, stream)?;
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
        let mut pending = VecDeque::new();
        for (chunk, to) in to.chunks_mut(size).enumerate() {
            if pending.len() == ring.count
                && let Some((slot, to)) = pending.pop_front()
            {
                ring.finish_download(slot, to)?;
            }
            let slot = ring.take()?;
            // SAFETY: `take` waited for the last copy of the slot, whose bytes were copied out above.
            let pinned = unsafe { ring.bytes(slot, to.len()) };
            // SAFETY: the caller answers for stream and source; the buffer is not read before its event.
            unsafe {
                result::memcpy_dtoh_async(pinned, from + (chunk * size) as u64, stream)?;
                ring.record_event(slot, stream)?;
            }
            pending.push_back((slot, to));
        }
        pending.into_iter().try_for_each(|(slot, to)| ring.finish_download(slot, to))
    }
}

/// Pinned buffers of one size, used in turn. A buffer is used again when the copy that used it last is done.
struct Ring {
    count: usize,
    size: usize,
    /// All buffers, one behind the other; null until the first use.
    memory: *mut c_void,
    /// For each buffer, an event behind its last copy.
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
        // SAFETY: the event is live. Waiting for one that was never recorded returns at once.
        unsafe { event::synchronize(self.events[slot]) }?;
        Ok(slot)
    }

    /// The first `len` bytes of a buffer that was taken.
    ///
    /// # Safety
    /// No copy uses the buffer, nor does another slice of it.
    unsafe fn bytes<'b>(&self, slot: usize, len: usize) -> &'b mut [u8] {
        assert!(slot < self.count && len <= self.size && !self.memory.is_null(), "bytes of one buffer");
        // SAFETY: inside the ring's memory, which lives as long as the ring and is used by nobody else.
        unsafe { slice::from_raw_parts_mut(self.memory.cast::<u8>().add(slot * self.size), len) }
    }

    /// Records a buffer's event behind what the stream was given so far.
    ///
    /// # Safety
    /// The stream is live.
    unsafe fn record_event(&self, slot: usize, stream: sys::CUstream) -> Result<(), DriverError> {
        // SAFETY: the event is live, and so is the stream.
        unsafe { event::record(self.events[slot], stream) }
    }

    /// Waits for the copy into a buffer, and copies it out.
    fn finish_download(&self, slot: usize, to: &mut [u8]) -> Result<(), DriverError> {
        // SAFETY: the event is live.
        unsafe { event::synchronize(self.events[slot]) }?;
        // SAFETY: the only copy that uses the buffer is done.
        copy(to, unsafe { self.bytes(slot, to.len()) });
        Ok(())
    }
}

impl Drop for Ring {
    /// The owner has bound the context and waited for all copies.
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
