//! The crate's front door: a device, and the whole method on it.
//!
//! Everything that takes embeddings takes them from files ([`PairSet`], [`EmbeddingSet`], [`CandidateSet`]) or from
//! memory ([`RowSet`]) through the same method. Files are read block by block and looked at again in the end: a result
//! that was made of a file which changed meanwhile is an error.
//!
//! [`PairSet`]: crate::PairSet
//! [`EmbeddingSet`]: crate::EmbeddingSet
//! [`CandidateSet`]: crate::CandidateSet
//! [`RowSet`]: crate::RowSet

mod arrays;
mod select;

use std::fmt;
use std::ops::Range;
use std::path::Path;

use crate::backend::device::{dispatch, dispatch_all};
use crate::backend::{
    AnyBackend, Backend, DeviceChoice, DeviceInfo, PosteriorsHost, Precision, RewardData, RewardSide, VaeLoss,
};
use crate::data::{PairSource, RowSource};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::eval::{
    Arm, ArmResult, BestOfNCurve, Experiment, LatentMap, ORDER_SIGMA2, OrderPoint, OrderPreservation,
    PairFigures, RankCorrelation, VaeHealth, best_of_n_curve, latent_map, order_curve, order_preservation,
    pair_figures, rank_correlation, vae_health,
};
use crate::interrupt::Interrupt;
use crate::matrix::{Matrix, RowSet, Side, ValuesMut};
use crate::model::{FoldedReward, RewardModel, Standardizer, Vae};
use crate::stream::{MakePairs, PairIndex, PairStream, TakePairs};
use crate::synth::{
    Augmented, PairBatch, PairLookup, Progress, SynthJob, SynthSummary, SynthesisOptions, Synthesizer,
    Verified, VerifyOptions, VerifyStep, verify_folder, write_synthetic,
};
use crate::train::{
    RewardPoint, RewardTraining, TrainedReward, TrainedVae, VaeTraining, Validation, pair_margins,
    require_finite, train_reward, train_vae,
};

/// Bytes of F32 embeddings scored at a time.
const BLOCK_BYTES: usize = 64 << 20;

/// Both sides of a [`PairSource`] as embeddings of backend `$b`.
macro_rules! load_sides {
    ($b:expr, $blocks:expr) => {
        (|| Ok::<_, Error>(($b.embeddings($blocks[0].view())?, $b.embeddings($blocks[1].view())?)))()
    };
}

/// How an [`Engine`] is opened; made by [`Engine::builder`].
#[derive(Clone, Copy, Debug, Default)]
#[must_use]
pub struct EngineBuilder {
    device: DeviceChoice,
    threads: usize,
    precision: Precision,
    sigbus_guard: bool,
}

impl EngineBuilder {
    /// The device; [`DeviceChoice::Auto`] by default.
    pub fn device(self, device: DeviceChoice) -> EngineBuilder {
        EngineBuilder { device, ..self }
    }

    /// Host threads; 0, the default, is one per core.
    pub fn threads(self, threads: usize) -> EngineBuilder {
        EngineBuilder { threads, ..self }
    }

    /// Arithmetic of products; [`Precision::F32`] by default.
    pub fn precision(self, precision: Precision) -> EngineBuilder {
        EngineBuilder { precision, ..self }
    }

    /// Whether to install a handler of the signal SIGBUS for the whole process, which stays for its lifetime.
    ///
    /// Files are memory-mapped. Where one is cut short, or its disk fails, while it is read, the system sends SIGBUS,
    /// which ends the process. With the handler the lost pages read as zeros, and whatever was made of them becomes an
    /// error. Signals that do not come from a map of this crate go to the handler that was there before. Off by default,
    /// since a library should not change its host's signals unasked; the `lensmith` program turns it on.
    pub fn sigbus_guard(self, sigbus_guard: bool) -> EngineBuilder {
        EngineBuilder { sigbus_guard, ..self }
    }

    /// Opens the device.
    ///
    /// # Errors
    /// [`Error::Device`] if the device cannot be used, [`Error::InvalidArgument`] for a number of threads out of range.
    pub fn build(self) -> Result<Engine> {
        if self.sigbus_guard {
            crate::data::install_sigbus_guard();
        }
        Ok(Engine { backend: AnyBackend::open(self.device, self.threads, self.precision)? })
    }
}

