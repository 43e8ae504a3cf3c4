//! The figure around a drawing: legend, caption, data.

use super::chart::{Bar, Chart, Group, Kind, Reference, Scale, Series};
use super::csv::{self, Cell, Data};
use super::draw::{self, Drawn, Size};
use super::html::{Ids, escape, rows_table, slug};
use super::scale::{estimate, number, significant};
use super::{plot, rows};

/// The data of a chart of at most this many rows is shown as a table too.
const TABLE_ROWS: usize = 60;

/// Writes the figure of `chart`.
pub(super) fn figure(out: &mut String, chart: &Chart, ids: &mut Ids) {
    let data = csv::data(chart);
    let id = ids.take(chart.heading(), "chart");
    let heading = ids.take(&format!("{id}-title"), "title");
    out.push_str(&format!(
        "<figure class=\"chart\" id=\"{id}\" aria-labelledby=\"{heading}\">\n<h3 id=\"{heading}\">{}</h3>\n",
        escape(chart.heading())
    ));
    let about = description(chart);
    // Two drawings of the same data, of which the style sheet shows the one that suits the width.
    let mut unplaced: Vec<usize> = Vec::new();
    out.push_str("<div class=\"drawing\">\n");
    for size in [Size::WIDE, Size::NARROW] {
        let drawn = draw_chart(chart, size);
        let (title, desc) = (ids.take(&format!("{id}-t"), "t"), ids.take(&format!("{id}-d"), "d"));
        out.push_str(&format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"{}\" viewBox=\"0 0 {} {}\" role=\"img\" \
             aria-labelledby=\"{title} {desc}\"><title id=\"{title}\">{}</title><desc id=\"{desc}\">{}</desc>\n",
            size.class,
            size.width,
            drawn.height.ceil(),
            escape(chart.heading()),
            escape(&about)
        ));
        out.push_str(&drawn.svg);
        out.push_str("</svg>\n");
        unplaced.extend(drawn.unplaced);
    }
    out.push_str("</div>\n");
    legend(out, chart, &unplaced);
    out.push_str("<figcaption>\n");
    if !chart.caption.is_empty() {
        out.push_str(&format!("<p>{}</p>\n", escape(&chart.caption)));
    }
    let file = slug(if chart.csv.is_empty() { chart.heading() } else { &chart.csv }, "chart");
    out.push_str(&format!(
        "<div class=\"data\">\n<a download=\"{file}.csv\" href=\"{}\">Data as CSV\
         <span class=\"hidden\"> of {}</span></a>\n",
        data.address(),
        escape(chart.heading())
    ));
    if !data.rows.is_empty() && data.rows.len() <= TABLE_ROWS {
        table(out, chart, &data);
    }
    out.push_str("</div>\n</figcaption>\n");
    out.push_str("</figure>\n");
}

/// The data as a closed table.
fn table(out: &mut String, chart: &Chart, data: &Data) {
    let cell = |cell: &Cell| match cell {
        Cell::Text(text) => text.clone(),
        Cell::Number(value) => significant(*value, 6),
        Cell::Empty => String::new(),
    };
    let rows: Vec<Vec<String>> = data.rows.iter().map(|row| row.iter().map(cell).collect()).collect();
    out.push_str("<details class=\"numbers\"><summary>Data as a table</summary>\n");
    rows_table(out, &format!("Data of “{}”", chart.heading()), &data.header, &rows, None);
    out.push_str("</details>\n");
}

