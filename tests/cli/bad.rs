//! Bad input: one line that names the culprit, the right exit code, and nothing left behind. The commands and what they
//! say are in tests/cli/transcripts.

use std::fs::{self, File};

use crate::support::{with_everything, with_models};
use crate::transcript::check;

#[test]
fn wrong_usage() {
    assert!(check(&with_models(), "usage") >= 74);
}

#[test]
fn bad_data() {
    assert!(check(&with_everything(), "data") >= 62);
}

#[test]
fn bad_checkpoints_and_recipes() {
    assert!(check(&with_everything(), "checkpoints") >= 44);
}

#[test]
fn bad_texts_to_select_from() {
    assert!(check(&with_everything(), "select") >= 26);
}

#[test]
fn outputs_in_the_way() {
    let lab = with_everything();
    // Held locks stand for other processes at work.
    let held = [("busy", ".synth.lock"), ("parted", ".synth-1-of-2.lock"), ("running", ".run.lock")];
    let locks: Vec<File> = held
        .iter()
        .map(|(folder, name)| {
            fs::create_dir(lab.at(folder)).expect("a folder");
            let file = File::create(lab.at(folder).join(name)).expect("a lock file");
            file.lock().expect("the lock");
            file
        })
        .collect();
    assert!(check(&lab, "outputs") >= 32);
    drop(locks);
}
