//! What commands that train models share: progress, and checkpoints that say how they came about.

use std::path::Path;

use indicatif::ProgressBar;
use serde_json::Value;

use crate::backend::VaeLoss;
use crate::data::{Checkpoint, Provenance};
use crate::error::Result;
use crate::eval::VaeHealth;
use crate::train::RewardEpoch;

/// Shows each epoch of a VAE on a bar.
pub fn show_vae_epochs(bar: &ProgressBar) -> impl FnMut(usize, &VaeLoss) {
    |_, loss| {
        bar.inc(1);
        bar.set_message(format!("loss {:.4}", loss.total));
    }
}

/// Shows each epoch of a reward model on a bar.
pub fn show_reward_epochs(bar: &ProgressBar) -> impl FnMut(&RewardEpoch) {
    |epoch| {
        bar.inc(1);
        bar.set_message(match epoch.validation {
            Some(v) => {
                format!("loss {:.4}, validation {:.4} / {:.3}", epoch.train_loss, v.loss, v.accuracy)
            }
            None => format!("loss {:.4}", epoch.train_loss),
        });
    }
}

/// The health of a VAE for people: figures, and a line for each warning.
pub fn health_text(health: &VaeHealth) -> String {
    let held_out = health
        .held_out_explained_variance
        .map_or(String::new(), |held| format!(" ({held:.3} of held-out pairs)"));
    let mut text = format!(
        "explained variance {:.3}{held_out}, KL {:.1}, W2 {:.2}, {} of {} latent units active\n\
         latent means spread by {:.2}, of which sigma {:.3} is {:.1} %; synthetic variance {:.2} of the seeds'",
        health.explained_variance,
        health.kl,
        health.w2,
        health.active_units,
        health.latent,
        health.spread,
        health.sigma,
        100.0 * health.sigma_share,
        health.synthetic_variance,
    );
    for warning in &health.warnings {
        text.push_str(&format!("\nwarning: {warning}"));
    }
    text
}

/// Writes a checkpoint whose metadata holds the version and `facts`, as JSON.
pub fn save<const N: usize>(model: &impl Checkpoint, path: &Path, facts: [(&str, Value); N]) -> Result<()> {
    let mut provenance = Provenance::from([("lensmith.version".into(), env!("CARGO_PKG_VERSION").into())]);
    provenance.extend(facts.map(|(name, fact)| (format!("lensmith.{name}"), fact.to_string())));
    model.save(path, &provenance)
}
