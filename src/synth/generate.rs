//! Making pairs. Each block of seeds goes through four operations of the backend:
//!
//! 1. encode: the posteriors of the originals;
//! 2. select: the numbers of each seed's most likely candidates;
//! 3. perturb: the latents of those candidates that the block's pairs use;
//! 4. decode these to embeddings, or score them without decoding.
//!
//! Where a block's pairs use all samples, a backend may do it all in one pass (`synthesize`).
//!
//! The rows of originals and samples then go out in the plan's order. Every row depends on its seed and its candidate
//! number alone, so that a pair has the same bits in any batch.

use std::ops::Range;
use std::path::Path;

use super::plan::{PairBlock, PairId, Plan, SampleList};
use super::seeds::{LoadedBlock, SeedReader};
use crate::backend::{
    Backend, DecodeMode, NoiseKey, PairRows, Perturbation, Residual, RewardData, RewardSide, Sample,
    Synthetic,
};
use crate::data::{LatentRows, LatentSet, PairSource};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::matrix::{Matrix, PAGE, RowsBuf, Side};
use crate::memory;
use crate::model::Vae;

/// Bytes of a batch, per side.
const BATCH_BYTES: usize = 8 << 20;

/// Consecutive pairs as embeddings, `[count, d]` per side.
#[derive(Debug)]
pub struct PairBatch {
    /// Number of the first pair.
    pub first: u64,
    /// Preferred responses.
    pub chosen: RowsBuf,
    /// The other responses.
    pub rejected: RowsBuf,
}

impl PairBatch {
    /// A batch of no pairs, of width `dim`.
    pub fn empty(dtype: Dtype, dim: usize) -> PairBatch {
        let none = || RowsBuf::zeros(dtype, 0, dim);
        PairBatch { first: 0, chosen: none(), rejected: none() }
    }

    fn sides(&mut self) -> [&mut RowsBuf; 2] {
        [&mut self.chosen, &mut self.rejected]
    }
}

/// Fails if a batch of so many pairs takes more memory than is free; small ones are not looked at.
pub(super) fn require_memory(pairs: usize, dim: usize, dtype: Dtype) -> Result<()> {
    const SMALL: u128 = 256 << 20;
    let bytes = 2 * pairs as u128 * dim as u128 * dtype.size() as u128;
    if bytes <= SMALL { Ok(()) } else { memory::require("pairs", pairs, bytes) }
}

/// Consecutive pairs as latents.
#[derive(Debug, Default)]
pub struct LatentBatch {
    /// Number of the first pair.
    pub first: u64,
    /// Row of the seed pair, `[count]`.
    pub seed: Vec<i64>,
    /// Latents of both sides, `[count, latent]`: z' of a synthetic sample, the posterior mean of an original.
    pub z: [Vec<f32>; 2],
    /// Candidate numbers of both sides, `[count]`; -1 for an original.
    pub candidate: [Vec<i32>; 2],
}

/// Lends the memory of batches and takes the filled ones, in order.
pub trait BatchSink<T> {
    /// A batch to fill; what it holds does not matter.
    fn take_empty(&mut self) -> Result<T>;
    /// Takes a batch that is filled.
    fn put(&mut self, batch: T) -> Result<()>;
}

/// One batch that is filled again and again and shown to a function.
struct ReusedBatch<'f, T> {
    batch: Option<T>,
    show: &'f mut dyn FnMut(&T) -> Result<()>,
}

impl<T> BatchSink<T> for ReusedBatch<'_, T> {
    fn take_empty(&mut self) -> Result<T> {
        Ok(self.batch.take().expect("one batch is asked for at a time"))
    }

    fn put(&mut self, batch: T) -> Result<()> {
        (self.show)(&batch)?;
        self.batch = Some(batch);
        Ok(())
    }
}

/// Makes pairs of one recipe on one device.
pub struct Synthesizer<'a, B: Backend> {
    backend: &'a B,
    vae: B::Vae,
    dim: usize,
    latent: usize,
    source: SeedReader<'a>,
    plan: Plan,
    perturbation: Perturbation,
    mode: DecodeMode,
}

