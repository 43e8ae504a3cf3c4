//! Every command that writes, killed before each change that it makes to a file or folder, and with the disk full at
//! each: nothing half-written has a final name, and the same command ends with the bytes of an undisturbed run.

mod common;

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use common::cli::{Lab, Listing, Said, assert_same_files, binary, outputs};
use lensmith::noise::{Purpose, Stream};

/// A command, whose output is `o` or a file in it, and what lies in the folder before.
struct Case {
    name: &'static str,
    line: &'static str,
    /// Commands that make what is there before; their output `o` too.
    before: &'static [&'static str],
}

const SYNTH: &str = "synth @seeds.safetensors --vae @vae.safetensors --fold 4 --shard-rows 48 --dtype f32 --threads 1 --out @o/x";

const CASES: [Case; 17] = [
    Case {
        name: "train-vae",
        line: "train-vae @seeds.safetensors --out @o/v.safetensors --hidden 16 --latent 16 --vae-epochs 1",
        before: &[],
    },
    Case {
        name: "train-vae --overwrite",
        line: "train-vae @seeds.safetensors --out @o/v.safetensors --hidden 16 --latent 16 --vae-epochs 1 --overwrite",
        before: &[
            "train-vae @seeds.safetensors --out @o/v.safetensors --hidden 16 --latent 16 --vae-epochs 1 --seed 9",
        ],
    },
    Case {
        name: "train-reward",
        line: "train-reward @seeds.safetensors --out @o/r.safetensors --reward-hidden 16 --epochs 1",
        before: &[],
    },
    Case { name: "synth", line: SYNTH, before: &[] },
    Case {
        name: "synth --output latents",
        line: "synth @seeds.safetensors --vae @vae.safetensors --fold 4 --shard-rows 48 --output latents --out @o/x",
        before: &[],
    },
    Case {
        name: "synth --output recipe",
        line: "synth @seeds.safetensors --vae @vae.safetensors --fold 4 --output recipe --out @o/x",
        before: &[],
    },
    Case {
        name: "synth --overwrite",
        line: "synth @seeds.safetensors --vae @vae.safetensors --fold 4 --shard-rows 48 --dtype f32 --threads 1 --out @o/x --overwrite",
        before: &["synth @seeds.safetensors --vae @vae.safetensors --fold 3 --shard-rows 16 --out @o/x"],
    },
    Case { name: "materialize", line: "materialize @latents --shard-rows 48 --out @o/m", before: &[] },
    Case {
        name: "merge-manifests",
        line: "merge-manifests @o/x",
        before: &[
            "synth @seeds.safetensors --vae @vae.safetensors --fold 4 --shard-rows 48 --part 0/2 --out @o/x",
            "synth @seeds.safetensors --vae @vae.safetensors --fold 4 --shard-rows 48 --part 1/2 --out @o/x",
        ],
    },
    Case { name: "import", line: "import @seeds.safetensors --shard-rows 16 --out @o/i", before: &[] },
    Case {
        name: "import --overwrite",
        line: "import @seeds.safetensors --shard-rows 16 --out @o/i --overwrite",
        before: &["import @seeds.safetensors --shard-rows 8 --out @o/i"],
    },
    Case { name: "export", line: "export @seeds.safetensors --out @o/e.parquet", before: &[] },
    Case {
        name: "score",
        line: "score @seeds.safetensors --tensor chosen --model @reward.safetensors --out @o/scores.safetensors",
        before: &[],
    },
    Case {
        name: "best-of-n --select",
        line: "best-of-n @sets.safetensors --model @reward.safetensors --texts @sampled.jsonl --select @o/sft.jsonl",
        before: &[],
    },
    Case {
        name: "split",
        line: "split @seeds.safetensors --seeds 20 --validation-pairs 10 --out @o/split",
        before: &[],
    },
    Case {
        name: "sweep",
        line: "sweep @seeds.safetensors --seeds 20 --validation-pairs 10 --out @o/w --hidden 16 --latent 16 --vae-epochs 1 --reward-hidden 16 --epochs 1 --arms none,plain --grid sigma2=0.01 --splits 1 --workers 1 --threads 1",
        before: &[],
    },
    Case {
        name: "run",
        line: "run @seeds.safetensors --seeds 20 --validation-pairs 10 --out @o/r --hidden 16 --latent 16 --vae-epochs 1 --reward-hidden 16 --epochs 1 --fold 2 --output latents --overwrite",
        before: &[],
    },
];

fn lab() -> Lab {
    let lab = Lab::small();
    lab.fine("train-reward @seeds.safetensors --out @reward.safetensors --reward-hidden 16 --epochs 1");
    lab.fine("synth @seeds.safetensors --vae @vae.safetensors --fold 4 --output latents --out @latents");
    let (prompts, responses) = (6, 4);
    let rows = common::cli::f32_bytes(&common::data(5, prompts * responses, 32));
    lab.tensors("sets.safetensors", &[("candidates", "F32", &[prompts, responses, 32], rows)]);
    lab.put(
        "sampled.jsonl",
        "{\"prompt\": \"p\", \"responses\": [\"a\", \"b\", \"c\", \"d\"]}\n".repeat(prompts).as_bytes(),
    );
    lab
}

/// What a folder holds, without what a command says of its own time.
fn kept(lab: &Lab) -> Listing {
    let mut found = outputs(&lab.at("o"));
    found.retain(|path, _| !path.ends_with("run.json"));
    found
}

fn prepare(lab: &Lab, case: &Case) {
    let _ = fs::remove_dir_all(lab.at("o"));
    fs::create_dir(lab.at("o")).expect("a folder");
    case.before.iter().for_each(|line| drop(lab.fine(line)));
}

