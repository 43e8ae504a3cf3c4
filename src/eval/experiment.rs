//! Reward models of different augmentations, compared on the same data.
//!
//! ```text
//! seeds -> augmented pairs (an Arm) -> reward model, stopped early on validation -> figures on test data
//! ```

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::arm::{Arm, Augmentation};
use super::baselines::{direct_perturbation, gaussian_sampling, mixup};
use super::best_of_n::{BestOfNCurve, best_of_n_curve};
use super::figures::{PairFigures, pair_figures};
use super::order::{ORDER_SIGMA2, OrderPoint, order_curve};
use super::rank::{RankCorrelation, rank_correlation};
use crate::backend::{Backend, DecodeMode, PairRows, Perturbation, RewardData, RewardSide};
use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::matrix::{Matrix, RowSet, Rows, Side};
use crate::model::{RewardModel, Standardizer, Vae};
use crate::synth::{Augmented, Plan, SynthesisOptions};
use crate::train::{
    RewardPoint, RewardTraining, TrainedReward, Updates, Validation, pair_margins, train_reward,
};

/// A best-of-N set in memory.
#[derive(Clone, Debug)]
pub struct Candidates<'a> {
    /// Embeddings, `[prompts * per_prompt, d]`.
    pub rows: RowSet<'a>,
    /// Gold scores, `[prompts * per_prompt]`.
    pub gold: &'a [f32],
    /// Candidates per prompt, N.
    pub per_prompt: usize,
}

/// Data and settings that all arms share.
pub struct Experiment<'a> {
    /// Seed pairs, chosen and rejected, `[n, d]` each.
    pub seeds: [RowSet<'a>; 2],
    /// Pairs for early stopping.
    pub validation: Option<[RowSet<'a>; 2]>,
    /// Held-out pairs.
    pub test: Option<[RowSet<'a>; 2]>,
    /// The prompt of each held-out pair, where pairs have some.
    pub test_groups: Option<Vec<i64>>,
    /// Held-out candidates.
    pub candidates: Option<Candidates<'a>>,
    /// The VAE of the LENS arms.
    pub vae: Option<&'a Vae>,
    /// The VAE of [`Augmentation::NoDivergence`].
    pub vae_without_divergence: Option<&'a Vae>,
    /// How samples are made; an arm replaces the mode by its own.
    pub synthesis: SynthesisOptions,
    /// How reward models are trained, but for what an arm adds.
    pub reward: RewardTraining,
    /// What arms add.
    pub additions: Additions,
    /// Models without input noise that were trained already, for the arms that start from them.
    pub trained: RefCell<BTreeMap<Arm, (TrainedReward, u64)>>,
}

/// What is added to the training of an arm that names it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Additions {
    /// Standard deviations of the input noise among which the validation loss chooses. 0 is always among them.
    pub noise: Vec<f64>,
    /// Share of the rejected responses that come from other prompts.
    pub across_prompts: f64,
    /// Heads of an ensemble.
    pub ensemble: usize,
    /// Width of the hidden layer of each of its heads: eight of 64 take twice the time of one of 256.
    pub ensemble_hidden: usize,
}

impl Default for Additions {
    fn default() -> Additions {
        Additions { noise: vec![0.3, 0.6, 1.0], across_prompts: 0.5, ensemble: 8, ensemble_hidden: 64 }
    }
}

impl Additions {
    /// Adds to the options what the arm names, but for the noise, whose scale is chosen.
    fn add_to(&self, arm: Arm, options: &mut RewardTraining) {
        if arm.across {
            options.across_prompts = self.across_prompts;
        }
        if arm.ensemble {
            (options.ensemble, options.hidden) = (self.ensemble, self.ensemble_hidden);
        }
    }
}

/// Figures of one arm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ArmResult {
    /// The arm.
    pub arm: Arm,
    /// Pairs per seed, m.
    #[serde(rename = "fold")]
    pub pairs_per_seed: u64,
    /// Training pairs.
    pub pairs: u64,
    /// Optimiser steps taken.
    pub steps: u64,
    /// The epoch that the model kept lies in.
    pub best_epoch: usize,
    /// Optimiser steps behind the model kept.
    pub best_step: u64,
    /// Whether the last evaluation that was allowed was the best.
    pub capped: bool,
    /// Standard deviation of the input noise; of an arm that chooses it, the choice.
    pub input_noise: f64,
    /// The learning curve.
    pub history: Vec<RewardPoint>,
    /// Figures on held-out pairs.
    pub test: Option<PairFigures>,
    /// Best-of-N on held-out candidates, N from 1 to all.
    pub best_of_n: Option<BestOfNCurve>,
    /// Rank correlation of rewards and gold scores of held-out candidates.
    pub rank: Option<RankCorrelation>,
    /// Of arms with latents: how many synthetic pairs the model orders as their seeds, by the scale of the noise.
    pub order: Vec<OrderPoint>,
    /// Seconds of synthesis and reward training.
    pub seconds: f64,
}

