//! Every check: a kernel that trips it, and a neighbour that does not.

mod common;

use common::{HEAD, REGS, parse};
use ptx::{Copies, Fault, FaultKind, Launch, Memory, Options, Order, Outcome, launch};

/// A kernel with static shared memory, parameters `p0`, `p1` of 8 bytes and a thread number in %r0.
fn text(body: &str) -> String {
    format!(
        "{HEAD}.file 1 \"case.cu\"\n.extern .shared .align 16 .b8 dyn[];\n\
         .visible .entry k(.param .u64 p0, .param .u64 p1) {{\n{REGS}.shared .align 16 .b8 s[4096];\n\
         ld.param.u64 %rd0, [p0]; ld.param.u64 %rd1, [p1]; mov.u32 %r0, %tid.x; mov.u32 %r1, %ctaid.x;\n\
         mov.u32 %r2, s; mad.lo.u32 %r3, %r0, 4, %r2; mad.wide.u32 %rd2, %r0, 4, %rd0;\n.loc 1 7 3\n{body}\nret;\n}}\n"
    )
}

struct Case {
    grid: u32,
    threads: u32,
    shared: u32,
    options: Options,
}

fn case() -> Case {
    Case { grid: 1, threads: 64, shared: 0, options: Options::default() }
}

/// Runs a body with p0 a buffer of 256 written words and p1 one of 256 unwritten words.
fn run(c: &Case, body: &str) -> Result<Vec<u32>, Box<Fault>> {
    run_as(c, body, false).map(|(_, words)| words)
}

fn run_as(c: &Case, body: &str, cooperative: bool) -> Result<(Outcome, Vec<u32>), Box<Fault>> {
    let module = parse(&text(body));
    let mut memory = Memory::new();
    let ones: Vec<u8> = (0..256u32).flat_map(|i| i.to_le_bytes()).collect();
    let (a, b) = (memory.alloc_with(&ones), memory.alloc(1024));
    let request = Launch::new("k", [c.grid, 1, 1], [c.threads, 1, 1])
        .shared(c.shared)
        .arg(&a.to_le_bytes())
        .arg(&b.to_le_bytes());
    let request = Launch { cooperative, ..request };
    let outcome = launch(&module, &mut memory, &request, &c.options)?;
    let words = memory.read(a, 1024);
    Ok((outcome, words.chunks(4).map(|b| u32::from_le_bytes(b.try_into().expect("four"))).collect()))
}

fn trips(c: &Case, body: &str, kind: FaultKind) -> Fault {
    let fault = *run(c, body).expect_err(body);
    assert_eq!(fault.kind, kind, "{fault}");
    fault
}

fn passes(c: &Case, body: &str) -> Vec<u32> {
    run(c, body).unwrap_or_else(|f| panic!("{f}\n{body}"))
}

#[test]
fn bounds() {
    let c = case();
    let f =
        trips(&c, "mad.wide.u32 %rd3, %r0, 4, %rd0; ld.global.u32 %r4, [%rd3+772];", FaultKind::OutOfBounds);
    assert_eq!(f.thread, Some([63, 0, 0]));
    assert_eq!(f.place.as_ref().and_then(|p| p.source.clone()), Some(("case.cu".to_string(), 7)));
    assert!(f.to_string().contains("byte 1024 of a buffer of 1024 bytes"), "{f}");
    passes(&c, "mad.wide.u32 %rd3, %r0, 4, %rd0; ld.global.u32 %r4, [%rd3+768];");
    trips(&c, "ld.global.u32 %r4, [%rd0+-4];", FaultKind::OutOfBounds);
    trips(&c, "mov.u64 %rd3, 0; st.global.u32 [%rd3], %r0;", FaultKind::OutOfBounds);
    trips(&c, "st.shared.u32 [%r3+3848], %r0;", FaultKind::OutOfBounds);
    passes(&c, "st.shared.u32 [%r3+3840], %r0;");
    trips(
        &Case { shared: 64, ..case() },
        "mov.u32 %r4, dyn; mad.lo.u32 %r4, %r0, 4, %r4; st.shared.u32 [%r4], 1;",
        FaultKind::OutOfBounds,
    );
    passes(
        &Case { shared: 256, ..case() },
        "mov.u32 %r4, dyn; mad.lo.u32 %r4, %r0, 4, %r4; st.shared.u32 [%r4], 1;",
    );
}

