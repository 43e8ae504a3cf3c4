//! Quantiles by linear interpolation.

/// The value below which the share `q` of ascending `sorted` lies: with n values, the value at place q (n - 1) from 0,
/// between two places their linear interpolation. This is type 7 of Hyndman and Fan (1996), numpy's default. NaN for no
/// values.
///
/// # Panics
/// If `q` is not in [0, 1].
pub fn quantile(sorted: &[f64], q: f64) -> f64 {
    assert!((0.0..=1.0).contains(&q), "the share {q} is not in [0, 1]");
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let place = q * last as f64;
    let below = (place as usize).min(last);
    let (a, b, t) = (sorted[below], sorted[(below + 1).min(last)], place - below as f64);
    // An end that is infinite has no part in a value at the other.
    if t == 0.0 || a == b { a } else { a + (b - a) * t }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_and_points_between() {
        let values = [1.0, 2.0, 4.0, 8.0, 16.0];
        for (q, want) in [(0.0, 1.0), (0.25, 2.0), (0.5, 4.0), (1.0, 16.0), (0.125, 1.5), (0.95, 14.4)] {
            assert!((quantile(&values, q) - want).abs() < 1e-12, "{q}");
        }
        assert_eq!(quantile(&[3.0], 0.3), 3.0);
        assert!(quantile(&[], 0.5).is_nan());
    }
}
