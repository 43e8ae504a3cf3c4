//! Integer and logic instructions, comparisons, selections and moves, each after its section of PTX ISA 9.7.

use super::Exec;
use super::bits::{bfe, bfe32, bfi, bfind, hi64, lop3, mul24, prmt, s16, wide};
use super::compare::join;
use crate::ops::{IntOp, Op, Packing, UnOp, W};
use crate::program::Instr;

pub(super) fn flush(v: f32) -> f32 {
    if v.is_subnormal() { 0f32.copysign(v) } else { v }
}

impl Exec<'_, '_> {
    #[inline(always)]
    pub(super) fn map32(&mut self, i: &Instr, e: u32, f: impl Fn(u32) -> u32) {
        let v = self.a32(i.s[0]).map(f);
        self.set32(i.d[0], e, &v);
    }

    #[inline(always)]
    pub(super) fn zip32(&mut self, i: &Instr, e: u32, f: impl Fn(u32, u32) -> u32) {
        let (a, b) = (self.a32(i.s[0]), self.a32(i.s[1]));
        let mut v = [0; 32];
        for l in 0..32 {
            v[l] = f(a[l], b[l]);
        }
        self.set32(i.d[0], e, &v);
    }

    #[inline(always)]
    pub(super) fn tri32(&mut self, i: &Instr, e: u32, f: impl Fn(u32, u32, u32) -> u32) {
        let (a, b, c) = (self.a32(i.s[0]), self.a32(i.s[1]), self.a32(i.s[2]));
        let mut v = [0; 32];
        for l in 0..32 {
            v[l] = f(a[l], b[l], c[l]);
        }
        self.set32(i.d[0], e, &v);
    }

    #[inline(always)]
    pub(super) fn zip64(&mut self, i: &Instr, e: u32, f: impl Fn(u64, u64) -> u64) {
        let (a, b) = (self.a64(i.s[0]), self.a64(i.s[1]));
        let mut v = [0; 32];
        for l in 0..32 {
            v[l] = f(a[l], b[l]);
        }
        self.set64(i.d[0], e, &v);
    }

    #[inline(always)]
    fn tri64(&mut self, i: &Instr, e: u32, f: impl Fn(u64, u64, u64) -> u64) {
        let (a, b, c) = (self.a64(i.s[0]), self.a64(i.s[1]), self.a64(i.s[2]));
        let mut v = [0; 32];
        for l in 0..32 {
            v[l] = f(a[l], b[l], c[l]);
        }
        self.set64(i.d[0], e, &v);
    }

