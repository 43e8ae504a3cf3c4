//! Floating-point instructions and conversions against plain definitions, in all roundings.

mod common;

use common::check;
use half::{bf16, f16};

const NAN: u64 = 0x7fff_ffff;

fn f(v: u64) -> f32 {
    f32::from_bits(v as u32)
}

fn bits(v: f32) -> u64 {
    if v.is_nan() { NAN } else { u64::from(v.to_bits()) }
}

fn d(v: u64) -> f64 {
    f64::from_bits(v)
}

fn bits64(v: f64) -> u64 {
    if v.is_nan() { 0xfff8_0000_0000_0000 } else { v.to_bits() }
}

/// Rounds `near` in a direction, given the sign of what is missing: exact value minus `near`.
fn directed(near: f32, missing: f64, mode: &str, exact: f64) -> u64 {
    if near.is_nan() {
        return NAN;
    }
    if near.is_infinite() && exact.is_finite() {
        // An overflow, or an infinite operand is excluded by `exact`.
        let down = mode == "rm" || (mode == "rz" && near > 0.0);
        let up = mode == "rp" || (mode == "rz" && near < 0.0);
        return bits(if near > 0.0 && down {
            f32::MAX
        } else if near < 0.0 && up {
            f32::MIN
        } else {
            near
        });
    }
    let step = match mode {
        "rz" if exact > 0.0 => missing < 0.0,
        "rz" => missing > 0.0,
        "rm" => missing < 0.0,
        _ => missing > 0.0,
    };
    if !step {
        return bits(near);
    }
    bits(if missing < 0.0 { near.next_down() } else { near.next_up() })
}

fn flush(v: u64) -> u64 {
    if v & 0x7f80_0000 == 0 { v & 0x8000_0000 } else { v }
}

#[test]
fn to_nearest() {
    let w = &[32, 32];
    check("add.rn.f32 {d}, {a}, {b};", w, 32, |v| bits(f(v[0]) + f(v[1])));
    check("sub.f32 {d}, {a}, {b};", w, 32, |v| bits(f(v[0]) - f(v[1])));
    check("mul.rn.f32 {d}, {a}, {b};", w, 32, |v| bits(f(v[0]) * f(v[1])));
    check("div.rn.f32 {d}, {a}, {b};", w, 32, |v| bits(f(v[0]) / f(v[1])));
    check("rcp.rn.f32 {d}, {a};", &[32], 32, |v| bits(1.0 / f(v[0])));
    check("sqrt.rn.f32 {d}, {a};", &[32], 32, |v| bits(f(v[0]).sqrt()));
    check("fma.rn.f32 {d}, {a}, {b}, {c};", &[32, 32, 32], 32, |v| bits(f(v[0]).mul_add(f(v[1]), f(v[2]))));
    check("mul.rn.f32 %f20, {a}, {b}; add.rn.f32 {d}, %f20, {c};", &[32, 32, 32], 32, |v| {
        bits(f(v[0]) * f(v[1]) + f(v[2]))
    });
    check("add.rn.ftz.f32 {d}, {a}, {b};", w, 32, |v| flush(bits(f(flush(v[0])) + f(flush(v[1])))));
    check("mul.rn.ftz.f32 {d}, {a}, {b};", w, 32, |v| flush(bits(f(flush(v[0])) * f(flush(v[1])))));
    check("add.sat.f32 {d}, {a}, {b};", w, 32, |v| {
        let x = f(v[0]) + f(v[1]);
        bits(if x > 0.0 { x.min(1.0) } else { 0.0 })
    });
    let w = &[64, 64];
    check("add.rn.f64 {d}, {a}, {b};", w, 64, |v| bits64(d(v[0]) + d(v[1])));
    check("sub.rn.f64 {d}, {a}, {b};", w, 64, |v| bits64(d(v[0]) - d(v[1])));
    check("mul.rn.f64 {d}, {a}, {b};", w, 64, |v| bits64(d(v[0]) * d(v[1])));
    check("div.rn.f64 {d}, {a}, {b};", w, 64, |v| bits64(d(v[0]) / d(v[1])));
    check("sqrt.rn.f64 {d}, {a};", &[64], 64, |v| bits64(d(v[0]).sqrt()));
    check("rcp.rn.f64 {d}, {a};", &[64], 64, |v| bits64(1.0 / d(v[0])));
    check("fma.rn.f64 {d}, {a}, {b}, {c};", &[64, 64, 64], 64, |v| bits64(d(v[0]).mul_add(d(v[1]), d(v[2]))));
}

