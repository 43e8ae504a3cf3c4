//! Folders that others write into, downloads that lie, outputs on top of inputs. The promises are those of
//! docs/design/24-safety.md; the letters are those of its table.

mod common;

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use common::cli::{Lab, Said, assert_same_files, binary, outputs};
use lensmith::data::{FileBytes, Io, install_sigbus_guard};
use lensmith::dtype::Dtype;
use serde_json::json;

const VAE: &str = "--hidden 16 --latent 16 --vae-epochs 1";

/// Seeds, a VAE, and a file of somebody else.
fn lab() -> Lab {
    let lab = Lab::new();
    lab.pairs("seeds.safetensors", Dtype::F32, 40, 32, 1);
    lab.fine(&format!("train-vae @seeds.safetensors --out @vae.safetensors {VAE}"));
    lab.put("treasure", b"treasure");
    lab
}

/// Runs a command that must end by itself within ten seconds.
#[track_caller]
fn within_ten_seconds(lab: &Lab, line: &str) -> Said {
    let mut command = binary();
    command.args(lab.words(line)).stdout(Stdio::piped()).stderr(Stdio::piped()).stdin(Stdio::null());
    let mut child = command.spawn().expect("the binary starts");
    let start = Instant::now();
    while child.try_wait().expect("a child").is_none() {
        if start.elapsed() > Duration::from_secs(10) {
            child.kill().expect("it was running");
            panic!("`{line}` hangs");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output().expect("its output").into()
}

/// Panics unless the command failed with exit code 1 or 2, one line and these words.
#[track_caller]
fn refused(said: &Said, words: &[&str]) {
    assert!(matches!(said.code, Some(1 | 2)), "{said:?}");
    assert_eq!(said.err.lines().count(), 1, "{said:?}");
    for word in words {
        assert!(said.err.contains(word), "no `{word}` in {said:?}");
    }
}

fn pipe(path: &Path) {
    let status = std::process::Command::new("mkfifo").arg(path).status().expect("mkfifo");
    assert!(status.success());
}

/// Every command that writes under a known temporary or lock name, with that name.
const WRITERS: [(&str, &str); 7] = [
    (
        "train-vae @seeds.safetensors --out @o/vae.safetensors --hidden 16 --latent 16 --vae-epochs 1",
        ".vae.safetensors.tmp",
    ),
    ("synth @seeds.safetensors --vae @vae.safetensors --fold 2 --out @o", ".manifest.json.tmp"),
    ("synth @seeds.safetensors --vae @vae.safetensors --fold 2 --out @o", ".pairs-00000.safetensors.tmp"),
    ("synth @seeds.safetensors --vae @vae.safetensors --fold 2 --out @o", ".synth.lock"),
    ("synth @seeds.safetensors --vae @vae.safetensors --fold 2 --out @o", ".recipe.json.tmp"),
    ("export @seeds.safetensors --out @o/pairs.parquet", ".pairs.parquet.tmp"),
    ("import @seeds.safetensors --out @o", ".import.lock"),
];

/// H1: a name that somebody planted is refused, and what it leads to stays as it was.
#[test]
fn h1_planted_names_are_refused() {
    let lab = lab();
    for (line, name) in WRITERS {
        for kind in ["symbolic", "dangling", "hard", "pipe"] {
            let _ = fs::remove_dir_all(lab.at("o"));
            fs::create_dir(lab.at("o")).expect("a folder");
            let planted = lab.at("o").join(name);
            match kind {
                "symbolic" => symlink(lab.at("treasure"), &planted).expect("a link"),
                "dangling" => symlink(lab.at("created"), &planted).expect("a link"),
                "hard" => fs::hard_link(lab.at("treasure"), &planted).expect("a link"),
                _ => pipe(&planted),
            }
            let said = within_ten_seconds(&lab, line);
            refused(&said, &[name, "remove it"]);
            assert_eq!(lab.bytes("treasure"), b"treasure", "{line} through a {kind} link at {name}");
            assert!(!lab.at("created").exists(), "{line} created what {name} leads to");
        }
    }
    // Without anything planted they all work; a file that a killed run left is taken over.
    for (line, name) in WRITERS {
        let _ = fs::remove_dir_all(lab.at("o"));
        fs::create_dir(lab.at("o")).expect("a folder");
        lab.put(&format!("o/{name}"), b"left by a killed run");
        let said = lab.run(line);
        assert_eq!(said.code, Some(0), "{line}: {said:?}");
        assert!(name.ends_with(".lock") || !lab.at("o").join(name).exists(), "{line} left {name}");
    }
}

/// H1: an output that is a link is replaced, not followed.
#[test]
fn h1_a_link_at_the_output_is_replaced() {
    let lab = lab();
    symlink(lab.at("treasure"), lab.at("out.safetensors")).expect("a link");
    let line = format!("train-vae @seeds.safetensors --out @out.safetensors {VAE}");
    refused(&lab.run(&line), &["exists already"]);
    lab.fine(&format!("{line} --overwrite"));
    assert_eq!(lab.bytes("treasure"), b"treasure");
    assert!(lab.at("out.safetensors").symlink_metadata().expect("it is there").is_file());
}

/// H2: no output removes or replaces what it is made from, under whatever name.
#[test]
fn h2_overwrite_spares_the_inputs() {
    let lab = lab();
    let synth = "synth @seeds.safetensors --vae @vae.safetensors --fold 2 --shard-rows 16 --out @";
    lab.fine(&format!("{synth}ow --dtype f32"));
    lab.fine(&format!("{synth}l --output latents"));
    lab.fine("import @seeds.safetensors --out @imported");
    lab.fine("train-reward @seeds.safetensors --out @reward.safetensors --reward-hidden 16 --epochs 1");
    fs::hard_link(lab.at("seeds.safetensors"), lab.at("hard.safetensors")).expect("a link");
    symlink(lab.at("ow"), lab.at("linked")).expect("a link");
    symlink(lab.at("seeds.safetensors"), lab.at("soft.safetensors")).expect("a link");
    // A VAE under a shard's name in an output folder.
    lab.fine(&format!("{synth}v"));
    fs::copy(lab.at("vae.safetensors"), lab.at("v/pairs-00001.safetensors")).expect("a copy");
    for line in [
        "synth @ow --vae @vae.safetensors --fold 2 --out @ow --overwrite",
        "synth @ow --vae @vae.safetensors --fold 2 --out @linked --overwrite",
        "synth @linked --vae @vae.safetensors --fold 2 --out @ow --overwrite",
        "synth @seeds.safetensors --vae @v/pairs-00001.safetensors --fold 3 --out @v --overwrite",
        "materialize @l --out @l --overwrite",
        "import @imported --out @imported --overwrite",
        "train-vae @seeds.safetensors --out @seeds.safetensors --hidden 16 --latent 16 --vae-epochs 1 --overwrite",
        "train-vae @seeds.safetensors --out @hard.safetensors --hidden 16 --latent 16 --vae-epochs 1 --overwrite",
        "train-vae @seeds.safetensors --out @soft.safetensors --hidden 16 --latent 16 --vae-epochs 1 --overwrite",
        "train-reward @seeds.safetensors --out @hard.safetensors --reward-hidden 16 --epochs 1 --overwrite",
        "train-reward --recipe @ow/recipe.json --out @vae.safetensors --reward-hidden 16 --epochs 1 --overwrite",
        "train-reward --recipe @ow/recipe.json --out @ow/recipe.json --reward-hidden 16 --epochs 1 --overwrite",
        "score @seeds.safetensors --model @reward.safetensors --tensor chosen --out @reward.safetensors --overwrite",
        "score @seeds.safetensors --model @reward.safetensors --tensor chosen --out @hard.safetensors --overwrite",
        "export @seeds.safetensors --out @hard.safetensors --format parquet --overwrite",
        "run @seeds.safetensors --seeds 20 --validation-pairs 10 --out @ --vae-epochs 1 --overwrite",
    ] {
        let before = outputs(&lab.at(""));
        let said = lab.run(line);
        refused(&said, &["from which it is made"]);
        assert_same_files(line, &outputs(&lab.at("")), &before);
    }
}

/// H2: `--overwrite` removes nothing that is not shown to be an output.
#[test]
fn h2_overwrite_removes_outputs_only() {
    let lab = lab();
    let line = "synth @seeds.safetensors --vae @vae.safetensors --fold 2 --out @o --overwrite";
    let foreign: [(&str, &[u8]); 4] = [
        ("manifest.json", b"{\"name\": \"an app\"}"),
        ("recipe.json", b"{\"eggs\": 2}"),
        ("pairs-00000.safetensors", b"not a shard"),
        ("embeddings-of-mine.safetensors", b"not a shard"),
    ];
    for (name, bytes) in foreign {
        let _ = fs::remove_dir_all(lab.at("o"));
        lab.put(&format!("o/{name}"), bytes);
        refused(&lab.run(line), &[name, "exists already"]);
        assert_eq!(lab.bytes(&format!("o/{name}")), bytes);
    }
    // Nor a checkpoint, which is ours and no shard.
    let _ = fs::remove_dir_all(lab.at("o"));
    fs::create_dir(lab.at("o")).expect("a folder");
    fs::copy(lab.at("vae.safetensors"), lab.at("o/pairs-best.safetensors")).expect("a copy");
    refused(&lab.run(line), &["pairs-best.safetensors", "exists already"]);
    assert_eq!(lab.bytes("o/pairs-best.safetensors"), lab.bytes("vae.safetensors"));
}

/// H3: the guard covers every map, however many there are.
#[test]
fn h3_lost_pages_beyond_thousands_of_maps() {
    install_sigbus_guard();
    let lab = Lab::new();
    let (kept, cut) = (lab.put("kept", &[7; 8192]), lab.put("cut", &[7; 1 << 16]));
    let open = |path: &Path| FileBytes::open(path, Io::Mmap).expect("a map");
    let before: Vec<FileBytes> = (0..10_000).map(|_| open(&kept)).collect();
    let lost = open(&cut);
    let after: Vec<FileBytes> = (0..10).map(|_| open(&kept)).collect();
    File::options().write(true).open(&cut).expect("it is there").set_len(4096).expect("shorter");
    assert_eq!(lost.bytes()[..4096], [7; 4096]);
    assert!(lost.is_whole());
    assert_eq!(lost.bytes()[1 << 15], 0);
    assert!(!lost.is_whole());
    assert!(before.iter().chain(&after).all(|map| map.is_whole() && map.bytes() == [7; 8192]));
    // Slots that became free are taken again.
    drop((before, lost));
    let again = open(&cut);
    assert!(again.is_whole() && again.bytes() == [7; 4096]);
}

/// H4: what is read whole is a regular file of bounded size.
#[test]
fn h4_manifests_and_recipes_that_are_no_files() {
    let lab = lab();
    lab.fine("synth @seeds.safetensors --vae @vae.safetensors --fold 2 --out @o");
    for name in ["manifest.json", "recipe.json"] {
        let path = lab.at("o").join(name);
        let good = fs::read(&path).expect("it is there");
        let commands = [
            "verify @o",
            "inspect @o",
            "merge-manifests @o",
            "materialize @o --out @m",
            "train-reward --recipe @o/recipe.json --out @r.safetensors --epochs 1",
            "synth @seeds.safetensors --vae @vae.safetensors --fold 2 --out @o",
            "synth @seeds.safetensors --vae @vae.safetensors --fold 3 --out @o --overwrite",
        ];
        for kind in ["pipe", "endless", "huge"] {
            fs::remove_file(&path).expect("it is there");
            match kind {
                "pipe" => pipe(&path),
                "endless" => symlink("/dev/zero", &path).expect("a link"),
                // With holes it takes no room.
                _ => File::create(&path).and_then(|f| f.set_len(1 << 40)).expect("a file with holes"),
            }
            for line in commands {
                // Not every command reads both; none may hang or take the memory.
                let said = within_ten_seconds(&lab, line);
                assert!(matches!(said.code, Some(0..=2)), "{line} with a {kind} {name}: {said:?}");
                if said.code != Some(0) {
                    assert_eq!(said.err.lines().count(), 1, "{line} with a {kind} {name}: {said:?}");
                }
            }
            let _ = fs::remove_file(&path);
            fs::write(&path, &good).expect("as it was");
        }
    }
    // Inputs of every format.
    for name in ["in.safetensors", "in.npy", "in.npz", "in.parquet", "in.arrow"] {
        pipe(&lab.at(name));
        let said = within_ten_seconds(&lab, &format!("import @{name} --plain --out @i"));
        refused(&said, &["it is not a regular file"]);
    }
}

/// H5: what a recipe says of its files is compared with them.
#[test]
fn h5_recipes_that_lie() {
    let lab = lab();
    lab.fine("synth @seeds.safetensors --vae @vae.safetensors --fold 2 --output recipe --out @r");
    let good = lab.value("r/recipe.json");
    let with = |pointer: &str, value: serde_json::Value| {
        let mut recipe = good.clone();
        *recipe.pointer_mut(pointer).expect("it is there") = value;
        recipe
    };
    let mut unknown = good.clone();
    unknown["vae"]["colour"] = json!("red");
    let mut more = good.clone();
    more["more"] = json!(1);
    for recipe in [
        with("/vae/size/dim", json!(0)),
        with("/vae/size/dim", json!(1u64 << 61)),
        with("/vae/size/dim", json!(1u64 << 62)),
        with("/vae/size/dim", json!(31)),
        with("/vae/size/hidden", json!(32)),
        with("/vae/size/latent", json!(32)),
        with("/vae/size/latent", json!(0)),
        with("/seeds/files/0/rows", json!(39)),
        with("/seeds/files/0/dim", json!(33)),
        with("/plan/seeds", json!(41)),
        with("/plan/per_side", json!(5)),
        with("/perturbation/sigma2", json!(-1.0)),
        with("/perturbation/oversample", json!(0)),
        unknown,
        more,
    ] {
        lab.put("r/recipe.json", recipe.to_string().as_bytes());
        let manifest = lab.at("r/manifest.json");
        let _ = fs::remove_file(&manifest);
        for line in [
            "materialize @r/recipe.json --out @m",
            "train-reward --recipe @r/recipe.json --out @reward.safetensors --epochs 1",
        ] {
            let said = lab.run(line);
            refused(&said, &[]);
            assert!(!lab.at("m").exists() && !lab.at("reward.safetensors").exists(), "{line}: {recipe}");
        }
    }
    lab.put("r/recipe.json", good.to_string().as_bytes());
    lab.fine("materialize @r/recipe.json --out @m");
}

/// M2: `--overwrite` waits for nobody's shards: while another part is written, it is refused.
#[test]
fn m2_overwrite_respects_other_parts() {
    let lab = lab();
    let line = "synth @seeds.safetensors --vae @vae.safetensors --fold 4 --shard-rows 16 --part 0/2 --out @o";
    lab.fine(line);
    // The lock of the other part, as a process at work holds it.
    let other = File::create(lab.at("o/.synth-1-of-2.lock")).expect("a lock");
    other.lock().expect("it is free");
    let before = outputs(&lab.at("o"));
    refused(&lab.run(&format!("{line} --overwrite --seed 5")), &["another lensmith process"]);
    assert_same_files("a part that is being written", &outputs(&lab.at("o")), &before);
    drop(other);
    lab.fine(&format!("{line} --overwrite --seed 5"));
}

/// M3: two parts of different settings cannot both take an empty folder.
#[test]
fn m3_parts_of_different_settings_do_not_mix() {
    let lab = lab();
    for trial in 0..10 {
        let out = format!("o{trial}");
        let start = |index: u64| {
            let line = format!(
                "synth @seeds.safetensors --vae @vae.safetensors --fold 4 --shard-rows 16 --part {index}/2 --seed {index} --out @{out}"
            );
            let mut command = binary();
            command.args(lab.words(&line)).stdout(Stdio::null()).stderr(Stdio::piped());
            command.spawn().expect("the binary starts")
        };
        let children = [start(0), start(1)];
        let said = children.map(|child| Said::from(child.wait_with_output().expect("its output")));
        let mut codes = said.each_ref().map(|said| said.code);
        codes.sort();
        assert_eq!(codes, [Some(0), Some(1)], "{said:?}");
        let refused = said.iter().find(|said| said.code == Some(1)).expect("one of them");
        assert!(refused.err.contains("exists already"), "{refused:?}");
    }
}
