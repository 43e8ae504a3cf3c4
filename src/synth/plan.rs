//! Which pairs a run makes: the originals first, then a deterministic draw from each seed's combinations.
//!
//! With k samples per side a seed has (k + 1)^2 combinations, the original pair among them; the plan takes m of them.
//! Nothing is listed in advance: pair j follows from j and the run's seed alone. Runs work on the pairs in blocks of
//! consecutive seeds ([`Plan::blocks`]), and of each block only make the samples that its pairs use ([`SampleList`]).

use std::collections::HashMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::matrix::Side;
use crate::noise::{Purpose, Stream};

/// Combinations of a seed that are listed to draw some of them.
const SHORT: u32 = 256;

/// Most candidates kept per seed and side (2^16 combinations per seed).
pub const MAX_PER_SIDE: u32 = 256;

/// Which synthetic samples of a seed meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pairing {
    /// Every chosen sample, original included, with every rejected one: (k + 1)^2 pairs a seed.
    Combine,
    /// The a-th chosen sample with the a-th rejected one: k + 1 pairs a seed.
    Match,
}

impl Pairing {
    /// Pairs that k samples per side make of one seed, the original included.
    pub(crate) fn per_seed(self, k: u32) -> u64 {
        let samples = u64::from(k) + 1;
        match self {
            Pairing::Combine => samples * samples,
            Pairing::Match => samples,
        }
    }
}

/// One pair of a run. Sample 0 is the original, sample a the a-th best candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PairId {
    /// Row of the seed pair.
    pub seed: u64,
    /// Sample of the chosen side.
    pub chosen: u32,
    /// Sample of the rejected side.
    pub rejected: u32,
}

impl PairId {
    pub fn sample(&self, side: Side) -> u32 {
        match side {
            Side::Chosen => self.chosen,
            Side::Rejected => self.rejected,
        }
    }
}

/// The list of all pairs of a run, never held in memory: pair j follows from j alone.
///
/// Pairs 0 to n - 1 are the originals. The others follow seed by seed, `pairs_per_seed - 1` each: all combinations of a
/// seed in order where all are taken, else a draw without replacement keyed by (seed of the run, row).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Number of seed pairs, n.
    pub seeds: u64,
    /// Candidates kept per seed and side, k.
    pub per_side: u32,
    /// Which samples meet.
    pub pairing: Pairing,
    /// Pairs per seed in total, m; the originals are one each.
    #[serde(rename = "fold")]
    pub pairs_per_seed: u64,
    /// Key of the draws.
    pub seed: u64,
}

impl Plan {
    /// A plan from what the user gave: `pairs_per_seed` (m), `per_side` (k), or both. Without `per_side` the smallest k
    /// that allows m pairs; without `pairs_per_seed` every combination.
    pub fn new(
        seeds: u64,
        pairs_per_seed: Option<u64>,
        per_side: Option<u32>,
        pairing: Pairing,
        seed: u64,
    ) -> Result<Plan> {
        if let Some(k) = per_side.filter(|k| !(1..=MAX_PER_SIDE).contains(k)) {
            return Err(Error::argument("per_side", format!("1 to {MAX_PER_SIDE}"), k));
        }
        let most = Pairing::per_seed(pairing, per_side.unwrap_or(MAX_PER_SIDE));
        let pairs_per_seed = pairs_per_seed.unwrap_or(most);
        if !(2..=most).contains(&pairs_per_seed) {
            let expected = match per_side {
                Some(k) => format!("2 to {most}, which is what {k} samples per side make"),
                None => format!("2 to {most}"),
            };
            return Err(Error::argument("pairs_per_seed", expected, pairs_per_seed));
        }
        let smallest =
            || (1..=MAX_PER_SIDE).find(|&k| pairing.per_seed(k) >= pairs_per_seed).unwrap_or(MAX_PER_SIDE);
        Ok(Plan { seeds, per_side: per_side.unwrap_or_else(smallest), pairing, pairs_per_seed, seed })
    }

    /// Number of pairs, originals included.
    pub fn pairs(&self) -> u64 {
        self.seeds * self.pairs_per_seed
    }

    /// Pair `j`, below [`Plan::pairs`].
    pub fn pair(&self, j: u64) -> PairId {
        if j < self.seeds {
            return PairId { seed: j, chosen: 0, rejected: 0 };
        }
        let extra = self.pairs_per_seed - 1;
        let (seed, rank) = ((j - self.seeds) / extra, (j - self.seeds) % extra);
        let (chosen, rejected) = self.combinations(seed)[rank as usize];
        PairId { seed, chosen, rejected }
    }

