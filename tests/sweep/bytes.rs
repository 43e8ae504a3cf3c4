//! The same bytes however the work is cut and whenever it is killed, and nothing computed twice.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use lensmith::dtype::Dtype;
use lensmith::noise::{Purpose, Stream};

use crate::common::cli::{Lab, Listing, assert_same_files, binary, f32_bytes, listing, outputs};
use crate::common::data;
use crate::support::{DIM, MODELS, ROWS, SMALL, assert_kept, counts, lab, number, rows, stamps};

/// The files of a sweep but for sweep.json, which names the threads.
fn all_but_the_summary(lab: &Lab, out: &str) -> Listing {
    let mut found = outputs(&lab.at(out));
    found.retain(|path, _| path != Path::new("sweep.json"));
    found
}

#[test]
fn workers_threads_and_the_order_of_values_change_no_byte() {
    let lab = lab();
    for (out, how) in [
        ("one", "--workers 1 --threads 1 --grid sigma2=0.01,0.1 --grid fold=2,3"),
        ("two", "--workers 2 --threads 2 --grid sigma2=0.01,0.1 --grid fold=2,3"),
        ("other", "--workers 2 --threads 2 --grid fold=3,2 --grid sigma2=0.1,0.01"),
    ] {
        lab.fine(&format!("{SMALL} {MODELS} --splits 2 {how} --out @{out}"));
    }
    // Of either split: the seeds alone, matched updates for each fold, LENS at each point; and its VAE.
    assert_eq!(counts(&stamps(&lab, "one")), [14, 2]);
    assert_same_files("two workers", &all_but_the_summary(&lab, "two"), &all_but_the_summary(&lab, "one"));
    for kind in ["cells", "vaes"] {
        let [one, other] = ["one", "other"].map(|out| listing(&lab.at(&format!("{out}/{kind}"))));
        assert_same_files(&format!("{kind}, values in another order"), &other, &one);
    }
    let figures = |out: &str| {
        let mut found = BTreeMap::new();
        for mut row in rows(&lab, out) {
            let key = ["sigma2", "fold", "arm", "split"].map(|name| row[name].to_string());
            // Its name is that of the axes in their order.
            row.as_object_mut().expect("an object").remove("grid");
            assert!(found.insert(key.clone(), row).is_none(), "{out}: {key:?} twice");
        }
        found
    };
    let one = figures("one");
    assert_eq!(one.len(), 4 * 3 * 2);
    for out in ["two", "other"] {
        let found = figures(out);
        assert_eq!(found.keys().collect::<Vec<_>>(), one.keys().collect::<Vec<_>>(), "{out}");
        for (key, row) in &one {
            assert_eq!(&found[key], row, "{out}: {key:?}");
        }
    }
    // Points differ where they should, and only there.
    for (arm, want) in [("none", 2), ("matched", 4), ("plain", 8)] {
        let own = one.values().filter(|row| row["arm"] == arm);
        let losses: BTreeSet<u64> = own.map(|row| number(row, "loss").to_bits()).collect();
        assert_eq!(losses.len(), want, "{arm}");
    }
}

/// Starts a sweep and kills it so long after it has so many cells. Gives whether the kill came while it was at work.
fn kill(lab: &Lab, line: &str, out: &str, cells: usize, delay: Duration) -> bool {
    let mut command = binary();
    command.args(lab.words(line)).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary starts");
    while counts(&stamps(lab, out))[0] < cells && child.try_wait().expect("a state").is_none() {
        std::thread::sleep(Duration::from_micros(200));
    }
    std::thread::sleep(delay);
    child.kill().expect("a signal");
    let output = child.wait_with_output().expect("the end");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "before the kill");
    let killed = output.status.code().is_none();
    assert!(killed || output.status.success(), "{:?}", output.status);
    killed
}

