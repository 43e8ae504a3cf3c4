//! Walking over a plan's pairs in blocks of seeds, read one ahead of where they are worked on.

use std::ops::Range;
use std::sync::mpsc::sync_channel;
use std::thread;

use super::{PairId, Plan, SeedBlock, Seeds};
use crate::data::{LatentRows, LatentSet};
use crate::error::Result;
use crate::matrix::Side;

/// Bytes of decoded samples held at a time, per side.
const DECODED: usize = 8 << 20;
/// Most seeds encoded at a time.
const MAX_SEEDS: usize = 1024;
/// Pairs listed at a time, but for those of one seed, which may be 2^16.
const MAX_PAIRS: usize = 1 << 18;

/// Consecutive pairs of consecutive seeds.
pub(super) struct Block {
    /// The seeds.
    pub seeds: Range<usize>,
    /// Number of the first pair.
    pub first: u64,
    /// The pairs.
    pub ids: Vec<PairId>,
}

/// A block with the rows of its seeds, chosen and rejected, and with its pairs' latents where they are stored.
pub(super) struct Loaded<'s> {
    pub block: Block,
    pub rows: [SeedBlock<'s>; 2],
    pub stored: Option<LatentRows>,
}

/// Where blocks are read from.
#[derive(Clone, Copy)]
pub(super) struct Sources<'s> {
    pub seeds: &'s dyn Seeds,
    pub stored: Option<&'s LatentSet>,
}

impl Block {
    /// Row of a pair's seed within the block.
    pub fn row(&self, id: &PairId) -> usize {
        id.seed as usize - self.seeds.start
    }

    /// Stretches of at most `most` pairs with the number of their first.
    pub fn chunks(&self, most: usize) -> impl Iterator<Item = (u64, &[PairId])> {
        self.ids.chunks(most).enumerate().map(move |(i, ids)| (self.first + (i * most) as u64, ids))
    }
}

/// The blocks of pairs `pairs`, whose samples take `row_bytes` each.
fn cut(plan: Plan, pairs: Range<u64>, row_bytes: usize) -> impl Iterator<Item = Block> + Send {
    let n = plan.seeds;
    let extra = plan.pairs_per_seed - 1;
    let per_seed = row_bytes * (plan.per_side as usize + 1);
    let step = (DECODED / per_seed).min(MAX_PAIRS / extra as usize).clamp(1, MAX_SEEDS) as u64;
    let mut from = pairs.start;
    std::iter::from_fn(move || {
        if from >= pairs.end {
            return None;
        }
        let first = from;
        if from < n {
            // Originals: pair j is seed j.
            let to = (from + step).min(pairs.end.min(n));
            from = to;
            let ids = (first..to).map(|j| plan.pair(j)).collect();
            return Some(Block { seeds: first as usize..to as usize, first, ids });
        }
        // The rest, seed by seed.
        let seed = (from - n) / extra;
        let last_seed = ((pairs.end - 1 - n) / extra).min(seed + step - 1);
        let to = (n + (last_seed + 1) * extra).min(pairs.end);
        let mut ids = Vec::with_capacity((to - from) as usize);
        for s in seed..=last_seed {
            let start = n + s * extra;
            let here = from.max(start) - start..(to - start).min(extra);
            let all = plan.combinations(s);
            ids.extend(
                all[here.start as usize..here.end as usize].iter().map(|&(chosen, rejected)| PairId {
                    seed: s,
                    chosen,
                    rejected,
                }),
            );
        }
        from = to;
        Some(Block { seeds: seed as usize..last_seed as usize + 1, first, ids })
    })
}

impl<'s> Sources<'s> {
    fn load(self, block: Block) -> Result<Loaded<'s>> {
        let rows = |side| self.seeds.block(side, block.seeds.clone());
        let rows = [rows(Side::Chosen)?, rows(Side::Rejected)?];
        let first = block.first as usize;
        let pairs = first..first + block.ids.len();
        let stored = self.stored.map(|set| set.rows(pairs)).transpose()?;
        Ok(Loaded { block, rows, stored })
    }
}

/// Hands the blocks of `pairs` to `each`, in order. Where there are several, the next is listed and read while one is
/// worked on.
pub(super) fn for_each<'s>(
    plan: Plan,
    from: Sources<'s>,
    pairs: Range<u64>,
    row_bytes: usize,
    each: &mut dyn FnMut(Loaded<'s>) -> Result<()>,
) -> Result<()> {
    let mut blocks = cut(plan, pairs, row_bytes).peekable();
    let Some(first) = blocks.next() else { return Ok(()) };
    if blocks.peek().is_none() {
        return each(from.load(first)?);
    }
    thread::scope(|scope| {
        let (sender, receiver) = sync_channel(1);
        scope.spawn(move || {
            for block in std::iter::once(first).chain(blocks) {
                from.seeds.prefetch(block.seeds.clone());
                // Nobody listens once `each` has failed.
                if sender.send(from.load(block)).is_err() {
                    return;
                }
            }
        });
        receiver.into_iter().try_for_each(|loaded| {
            let loaded = loaded?;
            let seeds = loaded.block.seeds.clone();
            each(loaded)?;
            from.seeds.release(seeds);
            Ok(())
        })
    })
}

/// The samples that the pairs of a block of seeds need on one side.
pub(super) struct Needed {
    /// Samples as (row in block, rank - 1), by row and rank.
    pub ranks: Vec<(u32, u32)>,
    /// Where sample (row, rank) stands in `ranks`: `index[row * per_side + rank - 1]`.
    index: Vec<u32>,
    per_side: usize,
}

impl Needed {
    pub fn of(block: &Block, side: Side, per_side: u32) -> Needed {
        let per_side = per_side as usize;
        let slots = block.seeds.len() * per_side;
        let mut used = vec![false; slots];
        for id in block.ids.iter().filter(|id| id.sample(side) > 0) {
            used[block.row(id) * per_side + id.sample(side) as usize - 1] = true;
        }
        let mut needed = Needed { ranks: Vec::new(), index: vec![u32::MAX; slots], per_side };
        for slot in (0..slots).filter(|&slot| used[slot]) {
            needed.index[slot] = needed.ranks.len() as u32;
            needed.ranks.push(((slot / per_side) as u32, (slot % per_side) as u32));
        }
        needed
    }

    /// Where sample `rank` (from 1) of a row stands.
    pub fn at(&self, row: usize, rank: u32) -> usize {
        self.index[row * self.per_side + rank as usize - 1] as usize
    }
}
