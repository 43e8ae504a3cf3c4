//! What is on disk arrives, whichever way it is read.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use lensmith::Error;
use lensmith::data::{CandidateSet, EmbeddingSet, Io, PairOptions, PairSet, install_sigbus_guard};
use lensmith::dtype::Dtype;
use lensmith::matrix::Side;
use proptest::prelude::*;

use crate::support::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..Default::default() })]

    #[test]
    fn what_is_written_is_read_back(
        dtype in prop::sample::select(Dtype::ALL.to_vec()),
        rows in 1usize..70,
        dim in 1usize..40,
        cut in 0.0..1.0f64,
    ) {
        let dir = folder();
        let path = dir.path().join("a.safetensors");
        let (record, sides) = write_pairs(&path, dtype, rows, dim);
        prop_assert_eq!((record.rows, record.bytes), (rows as u64, fs::metadata(&path).unwrap().len()));
        let middle = (rows as f64 * cut) as usize;
        let mut scans = Vec::new();
        for io in BOTH {
            let set = open(&path, io).unwrap();
            prop_assert_eq!((set.len(), set.dim(), set.files()[0].dtype), (rows, dim, dtype));
            for (side, expected) in Side::BOTH.into_iter().zip(&sides) {
                for range in [0..rows, 0..middle, middle..rows, middle..middle] {
                    let block = set.rows(side, range.clone()).unwrap();
                    let view = block.view();
                    prop_assert_eq!((view.rows(), view.cols()), (range.len(), dim));
                    for (i, row) in range.enumerate() {
                        prop_assert_eq!(view.row(i).bytes(), expected.view().row(row).bytes());
                    }
                }
            }
            scans.push(set.scan().unwrap());
        }
        prop_assert_eq!(&scans[0], &scans[1]);
        prop_assert_eq!(&scans[0].sources[0].dtype, &dtype.to_string());
    }
}

#[test]
fn aligned_rows_are_borrowed_from_the_map() {
    let dir = folder();
    let path = dir.path().join("a.safetensors");
    write_pairs(&path, Dtype::Bf16, 9, 5);
    let set = open(&path, Io::Mmap).unwrap();
    assert!(set.rows(Side::Rejected, 3..7).unwrap().is_borrowed());
    let again = [0; 2].map(|_| set.rows(Side::Chosen, 1..2).unwrap().view().row(0).bytes().as_ptr());
    assert_eq!(again[0], again[1], "two blocks of the same rows are the same memory");
    assert!(!open(&path, Io::Read).unwrap().rows(Side::Chosen, 3..7).unwrap().is_borrowed());
}

#[test]
fn misaligned_payloads_are_copied_with_the_right_values() {
    let dir = folder();
    let (rows, dim) = (6, 3);
    type ToBytes = fn(&[f32]) -> Vec<u8>;
    let kinds: [(&str, ToBytes, usize); 3] =
        [("F32", f32_bytes, 4), ("F16", f16_bytes, 2), ("BF16", bf16_bytes, 2)];
    for (dtype, to_bytes, size) in kinds {
        for misalign in 0..8 {
            let sides = [values(rows * dim, 1), values(rows * dim, 2)];
            let tensor = |name, s: usize| (name, dtype, &[6, 3][..], to_bytes(&sides[s]));
            let bytes = file_at(&[tensor("chosen", 0), tensor("rejected", 1)], misalign);
            let path = put(dir.path(), "a.safetensors", &bytes);
            for io in BOTH {
                let set = open(&path, io).unwrap();
                for side in Side::BOTH {
                    let block = set.rows(side, 0..rows).unwrap();
                    assert_eq!(widened(&block.view()), sides[side as usize], "{dtype} at {misalign}");
                    assert_eq!(block.is_borrowed(), io == Io::Mmap && misalign % size == 0);
                }
                set.scan().unwrap();
            }
        }
    }
}

#[test]
fn several_files_are_one_matrix() {
    let dir = folder();
    let half = |rows: usize, seed: usize| {
        let side = |s| bf16_bytes(&values(rows * 4, seed + s));
        file(&[("rejected", "BF16", &[rows, 4], side(100)), ("chosen", "BF16", &[rows, 4], side(0))])
    };
    put(dir.path(), "a.safetensors", &pairs(5, 4, 1));
    put(dir.path(), "b.safetensors", &half(1, 2));
    put(dir.path(), "c.safetensors", &pairs(8, 4, 3));
    for io in BOTH {
        let set = open(dir.path(), io).unwrap();
        assert_eq!((set.len(), set.files().len()), (14, 3));
        assert_eq!(set.files()[1].dtype, Dtype::Bf16);
        let expected = [values(20, 1), values(4, 2), values(32, 3)].concat();
        let block = set.rows(Side::Chosen, 3..13).unwrap();
        assert_eq!(block.view().parts().len(), 3);
        assert_eq!(widened(&block.view()), expected[12..52]);
        let scan = set.scan().unwrap();
        assert_eq!(scan.sources.iter().map(|s| s.rows).collect::<Vec<_>>(), [5, 1, 8]);
        assert_eq!(scan.sources[0].file, "a.safetensors");
        assert!(set.rows(Side::Chosen, 3..15).is_err());
        #[expect(clippy::reversed_empty_ranges, reason = "a reversed range must be refused, not wrapped")]
        let reversed = set.rows(Side::Chosen, 3..2);
        assert!(matches!(reversed, Err(Error::Shape { .. })));
    }
}

