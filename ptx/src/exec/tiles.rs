//! Bulk copies by tensor map, `cp.async.bulk.tensor` in mode `.tile`, PTX ISA 9.7.9.27.

use super::bulk::{in_blocks, shared_space};
use super::memory::shift;
use super::spaces::{Doing, Where};
use super::{Exec, lanes};
use crate::machine::block::Pieces;
use crate::machine::fault::{FaultKind, Run, trouble};
use crate::machine::shadow::PLAIN;
use crate::parse::ast::Space;
use crate::program::Instr;
use crate::tensor_map::TensorMap;

/// The most bytes of a box that are looked at: more than shared memory has.
const MOST: u64 = 1 << 20;

/// What a lane copies.
struct Tile {
    map: TensorMap,
    coordinates: [i32; 5],
    /// Address in shared memory.
    shared: u64,
}

/// Sectors and bytes of global memory, counted row by row.
#[derive(Default)]
struct Moved {
    sectors: u64,
    bytes: u64,
    last: Option<u64>,
}

impl Moved {
    fn add(&mut self, address: u64, bytes: u32) {
        let (first, last) = (address / 32, (address + u64::from(bytes) - 1) / 32);
        self.sectors += last - first + 1 - u64::from(self.last == Some(first));
        self.bytes += u64::from(bytes);
        self.last = Some(last);
    }
}

/// Pieces of 1, 2, 4, 8 or 16 bytes at multiples of their size, as (offset, size).
fn spans(address: u64, bytes: u32) -> impl Iterator<Item = (u32, u32)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = address.wrapping_add(u64::from(done));
        let n =
            [16, 8, 4, 2, 1].into_iter().find(|n| done + n <= bytes && at.is_multiple_of(u64::from(*n)))?;
        done += n;
        Some((done - n, n))
    })
}

fn copy_out(values: [u64; 2], to: &mut [u8]) {
    let mut all = [0; 16];
    all[..8].copy_from_slice(&values[0].to_le_bytes());
    all[8..].copy_from_slice(&values[1].to_le_bytes());
    to.copy_from_slice(&all[..to.len()]);
}

fn copy_in(from: &[u8]) -> [u64; 2] {
    let mut all = [0; 16];
    all[..from.len()].copy_from_slice(from);
    let value = u128::from_le_bytes(all);
    [value as u64, (value >> 64) as u64]
}

