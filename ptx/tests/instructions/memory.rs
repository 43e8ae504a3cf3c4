//! Loads, stores, moves and addresses (PTX ISA 9.7.9).

use crate::common::{HEAD, REGS};
use crate::forms::bits;
use crate::run::{Check, all, words};

const TYPES: [&str; 14] =
    ["b8", "b16", "b32", "b64", "u8", "u16", "u32", "u64", "s8", "s16", "s32", "s64", "f32", "f64"];

/// Word `k` that a thread with a word keeps in its 64 bytes.
fn kept(v: u32, k: usize) -> u32 {
    v.rotate_left(5 * k as u32) ^ (k as u32).wrapping_mul(0x9e37_79b9)
}

/// Fills 64 bytes with what `kept` says, by stores of 32 bits to `[{at}+n]`.
fn fill(space: &str, at: &str) -> String {
    let mut out = String::new();
    for k in 0..8u32 {
        out += &format!(
            "shf.l.wrap.b32 %r30, %r1, %r1, {}; xor.b32 %r30, %r30, {}; st{space}.b32 [{at}+{}], %r30;\n",
            5 * k,
            k.wrapping_mul(0x9e37_79b9) as i32,
            4 * k
        );
    }
    out
}

fn byte(v: u32, k: usize) -> u8 {
    kept(v, k / 4).to_le_bytes()[k % 4]
}

/// A value of a type at an element, from bytes, in a register of a width.
fn value(ty: &str, element: usize, register: u32, byte: impl Fn(usize) -> u8) -> u64 {
    let n = bits(ty);
    let v = (0..n as usize / 8).fold(0, |v, k| v | u64::from(byte(element * n as usize / 8 + k)) << (8 * k));
    let v = if ty.starts_with('s') { crate::cases::int(v, ty) as u64 } else { v };
    crate::cases::cut(v.into(), register)
}

fn register(width: u32, k: usize) -> String {
    match width {
        16 => format!("%rs{k}"),
        32 => format!("%r{}", 40 + k),
        _ => format!("%rd{}", 40 + k),
    }
}

/// Adds registers up into %r10 and %r11.
fn digest(width: u32, count: usize) -> String {
    let mut out = String::from("mov.b64 %rd30, 7;\n");
    for k in 0..count {
        let r = register(width, k);
        out += &match width {
            64 => format!("mov.b64 %rd31, {r};"),
            w => format!("cvt.u64.u{w} %rd31, {r};"),
        };
        out += "mad.lo.u64 %rd30, %rd30, 31, %rd31;\n";
    }
    out + "mov.b64 {%r10, %r11}, %rd30;"
}

fn digested(values: impl Iterator<Item = u64>, word: usize) -> u32 {
    let all = values.fold(7u64, |s, v| s.wrapping_mul(31).wrapping_add(v));
    (all >> (32 * word)) as u32
}

/// The natural register of a type, and wider ones.
fn widths(ty: &str) -> Vec<u32> {
    let n = bits(ty).max(16);
    if ty.starts_with('f') { vec![n] } else { [16, 32, 64].into_iter().filter(|w| *w >= n).collect() }
}

fn counts(ty: &str) -> Vec<usize> {
    [1, 2, 4, 8].into_iter().filter(|c| c * bits(ty) as usize <= 256).collect()
}

fn list(width: u32, count: usize) -> String {
    let all: Vec<String> = (0..count).map(|k| register(width, k)).collect();
    if count == 1 { all[0].clone() } else { format!("{{{}}}", all.join(", ")) }
}

fn vector(count: usize) -> String {
    if count == 1 { String::new() } else { format!(".v{count}") }
}

/// Loads of every type, count and register from memory that `start` has filled.
fn loads(name: &str, start: &str, at: &str, byte: fn(u32, usize) -> u8) -> Vec<Check> {
    let mut out = Vec::new();
    for ty in TYPES {
        for width in widths(ty) {
            for count in counts(ty) {
                let body = format!(
                    "{start}ld{name}{}.{ty} {}, [{at}];\n{}",
                    vector(count),
                    list(width, count),
                    digest(width, count)
                );
                out.push(Check::wide(body, 2, move |v, lane, r| {
                    digested((0..count).map(|e| value(ty, e, width, |k| byte(v[lane], k))), r)
                }));
            }
        }
    }
    out
}

