//! Seeded damage to files of every format: no reader panics, hangs or takes the memory. The fuzz targets in `fuzz/` go on
//! where this ends. `LENSMITH_DAMAGE_RUNS=100000 tools/test --test damage` does more of it.

mod common;

#[path = "../fuzz/formats.rs"]
mod formats;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::cli::Lab;
use lensmith::noise::{Purpose, Stream};

/// Damaged files of each format.
fn runs() -> usize {
    std::env::var("LENSMITH_DAMAGE_RUNS").map_or(1000, |runs| runs.parse().expect("a number"))
}

/// Flips, overwrites, cuts and repeats a few pieces.
fn damage(bytes: &mut Vec<u8>, draw: &mut Stream) {
    for _ in 0..1 + draw.below(4) {
        let len = bytes.len() as u32;
        if len < 16 {
            return;
        }
        let at = draw.below(len) as usize;
        match draw.below(6) {
            0 => bytes[at] ^= 1 << draw.below(8),
            1 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][draw.below(5) as usize],
            2 => bytes[at] = b"0123456789-e.[]{}\",:"[draw.below(20) as usize],
            3 => {
                let value = [1u64 << 20, 1 << 31, 1 << 40, 1 << 62, u64::MAX][draw.below(5) as usize];
                let end = (at + 8).min(bytes.len());
                bytes[at..end].copy_from_slice(&value.to_le_bytes()[..end - at]);
            }
            4 => bytes.truncate(at),
            _ => {
                let end = (at + draw.below(64) as usize).min(bytes.len());
                let piece = bytes[at..end].to_vec();
                bytes.splice(at..at, piece);
            }
        }
    }
}

/// Damages each of `good` in turn and reads it; gives how many reads succeeded.
fn exercise(good: &[PathBuf], scratch: &Path, read: impl Fn(&Path, &[u8]) -> usize) -> usize {
    let mut draw = Stream::new(17, Purpose::Simulation, 0);
    let mut accepted = 0;
    for run in 0..runs() {
        let from = &good[run % good.len()];
        let mut bytes = fs::read(from).expect("a good file");
        damage(&mut bytes, &mut draw);
        let start = Instant::now();
        accepted += read(&scratch.join(from.file_name().expect("a name")), &bytes);
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "{}, damaged for the {run}th time",
            from.display()
        );
    }
    // Of the whole process, which has read everything.
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak =
        status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok());
    assert!(peak.is_none_or(|kib: u64| kib < 512 << 10), "{peak:?} KiB");
    accepted
}

fn lab() -> Lab {
    let lab = Lab::small();
    lab.fine("train-reward @seeds.safetensors --out @reward.safetensors --reward-hidden 16 --epochs 1");
    lab.fine("synth @seeds.safetensors --vae @vae.safetensors --fold 4 --shard-rows 48 --out @synth");
    fs::create_dir(lab.at("scratch")).expect("a folder");
    lab
}

#[test]
fn manifests_and_recipes() {
    let lab = lab();
    let good = ["synth/manifest.json", "synth/recipe.json"].map(|name| lab.at(name));
    exercise(&good, &lab.at("scratch"), formats::documents);
    for path in &good {
        assert_eq!(formats::documents(path, &fs::read(path).expect("it is there")), 1, "undamaged");
    }
}

#[test]
fn checkpoints() {
    let lab = lab();
    let good = ["vae.safetensors", "reward.safetensors"].map(|name| lab.at(name));
    let accepted = exercise(&good, &lab.at("scratch"), formats::checkpoints);
    assert!(accepted > 0, "damage to weights is no damage to a file");
}

#[test]
fn columns() {
    let lab = lab();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/convert");
    for ending in ["npy", "npz", "parquet", "arrow", "feather"] {
        let mut good: Vec<PathBuf> = fs::read_dir(&golden)
            .expect("golden files")
            .map(|entry| entry.expect("a golden file").path())
            .filter(|path| path.extension().is_some_and(|found| found == ending))
            .collect();
        good.sort();
        assert!(!good.is_empty());
        let accepted = exercise(&good, &lab.at("scratch"), formats::columns);
        assert!(accepted > 0, "{ending}: every file is refused");
    }
}
