//! The page of a sweep.

use std::collections::BTreeSet;

use super::{capitalised, lines, rows_of, settings_table, text};
use crate::cli::run::report::{Measure, verdict};
use crate::cli::sweep::results::{ArmSummary, GridSummary, SweepReport};
use crate::eval::{Paired, holm};
use crate::report::{Axis, Block, Page, Point, Section, Series};

/// The page.
pub fn page(report: &SweepReport) -> Page {
    let mut sections: Vec<Section> = report.grids.iter().map(grid).collect();
    sections.push(Section {
        title: text("What was asked"),
        text: vec![text("results.csv, results.jsonl and results.parquet beside this page have a line for each point, arm and split.")],
        blocks: vec![
            Block::Details {
                summary: text("Settings where no grid says otherwise"),
                blocks: vec![settings_table("Settings", &report.settings)],
            },
            Block::Details { summary: text("Data"), blocks: vec![settings_table("Files", &report.sources)] },
        ],
        ..Section::default()
    });
    let names: Vec<&str> = report.grids.iter().map(|grid| grid.name.as_str()).collect();
    Page {
        title: format!("lensmith sweep of {}", names.join("; ")),
        subtitle: format!("{} random splits, {} cells", report.splits, report.cells),
        verdict: best_of(report),
        facts: vec![
            (text("device"), format!("{}, {}", report.device.name, report.device.detail)),
            (text("version"), format!("lensmith {}", report.lensmith)),
        ],
        sections,
    }
}

/// Chances below which a difference counts, after correction for several.
const SURE: f64 = 0.05;

/// The largest gain over a baseline, and how many differences are left after correction for several (Holm 1979).
fn best_of(report: &SweepReport) -> String {
    let mut found: Vec<(String, &Paired)> = Vec::new();
    for grid in &report.grids {
        for point in &grid.points {
            for arm in &point.arms {
                let against = arm.of(Measure::Accuracy).and_then(|m| m.against.as_ref());
                let Some(against) = against else { continue };
                found.push((format!("{} at {} {}", arm.title, grid.name, point.name()), &against.difference));
            }
        }
    }
    let Some((name, best)) = found.iter().max_by(|a, b| a.1.mean.total_cmp(&b.1.mean)) else {
        return text("No arm has a baseline at its point to be compared with.");
    };
    let mut chances: Vec<f64> = found.iter().filter_map(|(_, difference)| difference.p()).collect();
    holm(&mut chances);
    let sure = chances.iter().filter(|chance| **chance < SURE).count();
    format!(
        "Of {} comparisons with a baseline {sure} differ at the level of 5 % after Holm's correction for so many. The \
         largest gain is {}; the largest of several is partly luck.",
        found.len(),
        verdict(&format!("{name}: pair accuracy"), best, true)
    )
}

/// A figure of an arm, and its error.
type Figure<'a> = dyn Fn(&ArmSummary) -> Option<(f64, Option<f64>)> + 'a;

fn grid(grid: &GridSummary) -> Section {
    let names: Vec<String> = grid.points.iter().map(|point| point.name()).collect();
    let titles: Vec<String> = {
        let mut seen = BTreeSet::new();
        let arms = grid.points.iter().flat_map(|point| &point.arms);
        arms.filter(|arm| seen.insert(arm.arm)).map(|arm| arm.arm.to_string()).collect()
    };
    let series = |value: &Figure<'_>| {
        let of = |name: &String| {
            let points = grid.points.iter().enumerate().filter_map(|(i, point)| {
                let arm = point.arms.iter().find(|arm| arm.arm.to_string() == *name)?;
                let (y, error) = value(arm)?;
                Some(Point { x: i as f64, y, error })
            });
            Series { name: name.clone(), points: points.collect() }
        };
        titles.iter().map(of).filter(|s| !s.points.is_empty()).collect::<Vec<_>>()
    };
    let x = || Axis::category(grid.name.clone(), names.clone());
    let mut blocks = Vec::new();
    for measure in Measure::ALL {
        let against = series(&|arm| {
            let c = arm.of(measure)?.against.as_ref()?;
            Some((c.difference.mean, c.difference.standard_error.map(|error| 2.0 * error)))
        });
        if !against.is_empty() {
            blocks.push(lines(
                &format!("Difference in {} from the baseline of each point", measure.name()),
                "Paired over the splits, ± two standard errors.",
                (x(), &format!("difference in {}", measure.name())),
                against,
            ));
        }
        let own = series(&|arm| {
            let m = arm.of(measure)?;
            let n = m.values.len() as f64;
            let variance = m.values.iter().map(|v| (v - m.mean).powi(2)).sum::<f64>() / (n - 1.0);
            Some((m.mean, (n > 1.0).then(|| (variance / n).sqrt())))
        });
        if !own.is_empty() {
            blocks.push(lines(
                &format!("{} by {}", capitalised(measure.name()), grid.name),
                "Mean over the splits, ± standard error; splits vary together, so differences are sharper than these bars.",
                (x(), measure.name()),
                own,
            ));
        }
    }
    let explained = series(&|arm| Some((arm.explained_variance?, None)));
    if !explained.is_empty() {
        let title = "Variance that the VAE explains";
        blocks.push(lines(title, "Of the seeds, mean over the splits.", (x(), "share"), explained));
    }
    let order = grid.points.iter().flat_map(|point| {
        point.arms.iter().filter(|arm| !arm.order.is_empty()).map(|arm| {
            super::curve(format!("{}, {}", arm.arm, point.name()), arm.order.iter().map(|&[s, p]| (s, p)))
        })
    });
    let order: Vec<Series> = order.take(8).collect();
    if !order.is_empty() {
        blocks.push(lines(
            "Synthetic pairs that are ordered as their seeds",
            "By each arm's own reward model, mean over the splits.",
            (Axis::log("variance of the noise, sigma²"), "share"),
            order,
        ));
    }
    blocks.push(table(grid));
    Section { title: capitalised(&grid.name), blocks, ..Section::default() }
}

fn table(grid: &GridSummary) -> Block {
    let mut rows = Vec::new();
    for point in &grid.points {
        for arm in &point.arms {
            let mut row = vec![point.name(), arm.title.clone()];
            for measure in Measure::ALL {
                let found = arm.of(measure);
                row.push(found.map_or("–".into(), |m| format!("{:.3}", m.mean)));
                let against = found.and_then(|m| m.against.as_ref());
                row.push(against.map_or("–".into(), |c| c.difference.to_string()));
            }
            rows.push(row);
        }
    }
    let header = [
        grid.name.as_str(),
        "arm",
        "accuracy",
        "difference",
        "loss",
        "difference",
        "best-of-N gold",
        "difference",
    ];
    rows_of("All points: means, and paired differences ± standard error", &header, rows)
}
