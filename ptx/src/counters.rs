//! What a launch would cost a device, by instruction, source line and in all.

use std::collections::BTreeMap;
use std::fmt;

use crate::machine::{Launch, Place};
use crate::ops::Op;
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
}

impl Counts {
    fn add(&mut self, op: &Op, c: &PcCount) {
        self.issued[op.pipe() as usize] += c.issued;
        self.lanes += c.lanes;
        self.shared_wavefronts += c.wavefronts;
        self.shared_ideal += c.ideal;
        self.barriers += c.barriers;
        let reads = matches!(op, Op::Ld(_) | Op::CpAsync { .. })
            || matches!(op, Op::Bulk(crate::ops::Bulk::GlobalToShared { .. }));
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
}

impl Counters {
    pub(crate) fn new(module: &Module, kernel: &Kernel, counts: &[PcCount], launch: &Launch) -> Counters {
        let mut out = Counters::default();
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
