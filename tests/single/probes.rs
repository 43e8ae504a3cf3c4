//! Each wrapper of `kernels/include` alone, against plain arithmetic or the same function of the crate.

use half::{bf16, f16};
use lensmith::noise::math::{exp, ln, sin_cos_turn};
use lensmith::noise::{NoiseCounter, Purpose, Side, fill_normals};

use crate::device::{Launch, Machine, Races, Schedule};

/// More shared memory than any of these kernels takes.
const SHARED: usize = 48 << 10;

fn launch(grid: u32, block: u32, shared: usize) -> Launch {
    Launch { grid: [grid, 1, 1], block: [block, 1, 1], shared }
}

/// Two fields of four bytes in a kernel's structure of parameters.
fn pair(first: u32, second: u32) -> u64 {
    u64::from(first) | u64::from(second) << 32
}

/// Bits of a value for comparison: all NaN are equal.
fn bits(v: f32) -> u32 {
    if v.is_nan() { f32::NAN.to_bits() } else { v.to_bits() }
}

#[test]
fn normals_equal_the_crates_in_every_bit() {
    let machine = Machine::usual();
    const ROWS: u32 = 1600;
    const LATENT: u32 = 32;
    let cases = [
        (Purpose::Posterior, Side::Chosen, 0u64, 0u32, 42u64),
        (Purpose::Perturb, Side::Rejected, (1 << 32) - 700, 7, 0x0123_4567_89ab_cdef),
        (Purpose::TrainVae, Side::Chosen, (1 << 48) - u64::from(ROWS), u32::MAX, u64::MAX),
    ];
    for (purpose, side, first_row, candidate, seed) in cases {
        let out = machine.empty::<f32>((ROWS * LATENT) as usize);
        let [counts, what] = [pair(ROWS, LATENT / 4), pair(purpose as u32, side as u32)];
        let params = [out.address(), first_row, seed, counts, what, pair(candidate, 0)];
        let blocks = (ROWS * LATENT / 4).div_ceil(96);
        machine.launch("probe_normals_f32", launch(blocks, 96, 0), params).expect("a clean run");
        let mut want = vec![0f32; LATENT as usize];
        for (row, got) in out.download().chunks_exact(LATENT as usize).enumerate() {
            fill_normals(
                seed,
                NoiseCounter { purpose, side, row: first_row + row as u64, candidate },
                &mut want,
            );
            for (g, w) in got.iter().zip(&want) {
                assert_eq!(g.to_bits(), w.to_bits(), "{purpose:?} row {row}");
            }
        }
    }
}

#[test]
fn scalars_equal_the_crates_in_every_bit() {
    let machine = Machine::usual();
    // All exponents, both signs, and a walk through the range where half is subnormal; infinities and NaN.
    let mut values: Vec<f32> = (0..60_000u32).map(|i| f32::from_bits(i.wrapping_mul(0x9E37_79B9))).collect();
    values.extend((0..4000u32).map(|i| f32::from_bits(0x3300_0000 + i * 0x21c3)));
    values.extend([0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 65_519.99, 65_520.0, 6e-8, 2.9e-8]);
    let n = values.len();
    let input = machine.upload(&values);
    let out = machine.empty::<f32>(7 * n);
    let params = [input.address(), out.address(), pair(n as u32, 0)];
    machine
        .launch("probe_scalars_f32", launch((n as u32).div_ceil(128), 128, 0), params)
        .expect("a clean run");
    let got = out.download();
    for (i, &x) in values.iter().enumerate() {
        let (sine, cosine) = sin_cos_turn(x.to_bits());
        // Nearest TF32, ties away from zero.
        let tf32 = if x.is_finite() { f32::from_bits(x.to_bits().wrapping_add(0x1000) & !0x1fff) } else { x };
        let want =
            [ln(x.abs()), exp(x), sine, cosine, bf16::from_f32(x).to_f32(), f16::from_f32(x).to_f32(), tf32];
        for (k, w) in want.into_iter().enumerate() {
            // The logarithm is defined for positive normal numbers.
            if k > 0 || x.is_normal() {
                assert_eq!(bits(got[k * n + i]), bits(w), "function {k} of {x:e} ({:08x})", x.to_bits());
            }
        }
    }
}

/// Small integers: every product and sum is exact in any order, so fragments in the wrong place cannot hide.
fn integers(n: usize, step: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * step + i / 7) % 23) as f32 - 11.0).collect()
}

