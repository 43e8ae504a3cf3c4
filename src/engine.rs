//! The crate's front door: a device, and the whole method on it.

use std::ops::Range;
use std::path::Path;

use crate::backend::device::{dispatch, dispatch_all};
use crate::backend::{
    AnyBackend, Backend, DeviceChoice, DeviceInfo, Precision, RewardData, RewardSide, VaeLoss,
};
use crate::data::{CandidateSet, EmbeddingSet, PairSet};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::eval::{Arm, ArmResult, BestOfN, Experiment, OrderPreservation, best_of_n, order_preservation};
use crate::matrix::{RowSet, Side};
use crate::model::{FoldedReward, RewardModel, Standardizer, Vae};
use crate::synth::{
    Augmented, PairBatch, Progress, Recipe, SynthJob, SynthSummary, Synthesizer, Verified, VerifyOptions,
    VerifyStep, verify_folder, write_synthetic,
};
use crate::train::{
    PairMetrics, RewardEpoch, RewardTraining, TrainedReward, TrainedVae, VaeTraining, Validation,
    pair_metrics, train_reward, train_vae,
};

/// Bytes of embeddings scored at a time.
const BLOCK: usize = 64 << 20;

/// Both sides of blocks as a backend's embeddings, and how many pairs they are.
macro_rules! load_sides {
    ($b:expr, $blocks:expr) => {
        (|| {
            Ok::<_, Error>((
                $b.embeddings($blocks[0].view())?,
                $b.embeddings($blocks[1].view())?,
                $blocks[0].view().rows(),
            ))
        })()
    };
}

/// An opened device with the whole method on it. With [`DeviceChoice::CudaAll`] it is every GPU of the machine:
/// [`Engine::write`] spreads its shards over them, everything else is done on the first.
#[derive(Debug)]
pub struct Engine {
    backend: AnyBackend,
}

impl Engine {
    /// Opens a device for F32; `threads` 0 means one per core.
    pub fn open(device: DeviceChoice, threads: usize) -> Result<Engine> {
        Engine::open_with(device, threads, Precision::F32)
    }

    /// The same with a choice of arithmetic.
    pub fn open_with(device: DeviceChoice, threads: usize, precision: Precision) -> Result<Engine> {
        Ok(Engine { backend: AnyBackend::open(device, threads, precision)? })
    }

    /// What the device is; of several, the first.
    pub fn info(&self) -> DeviceInfo {
        self.backend.info()
    }

