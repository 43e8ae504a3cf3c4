//! Folders that others write into, downloads that lie, outputs on top of inputs. The promises are those of
//! docs/design/24-safety.md; the letters are those of its table.

mod common;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::cli::{Lab, Said, assert_same_files, bare, binary, f32_bytes, outputs, raw};
use lensmith::data::{FileBytes, Io, PairOptions, PairSet, install_sigbus_guard};
use lensmith::dtype::Dtype;
use serde_json::json;

const VAE: &str = "--hidden 16 --latent 16 --vae-epochs 1";

/// Seeds, a VAE, and a file of somebody else.
fn lab() -> Lab {
    let lab = Lab::small();
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
    let status = Command::new("mkfifo").arg(path).status().expect("mkfifo");
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
    lab.tensors("sets.safetensors", &[("candidates", "F32", &[2, 2, 32], vec![0; 512])]);
    lab.put("t.jsonl", b"{\"responses\": [\"a\", \"b\"]}\n{\"responses\": [\"c\", \"d\"]}\n");
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
        "best-of-n @sets.safetensors --model @reward.safetensors --texts @t.jsonl --select @t.jsonl --overwrite",
        "best-of-n @sets.safetensors --model @reward.safetensors --texts @t.jsonl --select @sets.safetensors --overwrite",
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

/// Runs a command line of the shell, in which `$LENSMITH` is the binary, in the lab's folder.
fn shell(lab: &Lab, line: &str) -> Said {
    let mut shell = bare(Command::new("sh"));
    shell.args(["-c", line]).current_dir(lab.at("")).env("LENSMITH", env!("CARGO_BIN_EXE_lensmith"));
    shell.output().expect("a shell").into()
}

/// M1: whether anybody reads standard error makes no difference.
#[test]
fn m1_nobody_reads_standard_error() {
    let lab = lab();
    for (i, to) in ["2>&-", "2>/dev/full"].into_iter().enumerate() {
        let line = format!(
            "synth seeds.safetensors --vae vae.safetensors --fold 4 --shard-rows 16 --progress-every 0 --out o{i}"
        );
        let said = shell(&lab, &format!("exec $LENSMITH {line} {to}"));
        assert_eq!(said.code, Some(0), "{to}: {said:?}");
        lab.fine(&format!("verify @o{i}"));
        let said = shell(&lab, &format!("exec $LENSMITH verify nowhere {to}"));
        assert_eq!(said.code, Some(1), "{to}: {said:?}");
        let said = shell(&lab, &format!("exec $LENSMITH verify {to}"));
        assert_eq!(said.code, Some(2), "{to}: {said:?}");
    }
}

/// M5: bytes that change under a time put back are found by the time that nobody can set.
#[test]
fn m5_a_time_put_back() {
    let lab = lab();
    for io in [Io::Mmap, Io::Read] {
        let path = lab.pairs("input.safetensors", Dtype::F32, 40, 32, 1);
        let options = PairOptions { io, ..PairOptions::default() };
        let set = PairSet::open(&[lab.text("input.safetensors")], &options).expect("pairs");
        set.require_unchanged().expect("nothing happened");
        let modified = path.metadata().and_then(|meta| meta.modified()).expect("a time");
        let file = File::options().write(true).open(&path).expect("it is there");
        file.write_all_at(&[0x3f; 4], 5000).expect("a change");
        file.set_modified(modified).expect("the time put back");
        let error = set.require_unchanged().expect_err("it changed");
        assert!(error.to_string().contains("its time put back"), "{error}");
    }
}

/// M6: a damaged file that makes a decoder panic is an error on one line.
#[test]
fn m6_damaged_columns_are_one_line() {
    let lab = lab();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/convert");
    let mut failures = 0;
    for name in ["stream.arrow", "file.arrow"] {
        let good = fs::read(golden.join(name)).expect("a golden file");
        for trial in 0..150u64 {
            let mut bytes = good.clone();
            for i in 0..3 {
                let draw = (trial * 3 + i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16;
                let at = draw as usize % bytes.len();
                bytes[at] ^= 1 << (draw % 8) | 0x40;
            }
            lab.put(name, &bytes);
            let said = lab.run(&format!("import @{name} --out @i --overwrite"));
            assert!(
                matches!(said.code, Some(0..=2)) && said.err.lines().count() <= 1,
                "{name} {trial}: {said:?}"
            );
            failures += usize::from(said.code != Some(0));
        }
    }
    assert!(failures > 50, "{failures} failures: the damage does none");
    // Found by damage: one that the decoder itself panics on.
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/decoder_panics.arrow");
    lab.put("panics.arrow", &fs::read(golden).expect("a golden file"));
    refused(
        &lab.run("import @panics.arrow --out @i --overwrite"),
        &["panics.arrow: not a usable Arrow file"],
    );
}

/// M7: a path that is no text is refused before any work.
#[test]
fn m7_paths_that_are_no_text() {
    let lab = lab();
    let bad = "$(printf 'b\\377d')";
    for line in [
        format!("inspect {bad}"),
        format!("synth seeds.safetensors --vae vae.safetensors --fold 2 --out {bad}"),
        format!("synth {bad} --vae vae.safetensors --fold 2 --out o"),
        format!("train-vae seeds.safetensors --out {bad} {VAE}"),
    ] {
        let said = shell(&lab, &format!("$LENSMITH {line}"));
        assert_eq!(said.code, Some(2), "{said:?}");
        refused(&said, &["is not UTF-8"]);
    }
    // A folder that holds such names, and one that is called so.
    let line = "synth ../seeds.safetensors --vae ../vae.safetensors --fold 2 --out o";
    let said = shell(&lab, &format!("mkdir {bad} && cd {bad} && $LENSMITH {line}"));
    refused(&said, &["UTF-8"]);
    let said = shell(
        &lab,
        &format!(
            "mkdir d && cp seeds.safetensors d/{bad}.safetensors && $LENSMITH train-vae d --out v {VAE}"
        ),
    );
    refused(&said, &["UTF-8"]);
    let said = shell(&lab, "$LENSMITH inspect d");
    assert!(matches!(said.code, Some(0 | 1)), "{said:?}");
}

/// M8: a small file may not unpack to fill the memory.
#[test]
fn m8_small_files_of_many_bytes() {
    let lab = lab();
    // Zeros, which take no room as a file with holes and little in Parquet.
    for (rows, columns, word) in [(1, (1 << 24) + 16, "values in"), (30, 1 << 20, "unpack to")] {
        let bytes = rows * columns * 4;
        let header = format!(
            "{{\"embeddings\":{{\"dtype\":\"F32\",\"shape\":[{rows},{columns}],\"data_offsets\":[0,{bytes}]}}}}"
        );
        let path = lab.put("zeros.safetensors", &raw(&header, &[]));
        let file = File::options().write(true).open(path).expect("it is there");
        file.set_len((8 + header.len() + bytes) as u64).expect("holes");
        lab.fine("export @zeros.safetensors --out @zeros.parquet --row-group-rows 100 --overwrite");
        let packed = lab.bytes("zeros.parquet").len();
        assert!(packed < 100_000, "{packed}");
        refused(&lab.run("import @zeros.parquet --plain --out @i"), &[word, "at most"]);
    }
    // The same file, whose metadata says that it unpacks to 1,000 bytes; the headers of its pages know better.
    let said = lab.run("import @zeros.parquet --plain --out @i").err;
    let unpacked = said.split("unpack to ").nth(1).and_then(|rest| rest.split(',').next()).expect("a size");
    let digits = |number: u64, bytes: usize| -> Vec<u8> {
        let more = |at: usize| if at + 1 < bytes { 0x80 } else { 0 };
        (0..bytes).map(|at| ((2 * number) >> (7 * at)) as u8 & 0x7f | more(at)).collect()
    };
    let there = digits(unpacked.parse().expect("a number"), 4);
    let mut bytes = lab.bytes("zeros.parquet");
    let places: Vec<usize> = (0..bytes.len() - 4).filter(|&at| bytes[at..at + 4] == there).collect();
    assert!(!places.is_empty(), "no place that says {unpacked}");
    for at in places {
        bytes[at..at + 4].copy_from_slice(&digits(1000, 4));
    }
    lab.put("zeros.parquet", &bytes);
    refused(&lab.run("import @zeros.parquet --plain --out @i"), &["unpack to", "at most"]);
    // What a compressed buffer of Arrow claims stands before it.
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/convert/sliced_zstd.feather");
    let mut bytes = fs::read(golden).expect("a golden file");
    let magic = [0x28, 0xb5, 0x2f, 0xfd];
    let found: Vec<usize> = (8..bytes.len() - 4).filter(|&at| bytes[at..at + 4] == magic).collect();
    for at in found {
        bytes[at - 8..at].copy_from_slice(&(1i64 << 30).to_le_bytes());
    }
    lab.put("bomb.feather", &bytes);
    refused(&lab.run("import @bomb.feather --out @i"), &["unpacks to", "at most"]);
}

/// M9: a reward that is not a finite number is an error that names its row.
#[test]
fn m9_rewards_that_are_not_finite() {
    let lab = lab();
    let layer = |weight: f32, count: usize| f32_bytes(&vec![weight; count]);
    lab.tensors(
        "reward.safetensors",
        &[
            ("0.weight", "F32", &[16, 32], layer(3e38, 16 * 32)),
            ("0.bias", "F32", &[16], layer(3e38, 16)),
            ("2.weight", "F32", &[1, 16], layer(3e38, 16)),
            ("2.bias", "F32", &[1], layer(0.0, 1)),
        ],
    );
    let out = "--out @scores.safetensors";
    for line in [
        format!("score @seeds.safetensors --model @reward.safetensors --tensor chosen {out}"),
        "score @seeds.safetensors --model @reward.safetensors --tensor chosen --json".to_string(),
        "eval @seeds.safetensors --model @reward.safetensors".to_string(),
    ] {
        let said = lab.run(&line);
        assert_eq!(said.code, Some(1), "{line}: {said:?}");
        refused(&said, &["reward of ", "a finite number"]);
        assert!(!lab.at("scores.safetensors").exists());
    }
}

/// M9: half of a run is not taken for the whole.
#[test]
fn m9_folders_of_unfinished_runs() {
    let lab = lab();
    let synth =
        "synth @seeds.safetensors --vae @vae.safetensors --fold 4 --shard-rows 16 --dtype f32 --out @";
    lab.fine(&format!("{synth}parts --part 1/3"));
    lab.fine(&format!("{synth}lost"));
    fs::remove_file(lab.at("lost/pairs-00003.safetensors")).expect("a shard");
    lab.fine(&format!("{synth}stopped"));
    let mut manifest = lab.value("stopped/manifest.json");
    manifest["complete"] = json!(false);
    lab.put("stopped/manifest.json", manifest.to_string().as_bytes());
    lab.fine("train-reward @seeds.safetensors --out @reward.safetensors --reward-hidden 16 --epochs 1");
    let says = [("parts", "2 of 3 parts"), ("lost", "pairs-00003.safetensors"), ("stopped", "interrupted")];
    for (folder, word) in says {
        for line in [
            "train-reward @FOLDER --out @r.safetensors --reward-hidden 16 --epochs 1",
            "train-reward @seeds.safetensors --validation @FOLDER --out @r.safetensors --reward-hidden 16 --epochs 1",
            "train-vae @FOLDER --out @r.safetensors --hidden 16 --latent 16 --vae-epochs 1",
            "eval @FOLDER --model @reward.safetensors",
            "score @FOLDER --tensor chosen --model @reward.safetensors --out @r.safetensors",
            "export @FOLDER --out @r.parquet",
        ] {
            let line = line.replace("FOLDER", folder);
            refused(&lab.run(&line), &[word, "--allow-partial"]);
            assert_eq!(lab.run(&format!("{line} --allow-partial")).code, Some(0), "{line}");
            let _ = fs::remove_file(lab.at("r.safetensors"));
            let _ = fs::remove_file(lab.at("r.parquet"));
        }
    }
    // All parts are a whole, merged or not; another program's manifest says nothing.
    lab.fine(&format!("{synth}parts --part 0/3"));
    refused(&lab.run("eval @parts --model @reward.safetensors"), &["part 2/3"]);
    lab.fine(&format!("{synth}parts --part 2/3"));
    lab.fine("eval @parts --model @reward.safetensors");
    lab.fine("merge-manifests @parts");
    lab.fine("eval @parts --model @reward.safetensors");
    fs::create_dir(lab.at("app")).expect("a folder");
    fs::copy(lab.at("seeds.safetensors"), lab.at("app/seeds.safetensors")).expect("a copy");
    lab.put("app/manifest.json", b"{\"name\": \"an app\"}");
    lab.fine("eval @app --model @reward.safetensors");
}

/// M9: a loss that grows without end is an error though it is finite.
#[test]
fn m9_a_loss_that_explodes() {
    let lab = lab();
    let line = "train-vae @seeds.safetensors --out @v.safetensors --hidden 16 --latent 16 --divergence w2-squared --vae-epochs 4000";
    let said = lab.run(&format!("{line} --gamma 10"));
    refused(&said, &["diverged", "--vae-lr"]);
    assert!(!lab.at("v.safetensors").exists());
}

/// L1: a header is parsed only if memory bears it.
#[test]
fn l1_headers_of_many_megabytes() {
    let lab = lab();
    let mut header = String::from("{");
    for i in 0..150_000 {
        header.push_str(&format!("\"t{i}\":{{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]}},"));
    }
    header.push_str("\"__metadata__\":{}}");
    lab.put("many.safetensors", &raw(&header, &[]));
    refused(&within_ten_seconds(&lab, "inspect @many.safetensors"), &["a header of", "8000000"]);
}

/// L2: names from elsewhere do not reach the terminal as commands to it.
#[test]
fn l2_escape_sequences_in_names() {
    let lab = lab();
    let name = "red\u{1b}[31m\u{7}\u{9b}31m";
    lab.tensors(
        "named.safetensors",
        &[(
            serde_json::to_string(name).expect("text")[1..].trim_end_matches('"'),
            "F32",
            &[2, 2],
            f32_bytes(&[0.0; 4]),
        )],
    );
    for line in [
        "inspect @named.safetensors",
        "train-vae @named.safetensors --out @v.safetensors",
        "inspect @named.safetensors --json",
    ] {
        let said = lab.run(line);
        let control = |text: &str| text.chars().any(|c| c.is_control() && c != '\n');
        assert!(!control(&said.out) && !control(&said.err), "{said:?}");
        assert!(said.out.contains("red") || said.err.contains("red"), "{said:?}");
    }
}

/// L3: of two tensors of one name neither is taken.
#[test]
fn l3_names_that_come_twice() {
    let lab = lab();
    let entry = |at: usize| {
        format!("\"chosen\":{{\"dtype\":\"F32\",\"shape\":[1,2],\"data_offsets\":[{at},{}]}}", at + 8)
    };
    let header = format!("{{{},{}}}", entry(0), entry(8));
    lab.put("twice.safetensors", &raw(&header, &[0; 16]));
    refused(&lab.run("inspect @twice.safetensors"), &["twice"]);
}

/// L4: a recipe from elsewhere names files anywhere; only what lies around it, or in the working folder, is taken.
#[test]
fn l4_recipes_that_name_any_path() {
    let lab = lab();
    lab.fine("train-reward @seeds.safetensors --out @reward.safetensors --reward-hidden 16 --epochs 1");
    lab.fine("synth @seeds.safetensors --vae @vae.safetensors --fold 4 --out @synth");
    // Around the recipe: its folder lies beside the seeds.
    lab.fine("verify @synth");
    fs::create_dir_all(lab.at("from/elsewhere")).expect("folders");
    fs::rename(lab.at("synth"), lab.at("from/elsewhere/synth")).expect("it moves");
    let recipe = "@from/elsewhere/synth/recipe.json";
    let lines = [
        "verify @from/elsewhere/synth".to_string(),
        format!("inspect {recipe} --pair 3"),
        format!("materialize {recipe} --out @made"),
        format!("train-reward --recipe {recipe} --out @r.safetensors --reward-hidden 16 --epochs 1"),
        format!("eval @seeds.safetensors --model @reward.safetensors --recipe {recipe}"),
    ];
    for line in &lines {
        let words = ["--allow-outside", "vae.safetensors, which lies neither around it"];
        refused(&lab.run(line), &words);
        assert!(!lab.at("made").exists() && !lab.at("r.safetensors").exists());
        lab.fine(&format!("{line} --allow-outside"));
        if !line.contains("--recipe") {
            lab.fine(&format!("{line} --seeds @seeds.safetensors --vae @vae.safetensors"));
        }
        for made in ["made", "r.safetensors"] {
            let _ = fs::remove_dir_all(lab.at(made)).or_else(|_| fs::remove_file(lab.at(made)));
        }
    }
    // From the folder that holds them it is the user who works there.
    let mut command = binary();
    command.args(lab.words(&lines[0])).current_dir(lab.at(""));
    let said = Said::from(command.output().expect("the binary starts"));
    assert_eq!(said.code, Some(0), "{said:?}");
    // Nor by links, names that climb, or patterns.
    let text = String::from_utf8(lab.bytes("from/elsewhere/synth/recipe.json")).expect("text");
    symlink(lab.at("seeds.safetensors"), lab.at("from/elsewhere/link.safetensors")).expect("a link");
    fs::copy(lab.at("vae.safetensors"), lab.at("from/elsewhere/vae.safetensors")).expect("a copy");
    let text = text.replace(&lab.text("vae.safetensors"), "../vae.safetensors");
    for source in [
        "../link.safetensors",
        "../../../seeds.safetensors",
        "../li*.safetensors",
        "../../../se*.safetensors",
    ] {
        lab.put(
            "from/elsewhere/synth/recipe.json",
            text.replace(&lab.text("seeds.safetensors"), source).as_bytes(),
        );
        refused(&lab.run(&lines[0]), &["--allow-outside", "which lies neither around it"]);
    }
    fs::copy(lab.at("seeds.safetensors"), lab.at("from/elsewhere/seeds.safetensors")).expect("a copy");
    for source in ["../seeds.safetensors", "../see*.safetensors"] {
        lab.put(
            "from/elsewhere/synth/recipe.json",
            text.replace(&lab.text("seeds.safetensors"), source).as_bytes(),
        );
        lab.fine(&lines[0]);
    }
}

/// L5: more threads than any machine has cores are refused.
#[test]
fn l5_threads_without_end() {
    let lab = lab();
    for threads in ["1025", "18446744073709551615"] {
        let line = format!("score @seeds.safetensors --model @r --tensor chosen --threads {threads}");
        refused(&lab.run(&line), &["--threads"]);
    }
}

/// L6: sizes that no memory holds are refused before the work, by the name of the option.
#[test]
fn l6_sizes_that_cannot_be_allocated() {
    let lab = lab();
    let out = "--out @new.safetensors";
    for (line, option) in [
        ("demo --simulated --dim 65536 --seeds 99999999999".to_string(), "--seeds"),
        ("demo --simulated --dim 64 --seeds 18446744073709551615".to_string(), "--seeds"),
        (format!("train-vae @seeds.safetensors {out} --hidden 16777216 --latent 16777216"), "--hidden"),
        ("bench --no-limits --only encode --dim 65536 --hidden 16777216".to_string(), "--hidden"),
        (
            "bench --no-limits --only score --rows 4 --dim 65536 --reward-hidden 16777216".to_string(),
            "--reward-hidden",
        ),
        ("bench --no-limits --only run --dim 65536 --seeds 99999999999".to_string(), "--seeds"),
        ("bench --no-limits --only encode --dim 65536 --rows 67108864".to_string(), "--rows"),
    ] {
        let said = within_ten_seconds(&lab, &line);
        // Of a machine that others use a warning may come before.
        let last = said.err.lines().last().unwrap_or_default();
        assert!(
            said.code == Some(2) && last.contains(option) && last.contains("memory that are free"),
            "{said:?}"
        );
    }
}

/// L7: a limit of file sizes is an error like a full disk, and the run goes on where it stopped.
#[test]
fn l7_a_limit_of_file_sizes() {
    let lab = lab();
    let line = "synth seeds.safetensors --vae vae.safetensors --fold 8 --dtype f32 --out o";
    let said = shell(&lab, &format!("ulimit -f 8; exec $LENSMITH {line}"));
    assert_eq!(said.code, Some(1), "{said:?}");
    refused(&said, &["File too large"]);
    assert_eq!(shell(&lab, &format!("exec $LENSMITH {line}")).code, Some(0));
    lab.fine("verify @o");
}

/// L8: shards may be more than a process may have open files.
#[test]
fn l8_more_shards_than_descriptors() {
    let lab = lab();
    lab.fine(
        "synth @seeds.safetensors --vae @vae.safetensors --fold 4 --shard-rows 1 --dtype f32 --out @many",
    );
    for io in ["read", "mmap"] {
        let line = format!("train-vae many --io {io} --overwrite --out v.safetensors {VAE}");
        let said = shell(&lab, &format!("ulimit -n 40; exec $LENSMITH {line}"));
        assert_eq!(said.code, Some(0), "{io}: {said:?}");
    }
}

/// The scripts for sceptics hold what they say of this program.
#[test]
fn attacks_from_outside() {
    let run = Path::new(env!("CARGO_MANIFEST_DIR")).join("attacks/run");
    let said = Command::new(run).env("LENSMITH", env!("CARGO_BIN_EXE_lensmith")).output().expect("bash");
    let said = Said::from(said);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(
        said.out.lines().count() >= 12 && said.out.lines().all(|line| line.starts_with("held ")),
        "{said:?}"
    );
}

/// L9: a result that nobody could read is an error, but for a reader that has gone.
#[test]
fn l9_a_full_standard_output() {
    let lab = lab();
    for line in ["inspect seeds.safetensors", "inspect seeds.safetensors --json"] {
        let said = shell(&lab, &format!("exec $LENSMITH {line} >/dev/full"));
        assert_eq!(said.code, Some(1), "{said:?}");
        refused(&said, &["standard output"]);
        let said = shell(&lab, &format!("$LENSMITH {line} | true"));
        assert_eq!((said.code, said.err.as_str()), (Some(0), ""), "{said:?}");
    }
}
