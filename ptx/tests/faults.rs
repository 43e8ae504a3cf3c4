//! A kernel as compute capability 9.0 has them, and faults planted in it one at a time: each is reported, or changes the
//! result.
//!
//! A producer thread brings five chunks of A and B in by bulk copies, through two stages with mbarriers; a warpgroup
//! multiplies them, D = sum of A (B + W), where W was stored by threads; D leaves by a bulk copy.

mod common;

use common::{HEAD, REGS, parse};
use ptx::{Copies, Fault, FaultKind, Launch, Memory, Options, Order, launch};

const CHUNKS: usize = 5;
/// Bytes of a chunk: A is 64 x 16 and B 16 x 16 of BF16.
const A: usize = 2048;
const CHUNK: usize = 2560;

/// A lies by rows of 32 bytes, swizzled, eight of them 256 bytes; B by columns, without a swizzle: core matrices of eight
/// k by eight columns, 256 bytes apart along k and 128 along columns.
const OF_A: &str = "16 >> 4 << 16 | 256 >> 4 << 32 | 3 << 62";
const OF_B: &str = "256 >> 4 << 16 | 128 >> 4 << 32 | 0 << 62";

/// What a descriptor says besides the address.
fn descriptor(text: &str) -> u64 {
    text.split('|').fold(0, |all, part| {
        let numbers: Vec<u64> = part
            .split([' ', '>', '<'])
            .filter(|w| !w.is_empty())
            .map(|w| w.parse().expect("a number"))
            .collect();
        let one = match *numbers {
            [value, right, left] => value >> right << left,
            [value, left] => value << left,
            _ => panic!("{part}"),
        };
        all | one
    })
}

const KERNEL: &str = "
    ld.param.u64 %rd0, [p0]; ld.param.u64 %rd1, [p1]; ld.param.u64 %rd2, [p2];
    mov.u32 %r0, %tid.x; mov.u32 %r2, s; mov.u32 %r3, bars;
    setp.ne.u32 %p1, %r0, 0;
    @%p1 bra $ready;
    mbarrier.init.shared.b64 [%r3], 1;
    mbarrier.init.shared.b64 [%r3+8], 1;
    mbarrier.init.shared.b64 [%r3+16], 128;
    mbarrier.init.shared.b64 [%r3+24], 128;
    fence.mbarrier_init.release.cluster;
$ready:
    bar.sync 0;
    setp.ge.u32 %p2, %r0, 128;
    @%p2 bra $producer;

    mad.wide.u32 %rd3, %r0, 4, %rd2; ld.global.u32 %r4, [%rd3];
    mad.lo.u32 %r5, %r0, 4, %r2; st.shared.u32 [%r5+8192], %r4;
    fence.proxy.async.shared::cta; // of W
    bar.sync 1, 128; // of W
    mov.f32 %f0, 0f00000000; mov.f32 %f1, %f0; mov.f32 %f2, %f0; mov.f32 %f3, %f0;
    mov.f32 %f4, %f0; mov.f32 %f5, %f0; mov.f32 %f6, %f0; mov.f32 %f7, %f0;
    add.u32 %r7, %r2, 8192; shr.u32 %r7, %r7, 4; cvt.u64.u32 %rd10, %r7; or.b64 %rd10, %rd10, OF_B;
    setp.eq.u32 %p3, %r0, %r0;
    mov.u32 %r6, 0;
$consume:
    and.b32 %r8, %r6, 1;
    shr.u32 %r9, %r6, 1; and.b32 %r9, %r9, 1;
    mad.lo.u32 %r10, %r8, 8, %r3;
