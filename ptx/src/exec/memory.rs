//! Loads and stores, PTX ISA 9.7.9.8 to 9.7.9.13.

use super::spaces::{Doing, Where};
use super::{Exec, lanes};
use crate::machine::fault::{FaultKind, Run, trouble};
use crate::machine::shadow::{ATOMIC, PLAIN, Who};
use crate::ops::{Access, Strong};
use crate::parse::ast::Space;
use crate::program::Instr;

impl Exec<'_, '_> {
    /// Whether it is a strong load of global memory that finds what it found when the warp last made one.
    pub(super) fn load(&mut self, i: &Instr, e: u32, a: Access) -> Run<bool> {
        let addresses = self.addresses(i, 0);
        let bytes = a.ty.bytes();
        let total = bytes * u32::from(a.count);
        if a.space == Space::Param {
            return self.load_param(i, e, a, &addresses).map(|()| false);
        }
        if a.space == Space::Shared && a.strong == Strong::Weak && self.load_shared(i, e, a, &addresses) {
            return Ok(false);
        }
        let kind = if a.strong == Strong::Weak { Self::PLAIN } else { ATOMIC };
        let mut values = [[0u64; 32]; 8];
        let (mut hint, mut held) = (usize::MAX, None);
        let mut places = [None; 32];
        for lane in lanes(e) {
            let at = self.locate(a.space, addresses[lane as usize], total, lane, &mut hint)?;
            // What is under way or unordered is told before what is unwritten.
            self.note(at, total, lane, kind, Doing::Read, a.nc, &mut held)?;
            self.check_written(at, total, lane)?;
            places[lane as usize] = Some(at);
            for k in 0..u32::from(a.count) {
                let v = self.peek(shift(at, k * bytes), bytes, lane);
                values[k as usize][lane as usize] = extend(v, &a);
            }
            if a.strong != Strong::Weak {
                self.observe(lane, at, addresses[lane as usize]);
            }
        }
        drop(held);
        self.count_access(a.space, &addresses, e, total, &places);
        if a.strong == Strong::Acquire {
            self.fence(e, a.scope);
        }
        self.set_loaded(i, e, a, &values);
        let first = e.trailing_zeros() as usize;
        let polls = a.strong != Strong::Weak && matches!(places[first], Some(Where::Global(..)));
        let found = (self.pc, values[0][first]);
        Ok(polls && std::mem::replace(&mut self.warp.poll, found) == found)
    }

    /// Writes what lanes loaded to the destinations of a load, one for each element.
    fn set_loaded(&mut self, i: &Instr, e: u32, a: Access, values: &[[u64; 32]; 8]) {
        for (k, v) in values[..usize::from(a.count)].iter().enumerate() {
            let d = self.dst(i, k);
            if a.wide { self.set64(d, e, v) } else { self.set32(d, e, &v.map(|v| v as u32)) }
        }
    }

    /// Loads from the block's own shared memory in which nothing is wrong; false if something may be, and the general
    /// way has to say what.
    fn load_shared(&mut self, i: &Instr, e: u32, a: Access, addresses: &[u64; 32]) -> bool {
        let bytes = a.ty.bytes() as usize;
        let mut values = [[0u64; 32]; 8];
        let fine = self.shared_groups(e, addresses, bytes as u32 * u32::from(a.count), |data, group| {
            for (k, part) in data.chunks_exact(bytes).enumerate() {
                let v = match part {
                    [a, b, c, d] => u64::from(u32::from_le_bytes([*a, *b, *c, *d])),
                    _ => part.iter().rev().fold(0, |v, b| v << 8 | u64::from(*b)),
                };
                let v = extend(v, &a);
                for lane in lanes(group) {
                    values[k][lane as usize] = v;
                }
            }
        });
        if !fine {
            return false;
        }
        self.count_shared(addresses, e, bytes as u32 * u32::from(a.count));
        self.set_loaded(i, e, a, &values);
        true
    }

