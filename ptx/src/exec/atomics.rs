//! Atomic operations and fences, PTX ISA 9.7.13.4, 9.7.13.6 and 9.7.13.7.
//!
//! A fence followed by an atomic operation releases what the thread knows to whoever reads that place by a strong
//! operation followed by a fence.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::floats::flush_bits;
use super::memory::shift;
use super::soft::{self, BF16, F16, F32, F64, Format, pack, unpack};
use super::spaces::{Doing, Where};
use super::{Exec, lanes};
use crate::machine::fault::Run;
use crate::machine::shadow::{ATOMIC, PLAIN, Who};
use crate::ops::{AtomOp, Op, Round, Strong};
use crate::parse::ast::Ty;
use crate::program::Instr;

/// Sums of F32 in global memory: subnormal operands and results become zeros.
pub(super) fn add_flushed(old: u64, b: u64) -> u64 {
    let [old, b] = [old, b].map(|v| u64::from(flush_bits(v as u32)));
    u64::from(flush_bits(apply(AtomOp::Add, Ty::F32, old, b, 0) as u32))
}

/// The new value of a place.
pub(super) fn apply(f: AtomOp, ty: Ty, old: u64, b: u64, c: u64) -> u64 {
    let float = |format: Format| {
        pack(soft::add(unpack(old, format), unpack(b, format), Round::Nearest), format, Round::Nearest)
    };
    let pair = |format: Format| {
        let one = |s: u32| {
            let (x, y) = (old >> s & 0xffff, b >> s & 0xffff);
            pack(soft::add(unpack(x, format), unpack(y, format), Round::Nearest), format, Round::Nearest) << s
        };
        one(0) | one(16)
    };
    let narrow = ty.bits() == 32;
    let v = match (f, ty) {
        (AtomOp::And, _) => old & b,
        (AtomOp::Or, _) => old | b,
        (AtomOp::Xor, _) => old ^ b,
        (AtomOp::Exch, _) => b,
        (AtomOp::Cas, _) => {
            if old == b {
                c
            } else {
                old
            }
        }
        (AtomOp::Add, Ty::F32) => float(F32),
        (AtomOp::Add, Ty::F64) => float(F64),
        (AtomOp::Add, Ty::F16) => float(F16),
        (AtomOp::Add, Ty::Bf16) => float(BF16),
        (AtomOp::Add, Ty::F16x2) => pair(F16),
        (AtomOp::Add, Ty::Bf16x2) => pair(BF16),
        (AtomOp::Add, _) => old.wrapping_add(b),
        (AtomOp::Inc, _) => {
            if old >= b {
                0
            } else {
                old + 1
            }
        }
        (AtomOp::Dec, _) => {
            if old == 0 || old > b {
                b
            } else {
                old - 1
            }
        }
        (AtomOp::Min, Ty::S32) => u64::from((old as i32).min(b as i32) as u32),
        (AtomOp::Max, Ty::S32) => u64::from((old as i32).max(b as i32) as u32),
        (AtomOp::Min, Ty::S64) => (old as i64).min(b as i64) as u64,
        (AtomOp::Max, Ty::S64) => (old as i64).max(b as i64) as u64,
        (AtomOp::Min, _) => old.min(b),
        (AtomOp::Max, _) => old.max(b),
    };
    if narrow { v & 0xffff_ffff } else { v }
}

impl Exec<'_, '_> {
    pub(super) fn atom(&mut self, i: &Instr, e: u32) -> Run<()> {
        let Op::Atom { space, f, ty, returns, order, scope, count } = i.op else { return Ok(()) };
        let addresses = self.addresses(i, 0);
        let bytes = ty.bytes();
        let total = bytes * u32::from(count);
        if matches!(order, Strong::Release | Strong::AcqRel) {
            self.fence(e, scope);
        }
        let mut old = [[0u64; 32]; 4];
        let (mut hint, mut places) = (usize::MAX, [None; 32]);
        let value = |this: &Self, n: usize| {
            let s = this.src(i, n);
            if bytes == 8 { *this.a64(s) } else { this.a32(s).map(u64::from) }
        };
        for lane in lanes(e) {
            let l = lane as usize;
            let at = self.locate(space, addresses[l], total, lane, &mut hint)?;
            places[l] = Some(at);
            self.check_written(at, total, lane)?;
            self.hand_over(lane, at, addresses[l]);
            // The record is locked until the operation is done: both come in the same order for all blocks.
            let mut held = None;
            self.note(at, total, lane, ATOMIC, Doing::Write { same: false }, false, &mut held)?;
            for k in 0..usize::from(count) {
                let b = value(self, 1 + k)[l];
                let c = if f == AtomOp::Cas { value(self, 2)[l] } else { 0 };
                let cut = |v: u64| if bytes == 8 { v } else { v & ((1 << (8 * bytes)) - 1) };
                let (b, c) = (cut(b), cut(c));
                let flushed = f == AtomOp::Add && ty == Ty::F32 && matches!(at, Where::Global(..));
                old[k][l] = self.exchange(shift(at, k as u32 * bytes), bytes, lane, |old| match flushed {
                    true => add_flushed(old, b),
                    false => apply(f, ty, old, b, c),
                });
            }
            drop(held);
            self.observe(lane, at, addresses[l]);
        }
        self.count_access(space, &addresses, e, total, &places);
        if matches!(order, Strong::Acquire | Strong::AcqRel) {
            self.fence(e, scope);
        }
        if returns {
            for k in 0..usize::from(count) {
                let d = self.dst(i, k);
                if bytes == 8 {
                    self.set64(d, e, &old[k]);
                } else {
                    let v = old[k].map(|v| v as u32);
                    self.set32(d, e, &v);
                }
            }
        }
        Ok(())
    }

