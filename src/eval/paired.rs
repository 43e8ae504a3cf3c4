//! Paired differences of two methods over splits.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::student::student_p;

/// Differences a - b of two methods on the same splits, in units of the figure.
///
/// Its text is the mean and the standard error, as in `+0.012 ± 0.004`; a precision, as in `{:.1}`, sets the decimals.
///
/// The standard error is an estimate itself: over n splits its own relative error is about 1 / sqrt(2 (n - 1)), 35 % for
/// five. Mean ± standard error is therefore no interval of 68 %, and mean ± 2 standard errors none of 95 %: with five
/// splits the latter holds the truth in 88 % of cases. [`t`](Paired::t) and [`p`](Paired::p) allow for this. They take
/// splits for independent. Splits that are drawn again from one data set share rows, and their differences vary less
/// than those of new data sets would: the standard error is then too small, and p with it (Nadeau and Bengio 2003).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Paired {
    /// Mean difference.
    pub mean: f64,
    /// Standard error of the mean, the sample deviation (divisor n - 1) over sqrt(n); None for less than two splits.
    pub standard_error: Option<f64>,
    /// Number of splits, n.
    pub splits: u64,
    /// Splits in which a is strictly higher than b.
    pub wins: u64,
}

/// Differences of the figures `a` and `b` of two methods, one of each per split.
///
/// # Panics
/// If there are no splits, or not as many of `a` as of `b`.
pub fn paired(a: &[f64], b: &[f64]) -> Paired {
    assert_eq!(a.len(), b.len(), "as many splits of either method");
    assert!(!a.is_empty(), "at least one split");
    let n = a.len() as f64;
    let differences: Vec<f64> = a.iter().zip(b).map(|(x, y)| x - y).collect();
    let mean = differences.iter().sum::<f64>() / n;
    let squares: f64 = differences.iter().map(|d| (d - mean).powi(2)).sum();
    // Differences that are equal but for rounding have no deviation.
    let largest = a.iter().chain(b).fold(0f64, |most, value| most.max(value.abs()));
    let rounding = 4.0 * f64::EPSILON * largest;
    let equal = differences.iter().all(|d| (d - mean).abs() <= rounding);
    let error = if equal { 0.0 } else { (squares / (n - 1.0) / n).sqrt() };
    Paired {
        mean,
        standard_error: (a.len() > 1).then_some(error),
        splits: a.len() as u64,
        wins: a.iter().zip(b).filter(|(x, y)| x > y).count() as u64,
    }
}

impl Paired {
    /// The statistic of the paired t test (Student 1908), the mean over its standard error; None for less than two splits
    /// or differences that are all equal.
    pub fn t(&self) -> Option<f64> {
        self.standard_error.filter(|error| *error != 0.0).map(|error| self.mean / error)
    }

    /// The two-sided p value of the paired t test with n - 1 degrees of freedom: the probability of a statistic as far
    /// from 0, were the differences independent and normal with mean 0. None where there is no [`t`](Paired::t). For
    /// several comparisons see [`holm`].
    pub fn p(&self) -> Option<f64> {
        self.t().map(|t| student_p(t, self.splits as f64 - 1.0))
    }
}

impl fmt::Display for Paired {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let decimals = f.precision().unwrap_or(3);
        let mean = format!("{:+.decimals$}", self.mean);
        // A difference that rounds to 0 has no sign.
        let zero = mean.chars().all(|c| !c.is_ascii_digit() || c == '0') && self.mean.is_finite();
        f.write_str(if zero { &mean[1..] } else { &mean })?;
        match self.standard_error {
            Some(error) => write!(f, " ± {error:.decimals$}"),
            None => Ok(()),
        }
    }
}

/// Corrects the p values of several comparisons by Holm's step-down method (Holm 1979), in place: the k-th smallest of m
/// becomes the largest of (m - j + 1) p_j over j up to k, at most 1. To reject where the corrected value is at most alpha
/// keeps the probability of any false rejection at most alpha, however the comparisons depend on each other. NaN stays
/// NaN and counts as a comparison.
pub fn holm(p_values: &mut [f64]) {
    let mut order: Vec<usize> = (0..p_values.len()).collect();
    // NaN last, whatever its sign.
    let key = |i: usize| (p_values[i].is_nan(), p_values[i]);
    order.sort_by(|&i, &j| key(i).0.cmp(&key(j).0).then(key(i).1.total_cmp(&key(j).1)));
    let mut largest = 0f64;
    for (rank, &i) in order.iter().enumerate() {
        if !p_values[i].is_nan() {
            largest = largest.max((order.len() - rank) as f64 * p_values[i]).min(1.0);
            p_values[i] = largest;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_splits() {
        let found = paired(&[0.7, 0.9, 0.5], &[0.6, 0.6, 0.5]);
        let mean = 0.4 / 3.0;
        assert!((found.mean - mean).abs() < 1e-15);
        let squares = (0.1 - mean).powi(2) + (0.3 - mean).powi(2) + mean * mean;
        let error = (squares / 2.0 / 3.0).sqrt();
        assert!((found.standard_error.unwrap() - error).abs() < 1e-15);
        assert_eq!((found.splits, found.wins), (3, 2));
        assert!((found.t().unwrap() - mean / error).abs() < 1e-12);
        let p = found.p().unwrap();
        assert!(p > 0.0 && p < 1.0);
        assert_eq!(found.to_string(), "+0.133 ± 0.088");
        assert_eq!(format!("{found:.1}"), "+0.1 ± 0.1");
    }

    #[test]
    fn no_deviation_no_test() {
        let one = paired(&[0.7], &[0.8]);
        assert_eq!((one.standard_error, one.t(), one.p(), one.wins), (None, None, None, 0));
        assert_eq!(one.to_string(), "-0.100");
        // 0.72 - 0.71 and 0.83 - 0.82 differ by rounding alone.
        let equal = paired(&[0.72, 0.83, 0.61], &[0.71, 0.82, 0.60]);
        assert_eq!((equal.standard_error, equal.t(), equal.wins), (Some(0.0), None, 3));
        assert_eq!(paired(&[-0.0001, 0.0], &[0.0; 2]).to_string(), "0.000 ± 0.000");
        assert!(paired(&[f64::NAN, 1.0], &[0.0; 2]).p().unwrap().is_nan());
    }

    #[test]
    fn holm_steps_down() {
        let mut p = [0.04, 0.01, 0.03, 0.005];
        holm(&mut p);
        let want = [0.06, 0.03, 0.06, 0.02];
        assert!(p.iter().zip(want).all(|(p, want)| (p - want).abs() < 1e-15), "{p:?}");
        let mut p = [0.9, -f64::NAN, 0.8];
        holm(&mut p);
        assert!(p[0] == 1.0 && p[1].is_nan() && p[2] == 1.0);
        holm(&mut []);
        let mut one = [0.2];
        holm(&mut one);
        assert_eq!(one, [0.2]);
    }
}
