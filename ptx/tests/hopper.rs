//! Instructions of compute capability 9.0: mbarriers, bulk copies, clusters and products of a warpgroup.

mod common;

use common::{HEAD, REGS, parse};
use ptx::{Element, Fault, FaultKind, Fill, Launch, Memory, Options, Order, Swizzle, TensorMap, launch};

fn text(body: &str) -> String {
    format!(
        "{HEAD}.visible .entry k(.param .u64 p0, .param .u64 p1) {{\n{REGS}.shared .align 128 .b8 s[8192]; .shared .align 8 .b64 bar;\n\
         ld.param.u64 %rd0, [p0]; ld.param.u64 %rd1, [p1]; mov.u32 %r0, %tid.x; mov.u32 %r1, %ctaid.x;\n\
         mov.u32 %r2, s; mov.u32 %r3, bar; setp.eq.u32 %p1, %r0, 0;\n{body}\nret;\n}}\n"
    )
}

fn run(threads: u32, cluster: u32, body: &str, options: &Options) -> Result<Vec<u32>, Box<Fault>> {
    let module = parse(&text(body));
    let mut memory = Memory::new();
    let input: Vec<u8> = (0..1024u32).flat_map(|i| (i * 3).to_le_bytes()).collect();
    let (a, b) = (memory.alloc_with(&input), memory.alloc(4096));
    let mut request =
        Launch::new("k", [cluster, 1, 1], [threads, 1, 1]).arg(&a.to_le_bytes()).arg(&b.to_le_bytes());
    request.cluster = [cluster, 1, 1];
    launch(&module, &mut memory, &request, options)?;
    Ok(memory.read(b, 4096).chunks(4).map(|c| u32::from_le_bytes(c.try_into().expect("four"))).collect())
}

fn passes(threads: u32, cluster: u32, body: &str) -> Vec<u32> {
    let mut out = Vec::new();
    for warps in [Order::Any, Order::Backward, Order::Random(1)] {
        let options = Options { warps, ..Options::default() };
        out = run(threads, cluster, body, &options).unwrap_or_else(|f| panic!("{f}\n{body}"));
    }
    out
}

fn trips(threads: u32, cluster: u32, body: &str, kind: FaultKind) {
    let options = Options { step_limit: 100_000, ..Options::default() };
    let fault = run(threads, cluster, body, &options).expect_err(body);
    assert_eq!(fault.kind, kind, "{fault}");
}

const INIT: &str = "@%p1 mbarrier.init.shared.b64 [%r3], 1; fence.mbarrier_init.release.cluster; bar.sync 0;";
const WAIT: &str = "$w: mbarrier.try_wait.parity.shared.b64 %p2, [%r3], 0; @!%p2 bra $w;";
const COPY: &str =
    "@%p1 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r2], [%rd0], 4096, [%r3];";
const OUT: &str = "mad.lo.u32 %r4, %r0, 4, %r2; ld.shared.u32 %r5, [%r4]; mad.wide.u32 %rd2, %r0, 4, %rd1; st.global.u32 [%rd2], %r5;";

#[test]
fn bulk_copies_complete_on_mbarriers() {
    let expect = "@%p1 mbarrier.arrive.expect_tx.shared.b64 _, [%r3], 4096;";
    let out = passes(256, 1, &format!("{INIT} {expect} {COPY} {WAIT} {OUT}"));
    assert!((0..256).all(|i| out[i] == 3 * i as u32));
    // Without a wait nothing orders the copy; with a wrong count the wait never ends.
    let fault =
        run(256, 1, &format!("{INIT} {expect} {COPY} {OUT}"), &Options::default()).expect_err("no wait");
    // In some orders the copy has not been started yet.
    assert!(matches!(fault.kind, FaultKind::Race | FaultKind::UninitialisedMemory), "{fault}");
    trips(
        256,
        1,
        &format!("{INIT} {} {COPY} {WAIT} {OUT}", expect.replace("4096", "8192")),
        FaultKind::StepLimit,
    );
    trips(256, 1, &format!("{INIT} {COPY} {WAIT} {OUT}"), FaultKind::StepLimit);
    trips(256, 1, &format!("{expect} {COPY} {WAIT} {OUT}"), FaultKind::UninitialisedMemory);
    trips(32, 1, &format!("{INIT} {expect} {}", COPY.replace("4096", "4090")), FaultKind::Misaligned);
    trips(
        32,
        1,
        &format!("{INIT} {expect} {}", COPY.replace("[%rd0], 4096", "[%rd0+16], 4096")),
        FaultKind::OutOfBounds,
    );
}

