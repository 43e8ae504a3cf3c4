//! Instructions of several lanes at once, and barriers: PTX ISA 9.7.9.6, 9.7.13.1 to 9.7.13.3, 9.7.13.8 to 9.7.13.14.

use super::{Exec, Flow, lanes};
use crate::machine::fault::{FaultKind, Run, trouble};
use crate::machine::warp::Parked;
use crate::ops::{Barrier, Op, Redux, Shuffle, Vote};
use crate::program::Instr;

/// Barrier numbers of a block are below; this stands for the barrier of a cluster.
const CLUSTER: u8 = 16;

impl Exec<'_, '_> {
    /// The lanes that each lane wants to meet.
    fn members(&self, i: &Instr) -> [u32; 32] {
        match i.op {
            Op::Shfl { .. } => *self.a32(self.src(i, 3)),
            Op::VoteSync(_) | Op::MatchAny { .. } | Op::MatchAll { .. } | Op::ReduxSync(_) => {
                *self.a32(i.s[1])
            }
            Op::Elect | Op::BarWarp => *self.a32(i.s[0]),
            _ => [u32::MAX; 32],
        }
    }

    /// Waits until the members of a mask are here, then executes for them.
    pub(super) fn collective(&mut self, i: &Instr, e: u32, mask: u32) -> Run<Flow> {
        let members = self.members(i);
        let first = members[e.trailing_zeros() as usize];
        if first == e && lanes(e).all(|l| members[l as usize] == first) {
            self.together(i, e)?;
            return Ok(Flow::Next);
        }
        let barrier = matches!(i.op, Op::BarWarp);
        let code = &self.shared.kernel.code;
        let here = lanes(self.warp.gathering)
            .filter(|l| {
                let pc = self.warp.pc[*l as usize];
                pc == self.pc || barrier && matches!(code[pc as usize].op, Op::BarWarp)
            })
            .fold(0, |m, l| m | 1u32 << l);
        for lane in lanes(e) {
            let member = members[lane as usize];
            if member >> lane & 1 == 0 {
                return trouble(
                    FaultKind::InvalidMask,
                    lane,
                    format!("mask {member:#010x} lacks lane {lane} itself"),
                );
            }
            let gone = member & !self.warp.alive;
            if gone != 0 {
                return trouble(
                    FaultKind::InvalidMask,
                    lane,
                    format!(
                        "mask {member:#010x} names lane {}, which has ended or never was",
                        gone.trailing_zeros()
                    ),
                );
            }
            self.warp.members[lane as usize] = member;
        }
        self.go(e, self.pc);
        self.warp.gathering |= e;
        self.warp.ready &= !e;
        self.go(mask & !e, self.pc + 1);
        let arrived = here | e;
        let mut left = e;
        while left != 0 {
            let member = members[left.trailing_zeros() as usize];
            left &= !member;
            if member & !arrived != 0 {
                continue;
            }
            if let Some(lane) = lanes(member).find(|l| self.warp.members[*l as usize] != member) {
                return trouble(
                    FaultKind::InvalidMask,
                    lane,
                    format!("mask {:#010x} meets mask {member:#010x}", self.warp.members[lane as usize]),
                );
            }
            self.together(i, member)?;
            for lane in lanes(member) {
                self.warp.pc[lane as usize] += 1;
            }
            self.warp.gathering &= !member;
            self.warp.ready |= member;
        }
        Ok(Flow::Regroup)
    }

