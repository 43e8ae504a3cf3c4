//! Copies by tensor map, `cp.async.bulk.tensor` (PTX ISA 9.7.9.27).

use super::modifiers::Modifiers;
use super::operands::V;
use super::{Lower, Result};
use crate::ops::{Bulk, Op};
use crate::parse::ast::{Arg, Instruction, Space, Ty};

impl Lower<'_> {
    /// `[map, {coordinates}]`: the map's address, its offset, and the coordinates.
    fn place_in_tensor(&mut self, arg: &Arg, rank: usize) -> Result<(V, i64, Vec<V>)> {
        let Arg::Memory(parts, offset) = arg else {
            return self.fail(format!("expected a place in a tensor, found {arg:?}"));
        };
        let [map, Arg::Vector(coordinates)] = parts.as_slice() else {
            return self.fail("expected [map, {coordinates}]");
        };
        if coordinates.len() != rank {
            return self.fail(format!("{} coordinates of {rank} dimensions", coordinates.len()));
        }
        let (base, offset, named) = self.base(map, *offset)?;
        if named.is_some_and(|space| space != Space::Global) {
            return self.fail("the address of a tensor map is generic");
        }
        let coordinates = coordinates.iter().map(|c| self.src(c, Ty::S32)).collect::<Result<_>>()?;
        Ok((base, offset, coordinates))
    }

    /// The operands of a copy are those of the instruction in an order of their own: shared memory, map, mbarrier, offsets
    /// of the last two, mask of blocks, coordinates.
    pub(super) fn tensor(&mut self, i: &Instruction, m: &mut Modifiers, prefetch: bool) -> Result<bool> {
        let rank = m.one_of(&[("1d", 1u8), ("2d", 2), ("3d", 3), ("4d", 4), ("5d", 5)]);
        let Some(rank) = rank else { return m.fail("one of .1d to .5d is needed") };
        let dimensions = usize::from(rank);
        m.take("tile");
        let multicast = m.take("multicast::cluster");
        let policy = usize::from(Self::cache_hints(m));
        if prefetch {
            m.must("L2")?;
            m.must("global")?;
            self.place_in_tensor(&self.args(i, &[1 + policy])?[0], dimensions)?;
            self.emit(Op::Bulk(Bulk::Prefetch), vec![], vec![]);
            return Ok(true);
        }
        m.must("global")?;
        let (cluster, cta) = (m.take("shared::cluster"), m.take("shared::cta"));
        let first = i.modifiers.iter().position(|x| x == "global");
        let to_shared = i.modifiers.iter().position(|x| x.starts_with("shared::")) < first;
        if cluster == cta || !to_shared && cluster {
            return m.fail("this direction is not supported");
        }
        let s = if to_shared {
            m.must("mbarrier::complete_tx::bytes")?;
            if multicast && !cluster {
                return m.fail("a copy to several blocks goes to .shared::cluster");
            }
            let args = self.args(i, &[3 + usize::from(multicast) + policy])?;
            let (shared, shared_offset, _) = self.address(&args[0])?;
            let (map, map_offset, coordinates) = self.place_in_tensor(&args[1], dimensions)?;
            let (bar, bar_offset, _) = self.address(&args[2])?;
            let mask = if multicast { self.src(&args[3], Ty::U16)? } else { V::C32(0) };
            let s = [shared, map, bar, V::C64(map_offset as u64), V::C64(bar_offset as u64), mask];
            (shared_offset, s, coordinates, Bulk::TensorLoad { rank, multicast })
        } else {
            m.must("bulk_group")?;
            let args = self.args(i, &[2 + policy])?;
            let (map, map_offset, coordinates) = self.place_in_tensor(&args[0], dimensions)?;
            let (shared, shared_offset, _) = self.address(&args[1])?;
            // Boxes may begin and end at any element.
            self.note_width(Space::Global, 1);
            let s = [shared, map, V::C64(0), V::C64(map_offset as u64), V::C64(0), V::C32(0)];
            (shared_offset, s, coordinates, Bulk::TensorStore(rank))
        };
        let (offset, first, coordinates, kind) = s;
        let s = first.into_iter().chain(coordinates).collect();
        self.emit(Op::Bulk(kind), vec![], s).imm = offset;
        Ok(true)
    }
}
