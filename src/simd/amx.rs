//! Intel AMX: products of BF16 matrices on eight tiles of 16 rows of 64 bytes.
//!
//! The intrinsics are not stable, so the instructions stand in assembly. A piece of it leaves nothing in the tiles that
//! the next one relies on; only their shape lasts as long as a [`Tiles`].

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::OnceLock;

use super::{AMX_K, AMX_M, AMX_TILE, NR, NrRow, RowsRef};

/// Bytes of a packed row of B.
const ROW_BYTES: usize = size_of::<NrRow>();

/// Whether the machine multiplies tiles of BF16 and the system lets this process.
pub(super) fn is_available() -> bool {
    static THERE: OnceLock<bool> = OnceLock::new();
    *THERE.get_or_init(|| {
        const BF16: u32 = 1 << 22;
        const TILE: u32 = 1 << 24;
        // Leaf 7 is there where AVX-512 is, which is asked for first; cpuid itself is part of x86-64.
        let features = __cpuid_count(7, 0).edx;
        features & (BF16 | TILE) == BF16 | TILE && is_allowed()
    })
}

/// Asks the system for the tiles' registers, for all threads of this process.
#[cfg(target_os = "linux")]
fn is_allowed() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: the call takes two numbers and changes nothing but what the process may use.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn is_allowed() -> bool {
    false
}

/// The shape of all eight tiles, as LDTILECFG reads it: 16 rows of 64 bytes.
#[repr(C, align(64))]
struct Shape {
    palette: u8,
    start: u8,
    reserved: [u8; 14],
    bytes: [u16; 16],
    rows: [u8; 16],
}

thread_local! {
    /// Whether this thread's tiles have their shape.
    static CONFIGURED: Cell<bool> = const { Cell::new(false) };
}

/// Guard of this thread's tiles: they have their shape while it lives. Of guards within each other the outermost counts,
/// so that a task may run another.
pub(super) struct Tiles {
    outermost: bool,
    not_send: PhantomData<*const ()>,
}

impl Tiles {
    /// Gives all tiles their shape.
    ///
    /// # Safety
    /// [`is_available`] must have said so.
    #[inline(always)]
    pub(super) unsafe fn configure() -> Tiles {
        const BYTES: [u16; 16] = [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0];
        static SHAPE: Shape = Shape {
            palette: 1,
            start: 0,
            reserved: [0; 14],
            bytes: BYTES,
            rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
        };
        let outermost = !CONFIGURED.replace(true);
        if outermost {
            // SAFETY: the caller vouches for the instruction, which reads the 64 bytes of the shape.
            unsafe { asm!("ldtilecfg [{}]", in(reg) &SHAPE, options(nostack, preserves_flags, readonly)) };
        }
        Tiles { outermost, not_send: PhantomData }
    }
}

impl Drop for Tiles {
    #[inline(always)]
    fn drop(&mut self) {
        if self.outermost {
            CONFIGURED.set(false);
            // SAFETY: a `Tiles` exists only where the instruction does. It clears the tiles, which switching threads and
            // resting cores would else have to keep.
            unsafe { asm!("tilerelease", options(nostack, preserves_flags, nomem)) };
        }
    }
}

/// [`Simd::amx_block`](super::Simd::amx_block).
///
/// # Safety
/// The thread must hold [`Tiles`].
#[inline(always)]
pub(super) unsafe fn block(a: RowsRef<'_>, b: &[NrRow], acc: &mut [NrRow; AMX_M]) {
    assert!(a.count <= AMX_M, "{} rows", a.count);
    let whole = b.len() / AMX_K * AMX_K;
    if whole > 0 {
        let rows = a.count.next_multiple_of(AMX_TILE);
        let end = (rows - 1) * a.stride + whole;
        assert!(end <= a.words.len(), "words of {rows} rows end at {end}, there are {}", a.words.len());
        let of = Steps { stretches: 1, steps: whole / AMX_K, stride: a.stride, apart: 0 };
        // SAFETY: the last of the words that tiles read was checked; `b` has a row for every word; the caller holds the
        // tiles.
        unsafe { of.multiply(a.words.as_ptr(), b.as_ptr(), acc, rows > AMX_TILE, true) };
    }
    if whole < b.len() {
        // SAFETY: the caller holds the tiles.
        unsafe { last(a, b, whole, acc) };
    }
}

