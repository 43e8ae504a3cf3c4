//! A block: its shared memory, barriers and mbarriers.

use std::collections::{BTreeMap, HashMap};

use super::SHARED_BASE;
use super::clocks::{Clocks, Knowledge};
use super::fault::{FaultKind, Run, trouble};
use super::launch::Shared;
use super::shadow::{Cell, Who};

/// One of the sixteen barriers of a block, PTX ISA 9.7.13.1.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bar {
    /// Threads that it waits for; 0 if all of the block.
    pub expected: u32,
    /// Arrived lanes of each warp, and whether they wait.
    pub arrived: BTreeMap<u32, (u32, bool)>,
    pub count: u32,
    pub generation: u32,
    /// Of `bar.red`: number of true predicates so far, and of the last generation.
    pub votes: u32,
    pub result: (u32, u32),
}

/// An mbarrier object, PTX ISA 9.7.13.15.
#[derive(Clone, Debug, Default)]
pub(crate) struct Mbarrier {
    pub expected: u32,
    pub pending: u32,
    pub tx: i64,
    pub phase: u64,
    /// What arrivals of the current phase released, and of the last complete one.
    pub open: Knowledge,
    pub closed: Knowledge,
    /// The same of threads of other blocks of the cluster, by the number of their block.
    pub open_from: BTreeMap<u32, Knowledge>,
    pub closed_from: BTreeMap<u32, Knowledge>,
    /// Who initialised it, until a fence makes that known to the asynchronous proxy.
    pub unfenced: Option<Who>,
}

impl Mbarrier {
    /// Ends the phase, if nothing is pending.
    pub fn advance(&mut self) {
        if self.pending == 0 && self.tx == 0 {
            self.phase += 1;
            self.pending = self.expected;
            self.closed = self.open.clone();
            self.closed_from = self.open_from.clone();
        }
    }

    /// Adds to the bytes that the phase waits for; a device counts them in 20 bits and a sign.
    pub fn expect(&mut self, bytes: i64, lane: u32) -> Run<()> {
        self.tx += bytes;
        match self.tx.abs() < 1 << 20 {
            true => Ok(()),
            false => trouble(
                FaultKind::InvalidOperand,
                lane,
                format!("an mbarrier that waits for {} bytes: it counts to 1,048,575", self.tx),
            ),
        }
    }

    /// Adds what a thread knew that arrived or copied; `from` is the number of its block, if it is another.
    pub fn join(&mut self, from: Option<u32>, known: &Knowledge) {
        match from {
            None => self.open.join(known),
            Some(block) => self.open_from.entry(block).or_default().join(known),
        }
    }
}

/// What a product of a warpgroup reads until its warp waits for it, or a bulk copy until its thread does.
#[derive(Clone, Debug)]
pub(crate) struct Reading {
    pub warp: u32,
    /// The thread of a bulk copy.
    pub lane: Option<u32>,
    /// The group that it was committed in.
    pub group: u32,
    pub pc: u32,
    pub pieces: Pieces,
}

/// Pieces of 16 bytes of shared memory, a bit each.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pieces(Vec<u64>);

impl Pieces {
    /// Adds a piece by its number; false if it was there.
    pub fn insert(&mut self, piece: u64) -> bool {
        let (word, bit) = ((piece / 64) as usize, 1 << (piece % 64));
        if word >= self.0.len() {
            self.0.resize(word + 1, 0);
        }
        let new = self.0[word] & bit == 0;
        self.0[word] |= bit;
        new
    }

    pub fn contains(&self, piece: u64) -> bool {
        self.0.get((piece / 64) as usize).is_some_and(|word| word >> (piece % 64) & 1 != 0)
    }
}

#[derive(Debug)]
pub(crate) struct Block {
    /// Number within the grid.
    pub number: u32,
    pub shared: Vec<u8>,
    /// A bit a byte.
    pub written: Vec<u64>,
    pub cells: Vec<Cell>,
    pub grain: u32,
    pub clocks: Clocks,
    pub bars: Vec<Bar>,
    pub mbarriers: HashMap<u64, Mbarrier>,
    /// Threads that have not ended.
    pub alive: u32,
    /// Shared memory, in pieces of 16 bytes, that no proxy fence followed yet.
    pub generic_writes: HashMap<u64, Who>,
    /// Products and bulk copies under way.
    pub readings: Vec<Reading>,
}

impl Block {
    pub fn new(shared: &Shared, number: u32) -> Block {
        let bytes = shared.shared_bytes as usize;
        let threads: u32 = shared.block.iter().product();
        let grain = shared.kernel.shared_grain;
        Block {
            number,
            shared: vec![0; bytes],
            written: vec![0; bytes.div_ceil(64)],
            cells: if shared.options.races {
                vec![Cell::default(); (bytes >> grain) + 1]
            } else {
                Vec::new()
            },
            grain,
            clocks: Clocks::new(threads.div_ceil(32) as usize),
            bars: vec![Bar::default(); 16],
            mbarriers: HashMap::new(),
            alive: threads,
            generic_writes: HashMap::new(),
            readings: Vec::new(),
        }
    }

    pub fn is_written(&self, at: u64, n: u32) -> bool {
        let (word, shift) = ((at / 64) as usize, at % 64);
        let mask = (1u64 << n) - 1;
        self.written[word] >> shift & mask == mask
    }

    pub fn mark(&mut self, at: u64, n: u32) {
        let (word, shift) = ((at / 64) as usize, at % 64);
        self.written[word] |= ((1u64 << n) - 1) << shift;
    }

    /// Bytes up to the last that was written.
    pub fn used(&self) -> u64 {
        let written = self.written.iter().enumerate().rev().find(|(_, word)| **word != 0);
        let bytes = written.map_or(0, |(at, word)| 64 * (at as u64 + 1) - u64::from(word.leading_zeros()));
        self.mbarriers.keys().map(|at| at + 8).fold(bytes, u64::max)
    }

    /// Offset of an address in the window of a block's shared memory.
    pub fn offset(&self, address: u64, n: u32) -> Option<u64> {
        let at = address.wrapping_sub(SHARED_BASE);
        (at < self.shared.len() as u64 && at + u64::from(n) <= self.shared.len() as u64).then_some(at)
    }

    pub fn load(&self, at: u64, n: u32) -> u64 {
        let mut bytes = [0; 8];
        bytes[..n as usize].copy_from_slice(&self.shared[at as usize..at as usize + n as usize]);
        u64::from_le_bytes(bytes)
    }

    pub fn store(&mut self, at: u64, n: u32, value: u64) {
        self.shared[at as usize..at as usize + n as usize]
            .copy_from_slice(&value.to_le_bytes()[..n as usize]);
    }
}
