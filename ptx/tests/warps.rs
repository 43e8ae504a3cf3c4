//! Instructions of a whole warp, loads and stores, atomics and matrix products against plain definitions.

mod common;

use common::{HEAD, REGS, parse};
use ptx::{Launch, Memory, Options, launch};
use rand::{Rng, SeedableRng, rngs::SmallRng};

/// Runs a body for blocks of one warp: %r0 the lane, %r1 a word of `input` of this thread; {d} is stored as `words`
/// registers from %r10 on.
fn warps(body: &str, input: &[u32], words: usize) -> Vec<u32> {
    let stores: String =
        (0..words).map(|w| format!("st.global.u32 [%rd3+{}], %r{};", 4 * w, 10 + w)).collect();
    let text = format!(
        "{HEAD}.visible .entry k(.param .u64 p0, .param .u64 p1) {{\n{REGS}.shared .align 16 .b8 s[4096];\n\
         ld.param.u64 %rd0, [p0]; ld.param.u64 %rd1, [p1]; mov.u32 %r0, %tid.x; mov.u32 %r5, %ctaid.x; mov.u32 %r2, s;\n\
         mad.lo.u32 %r6, %r5, 32, %r0; mad.wide.u32 %rd2, %r6, 4, %rd0; mad.wide.u32 %rd3, %r6, {}, %rd1;\n\
         ld.global.u32 %r1, [%rd2];\n{body}\n{stores}\nret;\n}}\n",
        4 * words
    );
    let module = parse(&text);
    let mut memory = Memory::new();
    let bytes: Vec<u8> = input.iter().flat_map(|v| v.to_le_bytes()).collect();
    let (a, b) = (memory.alloc_with(&bytes), memory.alloc((4 * words * input.len()) as u64));
    let request = Launch::new("k", [input.len() as u32 / 32, 1, 1], [32, 1, 1])
        .arg(&a.to_le_bytes())
        .arg(&b.to_le_bytes());
    launch(&module, &mut memory, &request, &Options::default()).unwrap_or_else(|f| panic!("{f}\n{text}"));
    memory
        .read(b, 4 * words * input.len())
        .chunks(4)
        .map(|c| u32::from_le_bytes(c.try_into().expect("four")))
        .collect()
}

fn random(n: usize, seed: u64) -> Vec<u32> {
    let mut rng = SmallRng::seed_from_u64(seed);
    (0..n).map(|_| rng.random()).collect()
}

/// Compares with a definition of (all lanes' values, lane).
fn check(body: &str, plain: impl Fn(&[u32], usize) -> u32) {
    let input: Vec<u32> = random(10_240, 5).iter().map(|v| if v & 1 == 0 { v % 5 } else { *v }).collect();
    let got = warps(body, &input, 1);
    for (w, (values, got)) in input.chunks(32).zip(got.chunks(32)).enumerate() {
        for (lane, got) in got.iter().enumerate() {
            assert_eq!(*got, plain(values, lane), "{body}: warp {w}, lane {lane}");
        }
    }
}

#[test]
fn shuffles() {
    check("shfl.sync.bfly.b32 %r10, %r1, 5, 31, -1;", |v, l| v[l ^ 5]);
    check("shfl.sync.up.b32 %r10, %r1, 3, 0, -1;", |v, l| if l >= 3 { v[l - 3] } else { v[l] });
    check("shfl.sync.down.b32 %r10, %r1, 7, 31, -1;", |v, l| if l + 7 < 32 { v[l + 7] } else { v[l] });
    check("shfl.sync.idx.b32 %r10, %r1, %r1, 31, -1;", |v, l| v[v[l] as usize % 32]);
    // Segments of eight lanes: mask 0x18 in bits 8 to 12.
    check(
        "shfl.sync.down.b32 %r10|%p1, %r1, 2, 0x181f, -1;",
        |v, l| if l % 8 + 2 < 8 { v[l + 2] } else { v[l] },
    );
    check("shfl.sync.up.b32 %r20|%p1, %r1, 1, 0x1800, -1; selp.u32 %r10, 1, 0, %p1;", |_, l| {
        u32::from(l % 8 >= 1)
    });
    check("shfl.sync.idx.b32 %r10, %r1, 3, 0x181f, -1;", |v, l| v[l / 8 * 8 + 3]);
}

