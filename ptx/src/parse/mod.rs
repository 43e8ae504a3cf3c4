//! Reads PTX text into [`ast::Ast`]. What instructions mean is decided later, in `lower`.

pub mod ast;
mod body;
mod lex;

use crate::error::ParseError;
use ast::{Ast, Function, Space, Ty, Variable};
use lex::{Lexed, Token};

type Result<T> = std::result::Result<T, ParseError>;

/// Largest array that a declaration may name.
const LARGEST: u64 = 1 << 28;

pub(crate) struct Parser {
    tokens: Vec<Lexed>,
    at: usize,
}

/// Parses a module.
pub fn parse(text: &str) -> Result<Ast> {
    let mut parser = Parser { tokens: lex::tokens(text)?, at: 0 };
    let mut ast = Ast::default();
    while parser.peek().is_some() {
        parser.item(&mut ast)?;
    }
    if ast.version == (0, 0) {
        return Err(ParseError::new(1, "no .version: this is no PTX"));
    }
    if ast.target.is_empty() {
        return Err(ParseError::new(1, "no .target"));
    }
    Ok(ast)
}

impl Parser {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at).map(|t| &t.token)
    }

    fn peek_at(&self, ahead: usize) -> Option<&Token> {
        self.tokens.get(self.at + ahead).map(|t| &t.token)
    }

    /// Line of the next token, or of the last at the end.
    fn line(&self) -> u32 {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(1, |t| t.line)
    }

    fn fail<T>(&self, message: impl Into<String>) -> Result<T> {
        Err(ParseError::new(self.line(), message))
    }

    fn next(&mut self) -> Result<Token> {
        match self.tokens.get(self.at) {
            Some(t) => {
                self.at += 1;
                Ok(t.token.clone())
            }
            None => self.fail("the text ends in the middle of a statement"),
        }
    }

    fn is(&self, c: char) -> bool {
        self.peek() == Some(&Token::Punct(c))
    }

    fn take(&mut self, c: char) -> bool {
        let found = self.is(c);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, c: char) -> Result<()> {
        match self.take(c) {
            true => Ok(()),
            false => {
                let found = self.peek().map_or("the end".into(), |t| format!("{t:?}"));
                self.fail(format!("expected `{c}`, found {found}"))
            }
        }
    }

    fn take_dot(&mut self, name: &str) -> bool {
        let found = matches!(self.peek(), Some(Token::Dot(d)) if d == name);
        self.at += usize::from(found);
        found
    }

    fn word(&mut self) -> Result<String> {
        match self.next()? {
            Token::Word(w) => Ok(w),
            other => {
                self.at -= 1;
                self.fail(format!("expected a name, found {other:?}"))
            }
        }
    }

    fn int(&mut self) -> Result<u64> {
        let negative = self.take('-');
        match self.next()? {
            Token::Int(v) if negative => Ok(v.wrapping_neg()),
            Token::Int(v) => Ok(v),
            other => {
                self.at -= 1;
                self.fail(format!("expected an integer, found {other:?}"))
            }
        }
    }

    fn small(&mut self) -> Result<u32> {
        let line = self.line();
        u32::try_from(self.int()?).map_err(|_| ParseError::new(line, "number above 32 bits"))
    }

    fn item(&mut self, ast: &mut Ast) -> Result<()> {
        let line = self.line();
        let Token::Dot(directive) = self.next()? else {
            self.at -= 1;
            return self.fail("expected a directive");
        };
        match directive.as_str() {
            "version" => {
                ast.version = match self.next()? {
                    Token::F64(bits) => {
                        let text = format!("{}", f64::from_bits(bits));
                        let (major, minor) = text.split_once('.').unwrap_or((&text, "0"));
                        (major.parse().unwrap_or(0), minor.parse().unwrap_or(0))
                    }
                    Token::Int(major) => (major as u32, 0),
                    _ => return Err(ParseError::new(line, "expected a version such as 8.4")),
                };
            }
            "target" => {
                ast.target = self.word()?;
                let number = ast.target.strip_prefix("sm_").unwrap_or_default();
                if !number.starts_with(|c: char| c.is_ascii_digit()) {
                    return Err(ParseError::new(
                        line,
                        format!("target {} is none such as sm_80", ast.target),
                    ));
                }
                while self.take(',') {
                    self.word()?;
                }
            }
            "address_size" => {
                if self.int()? != 64 {
                    return Err(ParseError::new(line, "only 64-bit addresses are supported"));
                }
            }
            "file" => {
                let number = self.small()?;
                let Token::Text(path) = self.next()? else {
                    return Err(ParseError::new(line, "expected the path of a file"));
                };
                ast.files.insert(number, path);
                while self.take(',') {
                    self.int()?;
                }
            }
            "section" => self.section()?,
            "pragma" => self.skip_statement()?,
            "visible" | "extern" | "weak" | "common" => {
                if self.peek().is_none() {
                    return self.fail("the text ends in the middle of a declaration");
                }
            }
            "entry" => ast.functions.push(self.function(true)?),
            "func" => ast.functions.push(self.function(false)?),
            "global" | "const" | "shared" => {
                self.at -= 1;
                ast.variables.extend(self.variables()?);
            }
            other => {
                return Err(ParseError::new(line, format!("directive .{other} is not supported here")));
            }
        }
        Ok(())
    }

    /// Debugging sections are skipped.
    fn section(&mut self) -> Result<()> {
        while !self.is('{') {
            self.next()?;
        }
        let mut depth = 0;
        loop {
            match self.next()? {
                Token::Punct('{') => depth += 1,
                Token::Punct('}') => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                return Ok(());
            }
        }
    }

    fn skip_statement(&mut self) -> Result<()> {
        while self.next()? != Token::Punct(';') {}
        Ok(())
    }

    fn function(&mut self, entry: bool) -> Result<Function> {
        let line = self.line();
        let returns = if !entry && self.is('(') { self.parameters()? } else { Vec::new() };
        let name = self.word()?;
        let params = if self.is('(') { self.parameters()? } else { Vec::new() };
        let mut out = Function {
            name,
            entry,
            returns,
            params,
            max_threads: None,
            required_threads: None,
            cluster: None,
            body: None,
            line,
        };
        loop {
            if self.take(';') {
                return Ok(out);
            }
            if self.take('{') {
                out.body = Some(self.body()?);
                return Ok(out);
            }
            let line = self.line();
            match self.next()? {
                Token::Dot(d) => match d.as_str() {
                    "maxntid" => out.max_threads = Some(self.triple()?),
                    "reqntid" => out.required_threads = Some(self.triple()?),
                    "reqnctapercluster" => out.cluster = Some(self.triple()?),
                    "minnctapersm" | "maxnctapersm" | "maxnreg" | "maxclusterrank" => {
                        self.int()?;
                    }
                    "noreturn" | "explicitcluster" | "blocksareclusters" => {}
                    "pragma" => self.skip_statement()?,
                    other => {
                        return Err(ParseError::new(line, format!("directive .{other} is not supported")));
                    }
                },
                other => return Err(ParseError::new(line, format!("unexpected {other:?} before a body"))),
            }
        }
    }

    fn triple(&mut self) -> Result<[u32; 3]> {
        let mut out = [1; 3];
        out[0] = self.small()?;
        for one in &mut out[1..] {
            if self.take(',') {
                *one = self.small()?;
            }
        }
        Ok(out)
    }

    /// `( .param .u64 .ptr .global .align 4 name, .reg .b32 name, ... )`.
    fn parameters(&mut self) -> Result<Vec<Variable>> {
        self.expect('(')?;
        let mut out = Vec::new();
        if self.take(')') {
            return Ok(out);
        }
        loop {
            let line = self.line();
            let space = match self.next()? {
                Token::Dot(d) if d == "param" => Space::Param,
                Token::Dot(d) if d == "reg" => Space::Generic,
                other => return Err(ParseError::new(line, format!("unexpected {other:?} among parameters"))),
            };
            out.push(self.variable(space)?);
            if self.take(')') {
                return Ok(out);
            }
            self.expect(',')?;
        }
    }

    /// `.global .align 4 .b8 a[16] = {..}, b;`
    fn variables(&mut self) -> Result<Vec<Variable>> {
        let line = self.line();
        let Token::Dot(space) = self.next()? else { return self.fail("expected a state space") };
        let space = match space.as_str() {
            "global" => Space::Global,
            "const" => Space::Const,
            "shared" => Space::Shared,
            "local" => Space::Local,
            "param" => Space::Param,
            other => return Err(ParseError::new(line, format!("state space .{other} is not supported"))),
        };
        let first = self.variable(space)?;
        let mut out = vec![first];
        while self.take(',') {
            let mut next = out[0].clone();
            (next.bytes, next.init) = (Some(u64::from(next.ty.bytes())), None);
            next.name = self.word()?;
            self.dimensions(&mut next)?;
            out.push(next);
        }
        self.expect(';')?;
        Ok(out)
    }

    fn variable(&mut self, space: Space) -> Result<Variable> {
        let line = self.line();
        let (mut align, mut ty, mut lanes) = (None, None, 1);
        while let Some(Token::Dot(d)) = self.peek() {
            let d = d.clone();
            self.at += 1;
            match d.as_str() {
                "align" => align = Some(self.small()?),
                "ptr" | "global" | "shared" | "const" | "local" => {}
                "v2" => lanes = 2,
                "v4" => lanes = 4,
                other => match Ty::named(other) {
                    Some(t) => ty = Some(t),
                    None => return Err(ParseError::new(line, format!("type .{other} is not supported"))),
                },
            }
        }
        let Some(ty) = ty else { return Err(ParseError::new(line, "a variable without a type")) };
        let own = ty.bytes() * lanes;
        let align = align.unwrap_or(own);
        if !align.is_power_of_two() || align > 1 << 16 {
            return Err(ParseError::new(line, format!("alignment {align} is not a power of two")));
        }
        let name = self.word()?;
        let mut out = Variable { name, space, ty, align, bytes: Some(u64::from(own)), init: None, line };
        self.dimensions(&mut out)?;
        Ok(out)
    }

    /// What may follow a variable's name: array sizes and initial values.
    fn dimensions(&mut self, variable: &mut Variable) -> Result<()> {
        while self.take('[') {
            if self.take(']') {
                variable.bytes = None;
                continue;
            }
            let count = self.int()?;
            self.expect(']')?;
            let total = variable.bytes.unwrap_or(0).checked_mul(count).filter(|b| *b <= LARGEST);
            let Some(total) = total else { return self.fail("array too large") };
            variable.bytes = Some(total);
        }
        if self.take('=') {
            let mut bytes = Vec::new();
            self.initial(variable.ty, &mut bytes, 0)?;
            let room = *variable.bytes.get_or_insert(bytes.len() as u64);
            if bytes.len() as u64 > room {
                return self.fail("more initial values than the array has room for");
            }
            variable.init = Some(bytes);
        }
        Ok(())
    }

    fn initial(&mut self, ty: Ty, out: &mut Vec<u8>, depth: u32) -> Result<()> {
        if depth > 8 {
            return self.fail("initial values nested too deeply");
        }
        if self.take('{') {
            if self.take('}') {
                return Ok(());
            }
            loop {
                self.initial(ty, out, depth + 1)?;
                if self.take('}') {
                    return Ok(());
                }
                self.expect(',')?;
            }
        }
        let negative = self.take('-');
        let value = match self.next()? {
            Token::Int(v) if negative => v.wrapping_neg(),
            Token::Int(v) => v,
            Token::F32(bits) => u64::from(bits),
            Token::F64(bits) if ty == Ty::F32 => u64::from((f64::from_bits(bits) as f32).to_bits()),
            Token::F64(bits) => bits,
            other => return self.fail(format!("initial value {other:?} is not supported")),
        };
        out.extend(&value.to_le_bytes()[..ty.bytes().min(8) as usize]);
        Ok(())
    }
}
