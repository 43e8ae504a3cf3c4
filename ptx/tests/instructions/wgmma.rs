//! Products of a warpgroup (PTX ISA 9.7.15): all sizes, types, swizzles and orders of operands.

use ptx::{FaultKind, Launch, Memory, Options, launch};
use rand::{Rng, SeedableRng, rngs::SmallRng};

use crate::common::{HEAD, parse};
use crate::exact::{self, F32, format};

/// Where the second operand begins, and bytes of both.
const SECOND: usize = 16_384;
const BYTES: usize = 57_344;

/// An operand in shared memory: bytes of a swizzled row (16: none) and whether rows run along the contiguous dimension.
#[derive(Clone, Copy, Debug)]
struct Layout {
    row: usize,
    transposed: bool,
    size: usize,
    leading: usize,
    stride: usize,
    /// Bytes into a swizzled row where the operand begins.
    skip: usize,
}

impl Layout {
    fn new(row: usize, transposed: bool, size: usize, n: usize, skip: usize) -> Layout {
        // Any offsets that leave no two elements in one place.
        let (leading, stride) = match (row, transposed) {
            (16, false) => (128, 272 - 16 + 16 * (n / 64)),
            (16, true) => (128 * (n / (16 / size)).max(1), 128),
            (_, false) => (16, 8 * row),
            (_, true) => (16 * row, 8 * row),
        };
        Layout { row, transposed, size, leading, stride: stride.next_multiple_of(16), skip }
    }
    /// The byte of element (i, k) of a matrix of rows i, as the canonical layouts of the ISA say.
    fn place(self, i: usize, k: usize) -> usize {
        let t = 16 / self.size;
        let at = match (self.row, self.transposed) {
            (16, false) => i % 8 * 16 + i / 8 * self.stride + k % t * self.size + k / t * self.leading,
            (16, true) => i % t * self.size + i / t * self.stride + k % 8 * 16 + k / 8 * self.leading,
            (row, false) => i % 8 * row + i / 8 * self.stride + k * self.size,
            (row, true) => {
                let some = row / self.size;
                i % some * self.size + i / some * self.leading + k % 8 * row + k / 8 * self.stride
            }
        } + self.skip;
        match self.row {
            128 => at ^ (at >> 7 & 7) << 4,
            64 => at ^ (at >> 7 & 3) << 4,
            32 => at ^ (at >> 7 & 1) << 4,
            _ => at,
        }
    }
    fn descriptor(self) -> u64 {
        let mode = match self.row {
            128 => 1,
            64 => 2,
            32 => 3,
            _ => 0u64,
        };
        (self.leading as u64 >> 4) << 16 | (self.stride as u64 >> 4) << 32 | mode << 62
    }
}

struct Product {
    ty: &'static str,
    n: usize,
    a: Option<Layout>,
    b: Layout,
    scale: [i32; 2],
    /// Whether D is added.
    keep: bool,
}

