//! How long a piece of work takes: the one way in which the benchmark and the measured limits of devices take times.
//!
//! One call that does not count wakes threads, caches and clocks. Then come several trials, each of as many calls as
//! last long enough for the clock. The median trial counts; the fastest and the slowest tell how far to trust it.

use std::time::Instant;

/// Seconds that a trial lasts at least.
const LONG_ENOUGH: f64 = 0.1;

/// Seconds of one call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Timing {
    /// The median over the trials.
    pub median: f64,
    /// The fastest trial.
    pub fastest: f64,
    /// The slowest trial.
    pub slowest: f64,
    /// How many trials there were.
    pub trials: usize,
}

impl Timing {
    /// Median and spread of at least one trial.
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

/// Seconds of `calls` calls together.
fn seconds_of<E>(calls: u32, work: &mut impl FnMut() -> Result<(), E>) -> Result<f64, E> {
    let start = Instant::now();
    (0..calls).try_for_each(|_| work())?;
    Ok(start.elapsed().as_secs_f64())
}

/// Finds a number of calls that last at least `least` seconds, after one call that does not count. Gives the number and
/// the seconds that so many calls took. `seconds_of` makes a number of calls and gives their seconds.
pub fn calibrate<E>(least: f64, seconds_of: &mut impl FnMut(u32) -> Result<f64, E>) -> Result<(u32, f64), E> {
    seconds_of(1)?;
    let mut calls = 1u32;
    loop {
        let seconds = seconds_of(calls)?;
        if seconds >= least {
            return Ok((calls, seconds));
        }
        // A fifth more than the last trial asks for, since the next one may run faster.
        let wanted = f64::from(calls) * 1.2 * least / seconds.max(1e-6);
        calls = calls.saturating_mul(2).max(wanted as u32);
    }
}

/// Times `work` in `trials` trials of equally many calls.
pub fn time<E>(trials: usize, mut work: impl FnMut() -> Result<(), E>) -> Result<Timing, E> {
    let mut trial = |calls| seconds_of(calls, &mut work);
    let (calls, first) = calibrate(LONG_ENOUGH, &mut trial)?;
    let mut seconds = vec![first];
    while seconds.len() < trials {
        seconds.push(trial(calls)?);
    }
    Ok(Timing::of(seconds).per(f64::from(calls)))
}

/// Times `work` in `trials` trials of one call each, the first counting too: for what takes seconds.
pub fn time_once<E>(trials: usize, mut work: impl FnMut() -> Result<(), E>) -> Result<Timing, E> {
    let seconds = (0..trials).map(|_| seconds_of(1, &mut work));
    Ok(Timing::of(seconds.collect::<Result<_, E>>()?))
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
        let timing = time(2, || {
            calls += 1;
            std::thread::sleep(std::time::Duration::from_millis(2));
            Ok::<(), ()>(())
        })
        .unwrap();
        assert!(
            calls > 50 && timing.median >= 0.002 && timing.fastest <= timing.slowest,
            "{calls}, {timing:?}"
        );
        assert_eq!(timing.trials, 2);
        assert_eq!(time(2, || Err("no")), Err("no"));
    }

    #[test]
    fn long_work_is_called_once_a_trial() {
        let mut calls = 0;
        let timing = time_once(3, || {
            calls += 1;
            Ok::<(), ()>(())
        });
        assert_eq!((timing.unwrap().trials, calls), (3, 3));
    }
}
