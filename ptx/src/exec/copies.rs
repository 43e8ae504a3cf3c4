//! `cp.async`, PTX ISA 9.7.9.25.3: copies to shared memory that a thread waits for in groups.

use super::spaces::{Doing, Where};
use super::{Exec, lanes};
use crate::machine::Copies;
use crate::machine::fault::{FaultKind, Run, trouble};
use crate::machine::shadow::{COPY, PLAIN, Who};
use crate::machine::warp::Pending;
use crate::ops::Op;
use crate::parse::ast::Space;
use crate::program::Instr;

impl Exec<'_, '_> {
    pub(super) fn cp_async(&mut self, i: &Instr, e: u32) -> Run<()> {
        let Op::CpAsync { bytes, zfill, ignore } = i.op else { return Ok(()) };
        let n = u32::from(bytes);
        let to = self.addresses(i, 0);
        let offsets = *self.a64(self.src(i, 2));
        let from = self.wide(i, 1);
        let from: [u64; 32] = std::array::from_fn(|l| from[l].wrapping_add(offsets[l]));
        let sizes = if zfill { *self.a32(self.src(i, 3)) } else { [n; 32] };
        let skip = if ignore { self.pred(self.src(i, 3)) } else { 0 };
        let (mut hint, mut held) = (usize::MAX, None);
        let mut reading = 0;
        for lane in lanes(e) {
            let l = lane as usize;
            let size = if skip >> lane & 1 != 0 { 0 } else { sizes[l] };
            if size > n {
                return trouble(FaultKind::InvalidOperand, lane, format!("{size} bytes of a copy of {n}"));
            }
            let at = self.locate(Space::Shared, to[l], n, lane, &mut 0)?;
            let mut data = [0; 16];
            if size > 0 {
                if !from[l].is_multiple_of(u64::from(n)) {
                    return trouble(
                        FaultKind::Misaligned,
                        lane,
                        format!("a copy of {n} bytes from {:#x}", from[l]),
                    );
                }
                reading |= 1 << lane;
                // Bytes past `size` are not read. The narrower pieces below stay aligned.
                let mut done = 0;
                while done < size {
                    let piece =
                        [16, 8, 4, 2, 1].into_iter().find(|p| done + p <= size && done % p == 0).unwrap_or(1);
                    let piece = piece.min(8);
                    let source =
                        self.locate(Space::Global, from[l] + u64::from(done), piece, lane, &mut hint)?;
                    self.note(source, piece, lane, PLAIN, Doing::Read, false, &mut held)?;
                    self.check_written(source, piece, lane)?;
                    let v = self.peek(source, piece, lane).to_le_bytes();
                    data[done as usize..(done + piece) as usize].copy_from_slice(&v[..piece as usize]);
                    done += piece;
                }
            }
            let Where::Shared(rank, at) = at else { continue };
            let who = self.who(lane, COPY);
            self.note_shared(rank, at, n, who, Doing::Write { same: false })?;
            // Until the copy has landed, the place holds nothing.
            let block = &mut self.blocks[rank];
            for b in at..at + u64::from(n) {
                block.written[(b / 64) as usize] &= !(1 << (b % 64));
            }
            if self.shared.options.copies == Copies::Early {
                block.shared[at as usize..at as usize + n as usize].copy_from_slice(&data[..n as usize]);
            }
            let group = self.warp.committed[l];
            self.warp.pending.push(Pending { lane, group, to: at, bytes: n, data, pc: self.pc });
        }
        drop(held);
        if reading != 0 {
            self.count_global(&from, reading, n);
        }
        Ok(())
    }

    /// Waits until at most `n` of the newest groups are under way; `None` waits for everything.
    pub(super) fn cp_wait(&mut self, e: u32, n: Option<u32>) -> Run<()> {
        let before = self.warp.committed.map(|c| n.map_or(u32::MAX, |n| c.saturating_sub(n)));
        self.land_all(e, &before);
        Ok(())
    }

    /// Ends the copies of a lane in groups before a number.
    pub(super) fn land(&mut self, lane: u32, before: u32) -> Run<()> {
        self.land_all(1 << lane, &[before; 32]);
        Ok(())
    }

    fn land_all(&mut self, e: u32, before: &[u32; 32]) {
        let warp = self.warp.index;
        let block = &mut self.blocks[self.rank];
        let (grain, number) = (block.grain, block.number);
        self.warp.pending.retain(|p| {
            if e >> p.lane & 1 == 0 || p.group >= before[p.lane as usize] {
                return true;
            }
            block.shared[p.to as usize..(p.to + u64::from(p.bytes)) as usize]
                .copy_from_slice(&p.data[..p.bytes as usize]);
            block.mark(p.to, p.bytes);
            if !block.cells.is_empty() {
                let count = block.clocks.now(warp, p.lane);
                let who = Who { kind: PLAIN, thread: warp * 32 + p.lane, pc: p.pc, count };
                for c in (p.to >> grain)..=((p.to + u64::from(p.bytes) - 1) >> grain) {
                    block.cells[c as usize].settle(who, number);
                }
            }
            false
        });
    }
}
