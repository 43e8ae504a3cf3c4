//! Instructions of the lanes of a warp, barriers and fences (PTX ISA 9.7.9.6, 9.7.13).

use crate::common::{HEAD, REGS, parse};
use crate::run::{Check, all};

/// Where a lane of a shuffle reads, after the pseudocode of the ISA: the source lane and the predicate.
fn source(mode: &str, lane: u32, b: u32, c: u32) -> (u32, bool) {
    let (bval, cval, mask) = ((b & 0x1f) as i32, (c & 0x1f) as i32, (c >> 8 & 0x1f) as i32);
    let lane = lane as i32;
    let most = lane & mask | cval & !mask;
    let least = lane & mask;
    let (j, p) = match mode {
        "up" => (lane - bval, lane - bval >= most),
        "down" => (lane + bval, lane + bval <= most),
        "bfly" => (lane ^ bval, lane ^ bval <= most),
        _ => {
            let j = least | bval & !mask;
            (j, j <= most)
        }
    };
    (if p { j } else { lane } as u32, p)
}

fn shuffles() -> Vec<Check> {
    let mut out = Vec::new();
    for mode in ["up", "down", "bfly", "idx"] {
        // The second operand and the clamp of each lane come from its word: all widths, clamps and distances.
        out.push(Check::wide(
            format!("shr.u32 %r30, %r1, 7; xor.b32 %r31, %r1, %r30; shfl.sync.{mode}.b32 %r10|%p1, %r1, %r30, %r31, -1; selp.u32 %r11, 1, 0, %p1;"),
            2,
            move |v, l, r| {
                let b = v[l] >> 7;
                let (from, p) = source(mode, l as u32, b, v[l] ^ b);
                if r == 0 { v[from as usize] } else { p.into() }
            },
        ));
        // The widths and clamps that CUDA makes, and without a predicate.
        for log in 0..6u32 {
            let segments = (32 - (1 << log)) << 8;
            let c = segments | if mode == "up" { 0 } else { 31 };
            for b in [0u32, 1, 2, 5, 16, 31] {
                out.push(Check::new(
                    format!("shfl.sync.{mode}.b32 %r10, %r1, {b}, {c}, 0xffffffff;"),
                    move |v, l| v[source(mode, l as u32, b, c).0 as usize],
                ));
            }
        }
    }
    out
}

/// The lanes of a lane's group, where odd and even words were parted by a branch.
fn group(v: &[u32], l: usize) -> Vec<usize> {
    (0..32).filter(|o| v[*o] & 1 == v[l] & 1).collect()
}

fn mask(lanes: &[usize]) -> u32 {
    lanes.iter().fold(0, |m, l| m | 1 << l)
}

/// A body for the whole warp, and for the two sides of a branch by the lowest bit, each with its own mask.
fn both(body: &str, plain: fn(&[u32], usize, &[usize]) -> u32) -> [Check; 2] {
    let start = "and.b32 %r20, %r1, 1; setp.ne.u32 %p1, %r20, 0; shr.u32 %r21, %r1, 3; and.b32 %r21, %r21, 1; setp.ne.u32 %p2, %r21, 0; vote.sync.ballot.b32 %r22, %p1, -1;";
    let side = |name: &str| body.replace("MASK", "%r23").replace("NAME", name);
    [
        Check::new(format!("{start} {}", body.replace("MASK", "-1").replace("NAME", "w")), move |v, l| {
            plain(v, l, &(0..32).collect::<Vec<_>>())
        }),
        Check::new(
            format!(
                "{start} @%p1 bra $odd; not.b32 %r23, %r22; {} bra $end; $odd: mov.b32 %r23, %r22; {} $end:",
                side("a"),
                side("b")
            ),
            move |v, l| plain(v, l, &group(v, l)),
        ),
    ]
}

