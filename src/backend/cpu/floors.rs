//! What this machine can do at most: the rates that those of the kernels are shares of.
//!
//! Each is the best of several short trials on all threads of the backend, so that a disturbed trial does not count.

use std::time::Instant;

use rayon::prelude::*;

use super::Cpu;
use super::lanes::Lanes;
use super::panel::{Arithmetic, Pairs, Single};
use crate::backend::Precision;
use crate::simd::{Lane, Rows, Simd, TALL, Task, WIDTH};

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
    let rates = (0..TRIALS).map(|_| {
        let from = Instant::now();
        let work = trial();
        work / from.elapsed().as_secs_f64()
    });
    rates.fold(0.0, f64::max)
}

/// `CHAINS` rows of accumulators through [`STEPS`] additions of products each; gives the FLOP done.
#[inline(always)]
fn chains<S: Simd, A: Arithmetic, const CHAINS: usize>(simd: S) -> f64 {
    // Values stay near 1: neither the denormals nor the infinities that some machines treat apart.
    let factor = std::hint::black_box(1e-3f32);
    let other = simd.load(std::hint::black_box(&[1e-3f32; WIDTH]), 0);
    let mut acc = [other; CHAINS];
    for _ in 0..STEPS {
        for a in &mut acc {
            *a = A::add(simd, factor, other, *a);
        }
    }
    for a in acc {
        let mut lane = [0f32; WIDTH];
        simd.store(a, &mut lane, 0);
        std::hint::black_box(&lane);
    }
    2.0 * (A::INPUTS * STEPS * CHAINS * WIDTH / S::PARTS) as f64
}

/// Products of a block that stays in the first-level cache; gives the FLOP done.
#[inline(always)]
fn blocks<S: Simd>(simd: S) -> f64 {
    /// Words of a row: enough that little of the time goes to what comes before and after them.
    const WORDS: usize = 128;
    let words = 1e-3f32.to_bits() >> 16;
    let word = std::hint::black_box(f32::from_bits(words << 16 | words));
    let (mut a, mut b) = (Lanes::zeros(TALL * WORDS / WIDTH), Lanes::zeros(WORDS));
    a.as_flattened_mut().fill(word);
    b.as_flattened_mut().fill(word);
    let rows =
        Rows { words: a.as_flattened(), count: TALL, stride: WORDS, together: WORDS, apart: TALL * WORDS };
    let mut sums = [[0f32; WIDTH]; TALL];
    let (step, times) = (2 * TALL * WORDS * WIDTH, STEPS / WORDS);
    for _ in 0..times {
        simd.block(rows, &b, &mut sums, false);
    }
    std::hint::black_box(&sums);
    2.0 * (step * times) as f64
}

/// FLOP per second (two for each multiply-add) of products on registers, at the level and on the threads of `cpu`: F32
/// fused multiply-adds, or products of BF16 pairs, or where the level has them of BF16 matrices.
pub fn flops(cpu: &Cpu, precision: Precision) -> f64 {
    struct Chains(Precision);
    impl Task for Chains {
        type Output = f64;
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> f64 {
            match self.0 {
                Precision::F32 => most::<S, Single>(simd),
                Precision::Bf16 if S::MATRIX => blocks(simd),
                Precision::Bf16 => most::<S, Pairs>(simd),
            }
        }
    }
    /// As many chains as hide the latency of a multiply-add and leave none out of the registers.
    #[inline(always)]
    fn most<S: Simd, A: Arithmetic>(simd: S) -> f64 {
        match S::ROWS {
            12 => chains::<S, A, 12>(simd),
            6 => chains::<S, A, 6>(simd),
            _ => chains::<S, A, 4>(simd),
        }
    }
    best(|| cpu.pool.broadcast(|_| cpu.level.run(Chains(precision))).iter().sum())
}

/// Room for [`BYTES`] bytes, written once so that its pages are there.
fn lanes(cpu: &Cpu) -> Lanes {
    let mut lanes = Lanes::zeros(BYTES / size_of::<Lane>());
    cpu.pool.install(|| {
        lanes.par_chunks_mut(PIECE / size_of::<Lane>()).for_each(|piece| piece.fill([1.0; WIDTH]))
    });
    lanes
}

/// Bytes per second that all threads together write to memory, with ordinary or with non-temporal stores.
pub fn write_bytes(cpu: &Cpu, nontemporal: bool) -> f64 {
    struct Fill<'a>(&'a mut [Lane], bool);
    impl Task for Fill<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            let Fill(piece, nontemporal) = self;
            let value = simd.load(&[2.0; WIDTH], 0);
            let parts = 0..S::PARTS;
            if nontemporal {
                piece
                    .iter_mut()
                    .for_each(|lane| parts.clone().for_each(|part| simd.stream(value, lane, part)));
                simd.fence();
            } else {
                piece
                    .iter_mut()
                    .for_each(|lane| parts.clone().for_each(|part| simd.store(value, lane, part)));
            }
        }
    }
    let mut to = lanes(cpu);
    let rate = best(|| {
        let pieces = to.par_chunks_mut(PIECE / size_of::<Lane>());
        cpu.pool.install(|| pieces.for_each(|piece| cpu.level.run(Fill(piece, nontemporal))));
        BYTES as f64
    });
    std::hint::black_box(&to);
    rate
}

/// Bytes per second, read and written together, of a copy from memory to memory on all threads.
pub fn copy_bytes(cpu: &Cpu) -> f64 {
    let (from, mut to) = (lanes(cpu), lanes(cpu));
    let piece = PIECE / size_of::<Lane>();
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
    fn floors_are_possible() {
        for level in Isa::available().into_iter().filter(|l| l.name() != "portable-amx") {
            let cpu = Cpu::with_level(1, Precision::F32, level).unwrap();
            for precision in [Precision::F32, Precision::Bf16] {
                let flops = flops(&cpu, precision);
                // 128 FLOP a cycle, 1024 of matrices, at 10 GHz is beyond one core of any machine so far.
                let most = if level.is_matrix() && precision == Precision::Bf16 { 1024.0 } else { 128.0 };
                assert!(flops > 1e7 && flops < most * 10e9, "{}: {flops} FLOP/s", level.name());
            }
        }
        let cpu = Cpu::new(1, Precision::F32).unwrap();
        for rate in [write_bytes(&cpu, false), write_bytes(&cpu, true), copy_bytes(&cpu)] {
            assert!(rate > 1e7 && rate < 1e12, "{rate} bytes/s");
        }
    }
}
