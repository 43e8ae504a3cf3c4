//! Definitions of floating-point arithmetic (PTX ISA 9.7.3 and 9.7.4).

use crate::cases::{Case, Plain};
use crate::exact::{self, BF16, F16, F32, Format, format};
use crate::forms::{Words, bits};

/// Negative values become +0; NaN stays.
pub fn relu(v: u64, f: Format) -> u64 {
    if v & f.negative() != 0 && !f.value(v).is_nan() { 0 } else { v }
}

/// To [0, 1]; NaN becomes +0.
pub fn saturated(v: u64, f: Format) -> u64 {
    let x = f.value(v);
    if x.is_nan() || v & f.negative() != 0 {
        0
    } else if x > 1.0 {
        exact::round(1.0, 0, f, "rn")
    } else {
        v
    }
}

pub fn cases(w: &Words) -> Vec<Case> {
    if w.has("approx") || w.has("full") {
        return Vec::new();
    }
    let f = format(w.last());
    let n = bits(w.last());
    let operands = match w.0[0].as_str() {
        "fma" | "mad" => 3,
        "neg" | "abs" | "rcp" | "sqrt" => 1,
        _ => 2,
    };
    let list = ["{a}", "{b}", "{c}"][..operands].join(", ");
    let text = format!("{} {{d}}, {list};", w.text());
    let one = definition(w, f);
    let two = w.last().ends_with("x2");
    let plain = move |v: &[u64]| {
        if !two {
            return one(v);
        }
        let low: Vec<u64> = v.iter().map(|v| v & 0xffff).collect();
        let high: Vec<u64> = v.iter().map(|v| v >> 16).collect();
        one(&low) | one(&high) << 16
    };
    vec![Case::new(text, &vec![n; operands], n, plain).float()]
}

fn definition(w: &Words, f: Format) -> Plain {
    let name = w.0[0].clone();
    let mode = w.one(&["rz", "rm", "rp"]).unwrap_or("rn");
    let (ftz, sat, clamp) = (w.has("ftz"), w.has("sat"), w.has("relu"));
    let (nan, xorsign) = (w.has("NaN"), w.has("xorsign"));
    Box::new(move |v| {
        let flush = |x: u64| if ftz { f.flush(x) } else { x };
        let v: Vec<u64> = v.iter().map(|x| flush(*x)).collect();
        let x: Vec<f64> = v.iter().map(|x| f.value(*x)).collect();
        let out = match name.as_str() {
            "add" => exact::add(x[0], x[1], mode),
            "sub" => exact::add(x[0], -x[1], mode),
            "mul" => exact::mul(x[0], x[1]),
            "fma" | "mad" => exact::fma(x[0], x[1], x[2], mode),
            "div" => exact::div(x[0], x[1]),
            "rcp" => exact::div(1.0, x[0]),
            "sqrt" => exact::sqrt(x[0]),
            "neg" => return v[0] ^ f.negative(),
            "abs" => return v[0] & !f.negative(),
            "copysign" => return v[0] & f.negative() | v[1] & !f.negative(),
            _ => return outer(&v, f, name == "max", nan, xorsign),
        };
        let out = flush(exact::round(out.0, out.1, f, mode));
        match (sat, clamp) {
            (true, _) => saturated(out, f),
            (_, true) => relu(out, f),
            _ => out,
        }
    })
}

/// min and max: of one NaN the other operand, unless .NaN; -0 is smaller than +0.
fn outer(v: &[u64], f: Format, max: bool, nan: bool, xorsign: bool) -> u64 {
    let sign = (v[0] ^ v[1]) & f.negative();
    let mask = if xorsign { !f.negative() } else { u64::MAX };
    let (a, b) = (v[0] & mask, v[1] & mask);
    let (x, y) = (f.value(a), f.value(b));
    let out = match (x.is_nan(), y.is_nan()) {
        (true, true) => return f.nan,
        (true, false) | (false, true) if nan => return f.nan,
        (true, false) => b,
        (false, true) => a,
        _ => {
            let key = |x: f64, bits: u64| (x, bits & f.negative() == 0);
            let first = key(x, a) >= key(y, b);
            if first == max { a } else { b }
        }
    };
    if xorsign { out & mask | sign } else { out }
}

/// The bound on what an approximation may miss of an exact value.
type Bound = fn(f64, f64) -> f64;

