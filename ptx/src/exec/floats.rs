//! Single- and double-precision instructions, PTX ISA 9.7.3.

use std::cmp::Ordering;
use std::ops::{BitAnd, BitOr};

use super::alu::flush;
use super::soft::{self, F32, F64, NAN32, NAN64, pack, unpack};
use super::{Exec, fma};
use crate::ops::{Approx, FloatOp, Op, Round};
use crate::program::Instr;
use crate::random::{mix, unit};

fn ftz_bits(v: u32) -> u32 {
    if v & 0x7f80_0000 == 0 { v & 0x8000_0000 } else { v }
}

/// .sat: to [0, 1], NaN to 0.
fn saturate(v: u32) -> u32 {
    let x = f32::from_bits(v);
    if x > 0.0 { if x > 1.0 { 1f32.to_bits() } else { v } } else { 0 }
}

/// The bits of the larger or the smaller of two numbers, neither of them NaN; -0 is below +0.
fn outer<T: BitAnd<Output = T> + BitOr<Output = T>>(order: Option<Ordering>, max: bool, a: T, b: T) -> T {
    match order {
        Some(Ordering::Equal) if max => a & b,
        Some(Ordering::Equal) => a | b,
        order if (order == Some(Ordering::Greater)) == max => a,
        _ => b,
    }
}

fn canonical(v: f32) -> u32 {
    if v.is_nan() { NAN32 } else { v.to_bits() }
}

fn canonical64(v: f64) -> u64 {
    if v.is_nan() { NAN64 } else { v.to_bits() }
}

fn soft2(f: FloatOp, a: u64, b: u64, format: soft::Format, round: Round) -> u64 {
    let (a, b) = (unpack(a, format), unpack(b, format));
    let v = match f {
        FloatOp::Add => soft::add(a, b, round),
        FloatOp::Sub => soft::add(a, soft::negate(b), round),
        FloatOp::Mul => soft::mul(a, b),
        FloatOp::Div => soft::div(a, b),
    };
    pack(v, format, round)
}

/// a b + c in any format, rounded once.
pub(super) fn soft_fma(a: u64, b: u64, c: u64, format: soft::Format, round: Round) -> u64 {
    let product = soft::mul(unpack(a, format), unpack(b, format));
    pack(soft::add(product, unpack(c, format), round), format, round)
}

/// What an approximate instruction computes, and its documented bounds: relative, then absolute.
fn approximated(f: Approx, x: f64) -> (f64, f64, f64) {
    use Approx::*;
    let ulp = 2f64.powi(-23);
    match f {
        // 1 ulp.
        Rcp => (1.0 / x, ulp, 0.0),
        Sqrt => (x.sqrt(), ulp, 0.0),
        // 2^-22.9.
        Rsqrt => (1.0 / x.sqrt(), 2f64.powf(-22.9), 0.0),
        // 2^-20.5 in [-2 pi, 2 pi], growing outside.
        Sin => (x.sin(), 0.0, 2f64.powf(-20.5) * (x.abs() / std::f64::consts::TAU).max(1.0)),
        Cos => (x.cos(), 0.0, 2f64.powf(-20.5) * (x.abs() / std::f64::consts::TAU).max(1.0)),
        // 2^-22 absolute between 0.5 and 2, relative elsewhere.
        Lg2 if x > 0.5 && x < 2.0 => (x.log2(), 0.0, 2f64.powi(-22)),
        Lg2 => (x.log2(), 2f64.powi(-22), 0.0),
        Ex2 => (x.exp2(), 2f64.powi(-22), 0.0),
        Tanh => (x.tanh(), 2f64.powi(-11), 0.0),
    }
}

/// The largest power of two that is not above |x|.
fn power_below(x: f64) -> f64 {
    f64::from_bits(x.to_bits() & f64::INFINITY.to_bits())
}