#[test]
fn alignment() {
    let c = case();
    trips(&c, "ld.global.v2.u32 {%r4, %r5}, [%rd0+4];", FaultKind::Misaligned);
    passes(&c, "ld.global.v2.u32 {%r4, %r5}, [%rd0+8];");
    trips(&c, "st.shared.u32 [%r2+2], %r0;", FaultKind::Misaligned);
}

#[test]
fn unwritten_memory_and_registers() {
    let c = case();
    trips(&c, "ld.global.u32 %r4, [%rd1];", FaultKind::UninitialisedMemory);
    passes(&Case { threads: 1, ..case() }, "st.global.u32 [%rd1], 5; ld.global.u32 %r4, [%rd1];");
    trips(&c, "ld.shared.u32 %r4, [%r3];", FaultKind::UninitialisedMemory);
    passes(&c, "st.shared.u32 [%r3], 5; ld.shared.u32 %r4, [%r3];");
    let f = trips(
        &c,
        "setp.lt.u32 %p1, %r0, 40; @%p1 mov.u32 %r9, 1; add.u32 %r10, %r9, 1;",
        FaultKind::UninitialisedRegister,
    );
    assert_eq!(f.thread, Some([40, 0, 0]));
    assert!(f.message.contains("%r9"), "{f}");
    passes(&c, "setp.lt.u32 %p1, %r0, 40; @%p1 mov.u32 %r9, 1; @%p1 add.u32 %r10, %r9, 1;");
    trips(&c, "@%p5 mov.u32 %r9, 1;", FaultKind::UninitialisedRegister);
}

#[test]
fn races_within_a_block() {
    // A thread reads what its neighbour in the other warp wrote.
    let read = "xor.b32 %r4, %r0, 32; mad.lo.u32 %r5, %r4, 4, %r2; ld.shared.u32 %r6, [%r5];";
    for warps in [Order::Forward, Order::Backward, Order::Random(3)] {
        let c = Case { options: Options { warps, ..Options::default() }, ..case() };
        let kind = run(&c, &format!("st.shared.u32 [%r3], %r0; {read}")).expect_err("a race").kind;
        // In some orders the place is still unwritten.
        assert!(matches!(kind, FaultKind::Race | FaultKind::UninitialisedMemory), "{kind:?}");
        passes(&c, &format!("st.shared.u32 [%r3], %r0; bar.sync 0; {read}"));
        let again = "st.shared.u32 [%r3], %r0;";
        let f = run(&c, &format!("{again} bar.sync 0; {read} {again}")).expect_err("a write meets a read");
        assert_eq!(f.kind, FaultKind::Race, "{f}");
        assert!(f.other.is_some());
        passes(&c, &format!("{again} bar.sync 0; {read} bar.sync 0; {again}"));
    }
    // Within a warp, lanes are ordered by bar.warp.sync only.
    let c = Case { threads: 32, ..case() };
    let read = "xor.b32 %r4, %r0, 1; mad.lo.u32 %r5, %r4, 4, %r2; ld.shared.u32 %r6, [%r5];";
    trips(&c, &format!("st.shared.u32 [%r3], %r0; {read}"), FaultKind::Race);
    passes(&c, &format!("st.shared.u32 [%r3], %r0; bar.warp.sync -1; {read}"));
    trips(
        &c,
        &format!("st.shared.u32 [%r3], %r0; shfl.sync.bfly.b32 %r7, %r0, 1, 31, -1; {read}"),
        FaultKind::Race,
    );
    // Lanes of one instruction may write one place if they write the same.
    trips(&c, "st.shared.u32 [%r2], %r0;", FaultKind::Race);
    passes(&c, "st.shared.u32 [%r2], 7;");
    // Pairs of lanes.
    let pair = "and.b32 %r8, %r0, 30; mov.u32 %r9, 3; shl.b32 %r9, %r9, %r8;";
    passes(&c, &format!("{pair} st.shared.u32 [%r3], %r0; bar.warp.sync %r9; {read}"));
    let far = "xor.b32 %r4, %r0, 2; mad.lo.u32 %r5, %r4, 4, %r2; ld.shared.u32 %r6, [%r5];";
    trips(&c, &format!("{pair} st.shared.u32 [%r3], %r0; bar.warp.sync %r9; {far}"), FaultKind::Race);
    // The same on global memory.
    let c = case();
    trips(&c, "st.global.u32 [%rd2], 1; ld.global.u32 %r4, [%rd0+128];", FaultKind::Race);
    passes(&c, "st.global.u32 [%rd2], 1; bar.sync 0; ld.global.u32 %r4, [%rd0+128];");
    // Atomic operations on one place are no race, a plain access among them is.
    let start = "setp.eq.u32 %p1, %r0, 0; @%p1 st.shared.u32 [%r2+64], 0; bar.sync 0; atom.shared.add.u32 %r4, [%r2+64], 1;";
    passes(&c, start);
    trips(&c, &format!("{start} ld.shared.u32 %r5, [%r2+64];"), FaultKind::Race);
    passes(&c, &format!("{start} bar.sync 0; ld.shared.u32 %r5, [%r2+64];"));
}

