//! The kernels as PTX: what nvcc makes of `kernels/` for an architecture, kept in the target folder by a digest of all
//! that it is made from.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use xxhash_rust::xxh3::Xxh3;

#[path = "../../../build/mod.rs"]
mod build;

use build::sources::{Architecture, Targets};
use build::toolkit::{Search, Toolkit, find};

/// The compiler that the build takes too.
fn toolkit() -> Toolkit {
    let environment =
        std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    match find(&environment.collect(), root, &mut Vec::new()) {
        Ok(Search::Found(toolkit)) => toolkit,
        Ok(Search::Nothing(why)) => {
            panic!("kernels are tested as nvcc compiles them ({why}): run tools/setup_cuda")
        }
        Err(why) => panic!("{why}"),
    }
}

fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut out: Vec<PathBuf> = entries.map(|e| e.expect("an entry").path()).collect();
    out.retain(|path| path.extension().is_some_and(|e| e == extension));
    out.sort();
    out
}

/// The headers of ours that a file includes, and those that they include.
fn headers(of: &Path, found: &mut BTreeSet<PathBuf>) {
    for line in read(of).lines() {
        let named = line.strip_prefix("#include \"").and_then(|rest| rest.split('"').next());
        let Some(header) = named.map(|name| of.with_file_name(name)) else { continue };
        if found.insert(header.clone()) {
            headers(&header, found);
        }
    }
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The folder with `sm_XX/*.ptx` of `kernels/`, or of the folder that LENSMITH_TEST_KERNELS names, for compute
/// capability `major.minor`. Compiles what is not there yet.
pub fn ptx(capability: (u32, u32)) -> PathBuf {
    // One at a time: temporary names differ between processes, not threads.
    static FOLDERS: Mutex<BTreeMap<(u32, u32), PathBuf>> = Mutex::new(BTreeMap::new());
    let mut folders = FOLDERS.lock().unwrap_or_else(PoisonError::into_inner);
    folders.entry(capability).or_insert_with(|| compiled(capability)).clone()
}

fn compiled(capability: (u32, u32)) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let kernels =
        std::env::var_os("LENSMITH_TEST_KERNELS").map_or_else(|| root.join("kernels"), PathBuf::from);
    let number = capability.0 * 10 + capability.1;
    // Compute capability 9.0 has instructions that later ones lack.
    let name = if number == 90 { "90a".to_string() } else { number.to_string() };
    let architecture = Architecture::parse(&name).expect("a number");

    let toolkit = toolkit();
    let flags: Vec<&str> =
        build::compile::FLAGS.split(' ').filter(|f| !["-fatbin", "-Xptxas", "-v"].contains(f)).collect();
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("the target folder");
    let kept = target.join("ptx");
    // Each file with a digest of what its PTX depends on, so that only what a change touches is compiled anew.
    let mut wanted: Vec<(PathBuf, String, u64)> = Vec::new();
    let mut all = Xxh3::new();
    all.update(name.as_bytes());
    for path in files(&kernels, "cu") {
        let text = read(&path);
        let targets = Targets::of(&path.display().to_string(), &text).unwrap_or_else(|e| panic!("{e}"));
        if !targets.suit(architecture) {
            continue;
        }
        let mut included = BTreeSet::new();
        headers(&path, &mut included);
        let mut digest = Xxh3::new();
        for part in [&toolkit.version, &flags.join(" "), &name, &text] {
            digest.update(part.as_bytes());
        }
        included.iter().for_each(|header| digest.update(read(header).as_bytes()));
        let stem = path.file_stem().expect("a file name").to_string_lossy().to_string();
        all.update(stem.as_bytes());
        all.update(&digest.digest().to_le_bytes());
        wanted.push((path, stem, digest.digest()));
    }
    assert!(!wanted.is_empty(), "{}: no kernels for sm_{name}", kernels.display());
    let folder = kept.join(format!("{:016x}", all.digest()));
    let place = folder.join(format!("sm_{name}"));
    if place.is_dir() {
        return folder;
    }

    let object = |stem: &str, digest: u64| kept.join(format!("files/{stem}-{digest:016x}.ptx"));
    fs::create_dir_all(kept.join("files")).unwrap_or_else(|e| panic!("{}: {e}", kept.display()));
    let next = AtomicUsize::new(0);
    let workers = std::thread::available_parallelism().map_or(1, |n| n.get()).min(wanted.len());
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some((path, stem, digest)) = wanted.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let to = object(stem, *digest);
                    if to.is_file() {
                        continue;
                    }
                    let part = to.with_extension(format!("{}.part", std::process::id()));
                    let mut command = Command::new(&toolkit.nvcc);
                    command.args(["-ptx".to_string(), format!("-arch=compute_{name}")]).args(&flags);
                    let done = command.arg("-o").arg(&part).arg(path).output().expect("nvcc runs");
                    let said = String::from_utf8_lossy(&done.stderr);
                    assert!(done.status.success(), "compiling {} to PTX failed\n{said}", path.display());
                    fs::rename(&part, &to).unwrap_or_else(|e| panic!("{}: {e}", to.display()));
                }
            });
        }
    });
    // The folder is there whole or not at all: its files are links to those above.
    let part = folder.with_extension(format!("{}.part", std::process::id()));
    let _ = fs::remove_dir_all(&part);
    fs::create_dir_all(&part).unwrap_or_else(|e| panic!("{}: {e}", part.display()));
    for (_, stem, digest) in &wanted {
        let from = object(stem, *digest);
        fs::hard_link(&from, part.join(format!("{stem}.ptx")))
            .unwrap_or_else(|e| panic!("{}: {e}", from.display()));
    }
    fs::create_dir_all(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    match fs::rename(&part, &place) {
        // Another process was faster.
        Err(_) if place.is_dir() => fs::remove_dir_all(&part).expect("our own folder"),
        done => done.unwrap_or_else(|e| panic!("{}: {e}", place.display())),
    }
    folder
}
