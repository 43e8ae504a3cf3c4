//! The folder of an import: what it replaces, what it refuses, and what an interruption leaves.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use lensmith::Error;
use lensmith::convert::{Annotation, ImportLayout, is_import, verify_import};
use lensmith::data::{Io, Manifest};
use tempfile::tempdir;

use super::support::*;

#[test]
fn what_is_complete_is_replaced_only_on_demand() {
    let folder = tempdir().expect("a folder");
    let mut job = job(pairs_of("file.arrow", "chosen", "rejected"), folder.path());
    run(&job).expect("an import");
    let first = contents(folder.path());
    assert!(is_import(folder.path()));
    assert_eq!(verify_import(folder.path(), Io::Read, &mut |_, _| {}).expect("in order").rows, ROWS as u64);
    let shard = &shards(folder.path())[0];
    let before = fs::metadata(shard).and_then(|meta| meta.modified()).expect("a shard");
    run(&job).expect("nothing is left to do");
    assert!(contents(folder.path()) == first);
    assert_eq!(fs::metadata(shard).and_then(|meta| meta.modified()).expect("a shard"), before);
    job.shard_rows = Some(2);
    let error = run(&job).expect_err("another import is there");
    assert!(matches!(error, Error::Exists { .. }) && error.to_string().contains("`overwrite`"), "{error}");
    assert!(contents(folder.path()) == first);
    // Fewer and larger shards: none of the old ones may be left.
    (job.overwrite, job.shard_rows) = (true, Some(2));
    run(&job).expect("an import");
    assert_eq!(contents(folder.path()).len(), 4);
    job.shard_rows = None;
    run(&job).expect("an import");
    assert!(contents(folder.path()) == first);
}

#[test]
fn other_peoples_shards_are_not_touched() {
    let folder = tempdir().expect("a folder");
    fs::write(folder.path().join("pairs-00007.safetensors"), "mine").expect("a file");
    fs::write(folder.path().join("notes.txt"), "mine too").expect("a file");
    let mut job = job(pairs_of("file.arrow", "chosen", "rejected"), folder.path());
    assert!(matches!(run(&job), Err(Error::Exists { .. })));
    job.overwrite = true;
    let error = run(&job).expect_err("nothing shows that it is ours");
    assert!(matches!(error, Error::Exists { .. }) && error.to_string().contains("pairs-00007"), "{error}");
    fs::rename(folder.path().join("pairs-00007.safetensors"), folder.path().join("mine")).expect("moved");
    run(&job).expect("an import");
    assert_eq!(contents(folder.path()).len(), 1);
    assert!(folder.path().join("notes.txt").exists() && folder.path().join("mine").exists());
}

#[test]
fn sources_are_never_removed() {
    let folder = tempdir().expect("a folder");
    run(&job(pairs_of("file.arrow", "chosen", "rejected"), folder.path())).expect("an import");
    let own = folder.path().display().to_string();
    let layout = ImportLayout::Pairs {
        chosen: column(&own, "rejected"),
        rejected: column(&own, "chosen"),
        group: None,
    };
    let mut job = job(layout, folder.path());
    job.overwrite = true;
    let error = run(&job).expect_err("it reads what it would remove");
    assert!(matches!(error, Error::InvalidArgument { .. }), "{error}");
    assert_eq!(contents(folder.path()).len(), 1);
}

/// As a kill leaves it: the first two shards, with or without their records, a part of the third, and a manifest that is
/// not complete.
fn interrupt(folder: &Path, recorded: bool) {
    let path = folder.join("manifest.json");
    let mut manifest = Manifest::read(&path).expect("a manifest");
    manifest.complete = false;
    manifest.shards.truncate(if recorded { 2 } else { 0 });
    manifest.write(&path).expect("a manifest");
    let shards = shards(folder);
    let name = shards[0].file_name().expect("a name").to_string_lossy().into_owned();
    for shard in &shards[2..] {
        fs::remove_file(shard).expect("a shard");
    }
    fs::write(folder.join(format!(".{}.tmp", name.replace("00000", "00002"))), "part").expect("a file");
}

