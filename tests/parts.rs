//! A run in parts: whatever the cut and the order, their union is the whole run, and their joined manifest is its
//! manifest; and what does not go together is found and named.

mod common;

use std::fs;
use std::path::Path;

use common::cli::{Lab, Listing, Said, assert_same_files, outputs, shards};
use lensmith::data::FolderLock;
use lensmith::dtype::Dtype;
use lensmith::noise::{Purpose, Stream};
use serde_json::Value;

/// 480 pairs in 20 shards; the variance has digits that only an exact reader of numbers keeps.
const SHARDS: usize = 20;
const LINE: &str = "synth @seeds.safetensors --vae @vae.safetensors --fold 8 --sigma2 0.012345678901234567 \
    --shard-rows 24 --threads 1";

fn lab() -> Lab {
    let lab = Lab::new();
    lab.pairs("seeds.safetensors", Dtype::F32, 60, 48, 1);
    lab.fine("train-vae @seeds.safetensors --out @vae.safetensors --hidden 16 --latent 16 --vae-epochs 3");
    lab
}

fn whole(lab: &Lab, more: &str) -> Listing {
    lab.fine(&format!("{LINE} {more} --out @whole"));
    let whole = outputs(&lab.at("whole"));
    assert_eq!(shards(&whole).len(), SHARDS);
    whole
}

fn part(lab: &Lab, folder: &str, part: &str) {
    lab.fine(&format!("{LINE} --out @{folder} --part {part}"));
}

/// A folder with the three parts of a run.
fn thirds(lab: &Lab, folder: &str) {
    ["1/3", "0/3", "2/3"].iter().for_each(|p| part(lab, folder, p));
}

fn edit(lab: &Lab, name: &str, change: impl FnOnce(&mut Value)) {
    let mut value = lab.value(name);
    change(&mut value);
    lab.put(name, value.to_string().as_bytes());
}

/// A refused merge: one line that says all of `words`, and no manifest of the whole run.
#[track_caller]
fn refused(lab: &Lab, folder: &str, words: &[&str]) -> Said {
    let said = lab.run(&format!("merge-manifests @{folder}"));
    assert_eq!((said.code, said.out.as_str()), (Some(1), ""), "{said:?}");
    assert!(said.err.starts_with("lensmith: ") && said.err.lines().count() == 1, "{said:?}");
    for word in words {
        assert!(said.err.contains(word), "does not say {word:?}: {}", said.err);
    }
    assert!(!lab.at(&format!("{folder}/manifest.json")).exists(), "a manifest was written");
    said
}

#[test]
fn any_cut_in_any_order_is_the_whole_run() {
    for kind in ["", "--output latents"] {
        let lab = lab();
        let whole = whole(&lab, kind);
        let mut random = Stream::new(20_261_125, Purpose::Simulation, 1);
        for count in [1u32, 2, 3, 7, 16] {
            let folder = format!("parts-{count}");
            let mut order: Vec<u32> = (0..count).collect();
            random.shuffle(&mut order);
            // Some twice, at once or later.
            let again: Vec<u32> = order.iter().copied().filter(|_| random.below(3) == 0).collect();
            order.extend(again);
            for index in order {
                lab.fine(&format!("{LINE} {kind} --out @{folder} --part {index}/{count}"));
            }
            let said = lab.fine(&format!("merge-manifests @{folder} --json")).json();
            let parts = if count == 1 { 0 } else { count };
            assert_eq!(said["already"], count == 1, "{said}");
            assert_eq!((&said["parts"], &said["shards"]), (&parts.into(), &SHARDS.into()), "{said}");
            assert_eq!((&said["pairs"], &said["overlapping"]), (&480.into(), &0.into()), "{said}");
            let made = outputs(&lab.at(&folder));
            assert_same_files(&folder, &shards(&made), &shards(&whole));
            for name in ["manifest.json", "recipe.json"] {
                let (got, want) = (&made[Path::new(name)], &whole[Path::new(name)]);
                assert!(got == want, "{count} parts: {name} is not that of the whole run");
            }
            let said = lab.fine(&format!("merge-manifests @{folder}"));
            assert!(said.out.contains("already merged"), "{}", said.out);
            assert_same_files("merged again", &outputs(&lab.at(&folder)), &made);
            lab.fine(&format!("verify @{folder}"));
        }
    }
}

