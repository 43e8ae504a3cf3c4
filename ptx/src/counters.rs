//! What a launch would cost a device, by instruction, source line and in all.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::machine::{Launch, Place};
use crate::ops::{Bulk, Op};
use crate::pipes::Pipe;
use crate::program::{Kernel, Module};

/// Counts of one instruction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PcCount {
    pub issued: u64,
    pub lanes: u64,
    pub wavefronts: u64,
    pub ideal: u64,
    pub sectors: u64,
    pub bytes: u64,
    pub barriers: u64,
}

impl PcCount {
    pub fn add(&mut self, other: &PcCount) {
        self.issued += other.issued;
        self.lanes += other.lanes;
        self.wavefronts += other.wavefronts;
        self.ideal += other.ideal;
        self.sectors += other.sectors;
        self.bytes += other.bytes;
        self.barriers += other.barriers;
    }
}

/// Bytes of a sector, the least that global memory moves.
const SECTOR: u64 = 32;

/// A bit a sector of a buffer.
type Sectors = OnceLock<Box<[AtomicU64]>>;

/// What a launch touches: sectors of every buffer, and bytes of shared memory.
#[derive(Debug)]
pub(crate) struct Touched {
    /// Bytes of each buffer, and its sectors that were read and written.
    buffers: Vec<(u64, [Sectors; 2])>,
    /// Bytes of shared memory up to the last that a block wrote.
    shared: AtomicU64,
}

impl Touched {
    pub fn new(sizes: impl Iterator<Item = u64>) -> Touched {
        let buffers = sizes.map(|bytes| (bytes, Default::default())).collect();
        Touched { buffers, shared: AtomicU64::new(0) }
    }

    /// Notes an access to `n` bytes of a buffer at `at`.
    pub fn global(&self, buffer: usize, at: u64, n: u32, write: bool) {
        let (bytes, sectors) = &self.buffers[buffer];
        let words = || (0..bytes.div_ceil(64 * SECTOR)).map(|_| AtomicU64::new(0)).collect();
        let bits = sectors[usize::from(write)].get_or_init(words);
        for sector in at / SECTOR..=(at + u64::from(n) - 1) / SECTOR {
            let (word, bit) = (&bits[(sector / 64) as usize], 1 << (sector % 64));
            if word.load(Relaxed) & bit == 0 {
                word.fetch_or(bit, Relaxed);
            }
        }
    }

    /// Notes how far a block used its shared memory.
    pub fn shared(&self, bytes: u64) {
        self.shared.fetch_max(bytes, Relaxed);
    }

    /// Number of sectors that were read, or written.
    fn count(&self, write: bool) -> u64 {
        let bits = self.buffers.iter().filter_map(|(_, sectors)| sectors[usize::from(write)].get());
        bits.flat_map(|b| b.iter()).map(|word| u64::from(word.load(Relaxed).count_ones())).sum()
    }
}

/// Counts of a launch or a part of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Warp instructions by pipe, in the order of [`Pipe::ALL`].
    pub issued: [u64; 7],
    /// Active lanes of all warp instructions.
    pub lanes: u64,
    /// Passes over the banks of shared memory.
    pub shared_wavefronts: u64,
    /// The same, if no two lanes met in a bank.
    pub shared_ideal: u64,
    /// Sectors of 32 bytes that loads of global memory touch, warp by warp.
    pub read_sectors: u64,
    /// Bytes of these that are used.
    pub read_bytes: u64,
    /// The same of stores and atomic operations.
    pub write_sectors: u64,
    /// Bytes of these that are used.
    pub write_bytes: u64,
    /// Barriers that warps waited at.
    pub barriers: u64,
    /// Warp instructions that approximate functions ([`Pipe::Special`] counts conversions too).
    pub approximations: u64,
    /// Multiplications and additions on tensor cores: of BF16 and F16, and of TF32.
    pub products: [u64; 2],
    /// Those of `products` that are of `wgmma`; the others are of `mma.sync`.
    pub warpgroup_products: [u64; 2],
}

