//! Bootstrap intervals of means.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::quantile::quantile;
use crate::error::Result;
use crate::interrupt::Interrupt;
use crate::noise::{Purpose, Stream};

/// A bootstrap interval of a mean.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// The share of such intervals that should hold the true mean.
    pub level: f64,
    /// Number of resamples.
    pub resamples: u64,
    /// Number of units that a resample draws: groups, or values without groups.
    pub units: u64,
}

/// The percentile bootstrap interval (Efron 1979) of the mean of `values`.
///
/// A resample draws as many units as there are, with replacement; its mean is the sum of the values of the drawn units over
/// their number, and the interval goes from the quantile (1 - level) / 2 of these means to the quantile (1 + level) / 2.
/// A unit is a value, or all values of a group. `groups`, the group of each value, must name what was drawn together:
/// the pairs of a prompt are alike, and an interval that takes them for independent is too narrow.
///
/// For a difference of two models on the same pairs, `values` are the differences on each pair. The interval speaks of
/// other test data, and not of other training runs. It is a little too narrow for few units: below about 30 do not rely
/// on it. Resample r is a function of `seed`, r and the number of units alone; groups are ordered by their numbers.
///
/// None for less than two units or no resamples. NaN among the values makes both ends NaN.
///
/// # Panics
/// If `level` is not in (0, 1), or there is not one group per value.
pub fn bootstrap_mean(
    values: &[f64],
    groups: Option<&[i64]>,
    resamples: usize,
    level: f64,
    seed: u64,
) -> Option<Interval> {
    let never = Interrupt::default();
    bootstrap_mean_until(values, groups, (resamples, level, seed), &never).expect("nothing interrupts it")
}

/// As [`bootstrap_mean`]; fails once `interrupt` is raised.
pub(super) fn bootstrap_mean_until(
    values: &[f64],
    groups: Option<&[i64]>,
    (resamples, level, seed): (usize, f64, u64),
    interrupt: &Interrupt,
) -> Result<Option<Interval>> {
    assert!(level > 0.0 && level < 1.0, "the level {level} is not in (0, 1)");
    let units = units(values, groups);
    let count = u32::try_from(units.len()).expect("below 2^32 units");
    if count < 2 || resamples == 0 {
        return Ok(None);
    }
    let resample = |number: usize| {
        interrupt.check()?;
        let mut stream = Stream::new(seed, Purpose::Bootstrap, number as u64);
        let (mut total, mut size) = (0.0, 0.0);
        for _ in 0..count {
            let (sum, values) = units[stream.below(count) as usize];
            total += sum;
            size += values;
        }
        Ok(total / size)
    };
    let mut means = (0..resamples).map(resample).collect::<Result<Vec<f64>>>()?;
    means.sort_unstable_by(f64::total_cmp);
    let broken = values.iter().any(|value| value.is_nan());
    let end = |q: f64| if broken { f64::NAN } else { quantile(&means, q) };
    let (low, high) = (end((1.0 - level) / 2.0), end((1.0 + level) / 2.0));
    Ok(Some(Interval { low, high, level, resamples: resamples as u64, units: count.into() }))
}

/// The sum of the values of each unit and their number.
fn units(values: &[f64], groups: Option<&[i64]>) -> Vec<(f64, f64)> {
    let Some(groups) = groups else { return values.iter().map(|&value| (value, 1.0)).collect() };
    assert_eq!(values.len(), groups.len(), "one group per value");
    let mut sums: BTreeMap<i64, (f64, f64)> = BTreeMap::new();
    for (&value, &group) in values.iter().zip(groups) {
        let (sum, count) = sums.entry(group).or_default();
        *sum += value;
        *count += 1.0;
    }
    sums.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seed_decides() {
        let values: Vec<f64> = (0..50).map(|i| f64::from(i % 7)).collect();
        let interval = |seed| bootstrap_mean(&values, None, 500, 0.9, seed).unwrap();
        assert_eq!(interval(1), interval(1));
        assert_ne!(interval(1), interval(2));
        let mean = values.iter().sum::<f64>() / 50.0;
        assert!(interval(1).low < mean && mean < interval(1).high);
        let wide = bootstrap_mean(&values, None, 500, 0.99, 1).unwrap();
        assert!(wide.low < interval(1).low && wide.high > interval(1).high);
    }

    #[test]
    fn groups_of_one_are_no_groups() {
        let values: Vec<f64> = (0..40).map(|i| f64::from(i * i % 11)).collect();
        let groups: Vec<i64> = (0..40).collect();
        assert_eq!(
            bootstrap_mean(&values, Some(&groups), 300, 0.95, 5),
            bootstrap_mean(&values, None, 300, 0.95, 5)
        );
    }

    #[test]
    fn values_of_a_group_stay_together() {
        // Groups of different sizes, each of which holds one value only: any resample is a ratio of sums.
        let (values, groups) = ([1.0, 1.0, 1.0, 0.0], [4, 4, 4, -2]);
        let interval = bootstrap_mean(&values, Some(&groups), 1000, 0.9, 3).unwrap();
        assert_eq!((interval.low, interval.high, interval.units), (0.0, 1.0, 2));
    }

    #[test]
    fn no_interval_and_no_numbers() {
        assert_eq!(bootstrap_mean(&[], None, 100, 0.95, 0), None);
        assert_eq!(bootstrap_mean(&[1.0, 2.0], Some(&[7, 7]), 100, 0.95, 0), None);
        assert_eq!(bootstrap_mean(&[1.0, 2.0], None, 0, 0.95, 0), None);
        let broken = bootstrap_mean(&[1.0, f64::NAN, 2.0], None, 100, 0.95, 0).unwrap();
        assert!(broken.low.is_nan() && broken.high.is_nan());
        let constant = bootstrap_mean(&[2.5; 10], None, 100, 0.95, 0).unwrap();
        assert_eq!((constant.low, constant.high), (2.5, 2.5));
    }
}
