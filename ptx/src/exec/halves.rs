//! Half and bfloat16 arithmetic, alone and in pairs, PTX ISA 9.7.4.

use super::Exec;
use super::floats::{approximate, soft_fma};
use super::soft::{self, BF16, F16, Format, pack, unpack};
use crate::ops::{Approx, HalfOp, Op, Round};
use crate::program::Instr;
use crate::random::unit;

/// Bits of F32 to bits of a format, to nearest.
fn narrow(v: u32, f: Format) -> u32 {
    pack(unpack(v.into(), soft::F32), f, Round::Nearest) as u32
}

fn widen(v: u32, f: Format) -> u32 {
    pack(unpack(v.into(), f), soft::F32, Round::Nearest) as u32
}

#[derive(Clone, Copy)]
struct Form {
    f: HalfOp,
    bf16: bool,
    ftz: bool,
    sat: bool,
    relu: bool,
    nan: bool,
    seed: u64,
}

impl Form {
    fn one(self, a: u32, b: u32, c: u32) -> u32 {
        let format = if self.bf16 { BF16 } else { F16 };
        let exponent = if self.bf16 { 0x7f80 } else { 0x7c00 };
        let flush = |v: u32| if self.ftz && v & exponent == 0 { v & 0x8000 } else { v };
        let [a, b, c] = [a, b, c].map(|v| flush(v & 0xffff));
        let is_nan = |v: u32| v & 0x7fff > exponent;
        let v = match self.f {
            HalfOp::Neg => a ^ 0x8000,
            HalfOp::Abs => a & 0x7fff,
            HalfOp::Min | HalfOp::Max => {
                let (x, y) = (widen(a, format), widen(b, format));
                match (is_nan(a), is_nan(b)) {
                    (true, true) => 0x7fff,
                    (true, false) | (false, true) if self.nan => 0x7fff,
                    (true, false) => b,
                    (false, true) => a,
                    _ => {
                        let v = super::floats::min_max(x, y, self.f == HalfOp::Max, false, false, false);
                        if v == x { a } else { b }
                    }
                }
            }
            HalfOp::Ex2 | HalfOp::Tanh => {
                let ex2 = self.f == HalfOp::Ex2;
                let (f, limit) = if ex2 { (Approx::Ex2, f32::INFINITY) } else { (Approx::Tanh, 1.0) };
                let exact = approximate(f, widen(a, format), false, self.seed);
                // What the bound leaves beside the error in F32 and the rounding.
                let share = match (ex2, self.bf16) {
                    (true, _) => 0.9 * 0.5f64.powi(format.precision as i32),
                    (false, true) => 0.5f64.powi(10),
                    (false, false) => 0.0,
                };
                let x = f64::from(f32::from_bits(exact));
                let by =
                    if matches!(x, 0.0 | 1.0 | -1.0) { 0.0 } else { unit(self.seed ^ u64::from(a) << 8) };
                let moved = (x * (1.0 + by * share)) as f32;
                narrow(moved.clamp(-limit, limit).to_bits(), format)
            }
            HalfOp::Fma => soft_fma(a.into(), b.into(), c.into(), format, Round::Nearest) as u32,
            _ => {
                let (x, y) = (unpack(a.into(), format), unpack(b.into(), format));
                let v = match self.f {
                    HalfOp::Add => soft::add(x, y, Round::Nearest),
                    HalfOp::Sub => soft::add(x, soft::negate(y), Round::Nearest),
                    _ => soft::mul(x, y),
                };
                pack(v, format, Round::Nearest) as u32
            }
        };
        let v = flush(v);
        if self.sat {
            // To [0, 1], NaN to 0.
            let one = if self.bf16 { 0x3f80 } else { 0x3c00 };
            return if is_nan(v) || v & 0x8000 != 0 { 0 } else { v.min(one) };
        }
        if self.relu && !is_nan(v) && v & 0x8000 != 0 {
            return 0;
        }
        v
    }
}

impl Exec<'_, '_> {
    pub(super) fn half(&mut self, i: &Instr, e: u32) {
        let Op::Half { f, bf16, two, ftz, sat, relu, nan } = i.op else {
            unreachable!("the operation belongs to another file")
        };
        let form = Form { f, bf16, ftz, sat, relu, nan, seed: self.shared.options.seed };
        let zero = [0; 32];
        let operand = |n: usize| if n < usize::from(i.srcs) { self.a32(i.s[n]) } else { &zero };
        let (a, b, c) = (operand(0), operand(1), operand(2));
        let mut v = [0; 32];
        for l in 0..32 {
            v[l] = form.one(a[l], b[l], c[l]);
            if two {
                v[l] |= form.one(a[l] >> 16, b[l] >> 16, c[l] >> 16) << 16;
            }
        }
        self.set32(i.d[0], e, &v);
    }
}
