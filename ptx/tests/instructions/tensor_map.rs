//! Copies by tensor map (PTX ISA 9.7.9.27): boxes of all ranks, element sizes and swizzles, inside of their tensors, across
//! their edges and far outside; and a product of a warpgroup whose operands came that way.

use ptx::{Element, Fill, Launch, Memory, Options, Order, Swizzle, TensorMap, launch};
use rand::{Rng, SeedableRng, rngs::SmallRng};

use crate::common::{HEAD, REGS, parse};

/// Bytes of shared memory, and where a box begins at most.
const SHARED: usize = 32_768;

/// %rd0: generic address of the map, %rd1: output, %r0: thread, %r2: shared memory, %r3: an mbarrier, %p1: the first
/// thread, %r7: the block's rank in its cluster. Shared memory holds 0x5a in all bytes.
fn kernel(module: &str, map: &str, body: &str) -> String {
    format!(
        "{HEAD}{module}.visible .entry k(.param .align 64 .b8 p0[128], .param .u64 p1, .param .u64 p2) {{\n{REGS}.shared .align 1024 .b8 s[{SHARED}]; .shared .align 8 .b64 bar;\n\
         {map} ld.param.u64 %rd1, [p1]; mov.u32 %r0, %tid.x; mov.u32 %r7, %cluster_ctarank; mov.u32 %r2, s; mov.u32 %r3, bar; setp.eq.u32 %p1, %r0, 0;\n\
         createpolicy.fractional.L2::evict_first.b64 %rd33; mov.u32 %r20, 0x5a5a5a5a; mov.u32 %r21, 0;\n\
         $f: mad.lo.u32 %r22, %r0, 4, %r21; add.u32 %r22, %r22, %r2; st.shared.u32 [%r22], %r20; add.u32 %r21, %r21, 256; setp.lt.u32 %p2, %r21, {SHARED}; @%p2 bra $f;\n\
         @%p1 mbarrier.init.shared.b64 [%r3], 1; fence.mbarrier_init.release.cluster; fence.proxy.async.shared::cta; bar.sync 0;\n\
         {body}\nret; }}\n"
    )
}

/// The map as a parameter, whose generic address is taken.
const PARAM: &str = "mov.b64 %rd6, p0; cvta.param.u64 %rd0, %rd6; prefetch.param.tensormap [%rd6]; prefetch.tensormap [%rd0];";
const WAIT: &str = "$w: mbarrier.try_wait.parity.shared.b64 %p3, [%r3], 0; @!%p3 bra $w;";
/// Stores all of shared memory to the block's part of the output.
const OUT: &str = "mov.u32 %r21, 0; $o: mad.lo.u32 %r22, %r0, 4, %r21; add.u32 %r23, %r22, %r2; ld.shared.u32 %r24, [%r23]; mad.lo.u32 %r25, %r7, 32768, %r22; cvt.u64.u32 %rd7, %r25;\n\
                   add.u64 %rd7, %rd7, %rd1; st.global.u32 [%rd7], %r24; add.u32 %r21, %r21, 256; setp.lt.u32 %p2, %r21, 32768; @%p2 bra $o;";

/// A tensor and a box of it, by plain lists.
#[derive(Clone, Debug)]
struct Case {
    element: Element,
    sizes: Vec<u64>,
    strides: Vec<u64>,
    tile: Vec<u32>,
    swizzle: Swizzle,
    fill: Fill,
    at: Vec<i32>,
    /// Where the box begins in shared memory.
    offset: usize,
}

impl Case {
    fn random(rng: &mut SmallRng, rank: usize, turn: usize) -> Case {
        let element = Element::ALL[turn % Element::ALL.len()];
        let swizzle = Swizzle::ALL[turn / 3 % 4];
        let size = element.bytes();
        let rows = [16, 32, 48, 64, 80, 128, 256];
        let row = loop {
            let row = rows[rng.random_range(0..7)];
            if swizzle.span().is_none_or(|span| row <= span) && row / size <= 256 {
                break row;
            }
        };
        let mut left = 8192 / row;
        let tile: Vec<u32> = (0..rank)
            .map(|d| {
                if d == 0 {
                    return row / size;
                }
                let n = rng.random_range(1..=left.clamp(1, 20));
                left /= n;
                n
            })
            .collect();
        // Tensors smaller and larger than the box.
        let sizes: Vec<u64> = tile.iter().map(|n| u64::from(rng.random_range(1..=n + n / 2 + 2))).collect();
        let mut bytes = sizes[0] * u64::from(size);
        let strides: Vec<u64> = (1..rank)
            .map(|d| {
                let stride = bytes.next_multiple_of(16) + 16 * rng.random_range(0..2);
                bytes = stride * sizes[d];
                stride
            })
            .collect();
        let at = (0..rank)
            .map(|d| {
                let (n, size) = (tile[d] as i32, sizes[d] as i32);
                match rng.random_range(0..16) {
                    0 => i32::MIN + rng.random_range(0..3),
                    1 => i32::MAX - rng.random_range(0..3),
                    2 => -n,
                    3 => size,
                    4..=6 => rng.random_range(-n..=size),
                    _ => rng.random_range(-1..=(size - n).max(0) + 1),
                }
            })
            .collect();
        let float = !format!("{element:?}").starts_with(['U', 'S']);
        let fill = if float && turn % 2 == 1 { Fill::Nan } else { Fill::Zeros };
        let offset = 128 * rng.random_range(0..64);
        Case { element, sizes, strides, tile, swizzle, fill, at, offset }
    }

