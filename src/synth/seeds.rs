//! Where seed pairs come from: shards on disk, or rows in memory.

use std::ops::Range;

use crate::data::{PairSet, RowBlock};
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