#[test]
fn named_barriers_order_their_warps() {
    let c = Case { threads: 96, ..case() };
    let read = "xor.b32 %r4, %r0, 32; mad.lo.u32 %r5, %r4, 4, %r2; ld.shared.u32 %r6, [%r5];";
    let body = |barrier: &str| {
        format!("setp.ge.u32 %p1, %r0, 64; @%p1 bra $end; st.shared.u32 [%r3], %r0; {barrier} {read} $end:")
    };
    passes(&c, &body("bar.sync 1, 64;"));
    trips(&c, &body("bar.sync 1, 32;"), FaultKind::UninitialisedMemory);
    trips(&c, &body("bar.sync 1, 48;"), FaultKind::InvalidOperand);
}

#[test]
fn races_between_blocks() {
    let c = Case { grid: 4, ..case() };
    trips(&c, "st.global.u32 [%rd2], %r1;", FaultKind::BlockRace);
    let own = "mad.lo.u32 %r4, %r1, 64, %r0; mad.wide.u32 %rd3, %r4, 4, %rd0; st.global.u32 [%rd3], %r1;";
    passes(&c, own);
    let out = passes(&c, "st.shared.u32 [%r3], 0; atom.global.add.u32 %r4, [%rd0], 1;");
    assert_eq!(out[0], 256);
    // The last block reads what the others wrote: fence, ticket, fence.
    let last = |fences: [&str; 2]| {
        format!(
            "{own} bar.sync 0; setp.ne.u32 %p1, %r0, 0; mov.u32 %r5, 0; @%p1 bra $all; {} \
             atom.global.add.u32 %r5, [%rd1], 1; {} $all: setp.eq.u32 %p2, %r5, 3; bar.red.or.pred %p3, 0, %p2; \
             @!%p3 bra $end; ld.global.u32 %r6, [%rd2]; ld.global.u32 %r7, [%rd2+256]; $end:",
            fences[0], fences[1]
        )
    };
    let run_last = |blocks: Order, fences: [&str; 2]| {
        let module = parse(&text(&last(fences)));
        let mut memory = Memory::new();
        let (a, b) = (memory.alloc_with(&[0; 1024]), memory.alloc_with(&[0; 4]));
        let request = Launch::new("k", [4, 1, 1], [64, 1, 1]).arg(&a.to_le_bytes()).arg(&b.to_le_bytes());
        let options = Options { blocks, ..Options::default() };
        launch(&module, &mut memory, &request, &options).map(|_| ()).map_err(|f| f.kind)
    };
    for blocks in [Order::Any, Order::Forward, Order::Backward, Order::Random(5)] {
        assert_eq!(run_last(blocks, ["membar.gl;", "membar.gl;"]), Ok(()));
        assert_eq!(run_last(blocks, ["", "membar.gl;"]), Err(FaultKind::BlockRace));
        assert_eq!(run_last(blocks, ["membar.gl;", ""]), Err(FaultKind::BlockRace));
        assert_eq!(run_last(blocks, ["membar.cta;", "membar.gl;"]), Err(FaultKind::BlockRace));
    }
}

