//! Pictures and pages of what was measured: SVG, and one self-contained HTML page.
//!
//! A [`Page`] is plain data in, text out: tables and charts whose numbers can be downloaded, without scripts and without
//! anything from the network. [`roofline`] is a picture of its own.

mod chart;
mod csv;
mod draw;
mod figure;
mod html;
mod page;
mod plot;
mod roofline;
mod rows;
mod scale;

pub use chart::{Axis, Bar, Chart, Distribution, Group, Interval, Kind, Point, Reference, Scale, Series};
pub use page::{Block, Page, REPORT, Section, Table};
pub use roofline::roofline;
pub use scale::{estimate, number};
