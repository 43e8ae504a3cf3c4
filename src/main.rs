//! The `lensmith` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(lensmith::cli::main(std::env::args_os()))
}
