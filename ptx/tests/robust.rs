//! Nothing brings the machine down: forms with any operands, texts cut anywhere, launches of any size, wild addresses.

mod common;

use common::{HEAD, REGS};
use proptest::prelude::*;
use ptx::{Element, Fault, FaultKind, Fill, Launch, Memory, Module, Options, Swizzle, TensorMap, launch};

const SMALL: &str = include_str!("data/small.ptx");
const SEED: &str = include_str!("data/seed.ptx");

/// Names and slots of all accepted forms, sets replaced.
fn forms() -> Vec<(String, Vec<Vec<String>>)> {
    let mut sets = std::collections::HashMap::new();
    let mut out = Vec::new();
    for line in ptx::forms().lines().filter(|l| !l.is_empty() && !l.starts_with('#')) {
        if let Some((name, words)) = line.split_once(" = ") {
            sets.insert(name, words.split('|').map(str::to_string).collect::<Vec<_>>());
            continue;
        }
        let mut parts = line.split(' ');
        let name = parts.next().expect("a name").to_string();
        let slots = parts.map(|part| {
            let mut words: Vec<String> = part
                .trim_end_matches('?')
                .split('|')
                .flat_map(|w| sets.get(w).cloned().unwrap_or_else(|| vec![w.replace('#', "16")]))
                .collect();
            words.extend(part.ends_with('?').then(String::new));
            words
        });
        out.push((name, slots.collect()));
    }
    out
}

/// So many cases; failures are printed, not kept.
fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases) }
}

const OPERANDS: [&str; 36] = [
    "%r1",
    "%r2",
    "%r3",
    "%rd1",
    "%rd2",
    "%rs1",
    "%rs2",
    "%f1",
    "%f2",
    "%fd1",
    "%p1",
    "!%p1",
    "%p1|%p2",
    "%r4|%p2",
    "0",
    "1",
    "31",
    "-1",
    "0xffffffff",
    "0f3F800000",
    "0d3FF0000000000000",
    "[%r2]",
    "[%rd1]",
    "[%rd1+8]",
    "[%r2+16]",
    "[s]",
    "[%rd1, {%r1, %r2}]",
    "[%rd1+64, {-1, %r2, 5}]",
    "{%r4, %r5}",
    "{%r4, %r5, %r6, %r7}",
    "{%rs1, %rs2}",
    "{%f1, %f2, %f3, %f4}",
    "_",
    "s",
    "%tid.x",
    "$end",
];

fn run(
    text: &str,
    options: &Options,
    args: &[[u8; 8]],
    grid: u32,
    threads: u32,
) -> Option<Result<(), Box<Fault>>> {
    let module = Module::parse(text).ok()?;
    let mut memory = Memory::new();
    let buffer = memory.alloc_with(&[7; 4096]);
    let mut request = Launch::new("k", [grid, 1, 1], [threads, 1, 1]).arg(&buffer.to_le_bytes());
    for a in args {
        request = request.arg(a);
    }
    Some(launch(&module, &mut memory, &request, options).map(|_| ()))
}

proptest! {
    #![proptest_config(config(6000))]

    /// Any form with any operands: an error, a fault or a result.
    #[test]
    fn forms_with_any_operands(
        form in any::<prop::sample::Index>(),
        words in prop::collection::vec(any::<prop::sample::Index>(), 12),
        operands in prop::collection::vec(any::<prop::sample::Index>(), 0..7),
        guarded in any::<bool>(),
    ) {
        let all = forms();
        let (name, slots) = &all[form.index(all.len())];
        let mut opcode = name.clone();
        for (slot, word) in slots.iter().zip(&words) {
            let word = &slot[word.index(slot.len())];
            if !word.is_empty() {
                opcode += &format!(".{word}");
            }
        }
        let list: Vec<&str> = operands.iter().map(|o| OPERANDS[o.index(OPERANDS.len())]).collect();
        let guard = if guarded { "@%p1 " } else { "" };
        let text = format!(
            "{HEAD}.visible .entry k(.param .u64 p0, .param .u64 p1) {{ {REGS} .shared .align 16 .b8 s[1024]; ld.param.u64 %rd1, [p0]; ld.param.u64 %rd2, [p1];\n\
             mov.u32 %r1, %tid.x; mov.u32 %r2, s; mov.b32 %f1, %r1; mov.b64 %fd1, %rd1; cvt.u16.u32 %rs1, %r1; setp.lt.u32 %p1, %r1, 40;\n\
             {guard}{opcode} {}; $end: ret; }}",
            list.join(", ")
        );
        let options = Options { step_limit: 500, ..Options::default() };
        let _ = run(&text, &options, &[[0x55; 8]], 2, 64);
    }
}

