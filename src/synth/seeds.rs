//! Where seed pairs come from, shards on disk or rows in memory, and reading them block by block: a thread reads the
//! next block while one is worked on.

use std::ops::Range;
use std::sync::mpsc::sync_channel;
use std::thread;

use super::plan::{PairBlock, Plan};
use crate::data::{LatentRows, LatentSet, PairSet, RowBlock};
use crate::error::Result;
use crate::matrix::{RowSet, Side};

/// A source of seed pairs that can be read block by block.
pub trait Seeds: Sync {
    /// Number of pairs, n.
    fn pairs(&self) -> usize;
    /// Dimension of the embeddings, d.
    fn dim(&self) -> usize;
    /// Rows `range` of one side.
    fn block(&self, side: Side, range: Range<usize>) -> Result<SeedBlock<'_>>;
    /// A hint that rows `range` will be asked for soon.
    fn prefetch(&self, range: Range<usize>);
    /// A hint that rows `range` will not be asked for soon.
    fn release(&self, range: Range<usize>);
    /// Fails if what was read since opening may not be what was opened.
    fn require_unchanged(&self) -> Result<()>;
}

/// Rows that are borrowed from memory or a map, or were read.
#[derive(Debug)]
pub enum SeedBlock<'a> {
    /// Rows in memory.
    Rows(RowSet<'a>),
    /// Rows of shards.
    Shard(RowBlock<'a>),
}

impl SeedBlock<'_> {
    /// The rows.
    pub fn view(&self) -> RowSet<'_> {
        match self {
            SeedBlock::Rows(rows) => rows.clone(),
            SeedBlock::Shard(block) => block.view(),
        }
    }
}

impl Seeds for PairSet {
    fn pairs(&self) -> usize {
        self.len()
    }

    fn dim(&self) -> usize {
        PairSet::dim(self)
    }

    fn block(&self, side: Side, range: Range<usize>) -> Result<SeedBlock<'_>> {
        self.rows(side, range).map(SeedBlock::Shard)
    }

    fn prefetch(&self, range: Range<usize>) {
        PairSet::prefetch(self, range);
    }

    fn release(&self, range: Range<usize>) {
        PairSet::release(self, range);
    }

    fn require_unchanged(&self) -> Result<()> {
        PairSet::require_unchanged(self)
    }
}

/// Chosen and rejected rows in memory.
impl Seeds for [RowSet<'_>; 2] {
    fn pairs(&self) -> usize {
        self[0].rows()
    }

    fn dim(&self) -> usize {
        self[0].cols()
    }

    fn block(&self, side: Side, range: Range<usize>) -> Result<SeedBlock<'_>> {
        Ok(SeedBlock::Rows(self[side as usize].slice(range)))
    }

    fn prefetch(&self, _: Range<usize>) {}

    fn release(&self, _: Range<usize>) {}

    fn require_unchanged(&self) -> Result<()> {
        Ok(())
    }
}

/// Where a run reads: the seeds, and the latents of its pairs if they are stored.
#[derive(Clone, Copy)]
pub(super) struct PairSource<'s> {
    pub seeds: &'s dyn Seeds,
    pub stored: Option<&'s LatentSet>,
}

/// A block of pairs with the rows of its seeds, chosen and rejected, and its pairs' latents if they are stored.
pub(super) struct LoadedBlock<'s> {
    pub block: PairBlock,
    pub rows: [SeedBlock<'s>; 2],
    pub stored: Option<LatentRows>,
}

impl<'s> PairSource<'s> {
    fn load(self, block: PairBlock) -> Result<LoadedBlock<'s>> {
        let rows = |side| self.seeds.block(side, block.seeds.clone());
        let rows = [rows(Side::Chosen)?, rows(Side::Rejected)?];
        let first = block.first as usize;
        let pairs = first..first + block.ids.len();
        let stored = self.stored.map(|set| set.rows(pairs)).transpose()?;
        Ok(LoadedBlock { block, rows, stored })
    }

    /// Hands the blocks of `pairs`, see [`Plan::blocks`], to `each` in order.
    pub fn for_each_block(
        self,
        plan: Plan,
        pairs: Range<u64>,
        row_bytes: usize,
        each: &mut dyn FnMut(LoadedBlock<'s>) -> Result<()>,
    ) -> Result<()> {
        let mut blocks = plan.blocks(pairs, row_bytes).peekable();
        let Some(first) = blocks.next() else { return Ok(()) };
        if blocks.peek().is_none() {
            // No thread for a single block, as in making one pair.
            return each(self.load(first)?);
        }
        thread::scope(|scope| {
            let (sender, receiver) = sync_channel(1);
            scope.spawn(move || {
                for block in std::iter::once(first).chain(blocks) {
                    self.seeds.prefetch(block.seeds.clone());
                    // The receiver is gone once `each` has failed.
                    if sender.send(self.load(block)).is_err() {
                        return;
                    }
                }
            });
            receiver.into_iter().try_for_each(|loaded| {
                let loaded = loaded?;
                let seeds = loaded.block.seeds.clone();
                each(loaded)?;
                self.seeds.release(seeds);
                Ok(())
            })
        })
    }
}
