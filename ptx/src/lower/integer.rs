//! Integer, logic, comparison, selection and move instructions (PTX ISA 9.7.1, 9.7.2, 9.7.6 to 9.7.9.1).

use super::modifiers::Modifiers;
use super::operands::V;
use super::{Class, Lower, Result};
use crate::ops::{BoolOp, Cmp, IntOp, Op, Packing, UnOp, W};
use crate::parse::ast::{Arg, Instruction, Ty};

/// The width of an integer type.
pub(crate) fn width(ty: Ty) -> W {
    match ty.bits() {
        16 => W::B16,
        64 => W::B64,
        _ => W::B32,
    }
}

impl Lower<'_> {
    fn binary(&mut self, i: &Instruction, ty: Ty, op: Op) -> Result<bool> {
        let args = self.args(i, &[3])?;
        let (d, a, b) = (self.dst(&args[0], ty.bits())?, self.src(&args[1], ty)?, self.src(&args[2], ty)?);
        self.emit(op, vec![d], vec![a, b]);
        Ok(true)
    }

    fn int_type(&self, m: &mut Modifiers, allowed: &[Ty]) -> Result<Ty> {
        let ty = m.ty()?;
        match allowed.contains(&ty) {
            true => Ok(ty),
            false => m.fail("the instruction does not exist for this type"),
        }
    }

    /// Lowers an instruction of these groups; false if it is none.
    pub(crate) fn integer(&mut self, i: &Instruction, m: &mut Modifiers) -> Result<bool> {
        use Ty::*;
        const INTS: &[Ty] = &[U16, U32, U64, S16, S32, S64];
        let has_float = i.modifiers.iter().any(|t| Ty::named(t).is_some_and(Ty::float));
        match i.name.as_str() {
            "add" | "sub" | "mul" | "div" | "min" | "max" | "abs" | "neg" | "mad" if has_float => Ok(false),
            "add" | "sub" => {
                let sub = i.name == "sub";
                let (sat, cc) = (m.take("sat"), m.take("cc"));
                let ty = self.int_type(m, INTS)?;
                if sat && ty != S32 {
                    return m.fail(".sat exists for .s32 only");
                }
                if cc {
                    return self.carry_add(i, ty, sub, false, true);
                }
                let f = match (sub, sat) {
                    (false, false) => IntOp::Add,
                    (true, false) => IntOp::Sub,
                    (false, true) => IntOp::AddSat,
                    (true, true) => IntOp::SubSat,
                };
                self.binary(i, ty, Op::Int(f, width(ty)))
            }
            "addc" | "subc" => {
                let cc = m.take("cc");
                let ty = self.int_type(m, &[U32, S32, U64, S64])?;
                self.carry_add(i, ty, i.name == "subc", true, cc)
            }
            "mul" => {
                let wide = m.take("wide");
                let (lo, hi) = (m.take("lo"), m.take("hi"));
                let ty = self.int_type(m, INTS)?;
                if wide {
                    return self.wide(i, ty, false);
                }
                let f = match (lo, hi, ty.signed()) {
                    (true, false, _) => IntOp::MulLo,
                    (false, true, true) => IntOp::MulHiS,
                    (false, true, false) => IntOp::MulHiU,
                    _ => return m.fail("one of .lo, .hi and .wide is needed"),
                };
                self.binary(i, ty, Op::Int(f, width(ty)))
            }
            "mul24" => {
                let (lo, hi) = (m.take("lo"), m.take("hi"));
                let f = match (lo, hi, self.int_type(m, &[U32, S32])?) {
                    (true, false, S32) => IntOp::Mul24LoS,
                    (true, false, _) => IntOp::Mul24LoU,
                    (false, true, S32) => IntOp::Mul24HiS,
                    (false, true, _) => IntOp::Mul24HiU,
                    _ => return m.fail("one of .lo and .hi is needed"),
                };
                self.binary(i, U32, Op::Int(f, W::B32))
            }
            "mad" | "madc" | "mad24" => self.mad(i, m),
            "sad" => {
                let ty = self.int_type(m, INTS)?;
                self.ternary(i, ty, Op::Sad { signed: ty.signed(), w: width(ty) })
            }
            "div" | "rem" | "min" | "max" => {
                let ty = self.int_type(m, INTS)?;
                let f = match (i.name.as_str(), ty.signed()) {
                    ("div", true) => IntOp::DivS,
                    ("div", false) => IntOp::DivU,
                    ("rem", true) => IntOp::RemS,
                    ("rem", false) => IntOp::RemU,
                    ("min", true) => IntOp::MinS,
                    ("min", false) => IntOp::MinU,
                    ("max", true) => IntOp::MaxS,
                    _ => IntOp::MaxU,
                };
                self.binary(i, ty, Op::Int(f, width(ty)))
            }
            "abs" | "neg" => {
                let ty = self.int_type(m, &[S16, S32, S64])?;
                let f = if i.name == "abs" { UnOp::Abs } else { UnOp::Neg };
                self.unary(i, ty, ty.bits(), Op::Unary(f, width(ty)))
            }
            "and" | "or" | "xor" => {
                let ty = self.int_type(m, &[B16, B32, B64, Pred])?;
                let (int, pred) = match i.name.as_str() {
                    "and" => (IntOp::And, BoolOp::And),
                    "or" => (IntOp::Or, BoolOp::Or),
                    _ => (IntOp::Xor, BoolOp::Xor),
                };
                if ty != Pred {
                    return self.binary(i, ty, Op::Int(int, width(ty)));
                }
                let args = self.args(i, &[3])?;
                let (d, a, b) =
                    (self.pred_dst(&args[0])?, self.pred_src(&args[1])?, self.pred_src(&args[2])?);
                self.emit(Op::Pred(pred), vec![d], vec![a, b]);
                Ok(true)
            }
            "not" | "cnot" => {
                let ty = self.int_type(m, &[B16, B32, B64, Pred])?;
                if ty == Pred {
                    let args = self.args(i, &[2])?;
                    let (d, a) = (self.pred_dst(&args[0])?, self.pred_src(&args[1])?);
                    if i.name == "cnot" {
                        return m.fail("the instruction does not exist for predicates");
                    }
                    self.emit(Op::PredNot, vec![d], vec![a]);
                    return Ok(true);
                }
                let f = if i.name == "not" { UnOp::Not } else { UnOp::Cnot };
                self.unary(i, ty, ty.bits(), Op::Unary(f, width(ty)))
            }
            "popc" | "clz" | "brev" => {
                let ty = self.int_type(m, &[B32, B64])?;
                let (f, bits) = match i.name.as_str() {
                    "popc" => (UnOp::Popc, 32),
                    "clz" => (UnOp::Clz, 32),
                    _ => (UnOp::Brev, ty.bits()),
                };
                self.unary(i, ty, bits, Op::Unary(f, width(ty)))
            }
            "bfind" => {
                let shift = m.take("shiftamt");
                let ty = self.int_type(m, &[U32, U64, S32, S64])?;
                self.unary(i, ty, 32, Op::Unary(UnOp::Bfind { signed: ty.signed(), shift }, width(ty)))
            }
            "shl" | "shr" => {
                let left = i.name == "shl";
                let allowed: &[Ty] =
                    if left { &[B16, B32, B64] } else { &[B16, B32, B64, U16, U32, U64, S16, S32, S64] };
                let ty = self.int_type(m, allowed)?;
                let f = match (left, ty.signed()) {
                    (true, _) => IntOp::Shl,
                    (false, true) => IntOp::ShrS,
                    (false, false) => IntOp::ShrU,
                };
                let args = self.args(i, &[3])?;
                let (d, a, b) =
                    (self.dst(&args[0], ty.bits())?, self.src(&args[1], ty)?, self.src(&args[2], U32)?);
                self.emit(Op::Int(f, width(ty)), vec![d], vec![a, b]);
                Ok(true)
            }
            "shf" => {
                let left = match (m.take("l"), m.take("r")) {
                    (true, false) => true,
                    (false, true) => false,
                    _ => return m.fail("one of .l and .r is needed"),
                };
                let clamp = match (m.take("clamp"), m.take("wrap")) {
                    (true, false) => true,
                    (false, true) => false,
                    _ => return m.fail("one of .clamp and .wrap is needed"),
                };
                self.int_type(m, &[B32])?;
                self.ternary(i, B32, Op::Shf { left, clamp })
            }
            "lop3" => {
                self.int_type(m, &[B32])?;
                let args = self.args(i, &[5])?;
                let Arg::Int(table @ 0..=255) = args[4] else { return m.fail("a table of 8 bits is needed") };
                let d = self.dst(&args[0], 32)?;
                let s = vec![self.src(&args[1], B32)?, self.src(&args[2], B32)?, self.src(&args[3], B32)?];
                self.emit(Op::Lop3(table as u8), vec![d], s);
                Ok(true)
            }
            "prmt" => {
                self.int_type(m, &[B32])?;
                let mode = m
                    .one_of(&[("f4e", 1), ("b4e", 2), ("rc8", 3), ("ecl", 4), ("ecr", 5), ("rc16", 6)])
                    .unwrap_or(0);
                self.ternary(i, B32, Op::Prmt(mode))
            }
            "bfe" => {
                let ty = self.int_type(m, &[U32, U64, S32, S64])?;
                let args = self.args(i, &[4])?;
                let d = self.dst(&args[0], ty.bits())?;
                let s = vec![self.src(&args[1], ty)?, self.src(&args[2], U32)?, self.src(&args[3], U32)?];
                self.emit(Op::Bfe { signed: ty.signed(), w: width(ty) }, vec![d], s);
                Ok(true)
            }
            "bfi" => {
                let ty = self.int_type(m, &[B32, B64])?;
                let args = self.args(i, &[5])?;
                let d = self.dst(&args[0], ty.bits())?;
                let s = vec![
                    self.src(&args[1], ty)?,
                    self.src(&args[2], ty)?,
                    self.src(&args[3], U32)?,
                    self.src(&args[4], U32)?,
                ];
                self.emit(Op::Bfi(width(ty)), vec![d], s);
                Ok(true)
            }
            "szext" => {
                let clamp = m.take("clamp");
                if !clamp {
                    m.must("wrap")?;
                }
                let ty = self.int_type(m, &[U32, S32])?;
                self.binary(i, ty, Op::Szext { signed: ty.signed(), clamp })
            }
            "bmsk" => {
                let clamp = m.take("clamp");
                if !clamp {
                    m.must("wrap")?;
                }
                self.int_type(m, &[B32])?;
                self.binary(i, B32, Op::Bmsk { clamp })
            }
            "dp4a" | "dp2a" => {
                let (lo, hi) = (m.take("lo"), m.take("hi"));
                let types = m.types();
                let &[a @ (U32 | S32), b @ (U32 | S32)] = types.as_slice() else {
                    return m.fail("two types of 32 bits are needed");
                };
                let (signed_a, signed_b) = (a == S32, b == S32);
                let op = match (i.name.as_str(), lo, hi) {
                    ("dp4a", false, false) => Op::Dp4a { signed_a, signed_b },
                    ("dp2a", true, false) => Op::Dp2a { signed_a, signed_b, hi: false },
                    ("dp2a", false, true) => Op::Dp2a { signed_a, signed_b, hi: true },
                    _ => return m.fail("modifiers .lo and .hi belong to dp2a"),
                };
                self.ternary(i, U32, op)
            }
            "setp" | "set" => self.setp(i, m),
            "selp" => {
                let ty = m.ty()?;
                if matches!(ty, Pred | B8 | U8 | S8 | B128) {
                    return m.fail("the instruction does not exist for this type");
                }
                let args = self.args(i, &[4])?;
                let d = self.dst(&args[0], ty.bits())?;
                let s = vec![self.src(&args[1], ty)?, self.src(&args[2], ty)?, self.pred_src(&args[3])?];
                self.emit(if ty.bits() == 64 { Op::Selp64 } else { Op::Selp32 }, vec![d], s);
                Ok(true)
            }
            "slct" => {
                let ftz = m.take("ftz");
                let types = m.types();
                let &[ty, by @ (S32 | F32)] = types.as_slice() else { return m.fail("two types are needed") };
                let args = self.args(i, &[4])?;
                let d = self.dst(&args[0], ty.bits())?;
                let s = vec![self.src(&args[1], ty)?, self.src(&args[2], ty)?, self.src(&args[3], by)?];
                self.emit(Op::Slct { wide: ty.bits() == 64, float: by == F32, ftz }, vec![d], s);
                Ok(true)
            }
            "mov" => self.mov(i, m),
            _ => Ok(false),
        }
    }

    fn unary(&mut self, i: &Instruction, ty: Ty, bits: u32, op: Op) -> Result<bool> {
        let args = self.args(i, &[2])?;
        let (d, a) = (self.dst(&args[0], bits)?, self.src(&args[1], ty)?);
        self.emit(op, vec![d], vec![a]);
        Ok(true)
    }

    pub(super) fn ternary(&mut self, i: &Instruction, ty: Ty, op: Op) -> Result<bool> {
        let args = self.args(i, &[4])?;
        let d = self.dst(&args[0], ty.bits())?;
        let s = vec![self.src(&args[1], ty)?, self.src(&args[2], ty)?, self.src(&args[3], ty)?];
        self.emit(op, vec![d], s);
        Ok(true)
    }

    fn wide(&mut self, i: &Instruction, ty: Ty, add: bool) -> Result<bool> {
        let (signed, w) = (ty.signed(), width(ty));
        let to = match (w, signed) {
            (W::B16, _) => Ty::U32,
            (W::B32, _) => Ty::U64,
            _ => return self.fail("no product is wider than 64 bits"),
        };
        let args = self.args(i, &[if add { 4 } else { 3 }])?;
        let d = self.dst(&args[0], to.bits())?;
        let mut s = vec![self.src(&args[1], ty)?, self.src(&args[2], ty)?];
        if add {
            s.push(self.src(&args[3], to)?);
        }
        let op = if add { Op::MadWide { signed, w } } else { Op::MulWide { signed, w } };
        self.emit(op, vec![d], s);
        Ok(true)
    }

    fn mad(&mut self, i: &Instruction, m: &mut Modifiers) -> Result<bool> {
        let (wide, lo, hi, cc) = (m.take("wide"), m.take("lo"), m.take("hi"), m.take("cc"));
        let reads = i.name == "madc";
        let ty = self.int_type(m, &[Ty::U16, Ty::U32, Ty::U64, Ty::S16, Ty::S32, Ty::S64])?;
        let (signed, w) = (ty.signed(), width(ty));
        if i.name == "mad24" {
            if !lo || hi || w != W::B32 {
                return m.fail("only mad24.lo of 32 bits is supported");
            }
            return self.ternary(i, ty, Op::Mad24 { signed });
        }
        if wide && !cc && !reads {
            return self.wide(i, ty, true);
        }
        if lo == hi {
            return m.fail("one of .lo, .hi and .wide is needed");
        }
        if cc || reads {
            if w == W::B16 {
                return m.fail("carries exist for 32 and 64 bits");
            }
            let args = self.args(i, &[4])?;
            let d = self.dst(&args[0], ty.bits())?;
            let mut s = vec![self.src(&args[1], ty)?, self.src(&args[2], ty)?, self.src(&args[3], ty)?];
            let carry = self.carry();
            s.push(if reads { carry } else { super::operands::FALSE });
            let op = Op::MadCarry { hi, signed, reads, writes: cc, w };
            self.emit(op, if cc { vec![d, carry] } else { vec![d] }, s);
            return Ok(true);
        }
        self.ternary(i, ty, if lo { Op::MadLo(w) } else { Op::MadHi { signed, w } })
    }

    /// The condition code register holds one bit, the carry.
    fn carry(&mut self) -> V {
        let id = match self.carry {
            Some(id) => id,
            None => {
                let id = self.fresh(Class::Pred);
                self.names[Class::Pred as usize].insert(id, "CC.CF".into());
                self.carry = Some(id);
                id
            }
        };
        V::Pred { id, negated: false }
    }

    fn carry_add(&mut self, i: &Instruction, ty: Ty, sub: bool, reads: bool, writes: bool) -> Result<bool> {
        if ty.bits() == 16 {
            return self.fail("carries exist for 32 and 64 bits");
        }
        let args = self.args(i, &[3])?;
        let d = self.dst(&args[0], ty.bits())?;
        let mut s = vec![self.src(&args[1], ty)?, self.src(&args[2], ty)?];
        let carry = self.carry();
        s.push(if reads { carry } else { super::operands::FALSE });
        let op = Op::AddCarry { sub, reads, writes, w: width(ty) };
        self.emit(op, if writes { vec![d, carry] } else { vec![d] }, s);
        Ok(true)
    }

    fn setp(&mut self, i: &Instruction, m: &mut Modifiers) -> Result<bool> {
        use Cmp::*;
        let ftz = m.take("ftz");
        let Some(name) = m.first() else { return m.fail("a comparison is needed") };
        let (mut cmp, unsigned_name) = match name {
            "eq" => (Eq, false),
            "ne" => (Ne, false),
            "lt" => (Lt, false),
            "le" => (Le, false),
            "gt" => (Gt, false),
            "ge" => (Ge, false),
            "lo" => (Lt, true),
            "ls" => (Le, true),
            "hi" => (Gt, true),
            "hs" => (Ge, true),
            "equ" => (Equ, false),
            "neu" => (Neu, false),
            "ltu" => (Ltu, false),
            "leu" => (Leu, false),
            "gtu" => (Gtu, false),
            "geu" => (Geu, false),
            "num" => (Num, false),
            "nan" => (Nan, false),
            _ => return m.fail("a comparison is needed"),
        };
        m.take(name);
        let combine = m.one_of(&[("and", BoolOp::And), ("or", BoolOp::Or), ("xor", BoolOp::Xor)]);
        let types = m.types();
        let (to, ty) = match (i.name.as_str(), types.as_slice()) {
            ("setp", &[ty]) => (Ty::Pred, ty),
            ("set", &[to @ (Ty::U32 | Ty::S32 | Ty::F32), ty]) => (to, ty),
            _ => return m.fail("a different number of types is needed"),
        };
        let float = ty.float();
        match ty {
            Ty::B16 | Ty::B32 | Ty::B64 if !matches!(cmp, Eq | Ne) => {
                return m.fail("bits can be compared for equality only");
            }
            Ty::Pred | Ty::B8 | Ty::U8 | Ty::S8 | Ty::B128 | Ty::Tf32 => {
                return m.fail("the instruction does not exist for this type");
            }
            _ => {}
        }
        if unsigned_name && !matches!(ty, Ty::U16 | Ty::U32 | Ty::U64) {
            return m.fail("the comparison is for unsigned integers");
        }
        if !float && matches!(cmp, Equ | Neu | Ltu | Leu | Gtu | Geu | Num | Nan) {
            return m.fail("the comparison is for floating-point numbers");
        }
        if matches!(ty, Ty::F16x2 | Ty::Bf16x2) && to != Ty::Pred {
            return m.fail("set of pairs is not supported");
        }
        if unsigned_name {
            cmp = match cmp {
                Lt => Lt,
                other => other,
            };
        }
        let args = self.args(i, &[if combine.is_some() { 4 } else { 3 }])?;
        let mut s = vec![self.src(&args[1], ty)?, self.src(&args[2], ty)?];
        if combine.is_some() {
            s.push(self.pred_src(&args[3])?);
        }
        if to != Ty::Pred {
            let d = self.dst(&args[0], 32)?;
            self.emit(Op::Set { cmp, ty, combine, ftz, float: to == Ty::F32 }, vec![d], s);
            return Ok(true);
        }
        let d = match &args[0] {
            Arg::Pair(p, q) => vec![self.pred_dst(p)?, self.pred_dst(q)?],
            one => vec![self.pred_dst(one)?],
        };
        if matches!(ty, Ty::F16x2 | Ty::Bf16x2) && d.len() != 2 {
            return m.fail("comparisons of pairs have two results");
        }
        self.emit(Op::Setp { cmp, ty, combine, ftz }, d, s);
        Ok(true)
    }

    fn mov(&mut self, i: &Instruction, m: &mut Modifiers) -> Result<bool> {
        let ty = m.ty()?;
        let args = self.args(i, &[2])?;
        if ty == Ty::Pred {
            let (d, a) = (self.pred_dst(&args[0])?, self.pred_src(&args[1])?);
            self.emit(Op::MovPred, vec![d], vec![a]);
            return Ok(true);
        }
        let packing = |parts: usize| match (ty.bits(), parts) {
            (32, 2) => Some((Packing::B16x2, Ty::B16)),
            (64, 2) => Some((Packing::B32x2, Ty::B32)),
            (64, 4) => Some((Packing::B16x4, Ty::B16)),
            _ => None,
        };
        match (&args[0], &args[1]) {
            (Arg::Vector(parts), whole) => {
                let Some((packing, part)) = packing(parts.len()) else {
                    return m.fail("this way of taking a register apart is not supported");
                };
                let a = self.src(whole, ty)?;
                let d = parts.iter().map(|p| self.dst(p, part.bits())).collect::<Result<_>>()?;
                self.emit(Op::Unpack(packing), d, vec![a]);
            }
            (whole, Arg::Vector(parts)) => {
                let Some((packing, part)) = packing(parts.len()) else {
                    return m.fail("this way of joining registers is not supported");
                };
                let d = self.dst(whole, ty.bits())?;
                let s = parts.iter().map(|p| self.src(p, part)).collect::<Result<_>>()?;
                self.emit(Op::Pack(packing), vec![d], s);
            }
            (d, Arg::Name(name)) if name.starts_with("%clock") || name == "%globaltimer" => {
                let kind = match name.as_str() {
                    "%clock" => 0,
                    "%clock_hi" => 1,
                    "%clock64" => 2,
                    "%globaltimer" => 3,
                    _ => return m.fail("unknown special register"),
                };
                let d = self.dst(d, if kind < 2 { 32 } else { 64 })?;
                self.emit(Op::Clock(kind), vec![d], vec![]);
            }
            (d, a) => {
                let (d, a) = (self.dst(d, ty.bits())?, self.src(a, ty)?);
                self.emit(if ty.bits() == 64 { Op::Mov64 } else { Op::Mov32 }, vec![d], vec![a]);
            }
        }
        Ok(true)
    }
}