impl Product {
    fn k(&self) -> usize {
        if self.ty == "tf32" { 8 } else { 16 }
    }
    fn text(&self) -> String {
        let count = self.n / 2;
        let list: Vec<String> = (0..count).map(|r| format!("%d{r}")).collect();
        let start: String = (0..count)
            .map(|r| format!("add.s32 %r20, %r0, {r}; and.b32 %r20, %r20, 15; cvt.rn.f32.s32 %d{r}, %r20;\n"))
            .collect();
        let store: String = (0..count).map(|r| format!("st.global.f32 [%rd3+{}], %d{r};\n", 4 * r)).collect();
        let a = match self.a {
            Some(_) => "%rd8",
            None => "{%r30, %r31, %r32, %r33}",
        };
        let orders = match (self.ty, self.a) {
            ("tf32", _) => String::new(),
            (_, Some(a)) => format!(", {}, {}", u8::from(a.transposed), u8::from(self.b.transposed)),
            _ => format!(", {}", u8::from(self.b.transposed)),
        };
        format!(
            "{HEAD}.extern .shared .align 1024 .b8 dyn[];\n.visible .entry k(.param .u64 p0, .param .u64 p1, .param .u64 p2) {{\n\
             .reg .pred %p<4>; .reg .b32 %r<40>; .reg .b64 %rd<16>; .reg .f32 %d<{count}>;\n\
             ld.param.u64 %rd0, [p0]; ld.param.u64 %rd1, [p1]; ld.param.u64 %rd2, [p2]; mov.u32 %r0, %tid.x; mov.u32 %r1, dyn;\n\
             mov.u32 %r2, 0; $c: mad.lo.u32 %r3, %r0, 16, %r2; cvt.u64.u32 %rd4, %r3; add.u64 %rd5, %rd0, %rd4; add.u32 %r4, %r1, %r3;\n\
             ld.global.v4.u32 {{%r5, %r6, %r7, %r8}}, [%rd5]; st.shared.v4.u32 [%r4], {{%r5, %r6, %r7, %r8}}; add.u32 %r2, %r2, 2048; setp.lt.u32 %p1, %r2, {BYTES}; @%p1 bra $c;\n\
             mad.wide.u32 %rd6, %r0, 16, %rd2; ld.global.v4.u32 {{%r30, %r31, %r32, %r33}}, [%rd6];\n\
             fence.proxy.async; bar.sync 0; mad.wide.u32 %rd3, %r0, {}, %rd1;\n\
             add.u32 %r9, %r1, {}; shr.u32 %r9, %r9, 4; cvt.u64.u32 %rd8, %r9; or.b64 %rd8, %rd8, {};\n\
             add.u32 %r9, %r1, {}; shr.u32 %r9, %r9, 4; cvt.u64.u32 %rd9, %r9; or.b64 %rd9, %rd9, {};\n\
             setp.{}.u32 %p2, %r0, %r0;\n{start}\
             wgmma.fence.sync.aligned;\nwgmma.mma_async.sync.aligned.m64n{}k{}.f32.{}.{} {{{}}}, {a}, %rd9, %p2, {}, {}{orders};\n\
             wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;\n{store} ret; }}\n",
            4 * count,
            self.a.map_or(0, |a| a.skip),
            self.a.map_or(0, |a| a.descriptor()),
            SECOND + self.b.skip,
            self.b.descriptor(),
            if self.keep { "eq" } else { "ne" },
            self.n,
            self.k(),
            self.ty,
            self.ty,
            list.join(", "),
            self.scale[0],
            self.scale[1],
        )
    }
    fn run(&self, seed: u64) {
        let mut rng = SmallRng::seed_from_u64(seed);
        let f = format(self.ty);
        // Random numbers of the type, as bits and values.
        let mut draw = |rows: usize| -> Vec<Vec<(u64, f64)>> {
            let mut one = || {
                let bits = exact::round(rng.random_range(-4.0..4.0), 0, f, "rz");
                (bits, f.value(bits))
            };
            (0..rows).map(|_| (0..self.k()).map(|_| one()).collect()).collect()
        };
        let (a, b) = (draw(64), draw(self.n));
        let mut image = vec![0xeeu8; BYTES];
        let size = self.b.size;
        let mut put =
            |at: usize, bits: u64| image[at..at + size].copy_from_slice(&bits.to_le_bytes()[..size]);
        for k in 0..self.k() {
            if let Some(layout) = self.a {
                (0..64).for_each(|i| put(layout.place(i, k), a[i][k].0));
            }
            (0..self.n).for_each(|i| put(SECOND + self.b.place(i, k), b[i][k].0));
        }
        // The fragments of A, for the form with registers.
        let mut fragments = Vec::new();
        for thread in 0..128 {
            let (warp, g, t) = (thread / 32, thread % 32 / 4, thread % 4);
            for r in 0..4 {
                let row = &a[16 * warp + g + 8 * (r % 2)];
                let word = match size {
                    4 => row[t + 4 * (r / 2)].0,
                    _ => row[2 * t + 8 * (r / 2)].0 | row[2 * t + 8 * (r / 2) + 1].0 << 16,
                };
                fragments.extend((word as u32).to_le_bytes());
            }
        }
        let text = self.text();
        let module = parse(&text);
        let mut memory = Memory::new();
        let (from, out) = (memory.alloc_with(&image), memory.alloc(128 * 2 * self.n as u64));
        let regs = memory.alloc_with(&fragments);
        let mut request = Launch::new("k", [1; 3], [128, 1, 1]).shared(BYTES as u32);
        for x in [from, out, regs] {
            request = request.arg(&x.to_le_bytes());
        }
        let options = Options { shared_limit: 100_000, ..Options::default() };
        launch(&module, &mut memory, &request, &options).unwrap_or_else(|f| panic!("{f}\n{text}"));
        let got = memory.read(out, 128 * 2 * self.n);
        let sign = f64::from(self.scale[0] * self.scale[1]);
        for thread in 0..128 {
            for r in 0..self.n / 2 {
                let row = thread / 32 * 16 + thread % 32 / 4 + 8 * (r / 2 % 2);
                let column = 8 * (r / 4) + 2 * (thread % 4) + r % 2;
                let start = if self.keep { ((thread + r) & 15) as f64 } else { 0.0 };
                let want = (0..self.k()).fold(start, |s, k| s + sign * a[row][k].1 * b[column][k].1);
                let at = 4 * (thread * self.n / 2 + r);
                let got = u32::from_le_bytes(got[at..at + 4].try_into().expect("four"));
                let want = exact::round(want, 0, F32, "rn");
                assert_eq!(
                    u64::from(got),
                    want,
                    "{} n {} {:?} {:?}: row {row}, column {column}",
                    self.ty,
                    self.n,
                    self.a,
                    self.b
                );
            }
        }
    }
}

