//! Malformed files: each is refused with the right kind of error, in one line that names the file.

use lensmith::Error;
use lensmith::data::{CandidateSet, EmbeddingSet, Header, PairSet};
use lensmith::matrix::Side;

use crate::support::*;

/// The kind of an error, and a piece of text that its message must hold.
type Expected = (fn(&Error) -> bool, &'static str);

const FORMAT: fn(&Error) -> bool = |e| matches!(e, Error::Format { format: "safetensors", .. });
const SHAPE: fn(&Error) -> bool = |e| matches!(e, Error::Shape { .. });
const DTYPE: fn(&Error) -> bool = |e| matches!(e, Error::WrongDtype { .. });
const MISSING: fn(&Error) -> bool = |e| matches!(e, Error::MissingTensor { .. });
const TOO_FEW: fn(&Error) -> bool = |e| matches!(e, Error::TooFew { .. });
const NON_FINITE: fn(&Error) -> bool = |e| matches!(e, Error::NonFinite { .. });

fn one(name: &'static str, dtype: &'static str, shape: &'static [usize], bytes: usize) -> Tensor<'static> {
    (name, dtype, shape, vec![0; bytes])
}

/// A header of `chosen` [1, 2] and `rejected` with the given offsets, F32, in front of `payload` bytes.
fn offsets(rejected: &str, payload: usize) -> Vec<u8> {
    raw(
        &format!(
            r#"{{"chosen":{{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]}},
            "rejected":{{"dtype":"F32","shape":[1,2],"data_offsets":{rejected}}}}}"#
        ),
        &vec![0; payload],
    )
}

