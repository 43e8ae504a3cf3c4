//! Operations of the machine: opcodes of PTX with all that their modifiers choose.

use crate::parse::ast::{Space, Ty};

/// Width of an integer operation in bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum W {
    B16,
    B32,
    B64,
}

/// Integer operations of two operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IntOp {
    Add,
    Sub,
    AddSat,
    SubSat,
    MulLo,
    MulHiS,
    MulHiU,
    Mul24LoS,
    Mul24LoU,
    Mul24HiS,
    Mul24HiU,
    DivS,
    DivU,
    RemS,
    RemU,
    MinS,
    MinU,
    MaxS,
    MaxU,
    And,
    Or,
    Xor,
    Shl,
    ShrS,
    ShrU,
}

/// Integer operations of one operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnOp {
    Not,
    Cnot,
    Neg,
    Abs,
    Popc,
    Clz,
    Brev,
    Bfind { signed: bool, shift: bool },
}

/// Rounding to a floating-point format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Round {
    /// To nearest, ties to even.
    Nearest,
    /// Towards zero.
    Zero,
    /// Down.
    Down,
    /// Up.
    Up,
    /// To nearest, ties away from zero.
    Away,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FloatOp {
    Add,
    Sub,
    Mul,
    Div,
}

/// Instructions whose results are documented up to an error bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Approx {
    Rcp,
    Sqrt,
    Rsqrt,
    Sin,
    Cos,
    Lg2,
    Ex2,
    Tanh,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HalfOp {
    Add,
    Sub,
    Mul,
    Fma,
    Min,
    Max,
    Neg,
    Abs,
    Ex2,
    Tanh,
}

