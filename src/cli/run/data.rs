//! The data of a run: files, opened and checked, and the rows that one split takes of them.

use std::path::Path;

use crate::data::{CandidateSet, PairSet, PairSource, RowBlock, ShardFile, SourceFile};
use crate::error::Result;
use crate::eval::{Candidates, Split, SplitOptions, split};
use crate::matrix::{RowSet, Side};
use crate::train::Shuffle;

/// The sets of a run. Validation and test pairs have sets of their own or are taken from `pairs`.
pub struct Data {
    pub pairs: PairSet,
    pub validation: Option<PairSet>,
    pub test: Option<PairSet>,
    pub candidates: Option<CandidateSet>,
    /// The files of `pairs` with their checksums.
    pub sources: Vec<SourceFile>,
}

impl Data {
    /// Fails if a file was altered since it was opened; called before anything made from the data is saved.
    pub fn require_unchanged(&self) -> Result<()> {
        let sets = [Some(&self.pairs), self.validation.as_ref(), self.test.as_ref()];
        sets.into_iter().flatten().try_for_each(PairSet::require_unchanged)?;
        self.candidates.as_ref().map_or(Ok(()), CandidateSet::require_unchanged)
    }

    /// The files of all sets.
    pub fn paths(&self) -> Vec<&Path> {
        let sets = [Some(&self.pairs), self.validation.as_ref(), self.test.as_ref()];
        let pairs = sets.into_iter().flatten().flat_map(PairSet::paths);
        pairs.chain(self.candidates.iter().flat_map(|set| ShardFile::paths(set.files()))).collect()
    }

    /// Which rows of `pairs` are seeds, validation and test: all are seeds if `seeds` is None.
    pub fn split(&self, seeds: Option<usize>, validation: usize, seed: u64) -> Result<Split> {
        let n = self.pairs.len();
        let Some(seeds) = seeds else {
            return Ok(Split { seeds: (0..n).collect(), validation: Vec::new(), test: Vec::new() });
        };
        let validation = if self.validation.is_some() { 0 } else { validation };
        if self.test.is_some() && seeds.checked_add(validation) == Some(n) {
            // Nothing is left for a test set, which there is already.
            let mut rows: Vec<usize> = (0..n).collect();
            Shuffle::Split.apply(seed, &mut rows);
            let validation = rows.split_off(seeds);
            return Ok(Split { seeds: rows, validation, test: Vec::new() });
        }
        split(n, self.pairs.group().as_deref(), &SplitOptions { seeds, validation, seed })
    }

    /// The prompts of the test pairs of a split, where they are known.
    pub fn test_groups(&self, split: &Split) -> Option<Vec<i64>> {
        match &self.test {
            Some(test) => test.group(),
            None => self.pairs.group().map(|group| split.test.iter().map(|&row| group[row]).collect()),
        }
    }

    /// All rows of all sets.
    pub fn rows(&self) -> Result<DataRows<'_>> {
        let candidates = match &self.candidates {
            Some(set) => Some((set.rows(0..set.gold().len())?, set)),
            None => None,
        };
        Ok(DataRows {
            pairs: both_sides(&self.pairs)?,
            validation: self.validation.as_ref().map(both_sides).transpose()?,
            test: self.test.as_ref().map(both_sides).transpose()?,
            candidates,
        })
    }
}

fn both_sides(pairs: &PairSet) -> Result<[RowBlock<'_>; 2]> {
    Ok([pairs.rows(Side::Chosen, 0..pairs.len())?, pairs.rows(Side::Rejected, 0..pairs.len())?])
}

/// The rows of [`Data`], mapped or read into memory.
pub struct DataRows<'d> {
    pairs: [RowBlock<'d>; 2],
    validation: Option<[RowBlock<'d>; 2]>,
    test: Option<[RowBlock<'d>; 2]>,
    candidates: Option<(RowBlock<'d>, &'d CandidateSet)>,
}

impl DataRows<'_> {
    pub fn seeds(&self, split: &Split) -> [RowSet<'_>; 2] {
        self.pick(&split.seeds)
    }

    pub fn validation(&self, split: &Split) -> Option<[RowSet<'_>; 2]> {
        match &self.validation {
            Some(sides) => Some(sides.each_ref().map(RowBlock::view)),
            None => (!split.validation.is_empty()).then(|| self.pick(&split.validation)),
        }
    }

    pub fn test(&self, split: &Split) -> [RowSet<'_>; 2] {
        match &self.test {
            Some(sides) => sides.each_ref().map(RowBlock::view),
            None => self.pick(&split.test),
        }
    }

    pub fn candidates(&self) -> Option<Candidates<'_>> {
        self.candidates.as_ref().map(|(rows, set)| Candidates {
            rows: rows.view(),
            gold: set.gold(),
            per_prompt: set.per_prompt(),
        })
    }

    pub fn pick(&self, rows: &[usize]) -> [RowSet<'_>; 2] {
        self.pairs.each_ref().map(|side| side.view().pick(rows))
    }
}