/// Takes the number of a first pair and the rewards of both sides from there on.
pub type EachRewards<'a> = &'a mut dyn FnMut(u64, [&[f32]; 2]) -> Result<()>;

/// One side of a block of seeds as latents.
struct SideLatents {
    latents: Matrix,
    candidates: Vec<u32>,
    mu: Matrix,
}

impl<'a, B: Backend> Synthesizer<'a, B> {
    /// Prepares a device for a plan over `seeds`.
    pub fn new(
        backend: &'a B,
        vae: &Vae,
        seeds: &'a dyn PairSource,
        (plan, perturbation): (Plan, Perturbation),
        mode: DecodeMode,
    ) -> Result<Synthesizer<'a, B>> {
        Ok(Synthesizer {
            backend,
            dim: vae.size().dim,
            latent: vae.size().latent,
            vae: backend.load_vae(vae)?,
            source: SeedReader { seeds, stored: None },
            plan,
            perturbation,
            mode,
        })
    }

    /// Decodes latents that [`Synthesizer::latents`] made of the same recipe instead of making them again; the bytes of
    /// embeddings are the same. Fails unless there are as many as the plan has pairs, of the VAE's width.
    pub fn with_latents(mut self, stored: &'a LatentSet) -> Result<Synthesizer<'a, B>> {
        let expected = (self.plan.pairs(), self.latent);
        let found = (stored.len() as u64, stored.latent());
        if expected != found {
            let text = |(pairs, latent): (u64, usize)| format!("{pairs} pairs of {latent} values");
            return Err(Error::shape("latents of the run", text(expected), text(found)));
        }
        self.source.stored = Some(stored);
        Ok(self)
    }

    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Fails if a file is no longer the one that was opened.
    pub fn require_unchanged(&self) -> Result<()> {
        self.source.seeds.require_unchanged()?;
        self.source.stored.map_or(Ok(()), LatentSet::require_unchanged)
    }

    /// The files that pairs are made from, but the VAE.
    pub fn paths(&self) -> Vec<&'a Path> {
        self.source.seeds.paths()
    }

    /// The arithmetic of the device, on which the bytes that a recipe makes depend.
    pub fn arithmetic(&self) -> &'static str {
        self.backend.arithmetic()
    }

    /// Values of a latent.
    pub fn latent(&self) -> usize {
        self.latent
    }

    /// Values of an embedding.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Makes pairs `pairs` as embeddings of `dtype` and hands them to `sink` in order, a batch at a time.
    ///
    /// # Errors
    /// What reading or the device fails with, what `sink` fails with, and a value that `dtype` cannot hold.
    pub fn embeddings(
        &self,
        pairs: Range<u64>,
        dtype: Dtype,
        sink: &mut dyn FnMut(&PairBatch) -> Result<()>,
    ) -> Result<()> {
        let batch = Some(PairBatch::empty(dtype, self.dim));
        self.embeddings_into(pairs, dtype, &mut ReusedBatch { batch, show: sink })
    }

    /// The same into batches of the sink's, so that a batch may be written while the next one is filled.
    pub fn embeddings_into(
        &self,
        pairs: Range<u64>,
        dtype: Dtype,
        sink: &mut dyn BatchSink<PairBatch>,
    ) -> Result<()> {
        let row = self.dim * dtype.size();
        // Batches of whole pages, which the direct writer takes without a copy.
        let rows_of_pages = PAGE >> row.trailing_zeros().min(PAGE.trailing_zeros());
        let most = (BATCH_BYTES / row / rows_of_pages).max(1) * rows_of_pages;
        // The backend's memory for both sides of a block, used again for each block.
        let mut sides = Side::BOTH.map(|_| self.backend.rows(dtype, self.dim));
        self.source.for_each_block(self.plan, pairs, row, &mut |loaded| {
            let needed = self.needed(&loaded.block);
            for (side, to) in Side::BOTH.into_iter().zip(&mut sides) {
                if !needed[side as usize].ranks.is_empty() {
                    self.side_rows(side, &loaded, &needed[side as usize], dtype, to)?;
                }
            }
            for (first, ids) in loaded.block.chunks(most) {
                let mut batch = sink.take_empty()?;
                batch.first = first;
                for ((side, to), rows) in Side::BOTH.into_iter().zip(batch.sides()).zip(&sides) {
                    to.resize_rows(ids.len());
                    let needed = &needed[side as usize];
                    if needed.ranks.is_empty() {
                        originals(side, &loaded, ids, to)?;
                    } else {
                        self.backend.pick_rows(rows, &row_numbers(side, &loaded.block, ids, needed), to)?;
                    }
                }
                sink.put(batch)?;
            }
            Ok(())
        })
    }

    /// Makes pairs `pairs` as latents and hands them to `sink` in order, a batch at a time.
    pub fn latents(&self, pairs: Range<u64>, sink: &mut dyn FnMut(&LatentBatch) -> Result<()>) -> Result<()> {
        self.latents_into(pairs, &mut ReusedBatch { batch: Some(LatentBatch::default()), show: sink })
    }

    /// The same into batches of the sink's.
    pub fn latents_into(&self, pairs: Range<u64>, sink: &mut dyn BatchSink<LatentBatch>) -> Result<()> {
        let most = (BATCH_BYTES / (4 * self.latent)).max(1);
        self.source.for_each_block(self.plan, pairs, 4 * self.latent, &mut |loaded| {
            let block = &loaded.block;
            let needed = self.needed(block);
            let sides = [
                self.side_latents(Side::Chosen, &loaded, &needed[0])?,
                self.side_latents(Side::Rejected, &loaded, &needed[1])?,
            ];
            for (first, ids) in block.chunks(most) {
                let mut batch = sink.take_empty()?;
                batch.first = first;
                batch.seed.clear();
                batch.seed.extend(ids.iter().map(|id| id.seed as i64));
                for (side, samples) in Side::BOTH.into_iter().zip(&sides) {
                    let (z, candidate) = (&mut batch.z[side as usize], &mut batch.candidate[side as usize]);
                    z.clear();
                    candidate.clear();
                    for id in ids {
                        let row = block.row(id);
                        match id.sample(side) {
                            0 => {
                                z.extend_from_slice(samples.mu.row(row));
                                candidate.push(-1);
                            }
                            rank => {
                                let at = needed[side as usize].position(row, rank);
                                z.extend_from_slice(samples.latents.row(at));
                                candidate.push(samples.candidates[at] as i32);
                            }
                        }
                    }
                }
                sink.put(batch)?;
            }
            Ok(())
        })
    }

    /// Scores pairs `pairs` without decoding any sample, and hands their rewards to `sink` in order: the number of the
    /// first pair, and the rewards of both sides. `folded` is `reward` on the latents of this VAE.
    pub fn rewards(
        &self,
        pairs: Range<u64>,
        reward: &B::Reward,
        folded: &B::Folded,
        sink: EachRewards<'_>,
    ) -> Result<()> {
        self.source.for_each_block(self.plan, pairs, 4 * self.latent, &mut |loaded| {
            let block = &loaded.block;
            let needed = self.needed(block);
            let mut rewards = [Vec::new(), Vec::new()];
            for (side, out) in Side::BOTH.into_iter().zip(&mut rewards) {
                let needed = &needed[side as usize];
                let (originals, samples) = self.side_rewards(side, &loaded, needed, reward, folded)?;
                out.extend(block.ids.iter().map(|id| match id.sample(side) {
                    0 => originals[block.row(id)],
                    rank => samples[needed.position(block.row(id), rank)],
                }));
            }
            sink(block.first, [&rewards[0], &rewards[1]])
        })
    }

    /// Rewards of a block's originals and of the samples that it needs, on one side.
    fn side_rewards(
        &self,
        side: Side,
        loaded: &LoadedBlock<'_>,
        needed: &SampleList,
        reward: &B::Reward,
        folded: &B::Folded,
    ) -> Result<(Vec<f32>, Vec<f32>)> {
        let b = self.backend;
        let embeddings = b.embeddings(loaded.rows[side as usize].view())?;
        let mut originals = vec![0f32; loaded.block.seeds.len()];
        b.score(reward, &embeddings, &mut originals)?;
        let mut scores = vec![0f32; needed.ranks.len()];
        if !needed.ranks.is_empty() {
            let posteriors = b.encode(&self.vae, &embeddings)?;
            let key = self.noise_key(side, &loaded.block);
            let samples = self.samples(&posteriors, key, needed)?;
            let latents = b.perturb(&posteriors, key, &self.perturbation, &samples)?;
            let residual = (self.mode == DecodeMode::Residual)
                .then_some(Residual { embeddings: &embeddings, posteriors: &posteriors });
            b.score_latents(folded, &latents, residual, &mut scores)?;
        }
        Ok((originals, scores))
    }

    fn needed(&self, block: &PairBlock) -> [SampleList; 2] {
        Side::BOTH.map(|side| SampleList::of(block, side, self.plan.per_side))
    }

    fn noise_key(&self, side: Side, block: &PairBlock) -> NoiseKey {
        NoiseKey { seed: self.plan.seed, side, first_row: block.seeds.start as u64 }
    }

    /// The samples that a block needs: the candidates of its ranks.
    fn samples(&self, posteriors: &B::Posteriors, key: NoiseKey, needed: &SampleList) -> Result<Vec<Sample>> {
        let selection = self.backend.select(posteriors, key, &self.perturbation)?;
        let sample = |&(row, rank): &(u32, u32)| Sample {
            row,
            candidate: selection.candidates[row as usize * selection.top_k + rank as usize],
        };
        Ok(needed.ranks.iter().map(sample).collect())
    }

    /// Pairs `pairs` in one batch, held in memory, where there is enough of it.
    pub fn batch(&self, pairs: Range<u64>, dtype: Dtype) -> Result<PairBatch> {
        if pairs.is_empty() || pairs.end > self.plan.pairs() {
            let expected = format!("a range within 0..{}", self.plan.pairs());
            return Err(Error::shape("pair numbers", expected, format!("{pairs:?}")));
        }
        let count = (pairs.end - pairs.start) as usize;
        require_memory(count, self.dim, dtype)?;
        let mut made = PairBatch::empty(dtype, self.dim);
        made.first = pairs.start;
        made.sides().into_iter().for_each(|side| side.resize_rows(count));
        let first = pairs.start;
        let row = self.dim * dtype.size();
        self.embeddings(pairs, dtype, &mut |part| {
            let at = (part.first - first) as usize * row;
            for (to, from) in made.sides().into_iter().zip([&part.chosen, &part.rejected]) {
                to.bytes_mut()[at..at + from.bytes().len()].copy_from_slice(from.bytes());
            }
            Ok(())
        })?;
        self.require_unchanged()?;
        Ok(made)
    }

    /// Pair `j` alone, as embeddings of `dtype`: the same bits as in any batch.
    pub fn pair(&self, j: u64, dtype: Dtype) -> Result<PairBatch> {
        self.batch(j..j.saturating_add(1), dtype)
    }

    /// One side of a block as rows: its originals, and behind them its samples.
    fn side_rows(
        &self,
        side: Side,
        loaded: &LoadedBlock<'_>,
        needed: &SampleList,
        dtype: Dtype,
        to: &mut B::Rows,
    ) -> Result<()> {
        let b = self.backend;
        let (seeds, first) = (loaded.block.seeds.len(), loaded.block.seeds.start);
        let embeddings = b.embeddings(loaded.rows[side as usize].view())?;
        let key = self.noise_key(side, &loaded.block);
        let samples = match &loaded.stored {
            None if needed.is_whole() && self.perturbation.top_k == self.plan.per_side => {
                let how = (key, &self.perturbation, self.mode);
                b.synthesize(&self.vae, &embeddings, how, to)?.samples()
            }
            stored => {
                let encode = stored.is_none() || self.mode == DecodeMode::Residual;
                let posteriors = encode.then(|| b.encode(&self.vae, &embeddings)).transpose()?;
                let (samples, latents) = match (stored, &posteriors) {
                    (Some(stored), _) => {
                        let (samples, z) = stored_samples(side, &loaded.block, needed, stored, self.latent)?;
                        let rows: Vec<u32> = samples.iter().map(|s| s.row).collect();
                        (samples, b.load_latents(&z, &rows)?)
                    }
                    (None, posteriors) => {
                        let posteriors = posteriors.as_ref().expect("encoded where nothing is stored");
                        let samples = self.samples(posteriors, key, needed)?;
                        let latents = b.perturb(posteriors, key, &self.perturbation, &samples)?;
                        (samples, latents)
                    }
                };
                let residual = match (self.mode, &posteriors) {
                    (DecodeMode::Residual, Some(posteriors)) => {
                        Some(Residual { embeddings: &embeddings, posteriors })
                    }
                    _ => None,
                };
                b.store_rows(&embeddings, &Synthetic { vae: &self.vae, latents: &latents, residual }, to)?;
                samples
            }
        };
        match b.first_non_finite(to)? {
            None => Ok(()),
            Some((row, column)) if row < seeds => Err(unstorable_original(first + row, side, column, dtype)),
            Some((row, column)) => {
                let Sample { row, candidate } = samples[row - seeds];
                let (seed, side) = (first + row as usize, side.name());
                let what = format!("decoded embedding of seed {seed} ({side}, candidate {candidate})");
                Err(unstorable(what, column, dtype))
            }
        }
    }

    /// One side of a block as latents.
    fn side_latents(&self, side: Side, loaded: &LoadedBlock<'_>, needed: &SampleList) -> Result<SideLatents> {
        let b = self.backend;
        let embeddings = b.embeddings(loaded.rows[side as usize].view())?;
        let posteriors = b.encode(&self.vae, &embeddings)?;
        let mut out = SideLatents {
            latents: Matrix::zeros(0, self.latent),
            candidates: Vec::new(),
            mu: b.posteriors(&posteriors)?.mu,
        };
        if !needed.ranks.is_empty() {
            let key = self.noise_key(side, &loaded.block);
            let samples = self.samples(&posteriors, key, needed)?;
            out.candidates = samples.iter().map(|s| s.candidate).collect();
            out.latents = b.latents(&b.perturb(&posteriors, key, &self.perturbation, &samples)?)?;
        }
        Ok(out)
    }
}

