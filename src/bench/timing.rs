//! Times of operations: medians of several trials, each long enough for the clock.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::error::Result;

/// Seconds that a trial takes at least.
const LONG_ENOUGH: f64 = 0.1;

/// Seconds of one call.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Timing {
    /// The median over the trials.
    pub median: f64,
    /// The fastest trial.
    pub fastest: f64,
    /// The slowest.
    pub slowest: f64,
    /// How many trials.
    pub trials: usize,
}

impl Timing {
    /// Sums up trials.
    ///
    /// # Panics
    /// If there are none.
    pub fn of(mut seconds: Vec<f64>) -> Timing {
        seconds.sort_by(f64::total_cmp);
        let trials = seconds.len();
        let median = (seconds[(trials - 1) / 2] + seconds[trials / 2]) / 2.0;
        Timing { median, fastest: seconds[0], slowest: seconds[trials - 1], trials }
    }

    /// Time for one of `count` equal parts.
    pub fn per(self, count: f64) -> Timing {
        Timing {
            median: self.median / count,
            fastest: self.fastest / count,
            slowest: self.slowest / count,
            ..self
        }
    }
}

/// Times `work` in `trials` trials, after a call that does not count; a trial makes as many calls as it needs to be
/// long enough.
pub fn time(trials: usize, work: &mut dyn FnMut() -> Result<()>) -> Result<Timing> {
    work()?;
    let mut calls = 1u32;
    let mut seconds = Vec::with_capacity(trials);
    while seconds.len() < trials {
        let start = Instant::now();
        for _ in 0..calls {
            work()?;
        }
        let taken = start.elapsed().as_secs_f64();
        // Not counted: the calls are too few, and the next trial makes more.
        if taken < LONG_ENOUGH {
            calls =
                calls.saturating_mul(2).max((f64::from(calls) * 1.2 * LONG_ENOUGH / taken.max(1e-6)) as u32);
            continue;
        }
        seconds.push(taken / f64::from(calls));
    }
    Ok(Timing::of(seconds))
}

/// Times `work` in `trials` trials of one call each, the first counting too: for what takes seconds.
pub fn time_once(trials: usize, work: &mut dyn FnMut() -> Result<()>) -> Result<Timing> {
    let seconds = (0..trials).map(|_| {
        let start = Instant::now();
        work()?;
        Ok(start.elapsed().as_secs_f64())
    });
    Ok(Timing::of(seconds.collect::<Result<_>>()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_bounds() {
        let timing = Timing::of(vec![4.0, 1.0, 2.0]);
        assert_eq!((timing.median, timing.fastest, timing.slowest, timing.trials), (2.0, 1.0, 4.0, 3));
        assert_eq!(Timing::of(vec![1.0, 2.0]).median, 1.5);
        assert_eq!(timing.per(2.0).median, 1.0);
    }

    #[test]
    fn short_work_is_repeated_and_errors_come_through() {
        let mut calls = 0;
        let timing = time(2, &mut || {
            calls += 1;
            std::thread::sleep(std::time::Duration::from_millis(2));
            Ok(())
        })
        .unwrap();
        assert!(
            calls > 50 && timing.median >= 0.002 && timing.fastest <= timing.slowest,
            "{calls}, {timing:?}"
        );
        let failed = time(2, &mut || Err(crate::error::Error::option("a", "b", "c")));
        assert!(failed.is_err());
    }
}
