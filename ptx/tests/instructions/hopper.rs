//! mbarriers, bulk copies and clusters (PTX ISA 9.7.13.15, 9.7.9.25.4, 9.7.9.23).

use ptx::{Launch, Memory, Options, Order, launch};
use rand::{Rng, SeedableRng, rngs::SmallRng};

use crate::common::{HEAD, REGS, parse};

/// %rd0: 4,096 words of input, %rd1: output, %r0: thread, %r2: shared memory, %r3: an mbarrier, %rd3: its generic address,
/// %p1: the first thread, %r7: the block's rank in its cluster.
fn kernel(body: &str) -> String {
    format!(
        "{HEAD}.visible .entry k(.param .u64 p0, .param .u64 p1) {{\n{REGS}.shared .align 128 .b8 s[8192]; .shared .align 8 .b64 bar;\n\
         ld.param.u64 %rd0, [p0]; ld.param.u64 %rd1, [p1]; mov.u32 %r0, %tid.x; mov.u32 %r7, %cluster_ctarank; mov.u32 %r2, s; mov.u32 %r3, bar;\n\
         cvt.u64.u32 %rd2, %r3; cvta.shared.u64 %rd3, %rd2; cvt.u64.u32 %rd2, %r2; cvta.shared.u64 %rd4, %rd2; setp.eq.u32 %p1, %r0, 0;\n\
         createpolicy.fractional.L2::evict_first.b64 %rd33;\n{body}\nret; }}\n"
    )
}

const WORDS: usize = 4096;

/// Runs a kernel under several schedules; the words of its output.
fn run(text: &str, blocks: u32, threads: u32) -> Vec<u32> {
    let module = parse(text);
    let mut out = Vec::new();
    for warps in [Order::Any, Order::Backward, Order::Random(1)] {
        let mut memory = Memory::new();
        let input: Vec<u8> = (0..WORDS as u32).flat_map(|i| input(i).to_le_bytes()).collect();
        let (a, b) = (memory.alloc_with(&input), memory.alloc_with(&vec![0; 4 * WORDS]));
        let mut request =
            Launch::new("k", [blocks, 1, 1], [threads, 1, 1]).arg(&a.to_le_bytes()).arg(&b.to_le_bytes());
        request.cluster = [blocks, 1, 1];
        let options = Options { warps, step_limit: 1 << 20, ..Options::default() };
        launch(&module, &mut memory, &request, &options).unwrap_or_else(|f| panic!("{f}\n{text}"));
        out = memory
            .read(b, 4 * WORDS)
            .chunks(4)
            .map(|c| u32::from_le_bytes(c.try_into().expect("four")))
            .collect();
    }
    out
}

fn input(i: u32) -> u32 {
    i.wrapping_mul(0x9e37_79b9) ^ i
}

/// A plain model of an mbarrier object.
#[derive(Clone, Copy)]
struct Model {
    expected: u32,
    pending: u32,
    tx: i64,
    phase: u64,
}

impl Model {
    fn settle(&mut self) {
        if self.pending == 0 && self.tx == 0 {
            self.phase += 1;
            self.pending = self.expected;
        }
    }
}