/// The result of an approximate instruction on F32 bits: the exact one and an error drawn within the bound. The same
/// operand gives the same result.
pub(super) fn approximate(f: Approx, bits: u32, ftz: bool, seed: u64) -> u32 {
    let bits = if ftz { ftz_bits(bits) } else { bits };
    let x = f64::from(f32::from_bits(bits));
    let (exact, relative, absolute) = approximated(f, x);
    if exact.is_nan() {
        return NAN32;
    }
    let special = matches!(f, Approx::Ex2 | Approx::Cos) && x == 0.0 || exact.is_infinite() || exact == 0.0;
    let drawn = if special {
        exact
    } else {
        let u = unit(seed ^ u64::from(bits) << 8 ^ f as u64);
        // Half of the bound is left to the rounding. Errors in units of the last place count from a power of two.
        exact + u * (power_below(exact) * relative * 0.5 + absolute * 0.9)
    };
    let bounded = match f {
        Approx::Sin | Approx::Cos | Approx::Tanh => drawn.clamp(-1.0, 1.0),
        _ => drawn,
    };
    // A zero keeps its sign.
    let out = (bounded as f32).to_bits();
    if ftz { ftz_bits(out) } else { out }
}

impl Exec<'_, '_> {
    pub(super) fn float(&mut self, i: &Instr, e: u32) {
        match i.op {
            Op::F32 { f, round: Round::Nearest, ftz: false, sat: false } => match f {
                FloatOp::Add => self.plain32(i, e, |a, b| a + b),
                FloatOp::Sub => self.plain32(i, e, |a, b| a - b),
                FloatOp::Mul => self.plain32(i, e, |a, b| a * b),
                FloatOp::Div => self.plain32(i, e, |a, b| a / b),
            },
            Op::F32 { f, round, ftz, sat } => self.zip32(i, e, |a, b| {
                let (a, b) = if ftz { (ftz_bits(a), ftz_bits(b)) } else { (a, b) };
                let v = soft2(f, a.into(), b.into(), F32, round) as u32;
                let v = if ftz { ftz_bits(v) } else { v };
                if sat { saturate(v) } else { v }
            }),
            Op::F64 { f, round: Round::Nearest } => match f {
                FloatOp::Add => self.plain64(i, e, |a, b| a + b),
                FloatOp::Sub => self.plain64(i, e, |a, b| a - b),
                FloatOp::Mul => self.plain64(i, e, |a, b| a * b),
                FloatOp::Div => self.plain64(i, e, |a, b| a / b),
            },
            Op::F64 { f, round } => self.zip64(i, e, |a, b| soft2(f, a, b, F64, round)),
            Op::Fma32 { round: Round::Nearest, ftz: false, sat: false } => {
                let v = fma::fma32(self.a32(i.s[0]), self.a32(i.s[1]), self.a32(i.s[2]));
                self.set32(i.d[0], e, &v);
            }
            Op::Fma32 { round, ftz, sat } => self.tri32(i, e, |a, b, c| {
                let [a, b, c] = [a, b, c].map(|v| u64::from(if ftz { ftz_bits(v) } else { v }));
                let v = soft_fma(a, b, c, F32, round) as u32;
                let v = if ftz { ftz_bits(v) } else { v };
                if sat { saturate(v) } else { v }
            }),
            Op::Fma64 { round: Round::Nearest } => {
                let v = fma::fma64(self.a64(i.s[0]), self.a64(i.s[1]), self.a64(i.s[2]));
                self.set64(i.d[0], e, &v);
            }
            Op::Fma64 { round } => {
                let (a, b, c) = (*self.a64(i.s[0]), *self.a64(i.s[1]), *self.a64(i.s[2]));
                let v = std::array::from_fn(|l| soft_fma(a[l], b[l], c[l], F64, round));
                self.set64(i.d[0], e, &v);
            }
            Op::MinMax32 { max, nan, xorsign, ftz } => {
                self.zip32(i, e, |a, b| min_max(a, b, max, nan, xorsign, ftz))
            }
            Op::MinMax64 { max } => self.zip64(i, e, |a, b| {
                let (x, y) = (f64::from_bits(a), f64::from_bits(b));
                match (x.is_nan(), y.is_nan()) {
                    (true, true) => NAN64,
                    (true, false) => b,
                    (false, true) => a,
                    _ => outer(x.partial_cmp(&y), max, a, b),
                }
            }),
            Op::Neg32 { ftz } => self.map32(i, e, |a| (if ftz { ftz_bits(a) } else { a }) ^ 1 << 31),
            Op::Abs32 { ftz } => self.map32(i, e, |a| (if ftz { ftz_bits(a) } else { a }) & !(1 << 31)),
            Op::Neg64 => self.map64(i, e, |a| a ^ 1 << 63),
            Op::Abs64 => self.map64(i, e, |a| a & !(1 << 63)),
            Op::Rcp32 { round, ftz } => self.map32(i, e, |a| {
                let a = if ftz { ftz_bits(a) } else { a };
                let v = match round {
                    Round::Nearest => canonical(1.0 / f32::from_bits(a)),
                    _ => soft2(FloatOp::Div, 1f32.to_bits().into(), a.into(), F32, round) as u32,
                };
                if ftz { ftz_bits(v) } else { v }
            }),
            Op::Sqrt32 { round, ftz } => self.map32(i, e, |a| {
                let a = if ftz { ftz_bits(a) } else { a };
                match round {
                    Round::Nearest => canonical(f32::from_bits(a).sqrt()),
                    _ => pack(soft::sqrt(unpack(a.into(), F32)), F32, round) as u32,
                }
            }),
            Op::Rcp64 { round } => self.map64(i, e, |a| soft2(FloatOp::Div, 1f64.to_bits(), a, F64, round)),
            Op::Sqrt64 { round: Round::Nearest } => {
                self.map64(i, e, |a| canonical64(f64::from_bits(a).sqrt()))
            }
            Op::Sqrt64 { round } => self.map64(i, e, |a| pack(soft::sqrt(unpack(a, F64)), F64, round)),
            Op::Approx { f, ftz } => {
                let seed = self.shared.options.seed;
                self.map32(i, e, |a| approximate(f, a, ftz, seed));
            }
            Op::DivApprox { full, ftz } => {
                let seed = self.shared.options.seed;
                self.zip32(i, e, |a, b| div_approx(a, b, full, ftz, seed));
            }
            Op::Approx64 { rsqrt, ftz } => {
                let seed = self.shared.options.seed;
                self.map64(i, e, |a| approx64(a, rsqrt, ftz, seed));
            }
            Op::Testp { kind, wide } => {
                let mut mask = 0;
                for l in 0..32 {
                    let category = match wide {
                        true => f64::from_bits(self.a64(i.s[0])[l]).classify(),
                        false => f32::from_bits(self.a32(i.s[0])[l]).classify(),
                    };
                    use std::num::FpCategory::*;
                    let holds = match kind {
                        0 => !matches!(category, Infinite | Nan),
                        1 => category == Infinite,
                        2 => category != Nan,
                        3 => category == Nan,
                        // A zero counts as normal.
                        4 => matches!(category, Normal | Zero),
                        _ => category == Subnormal,
                    };
                    mask |= u32::from(holds) << l;
                }
                self.set_pred(i.d[0], e, mask);
            }
            Op::Copysign { wide: false } => self.zip32(i, e, |a, b| a & 1 << 31 | b & !(1 << 31)),
            Op::Copysign { wide: true } => self.zip64(i, e, |a, b| a & 1 << 63 | b & !(1 << 63)),
            _ => unreachable!("the operation belongs to another file"),
        }
    }

