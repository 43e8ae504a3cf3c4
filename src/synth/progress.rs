//! How far a run is, how fast, and what holds it up.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Seconds that the stages of a pipeline were at work, over all its streams; the rest they waited for each other.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Busy {
    /// Reading, encoding, selecting, decoding and converting.
    pub make: f64,
    /// Checksums, writing and forcing to the disk.
    pub write: f64,
}

/// Which stage of a pipeline is at work for longest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Bound {
    /// The device that makes the pairs.
    Device,
    /// The disk that takes them.
    Disk,
}

/// The speed of a run, against what its slower stage does while it is at work.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Speed {
    /// Pairs per second.
    pub pairs_per_second: f64,
    /// Bytes per second.
    pub bytes_per_second: f64,
    /// Pairs per second while pairs are being made: the device's own rate.
    pub device_pairs_per_second: f64,
    /// Bytes per second while bytes are being written: the disk's own rate.
    pub disk_bytes_per_second: f64,
    /// The stage that is at work for longest.
    pub bound_by: Bound,
    /// Share of the time that this stage is at work: 1 is the most that device and disk allow.
    pub share_of_floor: f64,
}

/// The state of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Progress {
    /// Pairs that an earlier run had written already.
    pub resumed: u64,
    /// Pairs that this run makes.
    pub total: u64,
    /// Pairs that it has written.
    pub done: u64,
    /// Bytes that it has written.
    pub bytes: u64,
    /// Seconds since it started.
    pub seconds: f64,
    pub(super) busy: Busy,
    streams: usize,
}

impl Progress {
    pub(super) fn start(resumed: u64, total: u64) -> Progress {
        Progress { resumed, total, done: 0, bytes: 0, seconds: 0.0, busy: Busy::default(), streams: 1 }
    }

    pub(super) fn wrote(&mut self, pairs: u64, bytes: u64) {
        self.done += pairs;
        self.bytes += bytes;
    }

    pub(super) fn measure(&mut self, since: Duration, busy: &Busy, streams: usize) {
        (self.seconds, self.busy, self.streams) = (since.as_secs_f64(), *busy, streams);
    }

    /// Seconds until all is written, at the rate so far; None before the first pairs.
    pub fn eta(&self) -> Option<f64> {
        (self.done > 0).then(|| self.seconds * (self.total - self.done) as f64 / self.done as f64)
    }

    /// The speed so far.
    pub fn speed(&self) -> Speed {
        // Times too short for the clock count as a nanosecond.
        let rate = |amount: u64, seconds: f64| amount as f64 / seconds.max(1e-9);
        let streams = self.streams as f64;
        let (make, write) = (self.busy.make / streams, self.busy.write / streams);
        Speed {
            pairs_per_second: rate(self.done, self.seconds),
            bytes_per_second: rate(self.bytes, self.seconds),
            device_pairs_per_second: rate(self.done, make),
            disk_bytes_per_second: rate(self.bytes, write),
            bound_by: if make >= write { Bound::Device } else { Bound::Disk },
            share_of_floor: (make.max(write) / self.seconds.max(1e-9)).min(1.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slower_stage_is_the_bound() {
        let mut progress = Progress::start(10, 100);
        assert_eq!(progress.eta(), None);
        progress.wrote(50, 1000);
        progress.measure(Duration::from_secs(10), &Busy { make: 4.0, write: 9.0 }, 1);
        let speed = progress.speed();
        assert_eq!((speed.bound_by, speed.share_of_floor), (Bound::Disk, 0.9));
        assert_eq!((speed.pairs_per_second, speed.device_pairs_per_second), (5.0, 12.5));
        assert_eq!(progress.eta(), Some(10.0));
        // Two streams, each at work for half of that.
        progress.measure(Duration::from_secs(10), &Busy { make: 18.0, write: 4.0 }, 2);
        let speed = progress.speed();
        assert_eq!((speed.bound_by, speed.share_of_floor), (Bound::Device, 0.9));
        assert_eq!(speed.device_pairs_per_second, 50.0 / 9.0);
    }
}
