//! Definitions of conversions (PTX ISA 9.7.9.21).

use crate::cases::{Case, cut, int};
use crate::exact::{self, F32, format};
use crate::floats::{relu, saturated};
use crate::forms::{Words, bits};

fn least(ty: &str) -> i128 {
    if ty.starts_with('s') { -(1 << (bits(ty) - 1)) } else { 0 }
}

fn most(ty: &str) -> i128 {
    (1 << (bits(ty) - u32::from(ty.starts_with('s')))) - 1
}

fn is_float(ty: &str) -> bool {
    ty.contains('f')
}

pub fn cases(w: &Words) -> Vec<Case> {
    let (to, from) = (w.before_last().to_string(), w.last().to_string());
    if to.ends_with("x2") {
        return vec![pair(w)];
    }
    let plain = one(w);
    let width = |ty: &str| bits(ty).max(16);
    let (n, m) = (width(&from), width(&to));
    let mut all = vec![registers(w, &from, n, m, plain)];
    // Integers also lie in wider registers: the source is cut, the result extended.
    if !is_float(&from) && n < 64 {
        all.push(registers(w, &from, 64, m, one(w)));
    }
    if !is_float(&to) && m < 64 {
        all.push(registers(w, &from, n, 64, one(w)));
    }
    all
}

fn registers(w: &Words, from: &str, n: u32, m: u32, plain: impl Fn(u64) -> i128 + 'static) -> Case {
    let b = bits(from);
    let case = Case::new(format!("{} {{d}}, {{a}};", w.text()), &[n], m, move |v| {
        cut(plain(cut(v[0].into(), b)), m)
    });
    if is_float(from) { case.float() } else { case }
}

/// The result as an integer, so that it can be extended to any register.
fn one(w: &Words) -> impl Fn(u64) -> i128 + 'static {
    let (to, from) = (w.before_last().to_string(), w.last().to_string());
    let (sat, ftz, clamp) = (w.has("sat"), w.has("ftz"), w.has("relu"));
    let mode = w.one(&["rz", "rm", "rp", "rna"]).unwrap_or("rn");
    let integral = w.one(&["rni", "rzi", "rmi", "rpi"]);
    move |bits_in| {
        let whole = |x: f64| match integral {
            Some("rni") => x.round_ties_even(),
            Some("rzi") => x.trunc(),
            Some("rmi") => x.floor(),
            Some("rpi") => x.ceil(),
            _ => x,
        };
        let flushed = |v: u64, ty: &str| if ftz && ty == "f32" { F32.flush(v) } else { v };
        if !is_float(&from) {
            let v = int(bits_in, &from);
            if is_float(&to) {
                let near = v as f64;
                let rest = (v - near as i128).signum() as i32;
                let out = exact::round(near, rest, format(&to), mode);
                return i128::from(if sat { saturated(out, format(&to)) } else { out });
            }
            let v = if sat { v.clamp(least(&to), most(&to)) } else { v };
            return int(cut(v, bits(&to)), &to);
        }
        let x = format(&from).value(flushed(bits_in, &from));
        if !is_float(&to) {
            if x.is_nan() {
                // Zero, or the highest bit where 64 bits are read or written.
                let high = bits(&to) == 64 || from == "f64";
                return if high { int(1 << (bits(&to) - 1), &to) } else { 0 };
            }
            // The cast saturates; a value beyond it is beyond every type.
            return (whole(x) as i128).clamp(least(&to), most(&to));
        }
        let f = format(&to);
        let out = flushed(exact::round(whole(x), 0, f, mode), &to);
        i128::from(match (sat, clamp) {
            (true, _) => saturated(out, f),
            (_, true) => relu(out, f),
            _ => out,
        })
    }
}

fn pair(w: &Words) -> Case {
    let f = format(w.before_last());
    let mode = if w.has("rz") { "rz" } else { "rn" };
    let clamp = w.has("relu");
    Case::new(format!("{} {{d}}, {{a}}, {{b}};", w.text()), &[32, 32], 32, move |v| {
        let one = |v: u64| {
            let out = exact::round(F32.value(v), 0, f, mode);
            if clamp { relu(out, f) } else { out }
        };
        one(v[0]) << 16 | one(v[1])
    })
    .float()
}