impl Exec<'_, '_> {
    /// The map at a generic address, for an instruction of so many dimensions.
    fn tensor_map(&self, address: u64, rank: u8, lane: u32) -> Run<TensorMap> {
        if !address.is_multiple_of(64) {
            return trouble(
                FaultKind::Misaligned,
                lane,
                format!("a tensor map at {address:#x}, which is no multiple of 64"),
            );
        }
        let mut bytes = [0; 128];
        let (mut hint, mut held) = (usize::MAX, None);
        for (k, word) in bytes.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let at = self.locate(Space::Generic, address.wrapping_add(8 * k as u64), 8, lane, &mut hint)?;
            match at {
                Where::Global(buffer, at) => {
                    let who = self.who(lane, PLAIN);
                    self.note_global((buffer, at), 8, who, Doing::Read, false, &mut held)?;
                }
                Where::Param(_) => {}
                _ => {
                    return trouble(
                        FaultKind::InvalidOperand,
                        lane,
                        format!("a tensor map at {address:#x}: it lies in .param, .const or .global memory"),
                    );
                }
            }
            self.check_written(at, 8, lane)?;
            *word = self.peek(at, 8, lane).to_le_bytes();
        }
        match TensorMap::decode(&bytes) {
            Some(map) if map.rank() == usize::from(rank) => Ok(map),
            Some(map) => trouble(
                FaultKind::InvalidOperand,
                lane,
                format!("{map}: {} dimensions, the instruction has {rank}", map.rank()),
            ),
            None => trouble(
                FaultKind::InvalidOperand,
                lane,
                format!("the 128 bytes at {address:#x} are no tensor map of cuTensorMapEncodeTiled"),
            ),
        }
    }

    /// Operands: shared memory, map, mbarrier, offsets of the last two, mask of blocks, coordinates.
    fn tile(&self, i: &Instr, rank: u8, lane: u32) -> Run<Tile> {
        let l = lane as usize;
        let address = self.wide(i, 1)[l].wrapping_add(self.a64(self.src(i, 3))[l]);
        let map = self.tensor_map(address, rank, lane)?;
        let mut coordinates = [0; 5];
        for (d, to) in coordinates.iter_mut().enumerate().take(usize::from(rank)) {
            *to = self.a32(self.src(i, 6 + d))[l] as i32;
        }
        let shared = self.addresses(i, 0)[l];
        if !shared.is_multiple_of(128) {
            return trouble(
                FaultKind::Misaligned,
                lane,
                format!("a copy by tensor map at {shared:#x} of shared memory, which is no multiple of 128"),
            );
        }
        if map.box_bytes() > MOST {
            return trouble(
                FaultKind::OutOfBounds,
                lane,
                format!("a box of {} bytes in shared memory", map.box_bytes()),
            );
        }
        Ok(Tile { map, coordinates, shared })
    }

    fn count_moved(&mut self, moved: &Moved) {
        let c = &mut self.counts[self.pc as usize];
        c.sectors += moved.sectors;
        c.bytes += moved.bytes;
    }

    pub(super) fn load_tensor(&mut self, i: &Instr, e: u32, rank: u8, multicast: bool) -> Run<()> {
        for lane in lanes(e) {
            let Tile { map, coordinates, shared } = self.tile(i, rank, lane)?;
            let bar = self.wide(i, 2)[lane as usize].wrapping_add(self.a64(self.src(i, 4))[lane as usize]);
            let mask = multicast.then(|| self.a32(self.src(i, 5))[lane as usize]);
            let (targets, bars) = (in_blocks(shared, mask), in_blocks(bar, mask));
            let bytes = map.row_bytes();
            let mut row = vec![0; bytes as usize];
            let (mut hint, mut held, mut moved) = (usize::MAX, None, Moved::default());
            for r in 0..map.rows() {
                row.chunks_exact_mut(16).for_each(|piece| piece.copy_from_slice(&map.filling()));
                if let Some((from, to, address)) = map.inside(&coordinates, r) {
                    let inside = &mut row[from as usize..to as usize];
                    for (at, n) in spans(address, to - from) {
                        let source = self.locate(
                            Space::Global,
                            address.wrapping_add(u64::from(at)),
                            n,
                            lane,
                            &mut hint,
                        )?;
                        let values = self.take_async(source, n, lane, &mut held)?;
                        copy_out(values, &mut inside[at as usize..(at + n) as usize]);
                    }
                    if map.element().flushes() {
                        for v in inside.chunks_exact_mut(4).filter(|v| v[3] & 0x7f == 0 && v[2] & 0x80 == 0) {
                            v.copy_from_slice(&[0, 0, 0, v[3] & 0x80]);
                        }
                    }
                    moved.add(address, to - from);
                }
                for target in &targets {
                    for (k, piece) in row.chunks_exact(16).enumerate() {
                        let at =
                            map.swizzle().apply(target.wrapping_add(r * u64::from(bytes) + 16 * k as u64));
                        let at = self.locate(shared_space(*target), at, 16, lane, &mut 0)?;
                        self.put_async(at, 16, lane, copy_in(piece), &mut held)?;
                    }
                }
            }
            drop(held);
            // Bytes outside of the tensor count as well.
            self.complete_bytes(&bars, map.box_bytes(), lane)?;
            self.count_moved(&moved);
        }
        Ok(())
    }

    pub(super) fn store_tensor(&mut self, i: &Instr, e: u32, rank: u8) -> Run<()> {
        for lane in lanes(e) {
            let Tile { map, coordinates, shared } = self.tile(i, rank, lane)?;
            let bytes = map.row_bytes();
            let mut row = vec![0; bytes as usize];
            let mut pieces = Pieces::default();
            let (mut hint, mut held, mut moved) = (usize::MAX, None, Moved::default());
            for r in 0..map.rows() {
                let Some((from, to, address)) = map.inside(&coordinates, r) else { continue };
                for piece in (from / 16 * 16..to).step_by(16) {
                    let at =
                        map.swizzle().apply(shared.wrapping_add(r * u64::from(bytes) + u64::from(piece)));
                    let at = self.locate(shared_space(shared), at, 16, lane, &mut 0)?;
                    if let Where::Shared(_, at) = at {
                        pieces.insert(at / 16);
                    }
                    let (first, last) = (from.max(piece), to.min(piece + 16));
                    for (k, n) in spans(u64::from(first), last - first) {
                        let values = self.take_async(shift(at, first - piece + k), n, lane, &mut held)?;
                        copy_out(values, &mut row[(first + k) as usize..(first + k + n) as usize]);
                    }
                }
                for (k, n) in spans(address, to - from) {
                    let target =
                        self.locate(Space::Global, address.wrapping_add(u64::from(k)), n, lane, &mut hint)?;
                    let values = copy_in(&row[(from + k) as usize..(from + k + n) as usize]);
                    self.put_async(target, n, lane, values, &mut held)?;
                }
                moved.add(address, to - from);
            }
            drop(held);
            self.note_reading(lane, pieces);
            self.count_moved(&moved);
        }
        Ok(())
    }
}