#[test]
fn mbarriers_order_producers_and_consumers() {
    // All threads of the first warp write, arrive, and all of the second wait and read.
    let body = |arrive: &str| {
        format!(
            "@%p1 mbarrier.init.shared.b64 [%r3], 32; bar.sync 0; setp.ge.u32 %p3, %r0, 32; @%p3 bra $c; \
             mad.lo.u32 %r4, %r0, 4, %r2; st.shared.u32 [%r4], %r0; {arrive} bra $e; \
             $c: {WAIT} sub.u32 %r6, %r0, 32; mad.lo.u32 %r4, %r6, 4, %r2; ld.shared.u32 %r5, [%r4]; mad.wide.u32 %rd2, %r6, 4, %rd1; st.global.u32 [%rd2], %r5; $e:"
        )
    };
    let out = passes(64, 1, &body("mbarrier.arrive.shared.b64 %rd5, [%r3];"));
    assert!((0..32).all(|i| out[i] == i as u32));
    trips(64, 1, &body(""), FaultKind::StepLimit);
    trips(64, 1, &body("mbarrier.arrive.shared.b64 %rd5, [%r3]; st.shared.u32 [%r4], 5;"), FaultKind::Race);
}

#[test]
fn stores_of_the_asynchronous_proxy_need_a_fence() {
    let body = |fence: &str| {
        format!(
            "mad.lo.u32 %r4, %r0, 4, %r2; st.shared.u32 [%r4], %r0; {fence} bar.sync 0; \
             @%p1 cp.async.bulk.global.shared::cta.bulk_group [%rd1], [%r2], 256; \
             @%p1 cp.async.bulk.commit_group; @%p1 cp.async.bulk.wait_group.read 0;"
        )
    };
    let out = passes(64, 1, &body("fence.proxy.async.shared::cta;"));
    assert!((0..64).all(|i| out[i] == i as u32));
    trips(64, 1, &body(""), FaultKind::MissingProxyFence);
}

#[test]
fn clusters_share_memory() {
    // Every block writes its rank to shared memory; its neighbour reads it.
    let body = |barrier: &str| {
        format!(
            "mad.lo.u32 %r4, %r0, 4, %r2; mov.u32 %r7, %cluster_ctarank; mad.lo.u32 %r8, %r7, 100, %r0; st.shared.u32 [%r4], %r8; {barrier} \
             mov.u32 %r9, %cluster_nctarank; add.u32 %r10, %r7, 1; rem.u32 %r10, %r10, %r9; mapa.shared::cluster.u32 %r11, %r4, %r10; \
             ld.shared::cluster.u32 %r5, [%r11]; mad.lo.u32 %r12, %r7, 32, %r0; mad.wide.u32 %rd2, %r12, 4, %rd1; st.global.u32 [%rd2], %r5; \
             barrier.cluster.arrive; barrier.cluster.wait;"
        )
    };
    let out = passes(32, 4, &body("barrier.cluster.arrive.release; barrier.cluster.wait.acquire;"));
    for rank in 0..4 {
        for lane in 0..32 {
            assert_eq!(out[32 * rank + lane] as usize, (rank + 1) % 4 * 100 + lane);
        }
    }
    let fault = run(32, 4, &body("bar.sync 0;"), &Options::default()).expect_err("no cluster barrier");
    assert!(matches!(fault.kind, FaultKind::BlockRace | FaultKind::UninitialisedMemory), "{fault}");
    trips(32, 2, "mapa.shared::cluster.u32 %r4, %r2, 2;", FaultKind::InvalidOperand);
}

