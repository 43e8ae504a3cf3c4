//! Counts of values in bins of equal width.

use serde::{Deserialize, Serialize};

/// Counts of values over [lower, upper] in bins of equal width.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Histogram {
    /// Lower edge of the first bin.
    pub lower: f64,
    /// Upper edge of the last bin.
    pub upper: f64,
    /// Values in each bin, `[bins]`; the first bin holds values below `lower` too, the last those above `upper`.
    pub counts: Vec<u64>,
}

impl Histogram {
    /// The lower edge of a bin; the number of bins gives the upper edge of the last.
    pub fn edge(&self, bin: usize) -> f64 {
        edge(bin, self.counts.len(), (self.lower, self.upper))
    }
}

fn edge(bin: usize, bins: usize, (lower, upper): (f64, f64)) -> f64 {
    lower + (upper - lower) * (bin as f64 / bins as f64)
}

/// Counts `values` in `bins` bins of equal width over `range`, its lower and its upper end. A bin holds its lower edge, and
/// the last one its upper edge too, as `numpy.histogram` has it; values outside the range count in the first and
/// the last bin, and NaN in none.
///
/// # Panics
/// If there are no bins, or the range is empty or not finite.
pub fn histogram(values: &[f64], bins: usize, range: (f64, f64)) -> Histogram {
    let (lower, upper) = range;
    assert!(bins > 0, "a histogram has bins");
    assert!(
        lower < upper && lower.is_finite() && upper.is_finite(),
        "[{lower}, {upper}] is no range of a histogram"
    );
    let mut counts = vec![0; bins];
    for &value in values.iter().filter(|value| !value.is_nan()) {
        let mut bin = (((value - lower) / (upper - lower) * bins as f64) as usize).min(bins - 1);
        // Division rounds: the edges decide.
        if bin > 0 && value < edge(bin, bins, range) {
            bin -= 1;
        } else if bin + 1 < bins && value >= edge(bin + 1, bins, range) {
            bin += 1;
        }
        counts[bin] += 1;
    }
    Histogram { lower, upper, counts }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edges_and_values_outside() {
        let values = [-9.0, 0.0, 0.5, 1.0, 1.9, 2.0, 7.0, f64::INFINITY, f64::NEG_INFINITY, f64::NAN];
        let found = histogram(&values, 2, (0.0, 2.0));
        assert_eq!(found.counts, [4, 5]);
        assert_eq!([found.edge(0), found.edge(1), found.edge(2)], [0.0, 1.0, 2.0]);
    }

    #[test]
    fn every_edge_belongs_to_the_bin_above_it() {
        for bins in 1..60 {
            let range = (-0.3, 0.7);
            let edges: Vec<f64> = (0..bins).map(|bin| edge(bin, bins, range)).collect();
            assert_eq!(histogram(&edges, bins, range).counts, vec![1; bins], "{bins} bins");
            let below: Vec<f64> = (1..=bins).map(|bin| edge(bin, bins, range).next_down()).collect();
            assert_eq!(histogram(&below, bins, range).counts, vec![1; bins], "{bins} bins");
        }
    }
}
