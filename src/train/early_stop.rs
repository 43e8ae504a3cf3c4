//! Early stopping on a loss.

/// Remembers the step with the lowest loss; tells when `patience` steps went by without a lower one.
#[derive(Clone, Debug)]
pub struct EarlyStop {
    patience: Option<u64>,
    best: f64,
    best_step: u64,
    /// The last step that was recorded.
    last: u64,
}

impl EarlyStop {
    /// `patience` None never stops.
    pub fn new(patience: Option<u64>) -> EarlyStop {
        EarlyStop { patience, best: f64::INFINITY, best_step: 0, last: 0 }
    }

    /// Records the loss after `step` steps; true if it is the lowest so far, which NaN never is.
    pub fn record(&mut self, step: u64, loss: f64) -> bool {
        let better = loss < self.best;
        if better {
            (self.best, self.best_step) = (loss, step);
        }
        self.last = step;
        better
    }

    /// Whether `patience` is used up.
    pub fn should_stop(&self) -> bool {
        self.patience.is_some_and(|p| self.last - self.best_step >= p)
    }

    /// The step with the lowest loss, 0 before the first.
    pub fn best_step(&self) -> u64 {
        self.best_step
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stops_after_patience_steps_without_gain() {
        let mut stop = EarlyStop::new(Some(20));
        let better: Vec<bool> = [3.0, 2.0, f64::NAN, 1.5, 1.6, 1.5]
            .iter()
            .enumerate()
            .map(|(i, &l)| stop.record(10 * (i as u64 + 1), l))
            .collect();
        assert_eq!(better, [true, true, false, true, false, false]);
        assert_eq!(stop.best_step(), 40);
        assert!(stop.should_stop());
    }

    #[test]
    fn never_stops_without_patience() {
        let mut stop = EarlyStop::new(None);
        (1..100).for_each(|e| {
            stop.record(e, 1.0);
        });
        assert!(!stop.should_stop());
        assert_eq!(stop.best_step(), 1);
    }

    #[test]
    fn a_loss_that_is_never_a_number_stops() {
        let mut stop = EarlyStop::new(Some(2));
        assert!(!stop.record(1, f64::NAN) && !stop.should_stop());
        assert!(!stop.record(2, f64::NAN) && stop.should_stop());
    }
}
