//! Pictures of a report as SVG: a roofline, and costs over sizes.

use std::path::Path;

use plotters::coord::Shift;
use plotters::coord::combinators::LogCoord;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::{Entry, Point, Report, Scaling, limit_of};
use crate::backend::Resource;
use crate::data::write_atomic;
use crate::error::{Error, Result};

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
/// A chart with logarithmic axes.
type Log = Cartesian2d<LogCoord<f64>, LogCoord<f64>>;

const INK: RGBColor = RGBColor(40, 44, 52);
const FAINT: RGBColor = RGBColor(120, 126, 138);
const GRID: RGBColor = RGBColor(232, 234, 238);
/// Colours that stay apart for people who do not tell red from green (Okabe and Ito).
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(90, 90, 90),
];
const FONT: &str = "sans-serif";

/// Runs a drawing and writes it to `path`, whole or not at all.
fn draw(
    path: &Path,
    size: (u32, u32),
    with: impl FnOnce(&Area<'_>) -> std::result::Result<(), String>,
) -> Result<()> {
    let mut text = String::new();
    let drawn = {
        let area = SVGBackend::with_string(&mut text, size).into_drawing_area();
        area.fill(&WHITE).map_err(|e| e.to_string()).and_then(|()| with(&area)).and_then(|()| {
            // Dropping it would say nothing of a failure.
            area.present().map_err(|e| e.to_string())
        })
    };
    drawn.map_err(|detail| Error::Format { path: path.to_path_buf(), format: "SVG", detail })?;
    write_atomic(path, text.as_bytes())
}

fn said<E: std::fmt::Display>(error: E) -> String {
    error.to_string()
}

fn style(size: i32, colour: RGBColor, h: HPos, v: VPos) -> TextStyle<'static> {
    (FONT, size).into_font().color(&colour).pos(Pos::new(h, v))
}

fn write(
    area: &Area<'_>,
    text: &str,
    at: (i32, i32),
    style: &TextStyle<'_>,
) -> std::result::Result<(), String> {
    area.draw(&Text::new(text.to_string(), at, style.clone())).map_err(said)
}

fn line(
    area: &Area<'_>,
    points: Vec<(i32, i32)>,
    colour: RGBColor,
    width: u32,
) -> std::result::Result<(), String> {
    area.draw(&PathElement::new(points, colour.stroke_width(width))).map_err(said)
}

/// One of several shapes, so that marks which lie on each other stay visible and colour is not needed.
fn mark(area: &Area<'_>, (x, y): (i32, i32), kind: usize) -> std::result::Result<(), String> {
    let colour = COLOURS[kind % COLOURS.len()];
    let corners: Vec<(i32, i32)> = match kind % 4 {
        0 => {
            let circle = Circle::new((x, y), 6, colour.stroke_width(3));
            return area.draw(&circle).map_err(said);
        }
        1 => vec![(x - 6, y - 6), (x + 6, y - 6), (x + 6, y + 6), (x - 6, y + 6), (x - 6, y - 6)],
        2 => vec![(x, y - 8), (x + 8, y + 6), (x - 8, y + 6), (x, y - 8)],
        _ => vec![(x, y - 8), (x + 8, y), (x, y + 8), (x - 8, y), (x, y - 8)],
    };
    line(area, corners, colour, 3)
}

/// Numbers of a logarithmic axis: "0.1", "100", "10 k", "1 M".
fn short(value: f64) -> String {
    match value {
        v if v >= 1e9 => format!("{} G", v / 1e9),
        v if v >= 1e6 => format!("{} M", v / 1e6),
        v if v >= 1e4 => format!("{} k", v / 1e3),
        v => format!("{v}"),
    }
}

