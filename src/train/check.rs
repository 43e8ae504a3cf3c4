//! Ranges of the training options.

use crate::error::{Error, Result};

/// A count of at least 1.
pub fn positive(field: &'static str, value: usize) -> Result<()> {
    match value {
        0 => Err(Error::argument(field, "1 or more", value)),
        _ => Ok(()),
    }
}

/// The weight of a term of the loss: finite and at least 0.
pub fn weight(field: &'static str, value: f64) -> Result<()> {
    match value.is_finite() && value >= 0.0 {
        true => Ok(()),
        false => Err(Error::argument(field, "a finite number, 0 or more", value)),
    }
}

/// A learning rate: finite and above 0.
pub fn learning_rate(field: &'static str, value: f64) -> Result<()> {
    match value.is_finite() && value > 0.0 {
        true => Ok(()),
        false => Err(Error::argument(field, "a finite number above 0", value)),
    }
}

/// Weight decay: finite, at least 0, and below what would turn the sign of parameters at learning rate `lr`.
pub fn weight_decay(field: &'static str, value: f64, lr: f64) -> Result<()> {
    match value.is_finite() && value >= 0.0 && value * lr < 1.0 {
        true => Ok(()),
        false => Err(Error::argument(field, "0 or more, and below 1 / the learning rate", value)),
    }
}
