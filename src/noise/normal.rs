//! Standard normals from Philox words (Box-Muller), by a fixed sequence of IEEE operations.

use super::math::{ln, sin_cos_turn};
use super::philox::philox_lanes;

/// Four standard normals for each of `LANES` counters: value w of lane l is `[w][l]`.
///
/// Words 0 and 1 make values 0 and 1, words 2 and 3 make values 2 and 3 (Box-Muller). Of the words (a, b) of
/// a pair
///
/// ```text
/// u = fma(f32(a), 2^-32, 2^-33)    r = sqrt(-2 ln u)    t = b / 2^32
/// values: r cos(2 pi t), r sin(2 pi t)
/// ```
///
/// The word a is rounded to F32 and u is rounded again, both to nearest even, which near u = 1 is coarser
/// than (a + 1/2) / 2^32. Other implementations must round the same way.
#[inline(always)]
pub fn normal_lanes<const LANES: usize>(counter: [[u32; LANES]; 4], key: [u32; 2]) -> [[f32; LANES]; 4] {
    const SCALE: f32 = 1.0 / 4_294_967_296.0;
    let words = philox_lanes(counter, key);
    let mut out = [[0f32; LANES]; 4];
    // Two loops a pair, so that the constants of each stay in registers.
    for pair in 0..2 {
        let mut r = [0f32; LANES];
        for l in 0..LANES {
            let u = (words[2 * pair][l] as f32).mul_add(SCALE, 0.5 * SCALE);
            r[l] = (-2.0 * ln(u)).sqrt();
        }
        for l in 0..LANES {
            let (sin, cos) = sin_cos_turn(words[2 * pair + 1][l]);
            out[2 * pair][l] = r[l] * cos;
            out[2 * pair + 1][l] = r[l] * sin;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use crate::noise::{NoiseCounter, Purpose, Side, fill_normals};

    fn draws(n: usize) -> Vec<f32> {
        let mut out = vec![0f32; n];
        for (row, chunk) in out.chunks_mut(16).enumerate() {
            let counter =
                NoiseCounter { purpose: Purpose::Perturb, side: Side::Chosen, row: row as u64, candidate: 3 };
            fill_normals(42, counter, chunk);
        }
        out
    }

    /// The standard normal distribution function: a series for the centre, a continued fraction for the
    /// tails.
    fn cdf(x: f64) -> f64 {
        let a = x.abs();
        let density = (-0.5 * a * a).exp() / std::f64::consts::TAU.sqrt();
        let upper = if a < 3.0 {
            let (mut term, mut sum) = (a, a);
            for k in 1..80 {
                term *= a * a / f64::from(2 * k + 1);
                sum += term;
            }
            0.5 - density * sum
        } else {
            let mut tail = a;
            for k in (1..60).rev() {
                tail = a + f64::from(k) / tail;
            }
            density / tail
        };
        if x > 0.0 { 1.0 - upper } else { upper }
    }

    /// Moments within five standard errors and Kolmogorov-Smirnov at the 0.1 % level.
    fn check_distribution(n: usize) {
        let mut values = draws(n);
        let nf = n as f64;
        let moment = |k: i32| values.iter().map(|&v| f64::from(v).powi(k)).sum::<f64>() / nf;
        // Standard errors of the first four moments of N(0, 1): sqrt of 1, 2, 15, 96 over n.
        for (k, want, variance) in [(1, 0.0, 1.0f64), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)] {
            let error = (moment(k) - want).abs() / (variance / nf).sqrt();
            assert!(error < 5.0, "moment {k} of {n} draws is {error} standard errors off");
        }
        values.sort_unstable_by(f32::total_cmp);
        let mut worst = 0f64;
        for (i, &v) in values.iter().enumerate() {
            let f = cdf(f64::from(v));
            worst = worst.max((f - i as f64 / nf).abs()).max(((i + 1) as f64 / nf - f).abs());
        }
        let statistic = worst * nf.sqrt();
        assert!(statistic < 1.95, "Kolmogorov-Smirnov statistic of {n} draws: {statistic}");
    }

    #[test]
    fn moments_and_kolmogorov_smirnov() {
        check_distribution(2_000_000);
    }

    /// The large version, asked for by name: `LENSMITH_NORMAL_DRAWS=100000000 cargo test --release
    /// draws_at_scale`.
    #[test]
    fn draws_at_scale() {
        let n = std::env::var("LENSMITH_NORMAL_DRAWS").map_or(100_000, |v| v.parse().expect("a count"));
        check_distribution(n);
    }

    #[test]
    fn values_depend_on_every_part_of_the_counter() {
        let base = NoiseCounter { purpose: Purpose::Perturb, side: Side::Chosen, row: 1 << 33, candidate: 2 };
        let normals = |seed, a| {
            let mut out = [0f32; 8];
            fill_normals(seed, a, &mut out);
            out
        };
        let others = [
            normals(1, NoiseCounter { purpose: Purpose::Posterior, ..base }),
            normals(1, NoiseCounter { side: Side::Rejected, ..base }),
            normals(1, NoiseCounter { row: (1 << 33) + 1, ..base }),
            normals(1, NoiseCounter { row: 1 << 34, ..base }),
            normals(1, NoiseCounter { candidate: 3, ..base }),
            normals(2, base),
            normals(1 << 32 | 1, base),
        ];
        let here = normals(1, base);
        for other in others {
            assert!(here.iter().zip(other).all(|(a, b)| a.to_bits() != b.to_bits()));
        }
    }

    /// Bits that every implementation must give: a change here changes every data set made before.
    #[test]
    fn pinned_bits() {
        let counter =
            NoiseCounter { purpose: Purpose::Perturb, side: Side::Rejected, row: 12_345, candidate: 7 };
        let mut out = [0f32; 6];
        fill_normals(0x0123_4567_89ab_cdef, counter, &mut out);
        assert_eq!(out.map(f32::to_bits), PINNED);
    }
    const PINNED: [u32; 6] =
        [3_216_140_215, 1_060_243_942, 1_074_565_269, 1_056_424_847, 1_055_115_876, 1_068_234_083];
}