impl ArmResult {
    /// What the arm is, for tables.
    pub fn title(&self) -> String {
        self.arm.title(self.pairs_per_seed)
    }
}

impl<'a> Experiment<'a> {
    /// An experiment on these seeds; what else there is, is set afterwards.
    pub fn new(
        seeds: [RowSet<'a>; 2],
        synthesis: SynthesisOptions,
        reward: RewardTraining,
    ) -> Experiment<'a> {
        Experiment {
            seeds,
            validation: None,
            test: None,
            test_groups: None,
            candidates: None,
            vae: None,
            vae_without_divergence: None,
            synthesis,
            reward,
            additions: Additions::default(),
            trained: RefCell::default(),
        }
    }

    /// Trains a reward model on an arm and measures it, until `interrupt`, the backend's, is raised.
    pub fn run<B: Backend>(
        &self,
        backend: &B,
        arm: Arm,
        on_point: &mut dyn FnMut(&RewardPoint),
        interrupt: &Interrupt,
    ) -> Result<(ArmResult, RewardModel)> {
        let size = (self.seeds[0].rows(), self.seeds[0].cols());
        let settings = (&self.synthesis, &self.reward, &self.additions);
        check_arm(arm, settings, size, self.validation.is_some())?;
        let start = Instant::now();
        let (trained, pairs, input_noise) = self.trained(backend, arm, on_point)?;
        let seconds = start.elapsed().as_secs_f64();
        let reward = backend.load_reward(&trained.model)?;
        let test = match &self.test {
            Some([chosen, rejected]) => {
                let sides = (backend.embeddings(chosen.clone())?, backend.embeddings(rejected.clone())?);
                let margins = pair_margins(backend, &reward, &sides.0, &sides.1, chosen.rows())?;
                pair_figures(&margins, self.test_groups.as_deref(), interrupt)?
            }
            None => None,
        };
        let (mut best_of_n, mut rank) = (None, None);
        if let Some(c) = &self.candidates {
            let mut rewards = vec![0f32; c.rows.rows()];
            backend.score(&reward, &backend.embeddings(c.rows.clone())?, &mut rewards)?;
            best_of_n = Some(best_of_n_curve(&rewards, c.gold, c.per_prompt));
            rank = Some(rank_correlation(&rewards, c.gold, c.per_prompt));
        }
        let order = match (arm.augmentation.latent_mode(), self.vae_of(arm)) {
            (Some(mode), Some(vae)) => {
                let synthesis = SynthesisOptions { mode, ..self.synthesis };
                order_curve(backend, &self.seeds, vae, &trained.model, (&synthesis, &ORDER_SIGMA2))?
            }
            _ => Vec::new(),
        };
        let result = ArmResult {
            arm,
            pairs_per_seed: self.pairs_per_seed()?,
            pairs,
            steps: trained.steps,
            best_epoch: trained.best_epoch,
            best_step: trained.best_step,
            capped: trained.capped,
            input_noise,
            history: trained.history,
            test,
            best_of_n,
            rank,
            order,
            seconds,
        };
        Ok((result, trained.model))
    }