    /// The name of the arithmetic that bits of results depend on, see [`Backend::arithmetic`].
    pub fn arithmetic(&self) -> &'static str {
        self.backend.arithmetic()
    }

    /// What each device is: one or more.
    pub fn devices(&self) -> Vec<DeviceInfo> {
        self.backend.infos()
    }

    /// Trains a VAE on preference pairs; `on_epoch` hears the epoch (from 1) and its loss.
    pub fn train_vae(
        &self,
        pairs: &PairSet,
        how: &VaeTraining,
        on_epoch: &mut dyn FnMut(usize, &VaeLoss),
    ) -> Result<TrainedVae> {
        let sides = whole(pairs)?;
        self.train_vae_rows(&[sides[0].view(), sides[1].view()], how, on_epoch)
            .and_then(|trained| unchanged(trained, [Some(pairs), None]))
    }

    /// The same on rows in memory, chosen and rejected.
    pub fn train_vae_rows(
        &self,
        rows: &[RowSet<'_>; 2],
        how: &VaeTraining,
        on_epoch: &mut dyn FnMut(usize, &VaeLoss),
    ) -> Result<TrainedVae> {
        dispatch!(&self.backend, b => train_vae(b, &rows[0], &rows[1], how, on_epoch))
    }

    /// Writes a recipe's pairs as shards, on every device; see [`write_synthetic`].
    pub fn write(
        &self,
        job: &SynthJob<'_>,
        seeds: &PairSet,
        vae: &Vae,
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<SynthSummary> {
        let r = job.recipe;
        dispatch_all!(&self.backend, all => {
            let maker = |b| {
                let make = Synthesizer::new(b, vae, seeds, (r.plan, r.perturbation), r.mode)?;
                match job.latents {
                    Some(latents) => make.with_latents(latents),
                    None => Ok(make),
                }
            };
            let makers = all.iter().map(maker).collect::<Result<Vec<_>>>()?;
            write_synthetic(job, &makers, progress)
        })
    }

    /// A recipe's pairs, `batch` at a time, without touching the disk.
    pub fn stream<'a>(
        &'a self,
        recipe: &Recipe,
        seeds: &'a PairSet,
        vae: &Vae,
        batch: usize,
        dtype: Dtype,
    ) -> Result<PairStream<'a>> {
        if batch == 0 {
            return Err(Error::option("batch", "1 or more", 0));
        }
        let setup = (recipe.plan, recipe.perturbation);
        let make: MakePairs<'a> = dispatch!(&self.backend, b => {
            let make = Synthesizer::new(b, vae, seeds, setup, recipe.mode)?;
            Box::new(move |pairs| make.batch(pairs, dtype))
        });
        Ok(PairStream { make, next: 0, pairs: recipe.plan.pairs(), batch: batch as u64 })
    }

    /// Pair `j` of a recipe alone: the same bits as in a shard.
    pub fn pair(
        &self,
        recipe: &Recipe,
        seeds: &PairSet,
        vae: &Vae,
        j: u64,
        dtype: Dtype,
    ) -> Result<PairBatch> {
        let setup = (recipe.plan, recipe.perturbation);
        dispatch!(&self.backend, b => Synthesizer::new(b, vae, seeds, setup, recipe.mode)?.pair(j, dtype))
    }

    /// Checks a folder that [`Engine::write`] made; see [`verify_folder`].
    pub fn verify(
        &self,
        folder: &Path,
        options: &VerifyOptions,
        progress: &mut dyn FnMut(VerifyStep),
    ) -> Result<Verified> {
        dispatch!(&self.backend, b => verify_folder(folder, b, options, progress))
    }

    /// Trains a reward model on pairs on disk, each pair as it stands. `standardize_on` is the number of leading
    /// pairs that embeddings are standardised with (None: all).
    pub fn train_reward(
        &self,
        pairs: &PairSet,
        standardize_on: Option<usize>,
        validation: Option<&PairSet>,
        how: &RewardTraining,
        on_epoch: &mut dyn FnMut(&RewardEpoch),
    ) -> Result<TrainedReward> {
        let blocks = whole(pairs)?;
        let sides = [blocks[0].view(), blocks[1].view()];
        let leading = standardize_on.unwrap_or(pairs.len()).min(pairs.len());
        let standardizer = Standardizer::fit(&[&sides[0].slice(0..leading), &sides[1].slice(0..leading)]);
        let held = validation.map(whole).transpose()?;
        let rows = u32::try_from(pairs.len()).map_err(|_| {
            Error::shape("pairs for reward training", format!("at most {}", u32::MAX), pairs.len())
        })?;
        dispatch!(&self.backend, b => {
            let (chosen, rejected) = (b.embeddings(sides[0].clone())?, b.embeddings(sides[1].clone())?);
            let data = RewardData {
                chosen: RewardSide { originals: &chosen, synthetic: None },
                rejected: RewardSide { originals: &rejected, synthetic: None },
            };
            let order = (0..rows).map(|i| [i, i]).collect();
            let held = held.as_ref().map(|h| load_sides!(b, h)).transpose()?;
            let held = held.as_ref().map(|(c, r, n)| Validation { chosen: c, rejected: r, pairs: *n });
            train_reward(b, &data, order, &standardizer, held, how, on_epoch)
        })
        .and_then(|trained| unchanged(trained, [Some(pairs), validation]))
    }

    /// Trains a reward model straight from a recipe: synthetic samples stay latents, nothing is written.
    pub fn train_reward_from_recipe(
        &self,
        recipe: &Recipe,
        seeds: &PairSet,
        vae: &Vae,
        validation: Option<&PairSet>,
        how: &RewardTraining,
        on_epoch: &mut dyn FnMut(&RewardEpoch),
    ) -> Result<TrainedReward> {
        let blocks = whole(seeds)?;
        let sides = [blocks[0].view(), blocks[1].view()];
        let standardizer = Standardizer::fit(&[&sides[0], &sides[1]]);
        let held = validation.map(whole).transpose()?;
        dispatch!(&self.backend, b => {
            let made = Augmented::new(b, vae, seeds, &recipe.plan, &recipe.perturbation, recipe.mode)?;
            let (chosen, rejected) = (b.embeddings(sides[0].clone())?, b.embeddings(sides[1].clone())?);
            let data = made.data(&chosen, &rejected);
            let held = held.as_ref().map(|h| load_sides!(b, h)).transpose()?;
            let held = held.as_ref().map(|(c, r, n)| Validation { chosen: c, rejected: r, pairs: *n });
            train_reward(b, &data, made.pairs.clone(), &standardizer, held, how, on_epoch)
        })
        .and_then(|trained| unchanged(trained, [Some(seeds), validation]))
    }

    /// Runs one arm of an experiment.
    pub fn experiment(
        &self,
        experiment: &Experiment<'_>,
        arm: Arm,
        on_epoch: &mut dyn FnMut(&RewardEpoch),
    ) -> Result<(ArmResult, RewardModel)> {
        dispatch!(&self.backend, b => experiment.run(b, arm, on_epoch))
    }

    /// Rewards of embeddings, handed to `sink` in order, a stretch at a time.
    pub fn score(
        &self,
        model: &RewardModel,
        embeddings: &EmbeddingSet,
        sink: &mut dyn FnMut(&[f32]) -> Result<()>,
    ) -> Result<()> {
        dispatch!(&self.backend, b => {
            let model = b.load_reward(model)?;
            for range in stretches(embeddings.len(), embeddings.dim()) {
                let mut rewards = vec![0f32; range.len()];
                let block = embeddings.rows(range)?;
                b.score(&model, &b.embeddings(block.view())?, &mut rewards)?;
                embeddings.require_unchanged()?;
                sink(&rewards)?;
            }
            Ok(())
        })
    }

    /// Accuracy and loss of a reward model on pairs.
    pub fn evaluate(&self, model: &RewardModel, pairs: &PairSet) -> Result<PairMetrics> {
        dispatch!(&self.backend, b => {
            let model = b.load_reward(model)?;
            let mut total = PairMetrics { pairs: 0, accuracy: 0.0, loss: 0.0 };
            for range in stretches(pairs.len(), pairs.dim()) {
                let n = range.len();
                let sides = (pairs.rows(Side::Chosen, range.clone())?, pairs.rows(Side::Rejected, range)?);
                let (c, r) = (b.embeddings(sides.0.view())?, b.embeddings(sides.1.view())?);
                let part = pair_metrics(b, &model, &c, &r, n)?;
                let weight = n as f64 / pairs.len() as f64;
                total.pairs += part.pairs;
                total.accuracy += weight * part.accuracy;
                total.loss += weight * part.loss;
            }
            unchanged(total, [Some(pairs), None])
        })
    }

    /// Best-of-N figures of a reward model.
    pub fn best_of_n(&self, model: &RewardModel, set: &CandidateSet) -> Result<BestOfN> {
        let mut rewards = Vec::with_capacity(set.gold().len());
        dispatch!(&self.backend, b => {
            let model = b.load_reward(model)?;
            for range in stretches(set.gold().len(), set.dim()) {
                let mut part = vec![0f32; range.len()];
                let block = set.rows(range)?;
                b.score(&model, &b.embeddings(block.view())?, &mut part)?;
                rewards.extend(part);
            }
            set.require_unchanged()
        })?;
        Ok(best_of_n(&rewards, set.gold(), set.per_prompt()))
    }

    /// How often `model` orders a recipe's synthetic pairs as their seeds.
    pub fn order_preservation(
        &self,
        recipe: &Recipe,
        seeds: &PairSet,
        vae: &Vae,
        model: &RewardModel,
    ) -> Result<OrderPreservation> {
        dispatch!(&self.backend, b => {
            let make = Synthesizer::new(b, vae, seeds, (recipe.plan, recipe.perturbation), recipe.mode)?;
            let folded = b.load_folded(&FoldedReward::new(vae, model)?)?;
            order_preservation(&make, &b.load_reward(model)?, &folded)
        })
    }
}

