//! The HTML page of each kind of result: what was asked and with what, what came out with its uncertainty, and the curves
//! behind it. `report` draws pages, these files choose what is on them.

pub mod bench;
pub mod run;
pub mod sweep;

use std::path::Path;

use crate::cli::run::report::TOLD_APART;
use crate::data::write_atomic;
use crate::error::Result;
use crate::eval::Paired;
use crate::report::{Axis, Block, Chart, Interval, Kind, Page, Point, Series, Table};

/// Writes a page, whole or not at all.
pub fn write_page(page: &Page, path: &Path) -> Result<()> {
    write_atomic(path, page.html().as_bytes())
}

fn text(value: impl Into<String>) -> String {
    value.into()
}

fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

/// A curve of points without errors.
fn curve(name: impl Into<String>, points: impl IntoIterator<Item = (f64, f64)>) -> Series {
    let point = |(x, y)| Point { x, y, error: None };
    Series { name: name.into(), points: points.into_iter().map(point).collect() }
}

/// A chart of curves.
fn lines(title: &str, caption: &str, (x, y): (Axis, &str), series: Vec<Series>) -> Block {
    let kind = Kind::Lines { series, references: Vec::new() };
    let (title, caption, y) = (text(title), text(caption), Axis::linear(y));
    Chart { title, caption, kind, x, y, csv: String::new() }.into()
}

/// A chart of named differences around 0.
fn differences(title: &str, caption: &str, unit: &str, rows: Vec<(String, &Paired)>) -> Block {
    let rows = rows.into_iter().map(|(name, paired)| Interval {
        name,
        estimate: paired.mean,
        // Two standard errors: about 95 % where splits are many.
        error: paired.standard_error.map(|error| TOLD_APART * error),
    });
    let kind = Kind::Intervals { rows: rows.collect() };
    let (x, y) = (Axis::linear(unit), Axis::linear("arm"));
    Chart { title: text(title), caption: text(caption), kind, x, y, csv: String::new() }.into()
}

/// A table of texts.
fn rows_of(caption: &str, header: &[&str], rows: Vec<Vec<String>>) -> Block {
    let header = header.iter().map(|h| h.to_string()).collect();
    Table { caption: text(caption), header, rows, highlight: None }.into()
}

/// Settings as a table: every leaf of a JSON value with its path.
fn settings_table(caption: &str, value: &serde_json::Value) -> Block {
    fn leaves(path: &str, value: &serde_json::Value, out: &mut Vec<Vec<String>>) {
        match value {
            serde_json::Value::Object(map) => {
                for (key, value) in map {
                    let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                    leaves(&path, value, out);
                }
            }
            serde_json::Value::Array(values) if values.iter().all(|v| !v.is_object() && !v.is_array()) => {
                let texts = values.iter().map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_string));
                out.push(vec![path.to_string(), texts.collect::<Vec<_>>().join(", ")]);
            }
            serde_json::Value::Array(values) => {
                for (i, value) in values.iter().enumerate() {
                    leaves(&format!("{path}.{i}"), value, out);
                }
            }
            serde_json::Value::String(value) => out.push(vec![path.to_string(), value.clone()]),
            other => out.push(vec![path.to_string(), other.to_string()]),
        }
    }
    let mut rows = Vec::new();
    leaves("", value, &mut rows);
    rows_of(caption, &["setting", "value"], rows)
}
