//! Disks that are full or cannot be written: small file systems, and limits on the size of files.

use std::fs;
use std::process::Command;

use lensmith::dtype::Dtype;

use crate::common::cli::{Lab, Listing, Said, assert_same_files, bare, listing, outputs, shards};
use crate::support::VAE;

/// 160 seeds, a VAE, and the synthesis of 1,280 pairs in 10 shards of 68 KiB.
fn lab() -> Lab {
    let lab = Lab::new();
    lab.pairs("seeds.safetensors", Dtype::F32, 160, 64, 1);
    lab.fine(&format!("train-vae @seeds.safetensors --out @vae.safetensors {VAE}"));
    lab
}

const SYNTH: &str =
    "synth @seeds.safetensors --vae @vae.safetensors --fold 8 --dtype f32 --shard-rows 128 --out @";
const SHARDS: usize = 10;

/// Runs `script` in bash with the binary as `$0` and the words of `line` as its arguments.
fn bash(lab: &Lab, wrapper: &[&str], script: &str, line: &str) -> Said {
    let mut words: Vec<&str> = wrapper.to_vec();
    words.extend(["bash", "-c", script, env!("CARGO_BIN_EXE_lensmith")]);
    let mut command = bare(Command::new(words[0]));
    command.args(&words[1..]).args(lab.words(line)).env("LAB", lab.at(""));
    command.output().expect("a shell").into()
}

/// A clear one-line error.
#[track_caller]
fn assert_refused(said: &str, parts: &[&str]) {
    assert!(said.starts_with("lensmith: ") && said.lines().count() == 1, "{said:?}");
    assert!(!said.contains("panicked"), "{said:?}");
    for part in parts {
        assert!(said.contains(part), "does not say {part:?}: {said:?}");
    }
}

/// Whole shards alone, each with the bytes of the undisturbed run, and the state to resume from.
#[track_caller]
fn assert_begun(there: &Listing, whole: &Listing) -> usize {
    let done = shards(there);
    for (path, bytes) in &done {
        assert!(bytes == &whole[path], "{} is not the whole shard", path.display());
    }
    let state = there.keys().filter(|p| !done.contains_key(*p)).map(|p| p.display().to_string());
    assert_eq!(state.collect::<Vec<_>>(), ["manifest.json", "recipe.json"], "left behind");
    let manifest = there.iter().find(|(p, _)| p.ends_with("manifest.json")).and_then(|(_, b)| b.as_deref());
    let manifest: serde_json::Value = serde_json::from_slice(manifest.expect("a file")).expect("JSON");
    assert_eq!(manifest["complete"], false);
    done.len()
}

/// Ways to a mount name space of one's own: as root, and as a user.
const PRIVATE: [&[&str]; 2] = [&["unshare", "-m"], &["unshare", "-rm"]];
/// Exit code of the scripts when they may not mount.
const NO_MOUNT: i32 = 77;

/// Runs a script where it may mount, if there is such a place.
fn mounted(lab: &Lab, script: &str, line: &str) -> Option<Said> {
    let said = PRIVATE.iter().find_map(|wrapper| {
        let allowed = Command::new(wrapper[0]).args(&wrapper[1..]).arg("true").output();
        allowed.ok().filter(|o| o.status.success())?;
        Some(bash(lab, wrapper, script, line)).filter(|said| said.code != Some(NO_MOUNT))
    });
    if said.is_none() {
        eprintln!(
            "\n*** NOT RUN: no file system can be mounted here; only the limit on file sizes is tested ***\n"
        );
    }
    said
}

