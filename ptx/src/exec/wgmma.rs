//! `wgmma.mma_async`, PTX ISA 9.7.15: products of a warpgroup with operands in shared memory.
//!
//! A warp computes its own 16 of the 64 rows, at once; the products are complete where a device may take until
//! `wgmma.wait_group`.

use super::spaces::Where;
use super::{Exec, lanes};
use crate::machine::block::{Pieces, Reading};
use crate::machine::fault::{FaultKind, Run, Trouble, trouble};
use crate::ops::{Op, W, WgType, Wgmma};
use crate::parse::ast::Space;
use crate::program::Instr;
use crate::tensor_map::Swizzle;

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
        Swizzle::of_row(self.row).apply(linear)
    }
}

/// Values of an element type, exact in F64.
#[inline(always)]
fn convert(ty: WgType, bits: u32) -> f64 {
    f64::from(match ty {
        WgType::Tf32 => super::tensor::tf32(bits),
        WgType::Bf16 => f32::from_bits(bits << 16),
        WgType::F16 => half::f16::from_bits(bits as u16).to_f32(),
    })
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

/// Values from one k to the next: not a power of two, so that values of a row do not all meet in one set of a cache.
fn pitch(rows: usize) -> usize {
    rows + 8
}

impl Exec<'_, '_> {
    /// Sixteen bytes of an operand, as values. They are added to `pieces`.
    fn piece(&self, address: u64, ty: WgType, lane: u32, pieces: &mut Pieces) -> Run<[f64; 8]> {
        let Where::Shared(rank, at) = self.locate(Space::Shared, address, 16, lane, &mut 0)? else {
            return trouble(FaultKind::InvalidOperand, lane, "an operand outside of shared memory");
        };
        if pieces.insert(at / 16) {
            let place = Where::Shared(rank, at);
            self.check_proxy(place, lane)?;
            self.check_written(place, 16, lane)?;
            self.check_read(rank, at, 16, lane)?;
        }
        let bytes = &self.blocks[rank].shared[at as usize..at as usize + 16];
        let mut out = [0.0; 8];
        match ty {
            WgType::Tf32 => {
                for (v, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *v = convert(ty, u32::from_le_bytes(*b));
                }
            }
            _ => {
                for (v, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *v = convert(ty, u32::from(u16::from_le_bytes(*b)));
                }
            }
        }
        Ok(out)
    }

    /// An operand of `rows` rows from `first` on, with k values each: value (row, k) at `k * pitch(rows) + row`. Rows are those
    /// of A and the columns of B; transposed ones run along the contiguous dimension.
    fn operand(
        &self,
        d: Descriptor,
        (first, rows, k): (usize, usize, usize),
        transposed: bool,
        ty: WgType,
        pieces: &mut Pieces,
    ) -> Run<Vec<f64>> {
        let size = if ty == WgType::Tf32 { 4 } else { 2 };
        let many = 16 / size as usize;
        let pitch = pitch(rows);
        let mut out = vec![0.0; pitch * k];
        let (outer, inner) =
            if transposed { (0..k, first..first + rows) } else { (first..first + rows, 0..k) };
        for o in outer {
            for n in inner.clone().step_by(many) {
                let lane = if transposed { n } else { o } as u32 % 32;
                let values = self.piece(d.address(o as u64, n as u64, size), ty, lane, pieces)?;
                if transposed {
                    let at = o * pitch + n - first;
                    out[at..at + many].copy_from_slice(&values[..many]);
                } else {
                    for (x, v) in values[..many].iter().enumerate() {
                        out[(n + x) * pitch + o - first] = *v;
                    }
                }
            }
        }
        Ok(out)
    }

    /// Fails if an instruction reads or writes sums of a product that was not waited for. Products that go on adding to
    /// them may.
    pub(super) fn check_products(&self, i: &Instr, e: u32) -> Run<()> {
        if e == 0 || matches!(i.op, Op::WgMma(_)) {
            return Ok(());
        }
        let busy = |slot: i32| slot >= 0 && self.warp.is_busy(slot);
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
        match block.readings.iter().find(|r| pieces.clone().any(|p| r.pieces.contains(p))) {
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
        self.warp.end_products(before);
        let warp = self.warp.index;
        self.block().readings.retain(|r| r.lane.is_some() || r.warp != warp || r.group >= before);
    }

    pub(super) fn wgmma(&mut self, i: &Instr, m: u32, w: Wgmma) -> Run<()> {
        let n = usize::from(w.n);
        let k = if w.ty == WgType::Tf32 { 8 } else { 16 };
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
        let mut pieces = Pieces::default();
        let na = if w.a_regs { 4 } else { 1 };
        let mut a = if w.a_regs {
            self.fragments(i, w.ty)
        } else {
            let d = Descriptor::new(uniform(self, 1)?, w.trans_a).map_err(wrong)?;
            self.operand(d, (16 * warp as usize, 16, k), w.trans_a, w.ty, &mut pieces)?
        };
        if w.neg_a != w.neg_b {
            a.iter_mut().for_each(|v| *v = -*v);
        }
        let d = Descriptor::new(uniform(self, 1 + na)?, w.trans_b).map_err(wrong)?;
        let b = self.operand(d, (0, n, k), w.trans_b, w.ty, &mut pieces)?;
        // Sums of the warp's rows, from C on in rising k.
        let mut sums = vec![0.0; 16 * n];
        let place = |r: usize, l: usize| (l / 4 + 8 * (r / 2 % 2)) * n + 2 * (l % 4) + r % 2 + 8 * (r / 4);
        if scale != 0 {
            for r in 0..n / 2 {
                let c = self.a32(self.src(i, 2 + na + r));
                c.iter().enumerate().for_each(|(l, c)| sums[place(r, l)] = f64::from(f32::from_bits(*c)));
            }
        }
        for (row, sums) in sums.chunks_exact_mut(n).enumerate() {
            for (a, b) in a[row..].iter().step_by(pitch(16)).zip(b.chunks_exact(pitch(n))) {
                sums.iter_mut().zip(b).for_each(|(sum, b)| *sum += a * b);
            }
        }
        for r in 0..n / 2 {
            let v = std::array::from_fn(|l| {
                let sum = sums[place(r, l)];
                if sum.is_nan() { super::soft::NAN32 } else { (sum as f32).to_bits() }
            });
            let d = self.dst(i, r);
            self.set32(d, m, &v);
        }
        self.count_operands(w, warp);
        let slots = (0..n / 2).map(|r| self.dst(i, r)).collect();
        let (group, warp, pc) = (self.warp.product_groups, self.warp.index, self.pc);
        self.warp.begin_product(group, slots);
        self.block().readings.push(Reading { warp, lane: None, group, pc, pieces });
        Ok(())
    }

    /// A of the form with registers, as [`Exec::operand`] gives it.
    fn fragments(&self, i: &Instr, ty: WgType) -> Vec<f64> {
        let pitch = pitch(16);
        let mut a = vec![0.0; pitch * if ty == WgType::Tf32 { 8 } else { 16 }];
        for r in 0..4 {
            for (l, v) in self.a32(self.src(i, 1 + r)).iter().enumerate() {
                let (row, t) = (l / 4 + 8 * (r % 2), l % 4);
                if ty == WgType::Tf32 {
                    a[(t + 4 * (r / 2)) * pitch + row] = convert(ty, *v);
                    continue;
                }
                for h in 0..2 {
                    a[(2 * t + 8 * (r / 2) + h) * pitch + row] = convert(ty, *v >> (16 * h) & 0xffff);
                }
            }
        }
        a
    }

    /// Passes over shared memory: a warp's own rows of A, and its share of B, which the four warps read together. No
    /// conflicts are counted.
    fn count_operands(&mut self, w: Wgmma, warp: u32) {
        // A row of k values has 32 bytes.
        let a = if w.a_regs { 0 } else { 16 * 32 / 128 };
        let b = u64::from(w.n) * 32 / 128;
        let share = b * u64::from(warp + 1) / 4 - b * u64::from(warp) / 4;
        let c = &mut self.counts[self.pc as usize];
        c.wavefronts += a + share;
        c.ideal += a + share;
    }
}
