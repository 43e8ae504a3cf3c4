//! Early stopping on a loss.

/// Remembers the epoch with the lowest loss; tells when `patience` losses in a row were no lower.
#[derive(Clone, Debug)]
pub struct EarlyStop {
    patience: Option<usize>,
    best: f64,
    best_epoch: usize,
    /// Losses recorded since the best.
    since: usize,
}

impl EarlyStop {
    /// `patience` None never stops.
    pub fn new(patience: Option<usize>) -> EarlyStop {
        EarlyStop { patience, best: f64::INFINITY, best_epoch: 0, since: 0 }
    }

    /// Records the loss of epoch `epoch` (from 1); true if it is the lowest so far, which NaN never is.
    pub fn record(&mut self, epoch: usize, loss: f64) -> bool {
        let better = loss < self.best;
        if better {
            (self.best, self.best_epoch, self.since) = (loss, epoch, 0);
        } else {
            self.since += 1;
        }
        better
    }

    /// Whether `patience` is used up.
    pub fn should_stop(&self) -> bool {
        self.patience.is_some_and(|p| self.since >= p)
    }

    /// The epoch with the lowest loss, 0 before the first.
    pub fn best_epoch(&self) -> usize {
        self.best_epoch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stops_after_patience_epochs_without_gain() {
        let mut stop = EarlyStop::new(Some(2));
        let better: Vec<bool> = [3.0, 2.0, f64::NAN, 1.5, 1.6, 1.5]
            .iter()
            .enumerate()
            .map(|(i, &l)| stop.record(i + 1, l))
            .collect();
        assert_eq!(better, [true, true, false, true, false, false]);
        assert_eq!(stop.best_epoch(), 4);
        assert!(stop.should_stop());
    }

    #[test]
    fn never_stops_without_patience() {
        let mut stop = EarlyStop::new(None);
        (1..100).for_each(|e| {
            stop.record(e, 1.0);
        });
        assert!(!stop.should_stop());
        assert_eq!(stop.best_epoch(), 1);
    }
}