    pub(super) fn integer(&mut self, i: &Instr, e: u32) {
        match i.op {
            Op::Mov32 => {
                let v = *self.a32(i.s[0]);
                self.set32(i.d[0], e, &v);
            }
            Op::Mov64 => {
                let v = *self.a64(i.s[0]);
                self.set64(i.d[0], e, &v);
            }
            Op::Pack(p) => self.pack(i, e, p),
            Op::Unpack(p) => self.unpack(i, e, p),
            Op::Int(f, W::B32) => self.int32(i, e, f),
            Op::Int(f, W::B64) => self.int64(i, e, f),
            Op::Int(f, W::B16) => self.int16(i, e, f),
            Op::Unary(f, w) => self.unary(i, e, f, w),
            Op::MulWide { signed, w: W::B16 } => self.zip32(i, e, |a, b| match signed {
                true => s16(a).wrapping_mul(s16(b)) as u32,
                false => (a & 0xffff).wrapping_mul(b & 0xffff),
            }),
            Op::MulWide { signed, .. } => {
                let (a, b) = (*self.a32(i.s[0]), *self.a32(i.s[1]));
                let mut v = [0; 32];
                for l in 0..32 {
                    v[l] = wide(a[l], b[l], signed);
                }
                self.set64(i.d[0], e, &v);
            }
            Op::MadWide { signed, w: W::B16 } => self.tri32(i, e, |a, b, c| {
                c.wrapping_add(match signed {
                    true => s16(a).wrapping_mul(s16(b)) as u32,
                    false => (a & 0xffff).wrapping_mul(b & 0xffff),
                })
            }),
            Op::MadWide { signed, .. } => {
                let (a, b, c) = (*self.a32(i.s[0]), *self.a32(i.s[1]), *self.a64(i.s[2]));
                let mut v = [0; 32];
                for l in 0..32 {
                    v[l] = wide(a[l], b[l], signed).wrapping_add(c[l]);
                }
                self.set64(i.d[0], e, &v);
            }
            Op::MadLo(W::B64) => self.tri64(i, e, |a, b, c| a.wrapping_mul(b).wrapping_add(c)),
            Op::MadLo(W::B32) => self.tri32(i, e, |a, b, c| a.wrapping_mul(b).wrapping_add(c)),
            Op::MadLo(W::B16) => self.tri32(i, e, |a, b, c| a.wrapping_mul(b).wrapping_add(c) & 0xffff),
            Op::MadHi { signed, w: W::B32 } => {
                self.tri32(i, e, |a, b, c| ((wide(a, b, signed) >> 32) as u32).wrapping_add(c));
            }
            Op::MadHi { signed, w: W::B64 } => self.tri64(i, e, |a, b, c| hi64(a, b, signed).wrapping_add(c)),
            Op::MadHi { signed, w: W::B16 } => self.tri32(i, e, |a, b, c| {
                let product =
                    if signed { s16(a).wrapping_mul(s16(b)) as u32 } else { (a & 0xffff) * (b & 0xffff) };
                (product >> 16).wrapping_add(c) & 0xffff
            }),
            Op::Mad24 { signed } => self.tri32(i, e, |a, b, c| mul24(a, b, signed, false).wrapping_add(c)),
            Op::Sad { signed, w } => match w {
                W::B64 => self.tri64(i, e, |a, b, c| {
                    let d = if signed { (a as i64).abs_diff(b as i64) } else { a.abs_diff(b) };
                    c.wrapping_add(d)
                }),
                W::B32 => self.tri32(i, e, |a, b, c| {
                    let d = if signed { (a as i32).abs_diff(b as i32) } else { a.abs_diff(b) };
                    c.wrapping_add(d)
                }),
                W::B16 => self.tri32(i, e, |a, b, c| {
                    let d = if signed { s16(a).abs_diff(s16(b)) } else { (a & 0xffff).abs_diff(b & 0xffff) };
                    c.wrapping_add(d) & 0xffff
                }),
            },
            Op::AddCarry { sub, reads, writes, w } => self.add_carry(i, e, sub, reads, writes, w),
            Op::MadCarry { hi, signed, reads, writes, w } => {
                self.mad_carry(i, e, hi, signed, reads, writes, w)
            }
            Op::Lop3(table) => self.tri32(i, e, |a, b, c| lop3(a, b, c, table)),
            Op::Shf { left, clamp } => self.tri32(i, e, |lo, hi, n| {
                let n = if clamp { n.min(32) } else { n & 31 };
                let both = u64::from(hi) << 32 | u64::from(lo);
                if left { (both << n >> 32) as u32 } else { (both >> n) as u32 }
            }),
            Op::Prmt(mode) => self.tri32(i, e, |a, b, c| prmt(a, b, c, mode)),
            Op::Bfe { signed, w: W::B64 } => {
                let (a, pos, len) = (*self.a64(i.s[0]), *self.a32(i.s[1]), *self.a32(i.s[2]));
                let v = std::array::from_fn(|l| bfe(a[l], pos[l], len[l], signed, 64));
                self.set64(i.d[0], e, &v);
            }
            Op::Bfe { signed, .. } => self.tri32(i, e, |a, pos, len| bfe32(a, pos, len, signed)),
            Op::Bfi(W::B64) => {
                let (a, b) = (*self.a64(i.s[0]), *self.a64(i.s[1]));
                let (pos, len) = (*self.a32(i.s[2]), *self.a32(i.s[3]));
                let v = std::array::from_fn(|l| bfi(a[l], b[l], pos[l], len[l], 64));
                self.set64(i.d[0], e, &v);
            }
            Op::Bfi(_) => {
                let (a, b) = (*self.a32(i.s[0]), *self.a32(i.s[1]));
                let (pos, len) = (*self.a32(i.s[2]), *self.a32(i.s[3]));
                let v = std::array::from_fn(|l| bfi(a[l].into(), b[l].into(), pos[l], len[l], 32) as u32);
                self.set32(i.d[0], e, &v);
            }
            Op::Szext { signed, clamp } => self.zip32(i, e, |a, n| {
                let n = if clamp { n.min(32) } else { n & 31 };
                match (n, signed) {
                    (0, _) => 0,
                    (32.., _) => a,
                    (_, true) => ((a << (32 - n)) as i32 >> (32 - n)) as u32,
                    (_, false) => a & ((1 << n) - 1),
                }
            }),
            Op::Bmsk { clamp } => self.zip32(i, e, |a, b| {
                let (a, b) = if clamp { (a.min(32), b.min(32)) } else { (a & 31, b & 31) };
                let ones = if b >= 32 { u32::MAX } else { (1 << b) - 1 };
                if a >= 32 { 0 } else { ones << a }
            }),
            Op::Dp4a { signed_a, signed_b } => self.tri32(i, e, |a, b, c| {
                let (a, b) = (a.to_le_bytes(), b.to_le_bytes());
                let value = |v: u8, signed: bool| if signed { i32::from(v as i8) } else { i32::from(v) };
                (0..4).fold(c, |sum, k| {
                    sum.wrapping_add((value(a[k], signed_a) * value(b[k], signed_b)) as u32)
                })
            }),
            Op::Dp2a { signed_a, signed_b, hi } => self.tri32(i, e, |a, b, c| {
                let b = b.to_le_bytes();
                (0..2).fold(c, |sum, k| {
                    let half = a >> (16 * k);
                    let x = if signed_a { s16(half) } else { (half & 0xffff) as i32 };
                    let byte = b[k + if hi { 2 } else { 0 }];
                    let y = if signed_b { i32::from(byte as i8) } else { i32::from(byte) };
                    sum.wrapping_add(x.wrapping_mul(y) as u32)
                })
            }),
            Op::Setp { cmp, ty, combine, ftz } => self.setp(i, e, cmp, ty, combine, ftz),
            Op::Set { cmp, ty, combine, ftz, float } => {
                let mut mask = self.compared(i, cmp, ty, ftz).0;
                if let Some(f) = combine {
                    mask = join(f, mask, self.pred(i.s[2]));
                }
                let yes = if float { 1f32.to_bits() } else { u32::MAX };
                let v = std::array::from_fn(|l| if mask >> l & 1 != 0 { yes } else { 0 });
                self.set32(i.d[0], e, &v);
            }
            Op::Selp32 => {
                let p = self.pred(i.s[2]);
                let (a, b) = (self.a32(i.s[0]), self.a32(i.s[1]));
                let mut v = [0; 32];
                for l in 0..32 {
                    v[l] = if p >> l & 1 != 0 { a[l] } else { b[l] };
                }
                self.set32(i.d[0], e, &v);
            }
            Op::Selp64 => {
                let p = self.pred(i.s[2]);
                let (a, b) = (self.a64(i.s[0]), self.a64(i.s[1]));
                let mut v = [0; 32];
                for l in 0..32 {
                    v[l] = if p >> l & 1 != 0 { a[l] } else { b[l] };
                }
                self.set64(i.d[0], e, &v);
            }
            Op::Slct { wide, float, ftz } => {
                let c = *self.a32(i.s[2]);
                let first = c.map(|c| match float {
                    // NaN takes the second.
                    true if ftz => flush(f32::from_bits(c)) >= 0.0,
                    true => f32::from_bits(c) >= 0.0,
                    false => c as i32 >= 0,
                });
                if wide {
                    let (a, b) = (self.a64(i.s[0]), self.a64(i.s[1]));
                    let v = std::array::from_fn(|l| if first[l] { a[l] } else { b[l] });
                    self.set64(i.d[0], e, &v);
                } else {
                    let (a, b) = (self.a32(i.s[0]), self.a32(i.s[1]));
                    let v = std::array::from_fn(|l| if first[l] { a[l] } else { b[l] });
                    self.set32(i.d[0], e, &v);
                }
            }
            _ => unreachable!("the operation belongs to another file"),
        }
    }

