//! Addresses: which memory they name, who accesses it, and what that costs.

use std::sync::MutexGuard;

use super::{Exec, lanes};
use crate::machine::fault::{FaultKind, Run, Trouble, trouble};
use crate::machine::shadow::{ATOMIC, COPY, Conflict, PAGE, PLAIN, Page, Who};
use crate::machine::{LOCAL_WINDOW, PARAM_WINDOW, RANK_SHIFT, SHARED_WINDOW, WINDOW};
use crate::ops::Op;
use crate::parse::ast::Space;
use crate::program::Instr;

/// A place in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Where {
    /// Buffer and offset.
    Global(usize, u64),
    /// Rank of the block and offset.
    Shared(usize, u64),
    Local(u64),
    Param(u64),
}

/// What is done to a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Doing {
    Read,
    /// A write, and whether it changes nothing.
    Write {
        same: bool,
    },
}

/// An address that lies in no state space, in 64 and in its low 32 bits.
const NOWHERE: u64 = 0xffff_fff0_ffff_ff00;

/// A page of records that is held over lanes.
pub(super) type Held<'g> = Option<(usize, usize, MutexGuard<'g, Page>)>;

impl<'e> Exec<'e, '_> {
    /// The place of `n` bytes at an address of a state space, which must be aligned and within bounds.
    pub(super) fn locate(
        &self,
        space: Space,
        address: u64,
        n: u32,
        lane: u32,
        hint: &mut usize,
    ) -> Run<Where> {
        if !address.is_multiple_of(u64::from(n)) {
            return trouble(
                FaultKind::Misaligned,
                lane,
                format!("{n} bytes at {address:#x}, which is no multiple of {n}"),
            );
        }
        match space {
            Space::Global => self.locate_global(address, n, lane, hint),
            Space::Const => {
                let (buffer, at) = self.shared.memory.find(address, n, lane, hint)?;
                Ok(Where::Global(buffer, at))
            }
            Space::Shared => self.locate_shared(address, n, lane),
            Space::Local => self.locate_local(address, n, lane),
            Space::Param => self.locate_param(address, n, lane),
            Space::Generic => match address & !(WINDOW - 1) {
                SHARED_WINDOW => self.locate_shared(address - SHARED_WINDOW, n, lane),
                LOCAL_WINDOW => self.locate_local(address - LOCAL_WINDOW, n, lane),
                PARAM_WINDOW => self.locate_param(address - PARAM_WINDOW, n, lane),
                _ => self.locate_global(address, n, lane, hint),
            },
        }
    }

    fn locate_global(&self, address: u64, n: u32, lane: u32, hint: &mut usize) -> Run<Where> {
        if self.warp.waited >> lane & 1 == 0 {
            return trouble(
                FaultKind::MissingGridWait,
                lane,
                format!("{n} bytes at {address:#x}, which the launch ahead may still write or read"),
            );
        }
        let (buffer, at) = self.shared.memory.find(address, n, lane, hint)?;
        Ok(Where::Global(buffer, at))
    }

    fn locate_shared(&self, address: u64, n: u32, lane: u32) -> Run<Where> {
        let rank = match address >> RANK_SHIFT {
            0 => self.rank,
            r => (r - 1) as usize,
        };
        let within = address & ((1 << RANK_SHIFT) - 1);
        let block = self.blocks.get(rank);
        match block.and_then(|b| b.offset(within, n)) {
            Some(_) if rank != self.rank && self.blocks[rank].alive == 0 => trouble(
                FaultKind::OutOfBounds,
                lane,
                format!("shared memory of block {rank} of the cluster, whose threads have all ended"),
            ),
            Some(at) => Ok(Where::Shared(rank, at)),
            None => trouble(
                FaultKind::OutOfBounds,
                lane,
                match block {
                    Some(b) => format!(
                        "{n} bytes at {address:#x} of shared memory: byte {} of {}",
                        within as i64 - crate::machine::SHARED_BASE as i64,
                        b.shared.len()
                    ),
                    None => format!("shared memory of block {rank} of a cluster of {}", self.blocks.len()),
                },
            ),
        }
    }

    fn locate_local(&self, at: u64, n: u32, lane: u32) -> Run<Where> {
        let bytes = u64::from(self.shared.kernel.local_bytes);
        match at < bytes && at + u64::from(n) <= bytes {
            true => Ok(Where::Local(at)),
            false => {
                trouble(FaultKind::OutOfBounds, lane, format!("byte {at} of {bytes} bytes of local memory"))
            }
        }
    }

    fn locate_param(&self, at: u64, n: u32, lane: u32) -> Run<Where> {
        let bytes = self.shared.params.len() as u64;
        match at < bytes && at + u64::from(n) <= bytes {
            true => Ok(Where::Param(at)),
            false => {
                trouble(FaultKind::OutOfBounds, lane, format!("byte {at} of {bytes} bytes of arguments"))
            }
        }
    }

    /// Fails unless `n` bytes at a place were written.
    pub(super) fn check_written(&self, at: Where, n: u32, lane: u32) -> Run<()> {
        let fine = match at {
            Where::Global(b, at) => self.shared.memory.buffers[b].is_written(at, n),
            Where::Shared(rank, at) => self.blocks[rank].is_written(at, n),
            Where::Local(at) => {
                let word = self.warp.local_written[lane as usize][(at / 64) as usize];
                let mask = (1u64 << n) - 1;
                word >> (at % 64) & mask == mask
            }
            Where::Param(_) => true,
        };
        if fine {
            return Ok(());
        }
        // A copy that is under way is the likelier story.
        if let Where::Shared(rank, at) = at {
            let block = &self.blocks[rank];
            let cell = block.cells.get((at >> block.grain) as usize);
            if cell.is_some_and(|c| c.copying()) {
                return trouble(
                    FaultKind::CopyInFlight,
                    lane,
                    format!(
                        "{n} bytes at byte {at} of shared memory are read before their copy was waited for"
                    ),
                );
            }
        }
        trouble(
            FaultKind::UninitialisedMemory,
            lane,
            match at {
                Where::Global(b, at) => {
                    let b = &self.shared.memory.buffers[b];
                    format!("{n} bytes at byte {at} of a buffer of {} bytes at {:#x}", b.bytes, b.base)
                }
                Where::Shared(_, at) => format!("{n} bytes at byte {at} of shared memory"),
                Where::Local(at) | Where::Param(at) => format!("{n} bytes at byte {at} of local memory"),
            },
        )
    }

    pub(super) fn mark_written(&mut self, at: Where, n: u32, lane: u32) {
        match at {
            Where::Global(b, at) => self.shared.memory.buffers[b].mark(at, n),
            Where::Shared(rank, at) => self.blocks[rank].mark(at, n),
            Where::Local(at) => {
                self.warp.local_written[lane as usize][(at / 64) as usize] |= ((1u64 << n) - 1) << (at % 64);
            }
            Where::Param(_) => {}
        }
    }

    /// The value of up to 8 bytes.
    pub(super) fn peek(&self, at: Where, n: u32, lane: u32) -> u64 {
        let bytes = |v: &[u8], at: u64| {
            let mut out = [0; 8];
            out[..n as usize].copy_from_slice(&v[at as usize..at as usize + n as usize]);
            u64::from_le_bytes(out)
        };
        match at {
            Where::Global(b, at) => self.shared.memory.buffers[b].load(at, n),
            Where::Shared(rank, at) => self.blocks[rank].load(at, n),
            Where::Local(at) => bytes(&self.warp.local[lane as usize], at),
            Where::Param(at) => bytes(&self.shared.params, at),
        }
    }

    pub(super) fn poke(&mut self, at: Where, n: u32, lane: u32, value: u64) {
        match at {
            Where::Global(b, at) => self.shared.memory.buffers[b].store(at, n, value),
            Where::Shared(rank, at) => self.blocks[rank].store(at, n, value),
            Where::Local(at) => self.warp.local[lane as usize][at as usize..at as usize + n as usize]
                .copy_from_slice(&value.to_le_bytes()[..n as usize]),
            Where::Param(_) => {}
        }
    }

    /// The current access of a lane.
    pub(super) fn who(&self, lane: u32, kind: u64) -> Who {
        let warp = self.warp.index;
        let count = self.blocks[self.rank].clocks.now(warp, lane);
        Who { kind, thread: warp * 32 + lane, pc: self.pc, count }
    }

    /// Records an access to shared memory.
    pub(super) fn note_shared(&mut self, rank: usize, at: u64, n: u32, who: Who, doing: Doing) -> Run<()> {
        if !self.shared.options.races {
            return Ok(());
        }
        let mine = self.rank;
        let number = self.blocks[mine].number;
        if doing != Doing::Read && !self.blocks[rank].readings.is_empty() {
            self.check_readings(rank, at, n, who.thread % 32)?;
        }
        if rank != mine {
            // Blocks of a cluster: records are those of the other block, knowledge is the own.
            let mut cells = std::mem::take(&mut self.blocks[rank].cells);
            let grain = self.blocks[rank].grain;
            let clocks = &self.blocks[mine].clocks;
            let mut found = None;
            for cell in &mut cells[(at >> grain) as usize..=((at + u64::from(n) - 1) >> grain) as usize] {
                found = found.or(match doing {
                    Doing::Read => cell.read(who, number, clocks),
                    Doing::Write { same } => cell.write(who, number, clocks, same),
                });
            }
            self.blocks[rank].cells = cells;
            return match found {
                Some(c) => self.conflict(
                    who,
                    c,
                    doing,
                    &format!("byte {at} of shared memory of block {rank} of the cluster"),
                ),
                None => Ok(()),
            };
        }
        let block = &mut self.blocks[rank];
        let grain = block.grain;
        let cells = &mut block.cells[(at >> grain) as usize..=((at + u64::from(n) - 1) >> grain) as usize];
        for cell in cells {
            let found = match doing {
                Doing::Read => cell.read(who, number, &block.clocks),
                Doing::Write { same } => cell.write(who, number, &block.clocks, same),
            };
            if let Some(c) = found {
                return self.conflict(who, c, doing, &format!("byte {at} of shared memory"));
            }
        }
        Ok(())
    }

    /// Fails if a write to shared memory is not ordered before a read of the whole warp, which is not recorded.
    pub(super) fn check_read(&self, rank: usize, at: u64, n: u32, lane: u32) -> Run<()> {
        if !self.shared.options.races || rank != self.rank {
            return Ok(());
        }
        let (block, who) = (&self.blocks[rank], self.who(lane, PLAIN));
        let cells = (at >> block.grain) as usize..=((at + u64::from(n) - 1) >> block.grain) as usize;
        match block.cells[cells].iter().find_map(|c| c.check_read(who, block.number, &block.clocks)) {
            Some(c) => self.conflict(who, c, Doing::Read, &format!("byte {at} of shared memory")),
            None => Ok(()),
        }
    }

    /// Records an access to global memory.
    pub(super) fn note_global(
        &self,
        (buffer, at): (usize, u64),
        n: u32,
        who: Who,
        doing: Doing,
        constant: bool,
        held: &mut Held<'e>,
    ) -> Run<()> {
        let shared: &'e crate::machine::launch::Shared<'_> = self.shared;
        let Some(shadow) = &shared.shadow else { return Ok(()) };
        let number = self.blocks[self.rank].number;
        let (first, last) = (at >> shadow.grain, (at + u64::from(n) - 1) >> shadow.grain);
        for place in first..=last {
            let (page, slot) = ((place / PAGE as u64) as usize, (place % PAGE as u64) as usize);
            if held.as_ref().is_none_or(|(b, p, _)| (*b, *p) != (buffer, page)) {
                *held = None;
                *held = Some((buffer, page, shadow.page(buffer, page).lock().expect("no panic")));
            }
            let Some((_, _, guard)) = held else { continue };
            let (word, bit) = (slot / 64, 1u64 << (slot % 64));
            if constant {
                if guard.written[word] & bit != 0 {
                    return trouble(
                        FaultKind::WriteToConstant,
                        who.thread % 32,
                        format!(
                            "{}: read through the non-coherent path, written by the same launch",
                            self.named(buffer, at)
                        ),
                    );
                }
                guard.constant[word] |= bit;
                guard.constant_pc = self.pc;
                continue;
            }
            if doing != Doing::Read {
                if guard.constant[word] & bit != 0 {
                    let mut t = Trouble {
                        kind: FaultKind::WriteToConstant,
                        lane: who.thread % 32,
                        message: format!(
                            "{}: written, though the launch reads it through the non-coherent path",
                            self.named(buffer, at)
                        ),
                        other: None,
                        pc: None,
                    };
                    t.other = Some(("a read near there", number, who.thread, guard.constant_pc));
                    return Err(Box::new(t));
                }
                guard.written[word] |= bit;
            }
            let clocks = &self.blocks[self.rank].clocks;
            let cell = &mut guard.cells[slot];
            let found = match doing {
                Doing::Read => cell.read(who, number, clocks),
                Doing::Write { same } => cell.write(who, number, clocks, same),
            };
            if let Some(c) = found {
                return self.conflict(who, c, doing, &self.named(buffer, at));
            }
        }
        Ok(())
    }

    fn named(&self, buffer: usize, at: u64) -> String {
        let b = &self.shared.memory.buffers[buffer];
        format!("byte {at} of a buffer of {} bytes at {:#x}", b.bytes, b.base)
    }

    fn conflict(&self, who: Who, c: Conflict, doing: Doing, place: &str) -> Run<()> {
        let number = self.blocks[self.rank].number;
        let kind = match c.who.kind {
            COPY => FaultKind::CopyInFlight,
            _ if c.block != number => FaultKind::BlockRace,
            _ => FaultKind::Race,
        };
        let mine = match (doing, who.kind) {
            (_, ATOMIC) => "an atomic operation",
            (Doing::Read, _) => "a read",
            (_, COPY) => "an asynchronous copy",
            _ => "a write",
        };
        let other = match (c.write, c.who.kind) {
            (_, COPY) => "an asynchronous copy",
            (_, ATOMIC) => "an atomic operation",
            (true, _) => "a write",
            (false, _) => "a read",
        };
        let message = match kind {
            FaultKind::CopyInFlight => format!("{place}: {mine} meets {other} that was not waited for"),
            _ => format!("{place}: {mine} and {other}, nothing orders them"),
        };
        Err(Box::new(Trouble {
            kind,
            lane: who.thread % 32,
            message,
            other: Some((other, c.block, c.who.thread, c.who.pc)),
            pc: None,
        }))
    }

    /// Records an access of any space.
    pub(super) fn note(
        &mut self,
        at: Where,
        n: u32,
        lane: u32,
        kind: u64,
        doing: Doing,
        constant: bool,
        held: &mut Held<'e>,
    ) -> Run<()> {
        match at {
            Where::Global(b, at) => {
                if doing != Doing::Read && self.shared.memory.buffers[b].constant {
                    return trouble(
                        FaultKind::WriteToConstant,
                        lane,
                        "a variable in .const memory is written",
                    );
                }
                if let Some(touched) = &self.shared.touched {
                    touched.global(b, at, n, doing != Doing::Read);
                }
                self.note_global((b, at), n, self.who(lane, kind), doing, constant, held)
            }
            Where::Shared(rank, at) => {
                let who = self.who(lane, kind);
                self.note_shared(rank, at, n, who, doing)
            }
            Where::Local(_) => Ok(()),
            Where::Param(_) => match doing {
                Doing::Read => Ok(()),
                Doing::Write { .. } => trouble(FaultKind::WriteToConstant, lane, "an argument is written"),
            },
        }
    }

    pub(super) const PLAIN: u64 = PLAIN;

    /// Counts bank conflicts of an access to shared memory: 32 banks of 4 bytes; 8 and 16 bytes a lane go in halves
    /// and quarters of a warp.
    pub(super) fn count_shared(&mut self, addresses: &[u64; 32], e: u32, n: u32) {
        if !self.shared.options.counters {
            return;
        }
        // Pieces of a lane's size fall on as many places as fit beside each other in the banks.
        let size = n.clamp(4, 128);
        let places = (128 / size) as usize;
        let (mut waves, mut ideal) = (0u64, 0u64);
        for g in 0..32 / places {
            let part = e >> (g * places) & if places == 32 { u32::MAX } else { (1 << places) - 1 };
            if part == 0 {
                continue;
            }
            ideal += 1;
            let of = |lane: u32| (addresses[g * places + lane as usize] / u64::from(size)) as u32;
            let mut tags = [u32::MAX; 32];
            let alone = lanes(part).all(|lane| {
                let piece = of(lane);
                let tag = &mut tags[piece as usize % places];
                if *tag == u32::MAX {
                    *tag = piece;
                }
                *tag == piece
            });
            if alone {
                waves += 1;
                continue;
            }
            let mut list: Vec<u32> = lanes(part).map(of).collect();
            list.sort_unstable();
            list.dedup();
            let mut banks = [0u8; 32];
            list.iter().for_each(|piece| banks[*piece as usize % places] += 1);
            waves += u64::from(*banks.iter().max().unwrap_or(&1));
        }
        let c = &mut self.counts[self.pc as usize];
        c.wavefronts += waves;
        c.ideal += ideal;
    }

    /// Counts sectors of 32 bytes, and how much of them is used.
    pub(super) fn count_global(&mut self, addresses: &[u64; 32], e: u32, n: u32) {
        if !self.shared.options.counters {
            return;
        }
        let mut list = [0u64; 32];
        let mut count = 0;
        for lane in lanes(e) {
            list[count] = addresses[lane as usize];
            count += 1;
        }
        let list = &mut list[..count];
        if !list.is_sorted() {
            list.sort_unstable();
        }
        let (mut sectors, mut used) = (0u64, 0u64);
        let (mut last, mut end) = (u64::MAX, 0);
        for &a in list.iter() {
            for sector in a / 32..=(a + u64::from(n) - 1) / 32 {
                if sector != last {
                    sectors += 1;
                    last = sector;
                }
            }
            let from = a.max(end);
            used += (a + u64::from(n)).saturating_sub(from);
            end = a + u64::from(n);
        }
        let c = &mut self.counts[self.pc as usize];
        c.sectors += sectors;
        c.bytes += used;
    }

    /// `cvta`, `isspacep`, `mapa` and `getctarank`, PTX ISA 9.7.9.20 to 9.7.9.24.
    pub(super) fn address(&mut self, i: &Instr, e: u32) -> Run<()> {
        let a = self.wide(i, 0);
        let window = |space: Space| match space {
            Space::Shared => SHARED_WINDOW,
            Space::Local => LOCAL_WINDOW,
            Space::Param => PARAM_WINDOW,
            _ => 0,
        };
        match i.op {
            Op::Cvta { to, space, wide } => {
                let base = window(space);
                let mut v = [0; 32];
                for lane in lanes(e) {
                    let l = lane as usize;
                    v[l] = if base == 0 {
                        a[l]
                    } else if !to {
                        a[l].wrapping_add(base)
                    } else if wide && a[l] & !(WINDOW - 1) != base {
                        // The compiler may convert a pointer that no lane uses: whoever does is out of bounds.
                        NOWHERE
                    } else {
                        a[l] & (WINDOW - 1)
                    };
                }
                if wide { self.set64(i.d[0], e, &v) } else { self.set32(i.d[0], e, &v.map(|v| v as u32)) }
            }
            Op::IsSpace(space) => {
                let mut mask = 0;
                for l in 0..32 {
                    let at = a[l] & !(WINDOW - 1);
                    let windows = [SHARED_WINDOW, LOCAL_WINDOW, PARAM_WINDOW];
                    let holds = match space {
                        Space::Global | Space::Const => {
                            let memory = &self.shared.memory;
                            let constant = memory.index(a[l]).is_some_and(|b| memory.buffers[b].constant);
                            !windows.contains(&at) && constant == (space == Space::Const)
                        }
                        _ => at == window(space),
                    };
                    mask |= u32::from(holds) << l;
                }
                self.set_pred(i.d[0], e, mask);
            }
            Op::Mapa { generic } => {
                let ranks = *self.a32(i.s[1]);
                let mut v = [0; 32];
                for lane in lanes(e) {
                    let (l, rank) = (lane as usize, ranks[lane as usize]);
                    if rank as usize >= self.blocks.len() {
                        return trouble(
                            FaultKind::InvalidOperand,
                            lane,
                            format!("block {rank} of a cluster of {}", self.blocks.len()),
                        );
                    }
                    let within = a[l] & ((1 << RANK_SHIFT) - 1);
                    let base = if generic { SHARED_WINDOW } else { 0 };
                    v[l] = base | u64::from(rank + 1) << RANK_SHIFT | within;
                }
                if generic { self.set64(i.d[0], e, &v) } else { self.set32(i.d[0], e, &v.map(|v| v as u32)) }
            }
            _ => {
                let own = self.rank as u32;
                let v = a.map(|a| match (a & (WINDOW - 1)) >> RANK_SHIFT {
                    0 => own,
                    r => r as u32 - 1,
                });
                self.set32(i.d[0], e, &v);
            }
        }
        Ok(())
    }
}