#[test]
fn different_cuts_share_shards_with_equal_records() {
    let lab = lab();
    let whole = whole(&lab, "");
    // Shards 0 to 9 and 8 to 19 in sevenths: 8 (part 3) to 9.
    part(&lab, "mixed", "0/2");
    for p in ["3/7", "4/7", "5/7", "6/7"] {
        part(&lab, "mixed", p);
    }
    let said = lab.fine("merge-manifests @mixed --json").json();
    assert_eq!((&said["parts"], &said["overlapping"]), (&5.into(), &2.into()), "{said}");
    let overlap = &said["overlaps"];
    assert_eq!(overlap.as_array().map(Vec::len), Some(1), "{said}");
    let names = ["manifest.part-0-of-2.json", "manifest.part-3-of-7.json"];
    assert_eq!((&overlap[0]["manifests"], &overlap[0]["shards"]), (&serde_json::json!(names), &2.into()));
    assert_eq!(lab.bytes("mixed/manifest.json"), lab.bytes("whole/manifest.json"));
    assert_same_files("mixed", &shards(&outputs(&lab.at("mixed"))), &shards(&whole));

    // An interrupted part does not matter where another cut has made its shards, nor does an interrupted whole run.
    edit(&lab, "mixed/manifest.part-4-of-7.json", |m| m["complete"] = false.into());
    part(&lab, "mixed", "1/2");
    edit(&lab, "mixed/manifest.json", |m| m["complete"] = false.into());
    let said = lab.fine("merge-manifests @mixed");
    assert!(said.out.contains("joined from 5 parts") && said.out.contains("shares"), "{}", said.out);
    assert_eq!(lab.bytes("mixed/manifest.json"), lab.bytes("whole/manifest.json"));

    // But a shard that two parts know by different records does.
    fs::remove_file(lab.at("mixed/manifest.json")).expect("a manifest");
    edit(&lab, "mixed/manifest.part-3-of-7.json", |m| m["shards"][0]["bytes"] = 4096.into());
    refused(
        &lab,
        "mixed",
        &[
            "manifest.part-3-of-7.json: record of pairs-00008.safetensors",
            "against manifest.part-0-of-2.json",
        ],
    );
}

/// The command that a message quotes, run as it stands.
fn advised(lab: &Lab, said: &Said, folder: &str) {
    let command = said.err.split('`').nth(1).expect("a command in quotes");
    let words: Vec<&str> = command.split_whitespace().skip(1).collect();
    assert!(command.starts_with("lensmith synth ") && words.contains(&"--part"), "{command}");
    let mut run = common::cli::binary();
    let done: Said = run.args(&words).arg("--threads").arg("1").output().expect("the binary starts").into();
    done.fine();
    assert!(command.contains(&lab.text(folder)), "{command}");
}

