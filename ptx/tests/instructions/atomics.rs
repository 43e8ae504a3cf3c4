//! Atomic operations (PTX ISA 9.7.13.6 to 9.7.13.8): of each thread on a place of its own, and of many on one place.

use ptx::{Launch, Memory, Options, Order, launch};

use crate::cases::{cut, int};
use crate::common::{HEAD, MANY, REGS, operands, parse};
use crate::exact::{self, F32, format};
use crate::forms::bits;

/// Operations and the types that they have.
const FORMS: [(&str, &[&str]); 10] = [
    ("and", &["b32", "b64"]),
    ("or", &["b32", "b64"]),
    ("xor", &["b32", "b64"]),
    ("exch", &["b32", "b64"]),
    ("cas", &["b16", "b32", "b64"]),
    ("inc", &["u32"]),
    ("dec", &["u32"]),
    ("min", &["u32", "u64", "s32", "s64"]),
    ("max", &["u32", "u64", "s32", "s64"]),
    ("add", &["u32", "u64", "s32", "f32", "f64", "f16", "f16x2", "bf16", "bf16x2"]),
];

/// The new value of a place.
fn plain(f: &str, ty: &str, global: bool, old: u64, b: u64, c: u64) -> u64 {
    let n = bits(ty);
    if f == "add" && ty.contains('f') {
        let f = format(ty);
        let one = |old: u64, b: u64| {
            // Sums of F32 in global memory flush subnormal numbers, those in shared memory do not.
            let flush = |v: u64| if f == F32 && global { f.flush(v) } else { v };
            let (near, rest) = exact::add(f.value(flush(old)), f.value(flush(b)), "rn");
            flush(exact::round(near, rest, f, "rn"))
        };
        return match ty.ends_with("x2") {
            true => one(old & 0xffff, b & 0xffff) | one(old >> 16, b >> 16) << 16,
            false => one(old, b),
        };
    }
    let (x, y) = (int(old, ty), int(b, ty));
    let v = match f {
        "and" => x & y,
        "or" => x | y,
        "xor" => x ^ y,
        "exch" => y,
        "cas" => return if old == b { c } else { old },
        "inc" => {
            if x >= y {
                0
            } else {
                x + 1
            }
        }
        "dec" => {
            if x == 0 || x > y {
                y
            } else {
                x - 1
            }
        }
        "min" => x.min(y),
        "max" => x.max(y),
        _ => x + y,
    };
    cut(v, n)
}

fn noftz(ty: &str) -> &'static str {
    if ty == "f64" || ty == "f32" || !ty.contains('f') { "" } else { ".noftz" }
}

/// Registers of a width: the old value, the operands, the result.
fn names(n: u32) -> [&'static str; 3] {
    match n {
        16 => ["%rs1", "%rs2", "%rs3"],
        32 => ["%r31", "%r32", "%r33"],
        _ => ["%rd31", "%rd32", "%rd33"],
    }
}

/// Spaces, as prefix and whether the place is in global memory.
const SPACES: [(&str, bool); 6] = [
    (".global", true),
    ("", true),
    (".shared", false),
    (".shared::cta", false),
    (".shared::cluster", false),
    ("", false),
];

/// One thread an element: the place starts with a, the operand is b (and c); results are the old and the new value.
fn own(name: &str, order: &str, space: &str, global: bool, f: &str, ty: &str) -> String {
    let n = bits(ty);
    let size = n / 8;
    let [b, c, d] = names(n);
    let third = if f == "cas" { format!(", {c}") } else { String::new() };
    let result = if name == "atom" { format!("{d}, ") } else { String::new() };
    let keep = if name == "atom" { format!("st.global.b{n} [%rd14], {d};") } else { String::new() };
    let place = match (global, space) {
        (true, _) => "mov.b64 %rd20, %rd10;",
        (false, "") => "cvt.u64.u32 %rd19, %r3; cvta.shared.u64 %rd20, %rd19;",
        _ => "cvt.u64.u32 %rd20, %r3;",
    };
    let put = if global {
        String::new()
    } else {
        format!("ld.global.b{n} {d}, [%rd10]; st.shared.b{n} [%r3], {d};")
    };
    let take = if global {
        String::new()
    } else {
        format!("ld.shared.b{n} {d}, [%r3]; st.global.b{n} [%rd10], {d};")
    };
    format!(
        "{HEAD}.visible .entry k(.param .u64 p0, .param .u64 p1, .param .u64 p2, .param .u64 p3) {{ {REGS} .shared .align 8 .b8 s[1024];\n\
         ld.param.u64 %rd0, [p0]; ld.param.u64 %rd1, [p1]; ld.param.u64 %rd2, [p2]; ld.param.u64 %rd3, [p3];\n\
         mov.u32 %r0, %tid.x; mov.u32 %r1, %ctaid.x; mad.lo.u32 %r2, %r1, 128, %r0; mul.wide.u32 %rd9, %r2, {size}; mov.u32 %r4, s; mad.lo.u32 %r3, %r0, 8, %r4;\n\
         add.u64 %rd10, %rd0, %rd9; add.u64 %rd11, %rd1, %rd9; add.u64 %rd12, %rd2, %rd9; add.u64 %rd14, %rd3, %rd9;\n\
         ld.global.b{n} {b}, [%rd11]; ld.global.b{n} {c}, [%rd12]; {put} {place}\n\
         {name}{order}{space}.{f}{}.{ty} {result}[%rd20], {b}{third};\n{keep}{take} ret; }}\n",
        noftz(ty)
    )
}