    /// Stores to the block's own shared memory in which nothing is wrong; false, perhaps half way, if something may be.
    fn store_shared(&mut self, e: u32, a: Access, addresses: &[u64; 32], values: &[[u64; 32]; 8]) -> bool {
        let bytes = a.ty.bytes();
        let n = bytes * u32::from(a.count);
        if self.shared.kernel.async_proxy {
            return false;
        }
        let (pc, warp) = (self.pc, self.warp.index);
        let races = self.shared.options.races;
        let block = &mut self.blocks[self.rank];
        for lane in lanes(e) {
            let address = addresses[lane as usize];
            let Some(at) = block.offset(address, n) else { return false };
            if !address.is_multiple_of(u64::from(n)) {
                return false;
            }
            if races {
                let count = block.clocks.now(warp, lane);
                let me = Who { kind: PLAIN, thread: warp * 32 + lane, pc, count };
                let cells = (at >> block.grain) as usize..=((at + u64::from(n) - 1) >> block.grain) as usize;
                for cell in &mut block.cells[cells] {
                    if cell.write(me, block.number, &block.clocks, false).is_some() {
                        return false;
                    }
                }
            }
            for k in 0..u32::from(a.count) {
                block.store(at + u64::from(k * bytes), bytes, values[k as usize][lane as usize]);
            }
            block.mark(at, n);
        }
        true
    }

    /// Hands over `n` bytes at the address of every lane, lanes of one address together. False, perhaps half way, if
    /// something may be wrong.
    fn shared_groups(
        &mut self,
        e: u32,
        addresses: &[u64; 32],
        n: u32,
        mut take: impl FnMut(&[u8], u32),
    ) -> bool {
        let pc = self.pc;
        let warp = self.warp.index;
        let races = self.shared.options.races;
        let block = &mut self.blocks[self.rank];
        let mut rest = e;
        while rest != 0 {
            let lane = rest.trailing_zeros();
            let address = addresses[lane as usize];
            let mut group = 1u32 << lane;
            let mut next = lane + 1;
            while next < 32 && addresses[next as usize] == address && rest >> next & 1 != 0 {
                group |= 1 << next;
                next += 1;
            }
            rest &= !group;
            let Some(at) = block.offset(address, n) else { return false };
            if !address.is_multiple_of(u64::from(n)) || !block.is_written(at, n) {
                return false;
            }
            if races {
                let count = block.clocks.now(warp, lane);
                if lanes(group).any(|l| block.clocks.now(warp, l) != count) {
                    return false;
                }
                let me = Who { kind: PLAIN, thread: warp * 32 + lane, pc, count };
                let cells = (at >> block.grain) as usize..=((at + u64::from(n) - 1) >> block.grain) as usize;
                for cell in &mut block.cells[cells] {
                    if !cell.read_together(me, group, block.number, &block.clocks) {
                        return false;
                    }
                }
            }
            take(&block.shared[at as usize..at as usize + n as usize], group);
        }
        true
    }

    /// Arguments are the same for all lanes.
    fn load_param(&mut self, i: &Instr, e: u32, a: Access, addresses: &[u64; 32]) -> Run<()> {
        let bytes = a.ty.bytes();
        for k in 0..usize::from(a.count) {
            let mut v = [0; 32];
            for lane in lanes(e) {
                let address = addresses[lane as usize].wrapping_add(u64::from(bytes) * k as u64);
                let at = self.locate(Space::Param, address, bytes, lane, &mut 0)?;
                v[lane as usize] = extend(self.peek(at, bytes, lane), &a);
            }
            let d = self.dst(i, k);
            if a.wide { self.set64(d, e, &v) } else { self.set32(d, e, &v.map(|v| v as u32)) }
        }
        Ok(())
    }

