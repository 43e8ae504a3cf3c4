//! The last step: labels become indices, virtual registers share slots where their lives do not overlap, constants
//! are pooled.
//!
//! PTX names a new register for almost every result; a large kernel has thousands, of which some hundred are alive at
//! a time. Sharing slots keeps the registers of a warp in the cache. Registers that some path reads before any write
//! keep a slot of their own: the machine tracks which lanes wrote them.

use std::collections::{BinaryHeap, HashMap, HashSet};

use super::operands::V;
use super::{Class, Lower, Result, register_name};
use crate::error::ParseError;
use crate::machine::SHARED_BASE;
use crate::ops::Op;
use crate::program::{Instr, Kernel, NO_GUARD, SINK};

/// A register of any class as one number.
fn key(v: &V) -> Option<(Class, u32)> {
    match v {
        V::Reg { class, id, .. } => Some((*class, *id)),
        V::Pred { id, .. } if *id != 0 => Some((Class::Pred, *id)),
        _ => None,
    }
}

struct Bits(Vec<u64>);

impl Bits {
    fn set(&mut self, i: usize) {
        self.0[i / 64] |= 1 << (i % 64);
    }
    fn clear(&mut self, i: usize) {
        self.0[i / 64] &= !(1 << (i % 64));
    }
    fn each(&self, mut f: impl FnMut(usize)) {
        for (w, word) in self.0.iter().enumerate() {
            let mut word = *word;
            while word != 0 {
                f(w * 64 + word.trailing_zeros() as usize);
                word &= word - 1;
            }
        }
    }
}

struct Block {
    first: usize,
    end: usize,
    next: Vec<usize>,
    live_in: Bits,
    live_out: Bits,
}

