//! From statements to decoded instructions: names become registers and addresses, opcodes become [`Op`]s, calls are
//! replaced by the bodies of what they call.

mod alloc;
mod control;
mod float;
pub(crate) mod forms;
mod integer;
mod memory;
mod modifiers;
mod operands;
mod sync;
mod tensor_map;

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use crate::error::ParseError;
use crate::ops::Op;
use crate::parse::ast::{Ast, Function, Instruction, Loc, Space, Statement, Ty, Variable};
use crate::program::{Kernel, Module, Param, Special};
use modifiers::Modifiers;
use operands::V;

pub(crate) type Result<T> = std::result::Result<T, ParseError>;

/// Calls nest at most this deep; recursion is refused.
const DEEPEST: usize = 16;
/// Instructions of a kernel after all calls are replaced.
const MOST: usize = 1 << 20;

/// What a name stands for.
#[derive(Clone, Debug)]
pub(crate) enum Symbol {
    Reg {
        class: Class,
        id: u32,
        bits: u8,
    },
    /// `%r<n>`: under the name without number.
    Range {
        class: Class,
        first: u32,
        count: u32,
        bits: u8,
    },
    /// Offset in a space.
    Address(Space, u64),
    /// A module variable.
    Variable(u32),
    /// The start of dynamic shared memory.
    Dynamic,
    Label(usize),
    Targets(Vec<String>),
}

/// Register files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Class {
    R32,
    R64,
    Pred,
}

/// An instruction whose operands are virtual registers.
#[derive(Debug)]
pub(crate) struct Built {
    pub op: Op,
    pub guard: Option<V>,
    pub dst: Vec<V>,
    pub src: Vec<V>,
    pub imm: i64,
    pub label: Option<usize>,
    pub line: u32,
    pub loc: Option<Loc>,
    pub opcode: u16,
}

/// The state of lowering one kernel.
pub(crate) struct Lower<'a> {
    functions: &'a HashMap<String, &'a Function>,
    scopes: Vec<HashMap<String, Symbol>>,
    pub code: Vec<Built>,
    /// Where each label stands.
    labels: Vec<Option<usize>>,
    tables: Vec<Vec<usize>>,
    /// Virtual registers of each class.
    counts: [u32; 3],
    names: [HashMap<u32, String>; 3],
    specials: HashMap<Special, u32>,
    /// One carry flag.
    carry: Option<u32>,
    local_bytes: u64,
    shared_bytes: u64,
    dynamic_align: u32,
    guard: Option<V>,
    line: u32,
    loc: Option<Loc>,
    opcodes: Vec<String>,
    opcode_ids: HashMap<String, u16>,
    calls: Vec<String>,
    /// Label behind the current call.
    exits: Vec<usize>,
    grains: [u32; 2],
}

/// Lowers all kernels of a module.
pub(crate) fn module(ast: &Ast) -> Result<Module> {
    let mut functions: HashMap<String, &Function> = HashMap::new();
    for f in &ast.functions {
        // A declaration may come before its definition.
        if f.body.is_some() || !functions.contains_key(&f.name) {
            if functions.get(&f.name).is_some_and(|old| old.body.is_some()) {
                return Err(ParseError::new(f.line, format!("{} is defined twice", f.name)));
            }
            functions.insert(f.name.clone(), f);
        }
    }
    let mut opcodes = BTreeMap::new();
    let mut kernels: Vec<Kernel> = Vec::new();
    for f in &ast.functions {
        for statement in f.body.iter().flatten() {
            if let Statement::Instruction(i) = statement {
                *opcodes.entry(i.opcode()).or_insert(0) += 1;
            }
        }
        if !f.entry || f.body.is_none() {
            continue;
        }
        if kernels.iter().any(|k| k.name == f.name) {
            return Err(ParseError::new(f.line, format!("kernel {} is defined twice", f.name)));
        }
        kernels.push(kernel(ast, &functions, f)?);
    }
    // Functions that no kernel calls are lowered too, so that what they hold is checked.
    for f in ast.functions.iter().filter(|f| !f.entry && f.body.is_some()) {
        let mut lower = Lower::new(ast, &functions)?;
        lower.exits.push(0);
        lower.labels.push(None);
        lower.function_body(f, &[], &[])?;
    }
    Ok(Module {
        version: ast.version,
        target: ast.target.clone(),
        files: ast.files.clone(),
        kernels,
        variables: ast.variables.iter().filter(|v| v.space != Space::Shared).cloned().collect(),
        opcodes,
    })
}