/// Stores of every type and count over a background, read back as words.
fn stores(name: &str, start: &str, at: &str) -> Vec<Check> {
    let mut out = Vec::new();
    for ty in TYPES {
        for width in widths(ty) {
            for count in counts(ty) {
                let mut body = format!("{start}{}", fill(name, at));
                for k in 0..count {
                    let r = register(width, k);
                    // Values with all bits of the register set somewhere.
                    body += &format!("mul.wide.u32 %rd32, %r1, {}; not.b64 %rd32, %rd32;", 77_777 + k);
                    body += &match width {
                        64 => format!("mov.b64 {r}, %rd32;\n"),
                        w => format!("cvt.u{w}.u64 {r}, %rd32;\n"),
                    };
                }
                body += &format!("st{name}{}.{ty} [{at}], {};\n", vector(count), list(width, count));
                for k in 0..8 {
                    body += &format!("ld{name}.b32 %r{}, [{at}+{}];\n", 10 + k, 4 * k);
                }
                let n = bits(ty) as usize / 8;
                out.push(Check::wide(body, 8, move |v, lane, r| {
                    let one = |k: usize| {
                        if k >= n * count {
                            return byte(v[lane], k);
                        }
                        let x = !(u64::from(v[lane]) * (77_777 + (k / n) as u64));
                        x.to_le_bytes()[k % n]
                    };
                    u32::from_le_bytes([0, 1, 2, 3].map(|b| one(4 * r + b)))
                }));
            }
        }
    }
    out
}

/// Windows of memory: name, how its address comes to be, and its address.
fn windows() -> Vec<(&'static str, &'static str, &'static str)> {
    vec![
        (".global", "", "%rd4"),
        (".shared", "", "%r3"),
        (".shared::cta", "", "%r3"),
        (".shared::cluster", "", "%r3"),
        (".local", "", "here"),
        ("", "cvta.global.u64 %rd20, %rd4;\n", "%rd20"),
        ("", "cvt.u64.u32 %rd19, %r3; cvta.shared.u64 %rd20, %rd19;\n", "%rd20"),
        ("", "mov.u64 %rd19, here; cvta.local.u64 %rd20, %rd19;\n", "%rd20"),
    ]
}

fn every_load() -> Vec<Check> {
    let mut out = Vec::new();
    for (name, start, at) in windows() {
        out.extend(loads(name, &format!("{start}{}", fill(name, at)), at, byte));
    }
    let constant = |_: u32, k: usize| if k < 32 { k as u8 } else { 208 + k as u8 };
    out.extend(loads(".const", "", "table", constant));
    out.extend(loads("", "mov.u64 %rd19, table; cvta.const.u64 %rd20, %rd19;\n", "%rd20", constant));
    for name in [".param", ".param::entry"] {
        out.extend(loads(name, "", "p3", |_, k| 255 - 3 * k as u8));
    }
    out.extend(loads("", "mov.b64 %rd19, p3; cvta.param.u64 %rd20, %rd19;\n", "%rd20", |_, k| {
        255 - 3 * k as u8
    }));
    out
}

fn every_store() -> Vec<Check> {
    windows().into_iter().flat_map(|(name, start, at)| stores(name, start, at)).collect()
}

