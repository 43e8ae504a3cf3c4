//! Definitions of comparisons and selections (PTX ISA 9.7.6, 9.7.7, 9.7.3 testp).

use std::cmp::Ordering;

use crate::cases::{Case, int};
use crate::exact::format;
use crate::forms::{Words, bits};

const NAMES: [&str; 18] = [
    "eq", "ne", "lt", "le", "gt", "ge", "lo", "ls", "hi", "hs", "equ", "neu", "ltu", "leu", "gtu", "geu",
    "num", "nan",
];

/// Whether a comparison holds; `None` is unordered.
fn holds(name: &str, order: Option<Ordering>) -> bool {
    use Ordering::{Equal, Greater, Less};
    match (name, order) {
        ("num", o) => o.is_some(),
        ("nan", o) => o.is_none(),
        ("equ" | "neu" | "ltu" | "leu" | "gtu" | "geu", None) => true,
        (_, None) => false,
        ("eq" | "equ", Some(o)) => o == Equal,
        ("ne" | "neu", Some(o)) => o != Equal,
        ("lt" | "lo" | "ltu", Some(o)) => o == Less,
        ("le" | "ls" | "leu", Some(o)) => o != Greater,
        ("gt" | "hi" | "gtu", Some(o)) => o == Greater,
        (_, Some(o)) => o != Less,
    }
}

fn order(a: u64, b: u64, ty: &str, ftz: bool) -> Option<Ordering> {
    if ty.contains('f') {
        let f = format(ty);
        let value = |v: u64| f.value(if ftz { f.flush(v) } else { v });
        return value(a).partial_cmp(&value(b));
    }
    Some(int(a, ty).cmp(&int(b, ty)))
}

pub fn cases(w: &Words) -> Vec<Case> {
    let text = w.text();
    let ty = w.last().to_string();
    let ftz = w.has("ftz");
    match w.0[0].as_str() {
        "selp" => {
            let n = bits(&ty);
            vec![Case::new(
                format!("and.b32 %r20, {{c}}, 1; setp.ne.u32 %p1, %r20, 0; {text} {{d}}, {{a}}, {{b}}, %p1;"),
                &[n, n, 32],
                n,
                |v| if v[2] & 1 != 0 { v[0] } else { v[1] },
            )]
        }
        "slct" => {
            let n = bits(w.before_last());
            vec![Case::new(format!("{text} {{d}}, {{a}}, {{b}}, {{c}};"), &[n, n, 32], n, move |v| {
                let first = match ty.as_str() {
                    "s32" => int(v[2], "s32") >= 0,
                    _ => {
                        let f = format("f32");
                        f.value(if ftz { f.flush(v[2]) } else { v[2] }) >= 0.0
                    }
                };
                if first { v[0] } else { v[1] }
            })]
        }
        "testp" => {
            let kind = w.0[1].clone();
            let n = bits(&ty);
            vec![
                Case::new(format!("{text} %p1, {{a}}; selp.u32 {{d}}, 1, 0, %p1;"), &[n], 32, move |v| {
                    let f = format(&ty);
                    let x = f.value(v[0]);
                    let tiny = x.abs() < 2f64.powi(f.least);
                    u64::from(match kind.as_str() {
                        "finite" => x.is_finite(),
                        "infinite" => x.is_infinite(),
                        "number" => !x.is_nan(),
                        "notanumber" => x.is_nan(),
                        "normal" => x == 0.0 || x.is_finite() && !tiny,
                        _ => x != 0.0 && tiny,
                    })
                })
                .float(),
            ]
        }
        _ => vec![compared(w, text, ty, ftz)],
    }
}

fn compared(w: &Words, text: String, ty: String, ftz: bool) -> Case {
    let n = bits(&ty);
    let name = w.one(&NAMES).expect("a comparison");
    let join = w.one(&["and", "or", "xor"]);
    let third = if join.is_some() { ", %p3" } else { "" };
    let start = "and.b32 %r20, {c}, 1; setp.ne.u32 %p3, %r20, 0;";
    let joined = move |p: bool, c: u64| match join {
        Some("and") => p && c & 1 != 0,
        Some("or") => p || c & 1 != 0,
        Some(_) => p != (c & 1 != 0),
        None => p,
    };
    if w.0[0] == "set" {
        let to = w.before_last().to_string();
        return Case::new(format!("{start} {text} {{d}}, {{a}}, {{b}}{third};"), &[n, n, 32], 32, move |v| {
            match (joined(holds(name, order(v[0], v[1], &ty, ftz)), v[2]), to.as_str()) {
                (false, _) => 0,
                (true, "f32") => 0x3f80_0000,
                _ => 0xffff_ffff,
            }
        });
    }
    // Half of the forms write one predicate alone.
    let pair = ty.ends_with("x2");
    let two = pair || join.is_some() || ty.len() == 3 && name.len() == 2;
    let (dst, second) =
        if two { ("%p1|%p2", "selp.u32 %r21, 2, 0, %p2;") } else { ("%p1", "mov.u32 %r21, 0;") };
    Case::new(
        format!(
            "{start} {text} {dst}, {{a}}, {{b}}{third}; {second} selp.u32 {{d}}, 1, 0, %p1; or.b32 {{d}}, {{d}}, %r21;"
        ),
        &[n, n, 32],
        32,
        move |v| {
            let low = |v: u64| if pair { v & 0xffff } else { v };
            let p = holds(name, order(low(v[0]), low(v[1]), &ty, ftz));
            let q = if pair { holds(name, order(v[0] >> 16, v[1] >> 16, &ty, ftz)) } else { !p };
            u64::from(joined(p, v[2])) | u64::from(two && joined(q, v[2])) << 1
        },
    )
}
