//! Metrics of reward models against numpy, scipy, scikit-learn, statsmodels and plain loops (tools/make_metric_golden.py),
//! their properties on random data, and the coverage of their intervals.

use std::fmt::Debug;

use lensmith::eval::{
    average_ranks, best_of_n_curve, bootstrap_mean, histogram, holm, incomplete_beta, pair_report, paired,
    rank_correlation, spearman, student_p,
};
use lensmith::noise::{Purpose, Stream};
use serde::Deserialize;

/// Relative error, for values below 1 absolute error, of figures that are a few sums and elementary functions.
const EXACT: f64 = 1e-9;
/// Of those that a quadrature or a library's approximation gives.
const CLOSE: f64 = 1e-6;

#[derive(Deserialize)]
struct Golden {
    pairs: Vec<Pairs>,
    prompts: Vec<Prompts>,
    ranks: Vec<Ranks>,
    bootstrap: Vec<Bootstrap>,
    paired: Vec<Splits>,
    /// t, degrees of freedom, p.
    student: Vec<[f64; 3]>,
    /// x, a, b, I_x(a, b).
    beta: Vec<[f64; 4]>,
    holm: Vec<Corrected>,
    histograms: Vec<Counts>,
}

#[derive(Deserialize)]
struct Pairs {
    margins: Vec<f64>,
    accuracy: f64,
    loss: f64,
    /// Pairs, confidence, accuracy.
    bins: Vec<(u64, Option<f64>, Option<f64>)>,
    expected_error: f64,
    brier: f64,
    mean: f64,
    std: f64,
    quantiles: [f64; 5],
}

#[derive(Deserialize)]
struct Prompts {
    rewards: Vec<f64>,
    gold: Vec<f64>,
    per_prompt: usize,
    random: f64,
    /// N, KL, model, oracle.
    points: Vec<(usize, f64, f64, f64)>,
    within: Option<f64>,
    prompts: u64,
    skipped: u64,
    overall: Option<f64>,
}

#[derive(Deserialize)]
struct Ranks {
    values: Vec<f64>,
    ranks: Vec<f64>,
}

#[derive(Deserialize)]
struct Bootstrap {
    values: Vec<f64>,
    groups: Option<Vec<i64>>,
    resamples: usize,
    level: f64,
    seed: u64,
    low: f64,
    high: f64,
    units: u64,
}

#[derive(Deserialize)]
struct Splits {
    a: Vec<f64>,
    b: Vec<f64>,
    mean: f64,
    standard_error: Option<f64>,
    wins: u64,
    t: Option<f64>,
    p: Option<f64>,
}

#[derive(Deserialize)]
struct Corrected {
    p: Vec<f64>,
    corrected: Vec<f64>,
}

#[derive(Deserialize)]
struct Counts {
    values: Vec<f64>,
    bins: usize,
    lower: f64,
    upper: f64,
    counts: Vec<u64>,
}

fn golden() -> Golden {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/metrics.json");
    serde_json::from_str(&std::fs::read_to_string(path).expect("golden file")).expect("golden metrics")
}

/// Fails on values that are too far apart, and on NaN.
#[track_caller]
fn near(got: f64, want: f64, tolerance: f64, what: impl Debug) {
    assert!((got - want).abs() <= tolerance * want.abs().max(1.0), "{what:?}: {got} for {want}");
}

#[track_caller]
fn near_or_none(got: Option<f64>, want: Option<f64>, tolerance: f64, what: impl Debug) {
    match (got, want) {
        (Some(got), Some(want)) => near(got, want, tolerance, what),
        _ => assert_eq!(got, want, "{what:?}"),
    }
}

