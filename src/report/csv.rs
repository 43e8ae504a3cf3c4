//! The data of a chart as rows, for the CSV file and for the table beside the chart.

use super::chart::{Chart, Kind, Scale, Series};

/// One cell of a chart's data.
pub(super) enum Cell {
    Text(String),
    Number(f64),
    Empty,
}

/// The data of a chart: one header and its rows.
pub(super) struct Data {
    pub header: Vec<String>,
    pub rows: Vec<Vec<Cell>>,
}

fn text(text: &str) -> Cell {
    Cell::Text(text.to_string())
}

fn number(value: f64) -> Cell {
    if value.is_finite() { Cell::Number(value) } else { Cell::Empty }
}

fn optional(value: Option<f64>) -> Cell {
    value.map_or(Cell::Empty, number)
}

fn named(label: &str, otherwise: &str) -> String {
    if label.is_empty() { otherwise.to_string() } else { label.to_string() }
}

/// The data of `chart`.
pub(super) fn data(chart: &Chart) -> Data {
    match &chart.kind {
        Kind::Lines { series, references } => {
            let mut data = lines(chart, series);
            for reference in references {
                data.header.push(reference.label.clone());
                data.rows.iter_mut().for_each(|row| row.push(number(reference.at)));
            }
            data
        }
        Kind::Intervals { rows } => Data {
            header: vec!["name".into(), named(&chart.x.label, "estimate"), "error".into()],
            rows: rows.iter().map(|r| vec![text(&r.name), number(r.estimate), optional(r.error)]).collect(),
        },
        Kind::Histogram { edges, distributions, .. } => {
            let mut header = vec!["from".to_string(), "to".to_string()];
            header.extend(distributions.iter().map(|d| d.name.clone()));
            let row = |(i, edge): (usize, &[f64])| {
                let mut row = vec![number(edge[0]), number(edge[1])];
                row.extend(distributions.iter().map(|d| optional(d.heights.get(i).copied())));
                row
            };
            Data { header, rows: edges.windows(2).enumerate().map(row).collect() }
        }
        Kind::Scatter { groups } => Data {
            header: vec!["group".into(), named(&chart.x.label, "x"), named(&chart.y.label, "y")],
            rows: groups
                .iter()
                .flat_map(|g| g.points.iter().map(|p| vec![text(&g.name), number(p.0), number(p.1)]))
                .collect(),
        },
        Kind::Bars { bars } => Data {
            header: vec!["name".into(), named(&chart.x.label, "value"), "floor".into()],
            rows: bars.iter().map(|b| vec![text(&b.name), number(b.value), optional(b.floor)]).collect(),
        },
    }
}

/// A column per series where all begin with the same x (curves that end early have empty cells then); otherwise a row
/// per point, with the name of its series.
fn lines(chart: &Chart, series: &[Series]) -> Data {
    let x_cell = |x: f64| match &chart.x.scale {
        Scale::Category(names) if x >= 0.0 => names.get(x as usize).map_or_else(|| number(x), |n| text(n)),
        _ => number(x),
    };
    let x_label = named(&chart.x.label, "x");
    let with_errors = |s: &Series| s.points.iter().any(|p| p.error.is_some());
    let empty = Series::default();
    let longest = series.iter().max_by_key(|s| s.points.len()).unwrap_or(&empty);
    let same = |s: &Series| s.points.iter().zip(&longest.points).all(|(a, b)| a.x.to_bits() == b.x.to_bits());
    if !series.iter().all(same) {
        let errors = series.iter().any(with_errors);
        let mut header = vec!["series".to_string(), x_label, named(&chart.y.label, "y")];
        header.extend(errors.then(|| "error".to_string()));
        let mut rows = Vec::new();
        for s in series {
            for p in &s.points {
                let mut row = vec![text(&s.name), x_cell(p.x), number(p.y)];
                row.extend(errors.then(|| optional(p.error)));
                rows.push(row);
            }
        }
        return Data { header, rows };
    }
    let mut header = vec![x_label];
    for s in series {
        header.push(s.name.clone());
        header.extend(with_errors(s).then(|| format!("{} (error)", s.name)));
    }
    let row = |i: usize| {
        let mut row = vec![x_cell(longest.points[i].x)];
        for s in series {
            let point = s.points.get(i);
            row.push(optional(point.map(|p| p.y)));
            row.extend(with_errors(s).then(|| optional(point.and_then(|p| p.error))));
        }
        row
    };
    Data { header, rows: (0..longest.points.len()).map(row).collect() }
}

impl Data {
    /// The data as CSV (RFC 4180, with plain line ends). Whole numbers are exact; others have up to 9 significant digits,
    /// which is what tells all `f32` apart.
    pub fn csv(&self) -> String {
        let mut out = String::new();
        line(&mut out, self.header.iter().map(|name| quoted(name)));
        for row in &self.rows {
            line(&mut out, row.iter().map(Cell::csv));
        }
        out
    }

    /// The CSV as a data address.
    pub fn address(&self) -> String {
        let csv = self.csv();
        let mut out = String::with_capacity(csv.len() + csv.len() / 8 + 32);
        out.push_str("data:text/csv;charset=utf-8,");
        for byte in csv.bytes() {
            if byte.is_ascii_alphanumeric() || b"-_.~,:;()*!/@".contains(&byte) {
                out.push(byte as char);
            } else {
                out.push_str(&format!("%{byte:02X}"));
            }
        }
        out
    }
}

impl Cell {
    fn csv(&self) -> String {
        match self {
            Cell::Text(text) => quoted(text),
            Cell::Number(value) => {
                let whole = value.fract() == 0.0 && value.abs() < 1e15;
                let rounded = format!("{value:.8e}").parse().unwrap_or(*value);
                let text = format!("{:?}", if whole { *value } else { rounded });
                text.strip_suffix(".0").map(str::to_string).unwrap_or(text)
            }
            Cell::Empty => String::new(),
        }
    }
}

fn line(out: &mut String, cells: impl Iterator<Item = String>) {
    for (i, cell) in cells.enumerate() {
        if i > 0 {
            out.push(',');
        }
        out.push_str(&cell);
    }
    out.push('\n');
}

fn quoted(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_string()
    }
}
