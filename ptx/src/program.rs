//! Kernels as the machine runs them: instructions with decoded operations, operands that name slots of a register
//! file, and the place in PTX and CUDA source of each.

use std::collections::{BTreeMap, HashMap};

use crate::ops::Op;
use crate::parse::ast::{Loc, Variable};

/// A destination that is thrown away.
pub(crate) const SINK: i32 = i32::MIN;
/// No guard.
pub(crate) const NO_GUARD: i32 = -1;

/// A decoded instruction.
///
/// A 32- or 64-bit operand is a slot of the file of its width, or (if negative) the complement of an index into the
/// constants of that width. A predicate is a slot times two, plus one if it is negated; slot 0 is always false.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Instr {
    pub op: Op,
    /// The predicate that lets lanes take part.
    pub guard: i32,
    /// First destinations.
    pub d: [i32; 2],
    /// First sources.
    pub s: [i32; 4],
    /// Where all operands lie in [`Kernel::pool`]: destinations, then sources.
    pub pool: u32,
    pub dsts: u8,
    pub srcs: u8,
    /// Bit k: source k is 32 bits wide, of the first eight.
    pub narrow: u8,
    /// Whether it reads or writes a register that may be unwritten.
    pub suspect: bool,
    /// Offset of a memory operand, or index of the instruction to branch to.
    pub imm: i64,
}

/// What a register holds when a warp starts, and never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Special {
    Tid(u8),
    Ntid(u8),
    Ctaid(u8),
    Nctaid(u8),
    LaneId,
    WarpId,
    NWarpId,
    SmId,
    NSmId,
    GridId,
    LaneMaskEq,
    LaneMaskLt,
    LaneMaskLe,
    LaneMaskGt,
    LaneMaskGe,
    DynamicShared,
    TotalShared,
    ClusterId(u8),
    NClusterId(u8),
    ClusterCtaid(u8),
    ClusterNctaid(u8),
    ClusterCtaRank,
    ClusterNctaRank,
}

/// A kernel parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Param {
    /// Its name in PTX.
    pub name: String,
    /// Where it begins among the argument bytes.
    pub offset: u32,
    /// Its size in bytes.
    pub bytes: u32,
    /// Its alignment in bytes.
    pub align: u32,
}

/// A kernel, ready to run.
#[derive(Debug)]
pub struct Kernel {
    /// Its name.
    pub name: String,
    /// Its parameters.
    pub params: Vec<Param>,
    /// Bytes of static shared memory.
    pub static_shared: u32,
    /// Alignment that dynamic shared memory asks for.
    pub dynamic_align: u32,
    /// Bytes of local memory of a thread.
    pub local_bytes: u32,
    /// `.maxntid`: the product bounds the threads of a block.
    pub max_threads: Option<[u32; 3]>,
    /// `.reqntid`: the only size of a block that is allowed.
    pub required_threads: Option<[u32; 3]>,
    /// `.reqnctapercluster`.
    pub cluster: Option<[u32; 3]>,
    pub(crate) code: Vec<Instr>,
    pub(crate) pool: Vec<i32>,
    /// PTX line of each instruction.
    pub(crate) lines: Vec<u32>,
    /// Source place of each instruction.
    pub(crate) locs: Vec<Option<Loc>>,
    /// Name of each instruction as written.
    pub(crate) names: Vec<u16>,
    pub(crate) opcodes: Vec<String>,
    pub(crate) consts32: Vec<u32>,
    pub(crate) consts64: Vec<u64>,
    /// 64-bit constants that are addresses of module variables: (constant, variable).
    pub(crate) relocations: Vec<(u32, u32)>,
    /// Registers of each class.
    pub(crate) slots32: u32,
    pub(crate) slots64: u32,
    pub(crate) slots_pred: u32,
    pub(crate) specials32: Vec<(Special, u32)>,
    pub(crate) specials64: Vec<(Special, u32)>,
    /// Slots whose registers may be read before they are written: by class (0: 32 bits, 1: 64, 2: predicates), slot
    /// and the register's name.
    pub(crate) suspects: Vec<(u8, u32, String)>,
    /// For each instruction, suspects that it reads and writes, if there are any.
    pub(crate) suspect_uses: HashMap<u32, (Vec<u32>, Vec<u32>)>,
    /// Tables of `brx.idx`.
    pub(crate) tables: Vec<Vec<u32>>,
    /// log2 of the narrowest access to shared and to global memory, at most 2.
    pub(crate) shared_grain: u32,
    /// Whether instructions use the asynchronous proxy.
    pub(crate) async_proxy: bool,
    pub(crate) global_grain: u32,
}

/// A parsed module: what one `.cu` file became.
#[derive(Debug)]
pub struct Module {
    /// PTX version.
    pub version: (u32, u32),
    /// Architecture, as in `sm_90a`.
    pub target: String,
    /// CUDA source files by number.
    pub files: BTreeMap<u32, String>,
    /// Kernels, in the order of the text.
    pub kernels: Vec<Kernel>,
    /// Variables in `.global` and `.const` memory.
    pub variables: Vec<Variable>,
    /// How often each opcode stands in the text.
    pub opcodes: BTreeMap<String, u64>,
}

impl Module {
    /// Parses PTX text. Every opcode and modifier is known to the machine, or this fails.
    pub fn parse(text: &str) -> Result<Module, crate::ParseError> {
        crate::lower::module(&crate::parse::parse(text)?)
    }

    /// The kernel of a name.
    pub fn kernel(&self, name: &str) -> Option<&Kernel> {
        self.kernels.iter().find(|k| k.name == name)
    }
}

impl Kernel {
    /// Bytes of all arguments.
    pub fn param_bytes(&self) -> u32 {
        self.params.iter().map(|p| p.offset + p.bytes).max().unwrap_or(0)
    }

    /// Number of instructions.
    pub fn instructions(&self) -> usize {
        self.code.len()
    }

    pub(crate) fn opcode(&self, pc: usize) -> &str {
        self.names.get(pc).map_or("", |i| &self.opcodes[*i as usize])
    }
}