#[test]
fn the_fingerprint_follows_the_payload_and_nothing_else() {
    let dir = folder();
    let tensors = |last: f32| {
        let side = f32_bytes(&[1.0, 2.0, 3.0, last]);
        [("chosen", "F32", &[2, 2][..], side.clone()), ("rejected", "F32", &[2, 2][..], side)]
    };
    let of = |bytes: Vec<u8>| {
        let path = put(dir.path(), "a.safetensors", &bytes);
        open(&path, Io::Read).unwrap().scan().unwrap().sources.remove(0).xxh3
    };
    let base = of(file_at(&tensors(4.0), 0));
    assert_eq!((base.len(), base.as_str()), (32, of(file_at(&tensors(4.0), 3)).as_str()));
    assert_ne!(base, of(file(&tensors(5.0))));
    // The order within the file does not matter: chosen comes first.
    let [a, b] = [f32_bytes(&[1.0, 2.0]), f32_bytes(&[3.0, 4.0])];
    let (chosen, rejected) = (("chosen", "F32", &[1, 2][..], a), ("rejected", "F32", &[1, 2][..], b));
    assert_eq!(of(file(&[chosen.clone(), rejected.clone()])), of(file(&[rejected, chosen])));
}

#[test]
fn scans_cross_block_boundaries() {
    // 3 x 16 MiB per side, and a NaN in the last block.
    let dir = folder();
    let (rows, dim) = (12 * 1024 + 1, 1024);
    let mut rejected = values(rows * dim, 2);
    let write = |rejected: &[f32]| {
        let side = |name, v: &[f32]| (name, "F32", &[12 * 1024 + 1, 1024][..], f32_bytes(v));
        let chosen = values(rows * dim, 1);
        put(dir.path(), "a.safetensors", &file(&[side("chosen", &chosen), side("rejected", rejected)]))
    };
    let path = write(&rejected);
    let scans = BOTH.map(|io| open(&path, io).unwrap().scan().unwrap());
    assert_eq!(scans[0], scans[1]);
    rejected[(rows - 1) * dim + 1000] = f32::NAN;
    rejected[(rows - 1) * dim + 1001] = f32::INFINITY;
    let path = write(&rejected);
    for io in BOTH {
        let Err(Error::NonFinite { row, column, value, .. }) = open(&path, io).unwrap().scan() else {
            panic!("a NaN passed")
        };
        assert_eq!((row, column), (rows as u64 - 1, 1000));
        assert!(value.is_nan());
    }
}

#[test]
fn groups_are_read_from_every_file() {
    let dir = folder();
    let with_group = |name, ids: &[i64]| {
        let rows = ids.len();
        let shape = [rows, 2];
        // Odd bytes in front leave the groups misaligned.
        let side = || f16_bytes(&values(rows * 2, 1));
        file(&[
            ("pad", "U8", &[3], vec![1, 2, 3]),
            ("chosen", "F16", &shape, side()),
            ("rejected", "F16", &shape, side()),
            (name, "I64", &[rows], i64_bytes(ids)),
        ])
    };
    put(dir.path(), "a.safetensors", &with_group("group", &[7, -1, i64::MAX]));
    put(dir.path(), "b.safetensors", &with_group("group", &[9]));
    let named = folder();
    put(named.path(), "a.safetensors", &with_group("prompt", &[4, 4]));
    for io in BOTH {
        assert_eq!(open(dir.path(), io).unwrap().group(), Some(vec![7, -1, i64::MAX, 9]));
        assert_eq!(open(named.path(), io).unwrap().group(), None);
        let options = PairOptions { group: Some("prompt".into()), ..options(io) };
        let set = PairSet::open(&[text(named.path())], &options).unwrap();
        assert_eq!(set.group(), Some(vec![4, 4]));
    }
}