/// Hints and orders, which change no value: every word once in each form.
fn modifiers() -> Vec<Check> {
    let mut out = Vec::new();
    let policy = "createpolicy.fractional.L2::evict_first.b64 %rd33, 0f3F800000;\n";
    let mut load = |form: &str, hint: bool| {
        let extra = if hint { ", %rd33" } else { "" };
        let body = format!("{}{policy}ld{form}.u32 %r10, [%rd4+4]{extra};", fill(".global", "%rd4"));
        out.push(Check::new(body, |v, l| kept(v[l], 1)));
    };
    for start in [".weak.global", "", ".global"] {
        for cache in [".ca", ".cg", ".cs", ".lu", ".cv"] {
            load(&format!("{start}{cache}"), false);
        }
    }
    let first = ["evict_normal", "evict_unchanged", "evict_first", "evict_last", "no_allocate"];
    let second = ["evict_normal", "evict_first", "evict_last"];
    let ahead = ["64B", "128B", "256B"];
    for start in [".global", ".relaxed.gpu.global", ".acquire.sys.global"] {
        first.iter().for_each(|x| load(&format!("{start}.L1::{x}"), false));
        second.iter().for_each(|x| load(&format!("{start}.L2::{x}"), false));
        ahead.iter().for_each(|x| load(&format!("{start}.L2::{x}"), false));
        load(&format!("{start}.L2::cache_hint"), true);
        load(&format!("{start}.L1::evict_last.L2::cache_hint.L2::64B"), true);
    }
    ahead.iter().for_each(|x| load(&format!(".volatile.global.L2::{x}"), false));
    for scope in ["cta", "cluster", "gpu", "sys"] {
        for space in ["", ".global"] {
            load(&format!(".relaxed.{scope}{space}"), false);
            load(&format!(".acquire.{scope}{space}"), false);
        }
    }
    load(".mmio.relaxed.sys.global", false);
    load(".mmio.relaxed.sys", false);
    // The non-coherent path reads what the launch does not write.
    let mut read_only = |form: &str, hint: bool| {
        let extra = if hint { ", %rd33" } else { "" };
        out.push(Check::new(format!("{policy}ld{form}.u32 %r10, [%rd2]{extra};"), |v, l| v[l]));
    };
    for cache in ["", ".ca", ".cg", ".cs"] {
        read_only(&format!(".global{cache}.nc"), false);
    }
    first.iter().for_each(|x| read_only(&format!(".global.nc.L1::{x}"), false));
    second.iter().for_each(|x| read_only(&format!(".global.nc.L2::{x}"), false));
    ahead.iter().for_each(|x| read_only(&format!(".global.nc.L2::{x}"), false));
    read_only(".global.nc.L2::cache_hint", true);
    out.push(Check::new("ldu.u32 %r10, [%rd2];", |v, l| v[l]));
    let mut store = |form: &str, hint: bool| {
        let extra = if hint { ", %rd33" } else { "" };
        let body = format!(
            "{policy}not.b32 %r30, %r1; st{form}.u32 [%rd4+8], %r30{extra}; ld.global.u32 %r10, [%rd4+8];"
        );
        out.push(Check::new(body, |v, l| !v[l]));
    };
    for start in [".weak.global", ""] {
        for cache in [".wb", ".cg", ".cs", ".wt"] {
            store(&format!("{start}{cache}"), false);
        }
    }
    for start in [".global", ".relaxed.gpu.global", ".release.sys.global"] {
        first.iter().for_each(|x| store(&format!("{start}.L1::{x}"), false));
        second.iter().for_each(|x| store(&format!("{start}.L2::{x}"), false));
        store(&format!("{start}.L2::cache_hint"), true);
    }
    for scope in ["cta", "cluster", "gpu", "sys"] {
        for space in ["", ".global"] {
            store(&format!(".relaxed.{scope}{space}"), false);
            store(&format!(".release.{scope}{space}"), false);
        }
    }
    store(".mmio.relaxed.sys.global", false);
    store(".mmio.relaxed.sys", false);
    // Strong accesses of shared memory.
    for space in [".shared", ".shared::cta", ".shared::cluster"] {
        for (ld, st) in [("relaxed", "release"), ("acquire", "relaxed")] {
            let body = format!("st.{st}.cta{space}.u32 [%r3], %r1; ld.{ld}.cta{space}.u32 %r10, [%r3];");
            out.push(Check::new(body, |v, l| v[l]));
        }
    }
    out
}

