//! The page of a run.

use super::{capitalised, curve, differences, lines, rows_of, settings_table, text};
use crate::cli::run::report::{Comparison, Measure, Repeat, Report, run_verdict};
use crate::cli::table::{count, mean_spread};
use crate::cli::training::capped_text;
use crate::eval::{ArmResult, OrderPoint, baseline};
use crate::report::REPORT;
use crate::report::{Axis, Block, Chart, Distribution, Group, Kind, Page, Reference, Section, estimate};

/// The page; `what` names the data in a few words.
pub fn page(report: &Report, what: &str) -> Page {
    let first = &report.repeats[0];
    let mut sections = vec![figures(report), curves(first), margins(first)];
    sections.extend(best_of_n(first));
    sections.push(vae(report));
    sections.extend(order(first));
    sections.push(asked(report));
    Page {
        title: format!("lensmith run on {what}"),
        subtitle: format!(
            "{} seed, {} validation and {} test pairs; {}",
            first.pairs["seeds"],
            first.pairs["validation"],
            first.pairs["test"],
            match report.repeats.len() {
                1 => "one split".into(),
                n => format!("{n} random splits"),
            }
        ),
        verdict: run_verdict(report),
        facts: facts(report),
        sections,
    }
}

/// Pairs of the smallest bin whose calibration is shown.
const FEW_PAIRS: u64 = 20;

fn facts(report: &Report) -> Vec<(String, String)> {
    let first = &report.repeats[0];
    let mut facts = vec![
        (text("device"), format!("{}, {}", report.device.name, report.device.detail)),
        (text("threads"), report.device.threads.to_string()),
        (text("version"), format!("lensmith {}", report.lensmith)),
        (text("seed"), report.seed.to_string()),
    ];
    if let Some(b) = &first.arms[0].best_of_n {
        facts.push((text("candidates"), format!("{} prompts of {}", count(b.prompts), b.per_prompt)));
    }
    facts
}

fn figures(report: &Report) -> Section {
    let first = &report.repeats[0];
    let column = |arm: usize, of: &dyn Fn(&ArmResult) -> Option<f64>, decimals: usize| {
        let values: Option<Vec<f64>> = report.repeats.iter().map(|r| of(&r.arms[arm])).collect();
        values.map_or("–".to_string(), |values| mean_spread(&values, decimals))
    };
    let with_gold = first.arms.iter().any(|arm| arm.best_of_n.is_some());
    let rows = (0..first.arms.len()).map(|a| {
        let calibration = |r: &ArmResult| Some(r.test.as_ref()?.report.calibration.expected_error);
        let mut row = vec![
            first.arms[a].title(),
            count(first.arms[a].pairs),
            column(a, &|r| Measure::Accuracy.of(r), 3),
            column(a, &|r| Measure::Loss.of(r), 3),
            column(a, &calibration, 3),
            column(a, &|r| Some(r.best_step as f64), 0),
        ];
        row.extend(with_gold.then(|| column(a, &|r| Measure::BestOfN.of(r), 3)));
        row
    });
    let mut header = vec!["arm", "training pairs", "accuracy", "loss", "calibration error", "best step"];
    header.extend(with_gold.then_some("best-of-N gold"));
    let caption = "Figures on held-out data: mean ± standard deviation over the splits";
    let mut blocks = vec![rows_of(caption, &header, rows.collect())];
    for measure in Measure::ALL {
        let own: Vec<&Comparison> = report.comparisons.iter().filter(|c| c.measure == measure).collect();
        let Some(against) = own.first().map(|c| first.title_of(c.against)) else { continue };
        let rows = own.iter().map(|c| (first.title_of(c.arm), &c.difference)).collect();
        let title = format!("Difference in {} from {against}", measure.name());
        let caption = match measure {
            Measure::Loss => "Paired over the splits, ± two standard errors; lower is better.",
            _ => "Paired over the splits, ± two standard errors; higher is better.",
        };
        blocks.push(differences(&title, caption, &format!("difference in {}", measure.name()), rows));
    }
    let capped = report.warnings(&|repeat| {
        let arms = repeat.arms.iter().filter(|arm| arm.capped);
        arms.map(|arm| capitalised(&capped_text(&arm.title()))).collect()
    });
    blocks.extend(capped.into_iter().map(Block::Note));
    Section {
        title: text("What came out"),
        text: vec![text(
            "Arms are compared on the same splits, so that what splits have in common cancels. Splits of one data set \
             share rows: standard errors over them are somewhat too small.",
        )],
        blocks,
        ..Section::default()
    }
}

