//! Power loss, simulated: a disk keeps what was forced to it, and may have lost everything else.
//!
//! A command writes down its changes. For each moment between two of them the worst disk that POSIX allows is built: a
//! folder has the names that it had when it was last synced, a file that was written to since its last sync holds zeros.
//! From there the same command must end with the bytes of an undisturbed run. (That nothing is lost, as when the process
//! alone is killed, is the other extreme: tests/faults.rs.)

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use common::cli::{Lab, Listing, assert_same_files, listing, outputs};

const SYNTH: &str = "synth @seeds.safetensors --vae @vae.safetensors --fold 4 --shard-rows 48 --dtype f32 --threads 1 --out @o/x";

/// A command, and those that make what is there before.
const CASES: [(&str, &[&str]); 7] = [
    (
        "train-vae @seeds.safetensors --out @o/v.safetensors --hidden 16 --latent 16 --vae-epochs 1 --overwrite",
        &[],
    ),
    (SYNTH, &[]),
    (
        "synth @seeds.safetensors --vae @vae.safetensors --fold 4 --shard-rows 48 --dtype f32 --threads 1 --out @o/x --overwrite",
        &["synth @seeds.safetensors --vae @vae.safetensors --fold 3 --shard-rows 16 --out @o/x"],
    ),
    ("materialize @latents --shard-rows 48 --threads 1 --out @o/x", &[]),
    (
        "merge-manifests @o/x",
        &[
            "synth @seeds.safetensors --vae @vae.safetensors --fold 4 --shard-rows 48 --part 0/2 --out @o/x",
            "synth @seeds.safetensors --vae @vae.safetensors --fold 4 --shard-rows 48 --part 1/2 --out @o/x",
        ],
    ),
    ("import @seeds.safetensors --shard-rows 16 --out @o/x", &[]),
    (
        "import @seeds.safetensors --shard-rows 16 --out @o/x --overwrite",
        &["import @seeds.safetensors --shard-rows 8 --out @o/x"],
    ),
];

/// A file: what it holds, and what of that would be there after a loss of power.
#[derive(Default)]
struct Inode {
    bytes: Vec<u8>,
    kept: Option<Vec<u8>>,
}

/// Names of a folder.
type Names = BTreeMap<String, u64>;

/// A disk as the changes of a command make it.
#[derive(Default)]
struct Disk {
    files: BTreeMap<u64, Inode>,
    now: BTreeMap<PathBuf, Names>,
    /// The names as they were last forced to the disk; folders that are not here are gone.
    kept: BTreeMap<PathBuf, Names>,
}

impl Disk {
    /// What lies in `o` before, all of it on the disk.
    fn before(found: &Listing, root: &Path) -> Disk {
        let mut disk = Disk::default();
        disk.now.insert(root.to_path_buf(), Names::new());
        for (path, bytes) in found {
            let path = root.join(path);
            let Some(bytes) = bytes else {
                disk.now.entry(path).or_default();
                continue;
            };
            // Numbers that no file has.
            let number = u64::MAX - disk.files.len() as u64;
            disk.files.insert(number, Inode { bytes: bytes.clone(), kept: Some(bytes.clone()) });
            let (folder, name) = (path.parent().expect("in o"), path.file_name().expect("a name"));
            disk.now
                .entry(folder.to_path_buf())
                .or_default()
                .insert(name.to_string_lossy().into_owned(), number);
        }
        disk.kept = disk.now.clone();
        disk
    }