/// The samples that a block needs and their z `[samples, latent]`, taken from the stored latents of its pairs. Fails if
/// these are not the pairs of the plan.
fn stored_samples(
    side: Side,
    block: &PairBlock,
    needed: &SampleList,
    stored: &LatentRows,
    latent: usize,
) -> Result<(Vec<Sample>, Matrix)> {
    let none = Sample { row: 0, candidate: 0 };
    let (mut samples, mut z) = (vec![none; needed.ranks.len()], Matrix::zeros(needed.ranks.len(), latent));
    for (i, id) in block.ids.iter().enumerate() {
        let (seed, candidate) = (stored.seed[i], stored.candidate[side as usize][i]);
        let original = id.sample(side) == 0;
        if seed != id.seed as i64 || (candidate < 0) != original {
            let what = format!("stored latents of pair {} ({})", block.first + i as u64, side.name());
            let kind = |original| if original { "the original" } else { "a sample" };
            let expected = format!("{} of seed {}", kind(original), id.seed);
            return Err(Error::shape(what, expected, format!("{} of seed {seed}", kind(candidate < 0))));
        }
        if !original {
            let at = needed.position(block.row(id), id.sample(side));
            samples[at] = Sample { row: block.row(id) as u32, candidate: candidate as u32 };
            z.row_mut(at).copy_from_slice(&stored.z[side as usize][i * latent..][..latent]);
        }
    }
    Ok((samples, z))
}

