//! Operands: registers, constants, addresses.

use super::{Class, Lower, Result, Symbol};
use crate::parse::ast::{Arg, Instruction, Space, Ty};
use crate::program::Special;

/// An operand of a lowered instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum V {
    Reg {
        class: Class,
        id: u32,
        bits: u8,
    },
    C32(u32),
    C64(u64),
    /// Address of a module variable plus an offset.
    Variable(u32, i64),
    Pred {
        id: u32,
        negated: bool,
    },
    Sink,
}

/// Predicate 0 is always false.
pub(crate) const FALSE: V = V::Pred { id: 0, negated: false };
pub(crate) const TRUE: V = V::Pred { id: 0, negated: true };

/// Low bits of a value.
fn cut(value: u64, bits: u32) -> u64 {
    if bits >= 64 { value } else { value & ((1 << bits) - 1) }
}

impl Lower<'_> {
    /// Fails unless the instruction has that many operands.
    pub(crate) fn args<'i>(&self, i: &'i Instruction, counts: &[usize]) -> Result<&'i [Arg]> {
        match counts.contains(&i.args.len()) {
            true => Ok(&i.args),
            false => self.fail(format!("{}: {} operands, expected {counts:?}", i.opcode(), i.args.len())),
        }
    }

    /// A register of any width.
    pub(crate) fn any_reg(&self, arg: &Arg) -> Result<(V, u8)> {
        match arg {
            Arg::Name(name) => match self.lookup(name) {
                Some(Symbol::Reg { class: Class::Pred, .. }) => self.fail(format!("{name} is a predicate")),
                Some(Symbol::Reg { class, id, bits }) => Ok((V::Reg { class, id, bits }, bits)),
                _ => self.fail(format!("{name} is no register")),
            },
            other => self.fail(format!("expected a register, found {other:?}")),
        }
    }

    /// A destination of an exact width.
    pub(crate) fn dst(&self, arg: &Arg, bits: u32) -> Result<V> {
        if *arg == Arg::Sink {
            return Ok(V::Sink);
        }
        let (v, width) = self.any_reg(arg)?;
        match u32::from(width) == bits {
            true => Ok(v),
            false => self.fail(format!("{arg:?} has {width} bits, the instruction writes {bits}")),
        }
    }

    pub(crate) fn pred_dst(&self, arg: &Arg) -> Result<V> {
        match arg {
            Arg::Sink => Ok(V::Sink),
            Arg::Name(name) => match self.lookup(name) {
                Some(Symbol::Reg { class: Class::Pred, id, .. }) => Ok(V::Pred { id, negated: false }),
                _ => self.fail(format!("{name} is no predicate register")),
            },
            other => self.fail(format!("expected a predicate, found {other:?}")),
        }
    }

    pub(crate) fn pred_src(&self, arg: &Arg) -> Result<V> {
        match arg {
            Arg::Int(0) => Ok(FALSE),
            Arg::Int(_) => Ok(TRUE),
            Arg::Not(inner) => match self.pred_src(inner)? {
                V::Pred { id, negated } => Ok(V::Pred { id, negated: !negated }),
                other => Ok(other),
            },
            other => self.pred_dst(other),
        }
    }

    /// A source of a type: a register of its width, a constant or an address.
    pub(crate) fn src(&mut self, arg: &Arg, ty: Ty) -> Result<V> {
        self.src_bits(arg, ty.bits(), ty == Ty::F32 || ty == Ty::Tf32, ty == Ty::F64)
    }

    fn src_bits(&mut self, arg: &Arg, bits: u32, f32: bool, f64: bool) -> Result<V> {
        let constant = |value: u64| match bits {
            64 => V::C64(value),
            _ => V::C32(cut(value, bits) as u32),
        };
        Ok(match arg {
            Arg::Int(_) if f32 || f64 => {
                return self.fail("an integer where a floating-point constant is expected");
            }
            Arg::Int(v) => constant(*v),
            Arg::F32(v) if bits == 32 => V::C32(*v),
            Arg::F64(v) if f32 => V::C32((f64::from_bits(*v) as f32).to_bits()),
            Arg::F64(v) if bits == 64 => V::C64(*v),
            Arg::Name(name) => {
                if let Some(v) = self.special(name, bits)? {
                    return Ok(v);
                }
                match self.lookup(name) {
                    Some(Symbol::Reg { class: Class::Pred, .. }) => {
                        return self.fail(format!("{name} is a predicate"));
                    }
                    Some(Symbol::Reg { class, id, bits: width }) => {
                        if u32::from(width) != bits {
                            return self
                                .fail(format!("{name} has {width} bits, the instruction reads {bits}"));
                        }
                        V::Reg { class, id, bits: width }
                    }
                    Some(symbol) => self.address_of(&symbol, 0, bits, name)?,
                    None => return self.fail(format!("{name} is not declared")),
                }
            }
            Arg::Sum(name, offset) => match self.lookup(name) {
                Some(symbol) => self.address_of(&symbol, *offset, bits, name)?,
                None => return self.fail(format!("{name} is not declared")),
            },
            other => return self.fail(format!("operand {other:?} is not supported here")),
        })
    }

    fn address_of(&mut self, symbol: &Symbol, offset: i64, bits: u32, name: &str) -> Result<V> {
        let value = match symbol {
            Symbol::Address(_, at) => at.wrapping_add_signed(offset),
            Symbol::Dynamic => {
                // Its offset is known when all static variables are: see `alloc`.
                return match bits {
                    32 => Ok(V::Variable(u32::MAX - 1, offset)),
                    64 => Ok(V::Variable(u32::MAX, offset)),
                    _ => self.fail("an address in a narrow register"),
                };
            }
            Symbol::Variable(n) if bits == 64 => return Ok(V::Variable(*n, offset)),
            _ => return self.fail(format!("{name} is no value of {bits} bits")),
        };
        match bits {
            32 => Ok(V::C32(value as u32)),
            64 => Ok(V::C64(value)),
            _ => self.fail("an address in a narrow register"),
        }
    }

    /// The base and offset of a memory operand, and the space of the variable that it names, if it names one.
    pub(crate) fn address(&mut self, arg: &Arg) -> Result<(V, i64, Option<Space>)> {
        let Arg::Memory(args, offset) = arg else {
            return self.fail(format!("expected a memory operand, found {arg:?}"));
        };
        let [base] = args.as_slice() else {
            return self.fail("memory operands of more than one part are not supported here");
        };
        self.base(base, *offset)
    }

    pub(crate) fn base(&mut self, base: &Arg, offset: i64) -> Result<(V, i64, Option<Space>)> {
        match base {
            Arg::Int(v) => Ok((V::C64(*v), offset, None)),
            Arg::Name(name) => match self.lookup(name) {
                Some(Symbol::Reg { class: class @ (Class::R32 | Class::R64), id, bits })
                    if bits == 32 || bits == 64 =>
                {
                    Ok((V::Reg { class, id, bits }, offset, None))
                }
                Some(Symbol::Address(space, at)) => Ok((V::C64(at), offset, Some(space))),
                Some(Symbol::Dynamic) => Ok((V::Variable(u32::MAX, 0), offset, Some(Space::Shared))),
                Some(Symbol::Variable(n)) => Ok((V::Variable(n, 0), offset, Some(Space::Global))),
                _ => self.fail(format!("{name} is no address")),
            },
            other => self.fail(format!("{other:?} is no address")),
        }
    }

    /// A special register (PTX ISA 10) that keeps its value; `None` if the name is none.
    fn special(&mut self, name: &str, bits: u32) -> Result<Option<V>> {
        use Special::*;
        let (stem, a) = match name.rsplit_once('.') {
            Some((stem, "x")) => (stem, 0),
            Some((stem, "y")) => (stem, 1),
            Some((stem, "z")) => (stem, 2),
            _ => (name, 3),
        };
        let special = match (stem, a < 3) {
            ("%tid", true) => Tid(a),
            ("%ntid", true) => Ntid(a),
            ("%ctaid", true) => Ctaid(a),
            ("%nctaid", true) => Nctaid(a),
            ("%clusterid", true) => ClusterId(a),
            ("%nclusterid", true) => NClusterId(a),
            ("%cluster_ctaid", true) => ClusterCtaid(a),
            ("%cluster_nctaid", true) => ClusterNctaid(a),
            ("%laneid", false) => LaneId,
            ("%warpid", false) => WarpId,
            ("%nwarpid", false) => NWarpId,
            ("%smid", false) => SmId,
            ("%nsmid", false) => NSmId,
            ("%gridid", false) => GridId,
            ("%lanemask_eq", false) => LaneMaskEq,
            ("%lanemask_lt", false) => LaneMaskLt,
            ("%lanemask_le", false) => LaneMaskLe,
            ("%lanemask_gt", false) => LaneMaskGt,
            ("%lanemask_ge", false) => LaneMaskGe,
            ("%dynamic_smem_size", false) => DynamicShared,
            ("%total_smem_size", false) => TotalShared,
            ("%cluster_ctarank", false) => ClusterCtaRank,
            ("%cluster_nctarank", false) => ClusterNctaRank,
            _ => return Ok(None),
        };
        let wide = special == GridId;
        if bits != if wide { 64 } else { 32 } {
            return self.fail(format!("{name} read as {bits} bits"));
        }
        let class = if wide { Class::R64 } else { Class::R32 };
        let id = match self.specials.get(&special) {
            Some(id) => *id,
            None => {
                let id = self.fresh(class);
                self.specials.insert(special, id);
                id
            }
        };
        Ok(Some(V::Reg { class, id, bits: bits as u8 }))
    }
}