struct Own {
    text: String,
    atom: bool,
    global: bool,
    f: &'static str,
    ty: &'static str,
}

fn every() -> Vec<Own> {
    let mut out = Vec::new();
    let orders = ["", ".relaxed.cta", ".acquire.cluster", ".release.gpu", ".acq_rel.sys"];
    let mut turn = 0;
    for name in ["atom", "red"] {
        for (f, types) in FORMS {
            for ty in types {
                for (space, global) in SPACES {
                    if name == "red" && matches!(f, "exch" | "cas") {
                        continue;
                    }
                    // Every order in turn; `red` has no acquiring ones.
                    let mut all = vec![orders[turn % 5], orders[(turn + 2) % 5]];
                    turn += 1;
                    if space == ".global" {
                        all = orders.to_vec();
                    }
                    for order in all.into_iter().filter(|o| name == "atom" || !o.contains("acq")) {
                        let text = own(name, order, space, global, f, ty);
                        out.push(Own { text, atom: name == "atom", global, f, ty });
                    }
                }
            }
        }
    }
    // Scopes without the orders that the lists above pair them with.
    for scope in [".cta", ".cluster", ".gpu", ".sys"] {
        for (name, f, ty) in FORMS.iter().flat_map(|(f, t)| {
            [("atom", *f, t[0]), ("red", *f, t[0]), ("atom", *f, t[t.len() - 1]), ("red", *f, t[t.len() - 1])]
        }) {
            if name == "atom" || !matches!(f, "exch" | "cas") {
                out.push(Own {
                    text: own(name, scope, ".global", true, f, ty),
                    atom: name == "atom",
                    global: true,
                    f,
                    ty,
                });
                let relaxed = format!(".relaxed{scope}");
                out.push(Own {
                    text: own(name, &relaxed, ".global", true, f, ty),
                    atom: name == "atom",
                    global: true,
                    f,
                    ty,
                });
            }
        }
    }
    out
}

/// With a cache policy, which changes nothing, and vectors of F32.
fn others() -> Vec<String> {
    let mut out = Vec::new();
    for name in ["atom", "red"] {
        let d = if name == "atom" { "%r30, " } else { "" };
        let head = format!(
            "{HEAD}.visible .entry k(.param .u64 p0) {{ {REGS} ld.param.u64 %rd0, [p0]; createpolicy.fractional.L2::evict_last.b64 %rd1;\n"
        );
        for (f, types) in FORMS {
            if name == "red" && matches!(f, "exch" | "cas") {
                continue;
            }
            let ty = types[types.len() - 1];
            let n = bits(ty);
            let [b, c, d] = names(n);
            let third = if f == "cas" { format!(", {c}") } else { String::new() };
            let d = if name == "atom" { format!("{d}, ") } else { String::new() };
            out.push(format!("{head} mov.b{n} {b}, 1; mov.b{n} {c}, 1; {name}.global.{f}{}.L2::cache_hint.{ty} {d}[%rd0], {b}{third}, %rd1; ret; }}", noftz(ty)));
        }
        for ty in ["f32", "u32"] {
            out.push(format!(
                "{head} mov.b32 %r31, 0; {name}.global.add.L2::cache_hint.{ty} {d}[%rd0], %r31, %rd1; ret; }}"
            ));
        }
        for (count, order) in
            [(2, ""), (4, ".relaxed.gpu"), (2, ".release.cta"), (4, ".acquire.sys"), (2, ".acq_rel.cluster")]
        {
            if name == "red" && order.contains("acq") {
                continue;
            }
            for (space, hint, policy) in [(".global", "", ""), ("", ".L2::cache_hint", ", %rd1")] {
                let list = |first: usize| {
                    let all: Vec<String> = (first..first + count).map(|k| format!("%f{k}")).collect();
                    format!("{{{}}}", all.join(", "))
                };
                let d = if name == "atom" { format!("{}, ", list(10)) } else { String::new() };
                let set: String = (0..count).map(|k| format!("mov.f32 %f{k}, 0f3F800000; ")).collect();
                out.push(format!(
                    "{head} {set} {name}{order}{space}.add{hint}.v{count}.f32 {d}[%rd0], {}{policy}; ret; }}",
                    list(0)
                ));
            }
        }
        for order in [".release.cluster", ".relaxed.cta", ".relaxed.sys", ".release.gpu"] {
            let d = if name == "atom" { "{%f10, %f11}, " } else { "" };
            out.push(format!("{head} mov.f32 %f0, 0f3F800000; {name}{order}.global.add.v2.f32 {d}[%rd0], {{%f0, %f0}}; ret; }}"));
        }
    }
    out
}