impl Counts {
    fn add(&mut self, op: &Op, c: &PcCount) {
        self.issued[op.pipe() as usize] += c.issued;
        self.approximations += if op.is_approximation() { c.issued } else { 0 };
        for (kind, products) in op.products().into_iter().enumerate() {
            self.products[kind] += products * c.issued;
            self.warpgroup_products[kind] += if matches!(op, Op::WgMma(_)) { products * c.issued } else { 0 };
        }
        self.lanes += c.lanes;
        self.shared_wavefronts += c.wavefronts;
        self.shared_ideal += c.ideal;
        self.barriers += c.barriers;
        let reads = matches!(op, Op::Ld(_) | Op::CpAsync { .. })
            || matches!(op, Op::Bulk(Bulk::GlobalToShared { .. } | Bulk::TensorLoad { .. }));
        if reads {
            self.read_sectors += c.sectors;
            self.read_bytes += c.bytes;
        } else {
            self.write_sectors += c.sectors;
            self.write_bytes += c.bytes;
        }
    }

    /// All warp instructions.
    pub fn instructions(&self) -> u64 {
        self.issued.iter().sum()
    }

    /// Share of lanes that took part in the instructions.
    pub fn active_share(&self) -> f64 {
        self.lanes as f64 / (32 * self.instructions()).max(1) as f64
    }

    /// Passes over shared memory beyond those that the amount of data needs.
    pub fn bank_conflicts(&self) -> u64 {
        self.shared_wavefronts - self.shared_ideal
    }
}

/// Counters of a launch.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// Of all blocks.
    pub total: Counts,
    /// By line of CUDA source (of PTX, where the module names none).
    pub lines: BTreeMap<(String, u32), Counts>,
    /// By instruction: its place, how often warps executed it, and its lanes.
    pub instructions: Vec<(Place, u64, u64)>,
    /// Warps of the launch.
    pub warps: u64,
    /// Sectors that loads read, each counted once.
    pub unique_read_sectors: u64,
    /// The same of stores and atomic operations.
    pub unique_write_sectors: u64,
    /// Bytes of shared memory up to the last that any block wrote.
    pub shared_used: u64,
}

impl Counters {
    pub(crate) fn new(
        module: &Module,
        kernel: &Kernel,
        counts: &[PcCount],
        launch: &Launch,
        touched: &Touched,
    ) -> Counters {
        let mut out = Counters {
            unique_read_sectors: touched.count(false),
            unique_write_sectors: touched.count(true),
            shared_used: touched.shared.load(Relaxed),
            ..Counters::default()
        };
        let threads: u64 = launch.block.iter().map(|n| u64::from(*n)).product();
        let blocks: u64 = launch.grid.iter().map(|n| u64::from(*n)).product();
        out.warps = blocks * threads.div_ceil(32);
        for (pc, c) in counts.iter().enumerate().filter(|(_, c)| c.issued > 0) {
            let op = &kernel.code[pc].op;
            let place = crate::machine::place(module, kernel, pc as u32);
            out.total.add(op, c);
            let line = place.source.clone().unwrap_or_else(|| ("PTX".to_string(), place.ptx_line));
            out.lines.entry(line).or_default().add(op, c);
            out.instructions.push((place, c.issued, c.lanes));
        }
        out
    }
}

/// What is of the launch as a whole, for the line below its counts.
impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "different sectors: {} read, {} written; {} bytes of shared memory in use",
            self.unique_read_sectors, self.unique_write_sectors, self.shared_used
        )
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} warp instructions (", self.instructions())?;
        let pipes = Pipe::ALL.iter().filter(|p| self.issued[**p as usize] > 0);
        let pipes: Vec<String> =
            pipes.map(|p| format!("{} {}", p.name(), self.issued[*p as usize])).collect();
        write!(f, "{}), {:.1} % of lanes active", pipes.join(", "), 100.0 * self.active_share())?;
        if self.shared_wavefronts > 0 {
            write!(
                f,
                "; shared memory: {} wavefronts, {} of them bank conflicts",
                self.shared_wavefronts,
                self.bank_conflicts()
            )?;
        }
        for (what, sectors, bytes) in
            [("read", self.read_sectors, self.read_bytes), ("written", self.write_sectors, self.write_bytes)]
        {
            if sectors > 0 {
                let share = 100.0 * bytes as f64 / (32 * sectors) as f64;
                write!(f, "; {what}: {sectors} sectors, {bytes} bytes ({share:.1} % of the sectors)")?;
            }
        }
        if self.barriers > 0 {
            write!(f, "; {} waits of warps at barriers", self.barriers)?;
        }
        Ok(())
    }
}
