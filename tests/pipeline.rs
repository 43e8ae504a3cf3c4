//! The pipeline that writes pairs: the same bytes by every way, progress, and what may happen to its files meanwhile.

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::cli::{Lab, Listing, Said, assert_same_files, bare, binary, outputs, shards};
use lensmith::dtype::Dtype;
use serde_json::Value;

const VAE: &str = "--hidden 16 --latent 16 --vae-epochs 2";

fn lab(rows: usize, dim: usize) -> Lab {
    let lab = Lab::new();
    lab.pairs("seeds.safetensors", Dtype::F32, rows, dim, 1);
    lab.fine(&format!("train-vae @seeds.safetensors --out @vae.safetensors {VAE}"));
    lab
}

fn synth(options: &str, out: &str) -> String {
    format!("synth @seeds.safetensors --vae @vae.safetensors {options} --out @{out}")
}

/// Shards of several MiB whose tensors do not end at page boundaries, through the page cache and past it.
#[test]
fn direct_and_cached_writes_give_the_same_files() {
    let lab = lab(300, 333);
    for dtype in ["f32", "bf16"] {
        let options = format!("--fold 9 --dtype {dtype} --shard-rows 2000");
        lab.fine(&synth(&format!("{options} --write cached"), "cached"));
        lab.fine(&synth(&options, "direct"));
        let cached = outputs(&lab.at("cached"));
        assert!(shards(&cached).values().any(|b| b.as_ref().is_some_and(|b| b.len() > 2 << 20)));
        assert_same_files(dtype, &outputs(&lab.at("direct")), &cached);
        lab.fine("verify @direct --recompute all");
        fs::remove_dir_all(lab.at("cached"))
            .and_then(|()| fs::remove_dir_all(lab.at("direct")))
            .expect("gone");
    }
}

/// Input by reads and by maps, in more blocks than one.
#[test]
fn reads_and_maps_give_the_same_files() {
    let lab = lab(1100, 24);
    lab.fine(&synth("--fold 3 --mode residual --shard-rows 1000", "mapped"));
    lab.fine(&synth("--fold 3 --mode residual --shard-rows 1000 --io read", "read"));
    assert_same_files("read", &outputs(&lab.at("read")), &outputs(&lab.at("mapped")));
}

#[test]
fn latents_and_recipes_become_the_embeddings_that_synth_writes() {
    let lab = lab(150, 40);
    for (i, options) in
        ["--fold 8", "--fold 5 --mode residual --likelihood prior", "--per-side 3 --pairing match"]
            .into_iter()
            .enumerate()
    {
        for dtype in ["bf16", "f32"] {
            let how = format!("--dtype {dtype} --shard-rows 130");
            let name = |what: &str| format!("{what}-{i}-{dtype}");
            lab.fine(&synth(&format!("{options} {how}"), &name("made")));
            lab.fine(&synth(&format!("{options} --output latents --shard-rows 90"), &name("z")));
            lab.fine(&synth(&format!("{options} --output recipe"), &name("recipe")));
            let made = outputs(&lab.at(&name("made")));

            let said = lab
                .fine(&format!("materialize @{} {how} --out @{} --json", name("z"), name("from-z")))
                .json();
            assert_eq!(said["from"], "latents", "{said}");
            assert_same_files("from latents", &outputs(&lab.at(&name("from-z"))), &made);
            for file in ["", "/recipe.json"] {
                let to = name(if file.is_empty() { "from-folder" } else { "from-file" });
                let said = lab
                    .fine(&format!("materialize @{}{file} {how} --out @{to} --json", name("recipe")))
                    .json();
                assert_eq!(said["from"], "recipe", "{said}");
                assert_same_files("from a recipe", &outputs(&lab.at(&to)), &made);
            }
            for part in [2, 0, 1] {
                let line =
                    format!("materialize @{} {how} --part {part}/3 --out @{}", name("z"), name("parts"));
                lab.fine(&line);
            }
            assert_same_files("parts", &shards(&outputs(&lab.at(&name("parts")))), &shards(&made));
        }
    }
    // Elsewhere: seeds, VAE and latents have moved.
    fs::create_dir(lab.at("new")).expect("a folder");
    for (from, to) in [
        ("seeds.safetensors", "new/s.safetensors"),
        ("vae.safetensors", "new/v.safetensors"),
        ("z-0-bf16", "new/z"),
    ] {
        fs::rename(lab.at(from), lab.at(to)).expect("moves");
    }
    let line = "materialize @new/z --dtype bf16 --shard-rows 130 --out @new/made";
    let said = lab.run(line);
    assert!(said.code == Some(1) && said.err.contains("--vae says where it is"), "{said:?}");
    lab.fine(&format!("{line} --vae @new/v.safetensors --seeds @new/s.safetensors"));
    assert_same_files(
        "moved",
        &shards(&outputs(&lab.at("new/made"))),
        &shards(&outputs(&lab.at("made-0-bf16"))),
    );
    lab.fine("verify @new/made --recompute all");
}