    pub(super) fn store(&mut self, i: &Instr, e: u32, a: Access) -> Run<()> {
        let addresses = self.addresses(i, 0);
        let bytes = a.ty.bytes();
        let total = bytes * u32::from(a.count);
        let kind = if a.strong == Strong::Weak { Self::PLAIN } else { ATOMIC };
        if a.strong == Strong::Release {
            self.fence(e, a.scope);
        }
        let mut values = [[0u64; 32]; 8];
        for (k, v) in values.iter_mut().enumerate().take(usize::from(a.count)) {
            let s = self.src(i, 1 + k);
            *v = if a.wide { *self.a64(s) } else { self.a32(s).map(u64::from) };
        }
        if a.space == Space::Shared && kind == PLAIN && self.store_shared(e, a, &addresses, &values) {
            self.count_shared(&addresses, e, total);
            return Ok(());
        }
        let (mut hint, mut held) = (usize::MAX, None);
        let mut places = [None; 32];
        let cut = if bytes == 8 { u64::MAX } else { (1 << (8 * bytes)) - 1 };
        for lane in lanes(e) {
            let at = self.locate(a.space, addresses[lane as usize], total, lane, &mut hint)?;
            let same = self.shared.options.races
                && (0..u32::from(a.count)).all(|k| {
                    self.peek(shift(at, k * bytes), bytes, lane) == values[k as usize][lane as usize] & cut
                });
            self.note(at, total, lane, kind, Doing::Write { same }, false, &mut held)?;
            places[lane as usize] = Some(at);
            if a.strong != Strong::Weak {
                self.hand_over(lane, at, addresses[lane as usize]);
            }
            for k in 0..u32::from(a.count) {
                self.poke(shift(at, k * bytes), bytes, lane, values[k as usize][lane as usize] & cut);
            }
            self.mark_written(at, total, lane);
            self.note_generic(at, total, lane);
        }
        drop(held);
        self.count_access(a.space, &addresses, e, total, &places);
        Ok(())
    }

    pub(super) fn count_access(
        &mut self,
        space: Space,
        addresses: &[u64; 32],
        e: u32,
        n: u32,
        places: &[Option<Where>; 32],
    ) {
        let kind = match space {
            Space::Generic => match places.iter().flatten().next() {
                Some(Where::Shared(..)) => Space::Shared,
                Some(Where::Global(..)) => Space::Global,
                _ => Space::Local,
            },
            other => other,
        };
        match kind {
            Space::Shared => self.count_shared(addresses, e, n),
            Space::Global | Space::Const => self.count_global(addresses, e, n),
            _ => {}
        }
    }

    /// Values that matrix instructions read: 16 bytes of shared memory at an address of each lane.
    pub(super) fn rows(&mut self, e: u32, addresses: &[u64; 32]) -> Run<[[u8; 16]; 32]> {
        let mut out = [[0; 16]; 32];
        let fine = self.shared_groups(e, addresses, 16, |data, group| {
            for lane in lanes(group) {
                out[lane as usize].copy_from_slice(data);
            }
        });
        if fine {
            self.count_shared(addresses, e, 16);
            return Ok(out);
        }
        let mut hint = 0;
        for lane in lanes(e) {
            let at = self.locate(Space::Shared, addresses[lane as usize], 16, lane, &mut hint)?;
            self.note(at, 16, lane, Self::PLAIN, Doing::Read, false, &mut None)?;
            self.check_written(at, 16, lane)?;
            let Where::Shared(rank, at) = at else {
                return trouble(FaultKind::InvalidOperand, lane, "the address lies outside of shared memory");
            };
            out[lane as usize].copy_from_slice(&self.blocks[rank].shared[at as usize..at as usize + 16]);
        }
        self.count_shared(addresses, e, 16);
        Ok(out)
    }
}

pub(super) fn shift(at: Where, by: u32) -> Where {
    let by = u64::from(by);
    match at {
        Where::Global(b, at) => Where::Global(b, at + by),
        Where::Shared(r, at) => Where::Shared(r, at + by),
        Where::Local(at) => Where::Local(at + by),
        Where::Param(at) => Where::Param(at + by),
    }
}

/// A loaded value in a register of its width: signed types are extended by their sign.
fn extend(v: u64, a: &Access) -> u64 {
    let bits = a.ty.bits();
    if !a.ty.signed() || bits == 64 {
        return v;
    }
    let v = ((v << (64 - bits)) as i64 >> (64 - bits)) as u64;
    match a.bits {
        64 => v,
        n => v & ((1 << n) - 1),
    }
}