#[test]
fn pairs_are_those_of_numpy_and_scikit_learn() {
    for (i, case) in golden().pairs.iter().enumerate() {
        let found = pair_report(&case.margins).unwrap();
        assert_eq!(found.pairs, case.margins.len() as u64);
        near(found.accuracy, case.accuracy, EXACT, ("accuracy", i));
        near(found.loss, case.loss, EXACT, ("loss", i));
        let calibration = &found.calibration;
        near(calibration.expected_error, case.expected_error, EXACT, ("expected error", i));
        near(calibration.brier, case.brier, EXACT, ("Brier", i));
        assert_eq!(calibration.bins.len(), 10);
        for (b, (bin, (pairs, confidence, accuracy))) in calibration.bins.iter().zip(&case.bins).enumerate() {
            near(bin.lower, 0.5 + 0.05 * b as f64, EXACT, ("lower", i, b));
            near(bin.upper, 0.55 + 0.05 * b as f64, EXACT, ("upper", i, b));
            assert_eq!(bin.pairs, *pairs, "case {i} bin {b}");
            near_or_none(bin.confidence, *confidence, EXACT, ("confidence", i, b));
            near_or_none(bin.accuracy, *accuracy, EXACT, ("accuracy", i, b));
        }
        near(found.margins.mean, case.mean, EXACT, ("mean", i));
        near(found.margins.std, case.std, EXACT, ("std", i));
        for (got, want) in found.margins.quantiles.iter().zip(case.quantiles) {
            near(*got, want, EXACT, ("quantile", i));
        }
    }
}

#[test]
fn best_of_n_is_that_of_all_subsets() {
    for (i, case) in golden().prompts.iter().enumerate() {
        let curve = best_of_n_curve(&case.rewards, &case.gold, case.per_prompt);
        near(curve.random, case.random, EXACT, ("random", i));
        assert_eq!(curve.points.len(), case.per_prompt);
        for &(n, kl, model, oracle) in &case.points {
            let point = curve.points[n - 1];
            assert_eq!(point.candidates, n as u64);
            near(point.kl, kl, CLOSE, ("KL", i, n));
            near(point.model, model, EXACT, ("model", i, n));
            near(point.oracle, oracle, EXACT, ("oracle", i, n));
        }
    }
}

#[test]
fn ranks_and_correlations_are_those_of_scipy() {
    let golden = golden();
    for case in &golden.ranks {
        assert_eq!(average_ranks(&case.values), case.ranks);
    }
    for (i, case) in golden.prompts.iter().enumerate() {
        let found = rank_correlation(&case.rewards, &case.gold, case.per_prompt);
        near_or_none(found.within_prompts, case.within, EXACT, ("within", i));
        near_or_none(found.overall, case.overall, EXACT, ("overall", i));
        assert_eq!((found.prompts, found.skipped), (case.prompts, case.skipped), "case {i}");
    }
}

#[test]
fn the_bootstrap_is_that_of_plain_loops() {
    for (i, case) in golden().bootstrap.iter().enumerate() {
        let found =
            bootstrap_mean(&case.values, case.groups.as_deref(), case.resamples, case.level, case.seed)
                .unwrap();
        near(found.low, case.low, EXACT, ("low", i));
        near(found.high, case.high, EXACT, ("high", i));
        assert_eq!((found.units, found.resamples), (case.units, case.resamples as u64));
    }
}

#[test]
fn paired_differences_are_those_of_scipy_and_statsmodels() {
    let golden = golden();
    for (i, case) in golden.paired.iter().enumerate() {
        let found = paired(&case.a, &case.b);
        near(found.mean, case.mean, EXACT, ("mean", i));
        near_or_none(found.standard_error, case.standard_error, EXACT, ("standard error", i));
        near_or_none(found.t(), case.t, EXACT, ("t", i));
        near_or_none(found.p(), case.p, EXACT, ("p", i));
        assert_eq!((found.splits, found.wins), (case.a.len() as u64, case.wins));
        // And p values of very different sizes are right in their leading digits.
        if let (Some(got), Some(want)) = (found.p(), case.p) {
            near(got / want, 1.0, EXACT, ("p", i));
        }
    }
    for [t, freedom, p] in golden.student {
        near(student_p(t, freedom), p, EXACT, (t, freedom));
        if p > 1e-290 {
            near(student_p(t, freedom) / p, 1.0, EXACT, (t, freedom));
        }
    }
    for [x, a, b, want] in golden.beta {
        near(incomplete_beta(x, a, b), want, EXACT, (x, a, b));
    }
    for case in golden.holm {
        let mut corrected = case.p;
        holm(&mut corrected);
        for (got, want) in corrected.iter().zip(&case.corrected) {
            near(*got, *want, EXACT, "Holm");
        }
    }
}

