//! Every form that the machine accepts, against a plain definition.

#[path = "../common/mod.rs"]
mod common;

mod atomics;
mod cases;
mod compare;
mod convert;
mod copies;
mod coverage;
mod exact;
mod floats;
mod forms;
mod hopper;
mod integers;
mod memory;
mod mutated;
mod run;
mod special;
mod tensor_map;
mod warp;
mod wgmma;

use cases::Case;
use forms::{Words, expand};

/// Makes some operands meet: cancellations, ties of sums and of products.
fn meet(inputs: &mut [Vec<u64>], n: u32) {
    let (negative, fraction) = match n {
        16 => (0x8000u64, 10u32),
        32 => (0x8000_0000, 23),
        _ => (1 << 63, 52),
    };
    for i in 0..inputs[0].len() {
        let a = inputs[0][i];
        if inputs.len() > 1 && i % 8 == 1 {
            // Nearly the opposite.
            inputs[1][i] =
                (a ^ negative).wrapping_add((i as u64 / 8) % 3).wrapping_sub(1) & (negative | (negative - 1));
        }
        if inputs.len() > 1 && i % 8 == 3 {
            // A power of two around half of the other's last place.
            let exponent = (a & !negative) >> fraction;
            let by = u64::from(fraction) + (i as u64 / 8) % 3;
            inputs[1][i] = exponent.saturating_sub(by) << fraction | if i % 16 == 3 { 0 } else { negative };
        }
        if inputs.len() > 2 && i % 8 == 5 {
            // The negative product, rounded: what is left is the rounding error.
            let bits = |x: f64| match n {
                64 => x.to_bits(),
                _ => u64::from((x as f32).to_bits()),
            };
            let value =
                |v: u64| if n == 64 { f64::from_bits(v) } else { f64::from(f32::from_bits(v as u32)) };
            if n >= 32 {
                inputs[2][i] = bits(-(value(a) * value(inputs[1][i])));
            }
        }
    }
}

/// Widths of the operands and of the result, and whether they are floating-point numbers.
type Operands = (Vec<u32>, u32, bool);

fn check(all: &[Case]) {
    // Forms of the same operands share kernels.
    let mut groups: Vec<(Operands, Vec<&Case>)> = Vec::new();
    for case in all {
        let key = (case.widths.clone(), case.to, case.float);
        match groups.iter_mut().find(|(k, _)| *k == key) {
            Some((_, list)) => list.push(case),
            None => groups.push((key, vec![case])),
        }
    }
    for ((widths, to, float), list) in groups {
        let mut inputs: Vec<Vec<u64>> = (0..widths.len())
            .map(|k| common::operands(widths[k], common::MANY, 17 + 31 * k as u64))
            .collect();
        if float {
            meet(&mut inputs, widths[0]);
        }
        for some in list.chunks(24) {
            let texts: Vec<String> = some.iter().map(|c| c.text.clone()).collect();
            let got = common::many(&texts, &widths, to, &inputs, 0);
            for (case, got) in some.iter().zip(got) {
                let mut operands = vec![0; widths.len()];
                for (i, got) in got.iter().enumerate() {
                    for (o, input) in operands.iter_mut().zip(&inputs) {
                        *o = input[i];
                    }
                    let want = (case.plain)(&operands);
                    assert_eq!(
                        *got, want,
                        "{}: operands {operands:#x?}, got {got:#x}, want {want:#x}",
                        case.text
                    );
                }
            }
        }
    }
}

/// Checks the forms of some names.
fn check_names(names: &[&str]) {
    let mut all = Vec::new();
    for form in forms::forms().iter().filter(|f| names.contains(&f.name.as_str())) {
        for words in expand(form) {
            all.extend(cases::cases(&Words(&words)));
        }
    }
    assert!(all.len() >= names.len());
    check(&all);
}

/// Names whose forms the tests below run, in every combination of their modifiers.
#[rustfmt::skip]
const TESTED: &[&str] = &[
    "add", "sub", "mul", "mad", "fma", "div",
    "mul24", "mad24", "sad", "rem", "abs", "neg", "min", "max", "rcp", "sqrt", "copysign", "testp",
    "addc", "subc", "madc", "popc", "clz", "bfind", "brev", "bfe", "bfi", "szext", "bmsk",
    "dp4a", "dp2a", "and", "or", "xor", "not", "cnot", "lop3", "shf", "shl", "shr", "prmt",
    "setp", "selp", "slct", "set", "cvt",
];

#[test]
fn arithmetic() {
    check_names(&TESTED[..6]);
}

#[test]
fn other_arithmetic() {
    check_names(&TESTED[6..18]);
}

#[test]
fn carries_bits_and_logic() {
    check_names(&TESTED[18..41]);
}

#[test]
fn comparisons() {
    check_names(&TESTED[41..44]);
}

#[test]
fn comparisons_to_registers() {
    check_names(&TESTED[44..45]);
}

#[test]
fn conversions() {
    check_names(&TESTED[45..]);
}
