//! What commands that train models share: progress, and checkpoints that say how they came about.

use std::path::Path;

use indicatif::ProgressBar;
use serde_json::Value;

use crate::backend::VaeLoss;
use crate::data::{Checkpoint, Provenance};
use crate::error::Result;
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

/// Writes a checkpoint whose metadata holds the version and `facts`, as JSON.
pub fn save<const N: usize>(model: &impl Checkpoint, path: &Path, facts: [(&str, Value); N]) -> Result<()> {
    let mut provenance = Provenance::from([("lensmith.version".into(), env!("CARGO_PKG_VERSION").into())]);
    provenance.extend(facts.map(|(name, fact)| (format!("lensmith.{name}"), fact.to_string())));
    model.save(path, &provenance)
}