#[test]
fn histograms_are_those_of_numpy() {
    for case in golden().histograms {
        assert_eq!(histogram(&case.values, case.bins, (case.lower, case.upper)).counts, case.counts);
    }
}

/// A standard normal.
fn normal(stream: &mut Stream) -> f64 {
    let (u, v) = (f64::from(stream.uniform()), f64::from(stream.uniform()));
    (-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

/// Rewards and gold scores of `prompts` prompts, rounded so that there are ties.
fn draw(stream: &mut Stream, prompts: usize, per_prompt: usize) -> (Vec<f32>, Vec<f32>) {
    let rows = (0..prompts * per_prompt).map(|_| {
        let gold = (2.0 * normal(stream)).round();
        ((gold + normal(stream)).round() as f32, gold as f32)
    });
    rows.unzip()
}

#[test]
fn ends_and_order_of_the_curve() {
    let mut stream = Stream::new(1, Purpose::Simulation, 1);
    for per_prompt in [1, 2, 3, 8, 64, 1000] {
        let (rewards, gold) = draw(&mut stream, 5, per_prompt);
        let curve = best_of_n_curve(&rewards, &gold, per_prompt);
        let (first, last) = (curve.points[0], curve.points[per_prompt - 1]);
        let [mut random, mut model, mut oracle] = [0f64; 3];
        for (rewards, gold) in rewards.chunks(per_prompt).zip(gold.chunks(per_prompt)) {
            let top = |scores: &[f32]| {
                (0..per_prompt).rev().max_by(|&a, &b| (scores[a] + 0.0).total_cmp(&(scores[b] + 0.0)))
            };
            random += gold.iter().map(|&g| f64::from(g)).sum::<f64>() / (5 * per_prompt) as f64;
            model += f64::from(gold[top(rewards).unwrap()]) / 5.0;
            oracle += f64::from(gold[top(gold).unwrap()]) / 5.0;
        }
        near(curve.random, random, 1e-12, per_prompt);
        near(first.model, random, 1e-12, per_prompt);
        near(first.oracle, random, 1e-12, per_prompt);
        near(last.model, model, 1e-12, per_prompt);
        near(last.oracle, oracle, 1e-12, per_prompt);
        for step in curve.points.windows(2) {
            assert!(step[1].oracle >= step[0].oracle - 1e-12 && step[1].kl > step[0].kl);
        }
        for point in &curve.points {
            assert!(point.model <= point.oracle + 1e-12, "{point:?}");
        }
        // A reward that is a rising function of gold is the oracle, and one that falls picks the worst.
        let same: Vec<f32> = gold.iter().map(|g| 3.0 * g - 7.0).collect();
        for point in best_of_n_curve(&same, &gold, per_prompt).points {
            assert_eq!(point.model, point.oracle);
        }
        let worst: Vec<f32> = gold.iter().map(|g| -g).collect();
        let falling = best_of_n_curve(&worst, &gold, per_prompt);
        assert!(falling.points.windows(2).all(|step| step[1].model <= step[0].model + 1e-12));
    }
}

#[test]
fn the_curve_does_not_depend_on_the_order_of_prompts() {
    let (rewards, gold) = draw(&mut Stream::new(2, Purpose::Simulation, 2), 2, 16);
    let swapped = |values: &[f32]| [&values[16..], &values[..16]].concat();
    assert_eq!(
        best_of_n_curve(&rewards, &gold, 16),
        best_of_n_curve(&swapped(&rewards), &swapped(&gold), 16)
    );
}

#[test]
fn correlations_depend_on_order_alone() {
    let mut stream = Stream::new(3, Purpose::Simulation, 3);
    for n in [2, 3, 10, 100] {
        let a: Vec<f64> = (0..n).map(|_| normal(&mut stream).round()).chain([50.0]).collect();
        let b: Vec<f64> = (0..n).map(|_| normal(&mut stream)).chain([-50.0]).collect();
        let Some(found) = spearman(&a, &b) else { continue };
        let stretched: Vec<f64> = b.iter().map(|x| x.powi(3) + x).collect();
        let turned: Vec<f64> = b.iter().map(|x| -x).collect();
        assert_eq!(spearman(&a, &stretched), Some(found));
        assert_eq!(spearman(&b, &a), Some(found));
        near(spearman(&a, &turned).unwrap(), -found, 1e-12, n);
        near(spearman(&a, &a).unwrap(), 1.0, 1e-12, n);
    }
}

#[test]
fn reports_of_margins_hold_together() {
    let mut stream = Stream::new(4, Purpose::Simulation, 4);
    for n in [1, 2, 50, 999] {
        let margins: Vec<f64> = (0..n).map(|_| 30.0 * normal(&mut stream)).collect();
        let report = pair_report(&margins).unwrap();
        let bins = &report.calibration.bins;
        assert_eq!(bins.iter().map(|bin| bin.pairs).sum::<u64>(), n);
        let right = bins.iter().filter_map(|bin| Some(bin.accuracy? * bin.pairs as f64)).sum::<f64>();
        near(right / n as f64, report.accuracy, 1e-12, n);
        for bin in bins.iter().filter(|bin| bin.pairs > 0) {
            let confidence = bin.confidence.unwrap();
            assert!(bin.lower - 1e-12 <= confidence && confidence <= bin.upper + 1e-12, "{bin:?}");
        }
        assert!(report.margins.quantiles.is_sorted());
        // All margins turned round: accuracy and wrong pairs change places.
        let turned: Vec<f64> = margins.iter().map(|m| -m).collect();
        let turned = pair_report(&turned).unwrap();
        near(turned.accuracy, 1.0 - report.accuracy, 1e-12, n);
        near(turned.loss, report.loss + report.margins.mean, 1e-12, n);
        near(turned.margins.std, report.margins.std, 1e-12, n);
    }
}

/// Margins whose sign follows their probability are calibrated: the error that is left is that of sampling.
#[test]
fn calibrated_margins_have_a_small_error() {
    let mut stream = Stream::new(5, Purpose::Simulation, 5);
    let margins: Vec<f64> = (0..100_000)
        .map(|_| {
            let m = 2.0 * normal(&mut stream).abs();
            if f64::from(stream.uniform()) < 1.0 / (1.0 + (-m).exp()) { m } else { -m }
        })
        .collect();
    let honest = pair_report(&margins).unwrap().calibration;
    assert!(honest.expected_error < 0.01, "{}", honest.expected_error);
    let bold: Vec<f64> = margins.iter().map(|m| 3.0 * m).collect();
    let bold = pair_report(&bold).unwrap().calibration;
    assert!(bold.expected_error > 0.1 && bold.brier > honest.brier, "{}", bold.expected_error);
}

#[test]
fn corrections_are_never_smaller_and_keep_the_order() {
    let mut stream = Stream::new(6, Purpose::Simulation, 6);
    for n in [1, 2, 5, 40] {
        let p: Vec<f64> = (0..n).map(|_| f64::from(stream.uniform()).powi(3)).collect();
        let mut corrected = p.clone();
        holm(&mut corrected);
        for i in 0..n {
            assert!(p[i] <= corrected[i] && corrected[i] <= 1.0);
            assert!(corrected[i] <= (n as f64 * p[i]).min(1.0) + 1e-15, "above Bonferroni's");
            assert!((0..n).all(|j| p[i] >= p[j] || corrected[i] <= corrected[j]));
        }
    }
}

const DATA_SETS: u64 = 2000;
const PAIRS: usize = 400;

/// The share of `DATA_SETS` data sets for which `holds` is true.
fn coverage(holds: impl Fn(u64, &mut Stream) -> bool) -> f64 {
    let held = (0..DATA_SETS).filter(|&set| holds(set, &mut Stream::new(8, Purpose::Simulation, set)));
    held.count() as f64 / DATA_SETS as f64
}

/// Accuracies of 400 pairs, each right with probability 0.7.
#[test]
#[ignore = "a simulation of some seconds in release"]
fn intervals_of_independent_pairs_cover() {
    let found = coverage(|set, stream| {
        let right: Vec<f64> = (0..PAIRS).map(|_| f64::from(stream.uniform() < 0.7)).collect();
        let interval = bootstrap_mean(&right, None, 1000, 0.95, set).unwrap();
        interval.low <= 0.7 && 0.7 <= interval.high
    });
    println!("independent pairs: {found}");
    assert!((0.93..=0.97).contains(&found), "{found}");
}

/// Accuracies of about 400 pairs of prompts that have 1 to 7 pairs each: a prompt is an easy one with probability 0.5, of
/// whose pairs 95 % are right, or a hard one with 40 %. Hard prompts have two pairs more on average, so that the mean over
/// pairs is not that over prompts.
#[test]
#[ignore = "a simulation of some seconds in release"]
fn intervals_of_clustered_pairs_cover() {
    // Prompts of 1 to 5 pairs, 3 on average, and of 3 to 7 pairs, 5 on average.
    let truth = (3.0 * 0.95 + 5.0 * 0.4) / 8.0;
    let data = |stream: &mut Stream| {
        let (mut right, mut groups) = (Vec::new(), Vec::new());
        // A fixed number of prompts, 100, of 4 pairs on average.
        for prompt in 0..PAIRS as i64 / 4 {
            let easy = stream.below(2) == 0;
            let (size, share) = if easy { (1 + stream.below(5), 0.95) } else { (3 + stream.below(5), 0.4) };
            for _ in 0..size {
                right.push(f64::from(stream.uniform() < share));
                groups.push(prompt);
            }
        }
        (right, groups)
    };
    let covers = |right: &[f64], groups: Option<&[i64]>, set| {
        let interval = bootstrap_mean(right, groups, 1000, 0.95, set).unwrap();
        interval.low <= truth && truth <= interval.high
    };
    let grouped = coverage(|set, stream| {
        let (right, groups) = data(stream);
        covers(&right, Some(&groups), set)
    });
    let alone = coverage(|set, stream| covers(&data(stream).0, None, set));
    println!("clustered pairs: {grouped}; as if independent: {alone}");
    assert!((0.93..=0.97).contains(&grouped), "{grouped}");
    assert!(alone < 0.9, "groups would not be needed: {alone}");
}

/// Two methods that differ by chance alone: p is above 0.05 in 95 % of cases, and 0 is within 2 standard errors of the mean
/// in fewer.
#[test]
#[ignore = "a simulation of some seconds in release"]
fn paired_tests_cover() {
    for splits in [3, 5, 10] {
        let data = |stream: &mut Stream| -> (Vec<f64>, Vec<f64>) {
            let rows = (0..splits).map(|_| {
                let level = 0.7 + 0.05 * normal(stream);
                (level + 0.01 * normal(stream), level + 0.01 * normal(stream))
            });
            rows.unzip()
        };
        let by_t = coverage(|_, stream| {
            let (a, b) = data(stream);
            paired(&a, &b).p().unwrap() >= 0.05
        });
        let by_two = coverage(|_, stream| {
            let (a, b) = data(stream);
            let found = paired(&a, &b);
            found.mean.abs() <= 2.0 * found.standard_error.unwrap()
        });
        println!("{splits} splits: t {by_t}; 2 standard errors {by_two}");
        assert!((0.93..=0.97).contains(&by_t), "{by_t}");
        near(by_two, 1.0 - student_p(2.0, splits as f64 - 1.0), 0.03, splits);
    }
}
