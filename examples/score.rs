//! Rewards of embeddings, from files and from memory.
//!
//! `cargo run --release --example score -- reward.safetensors embeddings.safetensors TENSOR`

use lensmith::{Checkpoint, EmbeddingSet, Engine, Io, RewardModel, RowSet};

fn main() -> lensmith::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, embeddings, tensor] = arguments.as_slice() else {
        panic!("usage: score REWARD_MODEL EMBEDDINGS TENSOR");
    };
    let engine = Engine::builder().build()?;
    let (model, _) = RewardModel::load(model.as_ref())?;
    let set = EmbeddingSet::open(std::slice::from_ref(embeddings), tensor, Io::Mmap)?;
    let (mut best, mut first) = (f32::NEG_INFINITY, 0);
    engine.score(&model, &set, &mut |rewards| {
        best = rewards.iter().copied().fold(best, f32::max);
        first += rewards.len();
        Ok(())
    })?;
    println!("{first} embeddings, best reward {best:.4}");

    let zeros = vec![0f32; 2 * set.dim()];
    let rows = RowSet::from_f32(&zeros, set.dim())?;
    engine.score(&model, &rows, &mut |rewards| {
        println!("zeros: {rewards:?}");
        Ok(())
    })
}
