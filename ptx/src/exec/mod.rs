//! Executes instructions: a warp at a time, decoded once for all of its lanes.

mod alu;
mod atomics;
mod bits;
mod bulk;
mod collective;
mod compare;
mod convert;
mod copies;
mod floats;
mod fma;
mod halves;
mod hopper;
mod memory;
mod spaces;
mod tensor;
mod tiles;
mod wgmma;

pub(crate) mod soft;

use crate::counters::PcCount;
use crate::machine::block::Block;
use crate::machine::fault::{FaultKind, Run, trouble};
use crate::machine::launch::Shared;
use crate::machine::run::ClusterBar;
use crate::machine::warp::Warp;
use crate::ops::{BoolOp, Op};
use crate::program::{Instr, NO_GUARD, SINK};

/// How a warp's turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Its instructions are used up.
    Budget,
    /// All of its lanes wait.
    Blocked,
    /// It looks at a place for a second time and finds what it found: somebody else has to go on.
    Poll,
    /// All of its lanes have ended.
    Done,
}

/// What an instruction does to the flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    /// All lanes go on behind it.
    Next,
    /// Lanes were sent to places of their own.
    Regroup,
    /// The same, and others should run first.
    Yield,
    /// The same, and it goes on only when others have.
    Poll,
}

/// A warp at work.
pub(crate) struct Exec<'e, 'a> {
    pub shared: &'e Shared<'a>,
    pub counts: &'e mut [PcCount],
    pub blocks: &'e mut [Block],
    pub rank: usize,
    pub warp: &'e mut Warp,
    pub cluster: &'e mut ClusterBar,
    /// The current instruction.
    pub pc: u32,
}

/// The lanes of a mask.
#[inline]
pub(crate) fn lanes(mut mask: u32) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        if mask == 0 {
            return None;
        }
        let lane = mask.trailing_zeros();
        mask &= mask - 1;
        Some(lane)
    })
}

impl Exec<'_, '_> {
    /// Runs the warp for at most so many instructions.
    pub fn run(&mut self, budget: u64) -> Run<Turn> {
        let kernel = self.shared.kernel;
        let mut left = budget;
        // A group that used up a turn lets the others run once, so that nobody spins for a lane of its own warp.
        let mut fair = self.warp.steps % (8 * budget.max(1)) >= 7 * budget && self.warp.steps > 1 << 16;
        loop {
            self.wake();
            if self.warp.ready == 0 {
                return Ok(if self.warp.alive == 0 { Turn::Done } else { Turn::Blocked });
            }
            let (mut pc, mut next) = (u32::MAX, u32::MAX);
            let mut mask = 0u32;
            for lane in lanes(self.warp.ready) {
                let at = self.warp.pc[lane as usize];
                if at == pc {
                    mask |= 1 << lane;
                } else if (at < pc) != fair || pc == u32::MAX {
                    next = if pc == u32::MAX { next } else { next.min(pc) };
                    (pc, mask) = (at, 1 << lane);
                } else {
                    next = next.min(at);
                }
            }
            let limit = self.shared.options.step_limit;
            if self.warp.steps > limit {
                self.pc = pc;
                return trouble(
                    FaultKind::StepLimit,
                    mask.trailing_zeros(),
                    format!("a warp executed {limit} instructions"),
                );
            }
            if fair {
                next = u32::MAX;
                left = left.min(1 << 12);
                fair = false;
            }
            loop {
                self.pc = pc;
                if left == 0 {
                    self.go(mask, pc);
                    return Ok(Turn::Budget);
                }
                left -= 1;
                self.warp.steps += 1;
                let i = &kernel.code[pc as usize];
                let e = if i.guard == NO_GUARD { mask } else { mask & self.pred(i.guard) };
                let count = &mut self.counts[pc as usize];
                count.issued += 1;
                count.lanes += u64::from(e.count_ones());
                if i.suspect {
                    self.suspects(i, mask, e)?;
                }
                if !self.warp.products.is_empty() {
                    self.check_products(i, e)?;
                }
                if let Op::Bra = i.op {
                    if e == mask {
                        pc = i.imm as u32;
                    } else if e == 0 {
                        pc += 1;
                    } else {
                        self.go(e, i.imm as u32);
                        self.go(mask & !e, pc + 1);
                        break;
                    }
                    // Lanes that go back come first by their place; the others wait for them.
                    if pc >= next {
                        self.go(mask, pc);
                        break;
                    }
                    continue;
                }
                let flow = if e == 0 { Flow::Next } else { self.step(i, e, mask)? };
                if flow != Flow::Next {
                    if flow == Flow::Yield {
                        return Ok(Turn::Budget);
                    }
                    if flow == Flow::Poll {
                        return Ok(Turn::Poll);
                    }
                    break;
                }
                pc += 1;
                if pc >= next {
                    self.go(mask, pc);
                    break;
                }
            }
        }
    }

