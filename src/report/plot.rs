//! Charts with two axes: curves, histograms and scatter plots.

use std::fmt::Write;

use super::chart::{Axis, Chart, Distribution, Group, Point, Reference, Scale, Series};
use super::draw::{
    COLOURS, DASHES, Drawn, FEW_POINTS, FONT, LINE, SHAPES, Size, c, mark, nothing, path, polyline, shorten,
    text, text_width, wrap,
};
use super::html::escape;
use super::scale::{Span, number, usable};

/// Curves of more points are thinned out in the drawing.
const MOST_POINTS: usize = 400;
/// References after these are named in the legend alone.
const MOST_LABELS: usize = 8;

/// The area between two axes.
struct Plot {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
    x: Span,
    y: Span,
}

impl Plot {
    fn px(&self, x: f64) -> f64 {
        self.left + self.x.at(x) * (self.right - self.left)
    }

    fn py(&self, y: f64) -> f64 {
        self.bottom - self.y.at(y) * (self.bottom - self.top)
    }

    fn say_if_empty(&self, out: &mut String, empty: bool) {
        if empty {
            nothing(out, (self.left + self.right) / 2.0, (self.top + self.bottom) / 2.0 + 14.0);
        }
    }
}

/// The ticks of the horizontal axis: at `places` where few values are all there is, such as 1, 2, 4, 8.
fn x_ticks(span: &Span, places: &[f64], width: f64) -> Vec<(f64, String)> {
    if span.log && (2..=12).contains(&places.len()) {
        return places.iter().map(|x| (*x, number(*x))).collect();
    }
    span.ticks_in(width, text_width)
}