fn product(a: &[f32], b: &[f32], c: &[f32], depth: usize) -> Vec<f32> {
    let mut d = c.to_vec();
    for row in 0..16 {
        for column in 0..8 {
            for k in 0..depth {
                d[row * 8 + column] += a[row * depth + k] * b[k * 8 + column];
            }
        }
    }
    d
}

#[test]
fn tensor_core_products_through_every_load() {
    let (a, b, c) = (integers(256, 5), integers(128, 9), integers(128, 3));
    let want = product(&a, &b, &c, 16);
    for races in [Races::Ignored, Races::Found] {
        let machine = Machine::new(races, Schedule::ALL[2]);
        for half in [false, true] {
            let store = |v: &[f32]| -> Vec<u16> {
                let one =
                    |&x: &f32| if half { f16::from_f32(x).to_bits() } else { bf16::from_f32(x).to_bits() };
                v.iter().map(one).collect()
            };
            let (da, db) = (machine.upload(&store(&a)), machine.upload(&store(&b)));
            let dc = machine.upload(&c);
            for variant in 0..3u32 {
                let d = machine.empty::<f32>(128);
                let [a, b] = [da.address(), db.address()];
                let params = [a, b, dc.address(), d.address(), pair(u32::from(half), variant)];
                machine.launch("probe_mma", launch(1, 32, SHARED), params).expect("a clean run");
                assert_eq!(d.download(), want, "half {half}, variant {variant}");
            }
        }
        let (a, b) = (integers(128, 5), integers(64, 9));
        let (da, db, dc) = (machine.upload(&a), machine.upload(&b), machine.upload(&c));
        let d = machine.empty::<f32>(128);
        let params = [da.address(), db.address(), dc.address(), d.address()];
        machine.launch("probe_mma_tf32", launch(1, 32, 0), params).expect("a clean run");
        assert_eq!(d.download(), product(&a, &b, &c, 8));
    }
}

#[test]
fn asynchronous_copies_of_every_size_fill_with_zeros() {
    for schedule in Schedule::ALL {
        let machine = Machine::new(Races::Found, schedule);
        const THREADS: usize = 96;
        let words: Vec<u32> = (0..7 * THREADS as u32).map(|i| 0x0101_0101 + i * 0x0003_0507).collect();
        let input = machine.upload(&words);
        for bytes in [0u32, 2, 4, 8, 12, 16] {
            let mut want = vec![0u8; 4 * words.len()];
            for (size, from) in [(16, 0), (8, 16 * THREADS), (4, 24 * THREADS)] {
                for i in 0..THREADS {
                    let n = size.min(bytes as usize);
                    let at = from + size * i;
                    want[at..at + n].copy_from_slice(&bytemuck::cast_slice(&words)[at..at + n]);
                }
            }
            let out = machine.empty::<u32>(words.len());
            let params = [input.address(), out.address(), pair(bytes, 0)];
            machine.launch("probe_copy", launch(1, THREADS as u32, SHARED), params).expect("a clean run");
            assert_eq!(bytemuck::cast_slice::<u32, u8>(&out.download()), want, "{bytes} bytes, {schedule:?}");
        }
    }
}

#[test]
fn block_reductions_keep_their_order() {
    let machine = Machine::new(Races::Found, Schedule::PLAIN);
    for threads in [32usize, 96, 1024] {
        let values: Vec<f32> =
            (0..threads).map(|i| (i as f32 * 1.7).sin() * 10f32.powi(i as i32 % 5)).collect();
        // Butterflies within warps, then warp by warp.
        let sums = values.chunks_exact(32).map(|warp| {
            let mut v = warp.to_vec();
            for step in [16, 8, 4, 2, 1] {
                v = (0..32).map(|l| v[l] + v[l ^ step]).collect();
            }
            v[0]
        });
        let sum = sums.reduce(|a, b| a + b).expect("a warp");
        let largest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let input = machine.upload(&values);
        let out = machine.empty::<f32>(3 * threads);
        let params = [input.address(), out.address()];
        machine.launch("probe_reduce_f32", launch(1, threads as u32, SHARED), params).expect("a clean run");
        let got = out.download();
        assert!(got[..threads].iter().all(|v| v.to_bits() == sum.to_bits()), "{threads}: {sum}");
        assert!(got[threads..2 * threads].iter().all(|&v| v == largest), "{threads}: {largest}");
        assert!(got[2 * threads..].iter().all(|&v| v == -sum), "{threads}: {sum}");
    }
}
