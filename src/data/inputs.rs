//! Embeddings from files or from memory, through one trait each: [`PairSource`] for preference pairs, [`RowSource`]
//! for plain embeddings.

use std::ops::Range;
use std::path::Path;

use super::column::{RowBlock, ShardFile};
use super::reader::{CandidateSet, EmbeddingSet, PairSet};
use crate::error::{Error, Result};
use crate::matrix::{RowSet, Side};

/// Rows of embeddings, borrowed from memory or a map, or read.
#[derive(Debug)]
pub enum Block<'a> {
    /// Rows in memory.
    Memory(RowSet<'a>),
    /// Rows of files.
    Files(RowBlock<'a>),
}

impl Block<'_> {
    /// The rows.
    pub fn view(&self) -> RowSet<'_> {
        match self {
            Block::Memory(rows) => rows.clone(),
            Block::Files(block) => block.view(),
        }
    }
}

/// Preference pairs that can be read block by block: a [`PairSet`], or chosen and rejected rows in memory,
/// `[RowSet; 2]`.
pub trait PairSource: Sync {
    /// Number of pairs, n.
    fn pairs(&self) -> usize;
    /// Values of an embedding, d.
    fn dim(&self) -> usize;
    /// Rows `range` of one side.
    fn block(&self, side: Side, range: Range<usize>) -> Result<Block<'_>>;
    /// A hint that rows `range` will be asked for soon.
    fn prefetch(&self, _range: Range<usize>) {}
    /// A hint that rows `range` will not be asked for soon.
    fn release(&self, _range: Range<usize>) {}
    /// Fails with [`Error::Changed`] if what was read since opening may not be what was opened.
    fn require_unchanged(&self) -> Result<()> {
        Ok(())
    }
    /// The files that it reads; none where it is in memory.
    fn paths(&self) -> Vec<&Path> {
        Vec::new()
    }
}

impl PairSource for PairSet {
    fn pairs(&self) -> usize {
        self.len()
    }

    fn dim(&self) -> usize {
        PairSet::dim(self)
    }

    fn block(&self, side: Side, range: Range<usize>) -> Result<Block<'_>> {
        self.rows(side, range).map(Block::Files)
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

    fn paths(&self) -> Vec<&Path> {
        ShardFile::paths(self.files())
    }
}

impl PairSource for [RowSet<'_>; 2] {
    fn pairs(&self) -> usize {
        self[0].rows()
    }

    fn dim(&self) -> usize {
        self[0].cols()
    }

    /// Fails with [`Error::Shape`] if the sides have different sizes.
    fn block(&self, side: Side, range: Range<usize>) -> Result<Block<'_>> {
        let [chosen, rejected] = self.each_ref().map(|rows| (rows.rows(), rows.cols()));
        if chosen != rejected {
            let text = |(rows, cols): (usize, usize)| format!("[{rows}, {cols}]");
            return Err(Error::shape("rejected rows", format!("{} as chosen", text(chosen)), text(rejected)));
        }
        Ok(Block::Memory(self[side as usize].slice(range)))
    }
}

/// Embeddings that can be read block by block: an [`EmbeddingSet`], the candidates of a [`CandidateSet`], or rows in
/// memory.
pub trait RowSource: Sync {
    /// Number of embeddings, n.
    fn rows(&self) -> usize;
    /// Values of an embedding, d.
    fn dim(&self) -> usize;
    /// Rows `range`.
    fn block(&self, range: Range<usize>) -> Result<Block<'_>>;
    /// Fails with [`Error::Changed`] if what was read since opening may not be what was opened.
    fn require_unchanged(&self) -> Result<()> {
        Ok(())
    }
}

impl RowSource for EmbeddingSet {
    fn rows(&self) -> usize {
        self.len()
    }

    fn dim(&self) -> usize {
        EmbeddingSet::dim(self)
    }

    fn block(&self, range: Range<usize>) -> Result<Block<'_>> {
        EmbeddingSet::rows(self, range).map(Block::Files)
    }

    fn require_unchanged(&self) -> Result<()> {
        EmbeddingSet::require_unchanged(self)
    }
}

impl RowSource for CandidateSet {
    fn rows(&self) -> usize {
        self.prompts() * self.per_prompt()
    }

    fn dim(&self) -> usize {
        CandidateSet::dim(self)
    }

    fn block(&self, range: Range<usize>) -> Result<Block<'_>> {
        CandidateSet::rows(self, range).map(Block::Files)
    }

    fn require_unchanged(&self) -> Result<()> {
        CandidateSet::require_unchanged(self)
    }
}

impl RowSource for RowSet<'_> {
    fn rows(&self) -> usize {
        RowSet::rows(self)
    }

    fn dim(&self) -> usize {
        self.cols()
    }

    fn block(&self, range: Range<usize>) -> Result<Block<'_>> {
        Ok(Block::Memory(self.slice(range)))
    }
}
