//! Comparisons, PTX ISA 9.7.6 and 9.7.7.

use super::Exec;
use super::alu::flush;
use super::bits::s16;
use crate::ops::{BoolOp, Cmp};
use crate::parse::ast::Ty;
use crate::program::{Instr, SINK};

fn compare<T: PartialOrd>(cmp: Cmp, a: T, b: T) -> bool {
    let unordered = a.partial_cmp(&b).is_none();
    match cmp {
        Cmp::Eq => a == b,
        Cmp::Ne => !unordered && a != b,
        Cmp::Lt => a < b,
        Cmp::Le => a <= b,
        Cmp::Gt => a > b,
        Cmp::Ge => a >= b,
        Cmp::Equ => unordered || a == b,
        Cmp::Neu => unordered || a != b,
        Cmp::Ltu => unordered || a < b,
        Cmp::Leu => unordered || a <= b,
        Cmp::Gtu => unordered || a > b,
        Cmp::Geu => unordered || a >= b,
        Cmp::Num => !unordered,
        Cmp::Nan => unordered,
    }
}

impl Exec<'_, '_> {
    /// Lanes where a comparison holds; of pairs, the second too.
    pub(super) fn compared(&self, i: &Instr, cmp: Cmp, ty: Ty, ftz: bool) -> (u32, u32) {
        let mut mask = 0u32;
        macro_rules! each {
            ($get:ident, $value:expr) => {{
                let (a, b) = (self.$get(i.s[0]), self.$get(i.s[1]));
                let value = $value;
                // The comparison is chosen once, outside of the loop over lanes.
                macro_rules! with {
                    ($f:expr) => {
                        for l in 0..32 {
                            mask |= u32::from($f(value(a[l]), value(b[l]))) << l;
                        }
                    };
                }
                match cmp {
                    Cmp::Eq => with!(|a, b| a == b),
                    Cmp::Lt => with!(|a, b| a < b),
                    Cmp::Le => with!(|a, b| a <= b),
                    Cmp::Gt => with!(|a, b| a > b),
                    Cmp::Ge => with!(|a, b| a >= b),
                    other => with!(|a, b| compare(other, a, b)),
                }
            }};
        }
        let half = |bits: u32, bf16: bool| -> f32 {
            match bf16 {
                true => f32::from_bits(bits << 16),
                false => half::f16::from_bits(bits as u16).to_f32(),
            }
        };
        match ty {
            Ty::U16 | Ty::B16 => each!(a32, |v: u32| v & 0xffff),
            Ty::S16 => each!(a32, s16),
            Ty::U32 | Ty::B32 => each!(a32, |v: u32| v),
            Ty::S32 => each!(a32, |v: u32| v as i32),
            Ty::U64 | Ty::B64 => each!(a64, |v: u64| v),
            Ty::S64 => each!(a64, |v: u64| v as i64),
            Ty::F64 => each!(a64, f64::from_bits),
            Ty::F32 if ftz => each!(a32, |v: u32| flush(f32::from_bits(v))),
            Ty::F32 => each!(a32, f32::from_bits),
            Ty::F16 | Ty::F16x2 if ftz => {
                each!(a32, |v: u32| {
                    let x = half::f16::from_bits(v as u16);
                    if x.classify() == std::num::FpCategory::Subnormal { 0.0 } else { x.to_f32() }
                });
            }
            Ty::F16 | Ty::F16x2 => each!(a32, |v: u32| half(v & 0xffff, false)),
            _ => each!(a32, |v: u32| half(v & 0xffff, true)),
        }
        let mut second = 0;
        if matches!(ty, Ty::F16x2 | Ty::Bf16x2) {
            let (a, b) = (self.a32(i.s[0]), self.a32(i.s[1]));
            for l in 0..32 {
                let (x, y) = (half(a[l] >> 16, ty == Ty::Bf16x2), half(b[l] >> 16, ty == Ty::Bf16x2));
                let (x, y) = if ftz && ty == Ty::F16x2 {
                    let f = |v: f32| if v.abs() < 6.103_515_6e-5 { 0.0 } else { v };
                    (f(x), f(y))
                } else {
                    (x, y)
                };
                second |= u32::from(compare(cmp, x, y)) << l;
            }
        }
        (mask, second)
    }

    pub(super) fn setp(&mut self, i: &Instr, e: u32, cmp: Cmp, ty: Ty, combine: Option<BoolOp>, ftz: bool) {
        let (mut p, second) = self.compared(i, cmp, ty, ftz);
        let mut q = if matches!(ty, Ty::F16x2 | Ty::Bf16x2) { second } else { !p };
        if let Some(f) = combine {
            let c = self.pred(i.s[2]);
            (p, q) = (join(f, p, c), join(f, q, c));
        }
        self.set_pred(i.d[0], e, p);
        if i.dsts == 2 && i.d[1] != SINK {
            self.set_pred(i.d[1], e, q);
        }
    }
}

pub(super) fn join(f: BoolOp, a: u32, b: u32) -> u32 {
    match f {
        BoolOp::And => a & b,
        BoolOp::Or => a | b,
        BoolOp::Xor => a ^ b,
    }
}