    fn bytes(&self) -> usize {
        self.element.bytes() as usize
    }

    fn map(&self, address: u64) -> TensorMap {
        let Case { element, sizes, strides, tile, swizzle, fill, .. } = self;
        TensorMap::new(*element, address, sizes, strides, tile, *swizzle, *fill).expect("a map")
    }

    /// Bytes of global memory that the tensor spans.
    fn span(&self) -> usize {
        let outer: u64 = self.strides.iter().zip(&self.sizes[1..]).map(|(stride, n)| stride * (n - 1)).sum();
        outer as usize + self.sizes[0] as usize * self.bytes()
    }

    /// For each element of the box: where it lies in shared memory, and in global memory if it lies in the tensor.
    fn elements(&self) -> Vec<(usize, Option<usize>)> {
        let count: u32 = self.tile.iter().product();
        let place = |n: u32| {
            let (mut left, mut global, mut inside) = (n, 0, true);
            for (d, tile) in self.tile.iter().enumerate() {
                let at = i64::from(self.at[d]) + i64::from(left % tile);
                left /= tile;
                inside &= at >= 0 && at < self.sizes[d] as i64;
                let stride = if d == 0 { self.bytes() as i64 } else { self.strides[d - 1] as i64 };
                global += at * stride;
            }
            // Shared memory begins at a multiple of 1,024.
            let at = self.offset + n as usize * self.bytes();
            let line = at / 128;
            let by = match self.swizzle {
                Swizzle::None => 0,
                Swizzle::Bytes32 => line % 2,
                Swizzle::Bytes64 => line % 4,
                Swizzle::Bytes128 => line % 8,
            };
            (at ^ (by * 16), inside.then_some(global as usize))
        };
        (0..count).map(place).collect()
    }

    fn opcode(&self, form: &str) -> String {
        form.replace("DIM", &format!("{}d", self.tile.len()))
    }

    fn place(&self, map: &str) -> String {
        let list: Vec<String> = self.at.iter().map(i32::to_string).collect();
        format!("[{map}, {{{}}}]", list.join(", "))
    }

    /// A copy to shared memory in each of its forms.
    fn load(&self, turn: usize) -> String {
        let n: u32 = self.tile.iter().product::<u32>() * self.bytes() as u32;
        let space = ["shared::cluster", "shared::cta"][turn % 2];
        let tile = ["", ".tile"][turn / 2 % 2];
        let (hint, policy) = [("", ""), (".L2::cache_hint", ", %rd33")][turn / 4 % 2];
        format!(
            "@%p1 {} {}{policy}; @%p1 mbarrier.arrive.expect_tx.shared.b64 _, [%r3], {n};\n\
             @%p1 {} [%r2+{}], {}, [%r3]{policy}; {WAIT} {OUT}",
            self.opcode(&format!("cp.async.bulk.prefetch.tensor.DIM.L2.global{tile}{hint}")),
            self.place("%rd0"),
            self.opcode(&format!(
                "cp.async.bulk.tensor.DIM.{space}.global{tile}.mbarrier::complete_tx::bytes{hint}"
            )),
            self.offset,
            self.place("%rd0"),
        )
    }