proptest! {
    #![proptest_config(config(1500))]

    /// Wild addresses in every space: a fault, never more.
    #[test]
    fn wild_addresses(
        address in prop_oneof![any::<u64>(), 0u64..1 << 26, (0u64..1 << 13).prop_map(|a| a + (0x7f << 40)), any::<u32>().prop_map(u64::from), (0u32..64).prop_map(|s| u64::MAX << s), (0u32..64).prop_map(|s| 1 << s)],
        what in 0usize..14,
        by in -64i64..64,
    ) {
        let body = [
            "ld.u32 %r1, [%rd2+BY];", "st.u8 [%rd2+BY], 1;", "ld.global.v4.u32 {%r4, %r5, %r6, %r7}, [%rd2+BY];", "ld.shared.u64 %rd3, [%rd2+BY];",
            "st.local.u16 [%rd2+BY], 1;", "ld.const.u32 %r1, [%rd2+BY];", "ld.param.u8 %r1, [%rd2+BY];", "atom.add.u32 %r1, [%rd2+BY], 1;", "red.shared.add.u64 [%rd2+BY], 1;",
            "cp.async.ca.shared.global [%rd2+BY], [%rd2], 16;", "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r4, %r5, %r6, %r7}, [%rd2+BY];",
            "mbarrier.init.b64 [%rd2+BY], 1; mbarrier.arrive.b64 %rd3, [%rd2+BY];",
            "cp.async.bulk.global.shared::cta.bulk_group [%rd2+BY], [%rd2], 64;", "st.shared.v2.u64 [%rd2+BY], {1, 2};",
        ][what].replace("BY", &by.to_string());
        let text = format!("{HEAD}.visible .entry k(.param .u64 p0, .param .u64 p1) {{ {REGS} .shared .align 16 .b8 s[256]; .local .b8 l[32]; ld.param.u64 %rd1, [p0]; ld.param.u64 %rd2, [p1];\n{body}\nret; }}");
        let result = run(&text, &Options::default(), &[address.to_le_bytes()], 1, 32);
        prop_assert!(result.is_some(), "{}", text);
        if let Some(Err(fault)) = result {
            prop_assert!(!fault.to_string().is_empty() && fault.kind != FaultKind::StepLimit);
        }
    }

    /// Tensor maps of any memory, and any places in them and in shared memory: a fault or a result, never more.
    #[test]
    fn wild_tensors(
        at in prop_oneof![any::<u64>(), Just(0x7f00_0000_0000), Just(u64::MAX), Just(1 << 63)],
        shared in prop_oneof![any::<u64>(), 1024u64..4096, Just(u64::MAX), Just(0x7d00_0000_0400)],
        sizes in prop::array::uniform3(prop_oneof![1u64..40, Just(1 << 32)]),
        strides in prop::array::uniform2(prop_oneof![0u64..64, Just((1 << 36) - 1)]),
        tile in prop::array::uniform3(prop_oneof![1u32..9, Just(256)]),
        places in prop::array::uniform3(prop_oneof![any::<i32>(), -20i32..40]),
        kinds in (0usize..13, 0usize..4, any::<bool>()),
    ) {
        let (element, swizzle) = (Element::ALL[kinds.0], Swizzle::ALL[kinds.1]);
        let tile = [16 / element.bytes() * tile[0].min(2), tile[1], tile[2]];
        let map = TensorMap::new(element, at & !15, &sizes, &strides.map(|s| 16 * s), &tile, swizzle, Fill::Zeros);
        let map = map.expect("a map");
        let copy = match kinds.2 {
            true => "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%rd2], [%rd0, {%r1, %r2, %r3}], [bar];",
            false => "cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%rd0, {%r1, %r2, %r3}], [%rd2]; cp.async.bulk.commit_group; cp.async.bulk.wait_group 0;",
        };
        let [x, y, z] = places;
        let text = format!(
            "{HEAD}.visible .entry k(.param .align 64 .b8 p0[128]) {{ {REGS} .shared .align 1024 .b8 s[4096]; .shared .align 8 .b64 bar; mov.b64 %rd0, p0; cvta.param.u64 %rd0, %rd0;\n\
             mov.u64 %rd2, {}; mov.u32 %r1, {x}; mov.u32 %r2, {y}; mov.u32 %r3, {z}; mbarrier.init.shared.b64 [bar], 1; fence.proxy.async; {copy} ret; }}",
            shared & !127
        );
        let mut memory = Memory::new();
        memory.alloc_with(&[7; 1 << 16]);
        let request = Launch::new("k", [1; 3], [1; 3]).tensor_map(&map);
        if let Err(fault) = launch(&common::parse(&text), &mut memory, &request, &Options::default()) {
            prop_assert!(!fault.to_string().is_empty() && fault.kind != FaultKind::StepLimit);
        }
    }

    /// Bytes changed anywhere in a text.
    #[test]
    fn changed_bytes(edits in prop::collection::vec((0usize..SMALL.len(), any::<u8>()), 1..5)) {
        let mut text = SMALL.as_bytes().to_vec();
        for (at, byte) in edits {
            text[at] = byte;
        }
        let text = String::from_utf8_lossy(&text);
        if let Err(e) = Module::parse(&text) {
            prop_assert!(e.line as usize <= text.lines().count() + 1 && !e.message.is_empty());
        }
    }

    /// Launches of any size end, or are refused.
    #[test]
    fn any_launch(
        grid in prop::array::uniform3(prop_oneof![0u32..3, Just(65_536), Just(u32::MAX), Just(1 << 31)]),
        block in prop::array::uniform3(prop_oneof![0u32..5, Just(64), Just(65), Just(1024), Just(u32::MAX)]),
        cluster in prop::array::uniform3(prop_oneof![Just(1u32), 0u32..4, Just(u32::MAX)]),
        shared in prop_oneof![0u32..1 << 17, Just(u32::MAX)],
        args in 0usize..40,
    ) {
        // Grids that a test could not wait for are cut.
        let blocks = grid.iter().fold(1u64, |n, g| n.saturating_mul(u64::from(*g)));
        let refused = blocks > 1 << 26 || grid[1].max(grid[2]) > 65_535;
        prop_assume!(blocks < 64 || refused);
        let text = format!("{HEAD}.visible .entry k(.param .u64 p0, .param .u32 p1) {{ {REGS} .shared .align 16 .b8 s[256]; ld.param.u64 %rd1, [p0]; bar.sync 0; ret; }}");
        let module = common::parse(&text);
        let request = Launch { grid, block, cluster, shared, args: vec![1; args], ..Launch::new("k", [1; 3], [1; 3]) };
        let result = launch(&module, &mut Memory::new(), &request, &Options::default());
        let threads = block.iter().fold(1u64, |n, b| n.saturating_mul(u64::from(*b)));
        let clustered: u64 = cluster.iter().fold(1u64, |n, c| n.saturating_mul(u64::from(*c)));
        let fine = (1..64).contains(&blocks) && (1..=1024).contains(&threads) && block[2] <= 64 && shared <= 48 * 1024
            && (12..=16).contains(&args) && (1..=16).contains(&clustered) && (0..3).all(|i| grid[i] % cluster[i] == 0);
        match result {
            Ok(_) => prop_assert!(fine),
            Err(fault) => {
                prop_assert!(!fine, "{}", fault);
                prop_assert_eq!(fault.kind, FaultKind::BadLaunch);
            }
        }
    }
}

