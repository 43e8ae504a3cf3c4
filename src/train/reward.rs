//! Training of the reward model, and its figures on held-out pairs.
//!
//! The loss of a pair is that of Bradley and Terry, -log sigmoid(r(chosen) - r(rejected)). Every epoch visits
//! all pairs once, in a new order. Of the epochs that are evaluated on held-out pairs, the one with the
//! lowest loss is kept, and training stops early once `patience` evaluations in a row were no better.

use serde::{Deserialize, Serialize};

use super::check::{learning_rate, positive};
use super::early_stop::EarlyStop;
use super::shuffle::Shuffle;
use crate::backend::{Backend, PairRows, RewardData, RewardObjective};
use crate::error::{Error, Result};
use crate::model::{RewardModel, RewardSize, Standardizer};

/// How long a reward model is trained.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Updates {
    /// At most so many passes over the pairs.
    Epochs(usize),
    /// At most so many optimiser steps, rounded up to whole passes.
    Steps(usize),
}

impl Updates {
    /// The number of epochs or steps.
    pub fn count(self) -> usize {
        match self {
            Updates::Epochs(count) | Updates::Steps(count) => count,
        }
    }
}

/// How a reward model is trained; the paper's values by default.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RewardTraining {
    /// Width of the hidden layer, a multiple of 16.
    pub hidden: usize,
    /// Length of training.
    pub updates: Updates,
    /// Evaluations on the validation pairs without a lower loss, after which training stops; None trains to
    /// the end.
    pub patience: Option<usize>,
    /// Epochs between evaluations on the validation pairs.
    pub evaluate_every: usize,
    /// The loss and the optimiser.
    pub objective: RewardObjective,
    /// Keys initialisation and shuffles.
    pub seed: u64,
}

impl Default for RewardTraining {
    fn default() -> RewardTraining {
        RewardTraining {
            hidden: 256,
            updates: Updates::Epochs(20),
            patience: Some(5),
            evaluate_every: 1,
            objective: RewardObjective::default(),
            seed: 0,
        }
    }
}

impl RewardTraining {
    /// Fails on values that no training could start with; the sizes are checked by [`RewardSize::new`].
    pub fn check(&self) -> Result<()> {
        positive("reward.updates", self.updates.count())?;
        positive("evaluate_every", self.evaluate_every)?;
        positive("reward.batch", self.objective.batch)?;
        learning_rate("reward.lr", self.objective.adam.lr)
    }
}

/// Held-out pairs for early stopping.
pub struct Validation<'r, 'e, B: Backend + 'e> {
    /// Embeddings of preferred responses, `[n, d]`.
    pub chosen: &'r B::Embeddings<'e>,
    /// Embeddings of the others.
    pub rejected: &'r B::Embeddings<'e>,
    /// Number of pairs, n.
    pub pairs: usize,
}

/// Figures of one epoch.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RewardEpoch {
    /// Epoch, from 1.
    pub epoch: usize,
    /// Mean training loss before each step.
    pub train_loss: f64,
    /// Figures on the validation pairs, where there are any and this epoch evaluates.
    pub validation: Option<PairMetrics>,
}

/// Accuracy and loss on pairs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PairMetrics {
    /// Number of pairs.
    pub pairs: u64,
    /// Share of pairs whose chosen response has the strictly higher reward.
    pub accuracy: f64,
    /// Mean of -log sigmoid(r(chosen) - r(rejected)).
    pub loss: f64,
}

/// A trained reward model and how it came about.
#[derive(Clone, Debug)]
pub struct TrainedReward {
    /// The model, for raw embeddings: the best epoch's where there is a validation set, else the last's.
    pub model: RewardModel,
    /// Figures of each epoch.
    pub history: Vec<RewardEpoch>,
    /// The epoch kept.
    pub best_epoch: usize,
    /// Optimiser steps taken.
    pub steps: u64,
}

/// -log sigmoid(margin), without overflow for either sign.
fn bradley_terry(margin: f64) -> f64 {
    (-margin).max(0.0) + (-margin.abs()).exp().ln_1p()
}

/// Fails on the first reward that is infinite or NaN; `first` is the number of the first row, `what` names rows.
pub fn require_finite(rewards: &[f32], first: usize, what: &str) -> Result<()> {
    match rewards.iter().position(|reward| !reward.is_finite()) {
        None => Ok(()),
        Some(at) => {
            let expected = "a finite number: weights or embeddings of this size leave the range of F32";
            Err(Error::shape(format!("{what} {}", first + at), expected, rewards[at]))
        }
    }
}