    /// A copy to blocks 0, 1 and 3 of a cluster of 4 from block 1, whose map lies behind %rd0.
    fn multicast(&self, turn: usize) -> String {
        let n: u32 = self.tile.iter().product::<u32>() * self.bytes() as u32;
        let (hint, policy) = [("", ""), (".L2::cache_hint", ", %rd33")][turn % 2];
        let copy = self.opcode(&format!(
            "cp.async.bulk.tensor.DIM.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster{hint}"
        ));
        format!(
            "setp.eq.and.u32 %p4, %r7, 1, %p1; setp.eq.u32 %p5, %r7, 2; @%p1 mbarrier.arrive.expect_tx.shared.b64 _, [%r3], {n}; mov.u16 %rs1, 11;\n\
             barrier.cluster.arrive; barrier.cluster.wait; sub.u64 %rd8, %rd0, 64; @%p4 {copy} [%r2+{}], {}, [%r3], %rs1{policy};\n\
             @%p5 bra $n; {WAIT} $n: {OUT} barrier.cluster.arrive; barrier.cluster.wait;",
            self.offset,
            self.place("%rd8+64"),
        )
    }

    /// A copy from shared memory, whose bytes are those of word i times an odd number.
    fn store(&self, turn: usize) -> String {
        let tile = ["", ".tile"][turn % 2];
        let (hint, policy) = [("", ""), (".L2::cache_hint", ", %rd33")][turn / 2 % 2];
        format!(
            "mov.u32 %r21, 0; $o: mad.lo.u32 %r22, %r0, 4, %r21; add.u32 %r23, %r22, %r2; mul.lo.u32 %r24, %r22, 0x9e3779b9; st.shared.u32 [%r23], %r24; add.u32 %r21, %r21, 256;\n\
             setp.lt.u32 %p2, %r21, {SHARED}; @%p2 bra $o; fence.proxy.async.shared::cta; bar.sync 0;\n\
             @%p1 {} {}, [%r2+{}]{policy}; @%p1 cp.async.bulk.commit_group; @%p1 cp.async.bulk.wait_group 0;",
            self.opcode(&format!("cp.async.bulk.tensor.DIM.global.shared::cta{tile}.bulk_group{hint}")),
            self.place("%rd0"),
            self.offset,
        )
    }

    /// What an element becomes in shared memory.
    fn loaded(&self, tensor: &[u8], at: Option<usize>) -> Vec<u8> {
        let n = self.bytes();
        let Some(at) = at else {
            return match (self.fill, n) {
                (Fill::Zeros, _) => vec![0; n],
                (_, 2) => vec![0xff, 0x7f],
                (_, 4) => vec![0xff, 0xff, 0xff, 0x7f],
                _ => vec![0, 0, 0, 0, 0, 0, 0xf8, 0xff],
            };
        };
        let value = tensor[at..at + n].to_vec();
        if format!("{:?}", self.element).contains("Ftz") {
            let v = f32::from_le_bytes(value[..].try_into().expect("four"));
            if v.is_subnormal() {
                return (0f32).copysign(v).to_le_bytes().to_vec();
            }
        }
        value
    }
}

/// Bytes of a tensor, some of whose words are subnormal numbers.
fn tensor(rng: &mut SmallRng, bytes: usize) -> Vec<u8> {
    let word = |rng: &mut SmallRng| rng.random::<u32>() & [u32::MAX, 0x807f_ffff][rng.random_range(0..2)];
    (0..bytes.div_ceil(4)).flat_map(|_| word(rng).to_le_bytes()).take(bytes).collect()
}

const CASES: usize = 400;

fn cases() -> Vec<(usize, Case)> {
    let mut rng = SmallRng::seed_from_u64(11);
    (0..CASES).map(|turn| (turn, Case::random(&mut rng, 1 + turn % 5, turn))).collect()
}

pub fn texts() -> Vec<String> {
    let of = |(turn, case): &(usize, Case)| {
        let bodies = [case.load(turn / 5), case.multicast(turn / 5), case.store(turn / 5)];
        bodies.map(|body| kernel("", PARAM, &body))
    };
    let mut out: Vec<String> = cases().iter().take(80).flat_map(of).collect();
    out.push(kernel(".const .align 64 .b8 constant[128];\n", CONST, ""));
    out
}

fn run(text: &str, memory: &mut Memory, args: Launch<'_>, options: &Options) -> ptx::Counters {
    let module = parse(text);
    launch(&module, memory, &args, options).unwrap_or_else(|f| panic!("{f}\n{text}")).counters
}

