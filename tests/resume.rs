//! A run that is killed at any moment and started again ends with the bytes of a run that was left alone.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime};

use common::cli::{Lab, Listing, assert_same_files, binary, listing, outputs, shards};
use lensmith::dtype::Dtype;
use lensmith::noise::{Purpose, Stream};

const SEEDS: usize = 600;
const DIM: usize = 512;
/// 4,800 pairs in 300 shards.
const SHARDS: usize = 300;
const LINE: &str = "synth @seeds.safetensors --vae @vae.safetensors --fold 8 --dtype f32 --shard-rows 16 --threads 2 --out @";
const KILLS: usize = 10;
const SIGKILL: i32 = 9;

fn lab() -> Lab {
    let lab = Lab::new();
    lab.pairs("seeds.safetensors", Dtype::F32, SEEDS, DIM, 1);
    lab.fine("train-vae @seeds.safetensors --out @vae.safetensors --hidden 16 --latent 16 --vae-epochs 3");
    lab
}

/// An undisturbed run: its files, and how long it took.
fn undisturbed(lab: &Lab) -> (Listing, Duration) {
    let start = Instant::now();
    lab.fine(&format!("{LINE}whole"));
    let took = start.elapsed();
    let whole = outputs(&lab.at("whole"));
    assert_eq!(shards(&whole).len(), SHARDS);
    (whole, took)
}

/// When to kill.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// So long after the start.
    After(Duration),
    /// So long after a shard got its name.
    Shard(u32, Duration),
}

/// Starts the run into `folder` and kills it. Gives whether the kill came while it was at work.
fn kill(lab: &Lab, folder: &str, moment: Moment) -> bool {
    let mut command = binary();
    command.args(lab.words(&format!("{LINE}{folder}"))).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary starts");
    match moment {
        Moment::After(delay) => std::thread::sleep(delay),
        Moment::Shard(index, delay) => {
            let shard = lab.at(folder).join(format!("pairs-{index:05}.safetensors"));
            while !shard.exists() && child.try_wait().expect("a state").is_none() {
                std::thread::sleep(Duration::from_micros(200));
            }
            std::thread::sleep(delay);
        }
    }
    child.kill().expect("a signal");
    let output = child.wait_with_output().expect("the end");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "before the kill");
    match output.status.signal() {
        Some(signal) => {
            assert_eq!(signal, SIGKILL);
            true
        }
        None => {
            assert_eq!(output.status.code(), Some(0));
            false
        }
    }
}

/// Whole shards are there under their names: those that are have the bytes of the undisturbed run.
#[track_caller]
fn assert_whole_shards(what: &str, there: &Listing, whole: &Listing) -> usize {
    let done = shards(there);
    for (path, bytes) in &done {
        assert!(bytes == &whole[path], "{what}: {} is not the whole shard", path.display());
    }
    done.len()
}

#[test]
fn killed_at_ten_random_moments_and_run_again() {
    let lab = lab();
    let (whole, took) = undisturbed(&lab);
    let mut random = Stream::new(20_260_731, Purpose::Simulation, 1);
    let (mut landed, mut between) = (0, 0);
    for trial in 0..KILLS {
        let folder = format!("killed-{trial}");
        // By the clock, over the whole run and a little past its end; and by what is there, which does not depend on
        // how busy the machine is.
        let moment = match trial % 2 {
            0 => Moment::After(took.mul_f64(f64::from(random.below(1050)) / 1000.0)),
            _ => Moment::Shard(
                random.below(SHARDS as u32 - 30),
                Duration::from_micros(random.below(5000).into()),
            ),
        };
        let hit = kill(&lab, &folder, moment);
        let path = lab.at(&folder);
        let there = if path.is_dir() { outputs(&path) } else { Listing::new() };
        let done = assert_whole_shards(&folder, &there, &whole);
        println!("{moment:?}: killed {}, {done} shards done", if hit { "at work" } else { "too late" });
        landed += usize::from(hit);
        between += usize::from(hit && done > 0 && done < SHARDS);

        let said = lab.fine(&format!("{LINE}{folder} --json")).json();
        assert_eq!(said["resumed"], 16 * done, "{said}");
        assert_same_files(&folder, &outputs(&path), &whole);
    }
    println!("{landed} of {KILLS} kills landed, {between} of them between the first shard and the last");
    assert!(landed >= KILLS / 2, "only {landed} kills landed while it was running");
    assert!(between >= KILLS / 3, "only {between} kills landed between the first shard and the last");
}

