//! Synthetic pairs straight into a training loop: a stream on a thread of its own, a few batches ahead.
//!
//! `cargo run --release --example stream -- pairs.safetensors vae.safetensors`

use std::sync::mpsc;

use lensmith::{Checkpoint, Dtype, Engine, PairOptions, PairSet, SynthesisOptions, Vae};

fn main() -> lensmith::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [pairs, vae] = arguments.as_slice() else {
        panic!("usage: stream PAIRS VAE");
    };
    let engine = Engine::builder().build()?;
    let seeds = PairSet::open(std::slice::from_ref(pairs), &PairOptions::default())?;
    let (vae, _) = Vae::load(vae.as_ref())?;
    let options = SynthesisOptions { pairs_per_seed: Some(8), ..SynthesisOptions::default() };
    let stream = engine.stream(&options, &seeds, &vae, 1024, Dtype::F32)?;

    std::thread::scope(|scope| {
        let (send, batches) = mpsc::sync_channel(2);
        // A stream can be sent to another thread. It ends when nobody takes its batches any more.
        scope.spawn(move || {
            for batch in stream {
                if send.send(batch).is_err() {
                    return;
                }
            }
        });
        let mut step = 0;
        for batch in batches {
            let batch = batch?;
            // Here a training step would take `batch.chosen` and `batch.rejected`, both [rows, d].
            step += 1;
            println!(
                "step {step}: pairs {} to {}",
                batch.first,
                batch.first + batch.chosen.rows() as u64 - 1
            );
        }
        Ok(())
    })
}
