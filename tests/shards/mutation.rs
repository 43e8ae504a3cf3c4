//! Valid files with random damage: the part of fuzzing that needs no special toolchain.

use std::path::Path;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::exercise::exercise;
use crate::support::*;

const CASES: usize = 4_000;

fn valid() -> Vec<Vec<u8>> {
    let dir = folder();
    let path = dir.path().join("a.safetensors");
    write_pairs(&path, lensmith::dtype::Dtype::F16, 3, 2);
    let side = || f32_bytes(&values(6, 1));
    vec![
        std::fs::read(&path).unwrap(),
        pairs(3, 2, 1),
        file_at(
            &[
                ("chosen", "BF16", &[3, 1], bf16_bytes(&values(3, 1))),
                ("rejected", "BF16", &[3, 1], bf16_bytes(&values(3, 2))),
                ("group", "I64", &[3], i64_bytes(&[1, 2, 3])),
            ],
            5,
        ),
        file(&[("candidates", "F32", &[1, 2, 3], side()), ("gold", "F32", &[1, 2], f32_bytes(&[1.0, 2.0]))]),
        file(&[("chosen", "F32", &[2, 3], side()), ("empty", "F32", &[0, 7], vec![])]),
    ]
}

fn damage(rng: &mut StdRng, bytes: &mut Vec<u8>) {
    let at = rng.random_range(0..bytes.len().max(1)).min(bytes.len().saturating_sub(1));
    // Most damage goes to the header; a shard of ours is mostly padding.
    let at = if rng.random_bool(0.8) { at % 300 } else { at };
    if at >= bytes.len() {
        return bytes.push(rng.random());
    }
    match rng.random_range(0..8) {
        0 => bytes[at] ^= 1 << rng.random_range(0..8),
        1 => bytes[at] = rng.random(),
        2 => bytes[at] = b"0123456789-.eE[]{}\",: "[rng.random_range(0..22)],
        3 => bytes.truncate(at),
        4 => drop(bytes.remove(at)),
        5 => bytes.insert(at, rng.random_range(b'0'..=b'9')),
        6 => {
            let end = (at + rng.random_range(1..40)).min(bytes.len());
            let copy = bytes[at..end].to_vec();
            bytes.splice(at..at, copy);
        }
        _ => {
            // Digits of the header, where offsets, shapes and lengths are.
            let digits: Vec<usize> =
                (8..bytes.len().min(400)).filter(|&i| bytes[i].is_ascii_digit()).collect();
            if let Some(&i) = digits.get(rng.random_range(0..digits.len().max(1))) {
                bytes[i] = rng.random_range(b'0'..=b'9');
            }
        }
    }
    // Damage that moves the header's end is caught by the first check; half of the time, let it pass.
    if rng.random_bool(0.5)
        && let Some(end) = bytes.iter().rposition(|&b| b == b'}')
        && end >= 8
    {
        let len = (end + 1 - 8) as u64;
        bytes[..8].copy_from_slice(&len.to_le_bytes());
    }
}

#[test]
fn damaged_files_never_panic() {
    let scratch = if Path::new("/dev/shm").is_dir() { Path::new("/dev/shm") } else { &std::env::temp_dir() };
    let dir = tempfile::tempdir_in(scratch).unwrap();
    let path = dir.path().join("a.safetensors");
    let originals = valid();
    for bytes in &originals {
        assert!(exercise(&path, bytes) >= 4, "an undamaged file is accepted");
    }
    let mut rng = StdRng::seed_from_u64(18);
    let mut accepted = 0;
    for case in 0..CASES {
        let mut bytes = originals[case % originals.len()].clone();
        for _ in 0..rng.random_range(1..4) {
            damage(&mut rng, &mut bytes);
        }
        accepted += usize::from(exercise(&path, &bytes) > 2);
    }
    // Damage that is always noticed at the first check would test nothing behind it.
    assert!(accepted > CASES / 100, "only {accepted} damaged files were still readable");
}