#[test]
fn killed_thirty_times_in_a_row() {
    const IN_A_ROW: usize = 30;
    let lab = lab();
    let (whole, took) = undisturbed(&lab);
    let mut random = Stream::new(20_260_801, Purpose::Simulation, 2);
    let mut landed = 0;
    let mut done = Vec::new();
    for _ in 0..IN_A_ROW {
        // Short enough for the last kills to find work left: a start takes a share of the time too.
        let share = f64::from(10 + random.below(60)) / 1000.0;
        landed += usize::from(kill(&lab, "killed", Moment::After(took.mul_f64(share))));
        let path = lab.at("killed");
        done.push(if path.is_dir() { assert_whole_shards("killed", &outputs(&path), &whole) } else { 0 });
    }
    println!("{landed} of {IN_A_ROW} kills landed; shards done after each: {done:?}");
    assert!(landed >= IN_A_ROW / 2, "only {landed} kills landed while it was running");
    assert!(done.is_sorted(), "work was lost: {done:?}");
    lab.fine(&format!("{LINE}killed"));
    assert_same_files("killed thirty times", &outputs(&lab.at("killed")), &whole);
}

/// A job of 6 shards.
const SMALL: &str = "synth @seeds.safetensors --vae @vae.safetensors --fold 4 --dtype bf16 --shard-rows 40 --threads 1 --out @";

fn small() -> (Lab, Listing) {
    let lab = Lab::new();
    lab.pairs("seeds.safetensors", Dtype::F32, 60, 48, 1);
    lab.fine("train-vae @seeds.safetensors --out @vae.safetensors --hidden 16 --latent 16 --vae-epochs 3");
    lab.fine(&format!("{SMALL}whole"));
    let whole = outputs(&lab.at("whole"));
    assert_eq!(shards(&whole).len(), 6);
    (lab, whole)
}

/// When each file below a folder was last written.
fn times(lab: &Lab, folder: &str) -> BTreeMap<PathBuf, SystemTime> {
    let root = lab.at(folder);
    let names = shards(&listing(&root)).into_keys();
    names
        .map(|name| {
            let time = fs::metadata(root.join(&name)).and_then(|m| m.modified()).expect("a time");
            (name, time)
        })
        .collect()
}

#[test]
fn leftovers_of_a_killed_run_are_cleared() {
    let (lab, whole) = small();
    let shard = lab.bytes("whole/pairs-00002.safetensors");
    for (name, bytes) in [
        (".pairs-00002.safetensors.tmp", shard[..shard.len() / 2].to_vec()),
        (".pairs-00002.safetensors.tmp", [shard.as_slice(), &[7; 5000]].concat()),
        (".pairs-00000.safetensors.tmp", Vec::new()),
        (".manifest.json.tmp", b"{\"format\":".to_vec()),
        (".recipe.json.tmp", vec![b'x'; 100_000]),
    ] {
        let folder = lab.at("left");
        fs::create_dir(&folder).expect("a folder");
        lab.put(&format!("left/{name}"), &bytes);
        lab.fine(&format!("{SMALL}left"));
        assert_same_files(name, &outputs(&folder), &whole);
        fs::remove_dir_all(&folder).expect("the folder");
    }
    // In the middle of a run: some shards whole, the next begun.
    let folder = lab.at("left");
    fs::create_dir(&folder).expect("a folder");
    for name in ["recipe.json", "pairs-00000.safetensors", "pairs-00001.safetensors"] {
        lab.put(&format!("left/{name}"), &lab.bytes(&format!("whole/{name}")));
    }
    let mut manifest = lab.value("whole/manifest.json");
    manifest["complete"] = false.into();
    manifest["shards"] = serde_json::json!([]);
    lab.put("left/manifest.json", manifest.to_string().as_bytes());
    lab.put("left/.pairs-00002.safetensors.tmp", &shard[..4096]);
    let said = lab.fine(&format!("{SMALL}left --json")).json();
    assert_eq!(said["resumed"], 80, "{said}");
    assert_same_files("a run begun", &outputs(&folder), &whole);
}

