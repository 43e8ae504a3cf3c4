//! Which part of a device executes an instruction.

use crate::ops::{IntOp, MatMul, Op, UnOp, WgType};
use crate::parse::ast::Ty;

/// What executes an instruction on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Pipe {
    /// Integer, logic, comparisons and moves.
    Alu,
    /// Single-precision and half arithmetic, and integer multiplication.
    Fma,
    /// Double precision.
    Fp64,
    /// Approximations and conversions.
    Special,
    /// Loads, stores, atomics, copies and shuffles.
    Memory,
    /// Matrix products.
    Tensor,
    /// Branches, barriers and fences.
    Control,
}

impl Pipe {
    /// All of them, in the order of counters.
    pub const ALL: [Pipe; 7] =
        [Pipe::Alu, Pipe::Fma, Pipe::Fp64, Pipe::Special, Pipe::Memory, Pipe::Tensor, Pipe::Control];

    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Pipe::Alu => "alu",
            Pipe::Fma => "fma",
            Pipe::Fp64 => "fp64",
            Pipe::Special => "special",
            Pipe::Memory => "memory",
            Pipe::Tensor => "tensor",
            Pipe::Control => "control",
        }
    }
}

impl Op {
    /// Whether it is one of the functions that a device approximates (ex2, rcp and the like).
    pub fn is_approximation(&self) -> bool {
        use Op::*;
        matches!(self, Approx { .. } | DivApprox { .. } | Approx64 { .. } | Rcp32 { .. } | Sqrt32 { .. })
    }

    /// Multiplications and additions of a warp instruction on tensor cores: of BF16 and F16, and of TF32. `wgmma` is
    /// issued by four warps, each of which does a quarter.
    pub fn products(&self) -> [u64; 2] {
        match self {
            Op::Mma(MatMul::Tf32K8) => [0, 2 * 16 * 8 * 8],
            Op::Mma(MatMul::Tf32K4) => [0, 2 * 16 * 8 * 4],
            Op::Mma(MatMul::Bf16K8 | MatMul::F16K8) => [2 * 16 * 8 * 8, 0],
            Op::Mma(_) => [2 * 16 * 8 * 16, 0],
            Op::WgMma(w) if w.ty == WgType::Tf32 => [0, 2 * 16 * u64::from(w.n) * 8],
            Op::WgMma(w) => [2 * 16 * u64::from(w.n) * 16, 0],
            _ => [0, 0],
        }
    }

    /// The pipe that executes it.
    pub fn pipe(&self) -> Pipe {
        use Op::*;
        match self {
            Bra
            | Brx(_)
            | Exit
            | Trap
            | Nop
            | Bar { .. }
            | BarWarp
            | Fence { .. }
            | FenceProxy
            | FenceMbarrier
            | ClusterArrive { .. }
            | ClusterWait
            | Nanosleep
            | SetMaxNReg { .. }
            | GridDep { .. }
            | WgFence
            | WgCommit
            | WgWait(_)
            | CpCommit
            | CpWait(_)
            | CpWaitAll
            | BulkCommit
            | BulkWait { .. } => Pipe::Control,
            Int(IntOp::MulLo | IntOp::MulHiS | IntOp::MulHiU, _)
            | MulWide { .. }
            | MadLo(_)
            | MadHi { .. }
            | MadWide { .. }
            | Mad24 { .. }
            | MadCarry { .. }
            | Dp4a { .. }
            | Dp2a { .. }
            | F32 { .. }
            | Fma32 { .. }
            | Half { .. } => Pipe::Fma,
            F64 { .. } | Fma64 { .. } | MinMax64 { .. } | Rcp64 { .. } | Sqrt64 { .. } => Pipe::Fp64,
            Setp { ty: Ty::F64, .. } | Neg64 | Abs64 => Pipe::Fp64,
            Approx { .. }
            | DivApprox { .. }
            | Approx64 { .. }
            | Rcp32 { .. }
            | Sqrt32 { .. }
            | Cvt(_)
            | CvtPair { .. }
            | Unary(UnOp::Popc | UnOp::Brev | UnOp::Bfind { .. } | UnOp::Clz, _) => Pipe::Special,
            Ld(_)
            | St(_)
            | Atom { .. }
            | Shfl { .. }
            | CpAsync { .. }
            | Ldmatrix { .. }
            | Stmatrix { .. }
            | Prefetch
            | Mbar(_)
            | Bulk(_)
            | Movmatrix => Pipe::Memory,
            Mma(_) | WgMma(_) => Pipe::Tensor,
            _ => Pipe::Alu,
        }
    }
}
