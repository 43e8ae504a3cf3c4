//! `kernels/floor.cu`, which measures peak rates: a kernel that left out some of its work would report too
//! high a peak. Reads, writes and copies reach every word once, and every product is computed.

use half::bf16;
use lensmith::backend::cuda::params::Floor;

use crate::device::{Launch, Machine, Races, Schedule};

/// Blocks and threads: with few words some threads have none, with many each takes several.
const BLOCKS: u32 = 3;
const THREADS: u32 = 64;
const WORDS: [usize; 5] = [1, 5, 191, 193, 3001];

fn all_schedules() -> impl Iterator<Item = (Races, Schedule)> {
    [(Races::Found, Schedule::PLAIN)].into_iter().chain(Schedule::ALL.map(|s| (Races::Ignored, s)))
}

const LAUNCH: Launch = Launch { grid: [BLOCKS, 1, 1], block: [THREADS, 1, 1], shared: 0 };

fn words(n: usize) -> Vec<u32> {
    (0..4 * n as u32).map(|i| i.wrapping_mul(0x9E37_79B9) ^ 0x5bd1_e995).collect()
}

#[test]
fn reads_reach_every_word() {
    for (races, schedule) in all_schedules() {
        let machine = Machine::new(races, schedule);
        for n in WORDS {
            let values = words(n);
            let input = machine.upload(&values);
            let sums = machine.empty::<u32>((BLOCKS * THREADS) as usize);
            let params = Floor { from: input.address(), out: sums.address(), n: n as u64 };
            machine.launch("floor_read", LAUNCH, params).expect("a clean run");
            assert_eq!(sums.unwritten(), 0);
            let got = sums.download().into_iter().fold(0, |a, b| a ^ b);
            assert_eq!(got, values.iter().fold(0, |a, b| a ^ b), "{n} words, {races:?}, {schedule:?}");
        }
    }
}

#[test]
fn writes_and_copies_reach_every_word() {
    for (races, schedule) in all_schedules() {
        let machine = Machine::new(races, schedule);
        for n in WORDS {
            let what = format!("{n} words, {races:?}, {schedule:?}");
            let out = machine.empty::<u32>(4 * n);
            let params = Floor { out: out.address(), n: n as u64, ..Floor::default() };
            machine.launch("floor_write", LAUNCH, params).expect("a clean run");
            assert_eq!(out.unwritten(), 0, "{what}");
            for (i, word) in out.download().chunks_exact(4).enumerate() {
                let low = (i as u32).wrapping_mul(0x9e37_79b9);
                assert_eq!(word, [low, !low, low, low.wrapping_add(0x85eb_ca6b)], "word {i}, {what}");
            }

            let values = words(n);
            let input = machine.upload(&values);
            let out = machine.empty::<u32>(4 * n);
            let params = Floor { from: input.address(), out: out.address(), n: n as u64 };
            machine.launch("floor_copy", LAUNCH, params).expect("a clean run");
            assert_eq!(out.download(), values, "{what}");
        }
    }
}

/// Small integers, whose products and sums are exact: each round of every product counts.
#[test]
fn products_are_all_made() {
    let integer = |i: usize| ((i * 7 + i / 11) % 9) as f32 - 4.0;
    let [a, b] = [2 * 16 * 16, 4 * 16 * 8].map(|n| (0..n).map(integer).collect::<Vec<f32>>());
    // Element (row, k) of matrix l of A and (k, column) of matrix r of B, laid out as fragments.
    let pair = |low: f32, high: f32| {
        u32::from(bf16::from_f32(low).to_bits()) | u32::from(bf16::from_f32(high).to_bits()) << 16
    };
    let mut operands = Vec::new();
    for l in 0..2 {
        for register in 0..4 {
            operands.extend((0..32).map(|lane| {
                let row = lane / 4 + 8 * (register % 2);
                let k = 2 * (lane % 4) + 8 * (register / 2);
                let at = l * 256 + row * 16 + k;
                pair(a[at], a[at + 1])
            }));
        }
    }
    for r in 0..4 {
        for register in 0..2 {
            operands.extend((0..32).map(|lane| {
                let (k, column) = (2 * (lane % 4) + 8 * register, lane / 4);
                let at = r * 128 + k * 8 + column;
                pair(b[at], b[at + 8])
            }));
        }
    }
    let rounds = 3u32;
    let mut want = [0f32; 16 * 8];
    for (i, want) in want.iter_mut().enumerate() {
        let (row, column) = (i / 8, i % 8);
        for (l, r, k) in (0..2 * 4 * 16).map(|n| (n / 64, n / 16 % 4, n % 16)) {
            *want += rounds as f32 * a[l * 256 + row * 16 + k] * b[r * 128 + k * 8 + column];
        }
    }
    assert!(want.iter().filter(|v| **v != 0.0).count() > 100, "mostly zeros test nothing");
    for (races, schedule) in all_schedules() {
        let machine = Machine::new(races, schedule);
        let operands = machine.upload(&operands);
        let products = machine.empty::<f32>((4 * BLOCKS * THREADS) as usize);
        let params = Floor { from: operands.address(), out: products.address(), n: u64::from(rounds) };
        machine.launch("floor_mma_bf16", LAUNCH, params).expect("a clean run");
        for (i, got) in products.download().into_iter().enumerate() {
            let (lane, register) = (i / 4 % 32, i % 4);
            let (row, column) = (lane / 4 + 8 * (register / 2), 2 * (lane % 4) + register % 2);
            assert_eq!(got, want[row * 8 + column], "value {i}, {races:?}, {schedule:?}");
        }
    }
}
