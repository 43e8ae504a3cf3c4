//! What other libraries wrote is read as they meant it, bit for bit, and comes back out of an export.

use std::fs;
use std::path::Path;

use lensmith::convert::{
    ColumnSource, Compression, ExportColumn, ExportFormat, ExportJob, ImportLayout, export,
};
use lensmith::data::{Io, NamedTensor, PairOptions, PairSet, write_tensors};
use lensmith::dtype::Dtype;
use safetensors::Dtype as Stored;
use tempfile::tempdir;

use super::support::*;

/// Imports and compares `chosen` and `rejected` (and `group` where there must be one) with the formula.
#[track_caller]
fn expect_pairs(layout: ImportLayout, stored: Stored, rows: std::ops::Range<usize>, with_group: bool) {
    for io in [Io::Mmap, Io::Read] {
        let folder = tempdir().expect("a folder");
        let mut job = job(layout.clone(), folder.path());
        job.io = io;
        let summary = run(&job).expect("an import");
        assert_eq!((summary.rows, summary.dim, summary.shards), (rows.len() as u64, DIM, 1));
        let found = tensors(&shards(folder.path())[0]);
        for (side, name) in ["chosen", "rejected"].into_iter().enumerate() {
            let all = values(side as i64, ROWS * DIM);
            let some = &all[rows.start * DIM..rows.end * DIM];
            let bytes = if stored == Stored::F16 { f16_bytes(some) } else { f32_bytes(some) };
            assert_eq!(found[name], (stored, vec![rows.len(), DIM], bytes), "{name}");
        }
        let expected = with_group.then(|| (Stored::I64, vec![ROWS], i64_bytes(&group())));
        assert_eq!(found.get("group"), expected.as_ref());
    }
}

#[test]
fn numpy() {
    let file = |name: &str| column(&golden(name), "any");
    let pair = |chosen: &str, group: Option<&str>| ImportLayout::Pairs {
        chosen: file(chosen),
        rejected: file("rejected.npy"),
        group: group.map(file),
    };
    expect_pairs(pair("chosen.npy", None), Stored::F32, 0..ROWS, false);
    expect_pairs(pair("chosen.npy", Some("group_i32.npy")), Stored::F32, 0..ROWS, true);
    expect_pairs(pair("chosen_v2.npy", None), Stored::F32, 0..ROWS, false);
    // F16 beside F32, and F64, big endian, beside F32: the shards hold F32.
    expect_pairs(pair("chosen_f16.npy", None), Stored::F32, 0..ROWS, false);
    expect_pairs(pair("chosen_f64_big_endian.npy", None), Stored::F32, 0..ROWS, false);
    expect_pairs(pairs_of("stored.npz", "chosen", "rejected"), Stored::F32, 0..ROWS, true);
    expect_pairs(pairs_of("deflated.npz", "chosen", "rejected"), Stored::F32, 0..ROWS, true);
    let message = refusal(ImportLayout::Embeddings { embeddings: file("chosen_fortran.npy") });
    assert!(message.contains("Fortran order") && message.contains("ascontiguousarray"), "{message}");
}

#[test]
fn parquet() {
    expect_pairs(pairs_of("pandas.parquet", "good", "bad"), Stored::F32, 0..ROWS, true);
    expect_pairs(pairs_of("pandas_lists_f64.parquet", "chosen", "rejected"), Stored::F32, 0..ROWS, false);
    expect_pairs(pairs_of("pyarrow_f16.parquet", "chosen", "rejected"), Stored::F16, 0..ROWS, true);
}

#[test]
fn arrow() {
    expect_pairs(pairs_of("file.arrow", "chosen", "rejected"), Stored::F32, 0..ROWS, false);
    expect_pairs(pairs_of("stream.arrow", "chosen", "rejected"), Stored::F32, 0..ROWS, false);
    expect_pairs(pairs_of("large_lists_lz4.feather", "chosen", "rejected"), Stored::F32, 0..ROWS, false);
    expect_pairs(pairs_of("sliced_zstd.feather", "chosen", "rejected"), Stored::F32, 2..6, false);
}