#[test]
fn killed_at_random_moments_and_run_again_it_ends_with_the_same_bytes_and_repeats_no_cell() {
    const TRIALS: usize = 6;
    const IN_A_ROW: usize = 3;
    let lab = Lab::new();
    lab.pairs("pairs.safetensors", Dtype::F32, 400, 64, 1);
    let line = |out: &str| {
        format!(
            "sweep @pairs.safetensors --seeds 200 --validation-pairs 60 --hidden 64 --latent 16 --vae-epochs 10 \
             --reward-hidden 128 --epochs 6 --batch 16 --splits 3 --grid sigma2=0.01,0.1,1 --grid fold=2,4 \
             --workers 2 --threads 2 --out @{out}"
        )
    };
    let start = Instant::now();
    lab.fine(&line("whole"));
    let took = start.elapsed();
    let whole = outputs(&lab.at("whole"));
    let [all, _] = counts(&stamps(&lab, "whole"));
    assert_eq!(all, 27);

    let mut random = Stream::new(20_261_127, Purpose::Simulation, 3);
    let (mut landed, mut between) = (0, 0);
    for trial in 0..TRIALS {
        let out = format!("killed-{trial}");
        for again in 0..IN_A_ROW {
            let before = stamps(&lab, &out);
            let [done, _] = counts(&before);
            // First by the clock, over VAEs and first cells; then by what is there, however busy the machine is.
            let (cells, delay) = match again {
                0 => (0, took.mul_f64(f64::from(random.below(600)) / 1000.0)),
                _ => {
                    (done + 1 + random.below(6) as usize, Duration::from_micros(random.below(20_000).into()))
                }
            };
            let hit = kill(&lab, &line(&out), &out, cells, delay);
            let after = stamps(&lab, &out);
            if !before.is_empty() {
                assert_kept(&format!("{out}, kill {again}"), &before, &after);
            }
            // What has its name is whole.
            for path in after.keys() {
                let bytes = fs::read(lab.at(&out).join(path)).expect("a file");
                assert!(whole[path].as_ref() == Some(&bytes), "{out}: {} is not whole", path.display());
            }
            landed += usize::from(hit);
            between += usize::from(hit && (1..all).contains(&counts(&after)[0]));
        }
        let before = stamps(&lab, &out);
        lab.fine(&line(&out));
        if !before.is_empty() {
            assert_kept(&out, &before, &stamps(&lab, &out));
        }
        assert_same_files(&out, &outputs(&lab.at(&out)), &whole);
    }
    let kills = TRIALS * IN_A_ROW;
    println!("{landed} of {kills} kills landed, {between} of them between the first cell and the last");
    assert!(landed >= kills / 2, "only {landed} of {kills} kills landed while it was running");
    assert!(
        between >= kills / 3,
        "only {between} of {kills} kills landed between the first cell and the last"
    );
}

#[test]
fn a_second_sweep_into_the_folder_takes_what_it_shares() {
    let lab = lab();
    let go = |out: &str, grid: &str| {
        lab.fine(&format!("{SMALL} {MODELS} --threads 1 --splits 2 {grid} --out @{out}"))
    };
    // Of either split none, matched, and LENS at two points, whose VAE is one.
    go("s", "--grid sigma2=0.01,0.1");
    let first = stamps(&lab, "s");
    assert_eq!(counts(&first), [8, 2]);
    // The same sweep computes nothing.
    go("s", "--grid sigma2=0.01,0.1");
    assert_eq!(stamps(&lab, "s"), first);
    // Without --fold it is 4: matched updates of 4, and LENS at 0.1, are there. Neither sigma2 nor fold changes a VAE.
    let second = "--grid sigma2=0.1,0.5 --grid fold=4,2";
    go("s", second);
    let then = stamps(&lab, "s");
    assert_kept("other points", &first, &then);
    assert_eq!(counts(&then), [8 + 2 * (1 + 3), 2]);
    // What was taken is what would have been computed.
    go("alone", second);
    for name in ["results.jsonl", "results.csv", "results.parquet"] {
        let [shared, alone] = ["s", "alone"].map(|out| lab.bytes(&format!("{out}/{name}")));
        assert!(shared == alone && !alone.is_empty(), "{name} differs");
    }
    // gamma is 0.1 by default: one other VAE and its LENS arm for either split, no baseline.
    go("s", "--grid gamma=0.1,0.5");
    let third = stamps(&lab, "s");
    assert_kept("another gamma", &then, &third);
    assert_eq!(counts(&third), [16 + 2, 2 + 2]);
    // An arm without divergence is the same at every gamma.
    go("s", "--arms no-divergence --grid gamma=0.1,0.5,1");
    assert_kept("no divergence", &third, &stamps(&lab, "s"));
    assert_eq!(counts(&stamps(&lab, "s")), [18 + 2, 4 + 2]);
}