$full:
    mbarrier.try_wait.parity.shared.b64 %p4, [%r10], %r9;
    @!%p4 bra $full;
    mad.lo.u32 %r11, %r8, 4096, %r2;
    shr.u32 %r12, %r11, 4; cvt.u64.u32 %rd11, %r12; or.b64 %rd11, %rd11, OF_A;
    add.u32 %r13, %r11, 2048; shr.u32 %r13, %r13, 4; cvt.u64.u32 %rd12, %r13; or.b64 %rd12, %rd12, OF_B;
    wgmma.fence.sync.aligned;
    wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {%f0, %f1, %f2, %f3, %f4, %f5, %f6, %f7}, %rd11, %rd12, %p3, 1, 1, 0, 1;
    wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {%f0, %f1, %f2, %f3, %f4, %f5, %f6, %f7}, %rd11, %rd10, %p3, 1, 1, 0, 1;
    wgmma.commit_group.sync.aligned;
    wgmma.wait_group.sync.aligned 0;
    mbarrier.arrive.shared.b64 %rd13, [%r10+16];
    add.u32 %r6, %r6, 1; setp.lt.u32 %p5, %r6, 5; @%p5 bra $consume;
    mad.lo.u32 %r14, %r0, 32, %r2;
    st.shared.v4.f32 [%r14+8704], {%f0, %f1, %f2, %f3}; st.shared.v4.f32 [%r14+8720], {%f4, %f5, %f6, %f7};
    fence.proxy.async.shared::cta; // of D
    bar.sync 1, 128; // of D
    @%p1 bra $end;
    add.u32 %r15, %r2, 8704;
    cp.async.bulk.global.shared::cta.bulk_group [%rd1], [%r15], 4096;
    cp.async.bulk.commit_group;
    cp.async.bulk.wait_group 0;
    bra $end;

$producer:
    setp.ne.u32 %p6, %r0, 128; @%p6 bra $end;
    mov.u32 %r20, 0;
$produce:
    and.b32 %r21, %r20, 1;
    shr.u32 %r22, %r20, 1; and.b32 %r22, %r22, 1; xor.b32 %r23, %r22, 1;
    mad.lo.u32 %r24, %r21, 8, %r3;
$empty:
    mbarrier.try_wait.parity.shared.b64 %p7, [%r24+16], %r23;
    @!%p7 bra $empty;
    mbarrier.arrive.expect_tx.shared.b64 _, [%r24], 2560;
    mad.lo.u32 %r25, %r21, 4096, %r2;
    mul.wide.u32 %rd20, %r20, 2560; add.u64 %rd20, %rd0, %rd20;
    cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r25], [%rd20], 2048, [%r24];
    cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r25+2048], [%rd20+2048], 512, [%r24];
    add.u32 %r20, %r20, 1; setp.lt.u32 %p8, %r20, 5; @%p8 bra $produce;
$end:
";

/// Small integers, whose sums are exact.
fn a(chunk: usize, row: usize, k: usize) -> f32 {
    ((row * 5 + k * 3 + chunk * 7 + row / 8) % 11) as f32 - 5.0
}
fn b(chunk: usize, k: usize, column: usize) -> f32 {
    ((k * 7 + column * 2 + chunk * 5 + k / 8 * column) % 9) as f32 - 4.0
}
/// W is a chunk of its own.
fn w(k: usize, column: usize) -> f32 {
    b(CHUNKS, k, column)
}

fn put(bytes: &mut [u8], at: usize, value: f32) {
    bytes[at..at + 2].copy_from_slice(&half::bf16::from_f32(value).to_le_bytes());
}
fn put_b(bytes: &mut [u8], value: impl Fn(usize, usize) -> f32) {
    for (k, column) in (0..256).map(|i| (i / 16, i % 16)) {
        put(bytes, k / 8 * 256 + column / 8 * 128 + k % 8 * 16 + column % 8 * 2, value(k, column));
    }
}

/// D as it should be: a thread's eight values one after the other.
fn wanted() -> Vec<f32> {
    let place = |i: usize| {
        let (thread, r) = (i / 8, i % 8);
        (thread / 32 * 16 + thread % 32 / 4 + 8 * (r / 2 % 2), 8 * (r / 4) + 2 * (thread % 4) + r % 2)
    };
    let all = || (0..CHUNKS * 16).map(|i| (i / 16, i % 16));
    (0..1024)
        .map(|i| {
            let (row, column) = place(i);
            all().map(|(c, k)| a(c, row, k) * (b(c, k, column) + w(k, column))).sum()
        })
        .collect()
}