#[test]
fn candidates_and_embeddings() {
    let dir = folder();
    let (prompts, n, dim) = (3, 4, 2);
    let embeddings = values(prompts * n * dim, 1);
    let scores = values(prompts * n, 2);
    let f64_scores: Vec<u8> = scores.iter().flat_map(|&v| f64::from(v).to_le_bytes()).collect();
    let gold = [
        ("F32", f32_bytes(&scores)),
        ("F16", f16_bytes(&scores)),
        ("BF16", bf16_bytes(&scores)),
        ("F64", f64_scores),
    ];
    for (dtype, gold) in gold {
        let bytes = file_at(
            &[
                ("candidates", "BF16", &[prompts, n, dim], bf16_bytes(&embeddings)),
                ("gold", dtype, &[prompts, n], gold),
            ],
            1,
        );
        let path = put(dir.path(), "a.safetensors", &bytes);
        for io in BOTH {
            let set = CandidateSet::open(&[text(&path)], "candidates", "gold", io).unwrap();
            assert_eq!((set.prompts(), set.per_prompt(), set.dim()), (prompts, n, dim));
            assert_eq!(set.gold(), scores, "{dtype}");
            let block = set.rows(n..3 * n).unwrap();
            assert_eq!(widened(&block.view()), embeddings[n * dim..]);
        }
    }
    let path = put(dir.path(), "b.safetensors", &pairs(5, 3, 1));
    for io in BOTH {
        let set = EmbeddingSet::open(&[text(&path)], "rejected", io).unwrap();
        assert_eq!((set.len(), set.dim(), set.files()[0].rows), (5, 3, 5));
        assert_eq!(widened(&set.rows(1..3).unwrap().view()), values(15, 101)[3..9]);
        assert_eq!(set.scan().unwrap().sources[0].dim, 3);
    }
}

#[test]
fn a_file_that_shrinks_is_an_error_and_no_crash() {
    let dir = folder();
    let path = put(dir.path(), "a.safetensors", &pairs(5, 3, 1));
    let set = open(&path, Io::Read).unwrap();
    let len = fs::metadata(&path).unwrap().len();
    fs::File::options().write(true).open(&path).unwrap().set_len(len - 1).unwrap();
    // Whichever rows are read: the file is no longer the one that was opened.
    for rows in [0..4, 4..5] {
        let error = set.rows(Side::Rejected, rows).unwrap_err();
        check_message(&error, "a.safetensors");
        let lengths = format!("it had {len} bytes when it was opened and has {} now", len - 1);
        assert!(matches!(&error, Error::Changed { how, .. } if *how == lengths), "{error}");
    }
    assert!(set.scan().is_err());
}

/// With the guard, what a mapped file lost reads as zeros, and the set says so before anything is kept.
#[test]
fn a_mapped_file_that_shrinks_is_an_error_and_no_crash() {
    install_sigbus_guard();
    let dir = folder();
    let paths = ["a.safetensors", "b.safetensors"].map(|name| dir.path().join(name));
    let write = |path: &std::path::Path| write_pairs(path, Dtype::F32, 4096, 8);
    paths.iter().for_each(|path| drop(write(path)));
    let open = || PairSet::open(&paths.each_ref().map(|p| text(p)), &PairOptions::default()).unwrap();
    let lost = |set: &PairSet| {
        let block = set.rows(Side::Rejected, 0..set.len()).unwrap();
        assert!(block.is_borrowed());
        widened(&block.view()).iter().filter(|v| **v == 0.0).count()
    };
    let set = open();
    let zeros = lost(&set);
    set.require_unchanged().unwrap();
    fs::File::options().write(true).open(&paths[1]).unwrap().set_len(9000).unwrap();
    assert!(lost(&set) >= zeros + 4096 * 8 - 2048, "the second file's last pages are zeros");
    let error = set.require_unchanged().unwrap_err().to_string();
    assert!(error.contains("b.safetensors changed while it was in use") && error.contains("9000"), "{error}");
    // Whole again under its name: another file.
    write(&paths[1]);
    let error = set.require_unchanged().unwrap_err().to_string();
    assert!(error.contains("another file took its place"), "{error}");
    drop(set);
    let set = open();
    assert_eq!(lost(&set), zeros);
    set.require_unchanged().unwrap();
    fs::remove_file(&paths[0]).unwrap();
    let error = set.require_unchanged().unwrap_err().to_string();
    assert!(error.contains("a.safetensors changed") && error.contains("removed"), "{error}");
}

/// Without the guard a cut file is found by its identity as long as no lost page is read, and reading one ends the
/// process. In a process of its own, since the guard stays installed for all other tests of this one.
#[test]
fn without_the_guard_the_system_ends_the_process() {
    const CHILD: &str = "LENSMITH_TEST_WITHOUT_GUARD";
    if std::env::var_os(CHILD).is_none() {
        let mut child = Command::new(std::env::current_exe().unwrap());
        let name = "reading::without_the_guard_the_system_ends_the_process";
        let done = child.args(["--exact", name, "--nocapture"]).env(CHILD, "1").output().unwrap();
        let said = String::from_utf8_lossy(&done.stdout);
        assert!(said.contains("found by its identity"), "{done:?}");
        assert!(!said.contains("read a lost page") && done.status.signal().is_some(), "{done:?}");
        return;
    }
    let dir = folder();
    let path = dir.path().join("a.safetensors");
    write_pairs(&path, Dtype::F32, 4096, 8);
    let set = open(&path, Io::Mmap).unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_len(9000).unwrap();
    let error = set.require_unchanged().unwrap_err();
    assert!(matches!(&error, Error::Changed { how, .. } if how.contains("9000")), "{error}");
    println!("found by its identity");
    widened(&set.rows(Side::Rejected, 0..set.len()).unwrap().view());
    println!("read a lost page");
}
