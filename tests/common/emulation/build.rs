//! Compiles the emulator and the kernels into `target/emulation`. Objects are named by a digest of all that they are
//! made from, so nothing is compiled twice and nothing stale is used.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use xxhash_rust::xxh3::Xxh3;

use super::Build;

/// Rounding as the sources say: no contraction of multiply and add.
const COMMON: &[&str] = &[
    "-std=c++20",
    "-g",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-strict-aliasing",
    "-ffp-contract=off",
    "-Wall",
    "-Wextra",
    "-Werror",
];

/// Compiles .cu files as C++. Undefined behaviour traps; uninitialised locals hold a pattern that shows in results.
const KERNEL: &[&str] = &[
    "-fsanitize=bounds,alignment,shift,signed-integer-overflow,integer-divide-by-zero,null",
    "-fsanitize-undefined-trap-on-error",
    "-ftrivial-auto-var-init=pattern",
    "-Wno-unknown-pragmas",
];

/// The compiler: `CXX`, or g++.
fn compiler() -> String {
    std::env::var("CXX").unwrap_or_else(|_| "g++".into())
}

/// The files of a folder with an extension, in rising order.
fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut found: Vec<PathBuf> = entries.map(|e| e.expect("a folder entry").path()).collect();
    found.retain(|p| p.extension().is_some_and(|e| e == extension));
    found.sort();
    found
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// A source and all headers of ours that it includes, directly or not.
fn with_headers(source: &Path) -> BTreeSet<PathBuf> {
    let (mut found, mut open) = (BTreeSet::new(), vec![source.to_path_buf()]);
    while let Some(file) = open.pop() {
        let text = String::from_utf8(read(&file)).expect("sources are text");
        let named =
            text.lines().filter_map(|line| line.trim().strip_prefix("#include \"")?.strip_suffix('"'));
        let folder = file.parent().expect("a file lies in a folder");
        let headers: Vec<PathBuf> = named
            .map(|name| folder.join(name))
            .map(|path| fs::canonicalize(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
            .collect();
        if found.insert(fs::canonicalize(&file).expect("a file that was read")) {
            open.extend(headers);
        }
    }
    found
}

/// Flags for the machine: fused multiply-adds in hardware where there are any. Same bits, several times faster.
fn machine_flags() -> &'static [&'static str] {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("fma") && std::arch::is_x86_feature_detected!("avx2") {
        return &["-mavx2", "-mfma"];
    }
    &[]
}

struct Job {
    source: PathBuf,
    object: PathBuf,
    flags: Vec<&'static str>,
}

fn run(command: &mut Command, what: &str) {
    let output = command.output().unwrap_or_else(|e| {
        panic!(
            "{what} needs a C++20 compiler, and `{}` did not start: {e}. Install g++ 12 or newer, or name one in CXX.",
            command.get_program().to_string_lossy()
        )
    });
    assert!(output.status.success(), "{what} failed:\n{}", String::from_utf8_lossy(&output.stderr));
}

/// Lets `make` write to a temporary name, then renames it: other processes see the file only when it is complete.
fn make_at(place: &Path, make: impl FnOnce(&Path)) {
    let mut name = place.as_os_str().to_os_string();
    name.push(format!(".{}", std::process::id()));
    let temporary = PathBuf::from(name);
    make(&temporary);
    fs::rename(&temporary, place).unwrap_or_else(|e| panic!("{}: {e}", place.display()));
}

/// The shared library of a build; compiles what is not there yet.
pub fn library(build: Build) -> PathBuf {
    // One thread at a time: temporary names differ between processes, not threads.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    // tools/mutate_kernels tests another folder, whose objects go beside it.
    let (root, out) = match std::env::var_os("LENSMITH_EMULATED_KERNELS").map(PathBuf::from) {
        Some(folder) => (folder.clone(), folder.with_file_name("emulation")),
        None => {
            let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("the target folder");
            (Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels"), target.join("emulation"))
        }
    };
    fs::create_dir_all(&out).unwrap_or_else(|e| panic!("{}: {e}", out.display()));

    let mut shared = Xxh3::new();
    shared.update(compiler().as_bytes());
    let version = Command::new(compiler()).arg("--version").output();
    shared.update(&version.map(|o| o.stdout).unwrap_or_default());

    let mut sources: Vec<(PathBuf, bool)> = Vec::new();
    sources.extend(files(&root.join("emulation"), "cpp").into_iter().map(|p| (p, false)));
    sources.extend(files(&root, "cu").into_iter().map(|p| (p, true)));
    sources.extend(files(&root.join("emulation/cases"), "cu").into_iter().map(|p| (p, true)));
    let mut all = shared.clone();
    let jobs: Vec<Job> = sources
        .into_iter()
        .map(|(source, kernel)| {
            let mut flags = [COMMON, machine_flags()].concat();
            match (kernel, build) {
                (false, Build::Fast) => flags.push("-O2"),
                (false, Build::Check) => flags.extend(["-O2", "-DEMULATION_CHECK"]),
                (true, Build::Fast) => flags.extend(KERNEL.iter().chain(&["-O2"])),
                // Instrument, but do not link the sanitizer's library: the emulator implements its hooks.
                (true, Build::Check) => flags.extend(KERNEL.iter().chain(&["-O1", "-fsanitize=thread"])),
            }
            let mut digest = shared.clone();
            let name = source.strip_prefix(&root).expect("below the root");
            digest.update(name.to_string_lossy().as_bytes());
            for file in with_headers(&source) {
                digest.update(&read(&file));
            }
            digest.update(flags.join(" ").as_bytes());
            all.update(&digest.digest().to_le_bytes());
            let stem = source.file_stem().expect("a file name").to_string_lossy().into_owned();
            let object = out.join(format!("{stem}-{:016x}.o", digest.digest()));
            Job { source, object, flags }
        })
        .collect();
    let library = out.join(format!("kernels-{:016x}.so", all.digest()));
    if library.exists() {
        return library;
    }

    let missing: Vec<&Job> = jobs.iter().filter(|j| !j.object.exists()).collect();
    let next = AtomicUsize::new(0);
    let workers = std::thread::available_parallelism().map_or(1, |n| n.get()).min(missing.len());
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(job) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
                    make_at(&job.object, |to| {
                        let mut command = Command::new(compiler());
                        command.args(&job.flags).args(["-x", "c++", "-c"]).arg(&job.source).arg("-o").arg(to);
                        run(&mut command, &format!("compiling {} for emulation", job.source.display()));
                    });
                }
            });
        }
    });
    make_at(&library, |to| {
        let mut command = Command::new(compiler());
        command.arg("-shared").args(jobs.iter().map(|j| &j.object)).arg("-ldl").arg("-o").arg(to);
        run(&mut command, "linking the emulated kernels");
    });
    library
}
