//! Theorem 1 of the paper, on data that meets its conditions: a gold reward that is linear in the embedding and lies in the
//! decoder's range. The share of synthetic pairs that it orders as their seeds is close to 1 for little noise, and falls
//! with the noise. Away from the conditions it is lower.

mod common;

use common::cli::Lab;

/// The share by the gold reward at each scale of the noise, and the mean margin against that of the seeds.
fn shares(dials: &str) -> (Vec<[f64; 2]>, Vec<f64>) {
    let lab = Lab::new();
    lab.fine(&format!("demo --simulated --dim 48 --seeds 1000 --repeats 1 {dials} --out @demo --threads 2"));
    let report = lab.value("demo/run.json");
    let points = report["repeats"][0]["gold_order"].as_array().expect("points").clone();
    let number = |value: &serde_json::Value| value.as_f64().filter(|v| v.is_finite()).expect("a number");
    let share = |p: &serde_json::Value| [number(&p["sigma2"]), number(&p["preserved"])];
    let margin = |p: &serde_json::Value| number(&p["margin"]) / number(&p["seed_margin"]);
    let page = std::fs::read_to_string(lab.at("demo/report.html")).expect("a page");
    assert!(page.contains("by the gold model"), "the curve is in the report");
    (points.iter().map(share).collect(), points.iter().map(margin).collect())
}

#[test]
fn order_is_preserved_for_little_noise_and_lost_with_more() {
    let (shares, margins) = shares("--rank 16 --noise 0 --network 0 --curvature 0");
    assert_eq!(shares.len(), 7);
    let (first, last) = (shares[0], shares[6]);
    assert!(first[0] == 0.001 && first[1] > 0.82, "{shares:?}");
    assert!(last[0] == 10.0 && (0.5..0.75).contains(&last[1]), "{shares:?}");
    for step in shares.windows(2) {
        // Of 7,000 pairs, within three standard errors.
        assert!(step[0][0] < step[1][0] && step[1][1] < step[0][1] + 0.015, "{shares:?}");
    }
    // Noise has mean 0: it takes the order of single pairs, not the mean margin.
    assert!(margins.iter().all(|margin| (margin - margins[0]).abs() < 0.15), "{margins:?}");
}

#[test]
fn noise_of_the_embeddings_takes_order_that_the_latent_space_cannot_keep() {
    let (clean, _) = shares("--rank 16 --noise 0 --network 0 --curvature 0");
    let (noisy, _) = shares("--rank 16 --noise 1.5 --network 0 --curvature 0");
    assert!(noisy[0][1] < clean[0][1] - 0.05, "{noisy:?} against {clean:?}");
}
