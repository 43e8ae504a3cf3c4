//! A reward model's figures on pairs, from their margins: accuracy, loss, calibration and the margins themselves.
//!
//! The margin of a pair is m = r(chosen) - r(rejected), in units of the reward. The model of Bradley and Terry gives the
//! chosen response the probability p = sigmoid(m) of being preferred.

use serde::{Deserialize, Serialize};

use super::quantile::quantile;
use crate::train::bradley_terry;

/// Bins of the confidence, which lies in [0.5, 1].
const BINS: usize = 10;
/// The shares that [`Margins::quantiles`] are for.
const SHARES: [f64; 5] = [0.05, 0.25, 0.5, 0.75, 0.95];

/// Figures of a reward model on pairs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PairReport {
    /// Number of pairs.
    pub pairs: u64,
    /// Share of pairs whose chosen response has the strictly higher reward, m > 0.
    pub accuracy: f64,
    /// Mean of -log sigmoid(m), in nats.
    pub loss: f64,
    /// Whether probabilities are as high as the model is right.
    pub calibration: Calibration,
    /// The distribution of the margins.
    pub margins: Margins,
}

/// How the model's confidence agrees with its accuracy. The confidence in a pair is the probability of the response that
/// the model prefers, max(p, 1 - p) = sigmoid(|m|).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// Ten bins of equal width over confidences in [0.5, 1].
    pub bins: Vec<CalibrationBin>,
    /// Expected calibration error (Naeini et al. 2015, Guo et al. 2017): the sum over bins of the share of pairs in the bin
    /// times |accuracy - confidence|. 0 at best.
    pub expected_error: f64,
    /// Brier score (Brier 1950) of the probability of the chosen response: the mean of (1 - p)^2. 0 at best, and 1/4 for
    /// margins of 0.
    pub brier: f64,
}

/// The pairs whose confidence is in [lower, upper), for the last bin [lower, upper].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CalibrationBin {
    /// Lower edge of the confidence.
    pub lower: f64,
    /// Upper edge of the confidence.
    pub upper: f64,
    /// Number of pairs.
    pub pairs: u64,
    /// Their mean confidence; None for no pairs.
    pub confidence: Option<f64>,
    /// The share of them with m > 0; None for no pairs.
    pub accuracy: Option<f64>,
}

/// The distribution of margins, in units of the reward.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Margins {
    /// Mean.
    pub mean: f64,
    /// Standard deviation over the pairs, the root of the mean squared distance from the mean.
    pub std: f64,
    /// Quantiles at 5, 25, 50, 75 and 95 %, by linear interpolation, numpy's default.
    pub quantiles: [f64; 5],
}

/// Figures on pairs from their margins r(chosen) - r(rejected), `[pairs]`; None for no pairs. A margin of NaN makes the
/// loss NaN.
pub fn pair_report(margins: &[f64]) -> Option<PairReport> {
    if margins.is_empty() {
        return None;
    }
    Some(PairReport {
        pairs: margins.len() as u64,
        accuracy: mean(margins, |m| f64::from(m > 0.0)),
        loss: mean(margins, bradley_terry),
        calibration: calibration(margins),
        margins: distribution(margins),
    })
}

fn mean(margins: &[f64], figure: impl Fn(f64) -> f64) -> f64 {
    margins.iter().map(|&m| figure(m)).sum::<f64>() / margins.len() as f64
}

/// 1 / (1 + exp(-x)), to full precision near 0 too.
fn sigmoid(x: f64) -> f64 {
    if x >= 0.0 { 1.0 / (1.0 + (-x).exp()) } else { x.exp() / (1.0 + x.exp()) }
}

fn calibration(margins: &[f64]) -> Calibration {
    // Number of pairs, sum of confidences, number of pairs with m > 0.
    let mut sums = [(0u64, 0f64, 0u64); BINS];
    for &m in margins {
        let confidence = sigmoid(m.abs());
        let bin = ((confidence - 0.5) * 2.0 * BINS as f64) as usize;
        let (pairs, confidences, right) = &mut sums[bin.min(BINS - 1)];
        *pairs += 1;
        *confidences += confidence;
        *right += u64::from(m > 0.0);
    }
    let edge = |bin: usize| 0.5 + 0.5 * bin as f64 / BINS as f64;
    let bins = sums.iter().enumerate().map(|(bin, &(pairs, confidences, right))| {
        let share = |sum: f64| (pairs > 0).then(|| sum / pairs as f64);
        let (confidence, accuracy) = (share(confidences), share(right as f64));
        CalibrationBin { lower: edge(bin), upper: edge(bin + 1), pairs, confidence, accuracy }
    });
    let errors = sums.iter().map(|(_, confidences, right)| (*right as f64 - confidences).abs());
    Calibration {
        bins: bins.collect(),
        expected_error: errors.sum::<f64>() / margins.len() as f64,
        brier: mean(margins, |m| sigmoid(-m).powi(2)),
    }
}

fn distribution(margins: &[f64]) -> Margins {
    let center = mean(margins, |m| m);
    let mut sorted = margins.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    Margins {
        mean: center,
        std: mean(margins, |m| (m - center).powi(2)).sqrt(),
        quantiles: SHARES.map(|share| quantile(&sorted, share)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_four_pairs() {
        // Probabilities of 3/4, 1/4, 1/2 and nearly 1.
        let third = 3f64.ln();
        let report = pair_report(&[third, -third, 0.0, 800.0]).unwrap();
        assert_eq!((report.pairs, report.accuracy), (4, 0.5));
        let loss = ((4f64 / 3.0).ln() + 4f64.ln() + 2f64.ln()) / 4.0;
        assert!((report.loss - loss).abs() < 1e-15);
        let calibration = &report.calibration;
        assert!((calibration.brier - (1.0 / 16.0 + 9.0 / 16.0 + 0.25) / 4.0).abs() < 1e-15);
        // The pair without a margin counts as wrong, at a confidence of 1/2; of those at 3/4 one is right.
        assert!((calibration.expected_error - (0.5 + 0.5) / 4.0).abs() < 1e-15);
        let pairs: Vec<u64> = calibration.bins.iter().map(|bin| bin.pairs).collect();
        assert_eq!(pairs.iter().sum::<u64>(), 4);
        assert_eq!((pairs[0], pairs[9]), (1, 1));
        assert_eq!(calibration.bins[9].accuracy, Some(1.0));
        assert_eq!(calibration.bins[1].accuracy, None);
    }

    #[test]
    fn extreme_margins() {
        assert_eq!(bradley_terry(-800.0), 800.0);
        assert_eq!(bradley_terry(800.0), 0.0);
        assert_eq!(bradley_terry(40.0), (-40f64).exp());
        assert_eq!((sigmoid(-800.0), sigmoid(800.0)), (0.0, 1.0));
        assert_eq!(sigmoid(-40.0), (-40f64).exp());
        assert!(bradley_terry(f64::NAN).is_nan());
        assert!(pair_report(&[1.0, f64::NAN]).unwrap().loss.is_nan());
        assert!(pair_report(&[]).is_none());
    }

    #[test]
    fn a_report_survives_json() {
        let report = pair_report(&[0.3, -1.2, 5.0]).unwrap();
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<PairReport>(&text).unwrap(), report);
    }
}