/// Types and counts of the forms that only some hints have.
fn strong() -> Vec<Check> {
    let mut out = Vec::new();
    for (ld, st) in [
        (".volatile", ".volatile"),
        (".relaxed.gpu", ".relaxed.gpu"),
        (".acquire.gpu", ".release.gpu"),
        (".global.nc", ".global"),
        ("", ""),
    ] {
        for ty in TYPES {
            let width = bits(ty).max(16);
            for count in counts(ty) {
                let nc = ld.ends_with("nc");
                // The input of eight threads.
                let at = if nc { "%rd20" } else { "%rd4" };
                let start = if nc { "and.b64 %rd20, %rd2, -32;".into() } else { fill(".global", "%rd4") };
                let mut body =
                    format!("{start}ld{ld}{}.{ty} {}, [{at}];\n", vector(count), list(width, count));
                body += &format!(
                    "st{st}{}.{ty} [%rd4], {};\n{}",
                    vector(count),
                    list(width, count),
                    digest(width, count)
                );
                out.push(Check::wide(body, 2, move |v, lane, r| {
                    let eight = &v[lane & !7..];
                    let byte =
                        |k: usize| if nc { eight[k / 4].to_le_bytes()[k % 4] } else { byte(v[lane], k) };
                    digested((0..count).map(|e| value(ty, e, width, byte)), r)
                }));
            }
            for (ld, st) in [(".mmio.relaxed.sys", ".mmio.relaxed.sys"), ("u.global", ""), ("u", "")] {
                let body = match ld.starts_with('u') {
                    // A value of the table's neighbour: the input is read only.
                    true => {
                        format!("and.b64 %rd20, %rd2, -8; ld{ld}.{ty} {}, [%rd20];\n", register(width, 0))
                    }
                    false => format!(
                        "{}ld{ld}.{ty} {}, [%rd4]; st{st}.{ty} [%rd4+8], {};\n",
                        fill(".global", "%rd4"),
                        register(width, 0),
                        register(width, 0)
                    ),
                };
                let u = ld.starts_with('u');
                out.push(Check::wide(body + &digest(width, 1), 2, move |v, lane, r| {
                    let pair = [v[lane & !1], v[lane | 1]];
                    let byte = |k: usize| if u { pair[k / 4].to_le_bytes()[k % 4] } else { byte(v[lane], k) };
                    digested(std::iter::once(value(ty, 0, width, byte)), r)
                }));
            }
        }
    }
    for (form, space, at) in [
        (".volatile.shared", ".shared", "%r3"),
        (".volatile.shared::cta", ".shared", "%r3"),
        (".volatile.shared::cluster", ".shared", "%r3"),
        (".volatile.local", ".local", "here"),
        (".volatile.global", ".global", "%rd4"),
    ] {
        let body =
            format!("st{form}.u32 [{at}+4], %r1; ld{form}.u32 %r10, [{at}+4]; ld{space}.u32 %r10, [{at}+4];");
        out.push(Check::new(body, |v, l| v[l]));
    }
    for form in [".volatile.const", ".volatile.param", ".volatile.param::entry"] {
        let (at, want) = if form.ends_with("const") { ("table", 0x0302_0100) } else { ("p3", 0xf6f9_fcff) };
        out.push(Check::new(format!("ld{form}.u32 %r10, [{at}];"), move |_, _| want));
    }
    for count in [2, 4] {
        let body = format!(
            "and.b64 %rd20, %rd2, -16; ldu.global.v{count}.u32 {}, [%rd20];\n{}",
            list(32, count),
            digest(32, count)
        );
        out.push(Check::wide(body, 2, move |v, lane, r| {
            digested((0..count).map(|k| v[(lane & !3) + k].into()), r)
        }));
    }
    out
}

