//! Floating-point arithmetic in integers: exact, then rounded once, in any direction and to any format.

use crate::ops::Round;

/// The NaN that single-precision instructions make, PTX ISA 9.7.3.
pub(crate) const NAN32: u32 = 0x7fff_ffff;
pub(crate) const NAN64: u64 = 0xfff8_0000_0000_0000;

/// A binary format: bits of the significand with the hidden one, and exponents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Format {
    pub precision: u32,
    pub least: i32,
    pub most: i32,
    pub nan: u64,
}

pub(crate) const F32: Format = Format { precision: 24, least: -126, most: 127, nan: NAN32 as u64 };
pub(crate) const F64: Format = Format { precision: 53, least: -1022, most: 1023, nan: NAN64 };
pub(crate) const F16: Format = Format { precision: 11, least: -14, most: 15, nan: 0x7fff };
pub(crate) const BF16: Format = Format { precision: 8, least: -126, most: 127, nan: 0x7fff };

impl Format {
    fn sign(self) -> u64 {
        let exponent_bits = 64 - ((self.most - self.least + 2) as u64).leading_zeros();
        1 << (self.precision - 1 + exponent_bits)
    }
    fn infinity(self) -> u64 {
        self.sign() - (1 << (self.precision - 1))
    }
}

/// A value: `sig * 2^exp`, negative or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Num {
    Nan,
    Inf(bool),
    Finite { neg: bool, exp: i32, sig: u128 },
}

use Num::*;

/// The value of bits.
pub(crate) fn unpack(bits: u64, f: Format) -> Num {
    let neg = bits & f.sign() != 0;
    let magnitude = bits & (f.sign() - 1);
    let hidden = 1u64 << (f.precision - 1);
    let (biased, fraction) = (magnitude >> (f.precision - 1), magnitude & (hidden - 1));
    match magnitude.cmp(&f.infinity()) {
        std::cmp::Ordering::Greater => Nan,
        std::cmp::Ordering::Equal => Inf(neg),
        _ if biased == 0 => {
            Finite { neg, exp: f.least - (f.precision as i32 - 1), sig: u128::from(fraction) }
        }
        _ => Finite {
            neg,
            exp: f.least - f.precision as i32 + biased as i32,
            sig: u128::from(fraction | hidden),
        },
    }
}

/// The bits of a value, rounded. The lowest bit of `sig` may stand for anything below it that is not zero.
pub(crate) fn pack(n: Num, f: Format, round: Round) -> u64 {
    let (neg, exp, sig) = match n {
        Nan => return f.nan,
        Inf(neg) => return f.infinity() | if neg { f.sign() } else { 0 },
        Finite { neg, exp, sig } => (neg, exp, sig),
    };
    let sign = if neg { f.sign() } else { 0 };
    if sig == 0 {
        return sign;
    }
    let p = f.precision as i32;
    let top = exp + 127 - sig.leading_zeros() as i32;
    // Exponent of the last bit that is kept.
    let last = (top - (p - 1)).max(f.least - (p - 1));
    let shift = last - exp;
    let (kept, half, rest) = if shift <= 0 {
        ((sig << (-shift).min(127)) as u64, false, false)
    } else if shift > 128 {
        (0, false, true)
    } else {
        let kept = if shift == 128 { 0 } else { (sig >> shift) as u64 };
        let half = sig >> (shift - 1) & 1 != 0;
        (kept, half, sig & ((1 << (shift - 1)) - 1) != 0)
    };
    let up = rounds_up(round, neg, kept & 1 != 0, half, rest);
    let kept = kept + u64::from(up);
    // A carry out of the significand lands in the exponent, as it should.
    let steps = (last - (f.least - (p - 1))) as u64;
    let bits = (steps << (p - 1)) + kept;
    if bits >= f.infinity() {
        let largest = match round {
            Round::Nearest | Round::Away => false,
            Round::Zero => true,
            Round::Down => !neg,
            Round::Up => neg,
        };
        return sign | if largest { f.infinity() - 1 } else { f.infinity() };
    }
    sign | bits
}

/// Whether a magnitude grows when it is rounded: `odd` is its last bit that is kept, `half` the bit behind it, and `rest`
/// whether any other bit is lost.
fn rounds_up(round: Round, neg: bool, odd: bool, half: bool, rest: bool) -> bool {
    match round {
        Round::Nearest => half && (rest || odd),
        Round::Away => half,
        Round::Zero => false,
        Round::Down => neg && (half || rest),
        Round::Up => !neg && (half || rest),
    }
}

/// `sig` with its highest bit at bit 124.
fn normal(exp: i32, sig: u128) -> (i32, u128) {
    let shift = 124 - (127 - sig.leading_zeros() as i32);
    (exp - shift, sig << shift)
}

pub(crate) fn negate(n: Num) -> Num {
    match n {
        Nan => Nan,
        Inf(neg) => Inf(!neg),
        Finite { neg, exp, sig } => Finite { neg: !neg, exp, sig },
    }
}