#[test]
fn texts_cut_anywhere() {
    let end = SMALL.trim_end().len();
    // Variables whose names look like parts of special registers.
    for name in ["x", "y", "z", "a"] {
        common::parse(&format!(
            "{HEAD}.global .u32 {name};\n.visible .entry k() {{ {REGS} mov.u64 %rd1, {name}; ret; }}"
        ));
    }
    for at in 0..end {
        let whole = SMALL[..at].trim_end().ends_with(['4', ';', 'a', '9', '0', '6'])
            && !SMALL[..at].contains(".entry");
        assert!(Module::parse(&SMALL[..at]).is_err() || whole, "cut at {at}");
    }
    // Of a text of nvcc some of the places, each behind another kind of token in the end.
    for at in (0..SEED.len()).step_by(97) {
        let _ = Module::parse(&SEED[..at]);
    }
}

#[test]
fn names_that_are_not_there() {
    let module = common::parse(SMALL);
    let fault =
        launch(&module, &mut Memory::new(), &Launch::new("nobody", [1; 3], [1; 3]), &Options::default());
    assert_eq!(fault.expect_err("no such kernel").kind, FaultKind::BadLaunch);
}

#[test]
fn forms_that_do_not_exist() {
    let refused = |instruction: &str| {
        let text = format!("{HEAD}.visible .entry k() {{ {REGS} .local .b8 l[8]; {instruction} ret; }}");
        let error = Module::parse(&text).expect_err(instruction);
        assert_eq!(error.line, 5, "{instruction}: {error}");
    };
    for instruction in [
        "rcp.rn.u64 %rd1, %rd2;",
        "rcp.rn.s32 %r1, %r2;",
        "rcp.rn.ftz.f64 %fd1, %fd2;",
        "rsqrt.approx.u32 %r1, %r2;",
        "copysign.ftz.f32 %f1, %f2, %f3;",
        "testp.rn.finite.f32 %p1, %f1;",
        "setp.lt.ftz.s32 %p1, %r1, %r2;",
        "slct.ftz.b32.s32 %r1, %r2, %r3, %r4;",
        "mul.wide.lo.u32 %rd1, %r1, %r2;",
        "fma.f16 %rs1, %rs2, %rs3, %rs4;",
        "fma.rn.sat.relu.f16 %rs1, %rs2, %rs3, %rs4;",
        "tanh.approx.ftz.f32 %f1, %f2;",
        "cvt.rm.tf32.f32 %r1, %f1;",
        "cvt.rn.sat.relu.f16.f32 %rs1, %f1;",
        "st.global.nc.u32 [%rd1], %r1;",
        "st.acquire.gpu.u32 [%rd1], %r1;",
        "ld.release.gpu.u32 %r1, [%rd1];",
        "ld.relaxed.u32 %r1, [%rd1];",
        "atom.local.add.u32 %r1, [l], 1;",
        "atom.add.s64 %rd1, [%rd2], 1;",
        "red.cas.b32 [%rd1], %r1, %r2;",
        "red.exch.b32 [%rd1], %r1;",
        "red.acquire.gpu.add.u32 [%rd1], %r1;",
        "redux.sync.and.u32 %r1, %r2, -1;",
        "shfl.sync.up.u32 %r1, %r2, 1, 0, -1;",
        "membar.gl %r1;",
        "trap 7;",
        "prefetch.global.L1 [nothing];",
        "griddepcontrol.wait 1;",
        "setmaxnreg.inc.sync.aligned.u32 20;",
        "setmaxnreg.inc.sync.aligned.u32 100;",
        "setmaxnreg.dec.sync.aligned.u32 264;",
        "setmaxnreg.dec.sync.aligned.u32 %r1;",
        "add.sat.u32 %r1, %r2, %r3;",
        "cvt.f16.f32 %rs1, %f1;",
    ] {
        refused(instruction);
    }
}