/// Fills a batch of originals alone: copies of seeds.
fn originals(side: Side, loaded: &LoadedBlock<'_>, ids: &[PairId], to: &mut RowsBuf) -> Result<()> {
    loaded.rows[side as usize].view().copy_rows(&|i| loaded.block.row(&ids[i]), to);
    match to.view().values().first_non_finite() {
        None => Ok(()),
        Some((at, _)) => {
            let seed = ids[at / to.cols()].seed as usize;
            Err(unstorable_original(seed, side, at % to.cols(), to.dtype()))
        }
    }
}

/// Numbers of the pairs' rows among the originals of a block and the samples behind them.
fn row_numbers(side: Side, block: &PairBlock, ids: &[PairId], needed: &SampleList) -> Vec<u32> {
    let number = |id: &PairId| match id.sample(side) {
        0 => block.row(id),
        rank => block.seeds.len() + needed.position(block.row(id), rank),
    };
    ids.iter().map(|id| number(id) as u32).collect()
}

fn unstorable_original(seed: usize, side: Side, column: usize, dtype: Dtype) -> Error {
    unstorable(format!("seed {seed} ({})", side.name()), column, dtype)
}

/// The error of a value that a storage type cannot hold.
pub(super) fn unstorable(what: String, column: usize, dtype: Dtype) -> Error {
    Error::shape(
        format!("{what}, column {column}"),
        format!("a finite value that {dtype} can hold"),
        "infinity or NaN; another dtype may hold it",
    )
}

