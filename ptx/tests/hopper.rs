//! Instructions of compute capability 9.0: mbarriers, bulk copies, clusters and products of a warpgroup.

mod common;

use common::{HEAD, REGS, parse};
use ptx::{Fault, FaultKind, Launch, Memory, Options, Order, launch};

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