pub fn texts() -> Vec<String> {
    every().into_iter().map(|o| o.text).chain(others()).collect()
}

#[test]
fn of_a_place_of_ones_own() {
    let mut inputs = std::collections::HashMap::new();
    let mut seen = std::collections::HashSet::new();
    for o in every() {
        // Orders and scopes change no value: fewer operands for those after the first.
        let many = if seen.insert((o.f, o.ty, o.atom, o.global)) { MANY } else { 1024 };
        let n = bits(o.ty);
        let size = n as usize / 8;
        let [a, b, c] = inputs.entry(n).or_insert_with(|| {
            let mut all = [1, 2, 3].map(|seed| operands(n, MANY, seed));
            // Comparisons that hold.
            for i in (0..MANY).step_by(3) {
                all[1][i] = all[0][i];
            }
            all
        });
        let bytes = |v: &[u64]| v.iter().flat_map(|v| v.to_le_bytes()[..size].to_vec()).collect::<Vec<u8>>();
        let module = parse(&o.text);
        let mut memory = Memory::new();
        let [pa, pb, pc] = [&*a, &*b, &*c].map(|v| memory.alloc_with(&bytes(&v[..many])));
        let out = memory.alloc((many * size) as u64);
        let mut request = Launch::new("k", [many as u32 / 128, 1, 1], [128, 1, 1]);
        for p in [pa, pb, pc, out] {
            request = request.arg(&p.to_le_bytes());
        }
        let options = Options { races: false, counters: false, ..Options::default() };
        launch(&module, &mut memory, &request, &options).unwrap_or_else(|f| panic!("{f}\n{}", o.text));
        let value = |b: &[u8]| b.iter().rev().fold(0, |v, b| v << 8 | u64::from(*b));
        let new: Vec<u64> = memory.read(pa, many * size).chunks(size).map(value).collect();
        let old: Vec<u64> = memory.read(out, many * size).chunks(size).map(value).collect();
        for i in 0..many {
            let want = plain(o.f, o.ty, o.global, a[i], b[i], c[i]);
            assert_eq!(new[i], want, "{}.{}: {:#x}, {:#x}, {:#x}", o.f, o.ty, a[i], b[i], c[i]);
            assert!(!o.atom || old[i] == a[i], "{}.{}: the old value", o.f, o.ty);
        }
    }
    for text in others() {
        let module = parse(&text);
        let mut memory = Memory::new();
        let a = memory.alloc_with(&[0; 16]);
        let request = Launch::new("k", [1; 3], [32, 1, 1]).arg(&a.to_le_bytes());
        launch(&module, &mut memory, &request, &Options::default()).unwrap_or_else(|f| panic!("{f}\n{text}"));
        if text.contains(".v2") || text.contains(".v4") {
            let words = if text.contains(".v4") { 4 } else { 2 };
            for w in memory.read(a, 4 * words).chunks(4) {
                assert_eq!(f32::from_le_bytes(w.try_into().expect("four")), 32.0, "{text}");
            }
        }
    }
}

