//! Bulk copies of compute capability 9.0, PTX ISA 9.7.9.25.4, and what copies by tensor map share with them.
//!
//! They are made at once. Their effects are those of the asynchronous proxy: generic writes to what they read need
//! `fence.proxy.async` before, and what they wrote counts as ordered behind the mbarrier's phase.

use super::memory::shift;
use super::spaces::{Doing, Held, Where};
use super::{Exec, lanes};
use crate::machine::RANK_SHIFT;
use crate::machine::block::{Pieces, Reading};
use crate::machine::fault::{FaultKind, Run, trouble};
use crate::machine::shadow::{ATOMIC, PLAIN};
use crate::ops::{AtomOp, Bulk};
use crate::parse::ast::{Space, Ty};
use crate::program::Instr;

/// The kind of an address of shared memory: generic, or one within its window.
pub(super) fn shared_space(address: u64) -> Space {
    if address >> 40 != 0 { Space::Generic } else { Space::Shared }
}

impl<'e> Exec<'e, '_> {
    pub(super) fn bulk(&mut self, i: &Instr, e: u32, kind: Bulk) -> Run<()> {
        match kind {
            Bulk::Prefetch => return Ok(()),
            Bulk::TensorLoad { rank, multicast } => return self.load_tensor(i, e, rank, multicast),
            Bulk::TensorStore(rank) => return self.store_tensor(i, e, rank),
            _ => {}
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
            let (from_global, to_global) = match kind {
                Bulk::GlobalToShared { .. } => (true, false),
                Bulk::SharedToCluster => (false, false),
                _ => (false, true),
            };
            let from_space = if from_global { Space::Global } else { shared_space(from) };
            let (mut targets, mut bars) = (vec![to], Vec::new());
            if !to_global {
                let bar = self.wide(i, 4)[l].wrapping_add(self.a64(self.src(i, 5))[l]);
                let multicast = kind == (Bulk::GlobalToShared { multicast: true });
                let mask = multicast.then(|| self.a32(self.src(i, 6))[l]);
                (targets, bars) = (in_blocks(to, mask), in_blocks(bar, mask));
            }
            let mut hint = usize::MAX;
            let mut pieces = Pieces::default();
            for done in (0..n).step_by(16) {
                let source = self.locate(from_space, from + u64::from(done), 16, lane, &mut hint)?;
                if let Where::Shared(_, at) = source {
                    pieces.insert(at / 16);
                }
                let halves = self.take_async(source, 16, lane, &mut None)?;
                for to in &targets {
                    let space = if to_global { Space::Global } else { shared_space(*to) };
                    let target = self.locate(space, to + u64::from(done), 16, lane, &mut 0)?;
                    match kind {
                        Bulk::ReduceAdd(ty) => self.reduce(target, lane, ty, halves)?,
                        _ => self.put_async(target, 16, lane, halves, &mut None)?,
                    }
                }
            }
            if bars.is_empty() {
                self.note_reading(lane, pieces);
            }
            self.complete_bytes(&bars, u64::from(n), lane)?;
            if from_global || to_global {
                let c = &mut self.counts[self.pc as usize];
                c.sectors += u64::from(n / 32);
                c.bytes += u64::from(n);
            }
        }
        Ok(())
    }

    /// What the asynchronous proxy reads at a place: 1, 2, 4, 8 or 16 bytes.
    pub(super) fn take_async(&mut self, at: Where, n: u32, lane: u32, held: &mut Held<'e>) -> Run<[u64; 2]> {
        self.check_proxy(at, lane)?;
        self.note(at, n, lane, PLAIN, Doing::Read, false, held)?;
        self.check_written(at, n, lane)?;
        let high = if n == 16 { self.peek(shift(at, 8), 8, lane) } else { 0 };
        Ok([self.peek(at, n.min(8), lane), high])
    }

    /// Writes as many bytes to a place for the asynchronous proxy.
    pub(super) fn put_async(
        &mut self,
        at: Where,
        n: u32,
        lane: u32,
        [low, high]: [u64; 2],
        held: &mut Held<'e>,
    ) -> Run<()> {
        self.note(at, n, lane, PLAIN, Doing::Write { same: false }, false, held)?;
        self.poke(at, n.min(8), lane, low);
        if n == 16 {
            self.poke(shift(at, 8), 8, lane, high);
        }
        self.mark_written(at, n, lane);
        Ok(())
    }

    /// Notes what a bulk copy reads until its thread has waited for it.
    pub(super) fn note_reading(&mut self, lane: u32, pieces: Pieces) {
        let (warp, group, pc) = (self.warp.index, self.warp.bulk_groups[lane as usize], self.pc);
        self.block().readings.push(Reading { warp, lane: Some(lane), group, pc, pieces });
    }

    fn reduce(&mut self, target: Where, lane: u32, ty: Ty, values: [u64; 2]) -> Run<()> {
        let bytes = ty.bytes();
        self.check_written(target, 16, lane)?;
        self.note(target, 16, lane, ATOMIC, Doing::Write { same: false }, false, &mut None)?;
        for k in (0..16).step_by(bytes as usize) {
            let v = values[k / 8] >> (8 * (k % 8)) & if bytes == 8 { u64::MAX } else { 0xffff_ffff };
            let at = shift(target, k as u32);
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
}

/// An address of shared memory in each block that a multicast copy names; without a mask the address itself.
pub(super) fn in_blocks(address: u64, mask: Option<u32>) -> Vec<u64> {
    match mask {
        None => vec![address],
        Some(mask) => {
            let at = |rank: u32| u64::from(rank + 1) << RANK_SHIFT | address & ((1 << RANK_SHIFT) - 1);
            lanes(mask & 0xffff).map(at).collect()
        }
    }
}