/// Comparisons, PTX ISA 9.3: ordered ones are false and unordered ones true where an operand is NaN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cmp {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    Equ,
    Neu,
    Ltu,
    Leu,
    Gtu,
    Geu,
    Num,
    Nan,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BoolOp {
    And,
    Or,
    Xor,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// Two 16-bit registers and a 32-bit one.
    B16x2,
    /// Four 16-bit registers and a 64-bit one.
    B16x4,
    /// Two 32-bit registers and a 64-bit one.
    B32x2,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CvtRound {
    /// No modifier: exact, or towards zero where a fraction is dropped.
    None,
    /// To a floating-point format.
    Float(Round),
    /// To an integral value.
    Integer(Round),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cvt {
    pub from: Ty,
    pub to: Ty,
    pub round: CvtRound,
    pub ftz: bool,
    pub sat: bool,
    pub relu: bool,
    /// Width of the source and destination register.
    pub from_wide: bool,
    pub to_bits: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MatMul {
    Bf16,
    F16,
    /// Half inputs and sums.
    F16Half,
    /// k = 8 of 16-bit inputs.
    Bf16K8,
    F16K8,
    Tf32K8,
    Tf32K4,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtomOp {
    And,
    Or,
    Xor,
    Exch,
    Cas,
    Add,
    Inc,
    Dec,
    Min,
    Max,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shuffle {
    Up,
    Down,
    Bfly,
    Idx,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vote {
    All,
    Any,
    Uni,
    Ballot,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Redux {
    Add,
    MinS,
    MinU,
    MaxS,
    MaxU,
    And,
    Or,
    Xor,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Barrier {
    Sync,
    Arrive,
    Popc,
    And,
    Or,
}

/// A load or store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    pub space: Space,
    pub ty: Ty,
    /// Values moved by a lane.
    pub count: u8,
    /// Whether registers are 64 bits wide.
    pub wide: bool,
    /// Bits of a register.
    pub bits: u8,
    /// The non-coherent path.
    pub nc: bool,
    /// `.volatile`, `.relaxed`, `.acquire` or `.release`: ordered by the memory model rather than a plain access.
    pub strong: Strong,
    /// Of acquiring and releasing: 1: block, 2: cluster, 3: device and system.
    pub scope: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strong {
    Weak,
    Relaxed,
    Acquire,
    Release,
    AcqRel,
}

/// Operations on an mbarrier object, PTX ISA 9.7.13.15.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mbar {
    Init,
    Inval,
    /// Arrival; with `expect`, of a thread that also announces bytes. `drop` lowers the count of later phases.
    Arrive {
        expect: bool,
        drop: bool,
        returns: bool,
    },
    ExpectTx,
    CompleteTx,
    /// Waits for a phase, named by its state or its parity.
    Wait {
        parity: bool,
        blocking: bool,
    },
    /// Arrival when the copies that this thread issued before have landed.
    CpAsyncArrive {
        noinc: bool,
    },
}

/// Directions of `cp.async.bulk`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bulk {
    GlobalToShared {
        multicast: bool,
    },
    SharedToGlobal,
    SharedToCluster,
    /// `cp.reduce.async.bulk` with addition.
    ReduceAdd(Ty),
    /// `cp.async.bulk.tensor` of so many dimensions, to shared memory or from it.
    TensorLoad {
        rank: u8,
        multicast: bool,
    },
    TensorStore(u8),
    Prefetch,
}

/// Element types of `wgmma.mma_async`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WgType {
    Bf16,
    F16,
    Tf32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wgmma {
    pub ty: WgType,
    pub n: u16,
    /// A from registers.
    pub a_regs: bool,
    pub neg_a: bool,
    pub neg_b: bool,
    pub trans_a: bool,
    pub trans_b: bool,
}

/// What an instruction does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Op {
    Bra,
    Brx(u16),
    Exit,
    Trap,
    Nop,
    Mov32,
    Mov64,
    MovPred,
    Pack(Packing),
    Unpack(Packing),
    Int(IntOp, W),
    Unary(UnOp, W),
    /// Twice as wide as its operands.
    MulWide {
        signed: bool,
        w: W,
    },
    MadLo(W),
    MadHi {
        signed: bool,
        w: W,
    },
    MadWide {
        signed: bool,
        w: W,
    },
    /// `mad24.lo`.
    Mad24 {
        signed: bool,
    },
    Sad {
        signed: bool,
        w: W,
    },
    AddCarry {
        sub: bool,
        reads: bool,
        writes: bool,
        w: W,
    },
    MadCarry {
        hi: bool,
        signed: bool,
        reads: bool,
        writes: bool,
        w: W,
    },
    Lop3(u8),
    Shf {
        left: bool,
        clamp: bool,
    },
    /// 0: by selector; 1..: f4e, b4e, rc8, ecl, ecr, rc16.
    Prmt(u8),
    Bfe {
        signed: bool,
        w: W,
    },
    Bfi(W),
    Szext {
        signed: bool,
        clamp: bool,
    },
    Bmsk {
        clamp: bool,
    },
    Dp4a {
        signed_a: bool,
        signed_b: bool,
    },
    Dp2a {
        signed_a: bool,
        signed_b: bool,
        hi: bool,
    },
    F32 {
        f: FloatOp,
        round: Round,
        ftz: bool,
        sat: bool,
    },
    F64 {
        f: FloatOp,
        round: Round,
    },
    Fma32 {
        round: Round,
        ftz: bool,
        sat: bool,
    },
    Fma64 {
        round: Round,
    },
    MinMax32 {
        max: bool,
        nan: bool,
        xorsign: bool,
        ftz: bool,
    },
    MinMax64 {
        max: bool,
    },
    Neg32 {
        ftz: bool,
    },
    Abs32 {
        ftz: bool,
    },
    Neg64,
    Abs64,
    Rcp32 {
        round: Round,
        ftz: bool,
    },
    Sqrt32 {
        round: Round,
        ftz: bool,
    },
    Rcp64 {
        round: Round,
    },
    Sqrt64 {
        round: Round,
    },
    Approx {
        f: Approx,
        ftz: bool,
    },
    DivApprox {
        full: bool,
        ftz: bool,
    },
    Approx64 {
        rsqrt: bool,
        ftz: bool,
    },
    Testp {
        kind: u8,
        wide: bool,
    },
    Copysign {
        wide: bool,
    },
    Half {
        f: HalfOp,
        bf16: bool,
        two: bool,
        ftz: bool,
        sat: bool,
        relu: bool,
        nan: bool,
    },
    Setp {
        cmp: Cmp,
        ty: Ty,
        combine: Option<BoolOp>,
        ftz: bool,
    },
    Set {
        cmp: Cmp,
        ty: Ty,
        combine: Option<BoolOp>,
        ftz: bool,
        float: bool,
    },
    Selp32,
    Selp64,
    /// d = c >= 0 ? a : b.
    Slct {
        wide: bool,
        float: bool,
        ftz: bool,
    },
    Pred(BoolOp),
    PredNot,
    Cvt(Cvt),
    /// Two F32 into a pair of `to`.
    CvtPair {
        to: Ty,
        round: Round,
        relu: bool,
    },
    Ld(Access),
    St(Access),
    Atom {
        space: Space,
        f: AtomOp,
        ty: Ty,
        returns: bool,
        order: Strong,
        scope: u8,
        count: u8,
    },
    Cvta {
        to: bool,
        space: Space,
        wide: bool,
    },
    IsSpace(Space),
    Mapa {
        generic: bool,
    },
    CtaRank {
        generic: bool,
    },
    Shfl {
        mode: Shuffle,
        pred: bool,
    },
    VoteSync(Vote),
    MatchAny {
        wide: bool,
    },
    MatchAll {
        wide: bool,
    },
    ReduxSync(Redux),
    ActiveMask,
    Elect,
    Bar {
        kind: Barrier,
        aligned: bool,
        threads: bool,
    },
    BarWarp,
    /// 1: block, 2: cluster, 3: device and system.
    Fence {
        scope: u8,
    },
    FenceProxy,
    /// `fence.mbarrier_init`.
    FenceMbarrier,
    ClusterArrive {
        relaxed: bool,
    },
    ClusterWait,
    CpAsync {
        bytes: u8,
        zfill: bool,
        ignore: bool,
    },
    CpCommit,
    CpWait(u32),
    CpWaitAll,
    Ldmatrix {
        count: u8,
        trans: bool,
    },
    Stmatrix {
        count: u8,
        trans: bool,
    },
    Movmatrix,
    Mma(MatMul),
    /// 0: %clock, 1: %clock_hi, 2: %clock64, 3: %globaltimer.
    Clock(u8),
    Nanosleep,
    SetMaxNReg {
        inc: bool,
        count: u16,
    },
    GridDep {
        wait: bool,
    },
    Prefetch,
    CreatePolicy,
    Mbar(Mbar),
    Bulk(Bulk),
    BulkCommit,
    BulkWait {
        count: u32,
        read: bool,
    },
    WgFence,
    WgCommit,
    WgWait(u32),
    WgMma(Wgmma),
}