    /// Sends lanes to an instruction.
    pub(crate) fn go(&mut self, mask: u32, pc: u32) {
        for lane in lanes(mask) {
            self.warp.pc[lane as usize] = pc;
        }
    }

    /// Checks registers that may be unwritten, and notes writes.
    fn suspects(&mut self, i: &Instr, mask: u32, e: u32) -> Run<()> {
        let kernel = self.shared.kernel;
        let Some((reads, writes)) = kernel.suspect_uses.get(&self.pc) else { return Ok(()) };
        // A product of a warpgroup whose scale of D is false reads no sums.
        let anew = matches!(i.op, Op::WgMma(_)) && self.pred(self.src(i, 0)) & e == 0;
        let is_sum = |slot: u32| (0..usize::from(i.dsts)).any(|n| self.dst(i, n) as u32 == slot);
        for r in reads {
            // A guard is read by all lanes, operands by those that the guard lets through.
            let (class, slot, name) = &kernel.suspects[*r as usize];
            let guard = *class == 2 && i.guard != NO_GUARD && i.guard as u32 / 2 == *slot;
            let missing = (if guard { mask } else { e }) & !self.warp.written[*r as usize];
            if missing != 0 && !(anew && *class == 0 && is_sum(*slot)) {
                return trouble(
                    FaultKind::UninitialisedRegister,
                    missing.trailing_zeros(),
                    format!("{name} is read, nothing wrote it"),
                );
            }
        }
        for w in writes {
            self.warp.written[*w as usize] |= e;
        }
        Ok(())
    }

    // Operands.

    #[inline]
    pub(crate) fn a32(&self, o: i32) -> &[u32; 32] {
        if o >= 0 { &self.warp.r32[o as usize] } else { &self.shared.consts32[!o as usize] }
    }

    #[inline]
    pub(crate) fn a64(&self, o: i32) -> &[u64; 32] {
        if o >= 0 { &self.warp.r64[o as usize] } else { &self.shared.consts64[!o as usize] }
    }

    /// Lanes for which a predicate holds.
    #[inline]
    pub(crate) fn pred(&self, o: i32) -> u32 {
        let value = self.warp.preds[(o >> 1) as usize];
        if o & 1 != 0 { !value } else { value }
    }

    #[inline]
    pub(crate) fn set32(&mut self, d: i32, e: u32, v: &[u32; 32]) {
        if d == SINK {
            return;
        }
        let r = &mut self.warp.r32[d as usize];
        if e == u32::MAX {
            *r = *v;
        } else {
            for l in 0..32 {
                r[l] = if e >> l & 1 != 0 { v[l] } else { r[l] };
            }
        }
    }

    #[inline]
    pub(crate) fn set64(&mut self, d: i32, e: u32, v: &[u64; 32]) {
        if d == SINK {
            return;
        }
        let r = &mut self.warp.r64[d as usize];
        if e == u32::MAX {
            *r = *v;
        } else {
            for l in 0..32 {
                r[l] = if e >> l & 1 != 0 { v[l] } else { r[l] };
            }
        }
    }