/// A block of a cluster keeps its shared memory as long as one of its threads runs.
#[test]
fn blocks_of_a_cluster_wait_before_they_leave() {
    // Block 0 waits on an mbarrier of its own until block 1 is past the cluster's barrier, then arrives at block 1's.
    let body = |last: &str| {
        format!(
            "{INIT} barrier.cluster.arrive; barrier.cluster.wait; mov.u32 %r7, %cluster_ctarank; setp.eq.u32 %p3, %r7, 1; @%p3 bra $one; \
             {WAIT} mov.u32 %r8, 1; mapa.shared::cluster.u32 %r9, %r3, %r8; nanosleep.u32 1; \
             @%p1 mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r9]; bra $end; \
             $one: mov.u32 %r8, 0; mapa.shared::cluster.u32 %r9, %r3, %r8; \
             @%p1 mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r9]; $end: {last}"
        )
    };
    passes(32, 2, &body("barrier.cluster.arrive; barrier.cluster.wait;"));
    trips(32, 2, &body(""), FaultKind::OutOfBounds);
}

#[test]
fn mbarriers_that_a_device_cannot_count() {
    let init = "@%p1 mbarrier.init.shared.b64 [%r3], 2;";
    let bad = |body: &str| trips(32, 1, body, FaultKind::InvalidOperand);
    bad("@%p1 mbarrier.init.shared.b64 [%r3], 0;");
    bad("@%p1 mbarrier.init.shared.b64 [%r3], 0x100000;");
    bad(&format!("{init} @%p1 mbarrier.arrive.shared.b64 %rd5, [%r3], 3;"));
    bad(&format!("{init} @%p1 mbarrier.arrive.shared.b64 %rd5, [%r3], 0;"));
    bad(&format!("{init} @%p1 mbarrier.expect_tx.shared.b64 [%r3], 0x100000;"));
    bad(&format!("{init} @%p1 mbarrier.complete_tx.shared.b64 [%r3], 0x100000;"));
    trips(32, 1, "@%p1 mbarrier.inval.shared.b64 [%r3];", FaultKind::UninitialisedMemory);
    trips(32, 1, &format!("{init} @%p1 mbarrier.arrive.shared.b64 %rd5, [%r3+4];"), FaultKind::Misaligned);
    passes(32, 1, &format!("{init} @%p1 mbarrier.expect_tx.shared.b64 [%r3], 0xfffff;"));
}

const WGMMA_WAIT: &str = "wgmma.wait_group.sync.aligned 0;";