fn kernel(ast: &Ast, functions: &HashMap<String, &Function>, f: &Function) -> Result<Kernel> {
    let mut lower = Lower::new(ast, functions)?;
    let mut params = Vec::new();
    let mut offset = 0u32;
    lower.scopes.push(HashMap::new());
    for p in &f.params {
        let bytes = u32::try_from(p.bytes.unwrap_or(0)).unwrap_or(u32::MAX);
        if bytes > 1 << 16 {
            return Err(ParseError::new(p.line, format!("parameter {} is too large", p.name)));
        }
        offset = offset.next_multiple_of(p.align);
        lower.declare(&p.name, Symbol::Address(Space::Param, u64::from(offset)), p.line)?;
        params.push(Param { name: p.name.clone(), offset, bytes, align: p.align });
        offset += bytes;
        if offset > 1 << 16 {
            return Err(ParseError::new(p.line, "parameters above 64 KiB"));
        }
    }
    lower.line = f.line;
    lower.statements(f.body.as_ref().map_or(&[], |b| b))?;
    lower.emit(Op::Exit, vec![], vec![]);
    let built = lower;
    let mut kernel = Kernel {
        name: f.name.clone(),
        params,
        static_shared: u32::try_from(built.shared_bytes).unwrap_or(u32::MAX),
        dynamic_align: built.dynamic_align,
        local_bytes: u32::try_from(built.local_bytes).unwrap_or(u32::MAX),
        max_threads: f.max_threads,
        required_threads: f.required_threads,
        cluster: f.cluster,
        code: Vec::new(),
        pool: Vec::new(),
        lines: Vec::new(),
        locs: Vec::new(),
        names: Vec::new(),
        opcodes: built.opcodes.clone(),
        consts32: Vec::new(),
        consts64: Vec::new(),
        relocations: Vec::new(),
        slots32: 0,
        slots64: 0,
        slots_pred: 1,
        specials32: Vec::new(),
        specials64: Vec::new(),
        suspects: Vec::new(),
        suspect_uses: HashMap::new(),
        tables: Vec::new(),
        shared_grain: built.grains[0],
        async_proxy: built.code.iter().any(|b| matches!(b.op, Op::Bulk(_) | Op::WgMma(_))),
        global_grain: built.grains[1],
    };
    alloc::finish(built, &mut kernel)?;
    Ok(kernel)
}