fn addresses() -> Vec<Check> {
    let mut out = Vec::new();
    let yes = "selp.u32 %r10, 1, 0, %p1;";
    let places = [
        ("global", "mov.b64 %rd20, %rd4;"),
        ("shared", "cvt.u64.u32 %rd19, %r3; cvta.shared.u64 %rd20, %rd19;"),
        ("shared", "cvt.u64.u32 %rd19, %r3; cvta.shared::cta.u64 %rd20, %rd19;"),
        ("shared", "cvt.u64.u32 %rd19, %r3; cvta.shared::cluster.u64 %rd20, %rd19;"),
        ("local", "mov.u64 %rd19, here; cvta.local.u64 %rd20, %rd19;"),
        ("const", "mov.u64 %rd19, table; cvta.const.u64 %rd20, %rd19;"),
        ("param", "mov.b64 %rd19, p3; cvta.param.u64 %rd20, %rd19;"),
        ("param", "mov.b64 %rd19, p3; cvta.param::entry.u64 %rd20, %rd19;"),
    ];
    let spaces =
        ["global", "local", "shared", "shared::cta", "shared::cluster", "const", "param", "param::entry"];
    for (place, start) in places {
        for space in spaces {
            let holds = u32::from(space.split(':').next() == Some(place));
            out.push(Check::new(format!("{start} isspacep.{space} %p1, %rd20; {yes}"), move |_, _| holds));
        }
    }
    // There and back again.
    for (space, own) in [
        ("global", "mov.b64 %rd19, %rd4;"),
        ("shared", "cvt.u64.u32 %rd19, %r3;"),
        ("shared::cta", "cvt.u64.u32 %rd19, %r3;"),
        ("shared::cluster", "cvt.u64.u32 %rd19, %r3;"),
        ("local", "mov.u64 %rd19, here;"),
        ("const", "mov.u64 %rd19, table;"),
        ("param", "mov.b64 %rd19, p3;"),
        ("param::entry", "mov.b64 %rd19, p3;"),
    ] {
        out.push(Check::new(
            format!("{own} cvta.{space}.u64 %rd20, %rd19; cvta.to.{space}.u64 %rd21, %rd20; setp.eq.u64 %p1, %rd21, %rd19; {yes}"),
            |_, _| 1,
        ));
    }
    // Addresses of 32 bits exist for windows below 4 GiB only.
    out.push(Check::new(
        "mov.u32 %r30, %r3; cvta.to.shared.u32 %r31, %r30; sub.u32 %r10, %r31, %r3;",
        |_, _| 0,
    ));
    for hint in [
        "prefetch.global.L1 [%rd4];",
        "prefetch.global.L2 [%rd4];",
        "prefetch.L1 [%rd4];",
        "prefetch.local.L2 [here];",
        "prefetch.global.L2::evict_last [%rd4];",
        "prefetch.global.L2::evict_normal [%rd4];",
        "prefetchu.L1 [%rd4];",
        "discard.global.L2 [%rd5], 128;",
        "discard.L2 [%rd5], 128;",
        "applypriority.global.L2::evict_normal [%rd4], 128;",
        "applypriority.L2::evict_normal [%rd4], 128;",
        "cp.async.bulk.prefetch.L2.global [%rd4], 64;",
        "createpolicy.fractional.L2::evict_last.b64 %rd33, 0f3F800000; cp.async.bulk.prefetch.L2.global.L2::cache_hint [%rd4], 64, %rd33;",
        "createpolicy.fractional.L2::evict_last.L2::evict_unchanged.b64 %rd33;",
        "createpolicy.fractional.L2::evict_normal.L2::evict_first.b64 %rd33, 0f3F000000;",
        "createpolicy.fractional.L2::evict_unchanged.b64 %rd33;",
        "nanosleep.u32 20;",
        "nanosleep.u32 %r0;",
        "brkpt;",
        "pmevent 7;",
        "griddepcontrol.wait;",
        "griddepcontrol.launch_dependents;",
        "setmaxnreg.inc.sync.aligned.u32 240;",
        "setmaxnreg.dec.sync.aligned.u32 24;",
    ] {
        out.push(Check::new(format!("{hint} mov.u32 %r10, %r1;"), |v, l| v[l]));
    }
    out
}