fn entry(entry: &str) -> Vec<u8> {
    raw(&format!(r#"{{"chosen":{{{entry}}}}}"#), &[0; 8])
}

fn malformed() -> Vec<(&'static str, Vec<u8>, Expected)> {
    let valid = pairs(4, 2, 1);
    let header_len = valid.len() - 2 * 4 * 2 * 4 - 8;
    let with_len = |n: u64| [&n.to_le_bytes(), &valid[8..]].concat();
    let two = |a: Tensor<'static>, b: Tensor<'static>| file(&[a, b]);
    let good = || one("chosen", "F32", &[2, 2], 16);
    vec![
        ("empty", vec![], (FORMAT, "empty")),
        ("one byte", valid[..1].to_vec(), (FORMAT, "truncated: expected at least 8 bytes, found 1")),
        ("seven bytes", valid[..7].to_vec(), (FORMAT, "found 7")),
        ("length only", valid[..8].to_vec(), (FORMAT, "truncated, or the header length is wrong")),
        ("cut in the header", valid[..40].to_vec(), (FORMAT, "found 40")),
        ("cut after the header", valid[..8 + header_len].to_vec(), (FORMAT, "truncated: expected")),
        ("cut in the payload", valid[..valid.len() - 1].to_vec(), (FORMAT, "truncated: expected")),
        ("a byte too many", [&valid[..], &[0]].concat(), (FORMAT, "too long: expected")),
        ("header length 0", with_len(0), (FORMAT, "header length is 0")),
        ("header length short", with_len(header_len as u64 - 40), (FORMAT, "header")),
        ("header longer than the file", with_len(valid.len() as u64), (FORMAT, "header length is wrong")),
        ("header over 100 MB", with_len(100_000_001), (FORMAT, "100000001 bytes, more than the 8000000")),
        ("largest header length", with_len(u64::MAX), (FORMAT, "18446744073709551615")),
        ("zeros", vec![0; 4096], (FORMAT, "header length is 0")),
        ("not JSON", raw("hello, world", &[]), (FORMAT, "not what the format demands")),
        ("JSON array", raw("[1, 2]", &[]), (FORMAT, "not what the format demands")),
        ("JSON twice", raw("{} {}", &[]), (FORMAT, "trailing characters")),
        ("no tensors", raw("{}", &[]), (MISSING, "no tensors")),
        ("not UTF-8", [&2u64.to_le_bytes()[..], &[b'{', 0xff]].concat(), (FORMAT, "UTF-8 text after byte 1")),
        ("nested", raw(&"[".repeat(100_000), &[]), (FORMAT, "not what the format demands")),
        ("overlapping", offsets("[4,12]", 12), (FORMAT, "offset")),
        ("with a hole", offsets("[12,20]", 20), (FORMAT, "offset")),
        ("beyond the end", offsets("[8,16]", 15), (FORMAT, "truncated: expected")),
        ("far beyond the end", offsets("[8,18446744073709551615]", 16), (FORMAT, "`rejected` bytes 8 to")),
        ("backwards", offsets("[16,8]", 16), (FORMAT, "`rejected` bytes 16 to 8")),
        ("size lies", offsets("[8,12]", 12), (FORMAT, "but F32 [1, 2] takes 8")),
        ("negative offset", offsets("[-8,0]", 8), (FORMAT, "-8")),
        ("one offset", offsets("[8]", 16), (FORMAT, "length 1")),
        ("no offsets", entry(r#""dtype":"F32","shape":[1,2]"#), (FORMAT, "data_offsets")),
        ("no shape", entry(r#""dtype":"F32","data_offsets":[0,8]"#), (FORMAT, "shape")),
        ("unknown dtype", entry(r#""dtype":"F\n33","shape":[1,2],"data_offsets":[0,8]"#), (FORMAT, "F 33")),
        ("negative shape", entry(r#""dtype":"F32","shape":[-1,2],"data_offsets":[0,8]"#), (FORMAT, "-1")),
        ("fractional shape", entry(r#""dtype":"F32","shape":[1.5],"data_offsets":[0,8]"#), (FORMAT, "1.5")),
        (
            "shape that overflows",
            entry(r#""dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]"#),
            (FORMAT, "`chosen` an impossible shape"),
        ),
        ("offsets that overflow", uncountable(), (FORMAT, "more bytes than can be counted")),
        ("metadata of numbers", raw(r#"{"__metadata__":{"a":1}}"#, &[]), (FORMAT, "expected a string")),
        ("no rejected", file(&[good()]), (MISSING, "no tensor named `rejected`; found: `chosen`")),
        ("line break in a name", file(&[one("a\nb", "F32", &[1], 4)]), (MISSING, r"`a\nb`")),
        ("I32", two(one("chosen", "I32", &[2, 2], 16), good_rejected()), (DTYPE, "I32, expected F32, F16")),
        ("F64", two(good(), one("rejected", "F64", &[2, 2], 32)), (DTYPE, "`rejected` has dtype F64")),
        ("F8", two(one("chosen", "F8_E4M3", &[2, 2], 4), good_rejected()), (DTYPE, "F8_E4M3")),
        ("two dtypes", two(good(), one("rejected", "F16", &[2, 2], 8)), (DTYPE, "dtype of the other side")),
        ("rank 0", two(one("chosen", "F32", &[], 4), good_rejected()), (SHAPE, "expected 2, found 0")),
        (
            "rank 1",
            two(one("chosen", "F32", &[4], 16), good_rejected()),
            (SHAPE, "expected 2, found 1 ([4])"),
        ),
        ("rank 3", two(good(), one("rejected", "F32", &[1, 2, 2], 16)), (SHAPE, "expected 2, found 3")),
        ("other rows", two(good(), one("rejected", "F32", &[3, 2], 24)), (SHAPE, "[2, 2] as in `chosen`")),
        ("other width", two(good(), one("rejected", "F32", &[2, 3], 24)), (SHAPE, "found [2, 3]")),
        ("swapped axes", two(one("chosen", "F32", &[1, 4], 16), good_rejected()), (SHAPE, "found [2, 2]")),
        (
            "no rows",
            two(one("chosen", "F32", &[0, 2], 0), one("rejected", "F32", &[0, 2], 0)),
            (TOO_FEW, "rows of tensor `chosen`: 0, at least 1 needed"),
        ),
        (
            "no columns",
            two(one("chosen", "F32", &[2, 0], 0), one("rejected", "F32", &[2, 0], 0)),
            (TOO_FEW, "columns of tensor `chosen`"),
        ),
        (
            "no rows, absurd width",
            raw(
                r#"{"chosen":{"dtype":"F32","shape":[0,9223372036854775807],"data_offsets":[0,0]},
                "rejected":{"dtype":"F32","shape":[0,9223372036854775807],"data_offsets":[0,0]}}"#,
                &[],
            ),
            (TOO_FEW, "rows of tensor"),
        ),
        ("group of F32", file(&[good(), good_rejected(), one("group", "F32", &[2], 8)]), (DTYPE, "I64")),
        (
            "group too short",
            file(&[good(), good_rejected(), one("group", "I64", &[1], 8)]),
            (SHAPE, "expected 2"),
        ),
        (
            "group of rank 2",
            file(&[good(), good_rejected(), one("group", "I64", &[2, 1], 16)]),
            (SHAPE, "axes"),
        ),
    ]
}

/// Eight tensors whose offsets are consistent and end 8 bytes below 2^64: the header does not fit in front.
fn uncountable() -> Vec<u8> {
    const EACH: u64 = (1 << 61) - 1;
    let entry = |i: u64| {
        let (from, to) = (i * EACH, (i + 1) * EACH);
        format!(r#""t{i}":{{"dtype":"U8","shape":[{EACH}],"data_offsets":[{from},{to}]}}"#)
    };
    raw(&format!("{{{}}}", (0..8).map(entry).collect::<Vec<_>>().join(",")), &[0; 16])
}

fn good_rejected() -> Tensor<'static> {
    one("rejected", "F32", &[2, 2], 16)
}

#[test]
fn every_malformed_file_is_refused_with_its_reason() {
    let dir = folder();
    let cases = malformed();
    assert!(cases.len() >= 50);
    for (name, bytes, (kind, piece)) in cases {
        let path = put(dir.path(), "case.safetensors", &bytes);
        for io in BOTH {
            let error = open(&path, io).expect_err(name);
            assert!(kind(&error), "{name}: {error:?}");
            assert!(error.to_string().contains(piece), "{name}: no `{piece}` in: {error}");
            check_message(&error, "case.safetensors");
        }
        if kind as usize == FORMAT as usize {
            assert!(Header::parse(&path, &bytes).is_err(), "{name}");
        }
    }
}

#[test]
fn a_long_or_foreign_text_is_not_repeated_whole() {
    let dir = folder();
    let name = "x\u{1b}[31m".repeat(10_000);
    for bytes in [file(&[(&name, "F32", &[1], vec![0; 4])]), raw(&name, &[]), {
        raw(&format!(r#"{{"a":{{"dtype":"{name}","shape":[],"data_offsets":[0,0]}}}}"#), &[])
    }] {
        let path = put(dir.path(), "a.safetensors", &bytes);
        check_message(&open(&path, BOTH[0]).unwrap_err(), "a.safetensors");
    }
}

#[test]
fn values_that_are_not_finite_are_found_where_they_are() {
    let dir = folder();
    type ToBytes = fn(&[f32]) -> Vec<u8>;
    let kinds: [(&str, ToBytes); 3] = [("F32", f32_bytes), ("F16", f16_bytes), ("BF16", bf16_bytes)];
    for (dtype, to_bytes) in kinds {
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for (side, misalign) in [(Side::Chosen, 0), (Side::Rejected, 0), (Side::Rejected, 1)] {
                let mut sides = [values(40 * 3, 1), values(40 * 3, 2)];
                sides[side as usize][17 * 3 + 2] = bad;
                sides[side as usize][30 * 3] = bad;
                // A later row of the other side must not win.
                sides[1 - side as usize][18 * 3] = bad;
                let tensor = |name, s: usize| (name, dtype, &[40, 3][..], to_bytes(&sides[s]));
                let bytes = file_at(&[tensor("chosen", 0), tensor("rejected", 1)], misalign);
                let path = put(dir.path(), "a.safetensors", &bytes);
                for io in BOTH {
                    let error = open(&path, io).unwrap().scan().unwrap_err();
                    check_message(&error, "a.safetensors");
                    let Error::NonFinite { tensor, row, column, value, .. } = &error else {
                        panic!("{error:?}")
                    };
                    assert_eq!((tensor.as_str(), *row, *column), (side.name(), 17, 2), "{dtype}");
                    assert!(value.is_nan() == bad.is_nan() && (bad.is_nan() || *value == bad));
                    let set = EmbeddingSet::open(&[text(&path)], side.name(), io).unwrap();
                    assert!(NON_FINITE(&set.scan().unwrap_err()));
                }
            }
        }
    }
}

#[test]
fn the_largest_finite_values_pass() {
    let dir = folder();
    let largest = [f32::MAX, f32::MIN, f32::MIN_POSITIVE, 1e-45, -0.0];
    let bf16 = [0x7f7fu16, 0xff7f, 0x0001, 0x8000, 0x0080].map(u16::to_le_bytes).concat();
    let f16 = [0x7bffu16, 0xfbff, 0x0001, 0x8000, 0x0400].map(u16::to_le_bytes).concat();
    for (dtype, bytes) in [("F32", f32_bytes(&largest)), ("BF16", bf16), ("F16", f16)] {
        let bytes = file(&[("chosen", dtype, &[1, 5], bytes.clone()), ("rejected", dtype, &[1, 5], bytes)]);
        let path = put(dir.path(), "a.safetensors", &bytes);
        open(&path, BOTH[0]).unwrap().scan().unwrap();
    }
}

#[test]
fn the_first_file_wins() {
    let dir = folder();
    let bad = |row: usize| {
        let mut side = values(20, 1);
        side[row * 2] = f32::NAN;
        let good = f32_bytes(&values(20, 2));
        file(&[("chosen", "F32", &[10, 2], good), ("rejected", "F32", &[10, 2], f32_bytes(&side))])
    };
    put(dir.path(), "a.safetensors", &pairs(10, 2, 1));
    put(dir.path(), "b.safetensors", &bad(9));
    put(dir.path(), "c.safetensors", &bad(0));
    let error = open(dir.path(), BOTH[0]).unwrap().scan().unwrap_err();
    check_message(&error, "b.safetensors");
    assert!(matches!(error, Error::NonFinite { row: 9, column: 0, .. }));
}

#[test]
fn malformed_candidates() {
    let dir = folder();
    let candidates = || one("candidates", "F32", &[2, 3, 2], 48);
    let gold = || one("gold", "F32", &[2, 3], 24);
    let scores = |at: usize, value: f64| {
        let mut scores = [0.0; 6];
        scores[at] = value;
        ("gold", "F64", &[2, 3][..], scores.iter().flat_map(|v: &f64| v.to_le_bytes()).collect::<Vec<u8>>())
    };
    let mut nan = vec![0; 48];
    nan[44..].copy_from_slice(&f32::NAN.to_le_bytes());
    let cases: Vec<(Vec<u8>, Expected)> = vec![
        (file(&[candidates()]), (MISSING, "`gold`")),
        (file(&[gold()]), (MISSING, "`candidates`")),
        (file(&[candidates(), one("gold", "F32", &[6], 24)]), (SHAPE, "[2, 3], found [6]")),
        (file(&[candidates(), one("gold", "F32", &[3, 2], 24)]), (SHAPE, "[2, 3], found [3, 2]")),
        (file(&[candidates(), one("gold", "I64", &[2, 3], 48)]), (DTYPE, "F64, F32, F16 or BF16")),
        (file(&[one("candidates", "F64", &[2, 3, 2], 96), gold()]), (DTYPE, "F64")),
        (file(&[one("candidates", "F32", &[6, 2], 48), gold()]), (SHAPE, "expected 3, found 2")),
        (file(&[one("candidates", "F32", &[0, 3, 2], 0), one("gold", "F32", &[0, 3], 0)]), (TOO_FEW, "rows")),
        (
            file(&[one("candidates", "F32", &[2, 1, 2], 16), one("gold", "F32", &[2, 1], 8)]),
            (TOO_FEW, "prompt"),
        ),
        (file(&[candidates(), scores(4, f64::NAN)]), (NON_FINITE, "`gold`, row 1, column 1")),
        (file(&[candidates(), scores(2, 1e300)]), (NON_FINITE, "`gold`, row 0, column 2: inf")),
        (file(&[("candidates", "F32", &[2, 3, 2], nan), gold()]), (NON_FINITE, "row 5, column 1")),
    ];
    for (bytes, (kind, piece)) in cases {
        let path = put(dir.path(), "case.safetensors", &bytes);
        for io in BOTH {
            let error = CandidateSet::open(&[text(&path)], "candidates", "gold", io).unwrap_err();
            assert!(kind(&error) && error.to_string().contains(piece), "no `{piece}` in {error:?}");
            check_message(&error, "case.safetensors");
        }
    }
    let other = file(&[one("candidates", "F32", &[2, 4, 2], 64), one("gold", "F32", &[2, 4], 32)]);
    let sources = [
        text(&put(dir.path(), "a.safetensors", &file(&[candidates(), gold()]))),
        text(&put(dir.path(), "b.safetensors", &other)),
    ];
    let error = CandidateSet::open(&sources, "candidates", "gold", BOTH[0]).unwrap_err();
    assert!(SHAPE(&error) && error.to_string().contains("a.safetensors"));
    check_message(&error, "b.safetensors");
}

#[test]
fn widths_that_differ_between_files_name_both() {
    let dir = folder();
    put(dir.path(), "a.safetensors", &pairs(3, 4, 1));
    put(dir.path(), "b.safetensors", &pairs(3, 5, 1));
    let error = PairSet::open(&[text(dir.path())], &options(BOTH[0])).unwrap_err();
    assert!(SHAPE(&error), "{error:?}");
    check_message(&error, "a.safetensors");
    check_message(&error, "b.safetensors");
}
