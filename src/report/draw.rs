//! Pieces of SVG: text, lines, marks and the keys of the legend. Colours, dashes and fonts are classes of the style
//! sheet.

use std::fmt::Write;

use super::chart::Series;
use super::html::escape;

/// Size of the text in a drawing; the style sheet has the same.
pub(super) const FONT: f64 = 13.0;
/// The height of a line of text.
pub(super) const LINE: f64 = 17.0;
/// Colours, dashes and shapes of the style sheet and of [`mark`].
pub(super) const COLOURS: usize = 7;
pub(super) const DASHES: usize = 5;
pub(super) const SHAPES: usize = 6;
/// Curves of at most this many points have a mark at each, and bars for errors instead of a band.
pub(super) const FEW_POINTS: usize = 24;

/// The width that a drawing is laid out for.
#[derive(Clone, Copy)]
pub(super) struct Size {
    pub class: &'static str,
    pub width: f64,
    pub height: f64,
}

impl Size {
    pub const WIDE: Size = Size { class: "wide", width: 680.0, height: 350.0 };
    pub const NARROW: Size = Size { class: "narrow", width: 360.0, height: 300.0 };

    pub fn is_wide(self) -> bool {
        self.width > 500.0
    }
}

/// A drawing: SVG elements, their height, and which references have no label in it for want of room.
pub(super) struct Drawn {
    pub svg: String,
    pub height: f64,
    pub unplaced: Vec<usize>,
}

/// About how wide `text` is: no font is known here, so it is the width in a wide one.
pub(super) fn text_width(text: &str) -> f64 {
    let width = |c: char| match c {
        'i' | 'j' | 'l' | 'I' | '.' | ',' | ':' | ';' | '\'' | '|' | '!' | ' ' | 't' | 'f' | 'r' | '('
        | ')' => 0.38,
        'm' | 'w' | 'M' | 'W' | '%' | '@' | '−' | '±' | '×' | '=' | '<' | '>' | '≥' => 0.88,
        'A'..='Z' => 0.70,
        c if (c as u32) >= 0x2E80 => 1.05,
        _ => 0.60,
    };
    text.chars().map(width).sum::<f64>() * FONT
}

/// `text` in at most `most` lines of `width`; what does not fit ends in an ellipsis.
pub(super) fn wrap(text: &str, width: f64, most: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut line = String::new();
    let mut words = text.split_whitespace().peekable();
    while let Some(word) = words.next() {
        let longer = if line.is_empty() { word.to_string() } else { format!("{line} {word}") };
        if text_width(&longer) <= width || line.is_empty() {
            line = longer;
        } else if lines.len() + 1 < most {
            lines.push(std::mem::replace(&mut line, word.to_string()));
        } else {
            line = longer;
            for rest in words.by_ref() {
                line = format!("{line} {rest}");
            }
        }
    }
    lines.push(line);
    for line in &mut lines {
        if text_width(line) > width {
            while !line.is_empty() && text_width(line) + FONT > width {
                line.pop();
            }
            line.truncate(line.trim_end().len());
            line.push('…');
        }
    }
    lines
}

/// `text` with its middle left out where it is wider than `width`.
pub(super) fn shorten(text: &str, width: f64) -> String {
    let all: Vec<char> = text.chars().collect();
    let kept = |n: usize| -> String {
        let (head, tail) = (&all[..n.div_ceil(2)], &all[all.len() - n / 2..]);
        head.iter().chain(&['…']).chain(tail).collect()
    };
    if text_width(text) <= width {
        return text.to_string();
    }
    (0..all.len()).rev().map(kept).find(|short| text_width(short) <= width).unwrap_or_else(|| "…".to_string())
}

/// Says in a drawing that nothing can be drawn.
pub(super) fn nothing(out: &mut String, x: f64, y: f64) {
    text(out, (x, y), "t c", "no values to draw");
}

/// A coordinate, to a tenth.
pub(super) fn c(value: f64) -> String {
    tenths((value * 10.0).round() as i64)
}

fn tenths(value: i64) -> String {
    let sign = if value < 0 { "-" } else { "" };
    let (whole, part) = (value.abs() / 10, value.abs() % 10);
    match (whole, part) {
        (_, 0) => format!("{sign}{whole}"),
        (0, _) => format!("{sign}.{part}"),
        _ => format!("{sign}{whole}.{part}"),
    }
}