    fn int32(&mut self, i: &Instr, e: u32, f: IntOp) {
        use IntOp::*;
        match f {
            Add => self.zip32(i, e, u32::wrapping_add),
            Sub => self.zip32(i, e, u32::wrapping_sub),
            AddSat => self.zip32(i, e, |a, b| (a as i32).saturating_add(b as i32) as u32),
            SubSat => self.zip32(i, e, |a, b| (a as i32).saturating_sub(b as i32) as u32),
            MulLo => self.zip32(i, e, u32::wrapping_mul),
            MulHiS => self.zip32(i, e, |a, b| (wide(a, b, true) >> 32) as u32),
            MulHiU => self.zip32(i, e, |a, b| (wide(a, b, false) >> 32) as u32),
            Mul24LoS => self.zip32(i, e, |a, b| mul24(a, b, true, false)),
            Mul24LoU => self.zip32(i, e, |a, b| mul24(a, b, false, false)),
            Mul24HiS => self.zip32(i, e, |a, b| mul24(a, b, true, true)),
            Mul24HiU => self.zip32(i, e, |a, b| mul24(a, b, false, true)),
            // A quotient by 0 is unspecified: all bits set, as devices give it.
            DivS => self.zip32(i, e, |a, b| match b {
                0 => u32::MAX,
                _ => (a as i32).wrapping_div(b as i32) as u32,
            }),
            DivU => self.zip32(i, e, |a, b| a.checked_div(b).unwrap_or(u32::MAX)),
            RemS => {
                self.zip32(i, e, |a, b| if b == 0 { a } else { (a as i32).wrapping_rem(b as i32) as u32 })
            }
            RemU => self.zip32(i, e, |a, b| if b == 0 { a } else { a % b }),
            MinS => self.zip32(i, e, |a, b| (a as i32).min(b as i32) as u32),
            MinU => self.zip32(i, e, u32::min),
            MaxS => self.zip32(i, e, |a, b| (a as i32).max(b as i32) as u32),
            MaxU => self.zip32(i, e, u32::max),
            And => self.zip32(i, e, |a, b| a & b),
            Or => self.zip32(i, e, |a, b| a | b),
            Xor => self.zip32(i, e, |a, b| a ^ b),
            Shl => self.zip32(i, e, |a, b| if b > 31 { 0 } else { a << b }),
            ShrS => self.zip32(i, e, |a, b| (a as i32 >> b.min(31)) as u32),
            ShrU => self.zip32(i, e, |a, b| if b > 31 { 0 } else { a >> b }),
        }
    }

