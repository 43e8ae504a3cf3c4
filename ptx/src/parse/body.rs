//! Bodies of functions: declarations, labels, instructions and their operands.

use super::ast::{Arg, Instruction, Loc, Statement, Ty};
use super::lex::Token;
use super::{Parser, Result};
use crate::error::ParseError;

impl Parser {
    /// Everything behind the opening brace, closing brace included.
    pub(super) fn body(&mut self) -> Result<Vec<Statement>> {
        let mut out = Vec::new();
        let mut depth = 1;
        while depth > 0 {
            if self.take('{') {
                depth += 1;
                out.push(Statement::Open);
            } else if self.take('}') {
                depth -= 1;
                if depth > 0 {
                    out.push(Statement::Close);
                }
            } else {
                self.statement(&mut out)?;
            }
        }
        Ok(out)
    }

    fn statement(&mut self, out: &mut Vec<Statement>) -> Result<()> {
        let line = self.line();
        match self.peek() {
            Some(Token::Dot(d)) => match d.as_str() {
                "reg" => {
                    self.at += 1;
                    self.registers(out)
                }
                "loc" => {
                    self.at += 1;
                    out.push(Statement::Loc(self.loc()?));
                    Ok(())
                }
                "pragma" => self.skip_statement(),
                "global" | "const" | "shared" | "local" | "param" => {
                    out.extend(self.variables()?.into_iter().map(Statement::Variable));
                    Ok(())
                }
                other => Err(ParseError::new(line, format!("directive .{other} is not supported in a body"))),
            },
            Some(Token::Word(w)) if self.peek_at(1) == Some(&Token::Punct(':')) => {
                let label = w.clone();
                self.at += 2;
                if self.take_dot("branchtargets") {
                    let mut targets = vec![self.word()?];
                    while self.take(',') {
                        targets.push(self.word()?);
                    }
                    self.expect(';')?;
                    out.push(Statement::Targets(label, targets));
                } else {
                    out.push(Statement::Label(label, line));
                }
                Ok(())
            }
            Some(Token::Punct(';')) => {
                self.at += 1;
                Ok(())
            }
            _ => {
                out.push(Statement::Instruction(self.instruction()?));
                Ok(())
            }
        }
    }

    fn registers(&mut self, out: &mut Vec<Statement>) -> Result<()> {
        let line = self.line();
        let ty = match self.next()? {
            Token::Dot(d) => Ty::named(&d),
            _ => None,
        };
        let Some(ty) = ty else { return Err(ParseError::new(line, "registers of an unknown type")) };
        loop {
            let name = self.word()?;
            let count = if self.take('<') {
                let count = self.small()?;
                self.expect('>')?;
                if count > 1 << 20 {
                    return self.fail("too many registers");
                }
                Some(count)
            } else {
                None
            };
            out.push(Statement::Reg(ty, name, count));
            if !self.take(',') {
                return self.expect(';');
            }
        }
    }

    /// `.loc file line column, function_name label, inlined_at file line column`.
    fn loc(&mut self) -> Result<Loc> {
        let (file, line) = (self.small()?, self.small()?);
        self.small()?;
        let mut out = Loc { file, line, inlined_at: None };
        while self.take(',') {
            match self.word()?.as_str() {
                "function_name" => {
                    self.word()?;
                    if self.take('+') {
                        self.int()?;
                    }
                }
                "inlined_at" => {
                    out.inlined_at = Some((self.small()?, self.small()?));
                    self.small()?;
                }
                other => return self.fail(format!("`{other}` is not part of .loc")),
            }
        }
        Ok(out)
    }

    fn instruction(&mut self) -> Result<Instruction> {
        let line = self.line();
        let guard = if self.take('@') {
            let negated = self.take('!');
            Some((self.word()?, negated))
        } else {
            None
        };
        let name = self.word()?;
        let mut modifiers = Vec::new();
        while let Some(Token::Dot(d)) = self.peek() {
            modifiers.push(d.clone());
            self.at += 1;
        }
        let mut args = Vec::new();
        if !self.is(';') {
            loop {
                args.push(self.arg(0)?);
                if !self.take(',') {
                    break;
                }
            }
        }
        self.expect(';')?;
        Ok(Instruction { guard, name, modifiers, args, line })
    }

    fn arg(&mut self, depth: u32) -> Result<Arg> {
        if depth > 8 {
            return self.fail("operands nested too deeply");
        }
        if self.take('{') {
            return Ok(Arg::Vector(self.list('}', depth)?));
        }
        if self.take('(') {
            return Ok(Arg::List(self.list(')', depth)?));
        }
        if self.take('[') {
            return self.memory(depth);
        }
        if self.take('!') {
            return Ok(Arg::Not(Box::new(self.arg(depth + 1)?)));
        }
        if self.take('-') {
            return match self.next()? {
                Token::Int(v) => Ok(Arg::Int(v.wrapping_neg())),
                Token::F64(bits) => Ok(Arg::F64(bits ^ 1 << 63)),
                Token::F32(bits) => Ok(Arg::F32(bits ^ 1 << 31)),
                _ => self.fail("a minus sign before something that is no number"),
            };
        }
        match self.next()? {
            Token::Int(v) => Ok(Arg::Int(v)),
            Token::F32(v) => Ok(Arg::F32(v)),
            Token::F64(v) => Ok(Arg::F64(v)),
            Token::Word(w) if w == "_" => Ok(Arg::Sink),
            Token::Word(mut w) => {
                while let Some(Token::Dot(d)) = self.peek() {
                    w = format!("{w}.{d}");
                    self.at += 1;
                }
                if self.take('|') {
                    return Ok(Arg::Pair(Box::new(Arg::Name(w)), Box::new(self.arg(depth + 1)?)));
                }
                if self.take('+') {
                    return Ok(Arg::Sum(w, self.int()? as i64));
                }
                Ok(Arg::Name(w))
            }
            other => {
                self.at -= 1;
                self.fail(format!("unexpected {other:?} among operands"))
            }
        }
    }

    fn list(&mut self, end: char, depth: u32) -> Result<Vec<Arg>> {
        let mut out = Vec::new();
        if self.take(end) {
            return Ok(out);
        }
        loop {
            out.push(self.arg(depth + 1)?);
            if self.take(end) {
                return Ok(out);
            }
            self.expect(',')?;
        }
    }

    /// `[a]`, `[a+8]`, `[a+-8]`, `[a, b]`, `[a, {x, y}]`.
    fn memory(&mut self, depth: u32) -> Result<Arg> {
        let mut args = self.list(']', depth)?;
        let mut offset = 0;
        if let Some(Arg::Sum(name, by)) = args.first() {
            offset = *by;
            args[0] = Arg::Name(name.clone());
        }
        Ok(Arg::Memory(args, offset))
    }
}
