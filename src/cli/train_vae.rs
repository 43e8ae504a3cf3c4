//! `lensmith train-vae`: seed pairs become a VAE checkpoint.

use std::time::Instant;

use clap::Args;
use serde_json::json;

use super::args::{Common, OutArgs, PairArgs, VaeArgs};
use super::console::Console;
use super::table::count;
use super::training::{save, show_vae_epochs};
use crate::data::{PairSet, PairSource, require_apart};
use crate::error::Result;

/// Train the VAE on preference pairs
#[derive(Debug, Args)]
#[command(after_help = "Example:
  lensmith train-vae seeds.safetensors --out vae.safetensors

The checkpoint is a PyTorch state dict in safetensors (encoder.0.weight ... decoder.2.bias) for
raw embeddings: the standardisation is folded into it.")]
pub struct TrainVae {
    /// Preference pairs: safetensors files, folders or patterns
    #[arg(required = true, value_name = "PAIRS")]
    pairs: Vec<String>,
    #[command(flatten)]
    tensors: PairArgs,
    #[command(flatten)]
    vae: VaeArgs,
    #[command(flatten)]
    out: OutArgs,
}

impl TrainVae {
    pub fn execute(&self, common: &Common, console: &Console) -> Result<()> {
        let options = self.vae.training(common.seed)?;
        let out = self.out.check()?;
        let pairs = PairSet::open(&self.tensors.partial.sources(&self.pairs), &self.tensors.options(common))?;
        require_apart([out], &pairs.paths())?;
        let sources = pairs.scan()?.sources;
        let engine = common.engine()?;
        let start = Instant::now();
        let bar = console.bar("VAE", options.epochs as u64, "epochs");
        let trained = engine.train_vae(&pairs, &options, &mut show_vae_epochs(&bar))?;
        bar.finish_and_clear();
        let seconds = start.elapsed().as_secs_f64();
        let size = trained.vae.size();
        save(&trained.vae, out, [("training", json!(options)), ("sources", json!(sources))])?;
        let last = trained.history.last().copied().unwrap_or_default();
        let value = json!({
            "out": out, "size": size, "parameters": size.parameters(), "pairs": pairs.len(),
            "epochs": options.epochs, "loss": last, "history": trained.history, "seconds": seconds,
            "device": engine.info(),
        });
        console.result(&value, || {
            format!(
                "{}: VAE {} -> {} -> {} ({} parameters) from {} pairs\n\
                 loss {:.4} = reconstruction {:.4} + {} KL {:.2} + {} divergence {:.3}, {} epochs in {:.1} s on {}",
                out.display(),
                size.dim,
                size.hidden,
                size.latent,
                count(size.parameters() as u64),
                count(pairs.len() as u64),
                last.total,
                last.reconstruction,
                options.objective.beta,
                last.kl,
                options.objective.gamma,
                last.divergence,
                options.epochs,
                seconds,
                engine.info().name,
            )
        });
        Ok(())
    }
}