    /// The VAE whose latents an arm is trained on.
    fn vae_of(&self, arm: Arm) -> Option<&'a Vae> {
        match arm.augmentation {
            Augmentation::NoDivergence => self.vae_without_divergence,
            _ => self.vae,
        }
    }

    /// Pairs per seed, m.
    pub fn pairs_per_seed(&self) -> Result<u64> {
        Ok(self.synthesis.plan(self.seeds[0].rows())?.0.pairs_per_seed)
    }

    /// The arm's reward model, the number of pairs it was trained on, and its input noise.
    fn trained<B: Backend>(
        &self,
        backend: &B,
        arm: Arm,
        on_point: &mut dyn FnMut(&RewardPoint),
    ) -> Result<(TrainedReward, u64, f64)> {
        let silent = Arm { noise: false, ..arm };
        let known = self.trained.borrow().get(&silent).cloned();
        let first = match known {
            Some(known) => known,
            None => {
                let first = self.train(backend, silent, self.reward.objective.input_noise, on_point)?;
                self.trained.borrow_mut().insert(silent, first.clone());
                first
            }
        };
        let mut best = (first.0, first.1, self.reward.objective.input_noise);
        if !arm.noise {
            return Ok(best);
        }
        for &noise in self.additions.noise.iter().filter(|noise| **noise > 0.0) {
            let (trained, pairs) = self.train(backend, silent, noise, on_point)?;
            if lowest(&trained) < lowest(&best.0) {
                best = (trained, pairs, noise);
            }
        }
        Ok(best)
    }

    /// The options of an arm. All arms are evaluated every so many steps, by default after each pass over the seeds, and
    /// patience is the same number of epochs of m n pairs for all but [`Augmentation::None`].
    fn options(&self, arm: Arm, noise: f64) -> Result<RewardTraining> {
        let mut options = self.reward;
        let batch = options.objective.batch;
        let seeds = self.seeds[0].rows();
        options.objective.input_noise = noise;
        options.validate_every = options.validate_every.or(Some(seeds.div_ceil(batch.max(1))));
        self.additions.add_to(arm, &mut options);
        if arm.augmentation == Augmentation::Matched {
            let m = usize::try_from(self.pairs_per_seed()?).unwrap_or(usize::MAX);
            if let Updates::Epochs(epochs) = options.updates {
                options.updates = Updates::Steps(epochs.saturating_mul((seeds * m).div_ceil(batch.max(1))));
            }
            options.patience = options.patience.map(|epochs| epochs.saturating_mul(m));
        }
        Ok(options)
    }

    /// Trains an arm with a given input noise; gives the number of pairs beside the model.
    pub fn train<B: Backend>(
        &self,
        backend: &B,
        arm: Arm,
        noise: f64,
        on_point: &mut dyn FnMut(&RewardPoint),
    ) -> Result<(TrainedReward, u64)> {
        let n = self.seeds[0].rows();
        let options = self.options(arm, noise)?;
        let standardizer = Standardizer::fit(&[&self.seeds[0], &self.seeds[1]]);
        let fit = Fit { experiment: self, backend, standardizer: &standardizer, options: &options };
        let mode = arm.augmentation.latent_mode().unwrap_or_default();
        let (plan, perturbation) = SynthesisOptions { mode, ..self.synthesis }.plan(n)?;
        let k = plan.per_side as usize;
        let made = |make: &dyn Fn(Side, &RowSet<'_>) -> Matrix| {
            Side::BOTH.map(|side| make(side, &self.seeds[side as usize]))
        };
        match arm.augmentation {
            Augmentation::None | Augmentation::Matched => {
                fit.on(&self.seeds, (0..n as u32).map(|i| [i, i]).collect(), on_point)
            }
            Augmentation::Direct => {
                let sigma = perturbation.sigma();
                let made =
                    made(&|side, rows| direct_perturbation(rows, side, &standardizer, sigma, k, plan.seed));
                fit.with(&made, plan.rows(), on_point)
            }
            Augmentation::Gaussian => {
                let made = made(&|side, rows| gaussian_sampling(rows, side, k, plan.seed));
                fit.with(&made, plan.rows(), on_point)
            }
            Augmentation::Mixup => {
                let extra = plan.pairs_per_seed as usize - 1;
                let made = made(&|_, rows| mixup(rows, extra, plan.seed));
                let pairs = (0..plan.pairs() as u32).map(|i| [i, i]).collect();
                fit.with(&made, pairs, on_point)
            }
            Augmentation::Plain | Augmentation::Residual | Augmentation::NoDivergence => {
                fit.latent(self.vae_of(arm), &plan, &perturbation, mode, None, on_point)
            }
            Augmentation::Margin => {
                let (base, ..) = self.trained(backend, Augmentation::None.into(), &mut |_| ())?;
                let low = self.low_margins(backend, &base.model)?;
                let extra = plan.pairs_per_seed - 1;
                // Two seeds share 2 S synthetic pairs: three quarters for the one, the rest for the other.
                let many = (3 * extra).div_ceil(2);
                let few = 2 * extra - many;
                let (plan, perturbation) = by_margin(&self.synthesis, extra).plan(n)?;
                let keep = |seed: usize, rank: u64| rank < if low[seed] { many } else { few };
                fit.latent(self.vae, &plan, &perturbation, mode, Some(&keep), on_point)
            }
        }
    }

    /// Which seeds are of the half with the lower margins by `model`.
    fn low_margins<B: Backend>(&self, backend: &B, model: &RewardModel) -> Result<Vec<bool>> {
        let model = backend.load_reward(model)?;
        let n = self.seeds[0].rows();
        let mut rewards = [vec![0f32; n], vec![0f32; n]];
        for (rewards, side) in rewards.iter_mut().zip(&self.seeds) {
            backend.score(&model, &backend.embeddings(side.clone())?, rewards)?;
        }
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by(|&a, &b| {
            let margin = |i: usize| rewards[0][i] - rewards[1][i];
            margin(a).total_cmp(&margin(b)).then(a.cmp(&b))
        });
        let mut low = vec![false; n];
        order[..n / 2].iter().for_each(|&i| low[i] = true);
        Ok(low)
    }
}

