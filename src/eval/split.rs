//! Cutting one data set into seeds, validation and test pairs.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::train::Shuffle;

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

/// Cuts `pairs` rows at random. Rows of one group (one prompt, say) stay in one part: groups are dealt out whole, so
/// with groups a part may get a few rows more than asked for.
///
/// # Errors
/// Too few pairs for the parts asked for.
pub fn split(
    pairs: usize,
    seeds: usize,
    validation: usize,
    group: Option<&[i64]>,
    seed: u64,
) -> Result<Split> {
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
        let s = split(100, 50, 20, None, 3).unwrap();
        assert_eq!((s.seeds.len(), s.validation.len(), s.test.len()), (50, 20, 30));
        let mut all = [s.seeds.clone(), s.validation, s.test].concat();
        all.sort_unstable();
        assert_eq!(all, (0..100).collect::<Vec<_>>());
        assert_ne!(s.seeds, split(100, 50, 20, None, 4).unwrap().seeds);
    }

    #[test]
    fn groups_stay_whole() {
        let group: Vec<i64> = (0..100).map(|r| r / 7).collect();
        let s = split(100, 40, 20, Some(&group), 3).unwrap();
        for (a, b) in [(&s.seeds, &s.validation), (&s.seeds, &s.test), (&s.validation, &s.test)] {
            assert!(a.iter().all(|&x| b.iter().all(|&y| group[x] != group[y])));
        }
    }

    #[test]
    fn too_few_pairs() {
        assert!(matches!(split(10, 8, 2, None, 0), Err(Error::TooFew { needed: 11, found: 10, .. })));
    }
}
