//! Device memory: buffers of exact sizes at addresses of their own.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use super::fault::{FaultKind, Run, trouble};

/// Where buffers begin. A driver's addresses look alike.
const FIRST: u64 = 0x7f00_0000_0000;
/// Drivers align allocations to this.
const ALIGN: u64 = 512;
/// Unused addresses between buffers.
const GAP: u64 = 1 << 20;

/// A buffer in device memory.
#[derive(Debug)]
pub(crate) struct Buffer {
    pub base: u64,
    pub bytes: u64,
    words: Vec<AtomicU32>,
    /// A bit a byte: whether something was written.
    written: Vec<AtomicU32>,
    pub constant: bool,
}

impl Buffer {
    fn new(base: u64, bytes: u64, constant: bool) -> Buffer {
        let zeros = |n: u64| (0..n).map(|_| AtomicU32::new(0)).collect();
        Buffer { base, bytes, words: zeros(bytes.div_ceil(4)), written: zeros(bytes.div_ceil(32)), constant }
    }

    /// Whether `n` bytes at `at` were written. `n` is at most 32 and `at` a multiple of it.
    pub fn is_written(&self, at: u64, n: u32) -> bool {
        let mask = ((1u64 << n) - 1) as u32;
        self.written[(at / 32) as usize].load(Relaxed) >> (at % 32) & mask == mask
    }

    pub fn mark(&self, at: u64, n: u32) {
        let mask = (((1u64 << n) - 1) as u32) << (at % 32);
        let word = &self.written[(at / 32) as usize];
        if word.load(Relaxed) & mask != mask {
            word.fetch_or(mask, Relaxed);
        }
    }

    pub fn word(&self, at: u64) -> &AtomicU32 {
        &self.words[(at / 4) as usize]
    }

    /// The value of `n` (1, 2, 4 or 8) bytes at a multiple of `n`.
    pub fn load(&self, at: u64, n: u32) -> u64 {
        let low = self.word(at).load(Relaxed);
        match n {
            4 => u64::from(low),
            8 => u64::from(low) | u64::from(self.word(at + 4).load(Relaxed)) << 32,
            2 => u64::from(low >> (at % 4 * 8) & 0xffff),
            _ => u64::from(low >> (at % 4 * 8) & 0xff),
        }
    }

    /// Stores the low `n` bytes at a multiple of `n`.
    pub fn store(&self, at: u64, n: u32, value: u64) {
        match n {
            4 => self.word(at).store(value as u32, Relaxed),
            8 => {
                self.word(at).store(value as u32, Relaxed);
                self.word(at + 4).store((value >> 32) as u32, Relaxed);
            }
            _ => {
                let shift = at % 4 * 8;
                let mask = ((1u32 << (8 * n)) - 1) << shift;
                let new = (value as u32) << shift & mask;
                let _ = self.word(at).fetch_update(Relaxed, Relaxed, |old| Some(old & !mask | new));
            }
        }
    }
}

/// Memory of a device.
#[derive(Debug, Default)]
pub struct Memory {
    pub(crate) buffers: Vec<Buffer>,
    freed: Vec<(u64, u64)>,
    next: u64,
}

impl Memory {
    /// No buffers yet.
    pub fn new() -> Memory {
        Memory::starting_at(FIRST)
    }

    /// No buffers yet; their addresses begin at `first`, a multiple of 512 below 2^46, so that several devices have
    /// addresses of their own.
    pub fn starting_at(first: u64) -> Memory {
        assert!(first.is_multiple_of(ALIGN) && first != 0, "an address that a buffer may have");
        Memory { buffers: Vec::new(), freed: Vec::new(), next: first }
    }

    /// A new buffer of so many bytes, which count as unwritten. Its address.
    pub fn alloc(&mut self, bytes: u64) -> u64 {
        self.make(bytes, false)
    }

    pub(crate) fn make(&mut self, bytes: u64, constant: bool) -> u64 {
        let base = self.next;
        self.next = (base + bytes + GAP).next_multiple_of(ALIGN);
        self.buffers.push(Buffer::new(base, bytes, constant));
        base
    }

    /// A new buffer with these bytes.
    pub fn alloc_with(&mut self, bytes: &[u8]) -> u64 {
        let base = self.alloc(bytes.len() as u64);
        self.write(base, bytes);
        base
    }

    /// Frees a buffer: later accesses are out of bounds.
    ///
    /// # Panics
    ///
    /// If no buffer begins at the address.
    pub fn free(&mut self, address: u64) {
        let at = self.buffers.iter().position(|b| b.base == address).expect("a buffer of this device");
        let buffer = self.buffers.remove(at);
        self.freed.push((buffer.base, buffer.bytes));
    }

    /// Whether `bytes` bytes at an address lie within one buffer.
    pub fn holds(&self, address: u64, bytes: u64) -> bool {
        self.index(address).is_some_and(|i| {
            let b = &self.buffers[i];
            bytes <= b.bytes - (address - b.base)
        })
    }