/// Accuracy and loss of a reward model on pairs.
///
/// # Errors
/// A reward that is not finite, by its row in the block.
pub fn pair_metrics<B: Backend>(
    backend: &B,
    model: &B::Reward,
    chosen: &B::Embeddings<'_>,
    rejected: &B::Embeddings<'_>,
    pairs: usize,
) -> Result<PairMetrics> {
    let (mut plus, mut minus) = (vec![0f32; pairs], vec![0f32; pairs]);
    backend.score(model, chosen, &mut plus)?;
    backend.score(model, rejected, &mut minus)?;
    require_finite(&plus, 0, "chosen reward of pair")?;
    require_finite(&minus, 0, "rejected reward of pair")?;
    let margins = plus.iter().zip(&minus).map(|(a, b)| f64::from(*a) - f64::from(*b));
    let n = pairs.max(1) as f64;
    let accuracy = margins.clone().filter(|&m| m > 0.0).count() as f64 / n;
    Ok(PairMetrics { pairs: pairs as u64, accuracy, loss: margins.map(bradley_terry).sum::<f64>() / n })
}

/// Trains a reward model on pairs of rows of `data`. Calls `on_epoch` with each epoch's figures.
///
/// # Errors
/// No pairs, options out of range, or a loss or a parameter that is no longer finite.
pub fn train_reward<'e, 'v, B: Backend + 'e + 'v>(
    backend: &B,
    data: &RewardData<'_, 'e, B>,
    mut pairs: Vec<PairRows>,
    standardizer: &Standardizer,
    validation: Option<Validation<'_, 'v, B>>,
    options: &RewardTraining,
    on_epoch: &mut dyn FnMut(&RewardEpoch),
) -> Result<TrainedReward> {
    options.check()?;
    if pairs.is_empty() {
        return Err(Error::TooFew { what: "pairs for reward training".into(), needed: 1, found: 0 });
    }
    let size = RewardSize::new(standardizer.mean.len(), options.hidden)?;
    size.require_memory()?;
    let mut trainer =
        backend.reward_trainer(&RewardModel::init(size, options.seed), standardizer, &options.objective)?;
    let steps_per_epoch = pairs.len().div_ceil(options.objective.batch);
    let epochs = match options.updates {
        Updates::Epochs(epochs) => epochs,
        Updates::Steps(steps) => steps.div_ceil(steps_per_epoch),
    };
    let mut stop = EarlyStop::new(options.patience);
    let mut history = Vec::new();
    let mut best = None;
    for epoch in 1..=epochs {
        Shuffle::RewardEpoch(epoch as u32).apply(options.seed, &mut pairs);
        let train_loss = backend.reward_epoch(&mut trainer, data, &pairs)?;
        if !train_loss.is_finite() {
            return Err(Error::Diverged {
                what: "reward training",
                epoch,
                loss: train_loss,
                hint: "a lower `reward.lr` usually helps",
            });
        }
        let mut figures = RewardEpoch { epoch, train_loss, validation: None };
        if let Some(v) =
            validation.as_ref().filter(|_| epoch % options.evaluate_every == 0 || epoch == epochs)
        {
            let candidate = backend.reward_parameters(&trainer)?.fold(standardizer);
            let loaded = backend.load_reward(&candidate)?;
            let metrics = pair_metrics(backend, &loaded, v.chosen, v.rejected, v.pairs)?;
            figures.validation = Some(metrics);
            if stop.record(epoch, metrics.loss) {
                best = Some(candidate);
            }
        }
        on_epoch(&figures);
        history.push(figures);
        if stop.should_stop() {
            break;
        }
    }
    let last = history.len();
    let (model, best_epoch) = match best {
        Some(model) => (model, stop.best_epoch()),
        None => (backend.reward_parameters(&trainer)?.fold(standardizer), last),
    };
    if !model.is_finite() {
        return Err(Error::Diverged {
            what: "reward training",
            epoch: best_epoch,
            loss: history.last().map_or(f64::NAN, |e| e.train_loss),
            hint: "a parameter is infinite or NaN; a lower `reward.lr` usually helps",
        });
    }
    Ok(TrainedReward { model, history, best_epoch, steps: (last * steps_per_epoch) as u64 })
}
