//! mbarriers and bulk copies of compute capability 9.0, PTX ISA 9.7.13.15 and 9.7.9.25.4.

use std::collections::HashSet;

use super::spaces::{Doing, Where};
use super::{Exec, Flow, lanes};
use crate::machine::block::{Block, Mbarrier, Reading};
use crate::machine::fault::{FaultKind, Run, Trouble, trouble};
use crate::machine::shadow::{PLAIN, Who};
use crate::ops::{AtomOp, Bulk, Mbar};
use crate::parse::ast::{Space, Ty};
use crate::program::Instr;

impl Exec<'_, '_> {
    /// The rank and offset of an mbarrier object.
    fn mbarrier_at(&self, address: u64, lane: u32) -> Run<(usize, u64)> {
        let space = if address >> 40 != 0 { Space::Generic } else { Space::Shared };
        match self.locate(space, address, 8, lane, &mut 0)? {
            Where::Shared(rank, at) => Ok((rank, at)),
            _ => trouble(
                FaultKind::InvalidOperand,
                lane,
                format!("{address:#x} is no address of shared memory"),
            ),
        }
    }

    fn object(&mut self, (rank, at): (usize, u64), lane: u32) -> Run<&mut Mbarrier> {
        match self.blocks[rank].mbarriers.get_mut(&at) {
            Some(m) => Ok(m),
            None => trouble(
                FaultKind::UninitialisedMemory,
                lane,
                format!("byte {at} of shared memory holds no mbarrier: mbarrier.init is missing"),
            ),
        }
    }

    pub(super) fn mbarrier(&mut self, i: &Instr, e: u32, mask: u32, op: Mbar) -> Run<Flow> {
        let addresses = self.addresses(i, 0);
        let warp = self.warp.index;
        match op {
            Mbar::Init => {
                let counts = *self.a32(self.src(i, 1));
                for lane in lanes(e) {
                    let at = self.mbarrier_at(addresses[lane as usize], lane)?;
                    let count = counts[lane as usize];
                    if count == 0 || count >= 1 << 20 {
                        return trouble(
                            FaultKind::InvalidOperand,
                            lane,
                            format!("an mbarrier of {count} arrivals"),
                        );
                    }
                    let who = self.who(lane, PLAIN);
                    self.note_shared(at.0, at.1, 8, who, Doing::Write { same: false })?;
                    let fresh = Mbarrier {
                        expected: count,
                        pending: count,
                        unfenced: Some(who),
                        ..Mbarrier::default()
                    };
                    self.blocks[at.0].mbarriers.insert(at.1, fresh);
                }
            }
            Mbar::Inval => {
                for lane in lanes(e) {
                    let at = self.mbarrier_at(addresses[lane as usize], lane)?;
                    self.object(at, lane)?;
                    self.blocks[at.0].mbarriers.remove(&at.1);
                }
            }
            Mbar::Arrive { expect, drop, returns } => {
                let counts = *self.a32(self.src(i, 1));
                let mut states = [0; 32];
                for lane in lanes(e) {
                    let l = lane as usize;
                    let at = self.mbarrier_at(addresses[l], lane)?;
                    let known = self.blocks[self.rank].clocks.release(warp, lane);
                    let from = (at.0 != self.rank).then(|| self.blocks[self.rank].number);
                    let arrivals = if expect { 1 } else { counts[l] };
                    if arrivals == 0 {
                        return trouble(FaultKind::InvalidOperand, lane, "an arrival of nobody");
                    }
                    let m = self.object(at, lane)?;
                    states[l] = m.phase;
                    if expect {
                        m.expect(i64::from(counts[l]), lane)?;
                    }
                    if m.pending < arrivals {
                        let pending = m.pending;
                        return trouble(
                            FaultKind::InvalidOperand,
                            lane,
                            format!("{arrivals} arrivals, the phase of the mbarrier waits for {pending}"),
                        );
                    }
                    m.pending -= arrivals;
                    if drop {
                        m.expected -= arrivals;
                    }
                    m.join(from, &known);
                    m.advance();
                }
                if returns {
                    self.set64(i.d[0], e, &states);
                }
            }
            Mbar::ExpectTx | Mbar::CompleteTx => {
                let bytes = *self.a32(self.src(i, 1));
                for lane in lanes(e) {
                    let at = self.mbarrier_at(addresses[lane as usize], lane)?;
                    let m = self.object(at, lane)?;
                    let by = i64::from(bytes[lane as usize]);
                    m.expect(if op == Mbar::ExpectTx { by } else { -by }, lane)?;
                    m.advance();
                }
            }
            Mbar::Wait { parity, .. } => {
                let phases = self.wide(i, 1);
                let mut done = 0;
                for lane in lanes(e) {
                    let l = lane as usize;
                    let at = self.mbarrier_at(addresses[l], lane)?;
                    let m = self.object(at, lane)?;
                    // A phase has completed if the object is past it.
                    let complete = match parity {
                        true => m.phase & 1 != phases[l] & 1,
                        false => m.phase != phases[l],
                    };
                    if complete {
                        done |= 1 << lane;
                        let (known, others) = (m.closed.clone(), m.closed_from.clone());
                        let clocks = &mut self.blocks[self.rank].clocks;
                        if at.0 == self.rank {
                            clocks.acquire(warp, &known);
                        }
                        for (block, known) in others {
                            let mine = clocks.foreign.entry(block).or_default();
                            std::sync::Arc::make_mut(mine).join(&known);
                        }
                    }
                }
                self.set_pred(i.d[0], e, done);
                self.go(mask, self.pc + 1);
                return Ok(if done == e { Flow::Regroup } else { Flow::Yield });
            }
            Mbar::CpAsyncArrive { noinc } => {
                for lane in lanes(e) {
                    let at = self.mbarrier_at(addresses[lane as usize], lane)?;
                    self.land(lane, u32::MAX)?;
                    let known = self.blocks[self.rank].clocks.release(warp, lane);
                    let m = self.object(at, lane)?;
                    m.open.join(&known);
                    // Without .noinc the arrival is one more than the phase waits for.
                    if noinc {
                        if m.pending == 0 {
                            return trouble(
                                FaultKind::InvalidOperand,
                                lane,
                                "an arrival that no phase waits for",
                            );
                        }
                        m.pending -= 1;
                    }
                    m.advance();
                }
            }
        }
        Ok(Flow::Next)
    }