#[test]
fn full_disk_says_so_and_the_rerun_finishes() {
    let lab = lab();
    lab.fine(&format!("{SYNTH}whole"));
    let whole = outputs(&lab.at("whole"));
    assert_eq!(shards(&whole).len(), SHARDS);
    fs::create_dir(lab.at("small")).expect("a folder");
    let script = r#"
        mount -t tmpfs -o size=1m tmpfs "$LAB/small" || exit 77
        head -c 700000 /dev/zero > "$LAB/small/filler" || exit 78
        "$0" "$@" > "$LAB/out" 2> "$LAB/err"; echo "$?" > "$LAB/code"
        cp -r "$LAB/small/synth" "$LAB/begun" || exit 79
        rm "$LAB/small/filler"
        "$0" "$@" > "$LAB/out2" 2> "$LAB/err2"; echo "$?" > "$LAB/code2"
        cp -r "$LAB/small/synth" "$LAB/finished" || exit 80"#;
    let Some(said) = mounted(&lab, script, &format!("{SYNTH}small/synth")) else { return };
    assert_eq!(said.code, Some(0), "{said:?}");
    let text = |name: &str| String::from_utf8(lab.bytes(name)).expect("text");
    assert_eq!(text("code"), "1\n");
    assert_refused(&text("err"), &["cannot write", "small/synth/pairs-0000", "No space left on device"]);
    let done = assert_begun(&outputs(&lab.at("begun")), &whole);
    assert!((1..SHARDS).contains(&done), "{done} shards fitted");
    assert_eq!((text("code2").as_str(), text("err2").as_str()), ("0\n", ""));
    assert!(text("out2").contains("were there already"), "{}", text("out2"));
    assert_same_files("after freeing space", &outputs(&lab.at("finished")), &whole);
}

#[test]
fn limit_on_file_sizes_says_so_and_the_rerun_finishes() {
    let lab = lab();
    lab.fine(&format!("{SYNTH}whole"));
    let whole = outputs(&lab.at("whole"));
    // Bash counts in KiB: the recipe and the manifest fit, a shard does not. The signal is ignored, so that writing
    // fails instead.
    let script = r#"trap '' XFSZ; ulimit -f 32; exec "$0" "$@""#;
    let said = bash(&lab, &[], script, &format!("{SYNTH}synth"));
    assert_eq!((said.code, said.out.as_str()), (Some(1), ""), "{said:?}");
    assert_refused(&said.err, &["cannot write", "synth/pairs-00000.safetensors", "File too large"]);
    assert_eq!(assert_begun(&outputs(&lab.at("synth")), &whole), 0);
    lab.fine(&format!("{SYNTH}synth"));
    assert_same_files("without the limit", &outputs(&lab.at("synth")), &whole);

    // Files of their own: nothing at all may stay, and what was there stays as it was.
    lab.fine("train-reward @seeds.safetensors --out @reward.safetensors --reward-hidden 16 --epochs 1");
    lab.put("emb.safetensors", &lab.bytes("seeds.safetensors"));
    let script = r#"trap '' XFSZ; ulimit -f 4; exec "$0" "$@""#;
    for line in [
        format!("train-vae @seeds.safetensors --out @new.safetensors {VAE}"),
        format!("train-vae @seeds.safetensors --out @vae.safetensors --overwrite --seed 5 {VAE}"),
        "train-reward @seeds.safetensors --out @new.safetensors --reward-hidden 16 --epochs 1".into(),
        "train-reward @seeds.safetensors --out @reward.safetensors --overwrite --reward-hidden 32 --epochs 1"
            .into(),
        "score @emb.safetensors --tensor chosen --model @reward.safetensors --out @new.safetensors".into(),
    ] {
        let before = listing(&lab.at(""));
        let said = bash(&lab, &[], script, &line);
        assert_eq!((said.code, said.out.as_str()), (Some(1), ""), "{line}: {said:?}");
        assert_refused(&said.err, &["cannot write", ".safetensors", "File too large"]);
        assert_same_files(&line, &listing(&lab.at("")), &before);
    }
}

#[test]
fn read_only_file_system_says_so() {
    let lab = lab();
    lab.fine("train-reward @seeds.safetensors --out @reward.safetensors --reward-hidden 16 --epochs 1");
    fs::create_dir(lab.at("ro")).expect("a folder");
    let script = r#"mount -t tmpfs -o ro,size=1m tmpfs "$LAB/ro" || exit 77; "$0" "$@""#;
    for line in [
        format!("train-vae @seeds.safetensors --out @ro/vae.safetensors {VAE}"),
        "train-reward @seeds.safetensors --out @ro/r.safetensors --reward-hidden 16 --epochs 1".into(),
        "score @seeds.safetensors --tensor chosen --model @reward.safetensors --out @ro/s.safetensors".into(),
        format!("{SYNTH}ro/synth"),
        format!("{SYNTH}ro"),
        "run @seeds.safetensors --seeds 100 --validation-pairs 20 --out @ro/run".into(),
    ] {
        let Some(said) = mounted(&lab, script, &line) else { return };
        assert_eq!((said.code, said.out.as_str()), (Some(1), ""), "{line}: {said:?}");
        assert_refused(&said.err, &["cannot create", "/ro", "Read-only file system"]);
    }
}