/// What each colour, dash and shape stands for.
fn legend(out: &mut String, chart: &Chart, unplaced: &[usize]) {
    let mut entries: Vec<(String, String)> = Vec::new();
    let line = |references: &[Reference]| {
        let shown = references.iter().enumerate().filter(|(i, r)| r.at.is_finite() && unplaced.contains(i));
        shown
            .map(|(i, r)| (draw::reference_key(i), format!("{} ({})", r.label, number(r.at))))
            .collect::<Vec<_>>()
    };
    match &chart.kind {
        Kind::Lines { series, references } => {
            let marked = matches!(chart.x.scale, Scale::Category(_));
            let key = |(i, s): (usize, &Series)| (draw::series_key(i, s, marked), s.name.clone());
            entries.extend(series.iter().enumerate().map(key));
            entries.extend(line(references));
        }
        Kind::Histogram { distributions, references, .. } => {
            entries
                .extend(distributions.iter().enumerate().map(|(i, d)| (draw::step_key(i), d.name.clone())));
            entries.extend(line(references));
        }
        Kind::Scatter { groups } => {
            let count = |g: &Group| number(g.points.len() as f64);
            entries.extend(
                groups
                    .iter()
                    .enumerate()
                    .map(|(i, g)| (draw::mark_key(i), format!("{} ({})", g.name, count(g)))),
            );
        }
        Kind::Bars { bars } => {
            let (under, over): (Vec<&Bar>, Vec<&Bar>) = bars.iter().partition(|b| b.is_under());
            entries.extend((!over.is_empty()).then(|| (draw::bar_key("bar"), "measured".to_string())));
            entries.extend(
                (!under.is_empty()).then(|| (draw::bar_key("bar under"), "below its floor".to_string())),
            );
            let floors = bars.iter().any(|b| b.floor.is_some());
            entries.extend(floors.then(|| (draw::floor_key(), "floor".to_string())));
        }
        Kind::Intervals { .. } => {}
    }
    if entries.is_empty() {
        return;
    }
    out.push_str("<ul class=\"legend\">\n");
    for (key, name) in entries {
        out.push_str(&format!(
            "<li><svg viewBox=\"0 0 32 14\" width=\"32\" height=\"14\" aria-hidden=\"true\">{key}</svg>{}</li>\n",
            escape(&name)
        ));
    }
    out.push_str("</ul>\n");
}

/// Draws `chart` at `size`.
fn draw_chart(chart: &Chart, size: Size) -> Drawn {
    match &chart.kind {
        Kind::Lines { series, references } => plot::lines(chart, size, series, references),
        Kind::Histogram { edges, distributions, references } => {
            plot::histogram(chart, size, edges, distributions, references)
        }
        Kind::Scatter { groups } => plot::scatter(chart, size, groups),
        Kind::Intervals { rows } => rows::intervals(chart, size, rows),
        Kind::Bars { bars } => rows::bars(chart, size, bars),
    }
}

/// What the chart shows, in words, for those who do not see it.
fn description(chart: &Chart) -> String {
    let (x, y) = (&chart.x.label, &chart.y.label);
    let mut parts: Vec<String> = Vec::new();
    let intro = match &chart.kind {
        Kind::Lines { series, references } => {
            for s in series {
                let good: Vec<f64> = s.points.iter().map(|p| p.y).filter(|y| y.is_finite()).collect();
                let (Some(first), Some(last)) = (good.first(), good.last()) else { continue };
                let (lo, hi) = (
                    good.iter().copied().fold(*first, f64::min),
                    good.iter().copied().fold(*first, f64::max),
                );
                parts.push(format!(
                    "{}: {} at first, {} at last, lowest {}, highest {}",
                    s.name,
                    number(*first),
                    number(*last),
                    number(lo),
                    number(hi)
                ));
            }
            parts.extend(references.iter().map(|r| format!("line at {}: {}", number(r.at), r.label)));
            format!("Line chart of {y} over {x}.")
        }
        Kind::Intervals { rows } => {
            parts.extend(rows.iter().map(|r| format!("{}: {}", r.name, estimate(r.estimate, r.error))));
            format!("Estimates with their errors: {x}.")
        }
        Kind::Histogram { edges, distributions, .. } => {
            for d in distributions {
                let highest = d.heights.iter().zip(edges.windows(2)).filter(|(h, _)| h.is_finite());
                if let Some((h, bin)) = highest.max_by(|a, b| a.0.total_cmp(b.0)) {
                    let (from, to) = (number(bin[0]), number(bin[1]));
                    parts.push(format!("{}: highest, {}, from {from} to {to}", d.name, number(*h)));
                }
            }
            format!("Histogram of {x}.")
        }
        Kind::Scatter { groups } => {
            parts.extend(groups.iter().map(|g| format!("{}: {} points", g.name, g.points.len())));
            format!("Scatter plot of {y} against {x}.")
        }
        Kind::Bars { bars } => {
            for b in bars {
                let floor = b.floor.map_or(String::new(), |floor| format!(", floor {}", number(floor)));
                parts.push(format!("{}: {}{floor}", b.name, number(b.value)));
            }
            format!("Bar chart of {x}.")
        }
    };
    if parts.is_empty() { intro } else { format!("{intro} {}.", parts.join("; ")) }
}