fn votes() -> Vec<Check> {
    let mut out = Vec::new();
    let yes = "selp.u32 %r10, 1, 0, %p3;";
    let mut add = |body: String, plain: fn(&[u32], usize, &[usize]) -> u32| out.extend(both(&body, plain));
    add("vote.sync.ballot.b32 %r10, %p2, MASK;".into(), |v, _, g| {
        g.iter().fold(0, |m, o| m | (v[*o] >> 3 & 1) << o)
    });
    add(format!("vote.sync.all.pred %p3, %p2, MASK; {yes}"), |v, _, g| {
        g.iter().all(|o| v[*o] >> 3 & 1 != 0).into()
    });
    add(format!("vote.sync.any.pred %p3, !%p2, MASK; {yes}"), |v, _, g| {
        g.iter().any(|o| v[*o] >> 3 & 1 == 0).into()
    });
    add(format!("vote.sync.uni.pred %p3, %p2, MASK; {yes}"), |v, _, g| {
        g.iter().all(|o| v[*o] >> 3 & 1 == v[g[0]] >> 3 & 1).into()
    });
    add("match.any.sync.b32 %r10, %r1, MASK;".into(), |v, l, g| {
        mask(&g.iter().copied().filter(|o| v[*o] == v[l]).collect::<Vec<_>>())
    });
    add("mul.wide.u32 %rd20, %r1, 0x10001; match.any.sync.b64 %r10, %rd20, MASK;".into(), |v, l, g| {
        mask(&g.iter().copied().filter(|o| v[*o] == v[l]).collect::<Vec<_>>())
    });
    for (ty, set) in
        [("b32", "and.b32 %r24, %r1, 1;"), ("b64", "and.b32 %r25, %r1, 1; cvt.u64.u32 %rd20, %r25;")]
    {
        let r = if ty == "b32" { "%r24" } else { "%rd20" };
        add(
            format!(
                "{set} match.all.sync.{ty} %r10|%p3, {r}, MASK; selp.u32 %r24, 7, 0, %p3; xor.b32 %r10, %r10, %r24;"
            ),
            |v, _, g| if g.iter().all(|o| v[*o] & 1 == v[g[0]] & 1) { mask(g) ^ 7 } else { 0 },
        );
    }
    add("match.all.sync.b32 %r10, %r1, MASK;".into(), |v, _, g| {
        if g.iter().all(|o| v[*o] == v[g[0]]) { mask(g) } else { 0 }
    });
    add("redux.sync.add.u32 %r10, %r1, MASK;".into(), |v, _, g| {
        g.iter().fold(0, |s, o| s.wrapping_add(v[*o]))
    });
    add("redux.sync.add.s32 %r10, %r1, MASK;".into(), |v, _, g| {
        g.iter().fold(0, |s, o| s.wrapping_add(v[*o]))
    });
    add("redux.sync.min.u32 %r10, %r1, MASK;".into(), |v, _, g| g.iter().map(|o| v[*o]).min().expect("one"));
    add("redux.sync.max.u32 %r10, %r1, MASK;".into(), |v, _, g| g.iter().map(|o| v[*o]).max().expect("one"));
    add("redux.sync.min.s32 %r10, %r1, MASK;".into(), |v, _, g| {
        g.iter().map(|o| v[*o] as i32).min().expect("one") as u32
    });
    add("redux.sync.max.s32 %r10, %r1, MASK;".into(), |v, _, g| {
        g.iter().map(|o| v[*o] as i32).max().expect("one") as u32
    });
    add("redux.sync.and.b32 %r10, %r1, MASK;".into(), |v, _, g| g.iter().fold(u32::MAX, |s, o| s & v[*o]));
    add("redux.sync.or.b32 %r10, %r1, MASK;".into(), |v, _, g| g.iter().fold(0, |s, o| s | v[*o]));
    add("redux.sync.xor.b32 %r10, %r1, MASK;".into(), |v, _, g| g.iter().fold(0, |s, o| s ^ v[*o]));
    add(
        "elect.sync %r24|%p3, MASK; selp.u32 %r25, 100, 0, %p3; add.u32 %r10, %r24, %r25;".into(),
        |_, l, g| g[0] as u32 + if g[0] == l { 100 } else { 0 },
    );
    add("activemask.b32 %r10;".into(), |_, _, g| mask(g));
    // What the lanes of a mask wrote before, the others see behind.
    add(
        "st.shared.u32 [%r3], %r1; bar.warp.sync MASK; elect.sync %r24|_, MASK; mad.lo.u32 %r25, %r24, 64, %r2; ld.shared.u32 %r10, [%r25]; bar.warp.sync MASK;".into(),
        |v, _, g| v[g[0]],
    );
    out
}

