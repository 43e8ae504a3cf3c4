//! Reward models of different augmentations, compared on the same data.
//!
//! ```text
//! seeds -> augmented pairs (an Arm) -> reward model, stopped early on validation -> figures on test data
//! ```

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::baselines::{direct_perturbation, gaussian_sampling};
use super::best_of_n::{BestOfN, best_of_n};
use crate::backend::{Backend, DecodeMode, PairRows, RewardData, RewardSide};
use crate::error::Result;
use crate::matrix::{Matrix, RowSet, Rows, Side};
use crate::model::{RewardModel, Standardizer, Vae};
use crate::synth::{Augmented, Plan, SynthesisOptions};
use crate::train::{
    PairMetrics, RewardEpoch, RewardTraining, TrainedReward, Updates, Validation, pair_metrics, train_reward,
};

/// A way to augment the seed pairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Arm {
    /// The seed pairs alone, as many epochs as the others.
    None,
    /// The seed pairs alone, as many optimiser steps as an m-fold run.
    NoneMatched {
        /// Pairs per seed of that run, m.
        #[serde(rename = "fold")]
        pairs_per_seed: u64,
    },
    /// Noise on the embeddings themselves.
    DirectPerturbation {
        /// Pairs per seed, m.
        #[serde(rename = "fold")]
        pairs_per_seed: u64,
    },
    /// Samples of a Gaussian fitted per side.
    GaussianSampling {
        /// Pairs per seed, m.
        #[serde(rename = "fold")]
        pairs_per_seed: u64,
    },
    /// Latent synthesis.
    Lens {
        /// Pairs per seed, m.
        #[serde(rename = "fold")]
        pairs_per_seed: u64,
        /// Plain or residual decoding.
        mode: DecodeMode,
    },
}

