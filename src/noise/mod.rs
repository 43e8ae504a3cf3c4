//! The one definition of randomness, equal in every bit on every device.
//!
//! ```text
//! seed, NoiseCounter -> Philox4x32-10 -> 32-bit words -> Box-Muller -> standard normals
//! ```
//!
//! Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) maps a key (the
//! seed) and a counter to four random words, with no state in between. The counter ([`NoiseCounter`]) names
//! the logical element that a value belongs to, never a batch, a thread or a machine, so results do not
//! depend on how work is divided. Words become normals by a fixed sequence of IEEE operations ([`math`]); a
//! kernel that repeats the sequence gets the same bits.

mod counter;
pub mod math;
mod normal;
mod permutation;
mod philox;
pub mod vector;

pub use crate::side::Side;
pub use counter::{NoiseCounter, Purpose, key_words};
pub use normal::normal_lanes;
pub use permutation::Permutation;
pub use philox::{Stream, philox4x32_10};
pub use vector::{fill_normals, fill_normals_at, fill_normals_from, fill_normals_in};
