//! Loads, stores, atomics, addresses, asynchronous copies and matrix loads (PTX ISA 9.7.9, 9.7.13.13, 9.7.14.5.15).

use super::modifiers::Modifiers;
use super::operands::V;
use super::{Class, Lower, Result};
use crate::ops::{Access, AtomOp, Bulk, Op, Strong};
use crate::parse::ast::{Arg, Instruction, Space, Ty};

const SPACES: &[(&str, Space)] = &[
    ("global", Space::Global),
    ("shared", Space::Shared),
    ("shared::cta", Space::Shared),
    ("shared::cluster", Space::Shared),
    ("local", Space::Local),
    ("const", Space::Const),
    ("param", Space::Param),
    ("param::entry", Space::Param),
    ("param::func", Space::Param),
];

/// 1: block, 2: cluster, 3: device and system.
fn scope(m: &mut Modifiers) -> u8 {
    m.one_of(&[("cta", 1), ("cluster", 2), ("gpu", 3), ("sys", 3)]).unwrap_or(3)
}

impl Lower<'_> {
    /// Takes hints about caches, which change no result. True if an operand with a policy follows.
    pub(super) fn cache_hints(m: &mut Modifiers) -> bool {
        for name in [
            "ca",
            "cg",
            "cs",
            "lu",
            "cv",
            "wb",
            "wt",
            "L1::evict_normal",
            "L1::evict_unchanged",
            "L1::evict_first",
            "L1::evict_last",
            "L1::no_allocate",
            "L2::64B",
            "L2::128B",
            "L2::256B",
            "L2::evict_first",
            "L2::evict_last",
            "L2::evict_normal",
        ] {
            m.take(name);
        }
        m.take("L2::cache_hint")
    }

    pub(super) fn note_width(&mut self, space: Space, bytes: u32) {
        let grain = bytes.trailing_zeros().min(2);
        if matches!(space, Space::Shared | Space::Generic) {
            self.grains[0] = self.grains[0].min(grain);
        }
        if matches!(space, Space::Global | Space::Generic) {
            self.grains[1] = self.grains[1].min(grain);
        }
    }

    /// Lowers an instruction of these groups; false if it is none.
    pub(crate) fn memory(&mut self, i: &Instruction, m: &mut Modifiers) -> Result<bool> {
        match i.name.as_str() {
            "ld" | "ldu" => self.load_store(i, m, true),
            "st" => self.load_store(i, m, false),
            "atom" => self.atom(i, m, true),
            "red" => self.atom(i, m, false),
            "cvta" => {
                let to = m.take("to");
                let Some(space) = m.one_of(SPACES) else { return m.fail("a state space is needed") };
                let ty = m.ty()?;
                if !matches!(ty, Ty::U32 | Ty::U64) {
                    return m.fail("the instruction does not exist for this type");
                }
                let args = self.args(i, &[2])?;
                let (d, a) = (self.dst(&args[0], ty.bits())?, self.src(&args[1], ty)?);
                self.emit(Op::Cvta { to, space, wide: ty == Ty::U64 }, vec![d], vec![a]);
                Ok(true)
            }
            "isspacep" => {
                let Some(space) = m.one_of(SPACES) else { return m.fail("a state space is needed") };
                let args = self.args(i, &[2])?;
                let (d, a) = (self.pred_dst(&args[0])?, self.src(&args[1], Ty::U64)?);
                self.emit(Op::IsSpace(space), vec![d], vec![a]);
                Ok(true)
            }
            "mapa" => {
                let generic = !m.take("shared::cluster");
                let ty = m.ty()?;
                let args = self.args(i, &[3])?;
                let (d, a) = (self.dst(&args[0], ty.bits())?, self.src(&args[1], ty)?);
                let rank = self.src(&args[2], Ty::U32)?;
                if generic != (ty == Ty::U64) {
                    return m.fail("only .shared::cluster.u32 and .u64 of generic addresses are supported");
                }
                self.emit(Op::Mapa { generic }, vec![d], vec![a, rank]);
                Ok(true)
            }
            "getctarank" => {
                let generic = !m.take("shared::cluster");
                let ty = m.ty()?;
                let args = self.args(i, &[2])?;
                let (d, a) = (self.dst(&args[0], 32)?, self.src(&args[1], ty)?);
                if generic != (ty == Ty::U64) {
                    return m.fail("only .shared::cluster.u32 and .u64 of generic addresses are supported");
                }
                self.emit(Op::CtaRank { generic }, vec![d], vec![a]);
                Ok(true)
            }
            "prefetch" | "prefetchu" | "applypriority" | "discard" => {
                Self::cache_hints(m);
                m.one_of(SPACES);
                m.take("L1");
                m.take("L2");
                m.take("tensormap");
                // `applypriority` and `discard` also give a size.
                let args = self.args(i, if i.name.starts_with("prefetch") { &[1] } else { &[2] })?;
                self.address(&args[0])?;
                self.emit(Op::Prefetch, vec![], vec![]);
                Ok(true)
            }
            "createpolicy" => {
                m.must("fractional")?;
                Self::cache_hints(m);
                m.take("L2::evict_unchanged");
                m.ty()?;
                let args = self.args(i, &[1, 2])?;
                let d = self.dst(&args[0], 64)?;
                if let Some(fraction) = args.get(1) {
                    self.src(fraction, Ty::F32)?;
                }
                self.emit(Op::CreatePolicy, vec![d], vec![]);
                Ok(true)
            }
            "ldmatrix" | "stmatrix" => {
                m.must("sync")?;
                m.must("aligned")?;
                m.must("m8n8")?;
                let count = m.one_of(&[("x1", 1u8), ("x2", 2), ("x4", 4)]);
                let Some(count) = count else { return m.fail("one of .x1, .x2 and .x4 is needed") };
                let trans = m.take("trans");
                if m.one_of(SPACES) != Some(Space::Shared) {
                    return m.fail("only shared memory is supported");
                }
                if m.ty()? != Ty::B16 {
                    return m.fail("only elements of 16 bits are supported");
                }
                let args = self.args(i, &[2])?;
                let load = i.name == "ldmatrix";
                let (regs, address) = if load { (&args[0], &args[1]) } else { (&args[1], &args[0]) };
                let (base, offset, _) = self.address(address)?;
                let parts = match regs {
                    Arg::Vector(parts) => parts.clone(),
                    one => vec![one.clone()],
                };
                if parts.len() != usize::from(count) {
                    return m.fail("the number of registers does not suit");
                }
                let mut regs = Vec::new();
                for p in &parts {
                    regs.push(if load { self.dst(p, 32)? } else { self.src(p, Ty::B32)? });
                }
                self.note_width(Space::Shared, 4);
                if load {
                    self.emit(Op::Ldmatrix { count, trans }, regs, vec![base]).imm = offset;
                } else {
                    let mut s = vec![base];
                    s.extend(regs);
                    self.emit(Op::Stmatrix { count, trans }, vec![], s).imm = offset;
                }
                Ok(true)
            }
            "movmatrix" => {
                for name in ["sync", "aligned", "m8n8", "trans"] {
                    m.must(name)?;
                }
                m.ty()?;
                let args = self.args(i, &[2])?;
                let (d, a) = (self.dst(&args[0], 32)?, self.src(&args[1], Ty::B32)?);
                self.emit(Op::Movmatrix, vec![d], vec![a]);
                Ok(true)
            }
            "cp" => self.copy(i, m),
            _ => Ok(false),
        }
    }

    fn load_store(&mut self, i: &Instruction, m: &mut Modifiers, load: bool) -> Result<bool> {
        let mut strong = m
            .one_of(&[
                ("relaxed", Strong::Relaxed),
                ("acquire", Strong::Acquire),
                ("release", Strong::Release),
                ("volatile", Strong::Relaxed),
                ("weak", Strong::Weak),
            ])
            .unwrap_or(Strong::Weak);
        if m.take("mmio") {
            strong = Strong::Relaxed;
        }
        let scope = scope(m);
        let mut space = m.one_of(SPACES).unwrap_or(Space::Generic);
        let nc = m.take("nc") || i.name == "ldu";
        let policy = Self::cache_hints(m);
        let count = m.one_of(&[("v2", 2u8), ("v4", 4), ("v8", 8)]).unwrap_or(1);
        let ty = m.ty()?;
        if matches!(ty, Ty::Pred | Ty::B128) || u32::from(count) * ty.bytes() > 32 {
            return m.fail("loads and stores of this type are not supported");
        }
        let args = self.args(i, &[if policy { 3 } else { 2 }])?;
        let (regs, address) = if load { (&args[0], &args[1]) } else { (&args[1], &args[0]) };
        let (base, offset, named) = self.address(address)?;
        if let Some(named) = named {
            // Parameters of functions lie in local memory.
            match (space, named) {
                (Space::Param, Space::Local) => space = Space::Local,
                (Space::Const, Space::Global) => {}
                (s, n) if s == n => {}
                (Space::Generic, _) => return m.fail("a variable needs its state space"),
                _ => return m.fail("the variable lies in another state space"),
            }
        }
        if !load && matches!(space, Space::Const | Space::Param) {
            return m.fail("this state space cannot be written");
        }
        let parts = match regs {
            Arg::Vector(parts) => parts.clone(),
            one => vec![one.clone()],
        };
        if parts.len() != usize::from(count) {
            return m.fail("the number of registers does not suit");
        }
        let mut values = Vec::new();
        let mut bits = None;
        for p in &parts {
            let v = match p {
                Arg::Sink if load => V::Sink,
                Arg::Name(name) if self.lookup(name).is_some_and(is_reg) => {
                    let (v, width) = self.any_reg(p)?;
                    if u32::from(width) < ty.bits() || bits.is_some_and(|b| b != width) {
                        return m.fail("the registers do not suit the type");
                    }
                    bits = Some(width);
                    v
                }
                other if !load => self.src(other, ty)?,
                other => return self.fail(format!("{other:?} is no register")),
            };
            values.push(v);
        }
        let bits = bits.unwrap_or(ty.bits().max(16) as u8);
        // Constants among registers take the width of these.
        for v in &mut values {
            *v = match *v {
                V::C32(c) if bits == 64 => V::C64(u64::from(c)),
                V::C64(c) if bits < 64 => V::C32(c as u32),
                other => other,
            };
        }
        self.note_width(space, ty.bytes());
        let access = Access { space, ty, count, wide: bits == 64, bits, nc, strong, scope };
        if load {
            self.emit(Op::Ld(access), values, vec![base]).imm = offset;
        } else {
            let mut s = vec![base];
            s.extend(values);
            self.emit(Op::St(access), vec![], s).imm = offset;
        }
        Ok(true)
    }

    fn atom(&mut self, i: &Instruction, m: &mut Modifiers, returns: bool) -> Result<bool> {
        let async_ = m.take("async");
        if async_ {
            return m.fail("red.async is not supported");
        }
        let order = m
            .one_of(&[
                ("relaxed", Strong::Relaxed),
                ("acquire", Strong::Acquire),
                ("release", Strong::Release),
                ("acq_rel", Strong::AcqRel),
            ])
            .unwrap_or(Strong::Relaxed);
        let scope = scope(m);
        let space = m.one_of(SPACES).unwrap_or(Space::Generic);
        m.take("noftz");
        let policy = Self::cache_hints(m);
        let count = m.one_of(&[("v2", 2u8), ("v4", 4)]).unwrap_or(1);
        let f = m.one_of(&[
            ("and", AtomOp::And),
            ("or", AtomOp::Or),
            ("xor", AtomOp::Xor),
            ("exch", AtomOp::Exch),
            ("cas", AtomOp::Cas),
            ("add", AtomOp::Add),
            ("inc", AtomOp::Inc),
            ("dec", AtomOp::Dec),
            ("min", AtomOp::Min),
            ("max", AtomOp::Max),
        ]);
        let Some(f) = f else { return m.fail("an operation is needed") };
        let ty = m.ty()?;
        use Ty::*;
        let suits = match f {
            AtomOp::And | AtomOp::Or | AtomOp::Xor | AtomOp::Exch => matches!(ty, B32 | B64),
            AtomOp::Cas => matches!(ty, B16 | B32 | B64),
            AtomOp::Inc | AtomOp::Dec => ty == U32,
            AtomOp::Min | AtomOp::Max => matches!(ty, U32 | U64 | S32 | S64),
            AtomOp::Add => matches!(ty, U32 | U64 | S32 | S64 | F32 | F64 | F16x2 | Bf16x2 | F16 | Bf16),
        };
        if !suits || count > 1 && ty != F32 {
            return m.fail("the operation does not exist for this type");
        }
        let sources = if f == AtomOp::Cas { 2 } else { 1 };
        let want = usize::from(returns) + 1 + sources + usize::from(policy);
        let args = self.args(i, &[want])?;
        let rest = usize::from(returns);
        let (base, offset, named) = self.address(&args[rest])?;
        if named.is_some_and(|n| n != space) {
            return m.fail("a variable needs its state space");
        }
        let list = |a: &Arg| match a {
            Arg::Vector(parts) => parts.clone(),
            one => vec![one.clone()],
        };
        let mut d = Vec::new();
        if returns {
            for p in list(&args[0]) {
                d.push(self.dst(&p, ty.bits())?);
            }
        }
        let mut s = vec![base];
        for a in &args[rest + 1..rest + 1 + sources] {
            for p in list(a) {
                s.push(self.src(&p, ty)?);
            }
        }
        if s.len() != 1 + sources * usize::from(count) || returns && d.len() != usize::from(count) {
            return m.fail("the number of registers does not suit");
        }
        self.note_width(space, ty.bytes());
        self.emit(Op::Atom { space, f, ty, returns, order, scope, count }, d, s).imm = offset;
        Ok(true)
    }

    /// `cp.async` and `cp.async.bulk`.
    fn copy(&mut self, i: &Instruction, m: &mut Modifiers) -> Result<bool> {
        if m.take("reduce") {
            m.must("async")?;
            m.must("bulk")?;
            return self.bulk_reduce(i, m);
        }
        m.must("async")?;
        if m.take("mbarrier") {
            return self.copy_arrive(i, m);
        }
        if m.take("bulk") {
            return self.bulk(i, m);
        }
        if m.take("commit_group") {
            self.args(i, &[0])?;
            self.emit(Op::CpCommit, vec![], vec![]);
            return Ok(true);
        }
        if m.take("wait_all") {
            self.args(i, &[0])?;
            self.emit(Op::CpWaitAll, vec![], vec![]);
            return Ok(true);
        }
        if m.take("wait_group") {
            let Arg::Int(n) = self.args(i, &[1])?[0] else { return m.fail("a number of groups is needed") };
            self.emit(Op::CpWait(n.min(1 << 20) as u32), vec![], vec![]);
            return Ok(true);
        }
        let (ca, cg) = (m.take("ca"), m.take("cg"));
        m.must("global")?;
        if m.one_of(SPACES) != Some(Space::Shared) || ca == cg {
            return m.fail("one of .ca.shared.global and .cg.shared.global is needed");
        }
        let policy = Self::cache_hints(m);
        let args = &i.args;
        let count = args.len().saturating_sub(usize::from(policy));
        let Some(Arg::Int(bytes @ (4 | 8 | 16))) = args.get(2).cloned() else {
            return m.fail("a size of 4, 8 or 16 is needed");
        };
        if cg && bytes != 16 || !(3..=4).contains(&count) {
            return m.fail("the operands do not suit");
        }
        let (to, to_offset, _) = self.address(&args[0])?;
        let (from, from_offset, _) = self.address(&args[1])?;
        let mut s = vec![to, from, V::C64(from_offset as u64)];
        let (mut zfill, mut ignore) = (false, false);
        if count == 4 {
            let is_pred = matches!(&args[3], Arg::Not(_))
                || matches!(&args[3], Arg::Name(n) if matches!(self.lookup(n),
                    Some(super::Symbol::Reg { class: Class::Pred, .. })));
            if is_pred {
                ignore = true;
                s.push(self.pred_src(&args[3])?);
            } else {
                zfill = true;
                s.push(self.src(&args[3], Ty::U32)?);
            }
        }
        self.note_width(Space::Shared, 4);
        self.note_width(Space::Global, 4);
        self.emit(Op::CpAsync { bytes: bytes as u8, zfill, ignore }, vec![], s).imm = to_offset;
        Ok(true)
    }

    /// `cp.async.bulk` without tensors, PTX ISA 9.7.9.25.4.
    fn bulk(&mut self, i: &Instruction, m: &mut Modifiers) -> Result<bool> {
        if m.take("commit_group") {
            self.args(i, &[0])?;
            self.emit(Op::BulkCommit, vec![], vec![]);
            return Ok(true);
        }
        if m.take("wait_group") {
            let read = m.take("read");
            let Arg::Int(n) = self.args(i, &[1])?[0] else { return m.fail("a number of groups is needed") };
            self.emit(Op::BulkWait { count: n.min(1 << 20) as u32, read }, vec![], vec![]);
            return Ok(true);
        }
        let prefetch = m.take("prefetch");
        if m.take("tensor") {
            return self.tensor(i, m, prefetch);
        }
        if prefetch {
            m.take("L2");
            m.take("global");
            let policy = Self::cache_hints(m);
            let args = self.args(i, &[2 + usize::from(policy)])?;
            self.address(&args[0])?;
            self.src(&args[1], Ty::U32)?;
            self.emit(Op::Bulk(Bulk::Prefetch), vec![], vec![]);
            return Ok(true);
        }
        let multicast = m.take("multicast::cluster");
        let policy = Self::cache_hints(m);
        let mbarrier = m.take("mbarrier::complete_tx::bytes");
        let group = m.take("bulk_group");
        let global = m.take("global");
        let (cluster, cta) = (m.take("shared::cluster"), m.take("shared::cta"));
        let first = i.modifiers.iter().position(|x| x == "global");
        let shared = i.modifiers.iter().position(|x| x.starts_with("shared::"));
        let kind = match (mbarrier, group, global) {
            (true, false, true) if cluster != cta && shared < first => Bulk::GlobalToShared { multicast },
            (false, true, true) if cta && !cluster && first < shared => Bulk::SharedToGlobal,
            (true, false, false) if cluster && cta => Bulk::SharedToCluster,
            _ => return m.fail("this direction is not supported"),
        };
        let mut want = 3 + usize::from(mbarrier) + usize::from(policy);
        want += usize::from(multicast);
        let args = self.args(i, &[want])?;
        let (to, to_offset, _) = self.address(&args[0])?;
        let (from, from_offset, _) = self.address(&args[1])?;
        let mut s = vec![to, from, V::C64(from_offset as u64), self.src(&args[2], Ty::U32)?];
        if mbarrier {
            let (bar, bar_offset, _) = self.address(&args[3])?;
            s.extend([bar, V::C64(bar_offset as u64)]);
        }
        if multicast {
            s.push(self.src(&args[4], Ty::U16)?);
        }
        self.emit(Op::Bulk(kind), vec![], s).imm = to_offset;
        Ok(true)
    }

    fn bulk_reduce(&mut self, i: &Instruction, m: &mut Modifiers) -> Result<bool> {
        for name in ["global", "shared::cta", "bulk_group", "add"] {
            m.must(name)?;
        }
        m.take("noftz");
        let policy = Self::cache_hints(m);
        let ty = m.ty()?;
        if !matches!(ty, Ty::F32 | Ty::F64 | Ty::U32 | Ty::S32 | Ty::U64) {
            return m.fail("the instruction is not supported for this type");
        }
        let args = self.args(i, &[3 + usize::from(policy)])?;
        let (to, to_offset, _) = self.address(&args[0])?;
        let (from, from_offset, _) = self.address(&args[1])?;
        let s = vec![to, from, V::C64(from_offset as u64), self.src(&args[2], Ty::U32)?];
        self.emit(Op::Bulk(Bulk::ReduceAdd(ty)), vec![], s).imm = to_offset;
        Ok(true)
    }
}

fn is_reg(s: super::Symbol) -> bool {
    matches!(s, super::Symbol::Reg { .. })
}
