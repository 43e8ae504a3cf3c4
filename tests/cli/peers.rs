//! The tables of docs/performance.md are those that tools/bench_peers.py makes of benches/results.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::common::cli::{Lab, Said};

/// Runs the script of a repository, or of a copy of one.
fn bench_peers(root: &Path, option: &str) -> Said {
    let mut python = Command::new("python3");
    python.arg(root.join("tools/bench_peers.py")).arg(option).env("PYTHONDONTWRITEBYTECODE", "1");
    python.output().expect("python3 runs").into()
}

fn repository() -> PathBuf {
    env!("CARGO_MANIFEST_DIR").into()
}

/// A repository of the scripts, one result file and a page without a table.
fn with_record(record: &Value) -> Lab {
    let lab = Lab::new();
    for entry in fs::read_dir(repository().join("tools")).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|e| e == "py") {
            let name = path.file_name().expect("a name").to_str().expect("UTF-8");
            lab.put(&format!("tools/{name}"), &fs::read(&path).expect("a script"));
        }
    }
    lab.put("docs/performance.md", b"Before.\n<!-- bench:begin -->\n\n<!-- bench:end -->\nAfter.\n");
    put(&lab, record);
    lab
}

fn put(lab: &Lab, record: &Value) {
    lab.put("benches/results/a-machine.json", record.to_string().as_bytes());
}

fn record() -> Value {
    let figures =
        |rate: f64| json!({ "per_second": rate, "low": 0.9 * rate, "high": 1.1 * rate, "trials": 3 });
    let ours = |rate: f64, share: f64, by: &str| {
        let mut all = figures(rate);
        (all["share"], all["bound_by"]) = (share.into(), by.into());
        all
    };
    json!({ "peers": {
        "device": "a machine", "detail": "x86_64", "threads": 2, "command": "tools/bench_peers.py",
        "versions": { "PyTorch": "2", "candle": "0.1" }, "sizes": { "dim": 4096 },
        "operations": { "decode": {
            "unit": "embeddings", "date": "2026-11-25",
            "lensmith": { "F32": ours(310_400.0, 0.7, "flop"), "BF16": ours(620_800.0, 0.5, "write") },
            "peers": { "PyTorch F32": figures(124_300.0), "candle F32": figures(9e4), "candle BF16": figures(2e6) },
            "best": { "F32": "PyTorch F32", "BF16": "candle BF16" },
            "ratios": { "F32": 310_400.0 / 124_300.0, "BF16": 620_800.0 / 2e6 },
        } },
    } })
}

#[test]
fn the_page_shows_what_was_measured() {
    let said = bench_peers(&repository(), "--check").fine();
    assert_eq!(said.out, "");
}

#[test]
fn a_row_has_rates_ratios_and_shares() {
    let lab = with_record(&record());
    bench_peers(&lab.at(""), "--write").fine();
    let page = String::from_utf8(lab.bytes("docs/performance.md")).expect("text");
    let row = "| decode to BF16 | 310 k embeddings/s | 124 k embeddings/s (PyTorch F32) | 2.5 \
               | 621 k embeddings/s | 2.00 M embeddings/s (candle BF16) | 0.3 \
               | 70 % of arithmetic, 50 % of memory writes |";
    assert!(page.contains(&format!("\n{row}\n<!-- bench:end -->\nAfter.\n")), "{page}");
    let head = "Before.\n<!-- bench:begin -->\na machine (x86_64, 2 threads), d = 4096, 2026-11-25, \
                `tools/bench_peers.py` (PyTorch 2, candle 0.1):\n";
    assert!(page.starts_with(head), "{page}");
    bench_peers(&lab.at(""), "--check").fine();
}

/// A check that no figure could fail would be none.
#[test]
fn every_other_figure_fails_the_check() {
    let lab = with_record(&record());
    bench_peers(&lab.at(""), "--write").fine();
    let refused = |change: &dyn Fn(&mut Value), words: &str| {
        let mut other = record();
        change(&mut other["peers"]["operations"]["decode"]);
        put(&lab, &other);
        let said = bench_peers(&lab.at(""), "--check");
        assert!(said.code == Some(1) && said.out.is_empty() && said.err.contains(words), "{words}: {said:?}");
    };
    let page = "the tables of docs/performance.md are not those of benches/results";
    refused(&|o| o["lensmith"]["F32"]["share"] = 0.72.into(), page);
    refused(&|o| o["date"] = "2026-11-26".into(), page);
    let scaled = |o: &mut Value, kind: &str, factor: f64| {
        let rate = |v: &Value| json!(factor * v.as_f64().expect("a number"));
        o["lensmith"][kind]["per_second"] = rate(&o["lensmith"][kind]["per_second"]);
        o["ratios"][kind] = rate(&o["ratios"][kind]);
    };
    refused(&|o| scaled(o, "F32", 1.01), page);
    refused(&|o| scaled(o, "BF16", 0.99), page);
    refused(
        &|o| o["lensmith"]["F32"]["per_second"] = 320_000.0.into(),
        "the ratio in F32 is not that of the rates",
    );
    refused(
        &|o| o["peers"]["candle F32"] = json!({ "per_second": 2e5, "low": 1e5, "high": 3e5 }),
        "best peer in F32",
    );
    refused(&|o| o["best"]["BF16"] = Value::Null, "best peer in BF16");
    refused(&|o| o["peers"]["PyTorch F32"]["low"] = 2e5.into(), "PyTorch F32: the median is not between");
    refused(&|o| o["lensmith"]["F16"] = o["lensmith"]["F32"].clone(), "lensmith was measured in");

    put(&lab, &record());
    lab.put("docs/performance.md", b"No marks.\n");
    for option in ["--check", "--write"] {
        let said = bench_peers(&lab.at(""), option);
        assert!(said.code == Some(1) && said.err.contains("docs/performance.md is missing"), "{said:?}");
    }
}