    fn together(&mut self, i: &Instr, m: u32) -> Run<()> {
        match i.op {
            Op::Shfl { mode, pred } => self.shuffle(i, m, mode, pred)?,
            Op::VoteSync(mode) => {
                let p = self.pred(i.s[0]) & m;
                match mode {
                    Vote::Ballot => self.set32(i.d[0], m, &[p; 32]),
                    Vote::All => self.set_pred(i.d[0], m, if p == m { u32::MAX } else { 0 }),
                    Vote::Any => self.set_pred(i.d[0], m, if p != 0 { u32::MAX } else { 0 }),
                    Vote::Uni => self.set_pred(i.d[0], m, if p == 0 || p == m { u32::MAX } else { 0 }),
                }
            }
            Op::MatchAny { wide } => {
                let a = self.values(i, wide);
                let v = std::array::from_fn(|l| {
                    lanes(m).filter(|o| a[*o as usize] == a[l]).fold(0, |v, o| v | 1u32 << o)
                });
                self.set32(i.d[0], m, &v);
            }
            Op::MatchAll { wide } => {
                let a = self.values(i, wide);
                let first = a[m.trailing_zeros() as usize];
                let all = lanes(m).all(|l| a[l as usize] == first);
                self.set32(i.d[0], m, &[if all { m } else { 0 }; 32]);
                self.set_pred(i.d[1], m, if all { u32::MAX } else { 0 });
            }
            Op::ReduxSync(f) => {
                let a = *self.a32(i.s[0]);
                let joined = lanes(m).map(|l| a[l as usize]).reduce(|x, y| match f {
                    Redux::Add => x.wrapping_add(y),
                    Redux::MinS => (x as i32).min(y as i32) as u32,
                    Redux::MaxS => (x as i32).max(y as i32) as u32,
                    Redux::MinU => x.min(y),
                    Redux::MaxU => x.max(y),
                    Redux::And => x & y,
                    Redux::Or => x | y,
                    Redux::Xor => x ^ y,
                });
                self.set32(i.d[0], m, &[joined.unwrap_or(0); 32]);
            }
            Op::Elect => {
                let leader = m.trailing_zeros();
                self.set32(i.d[0], m, &[leader; 32]);
                self.set_pred(i.d[1], m, 1 << leader);
            }
            Op::BarWarp => {
                let (warp, alive) = (self.warp.index, self.warp.alive);
                self.block().clocks.warp_sync(warp, m, alive);
            }
            Op::Ldmatrix { count, trans } => self.ldmatrix(i, m, count, trans)?,
            Op::Stmatrix { count, trans } => self.stmatrix(i, m, count, trans)?,
            Op::Movmatrix => self.movmatrix(i, m),
            Op::Mma(kind) => self.mma(i, m, kind),
            Op::WgMma(w) => self.wgmma(i, m, w)?,
            Op::WgFence => self.warp.product_fence = true,
            Op::WgCommit => self.warp.product_groups += 1,
            Op::WgWait(n) => self.wait_products(n),
            _ => {}
        }
        Ok(())
    }

    fn values(&self, i: &Instr, wide: bool) -> [u64; 32] {
        if wide { *self.a64(i.s[0]) } else { self.a32(i.s[0]).map(u64::from) }
    }

    /// PTX ISA 9.7.9.6: `c` holds the clamp in bits 0 to 4 and the segment mask in bits 8 to 12.
    fn shuffle(&mut self, i: &Instr, m: u32, mode: Shuffle, pred: bool) -> Run<()> {
        let (a, b, c) = (*self.a32(i.s[0]), *self.a32(i.s[1]), *self.a32(i.s[2]));
        let mut v = [0; 32];
        let mut in_range = 0;
        for lane in lanes(m) {
            let l = lane as usize;
            let (b, clamp, segment) = (b[l] & 31, c[l] & 31, c[l] >> 8 & 31);
            let most = (lane & segment) | (clamp & !segment);
            let least = lane & segment;
            let (j, fits) = match mode {
                Shuffle::Up => {
                    let j = lane as i32 - b as i32;
                    (j, j >= most as i32)
                }
                Shuffle::Down => ((lane + b) as i32, lane + b <= most),
                Shuffle::Bfly => ((lane ^ b) as i32, lane ^ b <= most),
                Shuffle::Idx => {
                    let j = least | (b & !segment);
                    (j as i32, j <= most)
                }
            };
            let from = if fits { j as u32 } else { lane };
            if m >> from & 1 == 0 {
                return trouble(
                    FaultKind::InvalidMask,
                    lane,
                    format!("lane {lane} reads lane {from}, which mask {m:#010x} does not name"),
                );
            }
            v[l] = a[from as usize];
            in_range |= u32::from(fits) << lane;
        }
        self.set32(i.d[0], m, &v);
        if pred {
            self.set_pred(i.d[1], m, in_range);
        }
        Ok(())
    }