fn curves(first: &Repeat) -> Section {
    let of = |value: fn(&crate::train::PairMetrics) -> f64| {
        let curve_of = |arm: &ArmResult| {
            let points = arm.history.iter().filter_map(|p| Some((p.step as f64, value(&p.validation?))));
            curve(arm.title(), points)
        };
        first.arms.iter().map(curve_of).filter(|s| !s.points.is_empty()).collect::<Vec<_>>()
    };
    let train = first
        .arms
        .iter()
        .map(|arm| curve(arm.title(), arm.history.iter().map(|p| (p.step as f64, p.train_loss))));
    let x = || Axis::linear("optimiser steps");
    Section {
        title: text("Learning curves"),
        text: vec![format!(
            "Of the first split, seed {}. All arms are evaluated after every so many steps.",
            first.seed
        )],
        blocks: vec![
            lines(
                "Loss on validation pairs",
                "The model with the lowest is kept.",
                (x(), "loss"),
                of(|m| m.loss),
            ),
            lines("Accuracy on validation pairs", "", (x(), "accuracy"), of(|m| m.accuracy)),
            lines("Loss on training pairs", "Synthetic pairs among them.", (x(), "loss"), train.collect()),
        ],
        ..Section::default()
    }
}

fn margins(first: &Repeat) -> Section {
    let main = first.main();
    let base = baseline(&first.arms()).and_then(|arm| first.of(arm));
    let shown: Vec<&ArmResult> = base.into_iter().filter(|b| b.arm != main.arm).chain([main]).collect();
    let mut blocks = Vec::new();
    let tests = shown.iter().filter_map(|arm| Some((arm, arm.test.as_ref()?)));
    let histograms: Vec<_> = tests.clone().map(|(arm, test)| (arm.title(), &test.histogram)).collect();
    if let Some((_, one)) = histograms.first() {
        // As many bins to either side of 0 as there are pairs in.
        let bins = one.counts.len();
        let is_empty =
            |cut: &usize| histograms.iter().all(|(_, h)| h.counts[*cut] + h.counts[bins - 1 - cut] == 0);
        let cut = (0..bins / 2 - 4).take_while(is_empty).count();
        let distributions = histograms.iter().map(|(name, h)| {
            let total = h.counts.iter().sum::<u64>().max(1) as f64;
            Distribution { name: name.clone(), heights: h.counts.iter().map(|&c| c as f64 / total).collect() }
        });
        let kind = Kind::Histogram {
            edges: (cut..=bins - cut).map(|bin| one.edge(bin)).collect(),
            distributions: distributions.collect(),
            references: vec![Reference { label: text("indifferent"), at: 0.0 }],
        };
        blocks.push(
            Chart {
                title: text("Margins on test pairs"),
                caption: text("Reward of the chosen response less that of the rejected one; right of 0 the model agrees with people."),
                kind,
                x: Axis::linear("margin"),
                y: Axis::linear("share of pairs"),
                csv: String::new(),
            }
            .into(),
        );
    }
    let calibration = tests.map(|(arm, test)| {
        let bins = test.report.calibration.bins.iter();
        // The accuracy of a few pairs is chance.
        let bins = bins.filter(|bin| bin.pairs >= FEW_PAIRS);
        curve(arm.title(), bins.filter_map(|b| Some((b.confidence?, b.accuracy?))))
    });
    let mut series: Vec<_> = calibration.collect();
    series.push(curve("as confident as right", [(0.5, 0.5), (1.0, 1.0)]));
    blocks.push(lines(
        "Calibration",
        "How often the model is right where it is so confident, in bins of at least 20 pairs. Below the diagonal it is too sure.",
        (Axis::linear("confidence"), "accuracy"),
        series,
    ));
    Section { title: text("Margins and calibration"), blocks, ..Section::default() }
}

fn best_of_n(first: &Repeat) -> Option<Section> {
    let all = first.arms.iter().filter_map(|arm| Some((arm.title(), arm.best_of_n.as_ref()?)));
    let all: Vec<_> = all.collect();
    let (_, one) = all.first()?;
    let mut series: Vec<_> = all
        .iter()
        .map(|(name, b)| curve(name.clone(), b.points.iter().map(|p| (p.candidates as f64, p.model))))
        .collect();
    series.push(curve("oracle", one.points.iter().map(|p| (p.candidates as f64, p.oracle))));
    let by_kl = all.iter().map(|(name, b)| curve(name.clone(), b.points.iter().map(|p| (p.kl, p.model))));
    let blocks = vec![
        lines("Gold score of the best of N", "", (Axis::log("candidates, N"), "gold score"), series),
        lines(
            "Gold score by distance from the policy",
            "KL divergence of best-of-N from drawing one candidate, log N - (N - 1) / N.",
            (Axis::linear("KL (nats)"), "gold score"),
            by_kl.collect(),
        ),
    ];
    let rank = first.arms.iter().filter_map(|arm| {
        let within = arm.rank.as_ref()?.within_prompts?;
        Some(vec![arm.title(), format!("{within:.3}")])
    });
    let mut section = Section { title: text("Best of N"), blocks, ..Section::default() };
    section.blocks.push(rows_of(
        "Spearman correlation of reward and gold score within prompts",
        &["arm", "correlation"],
        rank.collect(),
    ));
    Some(section)
}

