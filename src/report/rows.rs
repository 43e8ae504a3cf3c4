//! Charts of named rows: estimates with errors, and bars with floors.

use std::fmt::Write;

use super::chart::{Bar, Chart, Interval};
use super::draw::{Drawn, LINE, Size, c, mark, path, text, text_width, wrap};
use super::scale::{Span, estimate, number, usable};

/// Where the rows, their names and their values are.
struct Rows {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
    x: Span,
    /// The middle of each row's drawing.
    middles: Vec<f64>,
}

impl Rows {
    fn px(&self, x: f64) -> f64 {
        self.left + self.x.at(x) * (self.right - self.left)
    }
}

/// Lays out rows of (name, value as text) and draws everything but the values' marks. Names are on the left where there
/// is room, else above their rows.
fn rows(out: &mut String, chart: &Chart, size: Size, x: Span, named: &[(&str, String)]) -> (Rows, f64) {
    let wide = size.is_wide();
    let widest = |texts: &mut dyn Iterator<Item = &str>| texts.map(text_width).fold(0.0, f64::max);
    let names = widest(&mut named.iter().map(|n| n.0)).min(230.0);
    let values = widest(&mut named.iter().map(|n| n.1.as_str()));
    let heading = !chart.y.label.is_empty();
    let top = if heading { LINE + 10.0 } else { 6.0 };
    let mut rows = Rows {
        left: if wide { names + 18.0 } else { 10.0 },
        right: if wide { size.width - values - 16.0 } else { size.width - 10.0 },
        top,
        bottom: 0.0,
        x,
        middles: Vec::new(),
    };
    if heading {
        text(out, (0.0, 14.0), "q", &wrap(&chart.y.label, size.width - 4.0, 1)[0]);
    }
    let mut y = top;
    for (i, (name, value)) in named.iter().enumerate() {
        if i > 0 {
            path(out, "g", &format!("M0 {}H{}", c(y), size.width));
        }
        if wide {
            let lines = wrap(name, names + 4.0, 2);
            let height = 16.0 + lines.len() as f64 * LINE;
            let middle = y + height / 2.0;
            for (k, line) in lines.iter().enumerate() {
                let base = middle + 4.5 + (k as f64 - (lines.len() as f64 - 1.0) / 2.0) * LINE;
                text(out, (0.0, base), "t k", line);
            }
            text(out, (size.width, middle + 4.5), "t k e", value);
            rows.middles.push(middle);
            y += height;
        } else {
            let lines = wrap(name, size.width - text_width(value) - 14.0, 2);
            for (k, line) in lines.iter().enumerate() {
                text(out, (0.0, y + 17.0 + k as f64 * LINE), "t k", line);
            }
            text(out, (size.width, y + 17.0), "t k e", value);
            let below = y + 6.0 + lines.len() as f64 * LINE;
            rows.middles.push(below + 12.0);
            y = below + 26.0;
        }
    }
    rows.bottom = y.max(top + 20.0);
    let mut ticks = String::new();
    let mut free = f64::NEG_INFINITY;
    for (at, label) in x.ticks_in(rows.right - rows.left, text_width) {
        let px = rows.px(at);
        let _ = write!(ticks, "M{} {}v5", c(px), c(rows.bottom));
        let half = text_width(&label) / 2.0;
        let middle = px.min(size.width - half - 1.0).max(half + 1.0);
        if middle - half >= free {
            free = middle + half + 8.0;
            text(out, (middle, rows.bottom + 20.0), "t c", &label);
        }
    }
    path(out, "a", &format!("{ticks}M{} {}H{}", c(rows.left), c(rows.bottom), c(rows.right)));
    let mut height = rows.bottom + 27.0;
    if !chart.x.label.is_empty() {
        // Below the axis, and never wider than the drawing.
        let lines = wrap(&chart.x.label, if wide { rows.right - rows.left + 60.0 } else { size.width }, 3);
        for line in lines {
            let half = text_width(&line) / 2.0;
            let middle = ((rows.left + rows.right) / 2.0).min(size.width - half).max(half);
            text(out, (middle, height + 11.0), "q c", &line);
            height += LINE;
        }
    }
    (rows, height + 4.0)
}

