//! Definitions of integer, logic and bit instructions (PTX ISA 9.7.1, 9.7.2, 9.7.8, 9.7.9.7).

use crate::cases::{Case, cut, int};
use crate::forms::{Words, bits};

pub fn cases(w: &Words) -> Vec<Case> {
    let text = w.text();
    let ty = w.last().to_string();
    if w.0[0] == "and" || w.0[0] == "or" || w.0[0] == "xor" || w.0[0] == "not" || w.0[0] == "cnot" {
        return vec![logic(w)];
    }
    match w.0[0].as_str() {
        "lop3" => return (0..256).map(lop3).collect(),
        "prmt" => return vec![prmt(w)],
        "shf" => return vec![shf(w)],
        "add" | "addc" | "sub" | "subc" if w.has("cc") || w.0[0].ends_with('c') => return vec![carry(w)],
        "mad" | "madc" if w.has("cc") || w.0[0] == "madc" => return vec![mad_carry(w)],
        "dp4a" | "dp2a" => return vec![dot(w)],
        _ => {}
    }
    if !ty.starts_with(['u', 's', 'b']) || ty.starts_with("bf") || w.0.len() < 2 {
        return Vec::new();
    }
    let n = bits(&ty);
    let t = ty.clone();
    let wide = if w.has("wide") { 2 * n } else { n };
    let product = move |v: &[u64], t: &str| int(v[0], t) * int(v[1], t);
    let two = |f: Box<dyn Fn(i128, i128) -> i128>| {
        let t = ty.clone();
        vec![Case::new(format!("{text} {{d}}, {{a}}, {{b}};"), &[n, n], n, move |v| {
            cut(f(int(v[0], &t), int(v[1], &t)), n)
        })]
    };
    let one = |to: u32, f: Box<dyn Fn(i128) -> i128>| {
        let t = ty.clone();
        vec![Case::new(format!("{text} {{d}}, {{a}};"), &[n], to, move |v| cut(f(int(v[0], &t)), to))]
    };
    let three = format!("{text} {{d}}, {{a}}, {{b}}, {{c}};");
    let (high, signed) = (w.has("hi"), ty.starts_with('s'));
    match w.0[0].as_str() {
        "add" if w.has("sat") => two(Box::new(|a, b| (a + b).clamp(i32::MIN.into(), i32::MAX.into()))),
        "sub" if w.has("sat") => two(Box::new(|a, b| (a - b).clamp(i32::MIN.into(), i32::MAX.into()))),
        "add" => two(Box::new(|a, b| a + b)),
        "sub" => two(Box::new(|a, b| a - b)),
        "mul" if w.has("wide") => {
            vec![Case::new(format!("{text} {{d}}, {{a}}, {{b}};"), &[n, n], wide, move |v| {
                cut(product(v, &t), wide)
            })]
        }
        // The full product of 64 unsigned bits does not fit an i128, its halves do.
        "mul" if high && ty == "u64" => two(Box::new(|a, b| ((a as u128 * b as u128) >> 64) as i128)),
        "mul" if high => two(Box::new(move |a, b| (a * b) >> n)),
        "mul" => two(Box::new(i128::wrapping_mul)),
        "mad" if w.has("wide") => {
            vec![Case::new(three, &[n, n, wide], wide, move |v| cut(product(v, &t) + i128::from(v[2]), wide))]
        }
        "mad" => vec![Case::new(three, &[n, n, n], n, move |v| {
            let (a, b) = (int(v[0], &t), int(v[1], &t));
            let p = match (high, t == "u64") {
                (true, true) => ((a as u128 * b as u128) >> 64) as i128,
                (true, false) => (a * b) >> n,
                _ => a.wrapping_mul(b),
            };
            cut(p.wrapping_add(i128::from(v[2])), n)
        })],
        "mul24" | "mad24" => {
            let add = w.0[0] == "mad24";
            let widths: &[u32] = if add { &[32, 32, 32] } else { &[32, 32] };
            let form = if add { three } else { format!("{text} {{d}}, {{a}}, {{b}};") };
            vec![Case::new(form, widths, 32, move |v| {
                let low = |v: u64| {
                    let v = i128::from(v & 0xff_ffff);
                    if signed && v >> 23 != 0 { v - (1 << 24) } else { v }
                };
                let p = low(v[0]) * low(v[1]);
                cut((if high { p >> 16 } else { p }) + if add { i128::from(v[2]) } else { 0 }, 32)
            })]
        }
        "sad" => vec![Case::new(three, &[n, n, n], n, move |v| {
            cut((int(v[0], &t) - int(v[1], &t)).abs() + int(v[2], &t), n)
        })],
        // By zero: all bits, and the dividend.
        "div" => two(Box::new(|a, b| if b == 0 { -1 } else { a / b })),
        "rem" => two(Box::new(|a, b| if b == 0 { a } else { a % b })),
        "min" => two(Box::new(i128::min)),
        "max" => two(Box::new(i128::max)),
        "abs" => one(n, Box::new(i128::abs)),
        "neg" => one(n, Box::new(|a| -a)),
        "popc" => one(32, Box::new(move |a| (0..n).map(|k| a >> k & 1).sum())),
        "clz" => one(32, Box::new(move |a| (0..n).rev().take_while(|k| a >> k & 1 == 0).count() as i128)),
        "brev" => one(n, Box::new(move |a| (0..n).fold(0, |v, k| v | (a >> k & 1) << (n - 1 - k)))),
        "bfind" => {
            let shift = w.has("shiftamt");
            one(
                32,
                Box::new(move |a| {
                    let a = if a < 0 { !a } else { a };
                    match (0..n).rev().find(|k| a >> k & 1 != 0) {
                        None => -1,
                        Some(k) => i128::from(if shift { n - 1 - k } else { k }),
                    }
                }),
            )
        }
        "bfe" => vec![Case::new(three, &[n, 32, 32], n, move |v| {
            let (at, len) = (v[1] & 0xff, v[2] & 0xff);
            let bit = |k: u64| if k < u64::from(n) { v[0] >> k & 1 } else { 0 };
            let sign = if signed && len > 0 { bit((at + len - 1).min(u64::from(n) - 1)) } else { 0 };
            let inside = |k: u64| k < len && at + k < u64::from(n);
            (0..u64::from(n)).fold(0, |o, k| o | (if inside(k) { bit(at + k) } else { sign }) << k)
        })],
        "bfi" => vec![
            Case::new(format!("{text} {{d}}, {{a}}, {{b}}, {{c}}, 9;"), &[n, n, 32], n, move |v| {
                insert(v[0], v[1], v[2], 9, n)
            }),
            Case::new(format!("{text} {{d}}, {{a}}, {{b}}, 5, {{c}};"), &[n, n, 32], n, move |v| {
                insert(v[0], v[1], 5, v[2], n)
            }),
        ],
        "szext" => {
            let clamp = w.has("clamp");
            vec![Case::new(format!("{text} {{d}}, {{a}}, {{b}};"), &[32, 32], 32, move |v| {
                let width = if clamp { v[1].min(32) } else { v[1] % 32 };
                let bit = |k: u64| v[0] >> k & 1;
                let sign = if signed && width > 0 { bit(width - 1) } else { 0 };
                (0..32).fold(0, |o, k| o | (if k < width { bit(k) } else { sign }) << k)
            })]
        }
        "bmsk" => {
            let clamp = w.has("clamp");
            vec![Case::new(format!("{text} {{d}}, {{a}}, {{b}};"), &[32, 32], 32, move |v| {
                let of = |v: u64| if clamp { v.min(32) } else { v % 32 };
                (0..32).filter(|k| *k >= of(v[0]) && *k < of(v[0]) + of(v[1])).fold(0, |o, k| o | 1 << k)
            })]
        }
        "shl" | "shr" => {
            let left = w.0[0] == "shl";
            vec![Case::new(format!("{text} {{d}}, {{a}}, {{b}};"), &[n, 32], n, move |v| {
                let by = v[1].min(u64::from(n)) as u32;
                cut(if left { int(v[0], &t) << by } else { int(v[0], &t) >> by }, n)
            })]
        }
        _ => Vec::new(),
    }
}

