//! The commands from outside.

use std::path::Path;

use tempfile::tempdir;

use super::common::cli::{Said, binary};
use super::support::*;

fn lensmith(arguments: &[&str]) -> Said {
    Said::from(binary().args(arguments).output().expect("the binary runs"))
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

#[test]
fn import_verify_export() {
    let folder = tempdir().expect("a folder");
    let (pairs, table) = (text(&folder.path().join("pairs")), text(&folder.path().join("out.parquet")));
    let said = lensmith(&[
        "import",
        &golden("pandas.parquet"),
        "--chosen",
        "good",
        "--rejected",
        "bad",
        "--out",
        &pairs,
        "--json",
    ]);
    assert_eq!(said.code, Some(0), "{said:?}");
    let value = said.json();
    assert_eq!((&value["rows"], &value["dim"], &value["dtype"]), (&7.into(), &5.into(), &"F32".into()));
    assert_eq!(lensmith(&["verify", &pairs]).code, Some(0));
    let said = lensmith(&["export", &pairs, "--columns", "chosen=a,group", "--out", &table, "--json"]);
    assert_eq!(said.json()["columns"], serde_json::json!(["a", "group"]));
    let said = lensmith(&["export", &pairs, "--out", &table]);
    assert_eq!(said.code, Some(1));
    assert!(said.err.contains("--overwrite"), "{said:?}");
}

#[test]
fn layouts() {
    let folder = tempdir().expect("a folder");
    let out = |name: &str| text(&folder.path().join(name));
    let (responses, rewards) = (golden("responses.npy"), golden("rewards.npy"));
    for (name, more) in [
        ("a", vec!["--annotate", "best-worst"]),
        ("b", vec!["--annotate", "bradley-terry", "--pairs-per-prompt", "2", "--seed", "4"]),
        ("c", vec!["--best-of-n"]),
    ] {
        let out = out(name);
        let mut arguments = vec!["import", &responses, "--rewards-file", &rewards, "--out", &out];
        arguments.extend(more);
        assert_eq!(lensmith(&arguments).code, Some(0), "{arguments:?}");
        assert_eq!(lensmith(&["verify", &out]).code, Some(0));
    }
    let (chosen, rejected) = (golden("chosen.npy"), golden("rejected.npy"));
    let said = lensmith(&[
        "import",
        "--chosen-file",
        &chosen,
        "--rejected-file",
        &rejected,
        "--dtype",
        "bf16",
        "--out",
        &out("d"),
    ]);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_eq!(lensmith(&["import", &chosen, "--plain", "--out", &out("e")]).code, Some(0));
}

#[test]
fn wrong_usage() {
    let folder = tempdir().expect("a folder");
    let out = text(&folder.path().join("out"));
    let (chosen, parquet) = (golden("chosen.npy"), golden("pandas.parquet"));
    for (arguments, part) in [
        (vec![chosen.as_str()], "--chosen-file"),
        (vec![], "DATA"),
        (vec![&parquet, "--dtype", "f8"], "f8"),
        (vec![&parquet, "--annotate", "worst"], "best-worst"),
        (vec![&parquet, "--plain", "--best-of-n"], "--best-of-n"),
        (vec![&parquet, "--rewards", "r"], "--annotate"),
        (vec![&parquet, "--pairs-per-prompt", "2"], "--annotate"),
        (vec![&chosen, "--best-of-n"], "--rewards-file"),
        (vec![&parquet, "--shard-rows", "0", "--chosen", "good", "--rejected", "bad"], "--shard-rows"),
    ] {
        let said = lensmith(&[vec!["import", "--out", &out], arguments.clone()].concat());
        assert_eq!(said.code, Some(2), "{arguments:?}: {said:?}");
        assert!(said.err.contains(part), "{arguments:?}: {said:?}");
    }
    let said = lensmith(&["import", &parquet, "--out", &out]);
    assert_eq!(said.code, Some(1));
    assert!(said.err.contains("`good`"), "the columns that are there: {said:?}");
    assert_eq!(lensmith(&["export", &chosen, "--out", &text(&folder.path().join("a.csv"))]).code, Some(2));
}
