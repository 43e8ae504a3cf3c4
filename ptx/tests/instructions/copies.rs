//! Asynchronous copies and matrices of a warp (PTX ISA 9.7.9.25.3, 9.7.14.5).

use crate::exact::{self, F16, F32, format};
use crate::run::{Check, all};

/// A thread's own 64 bytes of global memory hold four words made of its word; %r3 is its place in shared memory.
const PUT: &str = "not.b32 %r31, %r1; add.u32 %r32, %r1, 3; xor.b32 %r33, %r1, %r0; st.global.v4.u32 [%rd4], {%r1, %r31, %r32, %r33};";
const TAKE: &str = "ld.shared.v4.u32 {%r10, %r11, %r12, %r13}, [%r3];";

fn kept(v: u32, lane: usize, k: usize) -> u32 {
    [v, !v, v.wrapping_add(3), v ^ lane as u32][k]
}

fn copies() -> Vec<Check> {
    let mut out = Vec::new();
    let back = "mov.b32 %r34, 0x5a5a5a5a; st.shared.v4.u32 [%r3], {%r34, %r34, %r34, %r34};";
    let policy = "createpolicy.fractional.L2::evict_first.b64 %rd33;";
    // Bytes copied of a size; the rest is zero up to the size and untouched behind it.
    let mut add = |copy: &str, wait: &str, size: usize, some: fn(u32, usize) -> usize| {
        let body = format!("{PUT} {back} {policy} {copy} {wait} {TAKE}");
        out.push(Check::wide(body, 4, move |v, lane, r| {
            let all: Vec<u8> = (0..4).flat_map(|k| kept(v[lane], lane, k).to_le_bytes()).collect();
            let word = [0, 1, 2, 3].map(|b| match 4 * r + b {
                i if i < some(v[lane], size) => all[i],
                i if i < size => 0,
                _ => 0x5a,
            });
            u32::from_le_bytes(word)
        }));
    };
    let whole: fn(u32, usize) -> usize = |_, size| size;
    let waits = ["cp.async.wait_all;", "cp.async.commit_group; cp.async.wait_group 0;"];
    for (kind, sizes) in [("ca", vec![4, 8, 16]), ("cg", vec![16])] {
        for size in sizes {
            for wait in waits {
                for hint in ["", ".L2::64B", ".L2::128B", ".L2::256B"] {
                    add(
                        &format!("cp.async.{kind}.shared.global{hint} [%r3], [%rd4], {size};"),
                        wait,
                        size,
                        whole,
                    );
                }
                add(
                    &format!(
                        "cp.async.{kind}.shared::cta.global.L2::cache_hint [%r3], [%rd4], {size}, %rd33;"
                    ),
                    wait,
                    size,
                    whole,
                );
                add(
                    &format!(
                        "and.b32 %r35, %r1, {}; cp.async.{kind}.shared.global [%r3], [%rd4], {size}, %r35;",
                        size - 1
                    ),
                    wait,
                    size,
                    |v, size| v as usize & (size - 1),
                );
                add(
                    &format!("cp.async.{kind}.shared.global [%r3], [%rd4], {size}, {size};"),
                    wait,
                    size,
                    whole,
                );
                add(
                    &format!(
                        "and.b32 %r35, %r1, 1; setp.ne.u32 %p1, %r35, 0; cp.async.{kind}.shared.global [%r3], [%rd4], {size}, %p1;"
                    ),
                    wait,
                    size,
                    |v, size| if v & 1 != 0 { 0 } else { size },
                );
            }
        }
    }
    // Groups end in their order: two are waited for, the third is not.
    out.push(Check::wide(
        format!(
            "{PUT} cp.async.ca.shared.global [%r3], [%rd4], 4; cp.async.commit_group; cp.async.ca.shared.global [%r3+4], [%rd4+4], 4; cp.async.commit_group; \
             cp.async.ca.shared.global [%r3+8], [%rd4+8], 4; cp.async.commit_group; cp.async.wait_group 1; ld.shared.v2.u32 {{%r10, %r11}}, [%r3]; cp.async.wait_group 0; ld.shared.u32 %r12, [%r3+8];"
        ),
        3,
        |v, lane, r| kept(v[lane], lane, r),
    ));
    // An mbarrier waits for the copies of all threads.
    for (form, count) in [
        ("cp.async.mbarrier.arrive.noinc.shared.b64", 32),
        ("cp.async.mbarrier.arrive.noinc.shared::cta.b64", 32),
        ("cp.async.mbarrier.arrive.noinc.b64", 32),
    ] {
        let at = if form.contains("shared") { "[%r30]" } else { "[%rd20]" };
        out.push(Check::wide(
            format!(
                "{PUT} add.u32 %r30, %r2, 2048; cvt.u64.u32 %rd19, %r30; cvta.shared.u64 %rd20, %rd19; setp.eq.u32 %p1, %r0, 0; @%p1 mbarrier.init.shared.b64 [%r30], {count}; bar.sync 0; \
                 cp.async.cg.shared.global [%r3], [%rd4], 16; {form} {at}; $w: mbarrier.try_wait.parity.shared.b64 %p2, [%r30], 0; @!%p2 bra $w; {TAKE}"
            )
            .replace("cp.async.cg.shared.global [%r3], [%rd4], 16", "and.b32 %r36, %r0, 7; mad.lo.u32 %r37, %r0, 16, %r2; mov.u32 %r3, %r37; cp.async.cg.shared.global [%r3], [%rd4], 16"),
            4,
            |v, lane, r| kept(v[lane], lane, r),
        ));
    }
    // Without .noinc the arrival counts itself: the phase still waits for the threads.
    for form in [
        "cp.async.mbarrier.arrive.shared.b64 [%r30]",
        "cp.async.mbarrier.arrive.shared::cta.b64 [%r30]",
        "cp.async.mbarrier.arrive.b64 [%rd20]",
    ] {
        out.push(Check::wide(
            format!(
                "{PUT} add.u32 %r30, %r2, 2048; cvt.u64.u32 %rd19, %r30; cvta.shared.u64 %rd20, %rd19; setp.eq.u32 %p1, %r0, 0; @%p1 mbarrier.init.shared.b64 [%r30], 32; bar.sync 0; \
                 mad.lo.u32 %r3, %r0, 16, %r2; cp.async.cg.shared.global [%r3], [%rd4], 16; {form}; mbarrier.arrive.shared.b64 _, [%r30]; $w: mbarrier.try_wait.parity.shared.b64 %p2, [%r30], 0; @!%p2 bra $w; {TAKE}"
            ),
            4,
            |v, lane, r| kept(v[lane], lane, r),
        ));
    }
    out
}

