//! The roofline of a benchmark as SVG: each operation's FLOP/s over its FLOP per byte, under what memory and arithmetic
//! allow (S. Williams, A. Waterman, D. Patterson, "Roofline", CACM 2009). Both axes are logarithmic, so that a memory
//! limit is a slope and the arithmetic limit a ceiling.

use std::path::Path;

use plotters::coord::Shift;
use plotters::coord::combinators::LogCoord;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::backend::Resource;
use crate::bench::{Entry, Report, limit_of, rate};
use crate::data::write_atomic;
use crate::error::{Error, Result};

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Log = Cartesian2d<LogCoord<f64>, LogCoord<f64>>;
/// The drawing library's errors as text.
type Drawn = std::result::Result<(), String>;

const SIZE: (u32, u32) = (1000, 600);
/// Pixels of the chart's width; the legend has the rest.
const CHART: i32 = 680;
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

/// An operation's place on the roofline.
struct Spot<'a> {
    entry: &'a Entry,
    flop_per_byte: f64,
    gflop_per_second: f64,
}

/// Draws the operations of a report that need arithmetic and memory into `path`, which is written whole or not at all.
///
/// # Errors
/// The file cannot be written.
pub fn roofline(report: &Report, path: &Path) -> Result<()> {
    let mut svg = String::new();
    let drawn = {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        // The area would draw itself when it is dropped, but not tell of a failure.
        area.fill(&WHITE)
            .map_err(text_of)
            .and_then(|()| draw(&area, report))
            .and_then(|()| area.present().map_err(text_of))
    };
    drawn.map_err(|detail| Error::Format { path: path.to_path_buf(), format: "SVG", detail })?;
    write_atomic(path, svg.as_bytes())
}

fn draw(area: &Area<'_>, report: &Report) -> Drawn {
    let spots: Vec<Spot<'_>> = report
        .entries
        .iter()
        .filter_map(|entry| {
            let flop = entry.need(Resource::Flop)?;
            let bytes = [Resource::Write, Resource::Copy].into_iter().find_map(|r| entry.need(r))?;
            let gflop_per_second = entry.per_second * flop / 1e9;
            Some(Spot { entry, flop_per_byte: flop / bytes, gflop_per_second })
        })
        .collect();
    let device = &report.device;
    let title = "Roofline: what the device allows, and what each operation reaches";
    let detail =
        format!("{}, {}, {} threads; d = {}", device.name, device.detail, device.threads, report.options.dim);
    write(area, title, (70, 18), &style(20, INK, HPos::Left, VPos::Top))?;
    write(area, &detail, (70, 44), &style(14, FAINT, HPos::Left, VPos::Top))?;
    let (left, right) = area.split_horizontally(CHART);
    chart(&left, report, &spots)?;
    legend(&right, &spots)
}

fn chart(area: &Area<'_>, report: &Report, spots: &[Spot<'_>]) -> Drawn {
    let ceiling = limit_of(&report.limits, Resource::Flop).map(|flops| flops / 1e9);
    let mut memory: Vec<(f64, &str)> = [(Resource::Copy, "read + write"), (Resource::Write, "write")]
        .into_iter()
        .filter_map(|(resource, name)| Some((limit_of(&report.limits, resource)? / 1e9, name)))
        .collect();
    memory.sort_by(|a, b| b.0.total_cmp(&a.0));
    let reached = spots.iter().map(|s| s.gflop_per_second);
    // Where arithmetic was not measured, the slopes end above the highest mark.
    let flops = ceiling.unwrap_or(2.0 * reached.clone().fold(1.0, f64::max));
    let xs = spots.iter().map(|s| s.flop_per_byte).chain(memory.iter().map(|m| flops / m.0));
    let (x0, x1) = (xs.clone().fold(1.0, f64::min) / 2.0, xs.fold(100.0, f64::max) * 3.0);
    let (y0, y1) = (reached.clone().fold(flops / 40.0, f64::min) / 2.0, reached.fold(flops, f64::max) * 2.0);
    let mut chart = ChartBuilder::on(area)
        .margin_top(72)
        .margin_left(14)
        .margin_right(10)
        .margin_bottom(12)
        .x_label_area_size(48)
        .y_label_area_size(70)
        .build_cartesian_2d((x0..x1).log_scale(), (y0..y1).log_scale())
        .map_err(text_of)?;
    axes(&mut chart)?;
    let at = |x: f64, y: f64| chart.backend_coord(&(x, y));

    let ridge = memory.first().map_or(x0, |m| flops / m.0);
    if let Some(flops) = ceiling {
        line(area, vec![at(ridge, flops), at(x1, flops)], FAINT, 2)?;
        let what =
            report.limits.iter().find(|l| l.resource == Resource::Flop).map_or("", |l| l.what.as_str());
        let (x, y) = at(x1, flops);
        let label = format!("{what}, {flops:.0} GFLOP/s");
        write(area, &label, (x - 6, y - 8), &style(13, FAINT, HPos::Right, VPos::Bottom))?;
    }
    for (bandwidth, _) in &memory {
        let from = x0.max(y0 / bandwidth);
        line(area, vec![at(from, from * bandwidth), at(flops / bandwidth, flops)], FAINT, 2)?;
    }
    if let Some((lowest, _)) = memory.last() {
        // To the right of the lower slope's middle, where nothing else is.
        let from = x0.max(y0 / lowest);
        let (x, y) = at((from * flops / lowest).sqrt(), (from * lowest * flops).sqrt());
        for (i, (bandwidth, name)) in memory.iter().enumerate() {
            let label = format!("memory {name}, {bandwidth:.0} GB/s");
            write(
                area,
                &label,
                (x + 14, y + 8 + 18 * i as i32),
                &style(13, FAINT, HPos::Left, VPos::Center),
            )?;
        }
    }
    spots.iter().enumerate().try_for_each(|(i, s)| mark(area, at(s.flop_per_byte, s.gflop_per_second), i))
}

