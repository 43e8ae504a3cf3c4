//! Small data for sweeps, and what a sweep left behind.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use lensmith::dtype::Dtype;
use serde_json::Value;

use crate::common::cli::{Lab, Said, f32_bytes, file};
use crate::common::{data, normals};

/// Width of the data.
pub const DIM: usize = 32;
/// Pairs of the data.
pub const ROWS: usize = 120;
/// Models as small as they can be, but trained long enough to differ.
pub const MODELS: &str =
    "--hidden 16 --latent 16 --vae-epochs 2 --reward-hidden 32 --epochs 2 --batch 16 --lr 1e-2 --vae-lr 1e-3";
/// 40 seed, 30 validation and 50 test pairs.
pub const SMALL: &str = "sweep @pairs.safetensors --seeds 40 --validation-pairs 30";

/// A folder with pairs.
pub fn lab() -> Lab {
    let lab = Lab::new();
    lab.pairs("pairs.safetensors", Dtype::F32, ROWS, DIM, 1);
    lab
}

/// Best-of-N sets of 6 prompts with 4 candidates.
pub fn with_sets(lab: &Lab) {
    let (candidates, gold) = (f32_bytes(&data(7, 24, DIM)), f32_bytes(&normals(6, 0, 24)));
    let tensors = [("candidates", "F32", &[6, 4, DIM][..], candidates), ("gold", "F32", &[6, 4][..], gold)];
    lab.put("sets.safetensors", &file(&tensors));
}

/// A number of a row. NaN, which JSON writes as null, is none.
#[track_caller]
pub fn number(row: &Value, name: &str) -> f64 {
    row[name].as_f64().unwrap_or_else(|| panic!("{name} is {} in {row}", row[name]))
}

/// The lines of results.jsonl, whatever they hold.
#[track_caller]
pub fn lines(lab: &Lab, out: &str) -> Vec<Value> {
    let text = String::from_utf8(lab.bytes(&format!("{out}/results.jsonl"))).expect("text");
    text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

/// The lines of results.jsonl, of which there are some, with numbers where an arm was measured.
#[track_caller]
pub fn rows(lab: &Lab, out: &str) -> Vec<Value> {
    let rows = lines(lab, out);
    assert!(!rows.is_empty(), "{out}: no rows");
    for row in &rows {
        for name in ["accuracy", "loss", "brier", "calibration_error", "margin_mean", "pairs", "steps"] {
            number(row, name);
        }
    }
    rows
}

/// Inode and time of a file.
pub type Stamps = BTreeMap<PathBuf, (u64, i64, i64)>;

/// Those of the finished cells and VAEs of a sweep.
pub fn stamps(lab: &Lab, out: &str) -> Stamps {
    let mut found = Stamps::new();
    for kind in ["cells", "vaes"] {
        let Ok(entries) = fs::read_dir(lab.at(&format!("{out}/{kind}"))) else { continue };
        for entry in entries {
            let entry = entry.expect("an entry");
            let name = entry.file_name().to_string_lossy().into_owned();
            if !name.starts_with('.') {
                let about = entry.metadata().expect("what was listed");
                let stamp = (about.ino(), about.mtime(), about.mtime_nsec());
                found.insert(Path::new(kind).join(name), stamp);
            }
        }
    }
    found
}

/// How many cells and VAEs there are.
pub fn counts(stamps: &Stamps) -> [usize; 2] {
    ["cells", "vaes"].map(|kind| stamps.keys().filter(|path| path.starts_with(kind)).count())
}

/// Panics unless every file that was there is still the same one.
#[track_caller]
pub fn assert_kept(what: &str, before: &Stamps, after: &Stamps) {
    assert!(!before.is_empty(), "{what}: nothing was there");
    for (path, stamp) in before {
        assert_eq!(after.get(path), Some(stamp), "{what}: {} was written again", path.display());
    }
}

/// Panics unless a command is refused as wrong usage, in one line with these words.
#[track_caller]
pub fn assert_refused(said: &Said, words: &[&str]) {
    assert_eq!((said.code, said.out.as_str()), (Some(2), ""), "{said:?}");
    assert_eq!(said.err.lines().count(), 1, "{said:?}");
    for word in words {
        assert!(said.err.contains(word), "{word:?} is not in {said:?}");
    }
}