/// Files with final names are whole: shards and checkpoints verify, JSON parses.
fn nothing_half_written(lab: &Lab, what: &str) {
    for (path, bytes) in outputs(&lab.at("o")) {
        let (name, Some(bytes)) = (path.to_string_lossy().into_owned(), bytes) else { continue };
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.')) {
            continue;
        }
        if name.ends_with(".json") {
            serde_json::from_slice::<serde_json::Value>(&bytes)
                .unwrap_or_else(|e| panic!("{what}: {name}: {e}"));
        } else if name.ends_with(".jsonl") {
            let text = String::from_utf8(bytes).expect("text");
            assert!(text.ends_with('\n'), "{what}: {name} ends within a line");
            for line in text.lines() {
                serde_json::from_str::<serde_json::Value>(line)
                    .unwrap_or_else(|e| panic!("{what}: {name}: {e}"));
            }
        } else if name.ends_with(".safetensors") {
            lensmith::data::verify_shard(&lab.at("o").join(&path), lensmith::data::Io::Read)
                .unwrap_or_else(|e| panic!("{what}: {name}: {e}"));
        }
    }
}

/// Goes through the points of all commands with one kind of fault, each followed by the one that `next` gives. What a
/// command says of its fault is for `check`. Gives how many points there were.
fn every_point(kind: &str, next: impl Fn(usize) -> usize, check: impl Fn(&Said, &str)) -> usize {
    let lab = lab();
    let mut points = 0;
    for case in &CASES {
        prepare(&lab, case);
        lab.fine(case.line);
        let whole = kept(&lab);
        let mut at = 0;
        loop {
            prepare(&lab, case);
            let what = format!("{}, {kind}:{at}", case.name);
            let said = lab.run_with(case.line, &[("LENSMITH_FAULT", &format!("{kind}:{at}"))]);
            if said.code == Some(0) {
                // There were fewer points, or what failed was not needed.
                assert_same_files(&what, &kept(&lab), &whole);
                assert!(kind == "memory" || at > 3, "{what}: it changes more than that");
                if kind != "fail" || said.err.is_empty() {
                    break;
                }
            }
            check(&said, &what);
            points += 1;
            goes_on(&lab, case, &whole, &what);
            at = next(at);
        }
    }
    points
}

/// The same command again, after one that was interrupted: the bytes of `whole`, or a single file that is there already.
fn goes_on(lab: &Lab, case: &Case, whole: &Listing, what: &str) {
    nothing_half_written(lab, what);
    let again = lab.run(case.line);
    if again.code == Some(0) {
        assert_same_files(what, &kept(lab), whole);
        return;
    }
    assert!(again.err.contains("exists already") && !case.line.contains("@o/x"), "{what}: {again:?}");
    let mut found = kept(lab);
    found.retain(|path, _| !path.to_string_lossy().starts_with('.'));
    assert_same_files(what, &found, whole);
}

/// SIGKILL at 200 moments that chance chooses, over all commands.
#[test]
fn killed_at_random_moments() {
    const KILLS: usize = 200;
    let lab = lab();
    let mut draw = Stream::new(6, Purpose::Simulation, 0);
    let (mut killed, mut trials) = (0, 0);
    let wholes: Vec<(Listing, Duration)> = CASES
        .iter()
        .map(|case| {
            prepare(&lab, case);
            let start = Instant::now();
            lab.fine(case.line);
            (kept(&lab), start.elapsed())
        })
        .collect();
    while killed < KILLS {
        let at = trials % CASES.len();
        let (case, (whole, took)) = (&CASES[at], &wholes[at]);
        trials += 1;
        assert!(trials < 20 * KILLS, "commands end before they are killed: {killed} of {trials}");
        prepare(&lab, case);
        let mut command = binary();
        command.args(lab.words(case.line)).stdout(Stdio::null()).stderr(Stdio::null()).stdin(Stdio::null());
        let mut child = command.spawn().expect("the binary starts");
        std::thread::sleep(took.mul_f64(f64::from(draw.below(1000)) / 1000.0));
        child.kill().expect("a signal");
        killed += usize::from(child.wait().expect("it ends").code().is_none());
        goes_on(&lab, case, whole, &format!("{}, killed for the {killed}th time", case.name));
    }
}

/// H6: killed before every change that it makes.
#[test]
fn h6_killed_at_every_point() {
    let check = |said: &Said, what: &str| assert_eq!(said.code, None, "{what}: {said:?}");
    let points = every_point("kill", |at| at + 1, check);
    assert!(points > 200, "{points} points");
}

/// A full disk at every change: a clear error, and the same command goes on.
#[test]
fn a_full_disk_at_every_point() {
    let check = |said: &Said, what: &str| {
        assert_eq!(said.code, Some(1), "{what}: {said:?}");
        assert_eq!(said.err.lines().count(), 1, "{what}: {said:?}");
    };
    let points = every_point("fail", |at| at + 1, check);
    assert!(points > 200, "{points} points");
}

/// Memory refused at the first large allocations, and then at fewer and fewer of them: one line, nothing half-written, and
/// the same command goes on.
#[test]
fn memory_refused_at_every_point() {
    let check = |said: &Said, what: &str| {
        assert_eq!(said.code, Some(1), "{what}: {said:?}");
        let message = "lensmith: out of memory: the system refused ";
        assert!(said.err.starts_with(message) && said.err.lines().count() == 1, "{what}: {said:?}");
    };
    let points = every_point("memory", |at| at + 1 + at / 8, check);
    assert!(points > 50, "{points} points");
}