pub fn texts() -> Vec<String> {
    shuffles()
        .iter()
        .chain(&votes())
        .map(Check::text)
        .chain(barriers().into_iter().map(|b| b.text))
        .chain(fences())
        .collect()
}

#[test]
fn shuffles_of_all_modes_widths_and_clamps() {
    // Distances and clamps of every lane's own first; then those that are constants.
    let input = crate::run::words(1024, 6);
    for check in shuffles() {
        if check.words == 2 { all(&[check]) } else { check.run(&input) }
    }
}

#[test]
fn votes_matches_and_reductions() {
    all(&votes());
}

struct Barrier {
    text: String,
    plain: fn(&[u32], usize) -> u32,
}

const THREADS: usize = 160;

/// Five warps: a word of each thread in %r1, the result in %r10.
fn kernel(body: &str) -> String {
    format!(
        "{HEAD}.visible .entry k(.param .u64 p0, .param .u64 p1) {{ {REGS} .shared .align 4 .b8 s[1024];\n\
         ld.param.u64 %rd0, [p0]; ld.param.u64 %rd1, [p1]; mov.u32 %r0, %tid.x; mul.wide.u32 %rd2, %r0, 4; add.u64 %rd3, %rd0, %rd2; add.u64 %rd4, %rd1, %rd2;\n\
         mov.u32 %r2, s; mad.lo.u32 %r3, %r0, 4, %r2; ld.global.u32 %r1, [%rd3]; and.b32 %r20, %r1, 1; setp.ne.u32 %p1, %r20, 0; setp.ge.u32 %p2, %r0, 96; mov.u32 %r21, 160; mov.u32 %r22, 3;\n\
         {body}\nst.global.u32 [%rd4], %r10; ret; }}\n"
    )
}

fn barriers() -> Vec<Barrier> {
    let mut out = Vec::new();
    let mut add =
        |body: String, plain: fn(&[u32], usize) -> u32| out.push(Barrier { text: kernel(&body), plain });
    // Every thread reads what another warp wrote.
    let put = "st.shared.u32 [%r3], %r1;";
    let take = "add.u32 %r23, %r0, 37; rem.u32 %r23, %r23, 160; mad.lo.u32 %r24, %r23, 4, %r2; ld.shared.u32 %r10, [%r24];";
    for sync in [
        "bar.sync 0;",
        "bar.sync 5, 160;",
        "bar.sync %r22, %r21;",
        "bar.cta.sync 1;",
        "barrier.sync 2;",
        "barrier.cta.sync 2, 160;",
        "barrier.sync.aligned 15, 160;",
        "barrier.cta.sync.aligned 0;",
        "barrier.cluster.arrive; barrier.cluster.wait;",
        "barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;",
    ] {
        add(format!("{put} {sync} {take}"), |v, i| v[(i + 37) % THREADS]);
    }
    for sync in [
        "barrier.cluster.arrive.relaxed; barrier.cluster.wait;",
        "barrier.cluster.arrive.relaxed.aligned; barrier.cluster.wait.aligned;",
    ] {
        add(format!("{sync} mov.u32 %r10, %r1;"), |v, i| v[i]);
    }
    // The last two warps produce and go on, the first three wait.
    let take = "add.u32 %r23, %r0, 96; min.u32 %r23, %r23, 159; mad.lo.u32 %r24, %r23, 4, %r2; ld.shared.u32 %r10, [%r24];";
    for (arrive, sync) in [
        ("bar.arrive 1, 160;", "bar.sync 1, 160;"),
        ("bar.cta.arrive 1, %r21;", "bar.cta.sync 1, 160;"),
        ("barrier.arrive 1, 160;", "barrier.sync 1, 160;"),
        ("barrier.cta.arrive.aligned 1, 160;", "barrier.sync.aligned 1, 160;"),
    ] {
        add(
            format!("{put} @%p2 bra $made; {sync} {take} bra $end; $made: {arrive} mov.u32 %r10, 5; $end:"),
            |v, i| if i >= 96 { 5 } else { v[(i + 96).min(159)] },
        );
    }
    // Threads of a warp that arrive apart.
    add(
        format!(
            "{put} @%p1 bra $odd; barrier.sync 4; bra $met; $odd: barrier.sync 4; $met: add.u32 %r23, %r0, 37; rem.u32 %r23, %r23, 160; mad.lo.u32 %r24, %r23, 4, %r2; ld.shared.u32 %r10, [%r24];"
        ),
        |v, i| v[(i + 37) % THREADS],
    );
    let yes = "selp.u32 %r10, 1, 0, %p3;";
    for red in ["bar.red", "bar.cta.red", "barrier.red", "barrier.cta.red"] {
        let aligned = if red.starts_with("barrier") { vec!["", ".aligned"] } else { vec![""] };
        for a in aligned {
            for count in ["", ", 160"] {
                add(format!("{red}.popc{a}.u32 %r10, 0{count}, %p1;"), |v, _| v.iter().map(|x| x & 1).sum());
                add(format!("{red}.popc{a}.u32 %r10, 0{count}, !%p1;"), |v, _| {
                    v.iter().map(|x| !x & 1).sum()
                });
                add(
                    format!("setp.ne.u32 %p1, %r1, 3; {red}.and{a}.pred %p3, %r22{count}, %p1; {yes}"),
                    |v, _| v.iter().all(|x| *x != 3).into(),
                );
                add(
                    format!("setp.eq.u32 %p1, %r1, 3; {red}.or{a}.pred %p3, 1{count}, %p1; {yes}"),
                    |v, _| v.contains(&3).into(),
                );
            }
        }
    }
    out
}

