//! Shards of latents: what is there arrives over any cut, and what is wrong with one is named.

use lensmith::Error;
use lensmith::data::{Io, LatentRows, LatentSet};

use crate::support::*;

const LATENT: usize = 3;

/// A tensor: name, dtype, shape, bytes.
type Made = (&'static str, &'static str, Vec<usize>, Vec<u8>);

/// The tensors of a file of `rows` pairs, each value different.
fn tensors(rows: usize, seed: usize) -> Vec<Made> {
    let wide = |s| f32_bytes(&values(rows * LATENT, seed + s));
    let i32s = |s: i32| {
        (0..rows as i32).map(|i| i * s + seed as i32 - 1).flat_map(i32::to_le_bytes).collect::<Vec<u8>>()
    };
    let seeds: Vec<i64> = (0..rows as i64).map(|i| 7 * i + seed as i64 + (1 << 40)).collect();
    vec![
        ("chosen_z", "F32", vec![rows, LATENT], wide(0)),
        ("rejected_z", "F32", vec![rows, LATENT], wide(50)),
        ("seed", "I64", vec![rows], i64_bytes(&seeds)),
        ("chosen_candidate", "I32", vec![rows], i32s(2)),
        ("rejected_candidate", "I32", vec![rows], i32s(3)),
    ]
}

fn bytes(tensors: &[Made], misalign: usize) -> Vec<u8> {
    let views: Vec<Tensor<'_>> =
        tensors.iter().map(|(n, t, s, b)| (*n, *t, s.as_slice(), b.clone())).collect();
    file_at(&views, misalign)
}

/// What a file of [`tensors`] holds.
fn expected(rows: usize, seed: usize) -> LatentRows {
    let t = tensors(rows, seed);
    let f32s = |i: usize| t[i].3.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
    let i32s = |i: usize| t[i].3.as_chunks().0.iter().map(|&b| i32::from_le_bytes(b)).collect();
    LatentRows {
        seed: t[2].3.as_chunks().0.iter().map(|&b| i64::from_le_bytes(b)).collect(),
        z: [f32s(0), f32s(1)],
        candidate: [i32s(3), i32s(4)],
    }
}

#[test]
fn rows_arrive_over_any_cut_and_alignment() {
    let dir = folder();
    let sizes = [4, 1, 6];
    for misalign in [0, 1, 4] {
        let mut want = LatentRows::default();
        for (i, &rows) in sizes.iter().enumerate() {
            put(dir.path(), &format!("{i}.safetensors"), &bytes(&tensors(rows, i), misalign));
            let part = expected(rows, i);
            want.seed.extend(part.seed);
            for side in 0..2 {
                want.z[side].extend(&part.z[side]);
                want.candidate[side].extend(&part.candidate[side]);
            }
        }
        for io in BOTH {
            let set = LatentSet::open(&[text(dir.path())], io).unwrap();
            assert_eq!((set.len(), set.latent(), set.files().len()), (11, LATENT, 3));
            for from in 0..=11 {
                for to in from..=11 {
                    let got = set.rows(from..to).unwrap();
                    assert_eq!(got.seed, want.seed[from..to]);
                    for side in 0..2 {
                        assert_eq!(got.z[side], want.z[side][from * LATENT..to * LATENT]);
                        assert_eq!(got.candidate[side], want.candidate[side][from..to]);
                    }
                }
            }
            assert!(set.rows(3..12).unwrap_err().to_string().contains("0..11"));
            set.require_unchanged().unwrap();
        }
    }
}

#[test]
fn what_is_wrong_is_named() {
    type Edit = fn(&mut Vec<Made>);
    type Case<'a> = (&'a str, Edit, fn(&Error) -> bool, &'a [&'a str]);
    let cases: [Case<'_>; 11] = [
        ("no seed", |t| drop(t.remove(2)), |e| matches!(e, Error::MissingTensor { .. }), &["`seed`"]),
        (
            "z as F16",
            |t| (t[1].1, t[1].3) = ("F16", vec![0; 24]),
            |e| matches!(e, Error::WrongDtype { .. }),
            &["rejected_z"],
        ),
        (
            "seed as I32",
            |t| (t[2].1, t[2].3) = ("I32", vec![0; 16]),
            |e| matches!(e, Error::WrongDtype { .. }),
            &["seed", "I64"],
        ),
        (
            "candidate as F32",
            |t| t[3].1 = "F32",
            |e| matches!(e, Error::WrongDtype { .. }),
            &["chosen_candidate", "I32"],
        ),
        (
            "z of rank 1",
            |t| t[0].2 = vec![12],
            |e| matches!(e, Error::Shape { .. }),
            &["axes of tensor `chosen_z`"],
        ),
        (
            "sides of two widths",
            |t| (t[1].2, t[1].3) = (vec![4, 2], vec![0; 32]),
            |e| matches!(e, Error::Shape { .. }),
            &["rejected_z", "[4, 3]", "[4, 2]"],
        ),
        (
            "fewer candidates",
            |t| (t[4].2, t[4].3) = (vec![3], vec![0; 12]),
            |e| matches!(e, Error::Shape { .. }),
            &["rejected_candidate", "expected 4", "found 3"],
        ),
        (
            "no rows",
            |t| *t = tensors(0, 0),
            |e| matches!(e, Error::TooFew { .. }),
            &["rows of tensor `chosen_z`"],
        ),
        (
            "NaN",
            |t| t[1].3[4 * 7..4 * 8].copy_from_slice(&f32::NAN.to_le_bytes()),
            |e| matches!(e, Error::NonFinite { row: 2, column: 1, .. }),
            &["rejected_z"],
        ),
        (
            "a negative seed",
            |t| t[2].3[8..16].copy_from_slice(&(-1i64).to_le_bytes()),
            |e| matches!(e, Error::Format { .. }),
            &["`seed`, row 1", "found -1"],
        ),
        (
            "candidate -2",
            |t| t[4].3[12..16].copy_from_slice(&(-2i32).to_le_bytes()),
            |e| matches!(e, Error::Format { .. }),
            &["`rejected_candidate`, row 3", "found -2"],
        ),
    ];
    let dir = folder();
    for (what, edit, kind, words) in cases {
        let mut made = tensors(4, 0);
        edit(&mut made);
        let path = put(dir.path(), "a.safetensors", &bytes(&made, 0));
        for io in BOTH {
            let error = LatentSet::open(&[text(&path)], io).and_then(|set| set.rows(0..4)).expect_err(what);
            assert!(kind(&error), "{what}: {error:?}");
            check_message(&error, "a.safetensors");
            words.iter().for_each(|w| assert!(error.to_string().contains(w), "{what}: no {w:?} in {error}"));
        }
    }
}

#[test]
fn files_of_two_widths_or_given_twice_are_refused() {
    let dir = folder();
    let first = put(dir.path(), "a.safetensors", &bytes(&tensors(4, 0), 0));
    let mut other = tensors(4, 0);
    for t in &mut other[..2] {
        (t.2, t.3) = (vec![4, 5], vec![0; 80]);
    }
    let second = put(dir.path(), "b.safetensors", &bytes(&other, 0));
    let open = |paths: [&std::path::Path; 2]| LatentSet::open(&paths.map(text), Io::Mmap).unwrap_err();
    let error = open([&first, &second]);
    check_message(&error, "b.safetensors");
    assert!(error.to_string().contains("3 as in") && error.to_string().contains("found 5"), "{error}");
    check_message(&open([&first, &first]), "a.safetensors");
}