#[test]
fn boxes_to_shared_memory() {
    let mut rng = SmallRng::seed_from_u64(12);
    for (turn, case) in cases() {
        let blocks = if turn % 4 == 3 { 4 } else { 1 };
        let body = if blocks == 4 { case.multicast(turn / 5) } else { case.load(turn / 5) };
        let text = kernel("", PARAM, &body);
        let mut memory = Memory::new();
        let bytes = tensor(&mut rng, case.span());
        let (from, to) = (memory.alloc_with(&bytes), memory.alloc((SHARED * blocks as usize) as u64));
        let mut request = Launch::new("k", [blocks, 1, 1], [64, 1, 1])
            .tensor_map(&case.map(from))
            .arg(&to.to_le_bytes())
            .arg(&[0; 8]);
        request.cluster = [blocks, 1, 1];
        let warps = [Order::Any, Order::Backward, Order::Random(1)][turn % 3];
        let options = Options { warps, step_limit: 1 << 20, ..Options::default() };
        let counters = run(&text, &mut memory, request, &options);
        let mut want = vec![0x5a; SHARED];
        let mut moved = 0;
        for (at, global) in case.elements() {
            want[at..at + case.bytes()].copy_from_slice(&case.loaded(&bytes, global));
            moved += usize::from(global.is_some()) * case.bytes();
        }
        for rank in 0..blocks as usize {
            let got = memory.read(to + (rank * SHARED) as u64, SHARED);
            // Block 2 of a cluster is not in the mask.
            let same = if rank == 2 { got.iter().all(|b| *b == 0x5a) } else { got == want };
            assert!(same, "{case:?} in block {rank}: {:?}", got.iter().zip(&want).position(|(a, b)| a != b));
        }
        // Bytes inside alone are counted, once for all blocks.
        assert_eq!(counters.total.read_bytes, moved as u64, "{case:?}");
        assert!(counters.total.read_sectors * 32 >= moved as u64);
    }
}

#[test]
fn boxes_from_shared_memory() {
    for (turn, case) in cases() {
        let text = kernel("", PARAM, &case.store(turn / 5));
        let mut memory = Memory::new();
        let before = vec![0xc3; case.span()];
        let to = memory.alloc_with(&before);
        let request =
            Launch::new("k", [1; 3], [64, 1, 1]).tensor_map(&case.map(to)).arg(&[0; 8]).arg(&[0; 8]);
        let options = Options { step_limit: 1 << 20, ..Options::default() };
        let counters = run(&text, &mut memory, request, &options);
        let mut want = before;
        let mut moved = 0;
        for (at, global) in case.elements() {
            let Some(global) = global else { continue };
            for k in 0..case.bytes() {
                let word = ((at + k) as u32 / 4 * 4).wrapping_mul(0x9e37_79b9);
                want[global + k] = word.to_le_bytes()[(at + k) % 4];
            }
            moved += case.bytes();
        }
        assert!(memory.read(to, case.span()) == want, "{case:?}");
        assert_eq!(counters.total.write_bytes, moved as u64, "{case:?}");
    }
}

const CONST: &str = "mov.u64 %rd6, constant; cvta.const.u64 %rd0, %rd6; prefetch.const.tensormap [%rd6];";

/// Maps in constant and global memory.
#[test]
fn maps_in_other_memory() {
    let mut rng = SmallRng::seed_from_u64(13);
    for (turn, case) in cases().into_iter().take(60) {
        let mut memory = Memory::new();
        let bytes = tensor(&mut rng, case.span());
        let (from, to) = (memory.alloc_with(&bytes), memory.alloc(SHARED as u64));
        let map = case.map(from).encode();
        let global = memory.alloc_with(&map);
        let list: Vec<String> = map.iter().map(u8::to_string).collect();
        let constant = format!(".const .align 64 .b8 constant[128] = {{{}}};\n", list.join(", "));
        let place = if turn % 2 == 0 { CONST } else { "ld.param.u64 %rd0, [p2];" };
        let request = Launch::new("k", [1; 3], [64, 1, 1])
            .arg(&[0; 128])
            .arg(&to.to_le_bytes())
            .arg(&global.to_le_bytes());
        run(&kernel(&constant, place, &case.load(0)), &mut memory, request, &Options::default());
        let got = memory.read(to, SHARED);
        for (at, global) in case.elements() {
            assert_eq!(got[at..at + case.bytes()], case.loaded(&bytes, global), "{case:?}");
        }
    }
}