#[test]
fn barriers_and_their_reductions() {
    for seed in 0..3 {
        let mut input = crate::run::words(THREADS, seed);
        if seed == 1 {
            input.iter_mut().for_each(|v| *v |= 4);
        }
        let bytes: Vec<u8> = input.iter().flat_map(|v| v.to_le_bytes()).collect();
        for b in barriers() {
            let module = parse(&b.text);
            for warps in [ptx::Order::Any, ptx::Order::Backward, ptx::Order::Random(seed)] {
                let mut memory = ptx::Memory::new();
                let (from, to) = (memory.alloc_with(&bytes), memory.alloc(4 * THREADS as u64));
                let request = ptx::Launch::new("k", [1; 3], [THREADS as u32, 1, 1])
                    .arg(&from.to_le_bytes())
                    .arg(&to.to_le_bytes());
                let options = ptx::Options { warps, ..ptx::Options::default() };
                ptx::launch(&module, &mut memory, &request, &options)
                    .unwrap_or_else(|f| panic!("{f}\n{}", b.text));
                for (i, got) in memory.read(to, 4 * THREADS).chunks(4).enumerate() {
                    let got = u32::from_le_bytes(got.try_into().expect("four"));
                    assert_eq!(got, (b.plain)(&input, i), "thread {i}\n{}", b.text);
                }
            }
        }
    }
}

/// One thread of a block publishes a word behind a fence, the other block waits for its flag.
fn fences() -> Vec<String> {
    let mut all: Vec<String> = ["membar.gl;", "membar.sys;", "fence.sc.gpu;", "fence.acq_rel.sys;", "fence.acq_rel.gpu;", "fence.acquire.gpu; fence.release.gpu;", "fence.gpu;"]
        .iter()
        .map(|fence| {
            format!(
                "{HEAD}.visible .entry k(.param .u64 p0) {{ {REGS} ld.param.u64 %rd0, [p0]; mov.u32 %r0, %ctaid.x; setp.ne.u32 %p1, %r0, 0; @%p1 bra $read;\n\
                 st.global.u32 [%rd0], 77; {fence} st.relaxed.gpu.global.u32 [%rd0+64], 1; bra $end;\n\
                 $read: ld.relaxed.gpu.global.u32 %r1, [%rd0+64]; setp.eq.u32 %p2, %r1, 0; @%p2 bra $read; {fence} ld.global.u32 %r2, [%rd0]; st.global.u32 [%rd0+128], %r2; $end: ret; }}"
            )
        })
        .collect();
    let within = "membar.cta; fence.sc.cta; fence.acq_rel.cluster; fence.acquire.cluster; fence.release.cta; fence.proxy.async; fence.proxy.async.global; \
                  fence.proxy.async.shared::cta; fence.proxy.async.shared::cluster; fence.mbarrier_init.release.cluster;";
    all.push(format!(
        "{HEAD}.visible .entry k(.param .u64 p0) {{ {REGS} ld.param.u64 %rd0, [p0]; {within} mov.u32 %r0, %ctaid.x; setp.eq.u32 %p1, %r0, 0; @%p1 st.global.u32 [%rd0+128], 77; ret; }}"
    ));
    all
}