    /// All pairs as rows of one matrix per side that holds the n originals and behind them k samples of each seed:
    /// an original is row i, the a-th best sample of seed i row n + i k + a - 1. Below 2^32 rows.
    pub fn rows(&self) -> Vec<[u32; 2]> {
        let (n, k) = (self.seeds, u64::from(self.per_side));
        let row = |seed: u64, rank: u32| match rank {
            0 => seed as u32,
            a => (n + seed * k + u64::from(a) - 1) as u32,
        };
        let mut pairs: Vec<[u32; 2]> = (0..n).map(|i| [i as u32, i as u32]).collect();
        for seed in 0..n {
            pairs.extend(self.combinations(seed).into_iter().map(|(a, b)| [row(seed, a), row(seed, b)]));
        }
        pairs
    }

    /// The `pairs_per_seed - 1` synthetic pairs of one seed as (chosen, rejected) samples.
    pub(crate) fn combinations(&self, seed: u64) -> Vec<(u32, u32)> {
        let extra = (self.pairs_per_seed - 1) as u32;
        let all = (self.pairing.per_seed(self.per_side) - 1) as u32;
        let pair = |c: u32| match self.pairing {
            Pairing::Combine => (c / (self.per_side + 1), c % (self.per_side + 1)),
            Pairing::Match => (c, c),
        };
        if extra == all {
            return (1..=all).map(pair).collect();
        }
        // The first `extra` steps of a Fisher-Yates shuffle of 1..=all. Of a long list only the entries that were moved are
        // held.
        let mut stream = Stream::new(self.seed, Purpose::Pairing, seed);
        if all <= SHORT {
            let mut list: Vec<u32> = (1..=all).collect();
            for i in 0..extra {
                list.swap(i as usize, (i + stream.below(all - i)) as usize);
            }
            return list[..extra as usize].iter().map(|&c| pair(c)).collect();
        }
        let mut moved: HashMap<u32, u32> = HashMap::new();
        (0..extra)
            .map(|i| {
                let from = i + stream.below(all - i);
                let drawn = moved.get(&from).copied().unwrap_or(from);
                let here = moved.get(&i).copied().unwrap_or(i);
                moved.insert(from, here);
                pair(drawn + 1)
            })
            .collect()
    }
}

/// Bytes of decoded samples held at a time, per side.
const DECODED_BYTES: usize = 8 << 20;
/// Most seeds of a block.
const MAX_SEEDS: usize = 1024;
/// Most pairs of a block, unless one seed alone has more (up to 2^16 - 1).
const MAX_PAIRS: usize = 1 << 18;

/// Consecutive pairs of consecutive seeds.
pub(super) struct PairBlock {
    pub seeds: Range<usize>,
    /// Number of the first pair.
    pub first: u64,
    pub ids: Vec<PairId>,
}

impl PairBlock {
    /// Row of a pair's seed within the block.
    pub fn row(&self, id: &PairId) -> usize {
        id.seed as usize - self.seeds.start
    }

    /// Runs of at most `most` pairs with the number of their first.
    pub fn chunks(&self, most: usize) -> impl Iterator<Item = (u64, &[PairId])> {
        self.ids.chunks(most).enumerate().map(move |(i, ids)| (self.first + (i * most) as u64, ids))
    }
}

impl Plan {
    /// Pairs `pairs` in blocks, sized so that the samples of a block, of `row_bytes` each, take some MiB.
    pub(super) fn blocks(
        self,
        pairs: Range<u64>,
        row_bytes: usize,
    ) -> impl Iterator<Item = PairBlock> + Send {
        let n = self.seeds;
        let extra = self.pairs_per_seed - 1;
        let per_seed = row_bytes * (self.per_side as usize + 1);
        let step = (DECODED_BYTES / per_seed).min(MAX_PAIRS / extra as usize).clamp(1, MAX_SEEDS) as u64;
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
                let ids = (first..to).map(|j| self.pair(j)).collect();
                return Some(PairBlock { seeds: first as usize..to as usize, first, ids });
            }
            // The others, seed by seed; the first and the last seed may be taken in part.
            let seed = (from - n) / extra;
            let last_seed = ((pairs.end - 1 - n) / extra).min(seed + step - 1);
            let to = (n + (last_seed + 1) * extra).min(pairs.end);
            let mut ids = Vec::with_capacity((to - from) as usize);
            for seed in seed..=last_seed {
                let start = n + seed * extra;
                let taken = (from.max(start) - start) as usize..(to - start).min(extra) as usize;
                let combinations = self.combinations(seed);
                let taken = combinations[taken].iter();
                ids.extend(taken.map(|&(chosen, rejected)| PairId { seed, chosen, rejected }));
            }
            from = to;
            Some(PairBlock { seeds: seed as usize..last_seed as usize + 1, first, ids })
        })
    }
}

/// The samples that the pairs of a block need on one side.
pub(super) struct SampleList {
    /// Samples as (row in the block, rank - 1), by row and rank.
    pub ranks: Vec<(u32, u32)>,
    /// Where sample (row, rank) is in `ranks`: `index[row * per_side + rank - 1]`.
    index: Vec<u32>,
    per_side: usize,
}