/// 64 x N x 16 in BF16: boxes of 64 columns by rows with a swizzle of 128 bytes, which the matrix descriptors name too; the
/// product takes columns from 16 on.
#[test]
fn boxes_feed_products() {
    for n in [8usize, 64, 136, 256] {
        let count = n / 2;
        let list: Vec<String> = (0..count).map(|r| format!("%d{r}")).collect();
        let start: String = list.iter().map(|d| format!("mov.f32 {d}, 0f00000000; ")).collect();
        let store: String = (0..count).map(|r| format!("st.global.f32 [%rd5+{}], %d{r};\n", 4 * r)).collect();
        let tile = 128 * (64 + n);
        let text = format!(
            "{HEAD}.extern .shared .align 1024 .b8 dyn[];\n.visible .entry k(.param .align 64 .b8 a[128], .param .align 64 .b8 b[128], .param .u64 out) {{\n{REGS}.reg .f32 %d<{count}>; .shared .align 8 .b64 bar;\n\
             mov.b64 %rd0, a; cvta.param.u64 %rd0, %rd0; mov.b64 %rd1, b; cvta.param.u64 %rd1, %rd1; ld.param.u64 %rd2, [out]; mov.u32 %r0, %tid.x; mov.u32 %r2, dyn; mov.u32 %r3, bar; setp.eq.u32 %p1, %r0, 0;\n\
             @%p1 mbarrier.init.shared.b64 [%r3], 1; fence.mbarrier_init.release.cluster; bar.sync 0; @%p1 mbarrier.arrive.expect_tx.shared.b64 _, [%r3], {tile};\n\
             @%p1 cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%r2], [%rd0, {{64, 3}}], [%r3];\n\
             @%p1 cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%r2+8192], [%rd1, {{64, 5}}], [%r3]; {WAIT}\n\
             add.u32 %r4, %r2, 32; shr.u32 %r4, %r4, 4; cvt.u64.u32 %rd3, %r4; or.b64 %rd3, %rd3, {high}; add.u32 %r4, %r2, 8224; shr.u32 %r4, %r4, 4; cvt.u64.u32 %rd4, %r4; or.b64 %rd4, %rd4, {high};\n\
             setp.ne.u32 %p2, %r0, %r0; {start}\nwgmma.fence.sync.aligned; wgmma.mma_async.sync.aligned.m64n{n}k16.f32.bf16.bf16 {{{}}}, %rd3, %rd4, %p2, 1, 1, 0, 0;\n\
             wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0; mad.wide.u32 %rd5, %r0, {}, %rd2;\n{store}ret; }}\n",
            list.join(", "),
            4 * count,
            high = 1u64 << 16 | 64 << 32 | 1 << 62,
        );
        // Small integers, so that sums are exact.
        let (columns, rows) = (200usize, [80usize, 300]);
        let value = |m: usize, row: usize, k: usize| ((row * (3 + m) + k * 7 + row * k) % 9) as f32 - 4.0;
        let mut memory = Memory::new();
        let maps = [0, 1].map(|m| {
            let values = (0..rows[m] * columns).map(|i| value(m, i / columns, i % columns));
            let bytes: Vec<u8> = values.flat_map(|v| half::bf16::from_f32(v).to_le_bytes()).collect();
            let at = memory.alloc_with(&bytes);
            let tile = [64, if m == 0 { 64 } else { n as u32 }];
            let (sizes, strides) = ([columns as u64, rows[m] as u64], [2 * columns as u64]);
            TensorMap::new(Element::Bf16, at, &sizes, &strides, &tile, Swizzle::Bytes128, Fill::Zeros)
                .expect("a map")
        });
        let out = memory.alloc(512 * count as u64);
        let request = Launch::new("k", [1; 3], [128, 1, 1])
            .tensor_map(&maps[0])
            .tensor_map(&maps[1])
            .arg(&out.to_le_bytes())
            .shared(tile as u32);
        let counters = run(&text, &mut memory, request, &Options::default());
        let got = memory.read(out, 512 * count);
        for thread in 0..128 {
            for r in 0..count {
                let row = thread / 32 * 16 + thread % 32 / 4 + 8 * (r / 2 % 2);
                let column = 8 * (r / 4) + 2 * (thread % 4) + r % 2;
                let want: f32 = (80..96).map(|k| value(0, row + 3, k) * value(1, column + 5, k)).sum();
                let at = 4 * (thread * count + r);
                let got = f32::from_le_bytes(got[at..at + 4].try_into().expect("four"));
                assert_eq!(got, want, "n {n}, row {row}, column {column}");
            }
        }
        // Operands of a warpgroup: 64 rows of A and N of B, 32 bytes each.
        let total = &counters.total;
        assert_eq!(total.shared_wavefronts, (64 + n as u64) * 32 / 128);
        assert_eq!(total.bank_conflicts(), 0);
        assert_eq!(total.products, [2 * 64 * n as u64 * 16, 0]);
        assert_eq!(total.warpgroup_products, total.products);
    }
}