pub(super) fn finish(lower: Lower, kernel: &mut Kernel) -> Result<()> {
    let code = &lower.code;
    let resolve = |label: usize, line: u32| match lower.labels[label] {
        Some(at) => Ok(at),
        None => Err(ParseError::new(line, "branch to a label that stands nowhere")),
    };
    let mut targets: Vec<Vec<usize>> = Vec::with_capacity(code.len());
    for b in code {
        targets.push(match (b.op, b.label) {
            (Op::Bra, Some(label)) => vec![resolve(label, b.line)?],
            (Op::Brx(table), _) => {
                lower.tables[table as usize].iter().map(|l| resolve(*l, b.line)).collect::<Result<_>>()?
            }
            _ => vec![],
        });
    }
    for table in &lower.tables {
        let table = table.iter().map(|l| resolve(*l, 0).map(|at| at as u32)).collect::<Result<_>>()?;
        kernel.tables.push(table);
    }

    // Registers in use get dense numbers.
    let mut dense: HashMap<(Class, u32), usize> = HashMap::new();
    let mut regs: Vec<(Class, u32)> = Vec::new();
    for b in code {
        for v in b.dst.iter().chain(&b.src).chain(&b.guard) {
            if let Some(k) = key(v) {
                dense.entry(k).or_insert_with(|| {
                    regs.push(k);
                    regs.len() - 1
                });
            }
        }
    }
    let mut special = HashMap::new();
    for (s, id) in &lower.specials {
        for class in [Class::R32, Class::R64] {
            if *s == crate::program::Special::GridId && class == Class::R32 {
                continue;
            }
            if *s != crate::program::Special::GridId && class == Class::R64 {
                continue;
            }
            if let Some(n) = dense.get(&(class, *id)) {
                special.insert(*n, *s);
            }
        }
    }
    let blocks = liveness(code, &targets, &dense, regs.len());

    // Lives as ranges of positions: 2 i where instruction i reads, 2 i + 1 where it writes.
    let mut lives: Vec<(usize, usize)> = vec![(usize::MAX, 0); regs.len()];
    let mut touch = |n: usize, at: usize| {
        lives[n].0 = lives[n].0.min(at);
        lives[n].1 = lives[n].1.max(at);
    };
    for block in &blocks {
        block.live_in.each(|n| touch(n, 2 * block.first));
        block.live_out.each(|n| touch(n, 2 * block.end - 1));
    }
    for (i, b) in code.iter().enumerate() {
        for n in b.src.iter().chain(&b.guard).filter_map(key) {
            touch(dense[&n], 2 * i);
        }
        for n in b.dst.iter().filter_map(key) {
            touch(dense[&n], 2 * i + 1);
        }
    }
    let mut suspects = HashSet::new();
    if let Some(first) = blocks.first() {
        first.live_in.each(|n| {
            if !special.contains_key(&n) {
                suspects.insert(n);
            }
        });
    }
    let whole = 2 * code.len() + 2;
    for n in special.keys().chain(&suspects) {
        lives[*n] = (0, whole);
    }
    let slots = assign(&regs, &lives, kernel);

    for (n, s) in &special {
        match regs[*n].0 {
            Class::R32 => kernel.specials32.push((*s, slots[*n])),
            _ => kernel.specials64.push((*s, slots[*n])),
        }
    }
    let mut suspects: Vec<usize> = suspects.into_iter().collect();
    suspects.sort_unstable();
    let mut suspect_index = HashMap::new();
    for n in suspects {
        let (class, id) = regs[n];
        suspect_index.insert(n, kernel.suspects.len() as u32);
        let name = register_name(&lower.names[class as usize], id).to_string();
        kernel.suspects.push((class as u8, slots[n], name));
    }

    let mut encode =
        Encoder { consts32: HashMap::new(), consts64: HashMap::new(), variables: HashMap::new() };
    for (i, b) in code.iter().enumerate() {
        let pool = kernel.pool.len() as u32;
        let slot = |k: (Class, u32)| slots[dense[&k]];
        let mut all = Vec::with_capacity(b.dst.len() + b.src.len());
        for v in &b.dst {
            all.push(match v {
                V::Reg { class, id, .. } => slot((*class, *id)) as i32,
                V::Pred { id, .. } => slot((Class::Pred, *id)) as i32,
                _ => SINK,
            });
        }
        let mut narrow = 0u8;
        for (n, v) in b.src.iter().enumerate() {
            let is_narrow =
                matches!(v, V::Reg { class: Class::R32, .. } | V::C32(_) | V::Variable(4294967294, _));
            narrow |= u8::from(is_narrow).checked_shl(n as u32).unwrap_or(0);
            all.push(encode.source(v, &slot, kernel)?);
        }
        let (nd, ns) = (b.dst.len(), b.src.len());
        let at = |n: usize, limit: usize| if n < limit { all[n] } else { SINK };
        let (Ok(dsts), Ok(srcs)) = (u8::try_from(nd), u8::try_from(ns)) else {
            return Err(ParseError::new(b.line, "too many operands"));
        };
        let guard = match &b.guard {
            None => NO_GUARD,
            Some(v) => encode.source(v, &slot, kernel)?,
        };
        kernel.code.push(Instr {
            op: b.op,
            guard,
            d: [at(0, nd), at(1, nd)],
            s: [at(nd, nd + ns), at(nd + 1, nd + ns), at(nd + 2, nd + ns), at(nd + 3, nd + ns)],
            pool,
            dsts,
            srcs,
            narrow,
            suspect: false,
            imm: if b.op == Op::Bra { targets[i][0] as i64 } else { b.imm },
        });
        let of = |vs: &mut dyn Iterator<Item = &V>| -> Vec<u32> {
            vs.filter_map(key).filter_map(|k| suspect_index.get(&dense[&k]).copied()).collect()
        };
        let reads = of(&mut b.src.iter().chain(&b.guard));
        let writes = of(&mut b.dst.iter());
        if !reads.is_empty() || !writes.is_empty() {
            kernel.suspect_uses.insert(i as u32, (reads, writes));
            kernel.code[i].suspect = true;
        }
        kernel.pool.extend(all);
        kernel.lines.push(b.line);
        kernel.locs.push(b.loc.clone());
        kernel.names.push(b.opcode);
    }
    Ok(())
}

fn liveness(
    code: &[super::Built],
    targets: &[Vec<usize>],
    dense: &HashMap<(Class, u32), usize>,
    regs: usize,
) -> Vec<Block> {
    let empty = || Bits(vec![0; regs.div_ceil(64)]);
    let mut leader = vec![false; code.len() + 1];
    leader[0] = true;
    for (i, b) in code.iter().enumerate() {
        for t in &targets[i] {
            leader[*t] = true;
        }
        if matches!(b.op, Op::Bra | Op::Brx(_) | Op::Exit | Op::Trap) {
            leader[i + 1] = true;
        }
    }
    let starts: Vec<usize> = (0..code.len()).filter(|i| leader[*i]).collect();
    let block_of: HashMap<usize, usize> = starts.iter().enumerate().map(|(b, i)| (*i, b)).collect();
    let mut blocks = Vec::with_capacity(starts.len());
    let mut sets = Vec::with_capacity(starts.len());
    for (n, &first) in starts.iter().enumerate() {
        let end = starts.get(n + 1).copied().unwrap_or(code.len());
        // Backwards: what is read before it is written, and what is written in any case.
        let (mut reads, mut writes) = (empty(), empty());
        for b in code[first..end].iter().rev() {
            if b.guard.is_none() {
                for k in b.dst.iter().filter_map(key) {
                    reads.clear(dense[&k]);
                    writes.set(dense[&k]);
                }
            }
            for k in b.src.iter().chain(&b.guard).filter_map(key) {
                reads.set(dense[&k]);
            }
        }
        let last = &code[end - 1];
        let mut next: Vec<usize> = targets[end - 1].iter().filter_map(|t| block_of.get(t).copied()).collect();
        let ends = matches!(last.op, Op::Bra | Op::Brx(_) | Op::Exit | Op::Trap) && last.guard.is_none();
        if !ends && end < code.len() {
            next.push(n + 1);
        }
        blocks.push(Block { first, end, next, live_in: empty(), live_out: empty() });
        sets.push((reads, writes));
    }
    let mut changed = true;
    while changed {
        changed = false;
        for n in (0..blocks.len()).rev() {
            for w in 0..regs.div_ceil(64) {
                let mut out = 0;
                for s in &blocks[n].next {
                    out |= blocks[*s].live_in.0[w];
                }
                let inward = sets[n].0.0[w] | out & !sets[n].1.0[w];
                let block = &mut blocks[n];
                block.live_out.0[w] = out;
                if block.live_in.0[w] != inward {
                    block.live_in.0[w] = inward;
                    changed = true;
                }
            }
        }
    }
    // A guarded write keeps the old value in some lanes. As it is no kill, the sets keep that value alive.
    blocks
}

