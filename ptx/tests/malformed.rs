//! Malformed text is refused with a line and never brings the parser down.

mod common;

use proptest::prelude::*;
use ptx::Module;

/// A kernel with something of everything.
const SMALL: &str = include_str!("data/small.ptx");
const SEED: &str = include_str!("data/seed.ptx");

#[test]
fn what_is_not_known_is_an_error_with_its_line() {
    for (body, word) in [
        ("\n\nfrobnicate.u32 %r0, %r1;", "frobnicate"),
        ("\n\nadd.wrong.u32 %r0, %r1, %r2;", "wrong"),
        ("\n\nadd.u32 %r0, %r1;", "operands"),
        ("\n\nadd.u32 %r0, %r1, %rd2;", "64 bits"),
        ("\n\nadd.u32 %r0, %r1, %nothing;", "not declared"),
        ("\n\nbra $nowhere;", "no label"),
        ("\n\ncp.async.bulk.tensor.2d.shared::cluster.global [%r0], [%rd0];", "mbarrier::complete_tx"),
        (
            "\n\ncp.async.bulk.tensor.3d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes [%r0], [%rd0, {%r1, %r1, %r1}], [%r2];",
            "im2col",
        ),
        ("\n\ncp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%rd0, {%r1}], [%r2];", "1 coordinates"),
        ("\n\ncp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%rd0], [%r2];", "coordinates"),
        ("\n\ncp.async.bulk.tensor.global.shared::cta.bulk_group [%rd0, {%r1}], [%r2];", ".1d to .5d"),
        ("\n\nmma.sync.aligned.m8n8k4.row.col.f32.f16.f16.f32 {%r0}, {%r1}, {%r2}, {%r3};", "shape"),
        ("\n\nmov.u32 %r0, %pm0;", "not declared"),
        ("\n\n@%r1 add.u32 %r0, %r1, %r2;", "no predicate"),
        ("\n\nld.global.u32 %r0, [%r1, %r2];", "more than one part"),
        ("\n\ncvt.f32.s32 %f0, %r1;", "rounding"),
        ("\n\nadd.u32 %r0, %r1, 0q7;", "not a number"),
    ] {
        let text = common::kernel(1, body);
        let error = Module::parse(&text).expect_err(body);
        assert!(error.to_string().contains(word), "{error}");
        let line = text.lines().position(|l| l.contains(body.trim())).expect("it is there") as u32 + 1;
        assert_eq!(error.line, line, "{error}");
    }
    assert!(Module::parse("").is_err());
    assert!(Module::parse(".version 8.0\n.target sm_80\n.address_size 32").is_err());
}

#[test]
fn the_seed_is_well_formed() {
    let module = common::parse(SEED);
    assert!(module.kernels.len() >= 2);
    assert_eq!(common::parse(SMALL).kernels.len(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn cut_and_changed_text_does_not_panic(
        edits in prop::collection::vec((0usize..SEED.len(), 0usize..40, "[ -~\n]{0,12}"), 1..6),
    ) {
        let mut text = SEED.as_bytes().to_vec();
        for (at, cut, new) in edits {
            let at = at.min(text.len());
            let end = (at + cut).min(text.len());
            text.splice(at..end, new.bytes());
        }
        let _ = Module::parse(&String::from_utf8_lossy(&text));
    }

    #[test]
    fn what_still_parses_runs_or_is_a_fault(
        edits in prop::collection::vec((200usize..SMALL.len(), 0usize..6, "[0-9a-z%{},.]{0,4}"), 1..4),
        words in prop::collection::vec(any::<u64>(), 4),
    ) {
        let mut text = SMALL.as_bytes().to_vec();
        for (at, cut, new) in edits {
            let at = at.min(text.len());
            let end = (at + cut).min(text.len());
            text.splice(at..end, new.bytes());
        }
        let Ok(module) = Module::parse(&String::from_utf8_lossy(&text)) else { return Ok(()) };
        for kernel in &module.kernels {
            let mut memory = ptx::Memory::new();
            let buffer = memory.alloc_with(&[7; 4096]);
            let mut args: Vec<u8> = buffer.to_le_bytes().to_vec();
            args.extend(words.iter().flat_map(|w| w.to_le_bytes()));
            args.resize(kernel.param_bytes() as usize, 0);
            let request = ptx::Launch { args, ..ptx::Launch::new(&kernel.name, [2, 1, 1], [64, 1, 1]).shared(512) };
            let options = ptx::Options { step_limit: 2000, ..ptx::Options::default() };
            let _ = ptx::launch(&module, &mut memory, &request, &options);
        }
    }

    #[test]
    fn swapped_words_do_not_panic(swaps in prop::collection::vec((0usize..2000, 0usize..2000), 1..8)) {
        let mut words: Vec<&str> = SEED.split_inclusive([' ', ',', ';', '.', '\n']).collect();
        let n = words.len();
        for (a, b) in swaps {
            words.swap(a % n, b % n);
        }
        let _ = Module::parse(&words.concat());
    }
}