    #[inline(always)]
    fn plain32(&mut self, i: &Instr, e: u32, f: impl Fn(f32, f32) -> f32) {
        self.zip32(i, e, |a, b| canonical(f(f32::from_bits(a), f32::from_bits(b))));
    }

    #[inline(always)]
    fn plain64(&mut self, i: &Instr, e: u32, f: impl Fn(f64, f64) -> f64) {
        self.zip64(i, e, |a, b| canonical64(f(f64::from_bits(a), f64::from_bits(b))));
    }

    fn map64(&mut self, i: &Instr, e: u32, f: impl Fn(u64) -> u64) {
        let v = self.a64(i.s[0]).map(f);
        self.set64(i.d[0], e, &v);
    }
}

/// PTX ISA 9.7.3.10 and 9.7.3.11.
pub(super) fn min_max(a: u32, b: u32, max: bool, nan: bool, xorsign: bool, ftz: bool) -> u32 {
    let (mut a, mut b) = if ftz { (ftz_bits(a), ftz_bits(b)) } else { (a, b) };
    let sign = (a ^ b) & 1 << 31;
    if xorsign {
        (a, b) = (a & !(1 << 31), b & !(1 << 31));
    }
    let (x, y) = (f32::from_bits(a), f32::from_bits(b));
    let v = match (x.is_nan(), y.is_nan()) {
        (true, true) => return NAN32,
        (true, false) | (false, true) if nan => return NAN32,
        (true, false) => b,
        (false, true) => a,
        _ => outer(x.partial_cmp(&y), max, a, b),
    };
    if xorsign { v & !(1 << 31) | sign } else { v }
}