#[test]
fn in_directions() {
    for mode in ["rz", "rm", "rp"] {
        check(&format!("mul.{mode}.f32 {{d}}, {{a}}, {{b}};"), &[32, 32], 32, |v| {
            // The product of two F32 is exact in F64.
            let exact = f64::from(f(v[0])) * f64::from(f(v[1]));
            let near = exact as f32;
            if exact == 0.0 || exact.is_nan() {
                bits(near)
            } else {
                directed(near, exact - f64::from(near), mode, exact)
            }
        });
        check(&format!("add.{mode}.f32 {{d}}, {{a}}, {{b}};"), &[32, 32], 32, |v| {
            let (a, b) = (f64::from(f(v[0])), f64::from(f(v[1])));
            let sum = a + b;
            if sum == 0.0 && a == -b && a != 0.0 || sum == 0.0 && a.is_sign_negative() != b.is_sign_negative()
            {
                return if mode == "rm" { 0x8000_0000 } else { 0 };
            }
            if !sum.is_finite() || sum == 0.0 {
                return bits(sum as f32);
            }
            // What F64 drops, after Knuth.
            let bb = sum - a;
            let lost = (a - (sum - bb)) + (b - bb);
            let near = sum as f32;
            let missing = sum - f64::from(near);
            directed(near, if missing == 0.0 || near.is_infinite() { lost } else { missing }, mode, sum)
        });
        check(&format!("div.{mode}.f32 {{d}}, {{a}}, {{b}};"), &[32, 32], 32, |v| {
            let (a, b) = (f64::from(f(v[0])), f64::from(f(v[1])));
            let near = f(v[0]) / f(v[1]);
            let q = a / b;
            if !q.is_finite() || q == 0.0 {
                return bits(near);
            }
            // a - near b is exact, its sign over b that of what is missing.
            let rest = (-f64::from(near)).mul_add(b, a);
            let missing = if near.is_infinite() { 0.0 } else { rest * b.signum() };
            directed(near, missing, mode, q)
        });
        check(&format!("sqrt.{mode}.f32 {{d}}, {{a}};"), &[32], 32, |v| {
            let x = f(v[0]);
            let near = x.sqrt();
            if x.is_nan() || x <= 0.0 || x.is_infinite() {
                return bits(near);
            }
            let n = f64::from(near);
            directed(near, (-n).mul_add(n, f64::from(x)), mode, n)
        });
    }
    // F64 sums and products in directions, where F64 with an error term is enough: no overflow, no subnormal.
    check(
        "and.b64 %rd20, {a}, 0x800fffffffffffff; or.b64 %rd21, %rd20, 0x3ff0000000000000; mul.rp.f64 {d}, %rd21, %rd21;",
        &[64],
        64,
        |v| {
            let x = d(v[0] & 0x800f_ffff_ffff_ffff | 0x3ff0_0000_0000_0000);
            let near = x * x;
            let missing = x.mul_add(x, -near);
            (if missing > 0.0 { near.next_up() } else { near }).to_bits()
        },
    );
}

#[test]
fn minima_and_signs() {
    let min = |a: f32, b: f32| match (a.is_nan(), b.is_nan()) {
        (true, true) => NAN,
        (true, _) => bits(b),
        (_, true) => bits(a),
        _ if a == 0.0 && b == 0.0 => bits(if a.is_sign_negative() { a } else { b }),
        _ => bits(if a < b { a } else { b }),
    };
    check("min.f32 {d}, {a}, {b};", &[32, 32], 32, |v| min(f(v[0]), f(v[1])));
    check("max.NaN.f32 {d}, {a}, {b};", &[32, 32], 32, |v| {
        let (a, b) = (f(v[0]), f(v[1]));
        match a.is_nan() || b.is_nan() {
            true => NAN,
            false if a == 0.0 && b == 0.0 => bits(if a.is_sign_positive() { a } else { b }),
            false => bits(if a > b { a } else { b }),
        }
    });
    check("neg.f32 {d}, {a};", &[32], 32, |v| v[0] ^ 0x8000_0000);
    check("abs.f32 {d}, {a};", &[32], 32, |v| v[0] & 0x7fff_ffff);
    check("copysign.f32 {d}, {a}, {b};", &[32, 32], 32, |v| v[0] & 0x8000_0000 | v[1] & 0x7fff_ffff);
    for (name, holds) in [
        ("lt", (|a, b| a < b) as fn(f32, f32) -> bool),
        ("geu", |a, b| a.is_nan() || b.is_nan() || a >= b),
        ("ne", |a, b| !a.is_nan() && !b.is_nan() && a != b),
        ("neu", |a, b| a != b),
        ("equ", |a, b| a.is_nan() || b.is_nan() || a == b),
        ("num", |a, b| !a.is_nan() && !b.is_nan()),
        ("nan", |a, b| a.is_nan() || b.is_nan()),
    ] {
        check(
            &format!("setp.{name}.f32 %p1, {{a}}, {{b}}; selp.u32 {{d}}, 1, 0, %p1;"),
            &[32, 32],
            32,
            |v| u64::from(holds(f(v[0]), f(v[1]))),
        );
    }
    check("testp.subnormal.f32 %p1, {a}; selp.u32 {d}, 1, 0, %p1;", &[32], 32, |v| {
        u64::from(f(v[0]).is_subnormal())
    });
}