/// Operations with FLOP and bytes, under the roof of the device's memory and, where it was measured, arithmetic.
///
/// # Errors
/// No memory limit was measured, or the file cannot be written.
pub fn roofline(report: &Report, path: &Path) -> Result<()> {
    let limit = |resource, what| {
        limit_of(&report.limits, resource).ok_or_else(|| {
            Error::option("--plot", format!("a device with a measured limit of {what}"), &report.device.name)
        })
    };
    let memory = [Resource::Copy, Resource::Write].into_iter().map(|r| limit(r, "memory"));
    let memory = memory.collect::<Result<Vec<f64>>>()?;
    let flops = limit_of(&report.limits, Resource::Flop).map(|f| f / 1e9);
    let spot = |entry: &Entry| {
        let flop = entry.need(Resource::Flop)?;
        let bytes = [Resource::Write, Resource::Copy].into_iter().find_map(|r| entry.need(r))?;
        Some((flop / bytes, entry.per_second * flop / 1e9))
    };
    let spots: Vec<(&Entry, (f64, f64))> =
        report.entries.iter().filter_map(|e| Some((e, spot(e)?))).collect();
    draw(path, (1000, 600), |area| roof(area, report, &spots, flops, [memory[0] / 1e9, memory[1] / 1e9]))
}

fn roof(
    area: &Area<'_>,
    report: &Report,
    spots: &[(&Entry, (f64, f64))],
    ceiling: Option<f64>,
    memory: [f64; 2],
) -> std::result::Result<(), String> {
    let ys = spots.iter().map(|s| s.1.1);
    // Where arithmetic was not measured, the slopes end above the highest mark.
    let flops = ceiling.unwrap_or(2.0 * ys.clone().fold(1.0, f64::max));
    let xs = spots.iter().map(|s| s.1.0).chain(memory.map(|m| flops / m));
    let ys = ys.chain([flops]);
    let (x0, x1) = (xs.clone().fold(1.0, f64::min) / 2.0, xs.fold(100.0, f64::max) * 3.0);
    let (y0, y1) = (ys.clone().fold(flops / 40.0, f64::min) / 2.0, ys.fold(flops, f64::max) * 2.0);
    write(
        area,
        "Roofline: what the device allows, and what each operation reaches",
        (70, 18),
        &style(20, INK, HPos::Left, VPos::Top),
    )?;
    let device = format!(
        "{}, {}, {} threads; d = {}",
        report.device.name, report.device.detail, report.device.threads, report.options.dim
    );
    write(area, &device, (70, 44), &style(14, FAINT, HPos::Left, VPos::Top))?;
    let (left, right) = area.split_horizontally(680);
    let mut chart = ChartBuilder::on(&left)
        .margin_top(72)
        .margin_left(14)
        .margin_right(10)
        .margin_bottom(12)
        .x_label_area_size(48)
        .y_label_area_size(70)
        .build_cartesian_2d((x0..x1).log_scale(), (y0..y1).log_scale())
        .map_err(said)?;
    axes(&mut chart, "FLOP per byte of memory traffic", "GFLOP per second")?;
    let at = |x: f64, y: f64| chart.backend_coord(&(x, y));
    // The roof: a slope for each memory limit, and the ceiling.
    for bandwidth in memory {
        let from = x0.max(y0 / bandwidth);
        line(area, vec![at(from, from * bandwidth), at(flops / bandwidth, flops)], FAINT, 2)?;
    }
    // Beside the lower slope, in the order of the two.
    let mut named = [(memory[0], "read + write"), (memory[1], "write")];
    named.sort_by(|a, b| b.0.total_cmp(&a.0));
    let low = named[1].0;
    let (x, y) = at((x0.max(y0 / low) * flops / low).sqrt(), (x0.max(y0 / low) * low * flops).sqrt());
    for (i, (bandwidth, name)) in named.into_iter().enumerate() {
        let label = format!("memory {name}, {bandwidth:.0} GB/s");
        write(area, &label, (x + 14, y + 8 + 18 * i as i32), &style(13, FAINT, HPos::Left, VPos::Center))?;
    }
    if ceiling.is_some() {
        let ridge = flops / memory[0].max(memory[1]);
        line(area, vec![at(ridge, flops), at(x1, flops)], FAINT, 2)?;
        let (x, y) = at(x1, flops);
        let limit = report.limits.iter().find(|l| l.resource == Resource::Flop);
        let what = limit.map_or("arithmetic", |l| l.what.as_str());
        let label = format!("{what}, {flops:.0} GFLOP/s");
        write(area, &label, (x - 6, y - 8), &style(13, FAINT, HPos::Right, VPos::Bottom))?;
    }

    for (i, (_, (x, y))) in spots.iter().enumerate() {
        mark(area, at(*x, *y), i)?;
    }
    let (x, _) = right.get_pixel_range();
    legend(area, (x.start + 16, 92), spots)
}