/// All threads of a grid (or a block) on one place: the result is that of some order, and so are the old values.
#[test]
fn of_one_place_by_many() {
    const THREADS: usize = 2560;
    for (f, types) in FORMS {
        for ty in types {
            for (space, shared) in [(".global", false), (".shared", true)] {
                let n = bits(ty);
                let size = n as usize / 8;
                let [b, c, d] = names(n);
                // Small numbers, so that sums are exact in any order; `inc` and `dec` with one bound.
                let third = if f == "cas" { format!(", {c}") } else { String::new() };
                let place = if shared { "s" } else { "%rd3" };
                let put = if shared {
                    format!(
                        "setp.ne.u32 %p1, %r0, 0; @!%p1 ld.global.b{n} {d}, [%rd3]; @!%p1 st.shared.b{n} [s], {d}; bar.sync 0;"
                    )
                } else {
                    String::new()
                };
                let take = if shared {
                    format!("bar.sync 0; @!%p1 ld.shared.b{n} {d}, [s]; @!%p1 st.global.b{n} [%rd3], {d};")
                } else {
                    String::new()
                };
                let text = format!(
                    "{HEAD}.visible .entry k(.param .u64 p0, .param .u64 p1, .param .u64 p2) {{ {REGS} .shared .align 8 .b8 s[8];\n\
                     ld.param.u64 %rd0, [p0]; ld.param.u64 %rd1, [p1]; ld.param.u64 %rd3, [p2]; mov.u32 %r0, %tid.x; mov.u32 %r1, %ctaid.x; mov.u32 %r4, %ntid.x; mad.lo.u32 %r2, %r1, %r4, %r0;\n\
                     mul.wide.u32 %rd9, %r2, {size}; add.u64 %rd10, %rd0, %rd9; add.u64 %rd11, %rd1, %rd9; ld.global.b{n} {b}, [%rd10]; not.b{n} {c}, {b};\n\
                     {put} atom{space}.{f}{}.{ty} {d}, [{place}], {b}{third}; st.global.b{n} [%rd11], {d}; {take} ret; }}\n",
                    noftz(ty)
                );
                let module = parse(&text);
                let threads = if shared { 640 } else { THREADS };
                let encode = |v: u64| match *ty {
                    t if t.ends_with("x2") => exact::round(v as f64, 0, format(t), "rn") * 0x1_0001,
                    t if t.contains('f') => exact::round(v as f64, 0, format(t), "rn"),
                    _ => v,
                };
                let operand = |i: usize| match f {
                    "inc" | "dec" => 99,
                    "add" if bits(ty) == 16 || ty.ends_with("x2") => {
                        encode(u64::from(i.is_multiple_of(640 / 100)))
                    }
                    "exch" | "cas" => i as u64 + 1,
                    "and" => !(1 << (i % 60)),
                    _ => encode((i * 7 % 31) as u64),
                };
                let mask = |v: u64| cut(v.into(), n);
                let input: Vec<u64> = (0..threads).map(|i| mask(operand(i))).collect();
                let start = match f {
                    "and" => mask(u64::MAX),
                    "min" => 25,
                    "cas" => 17,
                    _ => 0,
                };
                for blocks in [Order::Any, Order::Backward, Order::Random(4)] {
                    let mut memory = Memory::new();
                    let bytes: Vec<u8> =
                        input.iter().flat_map(|v| v.to_le_bytes()[..size].to_vec()).collect();
                    let (a, b) = (memory.alloc_with(&bytes), memory.alloc((threads * size) as u64));
                    let p = memory.alloc_with(&start.to_le_bytes()[..size]);
                    let (grid, block) = if shared { (1, 640) } else { (THREADS as u32 / 128, 128) };
                    let mut request = Launch::new("k", [grid, 1, 1], [block, 1, 1]);
                    for x in [a, b, p] {
                        request = request.arg(&x.to_le_bytes());
                    }
                    let options = Options { blocks, warps: blocks, ..Options::default() };
                    launch(&module, &mut memory, &request, &options)
                        .unwrap_or_else(|f| panic!("{f}\n{text}"));
                    let value = |b: &[u8]| b.iter().rev().fold(0, |v, b| v << 8 | u64::from(*b));
                    let end = value(&memory.read(p, size));
                    let olds: Vec<u64> = memory.read(b, threads * size).chunks(size).map(value).collect();
                    // What each thread left, and the start, is what each thread found, and the end.
                    let mut found: Vec<u64> = olds.iter().copied().chain([end]).collect();
                    let mut left: Vec<u64> = olds
                        .iter()
                        .zip(&input)
                        .map(|(old, b)| plain(f, ty, !shared, *old, *b, mask(!b)))
                        .chain([start])
                        .collect();
                    found.sort_unstable();
                    left.sort_unstable();
                    assert_eq!(found, left, "{f}.{ty} {space} {blocks:?}");
                    if !matches!(f, "exch" | "cas") {
                        let want = input.iter().fold(start, |s, b| plain(f, ty, !shared, s, *b, 0));
                        assert_eq!(end, want, "{f}.{ty} {space} {blocks:?}");
                    }
                }
            }
        }
    }
}
