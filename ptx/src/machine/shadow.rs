//! Who accessed a place last: records of shared and global memory that find races.
//!
//! A record covers 1, 2 or 4 bytes, the narrowest access of the kernel. It holds the last write, and the last reads of
//! two warps since. A conflict is reported unless [`Clocks`] puts the earlier access before the later one.

use std::sync::{Mutex, OnceLock};

use super::clocks::Clocks;

/// Kinds of accesses.
pub(crate) const PLAIN: u64 = 1;
pub(crate) const ATOMIC: u64 = 2;
pub(crate) const COPY: u64 = 3;

/// Who accesses: (kind, thread within the block, instruction, count).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Who {
    pub kind: u64,
    pub thread: u32,
    pub pc: u32,
    pub count: u32,
}

impl Who {
    fn pack(self) -> u64 {
        self.kind << 62 | u64::from(self.thread) << 52 | u64::from(self.pc) << 32 | u64::from(self.count)
    }
    fn unpack(bits: u64) -> Who {
        Who {
            kind: bits >> 62,
            thread: (bits >> 52) as u32 & 0x3ff,
            pc: (bits >> 32) as u32 & 0xf_ffff,
            count: bits as u32,
        }
    }
}

/// What stands against an access.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Conflict {
    /// The earlier access was a write.
    pub write: bool,
    pub block: u32,
    pub who: Who,
}

/// The record of a place. Reads are of a warp, with a mask of lanes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cell {
    write: u64,
    read: [u64; 2],
    lanes: [u32; 2],
    block: [u32; 3],
}

impl Cell {
    #[inline]
    fn ordered(&self, slot: usize, who: Who, clocks: &Clocks, block: u32, me: Who) -> bool {
        let from = self.block[slot];
        if from == block {
            clocks.before(who.thread, who.count, me.thread / 32, me.thread % 32)
        } else {
            clocks.foreign_before(from, who.thread, who.count)
        }
    }

    /// Records reads of several lanes of a warp, if they need no closer look. `me` is one of them.
    ///
    /// What other warps wrote is known to all lanes of a warp or to none, so that one check does for all.
    #[inline]
    pub fn read_together(&mut self, me: Who, mask: u32, block: u32, clocks: &Clocks) -> bool {
        const THREAD_AND_COUNT: u64 = 0x1f << 57 & !(3 << 62) | 0xffff_ffff;
        let writer = Who::unpack(self.write);
        let warp = me.thread / 32;
        if self.write != 0 {
            let own = writer.thread / 32 == warp && !clocks.known_to_warp(writer.thread, writer.count);
            if own || writer.kind != PLAIN || self.block[0] != block {
                return false;
            }
        }
        let key = Who { thread: me.thread & !31, ..me }.pack();
        if self.read[0] != 0 && (self.read[0] ^ key) & THREAD_AND_COUNT == 0 && self.block[1] == block {
            self.lanes[0] |= mask;
            return true;
        }
        if self.write != 0 && !clocks.before(writer.thread, writer.count, warp, me.thread % 32) {
            return false;
        }
        if self.read[0] != 0 && Who::unpack(self.read[0]).thread / 32 != warp {
            self.read[1] = self.read[0];
            self.lanes[1] = self.lanes[0];
            self.block[2] = self.block[1];
        }
        self.read[0] = key;
        self.lanes[0] = mask;
        self.block[1] = block;
        true
    }

    /// What stands against a read that is not recorded.
    #[inline]
    pub fn check_read(&self, me: Who, block: u32, clocks: &Clocks) -> Option<Conflict> {
        if self.write == 0 {
            return None;
        }
        let who = Who::unpack(self.write);
        let fine = match who.kind {
            COPY => false,
            ATOMIC if me.kind == ATOMIC => true,
            _ => self.ordered(0, who, clocks, block, me),
        };
        (!fine).then_some(Conflict { write: true, block: self.block[0], who })
    }