/// Lays out the plot and draws its axes and grid.
fn axes(out: &mut String, chart: &Chart, size: Size, x: Span, y: Span, places: &[f64]) -> (Plot, f64) {
    let y_ticks = y.ticks(if size.is_wide() { 6 } else { 5 });
    let heading = wrap(&chart.y.label, size.width - 8.0, 2);
    let top = 12.0 + if chart.y.label.is_empty() { 0.0 } else { heading.len() as f64 * LINE + 4.0 };
    let widest = y_ticks.iter().map(|t| text_width(&t.1)).fold(0.0, f64::max);
    let left = (widest + 10.0).max(24.0);
    let mut plot = Plot { left, right: size.width - 14.0, top, bottom: size.height, x, y };
    if let Scale::Category(_) = chart.x.scale {
        plot.right = size.width - 4.0;
    }
    let width = plot.right - plot.left;
    let foot = wrap(&chart.x.label, width, 2);

    // Names below the axis: side by side on up to 3 lines, or aslant where one word is too wide.
    let mut labels: Vec<(f64, Vec<String>)> = Vec::new();
    let mut aslant = false;
    if let Scale::Category(names) = &chart.x.scale {
        let cell = width / names.len().max(1) as f64 - 8.0;
        aslant = names.iter().any(|name| name.split_whitespace().any(|word| text_width(word) > cell));
        for (i, name) in names.iter().enumerate() {
            labels.push((i as f64, if aslant { vec![shorten(name, 190.0)] } else { wrap(name, cell, 3) }));
        }
    } else {
        labels.extend(x_ticks(&x, places, width).into_iter().map(|(at, label)| (at, vec![label])));
    }
    let lines = labels.iter().map(|l| l.1.len()).max().unwrap_or(1) as f64;
    let widest = labels.iter().flat_map(|l| &l.1).map(|l| text_width(l)).fold(0.0, f64::max);
    let depth = if aslant { widest * 0.68 + 16.0 } else { lines * LINE };
    let foot_height = if chart.x.label.is_empty() { 0.0 } else { foot.len() as f64 * LINE + 4.0 };
    // Long names make the drawing taller, not the plot lower.
    let below = if aslant { LINE } else { depth };
    plot.bottom = (size.height - 10.0 - below - foot_height).max(top + 120.0);
    if aslant {
        // No name may run out on the left.
        let cell = width / labels.len().max(1) as f64;
        let reach =
            |(i, l): (usize, &(f64, Vec<String>))| text_width(&l.1[0]) * 0.71 - cell * (i as f64 + 0.5);
        plot.left = labels.iter().enumerate().map(reach).fold(plot.left, f64::max);
    }

    if !chart.y.label.is_empty() {
        for (i, line) in heading.iter().enumerate() {
            text(out, (0.0, 14.0 + i as f64 * LINE), "q", line);
        }
    }
    let mut grid = String::new();
    for (at, label) in &y_ticks {
        let y = plot.py(*at);
        let _ = write!(grid, "M{} {}H{}", c(plot.left), c(y), c(plot.right));
        text(out, (plot.left - 7.0, y + 4.5), "t e", label);
    }
    path(out, "g", &grid);
    // Names aslant need a line's height between them.
    let cell = (plot.right - plot.left) / labels.len().max(1) as f64;
    let slant_skip = (FONT / (cell * 0.71)).ceil().max(1.0) as usize;
    let mut ticks = String::new();
    let mut free = f64::NEG_INFINITY;
    for (at, lines) in &labels {
        let x = plot.px(*at);
        let half = lines.iter().map(|l| text_width(l)).fold(0.0, f64::max) / 2.0;
        if !matches!(chart.x.scale, Scale::Category(_)) {
            let _ = write!(ticks, "M{} {}v5", c(x), c(plot.bottom));
            if x - half < free {
                continue;
            }
            free = x + half + 8.0;
        }
        if aslant {
            if !(*at as usize).is_multiple_of(slant_skip) {
                continue;
            }
            let (x, y) = (c(x + 4.0), c(plot.bottom + 14.0));
            let label = escape(&lines[0]);
            let _ = writeln!(
                out,
                "<text class=\"t e\" transform=\"translate({x} {y})rotate(-45)\">{label}</text>"
            );
            continue;
        }
        let x = x.min(size.width - half - 1.0);
        for (i, line) in lines.iter().enumerate() {
            text(out, (x, plot.bottom + 21.0 + i as f64 * LINE), "t c", line);
        }
    }
    path(out, "a", &format!("{ticks}M{} {}H{}", c(plot.left), c(plot.bottom), c(plot.right)));
    let mut foot_y = plot.bottom + 11.0 + depth;
    if !chart.x.label.is_empty() {
        for line in &foot {
            foot_y += LINE;
            text(out, ((plot.left + plot.right) / 2.0, foot_y), "q c", line);
        }
    }
    (plot, foot_y + 6.0)
}

/// Runs of points that can be drawn, thinned out to the highest and lowest of each stretch.
fn runs(points: &[Point], x: &Axis, y: &Axis, most: usize) -> Vec<Vec<Point>> {
    let good = |p: &Point| usable(p.x, x.is_log()) && usable(p.y, y.is_log());
    let stretch = if points.len() > most { points.len().div_ceil(most / 2) } else { 1 };
    let thin = |run: &[Point]| -> Vec<Point> {
        if stretch == 1 {
            return run.to_vec();
        }
        let mut kept = Vec::new();
        for part in run.chunks(stretch) {
            let by = |better: fn(f64, f64) -> bool| {
                (1..part.len()).fold(0, |best, i| if better(part[i].y, part[best].y) { i } else { best })
            };
            let (low, high) = (by(|a, b| a < b), by(|a, b| a > b));
            kept.push(part[low.min(high)]);
            if low != high {
                kept.push(part[low.max(high)]);
            }
        }
        kept
    };
    points.split(|p| !good(p)).filter(|run| !run.is_empty()).map(thin).collect()
}