/// An opened device with the whole method on it. With [`DeviceChoice::CudaAll`] it is every GPU of the machine:
/// [`Engine::synthesize`] spreads its shards over them, everything else is done on the first.
pub struct Engine {
    backend: AnyBackend,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("devices", &self.devices()).finish()
    }
}

impl Engine {
    /// Chooses device, threads and precision.
    pub fn builder() -> EngineBuilder {
        EngineBuilder::default()
    }

    /// The flag that stops what this engine does, from another thread.
    pub fn interrupt(&self) -> Interrupt {
        self.backend.interrupt().clone()
    }

    /// Does work on a thread of this engine, where there are some: operations of the engine in it then need not change
    /// threads, which for many short ones takes longer than the work. It should not wait for other threads.
    pub fn install<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.backend.install(work)
    }

    /// What the device is; of several, the first.
    pub fn info(&self) -> DeviceInfo {
        self.backend.info()
    }

    /// The arithmetic that bits of results depend on: "f32", or one of "bf16", "bf16-dot" and "bf16-amx".
    pub fn arithmetic(&self) -> &'static str {
        self.backend.arithmetic()
    }

    /// What each device is: one or more.
    pub fn devices(&self) -> Vec<DeviceInfo> {
        self.backend.infos()
    }

    /// Trains a VAE on preference pairs (Tao et al. 2025, section 4). `on_epoch` is called with the epoch, from 1, and
    /// its mean loss.
    ///
    /// # Errors
    /// Fewer than two pairs, sizes that do not fit, a loss that is no longer finite, or a file that changed.
    pub fn train_vae(
        &self,
        pairs: &dyn PairSource,
        options: &VaeTraining,
        on_epoch: &mut dyn FnMut(usize, &VaeLoss),
    ) -> Result<TrainedVae> {
        let sides = both_sides(pairs)?;
        let [chosen, rejected] = [sides[0].view(), sides[1].view()];
        let trained = dispatch!(&self.backend, b => train_vae(b, &chosen, &rejected, options, on_epoch))?;
        pairs.require_unchanged()?;
        Ok(trained)
    }

    /// Whether a VAE that was trained on `seeds` with the losses `history` has learnt, and what `synthesis` makes of its
    /// latent space.
    ///
    /// # Errors
    /// Sizes that do not fit, options out of range, or a file that changed.
    pub fn vae_health(
        &self,
        vae: &Vae,
        seeds: &dyn PairSource,
        held_out: Option<&dyn PairSource>,
        synthesis: &SynthesisOptions,
        history: &[VaeLoss],
    ) -> Result<VaeHealth> {
        let (_, perturbation) = synthesis.plan(seeds.pairs())?;
        let (sides, others) = (both_sides(seeds)?, held_out.map(both_sides).transpose()?);
        let sides = sides.each_ref().map(|side| side.view());
        let others = others.as_ref().map(|sides| sides.each_ref().map(|side| side.view()));
        let sample = (&perturbation, synthesis.seed);
        let health =
            dispatch!(&self.backend, b => vae_health(b, vae, &sides, others.as_ref(), sample, history))?;
        require_unchanged(seeds, held_out)?;
        Ok(health)
    }

    /// Latents of seeds and of samples of them in the plane of their largest variance.
    pub(crate) fn latent_map(
        &self,
        vae: &Vae,
        seeds: &[RowSet<'_>; 2],
        synthesis: &SynthesisOptions,
    ) -> Result<LatentMap> {
        let (_, perturbation) = synthesis.plan(seeds.pairs())?;
        dispatch!(&self.backend, b => latent_map(b, vae, seeds, (&perturbation, synthesis.seed)))
    }

    /// Order preservation by `model` at several scales of the noise.
    pub(crate) fn order_curve(
        &self,
        vae: &Vae,
        seeds: &[RowSet<'_>; 2],
        synthesis: &SynthesisOptions,
        model: &RewardModel,
    ) -> Result<Vec<OrderPoint>> {
        dispatch!(&self.backend, b => order_curve(b, seeds, vae, model, (synthesis, &ORDER_SIGMA2)))
    }

    /// Writes a recipe's pairs as shards into a folder, on every device. A run that was killed goes on where it
    /// stopped, to the same bytes. `on_progress` is called after every shard.
    ///
    /// # Errors
    /// A folder that holds the output of other settings, a disk that is full, or a file that changed.
    pub fn synthesize(
        &self,
        job: &SynthJob<'_>,
        seeds: &dyn PairSource,
        vae: &Vae,
        on_progress: &mut dyn FnMut(&Progress),
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
            write_synthetic(job, &makers, on_progress)
        })
    }

    /// Synthetic pairs in the order of the plan, `batch` at a time, without touching the disk: the originals first, then
    /// the synthetic pairs seed by seed. The same bits as [`Engine::synthesize`] writes.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a batch of 0 or options out of range, [`Error::Shape`] where the VAE does not fit.
    pub fn stream<'a>(
        &'a self,
        options: &SynthesisOptions,
        seeds: &'a dyn PairSource,
        vae: &Vae,
        batch: usize,
        dtype: Dtype,
    ) -> Result<PairStream<'a>> {
        if batch == 0 {
            return Err(Error::argument("batch", "1 or more", 0));
        }
        let setup = options.plan(seeds.pairs())?;
        let make: MakePairs<'a> = dispatch!(&self.backend, b => {
            let make = Synthesizer::new(b, vae, seeds, setup, options.mode)?;
            Box::new(move |pairs| make.batch(pairs, dtype))
        });
        Ok(PairStream::new(make, setup.0.pairs(), batch as u64))
    }

    /// Pair `j` alone: the same bits as in a stream or a shard.
    ///
    /// # Errors
    /// As [`Engine::stream`]; a `j` beyond the plan's pairs.
    pub fn pair(
        &self,
        options: &SynthesisOptions,
        seeds: &dyn PairSource,
        vae: &Vae,
        j: u64,
        dtype: Dtype,
    ) -> Result<PairBatch> {
        let setup = options.plan(seeds.pairs())?;
        dispatch!(&self.backend, b => Synthesizer::new(b, vae, seeds, setup, options.mode)?.pair(j, dtype))
    }

    /// Pairs in any order: what the pairs of a seed share is made for all seeds first and kept, some hundred bytes a seed.
    /// Each pair has the bits that it has in a stream. Where files are mapped, all their rows stay reachable.
    ///
    /// # Errors
    /// As [`Engine::stream`].
    pub fn index<'a>(
        &'a self,
        options: &SynthesisOptions,
        seeds: &'a dyn PairSource,
        vae: &Vae,
    ) -> Result<PairIndex<'a>> {
        let pairs = options.plan(seeds.pairs())?.0.pairs();
        let take: Box<dyn TakePairs + 'a> =
            dispatch!(&self.backend, b => Box::new(PairLookup::new(b, vae, seeds, options)?));
        Ok(PairIndex::new(take, pairs))
    }

    /// Posteriors of embeddings, `[n, latent]` each: equation 1 of the paper.
    ///
    /// # Errors
    /// [`Error::Shape`] where the VAE does not fit, or a file that changed.
    pub fn encode(&self, vae: &Vae, embeddings: &dyn RowSource) -> Result<PosteriorsHost> {
        let posteriors = dispatch!(&self.backend, b => {
            let block = embeddings.block(0..embeddings.rows())?;
            b.posteriors(&b.encode(&b.load_vae(vae)?, &b.embeddings(block.view())?)?)
        })?;
        embeddings.require_unchanged()?;
        Ok(posteriors)
    }

    /// Decodes latents `[n, latent]` to embeddings `[n, d]`.
    ///
    /// # Errors
    /// [`Error::Shape`] where the latents do not fit the VAE.
    pub fn decode(&self, vae: &Vae, latents: &Matrix) -> Result<Matrix> {
        let size = vae.size();
        if latents.cols != size.latent {
            return Err(Error::shape("columns of the latents", size.latent, latents.cols));
        }
        let mut out = Matrix::zeros(latents.rows, size.dim);
        dispatch!(&self.backend, b => {
            let z = b.load_latents(latents, &vec![0; latents.rows])?;
            b.decode(&b.load_vae(vae)?, &z, None, ValuesMut::F32(&mut out.values))
        })?;
        Ok(out)
    }

    /// Checks a folder that [`Engine::synthesize`] wrote: every byte against its checksum, and some pairs (or all)
    /// against what the recipe makes of the seeds.
    ///
    /// # Errors
    /// The first difference found, with its file and row.
    pub fn verify(
        &self,
        folder: &Path,
        options: &VerifyOptions,
        on_step: &mut dyn FnMut(VerifyStep),
    ) -> Result<Verified> {
        dispatch!(&self.backend, b => verify_folder(folder, b, options, on_step))
    }

    /// Trains a reward model on pairs as they stand. Embeddings are standardised by the mean and deviation of the
    /// first `standardize_on` pairs (None: all of them); in a folder of synthetic pairs those are the originals.
    ///
    /// # Errors
    /// No pairs, sizes that do not fit, a loss that is no longer finite, or a file that changed.
    pub fn train_reward(
        &self,
        pairs: &dyn PairSource,
        standardize_on: Option<usize>,
        validation: Option<&dyn PairSource>,
        options: &RewardTraining,
        on_epoch: &mut dyn FnMut(&RewardPoint),
    ) -> Result<TrainedReward> {
        let blocks = both_sides(pairs)?;
        let sides = [blocks[0].view(), blocks[1].view()];
        let leading = standardize_on.unwrap_or(pairs.pairs()).min(pairs.pairs());
        let standardizer = Standardizer::fit(&[&sides[0].slice(0..leading), &sides[1].slice(0..leading)]);
        let held_out = validation.map(both_sides).transpose()?;
        let rows = u32::try_from(pairs.pairs()).map_err(|_| {
            Error::shape("pairs for reward training", format!("at most {}", u32::MAX), pairs.pairs())
        })?;
        let trained = dispatch!(&self.backend, b => {
            let (chosen, rejected) = (b.embeddings(sides[0].clone())?, b.embeddings(sides[1].clone())?);
            let data = RewardData {
                chosen: RewardSide { originals: &chosen, synthetic: None },
                rejected: RewardSide { originals: &rejected, synthetic: None },
            };
            let order = (0..rows).map(|i| [i, i]).collect();
            let held_out = held_out.as_ref().map(|h| load_sides!(b, h)).transpose()?;
            let held_out = held_out.as_ref().zip(validation);
            let held_out =
                held_out.map(|((c, r), v)| Validation { chosen: c, rejected: r, pairs: v.pairs() });
            train_reward(b, &data, order, &standardizer, held_out, options, on_epoch)
        })?;
        require_unchanged(pairs, validation)?;
        Ok(trained)
    }

    /// Trains a reward model on seed pairs and their synthetic pairs, which stay latents: nothing is written, and with
    /// [`SyntheticPath::Folded`](crate::SyntheticPath::Folded) nothing is decoded.
    ///
    /// # Errors
    /// As [`Engine::train_reward`] and [`Engine::stream`].
    pub fn train_reward_on_synthetic(
        &self,
        synthesis: &SynthesisOptions,
        seeds: &dyn PairSource,
        vae: &Vae,
        validation: Option<&dyn PairSource>,
        options: &RewardTraining,
        on_epoch: &mut dyn FnMut(&RewardPoint),
    ) -> Result<TrainedReward> {
        let (plan, perturbation) = synthesis.plan(seeds.pairs())?;
        let blocks = both_sides(seeds)?;
        let sides = [blocks[0].view(), blocks[1].view()];
        let standardizer = Standardizer::fit(&[&sides[0], &sides[1]]);
        let held_out = validation.map(both_sides).transpose()?;
        let trained = dispatch!(&self.backend, b => {
            let made = Augmented::new(b, vae, seeds, &plan, &perturbation, synthesis.mode)?;
            let (chosen, rejected) = (b.embeddings(sides[0].clone())?, b.embeddings(sides[1].clone())?);
            let data = made.data(&chosen, &rejected);
            let held_out = held_out.as_ref().map(|h| load_sides!(b, h)).transpose()?;
            let held_out = held_out.as_ref().zip(validation);
            let held_out =
                held_out.map(|((c, r), v)| Validation { chosen: c, rejected: r, pairs: v.pairs() });
            train_reward(b, &data, made.pairs.clone(), &standardizer, held_out, options, on_epoch)
        })?;
        require_unchanged(seeds, validation)?;
        Ok(trained)
    }

    /// Trains the reward model of one arm of an experiment and measures it.
    ///
    /// # Errors
    /// As [`Engine::train_reward`] and [`Engine::stream`]; an arm that the experiment lacks data for.
    pub fn experiment(
        &self,
        experiment: &Experiment<'_>,
        arm: Arm,
        on_epoch: &mut dyn FnMut(&RewardPoint),
    ) -> Result<(ArmResult, RewardModel)> {
        let interrupt = self.interrupt();
        dispatch!(&self.backend, b => experiment.run(b, arm, on_epoch, &interrupt))
    }

    /// Rewards of embeddings in order, handed to `sink` a block at a time.
    ///
    /// # Errors
    /// [`Error::Shape`] where the model does not fit, a file that changed, or what `sink` returns.
    pub fn score(
        &self,
        model: &RewardModel,
        embeddings: &dyn RowSource,
        sink: &mut dyn FnMut(&[f32]) -> Result<()>,
    ) -> Result<()> {
        dispatch!(&self.backend, b => {
            let model = b.load_reward(model)?;
            for range in blocks(embeddings.rows(), embeddings.dim()) {
                let (first, mut rewards) = (range.start, vec![0f32; range.len()]);
                let block = embeddings.block(range)?;
                b.score(&model, &b.embeddings(block.view())?, &mut rewards)?;
                embeddings.require_unchanged()?;
                require_finite(&rewards, first, "reward of row")?;
                sink(&rewards)?;
            }
            Ok(())
        })
    }

    /// Accuracy, loss, calibration and margins of a reward model on pairs, with bootstrap intervals over pairs, or over
    /// the prompts that `groups` names, one a pair.
    ///
    /// # Errors
    /// [`Error::Shape`] where the model does not fit, [`Error::TooFew`] without pairs, or a file that changed.
    pub fn evaluate(
        &self,
        model: &RewardModel,
        pairs: &dyn PairSource,
        groups: Option<&[i64]>,
    ) -> Result<PairFigures> {
        if let Some(groups) = groups.filter(|groups| groups.len() != pairs.pairs()) {
            return Err(Error::shape("groups of pairs", pairs.pairs(), groups.len()));
        }
        let mut margins = Vec::with_capacity(pairs.pairs());
        dispatch!(&self.backend, b => {
            let model = b.load_reward(model)?;
            for range in blocks(pairs.pairs(), pairs.dim()) {
                let n = range.len();
                let sides =
                    [pairs.block(Side::Chosen, range.clone())?, pairs.block(Side::Rejected, range)?];
                let (c, r) = load_sides!(b, sides)?;
                margins.extend(pair_margins(b, &model, &c, &r, n)?);
            }
            Ok::<_, Error>(())
        })?;
        pairs.require_unchanged()?;
        let too_few = Error::TooFew { what: "pairs to evaluate on".into(), needed: 1, found: 0 };
        pair_figures(&margins, groups, &self.interrupt())?.ok_or(too_few)
    }

    /// How good the best of N candidates by a reward model is by `gold`, the gold scores, for every N, and how far both
    /// rank candidates alike: row p M + i of `candidates` is candidate i of prompt p, of `per_prompt` = M.
    ///
    /// # Errors
    /// [`Error::Shape`] where sizes do not fit, or a file that changed.
    pub fn best_of_n(
        &self,
        model: &RewardModel,
        candidates: &dyn RowSource,
        gold: &[f32],
        per_prompt: usize,
    ) -> Result<(BestOfNCurve, RankCorrelation)> {
        if gold.len() != candidates.rows() || per_prompt == 0 || !gold.len().is_multiple_of(per_prompt) {
            let expected = format!("{}, a multiple of {per_prompt} candidates a prompt", candidates.rows());
            return Err(Error::shape("gold scores", expected, gold.len()));
        }
        let mut rewards = Vec::with_capacity(gold.len());
        self.score(model, candidates, &mut |part| {
            rewards.extend_from_slice(part);
            Ok(())
        })?;
        let curve = best_of_n_curve(&rewards, gold, per_prompt);
        Ok((curve, rank_correlation(&rewards, gold, per_prompt)))
    }

    /// Rewards as [`Engine::score`] gives them, and how far the heads of an ensemble disagree: the standard deviation of
    /// their rewards, 0 for a model of one head. `sink` gets both in order, a block at a time.
    ///
    /// # Errors
    /// As [`Engine::score`].
    pub fn score_with_spread(
        &self,
        model: &RewardModel,
        embeddings: &dyn RowSource,
        sink: &mut SpreadSink<'_>,
    ) -> Result<()> {
        let heads = model.size().heads;
        dispatch!(&self.backend, b => {
            let models = (0..heads).map(|k| b.load_reward(&model.head(k))).collect::<Result<Vec<_>>>()?;
            let mean = b.load_reward(model)?;
            for range in blocks(embeddings.rows(), embeddings.dim()) {
                let first = range.start;
                let (mut rewards, mut sums) = (vec![0f32; range.len()], vec![[0f64; 2]; range.len()]);
                let block = embeddings.block(range)?;
                let rows = b.embeddings(block.view())?;
                for (k, model) in models.iter().enumerate() {
                    b.score(model, &rows, &mut rewards)?;
                    require_finite(&rewards, first, "reward of row")?;
                    // Welford's update of mean and sum of squares.
                    for ([mean, squares], &reward) in sums.iter_mut().zip(&rewards) {
                        let off = f64::from(reward) - *mean;
                        *mean += off / (k + 1) as f64;
                        *squares += off * (f64::from(reward) - *mean);
                    }
                }
                b.score(&mean, &rows, &mut rewards)?;
                embeddings.require_unchanged()?;
                require_finite(&rewards, first, "reward of row")?;
                let spread: Vec<f32> =
                    sums.iter().map(|[_, squares]| (squares / heads as f64).sqrt() as f32).collect();
                sink(&rewards, &spread)?;
            }
            Ok(())
        })
    }

    /// How often `model` orders synthetic pairs as their seeds (Theorem 1 of the paper).
    ///
    /// # Errors
    /// As [`Engine::stream`].
    pub fn order_preservation(
        &self,
        options: &SynthesisOptions,
        seeds: &dyn PairSource,
        vae: &Vae,
        model: &RewardModel,
    ) -> Result<OrderPreservation> {
        let setup = options.plan(seeds.pairs())?;
        dispatch!(&self.backend, b => {
            let make = Synthesizer::new(b, vae, seeds, setup, options.mode)?;
            let folded = b.load_folded(&FoldedReward::new(vae, model)?)?;
            order_preservation(&make, &b.load_reward(model)?, &folded)
        })
    }
}

/// Takes rewards and their spread, a block of rows at a time.
pub type SpreadSink<'a> = dyn FnMut(&[f32], &[f32]) -> Result<()> + 'a;

/// Fails if files of pairs or of validation pairs changed since they were opened.
fn require_unchanged(pairs: &dyn PairSource, validation: Option<&dyn PairSource>) -> Result<()> {
    pairs.require_unchanged()?;
    validation.map_or(Ok(()), |v| v.require_unchanged())
}

/// All chosen and all rejected rows.
fn both_sides(pairs: &dyn PairSource) -> Result<[crate::data::Block<'_>; 2]> {
    let all = 0..pairs.pairs();
    Ok([pairs.block(Side::Chosen, all.clone())?, pairs.block(Side::Rejected, all)?])
}

/// Ranges of rows of about [`BLOCK_BYTES`].
fn blocks(rows: usize, dim: usize) -> impl Iterator<Item = Range<usize>> {
    let step = (BLOCK_BYTES / (4 * dim)).max(1);
    (0..rows).step_by(step).map(move |from| from..(from + step).min(rows))
}
