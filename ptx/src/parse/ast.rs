//! A module as it stands in the text.

use std::collections::BTreeMap;

/// Fundamental types, PTX ISA 5.2.
#[allow(missing_docs, reason = "the names are those of PTX")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ty {
    U8,
    U16,
    U32,
    U64,
    S8,
    S16,
    S32,
    S64,
    B8,
    B16,
    B32,
    B64,
    B128,
    F16,
    F16x2,
    Bf16,
    Bf16x2,
    Tf32,
    F32,
    F64,
    Pred,
}

impl Ty {
    /// The type of a name such as `u32`.
    pub fn named(name: &str) -> Option<Ty> {
        use Ty::*;
        Some(match name {
            "u8" => U8,
            "u16" => U16,
            "u32" => U32,
            "u64" => U64,
            "s8" => S8,
            "s16" => S16,
            "s32" => S32,
            "s64" => S64,
            "b8" => B8,
            "b16" => B16,
            "b32" => B32,
            "b64" => B64,
            "b128" => B128,
            "f16" => F16,
            "f16x2" => F16x2,
            "bf16" => Bf16,
            "bf16x2" => Bf16x2,
            "tf32" => Tf32,
            "f32" => F32,
            "f64" => F64,
            "pred" => Pred,
            _ => return None,
        })
    }

    /// Bytes of a value in memory.
    pub fn bytes(self) -> u32 {
        use Ty::*;
        match self {
            U8 | S8 | B8 | Pred => 1,
            U16 | S16 | B16 | F16 | Bf16 => 2,
            U32 | S32 | B32 | F16x2 | Bf16x2 | Tf32 | F32 => 4,
            U64 | S64 | B64 | F64 => 8,
            B128 => 16,
        }
    }

    /// Bits of a value.
    pub fn bits(self) -> u32 {
        self.bytes() * 8
    }

    /// Whether a value is a signed integer.
    pub fn signed(self) -> bool {
        matches!(self, Ty::S8 | Ty::S16 | Ty::S32 | Ty::S64)
    }

    /// Whether a value is a floating-point number or two.
    pub fn float(self) -> bool {
        use Ty::*;
        matches!(self, F16 | F16x2 | Bf16 | Bf16x2 | Tf32 | F32 | F64)
    }
}

/// An operand.
#[derive(Clone, Debug, PartialEq)]
pub enum Arg {
    /// A register, variable, label or function; special registers with their part (`%tid.x`).
    Name(String),
    /// An integer.
    Int(u64),
    /// Bits of a single-precision constant.
    F32(u32),
    /// Bits of a double-precision constant.
    F64(u64),
    /// `{a, b}`.
    Vector(Vec<Arg>),
    /// `[base + offset]`; some instructions take more operands within the brackets.
    Memory(Vec<Arg>, i64),
    /// `!p`.
    Not(Box<Arg>),
    /// `p|q`.
    Pair(Box<Arg>, Box<Arg>),
    /// `name + offset` outside of brackets.
    Sum(String, i64),
    /// `(a, b)` of a call.
    List(Vec<Arg>),
    /// `_`.
    Sink,
}

/// An instruction.
#[derive(Clone, Debug)]
pub struct Instruction {
    /// `@p` or `@!p`.
    pub guard: Option<(String, bool)>,
    /// The name before the first dot.
    pub name: String,
    /// The names behind dots, in their order.
    pub modifiers: Vec<String>,
    /// Operands.
    pub args: Vec<Arg>,
    /// Line of the text.
    pub line: u32,
}

impl Instruction {
    /// Name and modifiers as written.
    pub fn opcode(&self) -> String {
        std::iter::once(&self.name).chain(&self.modifiers).cloned().collect::<Vec<_>>().join(".")
    }
}

/// A place in CUDA source: file number, line, and where the function was inlined.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Loc {
    /// Number of the file.
    pub file: u32,
    /// Line in it.
    pub line: u32,
    /// File and line of the call, if the code was inlined.
    pub inlined_at: Option<(u32, u32)>,
}

/// State spaces of variables, PTX ISA 5.1.
#[allow(missing_docs, reason = "the names are those of PTX")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    Generic,
    Global,
    Const,
    Shared,
    Local,
    Param,
}

/// A declared variable or parameter.
#[derive(Clone, Debug)]
pub struct Variable {
    /// Its name.
    pub name: String,
    /// Where it lives.
    pub space: Space,
    /// Type of an element.
    pub ty: Ty,
    /// Alignment in bytes.
    pub align: u32,
    /// Bytes; `None` for `extern .shared x[]`.
    pub bytes: Option<u64>,
    /// Initial bytes.
    pub init: Option<Vec<u8>>,
    /// Line of the text.
    pub line: u32,
}

/// What a body is made of.
#[derive(Clone, Debug)]
pub enum Statement {
    /// `.reg .type name` with the number of names of `name<n>`.
    Reg(Ty, String, Option<u32>),
    /// A variable.
    Variable(Variable),
    /// `label:`.
    Label(String, u32),
    /// `label: .branchtargets a, b;`.
    Targets(String, Vec<String>),
    /// `.loc`.
    Loc(Loc),
    /// `{`.
    Open,
    /// `}`.
    Close,
    /// An instruction.
    Instruction(Instruction),
}

/// A kernel or function.
#[derive(Clone, Debug)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// Whether it can be launched.
    pub entry: bool,
    /// Returned parameters of a function.
    pub returns: Vec<Variable>,
    /// Parameters. Registers are held with the space `Generic`.
    pub params: Vec<Variable>,
    /// Threads of a block at most (`.maxntid`) and exactly (`.reqntid`).
    pub max_threads: Option<[u32; 3]>,
    /// Exact size of a block.
    pub required_threads: Option<[u32; 3]>,
    /// Size of a cluster that the kernel was compiled for.
    pub cluster: Option<[u32; 3]>,
    /// The body; `None` for a declaration.
    pub body: Option<Vec<Statement>>,
    /// Line of the text.
    pub line: u32,
}

/// A module.
#[derive(Clone, Debug, Default)]
pub struct Ast {
    /// `.version`.
    pub version: (u32, u32),
    /// `.target`, as in `sm_90a`.
    pub target: String,
    /// Source files by number.
    pub files: BTreeMap<u32, String>,
    /// Variables outside of functions.
    pub variables: Vec<Variable>,
    /// Kernels and functions.
    pub functions: Vec<Function>,
}