/// A forest plot.
pub(super) fn intervals(chart: &Chart, size: Size, all: &[Interval]) -> Drawn {
    let log = chart.x.is_log();
    let half = |r: &Interval| r.error.filter(|e| usable(*e, false)).unwrap_or(0.0).abs();
    let ends = all.iter().filter(|r| usable(r.estimate, log)).flat_map(|r| {
        let half = half(r);
        [r.estimate - half, r.estimate, r.estimate + half]
    });
    // No difference, or a ratio of 1.
    let none = if log { 1.0 } else { 0.0 };
    let x = Span::of(ends.chain([none]), log, 0.04);
    let signed = |r: &Interval| {
        let sign = if r.estimate > 0.0 && !log { "+" } else { "" };
        format!("{sign}{}", estimate(r.estimate, r.error))
    };
    let named: Vec<(&str, String)> = all.iter().map(|r| (r.name.as_str(), signed(r))).collect();
    let mut out = String::new();
    let (rows, height) = self::rows(&mut out, chart, size, x, &named);
    // Where names are above the rows, the line leaves them out.
    let at = c(rows.px(none));
    let d = if size.is_wide() {
        format!("M{at} {}V{}", c(rows.top), c(rows.bottom))
    } else {
        rows.middles.iter().map(|y| format!("M{at} {}V{}", c(y - 11.0), c(y + 12.0))).collect()
    };
    path(&mut out, "zero", &d);
    for (r, y) in all.iter().zip(&rows.middles).filter(|(r, _)| usable(r.estimate, log)) {
        if half(r) > 0.0 {
            let (from, to) = (rows.px(r.estimate - half(r)), rows.px(r.estimate + half(r)));
            let (from, to, y, y0) = (c(from), c(to), c(*y), c(y - 4.0));
            path(&mut out, "s0 l", &format!("M{from} {y}H{to}M{from} {y0}v8M{to} {y0}v8"));
        }
        path(&mut out, "s0 m", &mark(0, rows.px(r.estimate), *y, 4.8));
    }
    Drawn { svg: out, height, unplaced: Vec::new() }
}

/// Bars from 0 to 1, each with its floor.
pub(super) fn bars(chart: &Chart, size: Size, all: &[Bar]) -> Drawn {
    let most = all.iter().flat_map(|b| [Some(b.value), b.floor]).flatten().filter(|v| usable(*v, false));
    let x = Span { lo: 0.0, hi: most.fold(1.0, f64::max), log: false };
    let value = |b: &Bar| match b.floor.filter(|floor| floor.is_finite() && b.value.is_finite()) {
        Some(floor) => {
            let (value, floor) = alike(b.value, floor);
            format!("{value} {} {floor}", if b.is_under() { "<" } else { "≥" })
        }
        None => number(b.value),
    };
    let named: Vec<(&str, String)> = all.iter().map(|b| (b.name.as_str(), value(b))).collect();
    let mut out = String::new();
    let (rows, height) = self::rows(&mut out, chart, size, x, &named);
    for (b, y) in all.iter().zip(&rows.middles) {
        let (left, top) = (c(rows.left), c(y - 6.0));
        path(&mut out, "track", &format!("M{left} {top}H{}v12H{left}z", c(rows.right)));
        if usable(b.value, false) && b.value > 0.0 {
            let class = if b.is_under() { "bar under" } else { "bar" };
            path(&mut out, class, &format!("M{left} {top}H{}v12H{left}z", c(rows.px(b.value))));
        }
        if let Some(floor) = b.floor.filter(|f| usable(*f, false)) {
            path(&mut out, "floor", &format!("M{} {}v20", c(rows.px(floor)), c(y - 10.0)));
        }
    }
    Drawn { svg: out, height, unplaced: Vec::new() }
}

/// Two values with as many decimals as tell them apart, at least 2.
fn alike(a: f64, b: f64) -> (String, String) {
    let with = |decimals: usize| (format!("{a:.decimals$}"), format!("{b:.decimals$}"));
    if a.abs() >= 1e4 || b.abs() >= 1e4 {
        return (number(a), number(b));
    }
    (2..6).map(with).find(|(x, y)| x != y || a == b).unwrap_or_else(|| with(6))
}
