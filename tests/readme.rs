//! The tables of docs/performance.md say what the recorded results say: they are made again from
//! `benches/results/*.json`, as `tools/bench_peers.py` makes them, and compared letter by letter.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::Value;

const MARKS: [&str; 2] = ["<!-- bench:begin -->\n", "\n<!-- bench:end -->"];

/// Names of the operations in words, in the order of the table.
const OPERATIONS: [(&str, &str); 11] = [
    ("decode", "decode to BF16"),
    ("encode", "encode from BF16"),
    ("score", "score BF16 embeddings"),
    ("decode-score", "synthesise + score, against decode + score"),
    ("folded", "synthesise + score, folded by both"),
    ("normals", "normals, one core"),
    ("vae-epoch", "VAE epoch"),
    ("reward-epoch", "reward epoch"),
    ("run", "whole run"),
    ("synth", "synthesise pairs to host memory"),
    ("synth-disk", "synthesise pairs to disk"),
];

/// Operands of products.
const KINDS: [&str; 2] = ["F32", "BF16"];

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text"))
}

fn rate(unit: &str, per_second: f64) -> String {
    match unit {
        "runs" => format!("{:.2} s", 1.0 / per_second),
        _ => format!("{} {unit}/s", lensmith::bench::rate(per_second)),
    }
}

fn bound(resource: &str) -> &str {
    match resource {
        "flop" => "arithmetic",
        "read" => "memory reads",
        "write" => "memory writes",
        "copy" => "memory",
        other => other,
    }
}

/// The table of one file.
fn table(peers: &Value) -> String {
    let operations = peers["operations"].as_object().expect("operations");
    let dates: BTreeSet<&str> = operations.values().map(|o| text(&o["date"])).collect();
    let (first, last) = (dates.first().expect("an operation"), dates.last().expect("an operation"));
    let when = if first == last { first.to_string() } else { format!("{first} to {last}") };
    let mut versions: Vec<String> = peers["versions"]
        .as_object()
        .expect("versions")
        .iter()
        .map(|(name, version)| format!("{name} {}", text(version)))
        .collect();
    versions.sort();
    let mut lines = vec![
        format!(
            "{} ({}, {} threads), d = {}, {when}, `{}` ({}):",
            text(&peers["device"]),
            text(&peers["detail"]),
            peers["threads"],
            peers["sizes"]["dim"],
            text(&peers["command"]),
            versions.join(", "),
        ),
        String::new(),
        "| what | lensmith F32 | best peer in F32 | ratio | lensmith BF16 | best peer in BF16 | ratio | shares of the limit |"
            .into(),
        "|---|---:|---:|---:|---:|---:|---:|---:|".into(),
    ];
    let named = OPERATIONS.iter().filter(|(name, _)| operations.contains_key(*name));
    assert_eq!(named.clone().count(), operations.len(), "an operation without a name");
    for (name, words) in named {
        let o = &operations[*name];
        let unit = text(&o["unit"]);
        let (mut cells, mut shares) = (vec![words.to_string()], Vec::new());
        for kind in KINDS {
            let ours = o["lensmith"].get(kind);
            let per_second = ours.map(|ours| number(&ours["per_second"]));
            cells.push(per_second.map(|r| rate(unit, r)).unwrap_or_default());
            match o["best"].get(kind).map(text) {
                Some(best) => {
                    let theirs = number(&o["peers"][best]["per_second"]);
                    cells.push(format!("{} ({best})", rate(unit, theirs)));
                    cells.push(format!("{:.1}", per_second.expect("a rate beside a peer's") / theirs));
                }
                None => cells.extend([String::new(), String::new()]),
            }
            if let Some(share) = ours.and_then(|ours| ours.get("share")) {
                let by = bound(text(&ours.expect("a share of a rate")["bound_by"]));
                shares.push(format!("{:.0} % of {by}", 100.0 * number(share)));
            }
        }
        cells.push(shares.join(", "));
        lines.push(format!("| {} |", cells.join(" | ")));
    }
    lines.join("\n")
}