    /// PTX ISA 9.7.13.1.
    pub(super) fn barrier(&mut self, i: &Instr, e: u32, mask: u32) -> Run<Flow> {
        let Op::Bar { kind, aligned, threads } = i.op else { return Ok(Flow::Next) };
        let (ids, counts) = (*self.a32(self.src(i, 0)), *self.a32(self.src(i, 1)));
        let votes = self.pred(self.src(i, 2));
        let lane = e.trailing_zeros();
        let (id, expected) = (ids[lane as usize], counts[lane as usize]);
        if id > 15 {
            return trouble(FaultKind::InvalidOperand, lane, format!("barrier {id} of 16"));
        }
        if threads && (expected == 0 || !expected.is_multiple_of(32)) {
            return trouble(
                FaultKind::InvalidOperand,
                lane,
                format!("{expected} threads, no multiple of 32"),
            );
        }
        if lanes(e).any(|l| ids[l as usize] != id || counts[l as usize] != expected) {
            return trouble(FaultKind::DivergentBarrier, lane, "lanes of a warp name different barriers");
        }
        if aligned && mask != e {
            return trouble(
                FaultKind::DivergentBarrier,
                (mask & !e).trailing_zeros(),
                "a lane skips the barrier that others of its warp wait at",
            );
        }
        if aligned && self.warp.parked != 0 {
            let other = self.warp.parked.trailing_zeros();
            let pc = self.warp.pc[other as usize];
            if pc != self.pc {
                let mut t = trouble::<Flow>(
                    FaultKind::DivergentBarrier,
                    lane,
                    "lanes of one warp wait at different barrier instructions",
                );
                if let Err(t) = &mut t {
                    t.other =
                        Some(("a wait", self.blocks[self.rank].number, self.warp.index * 32 + other, pc));
                }
                return t;
            }
        }
        let warp = self.warp.index;
        let bar = &mut self.blocks[self.rank].bars[id as usize];
        if bar.count > 0 && bar.expected != expected {
            return trouble(
                FaultKind::DivergentBarrier,
                lane,
                format!("barrier {id} for {expected} threads, others wait there for {}", bar.expected),
            );
        }
        bar.expected = expected;
        bar.count += e.count_ones();
        bar.votes += (votes & e).count_ones();
        let entry = bar.arrived.entry(warp).or_insert((0, false));
        entry.0 |= e;
        entry.1 |= kind != Barrier::Arrive;
        let generation = bar.generation;
        if expected != 0 && bar.count > expected {
            return trouble(
                FaultKind::DivergentBarrier,
                lane,
                format!("{} threads at barrier {id} for {expected}", bar.count),
            );
        }
        if kind == Barrier::Arrive {
            self.complete(id as usize)?;
            return Ok(Flow::Next);
        }
        self.go(e, self.pc);
        self.go(mask & !e, self.pc + 1);
        for l in lanes(e) {
            self.warp.park[l as usize] = Parked { barrier: id as u8, generation };
        }
        self.warp.parked |= e;
        self.warp.ready &= !e;
        self.counts[self.pc as usize].barriers += 1;
        self.complete(id as usize)?;
        Ok(Flow::Regroup)
    }

