//! The `lensmith` command.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: lensmith::cli::Allocator = lensmith::cli::Allocator;

fn main() -> ExitCode {
    ExitCode::from(lensmith::cli::main(std::env::args_os()))
}
