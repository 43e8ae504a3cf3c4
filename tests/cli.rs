//! The binary from outside: what it answers to bad input, and that the good paths keep their promises.

#[path = "cli/bad.rs"]
mod bad;
#[path = "cli/bench.rs"]
mod bench;
mod common;
#[path = "cli/disk.rs"]
mod disk;
#[path = "cli/good.rs"]
mod good;
#[path = "cli/help.rs"]
mod help;
#[path = "cli/peers.rs"]
mod peers;
#[path = "cli/select.rs"]
mod select;
#[path = "cli/support.rs"]
mod support;
#[path = "cli/transcript.rs"]
mod transcript;