#[test]
fn blocks_may_wait_for_each_other() {
    // A barrier of the grid: arrive, then spin.
    let body = "bar.sync 0; setp.ne.u32 %p1, %r0, 0; @%p1 bra $wait; membar.gl; red.global.add.u32 [%rd0+512], 1; \
                $spin: ld.volatile.global.u32 %r4, [%rd0+512]; setp.ne.u32 %p2, %r4, 131; @%p2 bra $spin; membar.gl; $wait: bar.sync 0;";
    let c = Case { grid: 3, ..case() };
    // Word 128 begins at 128 and counts three blocks.
    assert_eq!(passes(&c, body)[128], 131);
    // One arrival too few: all look for it for ever.
    trips(&c, &body.replace("%r4, 131", "%r4, 132"), FaultKind::Deadlock);
}

/// Two barriers of a grid of three blocks, with `between` behind the first.
fn rounds(order: Order, between: &str) -> Vec<u64> {
    let barrier = |n: u32| {
        format!(
            "bar.sync 0; @%p1 bra $wait{n}; membar.gl; red.global.add.u32 [%rd0+512], 1; \
             $spin{n}: ld.volatile.global.u32 %r4, [%rd0+512]; setp.lt.u32 %p2, %r4, {}; @%p2 bra $spin{n}; \
             membar.gl; $wait{n}: bar.sync 0;",
            128 + 3 * n
        )
    };
    let body = format!("setp.ne.u32 %p1, %r0, 0; {} {between} {}", barrier(1), barrier(2));
    let options = Options { warps: order, blocks: order, ..Options::default() };
    let (outcome, _) = run_as(&Case { grid: 3, options, ..case() }, &body, true).expect("passes");
    let parts: Vec<u64> = outcome.rounds.iter().map(|r| r.total.instructions()).collect();
    assert_eq!(parts.iter().sum::<u64>(), outcome.counters.total.instructions());
    parts
}

#[test]
fn cooperative_launches_are_counted_by_round() {
    let plain = rounds(Order::Forward, "");
    assert_eq!(plain.len(), 3, "{plain:?}");
    let longer = rounds(Order::Any, "add.u32 %r5, %r0, 1; add.u32 %r5, %r0, 2;");
    // Two instructions of two warps in three blocks, of which the last finds the barrier complete and is a round ahead.
    let added: Vec<u64> = longer.iter().zip(&plain).map(|(a, b)| a - b).collect();
    assert_eq!(added, [4, 8, 0], "{plain:?} {longer:?}");
    assert_eq!(rounds(Order::Any, ""), plain, "the same in every run");
    rounds(Order::Random(3), "");
    rounds(Order::Backward, "");
}

