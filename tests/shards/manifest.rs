//! Manifests, folder locks and the guard against overwriting.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;

use lensmith::Error;
use lensmith::data::{FolderLock, Manifest, ShardRecord, require_absent};
use serde_json::json;

use crate::support::*;

fn manifest() -> Manifest {
    Manifest {
        format: 1,
        complete: false,
        fingerprint: "00ff".into(),
        settings: json!({"sigma2": 0.1, "vae": {"latent": 16, "hidden": [64, 32]}, "seed": u64::MAX}),
        pairs: 10,
        shard_rows: 4,
        part: Some((0, 3)),
        shards: vec![ShardRecord {
            file: "a.safetensors".into(),
            rows: 4,
            bytes: 4096,
            tensors: BTreeMap::from([("chosen".to_string(), "0".repeat(32))]),
        }],
    }
}

#[test]
fn manifests_come_back() {
    let dir = folder();
    let path = dir.path().join("manifest.json");
    manifest().write(&path).unwrap();
    assert_eq!(Manifest::read(&path).unwrap(), manifest());
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.ends_with("}\n") && text.lines().count() > 10);
}

#[test]
fn what_is_no_manifest_is_refused() {
    let dir = folder();
    let path = dir.path().join("manifest.json");
    assert!(matches!(Manifest::read(&path), Err(Error::Io { .. })));
    let valid = serde_json::to_string(&manifest()).unwrap();
    for (text, piece) in [
        (String::new(), "EOF"),
        ("{".into(), "EOF"),
        ("[]".into(), "expected version 1, found null"),
        (valid.replace("\"format\":1", "\"format\":2"), "expected version 1, found 2"),
        (valid.replace("\"pairs\":10", "\"pairs\":-1"), "-1"),
        (valid.replace("\"complete\":false,", ""), "missing field `complete`"),
    ] {
        fs::write(&path, text).unwrap();
        let error = Manifest::read(&path).unwrap_err();
        assert!(matches!(error, Error::Format { format: "manifest", .. }), "{error:?}");
        assert!(error.to_string().contains(piece), "{error}");
        check_message(&error, "manifest.json");
    }
}

#[test]
fn the_first_differing_setting_is_named() {
    let manifest = manifest();
    let changed = |pointer: &str, value| {
        let mut settings = manifest.settings.clone();
        *settings.pointer_mut(pointer).unwrap() = value;
        manifest.difference(&settings)
    };
    let found = |path: &str, a: &str, b: &str| Some((path.to_string(), a.to_string(), b.to_string()));
    assert_eq!(manifest.difference(&manifest.settings), None);
    assert_eq!(changed("/sigma2", json!(0.2)), found("sigma2", "0.1", "0.2"));
    assert_eq!(changed("/vae/latent", json!("x")), found("vae.latent", "16", "\"x\""));
    assert_eq!(changed("/vae/hidden/1", json!(33)), found("vae.hidden[1]", "32", "33"));
    assert_eq!(changed("/vae/hidden", json!([64])), found("vae.hidden[1]", "32", "nothing"));
    assert_eq!(changed("/vae", json!(null)), found("vae", r#"{"hidden":[64,32],"latent":16}"#, "null"));
    let mut more = manifest.settings.clone();
    more["zeta"] = json!(1);
    assert_eq!(manifest.difference(&more), found("zeta", "nothing", "1"));
}

#[test]
fn one_writer_a_name() {
    let dir = folder();
    let lock = FolderLock::acquire(dir.path(), "run").unwrap();
    let error = FolderLock::acquire(dir.path(), "run").unwrap_err();
    assert!(matches!(error, Error::Busy { .. }), "{error:?}");
    check_message(&error, &text(dir.path()));
    FolderLock::acquire(dir.path(), "other").unwrap();
    drop(lock);
    FolderLock::acquire(dir.path(), "run").unwrap();
    assert!(matches!(FolderLock::acquire(&dir.path().join("gone"), "run"), Err(Error::Io { .. })));
}

#[test]
fn nothing_is_overwritten_unasked() {
    let dir = folder();
    let path = dir.path().join("out");
    require_absent(&path, "choose another folder").unwrap();
    symlink("nowhere", &path).unwrap();
    let error = require_absent(&path, "choose another folder").unwrap_err();
    assert!(matches!(error, Error::Exists { .. }), "{error:?}");
    check_message(&error, "out exists already: choose another folder");
}
