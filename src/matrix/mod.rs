//! Row-major matrices of embeddings, checked when they are made.
//!
//! Data flows from files or slices into borrowed views and from there into backends, without a copy:
//!
//! 1. [`Values`] and [`ValuesMut`]: a slice of F32, F16 or BF16 whose type is known at run time only.
//! 2. [`Rows`]: such a slice as `[rows, cols]`. [`RowsBuf`] and [`Matrix`] own what `Rows` borrows.
//! 3. [`RowSet`]: several `Rows` one after the other, as a folder of shards is, or rows picked in any order.
//! 4. [`Pages`]: memory in whole, where possible huge, pages; direct I/O and copies to a GPU want it that
//!    way.

mod pages;
mod row_set;
mod rows;
mod values;

pub use crate::side::Side;
pub use pages::{PAGE, Pages};
pub use row_set::RowSet;
pub use rows::{Matrix, Rows, RowsBuf};
pub use values::{Values, ValuesMut};