    /// Bulk copies are made at once. Their effects are those of the asynchronous proxy: generic writes to what they
    /// read need `fence.proxy.async` before, and what they wrote counts as ordered behind the mbarrier's phase.
    pub(super) fn bulk(&mut self, i: &Instr, e: u32, kind: Bulk) -> Run<()> {
        if kind == Bulk::Prefetch {
            return Ok(());
        }
        let to = self.addresses(i, 0);
        let offsets = *self.a64(self.src(i, 2));
        let from = self.wide(i, 1);
        let sizes = *self.a32(self.src(i, 3));
        for lane in lanes(e) {
            let l = lane as usize;
            let (from, to, n) = (from[l].wrapping_add(offsets[l]), to[l], sizes[l]);
            if !n.is_multiple_of(16) || !from.is_multiple_of(16) || !to.is_multiple_of(16) {
                return trouble(
                    FaultKind::Misaligned,
                    lane,
                    format!("a bulk copy of {n} bytes from {from:#x} to {to:#x}: all are multiples of 16"),
                );
            }
            let shared = |a: u64| if a >> 40 != 0 { Space::Generic } else { Space::Shared };
            let (from_space, to_space) = match kind {
                Bulk::GlobalToShared { .. } => (Space::Global, shared(to)),
                Bulk::SharedToCluster => (shared(from), shared(to)),
                _ => (shared(from), Space::Global),
            };
            let mut targets = vec![to];
            let mut bars = Vec::new();
            if matches!(kind, Bulk::GlobalToShared { .. } | Bulk::SharedToCluster) {
                let bar = self.wide(i, 4)[l].wrapping_add(self.a64(self.src(i, 5))[l]);
                bars.push(bar);
                if kind == (Bulk::GlobalToShared { multicast: true }) {
                    let mask = self.a32(self.src(i, 6))[l];
                    let at = |a: u64, rank: u32| u64::from(rank + 1) << 24 | a & 0xff_ffff;
                    targets = lanes(mask & 0xffff).map(|r| at(to, r)).collect();
                    bars = lanes(mask & 0xffff).map(|r| at(bar, r)).collect();
                }
            }
            let mut hint = usize::MAX;
            let mut pieces = HashSet::new();
            for done in (0..n).step_by(16) {
                let source = self.locate(from_space, from + u64::from(done), 16, lane, &mut hint)?;
                self.check_proxy(source, lane)?;
                if let Where::Shared(_, at) = source {
                    pieces.insert(at / 16);
                }
                self.note(source, 16, lane, PLAIN, Doing::Read, false, &mut None)?;
                self.check_written(source, 16, lane)?;
                let halves = [0, 8].map(|k| self.peek(super::memory::shift(source, k), 8, lane));
                for to in &targets {
                    let space = if *to >> 24 != 0 && *to >> 40 == 0 { Space::Shared } else { to_space };
                    let target = self.locate(space, to + u64::from(done), 16, lane, &mut 0)?;
                    if let Bulk::ReduceAdd(ty) = kind {
                        self.reduce(target, lane, ty, halves)?;
                        continue;
                    }
                    self.note(target, 16, lane, PLAIN, Doing::Write { same: false }, false, &mut None)?;
                    for (k, v) in halves.iter().enumerate() {
                        self.poke(super::memory::shift(target, 8 * k as u32), 8, lane, *v);
                    }
                    self.mark_written(target, 16, lane);
                }
            }
            if bars.is_empty() {
                let (warp, group, pc) = (self.warp.index, self.warp.bulk_groups[l], self.pc);
                self.block().readings.push(Reading { warp, lane: Some(lane), group, pc, pieces });
            }
            let known = self.blocks[self.rank].clocks.release(self.warp.index, lane);
            for bar in bars {
                let at = self.mbarrier_at(bar, lane)?;
                let from = (at.0 != self.rank).then(|| self.blocks[self.rank].number);
                let number = self.blocks[at.0].number;
                let m = self.object(at, lane)?;
                if let Some(who) = &m.unfenced {
                    return Err(Box::new(Trouble {
                        kind: FaultKind::MissingProxyFence,
                        lane,
                        message:
                            "a bulk copy completes on an mbarrier behind whose mbarrier.init stands neither \
                                  fence.mbarrier_init nor fence.proxy.async"
                                .into(),
                        other: Some(("mbarrier.init", number, who.thread, who.pc)),
                        pc: None,
                    }));
                }
                m.tx -= i64::from(n);
                m.join(from, &known);
                m.advance();
            }
            let c = &mut self.counts[self.pc as usize];
            if from_space == Space::Global || to_space == Space::Global {
                c.sectors += u64::from(n / 32);
                c.bytes += u64::from(n);
            }
        }
        Ok(())
    }

