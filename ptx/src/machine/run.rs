//! Turns: which warp of a cluster runs next, until all have ended or none can go on.

use super::block::Block;
use super::fault::{Fault, FaultKind, Trouble};
use super::launch::{Order, Shared};
use super::warp::Warp;
use crate::counters::PcCount;
use crate::exec::{Exec, Turn};

/// Why a cluster came to a halt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    Done,
    Budget,
    /// Some of its warps look for what other clusters do, all others wait. Whether that was so from the start.
    Poll(bool),
}

/// The barrier of a cluster, PTX ISA 9.7.13.4.
#[derive(Debug, Default)]
pub(crate) struct ClusterBar {
    pub arrived: u32,
    /// Threads that arrive and have not ended.
    pub alive: u32,
    pub generation: u32,
}

/// Blocks that run together.
#[derive(Debug)]
pub(crate) struct Cluster {
    blocks: Vec<Block>,
    /// All warps with the rank of their block.
    warps: Vec<(usize, Warp)>,
    bar: ClusterBar,
    state: u64,
    /// The warp that ran last.
    last: usize,
}

/// Instructions of a warp in a turn.
const TURN: u64 = 1 << 14;

impl Cluster {
    pub fn new(shared: &Shared, number: u32) -> Cluster {
        let [cx, cy, cz] = shared.cluster;
        let [nx, ny] = [shared.grid[0] / cx, shared.grid[1] / cy];
        let at = [number % nx * cx, number / nx % ny * cy, number / (nx * ny) * cz];
        let threads: u32 = shared.block.iter().product();
        let (mut blocks, mut warps) = (Vec::new(), Vec::new());
        for rank in 0..cx * cy * cz {
            let index = [at[0] + rank % cx, at[1] + rank / cx % cy, at[2] + rank / (cx * cy)];
            let number = index[0] + shared.grid[0] * (index[1] + shared.grid[1] * index[2]);
            blocks.push(Block::new(shared, number));
            for w in 0..threads.div_ceil(32) {
                warps.push((rank as usize, Warp::new(shared, w, number, rank)));
            }
        }
        let alive = threads * blocks.len() as u32;
        let bar = ClusterBar { arrived: 0, alive, generation: 0 };
        let seed = match shared.options.warps {
            Order::Random(seed) => seed,
            _ => 0,
        };
        let last = match shared.options.warps {
            Order::Backward => 0,
            _ => warps.len() - 1,
        };
        Cluster { blocks, warps, bar, state: crate::random::mix(seed ^ u64::from(number) << 32), last }
    }

    /// Runs until the end, or until so many instructions were executed.
    pub fn run(&mut self, shared: &Shared, counts: &mut [PcCount], budget: u64) -> Result<Stop, Box<Fault>> {
        let n = self.warps.len();
        let mut left = budget;
        // Warps that could not run since one last did, whether some of them poll, and whether none ever ran.
        let (mut idle, mut polls, mut still) = (0, false, true);
        loop {
            let (at, turn) = match shared.options.warps {
                Order::Any | Order::Forward => ((self.last + 1) % n, TURN),
                Order::Backward => ((self.last + n - 1) % n, TURN),
                Order::Random(_) if idle == 0 => {
                    let draw = crate::random::next(&mut self.state);
                    ((draw % n as u64) as usize, 1 + (draw >> 40) % 97)
                }
                Order::Random(_) => ((self.last + 1) % n, 64),
            };
            self.last = at;
            let (rank, warp) = &mut self.warps[at];
            let before = warp.steps;
            let mut exec = Exec {
                shared,
                counts,
                blocks: &mut self.blocks,
                rank: *rank,
                warp,
                cluster: &mut self.bar,
                pc: 0,
            };
            let turn = exec.run(turn);
            let pc = exec.pc;
            let steps = warp.steps - before;
            match turn {
                Ok(Turn::Done | Turn::Blocked) if steps == 0 => idle += 1,
                Ok(Turn::Poll) => (idle, polls) = (idle + 1, true),
                Ok(_) => (idle, polls, still) = (0, false, false),
                Err(t) => return Err(Box::new(shared.fault(self.blocks[*rank].number, warp.index, pc, *t))),
            }
            if idle > n {
                return match self.warps.iter().all(|(_, w)| w.alive == 0) {
                    true => {
                        if let Some(touched) = &shared.touched {
                            self.blocks.iter().for_each(|block| touched.shared(block.used()));
                        }
                        Ok(Stop::Done)
                    }
                    false if polls => Ok(Stop::Poll(still)),
                    false => Err(Box::new(self.deadlock(shared))),
                };
            }
            left = left.saturating_sub(steps);
            if left == 0 && self.warps.iter().any(|(_, w)| w.alive != 0) {
                return Ok(Stop::Budget);
            }
        }
    }

    /// That nobody in it can go on.
    pub fn deadlock(&self, shared: &Shared) -> Fault {
        let mut words = Vec::new();
        let mut first = None;
        for (rank, warp) in self.warps.iter().filter(|(_, w)| w.alive != 0) {
            let mut left = warp.alive;
            while left != 0 {
                let lane = left.trailing_zeros();
                let pc = warp.pc[lane as usize];
                let here = (0..32u32)
                    .filter(|l| left >> l & 1 != 0 && warp.pc[*l as usize] == pc)
                    .fold(0, |m, l| m | 1u32 << l);
                left &= !here;
                first.get_or_insert((self.blocks[*rank].number, warp.index, lane, pc));
                if words.len() < 6 {
                    let place = super::launch::place(shared.module, shared.kernel, pc);
                    words.push(format!("warp {} lanes {here:#010x} wait at {place}", warp.index));
                }
            }
        }
        let (block, warp, lane, pc) = first.unwrap_or_default();
        let message = format!("no thread can go on: {}", words.join("; "));
        let t = Trouble { kind: FaultKind::Deadlock, lane, message, other: None, pc: None };
        shared.fault(block, warp, pc, t)
    }
}
