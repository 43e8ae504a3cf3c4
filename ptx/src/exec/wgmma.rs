//! `wgmma.mma_async`, PTX ISA 9.7.15: products of a warpgroup with operands in shared memory.
//!
//! A warp computes its own 16 of the 64 rows, at once; the products are complete where a device may take until
//! `wgmma.wait_group`.

use super::{Exec, lanes};
use crate::machine::fault::{FaultKind, Run, trouble};
use crate::ops::{Op, WgType, Wgmma};
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
    fn new(bits: u64) -> Descriptor {
        let field = |at: u32| (bits >> at & 0x3fff) << 4;
        let row = [16, 128, 64, 32][(bits >> 62) as usize];
        Descriptor { start: field(0), leading: field(16), stride: field(32), row }
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

impl Exec<'_, '_> {
    fn element(&mut self, address: u64, ty: WgType, lane: u32) -> Run<f32> {
        let size = if ty == WgType::Tf32 { 4 } else { 2 };
        let at = self.locate(Space::Shared, address, size, lane, &mut 0)?;
        self.check_proxy(at, lane)?;
        self.check_written(at, size, lane)?;
        let v = self.peek(at, size, lane) as u32;
        Ok(match ty {
            WgType::Tf32 => super::tensor::tf32(v),
            WgType::Bf16 => f32::from_bits(v << 16),
            WgType::F16 => half::f16::from_bits(v as u16).to_f32(),
        })
    }

    /// Fails if an instruction reads sums of a product that was not waited for. Products that go on adding to them may.
    pub(super) fn check_products(&self, i: &Instr, e: u32) -> Run<()> {
        if e == 0 || matches!(i.op, Op::WgMma(_)) {
            return Ok(());
        }
        for n in 0..usize::from(i.srcs).min(8) {
            let slot = self.src(i, n);
            if i.narrow >> n & 1 != 0
                && slot >= 0
                && self.warp.products.iter().any(|(_, s)| s.contains(&slot))
            {
                return trouble(
                    FaultKind::CopyInFlight,
                    e.trailing_zeros(),
                    "a sum of wgmma is read before wgmma.wait_group",
                );
            }
        }
        Ok(())
    }

    /// `wgmma.commit_group` and `wgmma.wait_group`: at most `n` of the newest groups stay under way.
    pub(super) fn wait_products(&mut self, n: u32) {
        let before = self.warp.product_groups.saturating_sub(n);
        self.warp.products.retain(|(group, _)| *group >= before);
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
            let d = Descriptor::new(uniform(self, 1)?);
            for (row, values) in a.iter_mut().enumerate() {
                let row = row as u64 + 16 * u64::from(warp);
                for (column, value) in values.iter_mut().enumerate().take(k) {
                    let (outer, inner) = if w.trans_a { (column as u64, row) } else { (row, column as u64) };
                    *value = self.element(d.address(outer, inner, size), w.ty, (row % 32) as u32)?;
                }
            }
        }
        let d = Descriptor::new(uniform(self, 1 + na)?);
        let mut b = vec![vec![0f32; n]; k];
        for (row, values) in b.iter_mut().enumerate() {
            for (column, value) in values.iter_mut().enumerate() {
                // Without transposition B is stored by columns, k being contiguous.
                let (outer, inner) =
                    if w.trans_b { (row as u64, column as u64) } else { (column as u64, row as u64) };
                *value = self.element(d.address(outer, inner, size), w.ty, (column % 32) as u32)?;
            }
        }
        let sign = if w.neg_a != w.neg_b { -1.0 } else { 1.0 };
        let keep = self.pred(self.src(i, 0)) & m != 0;
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
        self.warp.products.push((self.warp.product_groups, slots));
        Ok(())
    }
}