/// The synthetic samples of a whole plan in a device's memory, for training straight from a recipe: k latents per seed
/// and side, and the pairs over them.
pub struct Augmented<B: Backend> {
    vae: B::Vae,
    posteriors: [B::Posteriors; 2],
    latents: [B::Latents; 2],
    mode: DecodeMode,
    /// The plan's pairs as rows of [`RewardSide`]: see [`Plan::rows`].
    pub pairs: Vec<PairRows>,
}

impl<B: Backend> Augmented<B> {
    /// Encodes, selects and perturbs all seeds of a plan.
    pub fn new(
        backend: &B,
        vae: &Vae,
        seeds: &dyn PairSource,
        plan: &Plan,
        perturbation: &Perturbation,
        mode: DecodeMode,
    ) -> Result<Augmented<B>> {
        let (n, k) = (plan.seeds, u64::from(plan.per_side));
        if n * (k + 1) > u64::from(u32::MAX) {
            return Err(Error::argument(
                "pairs_per_seed or per_side",
                format!("at most {} samples per side for training", u32::MAX),
                n * (k + 1),
            ));
        }
        let vae = backend.load_vae(vae)?;
        let make = |side: Side| -> Result<(B::Posteriors, B::Latents)> {
            let block = seeds.block(side, 0..seeds.pairs())?;
            let rows = block.view();
            let posteriors = backend.encode(&vae, &backend.embeddings(rows.clone())?)?;
            let key = NoiseKey { seed: plan.seed, side, first_row: 0 };
            let selection = backend.select(&posteriors, key, perturbation)?;
            let latents = backend.perturb(&posteriors, key, perturbation, &selection.samples())?;
            Ok((posteriors, latents))
        };
        let (chosen, rejected) = (make(Side::Chosen)?, make(Side::Rejected)?);
        Ok(Augmented {
            vae,
            posteriors: [chosen.0, rejected.0],
            latents: [chosen.1, rejected.1],
            mode,
            pairs: plan.rows(),
        })
    }

    /// The samples with the originals that they were made from, for [`crate::train::train_reward`].
    pub fn data<'r, 'e>(
        &'r self,
        chosen: &'r B::Embeddings<'e>,
        rejected: &'r B::Embeddings<'e>,
    ) -> RewardData<'r, 'e, B>
    where
        B: 'e,
    {
        let side = |side: usize, originals: &'r B::Embeddings<'e>| RewardSide {
            originals,
            synthetic: Some(Synthetic {
                vae: &self.vae,
                latents: &self.latents[side],
                residual: (self.mode == DecodeMode::Residual)
                    .then_some(Residual { embeddings: originals, posteriors: &self.posteriors[side] }),
            }),
        };
        RewardData { chosen: side(0, chosen), rejected: side(1, rejected) }
    }
}
