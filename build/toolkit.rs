//! The search for nvcc.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Environment, variable};

/// The oldest release that compiles the kernels.
const OLDEST: (u32, u32) = (12, 0);

/// An nvcc that answered.
#[derive(Debug)]
pub struct Toolkit {
    /// The compiler.
    pub nvcc: PathBuf,
    /// Its release, as in 13.0.
    pub release: (u32, u32),
    /// All that it says of its version.
    pub version: String,
    /// Numbers of the architectures that it knows, as in 90.
    pub known: BTreeSet<u32>,
}

/// What the search gave.
pub enum Search {
    /// A usable compiler.
    Found(Toolkit),
    /// None, and why.
    Nothing(String),
}

/// Looks in NVCC, CUDA_HOME, CUDA_PATH, PATH and `.cuda/`, in this order, and tells Cargo what the answer hangs on.
///
/// NVCC must name a usable compiler; anywhere else, one that is missing or too old sends the search on.
pub fn find(environment: &Environment, root: &Path, lines: &mut Vec<String>) -> Result<Search, String> {
    let mut watch = |name: &str| lines.push(format!("cargo::rerun-if-env-changed={name}"));
    let mut passed_over = Vec::new();
    watch("NVCC");
    if let Some(nvcc) = variable(environment, "NVCC") {
        let nvcc = match nvcc.contains('/') {
            true => Some(PathBuf::from(nvcc)),
            false => in_path(environment, nvcc),
        };
        let nvcc = nvcc.ok_or("NVCC names a program that is not in PATH")?;
        let toolkit = ask(&nvcc).map_err(|why| format!("NVCC: {why}"))?;
        lines.push(format!("cargo::rerun-if-changed={}", nvcc.display()));
        return Ok(Search::Found(toolkit));
    }
    let mut candidates = Vec::new();
    for name in ["CUDA_HOME", "CUDA_PATH"] {
        watch(name);
        candidates.extend(variable(environment, name).map(|home| Path::new(home).join("bin/nvcc")));
    }
    watch("PATH");
    candidates.extend(in_path(environment, "nvcc"));
    // tools/setup_cuda writes the stamp last. Where there is none yet, it touches build.rs when it is done.
    let stamp = root.join(".cuda/stamp");
    if stamp.is_file() {
        lines.push(format!("cargo::rerun-if-changed={}", stamp.display()));
        candidates.push(root.join(".cuda/bin/nvcc"));
    }
    for nvcc in candidates.into_iter().filter(|nvcc| nvcc.is_file()) {
        match ask(&nvcc) {
            Ok(toolkit) => {
                lines.push(format!("cargo::rerun-if-changed={}", nvcc.display()));
                return Ok(Search::Found(toolkit));
            }
            Err(why) => passed_over.push(why),
        }
    }
    passed_over.push("no usable nvcc in NVCC, CUDA_HOME, CUDA_PATH, PATH or .cuda/".into());
    Ok(Search::Nothing(passed_over.join("; ")))
}

fn in_path(environment: &Environment, program: &str) -> Option<PathBuf> {
    let folders = variable(environment, "PATH")?;
    std::env::split_paths(folders).map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// Asks a compiler for its release and architectures.
fn ask(nvcc: &Path) -> Result<Toolkit, String> {
    let version = answer(nvcc, "--version")?;
    let release = version
        .split_once("release ")
        .and_then(|(_, rest)| rest.split(',').next()?.split_once('.'))
        .and_then(|(major, minor)| Some((major.parse().ok()?, minor.trim().parse().ok()?)))
        .ok_or_else(|| format!("{} --version names no release", nvcc.display()))?;
    if release < OLDEST {
        let (nvcc, (major, minor)) = (nvcc.display(), release);
        return Err(format!("{nvcc} is CUDA {major}.{minor}, {}.{} or newer is needed", OLDEST.0, OLDEST.1));
    }
    let known = answer(nvcc, "--list-gpu-arch")?
        .split_whitespace()
        .filter_map(|word| word.strip_prefix("compute_")?.parse().ok())
        .collect();
    Ok(Toolkit { nvcc: nvcc.to_path_buf(), release, version, known })
}

fn answer(nvcc: &Path, question: &str) -> Result<String, String> {
    let output = Command::new(nvcc)
        .arg(question)
        .output()
        .map_err(|e| format!("cannot run {}: {e}", nvcc.display()))?;
    if !output.status.success() {
        return Err(format!("{} {question} failed", nvcc.display()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
