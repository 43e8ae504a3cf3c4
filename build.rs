//! Compiles `kernels/*.cu` into images that the library embeds. The work is in `build/`, which `tests/kernels.rs`
//! tests as a module.

#[path = "build/mod.rs"]
mod build;

fn main() {
    // A value that is no text names no path or option of ours.
    let text = std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
    let environment = text.collect();
    let outcome = build::run(&environment);
    // Cargo shows these lines as errors of the package and fails. A failing exit code would bury them under a dump of
    // everything else.
    let lines = match outcome.result {
        Ok(()) => outcome.lines,
        Err(message) => message
            .lines()
            .filter(|line| !line.is_empty())
            .map(|line| format!("cargo::error={line}"))
            .collect(),
    };
    for line in lines {
        println!("{line}");
    }
}
