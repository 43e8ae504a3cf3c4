//! Reading seed pairs block by block: a thread reads the next block while one is worked on.

use std::ops::Range;
use std::sync::mpsc::sync_channel;
use std::thread;

use super::plan::{PairBlock, Plan};
use crate::data::{Block, LatentRows, LatentSet, PairSource};
use crate::error::Result;
use crate::side::Side;

/// Where a run reads: the seeds, and the latents of its pairs if they are stored.
#[derive(Clone, Copy)]
pub(super) struct SeedReader<'s> {
    pub seeds: &'s dyn PairSource,
    pub stored: Option<&'s LatentSet>,
}

/// A block of pairs with the rows of its seeds, chosen and rejected, and its pairs' latents if they are stored.
pub(super) struct LoadedBlock<'s> {
    pub block: PairBlock,
    pub rows: [Block<'s>; 2],
    pub stored: Option<LatentRows>,
}

impl<'s> SeedReader<'s> {
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
