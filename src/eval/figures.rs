//! The figures of a reward model on held-out pairs and candidates.

use serde::{Deserialize, Serialize};

use super::bootstrap::{Interval, bootstrap_mean_until};
use super::histogram::{Histogram, histogram};
use super::pair_report::{PairReport, pair_report};
use crate::error::Result;
use crate::interrupt::Interrupt;

/// Resamples of the bootstrap.
const RESAMPLES: usize = 1000;
/// Level of the bootstrap intervals.
const LEVEL: f64 = 0.95;
/// Bins of the histogram of margins, and its ends: beyond, the model is sure.
const BINS: (usize, f64) = (48, 6.0);

/// A reward model's figures on held-out pairs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PairFigures {
    /// Accuracy, loss, calibration and margins.
    #[serde(flatten)]
    pub report: PairReport,
    /// Bootstrap interval of the accuracy over pairs, or over groups where pairs have some; None for one unit.
    pub accuracy_interval: Option<Interval>,
    /// Bootstrap interval of the loss.
    pub loss_interval: Option<Interval>,
    /// Margins from -6 to 6 in 48 bins, what lies beyond in the first and the last.
    pub histogram: Histogram,
}

/// The figures of margins r(chosen) - r(rejected); `groups` names the pairs that belong to one prompt. None without pairs.
/// Fails once `interrupt` is raised: of a million pairs the intervals take a minute.
pub fn pair_figures(
    margins: &[f64],
    groups: Option<&[i64]>,
    interrupt: &Interrupt,
) -> Result<Option<PairFigures>> {
    let Some(report) = pair_report(margins) else { return Ok(None) };
    let interval = |value: &dyn Fn(f64) -> f64| {
        let values: Vec<f64> = margins.iter().map(|&m| value(m)).collect();
        bootstrap_mean_until(&values, groups, (RESAMPLES, LEVEL, 0), interrupt)
    };
    Ok(Some(PairFigures {
        accuracy_interval: interval(&|m| f64::from(u8::from(m > 0.0)))?,
        loss_interval: interval(&crate::train::bradley_terry)?,
        histogram: histogram(margins, BINS.0, (-BINS.1, BINS.1)),
        report,
    }))
}