/// a + b, exact but for a lowest bit that stands for the rest. The rounding chooses the sign of zero.
pub(crate) fn add(a: Num, b: Num, round: Round) -> Num {
    let (na, ea, sa, nb, eb, sb) = match (a, b) {
        (Nan, _) | (_, Nan) => return Nan,
        (Inf(x), Inf(y)) => return if x == y { a } else { Nan },
        (Inf(_), _) => return a,
        (_, Inf(_)) => return b,
        (Finite { neg: na, exp: ea, sig: sa }, Finite { neg: nb, exp: eb, sig: sb }) => {
            (na, ea, sa, nb, eb, sb)
        }
    };
    match (sa, sb) {
        (0, 0) if na == nb => return a,
        (0, 0) => return Finite { neg: round == Round::Down, exp: 0, sig: 0 },
        (0, _) => return b,
        (_, 0) => return a,
        _ => {}
    }
    let ((ea, sa), (eb, sb)) = (normal(ea, sa), normal(eb, sb));
    let (na, ea, sa, nb, eb, sb) =
        if (ea, sa) >= (eb, sb) { (na, ea, sa, nb, eb, sb) } else { (nb, eb, sb, na, ea, sa) };
    let distance = (ea - eb) as u32;
    let moved =
        if distance > 126 { 1 } else { sb >> distance | u128::from(sb & ((1u128 << distance) - 1) != 0) };
    let sig = if na == nb { sa + moved } else { sa - moved };
    if sig == 0 {
        return Finite { neg: round == Round::Down, exp: 0, sig: 0 };
    }
    Finite { neg: na, exp: ea, sig }
}

pub(crate) fn mul(a: Num, b: Num) -> Num {
    match (a, b) {
        (Nan, _) | (_, Nan) => Nan,
        (Inf(x), Inf(y)) => Inf(x != y),
        (Inf(x), Finite { neg, sig, .. }) | (Finite { neg, sig, .. }, Inf(x)) => {
            if sig == 0 {
                Nan
            } else {
                Inf(x != neg)
            }
        }
        (Finite { neg: na, exp: ea, sig: sa }, Finite { neg: nb, exp: eb, sig: sb }) => {
            Finite { neg: na != nb, exp: ea + eb, sig: sa * sb }
        }
    }
}

pub(crate) fn div(a: Num, b: Num) -> Num {
    match (a, b) {
        (Nan, _) | (_, Nan) | (Inf(_), Inf(_)) => Nan,
        (Inf(x), Finite { neg, .. }) => Inf(x != neg),
        (Finite { neg, .. }, Inf(y)) => Finite { neg: neg != y, exp: 0, sig: 0 },
        (Finite { neg: na, exp: ea, sig: sa }, Finite { neg: nb, exp: eb, sig: sb }) => {
            let neg = na != nb;
            match (sa, sb) {
                (0, 0) => Nan,
                (_, 0) => Inf(neg),
                (0, _) => Finite { neg, exp: 0, sig: 0 },
                _ => {
                    let (ea, sa) = normal(ea, sa);
                    let rest = u128::from(!sa.is_multiple_of(sb));
                    Finite { neg, exp: ea - eb, sig: (sa / sb) | rest }
                }
            }
        }
    }
}

pub(crate) fn sqrt(a: Num) -> Num {
    match a {
        Nan | Inf(true) => Nan,
        Inf(false) => a,
        Finite { sig: 0, .. } => a,
        Finite { neg: true, .. } => Nan,
        Finite { exp, sig, .. } => {
            let (mut exp, mut sig) = normal(exp, sig);
            if exp % 2 != 0 {
                (exp, sig) = (exp - 1, sig << 1);
            }
            let root = sig.isqrt();
            Finite { neg: false, exp: exp / 2, sig: root | u128::from(root * root != sig) }
        }
    }
}

/// The integral value in a direction, as a value.
pub(crate) fn integral(n: Num, round: Round) -> Num {
    let Finite { neg, exp, sig } = n else { return n };
    if exp >= 0 || sig == 0 {
        return n;
    }
    let shift = -exp;
    let (kept, half, rest) = if shift > 127 {
        (0, false, true)
    } else {
        (sig >> shift, sig >> (shift - 1) & 1 != 0, sig & ((1 << (shift - 1)) - 1) != 0)
    };
    let up = rounds_up(round, neg, kept & 1 != 0, half, rest);
    Finite { neg, exp: 0, sig: kept + u128::from(up) }
}

/// An integral value between two bounds; NaN is 0.
pub(crate) fn clamp(n: Num, least: i128, most: i128) -> i128 {
    match n {
        Nan => 0,
        Inf(neg) => {
            if neg {
                least
            } else {
                most
            }
        }
        Finite { neg, exp, sig } => {
            let large = sig != 0 && exp + 127 - sig.leading_zeros() as i32 > 100;
            let magnitude = if large {
                i128::MAX
            } else if exp >= 0 {
                (sig << exp) as i128
            } else {
                (sig >> (-exp).min(127)) as i128
            };
            (if neg { -magnitude } else { magnitude }).clamp(least, most)
        }
    }
}