    fn int64(&mut self, i: &Instr, e: u32, f: IntOp) {
        use IntOp::*;
        if matches!(f, Shl | ShrS | ShrU) {
            let (a, b) = (*self.a64(i.s[0]), *self.a32(i.s[1]));
            let v = std::array::from_fn(|l| match f {
                ShrS => (a[l] as i64 >> b[l].min(63)) as u64,
                Shl => a[l].checked_shl(b[l]).unwrap_or(0),
                _ => a[l].checked_shr(b[l]).unwrap_or(0),
            });
            return self.set64(i.d[0], e, &v);
        }
        match f {
            Add => self.zip64(i, e, u64::wrapping_add),
            Sub => self.zip64(i, e, u64::wrapping_sub),
            MulLo => self.zip64(i, e, u64::wrapping_mul),
            MulHiS => self.zip64(i, e, |a, b| hi64(a, b, true)),
            MulHiU => self.zip64(i, e, |a, b| hi64(a, b, false)),
            DivS => self.zip64(i, e, |a, b| match b {
                0 => u64::MAX,
                _ => (a as i64).wrapping_div(b as i64) as u64,
            }),
            DivU => self.zip64(i, e, |a, b| a.checked_div(b).unwrap_or(u64::MAX)),
            RemS => {
                self.zip64(i, e, |a, b| if b == 0 { a } else { (a as i64).wrapping_rem(b as i64) as u64 })
            }
            RemU => self.zip64(i, e, |a, b| if b == 0 { a } else { a % b }),
            MinS => self.zip64(i, e, |a, b| (a as i64).min(b as i64) as u64),
            MinU => self.zip64(i, e, u64::min),
            MaxS => self.zip64(i, e, |a, b| (a as i64).max(b as i64) as u64),
            MaxU => self.zip64(i, e, u64::max),
            And => self.zip64(i, e, |a, b| a & b),
            Or => self.zip64(i, e, |a, b| a | b),
            Xor => self.zip64(i, e, |a, b| a ^ b),
            _ => unreachable!("the operation is for 32 bits"),
        }
    }

