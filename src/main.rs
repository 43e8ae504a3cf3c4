//! The `lensmith` command.

fn main() {}