fn insert(a: u64, b: u64, at: u64, len: u64, n: u32) -> u64 {
    let (at, len) = (at & 0xff, len & 0xff);
    (0..u64::from(n)).fold(0, |o, k| {
        let from_a = k >= at && k < at + len;
        o | (if from_a { a >> (k - at) & 1 } else { b >> k & 1 }) << k
    })
}

fn logic(w: &Words) -> Case {
    let (text, name) = (w.text(), w.0[0].clone());
    let f = move |a: u64, b: u64| match name.as_str() {
        "and" => a & b,
        "or" => a | b,
        "xor" => a ^ b,
        "not" => !a,
        _ => u64::from(a == 0),
    };
    let unary = w.0[0].ends_with("not");
    if w.last() == "pred" {
        let set =
            "and.b32 %r20, {a}, 1; setp.ne.u32 %p1, %r20, 0; and.b32 %r21, {b}, 1; setp.ne.u32 %p2, %r21, 0;";
        let second = if unary { "" } else { ", !%p2" };
        return Case::new(
            format!("{set} {text} %p3, %p1{second}; selp.u32 {{d}}, 1, 0, %p3;"),
            &[32, 32],
            32,
            move |v| f(v[0] & 1, !v[1] & 1) & 1,
        );
    }
    let n = bits(w.last());
    let second = if unary { "" } else { ", {b}" };
    Case::new(format!("{text} {{d}}, {{a}}{second};"), &[n, n], n, move |v| cut(f(v[0], v[1]).into(), n))
}

