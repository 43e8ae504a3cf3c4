//! The page of a benchmark.

use super::{rows_of, settings_table, text};
use crate::bench::{Report, rate};
use crate::report::{Axis, Bar, Block, Chart, Kind, Page, Section};

/// The page.
pub fn page(report: &Report) -> Page {
    let bars = report.entries.iter().filter_map(|entry| {
        let by = entry.bound_by.map_or("", |by| by.name());
        Some(Bar { name: format!("{} ({by})", entry.what), value: entry.share?, floor: None })
    });
    let bars: Vec<Bar> = bars.collect();
    let rows = report.entries.iter().map(|entry| {
        vec![
            entry.what.clone(),
            format!("{} {}/s", rate(entry.per_second), entry.unit),
            format!("{} to {}", rate(entry.spread[0]), rate(entry.spread[1])),
            entry.share.map_or("–".into(), |share| format!("{:.0} %", 100.0 * share)),
        ]
    });
    let limits = report.limits.iter().map(|limit| vec![limit.what.clone(), rate(limit.per_second)]);
    let mut blocks = Vec::new();
    if !bars.is_empty() {
        blocks.push(
            Chart {
                title: text("Share of the limit"),
                caption: text(
                    "Each rate as a share of the highest that the limits measured in the same run allow.",
                ),
                kind: Kind::Bars { bars },
                x: Axis::linear("share"),
                y: Axis::linear("operation"),
                csv: String::new(),
            }
            .into(),
        );
    }
    blocks.push(rows_of(
        "Rates: median, slowest and fastest trial",
        &["operation", "rate", "spread", "share"],
        rows.collect(),
    ));
    if !report.limits.is_empty() {
        blocks.push(rows_of("Limits of this machine", &["limit", "a second"], limits.collect()));
    }
    let best = report.entries.iter().filter(|e| e.share.is_some());
    let worst = best.min_by(|a, b| a.share.unwrap_or(1.0).total_cmp(&b.share.unwrap_or(1.0)));
    let verdict = worst.map_or_else(
        || text("No limits were measured, so rates stand by themselves."),
        |entry| {
            let share = 100.0 * entry.share.unwrap_or(0.0);
            format!(
                "Every operation reaches at least {share:.0} % of what this machine allows; the least is {}.",
                entry.what
            )
        },
    );
    Page {
        title: text("lensmith benchmark"),
        subtitle: format!("d = {}, {} rows a call", report.options.dim, report.options.rows),
        verdict,
        facts: vec![
            (text("device"), format!("{}, {}", report.device.name, report.device.detail)),
            (text("threads"), report.device.threads.to_string()),
            (text("version"), format!("lensmith {}", report.lensmith)),
        ],
        sections: vec![
            Section { title: text("Rates"), blocks, ..Section::default() },
            Section {
                title: text("What was asked"),
                blocks: vec![Block::Details {
                    summary: text("Options"),
                    blocks: vec![settings_table("Options", &serde_json::json!(report.options))],
                }],
                ..Section::default()
            },
        ],
    }
}