#[test]
fn latents_that_are_not_the_recipes_are_refused() {
    let lab = lab(60, 24);
    lab.fine(&synth("--fold 4 --output latents --shard-rows 100", "z"));
    let refused = |what: &str, parts: &[&str]| {
        let said = lab.run("materialize @z --out @made");
        assert_eq!(said.code, Some(1), "{what}: {said:?}");
        assert!(said.err.starts_with("lensmith: ") && said.err.lines().count() == 1, "{what}: {said:?}");
        for part in parts {
            assert!(said.err.contains(part), "{what}: does not say {part:?}: {said:?}");
        }
    };
    let (recipe, shard) = (lab.bytes("z/recipe.json"), lab.bytes("z/pairs-00001.safetensors"));
    let mut other: Value = serde_json::from_slice(&recipe).expect("JSON");
    other["plan"]["seed"] = 9.into();
    lab.put("z/recipe.json", other.to_string().as_bytes());
    refused("another recipe", &["plan.seed", "differs"]);
    lab.put("z/recipe.json", &recipe);
    fs::remove_file(lab.at("z/pairs-00001.safetensors")).expect("a shard");
    refused("a shard is missing", &["pairs-00001.safetensors", "bring the shards of all parts together"]);
    // Pairs of other seeds in the place of these.
    lab.put("z/pairs-00001.safetensors", &lab.bytes("z/pairs-00000.safetensors"));
    refused("the wrong shard", &["stored latents of pair 100", "seed"]);
    lab.put("z/pairs-00001.safetensors", &shard);
    lab.fine("materialize @z --out @made");
}

#[test]
fn progress_is_told_as_it_is() {
    let lab = lab(200, 64);
    let options = "--fold 20 --shard-rows 100 --dtype f32";
    let said = lab.run(&synth(&format!("{options} --json --progress-every 0"), "made"));
    assert_eq!(said.code, Some(0), "{said:?}");
    let events: Vec<Value> =
        said.err.lines().map(|l| serde_json::from_str(l).expect("a JSON line")).collect();
    assert!(events.len() >= 40, "{} events", events.len());
    let number = |event: &Value, key: &str| event[key].as_f64().unwrap_or_else(|| panic!("{key}: {event}"));
    let mut before = (0.0, 0.0);
    for event in &events {
        assert_eq!(event["event"], "progress");
        let now = (number(event, "pairs"), number(event, "seconds"));
        assert!(now.0 >= before.0 && now.1 >= before.1 && now.0 <= number(event, "of"), "{event}");
        assert!((number(event, "pairs_per_second") * now.1 / now.0 - 1.0).abs() < 1e-6, "{event}");
        let share = number(event, "share_of_floor");
        assert!(share > 0.0 && share <= 1.0, "{event}");
        assert!(number(event, "eta_seconds") >= 0.0);
        assert!(event["bound_by"] == "disk" || event["bound_by"] == "device", "{event}");
        before = now;
    }
    assert_eq!((before.0, &events[0]["of"]), (4000.0, &4000.into()));
    let summary = said.json();
    assert_eq!((&summary["pairs"], &summary["shards"]), (&4000.into(), &40.into()), "{summary}");
    assert!(number(&summary["speed"], "pairs_per_second") > 0.0);
    let payload: u64 = 4000 * 2 * 64 * 4;
    assert!(summary["bytes"].as_u64() > Some(payload) && events[events.len() - 1]["bytes"] == payload);

    // Plain lines where nobody watches a terminal; none with --quiet; nothing to tell where all is there.
    let said = lab.run(&synth(&format!("{options} --progress-every 0"), "plain"));
    assert!(
        said.err
            .lines()
            .all(|l| l.starts_with("lensmith: ") && l.contains("pairs/s") && l.contains("bound by"))
    );
    assert!(said.err.lines().count() >= 40 && said.out.contains("bound by the"), "{said:?}");
    lab.fine(&synth(&format!("{options} --progress-every 0 --quiet"), "quiet"));
    let again = lab.fine(&synth(&format!("{options} --progress-every 0"), "made"));
    assert!(again.out.contains("nothing to do") && !again.out.contains("bound by"), "{again:?}");
    let said = lab.run(&synth(&format!("{options} --progress-every -1"), "made"));
    assert!(said.code == Some(2) && said.err.contains("--progress-every"), "{said:?}");
}

/// 4,800 pairs in 300 shards.
const LONG: &str = "--fold 8 --dtype f32 --shard-rows 16 --threads 1";

/// A long run at work: some of its shards are there.
fn at_work(lab: &Lab, out: &str, options: &str) -> Child {
    at_work_as(binary(), lab, out, options)
}

fn at_work_as(mut command: Command, lab: &Lab, out: &str, options: &str) -> Child {
    command
        .args(lab.words(&synth(&format!("{LONG} {options}"), out)))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary starts");
    let shard = lab.at(out).join("pairs-00020.safetensors");
    let start = Instant::now();
    while !shard.exists() && child.try_wait().expect("a state").is_none() {
        assert!(start.elapsed() < Duration::from_secs(60), "no shards after a minute");
        std::thread::sleep(Duration::from_micros(200));
    }
    child
}