/// One thread's operations on one object, drawn at random, each followed by tests of its phase; and what the tests say.
fn sequence(seed: u64) -> (String, Vec<u32>) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let count = rng.random_range(1..6);
    let mut m = Model { expected: count, pending: count, tx: 0, phase: 0 };
    let shared = [".shared", ".shared::cta", ""];
    let mut body = format!("mbarrier.init{}.b64 [BAR], {count};\n", shared[seed as usize % 3]);
    let mut want = Vec::new();
    let mut held: Option<u64> = None;
    let scopes = ["", ".release.cta", ".release.cluster", ".relaxed.cta", ".relaxed.cluster"];
    let waits = ["", ".acquire.cta", ".acquire.cluster", ".relaxed.cta", ".relaxed.cluster"];
    let mut in_flight = 0u32;
    for step in 0..60 {
        let space = shared[rng.random_range(0..3)];
        let scope = scopes[rng.random_range(0..5)];
        let kind = rng.random_range(0..7);
        let drop = if m.expected > 1 && rng.random_range(0..6) == 0 { "_drop" } else { "" };
        let arrivals = rng.random_range(1..=m.pending.max(1)).min(m.pending);
        match kind {
            0..3 if m.pending > 0 && (drop.is_empty() || m.expected > arrivals) => {
                held = Some(m.phase);
                let n = if arrivals == 1 && kind == 0 { String::new() } else { format!(", {arrivals}") };
                // Addresses of another block's memory return no state.
                body += &match space {
                    "" | ".shared" | ".shared::cta" => {
                        format!("mbarrier.arrive{drop}{scope}{space}.b64 %rd20, [BAR]{n};\n")
                    }
                    _ => unreachable!(),
                };
                m.pending -= arrivals;
                if !drop.is_empty() {
                    m.expected -= arrivals;
                }
            }
            3 if m.pending > 0 && (drop.is_empty() || m.expected > 1) => {
                held = Some(m.phase);
                let bytes = 16 * rng.random_range(1..9);
                body +=
                    &format!("mbarrier.arrive{drop}.expect_tx{scope}{space}.b64 %rd20, [BAR], {bytes};\n");
                (m.tx, in_flight, m.pending) = (m.tx + i64::from(bytes), in_flight + bytes, m.pending - 1);
                if !drop.is_empty() {
                    m.expected -= 1;
                }
            }
            4 => {
                let bytes = 16 * rng.random_range(1..9);
                let scope = ["", ".relaxed.cta", ".relaxed.cluster"][rng.random_range(0..3)];
                body += &format!("mbarrier.expect_tx{scope}{space}.b64 [BAR], {bytes};\n");
                (m.tx, in_flight) = (m.tx + i64::from(bytes), in_flight + bytes);
            }
            _ if in_flight > 0 => {
                let bytes = if kind == 5 { in_flight } else { 16 };
                let scope = ["", ".relaxed.cta", ".relaxed.cluster"][rng.random_range(0..3)];
                body += &format!("mbarrier.complete_tx{scope}{space}.b64 [BAR], {bytes};\n");
                (m.tx, in_flight) = (m.tx - i64::from(bytes), in_flight - bytes);
            }
            _ => continue,
        }
        m.settle();
        let (wait, space) = (waits[rng.random_range(0..5)], shared[rng.random_range(0..3)]);
        let name = ["test_wait", "try_wait"][step % 2];
        body += &format!(
            "mbarrier.{name}.parity{wait}{space}.b64 %p2, [BAR], 0; mbarrier.{name}.parity{wait}{space}.b64 %p3, [BAR], 1;\n"
        );
        let state = match held {
            Some(phase) => {
                body += &format!("mbarrier.{name}{wait}{space}.b64 %p4, [BAR], %rd20;\n");
                u32::from(m.phase != phase)
            }
            None => {
                body += "setp.ne.u32 %p4, %r0, %r0;\n";
                0
            }
        };
        body += &format!(
            "selp.u32 %r10, 1, 0, %p2; selp.u32 %r11, 2, 0, %p3; selp.u32 %r12, 4, 0, %p4; or.b32 %r10, %r10, %r11; or.b32 %r10, %r10, %r12; st.global.u32 [%rd1+{}], %r10;\n",
            4 * want.len()
        );
        want.push(u32::from(m.phase & 1 == 1) + 2 * u32::from(m.phase & 1 == 0) + 4 * state);
    }
    body += &format!("mbarrier.inval{}.b64 [BAR];\n", shared[seed as usize % 3]);
    // Without a space an address is generic.
    let lines: Vec<String> = body
        .lines()
        .map(|l| {
            let parts: Vec<String> = l
                .split_inclusive(';')
                .map(|i| i.replace("BAR", if i.contains("shared") { "%r3" } else { "%rd3" }))
                .collect();
            parts.concat()
        })
        .collect();
    (kernel(&lines.join("\n")), want)
}

