//! Runs a kernel of a PTX file alone; see `--help`.
#![allow(missing_docs, reason = "a program")]

mod cli;

fn main() -> std::process::ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match cli::run(&arguments) {
        Ok(text) => {
            print!("{text}");
            std::process::ExitCode::SUCCESS
        }
        Err(message) => {
            eprintln!("ptx: {message}");
            std::process::ExitCode::FAILURE
        }
    }
}