/// Names, rates and shares beside the marks of a roofline.
fn legend(
    area: &Area<'_>,
    (x, mut y): (i32, i32),
    spots: &[(&Entry, (f64, f64))],
) -> std::result::Result<(), String> {
    for (i, (entry, _)) in spots.iter().enumerate() {
        mark(area, (x, y + 8), i)?;
        // Settings that the title repeats are cut.
        let name = entry.what.split([',', ':']).next().unwrap_or_default();
        write(area, name, (x + 20, y), &style(15, INK, HPos::Left, VPos::Top))?;
        let share = match (entry.share, entry.bound_by) {
            (Some(share), Some(by)) => format!(", {:.0} % of {}", 100.0 * share, by.name()),
            _ => String::new(),
        };
        let rate = format!("{} {}/s{share}", super::rate(entry.per_second), entry.unit);
        write(area, &rate, (x + 20, y + 18), &style(13, FAINT, HPos::Left, VPos::Top))?;
        y += (490 / spots.len() as i32).min(48);
    }
    Ok(())
}

fn axes(
    chart: &mut ChartContext<'_, SVGBackend<'_>, Log>,
    x: &str,
    y: &str,
) -> std::result::Result<(), String> {
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(FAINT)
        .label_style((FONT, 14).into_font().color(&INK))
        .axis_desc_style((FONT, 15).into_font().color(&INK))
        .x_desc(x)
        .y_desc(y)
        .x_label_formatter(&|v| short(*v))
        .y_label_formatter(&|v| short(*v))
        .draw()
        .map_err(said)
}