fn lop3(table: u64) -> Case {
    Case::new(format!("lop3.b32 {{d}}, {{a}}, {{b}}, {{c}}, {table};"), &[32, 32, 32], 32, move |v| {
        (0..32).fold(0, |o, k| {
            let at = (v[0] >> k & 1) * 4 + (v[1] >> k & 1) * 2 + (v[2] >> k & 1);
            o | (table >> at & 1) << k
        })
    })
}

/// The tables of the modes, as the ISA prints them: bytes 3 to 0 for each selector.
fn prmt(w: &Words) -> Case {
    let rows = match w.last() {
        "f4e" => Some(["3210", "4321", "5432", "6543"]),
        "b4e" => Some(["5670", "6701", "7012", "0123"]),
        "rc8" => Some(["0000", "1111", "2222", "3333"]),
        "ecl" => Some(["3210", "3211", "3222", "3333"]),
        "ecr" => Some(["0000", "1110", "2210", "3210"]),
        "rc16" => Some(["1010", "3232", "1010", "3232"]),
        _ => None,
    };
    Case::new(format!("{} {{d}}, {{a}}, {{b}}, {{c}};", w.text()), &[32, 32, 32], 32, move |v| {
        let bytes = v[1] << 32 | v[0];
        let byte = |k: u64| bytes >> (8 * k) & 0xff;
        (0..4).fold(0, |o, k| {
            let b = match &rows {
                Some(rows) => {
                    let row = rows[(v[2] & 3) as usize].as_bytes();
                    byte(u64::from(row[3 - k as usize] - b'0'))
                }
                None => {
                    let s = v[2] >> (4 * k);
                    if s & 8 == 0 { byte(s & 7) } else { (byte(s & 7) >> 7) * 0xff }
                }
            };
            o | b << (8 * k)
        })
    })
}

fn shf(w: &Words) -> Case {
    let (left, clamp) = (w.has("l"), w.has("clamp"));
    Case::new(format!("{} {{d}}, {{a}}, {{b}}, {{c}};", w.text()), &[32, 32, 32], 32, move |v| {
        let by = if clamp { v[2].min(32) } else { v[2] % 32 };
        let both = u128::from(v[1]) << 32 | u128::from(v[0]);
        let v = if left { both << by >> 32 } else { both >> by };
        v as u64 & 0xffff_ffff
    })
}