/// Linear scan: lives in the order of their starts, each in the lowest free slot.
fn assign(regs: &[(Class, u32)], lives: &[(usize, usize)], kernel: &mut Kernel) -> Vec<u32> {
    let mut slots = vec![0; regs.len()];
    for class in [Class::R32, Class::R64, Class::Pred] {
        let mut order: Vec<usize> = (0..regs.len()).filter(|n| regs[*n].0 == class).collect();
        order.sort_by_key(|n| lives[*n]);
        let mut free: BinaryHeap<std::cmp::Reverse<u32>> = BinaryHeap::new();
        let mut active: BinaryHeap<std::cmp::Reverse<(usize, u32)>> = BinaryHeap::new();
        let mut count = u32::from(class == Class::Pred);
        for n in order {
            while let Some(std::cmp::Reverse((end, slot))) = active.peek().copied() {
                if end >= lives[n].0 {
                    break;
                }
                active.pop();
                free.push(std::cmp::Reverse(slot));
            }
            let slot = match free.pop() {
                Some(std::cmp::Reverse(slot)) => slot,
                None => {
                    count += 1;
                    count - 1
                }
            };
            slots[n] = slot;
            active.push(std::cmp::Reverse((lives[n].1, slot)));
        }
        match class {
            Class::R32 => kernel.slots32 = count,
            Class::R64 => kernel.slots64 = count,
            Class::Pred => kernel.slots_pred = count,
        }
    }
    slots
}

struct Encoder {
    consts32: HashMap<u32, i32>,
    consts64: HashMap<u64, i32>,
    variables: HashMap<(u32, i64), i32>,
}

impl Encoder {
    fn source(&mut self, v: &V, slot: &dyn Fn((Class, u32)) -> u32, kernel: &mut Kernel) -> Result<i32> {
        let dynamic = kernel.static_shared.next_multiple_of(kernel.dynamic_align);
        let dynamic = |offset: i64| (SHARED_BASE + u64::from(dynamic)).wrapping_add_signed(offset);
        Ok(match *v {
            V::Reg { class, id, .. } => slot((class, id)) as i32,
            V::Pred { id: 0, negated } => i32::from(negated),
            V::Pred { id, negated } => (slot((Class::Pred, id)) * 2) as i32 + i32::from(negated),
            V::C32(c) => self.c32(c, kernel),
            V::C64(c) => self.c64(c, kernel),
            V::Variable(n, offset) if n == u32::MAX - 1 => self.c32(dynamic(offset) as u32, kernel),
            V::Variable(u32::MAX, offset) => self.c64(dynamic(offset), kernel),
            V::Variable(n, offset) => *self.variables.entry((n, offset)).or_insert_with(|| {
                kernel.consts64.push(offset as u64);
                let at = kernel.consts64.len() - 1;
                kernel.relocations.push((at as u32, n));
                !(at as i32)
            }),
            V::Sink => SINK,
        })
    }

    fn c32(&mut self, c: u32, kernel: &mut Kernel) -> i32 {
        *self.consts32.entry(c).or_insert_with(|| {
            kernel.consts32.push(c);
            !(kernel.consts32.len() as i32 - 1)
        })
    }

    fn c64(&mut self, c: u64, kernel: &mut Kernel) -> i32 {
        *self.consts64.entry(c).or_insert_with(|| {
            kernel.consts64.push(c);
            !(kernel.consts64.len() as i32 - 1)
        })
    }
}
