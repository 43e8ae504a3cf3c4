//! The machine: launches, blocks, warps, memory.

pub(crate) mod block;
pub(crate) mod clocks;
pub(crate) mod fault;
pub(crate) mod launch;
pub(crate) mod memory;
pub(crate) mod run;
pub(crate) mod shadow;
pub(crate) mod warp;

pub use fault::{Fault, FaultKind, Other, Place};
pub(crate) use launch::place;
pub use launch::{Copies, Launch, Options, Order, Outcome, check_launch, launch};
pub use memory::Memory;

/// Where a block's shared memory begins: the first KiB belongs to the system, as on devices of compute capability 9.0.
pub(crate) const SHARED_BASE: u64 = 1024;
/// Generic addresses of shared memory. The rank of a block within its cluster plus one, shifted by [`RANK_SHIFT`],
/// is added for memory of another block; 0 stands for the own block.
pub(crate) const SHARED_WINDOW: u64 = 0x7d00_0000_0000;
pub(crate) const RANK_SHIFT: u32 = 24;
/// Generic addresses of local memory.
pub(crate) const LOCAL_WINDOW: u64 = 0x7c00_0000_0000;
/// Generic addresses of parameters.
pub(crate) const PARAM_WINDOW: u64 = 0x7b00_0000_0000;
pub(crate) const WINDOW: u64 = 0x0100_0000_0000;