impl<'a> Lower<'a> {
    fn new(ast: &Ast, functions: &'a HashMap<String, &'a Function>) -> Result<Lower<'a>> {
        let mut lower = Lower {
            functions,
            scopes: vec![HashMap::new()],
            code: Vec::new(),
            labels: Vec::new(),
            tables: Vec::new(),
            // Predicate 0 is always false.
            counts: [0, 0, 1],
            names: Default::default(),
            specials: HashMap::new(),
            carry: None,
            local_bytes: 0,
            shared_bytes: 0,
            dynamic_align: 1,
            guard: None,
            line: 0,
            loc: None,
            opcodes: Vec::new(),
            opcode_ids: HashMap::new(),
            calls: Vec::new(),
            exits: Vec::new(),
            grains: [2, 2],
        };
        let mut number = 0;
        for v in &ast.variables {
            if v.space == Space::Shared {
                lower.variable(v)?;
            } else {
                lower.declare(&v.name, Symbol::Variable(number), v.line)?;
                number += 1;
            }
        }
        Ok(lower)
    }

    fn fail<T>(&self, message: impl Into<String>) -> Result<T> {
        Err(ParseError::new(self.line, message))
    }

    fn declare(&mut self, name: &str, symbol: Symbol, line: u32) -> Result<()> {
        let scope = self.scopes.last_mut().expect("there is always a scope");
        match scope.insert(name.to_string(), symbol) {
            None => Ok(()),
            // `extern .shared` may be declared again.
            Some(Symbol::Dynamic) => Ok(()),
            Some(_) => Err(ParseError::new(line, format!("{name} is declared twice"))),
        }
    }

    pub(crate) fn fresh(&mut self, class: Class) -> u32 {
        self.counts[class as usize] += 1;
        self.counts[class as usize] - 1
    }

    fn new_label(&mut self) -> usize {
        self.labels.push(None);
        self.labels.len() - 1
    }

    /// Adds an instruction under the current guard.
    pub(crate) fn emit(&mut self, op: Op, dst: Vec<V>, src: Vec<V>) -> &mut Built {
        self.code.push(Built {
            op,
            guard: self.guard,
            dst,
            src,
            imm: 0,
            label: None,
            line: self.line,
            loc: self.loc.clone(),
            opcode: self.opcodes.len().saturating_sub(1) as u16,
        });
        self.code.last_mut().expect("one was pushed")
    }

    fn statements(&mut self, all: &[Statement]) -> Result<()> {
        let depth = self.scopes.len();
        self.open_scope(all)?;
        for (i, statement) in all.iter().enumerate() {
            match statement {
                Statement::Open => self.open_scope(&all[i + 1..])?,
                Statement::Close => {
                    self.scopes.pop();
                }
                Statement::Reg(ty, name, count) => self.registers(*ty, name, *count)?,
                Statement::Variable(v) => self.variable(v)?,
                Statement::Label(name, _) => {
                    if let Some(Symbol::Label(label)) = self.lookup(name) {
                        self.labels[label] = Some(self.code.len());
                    }
                }
                Statement::Targets(..) => {}
                Statement::Loc(loc) => self.loc = Some(loc.clone()),
                Statement::Instruction(i) => {
                    self.line = i.line;
                    self.instruction(i)?;
                    if self.code.len() > MOST {
                        return self.fail("kernel too long");
                    }
                }
            }
        }
        self.scopes.truncate(depth);
        Ok(())
    }

    /// Opens a scope and declares the labels that stand directly in it.
    fn open_scope(&mut self, rest: &[Statement]) -> Result<()> {
        self.scopes.push(HashMap::new());
        let mut depth = 0;
        for statement in rest {
            match statement {
                Statement::Open => depth += 1,
                Statement::Close if depth == 0 => break,
                Statement::Close => depth -= 1,
                Statement::Label(name, line) if depth == 0 => {
                    let label = self.new_label();
                    self.declare(name, Symbol::Label(label), *line)?;
                }
                Statement::Targets(name, targets) if depth == 0 => {
                    self.declare(name, Symbol::Targets(targets.clone()), self.line)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn registers(&mut self, ty: Ty, name: &str, count: Option<u32>) -> Result<()> {
        let (class, bits) = match ty {
            Ty::Pred => (Class::Pred, 1),
            Ty::B128 => return self.fail("128-bit registers are not supported"),
            _ if ty.bits() == 64 => (Class::R64, 64),
            _ => (Class::R32, ty.bits() as u8),
        };
        let first = self.counts[class as usize];
        let many = count.unwrap_or(1);
        if u64::from(first) + u64::from(many) > 1 << 22 {
            return self.fail("too many registers");
        }
        self.counts[class as usize] += many;
        match count {
            None => {
                self.names[class as usize].insert(first, name.to_string());
                self.declare(name, Symbol::Reg { class, id: first, bits }, self.line)
            }
            Some(count) => {
                self.names[class as usize].insert(first, format!("{name}<"));
                self.declare(&format!("{name}<"), Symbol::Range { class, first, count, bits }, self.line)
            }
        }
    }

    fn variable(&mut self, v: &Variable) -> Result<()> {
        let symbol = match (v.space, v.bytes) {
            (Space::Shared, None) => {
                self.dynamic_align = self.dynamic_align.max(v.align);
                Symbol::Dynamic
            }
            (Space::Shared, Some(bytes)) => {
                let at = self.shared_bytes.next_multiple_of(u64::from(v.align));
                self.shared_bytes = at + bytes;
                if self.shared_bytes > 1 << 20 {
                    return Err(ParseError::new(v.line, "static shared memory above 1 MiB"));
                }
                Symbol::Address(Space::Shared, crate::machine::SHARED_BASE + at)
            }
            (Space::Local | Space::Param, Some(bytes)) => self.local(v.align, bytes)?,
            _ => return Err(ParseError::new(v.line, format!("variable {} is not supported here", v.name))),
        };
        self.declare(&v.name, symbol, v.line)
    }

    /// Room in the memory of a thread.
    fn local(&mut self, align: u32, bytes: u64) -> Result<Symbol> {
        let at = self.local_bytes.next_multiple_of(u64::from(align));
        self.local_bytes = at + bytes;
        if self.local_bytes > 1 << 19 {
            return self.fail("local memory above 512 KiB");
        }
        Ok(Symbol::Address(Space::Local, at))
    }

    /// The meaning of a name, innermost scope first.
    pub(crate) fn lookup(&self, name: &str) -> Option<Symbol> {
        for scope in self.scopes.iter().rev() {
            if let Some(s) = scope.get(name) {
                return Some(s.clone());
            }
            let prefix = name.trim_end_matches(|c: char| c.is_ascii_digit());
            let number = &name[prefix.len()..];
            if number.is_empty() || (number.len() > 1 && number.starts_with('0')) {
                continue;
            }
            if let Some(Symbol::Range { class, first, count, bits }) = scope.get(&format!("{prefix}<"))
                && let Some(n) = number.parse::<u32>().ok().filter(|n| n < count)
            {
                return Some(Symbol::Reg { class: *class, id: first + n, bits: *bits });
            }
        }
        None
    }

    fn instruction(&mut self, i: &Instruction) -> Result<()> {
        let opcode = i.opcode();
        let id = match self.opcode_ids.get(&opcode) {
            Some(id) => *id,
            None => {
                let id = u16::try_from(self.opcodes.len())
                    .map_err(|_| ParseError::new(i.line, "too many different opcodes"))?;
                self.opcodes.push(opcode.clone());
                self.opcode_ids.insert(opcode.clone(), id);
                id
            }
        };
        self.guard = match &i.guard {
            None => None,
            Some((name, negated)) => match self.lookup(name) {
                Some(Symbol::Reg { class: Class::Pred, id, .. }) => Some(V::Pred { id, negated: *negated }),
                _ => return self.fail(format!("guard {name} is no predicate register")),
            },
        };
        let before = self.code.len();
        let mut m = Modifiers::new(i);
        let known = self.integer(i, &mut m)?
            || self.float(i, &mut m)?
            || self.memory(i, &mut m)?
            || self.sync(i, &mut m)?
            || self.control(i, &mut m)?;
        if !known {
            return self.fail(format!("unknown opcode {opcode}"));
        }
        m.done()?;
        if !forms::accepted(&i.name, &i.modifiers) {
            return self.fail(format!("{opcode}: the instruction has no such form"));
        }
        if i.name != "call" {
            for one in &mut self.code[before..] {
                one.opcode = id;
            }
        }
        self.guard = None;
        Ok(())
    }

    /// The body of a called function in place of the call; arguments lie in the caller's `.param` variables.
    fn function_body(&mut self, f: &Function, returns: &[Symbol], params: &[Symbol]) -> Result<()> {
        if self.calls.contains(&f.name) || self.calls.len() >= DEEPEST {
            return self.fail(format!("recursive call of {}", f.name));
        }
        let Some(body) = &f.body else { return self.fail(format!("{} has no body here", f.name)) };
        self.calls.push(f.name.clone());
        // The callee sees module variables and its parameters, not the caller's names.
        let callers = self.scopes.split_off(1);
        self.scopes.push(HashMap::new());
        for (declared, given) in [(&f.returns, returns), (&f.params, params)] {
            for (n, p) in declared.iter().enumerate() {
                let symbol = match given.get(n) {
                    Some(s) => s.clone(),
                    None if p.space == Space::Generic => {
                        self.registers(p.ty, &p.name, None)?;
                        continue;
                    }
                    None => self.local(p.align, p.bytes.unwrap_or(0))?,
                };
                self.declare(&p.name, symbol, p.line)?;
            }
        }
        let (line, loc, guard) = (self.line, self.loc.clone(), self.guard.take());
        let done = self.statements(body);
        (self.line, self.loc, self.guard) = (line, loc, guard);
        self.scopes.truncate(1);
        self.scopes.extend(callers);
        self.calls.pop();
        done
    }
}

/// A name for reports of a virtual register.
pub(crate) fn register_name(names: &HashMap<u32, String>, id: u32) -> Rc<str> {
    // Ranges are held under their first register.
    let first = (0..=id).rev().find(|i| names.contains_key(i));
    match first.and_then(|f| Some((f, names.get(&f)?))) {
        Some((f, name)) if name.ends_with('<') => format!("{}{}", name.trim_end_matches('<'), id - f).into(),
        Some((_, name)) => name.as_str().into(),
        None => "a register".into(),
    }
}
