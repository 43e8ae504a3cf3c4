//! Shards in, shards out: trains a VAE on pairs in files, and writes synthetic pairs beside it.
//!
//! `cargo run --release --example from_files -- pairs.safetensors out/`

use std::path::Path;

use lensmith::{Checkpoint, Engine, PairOptions, PairSet, Recipe, SynthJob, SynthesisOptions, VaeTraining};

fn main() -> lensmith::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [sources @ .., out] = arguments.as_slice() else {
        panic!("usage: from_files PAIRS... OUT");
    };
    let out = Path::new(out);
    // Shards are memory-mapped: with the guard, one that is cut short meanwhile is an error, not a signal.
    let engine = Engine::builder().sigbus_guard(true).build()?;
    let pairs = PairSet::open(sources, &PairOptions::default())?;

    let trained = engine.train_vae(&pairs, &VaeTraining::default(), &mut |epoch, loss| {
        if epoch % 10 == 0 {
            println!("epoch {epoch}: loss {:.4}", loss.total);
        }
    })?;
    std::fs::create_dir_all(out).map_err(lensmith::Error::io("create folder", out))?;
    let vae = out.join("vae.safetensors");
    trained.vae.save(&vae, &Default::default())?;

    let options = SynthesisOptions { pairs_per_seed: Some(8), ..SynthesisOptions::default() };
    let (recipe, seeds, model) = Recipe::new(sources, &PairOptions::default(), &vae, &options)?;
    let recipe = recipe.with_absolute_paths()?;
    let folder = out.join("synth");
    let job = SynthJob::new(&recipe, &folder);
    let summary = engine.synthesize(&job, &seeds, &model, &mut |_| ())?;
    println!("{} pairs in {} shards, {} bytes", summary.pairs, summary.shards, summary.bytes);
    Ok(())
}