#[test]
fn asynchronous_copies() {
    let copy = "mad.wide.u32 %rd3, %r0, 4, %rd0; cp.async.ca.shared.global [%r3], [%rd3], 4;";
    let read = "ld.shared.u32 %r6, [%r3];";
    for copies in [Copies::Late, Copies::Early] {
        let c = Case { options: Options { copies, ..Options::default() }, ..case() };
        trips(&c, &format!("{copy} {read}"), FaultKind::CopyInFlight);
        trips(
            &c,
            &format!("{copy} cp.async.commit_group; cp.async.wait_group 1; {read}"),
            FaultKind::CopyInFlight,
        );
        passes(&c, &format!("{copy} cp.async.commit_group; cp.async.wait_group 0; {read}"));
        passes(&c, &format!("{copy} cp.async.wait_all; {read}"));
        // Without a commit a group is not closed.
        trips(&c, &format!("{copy} cp.async.wait_group 0; {read}"), FaultKind::CopyInFlight);
        trips(&c, &format!("{copy} st.shared.u32 [%r3], 1;"), FaultKind::CopyInFlight);
        // Another thread needs a barrier behind the wait.
        let other = "xor.b32 %r4, %r0, 32; mad.lo.u32 %r5, %r4, 4, %r2; ld.shared.u32 %r6, [%r5];";
        let f = run(&c, &format!("{copy} cp.async.wait_all; {other}")).expect_err("no barrier");
        assert!(matches!(f.kind, FaultKind::Race | FaultKind::CopyInFlight | FaultKind::UninitialisedMemory));
        passes(&c, &format!("{copy} cp.async.wait_all; bar.sync 0; {other}"));
    }
    let out = passes(
        &case(),
        "mad.lo.u32 %r5, %r0, 12, %r3; mad.wide.u32 %rd3, %r0, 16, %rd0; cp.async.cg.shared.global [%r5], [%rd3], 16, 6; \
         cp.async.wait_all; ld.shared.v4.u32 {%r6, %r7, %r8, %r9}, [%r5]; add.u32 %r9, %r9, %r8; add.u32 %r9, %r9, %r7; st.global.u32 [%rd2], %r9;"
            .replace("st.global", "bar.sync 0; st.global")
            .as_str(),
    );
    // Six of sixteen bytes: the second word loses its upper half, which is zero anyway; the others are zero.
    assert_eq!(out[3], 13);
}

#[test]
fn barriers() {
    let c = case();
    trips(&c, "setp.lt.u32 %p1, %r0, 16; @%p1 bar.sync 0;", FaultKind::DivergentBarrier);
    trips(
        &c,
        "setp.lt.u32 %p1, %r0, 16; @%p1 bra $a; bar.sync 0; bra $b; $a: bar.sync 0; $b:",
        FaultKind::DivergentBarrier,
    );
    // Whole warps may take barriers of their own place.
    passes(&c, "setp.lt.u32 %p1, %r0, 32; @%p1 bra $a; bar.sync 0; bra $b; $a: bar.sync 0; $b:");
    let f = trips(&c, "setp.lt.u32 %p1, %r0, 32; @%p1 bar.sync 1, 64;", FaultKind::Deadlock);
    assert!(f.message.contains("wait at"), "{f}");
    // Threads that have ended are not waited for.
    passes(&c, "setp.lt.u32 %p1, %r0, 32; @%p1 bra $end; bar.sync 0; $end:");
    trips(&c, "bar.sync 16;", FaultKind::InvalidOperand);
    let limit = Case { options: Options { step_limit: 10_000, ..Options::default() }, ..case() };
    trips(&limit, "$a: bra $a;", FaultKind::StepLimit);
    trips(&c, "trap;", FaultKind::Trap);
}

