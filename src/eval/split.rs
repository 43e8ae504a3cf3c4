//! One data set becomes seed, validation and test pairs.
//!
//! Groups of rows (those of one prompt, say) are shuffled and dealt out whole: to the seeds until there are
//! enough, then to the validation pairs until there are enough, and the rest to the test pairs. A part may so
//! get a few rows more than were asked for; without groups every row is a group of its own and the sizes are
//! exact.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::train::Shuffle;

/// How many pairs the parts of a split get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SplitOptions {
    /// Seed pairs.
    pub seeds: usize,
    /// Validation pairs; what remains are test pairs.
    pub validation: usize,
    /// Keys the shuffle.
    pub seed: u64,
}

impl Default for SplitOptions {
    fn default() -> SplitOptions {
        SplitOptions { seeds: 1000, validation: 300, seed: 0 }
    }
}

/// Row numbers of the three parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    /// Seed pairs.
    pub seeds: Vec<usize>,
    /// Validation pairs.
    pub validation: Vec<usize>,
    /// Test pairs: the rest.
    pub test: Vec<usize>,
}

/// Splits `pairs` rows at random; `group` names the group of each row.
///
/// # Errors
/// Too few pairs for the parts asked for.
pub fn split(pairs: usize, group: Option<&[i64]>, options: &SplitOptions) -> Result<Split> {
    let SplitOptions { seeds, validation, seed } = *options;
    let taken = seeds.saturating_add(validation);
    if taken >= pairs {
        return Err(Error::TooFew {
            what: format!("pairs to cut into {seeds} seeds, {validation} validation pairs and a test set"),
            needed: (taken as u64).saturating_add(1),
            found: pairs as u64,
        });
    }
    let mut groups: BTreeMap<i64, Vec<usize>> = BTreeMap::new();
    for row in 0..pairs {
        let id = group.map_or(row as i64, |g| g[row]);
        groups.entry(id).or_default().push(row);
    }
    let mut groups: Vec<Vec<usize>> = groups.into_values().collect();
    Shuffle::Split.apply(seed, &mut groups);
    let mut split = Split { seeds: Vec::new(), validation: Vec::new(), test: Vec::new() };
    for rows in groups {
        let part = if split.seeds.len() < seeds {
            &mut split.seeds
        } else if split.validation.len() < validation {
            &mut split.validation
        } else {
            &mut split.test
        };
        part.extend(rows);
    }
    if split.test.is_empty() {
        return Err(Error::TooFew { what: "groups for a test set".into(), needed: 1, found: 0 });
    }
    Ok(split)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_disjoint_and_cover_everything() {
        let options = SplitOptions { seeds: 50, validation: 20, seed: 3 };
        let s = split(100, None, &options).unwrap();
        assert_eq!((s.seeds.len(), s.validation.len(), s.test.len()), (50, 20, 30));
        let mut all = [s.seeds.clone(), s.validation, s.test].concat();
        all.sort_unstable();
        assert_eq!(all, (0..100).collect::<Vec<_>>());
        assert_ne!(s.seeds, split(100, None, &SplitOptions { seed: 4, ..options }).unwrap().seeds);
    }

    #[test]
    fn groups_stay_whole() {
        let group: Vec<i64> = (0..100).map(|r| r / 7).collect();
        let options = SplitOptions { seeds: 40, validation: 20, seed: 3 };
        let s = split(100, Some(&group), &options).unwrap();
        for (a, b) in [(&s.seeds, &s.validation), (&s.seeds, &s.test), (&s.validation, &s.test)] {
            assert!(a.iter().all(|&x| b.iter().all(|&y| group[x] != group[y])));
        }
    }

    #[test]
    fn too_few_pairs() {
        let options = SplitOptions { seeds: 8, validation: 2, seed: 0 };
        assert!(matches!(split(10, None, &options), Err(Error::TooFew { needed: 11, found: 10, .. })));
    }
}