/// PTX ISA 9.7.3.8: 2 ulp; .approx gives 0 for divisors above 2^126.
fn div_approx(a: u32, b: u32, full: bool, ftz: bool, seed: u64) -> u32 {
    let (a, b) = if ftz { (ftz_bits(a), ftz_bits(b)) } else { (a, b) };
    let (x, y) = (f64::from(f32::from_bits(a)), f64::from(f32::from_bits(b)));
    let exact = x / y;
    if exact.is_nan() {
        return NAN32;
    }
    if !full && y.is_finite() && y.abs() > 2f64.powi(126) {
        return if x.is_infinite() { NAN32 } else { (a ^ b) & 1 << 31 };
    }
    let drawn = if exact == 0.0 || exact.is_infinite() {
        exact
    } else {
        exact + power_below(exact) * unit(seed ^ mix(u64::from(a) << 32 | u64::from(b))) * 2f64.powi(-23)
    };
    let v = (drawn as f32).to_bits();
    if ftz { ftz_bits(v) } else { v }
}

/// `rcp.approx.ftz.f64` and `rsqrt.approx.ftz.f64`: of the upper 32 bits alone, to about 2^-20. `rsqrt.approx.f64` has no
/// documented bound and is what `rsqrt` of CUDA compiles to: the last place is drawn.
fn approx64(a: u64, rsqrt: bool, ftz: bool, seed: u64) -> u64 {
    if !ftz {
        let v = 1.0 / f64::from_bits(a).sqrt();
        return match mix(seed ^ a) % 3 {
            _ if !v.is_finite() || v == 0.0 => canonical64(v),
            0 => v.next_down().to_bits(),
            1 => v.to_bits(),
            _ => v.next_up().to_bits(),
        };
    }
    let upper = a & 0xffff_ffff_0000_0000;
    let x = match f64::from_bits(a) {
        x if x.is_subnormal() => 0f64.copysign(x),
        _ => f64::from_bits(upper),
    };
    let exact = if rsqrt { 1.0 / x.sqrt() } else { 1.0 / x };
    if exact.is_nan() {
        return 0x7fff_ffff_0000_0000;
    }
    let error = if exact == 0.0 || exact.is_infinite() { 0.0 } else { unit(seed ^ a) * 2f64.powi(-21) };
    let v = exact * (1.0 + error);
    let v = if v.is_subnormal() { 0f64.copysign(v) } else { v };
    v.to_bits() & 0xffff_ffff_0000_0000
}

pub(super) fn flush_bits(v: u32) -> u32 {
    flush(f32::from_bits(v)).to_bits()
}