/// A line through places, in steps from one to the next.
pub(super) fn polyline(places: &[(f64, f64)]) -> String {
    let mut out = String::new();
    let mut last = (0, 0);
    for (i, (x, y)) in places.iter().enumerate() {
        let now = ((x * 10.0).round() as i64, (y * 10.0).round() as i64);
        if i == 0 {
            let _ = write!(out, "M{} {}", tenths(now.0), tenths(now.1));
        } else {
            let (dx, dy) = (now.0 - last.0, now.1 - last.1);
            let _ = write!(out, "{}{}", if i == 1 { "l" } else { separator(dx) }, tenths(dx));
            let _ = write!(out, "{}{}", separator(dy), tenths(dy));
        }
        last = now;
    }
    if places.len() == 1 {
        out.push_str("h0");
    }
    out
}

fn separator(next: i64) -> &'static str {
    if next < 0 { "" } else { " " }
}

/// Text at (x, y), with the classes of the style sheet.
pub(super) fn text(out: &mut String, (x, y): (f64, f64), class: &str, text: &str) {
    let _ = writeln!(out, "<text class=\"{class}\" x=\"{}\" y=\"{}\">{}</text>", c(x), c(y), escape(text));
}

/// A path with the classes of the style sheet.
pub(super) fn path(out: &mut String, class: &str, d: &str) {
    if !d.is_empty() {
        let _ = writeln!(out, "<path class=\"{class}\" d=\"{d}\"/>");
    }
}

/// The outline of shape `shape` around (x, y).
pub(super) fn mark(shape: usize, x: f64, y: f64, r: f64) -> String {
    let (d, w) = (c(2.0 * r), c(1.8 * r));
    match shape % SHAPES {
        0 => format!("M{} {}a{r} {r} 0 1 0 {d} 0a{r} {r} 0 1 0-{d} 0z", c(x - r), c(y), r = c(r)),
        1 => format!("M{} {}l{} {}h-{}z", c(x), c(y - 1.2 * r), c(1.2 * r), d, c(2.4 * r)),
        2 => format!("M{} {}h{w}v{w}h-{w}z", c(x - 0.9 * r), c(y - 0.9 * r)),
        3 => format!("M{} {}l{q} {q}l-{q} {q}l-{q}-{q}z", c(x), c(y - 1.3 * r), q = c(1.3 * r)),
        4 => format!("M{} {}l{} -{}h-{}z", c(x), c(y + 1.2 * r), c(1.2 * r), d, c(2.4 * r)),
        _ => {
            let (t, e) = (c(0.8 * r), c(0.9 * r));
            let start = format!("M{} {}", c(x - 0.4 * r), c(y - 1.3 * r));
            format!("{start}h{t}v{e}h{e}v{t}h-{e}v{e}h-{t}v-{e}h-{e}v-{t}h{e}z")
        }
    }
}

/// The mark of a group in the legend.
pub(super) fn mark_key(i: usize) -> String {
    format!("<path class=\"s{} m\" d=\"{}\"/>", i % COLOURS, mark(i, 16.0, 7.0, 5.0))
}

/// The line of a curve in the legend, with its mark where the drawing has marks.
pub(super) fn series_key(i: usize, series: &Series, only_marked: bool) -> String {
    let mut out = String::new();
    if !only_marked {
        let _ = write!(out, "<path class=\"s{} l d{}\" d=\"M1 7h30\"/>", i % COLOURS, i % DASHES);
    }
    if only_marked || series.points.len() <= FEW_POINTS {
        out.push_str(&mark_key(i));
    }
    out
}

/// The line of a reference in the legend.
pub(super) fn reference_key(i: usize) -> String {
    format!("<path class=\"ref r{}\" d=\"M1 7h30\"/>", i % 3)
}

/// The steps of a distribution in the legend.
pub(super) fn step_key(i: usize) -> String {
    let (colour, d) = (i % COLOURS, "M1 12v-9h30v9");
    format!("<path class=\"s{colour} b\" d=\"{d}\"/><path class=\"s{colour} l d{}\" d=\"{d}\"/>", i % DASHES)
}

/// A bar in the legend.
pub(super) fn bar_key(class: &str) -> String {
    format!("<path class=\"{class}\" d=\"M2 2h28v10h-28z\"/>")
}

/// The line of a floor in the legend.
pub(super) fn floor_key() -> String {
    "<path class=\"floor\" d=\"M16 0v14\"/>".to_string()
}