/// What tells whether a file was written again.
fn written(path: &Path) -> (u64, i64, i64) {
    let meta = fs::metadata(path).expect("a shard");
    (meta.ino(), meta.ctime(), meta.ctime_nsec())
}

#[test]
fn an_interrupted_import_goes_on_to_the_same_bytes() {
    let responses = |rule| ImportLayout::Annotated {
        embeddings: column(&golden("responses.npz"), "embeddings"),
        rewards: column(&golden("responses.npz"), "rewards"),
        rule,
        pairs_per_prompt: None,
        seed: 3,
    };
    let layouts = [
        pairs_of("file.arrow", "chosen", "rejected"),
        pairs_of("stream.arrow", "chosen", "rejected"),
        pairs_of("large_lists_lz4.feather", "chosen", "rejected"),
        pairs_of("pandas.parquet", "good", "bad"),
        pairs_of("stored.npz", "chosen", "rejected"),
        pairs_of("deflated.npz", "chosen", "rejected"),
        ImportLayout::Embeddings { embeddings: column(&golden("chosen.npy"), "") },
        ImportLayout::Embeddings { embeddings: column(&golden("chosen_f64_big_endian.npy"), "") },
        responses(Annotation::AllPairs),
        responses(Annotation::BestWorst),
    ];
    for layout in layouts {
        let folder = tempdir().expect("a folder");
        let mut job = job(layout, folder.path());
        // Of which the second ends in the middle of a batch, a page, or the pairs of a prompt.
        job.shard_rows = Some(if matches!(job.layout, ImportLayout::Annotated { .. }) { 1 } else { 2 });
        run(&job).expect("an import");
        let whole = contents(folder.path());
        for recorded in [false, true] {
            interrupt(folder.path(), recorded);
            let error = verify_import(folder.path(), Io::Mmap, &mut |_, _| {}).expect_err("not complete");
            assert!(error.to_string().contains("interrupted"), "{error}");
            // Another import may not go on with it.
            let other = super::support::job(pairs_of("file.arrow", "rejected", "chosen"), folder.path());
            assert!(matches!(run(&other), Err(Error::Exists { .. })));
            let first = &shards(folder.path())[0];
            let before = written(first);
            run(&job).expect("an import");
            assert!(contents(folder.path()) == whole, "{:?}", job.layout);
            assert_eq!(written(first) == before, recorded, "what is finished is not made again");
            let names = fs::read_dir(folder.path()).expect("a folder");
            let names =
                names.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned());
            let left: Vec<String> = names.filter(|name| name.ends_with(".tmp")).collect();
            assert!(left.is_empty(), "{left:?} of {:?}", job.layout);
            verify_import(folder.path(), Io::Mmap, &mut |_, _| {}).expect("in order");
        }
    }
}

#[test]
fn an_import_does_not_go_on_with_other_data() {
    let folder = tempdir().expect("a folder");
    let source = folder.path().join("chosen.npy");
    fs::copy(golden("chosen.npy"), &source).expect("a copy");
    let out = folder.path().join("out");
    let mut job =
        job(ImportLayout::Embeddings { embeddings: column(source.to_str().expect("UTF-8"), "") }, &out);
    job.shard_rows = Some(2);
    run(&job).expect("an import");
    interrupt(&out, true);
    let mut bytes = fs::read(&source).expect("it is there");
    bytes.iter_mut().rev().take(4).for_each(|byte| *byte = 0);
    fs::write(&source, bytes).expect("it is written to");
    let error = run(&job).expect_err("half of the shards would hold what was there before").to_string();
    assert!(error.contains("modified"), "{error}");
}

#[test]
fn a_changed_byte_is_found() {
    let folder = tempdir().expect("a folder");
    run(&job(pairs_of("file.arrow", "chosen", "rejected"), folder.path())).expect("an import");
    let shard = &shards(folder.path())[0];
    let mut bytes = fs::read(shard).expect("a shard");
    *bytes.last_mut().expect("a byte") ^= 1;
    fs::write(shard, bytes).expect("a shard");
    let error = verify_import(folder.path(), Io::Mmap, &mut |_, _| {}).expect_err("a byte differs");
    assert!(matches!(error, Error::Mismatch { .. }), "{error}");
}