    fn reduce(&mut self, target: Where, lane: u32, ty: Ty, values: [u64; 2]) -> Run<()> {
        let bytes = ty.bytes();
        self.check_written(target, 16, lane)?;
        self.note(
            target,
            16,
            lane,
            crate::machine::shadow::ATOMIC,
            Doing::Write { same: false },
            false,
            &mut None,
        )?;
        for k in (0..16).step_by(bytes as usize) {
            let v = values[k / 8] >> (8 * (k % 8)) & if bytes == 8 { u64::MAX } else { 0xffff_ffff };
            let at = super::memory::shift(target, k as u32);
            self.exchange(at, bytes, lane, |old| match ty {
                Ty::F32 => super::atomics::add_flushed(old, v),
                _ => super::atomics::apply(AtomOp::Add, ty, old, v, 0),
            });
        }
        Ok(())
    }

    /// `cp.async.bulk.wait_group`: at most `n` of the newest groups of each thread stay under way.
    pub(super) fn wait_bulk(&mut self, e: u32, n: u32) {
        let (warp, committed) = (self.warp.index, self.warp.bulk_groups);
        self.block().readings.retain(|r| {
            let Some(lane) = r.lane.filter(|lane| r.warp == warp && e >> lane & 1 != 0) else { return true };
            r.group >= committed[lane as usize].saturating_sub(n)
        });
    }

    /// Fails if a thread ends while a bulk copy of its own may still read shared memory.
    pub(super) fn check_bulk(&mut self, e: u32) -> Run<()> {
        let warp = self.warp.index;
        let of_lane = |r: &&Reading| r.warp == warp && r.lane.is_some_and(|lane| e >> lane & 1 != 0);
        let Some((lane, pc)) = self.block().readings.iter().find(of_lane).map(|r| (r.lane, r.pc)) else {
            return Ok(());
        };
        self.pc = pc;
        trouble(
            FaultKind::CopyInFlight,
            lane.unwrap_or(0),
            "the thread ends before cp.async.bulk.wait_group has waited for this copy",
        )
    }

    /// `fence.mbarrier_init` and `fence.proxy.async`: the asynchronous proxy may complete on what was initialised before.
    pub(super) fn fence_mbarriers(&mut self, e: u32) {
        let warp = self.warp.index;
        let Block { mbarriers, clocks, .. } = self.block();
        for m in mbarriers.values_mut() {
            let before = |who: &Who| lanes(e).any(|lane| clocks.before(who.thread, who.count, warp, lane));
            m.unfenced = m.unfenced.filter(|who| !before(who));
        }
    }

    /// Fails if the asynchronous proxy reads what a generic write left without a fence.
    pub(super) fn check_proxy(&self, at: Where, lane: u32) -> Run<()> {
        let Where::Shared(rank, at) = at else { return Ok(()) };
        match self.blocks[rank].generic_writes.get(&(at / 16)) {
            None => Ok(()),
            Some(who) => Err(Box::new(Trouble {
                kind: FaultKind::MissingProxyFence,
                lane,
                message: format!(
                    "byte {at} of shared memory is read by the asynchronous proxy; no fence.proxy.async stands behind its write"
                ),
                other: Some(("a write", self.blocks[rank].number, who.thread, who.pc)),
                pc: None,
            })),
        }
    }
}