#[test]
fn acquiring_and_releasing_order_by_their_scope() {
    let text = |store: &str, load: &str| {
        format!(
            "{HEAD}.visible .entry k(.param .u64 p0) {{ {REGS} ld.param.u64 %rd0, [p0]; mov.u32 %r0, %ctaid.x; setp.ne.u32 %p1, %r0, 0; @%p1 bra $read;\n\
             st.global.u32 [%rd0], 77; {store} bra $end;\n\
             $read: {load} setp.eq.u32 %p2, %r1, 0; @%p2 bra $read; ld.global.u32 %r2, [%rd0]; st.global.u32 [%rd0+128], %r2; $end: ret; }}"
        )
    };
    let run = |store: &str, load: &str, blocks: ptx::Order| {
        let module = parse(&text(store, load));
        let mut memory = ptx::Memory::new();
        let a = memory.alloc_with(&[0; 256]);
        let request = ptx::Launch::new("k", [2, 1, 1], [1; 3]).arg(&a.to_le_bytes());
        let options = ptx::Options { blocks, ..ptx::Options::default() };
        ptx::launch(&module, &mut memory, &request, &options).map(|_| ()).map_err(|f| f.kind)
    };
    let stores = |scope: &str| {
        [
            format!("st.release.{scope}.global.u32 [%rd0+64], 1;"),
            format!("red.release.{scope}.global.add.u32 [%rd0+64], 1;"),
            format!("atom.acq_rel.{scope}.global.exch.b32 %r3, [%rd0+64], 1;"),
        ]
    };
    let loads = |scope: &str| {
        [
            format!("ld.acquire.{scope}.global.u32 %r1, [%rd0+64];"),
            format!("atom.acquire.{scope}.global.or.b32 %r1, [%rd0+64], 0;"),
        ]
    };
    // The writing block first: the other would spin for a whole turn.
    for blocks in [ptx::Order::Any, ptx::Order::Forward] {
        for k in 0..6 {
            let (store, load) = (stores("gpu")[k % 3].clone(), loads("gpu")[k / 3].clone());
            assert_eq!(run(&store, &load, blocks), Ok(()), "{store} {load}");
            let race = Err(ptx::FaultKind::BlockRace);
            assert_eq!(run(&stores("cta")[k % 3], &load, blocks), race, "{store} of a block");
            assert_eq!(run(&store, &loads("cta")[k / 3], blocks), race, "{load} of a block");
            assert_eq!(
                run(&store.replace("release", "relaxed").replace("acq_rel", "relaxed"), &load, blocks),
                race
            );
        }
    }
}

#[test]
fn fences_order_blocks() {
    for text in fences() {
        let module = parse(&text);
        for blocks in [ptx::Order::Any, ptx::Order::Forward] {
            let mut memory = ptx::Memory::new();
            let a = memory.alloc_with(&[0; 256]);
            let request = ptx::Launch::new("k", [2, 1, 1], [1; 3]).arg(&a.to_le_bytes());
            let options = ptx::Options { blocks, ..ptx::Options::default() };
            ptx::launch(&module, &mut memory, &request, &options).unwrap_or_else(|f| panic!("{f}\n{text}"));
            assert_eq!(memory.read(a + 128, 4), [77, 0, 0, 0], "{text}");
        }
    }
}
