//! The kernels as PTX: what nvcc makes of `kernels/` for an architecture, kept in the target folder by a digest of all
//! that it is made from.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use xxhash_rust::xxh3::Xxh3;

#[path = "../../../build/mod.rs"]
mod build;

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

/// Whether a file is compiled for an architecture: from the one that its first line names, as in `// archs: sm_75+`, or
/// from 8.0.
fn suits(source: &str, architecture: u32) -> bool {
    let named = source.lines().next().and_then(|line| line.strip_prefix("// archs: sm_"));
    let lowest = named.map_or(Some(80), |rest| rest.trim_end_matches(['+', 'a']).parse().ok());
    lowest.expect("a number behind `// archs: sm_`") <= architecture
}

/// The folder with `sm_XX/*.ptx` of `kernels/`, or of the folder that LENSMITH_TEST_KERNELS names, for compute
/// capability `major.minor`. Compiles what is not there yet.
pub fn ptx(capability: (u32, u32)) -> PathBuf {
    // Temporary names differ between processes, not threads.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let kernels =
        std::env::var_os("LENSMITH_TEST_KERNELS").map_or_else(|| root.join("kernels"), PathBuf::from);
    let number = capability.0 * 10 + capability.1;
    // Compute capability 9.0 has instructions that later ones lack.
    let name = if number == 90 { "90a".to_string() } else { number.to_string() };

    let toolkit = toolkit();
    let flags: Vec<&str> =
        build::compile::FLAGS.split(' ').filter(|f| !["-fatbin", "-Xptxas", "-v"].contains(f)).collect();
    let read = |path: &Path| fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut shared = Xxh3::new();
    shared.update(toolkit.version.as_bytes());
    shared.update(flags.join(" ").as_bytes());
    files(&kernels.join("include"), "cuh").iter().for_each(|path| shared.update(read(path).as_bytes()));
    let sources: Vec<(PathBuf, String)> =
        files(&kernels, "cu").into_iter().map(|p| (p.clone(), read(&p))).collect();
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("the target folder");
    let kept = target.join("ptx");
    let mut all = shared.clone();
    all.update(name.as_bytes());
    sources.iter().for_each(|(_, text)| all.update(text.as_bytes()));
    let folder = kept.join(format!("{:016x}", all.digest()));
    let place = folder.join(format!("sm_{name}"));
    if place.is_dir() {
        return folder;
    }

    // File by file, so that a changed one is all that is compiled anew.
    let object = |source: &(PathBuf, String)| {
        let mut digest = shared.clone();
        digest.update(name.as_bytes());
        digest.update(source.1.as_bytes());
        let stem = source.0.file_stem().expect("a file name").to_string_lossy();
        (stem.to_string(), kept.join(format!("files/{stem}-{:016x}.ptx", digest.digest())))
    };
    fs::create_dir_all(kept.join("files")).unwrap_or_else(|e| panic!("{}: {e}", kept.display()));
    let wanted: Vec<_> = sources.iter().filter(|(_, text)| suits(text, number)).collect();
    assert!(!wanted.is_empty(), "{}: no kernels for sm_{name}", kernels.display());
    let next = AtomicUsize::new(0);
    let workers = std::thread::available_parallelism().map_or(1, |n| n.get()).min(wanted.len());
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(source) = wanted.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let (_, to) = object(source);
                    if to.is_file() {
                        continue;
                    }
                    let part = to.with_extension(format!("{}.part", std::process::id()));
                    let mut command = Command::new(&toolkit.nvcc);
                    command.args(["-ptx".to_string(), format!("-arch=compute_{name}")]).args(&flags);
                    let done = command.arg("-o").arg(&part).arg(&source.0).output().expect("nvcc runs");
                    let said = String::from_utf8_lossy(&done.stderr);
                    assert!(done.status.success(), "compiling {} to PTX failed\n{said}", source.0.display());
                    fs::rename(&part, &to).unwrap_or_else(|e| panic!("{}: {e}", to.display()));
                }
            });
        }
    });
    // The folder is there whole or not at all: its files are links to those above.
    let part = folder.with_extension(format!("{}.part", std::process::id()));
    let _ = fs::remove_dir_all(&part);
    fs::create_dir_all(&part).unwrap_or_else(|e| panic!("{}: {e}", part.display()));
    for source in wanted {
        let (stem, from) = object(source);
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