#[test]
fn conversions() {
    check("cvt.rn.bf16.f32 {d}, {a};", &[32], 16, |v| match f(v[0]) {
        x if x.is_nan() => 0x7fff,
        x => u64::from(bf16::from_f32(x).to_bits()),
    });
    check("cvt.rn.f16.f32 {d}, {a};", &[32], 16, |v| match f(v[0]) {
        x if x.is_nan() => 0x7fff,
        x => u64::from(f16::from_f32(x).to_bits()),
    });
    check("cvt.rz.bf16.f32 {d}, {a};", &[32], 16, |v| if f(v[0]).is_nan() { 0x7fff } else { v[0] >> 16 });
    check("cvt.rn.bf16x2.f32 {d}, {a}, {b};", &[32, 32], 32, |v| {
        let one = |v: u64| if f(v).is_nan() { 0x7fff } else { u64::from(bf16::from_f32(f(v)).to_bits()) };
        one(v[0]) << 16 | one(v[1])
    });
    check("cvt.rn.relu.f16x2.f32 {d}, {a}, {b};", &[32, 32], 32, |v| {
        let one = |v: u64| match f(v) {
            x if x.is_nan() => 0x7fff,
            x if x.is_sign_negative() => 0,
            x => u64::from(f16::from_f32(x).to_bits()),
        };
        one(v[0]) << 16 | one(v[1])
    });
    check("cvt.f32.f16 {d}, {a};", &[16], 32, |v| bits(f16::from_bits(v[0] as u16).to_f32()));
    check("cvt.f32.bf16 {d}, {a};", &[16], 32, |v| bits(f32::from_bits((v[0] as u32) << 16)));
    check("cvt.rna.tf32.f32 {d}, {a};", &[32], 32, |v| match f(v[0]) {
        x if x.is_nan() => NAN,
        x if x.is_infinite() => v[0],
        _ => (v[0] + 0x1000) & !0x1fff,
    });
    check("cvt.rn.f32.s32 {d}, {a};", &[32], 32, |v| bits(v[0] as u32 as i32 as f32));
    check("cvt.rn.f32.u64 {d}, {a};", &[64], 32, |v| bits(v[0] as f32));
    check("cvt.rn.f64.s64 {d}, {a};", &[64], 64, |v| bits64(v[0] as i64 as f64));
    check("cvt.rz.f32.f64 {d}, {a};", &[64], 32, |v| {
        let x = d(v[0]);
        if !x.is_finite() {
            return bits(x as f32);
        }
        let near = x as f32;
        bits(if near.abs() as f64 > x.abs() {
            if near > 0.0 { near.next_down() } else { near.next_up() }
        } else {
            near
        })
    });
    check("cvt.rn.f32.f64 {d}, {a};", &[64], 32, |v| bits(d(v[0]) as f32));
    check("cvt.f64.f32 {d}, {a};", &[32], 64, |v| bits64(f64::from(f(v[0]))));
    check("cvt.rzi.s32.f32 {d}, {a};", &[32], 32, |v| u64::from(f(v[0]) as i32 as u32));
    check("cvt.rni.s32.f32 {d}, {a};", &[32], 32, |v| u64::from(f(v[0]).round_ties_even() as i32 as u32));
    check("cvt.rmi.u32.f32 {d}, {a};", &[32], 32, |v| u64::from(f(v[0]).floor() as u32));
    check("cvt.rpi.f32.f32 {d}, {a};", &[32], 32, |v| bits(f(v[0]).ceil()));
    check("cvt.rzi.s32.f64 {d}, {a};", &[64], 32, |v| match d(v[0]) {
        x if x.is_nan() => 0x8000_0000,
        x => u64::from(x as i32 as u32),
    });
    check("cvt.u32.u16 {d}, {a};", &[16], 32, |v| v[0]);
    check("cvt.s32.s16 {d}, {a};", &[16], 32, |v| u64::from(v[0] as i16 as i32 as u32));
    check("cvt.s64.s32 {d}, {a};", &[32], 64, |v| v[0] as u32 as i32 as i64 as u64);
    check("cvt.u32.u64 {d}, {a};", &[64], 32, |v| v[0] & 0xffff_ffff);
    check("cvt.sat.u8.s32 {d}, {a};", &[32], 32, |v| (v[0] as u32 as i32).clamp(0, 255) as u64);
    check("cvt.s8.s32 {d}, {a};", &[32], 32, |v| u64::from(v[0] as u8 as i8 as i32 as u32));
}

