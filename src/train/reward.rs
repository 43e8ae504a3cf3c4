//! Training of the reward model (ALGORITHM: section 3) and its figures on held-out pairs.

use serde::{Deserialize, Serialize};

use super::{EarlyStop, Shuffle};
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

/// How a reward model is trained.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RewardTraining {
    /// Width of the hidden layer.
    pub hidden: usize,
    /// Length of training.
    pub updates: Updates,
    /// Early stopping on the validation loss after so many epochs (or stretches of
    /// [`RewardTraining::evaluate_every`]) without gain; None trains to the end.
    pub patience: Option<usize>,
    /// Epochs between evaluations on the validation pairs.
    pub evaluate_every: usize,
    /// The loss and the optimiser.
    pub objective: RewardObjective,
    /// Keys initialisation and shuffles.
    pub seed: u64,
}

/// Held-out pairs that early stopping looks at.
pub struct Validation<'r, 'e, B: Backend + 'e> {
    /// Embeddings of preferred responses, `[n, d]`.
    pub chosen: &'r B::Embeddings<'e>,
    /// Embeddings of the others.
    pub rejected: &'r B::Embeddings<'e>,
    /// n.
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
pub fn bradley_terry(margin: f64) -> f64 {
    (-margin).max(0.0) + (-margin.abs()).exp().ln_1p()
}

/// Scores pairs and gives accuracy and loss.
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
    let margins = plus.iter().zip(&minus).map(|(a, b)| f64::from(*a) - f64::from(*b));
    let n = pairs.max(1) as f64;
    let accuracy = margins.clone().filter(|&m| m > 0.0).count() as f64 / n;
    Ok(PairMetrics { pairs: pairs as u64, accuracy, loss: margins.map(bradley_terry).sum::<f64>() / n })
}

/// Trains a reward model on pairs of rows of `data`. `on_epoch` hears each epoch's figures.
///
/// # Errors
/// No pairs, sizes that do not fit, or a loss or a parameter that is no longer finite.
pub fn train_reward<'e, 'v, B: Backend + 'e + 'v>(
    backend: &B,
    data: &RewardData<'_, 'e, B>,
    mut pairs: Vec<PairRows>,
    standardizer: &Standardizer,
    validation: Option<Validation<'_, 'v, B>>,
    how: &RewardTraining,
    on_epoch: &mut dyn FnMut(&RewardEpoch),
) -> Result<TrainedReward> {
    if pairs.is_empty() {
        return Err(Error::TooFew { what: "pairs for reward training".into(), needed: 1, found: 0 });
    }
    let size = RewardSize::new(standardizer.mean.len(), how.hidden)?;
    let mut trainer =
        backend.reward_trainer(&RewardModel::init(size, how.seed), standardizer, &how.objective)?;
    let steps_per_epoch = pairs.len().div_ceil(how.objective.batch);
    let epochs = match how.updates {
        Updates::Epochs(epochs) => epochs,
        Updates::Steps(steps) => steps.div_ceil(steps_per_epoch),
    };
    let mut stop = EarlyStop::new(how.patience);
    let mut history = Vec::new();
    let mut best = None;
    for epoch in 1..=epochs {
        Shuffle::RewardEpoch(epoch as u32).apply(how.seed, &mut pairs);
        let train_loss = backend.reward_epoch(&mut trainer, data, &pairs)?;
        if !train_loss.is_finite() {
            return Err(Error::Diverged {
                what: "reward training",
                epoch,
                loss: train_loss,
                hint: "a lower --lr usually helps",
            });
        }
        let mut figures = RewardEpoch { epoch, train_loss, validation: None };
        if let Some(v) = validation.as_ref().filter(|_| epoch % how.evaluate_every == 0 || epoch == epochs) {
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
            hint: "a parameter is infinite or NaN; a lower --lr usually helps",
        });
    }
    Ok(TrainedReward { model, history, best_epoch, steps: (last * steps_per_epoch) as u64 })
}
