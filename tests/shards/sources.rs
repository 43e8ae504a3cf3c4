//! Files, folders and patterns: which files they stand for, in which order, and what is refused.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;

use lensmith::Error;
use lensmith::data::{FileBytes, Io, PairSet};

use crate::support::*;

fn names(sources: &[String]) -> Vec<String> {
    let set = PairSet::open(sources, &options(Io::Read)).unwrap();
    set.files().iter().map(|f| f.path.file_name().unwrap().to_str().unwrap().to_string()).collect()
}

fn refused(sources: &[String]) -> Error {
    let [a, b] = BOTH.map(|io| PairSet::open(sources, &options(io)).unwrap_err());
    assert_eq!(a.to_string(), b.to_string());
    a
}

fn join(dir: &Path, name: &str) -> String {
    text(&dir.join(name))
}

#[test]
fn folders_and_patterns_go_by_name() {
    let dir = folder();
    for (name, seed) in [("b.safetensors", 1), ("a.safetensors", 2), ("c10.safetensors", 3)] {
        put(dir.path(), name, &pairs(2, 3, seed));
    }
    for name in [".a.safetensors", ".a.safetensors.tmp", "d.safetensors.tmp", "manifest.json", "notes"] {
        put(dir.path(), name, b"not a shard");
    }
    fs::create_dir(dir.path().join("deeper")).unwrap();
    put(&dir.path().join("deeper"), "z.safetensors", &pairs(2, 3, 4));

    let all = ["a.safetensors", "b.safetensors", "c10.safetensors"];
    assert_eq!(names(&[text(dir.path())]), all);
    assert_eq!(names(&[join(dir.path(), "*.safetensors*")]), all);
    assert_eq!(names(&[join(dir.path(), "?.safetensors")]), all[..2]);
    assert_eq!(names(&[join(dir.path(), "[bc]*.safetensors")]), all[1..]);
    assert_eq!(names(&[join(dir.path(), "deep*")]), ["z.safetensors"]);
    assert_eq!(
        names(&[join(dir.path(), "b.safetensors"), join(dir.path(), "a*")]),
        ["b.safetensors", all[0]]
    );
}

#[test]
fn a_path_that_exists_is_no_pattern() {
    let dir = folder();
    put(dir.path(), "run[1].safetensors", &pairs(2, 3, 1));
    put(dir.path(), "run1.safetensors", &pairs(4, 3, 1));
    assert_eq!(names(&[join(dir.path(), "run[1].safetensors")]), ["run[1].safetensors"]);
}

#[test]
fn nothing_to_read() {
    let dir = folder();
    assert!(matches!(refused(&[]), Error::TooFew { .. }));

    let error = refused(&[text(dir.path())]);
    assert!(matches!(error, Error::TooFew { needed: 1, found: 0, .. }), "{error:?}");
    check_message(&error, &text(dir.path()));

    let pattern = join(dir.path(), "*.safetensors");
    let error = refused(std::slice::from_ref(&pattern));
    assert!(matches!(error, Error::TooFew { .. }), "{error:?}");
    check_message(&error, &pattern);

    let error = refused(&[join(dir.path(), "gone.safetensors")]);
    assert!(matches!(error, Error::Io { action: "open", .. }), "{error:?}");
    check_message(&error, "gone.safetensors");

    let error = refused(&[join(dir.path(), "a[.safetensors")]);
    assert!(matches!(error, Error::InvalidArgument { .. }), "{error:?}");
    check_message(&error, "a[.safetensors");
}

#[test]
fn a_file_given_twice_is_refused() {
    let dir = folder();
    let path = put(dir.path(), "a.safetensors", &pairs(2, 3, 1));
    symlink(&path, dir.path().join("b.safetensors")).unwrap();
    let file = text(&path);
    let roundabout = join(dir.path(), "./a.safetensors");
    for sources in [
        vec![file.clone(), file.clone()],
        vec![file.clone(), roundabout],
        vec![file.clone(), join(dir.path(), "a*")],
        vec![text(dir.path())],
    ] {
        let error = refused(&sources);
        assert!(matches!(error, Error::Shape { .. }), "{error:?}");
        check_message(&error, ".safetensors: times it is given as a source");
    }
}

#[test]
fn only_regular_files_are_opened() {
    let dir = folder();
    fs::create_dir(dir.path().join("x.safetensors")).unwrap();
    let error = refused(&[text(dir.path())]);
    assert!(matches!(error, Error::Format { .. }), "{error:?}");
    check_message(&error, "x.safetensors: not a usable safetensors file: it is a folder");
    // Named itself, it is a folder without shards.
    assert!(matches!(refused(&[join(dir.path(), "x.safetensors")]), Error::TooFew { .. }));
    assert!(FileBytes::open(dir.path(), Io::Read).is_err());

    let dir = folder();
    let _socket = UnixListener::bind(dir.path().join("s.safetensors")).unwrap();
    let error = refused(&[text(dir.path())]);
    assert!(matches!(error, Error::Format { .. }), "{error:?}");
    check_message(&error, "s.safetensors: not a usable safetensors file: it is not a regular file");

    let dir = folder();
    symlink(dir.path().join("gone"), dir.path().join("l.safetensors")).unwrap();
    let error = refused(&[text(dir.path())]);
    assert!(matches!(error, Error::Io { .. }), "{error:?}");
    check_message(&error, "l.safetensors");
}

#[test]
fn a_file_without_permission_is_named() {
    let dir = folder();
    let path = put(dir.path(), "a.safetensors", &pairs(2, 3, 1));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
    if fs::File::open(&path).is_ok() {
        eprintln!("skipped: this user may read every file");
        return;
    }
    let error = refused(&[text(&path)]);
    assert!(matches!(error, Error::Io { action: "open", .. }), "{error:?}");
    check_message(&error, "a.safetensors");
}

#[test]
fn a_group_in_some_files_only_is_refused() {
    let dir = folder();
    let side = || f32_bytes(&values(2, 1));
    let tensors = [("chosen", "F32", &[2, 1][..], side()), ("rejected", "F32", &[2, 1][..], side())];
    let group = ("group", "I64", &[2][..], i64_bytes(&[1, 2]));
    put(dir.path(), "a.safetensors", &file(&[&tensors[..], &[group]].concat()));
    put(dir.path(), "b.safetensors", &file(&tensors));
    let error = refused(&[text(dir.path())]);
    assert!(matches!(&error, Error::MissingTensor { tensor, .. } if tensor == "group"), "{error:?}");
    check_message(&error, "b.safetensors");
    // In the second file only, it would be ignored for the first: refused as well.
    let reversed = [join(dir.path(), "b.safetensors"), join(dir.path(), "a.safetensors")];
    check_message(&refused(&reversed), "b.safetensors");
}