impl std::fmt::Display for Arm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Arm::None => f.pad("no augmentation"),
            Arm::NoneMatched { pairs_per_seed } => {
                f.pad(&format!("no augmentation, updates of {pairs_per_seed}x"))
            }
            Arm::DirectPerturbation { pairs_per_seed } => {
                f.pad(&format!("direct perturbation {pairs_per_seed}x"))
            }
            Arm::GaussianSampling { pairs_per_seed } => {
                f.pad(&format!("Gaussian sampling {pairs_per_seed}x"))
            }
            Arm::Lens { pairs_per_seed, mode: DecodeMode::Plain } => {
                f.pad(&format!("LENS {pairs_per_seed}x"))
            }
            Arm::Lens { pairs_per_seed, mode: DecodeMode::Residual } => {
                f.pad(&format!("LENS {pairs_per_seed}x, residual"))
            }
        }
    }
}

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
    pub seeds: [RowSet<'a>; 2],
    /// Pairs for early stopping.
    pub validation: Option<[RowSet<'a>; 2]>,
    /// Held-out pairs.
    pub test: Option<[RowSet<'a>; 2]>,
    /// Held-out candidates.
    pub candidates: Option<Candidates<'a>>,
    /// The VAE of the LENS arms.
    pub vae: Option<&'a Vae>,
    /// How samples are made; an arm replaces the pairs per seed and the mode by its own.
    pub synthesis: SynthesisOptions,
    /// How reward models are trained.
    pub reward: RewardTraining,
}

/// Figures of one arm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ArmResult {
    pub arm: Arm,
    /// Training pairs.
    pub pairs: u64,
    /// Optimiser steps taken.
    pub steps: u64,
    /// The epoch kept.
    pub best_epoch: usize,
    /// Figures on held-out pairs.
    pub test: Option<PairMetrics>,
    /// Figures on held-out candidates.
    pub best_of_n: Option<BestOfN>,
    /// Seconds of synthesis and reward training.
    pub seconds: f64,
}

impl Experiment<'_> {
    /// Trains a reward model on an arm and measures it.
    pub fn run<B: Backend>(
        &self,
        backend: &B,
        arm: Arm,
        on_epoch: &mut dyn FnMut(&RewardEpoch),
    ) -> Result<(ArmResult, RewardModel)> {
        let start = Instant::now();
        let (trained, pairs) = self.train(backend, arm, on_epoch)?;
        let seconds = start.elapsed().as_secs_f64();
        let reward = backend.load_reward(&trained.model)?;
        let test = match &self.test {
            Some([chosen, rejected]) => {
                let sides = (backend.embeddings(chosen.clone())?, backend.embeddings(rejected.clone())?);
                Some(pair_metrics(backend, &reward, &sides.0, &sides.1, chosen.rows())?)
            }
            None => None,
        };
        let best_of_n = match &self.candidates {
            Some(c) => {
                let mut rewards = vec![0f32; c.rows.rows()];
                backend.score(&reward, &backend.embeddings(c.rows.clone())?, &mut rewards)?;
                Some(best_of_n(&rewards, c.gold, c.per_prompt))
            }
            None => None,
        };
        let result = ArmResult {
            arm,
            pairs,
            steps: trained.steps,
            best_epoch: trained.best_epoch,
            test,
            best_of_n,
            seconds,
        };
        Ok((result, trained.model))
    }

    /// The arm's reward model, and the number of pairs it was trained on.
    fn train<B: Backend>(
        &self,
        backend: &B,
        arm: Arm,
        on_epoch: &mut dyn FnMut(&RewardEpoch),
    ) -> Result<(TrainedReward, u64)> {
        let n = self.seeds[0].rows();
        let standardizer = Standardizer::fit(&[&self.seeds[0], &self.seeds[1]]);
        let seeds_only = || (0..n as u32).map(|i| [i, i]).collect::<Vec<PairRows>>();
        match arm {
            Arm::None => self.fit(backend, &self.seeds, seeds_only(), &standardizer, &self.reward, on_epoch),
            Arm::NoneMatched { pairs_per_seed } => {
                let steps = match self.reward.updates {
                    Updates::Epochs(e) => {
                        e.saturating_mul((n * pairs_per_seed as usize).div_ceil(self.reward.objective.batch))
                    }
                    Updates::Steps(steps) => steps,
                };
                let evaluate_every = self.reward.evaluate_every * pairs_per_seed as usize;
                let options =
                    RewardTraining { updates: Updates::Steps(steps), evaluate_every, ..self.reward };
                self.fit(backend, &self.seeds, seeds_only(), &standardizer, &options, on_epoch)
            }
            Arm::DirectPerturbation { pairs_per_seed } => {
                let (plan, p) = self.synthesis_of(pairs_per_seed, DecodeMode::Plain).plan(n)?;
                let k = plan.per_side as usize;
                let make = |side: Side| {
                    let rows = &self.seeds[side as usize];
                    direct_perturbation(rows, side, &standardizer, p.sigma(), k, plan.seed)
                };
                let made = [make(Side::Chosen), make(Side::Rejected)];
                self.fit_with(backend, &plan, &made, &standardizer, on_epoch)
            }
            Arm::GaussianSampling { pairs_per_seed } => {
                let (plan, _) = self.synthesis_of(pairs_per_seed, DecodeMode::Plain).plan(n)?;
                let make = |side: Side| {
                    gaussian_sampling(&self.seeds[side as usize], side, plan.per_side as usize, plan.seed)
                };
                let made = [make(Side::Chosen), make(Side::Rejected)];
                self.fit_with(backend, &plan, &made, &standardizer, on_epoch)
            }
            Arm::Lens { pairs_per_seed, mode } => {
                let vae = self.vae.expect("an experiment with LENS arms has a VAE");
                let (plan, perturbation) = self.synthesis_of(pairs_per_seed, mode).plan(n)?;
                let augmented = Augmented::new(backend, vae, &self.seeds, &plan, &perturbation, mode)?;
                let chosen = backend.embeddings(self.seeds[0].clone())?;
                let rejected = backend.embeddings(self.seeds[1].clone())?;
                let data = augmented.data(&chosen, &rejected);
                let pairs = augmented.pairs.clone();
                self.fit_data(backend, &data, pairs, &standardizer, &self.reward, on_epoch)
            }
        }
    }

    fn synthesis_of(&self, pairs_per_seed: u64, mode: DecodeMode) -> SynthesisOptions {
        SynthesisOptions { pairs_per_seed: Some(pairs_per_seed), mode, ..self.synthesis }
    }

    /// Trains on the seeds followed by samples of them, in the order in which `plan` numbers both.
    fn fit_with<B: Backend>(
        &self,
        backend: &B,
        plan: &Plan,
        made: &[Matrix; 2],
        standardizer: &Standardizer,
        on_epoch: &mut dyn FnMut(&RewardEpoch),
    ) -> Result<(TrainedReward, u64)> {
        let join = |side: usize| -> Result<RowSet<'_>> {
            let mut parts = self.seeds[side].parts().to_vec();
            parts.push(Rows::from_f32(&made[side].values, made[side].cols)?);
            RowSet::new(parts)
        };
        let sides = [join(0)?, join(1)?];
        let pairs = plan.rows();
        self.fit(backend, &sides, pairs, standardizer, &self.reward, on_epoch)
    }

    /// Trains on embeddings.
    fn fit<B: Backend>(
        &self,
        backend: &B,
        sides: &[RowSet<'_>; 2],
        pairs: Vec<PairRows>,
        standardizer: &Standardizer,
        options: &RewardTraining,
        on_epoch: &mut dyn FnMut(&RewardEpoch),
    ) -> Result<(TrainedReward, u64)> {
        let (chosen, rejected) =
            (backend.embeddings(sides[0].clone())?, backend.embeddings(sides[1].clone())?);
        let data = RewardData {
            chosen: RewardSide { originals: &chosen, synthetic: None },
            rejected: RewardSide { originals: &rejected, synthetic: None },
        };
        self.fit_data(backend, &data, pairs, standardizer, options, on_epoch)
    }

    /// Trains on data that is on the device already.
    fn fit_data<'e, B: Backend + 'e>(
        &self,
        backend: &'e B,
        data: &RewardData<'_, 'e, B>,
        pairs: Vec<PairRows>,
        standardizer: &Standardizer,
        options: &RewardTraining,
        on_epoch: &mut dyn FnMut(&RewardEpoch),
    ) -> Result<(TrainedReward, u64)> {
        let count = pairs.len() as u64;
        let trained = match &self.validation {
            Some([chosen, rejected]) => {
                let pairs_held = chosen.rows();
                let sides = (backend.embeddings(chosen.clone())?, backend.embeddings(rejected.clone())?);
                let held = Validation { chosen: &sides.0, rejected: &sides.1, pairs: pairs_held };
                train_reward(backend, data, pairs, standardizer, Some(held), options, on_epoch)?
            }
            None => train_reward(backend, data, pairs, standardizer, None, options, on_epoch)?,
        };
        Ok((trained, count))
    }
}