    /// Records a read.
    #[inline]
    pub fn read(&mut self, me: Who, block: u32, clocks: &Clocks) -> Option<Conflict> {
        if let Some(conflict) = self.check_read(me, block, clocks) {
            return Some(conflict);
        }
        let bit = 1u32 << (me.thread % 32);
        let warp = Who { thread: me.thread & !31, ..me };
        let last = Who::unpack(self.read[0]);
        if self.read[0] != 0 && last.thread == warp.thread && self.block[1] == block {
            if last.count == me.count {
                self.lanes[0] |= bit;
                return None;
            }
        } else {
            self.read[1] = self.read[0];
            self.lanes[1] = self.lanes[0];
            self.block[2] = self.block[1];
        }
        self.read[0] = warp.pack();
        self.lanes[0] = bit;
        self.block[1] = block;
        None
    }

    /// Records a write. `same` says that it writes what is there already, which lanes of one instruction may do.
    #[inline]
    pub fn write(&mut self, me: Who, block: u32, clocks: &Clocks, same: bool) -> Option<Conflict> {
        if self.write != 0 {
            let who = Who::unpack(self.write);
            let fine = match who.kind {
                COPY => false,
                ATOMIC if me.kind == ATOMIC => true,
                _ => {
                    self.ordered(0, who, clocks, block, me)
                        || same
                            && self.block[0] == block
                            && (who.thread / 32, who.pc, who.count) == (me.thread / 32, me.pc, me.count)
                }
            };
            if !fine {
                return Some(Conflict { write: true, block: self.block[0], who });
            }
        }
        for slot in 0..2 {
            if self.read[slot] == 0 {
                break;
            }
            let who = Who::unpack(self.read[slot]);
            let mut lanes = self.lanes[slot];
            while lanes != 0 {
                let lane = lanes.trailing_zeros();
                lanes &= lanes - 1;
                let who = Who { thread: who.thread | lane, ..who };
                let atomic = who.kind == ATOMIC && me.kind == ATOMIC;
                if !atomic && !self.ordered(slot + 1, who, clocks, block, me) {
                    return Some(Conflict { write: false, block: self.block[slot + 1], who });
                }
            }
        }
        *self = Cell { write: me.pack(), block: [block, 0, 0], ..Cell::default() };
        None
    }

    /// The write becomes one of another kind or count: a copy landed.
    pub fn settle(&mut self, me: Who, block: u32) {
        *self = Cell { write: me.pack(), block: [block, 0, 0], ..Cell::default() };
    }

    pub fn copying(&self) -> bool {
        self.write >> 62 == COPY
    }
}

/// Places of a page.
pub(crate) const PAGE: usize = 1024;

/// Records of a part of global memory.
#[derive(Debug)]
pub(crate) struct Page {
    pub cells: Vec<Cell>,
    /// A bit a place: read through the non-coherent path, written.
    pub constant: [u64; PAGE / 64],
    pub written: [u64; PAGE / 64],
    pub constant_pc: u32,
}

/// Records of all buffers for a launch.
#[derive(Debug)]
pub(crate) struct Shadow {
    pub grain: u32,
    buffers: Vec<Vec<OnceLock<Mutex<Page>>>>,
}

impl Shadow {
    pub fn new(sizes: impl Iterator<Item = u64>, grain: u32) -> Shadow {
        let pages = |bytes: u64| (bytes >> grain).div_ceil(PAGE as u64) + 1;
        let buffers = sizes.map(|b| (0..pages(b)).map(|_| OnceLock::new()).collect()).collect();
        Shadow { grain, buffers }
    }

    pub fn page(&self, buffer: usize, page: usize) -> &Mutex<Page> {
        self.buffers[buffer][page].get_or_init(|| {
            Mutex::new(Page {
                cells: vec![Cell::default(); PAGE],
                constant: [0; PAGE / 64],
                written: [0; PAGE / 64],
                constant_pc: 0,
            })
        })
    }
}
