//! Pictures of what was measured, as SVG.

mod roofline;

pub use roofline::roofline;