pub(super) fn lines(chart: &Chart, size: Size, series: &[Series], references: &[Reference]) -> Drawn {
    let all = || series.iter().flat_map(|s| &s.points).filter(|p| usable(p.x, chart.x.is_log()));
    let whisker = |p: &Point| p.error.filter(|e| usable(*e, false)).unwrap_or(0.0).abs();
    let ends = all().flat_map(|p| [p.y - whisker(p), p.y, p.y + whisker(p)]);
    let y = Span::of(ends.chain(references.iter().map(|r| r.at)), chart.y.is_log(), 0.05);
    let category = matches!(chart.x.scale, Scale::Category(_));
    let x = match &chart.x.scale {
        Scale::Category(names) => Span { lo: -0.5, hi: names.len().max(1) as f64 - 0.5, log: false },
        _ => {
            let few = series.iter().all(|s| s.points.len() <= FEW_POINTS);
            Span::of(all().map(|p| p.x), chart.x.is_log(), if few { 0.03 } else { 0.0 })
        }
    };
    let mut places: Vec<f64> = all().map(|p| p.x).collect();
    places.sort_by(f64::total_cmp);
    places.dedup();

    let mut out = String::new();
    let (plot, height) = axes(&mut out, chart, size, x, y, &places);
    reference_lines(&mut out, &plot, references, false);
    let cell = (plot.right - plot.left) / (x.hi - x.lo).max(1.0);
    let dodge = if category { (cell * 0.7 / series.len().max(1) as f64).min(16.0) } else { 0.0 };
    let most = if size.is_wide() { MOST_POINTS } else { MOST_POINTS / 2 };
    let mut drawn: Vec<(f64, f64)> = Vec::new();
    let mut bands = String::new();
    let mut curves = String::new();
    for (i, s) in series.iter().enumerate() {
        let few = s.points.len() <= FEW_POINTS || category;
        let aside = dodge * (i as f64 - (series.len() as f64 - 1.0) / 2.0);
        let at = |p: &Point| (plot.px(p.x) + aside, plot.py(p.y));
        let (mut curve, mut bars, mut marks) = (String::new(), String::new(), String::new());
        for run in runs(&s.points, &chart.x, &chart.y, most) {
            let line: Vec<(f64, f64)> = run.iter().map(at).collect();
            if !category {
                curve.push_str(&polyline(&line));
            }
            let error = |p: &Point| whisker(p) > 0.0;
            if few {
                for (p, (x, y)) in run.iter().zip(&line) {
                    if error(p) {
                        let (low, high) = (plot.py(p.y - whisker(p)), plot.py(p.y + whisker(p)));
                        let (low, high, x0, x) = (c(low), c(high), c(x - 3.5), c(*x));
                        let _ = write!(bars, "M{x} {low}V{high}M{x0} {low}h7M{x0} {high}h7");
                    }
                    marks.push_str(&mark(i, *x, *y, 4.0));
                }
            } else if let [(x, y)] = line[..] {
                // A point between gaps, which no line shows.
                marks.push_str(&mark(i, x, y, 2.0));
            } else if run.iter().any(error) {
                let edge = |sign: f64, p: &Point| (at(p).0, plot.py(p.y + sign * whisker(p)));
                let upper = run.iter().map(|p| edge(1.0, p));
                let around: Vec<(f64, f64)> = upper.chain(run.iter().rev().map(|p| edge(-1.0, p))).collect();
                path(&mut bands, &format!("s{} b", i % COLOURS), &(polyline(&around) + "z"));
            }
            drawn.extend(line.windows(2).flat_map(|ends| between(ends[0], ends[1])));
            drawn.extend(line);
        }
        let colour = i % COLOURS;
        let thin = if few { "" } else { " thin" };
        path(&mut curves, &format!("s{colour} l d{}{thin}", i % DASHES), &curve);
        path(&mut curves, &format!("s{colour} w"), &bars);
        path(&mut curves, &format!("s{colour} m"), &marks);
    }
    out += &bands;
    out += &curves;
    plot.say_if_empty(&mut out, drawn.is_empty());
    let unplaced = reference_labels(&mut out, &plot, references, &drawn, false);
    Drawn { svg: out, height, unplaced }
}