#[test]
fn folders_of_datasets() {
    expect_pairs(pairs_of("hf_fixed_f32", "chosen", "rejected"), Stored::F32, 0..ROWS, true);
    expect_pairs(pairs_of("hf_dict_list_f16/train", "chosen", "rejected"), Stored::F16, 0..ROWS, false);
    expect_pairs(pairs_of("hf_dict_list_f16/test", "chosen", "rejected"), Stored::F16, 2..4, false);
    let message = refusal(pairs_of("hf_dict_list_f16", "chosen", "rejected"));
    assert!(message.contains("hf_dict_list_f16/train or ") && message.contains("/test"), "{message}");
}

#[test]
fn responses_with_rewards() {
    let set = |file: &str, embeddings: &str, rewards: &str| ImportLayout::BestOfN {
        candidates: column(&golden(file), embeddings),
        gold: column(&golden(file), rewards),
    };
    let apart = ImportLayout::BestOfN {
        candidates: column(&golden("responses.npy"), ""),
        gold: column(&golden("rewards.npy"), ""),
    };
    let (npz, parquet) = ("responses.npz", "responses.parquet");
    for (layout, gold) in [
        (set(npz, "embeddings", "rewards"), Stored::F32),
        (set(parquet, "embeddings", "rewards"), Stored::F32),
        (apart, Stored::F64),
    ] {
        let folder = tempdir().expect("a folder");
        run(&job(layout, folder.path())).expect("an import");
        let found = tensors(&folder.path().join("candidates-00000.safetensors"));
        let bytes = f32_bytes(&values(2, PROMPTS * RESPONSES * DIM));
        assert_eq!(found["candidates"], (Stored::F32, vec![PROMPTS, RESPONSES, DIM], bytes));
        let rewards = values(3, PROMPTS * RESPONSES);
        let bytes = match gold {
            Stored::F64 => rewards.iter().flat_map(|&r| f64::from(r).to_le_bytes()).collect(),
            _ => f32_bytes(&rewards),
        };
        assert_eq!(found["gold"], (gold, vec![PROMPTS, RESPONSES], bytes));
        let read = lensmith::data::CandidateSet::open(
            &[folder.path().display().to_string()],
            "candidates",
            "gold",
            Io::Mmap,
        );
        assert_eq!(read.expect("a set").gold(), rewards);
    }
}

#[test]
fn files_are_joined_and_cut_into_shards() {
    let many = |name: &str| ColumnSource {
        files: vec![golden("file.arrow"), golden("pandas_lists_f64.parquet"), golden("stored.npz")],
        format: None,
        name: name.into(),
    };
    let layout = ImportLayout::Pairs { chosen: many("chosen"), rejected: many("rejected"), group: None };
    let folder = tempdir().expect("a folder");
    let mut job = job(layout, folder.path());
    job.shard_rows = Some(4);
    let summary = run(&job).expect("an import");
    assert_eq!((summary.rows, summary.shards), (21, 6));
    let pairs = PairSet::open(&[folder.path().display().to_string()], &PairOptions::default());
    let pairs = pairs.expect("the shards are pairs");
    assert_eq!(pairs.files().iter().map(|f| f.rows).collect::<Vec<_>>(), [4, 4, 4, 4, 4, 1]);
    let one = values(1, ROWS * DIM);
    for row in 0..21 {
        let block = pairs.rows(lensmith::matrix::Side::Rejected, row..row + 1).expect("a row");
        let mut found = vec![0f32; DIM];
        block.view().row(0).widen(&mut found);
        assert_eq!(found, one[row % ROWS * DIM..][..DIM]);
    }
}

fn export_job(shards: &Path, out: &Path) -> ExportJob {
    ExportJob {
        sources: vec![shards.display().to_string()],
        columns: Vec::new(),
        out: out.into(),
        format: ExportFormat::Parquet,
        compression: Compression::Zstd,
        row_group_rows: Some(3),
        overwrite: false,
    }
}