fn axes(chart: &mut ChartContext<'_, SVGBackend<'_>, Log>) -> Drawn {
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(FAINT)
        .label_style((FONT, 14).into_font().color(&INK))
        .axis_desc_style((FONT, 15).into_font().color(&INK))
        .x_desc("FLOP per byte of memory traffic")
        .y_desc("GFLOP per second")
        .x_label_formatter(&|v| axis_label(*v))
        .y_label_formatter(&|v| axis_label(*v))
        .draw()
        .map_err(text_of)
}

/// Names, rates and shares beside the marks of the chart.
fn legend(area: &Area<'_>, spots: &[Spot<'_>]) -> Drawn {
    let (mut y, step) = (92, (490 / spots.len().max(1) as i32).min(48));
    for (i, Spot { entry, .. }) in spots.iter().enumerate() {
        mark(area, (16, y + 8), i)?;
        // Without the settings of trainings, for which there is no room.
        let name = entry.what.split([',', ':']).next().unwrap_or_default();
        write(area, name, (36, y), &style(15, INK, HPos::Left, VPos::Top))?;
        let share = match (entry.share, entry.bound_by) {
            (Some(share), Some(by)) => format!(", {:.0} % of {}", 100.0 * share, by.name()),
            _ => String::new(),
        };
        let reached = format!("{} {}/s{share}", rate(entry.per_second), entry.unit);
        write(area, &reached, (36, y + 18), &style(13, FAINT, HPos::Left, VPos::Top))?;
        y += step;
    }
    Ok(())
}

/// One of several shapes, so that marks which lie on each other stay visible and colour is not needed.
fn mark(area: &Area<'_>, (x, y): (i32, i32), kind: usize) -> Drawn {
    let colour = COLOURS[kind % COLOURS.len()];
    let corners: &[(i32, i32)] = match kind % 4 {
        0 => return area.draw(&Circle::new((x, y), 6, colour.stroke_width(3))).map_err(text_of),
        1 => &[(-6, -6), (6, -6), (6, 6), (-6, 6), (-6, -6)],
        2 => &[(0, -8), (8, 6), (-8, 6), (0, -8)],
        _ => &[(0, -8), (8, 0), (0, 8), (-8, 0), (0, -8)],
    };
    line(area, corners.iter().map(|(dx, dy)| (x + dx, y + dy)).collect(), colour, 3)
}

/// A number of a logarithmic axis: "0.1", "100", "10 k", "1 M".
fn axis_label(value: f64) -> String {
    match value {
        v if v >= 1e9 => format!("{} G", v / 1e9),
        v if v >= 1e6 => format!("{} M", v / 1e6),
        v if v >= 1e4 => format!("{} k", v / 1e3),
        v => format!("{v}"),
    }
}

fn style(size: i32, colour: RGBColor, h: HPos, v: VPos) -> TextStyle<'static> {
    (FONT, size).into_font().color(&colour).pos(Pos::new(h, v))
}

fn write(area: &Area<'_>, text: &str, at: (i32, i32), style: &TextStyle<'_>) -> Drawn {
    area.draw(&Text::new(text.to_string(), at, style.clone())).map_err(text_of)
}

fn line(area: &Area<'_>, points: Vec<(i32, i32)>, colour: RGBColor, width: u32) -> Drawn {
    area.draw(&PathElement::new(points, colour.stroke_width(width))).map_err(text_of)
}

fn text_of(error: impl std::fmt::Display) -> String {
    error.to_string()
}