fn register(n: u32, k: u32) -> String {
    if n == 64 { format!("%rd{}", 10 + k) } else { format!("%r{}", 20 + k) }
}

/// Additions and subtractions around the carry: what the tested instruction writes and reads is read and written by others.
fn carry(w: &Words) -> Case {
    let ty = w.last().to_string();
    let n = bits(&ty);
    let sub = w.0[0].starts_with("sub");
    let (reads, writes) = (w.0[0].ends_with('c'), w.has("cc"));
    let name = if sub { "sub" } else { "add" };
    let (x, y) = (register(n, 0), register(n, 1));
    let mut text = String::new();
    if reads {
        text += &format!("{name}.cc.{ty} {y}, {{b}}, {{c}}; ");
    }
    text += &format!("{} {x}, {{a}}, {{b}}; ", w.text());
    // The carry that it leaves, or what was there if it leaves none.
    text += &match writes || reads {
        true => format!("{name}c.{ty} {{d}}, {x}, {{c}};"),
        false => format!("add.{ty} {{d}}, {x}, 0;"),
    };
    Case::new(text, &[n, n, n], n, move |v| {
        let apply = |a: u64, b: u64, c: i128| {
            let sum = if sub { i128::from(a) - i128::from(b) - c } else { i128::from(a) + i128::from(b) + c };
            (cut(sum, n), i128::from(sum < 0 || sum >> n != 0))
        };
        let before = if reads { apply(v[1], v[2], 0).1 } else { 0 };
        let (x, after) = apply(v[0], v[1], before);
        apply(x, v[2], if writes { after } else { before }).0
    })
}

fn mad_carry(w: &Words) -> Case {
    let ty = w.last().to_string();
    let n = bits(&ty);
    let (reads, writes, high) = (w.0[0] == "madc", w.has("cc"), w.has("hi"));
    let (x, y) = (register(n, 0), register(n, 1));
    let start = if reads { format!("add.cc.{ty} {y}, {{b}}, {{c}}; ") } else { String::new() };
    let text = format!("{start}{} {x}, {{a}}, {{b}}, {{c}}; addc.{ty} {{d}}, {x}, {{b}};", w.text());
    Case::new(text, &[n, n, n], n, move |v| {
        let product = match ty.as_str() {
            "u64" => (u128::from(v[0]) * u128::from(v[1])) as i128,
            t => int(v[0], t) * int(v[1], t),
        };
        let part = match (high, ty == "u64") {
            (true, true) => (product as u128 >> 64) as u64,
            (true, false) => cut(product >> n, n),
            _ => cut(product, n),
        };
        let before = if reads { (i128::from(v[1]) + i128::from(v[2])) >> n } else { 0 };
        let sum = i128::from(part) + i128::from(v[2]) + before;
        let carry = if writes { sum >> n } else { before };
        cut(i128::from(cut(sum, n)) + i128::from(v[1]) + carry, n)
    })
}

fn dot(w: &Words) -> Case {
    let (ta, tb) = (w.before_last().replace("32", ""), w.last().replace("32", ""));
    let four = w.0[0] == "dp4a";
    let high = w.has("hi");
    Case::new(format!("{} {{d}}, {{a}}, {{b}}, {{c}};", w.text()), &[32, 32, 32], 32, move |v| {
        let sum: i128 = match four {
            true => (0..4)
                .map(|k| int(v[0] >> (8 * k), &format!("{ta}8")) * int(v[1] >> (8 * k), &format!("{tb}8")))
                .sum(),
            false => (0..2)
                .map(|k| {
                    let byte = v[1] >> (8 * k + if high { 16 } else { 0 });
                    int(v[0] >> (16 * k), &format!("{ta}16")) * int(byte, &format!("{tb}8"))
                })
                .sum(),
        };
        cut(sum + i128::from(v[2]), 32)
    })
}