    /// Ends a barrier, if everybody is there.
    pub(super) fn complete(&mut self, id: usize) -> Run<()> {
        let block = &mut self.blocks[self.rank];
        let bar = &mut block.bars[id];
        let wanted = if bar.expected == 0 { block.alive } else { bar.expected };
        if bar.count == 0 || bar.count < wanted {
            return Ok(());
        }
        if bar.expected == 0 {
            block.clocks.block_barrier();
        } else {
            let of = |waits: bool| -> Vec<u32> {
                bar.arrived.iter().filter(|(_, (_, w))| *w == waits).map(|(w, _)| *w).collect()
            };
            block.clocks.warps_barrier(&of(false), &of(true));
        }
        bar.result = (bar.votes, bar.count);
        bar.generation += 1;
        (bar.count, bar.votes) = (0, 0);
        bar.arrived.clear();
        Ok(())
    }

    /// Lets lanes go on whose barrier has ended.
    pub(super) fn wake(&mut self) {
        if self.warp.parked == 0 {
            return;
        }
        let mut ready = 0u32;
        for lane in lanes(self.warp.parked) {
            let p = self.warp.park[lane as usize];
            let now = match p.barrier {
                CLUSTER => self.cluster.generation,
                id => self.blocks[self.rank].bars[id as usize].generation,
            };
            if now != p.generation {
                ready |= 1 << lane;
            }
        }
        let mut left = ready;
        while left != 0 {
            let lane = left.trailing_zeros();
            let pc = self.warp.pc[lane as usize];
            let group = lanes(left).filter(|l| self.warp.pc[*l as usize] == pc).fold(0, |m, l| m | 1u32 << l);
            left &= !group;
            let i = self.shared.kernel.code[pc as usize];
            if let Op::Bar { kind, .. } = i.op {
                let id = self.warp.park[lane as usize].barrier;
                let (votes, all) = self.blocks[self.rank].bars[id as usize].result;
                match kind {
                    Barrier::Popc => self.set32(i.d[0], group, &[votes; 32]),
                    Barrier::And => self.set_pred(i.d[0], group, if votes == all { u32::MAX } else { 0 }),
                    Barrier::Or => self.set_pred(i.d[0], group, if votes != 0 { u32::MAX } else { 0 }),
                    _ => {}
                }
            }
            self.go(group, pc + 1);
        }
        self.warp.parked &= !ready;
        self.warp.ready |= ready;
    }

    /// `barrier.cluster`, PTX ISA 9.7.13.4.
    pub(super) fn cluster_barrier(&mut self, i: &Instr, e: u32, mask: u32) -> Run<Flow> {
        if let Op::ClusterArrive { .. } = i.op {
            for lane in lanes(e) {
                self.warp.cluster_phase[lane as usize] = self.cluster.generation;
            }
            self.cluster.arrived += e.count_ones();
            self.complete_cluster();
            return Ok(Flow::Next);
        }
        self.go(e, self.pc);
        self.go(mask & !e, self.pc + 1);
        for lane in lanes(e) {
            let generation = self.warp.cluster_phase[lane as usize];
            self.warp.park[lane as usize] = Parked { barrier: CLUSTER, generation };
        }
        self.warp.parked |= e;
        self.warp.ready &= !e;
        Ok(Flow::Regroup)
    }

    pub(super) fn complete_cluster(&mut self) {
        if self.cluster.arrived == 0 || self.cluster.arrived < self.cluster.alive {
            return;
        }
        self.cluster.arrived = 0;
        self.cluster.generation += 1;
        for b in self.blocks.iter_mut() {
            b.clocks.block_barrier();
        }
        // All blocks know what all others did.
        let known: Vec<_> =
            self.blocks.iter_mut().map(|b| (b.number, std::sync::Arc::new(b.clocks.release(0, 0)))).collect();
        for b in self.blocks.iter_mut() {
            for (number, known) in &known {
                if *number != b.number {
                    b.clocks.foreign.insert(*number, known.clone());
                }
            }
        }
    }
}