#[test]
fn votes_matches_and_reductions() {
    let odd = |v: &[u32]| (0..32).fold(0, |m, l| m | (v[l] & 1) << l);
    let p = "and.b32 %r4, %r1, 1; setp.eq.u32 %p1, %r4, 1;";
    check(&format!("{p} vote.sync.ballot.b32 %r10, %p1, -1;"), |v, _| odd(v));
    check(&format!("{p} vote.sync.any.pred %p2, !%p1, -1; selp.u32 %r10, 1, 0, %p2;"), |v, _| {
        u32::from(odd(v) != u32::MAX)
    });
    check(&format!("{p} vote.sync.all.pred %p2, %p1, -1; selp.u32 %r10, 1, 0, %p2;"), |v, _| {
        u32::from(odd(v) == u32::MAX)
    });
    check(&format!("{p} vote.sync.uni.pred %p2, %p1, -1; selp.u32 %r10, 1, 0, %p2;"), |v, _| {
        u32::from(odd(v) == u32::MAX || odd(v) == 0)
    });
    check("match.any.sync.b32 %r10, %r1, -1;", |v, l| {
        (0..32).fold(0, |m, o| m | u32::from(v[o] == v[l]) << o)
    });
    check(
        "match.all.sync.b32 %r10|%p1, %r1, -1;",
        |v, _| if v.iter().all(|x| *x == v[0]) { u32::MAX } else { 0 },
    );
    check("redux.sync.add.u32 %r10, %r1, -1;", |v, _| v.iter().fold(0, |a, b| a.wrapping_add(*b)));
    check("redux.sync.max.s32 %r10, %r1, -1;", |v, _| v.iter().map(|x| *x as i32).max().expect("32") as u32);
    check("redux.sync.min.u32 %r10, %r1, -1;", |v, _| *v.iter().min().expect("32"));
    check("redux.sync.xor.b32 %r10, %r1, -1;", |v, _| v.iter().fold(0, |a, b| a ^ b));
    check("activemask.b32 %r10;", |_, _| u32::MAX);
    check("elect.sync %r20|%p1, -1; selp.u32 %r10, 1, 0, %p1;", |_, l| u32::from(l == 0));
    // Halves of a warp vote among themselves, in a branch each.
    check(
        &format!(
            "{p} setp.lt.u32 %p3, %r0, 16; @%p3 bra $a; vote.sync.ballot.b32 %r10, %p1, 0xffff0000; bra $b; \
             $a: vote.sync.ballot.b32 %r10, %p1, 0xffff; $b:"
        ),
        |v, l| odd(v) & if l < 16 { 0xffff } else { 0xffff_0000 },
    );
}

#[test]
fn loads_and_stores_of_all_widths() {
    let own = "mad.lo.u32 %r20, %r0, 16, %r2;";
    check(&format!("{own} st.shared.u32 [%r20], %r1; ld.shared.s8 %r10, [%r20+3];"), |v, l| {
        (v[l] as i32 >> 24) as u32
    });
    check(&format!("{own} st.shared.u32 [%r20], %r1; ld.shared.u16 %r10, [%r20+2];"), |v, l| v[l] >> 16);
    check(
        &format!("{own} st.shared.u32 [%r20], %r1; st.shared.u8 [%r20+1], %r0; ld.shared.u32 %r10, [%r20];"),
        |v, l| v[l] & 0xffff_00ff | (l as u32) << 8,
    );
    check(
        &format!(
            "{own} st.shared.v4.b32 [%r20], {{%r1, %r0, 7, %r1}}; ld.shared.v2.b64 {{%rd10, %rd11}}, [%r20]; shr.u64 %rd12, %rd10, 32; cvt.u32.u64 %r10, %rd12; cvt.u32.u64 %r11, %rd11; add.u32 %r10, %r10, %r11;"
        ),
        |_, l| l as u32 + 7,
    );
    check(
        &format!(
            "{own} cvt.u64.u32 %rd10, %r20; cvta.shared.u64 %rd11, %rd10; st.u32 [%rd11], %r1; cvta.to.shared.u64 %rd12, %rd11; cvt.u32.u64 %r21, %rd12; ld.shared.u32 %r10, [%r21];"
        ),
        |v, l| v[l],
    );
    check(
        "{ .local .align 8 .b8 here[16]; .reg .b64 %a, %g; mov.u64 %a, here; cvta.local.u64 %g, %a; st.u32 [%g+4], %r1; ld.local.u32 %r10, [here+4]; }",
        |v, l| v[l],
    );
    check(
        "prmt.b32 %r20, %r1, %r0, 0x5410; { .reg .b16 %lo, %hi; mov.b32 {%lo, %hi}, %r20; mov.b32 %r10, {%hi, %lo}; }",
        |v, l| (v[l] & 0xffff) << 16 | l as u32,
    );
}

