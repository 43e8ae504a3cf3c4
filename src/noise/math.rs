//! Logarithm, exponential, sine and cosine from integer operations, add, mul and fma alone, so that every
//! device that rounds as IEEE 754 demands gives the same bits. The polynomials are those of Cephes (Moshier);
//! errors are about 1 ulp.
//!
//! Each reduces its argument to a small interval around 0 exactly, or nearly so, and evaluates a polynomial
//! there.

/// ln 2 in two parts: the first has few bits, so that an integer times it is exact.
pub(super) const LN2_HIGH: f32 = 0.693_359_4;
pub(super) const LN2_LOW: f32 = -2.121_944_4e-4;
/// The bits of the square root of a half.
pub(super) const SQRT_HALF: u32 = 0x3f35_04f3;
/// The polynomial of the logarithm, highest power first.
pub(super) const LN: [f32; 9] = [
    7.037_683_6e-2,
    -0.115_146_1,
    0.116_769_99,
    -0.124_201_41,
    0.142_493_23,
    -0.166_680_58,
    0.200_007_14,
    -0.249_999_94,
    0.333_333_3,
];
/// One 2^32nd of a turn, in radians.
pub(super) const TURN: f32 = std::f32::consts::TAU / 4_294_967_296.0;
/// The polynomials of sine and cosine, highest power first.
pub(super) const SIN: [f32; 3] = [-1.951_529_6e-4, 8.332_161e-3, -0.166_666_55];
pub(super) const COS: [f32; 3] = [2.443_315_7e-5, -1.388_731_6e-3, 4.166_664_6e-2];

/// Natural logarithm of a positive normal `x`; about 1 ulp.
#[inline(always)]
pub fn ln(x: f32) -> f32 {
    let shifted = x.to_bits().wrapping_add(0x3f80_0000 - SQRT_HALF);
    let exponent = ((shifted >> 23) as i32 - 127) as f32;
    let f = f32::from_bits((shifted & 0x007f_ffff) + SQRT_HALF) - 1.0;
    let mut p = LN[0];
    for c in &LN[1..] {
        p = p.mul_add(f, *c);
    }
    let square = f * f;
    let tail = exponent.mul_add(LN2_LOW, p * f * square);
    exponent.mul_add(LN2_HIGH, f + square.mul_add(-0.5, tail))
}

/// e to the power `x`; `x` is clamped to [-87, 88], where the result is normal; about 1 ulp.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Adding and subtracting 1.5 * 2^23 rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    // Comparisons written so that NaN passes through to the result.
    let x = if x < -87.0 { -87.0 } else { x };
    let x = if x > 88.0 { 88.0 } else { x };
    let rounded = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = rounded - ROUND;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, x));
    let mut p = 1.987_569_1e-4f32;
    for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5] {
        p = p.mul_add(r, c);
    }
    let y = p.mul_add(r * r, r) + 1.0;
    // The lowest bits of the rounded sum are the integer n: cheaper in vector code than a conversion.
    y * f32::from_bits(rounded.to_bits().wrapping_add(127) << 23)
}

/// Sine and cosine of the angle `turn / 2^32` of a full turn; absolute error under 1e-7.
#[inline(always)]
pub fn sin_cos_turn(turn: u32) -> (f32, f32) {
    // The nearest quarter turn, and what is left of the angle, within an eighth of a turn.
    let quarter = turn.wrapping_add(1 << 29) >> 30;
    let rest = turn.wrapping_sub(quarter << 30) as i32;
    let a = rest as f32 * TURN;
    let s = a * a;
    let sin = s.mul_add(SIN[0], SIN[1]).mul_add(s, SIN[2]);
    let sin = (sin * s).mul_add(a, a);
    let cos = s.mul_add(COS[0], COS[1]).mul_add(s, COS[2]);
    let cos = (cos * s).mul_add(s, s.mul_add(-0.5, 1.0));
    // A quarter turn swaps the two and moves the signs.
    let swap = quarter & 1 == 1;
    let sin_sign = (quarter & 2) << 30;
    let cos_sign = (quarter.wrapping_add(1) & 2) << 30;
    let (x, y) = if swap { (cos, sin) } else { (sin, cos) };
    (f32::from_bits(x.to_bits() ^ sin_sign), f32::from_bits(y.to_bits() ^ cos_sign))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ulps(got: f32, want: f64) -> f64 {
        (f64::from(got) - want).abs()
            / (want.abs() * f64::from(f32::EPSILON)).max(f64::from(f32::MIN_POSITIVE))
    }

    #[test]
    fn ln_is_within_two_ulps() {
        let mut worst = 0f64;
        for i in 0..400_000u32 {
            let x = f32::from_bits(0x2f00_0000 + i * 0x2a7);
            if (x - 1.0).abs() > 1e-3 {
                worst = worst.max(ulps(ln(x), f64::from(x).ln()));
            } else {
                // Near 1 the logarithm is small: bound the absolute error by that of its argument.
                assert!((f64::from(ln(x)) - f64::from(x).ln()).abs() <= 1e-9);
            }
        }
        assert!(worst <= 2.0, "{worst}");
        assert_eq!(ln(1.0), 0.0);
    }

    #[test]
    fn exp_is_within_two_ulps_and_keeps_nan() {
        let mut worst = 0f64;
        for i in -8700..8800 {
            let x = i as f32 * 0.01;
            worst = worst.max(ulps(exp(x), f64::from(x).exp()));
        }
        assert!(worst <= 2.0, "{worst}");
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(-1e9) > 0.0 && exp(1e9).is_finite());
    }

    #[test]
    fn sin_cos_over_the_whole_turn() {
        for i in 0..1_000_003u32 {
            let turn = i.wrapping_mul(4295);
            let angle = f64::from(turn) / 4_294_967_296.0 * std::f64::consts::TAU;
            let (s, c) = sin_cos_turn(turn);
            assert!((f64::from(s) - angle.sin()).abs() <= 1.2e-7, "sin of turn {turn}: {s}");
            assert!((f64::from(c) - angle.cos()).abs() <= 1.2e-7, "cos of turn {turn}: {c}");
        }
    }
}
