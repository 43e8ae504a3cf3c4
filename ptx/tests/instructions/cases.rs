//! One case an arithmetic form: how it is written, and what it means in plain Rust.

use crate::forms::Words;

pub type Plain = Box<dyn Fn(&[u64]) -> u64>;

/// A snippet with `{a}`, `{b}`, `{c}` of some widths, `{d}`, and the definition of `{d}`.
pub struct Case {
    pub text: String,
    pub widths: Vec<u32>,
    pub to: u32,
    pub plain: Plain,
    /// Whether the operands are floating-point numbers of a width, so that ties and cancellations are looked for.
    pub float: bool,
}

impl Case {
    pub fn new(text: String, widths: &[u32], to: u32, plain: impl Fn(&[u64]) -> u64 + 'static) -> Case {
        Case { text, widths: widths.to_vec(), to, plain: Box::new(plain), float: false }
    }
    pub fn float(mut self) -> Case {
        self.float = true;
        self
    }
}

/// The low bits.
pub fn cut(v: i128, bits: u32) -> u64 {
    (v as u64) & if bits == 64 { u64::MAX } else { (1 << bits) - 1 }
}

/// The integer that bits of a type stand for.
pub fn int(v: u64, ty: &str) -> i128 {
    let bits = crate::forms::bits(ty);
    let v = i128::from(cut(v.into(), bits));
    if ty.starts_with('s') && v >> (bits - 1) != 0 { v - (1 << bits) } else { v }
}

/// The cases of a form; none if it is no arithmetic.
pub fn cases(w: &Words) -> Vec<Case> {
    let float = ["f16", "f16x2", "bf16", "bf16x2", "f32", "f64"].contains(&w.last());
    match w.0[0].as_str() {
        "cvt" => crate::convert::cases(w),
        "setp" | "set" | "selp" | "slct" | "testp" => crate::compare::cases(w),
        "add" | "sub" | "mul" | "mad" | "div" | "min" | "max" | "abs" | "neg" if float => {
            crate::floats::cases(w)
        }
        "fma" | "rcp" | "sqrt" | "copysign" => crate::floats::cases(w),
        _ => crate::integers::cases(w),
    }
}
