//! Tensor maps and clusters by the calls of a program: maps in a structure of parameters, blocks of a cluster that share
//! what one of them copies.

use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::ptr::null_mut;

use ptx_driver as _;

type Handle = *mut c_void;

// Declared as in cuda.h; the library is part of this program.
unsafe extern "C" {
    fn cuInit(flags: c_uint) -> c_int;
    fn cuDevicePrimaryCtxRetain(context: *mut Handle, device: c_int) -> c_int;
    fn cuCtxSetCurrent(context: Handle) -> c_int;
    fn cuCtxSynchronize() -> c_int;
    fn cuModuleLoadData(module: *mut Handle, image: *const c_void) -> c_int;
    fn cuModuleGetFunction(function: *mut Handle, module: Handle, name: *const c_char) -> c_int;
    fn cuMemAlloc_v2(at: *mut u64, bytes: usize) -> c_int;
    fn cuMemHostAlloc(at: *mut Handle, bytes: usize, flags: c_uint) -> c_int;
    fn cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, bytes: usize, stream: Handle) -> c_int;
    fn cuMemcpyDtoHAsync_v2(to: Handle, from: u64, bytes: usize, stream: Handle) -> c_int;
    fn cuStreamCreate(stream: *mut Handle, flags: c_uint) -> c_int;
    fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
        blocks: *mut c_int,
        function: Handle,
        threads: c_int,
        shared: usize,
    ) -> c_int;
    fn cuLaunchKernel(
        function: Handle,
        gx: c_uint,
        gy: c_uint,
        gz: c_uint,
        bx: c_uint,
        by: c_uint,
        bz: c_uint,
        shared: c_uint,
        stream: Handle,
        arguments: *mut Handle,
        extra: *mut Handle,
    ) -> c_int;
    fn cuTensorMapEncodeTiled(
        map: *mut c_void,
        element: c_uint,
        rank: c_uint,
        address: *mut c_void,
        sizes: *const u64,
        strides: *const u64,
        tile: *const c_uint,
        steps: *const c_uint,
        interleave: c_uint,
        swizzle: c_uint,
        promotion: c_uint,
        fill: c_uint,
    ) -> c_int;
    fn ptx_driver_fault(device: c_int, to: *mut u8, room: usize) -> usize;
}

/// A structure of parameters as kernels have it.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Map([u64; 16]);

#[repr(C, align(64))]
struct Params {
    out: u64,
    map: Map,
    first: i32,
}

/// Each of two blocks of a cluster copies its half of eight rows of 32 words to both; each stores all of them.
const KERNEL: &str = "
.version 8.5
.target sm_90a
.address_size 64
.visible .entry share(.param .align 64 .b8 p[256]) .explicitcluster .reqnctapercluster 2, 1, 1 {
  .reg .pred %p<4>; .reg .b16 %rs<2>; .reg .b32 %r<16>; .reg .b64 %rd<8>;
  .shared .align 1024 .b8 s[1024]; .shared .align 8 .b64 bar;
  mov.b64 %rd0, p; cvta.param.u64 %rd1, %rd0; add.u64 %rd1, %rd1, 64;
  ld.param.u64 %rd2, [p]; ld.param.u32 %r1, [p+192];
  mov.u32 %r0, %tid.x; mov.u32 %r2, s; mov.u32 %r3, bar; mov.u32 %r4, %cluster_ctarank; setp.eq.u32 %p0, %r0, 0;
  @%p0 mbarrier.init.shared.b64 [%r3], 1;
  fence.mbarrier_init.release.cluster;
  @%p0 mbarrier.arrive.expect_tx.shared.b64 _, [%r3], 1024;
  barrier.cluster.arrive; barrier.cluster.wait;
  mov.u16 %rs0, 3; mad.lo.u32 %r5, %r4, 512, %r2; mad.lo.u32 %r6, %r4, 4, %r1;
  @%p0 cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%r5], [%rd1, {0, %r6}], [%r3], %rs0;
$w: mbarrier.try_wait.parity.shared.b64 %p1, [%r3], 0;
  @!%p1 bra $w;
  mov.u32 %r7, %ctaid.x; mov.u32 %r8, 0;
$o: mad.lo.u32 %r9, %r0, 4, %r8; add.u32 %r10, %r9, %r2; ld.shared.u32 %r11, [%r10];
  mad.lo.u32 %r9, %r7, 1024, %r9; cvt.u64.u32 %rd3, %r9; add.u64 %rd3, %rd3, %rd2; st.global.u32 [%rd3], %r11;
  add.u32 %r8, %r8, 128; setp.lt.u32 %p2, %r8, 1024; @%p2 bra $o;
  barrier.cluster.arrive; barrier.cluster.wait;
  ret;
}
";

macro_rules! call {
    ($e:expr) => {
        // SAFETY: handles and addresses are those that the library gave, lists as long as their counts say.
        assert_eq!(unsafe { $e }, 0, stringify!($e))
    };
}

fn report() -> String {
    let mut bytes = vec![0; 1000];
    // SAFETY: as much room as is said.
    let length = unsafe { ptx_driver_fault(0, bytes.as_mut_ptr(), bytes.len()) };
    String::from_utf8(bytes[..length].to_vec()).expect("text")
}

