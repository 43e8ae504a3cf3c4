//! Training of the reward model, and its figures on held-out pairs.
//!
//! The loss of a pair is that of Bradley and Terry, -log sigmoid(r(chosen) - r(rejected)). Every epoch visits
//! all pairs once, in a new order. Of the models that are evaluated on held-out pairs, after every epoch or every so
//! many steps, the one with the lowest loss is kept, and training stops early once `patience` epochs brought no better
//! one.

use serde::{Deserialize, Serialize};

use super::check::{learning_rate, positive, weight, weight_decay};
use super::early_stop::EarlyStop;
use super::shuffle::Shuffle;
use crate::backend::{Backend, PairRows, RewardData, RewardObjective};
use crate::error::{Error, Result};
use crate::model::{Head, RewardModel, RewardSize, Standardizer};
use crate::noise::{Purpose, Stream};

/// How long a reward model is trained.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Updates {
    /// At most so many passes over the pairs.
    Epochs(usize),
    /// At most so many optimiser steps.
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
    /// What follows the embedding.
    pub head: Head,
    /// Width of an MLP's hidden layer, a multiple of 16, in an ensemble of 32.
    pub hidden: usize,
    /// Heads that are trained at once on the same batches, from starting points of their own; their mean is the reward.
    pub ensemble: usize,
    /// Length of training.
    pub updates: Updates,
    /// Epochs without a lower loss on the validation pairs, after which training stops; None trains to the end.
    pub patience: Option<usize>,
    /// Optimiser steps between evaluations on the validation pairs; None evaluates after every epoch.
    pub validate_every: Option<usize>,
    /// Share of the pairs whose rejected response is that of another pair, drawn anew in every epoch.
    pub across_prompts: f64,
    /// The loss and the optimiser; its seed keys initialisation and shuffles.
    pub objective: RewardObjective,
}

impl Default for RewardTraining {
    fn default() -> RewardTraining {
        RewardTraining {
            head: Head::Mlp,
            hidden: 256,
            ensemble: 1,
            updates: Updates::Epochs(20),
            patience: Some(5),
            validate_every: None,
            across_prompts: 0.0,
            objective: RewardObjective::default(),
        }
    }
}

impl RewardTraining {
    /// Fails on values that no training could start with.
    pub fn check(&self) -> Result<()> {
        positive("reward.updates", self.updates.count())?;
        positive("reward.validate_every", self.validate_every.unwrap_or(1))?;
        positive("reward.batch", self.objective.batch)?;
        learning_rate("reward.lr", self.objective.adam.lr)?;
        weight_decay("reward.weight_decay", self.objective.adam.weight_decay, self.objective.adam.lr)?;
        weight("reward.input_noise", self.objective.input_noise)?;
        if !(0.0..=1.0).contains(&self.across_prompts) {
            return Err(Error::argument("reward.across_prompts", "a share from 0 to 1", self.across_prompts));
        }
        Ok(())
    }