fn vae(report: &Report) -> Section {
    let first = &report.repeats[0];
    let mut blocks = Vec::new();
    let rows = report.repeats.iter().map(|repeat| {
        let h = &repeat.health;
        vec![
            repeat.seed.to_string(),
            format!("{:.3}", h.explained_variance),
            h.held_out_explained_variance.map_or("–".into(), |v| format!("{v:.3}")),
            format!("{:.1}", h.kl),
            format!("{:.2}", h.w2),
            format!("{} of {}", h.active_units, h.latent),
            format!("{:.2}", h.spread),
            format!("{:.1} %", 100.0 * h.sigma_share),
            format!("{:.2}", h.synthetic_variance),
        ]
    });
    let header = [
        "seed",
        "explained",
        "held out",
        "KL",
        "W2",
        "active units",
        "spread",
        "sigma of it",
        "synthetic variance",
    ];
    blocks.push(rows_of("Health of the VAE", &header, rows.collect()));
    let warnings = report
        .warnings(&|repeat| repeat.health.warnings.iter().map(|warning| capitalised(warning)).collect());
    blocks.extend(warnings.into_iter().map(Block::Note));
    let history = |of: fn(&crate::backend::VaeLoss) -> f64| {
        first.vae_history.iter().enumerate().map(move |(i, loss)| ((i + 1) as f64, of(loss)))
    };
    let x = || Axis::linear("epoch");
    blocks.push(lines(
        "Reconstruction error of the VAE",
        "Summed over both sides, per dimension; 2 is what the mean embedding alone gives.",
        (x(), "squared error"),
        vec![curve("reconstruction", history(|l| l.reconstruction))],
    ));
    blocks.push(lines(
        "KL divergence and distance of the sides",
        "W2 is the distance that training makes large between the posteriors of a pair.",
        (x(), "nats; latent units"),
        vec![curve("KL", history(|l| l.kl)), curve("W2", history(|l| -l.divergence))],
    ));
    let map = &first.latent_map;
    let group = |name: &str, points: &[[f64; 2]]| Group {
        name: text(name),
        points: points.iter().map(|&[x, y]| (x, y)).collect(),
    };
    let kind = Kind::Scatter {
        groups: vec![
            group("chosen, synthetic", &map.synthetic[0]),
            group("rejected, synthetic", &map.synthetic[1]),
            group("chosen", &map.originals[0]),
            group("rejected", &map.originals[1]),
        ],
    };
    let axis = |i: usize| Axis::linear(format!("component {} ({:.0} %)", i + 1, 100.0 * map.explained[i]));
    blocks.push(
        Chart {
            title: text("Latent space"),
            caption: text("Posterior means of seeds and one synthetic latent of each, along the directions of their largest variance."),
            kind,
            x: axis(0),
            y: axis(1),
            csv: text("latents"),
        }
        .into(),
    );
    Section { title: text("The VAE"), blocks, ..Section::default() }
}

fn order(first: &Repeat) -> Option<Section> {
    let mut with: Vec<(String, &[OrderPoint])> = first
        .arms
        .iter()
        .filter(|arm| !arm.order.is_empty())
        .map(|arm| (format!("by the model of {}", arm.title()), arm.order.as_slice()))
        .collect();
    if !first.gold_order.is_empty() {
        with.insert(0, (text("by the gold model"), &first.gold_order));
    }
    if with.is_empty() {
        return None;
    }
    let share = |(name, order): &(String, &[OrderPoint])| {
        curve(name.clone(), order.iter().map(|p| (p.sigma2, p.order.preserved)))
    };
    let margin = |(name, order): &(String, &[OrderPoint])| {
        curve(name.clone(), order.iter().map(|p| (p.sigma2, p.order.margin / p.order.seed_margin)))
    };
    let x = || Axis::log("variance of the noise, sigma²");
    let blocks = vec![
        lines(
            "Synthetic pairs that are ordered as their seeds",
            "Theorem 1 of the paper: close to 1 for little noise, where the gold reward is linear in the decoder's range.",
            (x(), "share"),
            with.iter().map(share).collect(),
        ),
        lines(
            "Margin of synthetic pairs",
            "In the direction of their seeds, as a multiple of the seeds' mean margin.",
            (x(), "margin / margin of the seeds"),
            with.iter().map(margin).collect(),
        ),
    ];
    Some(Section { title: text("Order preservation"), blocks, ..Section::default() })
}

fn asked(report: &Report) -> Section {
    let pairs = report.repeats[0].arms.iter().map(|arm| {
        let chosen = estimate(arm.input_noise, None);
        vec![arm.title(), arm.arm.to_string(), chosen, arm.steps.to_string()]
    });
    Section {
        title: text("What was asked"),
        text: vec![format!(
            "Everything is in run.json beside this page ({REPORT}), with split.json, the models and the curves as CSV."
        )],
        blocks: vec![
            rows_of("Arms", &["arm", "--arms", "input noise", "steps"], pairs.collect()),
            Block::Details {
                summary: text("All settings"),
                blocks: vec![settings_table("Settings", &report.settings)],
            },
            Block::Details { summary: text("Files"), blocks: vec![settings_table("Files", &report.sources)] },
        ],
        ..Section::default()
    }
}