/// Element (row, column) of the 8 x 8 matrix whose register the lanes hold.
fn element(v: impl Fn(usize) -> u32, row: usize, column: usize) -> u32 {
    v(4 * row + column / 2) >> (16 * (column % 2)) & 0xffff
}

fn transposed(v: impl Fn(usize) -> u32, l: usize) -> u32 {
    element(&v, 2 * (l % 4), l / 4) | element(&v, 2 * (l % 4) + 1, l / 4) << 16
}

/// Register m of a lane.
fn word(v: u32, m: usize) -> u32 {
    v.rotate_left(9 * m as u32)
}

fn matrices() -> Vec<Check> {
    let mut out = Vec::new();
    // Lane l's word of matrix m goes to byte 128 m + 4 l; rows lie 16 bytes apart.
    let set: String = (0..4).map(|m| format!("shf.l.wrap.b32 %r{}, %r1, %r1, {}; ", 20 + m, 9 * m)).collect();
    let put: String = (0..4)
        .map(|m| format!("mad.lo.u32 %r30, %r0, 4, %r2; st.shared.u32 [%r30+{}], %r{}; ", 128 * m, 20 + m))
        .collect();
    for (count, lanes) in [(1usize, 8), (2, 16), (4, 32)] {
        for trans in ["", ".trans"] {
            for space in ["shared", "shared::cta"] {
                let regs = |first: usize| {
                    (first..first + count).map(|r| format!("%r{r}")).collect::<Vec<_>>().join(", ")
                };
                let t = !trans.is_empty();
                let plain = move |v: &[u32], lane: usize, r: usize| match t {
                    true => transposed(|l| word(v[l], r), lane),
                    false => word(v[lane], r),
                };
                // Addresses of lanes that give none are nonsense.
                let address = format!(
                    "setp.lt.u32 %p1, %r0, {lanes}; mad.lo.u32 %r31, %r0, 16, %r2; selp.b32 %r31, %r31, 3, %p1;"
                );
                out.push(Check::wide(
                    format!("{set} {put} {address} bar.warp.sync -1; ldmatrix.sync.aligned.m8n8.x{count}{trans}.{space}.b16 {{{}}}, [%r31];", regs(10)),
                    count,
                    plain,
                ));
                let take: String =
                    (0..count).map(|m| format!("ld.shared.u32 %r{}, [%r30+{}]; ", 10 + m, 128 * m)).collect();
                out.push(Check::wide(
                    format!("{set} {address} mad.lo.u32 %r30, %r0, 4, %r2; stmatrix.sync.aligned.m8n8.x{count}{trans}.{space}.b16 [%r31], {{{}}}; bar.warp.sync -1; {take}", regs(20)),
                    count,
                    plain,
                ));
            }
        }
    }
    out.push(Check::new("movmatrix.sync.aligned.m8n8.trans.b16 %r10, %r1;", |v, l| transposed(|l| v[l], l)));
    out
}

/// Forms of mma: k, element type, type of sums, registers of A and B.
const PRODUCTS: [(usize, &str, &str, usize, usize); 7] = [
    (16, "bf16", "f32", 4, 2),
    (16, "f16", "f32", 4, 2),
    (16, "f16", "f16", 4, 2),
    (8, "bf16", "f32", 2, 1),
    (8, "f16", "f32", 2, 1),
    (8, "tf32", "f32", 4, 2),
    (4, "tf32", "f32", 2, 1),
];