    /// Sizes of the model for embeddings of dimension `dim`.
    ///
    /// # Errors
    /// A hidden width or a number of heads that no model can have.
    pub fn size(&self, dim: usize) -> Result<RewardSize> {
        RewardSize::of_heads(dim, self.head, self.hidden, self.ensemble)
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

/// A point of a learning curve.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RewardPoint {
    /// Epoch, from 1, that the point lies in or ends.
    pub epoch: usize,
    /// Optimiser steps taken.
    pub step: u64,
    /// Mean training loss before each step since the last point; of an ensemble, the heads' mean.
    pub train_loss: f64,
    /// Figures on the validation pairs, where there are any.
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
    /// The model, for raw embeddings: the best evaluation's where there is a validation set, else the last.
    pub model: RewardModel,
    /// The learning curve: a point for each evaluation, without validation pairs for each epoch.
    pub history: Vec<RewardPoint>,
    /// The epoch that the model kept lies in.
    pub best_epoch: usize,
    /// Optimiser steps behind the model kept.
    pub best_step: u64,
    /// Optimiser steps taken.
    pub steps: u64,
    /// Whether the last evaluation that was allowed was the best: with more steps it may have become better.
    pub capped: bool,
}

/// -log sigmoid(margin), without overflow for either sign.
pub fn bradley_terry(margin: f64) -> f64 {
    // Not f64::max, which would lose NaN.
    let linear = if margin < 0.0 { -margin } else { 0.0 };
    linear + (-margin.abs()).exp().ln_1p()
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

/// The margins r(chosen) - r(rejected) of a reward model on pairs.
///
/// # Errors
/// A reward that is not finite, by its row in the block.
pub fn pair_margins<B: Backend>(
    backend: &B,
    model: &B::Reward,
    chosen: &B::Embeddings<'_>,
    rejected: &B::Embeddings<'_>,
    pairs: usize,
) -> Result<Vec<f64>> {
    let (mut plus, mut minus) = (vec![0f32; pairs], vec![0f32; pairs]);
    backend.score(model, chosen, &mut plus)?;
    backend.score(model, rejected, &mut minus)?;
    require_finite(&plus, 0, "chosen reward of pair")?;
    require_finite(&minus, 0, "rejected reward of pair")?;
    Ok(plus.iter().zip(&minus).map(|(a, b)| f64::from(*a) - f64::from(*b)).collect())
}

/// Accuracy and loss of a reward model on pairs.
///
/// # Errors
/// As [`pair_margins`].
pub fn pair_metrics<B: Backend>(
    backend: &B,
    model: &B::Reward,
    chosen: &B::Embeddings<'_>,
    rejected: &B::Embeddings<'_>,
    pairs: usize,
) -> Result<PairMetrics> {
    let margins = pair_margins(backend, model, chosen, rejected, pairs)?;
    let n = pairs.max(1) as f64;
    let accuracy = margins.iter().filter(|&&m| m > 0.0).count() as f64 / n;
    let loss = margins.iter().map(|&m| bradley_terry(m)).sum::<f64>() / n;
    Ok(PairMetrics { pairs: pairs as u64, accuracy, loss })
}

/// Trains a reward model on pairs of rows of `data`. Calls `on_point` with each point of the learning curve.
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
    on_point: &mut dyn FnMut(&RewardPoint),
) -> Result<TrainedReward> {
    options.check()?;
    if pairs.is_empty() {
        return Err(Error::TooFew { what: "pairs for reward training".into(), needed: 1, found: 0 });
    }
    let RewardObjective { batch, seed, .. } = options.objective;
    let size = options.size(standardizer.mean.len())?;
    size.require_memory()?;
    let mut trainer =
        backend.reward_trainer(&RewardModel::init(size, seed), standardizer, &options.objective)?;
    let per_epoch = pairs.len().div_ceil(batch) as u64;
    let most = match options.updates {
        Updates::Epochs(epochs) => per_epoch.saturating_mul(epochs as u64),
        Updates::Steps(steps) => steps as u64,
    };
    let every = match validation.as_ref().and(options.validate_every) {
        Some(steps) => steps as u64,
        None => per_epoch,
    };
    let mut stop = EarlyStop::new(options.patience.map(|epochs| per_epoch.saturating_mul(epochs as u64)));
    let (mut history, mut best, mut step): (Vec<RewardPoint>, _, _) = (Vec::new(), None, 0u64);
    // Sum of the losses of the pairs since the last point, and their number.
    let mut losses = (0.0, 0usize);
    'training: for epoch in 1.. {
        Shuffle::RewardEpoch(epoch as u32).apply(seed, &mut pairs);
        let order = across_prompts(&pairs, options.across_prompts, seed, epoch as u64);
        let mut rest = &order[..];
        while !rest.is_empty() {
            // Up to the next evaluation, the end of the epoch or the last step.
            let steps = (every - step % every).min(most - step);
            let count = usize::try_from(steps).unwrap_or(usize::MAX).saturating_mul(batch).min(rest.len());
            let (part, others) = rest.split_at(count);
            rest = others;
            let loss = backend.reward_epoch(&mut trainer, data, part)?;
            step += count.div_ceil(batch) as u64;
            losses = (losses.0 + loss * count as f64, losses.1 + count);
            if !loss.is_finite() {
                return Err(Error::Diverged {
                    what: "reward training",
                    epoch,
                    loss,
                    hint: "a lower `reward.lr` usually helps",
                });
            }
            if !step.is_multiple_of(every) && step < most {
                continue;
            }
            let train_loss = losses.0 / losses.1 as f64;
            losses = (0.0, 0);
            let mut point = RewardPoint { epoch, step, train_loss, validation: None };
            if let Some(v) = &validation {
                let candidate = backend.reward_parameters(&trainer)?.fold(standardizer);
                let loaded = backend.load_reward(&candidate)?;
                let metrics = pair_metrics(backend, &loaded, v.chosen, v.rejected, v.pairs)?;
                point.validation = Some(metrics);
                if stop.record(step, metrics.loss) {
                    best = Some((candidate, epoch));
                }
            }
            on_point(&point);
            history.push(point);
            if step >= most || stop.should_stop() {
                break 'training;
            }
        }
    }
    let last_epoch = history.last().map_or(0, |point| point.epoch);
    let (model, best_epoch, best_step) = match best {
        Some((model, epoch)) => (model, epoch, stop.best_step()),
        None => (backend.reward_parameters(&trainer)?.fold(standardizer), last_epoch, step),
    };
    if !model.is_finite() {
        return Err(Error::Diverged {
            what: "reward training",
            epoch: best_epoch,
            loss: history.last().map_or(f64::NAN, |point| point.train_loss),
            hint: "a parameter is infinite or NaN; a lower `reward.lr` usually helps",
        });
    }
    let capped = validation.is_some() && best_step == most;
    Ok(TrainedReward { model, history, best_epoch, best_step, steps: step, capped })
}

/// The pairs of an epoch, of which a share has the rejected response of another pair.
fn across_prompts(pairs: &[PairRows], share: f64, seed: u64, epoch: u64) -> Vec<PairRows> {
    let mut out = pairs.to_vec();
    if share > 0.0 {
        let mut stream = Stream::new(seed, Purpose::Mixing, epoch);
        let count = u32::try_from(pairs.len()).expect("rows of pairs have 32 bits");
        for pair in &mut out {
            if f64::from(stream.uniform()) < share {
                pair[1] = pairs[stream.below(count) as usize][1];
            }
        }
    }
    out
}