fn run(body: &str, options: &Options) -> Result<Vec<f32>, Box<Fault>> {
    let text = format!(
        "{HEAD}.visible .entry k(.param .u64 p0, .param .u64 p1, .param .u64 p2) {{\n{REGS}\
         .shared .align 1024 .b8 s[12800]; .shared .align 8 .b64 bars[4];\n{body}\nret;\n}}\n"
    );
    let module = parse(&text);
    let mut input = vec![0; CHUNKS * CHUNK];
    for (c, chunk) in input.chunks_exact_mut(CHUNK).enumerate() {
        for (row, k) in (0..1024).map(|i| (i / 16, i % 16)) {
            let at = row * 32 + k * 2;
            put(chunk, at ^ (at >> 7 & 1) << 4, a(c, row, k));
        }
        put_b(&mut chunk[A..], |k, column| b(c, k, column));
    }
    let mut of_w = vec![0; 512];
    put_b(&mut of_w, w);
    let mut memory = Memory::new();
    let buffers = [memory.alloc_with(&input), memory.alloc(4096), memory.alloc_with(&of_w)];
    let request = buffers.iter().fold(Launch::new("k", [1; 3], [160, 1, 1]), |r, b| r.arg(&b.to_le_bytes()));
    launch(&module, &mut memory, &request, options)?;
    Ok(memory
        .read(buffers[1], 4096)
        .chunks(4)
        .map(|c| f32::from_le_bytes(c.try_into().expect("four")))
        .collect())
}

fn schedules() -> Vec<Options> {
    let orders = [Order::Any, Order::Forward, Order::Backward].into_iter().chain((0..5).map(Order::Random));
    let with = |(i, warps)| {
        let copies = if i % 2 == 0 { Copies::Late } else { Copies::Early };
        Options { warps, copies, seed: i as u64, step_limit: 10_000, ..Options::default() }
    };
    orders.enumerate().map(with).collect()
}

fn body(of_kernel: &str, old: &str, new: &str) -> String {
    // Where a fault changes a descriptor, that of A or of B.
    let numbers = |text: &str| descriptor(&text.replacen(old, new, 1)).to_string();
    of_kernel.replace("OF_A", &numbers(OF_A)).replace("OF_B", &numbers(OF_B))
}

#[test]
fn the_kernel_itself_passes() {
    for options in schedules() {
        let got = run(&body(KERNEL, "-", "-"), &options).unwrap_or_else(|f| panic!("{f}\n{options:?}"));
        assert!(got == wanted(), "{options:?}");
    }
}

