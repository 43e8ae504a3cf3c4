//! Transcripts of commands that fail. A file in tests/cli/transcripts holds for each of them a name, the command, what it
//! says on standard error, its exit code, and the paths that it leaves behind:
//!
//! ```text
//! # no VAE
//! $ lensmith synth @seeds.safetensors --out @new
//! lensmith: the following required arguments were not provided: --vae <FILE> (--help explains)
//! exit code 2
//! ```
//!
//! `@` is the test's folder. `SNAPSHOTS=overwrite cargo test --test cli` records what the commands say now; the change is
//! then read like any other.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use snapbox::{Data, assert_data_eq};

use crate::common::cli::{Lab, Listing, assert_same_files, listing};

/// A path below tests/cli.
pub fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli").join(name)
}

/// Runs every command of a transcript twice, for people and with `--json`, and compares. Gives the number of commands.
pub fn check(lab: &Lab, name: &str) -> usize {
    let path = file(&format!("transcripts/{name}.txt"));
    let written = fs::read_to_string(&path).expect("a transcript");
    let root = lab.at("");
    let before = listing(&root);
    let (mut said, mut wrong, mut commands) = (String::new(), String::new(), 0);
    for line in written.lines() {
        if line.is_empty() || line.starts_with('#') {
            said.push_str(&format!("{line}\n"));
        } else if let Some(words) = line.strip_prefix("$ lensmith ") {
            commands += 1;
            said.push_str(&format!("{line}\n{}", answer(lab, words, &before, &mut wrong)));
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    assert_same_files("after all commands", &listing(&root), &before);
    assert_data_eq!(said, Data::read_from(&path, None));
    commands
}

/// What a command says and leaves, as a transcript has it. What no failing command may do is added to `wrong`.
fn answer(lab: &Lab, words: &str, before: &Listing, wrong: &mut String) -> String {
    let root = lab.at("");
    let mut answers = [false, true].map(|json| {
        let run = lab.run(&if json { format!("{words} --json") } else { words.to_string() });
        let mut demand = |holds: bool, what: &str| {
            if !holds {
                wrong.push_str(&format!("\n{words}{}: {what}: {run:?}", if json { " (--json)" } else { "" }));
            }
        };
        demand(run.err.lines().count() == 1 && run.err.ends_with('\n'), "not one line");
        demand(run.err.starts_with("lensmith: "), "does not start with `lensmith: `");
        demand(!run.err.contains("panicked"), "a panic");
        demand(run.err.len() < 1500, "a long message");
        demand(matches!(run.code, Some(1 | 2)), "exit code");
        if json {
            let value: Value = serde_json::from_str(&run.out).unwrap_or(Value::Null);
            let keys = value.as_object().map(|o| o.keys().map(String::as_str).collect::<BTreeSet<_>>());
            demand(keys == Some(["error", "exit_code", "format"].into()), "keys of the JSON object");
            demand(value["exit_code"].as_i64() == run.code.map(i64::from), "exit code in the JSON object");
            let message = value["error"].as_str().unwrap_or_default();
            demand(!message.is_empty() && run.err.contains(message), "error in the JSON object");
        } else {
            demand(run.out.is_empty(), "something on standard output");
        }
        let after = listing(&root);
        let same = before.iter().all(|(path, bytes)| after.get(path) == Some(bytes));
        demand(same, "a file was changed or removed");
        let new: Vec<PathBuf> = after.into_keys().filter(|p| !before.contains_key(p)).collect();
        let left: String = new.iter().map(|path| format!("left: {}\n", path.display())).collect();
        for path in new.iter().rev().map(|p| root.join(p)) {
            if path.is_dir() { fs::remove_dir(&path) } else { fs::remove_file(&path) }.expect("removable");
        }
        let message = everywhere_the_same(&run.err, &lab.text(""));
        format!("{message}exit code {}\n{left}", run.code.unwrap_or(-1))
    });
    if answers[0] != answers[1] {
        wrong.push_str(&format!("\n{words}: other words with --json: {answers:?}"));
    }
    std::mem::take(&mut answers[0])
}

/// A message without what differs from run to run and from system to system: the test's folder, checksums, and why the
/// system lets nobody write to /proc.
fn everywhere_the_same(message: &str, root: &str) -> String {
    let message = message.replace(root, "@").replace(root.trim_end_matches('/'), "@");
    let message = match message.split_once("/proc/new: ") {
        Some((before, _)) => format!("{before}/proc/new: [reason]\n"),
        None => message,
    };
    let is_checksum = |word: &str| word.len() == 16 && word.chars().all(|c| c.is_ascii_hexdigit());
    let mut out = String::new();
    for part in message.split_inclusive(|c: char| !c.is_ascii_alphanumeric()) {
        let word = part.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
        out.push_str(&if is_checksum(word) { part.replace(word, "[checksum]") } else { part.to_string() });
    }
    out
}
