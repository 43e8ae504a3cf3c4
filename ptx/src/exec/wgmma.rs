//! `wgmma.mma_async`, PTX ISA 9.7.15: products of a warpgroup with operands in shared memory.
//!
//! A warp computes its own 16 of the 64 rows, at once; the products are complete where a device may take until
//! `wgmma.wait_group`.

use std::collections::HashSet;

use super::spaces::Where;
use super::{Exec, lanes};
use crate::machine::block::Reading;
use crate::machine::fault::{FaultKind, Run, Trouble, trouble};
use crate::ops::{Op, W, WgType, Wgmma};
use crate::parse::ast::Space;
use crate::program::Instr;

/// A matrix descriptor, PTX ISA 9.7.15.5.1.2.2.
#[derive(Clone, Copy, Debug)]
struct Descriptor {
    start: u64,
    leading: u64,
    stride: u64,
    /// Bytes of a swizzled row: 16 where nothing is swizzled.
    row: u64,
}

impl Descriptor {
    /// `transposed`: rows run along the contiguous dimension. Without a swizzle the two offsets then change places.
    fn new(bits: u64, transposed: bool) -> Result<Descriptor, &'static str> {
        let field = |at: u32| (bits >> at & 0x3fff) << 4;
        let row = [16, 128, 64, 32][(bits >> 62) as usize];
        if bits >> 49 & 7 != 0 {
            return Err("a base offset in a matrix descriptor is not supported");
        }
        let (mut leading, mut stride) = (field(16), field(32));
        if transposed && row == 16 {
            (leading, stride) = (stride, leading);
        }
        Ok(Descriptor { start: field(0), leading, stride, row })
    }

    /// Address of the byte at (major, minor): `minor` runs along the contiguous dimension, both in units of that
    /// dimension, `size` bytes an element.
    ///
    /// Eight rows of `row` bytes make an atom. Atoms follow each other by `stride` along the other dimension, and by
    /// `leading` along the contiguous one.
    fn address(self, outer: u64, inner: u64, size: u64) -> u64 {
        let byte = inner * size;
        let (chunk, within) = (byte / self.row, byte % self.row);
        let linear =
            self.start + outer / 8 * self.stride + chunk * self.leading + outer % 8 * self.row + within;
        // Swizzling: bits 4 to 6 take the exclusive or with bits 7 to 9, as many as the row has.
        let bits = (self.row / 32).trailing_zeros() + 1;
        if self.row == 16 {
            return linear;
        }
        let mask = (1u64 << bits) - 1;
        linear ^ (linear >> 7 & mask) << 4
    }
}

/// Whether destinations are registers of at most 32 bits, of the instructions that may meet a sum.
fn writes32(op: Op) -> bool {
    match op {
        Op::Mov32 | Op::Selp32 | Op::Unpack(_) | Op::Lop3(_) | Op::Shf { .. } | Op::Prmt(_) | Op::Mma(_) => {
            true
        }
        Op::F32 { .. } | Op::Fma32 { .. } | Op::MinMax32 { .. } | Op::Neg32 { .. } | Op::Abs32 { .. } => true,
        Op::Half { .. } | Op::CvtPair { .. } | Op::Ldmatrix { .. } | Op::Shfl { pred: false, .. } => true,
        Op::Int(_, w) | Op::Unary(_, w) | Op::MadLo(w) => w != W::B64,
        Op::Cvt(c) => c.to_bits < 64,
        Op::Ld(a) => !a.wide,
        _ => false,
    }
}

impl Exec<'_, '_> {
    /// An element of an operand; the pieces of shared memory that were read are added to `pieces`.
    fn element(&mut self, address: u64, ty: WgType, lane: u32, pieces: &mut HashSet<u64>) -> Run<f32> {
        let size = if ty == WgType::Tf32 { 4 } else { 2 };
        let at = self.locate(Space::Shared, address, size, lane, &mut 0)?;
        self.check_proxy(at, lane)?;
        self.check_written(at, size, lane)?;
        if let Where::Shared(rank, at) = at
            && pieces.insert(at / 16)
        {
            self.check_read(rank, at / 16 * 16, 16, lane)?;
        }
        let v = self.peek(at, size, lane) as u32;
        Ok(match ty {
            WgType::Tf32 => super::tensor::tf32(v),
            WgType::Bf16 => f32::from_bits(v << 16),
            WgType::F16 => half::f16::from_bits(v as u16).to_f32(),
        })
    }

    /// Fails if an instruction reads or writes sums of a product that was not waited for. Products that go on adding to
    /// them may.
    pub(super) fn check_products(&self, i: &Instr, e: u32) -> Run<()> {
        if e == 0 || matches!(i.op, Op::WgMma(_)) {
            return Ok(());
        }
        let busy = |slot: i32| slot >= 0 && self.warp.products.iter().any(|(_, s)| s.contains(&slot));
        let what = if (0..usize::from(i.srcs).min(8)).any(|n| i.narrow >> n & 1 != 0 && busy(self.src(i, n)))
        {
            "read"
        } else if writes32(i.op) && (0..usize::from(i.dsts)).any(|n| busy(self.dst(i, n))) {
            "written"
        } else {
            return Ok(());
        };
        trouble(
            FaultKind::CopyInFlight,
            e.trailing_zeros(),
            format!("a sum of wgmma is {what} before wgmma.wait_group"),
        )
    }