type MakePairs<'a> = Box<dyn Fn(Range<u64>) -> Result<PairBatch> + 'a>;

/// A recipe's pairs in order; made by [`Engine::stream`].
pub struct PairStream<'a> {
    make: MakePairs<'a>,
    next: u64,
    pairs: u64,
    batch: u64,
}

impl Iterator for PairStream<'_> {
    type Item = Result<PairBatch>;

    fn next(&mut self) -> Option<Result<PairBatch>> {
        if self.next >= self.pairs {
            return None;
        }
        let range = self.next..(self.next + self.batch).min(self.pairs);
        self.next = range.end;
        Some((self.make)(range))
    }
}

/// What came of pairs, unless their files changed meanwhile.
fn unchanged<T>(made: T, sets: [Option<&PairSet>; 2]) -> Result<T> {
    sets.into_iter().flatten().try_for_each(PairSet::require_unchanged)?;
    Ok(made)
}

/// Both sides of a set.
fn whole(pairs: &PairSet) -> Result<[crate::data::RowBlock<'_>; 2]> {
    Ok([pairs.rows(Side::Chosen, 0..pairs.len())?, pairs.rows(Side::Rejected, 0..pairs.len())?])
}

/// Ranges of rows of about [`BLOCK`] bytes in F32.
fn stretches(rows: usize, dim: usize) -> impl Iterator<Item = Range<usize>> {
    let step = (BLOCK / (4 * dim)).max(1);
    (0..rows).step_by(step).map(move |from| from..(from + step).min(rows))
}
