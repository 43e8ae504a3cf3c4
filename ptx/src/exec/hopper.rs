//! mbarriers and the asynchronous proxy of compute capability 9.0, PTX ISA 9.7.13.15.

use super::spaces::{Doing, Where};
use super::{Exec, Flow, lanes};
use crate::machine::block::{Block, Mbarrier};
use crate::machine::fault::{FaultKind, Run, Trouble, trouble};
use crate::machine::shadow::{PLAIN, Who};
use crate::ops::Mbar;
use crate::program::Instr;

impl Exec<'_, '_> {
    /// The rank and offset of an mbarrier object.
    fn mbarrier_at(&self, address: u64, lane: u32) -> Run<(usize, u64)> {
        match self.locate(super::bulk::shared_space(address), address, 8, lane, &mut 0)? {
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

    /// Ends a bulk copy of so many bytes on mbarriers.
    pub(super) fn complete_bytes(&mut self, bars: &[u64], bytes: u64, lane: u32) -> Run<()> {
        let known = self.blocks[self.rank].clocks.release(self.warp.index, lane);
        for bar in bars {
            let at = self.mbarrier_at(*bar, lane)?;
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
            m.tx -= bytes as i64;
            m.join(from, &known);
            m.advance();
        }
        Ok(())
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
        if self.blocks[rank].generic_writes.is_empty() {
            return Ok(());
        }
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