#[test]
fn halves() {
    let h = |v: u64| f16::from_bits(v as u16);
    let out = |v: f64| if v.is_nan() { 0x7fff } else { u64::from(f16::from_f64(v).to_bits()) };
    check("add.f16 {d}, {a}, {b};", &[16, 16], 16, |v| out(f64::from(h(v[0])) + f64::from(h(v[1]))));
    check("mul.f16 {d}, {a}, {b};", &[16, 16], 16, |v| out(f64::from(h(v[0])) * f64::from(h(v[1]))));
    check("sub.f16x2 {d}, {a}, {b};", &[32, 32], 32, |v| {
        let one = |s: u32| out(f64::from(h(v[0] >> s)) - f64::from(h(v[1] >> s))) << s;
        one(0) | one(16)
    });
    let b = |v: u64| f64::from(bf16::from_bits(v as u16));
    let out = |v: f64| if v.is_nan() { 0x7fff } else { u64::from(bf16::from_f64(v).to_bits()) };
    check("mul.bf16x2 {d}, {a}, {b};", &[32, 32], 32, |v| {
        let one = |s: u32| out(b(v[0] >> s) * b(v[1] >> s)) << s;
        one(0) | one(16)
    });
    check("neg.bf16x2 {d}, {a};", &[32], 32, |v| v[0] ^ 0x8000_8000);
    check("max.bf16 {d}, {a}, {b};", &[16, 16], 16, |v| {
        let (x, y) = (b(v[0]), b(v[1]));
        match (x.is_nan(), y.is_nan()) {
            (true, true) => 0x7fff,
            (true, _) => v[1],
            (_, true) => v[0],
            _ if x == y => v[0] & v[1],
            _ => {
                if x > y {
                    v[0]
                } else {
                    v[1]
                }
            }
        }
    });
}

#[test]
fn approximations_stay_within_their_bounds_and_move() {
    type Case = (&'static str, fn(f64) -> f64, f64, f64);
    let cases: [Case; 7] = [
        ("ex2.approx.f32", f64::exp2, 2.4e-7, 0.0),
        ("lg2.approx.f32", f64::log2, 2.4e-7, 2.5e-7),
        ("rcp.approx.f32", |x| 1.0 / x, 1.3e-7, 0.0),
        ("rsqrt.approx.f32", |x| 1.0 / x.sqrt(), 1.3e-7, 0.0),
        ("sqrt.approx.f32", f64::sqrt, 1.3e-7, 0.0),
        ("sin.approx.f32", f64::sin, 0.0, 7e-7),
        ("tanh.approx.f32", f64::tanh, 4.9e-4, 0.0),
    ];
    for (name, exact, relative, absolute) in cases {
        let inputs: Vec<u64> = (1..20_000).map(|i| u64::from((i as f32 * 3e-4).to_bits())).collect();
        let got =
            common::elements(&format!("{name} {{d}}, {{a}};"), &[32], 32, std::slice::from_ref(&inputs));
        let mut inexact = 0;
        for (x, got) in inputs.iter().zip(got) {
            let want = exact(f64::from(f(*x)));
            let error = (f64::from(f(got)) - want).abs();
            assert!(error <= want.abs() * relative + absolute, "{name} of {}: {} for {want}", f(*x), f(got));
            inexact += usize::from(f(got) != want as f32);
        }
        assert!(inexact > 1000, "{name}: a test could lean on its last bit");
    }
}