    fn int16(&mut self, i: &Instr, e: u32, f: IntOp) {
        use IntOp::*;
        self.zip32(i, e, |a, b| {
            let (x, y) = (s16(a), s16(b));
            let (a, shift) = (a & 0xffff, b);
            let b = b & 0xffff;
            let v = match f {
                Add => a.wrapping_add(b),
                Sub => a.wrapping_sub(b),
                MulLo => a.wrapping_mul(b),
                MulHiS => (x.wrapping_mul(y) >> 16) as u32,
                MulHiU => a.wrapping_mul(b) >> 16,
                DivS => {
                    if y == 0 {
                        u32::MAX
                    } else {
                        x.wrapping_div(y) as u32
                    }
                }
                DivU => a.checked_div(b).unwrap_or(u32::MAX),
                RemS => {
                    if y == 0 {
                        a
                    } else {
                        x.wrapping_rem(y) as u32
                    }
                }
                RemU => {
                    if b == 0 {
                        a
                    } else {
                        a % b
                    }
                }
                MinS => x.min(y) as u32,
                MinU => a.min(b),
                MaxS => x.max(y) as u32,
                MaxU => a.max(b),
                And => a & b,
                Or => a | b,
                Xor => a ^ b,
                Shl => {
                    if shift > 15 {
                        0
                    } else {
                        a << shift
                    }
                }
                ShrS => (x >> shift.min(15)) as u32,
                ShrU => {
                    if shift > 15 {
                        0
                    } else {
                        a >> shift
                    }
                }
                _ => unreachable!("the operation is for 32 bits"),
            };
            v & 0xffff
        });
    }

    fn unary(&mut self, i: &Instr, e: u32, f: UnOp, w: W) {
        if w == W::B64 {
            let a = *self.a64(i.s[0]);
            let narrow = |v: [u32; 32], this: &mut Self| this.set32(i.d[0], e, &v);
            return match f {
                UnOp::Popc => narrow(a.map(u64::count_ones), self),
                UnOp::Clz => narrow(a.map(u64::leading_zeros), self),
                UnOp::Bfind { signed, shift } => narrow(a.map(|a| bfind(a, signed, shift, 64)), self),
                _ => {
                    let v = a.map(|a| match f {
                        UnOp::Not => !a,
                        UnOp::Cnot => u64::from(a == 0),
                        UnOp::Neg => a.wrapping_neg(),
                        UnOp::Abs => (a as i64).wrapping_abs() as u64,
                        _ => a.reverse_bits(),
                    });
                    self.set64(i.d[0], e, &v);
                }
            };
        }
        if w == W::B16 {
            return self.map32(i, e, |a| {
                (match f {
                    UnOp::Not => !a,
                    UnOp::Cnot => u32::from(a & 0xffff == 0),
                    UnOp::Neg => a.wrapping_neg(),
                    _ => s16(a).wrapping_abs() as u32,
                }) & 0xffff
            });
        }
        match f {
            UnOp::Not => self.map32(i, e, |a| !a),
            UnOp::Cnot => self.map32(i, e, |a| u32::from(a == 0)),
            UnOp::Neg => self.map32(i, e, u32::wrapping_neg),
            UnOp::Abs => self.map32(i, e, |a| (a as i32).wrapping_abs() as u32),
            UnOp::Popc => self.map32(i, e, u32::count_ones),
            UnOp::Clz => self.map32(i, e, u32::leading_zeros),
            UnOp::Brev => self.map32(i, e, u32::reverse_bits),
            UnOp::Bfind { signed, shift } => self.map32(i, e, |a| {
                let a = if signed { a as i32 as i64 as u64 } else { u64::from(a) };
                bfind(a, signed, shift, 32)
            }),
        }
    }