    /// Bytes of the buffer that begins at an address.
    pub fn size(&self, address: u64) -> Option<u64> {
        let b = &self.buffers[self.index(address)?];
        (b.base == address).then_some(b.bytes)
    }

    /// Index of the buffer that holds an address.
    pub(crate) fn index(&self, address: u64) -> Option<usize> {
        let at = self.buffers.partition_point(|b| b.base <= address).checked_sub(1)?;
        let b = &self.buffers[at];
        (address - b.base < b.bytes).then_some(at)
    }

    /// The buffer for an access, and the offset in it.
    pub(crate) fn find(&self, address: u64, n: u32, lane: u32, hint: &mut usize) -> Run<(usize, u64)> {
        if let Some(b) = self.buffers.get(*hint) {
            let at = address.wrapping_sub(b.base);
            if at < b.bytes && at + u64::from(n) <= b.bytes {
                return Ok((*hint, at));
            }
        }
        if let Some(i) = self.index(address) {
            let b = &self.buffers[i];
            let at = address - b.base;
            if at + u64::from(n) <= b.bytes {
                *hint = i;
                return Ok((i, at));
            }
        }
        trouble(FaultKind::OutOfBounds, lane, self.describe(address, n))
    }

    fn describe(&self, address: u64, n: u32) -> String {
        if let Some((base, bytes)) =
            self.freed.iter().find(|(base, bytes)| address.wrapping_sub(*base) < *bytes)
        {
            return format!("{n} bytes at {address:#x}, within a freed buffer ({bytes} bytes at {base:#x})");
        }
        let below = self.buffers.iter().rev().find(|b| b.base <= address);
        match below {
            Some(b) if address - b.base < b.bytes + GAP / 2 => format!(
                "{n} bytes at {address:#x}: byte {} of a buffer of {} bytes at {:#x}",
                address - b.base,
                b.bytes,
                b.base
            ),
            _ => match self.buffers.iter().find(|b| b.base > address) {
                Some(b) if b.base - address < GAP / 2 => format!(
                    "{n} bytes at {address:#x}: {} bytes before a buffer of {} bytes at {:#x}",
                    b.base - address,
                    b.bytes,
                    b.base
                ),
                _ => format!("{n} bytes at {address:#x}: no buffer is near"),
            },
        }
    }

    fn whole(&self, address: u64, bytes: usize) -> (&Buffer, u64) {
        let i = self.index(address).expect("an address within a buffer of this device");
        let b = &self.buffers[i];
        let at = address - b.base;
        assert!(at + bytes as u64 <= b.bytes, "the bytes lie within one buffer");
        (b, at)
    }

    /// Writes bytes from the host.
    ///
    /// # Panics
    ///
    /// If they do not lie within a buffer.
    pub fn write(&self, address: u64, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let (b, at) = self.whole(address, bytes.len());
        let head = (bytes.len() as u64).min(at.next_multiple_of(32) - at) as usize;
        let (head, rest) = bytes.split_at(head);
        let byte = |to: u64, value: u8| {
            b.store(to, 1, u64::from(value));
            b.mark(to, 1);
        };
        head.iter().zip(at..).for_each(|(value, to)| byte(to, *value));
        let mut to = at + head.len() as u64;
        // Pieces of 32 bytes: a word of the records.
        for piece in rest.chunks(32) {
            if piece.len() == 32 {
                for (i, word) in piece.as_chunks::<4>().0.iter().enumerate() {
                    b.words[(to / 4) as usize + i].store(u32::from_le_bytes(*word), Relaxed);
                }
                b.written[(to / 32) as usize].store(u32::MAX, Relaxed);
            } else {
                piece.iter().zip(to..).for_each(|(value, to)| byte(to, *value));
            }
            to += piece.len() as u64;
        }
    }

    /// Reads bytes for the host; unwritten ones are 0.
    ///
    /// # Panics
    ///
    /// If they do not lie within a buffer.
    pub fn read(&self, address: u64, bytes: usize) -> Vec<u8> {
        if bytes == 0 {
            return Vec::new();
        }
        let (b, at) = self.whole(address, bytes);
        let mut out = Vec::with_capacity(bytes + 8);
        let end = at + bytes as u64;
        let mut from = at / 4 * 4;
        while from < end {
            out.extend(b.word(from).load(Relaxed).to_le_bytes());
            from += 4;
        }
        out.drain(..(at % 4) as usize);
        out.truncate(bytes);
        out
    }

    /// Number of bytes of a range that nothing wrote.
    ///
    /// # Panics
    ///
    /// If they do not lie within a buffer.
    pub fn unwritten(&self, address: u64, bytes: usize) -> usize {
        if bytes == 0 {
            return 0;
        }
        let (b, at) = self.whole(address, bytes);
        (0..bytes as u64).filter(|i| !b.is_written(at + i, 1)).count()
    }
}