/// The words past the last whole step, with zeros behind them.
///
/// # Safety
/// The thread must hold [`Tiles`].
#[inline(never)]
unsafe fn last(a: RowsRef<'_>, b: &[NrRow], whole: usize, acc: &mut [NrRow; AMX_M]) {
    let mut words = [[0f32; AMX_K]; AMX_M];
    for (row, words) in words.iter_mut().enumerate().take(a.count) {
        words[..b.len() - whole].copy_from_slice(&a.row(row, b.len())[whole..]);
    }
    let mut rows = [[0f32; NR]; AMX_K];
    rows[..b.len() - whole].copy_from_slice(&b[whole..]);
    let of = Steps { stretches: 1, steps: 1, stride: AMX_K, apart: 0 };
    // SAFETY: both arrays are one whole step; the caller holds the tiles.
    unsafe { of.multiply(words.as_flattened().as_ptr(), rows.as_ptr(), acc, a.count > AMX_TILE, true) };
}

/// How tiles walk over rows of words.
struct Steps {
    /// Stretches, at least one.
    stretches: usize,
    /// Steps of a stretch, at least one.
    steps: usize,
    /// Distance of rows.
    stride: usize,
    /// Distance of stretches.
    apart: usize,
}

impl Steps {
    /// Sums of 16 rows, or of 32 if `two`, on top of those in `acc` if `add`.
    ///
    /// # Safety
    /// All words from `a` and rows from `b` that the steps reach must be there, and the thread must hold [`Tiles`].
    #[inline(always)]
    unsafe fn multiply(self, a: *const f32, b: *const NrRow, acc: &mut [NrRow; AMX_M], two: bool, add: bool) {
        let stride = self.stride * size_of::<f32>();
        // From the end of a stretch to the next.
        let jump = (self.apart * size_of::<f32>()).wrapping_sub(self.steps * AMX_K * size_of::<f32>());
        // SAFETY: the tiles read and write what the caller vouches for, and all of `acc` or its first 16 rows.
        unsafe {
            if two {
                asm!(
                    "test {add:e}, {add:e}",
                    "jz 2f",
                    "tileloadd tmm0, [{acc} + {lane}*1]",
                    "tileloadd tmm1, [{acc} + {lane}*1 + 64]",
                    "tileloadd tmm2, [{acc} + {lane}*1 + 2048]",
                    "tileloadd tmm3, [{acc} + {lane}*1 + 2112]",
                    "jmp 3f",
                    "2:",
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    "3:",
                    "mov {left}, {steps}",
                    "4:",
                    "tileloadd tmm4, [{a} + {stride}*1]",
                    "tileloadd tmm6, [{b} + {lane}*1]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm7, [{b} + {lane}*1 + 64]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "tileloadd tmm5, [{below} + {stride}*1]",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "tdpbf16ps tmm3, tmm5, tmm7",
                    "add {a}, 64",
                    "add {below}, 64",
                    "add {b}, 2048",
                    "dec {left}",
                    "jnz 4b",
                    "add {a}, {jump}",
                    "add {below}, {jump}",
                    "dec {stretches}",
                    "jnz 3b",
                    "tilestored [{acc} + {lane}*1], tmm0",
                    "tilestored [{acc} + {lane}*1 + 64], tmm1",
                    "tilestored [{acc} + {lane}*1 + 2048], tmm2",
                    "tilestored [{acc} + {lane}*1 + 2112], tmm3",
                    a = inout(reg) a => _,
                    below = inout(reg) a.byte_add(AMX_TILE * stride) => _,
                    b = inout(reg) b => _,
                    acc = in(reg) acc.as_mut_ptr(),
                    stride = in(reg) stride,
                    lane = in(reg) ROW_BYTES,
                    steps = in(reg) self.steps,
                    left = out(reg) _,
                    jump = in(reg) jump,
                    stretches = inout(reg) self.stretches => _,
                    add = in(reg) u32::from(add),
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            } else {
                asm!(
                    "test {add:e}, {add:e}",
                    "jz 2f",
                    "tileloadd tmm0, [{acc} + {lane}*1]",
                    "tileloadd tmm1, [{acc} + {lane}*1 + 64]",
                    "jmp 3f",
                    "2:",
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "3:",
                    "mov {left}, {steps}",
                    "4:",
                    "tileloadd tmm4, [{a} + {stride}*1]",
                    "tileloadd tmm6, [{b} + {lane}*1]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm7, [{b} + {lane}*1 + 64]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "add {a}, 64",
                    "add {b}, 2048",
                    "dec {left}",
                    "jnz 4b",
                    "add {a}, {jump}",
                    "dec {stretches}",
                    "jnz 3b",
                    "tilestored [{acc} + {lane}*1], tmm0",
                    "tilestored [{acc} + {lane}*1 + 64], tmm1",
                    a = inout(reg) a => _,
                    b = inout(reg) b => _,
                    acc = in(reg) acc.as_mut_ptr(),
                    stride = in(reg) stride,
                    lane = in(reg) ROW_BYTES,
                    steps = in(reg) self.steps,
                    left = out(reg) _,
                    jump = in(reg) jump,
                    stretches = inout(reg) self.stretches => _,
                    add = in(reg) u32::from(add),
                    out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        }
    }
}
