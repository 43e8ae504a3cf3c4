//! Plain definitions of rounded arithmetic: the F64 nearest to a result, the exact sign of what it misses, and rounding of
//! the two to a format.

/// A format: bits of the significand, smallest and largest exponent.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Format {
    pub precision: i32,
    pub least: i32,
    pub most: i32,
    pub bits: u32,
    pub nan: u64,
}

pub const F16: Format = Format { precision: 11, least: -14, most: 15, bits: 16, nan: 0x7fff };
pub const BF16: Format = Format { precision: 8, least: -126, most: 127, bits: 16, nan: 0x7fff };
pub const F32: Format = Format { precision: 24, least: -126, most: 127, bits: 32, nan: 0x7fff_ffff };
pub const F64: Format =
    Format { precision: 53, least: -1022, most: 1023, bits: 64, nan: 0xfff8_0000_0000_0000 };
/// TF32, in the bits of F32.
pub const TF32: Format = Format { precision: 11, least: -126, most: 127, bits: 32, nan: 0x7fff_ffff };

/// The format of a type.
pub fn format(ty: &str) -> Format {
    match ty {
        "f16" | "f16x2" => F16,
        "bf16" | "bf16x2" => BF16,
        "f32" => F32,
        "tf32" => TF32,
        _ => F64,
    }
}

impl Format {
    pub fn negative(self) -> u64 {
        1 << (self.bits - 1)
    }
    /// The value of bits.
    pub fn value(self, v: u64) -> f64 {
        match self.bits {
            64 => f64::from_bits(v),
            32 => f64::from(f32::from_bits(v as u32)),
            _ if self.precision == 8 => f64::from(f32::from_bits((v as u32) << 16)),
            _ => {
                let (e, m) = ((v >> 10 & 31) as i32, (v & 0x3ff) as f64);
                let magnitude = match e {
                    31 if m == 0.0 => f64::INFINITY,
                    31 => f64::NAN,
                    0 => m * pow2(-24),
                    _ => (1024.0 + m) * pow2(e - 25),
                };
                if v & 0x8000 != 0 { -magnitude } else { magnitude }
            }
        }
    }
    /// Subnormal numbers become zeros of their sign.
    pub fn flush(self, v: u64) -> u64 {
        let x = self.value(v).abs();
        if x < pow2(self.least) { v & self.negative() } else { v }
    }
    /// The bits of a value that the format holds.
    fn bits_of(self, v: f64) -> u64 {
        if v.is_nan() {
            return self.nan;
        }
        match (self.bits, self.precision) {
            (64, _) => v.to_bits(),
            (32, _) => u64::from((v as f32).to_bits()),
            (_, 8) => u64::from((v as f32).to_bits() >> 16),
            _ => {
                let sign = if v.is_sign_negative() { 0x8000 } else { 0 };
                let x = v.abs();
                let magnitude = if x.is_infinite() {
                    0x7c00
                } else if x < pow2(-14) {
                    (x * pow2(24)) as u64
                } else {
                    let e = exponent(x);
                    ((e + 15) as u64) << 10 | ((x * pow2(10 - e)) as u64 & 0x3ff)
                };
                sign | magnitude
            }
        }
    }
    fn largest(self) -> f64 {
        (2.0 - pow2(1 - self.precision)) * pow2(self.most)
    }
}

/// 2^e of an exponent that F64 has.
pub fn pow2(e: i32) -> f64 {
    if e < -1022 { f64::from_bits(1 << (e + 1074)) } else { f64::from_bits(((e + 1023) as u64) << 52) }
}

/// floor(log2 x) of a positive finite number.
pub fn exponent(x: f64) -> i32 {
    match (x.to_bits() >> 52) as i32 {
        0 => (63 - x.to_bits().leading_zeros() as i32) - 1074,
        e => e - 1023,
    }
}

/// `near` plus something of the sign `rest`, smaller than half of its last place, rounded to a format.
pub fn round(near: f64, rest: i32, f: Format, mode: &str) -> u64 {
    if near.is_nan() || near == 0.0 && rest == 0 {
        return f.bits_of(near);
    }
    if f.bits == 64 {
        return round64(near, rest, mode);
    }
    if near.is_infinite() {
        return f.bits_of(near);
    }
    let negative = near < 0.0;
    let x = near.abs();
    let rest = if negative { -rest } else { rest };
    // Counted in last places, where F64 is exact.
    // Below a power of two they are half as large.
    let below = rest < 0 && x == pow2(exponent(x));
    let last = (exponent(x) - i32::from(below) - f.precision + 1).max(f.least - f.precision + 1);
    let scaled = x * pow2(-last);
    let mut low = scaled.floor();
    let part = scaled - low;
    if part == 0.0 && rest < 0 {
        low -= 1.0;
    }
    // 0: exact, 1: below half, 2: half, 3: above.
    let place = match part {
        0.0 => [3, 0, 1][(rest + 1) as usize],
        0.5 => (2 + rest) as usize,
        p => {
            if p < 0.5 {
                1
            } else {
                3
            }
        }
    };
    let up = match mode {
        "rn" => place == 3 || place == 2 && low % 2.0 == 1.0,
        "rna" => place >= 2,
        "rz" => false,
        "rm" => negative && place > 0,
        _ => !negative && place > 0,
    };
    let v = (low + f64::from(u8::from(up))) * pow2(last);
    let v = if v > f.largest() {
        let stays = match mode {
            "rn" | "rna" => false,
            "rz" => true,
            "rm" => !negative,
            _ => negative,
        };
        if stays { f.largest() } else { f64::INFINITY }
    } else {
        v
    };
    f.bits_of(if negative { -v } else { v })
}