/// A function, its format, and its relative and absolute bounds.
type Half = (&'static str, fn(f64) -> f64, Format, f64, f64);

struct Approximation {
    name: &'static str,
    exact: fn(f64) -> f64,
    /// By operand and exact result.
    bound: Bound,
}

/// Units in the last place of F32.
fn ulp(v: f64) -> f64 {
    2f64.powi(exact::exponent(v.abs().max(2f64.powi(-126))) - 23)
}

/// The bounds that PTX ISA 9.7.3 and 9.7.4 state.
const APPROXIMATIONS: [Approximation; 8] = [
    Approximation { name: "rcp", exact: |x| 1.0 / x, bound: |_, v| ulp(v) },
    Approximation { name: "sqrt", exact: f64::sqrt, bound: |_, v| v.abs() * 2f64.powi(-23) },
    Approximation { name: "rsqrt", exact: |x| 1.0 / x.sqrt(), bound: |_, v| v.abs() * 2f64.powf(-22.9) },
    Approximation { name: "sin", exact: f64::sin, bound: |x, _| circle(x) },
    Approximation { name: "cos", exact: f64::cos, bound: |x, _| circle(x) },
    Approximation {
        name: "lg2",
        exact: f64::log2,
        bound: |x, v| 2f64.powi(-22) * if x > 0.5 && x < 2.0 { 1.0 } else { v.abs() },
    },
    Approximation { name: "ex2", exact: f64::exp2, bound: |_, v| 2.0 * ulp(v) },
    Approximation { name: "tanh", exact: f64::tanh, bound: |_, v| v.abs() * 2f64.powi(-11) },
];

/// 2^-20.5 within a turn; outside it grows, which the ISA leaves open.
fn circle(x: f64) -> f64 {
    2f64.powf(-20.5) * (x.abs() / std::f64::consts::TAU).max(1.0)
}

/// Operands of approximations: all magnitudes, and the special ones.
fn spread(n: u32) -> Vec<u64> {
    let mut all = crate::common::operands(n, crate::common::MANY / 2, 77);
    let f = if n == 32 { F32 } else { exact::F64 };
    for i in 0..crate::common::MANY / 2 {
        let x = (i as f64 * 0.37).sin().abs().mul_add(1.0, 1e-3) * 2f64.powi(i as i32 % 24 - 12);
        all.push(exact::round(if i % 3 == 0 { -x } else { x }, 0, f, "rn"));
    }
    all
}

fn run(text: &str, widths: &[u32], to: u32, inputs: &[Vec<u64>], seed: u64) -> Vec<u64> {
    crate::common::many(&[text.to_string()], widths, to, inputs, seed).remove(0)
}

/// Whether a result is within the bound of an exact one; special values are exact.
fn within(got: f64, want: f64, bound: f64, f: Format) -> bool {
    if want.is_nan() || want == 0.0 || want.is_infinite() {
        return got.is_nan() == want.is_nan()
            && (want.is_nan() || got == want && got.is_sign_negative() == want.is_sign_negative());
    }
    let most = (2.0 - 2f64.powi(1 - f.precision)) * 2f64.powi(f.most);
    if want.abs() + bound > most && got.is_infinite() {
        return got.is_sign_negative() == want.is_sign_negative();
    }
    // Among subnormal numbers the last place is the bound.
    (got - want).abs() <= bound.max(2f64.powi(f.least - f.precision + 1))
}

#[test]
fn approximations_of_f32_stay_within_their_bounds_and_move() {
    let inputs = spread(32);
    for a in &APPROXIMATIONS {
        for ftz in ["", ".ftz"] {
            if a.name == "tanh" && ftz == ".ftz" {
                continue;
            }
            let text = format!("{}.approx{ftz}.f32 {{d}}, {{a}};", a.name);
            let flush = |v: u64| if ftz.is_empty() { v } else { F32.flush(v) };
            let got: Vec<Vec<u64>> =
                (0..3).map(|seed| run(&text, &[32], 32, std::slice::from_ref(&inputs), seed)).collect();
            for got in &got {
                for (input, got) in inputs.iter().zip(got) {
                    let x = F32.value(flush(*input));
                    let want = (a.exact)(x);
                    let value = F32.value(*got);
                    let gone = !ftz.is_empty() && want.abs() < 2f64.powi(-126) * 1.001 && value == 0.0;
                    assert!(
                        gone || within(value, want, (a.bound)(x, want), F32),
                        "{text} of {x:e}: {value:e} for {want:e}"
                    );
                    assert!(ftz.is_empty() || F32.flush(*got) == *got);
                }
            }
            let moved = got[0].iter().zip(&got[1]).filter(|(a, b)| a != b).count();
            assert!(moved > 500, "{text}: a test could lean on its last bit ({moved})");
        }
    }
}

#[test]
fn approximate_quotients() {
    let (a, mut b) = (spread(32), spread(32));
    b.rotate_left(123);
    for (text, full) in
        [("div.approx", false), ("div.approx.ftz", false), ("div.full", true), ("div.full.ftz", true)]
    {
        let ftz = text.ends_with("ftz");
        let flush = |v: u64| if ftz { F32.flush(v) } else { v };
        let form = format!("{text}.f32 {{d}}, {{a}}, {{b}};");
        let inputs = [a.clone(), b.clone()];
        let got: Vec<Vec<u64>> = (0..2).map(|seed| run(&form, &[32, 32], 32, &inputs, seed)).collect();
        for i in 0..a.len() {
            let (x, y) = (F32.value(flush(a[i])), F32.value(flush(b[i])));
            for got in &got {
                let value = F32.value(got[i]);
                if !full && y.is_finite() && y.abs() > 2f64.powi(126) {
                    assert!(if x.is_finite() { value == 0.0 } else { value.is_nan() }, "{form} {x:e} {y:e}");
                    continue;
                }
                let want = x / y;
                let gone = ftz && want.abs() < 2f64.powi(-126) * 1.001 && value == 0.0;
                assert!(gone || within(value, want, 2.0 * ulp(want), F32), "{form} {x:e} {y:e}: {value:e}");
            }
        }
        assert!(got[0].iter().zip(&got[1]).filter(|(a, b)| a != b).count() > 500);
    }
}

#[test]
fn approximations_of_f64_use_the_upper_half() {
    let inputs = spread(64);
    for (text, root, ftz) in [
        ("rcp.approx.ftz.f64", false, true),
        ("rsqrt.approx.f64", true, false),
        ("rsqrt.approx.ftz.f64", true, true),
    ] {
        let form = format!("{text} {{d}}, {{a}};");
        let got: Vec<Vec<u64>> =
            (0..2).map(|seed| run(&form, &[64], 64, std::slice::from_ref(&inputs), seed)).collect();
        for (i, input) in inputs.iter().enumerate() {
            let x = f64::from_bits(if ftz { exact::F64.flush(*input) } else { *input });
            let want = if root { 1.0 / x.sqrt() } else { 1.0 / x };
            for got in &got {
                let value = f64::from_bits(got[i]);
                assert!(!ftz || got[i] & 0xffff_ffff == 0, "{text}");
                let gone = ftz && want.abs() < f64::MIN_POSITIVE * 1.001 && value == 0.0;
                // A NaN in the lower half alone reads as infinity.
                let cut = ftz && x.is_nan() && input & 0xf_ffff_0000_0000 == 0;
                let bound = want.abs() * if ftz { 2f64.powi(-19) } else { 2f64.powi(-50) };
                assert!(
                    gone || cut || within(value, want, bound, exact::F64),
                    "{text} of {x:e}: {value:e} for {want:e}"
                );
            }
        }
        assert!(got[0].iter().zip(&got[1]).filter(|(a, b)| a != b).count() > 500);
    }
}

#[test]
fn approximations_of_halves() {
    let inputs: Vec<u64> = (0..0x1_0000).collect();
    // Relative, then absolute.
    let all: [Half; 4] = [
        ("ex2.approx.f16", f64::exp2, F16, 2f64.powf(-9.9), 0.0),
        ("tanh.approx.f16", f64::tanh, F16, 0.0, 2f64.powf(-10.987)),
        ("ex2.approx.ftz.bf16", f64::exp2, BF16, 2f64.powi(-7), 0.0),
        ("tanh.approx.bf16", f64::tanh, BF16, 0.0, 2f64.powi(-8)),
    ];
    for (text, exact, f, relative, absolute) in all {
        let form = format!("{text} {{d}}, {{a}};");
        let got: Vec<Vec<u64>> =
            (0..2).map(|seed| run(&form, &[16], 16, std::slice::from_ref(&inputs), seed)).collect();
        let ftz = text.contains("ftz");
        for (input, got) in inputs.iter().zip(&got[0]) {
            let x = f.value(if ftz { f.flush(*input) } else { *input });
            let want = exact(x);
            let value = f.value(*got);
            let gone = want.abs() < 2f64.powi(f.least) * 1.01 && value.abs() <= 2f64.powi(f.least);
            assert!(
                gone || within(value, want, relative * want.abs() + absolute, f),
                "{text} of {x:e}: {value:e} for {want:e}"
            );
        }
        let moved = got[0].iter().zip(&got[1]).filter(|(a, b)| a != b).count();
        assert!(moved > 50, "{text}: {moved}");
        // Pairs do the same in both halves.
        let pairs: Vec<u64> = inputs.iter().map(|v| v | ((v * 7) & 0xffff) << 16).collect();
        let two = run(&form.replace("16 ", "16x2 "), &[32], 32, std::slice::from_ref(&pairs), 0);
        for (input, two) in inputs.iter().zip(two) {
            let want = got[0][*input as usize] | got[0][((input * 7) & 0xffff) as usize] << 16;
            assert_eq!(two, want, "{text} of {input:#x} in a pair");
        }
    }
}

#[test]
fn nothing_is_contracted() {
    let case =
        Case::new("mul.rn.f32 %f20, {a}, {b}; add.rn.f32 {d}, %f20, {c};".into(), &[32, 32, 32], 32, |v| {
            let product = exact::mul(F32.value(v[0]), F32.value(v[1]));
            let product = F32.value(exact::round(product.0, product.1, F32, "rn"));
            let sum = exact::add(product, F32.value(v[2]), "rn");
            exact::round(sum.0, sum.1, F32, "rn")
        });
    crate::check(&[case.float()]);
}
