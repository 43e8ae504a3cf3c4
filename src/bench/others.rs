//! How much of the machine others use: a rate that was measured beside other work is too low.

use std::fs;

/// Clock ticks since the machine started: of all processors, and of this process.
#[derive(Clone, Copy, Debug)]
pub struct Ticks {
    all: u64,
    busy: u64,
    own: u64,
}

impl Ticks {
    /// Now; `None` where the system has no `/proc`.
    pub fn now() -> Option<Ticks> {
        let all = fs::read_to_string("/proc/stat").ok()?;
        Ticks::parse(&all, &fs::read_to_string("/proc/self/stat").ok()?)
    }

    fn parse(all: &str, own: &str) -> Option<Ticks> {
        let number = |text: &str| text.parse::<u64>().ok();
        // "cpu user nice system idle iowait irq softirq steal ..."; the rest is contained in the first ones.
        let all = all.lines().next()?.split_whitespace().skip(1).take(8).map(number);
        let all = all.collect::<Option<Vec<u64>>>()?;
        // The name in parentheses may hold spaces; user and system time are the 12th and 13th field behind it.
        let own = own.rsplit_once(')')?.1.split_whitespace().skip(11).take(2).map(number);
        let own = own.collect::<Option<Vec<u64>>>()?;
        let total = all.iter().sum::<u64>();
        Some(Ticks { all: total, busy: total - all.get(3)? - all.get(4)?, own: own.iter().sum() })
    }

    /// Share of all processors' time since `start` that went to others; `None` where no time has passed.
    pub fn others_since(self, start: Ticks) -> Option<f64> {
        let [all, busy, own] =
            [(self.all, start.all), (self.busy, start.busy), (self.own, start.own)].map(|(now, then)| {
                // The kernel's counters of idle time may go back by a tick.
                now.saturating_sub(then) as f64
            });
        (all > 0.0).then(|| ((busy - own) / all).clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_neither_idle_nor_ours_is_that_of_others() {
        let own = |ticks: u64| format!("7 (a ) name) R 1 1 1 0 -1 0 0 0 0 0 {ticks} 20 0 0 20 0");
        let start = Ticks::parse("cpu 100 0 50 1000 10 0 0 5 3 0\ncpu0 1 1 1", &own(10)).unwrap();
        // 200 ticks: 100 busy, 40 of them ours.
        let end = Ticks::parse("cpu 180 0 60 1090 20 0 0 15 3 0", &own(50)).unwrap();
        assert_eq!(end.others_since(start), Some(0.3));
        assert_eq!(start.others_since(start), None);
        assert!(Ticks::parse("", "").is_none() && Ticks::parse("cpu 1 2 3", &own(1)).is_none());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_system_has_the_figures() {
        let start = Ticks::now().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!((0.0..=1.0).contains(&Ticks::now().unwrap().others_since(start).unwrap()));
    }
}