    /// Fails if a product or bulk copy under way reads what is about to be written.
    pub(super) fn check_readings(&self, rank: usize, at: u64, n: u32, lane: u32) -> Run<()> {
        let block = &self.blocks[rank];
        let pieces = at / 16..=(at + u64::from(n) - 1) / 16;
        match block.readings.iter().find(|r| pieces.clone().any(|p| r.pieces.contains(&p))) {
            None => Ok(()),
            Some(r) => {
                let (what, wait) = match r.lane {
                    None => ("a product", "wgmma.wait_group"),
                    Some(_) => ("a bulk copy", "cp.async.bulk.wait_group"),
                };
                Err(Box::new(Trouble {
                    kind: FaultKind::CopyInFlight,
                    lane,
                    message: format!(
                        "byte {at} of shared memory is written while {what} reads it: {wait} is missing"
                    ),
                    other: Some((what, block.number, r.warp * 32 + r.lane.unwrap_or(0), r.pc)),
                    pc: None,
                }))
            }
        }
    }

    /// `wgmma.commit_group` and `wgmma.wait_group`: at most `n` of the newest groups stay under way.
    pub(super) fn wait_products(&mut self, n: u32) {
        let before = self.warp.product_groups.saturating_sub(n);
        self.warp.products.retain(|(group, _)| *group >= before);
        let warp = self.warp.index;
        self.block().readings.retain(|r| r.lane.is_some() || r.warp != warp || r.group >= before);
    }

    pub(super) fn wgmma(&mut self, i: &Instr, m: u32, w: Wgmma) -> Run<()> {
        let n = usize::from(w.n);
        let (k, size) = if w.ty == WgType::Tf32 { (8, 4) } else { (16, 2) };
        let warp = self.warp.index % 4;
        let uniform = |this: &Self, s: usize| -> Run<u64> {
            let v = this.a64(this.src(i, s));
            match lanes(m).find(|l| v[*l as usize] != v[m.trailing_zeros() as usize]) {
                Some(lane) => {
                    trouble(FaultKind::InvalidOperand, lane, "lanes give different matrix descriptors")
                }
                None => Ok(v[m.trailing_zeros() as usize]),
            }
        };
        if !self.warp.product_fence {
            let lane = m.trailing_zeros();
            return trouble(
                FaultKind::CopyInFlight,
                lane,
                "a warp's first wgmma needs wgmma.fence before it",
            );
        }
        let scale = self.pred(self.src(i, 0)) & m;
        if scale != 0 && scale != m {
            return trouble(
                FaultKind::InvalidOperand,
                m.trailing_zeros(),
                "lanes give different scales of D",
            );
        }
        let wrong = |message: &'static str| {
            let (kind, lane) = (FaultKind::InvalidOperand, m.trailing_zeros());
            Box::new(Trouble { kind, lane, message: message.into(), other: None, pc: None })
        };
        let mut pieces = HashSet::new();
        let na = if w.a_regs { 4 } else { 1 };
        let mut a = vec![[0f32; 16]; 16];
        if w.a_regs {
            for r in 0..4 {
                let v = *self.a32(self.src(i, 1 + r));
                for (l, v) in v.iter().enumerate() {
                    let (g, t) = (l / 4, l % 4);
                    let row = g + 8 * (r % 2);
                    match w.ty {
                        WgType::Tf32 => a[row][t + 4 * (r / 2)] = super::tensor::tf32(*v),
                        _ => {
                            for h in 0..2 {
                                let bits = *v >> (16 * h) & 0xffff;
                                a[row][2 * t + 8 * (r / 2) + h] = match w.ty {
                                    WgType::Bf16 => f32::from_bits(bits << 16),
                                    _ => half::f16::from_bits(bits as u16).to_f32(),
                                };
                            }
                        }
                    }
                }
            }
        } else {
            let d = Descriptor::new(uniform(self, 1)?, w.trans_a).map_err(wrong)?;
            for (row, values) in a.iter_mut().enumerate() {
                let row = row as u64 + 16 * u64::from(warp);
                for (column, value) in values.iter_mut().enumerate().take(k) {
                    let (outer, inner) = if w.trans_a { (column as u64, row) } else { (row, column as u64) };
                    *value =
                        self.element(d.address(outer, inner, size), w.ty, (row % 32) as u32, &mut pieces)?;
                }
            }
        }
        let d = Descriptor::new(uniform(self, 1 + na)?, w.trans_b).map_err(wrong)?;
        let mut b = vec![vec![0f32; n]; k];
        for (row, values) in b.iter_mut().enumerate() {
            for (column, value) in values.iter_mut().enumerate() {
                // Without transposition B is stored by columns, k being contiguous.
                let (outer, inner) =
                    if w.trans_b { (row as u64, column as u64) } else { (column as u64, row as u64) };
                *value =
                    self.element(d.address(outer, inner, size), w.ty, (column % 32) as u32, &mut pieces)?;
            }
        }
        let sign = if w.neg_a != w.neg_b { -1.0 } else { 1.0 };
        let keep = scale != 0;
        for r in 0..n / 2 {
            let c = *self.a32(self.src(i, 2 + na + r));
            let v = std::array::from_fn(|l| {
                let (g, t) = (l / 4, 2 * (l % 4));
                let (row, column) = (g + 8 * (r / 2 % 2), t + r % 2 + 8 * (r / 4));
                let start = if keep { f64::from(f32::from_bits(c[l])) } else { 0.0 };
                let sum =
                    (0..k).fold(start, |s, x| s + sign * f64::from(a[row][x]) * f64::from(b[x][column]));
                if sum.is_nan() { super::soft::NAN32 } else { (sum as f32).to_bits() }
            });
            let d = self.dst(i, r);
            self.set32(d, m, &v);
        }
        let slots = (0..n / 2).map(|r| self.dst(i, r)).collect();
        let (group, warp, pc) = (self.warp.product_groups, self.warp.index, self.pc);
        self.warp.products.push((group, slots));
        self.block().readings.push(Reading { warp, lane: None, group, pc, pieces });
        Ok(())
    }
}