    /// Makes the change that a line of the log describes.
    fn change(&mut self, line: &str) {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["mkdir", path] => {
                let root = self.root();
                for made in Path::new(path).ancestors().filter(|p| p.starts_with(&root)) {
                    self.now.entry(made.to_path_buf()).or_default();
                }
            }
            ["create", folder, name, number] => {
                let number: u64 = number.parse().expect("a number");
                let names = self.now.get_mut(Path::new(folder)).expect("a folder that is there");
                // A file that an earlier run left keeps the number that it has here.
                if !names.contains_key(name) {
                    names.insert(name.into(), number);
                    self.files.insert(number, Inode::default());
                }
            }
            ["write", number] => {
                if let Some(file) = self.files.get_mut(&number.parse().expect("a number")) {
                    file.kept = None;
                }
            }
            ["sync", number] => {
                if let Some(file) = self.files.get_mut(&number.parse().expect("a number")) {
                    file.kept = Some(file.bytes.clone());
                }
            }
            ["rename", folder, from, to] => {
                let names = self.now.get_mut(Path::new(folder)).expect("a folder that is there");
                let number = names.remove(from).expect("a name that is there");
                names.insert(to.into(), number);
            }
            ["remove", folder, name] => {
                let names = self.now.get_mut(Path::new(folder)).expect("a folder that is there");
                names.remove(name).expect("a name that is there");
            }
            ["sync-folder", folder] => {
                let folder = Path::new(folder).to_path_buf();
                if let Some(names) = self.now.get(&folder) {
                    self.kept.insert(folder.clone(), names.clone());
                    // Folders in it are kept from now on, with the names that were forced to the disk.
                    let inside = self.now.keys().filter(|path| path.parent() == Some(&folder)).cloned();
                    for path in inside.collect::<Vec<_>>() {
                        self.kept.entry(path).or_default();
                    }
                }
            }
            _ => panic!("no such change: {line}"),
        }
    }

    fn root(&self) -> PathBuf {
        self.now.keys().next().expect("o itself").clone()
    }

    /// Takes over what files hold, from the folder after the same changes.
    fn look(&mut self, found: &Listing, what: &str) {
        let root = self.root();
        let mut names = 0;
        for (folder, entries) in &self.now {
            for (name, number) in entries {
                let path = folder.join(name);
                let path = path.strip_prefix(&root).expect("in o");
                let bytes = found.get(path).unwrap_or_else(|| panic!("{what}: no {}", path.display()));
                self.files.get_mut(number).expect("a file").bytes = bytes.clone().expect("a file");
                names += 1;
            }
        }
        let there = found.values().filter(|bytes| bytes.is_some()).count();
        assert_eq!(there, names, "{what}: other files than the log tells");
    }

    /// Makes the disk as the loss of power left it.
    fn build(&self) {
        let root = self.root();
        fs::remove_dir_all(&root).expect("o");
        fs::create_dir(&root).expect("o");
        for (folder, names) in &self.kept {
            fs::create_dir_all(folder).expect("a folder");
            for (name, number) in names {
                let file = &self.files[number];
                let lost = || vec![0; file.bytes.len()];
                fs::write(folder.join(name), file.kept.clone().unwrap_or_else(lost)).expect("a file");
            }
        }
    }
}

fn lab() -> Lab {
    let lab = Lab::small();
    lab.fine("synth @seeds.safetensors --vae @vae.safetensors --fold 4 --output latents --out @latents");
    lab
}

fn prepare(lab: &Lab, before: &[&str]) {
    let _ = fs::remove_dir_all(lab.at("o"));
    fs::create_dir(lab.at("o")).expect("a folder");
    before.iter().for_each(|line| drop(lab.fine(line)));
}

#[test]
fn after_a_loss_of_power_at_any_moment_the_same_command_goes_on() {
    let lab = lab();
    let mut moments = 0;
    for (line, before) in CASES {
        prepare(&lab, before);
        let mut disk = Disk::before(&listing(&lab.at("o")), &lab.at("o"));
        let _ = fs::remove_file(lab.at("log"));
        let log = format!("log:{}", lab.text("log"));
        assert_eq!(lab.run_with(line, &[("LENSMITH_FAULT", &log)]).code, Some(0), "{line}");
        let whole = outputs(&lab.at("o"));
        let log = String::from_utf8(lab.bytes("log")).expect("text");
        for (at, change) in log.lines().enumerate() {
            disk.change(change);
            // The folder after this change: a run that is killed before the next.
            prepare(&lab, before);
            lab.run_with(line, &[("LENSMITH_FAULT", &format!("kill:{}", at + 1))]);
            let what = format!("{line}, after change {at}, {change}");
            disk.look(&listing(&lab.at("o")), &what);
            if change.starts_with("sync ") {
                disk.change(change);
            }
            disk.build();
            let said = lab.run(line);
            // An import that is complete is not made again.
            let complete = line.starts_with("import") && said.err.contains("exists already");
            assert!(complete || said.code == Some(0), "{what}: {said:?}");
            assert_same_files(&what, &outputs(&lab.at("o")), &whole);
            moments += 1;
        }
        // A command that has ended has its output on the disk.
        disk.build();
        assert_same_files(&format!("{line}, ended"), &outputs(&lab.at("o")), &whole);
    }
    assert!(moments > 100, "{moments} moments");
}