#[test]
fn mbarriers_after_random_operations() {
    for seed in 0..200 {
        let (text, want) = sequence(seed);
        assert_eq!(run(&text, 1, 1)[..want.len()], want[..], "{text}");
    }
}

struct Case {
    text: String,
    blocks: u32,
    threads: u32,
    plain: Box<dyn Fn(usize) -> u32>,
    words: usize,
}

const INIT: &str = "@%p1 mbarrier.init.shared.b64 [%r3], 1; fence.mbarrier_init.release.cluster; bar.sync 0;";
const WAIT: &str = "$w: mbarrier.try_wait.parity.shared.b64 %p2, [%r3], 0; @!%p2 bra $w;";
const BOTH: &str = "barrier.cluster.arrive; barrier.cluster.wait;";
/// Stores `words` words of shared memory to the block's part of the output, 256 words each.
const OUT: &str = "mad.lo.u32 %r4, %r0, 4, %r2; ld.shared.u32 %r5, [%r4]; mad.lo.u32 %r6, %r7, 256, %r0; mad.wide.u32 %rd5, %r6, 4, %rd1; st.global.u32 [%rd5], %r5;";

fn copies() -> Vec<Case> {
    let mut out = Vec::new();
    let mut add = |body: String, blocks: u32, plain: Box<dyn Fn(usize) -> u32>| {
        out.push(Case { text: kernel(&body), blocks, threads: 256, plain, words: 256 * blocks as usize });
    };
    // From global to shared memory.
    for space in ["shared::cluster", "shared::cta"] {
        for (hint, policy) in [("", ""), (".L2::cache_hint", ", %rd33")] {
            for piece in [16u32, 48, 1024] {
                let mut copies = String::new();
                for at in (0..1024).step_by(piece as usize) {
                    let n = piece.min(1024 - at);
                    copies += &format!(
                        "@%p1 cp.async.bulk.{space}.global.mbarrier::complete_tx::bytes{hint} [%r2+{at}], [%rd0+{at}], {n}, [%r3]{policy};\n"
                    );
                }
                add(
                    format!(
                        "{INIT} @%p1 mbarrier.arrive.expect_tx.shared.b64 _, [%r3], 1024;\n{copies} {WAIT} {OUT}"
                    ),
                    1,
                    Box::new(|i| input(i as u32)),
                );
            }
        }
    }
    // To all blocks of a mask: 0, 1 and 3 of 4 from block 0; the others keep what they have.
    for (hint, policy) in [("", ""), (".L2::cache_hint", ", %rd33")] {
        add(
            format!(
                "mad.lo.u32 %r4, %r0, 4, %r2; st.shared.u32 [%r4], %r0; {INIT} setp.eq.u32 %p3, %r7, 2; @%p1 mbarrier.arrive.expect_tx.shared.b64 _, [%r3], 1024; {BOTH}\n\
                 setp.eq.and.u32 %p4, %r7, 0, %p1; mov.u16 %rs1, 11; @%p4 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster{hint} [%r2], [%rd0+64], 1024, [%r3], %rs1{policy};\n\
                 @%p3 bra $out; {WAIT} $out: {OUT} {BOTH}"
            ),
            4,
            Box::new(|i| if i / 256 == 2 { (i % 256) as u32 } else { input((i % 256) as u32 + 16) }),
        );
    }
    // From shared memory to another block's.
    add(
        format!(
            "add.u32 %r8, %r7, 1; and.b32 %r8, %r8, 1; mad.lo.u32 %r4, %r0, 4, %r2; mad.lo.u32 %r9, %r7, 1000, %r0; st.shared.u32 [%r4+4096], %r9; fence.proxy.async.shared::cta; {INIT}\n\
             @%p1 mbarrier.arrive.expect_tx.shared.b64 _, [%r3], 1024; {BOTH} mapa.shared::cluster.u32 %r20, %r2, %r8; mapa.shared::cluster.u32 %r21, %r3, %r8;\n\
             @%p1 cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%r20], [%r2+4096], 1024, [%r21]; {WAIT} {OUT} {BOTH}"
        ),
        2,
        Box::new(|i| ((i / 256 + 1) % 2 * 1000 + i % 256) as u32),
    );
    // From shared to global memory, in groups.
    for (hint, policy) in [("", ""), (".L2::cache_hint", ", %rd33")] {
        for wait in ["cp.async.bulk.wait_group 0;", "cp.async.bulk.wait_group.read 0;"] {
            add(
                format!(
                    "mad.lo.u32 %r4, %r0, 4, %r2; mul.lo.u32 %r9, %r0, 7; st.shared.u32 [%r4], %r9; fence.proxy.async.shared::cta; bar.sync 0;\n\
                     @%p1 cp.async.bulk.global.shared::cta.bulk_group{hint} [%rd1], [%r2], 512{policy}; @%p1 cp.async.bulk.commit_group;\n\
                     @%p1 cp.async.bulk.global.shared::cta.bulk_group{hint} [%rd1+512], [%r2+512], 512{policy}; @%p1 cp.async.bulk.commit_group; @%p1 {wait}"
                ),
                1,
                Box::new(|i| 7 * i as u32),
            );
        }
    }
    // Sums in global memory, of every type: twice the value of each element.
    for ty in ["f32", "f64", "u32", "s32", "u64"] {
        for (hint, policy) in [("", ""), (".L2::cache_hint", ", %rd33")] {
            let set = match ty {
                "f32" => "cvt.rn.f32.u32 %f1, %r0; mov.b32 %r9, %f1;",
                // The upper halves of F64 and 64-bit integers lie in odd words.
                "f64" => {
                    "shr.u32 %r20, %r0, 1; and.b32 %r21, %r0, 1; setp.ne.u32 %p3, %r21, 0; cvt.rn.f64.u32 %fd1, %r20; mov.b64 {%r22, %r23}, %fd1; selp.b32 %r9, %r23, %r22, %p3;"
                }
                "u64" => "and.b32 %r21, %r0, 1; setp.ne.u32 %p3, %r21, 0; selp.b32 %r9, 1, 0x80000001, %p3;",
                "s32" => "sub.u32 %r9, 100, %r0;",
                _ => "mul.lo.u32 %r9, %r0, 0x1000001;",
            };
            let plain: Box<dyn Fn(usize) -> u32> = match ty {
                "f32" => Box::new(|i| (2.0 * i as f32).to_bits()),
                "f64" => Box::new(|i| ((2.0 * (i / 2) as f64).to_bits() >> (32 * (i % 2))) as u32),
                "u64" => Box::new(|i| if i % 2 == 0 { 2 } else { 3 }),
                "s32" => Box::new(|i| (200 - 2 * i as i32) as u32),
                _ => Box::new(|i| (2 * i as u32).wrapping_mul(0x100_0001)),
            };
            let reduce = format!(
                "@%p1 cp.reduce.async.bulk.global.shared::cta.bulk_group{hint}.add.{ty} [%rd1], [%r2], 1024{policy};"
            );
            add(
                format!(
                    "{set} mad.lo.u32 %r4, %r0, 4, %r2; st.shared.u32 [%r4], %r9; fence.proxy.async.global; bar.sync 0; {reduce} {reduce} @%p1 cp.async.bulk.commit_group; @%p1 cp.async.bulk.wait_group 0;"
                ),
                1,
                plain,
            );
        }
    }
    // Distributed shared memory by both kinds of addresses, and ranks of addresses.
    let next = "add.u32 %r8, %r7, 1; and.b32 %r8, %r8, 3; mad.lo.u32 %r4, %r0, 4, %r2; mad.lo.u32 %r9, %r7, 1000, %r0; st.shared.u32 [%r4], %r9;";
    for read in [
        "mapa.shared::cluster.u32 %r20, %r4, %r8; ld.shared::cluster.u32 %r5, [%r20]; getctarank.shared::cluster.u32 %r21, %r20; getctarank.shared::cluster.u32 %r22, %r4;",
        "cvt.u64.u32 %rd6, %r4; cvta.shared.u64 %rd7, %rd6; mapa.u64 %rd8, %rd7, %r8; ld.u32 %r5, [%rd8]; getctarank.u64 %r21, %rd8; getctarank.u64 %r22, %rd7;",
    ] {
        add(
            format!(
                "{next} {BOTH} {read} mad.lo.u32 %r5, %r21, 100000, %r5; mad.lo.u32 %r5, %r22, 10000, %r5; mad.lo.u32 %r6, %r7, 256, %r0; mad.wide.u32 %rd5, %r6, 4, %rd1; st.global.u32 [%rd5], %r5; {BOTH}"
            ),
            4,
            Box::new(|i| {
                let (own, next) = (i / 256, (i / 256 + 1) % 4);
                (next * 101_000 + own * 10_000 + i % 256) as u32
            }),
        );
    }
    // Arrivals on another block's mbarrier, with and without bytes.
    for arrive in [
        "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r21];",
        "mbarrier.arrive.shared::cluster.b64 _, [%r21], 1;",
        "mbarrier.arrive_drop.shared::cluster.b64 _, [%r21];",
        "mbarrier.arrive.expect_tx.relaxed.cluster.shared::cluster.b64 _, [%r21], 16; @%p1 mbarrier.complete_tx.relaxed.cluster.shared::cluster.b64 [%r21], 16;",
        "mbarrier.arrive_drop.expect_tx.shared::cluster.b64 _, [%r21], 16; @%p1 mbarrier.complete_tx.shared::cluster.b64 [%r21], 16;",
        "mbarrier.expect_tx.shared::cluster.b64 [%r21], 32; @%p1 mbarrier.complete_tx.shared::cluster.b64 [%r21], 32; @%p1 mbarrier.arrive.shared::cluster.b64 _, [%r21];",
    ] {
        add(
            format!(
                "{INIT} {BOTH} add.u32 %r8, %r7, 1; and.b32 %r8, %r8, 1; mapa.shared::cluster.u32 %r21, %r3, %r8; @%p1 {arrive} {WAIT} mov.u32 %r5, 9; mad.lo.u32 %r6, %r7, 256, %r0; mad.wide.u32 %rd5, %r6, 4, %rd1; st.global.u32 [%rd5], %r5; {BOTH}"
            ),
            2,
            Box::new(|_| 9),
        );
    }
    // Atomic operations on another block's memory.
    add(
        format!(
            "@%p1 st.shared.u32 [%r2], 0; {BOTH} mov.u32 %r8, 0; mapa.shared::cluster.u32 %r20, %r2, %r8; atom.shared::cluster.add.u32 %r5, [%r20], 1; {BOTH}\n\
             ld.shared::cluster.u32 %r5, [%r20]; mad.lo.u32 %r6, %r7, 256, %r0; mad.wide.u32 %rd5, %r6, 4, %rd1; st.global.u32 [%rd5], %r5; {BOTH}"
        ),
        4,
        Box::new(|_| 1024),
    );
    out
}

pub fn texts() -> Vec<String> {
    (0..60).map(|seed| sequence(seed).0).chain(copies().into_iter().map(|c| c.text)).collect()
}

#[test]
fn bulk_copies_and_clusters() {
    for case in copies() {
        let got = run(&case.text, case.blocks, case.threads);
        for (i, got) in got.iter().enumerate().take(case.words) {
            assert_eq!(*got, (case.plain)(i), "word {i}\n{}", case.text);
        }
    }
}
