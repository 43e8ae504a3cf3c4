//! The modifiers of an instruction, each to be taken by who knows its meaning. What nobody takes is an error.

use super::Result;
use crate::error::ParseError;
use crate::ops::Round;
use crate::parse::ast::{Instruction, Ty};

/// Modifiers not yet taken.
pub(crate) struct Modifiers<'a> {
    left: Vec<&'a str>,
    instruction: &'a Instruction,
}

impl<'a> Modifiers<'a> {
    pub(crate) fn new(instruction: &'a Instruction) -> Modifiers<'a> {
        Modifiers { left: instruction.modifiers.iter().map(String::as_str).collect(), instruction }
    }

    pub(crate) fn fail<T>(&self, message: &str) -> Result<T> {
        Err(ParseError::new(self.instruction.line, format!("{}: {message}", self.instruction.opcode())))
    }

    /// Takes a modifier, if it is there.
    pub(crate) fn take(&mut self, name: &str) -> bool {
        match self.left.iter().position(|m| *m == name) {
            Some(i) => {
                self.left.remove(i);
                true
            }
            None => false,
        }
    }

    /// Takes a modifier that must be there.
    pub(crate) fn must(&mut self, name: &str) -> Result<()> {
        match self.take(name) {
            true => Ok(()),
            false => self.fail(&format!("only the form with .{name} is supported")),
        }
    }

    /// Takes the first of some modifiers that is there.
    pub(crate) fn one_of<T: Copy>(&mut self, all: &[(&str, T)]) -> Option<T> {
        all.iter().find(|(name, _)| self.take(name)).map(|(_, value)| *value)
    }

    /// The next modifier, whatever it is.
    pub(crate) fn first(&self) -> Option<&'a str> {
        self.left.first().copied()
    }

    /// Takes all types, in their order.
    pub(crate) fn types(&mut self) -> Vec<Ty> {
        let found = self.left.iter().filter_map(|m| Ty::named(m)).collect();
        self.left.retain(|m| Ty::named(m).is_none());
        found
    }

    /// Takes the only type.
    pub(crate) fn ty(&mut self) -> Result<Ty> {
        match self.types().as_slice() {
            [ty] => Ok(*ty),
            [] => self.fail("a type is missing"),
            _ => self.fail("more than one type"),
        }
    }

    /// Takes a rounding to a floating-point format.
    pub(crate) fn rounding(&mut self) -> Option<Round> {
        self.one_of(&[
            ("rn", Round::Nearest),
            ("rz", Round::Zero),
            ("rm", Round::Down),
            ("rp", Round::Up),
            ("rna", Round::Away),
        ])
    }

    /// Fails if modifiers are left.
    pub(crate) fn done(&self) -> Result<()> {
        match self.left.first() {
            None => Ok(()),
            Some(m) => self.fail(&format!("modifier .{m} is not supported")),
        }
    }
}