/// The run failed with a clear error; what it left is whole.
#[track_caller]
fn assert_failed(child: Child, left: &Path, whole: &Listing, parts: &[&str]) {
    let said: Said = child.wait_with_output().expect("its end").into();
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.err.starts_with("lensmith: ") && said.err.lines().count() == 1, "{said:?}");
    for part in parts {
        assert!(said.err.contains(part), "does not say {part:?}: {said:?}");
    }
    let there = shards(&outputs(left));
    assert!((20..300).contains(&there.len()), "{} shards", there.len());
    assert!(there.iter().all(|(name, bytes)| whole.get(name) == Some(bytes)), "a shard is not whole");
}

fn long() -> (Lab, Listing) {
    let lab = lab(600, 512);
    lab.fine(&synth(LONG, "whole"));
    let whole = outputs(&lab.at("whole"));
    assert_eq!(shards(&whole).len(), 300);
    (lab, whole)
}

#[test]
fn seeds_that_change_meanwhile_end_the_run_and_lose_nothing() {
    let (lab, whole) = long();
    let seeds = lab.at("seeds.safetensors");
    lab.pairs("other.safetensors", Dtype::F32, 600, 512, 2);
    for (i, io) in ["mmap", "read"].into_iter().enumerate() {
        let folder = |what: &str| format!("{what}{i}");
        let options = format!("--io {io}");
        let kept = lab.at("kept.safetensors");
        fs::copy(&seeds, &kept).expect("a copy");

        let child = at_work(&lab, &folder("replaced"), &options);
        fs::copy(lab.at("other.safetensors"), lab.at("new.safetensors")).expect("a copy");
        fs::rename(lab.at("new.safetensors"), &seeds).expect("replaces");
        assert_failed(
            child,
            &lab.at(&folder("replaced")),
            &whole,
            &["seeds.safetensors changed", "another file"],
        );
        // The seeds of another data set are another run.
        let said = lab.run(&synth(LONG, &folder("replaced")));
        assert!(said.code == Some(1) && said.err.contains("made with other settings"), "{said:?}");

        fs::copy(&kept, &seeds).expect("back");
        let child = at_work(&lab, &folder("cut"), &options);
        let half = fs::metadata(&seeds).expect("a file").len() / 2;
        fs::File::options().write(true).open(&seeds).and_then(|f| f.set_len(half)).expect("cuts");
        assert_failed(
            child,
            &lab.at(&folder("cut")),
            &whole,
            &["seeds.safetensors changed while it was in use"],
        );

        fs::rename(&kept, &seeds).expect("back");
        for what in ["replaced", "cut"] {
            let said = lab.fine(&synth(&format!("{LONG} --json"), &folder(what))).json();
            assert!(said["resumed"].as_u64() >= Some(320), "{said}");
            assert_same_files(what, &outputs(&lab.at(&folder(what))), &whole);
        }
    }
}

#[test]
fn a_folder_that_moves_meanwhile_ends_the_run_and_goes_on_where_it_is() {
    let (lab, whole) = long();
    let child = at_work(&lab, "out", "");
    fs::rename(lab.at("out"), lab.at("elsewhere")).expect("moves");
    assert_failed(
        child,
        &lab.at("elsewhere"),
        &whole,
        &["out changed while it was in use", "moved or removed"],
    );
    assert!(!lab.at("out").exists(), "nothing is written to a folder of that name");
    let said = lab.fine(&synth(&format!("{LONG} --json"), "elsewhere")).json();
    assert!(said["resumed"].as_u64() >= Some(320), "{said}");
    assert_same_files("moved", &outputs(&lab.at("elsewhere")), &whole);
}

/// As a user whom permissions bind, which root is not.
#[test]
fn permissions_lost_meanwhile_end_the_run_and_it_goes_on_when_they_are_back() {
    let (lab, whole) = long();
    let mode = |name: &str, bits: u32| {
        fs::set_permissions(lab.at(name), fs::Permissions::from_mode(bits)).expect("permissions");
    };
    fs::create_dir(lab.at("out")).expect("a folder");
    mode("out", 0o777);
    let as_root = fs::metadata("/proc/self").expect("a process").uid() == 0;
    let user = || {
        if !as_root {
            return binary();
        }
        let mut command = bare(Command::new("setpriv"));
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(lab.at("lensmith"));
        command
    };
    if as_root {
        mode("", 0o755);
        fs::copy(env!("CARGO_BIN_EXE_lensmith"), lab.at("lensmith")).expect("a copy");
        mode("lensmith", 0o755);
        if !user().arg("--version").output().is_ok_and(|o| o.status.success()) {
            eprintln!("\n*** NOT RUN: root cannot become another user here ***\n");
            return;
        }
    }
    let child = at_work_as(user(), &lab, "out", "");
    mode("out", 0o555);
    assert_failed(child, &lab.at("out"), &whole, &["cannot create", "Permission denied"]);
    mode("out", 0o777);
    let said: Said =
        user().args(lab.words(&synth(&format!("{LONG} --json"), "out"))).output().expect("starts").into();
    assert!(said.fine().json()["resumed"].as_u64() >= Some(320));
    assert_same_files("after", &outputs(&lab.at("out")), &whole);
}