/// A finite number in each element: bits of the word with the exponent's highest bits cleared or set.
fn limited(v: u32, ty: &str) -> u32 {
    match ty {
        // Exponents from 2^-7 to 2^8, subnormal numbers too.
        "f16" => v & 0xbfff_bfff | if v & 64 != 0 { 0x0000_2000 } else { 0 },
        "bf16" => v & 0x87ff_87ff | 0x3800_3800,
        _ => v & 0x87ff_ffff | 0x3800_0000,
    }
}

fn products() -> Vec<Check> {
    let mut out = Vec::new();
    for (k, ty, sum, na, nb) in PRODUCTS {
        let nc = if sum == "f16" { 2 } else { 4 };
        let mut body = String::new();
        for r in 0..na + nb + nc {
            body += &format!(
                "shf.l.wrap.b32 %r{0}, %r1, %r1, {1}; xor.b32 %r{0}, %r{0}, {2};",
                20 + r,
                3 * r,
                (r as u32).wrapping_mul(0x2545_f491) as i32
            );
            let ty = if r < na + nb { ty } else { sum };
            body += &match ty {
                "f16" => format!(
                    "and.b32 %r40, %r{0}, 64; setp.ne.u32 %p1, %r40, 0; selp.b32 %r40, 0x2000, 0, %p1; and.b32 %r{0}, %r{0}, 0xbfffbfff; or.b32 %r{0}, %r{0}, %r40;",
                    20 + r
                ),
                "bf16" => {
                    format!("and.b32 %r{0}, %r{0}, 0x87ff87ff; or.b32 %r{0}, %r{0}, 0x38003800;", 20 + r)
                }
                _ => format!("and.b32 %r{0}, %r{0}, 0x87ffffff; or.b32 %r{0}, %r{0}, 0x38000000;", 20 + r),
            };
        }
        let list = |first: usize, n: usize| {
            let all: Vec<String> = (first..first + n).map(|r| format!("%r{r}")).collect();
            if n == 1 { all[0].clone() } else { format!("{{{}}}", all.join(", ")) }
        };
        body += &format!(
            "mma.sync.aligned.m16n8k{k}.row.col.{sum}.{ty}.{ty}.{sum} {}, {}, {}, {};",
            list(10, nc),
            list(20, na),
            list(20 + na, nb),
            list(20 + na + nb, nc)
        );
        out.push(Check::wide(body, nc, move |v, lane, r| {
            let operand = |lane: usize, r: usize, ty: &str| {
                limited(v[lane].rotate_left(3 * r as u32) ^ (r as u32).wrapping_mul(0x2545_f491), ty)
            };
            // Registers of a fragment to (row, column) of a matrix, after the figures of the ISA.
            let half = |w: u32, h: usize, ty: &str| format(ty).value(u64::from(w >> (16 * h) & 0xffff));
            let a = |row: usize, column: usize| match ty {
                "tf32" => F32.value(u64::from(
                    operand(4 * (row % 8) + column % 4, row / 8 + 2 * (column / 4), ty) & !0x1fff,
                )),
                _ => half(
                    operand(4 * (row % 8) + column % 8 / 2, row / 8 + 2 * (column / 8), ty),
                    column % 2,
                    ty,
                ),
            };
            let b = |row: usize, column: usize| match ty {
                "tf32" => F32.value(u64::from(operand(4 * column + row % 4, na + row / 4, ty) & !0x1fff)),
                _ => half(operand(4 * column + row % 8 / 2, na + row / 8, ty), row % 2, ty),
            };
            let one = |row: usize, column: usize, c: f64| (0..k).fold(c, |s, x| s + a(row, x) * b(x, column));
            let (g, t) = (lane / 4, 2 * (lane % 4));
            if sum == "f16" {
                let c = operand(lane, na + nb + r, sum);
                let of =
                    |h: usize| exact::round(one(g + 8 * r, t + h, half(c, h, "f16")), 0, F16, "rn") as u32;
                return of(0) | of(1) << 16;
            }
            let c = F32.value(operand(lane, na + nb + r, sum).into());
            exact::round(one(g + 8 * (r / 2), t + r % 2, c), 0, F32, "rn") as u32
        }));
    }
    out
}

pub fn texts() -> Vec<String> {
    [copies(), matrices(), products()].iter().flatten().map(Check::text).collect()
}

#[test]
fn copies_of_all_sizes() {
    let input = crate::run::words(1024, 8);
    copies().iter().for_each(|c| c.run(&input));
}

#[test]
fn loads_and_stores_of_matrices() {
    all(&matrices());
}

#[test]
fn products_of_all_shapes() {
    let input = crate::run::words(2560, 9);
    products().iter().for_each(|c| c.run(&input));
}
