//! Conversions, PTX ISA 9.7.9.21.

use super::Exec;
use super::floats::flush_bits;
use super::soft::{self, BF16, F16, F32, F64, Format, Num, pack, unpack};
use crate::ops::{Cvt, CvtRound, Round};
use crate::parse::ast::Ty;
use crate::program::Instr;

fn format(ty: Ty) -> Format {
    match ty {
        Ty::F16 => F16,
        Ty::Bf16 => BF16,
        Ty::F64 => F64,
        _ => F32,
    }
}

/// An integer of a type from the bits of a register.
fn integer(bits: u64, ty: Ty) -> i128 {
    let shift = 64 - ty.bits();
    match ty.signed() {
        true => i128::from(((bits << shift) as i64) >> shift),
        false => i128::from((bits << shift) >> shift),
    }
}

fn bounds(ty: Ty) -> (i128, i128) {
    match ty.signed() {
        true => (-(1 << (ty.bits() - 1)), (1 << (ty.bits() - 1)) - 1),
        false => (0, (1 << ty.bits()) - 1),
    }
}

/// F32 to TF32 in F32 bits.
fn tf32(bits: u32, round: Round) -> u32 {
    let x = f32::from_bits(bits);
    if x.is_nan() {
        return soft::NAN32;
    }
    if x.is_infinite() {
        return bits;
    }
    let format = Format { precision: 11, least: -126, most: 127, nan: 0 };
    (pack(unpack(bits.into(), F32), format, round) as u32) << 13
}

/// A conversion of one value in the low bits of a register, to the low bits of another.
fn convert(c: &Cvt, bits: u64) -> u64 {
    let out = match (c.from.float(), c.to.float()) {
        (false, false) => {
            let v = integer(bits, c.from);
            let v = if c.sat { v.clamp(bounds(c.to).0, bounds(c.to).1) } else { v };
            // Cut to the type, then extended to the register.
            integer(v as u64, c.to) as u64
        }
        (false, true) => {
            let v = integer(bits, c.from);
            let n = Num::Finite { neg: v < 0, exp: 0, sig: v.unsigned_abs() };
            let round = match c.round {
                CvtRound::Float(r) => r,
                _ => Round::Nearest,
            };
            let v = pack(n, format(c.to), round);
            if c.sat { saturated(v, format(c.to)) } else { v }
        }
        (true, false) => {
            let bits = if c.ftz && c.from == Ty::F32 { u64::from(flush_bits(bits as u32)) } else { bits };
            let round = match c.round {
                CvtRound::Integer(r) => r,
                _ => Round::Zero,
            };
            let n = unpack(bits & mask(c.from), format(c.from));
            let (least, most) = bounds(c.to);
            // NaN becomes 0, or the highest bit where source or destination has 64 bits.
            let v = match n {
                Num::Nan if c.to.bits() == 64 || c.from == Ty::F64 => 1i128 << (c.to.bits() - 1),
                n => soft::clamp(soft::integral(n, round), least, most),
            };
            integer(v as u64, c.to) as u64
        }
        (true, true) => {
            let bits = if c.ftz && c.from == Ty::F32 { u64::from(flush_bits(bits as u32)) } else { bits };
            let round = match c.round {
                CvtRound::Float(r) => r,
                _ => Round::Nearest,
            };
            let mut n = unpack(bits & mask(c.from), format(c.from));
            if let CvtRound::Integer(r) = c.round {
                n = soft::integral(n, r);
            }
            let mut v = match c.to {
                Ty::Tf32 => u64::from(tf32(bits as u32, round)),
                _ => pack(n, format(c.to), round),
            };
            if c.relu {
                v = relu(v, if c.to == Ty::Tf32 { F32 } else { format(c.to) });
            }
            if c.ftz && c.to == Ty::F32 {
                v = u64::from(flush_bits(v as u32));
            }
            if c.sat { saturated(v, format(c.to)) } else { v }
        }
    };
    match c.to_bits {
        16 => out & 0xffff,
        32 => out & 0xffff_ffff,
        _ => out,
    }
}

fn mask(ty: Ty) -> u64 {
    if ty.bits() == 64 { u64::MAX } else { (1 << ty.bits()) - 1 }
}

fn saturated(v: u64, f: Format) -> u64 {
    let one = pack(Num::Finite { neg: false, exp: 0, sig: 1 }, f, Round::Nearest);
    match unpack(v, f) {
        Num::Nan | Num::Inf(true) | Num::Finite { neg: true, .. } => 0,
        _ => v.min(one),
    }
}

/// Negative values become 0, NaN stays.
fn relu(v: u64, f: Format) -> u64 {
    match unpack(v, f) {
        Num::Inf(true) | Num::Finite { neg: true, .. } => 0,
        _ => v,
    }
}

impl Exec<'_, '_> {
    pub(super) fn cvt(&mut self, i: &Instr, e: u32, c: Cvt) {
        // The conversions that address arithmetic is full of need no general way.
        let simple = !c.sat && !c.ftz && !c.relu;
        match (c.from, c.to, c.to_bits, c.from_wide, c.round) {
            (Ty::U32, Ty::U64 | Ty::S64, 64, false, _) if simple => {
                let v = self.a32(i.s[0]).map(u64::from);
                return self.set64(i.d[0], e, &v);
            }
            (Ty::S32, Ty::U64 | Ty::S64, 64, false, _) if simple => {
                let v = self.a32(i.s[0]).map(|a| a as i32 as i64 as u64);
                return self.set64(i.d[0], e, &v);
            }
            (Ty::U64 | Ty::S64, Ty::U32 | Ty::S32, 32, true, _) if simple => {
                let v = self.a64(i.s[0]).map(|a| a as u32);
                return self.set32(i.d[0], e, &v);
            }
            (Ty::U16, Ty::U32 | Ty::S32, 32, false, _) if simple => {
                let v = self.a32(i.s[0]).map(|a| a & 0xffff);
                return self.set32(i.d[0], e, &v);
            }
            (Ty::S32, Ty::F32, 32, false, CvtRound::Float(Round::Nearest)) if simple => {
                let v = self.a32(i.s[0]).map(|a| (a as i32 as f32).to_bits());
                return self.set32(i.d[0], e, &v);
            }
            (Ty::U32, Ty::F32, 32, false, CvtRound::Float(Round::Nearest)) if simple => {
                let v = self.a32(i.s[0]).map(|a| (a as f32).to_bits());
                return self.set32(i.d[0], e, &v);
            }
            (Ty::F32, Ty::S32, 32, false, CvtRound::Integer(Round::Zero)) if simple => {
                let v = self.a32(i.s[0]).map(|a| f32::from_bits(a) as i32 as u32);
                return self.set32(i.d[0], e, &v);
            }
            _ => {}
        }
        let s = self.wide(i, 0);
        let v = s.map(|bits| convert(&c, bits));
        if c.to_bits == 64 {
            self.set64(i.d[0], e, &v);
        } else {
            self.set32(i.d[0], e, &v.map(|v| v as u32));
        }
    }

    /// The first operand goes to the upper half.
    pub(super) fn cvt_pair(&mut self, i: &Instr, e: u32, to: Ty, round: Round, keep_positive: bool) {
        let format = if to == Ty::Bf16x2 { BF16 } else { F16 };
        let one = |v: u32| {
            let v = pack(unpack(v.into(), F32), format, round);
            (if keep_positive { relu(v, format) } else { v }) as u32
        };
        self.zip32(i, e, |a, b| one(a) << 16 | one(b));
    }
}