    #[inline]
    pub(crate) fn set_pred(&mut self, d: i32, e: u32, v: u32) {
        if d != SINK {
            let r = &mut self.warp.preds[d as usize];
            *r = *r & !e | v & e;
        }
    }

    /// A destination or source by its number.
    pub(crate) fn dst(&self, i: &Instr, n: usize) -> i32 {
        self.shared.kernel.pool[i.pool as usize + n]
    }

    pub(crate) fn src(&self, i: &Instr, n: usize) -> i32 {
        self.shared.kernel.pool[i.pool as usize + usize::from(i.dsts) + n]
    }

    /// Values of source `n`, of either width.
    pub(crate) fn wide(&self, i: &Instr, n: usize) -> [u64; 32] {
        let o = self.src(i, n);
        if i.narrow >> n & 1 != 0 { self.a32(o).map(u64::from) } else { *self.a64(o) }
    }

    /// Addresses of the memory operand, whose base is source `n`.
    pub(crate) fn addresses(&self, i: &Instr, n: usize) -> [u64; 32] {
        let base = self.wide(i, n);
        base.map(|b| b.wrapping_add_signed(i.imm))
    }

    pub(crate) fn block(&mut self) -> &mut Block {
        &mut self.blocks[self.rank]
    }

    fn step(&mut self, i: &Instr, e: u32, mask: u32) -> Run<Flow> {
        match i.op {
            Op::Bra | Op::Nop | Op::Prefetch | Op::Nanosleep => {}
            Op::Brx(table) => {
                let index = *self.a32(i.s[0]);
                let table = &self.shared.kernel.tables[table as usize];
                for lane in lanes(e) {
                    let Some(target) = table.get(index[lane as usize] as usize) else {
                        return trouble(
                            FaultKind::InvalidOperand,
                            lane,
                            format!("target {} of a list of {}", index[lane as usize], table.len()),
                        );
                    };
                    self.warp.pc[lane as usize] = *target;
                }
                self.go(mask & !e, self.pc + 1);
                return Ok(Flow::Regroup);
            }
            Op::Exit => return self.exit(e, mask),
            Op::Trap => return trouble(FaultKind::Trap, e.trailing_zeros(), "trap"),
            Op::MovPred => {
                let v = self.pred(i.s[0]);
                self.set_pred(i.d[0], e, v);
            }
            Op::Pred(f) => {
                let (a, b) = (self.pred(i.s[0]), self.pred(i.s[1]));
                let v = match f {
                    BoolOp::And => a & b,
                    BoolOp::Or => a | b,
                    BoolOp::Xor => a ^ b,
                };
                self.set_pred(i.d[0], e, v);
            }
            Op::PredNot => {
                let v = !self.pred(i.s[0]);
                self.set_pred(i.d[0], e, v);
            }
            Op::F32 { .. }
            | Op::F64 { .. }
            | Op::Fma32 { .. }
            | Op::Fma64 { .. }
            | Op::MinMax32 { .. }
            | Op::MinMax64 { .. }
            | Op::Neg32 { .. }
            | Op::Abs32 { .. }
            | Op::Neg64
            | Op::Abs64
            | Op::Rcp32 { .. }
            | Op::Sqrt32 { .. }
            | Op::Rcp64 { .. }
            | Op::Sqrt64 { .. }
            | Op::Approx { .. }
            | Op::DivApprox { .. }
            | Op::Approx64 { .. }
            | Op::Testp { .. }
            | Op::Copysign { .. } => self.float(i, e),
            Op::Half { .. } => self.half(i, e),
            Op::Cvt(c) => self.cvt(i, e, c),
            Op::CvtPair { to, round, relu } => self.cvt_pair(i, e, to, round, relu),
            Op::Ld(a) => {
                if self.load(i, e, a)? {
                    self.go(mask, self.pc + 1);
                    return Ok(Flow::Poll);
                }
            }
            Op::St(a) => self.store(i, e, a)?,
            Op::Atom { .. } => self.atom(i, e)?,
            Op::Cvta { .. } | Op::IsSpace(_) | Op::Mapa { .. } | Op::CtaRank { .. } => self.address(i, e)?,
            Op::CpAsync { .. } => self.cp_async(i, e)?,
            Op::CpCommit => {
                for lane in lanes(e) {
                    self.warp.committed[lane as usize] += 1;
                }
            }
            Op::CpWait(n) => self.cp_wait(e, Some(n))?,
            Op::CpWaitAll => self.cp_wait(e, None)?,
            Op::Fence { scope } => self.fence(e, scope),
            Op::FenceProxy => self.fence_proxy(e),
            Op::FenceMbarrier => self.fence_mbarriers(e),
            Op::CreatePolicy => self.set64(i.d[0], e, &[0; 32]),
            Op::ActiveMask => self.set32(i.d[0], e, &[e; 32]),
            Op::Clock(kind) => {
                let now = self.warp.steps * 8;
                match kind {
                    0 => self.set32(i.d[0], e, &[now as u32; 32]),
                    1 => self.set32(i.d[0], e, &[(now >> 32) as u32; 32]),
                    _ => self.set64(i.d[0], e, &[now; 32]),
                }
            }
            Op::Shfl { .. }
            | Op::VoteSync(_)
            | Op::MatchAny { .. }
            | Op::MatchAll { .. }
            | Op::ReduxSync(_)
            | Op::Elect
            | Op::BarWarp
            | Op::Ldmatrix { .. }
            | Op::Stmatrix { .. }
            | Op::Movmatrix
            | Op::Mma(_)
            | Op::SetMaxNReg { .. }
            | Op::WgFence
            | Op::WgCommit
            | Op::WgWait(_)
            | Op::WgMma(_) => return self.collective(i, e, mask),
            Op::Bar { .. } => return self.barrier(i, e, mask),
            Op::ClusterArrive { .. } | Op::ClusterWait => return self.cluster_barrier(i, e, mask),
            Op::Mbar(m) => return self.mbarrier(i, e, mask, m),
            Op::Bulk(b) => self.bulk(i, e, b)?,
            Op::BulkCommit => {
                for lane in lanes(e) {
                    self.warp.bulk_groups[lane as usize] += 1;
                }
            }
            Op::BulkWait { count, .. } => self.wait_bulk(e, count),
            Op::GridDep { wait } => {
                if wait {
                    self.warp.waited |= e;
                }
            }
            _ => self.integer(i, e),
        }
        Ok(Flow::Next)
    }

    fn exit(&mut self, e: u32, mask: u32) -> Run<Flow> {
        let waiting = self.warp.gathering;
        for lane in lanes(waiting) {
            let member = self.warp.members[lane as usize];
            if member & e != 0 {
                self.pc = self.warp.pc[lane as usize];
                return trouble(
                    FaultKind::InvalidMask,
                    lane,
                    format!(
                        "lane {} is named by the mask {member:#010x} and has ended",
                        (member & e).trailing_zeros()
                    ),
                );
            }
        }
        if let Some(p) = self.warp.pending.iter().find(|p| e >> p.lane & 1 != 0) {
            // Nobody can wait for this copy any more.
            let lane = p.lane;
            self.land(lane, u32::MAX)?;
        }
        self.check_bulk(e)?;
        self.warp.alive &= !e;
        self.warp.ready &= !e;
        self.go(mask & !e, self.pc + 1);
        let ended = e.count_ones();
        self.block().alive -= ended;
        self.cluster.alive -= ended;
        for id in 0..16 {
            self.complete(id)?;
        }
        self.complete_cluster();
        Ok(Flow::Regroup)
    }
}