    fn pack(&mut self, i: &Instr, e: u32, p: Packing) {
        match p {
            Packing::B16x2 => self.zip32(i, e, |a, b| a & 0xffff | b << 16),
            Packing::B32x2 => {
                let (a, b) = (self.a32(i.s[0]), self.a32(i.s[1]));
                let v = std::array::from_fn(|l| u64::from(a[l]) | u64::from(b[l]) << 32);
                self.set64(i.d[0], e, &v);
            }
            Packing::B16x4 => {
                let s = i.s.map(|o| *self.a32(o));
                let v = std::array::from_fn(|l| {
                    (0..4).fold(0, |v, k| v | u64::from(s[k][l] & 0xffff) << (16 * k))
                });
                self.set64(i.d[0], e, &v);
            }
        }
    }

    fn unpack(&mut self, i: &Instr, e: u32, p: Packing) {
        let (a, bits) = match p {
            Packing::B16x2 => (self.a32(i.s[0]).map(u64::from), 16),
            Packing::B32x2 => (*self.a64(i.s[0]), 32),
            Packing::B16x4 => (*self.a64(i.s[0]), 16),
        };
        for n in 0..usize::from(i.dsts) {
            let d = self.dst(i, n);
            let v = a.map(|a| (a >> (bits * n)) as u32 & if bits == 16 { 0xffff } else { u32::MAX });
            self.set32(d, e, &v);
        }
    }

    /// PTX ISA 9.7.2: the carry of a subtraction is a borrow.
    fn add_carry(&mut self, i: &Instr, e: u32, sub: bool, reads: bool, writes: bool, w: W) {
        let carry = if reads { self.pred(i.s[2]) } else { 0 };
        let mut out = 0u32;
        let mut one = |l: usize, a: u64, b: u64, bits: u32| {
            let c = u128::from(carry >> l & 1);
            let v = match sub {
                false => u128::from(a) + u128::from(b) + c,
                true => u128::from(a).wrapping_sub(u128::from(b)).wrapping_sub(c),
            };
            out |= ((v >> bits & 1) as u32) << l;
            v as u64
        };
        if w == W::B64 {
            let (a, b) = (*self.a64(i.s[0]), *self.a64(i.s[1]));
            let v = std::array::from_fn(|l| one(l, a[l], b[l], 64));
            self.set64(i.d[0], e, &v);
        } else {
            let (a, b) = (*self.a32(i.s[0]), *self.a32(i.s[1]));
            let v = std::array::from_fn(|l| one(l, a[l].into(), b[l].into(), 32) as u32);
            self.set32(i.d[0], e, &v);
        }
        if writes {
            self.set_pred(i.d[1], e, out);
        }
    }

    #[allow(clippy::too_many_arguments, reason = "the modifiers of the instruction")]
    fn mad_carry(&mut self, i: &Instr, e: u32, hi: bool, signed: bool, reads: bool, writes: bool, w: W) {
        let carry = if reads { self.pred(i.s[3]) } else { 0 };
        let mut out = 0u32;
        if w == W::B64 {
            let (a, b, c) = (*self.a64(i.s[0]), *self.a64(i.s[1]), *self.a64(i.s[2]));
            let v = std::array::from_fn(|l| {
                let p = if hi { hi64(a[l], b[l], signed) } else { a[l].wrapping_mul(b[l]) };
                let sum = u128::from(p) + u128::from(c[l]) + u128::from(carry >> l & 1);
                out |= ((sum >> 64) as u32) << l;
                sum as u64
            });
            self.set64(i.d[0], e, &v);
        } else {
            let (a, b, c) = (*self.a32(i.s[0]), *self.a32(i.s[1]), *self.a32(i.s[2]));
            let v = std::array::from_fn(|l| {
                let p = wide(a[l], b[l], signed);
                let p = if hi { p >> 32 } else { p & 0xffff_ffff };
                let sum = p + u64::from(c[l]) + u64::from(carry >> l & 1);
                out |= ((sum >> 32) as u32) << l;
                sum as u32
            });
            self.set32(i.d[0], e, &v);
        }
        if writes {
            self.set_pred(i.d[1], e, out);
        }
    }
}