/// The options of a plan from which [`Augmentation::Margin`] takes pairs, where seeds have `extra` synthetic pairs each.
fn by_margin(synthesis: &SynthesisOptions, extra: u64) -> SynthesisOptions {
    let pairs_per_seed = Some((3 * extra).div_ceil(2) + 1);
    SynthesisOptions { pairs_per_seed, per_side: None, mode: DecodeMode::Plain, ..*synthesis }
}

/// Fails on an arm that no model can be trained on, before anything is trained: `seeds` pairs of dimension `dim`.
///
/// # Errors
/// Sizes of a model or of a plan that there cannot be, and arms with noise where `validation` says that there are no
/// validation pairs.
pub fn check_arm(
    arm: Arm,
    (synthesis, reward, additions): (&SynthesisOptions, &RewardTraining, &Additions),
    (seeds, dim): (usize, usize),
    validation: bool,
) -> Result<()> {
    let mut reward = *reward;
    additions.add_to(arm, &mut reward);
    reward.size(dim)?;
    let (plan, _) = synthesis.plan(seeds)?;
    if arm.augmentation == Augmentation::Margin {
        by_margin(synthesis, plan.pairs_per_seed - 1).plan(seeds)?;
    }
    if arm.noise && !validation {
        let expected = "validation pairs, on which an arm with `noise` chooses its scale";
        return Err(Error::argument("arms", expected, arm));
    }
    Ok(())
}

