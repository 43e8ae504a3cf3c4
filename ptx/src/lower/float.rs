//! Floating-point instructions and conversions (PTX ISA 9.7.3 to 9.7.5, 9.7.9.21).

use super::modifiers::Modifiers;
use super::{Lower, Result};
use crate::ops::{Approx, Cvt, CvtRound, FloatOp, HalfOp, Op, Round};
use crate::parse::ast::{Instruction, Ty};

impl Lower<'_> {
    fn float_args(&mut self, i: &Instruction, ty: Ty, sources: usize, op: Op) -> Result<bool> {
        let args = self.args(i, &[sources + 1])?;
        let d = self.dst(&args[0], ty.bits())?;
        let s = args[1..].iter().map(|a| self.src(a, ty)).collect::<Result<_>>()?;
        self.emit(op, vec![d], s);
        Ok(true)
    }

    /// Lowers an instruction of these groups; false if it is none.
    pub(crate) fn float(&mut self, i: &Instruction, m: &mut Modifiers) -> Result<bool> {
        let half = i
            .modifiers
            .iter()
            .filter_map(|t| Ty::named(t))
            .find(|t| matches!(t, Ty::F16 | Ty::F16x2 | Ty::Bf16 | Ty::Bf16x2));
        match i.name.as_str() {
            "cvt" => return self.cvt(i, m),
            "add" | "sub" | "mul" | "fma" | "min" | "max" | "neg" | "abs" | "ex2" | "tanh" => {
                if let Some(ty) = half {
                    return self.half(i, m, ty);
                }
            }
            "mad" | "div" | "rcp" | "sqrt" | "rsqrt" | "sin" | "cos" | "lg2" | "testp" | "copysign" => {}
            _ => return Ok(false),
        }
        let (approx, full) = (m.take("approx"), m.take("full"));
        let ftz = m.take("ftz");
        let named = m.rounding();
        let round = named.unwrap_or(Round::Nearest);
        if round == Round::Away {
            return m.fail("rounding .rna is for conversions");
        }
        let sat = m.take("sat");
        let (nan, xorsign) = (m.take("NaN"), m.take("xorsign"));
        if xorsign {
            m.must("abs")?;
        }
        let kind = if i.name == "testp" {
            let all = ["finite", "infinite", "number", "notanumber", "normal", "subnormal"];
            all.iter().position(|k| m.take(k))
        } else {
            None
        };
        let ty = m.ty()?;
        let wide = ty == Ty::F64;
        if ty != Ty::F32 && (!wide || ftz || sat || nan || xorsign) && i.name != "rcp" && i.name != "rsqrt" {
            return m.fail("the instruction does not exist for this type");
        }
        if sat && !matches!(i.name.as_str(), "add" | "sub" | "mul" | "fma" | "mad") {
            return m.fail("modifier .sat does not belong here");
        }
        if (nan || xorsign) && !matches!(i.name.as_str(), "min" | "max") {
            return m.fail("modifiers .NaN and .xorsign.abs belong to min and max");
        }
        let binary = |f: FloatOp| match wide {
            true => Op::F64 { f, round },
            false => Op::F32 { f, round, ftz, sat },
        };
        let (sources, op) = match i.name.as_str() {
            "add" => (2, binary(FloatOp::Add)),
            "sub" => (2, binary(FloatOp::Sub)),
            "mul" => (2, binary(FloatOp::Mul)),
            "div" if approx || full => {
                if wide || named.is_some() {
                    return m.fail("approximate division is of .f32 and has no rounding");
                }
                return self.float_args(i, ty, 2, Op::DivApprox { full, ftz });
            }
            "div" if named.is_none() => return m.fail("a rounding is needed"),
            "div" => (2, binary(FloatOp::Div)),
            "fma" | "mad" if named.is_none() => return m.fail("a rounding is needed"),
            "fma" | "mad" if wide => (3, Op::Fma64 { round }),
            "fma" | "mad" => (3, Op::Fma32 { round, ftz, sat }),
            "min" | "max" if wide => (2, Op::MinMax64 { max: i.name == "max" }),
            "min" | "max" => (2, Op::MinMax32 { max: i.name == "max", nan, xorsign, ftz }),
            "neg" if wide => (1, Op::Neg64),
            "neg" => (1, Op::Neg32 { ftz }),
            "abs" if wide => (1, Op::Abs64),
            "abs" => (1, Op::Abs32 { ftz }),
            "rcp" | "rsqrt" if wide && approx => {
                if named.is_some() || !ftz && i.name == "rcp" {
                    return m.fail("only .approx.ftz.f64 is supported");
                }
                return self.float_args(i, ty, 1, Op::Approx64 { rsqrt: i.name == "rsqrt", ftz });
            }
            "rcp" | "sqrt" if !approx => {
                if named.is_none() {
                    return m.fail("a rounding or .approx is needed");
                }
                let op = match (i.name.as_str(), wide) {
                    ("rcp", false) => Op::Rcp32 { round, ftz },
                    ("rcp", true) => Op::Rcp64 { round },
                    (_, false) => Op::Sqrt32 { round, ftz },
                    (_, true) => Op::Sqrt64 { round },
                };
                return self.float_args(i, ty, 1, op);
            }
            "testp" => {
                let Some(kind) = kind else { return m.fail("a property to test is needed") };
                let args = self.args(i, &[2])?;
                let (d, a) = (self.pred_dst(&args[0])?, self.src(&args[1], ty)?);
                self.emit(Op::Testp { kind: kind as u8, wide }, vec![d], vec![a]);
                return Ok(true);
            }
            "copysign" => (2, Op::Copysign { wide }),
            name => {
                let f = match name {
                    "rcp" => Approx::Rcp,
                    "sqrt" => Approx::Sqrt,
                    "rsqrt" => Approx::Rsqrt,
                    "sin" => Approx::Sin,
                    "cos" => Approx::Cos,
                    "lg2" => Approx::Lg2,
                    "ex2" => Approx::Ex2,
                    "tanh" => Approx::Tanh,
                    _ => return Ok(false),
                };
                if wide || !approx || named.is_some() {
                    return m.fail("only .approx of .f32 is supported");
                }
                return self.float_args(i, ty, 1, Op::Approx { f, ftz });
            }
        };
        if approx || full {
            return m.fail("modifiers .approx and .full do not belong here");
        }
        if named.is_some() && matches!(i.name.as_str(), "min" | "max" | "neg" | "abs" | "copysign") {
            return m.fail("a rounding does not belong here");
        }
        self.float_args(i, ty, sources, op)
    }

    fn half(&mut self, i: &Instruction, m: &mut Modifiers, ty: Ty) -> Result<bool> {
        let (f, sources) = match i.name.as_str() {
            "add" => (HalfOp::Add, 2),
            "sub" => (HalfOp::Sub, 2),
            "mul" => (HalfOp::Mul, 2),
            "fma" => (HalfOp::Fma, 3),
            "min" => (HalfOp::Min, 2),
            "max" => (HalfOp::Max, 2),
            "neg" => (HalfOp::Neg, 1),
            "abs" => (HalfOp::Abs, 1),
            "ex2" => (HalfOp::Ex2, 1),
            _ => (HalfOp::Tanh, 1),
        };
        let arithmetic = matches!(f, HalfOp::Add | HalfOp::Sub | HalfOp::Mul | HalfOp::Fma);
        let approximate = matches!(f, HalfOp::Ex2 | HalfOp::Tanh);
        if approximate {
            m.must("approx")?;
        }
        if arithmetic {
            m.take("rn");
        }
        let bf16 = matches!(ty, Ty::Bf16 | Ty::Bf16x2);
        let ftz = m.take("ftz");
        if ftz && bf16 && f != HalfOp::Ex2 {
            return m.fail("modifier .ftz does not exist for bf16");
        }
        let sat = arithmetic && !bf16 && m.take("sat");
        let relu = f == HalfOp::Fma && m.take("relu");
        let nan = matches!(f, HalfOp::Min | HalfOp::Max) && m.take("NaN");
        if m.ty()? != ty {
            return m.fail("more than one type");
        }
        let two = matches!(ty, Ty::F16x2 | Ty::Bf16x2);
        self.float_args(i, ty, sources, Op::Half { f, bf16, two, ftz, sat, relu, nan })
    }

    fn cvt(&mut self, i: &Instruction, m: &mut Modifiers) -> Result<bool> {
        let (ftz, sat, relu) = (m.take("ftz"), m.take("sat"), m.take("relu"));
        let integer = m.one_of(&[
            ("rni", Round::Nearest),
            ("rzi", Round::Zero),
            ("rmi", Round::Down),
            ("rpi", Round::Up),
        ]);
        let float = m.rounding();
        let types = m.types();
        let &[to, from] = types.as_slice() else { return m.fail("two types are needed") };
        if matches!(to, Ty::F16x2 | Ty::Bf16x2) && from == Ty::F32 {
            let Some(round @ (Round::Nearest | Round::Zero)) = float else {
                return m.fail("a rounding .rn or .rz is needed");
            };
            if ftz || sat || integer.is_some() {
                return m.fail("only .rn, .rz and .relu belong here");
            }
            let args = self.args(i, &[3])?;
            let d = self.dst(&args[0], 32)?;
            let s = vec![self.src(&args[1], Ty::F32)?, self.src(&args[2], Ty::F32)?];
            self.emit(Op::CvtPair { to, round, relu }, vec![d], s);
            return Ok(true);
        }
        let scalar = |t: Ty| !matches!(t, Ty::F16x2 | Ty::Bf16x2 | Ty::Pred | Ty::B128);
        let bits = |t: Ty| matches!(t, Ty::B8 | Ty::B16 | Ty::B32 | Ty::B64);
        if !scalar(to) || !scalar(from) || bits(to) || bits(from) || from == Ty::Tf32 {
            return m.fail("conversion between these types is not supported");
        }
        let narrows = to.float() && (!from.float() || to.bits() < from.bits() || to == Ty::Tf32)
            || (to == Ty::F16 && from == Ty::Bf16)
            || (to == Ty::Bf16 && from == Ty::F16);
        let round = match (float, integer) {
            (None, None) if narrows => return m.fail("a rounding is needed"),
            (None, None) if from.float() && !to.float() => {
                return m.fail("a rounding to an integer is needed");
            }
            (None, None) => CvtRound::None,
            (Some(_), None) if !to.float() => return m.fail("a rounding to an integer is needed"),
            (Some(Round::Away), None) if to != Ty::Tf32 => return m.fail("rounding .rna is for .tf32"),
            (Some(r), None) if narrows => CvtRound::Float(r),
            (Some(_), None) => return m.fail("a conversion that is exact has no rounding"),
            (None, Some(r)) if from.float() && (!to.float() || to == from) => CvtRound::Integer(r),
            _ => return m.fail("these roundings do not belong here"),
        };
        if to == Ty::Tf32 && from != Ty::F32 {
            return m.fail("only F32 is converted to .tf32");
        }
        if ftz && from != Ty::F32 && to != Ty::F32 {
            return m.fail("modifier .ftz belongs to conversions of .f32");
        }
        if relu && !(from == Ty::F32 && matches!(to, Ty::F16 | Ty::Bf16 | Ty::Tf32)) {
            return m.fail("modifier .relu is not supported here");
        }
        let args = self.args(i, &[2])?;
        let (d, to_bits) = self.any_reg(&args[0])?;
        if u32::from(to_bits) < to.bits() || (to.float() && u32::from(to_bits) != to.bits()) {
            return m.fail("the destination register does not suit the type");
        }
        // A wider register is read in its low bits.
        let (a, from_wide) = match self.any_reg(&args[1]) {
            Ok((v, width)) => {
                if u32::from(width) < from.bits() || (from.float() && u32::from(width) != from.bits()) {
                    return m.fail("the source register does not suit the type");
                }
                (v, width == 64)
            }
            Err(_) => (self.src(&args[1], from)?, from.bits() == 64),
        };
        let cvt = Cvt { from, to, round, ftz, sat, relu, from_wide, to_bits };
        self.emit(Op::Cvt(cvt), vec![d], vec![a]);
        Ok(true)
    }
}