fn products() -> Vec<Product> {
    let mut out = Vec::new();
    let mut turn = 0usize;
    for ty in ["bf16", "f16", "tf32"] {
        let size = if ty == "tf32" { 4 } else { 2 };
        // Every size.
        for n in (8..=256).step_by(8) {
            turn += 1;
            let scale = [[1, 1], [1, -1], [-1, 1], [-1, -1]][turn % 4];
            let a = (!turn.is_multiple_of(3)).then(|| Layout::new(128, false, size, 64, 0));
            let b = Layout::new([16, 32, 64, 128][turn % 4], false, size, n, 0);
            out.push(Product { ty, n, a, b, scale, keep: turn.is_multiple_of(2) });
        }
        // Every pair of swizzles, orders and starts.
        for rows in [[16, 16], [32, 64], [64, 128], [128, 32], [128, 128], [16, 128], [64, 16], [32, 32]] {
            for orders in [[false, false], [true, false], [false, true], [true, true]] {
                if ty == "tf32" && orders != [false, false] {
                    continue;
                }
                for n in [16, 64, 192] {
                    turn += 1;
                    let skip = |row: usize, t: bool| if row >= 64 && !t { 32 * (turn % 2) } else { 0 };
                    let a = Layout::new(rows[0], orders[0], size, 64, skip(rows[0], orders[0]));
                    let b = Layout::new(rows[1], orders[1], size, n, skip(rows[1], orders[1]));
                    let scale = [[1, 1], [1, -1], [-1, 1]][turn % 3];
                    out.push(Product { ty, n, a: Some(a), b, scale, keep: turn.is_multiple_of(2) });
                }
            }
        }
    }
    out
}

pub fn texts() -> Vec<String> {
    products().iter().map(Product::text).collect()
}

#[test]
fn products_of_all_sizes_swizzles_and_orders() {
    for (seed, p) in products().iter().enumerate() {
        p.run(seed as u64);
    }
}

#[test]
fn products_under_way_are_left_alone() {
    let p = || Product {
        ty: "bf16",
        n: 16,
        a: Some(Layout::new(128, false, 2, 64, 0)),
        b: Layout::new(64, false, 2, 16, 0),
        scale: [1, 1],
        keep: true,
    };
    let run = |change: &dyn Fn(String) -> String| {
        let module = parse(&change(p().text()));
        let mut memory = Memory::new();
        let (from, out) = (memory.alloc_with(&vec![0; BYTES]), memory.alloc(4096));
        let regs = memory.alloc_with(&[0; 2048]);
        let mut request = Launch::new("k", [1; 3], [128, 1, 1]).shared(BYTES as u32);
        for x in [from, out, regs] {
            request = request.arg(&x.to_le_bytes());
        }
        let options = Options { shared_limit: 100_000, ..Options::default() };
        launch(&module, &mut memory, &request, &options).map(|_| ()).map_err(|f| f.kind)
    };
    let wait = "wgmma.wait_group.sync.aligned 0;";
    let own = "mad.lo.u32 %r4, %r0, 16, %r1; st.shared.u32 [%r4], %r0;";
    assert_eq!(run(&|t| t), Ok(()));
    // Overwritten before the wait, by any thread; behind the wait of all warps it is free.
    assert!(run(&|t| t.replace(wait, &format!("{own} {wait}"))).is_err());
    assert_eq!(run(&|t| t.replace(wait, &format!("{wait} bar.sync 0; {own}"))), Ok(()));
    assert_eq!(run(&|t| t.replace(wait, &format!("bar.sync 0; {own} {wait}"))), Err(FaultKind::CopyInFlight));
    // What the product does not read may be written.
    assert_eq!(
        run(&|t| t.replace(
            wait,
            &format!("mad.lo.u32 %r4, %r0, 4, %r1; st.shared.u32 [%r4+{}], %r0; {wait}", SECOND + 8192)
        )),
        Ok(())
    );
    // Sums are read or written too early.
    assert_eq!(run(&|t| t.replace(wait, "")), Err(FaultKind::CopyInFlight));
    assert_eq!(
        run(&|t| t.replace(wait, &format!("add.f32 %d3, %d3, %d3; {wait}"))),
        Err(FaultKind::CopyInFlight)
    );
    assert_eq!(run(&|t| t.replace(wait, &format!("mov.b32 %d3, 0; {wait}"))), Err(FaultKind::CopyInFlight));
    // Lanes that differ in the scale of D or in a descriptor.
    assert_eq!(
        run(&|t| t.replace("setp.eq.u32 %p2, %r0, %r0", "setp.eq.u32 %p2, %r0, 3")),
        Err(FaultKind::InvalidOperand)
    );
    assert_eq!(
        run(&|t| t.replace("wgmma.fence", "cvt.u64.u32 %rd10, %r0; add.u64 %rd9, %rd9, %rd10; wgmma.fence")),
        Err(FaultKind::InvalidOperand)
    );
    assert_eq!(
        run(&|t| t.replace("wgmma.fence", "or.b64 %rd9, %rd9, 0x2000000000000; wgmma.fence")),
        Err(FaultKind::InvalidOperand)
    );
}