/// Places on the way from `a` to `b`.
fn between(a: (f64, f64), b: (f64, f64)) -> impl Iterator<Item = (f64, f64)> {
    (1..16).map(move |i| {
        let share = f64::from(i) / 16.0;
        (a.0 + (b.0 - a.0) * share, a.1 + (b.1 - a.1) * share)
    })
}

pub(super) fn histogram(
    chart: &Chart,
    size: Size,
    edges: &[f64],
    all: &[Distribution],
    references: &[Reference],
) -> Drawn {
    let heights = all.iter().flat_map(|d| d.heights.iter().copied());
    let floor = if chart.y.is_log() { None } else { Some(0.0) };
    let y = Span::of(heights.chain(floor), chart.y.is_log(), 0.06);
    let x = Span::of(edges.iter().copied().chain(references.iter().map(|r| r.at)), chart.x.is_log(), 0.0);
    let mut out = String::new();
    let (plot, height) = axes(&mut out, chart, size, x, y, &[]);
    let (mut areas, mut curves) = (String::new(), String::new());
    let mut drawn = Vec::new();
    for (i, distribution) in all.iter().enumerate() {
        let mut line: Vec<(f64, f64)> = Vec::new();
        for (bin, h) in edges.windows(2).zip(&distribution.heights) {
            if !(usable(bin[0], x.log) && usable(bin[1], x.log)) {
                continue;
            }
            let (from, to) = (plot.px(bin[0]), plot.px(bin[1]));
            let y = if usable(*h, y.log) { plot.py(*h).min(plot.bottom) } else { plot.bottom };
            if line.is_empty() {
                line.push((from, plot.bottom));
            }
            line.extend([(from, y), (to, y)]);
        }
        if let Some(end) = line.last().map(|last| (last.0, plot.bottom)) {
            line.push(end);
            let d = polyline(&line);
            path(&mut areas, &format!("s{} b", i % COLOURS), &d);
            path(&mut curves, &format!("s{} l d{}", i % COLOURS, i % DASHES), &d);
        }
        drawn.extend(line.windows(2).flat_map(|ends| between(ends[0], ends[1])));
    }
    plot.say_if_empty(&mut out, drawn.is_empty());
    out += &areas;
    reference_lines(&mut out, &plot, references, true);
    out += &curves;
    let unplaced = reference_labels(&mut out, &plot, references, &drawn, true);
    Drawn { svg: out, height, unplaced }
}

pub(super) fn scatter(chart: &Chart, size: Size, groups: &[Group]) -> Drawn {
    let good = |p: &&(f64, f64)| usable(p.0, chart.x.is_log()) && usable(p.1, chart.y.is_log());
    let all = || groups.iter().flat_map(|g| &g.points).filter(good);
    let x = Span::of(all().map(|p| p.0), chart.x.is_log(), 0.03);
    let y = Span::of(all().map(|p| p.1), chart.y.is_log(), 0.03);
    let mut out = String::new();
    // A map is easier to read when it is taller than a curve.
    let size = Size { height: size.height + 60.0, ..size };
    let (plot, height) = axes(&mut out, chart, size, x, y, &[]);
    let r = if all().count() > 400 { 2.2 } else { 3.6 };
    plot.say_if_empty(&mut out, all().next().is_none());
    // A share of each group in turn, so that no group hides the others and crowded places are darker.
    const LAYERS: usize = 12;
    for layer in 0..LAYERS {
        for (i, group) in groups.iter().enumerate() {
            let mut marks = String::new();
            for p in group.points.iter().filter(good).skip(layer).step_by(LAYERS) {
                let (x, y) = (plot.px(p.0), plot.py(p.1));
                if i % SHAPES == 0 {
                    let _ = write!(marks, "M{} {}h0", c(x), c(y));
                } else {
                    marks.push_str(&mark(i, x, y, r));
                }
            }
            let class = if i % SHAPES == 0 { if r < 3.0 { "o1" } else { "o2" } } else { "m p" };
            path(&mut out, &format!("s{} {class}", i % COLOURS), &marks);
        }
    }
    Drawn { svg: out, height, unplaced: Vec::new() }
}

