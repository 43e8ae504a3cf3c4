//! Compiles `kernels/*.cu` into images that the library embeds. The work is in `build/`, which `tests/kernels.rs`
//! tests as a module.

#[path = "build/mod.rs"]
mod build;

fn main() {
    // A value that is no text names no path or option of ours.
    let text = std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
    let environment = text.collect();
    let outcome = build::run(&environment);
    for line in &outcome.lines {
        println!("{line}");
    }
    if let Err(message) = outcome.result {
        // Cargo shows these as errors of the package; what is printed beside them it hides behind its own words.
        for line in message.lines() {
            println!("cargo::error={line}");
        }
        std::process::exit(1);
    }
}