#[test]
fn member_masks() {
    let c = Case { threads: 32, ..case() };
    trips(&c, "setp.lt.u32 %p1, %r0, 16; @%p1 vote.sync.ballot.b32 %r4, %p1, 0xff;", FaultKind::InvalidMask);
    passes(&c, "setp.lt.u32 %p1, %r0, 16; @%p1 vote.sync.ballot.b32 %r4, %p1, 0xffff;");
    trips(&c, "setp.lt.u32 %p1, %r0, 16; @%p1 bra $end; bar.warp.sync -1; $end:", FaultKind::InvalidMask);
    trips(&Case { threads: 40, ..case() }, "shfl.sync.bfly.b32 %r4, %r0, 1, 31, -1;", FaultKind::InvalidMask);
    trips(
        &c,
        "setp.lt.u32 %p1, %r0, 16; @%p1 shfl.sync.idx.b32 %r4, %r0, 20, 31, 0xffff;",
        FaultKind::InvalidMask,
    );
    // Both sides of a branch may meet at their own bar.warp.sync.
    passes(&c, "setp.lt.u32 %p1, %r0, 16; @%p1 bra $a; bar.warp.sync -1; bra $b; $a: bar.warp.sync -1; $b:");
}

#[test]
fn constants() {
    let c = case();
    trips(
        &c,
        "ld.global.nc.u32 %r4, [%rd2]; bar.sync 0; st.global.u32 [%rd2], 1;",
        FaultKind::WriteToConstant,
    );
    passes(&c, "ld.global.u32 %r4, [%rd2]; bar.sync 0; st.global.u32 [%rd2], 1;");
    let module = parse(&format!(
        "{HEAD}.const .align 4 .u32 table[2] = {{5, 6}};\n.visible .entry k(.param .u64 p0) {{\n{REGS}\
         ld.param.u64 %rd0, [p0]; ld.const.u32 %r0, [table+4]; st.global.u32 [%rd0], %r0; mov.u64 %rd1, table; \
         cvta.const.u64 %rd2, %rd1; ld.u32 %r1, [%rd2]; ret; }}\n\
         .visible .entry w() {{\n{REGS} mov.u64 %rd1, table; st.global.u32 [%rd1], 1; ret; }}"
    ));
    let mut memory = Memory::new();
    let out = memory.alloc(4);
    let request = Launch::new("k", [1; 3], [1, 1, 1]).arg(&out.to_le_bytes());
    launch(&module, &mut memory, &request, &Options::default()).expect("reads of constants");
    assert_eq!(memory.read(out, 4), [6, 0, 0, 0]);
    let fault = launch(&module, &mut memory, &Launch::new("w", [1; 3], [1; 3]), &Options::default());
    assert_eq!(fault.expect_err("a write").kind, FaultKind::WriteToConstant);
}

#[test]
fn launches() {
    let refused = |c: Case| trips(&c, "", FaultKind::BadLaunch);
    refused(Case { threads: 1025, ..case() });
    refused(Case { threads: 0, ..case() });
    refused(Case { grid: 0, ..case() });
    refused(Case { shared: 49_153, ..case() });
    passes(&Case { shared: 40_000, ..case() }, "");
    let opted = Options { shared_limit: 100_000, ..Options::default() };
    passes(&Case { shared: 100_000, options: opted.clone(), ..case() }, "");
    refused(Case { shared: 100_001, options: opted, ..case() });
    let module = parse(&text(""));
    let request = Launch::new("k", [1; 3], [1; 3]).arg(&[0; 8]);
    let fault = launch(&module, &mut Memory::new(), &request, &Options::default()).expect_err("an argument");
    assert_eq!(fault.kind, FaultKind::BadLaunch);
}

#[test]
fn freed_buffers() {
    let module = parse(&text("ld.global.u32 %r4, [%rd0];"));
    let mut memory = Memory::new();
    let a = memory.alloc_with(&[0; 64]);
    let request = Launch::new("k", [1; 3], [1; 3]).arg(&a.to_le_bytes()).arg(&[0; 8]);
    launch(&module, &mut memory, &request, &Options::default()).expect("alive");
    memory.free(a);
    let fault = launch(&module, &mut memory, &request, &Options::default()).expect_err("freed");
    assert!(fault.message.contains("freed"), "{fault}");
}

