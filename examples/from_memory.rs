//! The whole method on embeddings in memory: VAE, reward models with and without synthetic pairs, accuracy.
//!
//! `cargo run --release --example from_memory`

use lensmith::{Dtype, Engine, RewardTraining, RowSet, SynthesisOptions, VaeTraining};

const DIM: usize = 64;

/// `n` pairs `[n, DIM]`: the chosen response is better along one direction, on average. Any embeddings do.
fn pairs(n: usize, seed: u64) -> [Vec<f32>; 2] {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    [0.15, -0.15]
        .map(|shift| (0..n * DIM).map(|i| uniform() + if i % DIM < 8 { shift } else { 0.0 }).collect())
}

fn rows(values: &[Vec<f32>; 2]) -> lensmith::Result<[RowSet<'_>; 2]> {
    Ok([RowSet::from_f32(&values[0], DIM)?, RowSet::from_f32(&values[1], DIM)?])
}

fn main() -> lensmith::Result<()> {
    let (seeds, validation, test) = (pairs(200, 1), pairs(200, 2), pairs(2000, 3));
    let (seeds, validation, test) = (rows(&seeds)?, rows(&validation)?, rows(&test)?);
    let engine = Engine::builder().build()?;

    let trained = engine.train_vae(&seeds, &VaeTraining::default(), &mut |_, _| ())?;
    let options = RewardTraining::default();
    let without = engine.train_reward(&seeds, None, Some(&validation), &options, &mut |_| ())?;
    let synthesis = SynthesisOptions { pairs_per_seed: Some(8), ..SynthesisOptions::default() };
    let with = engine.train_reward_on_synthetic(
        &synthesis,
        &seeds,
        &trained.vae,
        Some(&validation),
        &options,
        &mut |_| (),
    )?;
    for (name, reward) in [("200 pairs", &without), ("200 pairs and 1,400 synthetic ones", &with)] {
        let metrics = engine.evaluate(&reward.model, &test, None)?.report;
        println!("{name}: {:.1} % of {} test pairs", 100.0 * metrics.accuracy, metrics.pairs);
    }

    let first = engine.pair(&synthesis, &seeds, &trained.vae, 200, Dtype::F32)?;
    println!("the first synthetic pair has {} values a side", first.chosen.cols());
    Ok(())
}
