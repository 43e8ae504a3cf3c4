//! `lensmith bench`: every operation has a rate, shares follow from the limits, pictures show what was measured, and
//! nothing stays on the disk.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;

use crate::common::cli::Lab;

const SMALL: &str = "bench --dim 64 --rows 256 --repeat 1 --seeds 20 --fold 4 --hidden 16 --reward-hidden 16";

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// Names in the folder.
fn names(lab: &Lab) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(lab.at(""))
        .expect("a folder")
        .map(|e| e.expect("an entry").file_name().into_string().expect("UTF-8"))
        .collect();
    names.sort();
    names
}

#[test]
fn every_operation_is_held_against_the_limits() {
    let lab = Lab::new();
    let report = lab.fine(&format!("{SMALL} --folder @ --plot @roof.svg --json")).json();
    assert_eq!(names(&lab), ["roof.svg"], "what was written to measure the disk is still there");

    let limits = report["limits"].as_array().expect("limits");
    let highest = |resource: &Value| {
        let of = limits.iter().filter(|l| l["resource"] == *resource).map(|l| number(&l["per_second"]));
        of.reduce(f64::max)
    };
    for resource in ["flop", "write", "copy", "normals", "disk"] {
        assert!(
            highest(&resource.into()).is_some_and(|l| l > 1e5 && l.is_finite()),
            "{resource}: {limits:?}"
        );
    }
    let entries = report["entries"].as_array().expect("entries");
    for operation in [
        "normals",
        "encode",
        "select",
        "perturb",
        "decode",
        "score",
        "folded",
        "vae-epoch",
        "reward-epoch",
        "synthesise",
        "disk",
        "verify",
        "run",
    ] {
        assert!(entries.iter().any(|e| e["operation"] == operation), "{operation} was not measured");
    }
    for entry in entries {
        let rate = number(&entry["per_second"]);
        let [slowest, fastest] = [0, 1].map(|i| number(&entry["spread"][i]));
        assert!(0.0 < slowest && slowest <= rate && rate <= fastest && fastest.is_finite(), "{entry}");
        let needs = entry["needs"].as_array().expect("needs").iter();
        let allowed = needs.map(|n| highest(&n["resource"]).expect("a limit") / number(&n["amount"]));
        let share = rate / allowed.reduce(f64::min).expect("a need");
        assert!((number(&entry["share"]) / share - 1.0).abs() < 1e-9, "{entry}: not {share}");
    }
    let run = entries.iter().find(|e| e["operation"] == "run").expect("the whole run");
    for loss in ["vae_loss", "first_reward_loss", "reward_loss"] {
        assert!(number(&run["details"][loss]).is_finite(), "{run}");
    }
    assert_eq!(run["details"]["pairs"], 80);

    let svg = fs::read_to_string(lab.at("roof.svg")).expect("a picture");
    assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{svg}");
    for words in ["FLOP per byte", "GFLOP per second", "encode from BF16", "decode to F32", "GB/s"] {
        assert!(svg.contains(words), "{words} is not in the picture");
    }
    assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
}

#[test]
fn one_operation_alone_and_without_limits() {
    let lab = Lab::new();
    // Quiet: others may well use the machine while tests run.
    let said = lab.fine(&format!("{SMALL} --only decode --no-limits --quiet"));
    for words in ["decode to BF16", "decode to F16", "decode to F32", "embeddings/s"] {
        assert!(said.out.contains(words), "{words}: {}", said.out);
    }
    // Others who use the machine are told of last.
    let table = said.out.split("warning:").next().expect("a table");
    assert!(!table.contains("encode") && !table.contains(" % of"), "{}", said.out);
    let report = lab.fine(&format!("{SMALL} --only decode --no-limits --json")).json();
    assert_eq!(report["limits"].as_array().map(Vec::len), Some(0));
    assert!(report["entries"].as_array().expect("entries").iter().all(|e| e["share"].is_null()));
    assert!(names(&lab).is_empty());
}

#[test]
fn the_whole_run_takes_pairs_from_a_file() {
    let lab = Lab::new();
    lab.pairs("pairs.safetensors", lensmith::dtype::Dtype::Bf16, 30, 24, 1);
    let line = format!("{SMALL} --only run --no-limits --pairs @pairs.safetensors --json");
    let details = |report: Value| report["entries"][0]["details"].clone();
    let (one, two) = (details(lab.fine(&line).json()), details(lab.fine(&line).json()));
    assert_eq!(one["seeds"], 30);
    for loss in ["vae_loss", "reward_loss"] {
        assert_eq!(one[loss], two[loss], "the same seed, another {loss}");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn others_on_the_machine_are_named() {
    let lab = Lab::new();
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        let said = lab.run(&format!("{SMALL} --only verify --no-limits --folder @"));
        let report = lab.run(&format!("{SMALL} --only verify --no-limits --folder @ --json"));
        done.store(true, Ordering::Relaxed);
        let warned = |text: &str, verb: &str| text.contains(&format!("warning: other processes {verb} "));
        assert!(said.code == Some(0) && warned(&said.err, "take") && warned(&said.out, "took"), "{said:?}");
        assert!(said.err.lines().count() == 1 && said.err.starts_with("lensmith: "), "{said:?}");
        assert!(number(&report.fine().json()["others"]) > 0.05);
    });
}
