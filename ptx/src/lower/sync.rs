//! Barriers, fences, warp-wide operations, mbarriers and matrix products (PTX ISA 9.7.13 to 9.7.15).

use super::modifiers::Modifiers;
use super::operands::{FALSE, V};
use super::{Lower, Result};
use crate::ops::{Barrier, MatMul, Mbar, Op, Redux, Shuffle, Vote, WgType, Wgmma};
use crate::parse::ast::{Arg, Instruction, Ty};

impl Lower<'_> {
    /// Lowers an instruction of these groups; false if it is none.
    pub(crate) fn sync(&mut self, i: &Instruction, m: &mut Modifiers) -> Result<bool> {
        match i.name.as_str() {
            "bar" | "barrier" => self.barrier(i, m),
            "membar" => {
                let scope = m.one_of(&[("cta", 1), ("gl", 3), ("sys", 3)]);
                let Some(scope) = scope else { return m.fail("a scope is needed") };
                self.args(i, &[0])?;
                self.emit(Op::Fence { scope }, vec![], vec![]);
                Ok(true)
            }
            "fence" => {
                self.args(i, &[0])?;
                if m.take("proxy") {
                    m.must("async")?;
                    m.one_of(&[("global", ()), ("shared::cta", ()), ("shared::cluster", ())]);
                    self.emit(Op::FenceProxy, vec![], vec![]);
                    return Ok(true);
                }
                if i.modifiers.first().is_some_and(|p| p == "mbarrier_init") {
                    m.take("mbarrier_init");
                    m.must("release")?;
                    m.must("cluster")?;
                    self.emit(Op::Fence { scope: 2 }, vec![], vec![]);
                    self.emit(Op::FenceMbarrier, vec![], vec![]);
                    return Ok(true);
                }
                for order in ["sc", "acq_rel", "acquire", "release"] {
                    m.take(order);
                }
                let scope = m.one_of(&[("cta", 1), ("cluster", 2), ("gpu", 3), ("sys", 3)]);
                let Some(scope) = scope else { return m.fail("a scope is needed") };
                self.emit(Op::Fence { scope }, vec![], vec![]);
                Ok(true)
            }
            "shfl" => {
                m.must("sync")?;
                let mode = m.one_of(&[
                    ("up", Shuffle::Up),
                    ("down", Shuffle::Down),
                    ("bfly", Shuffle::Bfly),
                    ("idx", Shuffle::Idx),
                ]);
                let Some(mode) = mode else { return m.fail("a mode is needed") };
                m.ty()?;
                let args = self.args(i, &[5])?;
                let (d, p) = match &args[0] {
                    Arg::Pair(d, p) => (self.dst(d, 32)?, Some(self.pred_dst(p)?)),
                    one => (self.dst(one, 32)?, None),
                };
                let s = args[1..].iter().map(|a| self.src(a, Ty::B32)).collect::<Result<_>>()?;
                let d = std::iter::once(d).chain(p).collect();
                self.emit(Op::Shfl { mode, pred: p.is_some() }, d, s);
                Ok(true)
            }
            "vote" => {
                m.must("sync")?;
                let mode = m.one_of(&[
                    ("all", Vote::All),
                    ("any", Vote::Any),
                    ("uni", Vote::Uni),
                    ("ballot", Vote::Ballot),
                ]);
                let Some(mode) = mode else { return m.fail("a mode is needed") };
                let ty = m.ty()?;
                let args = self.args(i, &[3])?;
                let d = match (mode, ty) {
                    (Vote::Ballot, Ty::B32) => self.dst(&args[0], 32)?,
                    (Vote::All | Vote::Any | Vote::Uni, Ty::Pred) => self.pred_dst(&args[0])?,
                    _ => return m.fail("the mode does not exist for this type"),
                };
                let s = vec![self.pred_src(&args[1])?, self.src(&args[2], Ty::B32)?];
                self.emit(Op::VoteSync(mode), vec![d], s);
                Ok(true)
            }
            "match" => {
                let (any, all) = (m.take("any"), m.take("all"));
                m.must("sync")?;
                let ty = m.ty()?;
                if any == all || !matches!(ty, Ty::B32 | Ty::B64) {
                    return m.fail("one of .any and .all, of 32 or 64 bits, is needed");
                }
                let args = self.args(i, &[3])?;
                let d = match &args[0] {
                    Arg::Pair(d, p) if all => vec![self.dst(d, 32)?, self.pred_dst(p)?],
                    one if all => vec![self.dst(one, 32)?, V::Sink],
                    one => vec![self.dst(one, 32)?],
                };
                let s = vec![self.src(&args[1], ty)?, self.src(&args[2], Ty::B32)?];
                let wide = ty == Ty::B64;
                self.emit(if all { Op::MatchAll { wide } } else { Op::MatchAny { wide } }, d, s);
                Ok(true)
            }
            "redux" => {
                m.must("sync")?;
                let f = m.one_of(&[
                    ("add", (Redux::Add, Redux::Add)),
                    ("min", (Redux::MinU, Redux::MinS)),
                    ("max", (Redux::MaxU, Redux::MaxS)),
                    ("and", (Redux::And, Redux::And)),
                    ("or", (Redux::Or, Redux::Or)),
                    ("xor", (Redux::Xor, Redux::Xor)),
                ]);
                let Some((unsigned, signed)) = f else { return m.fail("an operation is needed") };
                let ty = m.ty()?;
                if !matches!(ty, Ty::U32 | Ty::S32 | Ty::B32) {
                    return m.fail("the instruction does not exist for this type");
                }
                let args = self.args(i, &[3])?;
                let d = self.dst(&args[0], 32)?;
                let s = vec![self.src(&args[1], ty)?, self.src(&args[2], Ty::B32)?];
                self.emit(Op::ReduxSync(if ty == Ty::S32 { signed } else { unsigned }), vec![d], s);
                Ok(true)
            }
            "activemask" => {
                m.ty()?;
                let d = self.dst(&self.args(i, &[1])?[0], 32)?;
                self.emit(Op::ActiveMask, vec![d], vec![]);
                Ok(true)
            }
            "elect" => {
                m.must("sync")?;
                let args = self.args(i, &[2])?;
                let Arg::Pair(d, p) = &args[0] else { return m.fail("two results are needed") };
                let d = vec![self.dst(d, 32)?, self.pred_dst(p)?];
                let s = vec![self.src(&args[1], Ty::B32)?];
                self.emit(Op::Elect, d, s);
                Ok(true)
            }
            "mma" => self.mma(i, m),
            "mbarrier" => self.mbarrier(i, m),
            "wgmma" => self.wgmma(i, m),
            "griddepcontrol" => {
                let op = match (m.take("wait"), m.take("launch_dependents")) {
                    (true, false) => Op::GridDep { wait: true },
                    (false, true) => Op::GridDep { wait: false },
                    _ => return m.fail("one of .wait and .launch_dependents is needed"),
                };
                self.args(i, &[0])?;
                self.emit(op, vec![], vec![]);
                Ok(true)
            }
            "setmaxnreg" => {
                let (inc, dec) = (m.take("inc"), m.take("dec"));
                m.must("sync")?;
                m.must("aligned")?;
                m.ty()?;
                match self.args(i, &[1])?[0] {
                    Arg::Int(n) if inc != dec && (24..=256).contains(&n) && n % 8 == 0 => {
                        self.emit(Op::SetMaxNReg { inc, count: n as u16 }, vec![], vec![]);
                        Ok(true)
                    }
                    _ => m.fail("a multiple of 8 from 24 to 256 is needed"),
                }
            }
            "nanosleep" => {
                m.ty()?;
                let s = vec![self.src(&self.args(i, &[1])?[0], Ty::U32)?];
                self.emit(Op::Nanosleep, vec![], s);
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    fn barrier(&mut self, i: &Instruction, m: &mut Modifiers) -> Result<bool> {
        if m.take("cluster") {
            let aligned = m.take("aligned");
            let _ = aligned;
            self.args(i, &[0])?;
            let op = match (m.take("arrive"), m.take("wait")) {
                (true, false) => {
                    let relaxed = m.take("relaxed");
                    m.take("release");
                    Op::ClusterArrive { relaxed }
                }
                (false, true) => {
                    m.take("acquire");
                    Op::ClusterWait
                }
                _ => return m.fail("one of .arrive and .wait is needed"),
            };
            self.emit(op, vec![], vec![]);
            return Ok(true);
        }
        if i.name == "bar" && m.take("warp") {
            m.must("sync")?;
            let s = vec![self.src(&self.args(i, &[1])?[0], Ty::B32)?];
            self.emit(Op::BarWarp, vec![], s);
            return Ok(true);
        }
        m.take("cta");
        // `bar` is `barrier` with .aligned, PTX ISA 9.7.13.1.
        let aligned = m.take("aligned") || i.name == "bar";
        let kind = m.one_of(&[("sync", Barrier::Sync), ("arrive", Barrier::Arrive), ("red", Barrier::Popc)]);
        let Some(mut kind) = kind else { return m.fail("one of .sync, .arrive and .red is needed") };
        if kind == Barrier::Popc {
            let f = m.one_of(&[("popc", Barrier::Popc), ("and", Barrier::And), ("or", Barrier::Or)]);
            kind = match f {
                Some(f) => f,
                None => return m.fail("an operation is needed"),
            };
            let ty = m.ty()?;
            let (d, rest) = match (kind, ty) {
                (Barrier::Popc, Ty::U32) => (self.args(i, &[3, 4])?.first().map(|a| self.dst(a, 32)), 1),
                (_, Ty::Pred) => (self.args(i, &[3, 4])?.first().map(|a| self.pred_dst(a)), 1),
                _ => return m.fail("the operation does not exist for this type"),
            };
            let Some(d) = d.transpose()? else { return m.fail("a destination is needed") };
            let inner = &i.args[rest..];
            let mut s = vec![self.src(&inner[0], Ty::U32)?];
            let threads = inner.len() == 3;
            s.push(if threads { self.src(&inner[1], Ty::U32)? } else { V::C32(0) });
            s.push(self.pred_src(&inner[inner.len() - 1])?);
            self.emit(Op::Bar { kind, aligned, threads }, vec![d], s);
            return Ok(true);
        }
        let args = self.args(i, if kind == Barrier::Arrive { &[2] } else { &[1, 2] })?;
        let mut s = vec![self.src(&args[0], Ty::U32)?];
        let threads = args.len() == 2;
        s.push(if threads { self.src(&args[1], Ty::U32)? } else { V::C32(0) });
        s.push(FALSE);
        self.emit(Op::Bar { kind, aligned, threads }, vec![], s);
        Ok(true)
    }

    fn registers_of(&mut self, arg: &Arg, count: usize, ty: Ty, to: bool) -> Result<Vec<V>> {
        let parts = match arg {
            Arg::Vector(parts) => parts.clone(),
            one => vec![one.clone()],
        };
        if parts.len() != count {
            return self.fail(format!("{} registers, expected {count}", parts.len()));
        }
        parts.iter().map(|p| if to { self.dst(p, ty.bits()) } else { self.src(p, ty) }).collect()
    }

    fn mma(&mut self, i: &Instruction, m: &mut Modifiers) -> Result<bool> {
        for name in ["sync", "aligned", "row", "col"] {
            m.must(name)?;
        }
        let shape = m.one_of(&[("m16n8k16", 16), ("m16n8k8", 8), ("m16n8k4", 4)]);
        let types = m.types();
        use Ty::*;
        let (kind, a, b, c) = match (shape, types.as_slice()) {
            (Some(16), [F32, Bf16, Bf16, F32]) => (MatMul::Bf16, 4, 2, 4),
            (Some(16), [F32, F16, F16, F32]) => (MatMul::F16, 4, 2, 4),
            (Some(16), [F16, F16, F16, F16]) => (MatMul::F16Half, 4, 2, 2),
            (Some(8), [F32, Bf16, Bf16, F32]) => (MatMul::Bf16K8, 2, 1, 4),
            (Some(8), [F32, F16, F16, F32]) => (MatMul::F16K8, 2, 1, 4),
            (Some(8), [F32, Tf32, Tf32, F32]) => (MatMul::Tf32K8, 4, 2, 4),
            (Some(4), [F32, Tf32, Tf32, F32]) => (MatMul::Tf32K4, 2, 1, 4),
            _ => return m.fail("this shape is not supported for these types"),
        };
        let sum = if kind == MatMul::F16Half { B32 } else { F32 };
        let args = self.args(i, &[4])?;
        let d = self.registers_of(&args[0], c, sum, true)?;
        let mut s = self.registers_of(&args[1], a, B32, false)?;
        s.extend(self.registers_of(&args[2], b, B32, false)?);
        s.extend(self.registers_of(&args[3], c, sum, false)?);
        self.emit(Op::Mma(kind), d, s);
        Ok(true)
    }

    fn mbarrier(&mut self, i: &Instruction, m: &mut Modifiers) -> Result<bool> {
        for name in
            ["shared", "shared::cta", "shared::cluster", "release", "acquire", "relaxed", "cta", "cluster"]
        {
            m.take(name);
        }
        m.take("b64");
        let name = m.first().unwrap_or_default();
        m.take(name);
        let args = &i.args;
        let address = |this: &mut Self, n: usize| match args.get(n) {
            Some(a) => this.address(a),
            None => this.fail("an address is missing"),
        };
        match name {
            "init" | "inval" => {
                self.args(i, &[if name == "init" { 2 } else { 1 }])?;
                let (base, offset, _) = address(self, 0)?;
                let mut s = vec![base];
                let init = name == "init";
                if init {
                    s.push(self.src(&args[1], Ty::U32)?);
                }
                self.emit(Op::Mbar(if init { Mbar::Init } else { Mbar::Inval }), vec![], s).imm = offset;
            }
            "arrive" | "arrive_drop" => {
                if m.take("noComplete") {
                    return m.fail("modifier .noComplete is not supported");
                }
                let expect = m.take("expect_tx");
                let returns = matches!(args.first(), Some(Arg::Name(_) | Arg::Sink));
                let at = usize::from(returns);
                let (base, offset, _) = address(self, at)?;
                let mut s = vec![base];
                s.push(match args.get(at + 1) {
                    Some(count) => self.src(count, Ty::U32)?,
                    None if expect => return m.fail("a number of bytes is missing"),
                    None => V::C32(1),
                });
                let d = if returns { vec![self.dst(&args[0], 64)?] } else { vec![] };
                let op = Mbar::Arrive { expect, drop: name == "arrive_drop", returns };
                self.emit(Op::Mbar(op), d, s).imm = offset;
            }
            "expect_tx" | "complete_tx" => {
                self.args(i, &[2])?;
                let (base, offset, _) = address(self, 0)?;
                let s = vec![base, self.src(&args[1], Ty::U32)?];
                let op = if name == "expect_tx" { Mbar::ExpectTx } else { Mbar::CompleteTx };
                self.emit(Op::Mbar(op), vec![], s).imm = offset;
            }
            "test_wait" | "try_wait" => {
                let parity = m.take("parity");
                self.args(i, &[3, 4])?;
                let (base, offset, _) = address(self, 1)?;
                let phase = self.src(&args[2], if parity { Ty::U32 } else { Ty::B64 })?;
                let d = vec![self.pred_dst(&args[0])?];
                let op = Mbar::Wait { parity, blocking: name == "try_wait" };
                self.emit(Op::Mbar(op), d, vec![base, phase]).imm = offset;
            }
            _ => return m.fail("this operation on mbarriers is not supported"),
        }
        Ok(true)
    }

    /// `cp.async.mbarrier.arrive`.
    pub(super) fn copy_arrive(&mut self, i: &Instruction, m: &mut Modifiers) -> Result<bool> {
        m.must("arrive")?;
        let noinc = m.take("noinc");
        m.take("shared");
        m.take("shared::cta");
        m.must("b64")?;
        let (base, offset, _) = self.address(&self.args(i, &[1])?[0])?;
        self.emit(Op::Mbar(Mbar::CpAsyncArrive { noinc }), vec![], vec![base]).imm = offset;
        Ok(true)
    }

    fn wgmma(&mut self, i: &Instruction, m: &mut Modifiers) -> Result<bool> {
        if m.take("fence") {
            m.must("sync")?;
            m.must("aligned")?;
            self.args(i, &[0])?;
            self.emit(Op::WgFence, vec![], vec![]);
            return Ok(true);
        }
        if m.take("commit_group") {
            m.must("sync")?;
            m.must("aligned")?;
            self.args(i, &[0])?;
            self.emit(Op::WgCommit, vec![], vec![]);
            return Ok(true);
        }
        if m.take("wait_group") {
            m.must("sync")?;
            m.must("aligned")?;
            let Arg::Int(n @ 0..=255) = self.args(i, &[1])?[0] else {
                return m.fail("a number of groups is needed");
            };
            self.emit(Op::WgWait(n as u32), vec![], vec![]);
            return Ok(true);
        }
        for name in ["mma_async", "sync", "aligned"] {
            m.must(name)?;
        }
        let shape = m.first().unwrap_or_default();
        m.take(shape);
        let parts = shape.strip_prefix("m64n").and_then(|s| s.split_once('k'));
        let Some((n, k)) = parts.and_then(|(n, k)| Some((n.parse::<u16>().ok()?, k.parse::<u16>().ok()?)))
        else {
            return m.fail("the shape is not supported");
        };
        let types = m.types();
        let (ty, want) = match types.as_slice() {
            [Ty::F32, Ty::Bf16, Ty::Bf16] => (WgType::Bf16, 16),
            [Ty::F32, Ty::F16, Ty::F16] => (WgType::F16, 16),
            [Ty::F32, Ty::Tf32, Ty::Tf32] => (WgType::Tf32, 8),
            _ => return m.fail("these types are not supported"),
        };
        if k != want || n == 0 || n % 8 != 0 || n > 256 {
            return m.fail("the shape is not supported for these types");
        }
        let args = &i.args;
        let a_regs = matches!(args.get(1), Some(Arg::Vector(_)));
        let trans = if ty == WgType::Tf32 { 0 } else { 2 - usize::from(a_regs) };
        if args.len() != 6 + trans {
            return m.fail("a different number of operands is expected");
        }
        let d = self.registers_of(&args[0], usize::from(n) / 2, Ty::F32, true)?;
        let immediate = |n: usize| match args[n] {
            Arg::Int(v) => Ok(v),
            _ => m.fail("scales and transpositions are constants"),
        };
        let (scale_a, scale_b) = (immediate(4)? as i64, immediate(5)? as i64);
        if scale_a.abs() != 1 || scale_b.abs() != 1 {
            return m.fail("scales are 1 or -1");
        }
        let trans_a = trans == 2 && immediate(6)? != 0;
        let trans_b = trans > 0 && immediate(5 + trans)? != 0;
        let mut s = vec![self.pred_src(&args[3])?];
        if a_regs {
            s.extend(self.registers_of(&args[1], 4, Ty::B32, false)?);
        } else {
            s.push(self.src(&args[1], Ty::B64)?);
        }
        s.push(self.src(&args[2], Ty::B64)?);
        s.extend(d.iter().copied());
        let (neg_a, neg_b) = (scale_a < 0, scale_b < 0);
        self.emit(Op::WgMma(Wgmma { ty, n, a_regs, neg_a, neg_b, trans_a, trans_b }), d, s);
        Ok(true)
    }
}