/// A run of a part that was killed leaves a temporary file of a shard that it alone would have made.
#[test]
fn leftovers_of_another_cut_are_cleared() {
    let (lab, whole) = small();
    lab.fine(&format!("{SMALL}left --part 0/2"));
    lab.put("left/.pairs-00005.safetensors.tmp", b"begun by part 1 of 2");
    lab.fine(&format!("{SMALL}left"));
    assert_same_files("shards", &shards(&outputs(&lab.at("left"))), &shards(&whole));
    let stray: Vec<_> =
        outputs(&lab.at("left")).into_keys().filter(|p| p.to_string_lossy().ends_with(".tmp")).collect();
    assert!(stray.is_empty(), "{stray:?}");
}

/// What a killed run began goes as well when its output is replaced.
#[test]
fn leftovers_of_a_replaced_run_are_cleared() {
    let (lab, _) = small();
    lab.put("whole/.pairs-00005.safetensors.tmp", b"begun");
    let other = SMALL.replace("--shard-rows 40", "--shard-rows 100");
    lab.fine(&format!("{other}fresh"));
    lab.fine(&format!("{other}whole --overwrite"));
    assert_same_files("replaced", &outputs(&lab.at("whole")), &outputs(&lab.at("fresh")));
}

#[test]
fn a_complete_output_is_left_alone() {
    let (lab, whole) = small();
    let before = times(&lab, "whole");
    assert_eq!(before.len(), 6);
    std::thread::sleep(Duration::from_millis(20));
    let said = lab.fine(&format!("{SMALL}whole"));
    assert!(said.out.contains("nothing to do"), "{}", said.out);
    assert_same_files("after another run", &outputs(&lab.at("whole")), &whole);
    assert_eq!(times(&lab, "whole"), before, "shards were written again");
    let said = lab.fine(&format!("{SMALL}whole --json")).json();
    assert_eq!((&said["resumed"], &said["pairs"], &said["shards"]), (&240.into(), &240.into(), &6.into()));
    assert_eq!(times(&lab, "whole"), before, "shards were written again");
}

#[test]
fn a_deleted_shard_is_made_again() {
    let (lab, whole) = small();
    for name in ["pairs-00000.safetensors", "pairs-00003.safetensors", "pairs-00005.safetensors"] {
        let before = times(&lab, "whole");
        fs::remove_file(lab.at("whole").join(name)).expect("a shard");
        let said = lab.fine(&format!("{SMALL}whole --json")).json();
        assert_eq!(said["resumed"], 200, "{said}");
        assert_same_files(name, &outputs(&lab.at("whole")), &whole);
        let kept = times(&lab, "whole").into_iter().filter(|(path, time)| before[path] == *time).count();
        assert_eq!(kept, 5, "shards that were there were written again");
    }
}

#[test]
fn lost_state_is_made_again() {
    let (lab, whole) = small();
    fs::remove_file(lab.at("whole/recipe.json")).expect("a recipe");
    lab.fine(&format!("{SMALL}whole"));
    assert_same_files("without the recipe", &outputs(&lab.at("whole")), &whole);
}

/// A shard that is there but not what it was is an error or is made again, and never kept.
#[test]
fn a_damaged_shard_is_not_kept() {
    let (lab, whole) = small();
    let name = "whole/pairs-00003.safetensors";
    let shard = lab.bytes(name);
    let other = lab.bytes("whole/pairs-00004.safetensors");
    let with = |at: usize, byte: u8| {
        let mut bytes = shard.clone();
        bytes[at] = byte;
        bytes
    };
    let in_header = shard.windows(10).position(|w| w == b"first_pair").expect("the entry") + 14;
    let damages: [(&str, Vec<u8>); 7] = [
        ("cut", shard[..shard.len() - 1].to_vec()),
        ("cut in the header", shard[..2000].to_vec()),
        ("empty", Vec::new()),
        ("longer", [shard.as_slice(), b"x"].concat()),
        ("header changed", with(in_header, b'9')),
        ("header length changed", with(0, shard[0] ^ 1)),
        ("another shard", other),
    ];
    for (what, bytes) in damages {
        assert!(bytes != shard, "{what}: no damage");
        lab.put(name, &bytes);
        let said = lab.run(&format!("{SMALL}whole"));
        if said.code == Some(0) {
            assert!(lab.bytes(name) == shard, "{what}: kept");
        } else {
            assert_eq!(said.code, Some(1), "{what}: {said:?}");
            assert!(
                said.err.contains("pairs-00003.safetensors") && said.err.lines().count() == 1,
                "{said:?}"
            );
            assert_eq!(lab.value("whole/manifest.json")["complete"], false, "{what}");
            fs::remove_file(lab.at(name)).expect("the shard");
            lab.fine(&format!("{SMALL}whole"));
        }
        assert_same_files(what, &outputs(&lab.at("whole")), &whole);
    }
    // A changed value leaves size and header as they are: that is what verify looks for.
    lab.put(name, &with(shard.len() - 9, shard[shard.len() - 9] ^ 0x40));
    lab.run(&format!("{SMALL}whole"));
    let said = lab.run("verify @whole");
    assert_eq!(said.code, Some(1), "a changed value went unseen");
    assert!(said.err.contains("pairs-00003.safetensors: checksum of tensor"), "{said:?}");
}