fn reference_lines(out: &mut String, plot: &Plot, references: &[Reference], upright: bool) {
    let log = if upright { plot.x.log } else { plot.y.log };
    for (i, reference) in references.iter().enumerate().filter(|(_, r)| usable(r.at, log)) {
        let d = if upright {
            format!("M{} {}V{}", c(plot.px(reference.at)), c(plot.top), c(plot.bottom))
        } else {
            format!("M{} {}H{}", c(plot.left), c(plot.py(reference.at)), c(plot.right))
        };
        path(out, &format!("ref r{}", i % 3), &d);
    }
}

/// Writes the labels beside their lines where neither a curve nor another label is; gives back the other ones.
fn reference_labels(
    out: &mut String,
    plot: &Plot,
    references: &[Reference],
    drawn: &[(f64, f64)],
    upright: bool,
) -> Vec<usize> {
    let log = if upright { plot.x.log } else { plot.y.log };
    let shown = |r: &Reference| usable(r.at, log);
    let lines: Vec<f64> = references
        .iter()
        .filter(|r| shown(r))
        .map(|r| if upright { plot.px(r.at) } else { plot.py(r.at) })
        .collect();
    let mut unplaced = Vec::new();
    let mut boxes: Vec<(f64, f64, f64, f64)> = Vec::new();
    for (i, reference) in references.iter().enumerate().filter(|(_, r)| shown(r)) {
        if i >= MOST_LABELS {
            unplaced.push(i);
            continue;
        }
        let width = text_width(&reference.label);
        // Places that are tried, in this order: the end of the text that is given, the base line, and whether it is the
        // right end.
        let tries: Vec<(f64, f64, bool)> = if upright {
            let x = plot.px(reference.at);
            let base = |row: i32| plot.top + 13.0 + 18.0 * f64::from(row);
            (0..3).flat_map(|row| [(x + 6.0, base(row), false), (x - 6.0, base(row), true)]).collect()
        } else {
            let y = plot.py(reference.at);
            let ends = [
                (plot.right - 4.0, true),
                (plot.left + 6.0, false),
                ((plot.left + plot.right - width) / 2.0, false),
            ];
            ends.into_iter().flat_map(|(x, right)| [(x, y - 5.0, right), (x, y + 15.0, right)]).collect()
        };
        let free = |(x, base, right): (f64, f64, bool)| {
            let left = if right { x - width } else { x };
            let area = (left - 3.0, base - 12.0, left + width + 3.0, base + 4.0);
            let (x0, y0, x1, y1) = area;
            let inside = x0 >= plot.left && x1 <= plot.right && y0 >= plot.top && y1 <= plot.bottom;
            let crossed =
                lines.iter().any(|at| if upright { *at > x0 && *at < x1 } else { *at > y0 && *at < y1 });
            let near = |p: &(f64, f64)| p.0 > x0 - 3.0 && p.0 < x1 + 3.0 && p.1 > y0 - 3.0 && p.1 < y1 + 3.0;
            let taken = boxes.iter().any(|b| b.0 < x1 && b.2 > x0 && b.1 < y1 && b.3 > y0);
            (inside && !crossed && !taken && !drawn.iter().any(near)).then_some((x, base, right, area))
        };
        match tries.into_iter().find_map(free) {
            Some((x, base, right, area)) => {
                boxes.push(area);
                text(out, (x, base), if right { "t h e" } else { "t h" }, &reference.label);
            }
            None => unplaced.push(i),
        }
    }
    unplaced
}