/// What is planted: a text, its replacement, and how it shows, as the kind of a report or as another result.
const FAULTS: &[(&str, &str, &str, Option<FaultKind>)] = &[
    (
        "arrival on the empty stage missing",
        "mbarrier.arrive.shared.b64 %rd13, [%r10+16];",
        "",
        Some(FaultKind::StepLimit),
    ),
    ("arrival on the other mbarrier", "%rd13, [%r10+16];", "%rd13, [%r10];", None),
    ("bytes expected: too few", "[%r24], 2560;", "[%r24], 2048;", None),
    ("bytes expected: too many", "[%r24], 2560;", "[%r24], 2576;", Some(FaultKind::StepLimit)),
    (
        "bytes expected: none",
        "mbarrier.arrive.expect_tx.shared.b64 _, [%r24], 2560;",
        "mbarrier.arrive.shared.b64 _, [%r24];",
        None,
    ),
    (
        "parity of the full stage inverted",
        "and.b32 %r9, %r9, 1;",
        "and.b32 %r9, %r9, 1; xor.b32 %r9, %r9, 1;",
        None,
    ),
    ("parity of the full stage never turns", "shr.u32 %r9, %r6, 1;", "shr.u32 %r9, %r6, 8;", None),
    (
        "parity of the empty stage inverted",
        "[%r24+16], %r23;",
        "[%r24+16], %r22;",
        Some(FaultKind::StepLimit),
    ),
    ("wait for the empty stage missing", "@!%p7 bra $empty;", "", None),
    ("wait for the full stage missing", "@!%p4 bra $full;", "", None),
    (
        "count of an mbarrier too high",
        "mbarrier.init.shared.b64 [%r3+16], 128;",
        "mbarrier.init.shared.b64 [%r3+16], 129;",
        Some(FaultKind::StepLimit),
    ),
    (
        "count of an mbarrier too low",
        "mbarrier.init.shared.b64 [%r3+16], 128;",
        "mbarrier.init.shared.b64 [%r3+16], 32;",
        None,
    ),
    (
        "mbarrier not initialised",
        "mbarrier.init.shared.b64 [%r3+8], 1;",
        "",
        Some(FaultKind::UninitialisedMemory),
    ),
    (
        "fence behind mbarrier.init missing",
        "fence.mbarrier_init.release.cluster;",
        "",
        Some(FaultKind::MissingProxyFence),
    ),
    ("barrier behind mbarrier.init missing", "bar.sync 0;", "", None),
    (
        "proxy fence before products missing",
        "fence.proxy.async.shared::cta; // of W",
        "",
        Some(FaultKind::MissingProxyFence),
    ),
    (
        "proxy fence before a bulk copy missing",
        "fence.proxy.async.shared::cta; // of D",
        "",
        Some(FaultKind::MissingProxyFence),
    ),
    ("barrier behind a proxy fence missing", "bar.sync 1, 128; // of D", "", None),
    ("wgmma.fence missing", "wgmma.fence.sync.aligned;", "", Some(FaultKind::CopyInFlight)),
    ("wgmma.commit_group missing", "wgmma.commit_group.sync.aligned;", "", Some(FaultKind::CopyInFlight)),
    ("wgmma.wait_group missing", "wgmma.wait_group.sync.aligned 0;", "", Some(FaultKind::CopyInFlight)),
    (
        "wgmma.wait_group leaves one",
        "wgmma.wait_group.sync.aligned 0;",
        "wgmma.wait_group.sync.aligned 1;",
        Some(FaultKind::CopyInFlight),
    ),
    ("commit of a bulk copy missing", "cp.async.bulk.commit_group;", "", Some(FaultKind::CopyInFlight)),
    ("wait for a bulk copy missing", "cp.async.bulk.wait_group 0;", "", Some(FaultKind::CopyInFlight)),
    ("bulk copy too short", "[%rd20], 2048, [%r24];", "[%rd20], 1024, [%r24];", None),
    (
        "bulk copy no multiple of 16",
        "[%rd20+2048], 512, [%r24];",
        "[%rd20+2048], 504, [%r24];",
        Some(FaultKind::Misaligned),
    ),
    (
        "bulk copy completes on the other mbarrier",
        "[%rd20], 2048, [%r24];",
        "[%rd20], 2048, [%r24+16];",
        None,
    ),
    ("swizzle of 64 bytes in place of 32", "3 << 62", "2 << 62", None),
    ("no swizzle", "3 << 62", "0 << 62", None),
    ("swizzle where there is none", "0 << 62", "3 << 62", None),
    ("stride of A", "16 >> 4 << 16 | 256 >> 4 << 32 | 3", "16 >> 4 << 16 | 128 >> 4 << 32 | 3", None),
    (
        "leading and stride offset of B exchanged",
        "256 >> 4 << 16 | 128 >> 4 << 32 | 0",
        "128 >> 4 << 16 | 256 >> 4 << 32 | 0",
        None,
    ),
    (
        "leading offset of B",
        "256 >> 4 << 16 | 128 >> 4 << 32 | 0",
        "128 >> 4 << 16 | 128 >> 4 << 32 | 0",
        None,
    ),
    ("offset of B not divided by 16", "256 >> 4 << 16 | 128", "256 >> 0 << 16 | 128", None),
    ("B not transposed", "%rd11, %rd12, %p3, 1, 1, 0, 1;", "%rd11, %rd12, %p3, 1, 1, 0, 0;", None),
    ("A transposed", "%rd11, %rd12, %p3, 1, 1, 0, 1;", "%rd11, %rd12, %p3, 1, 1, 1, 1;", None),
    ("sign of B", "%rd11, %rd12, %p3, 1, 1, 0, 1;", "%rd11, %rd12, %p3, 1, -1, 0, 1;", None),
    ("address of a descriptor not divided by 16", "shr.u32 %r13, %r13, 4;", "shr.u32 %r13, %r13, 3;", None),
];

#[test]
fn every_planted_fault_shows() {
    let mut hidden = Vec::new();
    for (what, old, new, kind) in FAULTS {
        let places = [KERNEL, OF_A, OF_B].iter().map(|text| text.matches(old).count()).sum::<usize>();
        assert_eq!(places, 1, "{what}: `{old}`");
        let text = body(&KERNEL.replacen(old, new, 1), old, new);
        let shown = |options: &Options| match run(&text, options) {
            Err(fault) => Some(Some(fault.kind)),
            Ok(got) => (got != wanted()).then_some(None),
        };
        let all = schedules();
        let mut each = all.iter().filter_map(shown);
        let found = match kind {
            Some(kind) => each.find(|k| *k == Some(*kind)),
            None => each.next(),
        };
        println!("{what:45} {found:?}");
        if found.is_none() {
            hidden.push(what);
        }
    }
    assert!(hidden.is_empty(), "{hidden:#?}");
}
