//! `lensmith train-vae`: seed pairs become a VAE checkpoint.

use std::time::Instant;

use clap::Args;
use serde_json::json;

use super::args::{Common, OutArgs, PairArgs, VaeArgs};
use super::console::Console;
use super::inputs::open_held_out;
use super::method::PresetArgs;
use super::table::count;
use super::training::{health_text, save, show_vae_epochs, warnings_text};
use crate::backend::Divergence;
use crate::data::{PairSet, PairSource, require_apart};
use crate::error::Result;
use crate::synth::SynthesisOptions;

/// Train the VAE on preference pairs
#[derive(Debug, Args)]
#[command(after_help = "Example:
  lensmith train-vae seeds.safetensors --out vae.safetensors

The checkpoint is a PyTorch state dict in safetensors (encoder.0.weight ... decoder.2.bias) for
raw embeddings: the standardisation is folded into it. Figures of its health follow the loss, and
warnings: when it has not learnt, has collapsed, was still improving, or when sigma (0.1, the
default of synth) is lost in the spread of the latent means.")]
pub struct TrainVae {
    /// Preference pairs: safetensors files, folders or patterns
    #[arg(required = true, value_name = "PAIRS")]
    pairs: Vec<String>,
    #[command(flatten)]
    tensors: PairArgs,
    /// Held-out pairs that the VAE is looked at with as well: safetensors files, folders or patterns
    #[arg(long, value_name = "PAIRS", num_args = 1..)]
    validation: Vec<String>,
    #[command(flatten)]
    preset: PresetArgs,
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
        let validation = self.tensors.partial.sources(&self.validation);
        let held_out = open_held_out(&validation, &self.tensors.options(common), pairs.dim())?;
        let inputs = [Some(&pairs), held_out.as_ref()].into_iter().flatten().flat_map(PairSet::paths);
        require_apart([out], &inputs.collect::<Vec<_>>())?;
        let sources = pairs.scan()?.sources;
        let engine = common.engine()?;
        let start = Instant::now();
        let bar = console.bar("VAE", options.epochs as u64, "epochs");
        let trained = engine.train_vae(&pairs, &options, &mut show_vae_epochs(&bar))?;
        bar.finish_and_clear();
        let seconds = start.elapsed().as_secs_f64();
        let size = trained.vae.size();
        let held_out = held_out.as_ref().map(|pairs| pairs as &dyn PairSource);
        let synthesis = SynthesisOptions { seed: common.seed, ..SynthesisOptions::default() };
        let health = engine.vae_health(&trained.vae, &pairs, held_out, &synthesis, &trained.history)?;
        let facts = [("training", json!(options)), ("sources", json!(sources)), ("health", json!(health))];
        save(&trained.vae, out, facts)?;
        let last = trained.history.last().copied().unwrap_or_default();
        let value = json!({
            "out": out, "size": size, "parameters": size.parameters(), "pairs": pairs.len(),
            "epochs": options.epochs, "loss": last, "history": trained.history, "seconds": seconds,
            "device": engine.info(), "health": health,
        });
        // The loss holds it negative: it is made large.
        let divergence = match options.objective.divergence {
            Divergence::W2 => "W2",
            Divergence::W2Squared => "W2^2",
        };
        console.result(&value, || {
            format!(
                "{}: VAE {} -> {} -> {} ({} parameters) from {} pairs\n\
                 loss {:.4} = reconstruction {:.4} + {} KL {:.2} - {} {divergence} {:.3}, {} epochs in {:.1} s on {}\n{}",
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
                -last.divergence,
                options.epochs,
                seconds,
                engine.info().name,
                health_text(&health) + &warnings_text(&health),
            )
        });
        Ok(())
    }
}