/// Cuts of one run that work in one folder at the same time: each finishes, or says that another process writes the
/// shard that it wanted; no shard is ever a mixture.
#[test]
fn cuts_at_work_at_the_same_time_do_not_mix() {
    let (lab, whole) = small();
    for round in 0..4 {
        let folder = format!("shared{round}");
        let cuts = ["", " --part 0/2", " --part 1/2", " --part 1/3", " --part 2/6"];
        let children: Vec<_> = cuts
            .iter()
            .map(|cut| {
                let mut command = binary();
                command.args(lab.words(&format!("{SMALL}{folder}{cut}")));
                command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("a process")
            })
            .collect();
        for child in children {
            let done = child.wait_with_output().expect("its end");
            let said = String::from_utf8_lossy(&done.stderr);
            let refused = done.status.code() == Some(1) && said.contains("another lensmith process");
            assert!(done.status.success() || refused, "{:?}: {said}", done.status);
        }
        let made = shards(&outputs(&lab.at(&folder)));
        let known = shards(&whole);
        assert!(made.iter().all(|(name, bytes)| known.get(name) == Some(bytes)), "round {round}");
        lab.fine(&format!("{SMALL}{folder}"));
        assert_same_files("shared", &shards(&outputs(&lab.at(&folder))), &known);
        lab.fine(&format!("verify @{folder}"));
    }
}

/// A part that was interrupted does not matter once another cut has made its shards; it does before.
#[test]
fn an_interrupted_part_counts_until_its_shards_are_there() {
    let (lab, _) = small();
    lab.fine(&format!("{SMALL}parts --part 0/2"));
    let mut manifest = lab.value("parts/manifest.part-0-of-2.json");
    manifest["part"] = serde_json::json!([1, 2]);
    manifest["complete"] = false.into();
    manifest["shards"] = serde_json::json!([]);
    lab.put("parts/manifest.part-1-of-2.json", manifest.to_string().as_bytes());
    let said = lab.run("verify @parts");
    assert_eq!(said.code, Some(1));
    assert!(said.err.contains("interrupted") && said.err.contains("part-1-of-2"), "{}", said.err);
    lab.fine(&format!("{SMALL}parts --part 1/3"));
    lab.fine(&format!("{SMALL}parts --part 2/3"));
    let said = lab.fine("verify @parts --json").json();
    assert_eq!((&said["pairs"], &said["run_pairs"]), (&240.into(), &240.into()), "{said}");
    fs::remove_file(lab.at("parts/manifest.part-1-of-3.json")).expect("a manifest");
    assert_eq!(lab.run("verify @parts").code, Some(1), "a shard that no complete manifest lists");
}

/// A folder that holds some parts of a run is in order, and says that it is not all.
#[test]
fn some_parts_are_in_order_and_not_all() {
    let (lab, _) = small();
    lab.fine(&format!("{SMALL}parts --part 1/3"));
    let said = lab.fine("verify @parts");
    let not_here = "\nnot here: 4 of the run's 6 shards are missing: pairs-00000.safetensors to";
    assert!(said.out.contains("80 pairs of the run's 240 in") && said.out.contains(not_here), "{}", said.out);
}
