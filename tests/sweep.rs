//! `lensmith sweep` from outside: its bytes, its figures, and what it refuses.

#[path = "sweep/bytes.rs"]
mod bytes;
mod common;
#[path = "sweep/refusals.rs"]
mod refusals;
#[path = "sweep/results.rs"]
mod results;
#[path = "sweep/support.rs"]
mod support;