fn round64(near: f64, rest: i32, mode: &str) -> u64 {
    if near.is_infinite() && rest != 0 {
        let stays = mode == "rz" || mode == if near > 0.0 { "rm" } else { "rp" };
        return if stays { f64::MAX.copysign(near) } else { near }.to_bits();
    }
    let step = match mode {
        "rz" if near == 0.0 => false,
        "rz" => rest != 0 && (rest < 0) == (near > 0.0),
        "rm" => rest < 0,
        "rp" => rest > 0,
        _ => false,
    };
    if !step {
        return near.to_bits();
    }
    if rest < 0 { near.next_down() } else { near.next_up() }.to_bits()
}

/// The sign of a sum of products, exactly: 64-bit words of a fixed-point number with its point at bit 2,200.
pub fn sign(products: &[(f64, f64)]) -> i32 {
    const WORDS: usize = 72;
    let mut sum = [0u64; WORDS];
    for (a, b) in products {
        let parts = |x: f64| {
            let e = (x.to_bits() >> 52 & 0x7ff) as i32;
            let m = x.to_bits() & ((1 << 52) - 1);
            if e == 0 { (m, -1074) } else { (m | 1 << 52, e - 1075) }
        };
        let ((ma, ea), (mb, eb)) = (parts(*a), parts(*b));
        let product = u128::from(ma) * u128::from(mb);
        let at = (ea + eb + 2200) as usize;
        let (word, shift) = (at / 64, at % 64);
        let mut pieces = [0u64; WORDS];
        for (k, half) in [product as u64, (product >> 64) as u64].into_iter().enumerate() {
            let moved = u128::from(half) << shift;
            pieces[word + k] |= moved as u64;
            pieces[word + k + 1] |= (moved >> 64) as u64;
        }
        let negative = a.is_sign_negative() != b.is_sign_negative();
        let mut carry = u64::from(negative);
        for (s, p) in sum.iter_mut().zip(pieces) {
            let p = if negative { !p } else { p };
            let (x, c1) = s.overflowing_add(p);
            let (x, c2) = x.overflowing_add(carry);
            *s = x;
            carry = u64::from(c1 || c2);
        }
    }
    if sum[WORDS - 1] >> 63 != 0 { -1 } else { i32::from(sum.iter().any(|w| *w != 0)) }
}

/// A result: the nearest F64 and the sign of what is missing.
pub type Near = (f64, i32);

fn missing(near: f64, terms: &[(f64, f64)]) -> i32 {
    if terms.iter().any(|(a, b)| !a.is_finite() || !b.is_finite()) || near.is_nan() {
        return 0;
    }
    if near.is_infinite() {
        return if near > 0.0 { -1 } else { 1 };
    }
    let mut all = terms.to_vec();
    all.push((-near, 1.0));
    sign(&all)
}

/// a b + c, with the zero that a rounding wants for an exact 0.
pub fn fma(a: f64, b: f64, c: f64, mode: &str) -> Near {
    let near = a.mul_add(b, c);
    let rest = missing(near, &[(a, b), (c, 1.0)]);
    let opposite = (a.is_sign_negative() != b.is_sign_negative()) != c.is_sign_negative();
    let near = if near == 0.0 && rest == 0 && opposite && mode == "rm" { -0.0 } else { near };
    (near, rest)
}

pub fn add(a: f64, b: f64, mode: &str) -> Near {
    let near = a + b;
    let opposite = a.is_sign_negative() != b.is_sign_negative();
    let rest = missing(near, &[(a, 1.0), (b, 1.0)]);
    let near = if near == 0.0 && rest == 0 && opposite && mode == "rm" { -0.0 } else { near };
    (near, rest)
}

pub fn mul(a: f64, b: f64) -> Near {
    let near = a * b;
    (near, missing(near, &[(a, b)]))
}

pub fn div(a: f64, b: f64) -> Near {
    let near = a / b;
    if !a.is_finite() || !b.is_finite() || b == 0.0 || near.is_nan() {
        return (near, 0);
    }
    if near.is_infinite() {
        return (near, if near > 0.0 { -1 } else { 1 });
    }
    let rest = sign(&[(a, 1.0), (-near, b)]);
    (near, if b < 0.0 { -rest } else { rest })
}

pub fn sqrt(a: f64) -> Near {
    let near = a.sqrt();
    if a > 0.0 && a.is_finite() { (near, sign(&[(a, 1.0), (-near, near)])) } else { (near, 0) }
}