#[test]
fn calls_and_jump_tables() {
    let text = format!(
        "{HEAD}.func (.param .b32 r) twice(.param .b32 x) {{ .reg .b32 %r<4>; .reg .pred %p<2>; ld.param.b32 %r1, [x]; \
         setp.gt.s32 %p1, %r1, 20; @%p1 bra $big; add.s32 %r2, %r1, %r1; st.param.b32 [r], %r2; ret; \
         $big: st.param.b32 [r], 99; ret; }}\n\
         .visible .entry k(.param .u64 p0) {{ {REGS} ld.param.u64 %rd0, [p0]; mov.u32 %r0, %tid.x; mad.wide.u32 %rd1, %r0, 4, %rd0;\n\
         {{ .param .b32 a; .param .b32 b; st.param.b32 [a], %r0; call.uni (b), twice, (a); ld.param.b32 %r1, [b]; }}\n\
         and.b32 %r3, %r0, 3; $list: .branchtargets $zero, $one, $two, $two; brx.idx %r3, $list;\n\
         $zero: add.u32 %r1, %r1, 1000; bra $end; $one: add.u32 %r1, %r1, 2000; bra $end; $two: add.u32 %r1, %r1, 3000;\n\
         $end: st.global.u32 [%rd1], %r1; ret; }}\n"
    );
    let module = parse(&text);
    let mut memory = Memory::new();
    let out = memory.alloc(256);
    let request = Launch::new("k", [1; 3], [64, 1, 1]).arg(&out.to_le_bytes());
    launch(&module, &mut memory, &request, &Options::default()).unwrap_or_else(|f| panic!("{f}"));
    for (i, got) in memory.read(out, 256).chunks(4).enumerate() {
        let want = (if i > 20 { 99 } else { 2 * i }) + [1000, 2000, 3000, 3000][i % 4];
        assert_eq!(u32::from_le_bytes(got.try_into().expect("four")) as usize, want, "thread {i}");
    }
}