/// D = A B of 64 x 8 x 16 in BF16, A and B in shared memory without swizzle and with one of 32 bytes.
#[test]
fn warpgroup_products() {
    for swizzle in [0u64, 3] {
        // Element (row, k) of a matrix with 16 columns of two bytes.
        let place = |row: usize, k: usize| -> usize {
            if swizzle == 0 {
                // Core matrices of 8 x 16 bytes: 128 bytes apart along k, 256 along rows.
                row / 8 * 256 + k / 8 * 128 + row % 8 * 16 + k % 8 * 2
            } else {
                let linear = row * 32 + k * 2;
                linear ^ (linear >> 7 & 1) << 4
            }
        };
        let a = |row: usize, k: usize| (row % 7) as f32 - 3.0 + (k % 5) as f32;
        let b = |k: usize, n: usize| (k % 3) as f32 - (n % 4) as f32 * 0.5;
        let mut bytes = vec![0u8; 4096];
        let mut put = |at: usize, v: f32| {
            bytes[at..at + 2].copy_from_slice(&half::bf16::from_f32(v).to_le_bytes());
        };
        for k in 0..16 {
            for row in 0..64 {
                put(place(row, k), a(row, k));
            }
            for n in 0..8 {
                put(2048 + place(n, k), b(k, n));
            }
        }
        let descriptor = |offset: u64| {
            // Shared memory begins at 1,024.
            let start = (1024 + offset) >> 4;
            let (leading, stride) = if swizzle == 0 { (128u64 >> 4, 256u64 >> 4) } else { (1, 256u64 >> 4) };
            start | leading << 16 | stride << 32 | swizzle << 62
        };
        let body = |fence: &str, wait: &str| {
            format!(
                "mad.wide.u32 %rd2, %r0, 32, %rd0; mad.lo.u32 %r4, %r0, 32, %r2; ld.global.v4.u32 {{%r10, %r11, %r12, %r13}}, [%rd2]; st.shared.v4.u32 [%r4], {{%r10, %r11, %r12, %r13}}; \
             ld.global.v4.u32 {{%r10, %r11, %r12, %r13}}, [%rd2+16]; st.shared.v4.u32 [%r4+16], {{%r10, %r11, %r12, %r13}}; {fence} bar.sync 0; \
             mov.u64 %rd4, {}; mov.u64 %rd5, {}; mov.f32 %f0, 0f00000000; mov.f32 %f1, %f0; mov.f32 %f2, %f0; mov.f32 %f3, %f0; setp.ne.u32 %p2, %r0, %r0; \
             wgmma.fence.sync.aligned; wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {{%f0, %f1, %f2, %f3}}, %rd4, %rd5, %p2, 1, -1, 0, 0; \
             wgmma.commit_group.sync.aligned; {wait} mad.wide.u32 %rd3, %r0, 16, %rd1; st.global.v4.f32 [%rd3], {{%f0, %f1, %f2, %f3}};",
                descriptor(0),
                descriptor(2048)
            )
        };
        let module = parse(&text(&body("fence.proxy.async;", WGMMA_WAIT)));
        let mut memory = Memory::new();
        let (input, out) = (memory.alloc_with(&bytes), memory.alloc(2048));
        let request = Launch::new("k", [1; 3], [128, 1, 1]).arg(&input.to_le_bytes()).arg(&out.to_le_bytes());
        launch(&module, &mut memory, &request, &Options::default()).unwrap_or_else(|f| panic!("{f}"));
        let got = memory.read(out, 2048);
        for thread in 0..128 {
            for r in 0..4 {
                let (row, n) = (thread / 32 * 16 + thread % 32 / 4 + 8 * (r / 2), 2 * (thread % 4) + r % 2);
                let want: f32 = -(0..16).map(|k| a(row, k) * b(k, n)).sum::<f32>();
                let at = 16 * thread + 4 * r;
                let got = f32::from_le_bytes(got[at..at + 4].try_into().expect("four"));
                assert_eq!(got, want, "swizzle {swizzle}, row {row}, column {n}");
            }
        }
        let module = parse(&text(&body("", WGMMA_WAIT)));
        let fault = launch(&module, &mut memory, &request, &Options::default()).expect_err("no fence");
        assert_eq!(fault.kind, FaultKind::MissingProxyFence);
        let module = parse(&text(&body("fence.proxy.async;", "wgmma.wait_group.sync.aligned 1;")));
        let fault = launch(&module, &mut memory, &request, &Options::default()).expect_err("no wait");
        assert_eq!(fault.kind, FaultKind::CopyInFlight);
    }
}

/// A tensor of 32 x 16 words in boxes of 8 x 16, whose map is at %rd0, with %rd1 and what `text` has.
fn with_map(body: &str, map: &[u8; 128]) -> Result<(), Box<Fault>> {
    let text = text(body)
        .replace(".param .u64 p0", ".param .align 64 .b8 p0[128]")
        .replace("ld.param.u64 %rd0, [p0];", "mov.b64 %rd2, p0; cvta.param.u64 %rd0, %rd2;");
    let module = parse(&text);
    let mut memory = Memory::new();
    let out = memory.alloc(4096);
    let request = Launch::new("k", [1; 3], [64, 1, 1]).arg(map).arg(&out.to_le_bytes());
    let options = Options { step_limit: 100_000, ..Options::default() };
    launch(&module, &mut memory, &request, &options).map(|_| ())
}

