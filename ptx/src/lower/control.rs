//! Branches, calls and returns (PTX ISA 9.7.12).

use super::modifiers::Modifiers;
use super::{Lower, Result, Symbol};
use crate::ops::Op;
use crate::parse::ast::{Arg, Instruction, Space, Ty};

impl Lower<'_> {
    fn label(&self, name: &str) -> Result<usize> {
        match self.lookup(name) {
            Some(Symbol::Label(label)) => Ok(label),
            _ => self.fail(format!("{name} is no label")),
        }
    }

    /// Lowers an instruction of this group; false if it is none.
    pub(crate) fn control(&mut self, i: &Instruction, m: &mut Modifiers) -> Result<bool> {
        match i.name.as_str() {
            "bra" => {
                m.take("uni");
                let Arg::Name(name) = &self.args(i, &[1])?[0] else { return m.fail("a label is needed") };
                let label = self.label(name)?;
                self.emit(Op::Bra, vec![], vec![]).label = Some(label);
                Ok(true)
            }
            "brx" => {
                m.must("idx")?;
                m.take("uni");
                let args = self.args(i, &[2])?;
                let index = self.src(&args[0], Ty::U32)?;
                let Arg::Name(name) = &args[1] else { return m.fail("a list of targets is needed") };
                let Some(Symbol::Targets(targets)) = self.lookup(name) else {
                    return m.fail("a list of targets is needed");
                };
                let labels = targets.iter().map(|t| self.label(t)).collect::<Result<Vec<_>>>()?;
                let Ok(table) = u16::try_from(self.tables.len()) else { return m.fail("too many tables") };
                self.tables.push(labels);
                self.emit(Op::Brx(table), vec![], vec![index]);
                Ok(true)
            }
            "ret" | "exit" => {
                m.take("uni");
                self.args(i, &[0])?;
                match self.exits.last() {
                    Some(label) if i.name == "ret" => {
                        let label = *label;
                        self.emit(Op::Bra, vec![], vec![]).label = Some(label);
                    }
                    _ => {
                        self.emit(Op::Exit, vec![], vec![]);
                    }
                }
                Ok(true)
            }
            "trap" => {
                self.args(i, &[0])?;
                self.emit(Op::Trap, vec![], vec![]);
                Ok(true)
            }
            "brkpt" | "pmevent" => {
                self.args(i, &[usize::from(i.name == "pmevent")])?;
                self.emit(Op::Nop, vec![], vec![]);
                Ok(true)
            }
            "call" => self.call(i, m),
            _ => Ok(false),
        }
    }

    fn call(&mut self, i: &Instruction, m: &mut Modifiers) -> Result<bool> {
        m.take("uni");
        let (returns, name, params) = match i.args.as_slice() {
            [Arg::List(r), Arg::Name(f), Arg::List(p)] => (r.as_slice(), f, p.as_slice()),
            [Arg::List(r), Arg::Name(f)] => (r.as_slice(), f, &[][..]),
            [Arg::Name(f), Arg::List(p)] => (&[][..], f, p.as_slice()),
            [Arg::Name(f)] => (&[][..], f, &[][..]),
            _ => return m.fail("calls by address are not supported"),
        };
        let Some(f) = self.functions.get(name).copied() else {
            return self.fail(format!("function {name} is not declared"));
        };
        if f.body.is_none() {
            return self.fail(format!("function {name} has no body: calls of the system are not supported"));
        }
        if f.returns.len() != returns.len() || f.params.len() != params.len() {
            return self.fail(format!("call of {name} with a different number of parameters"));
        }
        let mut symbols = [Vec::new(), Vec::new()];
        for (n, (given, declared)) in [(returns, &f.returns), (params, &f.params)].into_iter().enumerate() {
            for (arg, want) in given.iter().zip(declared) {
                let Arg::Name(arg) = arg else { return m.fail("parameters are variables or registers") };
                let symbol = self.lookup(arg);
                let suits = match (&symbol, want.space) {
                    (Some(Symbol::Address(Space::Local, _)), Space::Param) => true,
                    (Some(Symbol::Reg { bits, .. }), Space::Generic) => u32::from(*bits) == want.ty.bits(),
                    _ => false,
                };
                match symbol.filter(|_| suits) {
                    Some(s) => symbols[n].push(s),
                    None => return self.fail(format!("{arg} does not suit a parameter of {name}")),
                }
            }
        }
        let behind = self.new_label();
        // A guarded call is a branch around its body.
        if let Some(super::operands::V::Pred { id, negated }) = self.guard {
            self.guard = Some(super::operands::V::Pred { id, negated: !negated });
            self.emit(Op::Bra, vec![], vec![]).label = Some(behind);
            self.guard = None;
        }
        self.exits.push(behind);
        self.function_body(f, &symbols[0], &symbols[1])?;
        self.exits.pop();
        self.labels[behind] = Some(self.code.len());
        Ok(true)
    }
}