#[test]
fn missing_and_interrupted_parts_are_named_with_the_command_that_makes_them() {
    let lab = lab();
    let whole = whole(&lab, "");
    part(&lab, "some", "0/7");
    part(&lab, "some", "3/7");
    part(&lab, "some", "6/7");
    let said = refused(
        &lab,
        "some",
        &[
            "12 of the run's 20 shards are missing",
            "pairs-00002.safetensors to pairs-00004.safetensors of part 1/7",
            "no complete manifest.part-1-of-7.json",
            "pairs-00005.safetensors to pairs-00007.safetensors of part 2/7",
            "of part 4/7",
            "of part 5/7",
            "--part 1/7`, and with --part 2/7, --part 4/7, --part 5/7",
        ],
    );
    advised(&lab, &said, "some");
    edit(&lab, "some/manifest.part-1-of-7.json", |m| m["complete"] = false.into());
    for p in ["2/7", "4/7", "5/7"] {
        part(&lab, "some", p);
    }
    let said = refused(
        &lab,
        "some",
        &["pairs-00004.safetensors of part 1/7", "manifest.part-1-of-7.json was interrupted", "--part 1/7`"],
    );
    advised(&lab, &said, "some");
    lab.fine("merge-manifests @some");
    assert_same_files("some", &shards(&outputs(&lab.at("some"))), &shards(&whole));
    assert_eq!(lab.bytes("some/manifest.json"), lab.bytes("whole/manifest.json"));

    // A run of the whole that was interrupted, alone.
    edit(&lab, "whole/manifest.json", |m| {
        m["complete"] = false.into();
        m["shards"].as_array_mut().expect("a list").truncate(7);
    });
    let said = lab.run("merge-manifests @whole");
    assert_eq!(said.code, Some(1));
    assert!(
        said.err.contains("manifest.json was interrupted") && !said.err.contains("--part"),
        "{}",
        said.err
    );
}

#[test]
fn shards_that_are_not_as_recorded_are_named() {
    let lab = lab();
    thirds(&lab, "parts");
    let name = "parts/pairs-00009.safetensors";
    let (shard, other) = (lab.bytes(name), lab.bytes("parts/pairs-00010.safetensors"));
    let with = |at: usize, byte: u8| {
        let mut bytes = shard.clone();
        bytes[at] ^= byte;
        bytes
    };
    // By their sizes: the last shard is as long as the others, so its twin can only be told by what it holds.
    assert_eq!(shard.len(), other.len());
    let again = "run the same synth command again";
    for (what, bytes, words) in [
        ("cut", shard[..shard.len() - 1].to_vec(), ["truncated", again]),
        ("longer", [shard.as_slice(), b"x"].concat(), ["too long", again]),
        ("empty", Vec::new(), ["the file is empty", again]),
        ("header", with(100, 2), ["header", again]),
        ("another shard", other, ["record in the manifest (manifest.part-1-of-3.json)", again]),
    ] {
        lab.put(name, &bytes);
        println!("{what}");
        refused(&lab, "parts", &["pairs-00009.safetensors", words[0], words[1]]);
    }
    fs::remove_file(lab.at(name)).expect("a shard");
    let said = refused(
        &lab,
        "parts",
        &["pairs-00009.safetensors: No such file", "manifest.part-1-of-3.json lists it", "--part 1/3`"],
    );
    advised(&lab, &said, "parts");
    assert!(lab.bytes(name) == shard);
    lab.fine("merge-manifests @parts");
}