#[test]
fn atomics() {
    type Plain = fn(u64, u64) -> u64;
    let cases: [(&str, Plain, u64); 8] = [
        ("add.u32", |a, b| (a + b) & 0xffff_ffff, 5),
        ("min.s32", |a, b| (a as i32).min(b as i32) as u32 as u64, 5),
        ("max.u32", u64::max, 5),
        ("and.b32", |a, b| a & b, 0xffff_ffff),
        ("or.b32", |a, b| a | b, 0),
        ("xor.b32", |a, b| a ^ b, 1),
        ("add.u64", |a, b| a + b, 1 << 40),
        ("min.u64", u64::min, u64::MAX),
    ];
    for (name, plain, start) in cases {
        let wide = name.ends_with("64");
        let value = if wide { "%rd5" } else { "%r1" };
        let text = format!(
            "{HEAD}.visible .entry k(.param .u64 p0, .param .u64 p1) {{ {REGS} ld.param.u64 %rd0, [p0]; ld.param.u64 %rd1, [p1]; \
             mov.u32 %r0, %tid.x; mov.u32 %r2, %ctaid.x; mad.lo.u32 %r0, %r2, 128, %r0; mad.wide.u32 %rd2, %r0, 4, %rd0; \
             ld.global.u32 %r1, [%rd2]; cvt.u64.u32 %rd5, %r1; red.global.{name} [%rd1], {value}; ret; }}"
        );
        let module = parse(&text);
        let input = random(10_240, 9);
        let mut memory = Memory::new();
        let bytes: Vec<u8> = input.iter().flat_map(|v| v.to_le_bytes()).collect();
        let (a, b) = (memory.alloc_with(&bytes), memory.alloc_with(&start.to_le_bytes()));
        let request = Launch::new("k", [80, 1, 1], [128, 1, 1]).arg(&a.to_le_bytes()).arg(&b.to_le_bytes());
        launch(&module, &mut memory, &request, &Options::default()).unwrap_or_else(|f| panic!("{f}"));
        let got = u64::from_le_bytes(memory.read(b, 8).try_into().expect("eight"));
        let want = input.iter().fold(start, |s, v| plain(s, u64::from(*v)));
        assert_eq!(got, want, "{name}");
    }
    check(
        "setp.eq.u32 %p1, %r0, 0; @%p1 st.shared.u32 [%r2], %r1; bar.warp.sync -1; atom.shared.cas.b32 %r10, [%r2], 77, 78; bar.warp.sync -1; ld.shared.u32 %r10, [%r2];",
        |v, _| if v[0] == 77 { 78 } else { v[0] },
    );
    check(
        "setp.eq.u32 %p1, %r0, 0; @%p1 st.shared.u32 [%r2], 30; bar.warp.sync -1; atom.shared.inc.u32 %r10, [%r2], 31; bar.warp.sync -1; ld.shared.u32 %r10, [%r2];",
        |_, _| 30,
    );
}

#[test]
fn matrix_loads_and_stores() {
    // Lane l's word goes to row l / 4, columns 2 (l mod 4) and the next, of an 8 x 8 matrix.
    let element =
        |v: &[u32], row: usize, column: usize| v[4 * row + column / 2] >> (16 * (column % 2)) & 0xffff;
    let put = "mad.lo.u32 %r20, %r0, 4, %r2; st.shared.u32 [%r20], %r1; bar.warp.sync -1; and.b32 %r21, %r0, 7; mad.lo.u32 %r21, %r21, 16, %r2;";
    check(&format!("{put} ldmatrix.sync.aligned.m8n8.x1.shared.b16 {{%r10}}, [%r21];"), |v, l| v[l]);
    check(&format!("{put} ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {{%r10}}, [%r21];"), move |v, l| {
        element(v, 2 * (l % 4), l / 4) | element(v, 2 * (l % 4) + 1, l / 4) << 16
    });
    check("movmatrix.sync.aligned.m8n8.trans.b16 %r10, %r1;", move |v, l| {
        element(v, 2 * (l % 4), l / 4) | element(v, 2 * (l % 4) + 1, l / 4) << 16
    });
    check(
        "and.b32 %r21, %r0, 7; mad.lo.u32 %r21, %r21, 16, %r2; stmatrix.sync.aligned.m8n8.x1.trans.shared.b16 [%r21], {%r1}; bar.warp.sync -1; mad.lo.u32 %r20, %r0, 4, %r2; ld.shared.u32 %r10, [%r20];",
        move |v, l| element(v, 2 * (l % 4), l / 4) | element(v, 2 * (l % 4) + 1, l / 4) << 16,
    );
}

