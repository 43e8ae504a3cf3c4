//! Files that are damaged, and data that no pair can be made of: named errors, no panic, nothing left behind.

use std::fs;
use std::path::Path;

use lensmith::convert::{ColumnSource, Format, ImportLayout};
use lensmith::data::Io;
use lensmith::noise::{Purpose, Stream};
use tempfile::tempdir;

use super::support::*;

#[track_caller]
fn expect(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
}

#[test]
fn faults_of_values_name_file_row_and_column() {
    for file in ["faulty.parquet", "faulty.arrow"] {
        let of = |chosen: &str| refusal(pairs_of(file, chosen, "rejected"));
        expect(&of("null_row"), &[file, "`null_row`, row 3", "null"]);
        expect(&of("null_value"), &[file, "`null_value`, row 4", "null"]);
        expect(&of("ragged"), &[file, "`ragged`, row 5", "expected 5, found 2"]);
        expect(&of("nan"), &[file, "`nan`, row 6, column 2", "NaN"]);
        expect(&of("text"), &[file, "`text`", "Utf8"]);
        expect(&of("nothing"), &[file, "`nothing`", "`null_row`", "`chosen`"]);

        let folder = tempdir().expect("a folder");
        let mut job = job(pairs_of(file, "huge", "rejected"), folder.path());
        job.dtype = Some(lensmith::dtype::Dtype::F16);
        let message = run(&job).expect_err("70000 is no F16").to_string();
        expect(&message, &[file, "`huge`, row 1, value 4", "F16", "70000"]);
        job.dtype = Some(lensmith::dtype::Dtype::Bf16);
        run(&job).expect("70000 is a BF16, and the import that failed is in nobody's way");
    }
    expect(&refusal(pairs_of("empty.parquet", "chosen", "rejected")), &["empty.parquet", "rows", "0"]);
}

#[test]
fn columns_that_do_not_belong_together_are_refused() {
    let pair = |a: ColumnSource, b: ColumnSource| {
        refusal(ImportLayout::Pairs { chosen: a, rejected: b, group: None })
    };
    let (arrow, sliced) = (golden("file.arrow"), golden("sliced_zstd.feather"));
    expect(&pair(column(&arrow, "chosen"), column(&sliced, "rejected")), &["sliced_zstd", "expected 7", "4"]);
    let three = column(&golden("responses.npy"), "");
    expect(&pair(three.clone(), three.clone()), &["responses.npy", "[n, d]", "[6, 4, 5]"]);
    let rewards = column(&golden("rewards.npy"), "");
    expect(&refusal(pairs_of("stored.npz", "group", "group")), &["stored.npz", "`group`", "[n, d]"]);
    let floats = ImportLayout::Pairs {
        chosen: column(&arrow, "chosen"),
        rejected: column(&arrow, "rejected"),
        group: Some(column(&golden("chosen.npy"), "")),
    };
    expect(&refusal(floats), &["chosen.npy", "[n]"]);
    let swapped = ImportLayout::BestOfN { candidates: rewards, gold: three };
    expect(&refusal(swapped), &["rewards.npy", "[prompts, responses, d]"]);
    let twice =
        ColumnSource { files: vec![arrow.clone(), arrow.clone()], format: None, name: "chosen".into() };
    expect(&refusal(ImportLayout::Embeddings { embeddings: twice }), &["file.arrow", "expected 1, found 2"]);
    let differ = ColumnSource {
        files: vec![golden("chosen.npy"), golden("rewards.npy")],
        format: None,
        name: String::new(),
    };
    expect(&refusal(ImportLayout::Embeddings { embeddings: differ }), &["rewards.npy", "[5]", "[4]"]);
    let unknown = column(&golden("hf_fixed_f32/state.json"), "chosen");
    expect(&refusal(ImportLayout::Embeddings { embeddings: unknown }), &["format", "state.json"]);
    let wrong = ColumnSource { format: Some(Format::Parquet), ..column(&arrow, "chosen") };
    expect(&refusal(ImportLayout::Embeddings { embeddings: wrong }), &["file.arrow", "Parquet"]);
    let missing = column("/nowhere/at/all.npy", "");
    expect(&refusal(ImportLayout::Embeddings { embeddings: missing }), &["/nowhere/at/all.npy"]);
}

/// A layout that reads everything of a golden file, from a copy of it.
fn everything(file: &Path) -> ImportLayout {
    let file = file.display().to_string();
    let has_names = !file.ends_with(".npy");
    if !has_names {
        return ImportLayout::Embeddings { embeddings: column(&file, "") };
    }
    ImportLayout::Pairs { chosen: column(&file, "chosen"), rejected: column(&file, "rejected"), group: None }
}

const FILES: [&str; 9] = [
    "chosen.npy",
    "stored.npz",
    "deflated.npz",
    "pandas_lists_f64.parquet",
    "pyarrow_f16.parquet",
    "file.arrow",
    "stream.arrow",
    "large_lists_lz4.feather",
    "sliced_zstd.feather",
];

#[test]
fn files_that_are_cut_short_are_refused() {
    let folder = tempdir().expect("a folder");
    for name in FILES {
        let whole = fs::read(golden(name)).expect("a golden file");
        let path = folder.path().join(name);
        // Every length near both ends, and a sample between.
        let near = 0..whole.len();
        for len in near.filter(|len| *len < 40 || whole.len() - len < 24 || len % 29 == 0) {
            // A stream may end after any batch; that is a warning. The mark at its end takes 8 bytes.
            if name == "stream.arrow" && whole.len() - len <= 8 {
                continue;
            }
            fs::write(&path, &whole[..len]).expect("a file");
            for io in [Io::Mmap, Io::Read] {
                let mut job = job(everything(&path), &folder.path().join("out"));
                job.io = io;
                match run(&job) {
                    Err(error) => expect(&error.to_string(), &[name]),
                    // A stream that ends exactly between two batches.
                    Ok(summary) => assert!(
                        name == "stream.arrow" && summary.rows < ROWS as u64,
                        "{name} of {len} bytes gave {summary:?}"
                    ),
                }
                job.overwrite = true;
                let _ = fs::remove_dir_all(&job.out);
            }
        }
    }
}

#[test]
fn damaged_bytes_never_panic() {
    let folder = tempdir().expect("a folder");
    let mut stream = Stream::new(7, Purpose::Shuffle, 0);
    for name in FILES {
        let whole = fs::read(golden(name)).expect("a golden file");
        let path = folder.path().join(name);
        for _ in 0..40 {
            let mut damaged = whole.clone();
            for _ in 0..1 + stream.below(3) {
                let at = stream.below(damaged.len() as u32) as usize;
                damaged[at] = match stream.below(4) {
                    0 => 0xff,
                    1 => 0x7f,
                    2 => 0,
                    _ => stream.below(256) as u8,
                };
            }
            fs::write(&path, &damaged).expect("a file");
            let job = job(everything(&path), &folder.path().join("out"));
            // Values may differ without a checksum to tell; all else is an error.
            if let Ok(summary) = run(&job) {
                assert!(summary.rows <= ROWS as u64, "{name}: {summary:?}");
            }
            let _ = fs::remove_dir_all(&job.out);
        }
    }
}