#[test]
fn copies_by_tensor_map_that_go_wrong() {
    let mut memory = Memory::new();
    // The only buffer of a fresh memory: the output, which the tensor lies in, or is the start of.
    let at = memory.alloc(4096);
    let make = |rows: u64| {
        let tile = [8, 16];
        TensorMap::new(Element::U32, at, &[32, rows], &[128], &tile, Swizzle::None, Fill::Zeros)
            .expect("a map")
            .encode()
    };
    let map = make(16);
    let fill = "mad.wide.u32 %rd5, %r0, 4, %rd1; mov.u32 %r4, 0; $f: st.global.u32 [%rd5], %r4; add.u64 %rd5, %rd5, 256; add.u32 %r4, %r4, 1; setp.lt.u32 %p3, %r4, 16; @%p3 bra $f; bar.sync 0;";
    let expect = "@%p1 mbarrier.arrive.expect_tx.shared.b64 _, [%r3], 512;";
    let load = "@%p1 cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%r2], [%rd0, {4, -1}], [%r3];";
    let whole = |body: &str| format!("{fill} {INIT} {expect} {body} {WAIT}");
    let kind = |body: &str, map: &[u8; 128]| with_map(body, map).map_err(|f| f.kind);
    let read = "ld.shared.u32 %r5, [%r2];";
    assert_eq!(kind(&format!("{} {read}", whole(load)), &map), Ok(()));
    // Bytes outside of the tensor count: fewer are never complete. Nothing orders a read before the wait.
    let less = whole(load).replace("512", "480");
    assert_eq!(kind(&less, &map), Err(FaultKind::StepLimit));
    assert_eq!(kind(&whole(load).replace("512", "528"), &map), Err(FaultKind::StepLimit));
    let early = format!("{fill} {INIT} {expect} {load} {read}");
    assert!(matches!(kind(&early, &map), Err(FaultKind::Race | FaultKind::UninitialisedMemory)));
    let unfenced = whole(load).replace(" fence.mbarrier_init.release.cluster;", "");
    assert_eq!(kind(&unfenced, &map), Err(FaultKind::MissingProxyFence));
    // Addresses: of shared memory, of the map, of what the map names.
    let with = |from: &str, to: &str| kind(&whole(&load.replace(from, to)), &map);
    assert_eq!(with("[%r2]", "[%r2+64]"), Err(FaultKind::Misaligned));
    assert_eq!(with("[%r2]", "[%r2+7808]"), Err(FaultKind::OutOfBounds));
    assert_eq!(with("[%rd0,", "[%rd0+32,"), Err(FaultKind::Misaligned));
    assert_eq!(with("[%rd0,", "[%rd0+64,"), Err(FaultKind::OutOfBounds));
    assert_eq!(with("[%rd0,", "[%rd1,"), Err(FaultKind::InvalidOperand));
    let rank = load.replace("2d", "3d").replace("{4, -1}", "{4, -1, 0}");
    assert_eq!(kind(&whole(&rank), &map), Err(FaultKind::InvalidOperand));
    let own = "cvt.u64.u32 %rd6, %r2; cvta.shared.u64 %rd0, %rd6;";
    assert_eq!(kind(&whole(&format!("{own} {load}")), &map), Err(FaultKind::InvalidOperand));
    assert_eq!(kind(&whole(load), &[0; 128]), Err(FaultKind::InvalidOperand));
    let below = load.replace("-1", "24");
    assert_eq!(kind(&whole(&below), &make(32)), Ok(()));
    assert_eq!(kind(&whole(&below), &make(40)), Err(FaultKind::OutOfBounds));
    // What the tensor does not hold yet.
    assert_eq!(kind(&format!("{INIT} {expect} {load} {WAIT}"), &map), Err(FaultKind::UninitialisedMemory));
    // Stores: of what threads wrote behind a fence, and shared memory is left alone until they have read it.
    let store = "@%p1 cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%rd0, {-4, 9}], [%r2]; @%p1 cp.async.bulk.commit_group;";
    let wait = "@%p1 cp.async.bulk.wait_group 0;";
    let body = |fence: &str, behind: &str| {
        format!(
            "mad.lo.u32 %r4, %r0, 8, %r2; st.shared.u32 [%r4], %r0; st.shared.u32 [%r4+4], %r0; {fence} bar.sync 0; {store} {behind}"
        )
    };
    let fence = "fence.proxy.async.shared::cta;";
    assert_eq!(kind(&body(fence, wait), &map), Ok(()));
    assert_eq!(kind(&body("", wait), &map), Err(FaultKind::MissingProxyFence));
    assert_eq!(kind(&body(fence, ""), &map), Err(FaultKind::CopyInFlight));
    let over = |at: u32| format!("@%p1 st.shared.u32 [%r2+{at}], 0; {wait}");
    assert_eq!(kind(&body(fence, &over(16)), &map), Err(FaultKind::CopyInFlight));
    // The first half of a row lies outside and is not read.
    assert_eq!(kind(&body(fence, &over(0)), &map), Ok(()));
    assert_eq!(kind(&body(fence, &format!("{wait} {}", over(16))), &map), Ok(()));
    let race = |behind: &str| {
        format!("{} setp.eq.u32 %p4, %r0, 33; {behind} @%p4 st.global.u32 [%rd1+1152], 5;", body(fence, wait))
    };
    assert_eq!(kind(&race("bar.sync 0;"), &map), Ok(()));
    assert_eq!(kind(&race(""), &map), Err(FaultKind::Race));
}

