//! The folder of an import: what it replaces, what it refuses, and what an interruption leaves.

use std::fs;

use lensmith::Error;
use lensmith::convert::{ImportLayout, is_import, verify_import};
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
    let error = run(&job).expect_err("it is complete");
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

#[test]
fn an_interrupted_import_ends_in_the_same_bytes() {
    let folder = tempdir().expect("a folder");
    let mut job = job(pairs_of("file.arrow", "chosen", "rejected"), folder.path());
    job.shard_rows = Some(2);
    run(&job).expect("an import");
    let whole = contents(folder.path());
    // As a kill leaves it: two shards, a part of the third, and a manifest that is not complete.
    let path = folder.path().join("manifest.json");
    let mut manifest = Manifest::read(&path).expect("a manifest");
    (manifest.complete, manifest.shards) = (false, Vec::new());
    manifest.write(&path).expect("a manifest");
    for shard in &shards(folder.path())[2..] {
        fs::remove_file(shard).expect("a shard");
    }
    fs::write(folder.path().join(".pairs-00002.safetensors.tmp"), "part").expect("a file");
    let error = verify_import(folder.path(), Io::Mmap, &mut |_, _| {}).expect_err("not complete");
    assert!(error.to_string().contains("interrupted"), "{error}");
    // Another import may not go on with it.
    let other = super::support::job(pairs_of("file.arrow", "rejected", "chosen"), folder.path());
    assert!(matches!(run(&other), Err(Error::Exists { .. })));
    run(&job).expect("an import");
    assert!(contents(folder.path()) == whole);
    assert!(!folder.path().join(".pairs-00002.safetensors.tmp").exists());
    verify_import(folder.path(), Io::Mmap, &mut |_, _| {}).expect("in order");
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