#[test]
fn counters_see_conflicts_and_sectors() {
    let count = |body: &str| {
        let module = parse(&text(body));
        let mut memory = Memory::new();
        let (a, b) = (memory.alloc_with(&[0; 8192]), memory.alloc(8192));
        let request = Launch::new("k", [1; 3], [32, 1, 1]).arg(&a.to_le_bytes()).arg(&b.to_le_bytes());
        launch(&module, &mut memory, &request, &Options::default()).expect("no fault").counters.total
    };
    let c = count("st.shared.u32 [%r3], 1;");
    assert_eq!((c.shared_wavefronts, c.bank_conflicts()), (1, 0));
    // A stride of 32 words meets in one bank, one of 33 words in none.
    let c = count("mad.lo.u32 %r4, %r0, 124, %r3; st.shared.u32 [%r4], 1;");
    assert_eq!((c.shared_wavefronts, c.bank_conflicts()), (32, 31));
    let c = count("and.b32 %r5, %r0, 15; mad.lo.u32 %r4, %r5, 132, %r2; st.shared.u32 [%r4], 1;");
    assert_eq!(c.bank_conflicts(), 0);
    let c = count("mad.lo.u32 %r4, %r0, 12, %r3; st.shared.v4.u32 [%r4], {1, 1, 1, 1};");
    assert_eq!((c.shared_wavefronts, c.bank_conflicts()), (4, 0));
    let c = count("ld.global.u32 %r4, [%rd2];");
    assert_eq!((c.read_sectors, c.read_bytes), (4, 128));
    let c = count("mad.wide.u32 %rd3, %r0, 32, %rd0; ld.global.u32 %r4, [%rd3];");
    assert_eq!((c.read_sectors, c.read_bytes), (32, 128));
    let c = count("ld.global.u32 %r4, [%rd0];");
    assert_eq!((c.read_sectors, c.read_bytes), (1, 4));
    let c = count("setp.lt.u32 %p1, %r0, 8; @%p1 add.u32 %r4, %r0, 1;");
    assert!(c.active_share() < 1.0);
}

#[test]
fn counters_see_each_sector_once() {
    let count = |grid: u32, shared: u32, body: &str| {
        let module = parse(&text(body));
        let mut memory = Memory::new();
        let (a, b) = (memory.alloc_with(&[0; 8192]), memory.alloc(8192));
        let request = Launch::new("k", [grid, 1, 1], [32, 1, 1])
            .shared(shared)
            .arg(&a.to_le_bytes())
            .arg(&b.to_le_bytes());
        launch(&module, &mut memory, &request, &Options::default()).expect("no fault").counters
    };
    let sectors = |c: &ptx::Counters| (c.unique_read_sectors, c.unique_write_sectors);
    // Three blocks read the same 128 bytes: twelve sectors pass, four of them differ.
    let c = count(3, 0, "ld.global.u32 %r4, [%rd2];");
    assert_eq!((c.total.read_sectors, sectors(&c)), (12, (4, 0)));
    // A copy of 16 bytes a lane, with the reads of one lane only: half a sector.
    let copy = "setp.eq.u32 %p1, %r0, 3; mad.wide.u32 %rd3, %r0, 16, %rd0; mad.lo.u32 %r4, %r0, 16, %r2; \
                @%p1 cp.async.ca.shared.global [%r4], [%rd3], 16; cp.async.wait_all;";
    let c = count(1, 0, copy);
    assert_eq!((sectors(&c), c.shared_used), ((1, 0), 64));
    // Writes and atomic operations count as writes, whichever lane they are of.
    let c = count(1, 0, "st.global.u32 [%rd1+100], 1; atom.global.add.u32 %r4, [%rd0+4096], 1;");
    assert_eq!(sectors(&c), (0, 2));
    // Dynamic shared memory lies behind 4,096 static bytes.
    let c = count(1, 512, "mov.u32 %r4, dyn; st.shared.u32 [%r4+8], 1;");
    assert_eq!(c.shared_used, 4096 + 12);
    assert_eq!(count(1, 512, "mov.u32 %r4, 0;").shared_used, 0);
}