#[test]
fn exported_pairs_come_back_as_the_same_shards() {
    let folder = tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let text = |name: &str| at(name).display().to_string();
    for (i, dtype) in [Dtype::F32, Dtype::F16, Dtype::Bf16].into_iter().enumerate() {
        let (first, table, again) = (format!("first{i}"), format!("{i}.parquet"), format!("again{i}"));
        let mut there = job(pairs_of("hf_fixed_f32", "chosen", "rejected"), &at(&first));
        (there.dtype, there.shard_rows) = (Some(dtype), Some(4));
        run(&there).expect("an import");
        let summary = export(&export_job(&at(&first), &at(&table)), &mut |_, _| {}).expect("an export");
        assert_eq!((summary.rows, summary.columns.len()), (ROWS as u64, 3));

        let layout = ImportLayout::Pairs {
            chosen: column(&text(&table), "chosen"),
            rejected: column(&text(&table), "rejected"),
            group: None,
        };
        let mut back = job(layout, &at(&again));
        // BF16 went out as F32: what it was has to be said.
        (back.dtype, back.shard_rows) = ((dtype == Dtype::Bf16).then_some(dtype), Some(4));
        run(&back).expect("an import");
        assert_eq!(contents(&at(&first)).len(), 2);
        assert!(contents(&at(&first)) == contents(&at(&again)), "{dtype}");
    }
}

#[test]
fn exported_candidates_and_arrays_come_back_as_the_same_shards() {
    let folder = tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let text = |name: &str| at(name).display().to_string();
    let set = |file: &str, names: [&str; 2]| ImportLayout::BestOfN {
        candidates: column(file, names[0]),
        gold: column(file, names[1]),
    };
    run(&job(set(&golden("responses.npz"), ["embeddings", "rewards"]), &at("first"))).expect("an import");
    for compression in [Compression::Snappy, Compression::None] {
        let out = format!("{compression}.parquet");
        let mut there = export_job(&at("first"), &at(&out));
        there.compression = compression;
        there.columns = vec!["candidates=a".parse().expect("a column"), "gold=b".parse().expect("a column")];
        export(&there, &mut |_, _| {}).expect("an export");
        let again = at(&format!("{compression}"));
        run(&job(set(&text(&out), ["a", "b"]), &again)).expect("an import");
        assert!(contents(&at("first")) == contents(&again));
    }
    let mut there = export_job(&at("first"), &at("gold.npy"));
    there.format = ExportFormat::Npy;
    let several = export(&there, &mut |_, _| {}).expect_err("two tensors").to_string();
    assert!(several.contains("one tensor"), "{several}");
    there.columns = vec![ExportColumn { tensor: "candidates".into(), column: "candidates".into() }];
    export(&there, &mut |_, _| {}).expect("an export");
    let golden = fs::read(golden("responses.npy")).expect("a golden file");
    assert!(fs::read(at("gold.npy")).expect("an array") == golden, "numpy writes the same bytes");
}

#[test]
fn latents_are_exported_with_their_numbers() {
    let folder = tempdir().expect("a folder");
    let (shard, out) = (folder.path().join("z.safetensors"), folder.path().join("z.parquet"));
    let z = f32_bytes(&values(0, 6));
    let (candidate, seed) = ([0u8, 0, 0, 0, 255, 255, 255, 255, 7, 0, 0, 0], i64_bytes(&[5, 6, -7]));
    let tensors: Vec<NamedTensor<'_>> = vec![
        ("chosen_z".into(), Stored::F32, vec![3, 2], &z),
        ("seed".into(), Stored::I64, vec![3], &seed),
        ("chosen_candidate".into(), Stored::I32, vec![3], &candidate),
    ];
    write_tensors(&shard, &tensors, &Default::default()).expect("a shard");
    let summary = export(&export_job(&shard, &out), &mut |_, _| {}).expect("an export");
    assert_eq!(summary.columns, ["chosen_z", "seed", "chosen_candidate"]);
    let out = out.display().to_string();
    let layout = ImportLayout::Pairs {
        chosen: column(&out, "chosen_z"),
        rejected: column(&out, "chosen_z"),
        group: Some(column(&out, "chosen_candidate")),
    };
    let back = folder.path().join("back");
    run(&job(layout, &back)).expect("an import");
    let found = super::support::tensors(&shards(&back)[0]);
    assert_eq!(found["chosen"].2, z);
    assert_eq!(found["group"].2, i64_bytes(&[0, -1, 7]));
}