impl SampleList {
    pub fn of(block: &PairBlock, side: Side, per_side: u32) -> SampleList {
        let per_side = per_side as usize;
        let slots = block.seeds.len() * per_side;
        let mut used = vec![false; slots];
        for id in block.ids.iter().filter(|id| id.sample(side) > 0) {
            used[block.row(id) * per_side + id.sample(side) as usize - 1] = true;
        }
        let mut list = SampleList { ranks: Vec::new(), index: vec![u32::MAX; slots], per_side };
        for slot in (0..slots).filter(|&slot| used[slot]) {
            list.index[slot] = list.ranks.len() as u32;
            list.ranks.push(((slot / per_side) as u32, (slot % per_side) as u32));
        }
        list
    }

    /// Whether it has all samples of all rows, which then lie in the order of rows and ranks.
    pub fn is_whole(&self) -> bool {
        self.ranks.len() == self.index.len()
    }

    /// Where sample `rank` (from 1) of a row is in the list.
    pub fn position(&self, row: usize, rank: u32) -> usize {
        self.index[row * self.per_side + rank as usize - 1] as usize
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn plan(pairs_per_seed: u64, per_side: Option<u32>, pairing: Pairing) -> Plan {
        Plan::new(50, Some(pairs_per_seed), per_side, pairing, 9).unwrap()
    }

    #[test]
    fn folds_choose_the_smallest_k() {
        for (pairs_per_seed, k) in [(2, 1), (4, 1), (5, 2), (8, 2), (9, 2), (10, 3), (16, 3), (1000, 31)] {
            assert_eq!(plan(pairs_per_seed, None, Pairing::Combine).per_side, k, "{pairs_per_seed}x");
        }
        assert_eq!(plan(8, None, Pairing::Match).per_side, 7);
        assert_eq!(Plan::new(50, None, Some(2), Pairing::Combine, 9).unwrap().pairs_per_seed, 9);
    }

    #[test]
    fn draws_are_distinct_synthetic_and_within_range() {
        for plan in [
            plan(8, None, Pairing::Combine),
            plan(2, Some(256), Pairing::Combine),
            plan(700, Some(31), Pairing::Combine),
            plan(3, Some(9), Pairing::Match),
        ] {
            for seed in 0..50 {
                let drawn = plan.combinations(seed);
                assert_eq!(drawn.len() as u64, plan.pairs_per_seed - 1);
                assert_eq!(drawn.iter().collect::<HashSet<_>>().len(), drawn.len());
                assert!(drawn.iter().all(|&(a, b)| (a, b) != (0, 0) && a.max(b) <= plan.per_side));
            }
        }
    }

    #[test]
    fn pair_j_agrees_with_the_seeds_list() {
        let plan = plan(8, None, Pairing::Combine);
        assert_eq!(plan.pairs(), 400);
        assert_eq!(plan.pair(7), PairId { seed: 7, chosen: 0, rejected: 0 });
        let (chosen, rejected) = plan.combinations(3)[5];
        assert_eq!(plan.pair(50 + 3 * 7 + 5), PairId { seed: 3, chosen, rejected });
    }

    #[test]
    fn short_and_long_lists_are_shuffled_alike() {
        // The definition: a shuffle of the whole list, of which the first are taken.
        for (pairs_per_seed, k) in [(8, 3), (200, 15), (250, 15), (300, 18), (8, 40)] {
            let plan = plan(pairs_per_seed, Some(k), Pairing::Combine);
            let all = (k + 1) * (k + 1) - 1;
            for seed in 0..20 {
                let mut stream = Stream::new(plan.seed, Purpose::Pairing, seed);
                let mut list: Vec<u32> = (1..=all).collect();
                for i in 0..pairs_per_seed as u32 - 1 {
                    list.swap(i as usize, (i + stream.below(all - i)) as usize);
                }
                let want: Vec<_> =
                    list[..pairs_per_seed as usize - 1].iter().map(|c| (c / (k + 1), c % (k + 1))).collect();
                assert_eq!(plan.combinations(seed), want, "{pairs_per_seed} of {all}");
            }
        }
    }

    #[test]
    fn draws_cover_the_combinations_evenly() {
        let plan = Plan::new(80_000, Some(2), Some(2), Pairing::Combine, 1).unwrap();
        let mut counts = HashMap::new();
        (0..plan.seeds).for_each(|s| *counts.entry(plan.combinations(s)[0]).or_insert(0u32) += 1);
        // Binomial(80000, 1/8): standard deviation 94.
        assert_eq!(counts.len(), 8);
        assert!(counts.values().all(|&c| c.abs_diff(10_000) < 5 * 94), "{counts:?}");
    }

    #[test]
    fn impossible_plans_name_the_field() {
        let text =
            |pairs_per_seed, k| Plan::new(9, pairs_per_seed, k, Pairing::Combine, 0).unwrap_err().to_string();
        assert!(text(Some(1), None).contains("pairs_per_seed"));
        assert!(text(Some(10), Some(2)).contains("2 to 9"));
        assert!(text(None, Some(0)).contains("per_side"));
        assert!(text(None, Some(257)).contains("1 to 256"));
    }
}