#[test]
fn parts_of_different_runs_are_named_by_the_setting() {
    let lab = lab();
    thirds(&lab, "parts");
    let moved = |from: &str, to: &str| lab.put(to, &lab.bytes(from));
    for (option, setting) in [
        ("--sigma2 0.02", "`perturbation.sigma2`"),
        ("--seed 4", "`plan.seed`"),
        ("--dtype f32", "`output.dtype`"),
        ("--mode residual", "`mode`"),
        ("--output latents", "`output.dtype`"),
        ("--shard-rows 25", "`output.shard_rows`"),
    ] {
        let line = if option.starts_with("--sigma2") || option.starts_with("--shard-rows") {
            // Once only.
            let name = option.split(' ').next().expect("a name");
            let mut words: Vec<&str> = LINE.split_whitespace().collect();
            let at = words.iter().position(|w| *w == name).expect("an option of the line");
            words.drain(at..at + 2);
            words.join(" ")
        } else {
            LINE.to_string()
        };
        lab.fine(&format!("{line} {option} --out @other --part 1/3"));
        moved("other/manifest.part-1-of-3.json", "parts/manifest.part-1-of-3.json");
        let said = refused(&lab, "parts", &["manifest.part-1-of-3.json: setting", setting]);
        assert!(said.err.contains("against manifest.part-0-of-3.json"), "{}", said.err);
        fs::remove_dir_all(lab.at("other")).expect("a folder");
    }
    // Other seeds under the same name.
    let seeds = lab.bytes("seeds.safetensors");
    lab.pairs("seeds.safetensors", Dtype::F32, 60, 48, 9);
    part(&lab, "other", "1/3");
    moved("other/manifest.part-1-of-3.json", "parts/manifest.part-1-of-3.json");
    refused(&lab, "parts", &["manifest.part-1-of-3.json: setting `seeds[0].xxh3`"]);
    lab.put("seeds.safetensors", &seeds);
    fs::remove_file(lab.at("parts/manifest.part-1-of-3.json")).expect("a manifest");
    part(&lab, "parts", "1/3");

    // The manifest of another whole run is neither joined nor replaced.
    lab.fine(&format!("{LINE} --seed 5 --out @strange"));
    moved("strange/manifest.json", "parts/manifest.json");
    let said = lab.run("merge-manifests @parts");
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.err.contains("setting `plan.seed` (against manifest.json)"), "{}", said.err);
    assert_eq!(lab.bytes("parts/manifest.json"), lab.bytes("strange/manifest.json"));
}

#[test]
fn manifests_that_contradict_themselves_are_named() {
    let lab = lab();
    thirds(&lab, "parts");
    let name = "parts/manifest.part-2-of-3.json";
    let good = lab.bytes(name);
    type Change = fn(&mut Value);
    let cases: [(Change, &str); 9] = [
        (|m| m["settings"]["plan"]["seed"] = 1.into(), "fingerprint of the settings"),
        (|m| m["fingerprint"] = "0".repeat(32).into(), "fingerprint of the settings"),
        (|m| m["pairs"] = 481.into(), "number of pairs"),
        (|m| m["shard_rows"] = 25.into(), "rows of a shard"),
        (|m| m["part"] = serde_json::json!([0, 3]), "part, by the file's name,"),
        (|m| m["part"] = Value::Null, "part, by the file's name,"),
        (|m| m["shards"].as_array_mut().expect("a list").truncate(3), "number of shards"),
        (|m| m["shards"][1]["rows"] = 23.into(), "list of shards"),
        (|m| m["shards"][1] = m["shards"][2].clone(), "list of shards"),
    ];
    for (change, word) in cases {
        edit(&lab, name, change);
        refused(&lab, "parts", &["manifest.part-2-of-3.json", word]);
        lab.put(name, &good);
    }
    lab.put(name, b"{");
    refused(&lab, "parts", &["manifest.part-2-of-3.json: not a usable manifest file"]);
    lab.put(name, &good);
    lab.fine("merge-manifests @parts");
}

#[test]
fn folders_without_parts_and_folders_at_work() {
    let lab = lab();
    fs::create_dir(lab.at("empty")).expect("a folder");
    refused(&lab, "empty", &["empty: manifests: 0, at least 1 needed"]);
    refused(&lab, "gone", &["cannot read folder", "gone", "No such file"]);
    assert_eq!(lab.run("merge-manifests").code, Some(2));
    thirds(&lab, "parts");
    let lock = FolderLock::acquire(&lab.at("parts"), "synth").expect("a lock");
    refused(&lab, "parts", &["another lensmith process is writing here"]);
    drop(lock);
    let said = lab.fine("merge-manifests @parts");
    assert!(said.out.contains("joined from 3 parts; 480 pairs in 20 shards"), "{}", said.out);

    // A recipe has no shards.
    lab.fine("synth @seeds.safetensors --vae @vae.safetensors --fold 4 --output recipe --out @recipe");
    let said = lab.fine("merge-manifests @recipe --json").json();
    assert_eq!((&said["already"], &said["shards"]), (&true.into(), &0.into()), "{said}");
}