#[test]
fn matrix_products() {
    // Every lane makes its operands from its word and the number of the register.
    let operand = |word: u32, r: u32| {
        // Small numbers, exact in every format: -8 to 7.5 in steps of a half.
        let one = |bits: u32| ((bits & 31) as f32 - 16.0) / 2.0;
        [one(word >> (5 * r)), one((word >> (5 * r)).wrapping_mul(2_654_435_761) >> 7)]
    };
    let input = random(32 * 40, 21);
    for (name, to, k) in [("bf16", "cvt.rn.bf16x2.f32", 16usize), ("f16", "cvt.rn.f16x2.f32", 16)] {
        let mut body = String::new();
        for r in 0..6 {
            body += &format!(
                "shr.u32 %r30, %r1, {}; mul.lo.u32 %r31, %r30, 2654435761; shr.u32 %r31, %r31, 7;",
                5 * r
            );
            for (x, f) in [(30, 30), (31, 31)] {
                body += &format!(
                    "and.b32 %r32, %r{x}, 31; cvt.rn.f32.u32 %f{f}, %r32; sub.f32 %f{f}, %f{f}, 0f41800000; mul.f32 %f{f}, %f{f}, 0f3F000000;"
                );
            }
            body += &format!("{to} %r{}, %f31, %f30;", 40 + r);
        }
        body += "mov.f32 %f20, 0f3F800000; cvt.rn.f32.u32 %f21, %r0;";
        body += &format!(
            "mma.sync.aligned.m16n8k16.row.col.f32.{name}.{name}.f32 {{%f0, %f1, %f2, %f3}}, {{%r40, %r41, %r42, %r43}}, {{%r44, %r45}}, {{%f20, %f21, %f20, %f21}};"
        );
        for r in 0..4 {
            body += &format!("mov.b32 %r{}, %f{r};", 10 + r);
        }
        let got = warps(&body, &input, 4);
        for (w, words) in input.chunks(32).enumerate() {
            let mut a = [[0f32; 16]; 16];
            let mut b = [[0f32; 8]; 16];
            for (l, word) in words.iter().enumerate() {
                let (g, t) = (l / 4, l % 4);
                for r in 0..4 {
                    let v = operand(*word, r as u32);
                    for h in 0..2 {
                        a[g + 8 * (r % 2)][2 * t + 8 * (r / 2) + h] = v[h];
                    }
                }
                for r in 0..2 {
                    let v = operand(*word, 4 + r as u32);
                    for h in 0..2 {
                        b[2 * t + 8 * r + h][g] = v[h];
                    }
                }
            }
            for l in 0..32 {
                for r in 0..4 {
                    let (row, column) = (l / 4 + 8 * (r / 2), 2 * (l % 4) + r % 2);
                    let c = if r % 2 == 0 { 1.0 } else { l as f32 };
                    let want = (0..k).fold(c, |s, x| s + a[row][x] * b[x][column]);
                    let got = f32::from_bits(got[(32 * w + l) * 4 + r]);
                    assert_eq!(got, want, "{name}: warp {w}, lane {l}, register {r}");
                }
            }
        }
    }
    // TF32: lane l holds A[l / 4][l mod 4] and so on; B is made the identity, so D = A.
    let body = "cvt.rn.f32.u32 %f30, %r0; mov.b32 %r40, %f30; mov.b32 %r41, 0; mov.b32 %r42, 0; mov.b32 %r43, 0; \
        shr.u32 %r30, %r0, 2; and.b32 %r31, %r0, 3; setp.eq.u32 %p1, %r30, %r31; selp.f32 %f31, 0f3F800000, 0f00000000, %p1; mov.b32 %r44, %f31; \
        add.u32 %r31, %r31, 4; setp.eq.u32 %p1, %r30, %r31; selp.f32 %f31, 0f3F800000, 0f00000000, %p1; mov.b32 %r45, %f31; mov.f32 %f20, 0f00000000; \
        mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%f0, %f1, %f2, %f3}, {%r40, %r41, %r42, %r43}, {%r44, %r45}, {%f20, %f20, %f20, %f20}; \
        mov.b32 %r10, %f0; mov.b32 %r11, %f1; mov.b32 %r12, %f2;";
    let got = warps(body, &random(32, 1), 3);
    for l in 0..32 {
        for r in 0..2 {
            let column = 2 * (l % 4) + r;
            let want = if column < 4 { (4 * (l / 4) + column) as f32 } else { 0.0 };
            assert_eq!(f32::from_bits(got[3 * l + r]), want, "lane {l}, register {r}");
        }
        assert_eq!(got[3 * l + 2], 0);
    }
}