/// What the result files hold about peers, by file name.
fn results() -> Vec<Value> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/results");
    let mut paths: Vec<_> = match fs::read_dir(&folder) {
        Ok(entries) => entries.map(|e| e.expect("an entry").path()).collect(),
        // Nothing was measured yet.
        Err(_) => Vec::new(),
    };
    paths.retain(|p| p.extension().is_some_and(|e| e == "json"));
    paths.sort();
    let read = |path| {
        let file: Value = serde_json::from_str(&fs::read_to_string(path).expect("readable")).expect("JSON");
        file.get("peers").cloned()
    };
    paths.into_iter().filter_map(read).collect()
}

#[test]
fn the_table_is_that_of_the_results() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/performance.md");
    let page = fs::read_to_string(page).expect("docs/performance.md");
    let (_, rest) = page.split_once(MARKS[0]).expect("the first mark");
    let (there, _) = rest.split_once(MARKS[1]).expect("the second mark");
    let made: Vec<String> = results().iter().map(table).collect();
    assert_eq!(there, made.join("\n\n"), "tools/bench_peers.py --readme writes the table");
}

#[test]
fn records_agree_with_themselves() {
    for peers in results() {
        for (name, o) in peers["operations"].as_object().expect("operations") {
            let all = o["peers"].as_object().expect("peers");
            let ours = o["lensmith"].as_object().expect("lensmith's figures");
            assert!(!ours.is_empty() && ours.keys().all(|kind| KINDS.contains(&kind.as_str())), "{name}");
            for (peer, figures) in all.iter().chain(ours) {
                let [low, middle, high] = ["low", "per_second", "high"].map(|f| number(&figures[f]));
                assert!(0.0 < low && low <= middle && middle <= high && high.is_finite(), "{name}, {peer}");
            }
            for kind in KINDS {
                let of_kind = all.iter().filter(|(p, _)| p.contains("BF16") == (kind == "BF16"));
                let best = of_kind.map(|(_, f)| number(&f["per_second"])).reduce(f64::max);
                let named = o["best"].get(kind).map(|b| number(&all[text(b)]["per_second"]));
                assert_eq!(named, best, "{name}: best in {kind}");
                if let Some(best) = best {
                    let ratio = number(&o["ratios"][kind]) * best / number(&ours[kind]["per_second"]);
                    assert!((ratio - 1.0).abs() < 1e-9, "{name}: ratio to {kind}");
                }
            }
        }
    }
}

/// A check that no figure could fail would be none.
#[test]
fn another_figure_makes_another_table() {
    let record = |ours: f64, theirs: f64, share: f64| {
        serde_json::json!({
            "device": "a machine", "detail": "x86_64", "threads": 2, "command": "tools/bench_peers.py",
            "versions": { "PyTorch": "2", "candle": "0.1" }, "sizes": { "dim": 4096 },
            "operations": { "decode": {
                "unit": "embeddings", "date": "2026-11-25", "best": { "F32": "PyTorch F32", "BF16": "candle BF16" },
                "lensmith": {
                    "F32": { "per_second": ours, "share": share, "bound_by": "flop" },
                    "BF16": { "per_second": 2.0 * ours, "share": 0.5, "bound_by": "write" },
                },
                "peers": { "PyTorch F32": { "per_second": theirs }, "candle BF16": { "per_second": 2e6 } },
            } },
        })
    };
    let base = table(&record(310_400.0, 124_300.0, 0.7));
    assert_eq!(
        base.lines().last().unwrap(),
        "| decode to BF16 | 310 k embeddings/s | 124 k embeddings/s (PyTorch F32) | 2.5 \
         | 621 k embeddings/s | 2.00 M embeddings/s (candle BF16) | 0.3 | 70 % of arithmetic, 50 % of memory writes |"
    );
    for other in [
        record(311_600.0, 124_300.0, 0.7),
        record(310_400.0, 125_900.0, 0.7),
        record(310_400.0, 124_300.0, 0.72),
    ] {
        assert_ne!(table(&other), base);
    }
}
