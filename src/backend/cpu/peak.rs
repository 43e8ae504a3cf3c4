//! Peak FLOP/s and bandwidth of this machine: the ceilings of a roofline.
//!
//! Each is the best of several short trials on all threads of the backend, so that a disturbed trial does not count.

use rayon::prelude::*;

use super::Cpu;
use super::gemm::{AlignedRows, ZERO, accumulate, bf16x2, inputs_per_word};
use crate::backend::Precision;
use crate::simd::{AMX_M, Line, NR, NrRow, RowsRef, Simd, Task};
use crate::timing::time_once;

/// Trials of each measurement.
const TRIALS: usize = 7;
/// Multiply-adds of each accumulator in a trial: some milliseconds.
const STEPS: usize = 1 << 20;
/// Bytes that a memory trial writes: larger than last-level caches are.
const BYTES: usize = 512 << 20;
/// Bytes that one task of a memory trial writes.
const PIECE: usize = 1 << 20;

/// The best rate of trials that give the work they did, per second.
fn best(mut trial: impl FnMut() -> f64) -> f64 {
    let mut work = 0.0;
    let Ok(timing) = time_once(TRIALS, || {
        work = trial();
        Ok::<(), std::convert::Infallible>(())
    });
    work / timing.fastest
}

/// Products of the microkernel on operands that stay in the first-level cache; gives the FLOP done.
struct Products(Precision);

impl Task for Products {
    type Output = f64;
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f64 {
        /// Words of a row: enough that little of the time goes to what comes before and after them.
        const WORDS: usize = 128;
        // Values stay near 1: neither the denormals nor the infinities that some machines treat apart.
        let value = match self.0 {
            Precision::F32 => 1e-3,
            Precision::Bf16 => bf16x2(1e-3, 1e-3),
        };
        let rows = if simd.has_amx() { AMX_M } else { S::MR };
        let (a, b) = (vec![value; rows * WORDS], vec![[value; NR]; WORDS]);
        let mut sums = [ZERO; AMX_M];
        let a = RowsRef { words: &a, count: rows, stride: WORDS };
        for _ in 0..STEPS / WORDS {
            accumulate(simd, self.0, std::hint::black_box(a), &b, &mut sums[..rows]);
        }
        std::hint::black_box(&sums);
        (2 * inputs_per_word(self.0) * rows * NR * STEPS) as f64
    }
}

/// FLOP per second (two for each multiply-add) of the microkernel, on all threads of `cpu`.
pub fn flops(cpu: &Cpu, precision: Precision) -> f64 {
    best(|| cpu.pool.broadcast(|_| cpu.isa.run(Products(precision))).iter().sum())
}

/// Room for [`BYTES`] bytes, written once so that its pages are there.
fn rows(cpu: &Cpu) -> AlignedRows {
    let mut rows = AlignedRows::zeros(BYTES / size_of::<NrRow>());
    cpu.pool
        .install(|| rows.par_chunks_mut(PIECE / size_of::<NrRow>()).for_each(|piece| piece.fill([1.0; NR])));
    rows
}

/// Bytes per second that all threads together write to memory, with ordinary or with non-temporal stores.
pub fn write_bytes(cpu: &Cpu, nontemporal: bool) -> f64 {
    struct Fill<'a>(&'a mut [NrRow], bool);
    impl Task for Fill<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            let Fill(piece, nontemporal) = self;
            let value: Line = bytemuck::cast([2f32; 16]);
            for line in bytemuck::cast_slice_mut::<_, Line>(piece) {
                if nontemporal {
                    simd.stream(&value, line);
                } else {
                    *line = value;
                }
            }
        }
    }
    let mut to = rows(cpu);
    let rate = best(|| {
        let pieces = to.par_chunks_mut(PIECE / size_of::<NrRow>());
        cpu.pool.install(|| pieces.for_each(|piece| cpu.isa.run(Fill(piece, nontemporal))));
        BYTES as f64
    });
    std::hint::black_box(&to);
    rate
}

/// Bytes per second, read and written together, of a copy from memory to memory on all threads.
pub fn copy_bytes(cpu: &Cpu) -> f64 {
    let (from, mut to) = (rows(cpu), rows(cpu));
    let piece = PIECE / size_of::<NrRow>();
    let rate = best(|| {
        let pieces = to.par_chunks_mut(piece).zip(from.par_chunks(piece));
        cpu.pool.install(|| pieces.for_each(|(to, from)| to.copy_from_slice(from)));
        2.0 * BYTES as f64
    });
    std::hint::black_box(&to);
    rate
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Isa;

    /// Absurd rates show a trial that the compiler took away or that counts work it did not do.
    #[test]
    fn peaks_are_possible() {
        for isa in Isa::available().into_iter().filter(|isa| isa.name() != "portable-amx") {
            let cpu = Cpu::with_isa(1, Precision::F32, isa).unwrap();
            for precision in [Precision::F32, Precision::Bf16] {
                let flops = flops(&cpu, precision);
                // 128 FLOP a cycle, 1024 of matrices, at 10 GHz is beyond one core of any machine so far.
                let most = if isa.has_amx() && precision == Precision::Bf16 { 1024.0 } else { 128.0 };
                assert!(flops > 1e7 && flops < most * 10e9, "{}: {flops} FLOP/s", isa.name());
            }
        }
        let cpu = Cpu::new(1, Precision::F32).unwrap();
        for rate in [write_bytes(&cpu, false), write_bytes(&cpu, true), copy_bytes(&cpu)] {
            assert!(rate > 1e7 && rate < 1e12, "{rate} bytes/s");
        }
    }
}
