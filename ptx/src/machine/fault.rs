//! What a launch can do wrong, with the places of it.

use std::fmt;

/// Kinds of faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultKind {
    /// An access outside of a buffer, of shared, local or parameter memory.
    OutOfBounds,
    /// An address that is no multiple of the size of the access.
    Misaligned,
    /// A read of memory that nothing wrote.
    UninitialisedMemory,
    /// A read of a register that nothing wrote.
    UninitialisedRegister,
    /// Two threads of a block access the same place, one of them writes, and nothing orders them.
    Race,
    /// The same, between blocks.
    BlockRace,
    /// A read or overwrite of what an asynchronous copy is still writing, or a read of the sums of a product of a
    /// warpgroup that was not waited for.
    CopyInFlight,
    /// Threads of a warp wait at different barriers, or a barrier's numbers do not suit.
    DivergentBarrier,
    /// Threads wait for what cannot happen any more.
    Deadlock,
    /// More instructions than the launch allows.
    StepLimit,
    /// A member mask without the thread that uses it, or with a thread that has ended.
    InvalidMask,
    /// A write to constant memory, or to what the launch reads through the non-coherent path.
    WriteToConstant,
    /// Data that the asynchronous proxy reads without a fence behind the writes.
    MissingProxyFence,
    /// Global memory that a thread of an early launch uses before `griddepcontrol.wait`.
    MissingGridWait,
    /// Grid, block, cluster, shared memory or arguments that a device refuses.
    BadLaunch,
    /// An operand that the instruction does not allow.
    InvalidOperand,
    /// The instruction `trap`.
    Trap,
}

/// A place in a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The instruction as written.
    pub opcode: String,
    /// Its line in PTX.
    pub ptx_line: u32,
    /// File and line in CUDA source, if compiled with `-lineinfo`.
    pub source: Option<(String, u32)>,
    /// Where the function around it was inlined.
    pub inlined_at: Option<(String, u32)>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((file, line)) = &self.source {
            write!(f, "{file}:{line}")?;
            if let Some((file, line)) = &self.inlined_at {
                write!(f, " (inlined at {file}:{line})")?;
            }
            write!(f, ", ")?;
        }
        write!(f, "PTX line {} `{}`", self.ptx_line, self.opcode)
    }
}

/// The other side of a race.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Other {
    /// What it did, as in "a write".
    pub what: &'static str,
    /// Index of its block.
    pub block: [u32; 3],
    /// Index of its thread.
    pub thread: [u32; 3],
    /// Where.
    pub place: Place,
}

/// A fault of a launch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What is wrong.
    pub kind: FaultKind,
    /// The kernel.
    pub kernel: String,
    /// Index of the block, if one was running.
    pub block: Option<[u32; 3]>,
    /// Index of the thread.
    pub thread: Option<[u32; 3]>,
    /// Where.
    pub place: Option<Place>,
    /// The other side, of a race.
    pub other: Option<Box<Other>>,
    /// Addresses, sizes and names.
    pub message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:?}: {}", self.kernel, self.kind, self.message)?;
        if let Some(block) = self.block {
            write!(f, "\n  block {block:?}")?;
        }
        if let Some(thread) = self.thread {
            write!(f, ", thread {thread:?}")?;
        }
        if let Some(place) = &self.place {
            write!(f, "\n  at {place}")?;
        }
        if let Some(other) = &self.other {
            write!(
                f,
                "\n  against {} by block {:?}, thread {:?}\n  at {}",
                other.what, other.block, other.thread, other.place
            )?;
        }
        Ok(())
    }
}

impl std::error::Error for Fault {}

/// A fault before places get their names.
#[derive(Debug)]
pub(crate) struct Trouble {
    pub kind: FaultKind,
    pub lane: u32,
    pub message: String,
    /// What, block number, thread number, instruction.
    pub other: Option<(&'static str, u32, u32, u32)>,
    /// Another instruction than the current one.
    pub pc: Option<u32>,
}

pub(crate) type Run<T> = Result<T, Box<Trouble>>;

pub(crate) fn trouble<T>(kind: FaultKind, lane: u32, message: impl Into<String>) -> Run<T> {
    Err(Box::new(Trouble { kind, lane, message: message.into(), other: None, pc: None }))
}
