//! Special registers (PTX ISA 10).

use ptx::{Launch, Memory, Options, launch};

use crate::common::{HEAD, REGS, parse};
use crate::run::{Check, all};

fn special() -> Vec<Check> {
    let one = |name: &str, plain: fn(usize) -> u32| {
        Check::new(format!("mov.u32 %r10, %{name};"), move |_, l| plain(l))
    };
    vec![
        one("tid.y", |_| 0),
        one("ntid.x", |_| 32),
        one("ntid.z", |_| 1),
        one("ctaid.y", |_| 0),
        one("nctaid.x", |_| 320),
        one("laneid", |l| l as u32),
        one("warpid", |_| 0),
        one("nwarpid", |_| 1),
        one("lanemask_eq", |l| 1 << l),
        one("lanemask_lt", |l| (1 << l) - 1),
        one("lanemask_le", |l| ((2u64 << l) - 1) as u32),
        one("lanemask_gt", |l| !(((2u64 << l) - 1) as u32)),
        one("lanemask_ge", |l| !((1u32 << l) - 1)),
        one("dynamic_smem_size", |_| 0),
        one("total_smem_size", |_| 4096),
        one("cluster_ctarank", |_| 0),
        one("cluster_nctarank", |_| 1),
        one("cluster_ctaid.x", |_| 0),
        one("cluster_nctaid.x", |_| 1),
        one("nclusterid.x", |_| 320),
        Check::new(
            "mov.u32 %r30, %smid; mov.u32 %r31, %nsmid; setp.lt.u32 %p1, %r30, %r31; selp.u32 %r10, 1, 0, %p1;",
            |_, _| 1,
        ),
        Check::new("mov.u64 %rd20, %gridid; cvt.u32.u64 %r10, %rd20; min.u32 %r10, %r10, 1;", |_, _| 1),
        // Clocks do not run backwards.
        Check::new(
            "mov.u32 %r30, %clock; mov.u32 %r31, %clock; mov.u64 %rd20, %clock64; mov.u64 %rd21, %clock64; mov.u32 %r32, %clock_hi; mov.u64 %rd22, %globaltimer; \
             setp.le.u32 %p1, %r30, %r31; setp.le.and.u64 %p1, %rd20, %rd21, %p1; setp.le.and.u64 %p1, %rd21, %rd22, %p1; selp.u32 %r10, 1, 0, %p1;",
            |_, _| 1,
        ),
        Check::new("mov.u32 %r30, %ctaid.x; mov.u32 %r31, %clusterid.x; sub.u32 %r10, %r30, %r31;", |_, _| 0),
    ]
}

/// What each thread of a grid of clusters reads, in this order.
const NAMES: [&str; 30] = [
    "tid.x",
    "tid.y",
    "tid.z",
    "ntid.x",
    "ntid.y",
    "ntid.z",
    "ctaid.x",
    "ctaid.y",
    "ctaid.z",
    "nctaid.x",
    "nctaid.y",
    "nctaid.z",
    "clusterid.x",
    "clusterid.y",
    "clusterid.z",
    "nclusterid.x",
    "nclusterid.y",
    "nclusterid.z",
    "cluster_ctaid.x",
    "cluster_ctaid.y",
    "cluster_ctaid.z",
    "cluster_nctaid.x",
    "cluster_nctaid.y",
    "cluster_nctaid.z",
    "cluster_ctarank",
    "cluster_nctarank",
    "laneid",
    "warpid",
    "nwarpid",
    "dynamic_smem_size",
];

#[test]
fn of_three_dimensions() {
    let (grid, block, cluster) = ([4usize, 2, 6], [5usize, 3, 4], [2usize, 1, 3]);
    let stores: String = NAMES
        .iter()
        .enumerate()
        .map(|(k, name)| format!("mov.u32 %r1, %{name}; st.global.u32 [%rd1+{}], %r1;\n", 4 * k))
        .collect();
    let text = format!(
        "{HEAD}.visible .entry k(.param .u64 p0) {{ {REGS} ld.param.u64 %rd0, [p0];\n\
         mov.u32 %r2, %ctaid.z; mov.u32 %r3, %ctaid.y; mov.u32 %r4, %ctaid.x; mad.lo.u32 %r2, %r2, {}, %r3; mad.lo.u32 %r2, %r2, {}, %r4;\n\
         mov.u32 %r3, %tid.z; mov.u32 %r4, %tid.y; mov.u32 %r5, %tid.x; mad.lo.u32 %r3, %r3, {}, %r4; mad.lo.u32 %r3, %r3, {}, %r5;\n\
         mad.lo.u32 %r2, %r2, {}, %r3; mad.wide.u32 %rd1, %r2, {}, %rd0;\n{stores} ret; }}",
        grid[1],
        grid[0],
        block[1],
        block[0],
        block.iter().product::<usize>(),
        4 * NAMES.len()
    );
    let module = parse(&text);
    let threads = block.iter().product::<usize>();
    let total = grid.iter().product::<usize>() * threads;
    let mut memory = Memory::new();
    let out = memory.alloc((4 * NAMES.len() * total) as u64);
    let small = |v: [usize; 3]| v.map(|n| n as u32);
    let mut request = Launch::new("k", small(grid), small(block)).shared(96).arg(&out.to_le_bytes());
    request.cluster = small(cluster);
    launch(&module, &mut memory, &request, &Options::default()).unwrap_or_else(|f| panic!("{f}"));
    let got: Vec<u32> = memory
        .read(out, 4 * NAMES.len() * total)
        .chunks(4)
        .map(|c| u32::from_le_bytes(c.try_into().expect("four")))
        .collect();
    let split = |n: usize, size: [usize; 3]| [n % size[0], n / size[0] % size[1], n / size[0] / size[1]];
    for thread in 0..total {
        let (b, t) = (split(thread / threads, grid), split(thread % threads, block));
        let each = |f: &dyn Fn(usize) -> usize| [f(0), f(1), f(2)];
        let within = each(&|i| b[i] % cluster[i]);
        let want: Vec<usize> = [
            t,
            block,
            b,
            grid,
            each(&|i| b[i] / cluster[i]),
            each(&|i| grid[i] / cluster[i]),
            within,
            cluster,
        ]
        .concat()
        .into_iter()
        .chain([
            within[0] + cluster[0] * (within[1] + cluster[1] * within[2]),
            cluster.iter().product(),
            thread % threads % 32,
            thread % threads / 32,
            threads.div_ceil(32),
            96,
        ])
        .collect();
        for (k, want) in want.iter().enumerate() {
            assert_eq!(
                got[thread * NAMES.len() + k] as usize,
                *want,
                "%{} of block {b:?}, thread {t:?}",
                NAMES[k]
            );
        }
    }
}

#[test]
fn of_one_dimension() {
    all(&special());
}