fn moves() -> Vec<Check> {
    let mut out = Vec::new();
    for ty in ["b16", "u16", "s16"] {
        out.push(Check::new(
            format!("cvt.u16.u32 %rs1, %r1; mov.{ty} %rs2, %rs1; cvt.u32.u16 %r10, %rs2;"),
            |v, l| v[l] & 0xffff,
        ));
    }
    for ty in ["b32", "u32", "s32", "f32"] {
        out.push(Check::new(format!("mov.{ty} %r10, %r1;"), |v, l| v[l]));
    }
    for ty in ["b64", "u64", "s64", "f64"] {
        out.push(Check::wide(
            format!("mul.wide.u32 %rd20, %r1, 77777; mov.{ty} %rd21, %rd20; mov.b64 {{%r10, %r11}}, %rd21;"),
            2,
            |v, l, r| ((u64::from(v[l]) * 77_777) >> (32 * r)) as u32,
        ));
    }
    out.push(Check::new(
        "and.b32 %r30, %r1, 1; setp.ne.u32 %p1, %r30, 0; mov.pred %p2, !%p1; selp.u32 %r10, 1, 0, %p2;",
        |v, l| !v[l] & 1,
    ));
    out.push(Check::new("mov.b32 {%rs9, %rs10}, %r1; mov.b32 %r10, {%rs10, %rs9};", |v, l| {
        v[l].rotate_left(16)
    }));
    out.push(Check::wide(
        "mov.b64 %rd20, {%r1, %r0}; mov.b64 {%rs1, %rs2, %rs3, %rs4}, %rd20; mov.b64 %rd21, {%rs4, %rs3, %rs2, %rs1}; mov.b64 {%r10, %r11}, %rd21; mov.b64 {_, %r12}, %rd20;",
        3,
        |v, l, r| match r {
            0 => (l as u32) << 16,
            1 => v[l].rotate_left(16),
            _ => l as u32,
        },
    ));
    out
}

/// Control: branches, tables, calls, early ends.
fn control() -> Vec<String> {
    let text = |body: &str| {
        format!(
            "{HEAD}.func (.param .b32 r) twice(.param .b32 x) {{ .reg .b32 %r<4>; .reg .pred %p<2>; ld.param::func.b32 %r1, [x]; \
             setp.gt.s32 %p1, %r1, 20; @%p1 bra.uni $big; add.s32 %r2, %r1, %r1; st.param::func.b32 [r], %r2; ret.uni; \
             $big: st.param.b32 [r], 99; ret; }}\n\
             .visible .entry k(.param .u64 p0) {{ {REGS} ld.param.u64 %rd0, [p0]; mov.u32 %r0, %tid.x; mad.wide.u32 %rd1, %r0, 4, %rd0;\n{body} st.global.u32 [%rd1], %r1; exit; }}\n"
        )
    };
    ["call.uni", "call"]
        .iter()
        .zip(["brx.idx", "brx.idx.uni"])
        .map(|(call, brx)| {
            text(&format!(
                "{{ .param .b32 a; .param .b32 b; st.param.b32 [a], %r0; {call} (b), twice, (a); ld.param.b32 %r1, [b]; }}\n\
                 and.b32 %r3, %r0, 3; $list: .branchtargets $zero, $one, $two, $two; {brx} %r3, $list;\n\
                 $zero: add.u32 %r1, %r1, 1000; bra $end; $one: add.u32 %r1, %r1, 2000; bra $end; $two: add.u32 %r1, %r1, 3000;\n$end:"
            ))
        })
        .collect()
}

pub fn texts() -> Vec<String> {
    let some = [every_load(), every_store(), modifiers(), strong(), addresses(), moves()];
    some.iter().flatten().map(Check::text).chain(control()).collect()
}

fn few(checks: &[Check]) {
    let input = words(256, 3);
    checks.iter().for_each(|c| c.run(&input));
}

#[test]
fn loads_of_all_spaces_types_and_registers() {
    few(&every_load());
}

#[test]
fn stores_of_all_spaces_types_and_registers() {
    few(&every_store());
}

#[test]
fn hints_and_orders_change_no_value() {
    few(&modifiers());
    few(&strong());
}

#[test]
fn addresses_and_hints() {
    few(&addresses());
}

#[test]
fn moves_of_all_types() {
    all(&moves());
}

#[test]
fn calls_and_jump_tables() {
    for text in control() {
        let module = crate::common::parse(&text);
        let mut memory = ptx::Memory::new();
        let out = memory.alloc(256);
        let request = ptx::Launch::new("k", [1; 3], [64, 1, 1]).arg(&out.to_le_bytes());
        ptx::launch(&module, &mut memory, &request, &ptx::Options::default())
            .unwrap_or_else(|f| panic!("{f}"));
        for (i, got) in memory.read(out, 256).chunks(4).enumerate() {
            let want = (if i > 20 { 99 } else { 2 * i }) + [1000, 2000, 3000, 3000][i % 4];
            assert_eq!(u32::from_le_bytes(got.try_into().expect("four")) as usize, want, "thread {i}");
        }
    }
}