/// Costs relative to the median over the sizes: flat is what they should be. The band is 10 % to either side.
///
/// # Errors
/// The file cannot be written.
pub fn scaling(report: &Report, scaling: &Scaling, path: &Path) -> Result<()> {
    draw(path, (1100, 560), |area| {
        let title = "Costs over sizes, relative to their median: level means that nothing gets dearer";
        write(area, title, (24, 18), &style(20, INK, HPos::Left, VPos::Top))?;
        let device = format!(
            "{}, {}, {} threads; the band is 10 % to either side",
            report.device.name, report.device.detail, report.device.threads
        );
        write(area, &device, (24, 44), &style(14, FAINT, HPos::Left, VPos::Top))?;
        let (_, body) = area.split_vertically(66);
        let (body, foot) = body.split_vertically(400);
        let (left, right) = body.split_horizontally(550);
        let rows = format!("rows (d = {})", report.options.dim);
        panel(&left, scaling, &scaling.over_rows, &rows, "cost of a row, relative", |p| {
            (p.rows as f64, p.seconds_per_row)
        })?;
        let cost = "cost of a byte, relative";
        panel(&right, scaling, &scaling.over_dims, "d", cost, |p| (p.dim as f64, p.cost_over_dims()))?;
        let (_, y) = foot.get_pixel_range();
        for (i, name) in scaling.operations().into_iter().enumerate() {
            let x = 60 + 350 * i as i32;
            mark(area, (x, y.start + 22), i)?;
            write(area, name, (x + 20, y.start + 14), &style(15, INK, HPos::Left, VPos::Top))?;
            let row =
                median(scaling.over_rows.iter().filter(|p| p.what == name).map(|p| 1.0 / p.seconds_per_row));
            let at_dim = format!("{} rows/s at d = {}", super::rate(row), report.options.dim);
            write(area, &at_dim, (x + 20, y.start + 34), &style(13, FAINT, HPos::Left, VPos::Top))?;
        }
        let note = "Folded scoring reads and writes no embeddings: on the right, its cost of a row.";
        write(area, note, (60, y.start + 62), &style(13, FAINT, HPos::Left, VPos::Top))
    })
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn panel(
    area: &Area<'_>,
    scaling: &Scaling,
    points: &[Point],
    x_name: &str,
    y_name: &str,
    of: impl Fn(&Point) -> (f64, f64),
) -> std::result::Result<(), String> {
    let xs: Vec<f64> = points.iter().map(|p| of(p).0).collect();
    let (x0, x1) = (xs.iter().copied().fold(f64::MAX, f64::min), xs.iter().copied().fold(0.0, f64::max));
    if xs.is_empty() {
        return Ok(());
    }
    let relative: Vec<Vec<(f64, f64)>> = scaling
        .operations()
        .into_iter()
        .map(|name| {
            let own: Vec<(f64, f64)> = points.iter().filter(|p| p.what == name).map(&of).collect();
            let middle = median(own.iter().map(|p| p.1));
            own.into_iter().map(|(x, y)| (x, y / middle)).collect()
        })
        .collect();
    let top = relative.iter().flatten().map(|p| p.1).fold(1.4, f64::max) * 1.05;
    let mut chart = ChartBuilder::on(area)
        .margin(14)
        .x_label_area_size(48)
        .y_label_area_size(62)
        .build_cartesian_2d((x0 / 1.6..x1 * 1.6).log_scale(), 0.0..top)
        .map_err(said)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(FAINT)
        .label_style((FONT, 14).into_font().color(&INK))
        .axis_desc_style((FONT, 15).into_font().color(&INK))
        .x_labels(0)
        .y_labels(8)
        .x_desc(x_name)
        .y_desc(y_name)
        .x_label_formatter(&|_| String::new())
        .y_label_formatter(&|v| format!("{v:.1}"))
        .draw()
        .map_err(said)?;
    let band = [(x0 / 1.6, 0.9), (x1 * 1.6, 1.1)];
    chart.draw_series([Rectangle::new(band, COLOURS[5].mix(0.15).filled())]).map_err(said)?;
    // A label for each size that was measured, instead of those of the library.
    let mut sizes = xs.clone();
    sizes.sort_by(f64::total_cmp);
    sizes.dedup();
    for x in sizes {
        let (px, py) = chart.backend_coord(&(x, 0.0));
        let at = |(ox, oy): (i32, i32)| (px - ox, py - oy + 8);
        on_root(area, |a, o| write(a, &short(x), at(o), &style(14, INK, HPos::Center, VPos::Top)))?;
    }
    for (i, own) in relative.iter().enumerate() {
        let pixels: Vec<(i32, i32)> = own.iter().map(|p| chart.backend_coord(p)).collect();
        on_root(area, |a, (ox, oy)| {
            let pixels: Vec<(i32, i32)> = pixels.iter().map(|&(x, y)| (x - ox, y - oy)).collect();
            line(a, pixels.clone(), COLOURS[i % COLOURS.len()], 2)?;
            pixels.into_iter().try_for_each(|p| mark(a, p, i))
        })?;
    }
    Ok(())
}

/// Draws with the offset of an area: charts give places on the whole picture.
fn on_root(
    area: &Area<'_>,
    with: impl FnOnce(&Area<'_>, (i32, i32)) -> std::result::Result<(), String>,
) -> std::result::Result<(), String> {
    let (x, y) = area.get_pixel_range();
    with(area, (x.start, y.start))
}