    /// Replaces a value as one step, also against blocks that run at the same time. The old value.
    pub(super) fn exchange(&mut self, at: Where, n: u32, lane: u32, f: impl Fn(u64) -> u64) -> u64 {
        if let Where::Global(b, at) = at {
            let buffer = &self.shared.memory.buffers[b];
            if n == 4 {
                let done = buffer.word(at).fetch_update(Relaxed, Relaxed, |v| Some(f(u64::from(v)) as u32));
                return u64::from(done.unwrap_or_else(|v| v));
            }
            // Other widths take turns by one lock.
            let _turn = self.shared.released.lock().expect("no panic");
            let old = buffer.load(at, n);
            buffer.store(at, n, f(old));
            return old;
        }
        let old = self.peek(at, n, lane);
        self.poke(at, n, lane, f(old));
        old
    }

    /// A name of a place that all threads share.
    fn place_key(&self, at: Where, address: u64) -> u64 {
        match at {
            Where::Shared(rank, at) => 1 << 63 | u64::from(self.blocks[rank].number) << 24 | at,
            _ => address,
        }
    }

    /// A strong write: hands over what the last fence kept. It stands before the write, which others may see at once.
    pub(super) fn hand_over(&mut self, lane: u32, at: Where, address: u64) {
        if !self.shared.options.races {
            return;
        }
        let Some((known, scope)) = &self.warp.fenced[lane as usize] else { return };
        let key = self.place_key(at, address);
        let block = &self.blocks[self.rank];
        let mut all = self.shared.released.lock().expect("no panic");
        let here = all.entry(key).or_default();
        let entry = here.entry(block.number).or_insert_with(|| (known.clone(), *scope));
        if !Arc::ptr_eq(&entry.0, known) {
            let mut joined = (*entry.0).clone();
            joined.join(known);
            *entry = (Arc::new(joined), *scope.max(&entry.1));
        }
        for (other, known) in &block.clocks.foreign {
            here.entry(*other).or_insert_with(|| (known.clone(), *scope));
        }
    }

    /// A strong read: remembers the place for the next fence.
    pub(super) fn observe(&mut self, lane: u32, at: Where, address: u64) {
        if !self.shared.options.races {
            return;
        }
        let key = self.place_key(at, address);
        if !self.warp.observed.contains(&(lane, key)) {
            if self.warp.observed.len() > 256 {
                self.warp.observed.remove(0);
            }
            self.warp.observed.push((lane, key));
        }
    }

    /// A fence: learns what was released at places that the thread read, and keeps what it knows.
    pub(super) fn fence(&mut self, e: u32, scope: u8) {
        if !self.shared.options.races {
            return;
        }
        let warp = self.warp.index;
        let block = &mut self.blocks[self.rank];
        if !self.warp.observed.is_empty() {
            let all = self.shared.released.lock().expect("no panic");
            for (_, key) in self.warp.observed.iter().filter(|(lane, _)| e >> lane & 1 != 0) {
                for (number, (known, released)) in all.get(key).into_iter().flatten() {
                    let known: &Arc<crate::machine::clocks::Knowledge> = known;
                    if *number == block.number {
                        block.clocks.acquire(warp, known);
                    } else if scope >= 2 && *released >= 2 {
                        let mine = block.clocks.foreign.entry(*number).or_insert_with(|| known.clone());
                        if !Arc::ptr_eq(mine, known) {
                            let mut joined = (**mine).clone();
                            joined.join(known);
                            *mine = Arc::new(joined);
                        }
                    }
                }
            }
        }
        for lane in lanes(e) {
            let known = Arc::new(block.clocks.release(warp, lane));
            self.warp.fenced[lane as usize] = Some((known, scope));
        }
    }

    /// Shared memory that the asynchronous proxy may read later.
    pub(super) fn note_generic(&mut self, at: Where, n: u32, lane: u32) {
        if !self.shared.kernel.async_proxy {
            return;
        }
        if let Where::Shared(rank, at) = at {
            let who: Who = self.who(lane, PLAIN);
            for piece in at / 16..=(at + u64::from(n) - 1) / 16 {
                self.blocks[rank].generic_writes.insert(piece, who);
            }
        }
    }

    /// `fence.proxy.async`: what happened before it becomes visible to the asynchronous proxy.
    pub(super) fn fence_proxy(&mut self, e: u32) {
        let warp = self.warp.index;
        let block = &mut self.blocks[self.rank];
        let clocks = &block.clocks;
        block
            .generic_writes
            .retain(|_, who| !lanes(e).any(|lane| clocks.before(who.thread, who.count, warp, lane)));
        self.fence_mbarriers(e);
    }
}