/// Checksums do not cover which pairs belong together: the tensor that says so must tell cells apart.
#[test]
fn prompts_of_another_tensor_make_other_cells() {
    let lab = Lab::new();
    let groups = |of: &dyn Fn(usize) -> usize| -> Vec<u8> {
        (0..ROWS).flat_map(|row| (of(row) as i64).to_le_bytes()).collect()
    };
    lab.tensors(
        "pairs.safetensors",
        &[
            ("chosen", "F32", &[ROWS, DIM], f32_bytes(&data(3, ROWS, DIM))),
            ("rejected", "F32", &[ROWS, DIM], f32_bytes(&data(4, ROWS, DIM))),
            ("near", "I64", &[ROWS], groups(&|row| row / 4)),
            ("far", "I64", &[ROWS], groups(&|row| row % 30)),
        ],
    );
    let go = |out: &str, group: &str| {
        let grid = "--splits 1 --threads 1 --arms none --grid fold=2";
        lab.fine(&format!("{SMALL} {MODELS} {grid} --group {group} --out @{out}"));
        lab.bytes(&format!("{out}/results.jsonl"))
    };
    let (near, alone) = (go("both", "near"), go("alone", "far"));
    assert!(near != alone, "other rows give other figures");
    assert!(go("both", "far") == alone, "a cell was taken that is of other rows");
}

#[test]
fn parts_on_any_machine_make_the_cells_of_one_sweep() {
    let lab = lab();
    // Two VAEs a split: of the default beta and of another.
    let line = |out: &str| {
        format!("{SMALL} {MODELS} --threads 1 --splits 2 --grid beta=1,2 --grid sigma2=0.01,0.1 --out @{out}")
    };
    lab.fine(&line("whole"));
    let whole = all_but_the_summary(&lab, "whole");
    let all = stamps(&lab, "whole");
    // Of either split: the seeds alone, matched updates, and LENS at four points.
    assert_eq!(counts(&all), [12, 4]);
    for count in [1, 3, 20] {
        let out = format!("parts-{count}");
        let mut before = stamps(&lab, &out);
        // The last part first: parts know nothing of each other.
        for index in (0..count).rev() {
            lab.fine(&format!("{} --part {index}/{count}", line(&out)));
            let after = stamps(&lab, &out);
            if !before.is_empty() {
                assert_kept(&out, &before, &after);
            }
            // A part with nothing to do is one that is done.
            assert!(after.len() > before.len() || count > 8, "{out}: part {index} made nothing");
            before = after;
        }
        assert_eq!(counts(&before), [12, 4], "{out}");
        if count > 1 {
            let results = lab.at(&format!("{out}/results.jsonl"));
            assert!(!results.exists(), "{out}: parts write no results");
        }
        lab.fine(&line(&out));
        assert_kept(&out, &before, &stamps(&lab, &out));
        assert_same_files(&out, &all_but_the_summary(&lab, &out), &whole);
    }
}

#[test]
fn a_part_says_what_it_did_and_what_comes_next() {
    let lab = lab();
    let line =
        format!("{SMALL} {MODELS} --threads 1 --splits 1 --grid sigma2=0.01,0.1 --out @out --part 1/2");
    let said = lab.fine(&format!("{line} --json"));
    let said: serde_json::Value = serde_json::from_str(&said.out).expect("JSON");
    // The first part has the two arms without a VAE, which the cells of LENS share.
    assert_eq!((&said["part"], &said["of"]), (&serde_json::json!([1, 2]), &serde_json::json!(4)), "{said}");
    assert_eq!(said["cells"].as_u64(), Some(counts(&stamps(&lab, "out"))[0] as u64), "{said}");
    let text = lab.fine(&line).out;
    assert!(text.contains("part 1/2") && text.contains("the same command without --part"), "{text}");
}
