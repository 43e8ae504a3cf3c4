#![doc = include_str!("../README.md")]
#![allow(clippy::too_many_arguments, reason = "instructions have many operands")]
#![allow(clippy::needless_range_loop, reason = "a lane or a row indexes several arrays")]
#![deny(clippy::undocumented_unsafe_blocks)]

mod counters;
mod error;
mod exec;
mod lower;
mod machine;
#[allow(missing_docs, reason = "names are those of PTX")]
mod ops;
mod parse;
mod pipes;
mod program;
mod random;
mod tensor_map;

pub use counters::{Counters, Counts};
pub use error::ParseError;
pub use machine::{
    Copies, Fault, FaultKind, Launch, Memory, Options, Order, Other, Outcome, Place, check_launch, launch,
};
pub use parse::ast::{Space, Ty, Variable};
pub use pipes::Pipe;
pub use program::{Kernel, Module, Param};
pub use tensor_map::{Element, Fill, Swizzle, TensorMap};

/// The forms of instructions that the machine accepts, in the notation that the text explains.
#[doc(hidden)]
pub fn forms() -> &'static str {
    lower::forms::FORMS
}