#[test]
fn blocks_of_a_cluster_share_boxes() {
    let (mut context, mut stream, mut module, mut function) =
        (null_mut(), null_mut(), null_mut(), null_mut());
    call!(cuInit(0));
    call!(cuDevicePrimaryCtxRetain(&mut context, 0));
    call!(cuCtxSetCurrent(context));
    call!(cuStreamCreate(&mut stream, 1));
    let text = CString::new(KERNEL).expect("a text");
    call!(cuModuleLoadData(&mut module, text.as_ptr().cast()));
    call!(cuModuleGetFunction(&mut function, module, c"share".as_ptr()));

    let (mut from, mut out, mut host) = (0, 0, null_mut());
    let rows = 11usize;
    call!(cuMemAlloc_v2(&mut from, 128 * rows));
    call!(cuMemAlloc_v2(&mut out, 4096));
    call!(cuMemHostAlloc(&mut host, 4096, 0));
    let words = host.cast::<u32>();
    // SAFETY: 4,096 bytes were pinned.
    (0..32 * rows).for_each(|i| unsafe { words.add(i).write(i as u32 + 1) });
    call!(cuMemcpyHtoDAsync_v2(from, host, 128 * rows, stream));

    let mut params = Params { out, map: Map([0; 16]), first: 5 };
    let (sizes, strides, steps) = ([32u64, rows as u64], [128u64], [1u32, 1]);
    let mut encode = |element: u32, rank: u32, at: u64, tile: &[u32], steps: &[u32], kinds: [u32; 4]| {
        let [interleave, swizzle, promotion, fill] = kinds;
        let map: *mut c_void = (&raw mut params.map).cast();
        // SAFETY: lists of at least two entries; only ranks of up to two read them.
        unsafe {
            cuTensorMapEncodeTiled(
                map,
                element,
                rank,
                at as Handle,
                sizes.as_ptr(),
                strides.as_ptr(),
                tile.as_ptr(),
                steps.as_ptr(),
                interleave,
                swizzle,
                promotion,
                fill,
            )
        }
    };
    // What cannot be is refused, with the reason.
    let plain = [0; 4];
    let (narrow, wide, step) = ([32u32, 4], [32u32, 257], [1u32, 2]);
    for (element, rank, at, tile, steps, kinds, words) in [
        (13, 2, from, &narrow, &steps, plain, "CUtensorMapDataType 13"),
        (2, 6, from, &narrow, &steps, plain, "6 dimensions"),
        (2, 2, from + 8, &narrow, &steps, plain, "multiple of 16"),
        (2, 2, from, &wide, &steps, plain, "box of 257"),
        (2, 2, from, &narrow, &step, plain, "one of 2 elements"),
        (2, 2, from, &narrow, &steps, [1, 0, 0, 0], "CUtensorMapInterleave 1"),
        (2, 2, from, &narrow, &steps, [0, 4, 0, 0], "CUtensorMapSwizzle 4"),
        (2, 2, from, &narrow, &steps, [0, 1, 0, 0], "the swizzle's 32"),
        (2, 2, from, &narrow, &steps, [0, 0, 4, 0], "CUtensorMapL2promotion 4"),
        (2, 2, from, &narrow, &steps, [0, 0, 0, 1], "cannot become NaN"),
    ] {
        assert_eq!(encode(element, rank, at, tile, steps, kinds), 1, "{words}");
        assert!(report().contains(words), "{}", report());
    }
    assert_eq!(encode(2, 2, from, &narrow, &steps, [0, 3, 2, 0]), 0);

    // Blocks of a multiprocessor: by 1 KiB of static memory and more, and by threads.
    let mut blocks = 0;
    call!(cuOccupancyMaxActiveBlocksPerMultiprocessor(&mut blocks, function, 32, 0));
    assert_eq!(blocks, 32);
    call!(cuOccupancyMaxActiveBlocksPerMultiprocessor(&mut blocks, function, 32, 112 << 10));
    assert_eq!(blocks, 1);
    call!(cuOccupancyMaxActiveBlocksPerMultiprocessor(&mut blocks, function, 512, 0));
    assert_eq!(blocks, 4);

    let mut arguments = [(&raw mut params).cast()];
    let mut launch = |blocks: u32| {
        // SAFETY: the kernel's only parameter is the structure.
        unsafe {
            cuLaunchKernel(function, blocks, 1, 1, 32, 1, 1, 0, stream, arguments.as_mut_ptr(), null_mut())
        }
    };
    // Grids are whole clusters.
    assert_eq!(launch(3), 1);
    assert_eq!(launch(4), 0);
    call!(cuMemcpyDtoHAsync_v2(host, out, 4096, stream));
    call!(cuCtxSynchronize());
    // Rows from 5 on, of which 11 and 12 lie outside; pieces of 16 bytes take the exclusive or with their row.
    for i in 0..1024 {
        let (row, word) = (i % 256 / 32, i % 32);
        let from = word ^ (row % 8 * 4);
        let want = if row + 5 < rows { ((row + 5) * 32 + from) as u32 + 1 } else { 0 };
        // SAFETY: copied there.
        assert_eq!(unsafe { words.add(i).read() }, want, "word {i}");
    }
}