#[test]
fn early_launches_wait_before_they_use_global_memory() {
    let at = "mad.wide.u32 %rd2, %r0, 4, %rd0; mad.wide.u32 %rd3, %r0, 4, %rd1;";
    let copy = "ld.global.u32 %r5, [%rd2]; st.global.u32 [%rd3], %r5;";
    let early = Options { early: true, ..Options::default() };
    for wait in ["griddepcontrol.wait; griddepcontrol.launch_dependents;", "griddepcontrol.wait; bar.sync 0;"]
    {
        let out = run(64, 1, &format!("{at} {wait} {copy}"), &early).expect("waits");
        assert!((0..64).all(|i| out[i] == 3 * i as u32));
    }
    let waits_for_itself = "@%p1 griddepcontrol.wait; bar.sync 0;";
    for (wait, body, thread) in [
        ("", copy, 0),
        ("griddepcontrol.launch_dependents;", copy, 0),
        (waits_for_itself, copy, 1),
        ("", "ld.global.nc.u32 %r5, [%rd2];", 0),
        ("", "ld.u32 %r5, [%rd2];", 0),
        ("", "st.global.u32 [%rd3], %r0;", 0),
        ("", "red.global.add.u32 [%rd3], 1;", 0),
        ("", "cp.async.ca.shared.global [%r2], [%rd2], 4; cp.async.wait_all;", 0),
    ] {
        let body = format!("{at} {wait} {body}");
        let fault = run(32, 1, &body, &early).expect_err(&body);
        assert_eq!((fault.kind, fault.thread), (FaultKind::MissingGridWait, Some([thread, 0, 0])), "{fault}");
    }
    // Launches that are not early, and memory of other spaces.
    run(64, 1, &format!("{at} {copy}"), &Options::default()).expect("no wait is needed");
    let shared = "mad.lo.u32 %r4, %r0, 4, %r2; st.shared.u32 [%r4], %r0; ld.shared.u32 %r5, [%r4];";
    run(64, 1, &format!("{shared} griddepcontrol.wait; {at} st.global.u32 [%rd3], %r5;"), &early)
        .expect("waits");
}
