//! What commands that train models share: progress, and checkpoints that say how they came about.

use std::path::Path;

use indicatif::ProgressBar;
use serde_json::Value;

use crate::backend::VaeLoss;
use crate::data::{Checkpoint, Provenance};
use crate::error::Result;
use crate::eval::VaeHealth;
use crate::train::RewardPoint;

/// Shows each epoch of a VAE on a bar.
pub fn show_vae_epochs(bar: &ProgressBar) -> impl FnMut(usize, &VaeLoss) {
    |_, loss| {
        bar.inc(1);
        bar.set_message(format!("loss {:.4}", loss.total));
    }
}

/// Shows the learning curve of a reward model on a bar of epochs.
pub fn show_reward_curve(bar: &ProgressBar) -> impl FnMut(&RewardPoint) {
    |point| {
        bar.set_position(point.epoch as u64);
        bar.set_message(match point.validation {
            Some(v) => {
                format!("loss {:.4}, validation {:.4} / {:.3}", point.train_loss, v.loss, v.accuracy)
            }
            None => format!("loss {:.4}", point.train_loss),
        });
    }
}

/// The warning that the best model was the last that was allowed.
pub fn capped_text(what: &str) -> String {
    format!(
        "the best evaluation of {what} was the last that it was allowed: with more --epochs it may do better, \
         and until then whatever takes more steps looks better than it is"
    )
}

/// The figures of a VAE's health for people.
pub fn health_text(health: &VaeHealth) -> String {
    let held_out = health
        .held_out_explained_variance
        .map_or(String::new(), |held| format!(" ({held:.3} of held-out pairs)"));
    let text = format!(
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
    text
}

/// The warnings of a VAE's health, a line each.
pub fn warnings_text(health: &VaeHealth) -> String {
    health.warnings.iter().map(|warning| format!("\nwarning: {warning}")).collect()
}

/// Writes a checkpoint whose metadata holds the version and `facts`, as JSON.
pub fn save<const N: usize>(model: &impl Checkpoint, path: &Path, facts: [(&str, Value); N]) -> Result<()> {
    let mut provenance = Provenance::from([("lensmith.version".into(), env!("CARGO_PKG_VERSION").into())]);
    provenance.extend(facts.map(|(name, fact)| (format!("lensmith.{name}"), fact.to_string())));
    model.save(path, &provenance)
}