/// The lowest validation loss of a training.
fn lowest(trained: &TrainedReward) -> f64 {
    let losses = trained.history.iter().filter_map(|point| Some(point.validation?.loss));
    losses.fold(f64::INFINITY, f64::min)
}

/// One training of an arm.
struct Fit<'a, 'e, B> {
    experiment: &'a Experiment<'e>,
    backend: &'a B,
    standardizer: &'a Standardizer,
    options: &'a RewardTraining,
}

impl<B: Backend> Fit<'_, '_, B> {
    /// On the seeds and their synthetic latents; of the synthetic pair number `rank` of seed `seed` those that `keep`
    /// keeps.
    fn latent(
        &self,
        vae: Option<&Vae>,
        plan: &Plan,
        perturbation: &Perturbation,
        mode: DecodeMode,
        keep: Option<&dyn Fn(usize, u64) -> bool>,
        on_point: &mut dyn FnMut(&RewardPoint),
    ) -> Result<(TrainedReward, u64)> {
        let seeds = &self.experiment.seeds;
        let vae = vae.expect("an experiment with LENS arms has their VAE");
        let made = Augmented::new(self.backend, vae, seeds, plan, perturbation, mode)?;
        let chosen = self.backend.embeddings(seeds[0].clone())?;
        let rejected = self.backend.embeddings(seeds[1].clone())?;
        let mut pairs = made.pairs.clone();
        if let Some(keep) = keep {
            // The originals come first, then the synthetic pairs seed by seed.
            let (n, extra) = (plan.seeds, plan.pairs_per_seed - 1);
            let mut j = 0;
            pairs.retain(|_| {
                j += 1;
                j <= n || keep(((j - 1 - n) / extra) as usize, (j - 1 - n) % extra)
            });
        }
        self.data(&made.data(&chosen, &rejected), pairs, on_point)
    }

    /// On the seeds followed by rows made of them.
    fn with(
        &self,
        made: &[Matrix; 2],
        pairs: Vec<PairRows>,
        on_point: &mut dyn FnMut(&RewardPoint),
    ) -> Result<(TrainedReward, u64)> {
        let join = |side: usize| -> Result<RowSet<'_>> {
            let mut parts = self.experiment.seeds[side].parts().to_vec();
            parts.push(Rows::from_f32(&made[side].values, made[side].cols)?);
            RowSet::new(parts)
        };
        self.on(&[join(0)?, join(1)?], pairs, on_point)
    }

    /// On embeddings.
    fn on(
        &self,
        sides: &[RowSet<'_>; 2],
        pairs: Vec<PairRows>,
        on_point: &mut dyn FnMut(&RewardPoint),
    ) -> Result<(TrainedReward, u64)> {
        let chosen = self.backend.embeddings(sides[0].clone())?;
        let rejected = self.backend.embeddings(sides[1].clone())?;
        let data = RewardData {
            chosen: RewardSide { originals: &chosen, synthetic: None },
            rejected: RewardSide { originals: &rejected, synthetic: None },
        };
        self.data(&data, pairs, on_point)
    }

    /// On data that is on the device already.
    fn data<'e>(
        &self,
        data: &RewardData<'_, 'e, B>,
        pairs: Vec<PairRows>,
        on_point: &mut dyn FnMut(&RewardPoint),
    ) -> Result<(TrainedReward, u64)>
    where
        B: 'e,
    {
        let (b, count) = (self.backend, pairs.len() as u64);
        let sides = match &self.experiment.validation {
            Some([chosen, rejected]) => {
                Some((b.embeddings(chosen.clone())?, b.embeddings(rejected.clone())?, chosen.rows()))
            }
            None => None,
        };
        let held =
            sides.as_ref().map(|(chosen, rejected, pairs)| Validation { chosen, rejected, pairs: *pairs });
        let trained = train_reward(b, data, pairs, self.standardizer, held, self.options, on_point)?;
        Ok((trained, count))
    }
}
