//! From `kernels/*.cu` to images in the library: finds nvcc, compiles what changed, and writes the Rust text that
//! embeds the images and names their kernels. Everything that it knows of the outside is in the environment it is
//! given, so that tests can run it on folders of their own.

pub mod compile;
mod rust;
pub mod sources;
pub mod toolkit;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Environment variables.
pub type Environment = BTreeMap<String, String>;

/// The command that mends a missing nvcc.
const MENDED_BY: &str = "run tools/setup_cuda, or set CUDA_HOME to a CUDA toolkit of release 12.0 or newer";

/// What a run of the build script says.
#[derive(Debug)]
pub struct Outcome {
    /// Instructions for Cargo.
    pub lines: Vec<String>,
    /// Why the build cannot go on.
    pub result: Result<(), String>,
}

/// The whole build script.
pub fn run(environment: &Environment) -> Outcome {
    let mut lines = vec![
        "cargo::rustc-check-cfg=cfg(no_nvcc)".to_string(),
        "cargo::rerun-if-changed=build.rs".to_string(),
        "cargo::rerun-if-changed=build".to_string(),
    ];
    let result = steps(environment, &mut lines);
    Outcome { lines, result }
}

fn steps(environment: &Environment, lines: &mut Vec<String>) -> Result<(), String> {
    let root = Path::new(variable(environment, "CARGO_MANIFEST_DIR").ok_or("CARGO_MANIFEST_DIR is not set")?);
    let out = Path::new(variable(environment, "OUT_DIR").ok_or("OUT_DIR is not set")?);
    let sources = sources::read(root)?;
    for path in &sources.watched {
        lines.push(format!("cargo::rerun-if-changed={path}"));
    }
    let mut images = Vec::new();
    let mut release = None;
    if !sources.kernels.is_empty() {
        lines.push("cargo::rerun-if-env-changed=LENSMITH_REQUIRE_CUDA".into());
        match toolkit::find(environment, root, lines)? {
            toolkit::Search::Found(toolkit) => {
                for name in ["LENSMITH_CUDA_ARCHS", "NVCC_CCBIN", "NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS"] {
                    lines.push(format!("cargo::rerun-if-env-changed={name}"));
                }
                let asked = variable(environment, "LENSMITH_CUDA_ARCHS");
                let architectures = sources::Architecture::choose(asked, &toolkit.known)?;
                let jobs = variable(environment, "NUM_JOBS").and_then(|n| n.parse().ok()).unwrap_or(1);
                images = compile::all(root, out, &sources, &toolkit, &architectures, jobs)?;
                release = Some(toolkit.release);
            }
            toolkit::Search::Nothing(why) => {
                if variable(environment, "LENSMITH_REQUIRE_CUDA") == Some("1") {
                    return Err(format!(
                        "LENSMITH_REQUIRE_CUDA=1 asks for CUDA kernels ({why}): {MENDED_BY}"
                    ));
                }
                lines.push(format!("cargo::warning=building without CUDA kernels ({why}): {MENDED_BY}"));
                lines.push("cargo::rustc-cfg=no_nvcc".into());
            }
        }
    }
    let path = out.join("kernels.rs");
    fs::write(&path, rust::text(&sources, &images, release)).map_err(|e| failed("write", &path, &e))
}

/// A variable that is set to something.
fn variable<'a>(environment: &'a Environment, name: &str) -> Option<&'a str> {
    environment.get(name).map(String::as_str).filter(|value| !value.is_empty())
}

fn failed(verb: &str, path: &Path, error: &std::io::Error) -> String {
    format!("cannot {verb} {}: {error}", path.display())
}
