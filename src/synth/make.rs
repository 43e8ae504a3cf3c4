//! Making pairs: blocks of seeds through encode, select, perturb and decode, and out in the plan's order.

use std::ops::Range;

use super::{PairId, Plan, Seeds};
use crate::backend::{Backend, DecodeMode, Origin, Perturbation, Residual, Sample};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::matrix::{Matrix, RowsBuf, Side, Values};
use crate::model::Vae;

/// Bytes of decoded samples held at a time, per side.
const DECODED: usize = 16 << 20;
/// Bytes of pairs handed out at a time, per side.
const HANDED: usize = 16 << 20;
/// Most seeds encoded at a time.
const MAX_SEEDS: usize = 1024;
/// Pairs listed at a time, but for those of one seed, which may be 2^16.
const MAX_PAIRS: usize = 1 << 18;

/// A stretch of pairs as embeddings, `[count, d]` per side.
#[derive(Debug)]
pub struct PairBatch {
    /// Number of the first pair.
    pub first: u64,
    /// Preferred responses.
    pub chosen: RowsBuf,
    /// The others.
    pub rejected: RowsBuf,
}

/// A stretch of pairs as latents.
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

/// Makes pairs of one recipe on one device.
pub struct Synthesizer<'a, B: Backend> {
    backend: &'a B,
    vae: B::Vae,
    dim: usize,
    latent: usize,
    seeds: &'a dyn Seeds,
    plan: Plan,
    perturbation: Perturbation,
    mode: DecodeMode,
}

/// Hears a range of seeds, their pairs, and the number of the first seed.
type EachBlock<'a> = &'a mut dyn FnMut(Range<usize>, &Ids, u64) -> Result<()>;

/// Hears the number of a first pair and the rewards of both sides from there on.
pub type EachRewards<'a> = &'a mut dyn FnMut(u64, [&[f32]; 2]) -> Result<()>;

/// The samples that the pairs of a block of seeds need.
struct Needed {
    /// Samples as (row in block, rank - 1), by row and rank.
    ranks: Vec<(u32, u32)>,
    /// Where sample (row, rank) stands in `ranks`: `index[row * per_side + rank - 1]`.
    index: Vec<u32>,
}

/// One side of a block of seeds, ready to be copied into pairs.
struct SideSamples {
    latents: Matrix,
    candidates: Vec<u32>,
    mu: Matrix,
    decoded: Option<RowsBuf>,
    originals: Option<RowsBuf>,
}

impl<'a, B: Backend> Synthesizer<'a, B> {
    /// Prepares a device for a plan over `seeds`.
    pub fn new(
        backend: &'a B,
        vae: &Vae,
        seeds: &'a dyn Seeds,
        (plan, perturbation): (Plan, Perturbation),
        mode: DecodeMode,
    ) -> Result<Synthesizer<'a, B>> {
        Ok(Synthesizer {
            backend,
            dim: vae.size().dim,
            latent: vae.size().latent,
            vae: backend.load_vae(vae)?,
            seeds,
            plan,
            perturbation,
            mode,
        })
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Dimension of the latents.
    pub fn latent(&self) -> usize {
        self.latent
    }

    /// Dimension of the embeddings.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Makes pairs `pairs` as embeddings of `dtype` and hands them to `sink` in order, a batch at a time.
    ///
    /// # Errors
    /// What reading or the device fails with, what `sink` answers, and a value that `dtype` cannot hold.
    pub fn embeddings(
        &self,
        pairs: Range<u64>,
        dtype: Dtype,
        sink: &mut dyn FnMut(&PairBatch) -> Result<()>,
    ) -> Result<()> {
        let row = self.dim * dtype.size();
        let most = (HANDED / row).max(1) as u64;
        let rows = |n| RowsBuf::zeros(dtype, n, self.dim);
        let mut batch = PairBatch { first: 0, chosen: rows(0), rejected: rows(0) };
        self.blocks(pairs, row, &mut |range, ids, block_start| {
            let needed = self.needed(ids, block_start, range.len());
            let sides = [
                self.side(Side::Chosen, range.clone(), &needed, Some(dtype))?,
                self.side(Side::Rejected, range, &needed, Some(dtype))?,
            ];
            for (first, stretch) in ids.chunk_by_first(most) {
                batch.first = first;
                for (side, buffer, samples) in
                    [(0, &mut batch.chosen, &sides[0]), (1, &mut batch.rejected, &sides[1])]
                {
                    buffer.resize_rows(stretch.len());
                    let bytes = buffer.bytes_mut();
                    for (id, to) in stretch.iter().zip(bytes.chunks_exact_mut(row)) {
                        let rank = if side == 0 { id.chosen } else { id.rejected };
                        let seed = (id.seed - block_start) as usize;
                        to.copy_from_slice(samples.stored(seed, rank, &needed, self.plan.per_side).bytes());
                    }
                }
                sink(&batch)?;
            }
            Ok(())
        })
    }

    /// Makes pairs `pairs` as latents and hands them to `sink` in order, a batch at a time.
    pub fn latents(&self, pairs: Range<u64>, sink: &mut dyn FnMut(&LatentBatch) -> Result<()>) -> Result<()> {
        let most = (HANDED / (4 * self.latent)).max(1) as u64;
        let mut batch = LatentBatch::default();
        self.blocks(pairs, 4 * self.latent, &mut |range, ids, block_start| {
            let needed = self.needed(ids, block_start, range.len());
            let sides = [
                self.side(Side::Chosen, range.clone(), &needed, None)?,
                self.side(Side::Rejected, range, &needed, None)?,
            ];
            for (first, stretch) in ids.chunk_by_first(most) {
                batch.first = first;
                batch.seed.clear();
                batch.seed.extend(stretch.iter().map(|id| id.seed as i64));
                for (side, samples) in sides.iter().enumerate() {
                    batch.z[side].clear();
                    batch.candidate[side].clear();
                    for id in stretch {
                        let rank = if side == 0 { id.chosen } else { id.rejected };
                        let seed = (id.seed - block_start) as usize;
                        if rank == 0 {
                            batch.z[side].extend_from_slice(samples.mu.row(seed));
                            batch.candidate[side].push(-1);
                        } else {
                            let at = needed.at(seed, rank, self.plan.per_side);
                            batch.z[side].extend_from_slice(samples.latents.row(at));
                            batch.candidate[side].push(samples.candidates[at] as i32);
                        }
                    }
                }
                sink(&batch)?;
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
        self.blocks(pairs, 4 * self.latent, &mut |range, ids, block_start| {
            let needed = self.needed(ids, block_start, range.len());
            let mut rewards = [Vec::new(), Vec::new()];
            for (side, out) in Side::BOTH.into_iter().zip(&mut rewards) {
                let (originals, samples) = self.side_rewards(side, range.clone(), &needed, reward, folded)?;
                out.extend(ids.ids.iter().map(|id| {
                    let rank = if side == Side::Chosen { id.chosen } else { id.rejected };
                    let seed = (id.seed - block_start) as usize;
                    match rank {
                        0 => originals[seed],
                        _ => samples[needed.at(seed, rank, self.plan.per_side)],
                    }
                }));
            }
            sink(ids.first, [&rewards[0], &rewards[1]])
        })
    }

    /// Rewards of a block's originals and of the samples that it needs, on one side.
    fn side_rewards(
        &self,
        side: Side,
        range: Range<usize>,
        needed: &Needed,
        reward: &B::Reward,
        folded: &B::Folded,
    ) -> Result<(Vec<f32>, Vec<f32>)> {
        let b = self.backend;
        let block = self.seeds.block(side, range.clone())?;
        let embeddings = b.embeddings(block.view())?;
        let mut originals = vec![0f32; range.len()];
        b.score(reward, &embeddings, &mut originals)?;
        let mut scores = vec![0f32; needed.ranks.len()];
        if !needed.ranks.is_empty() {
            let posteriors = b.encode(&self.vae, &embeddings)?;
            let origin = Origin { seed: self.plan.seed, side, first_row: range.start as u64 };
            let samples = self.samples(&posteriors, origin, needed)?;
            let latents = b.perturb(&posteriors, origin, &self.perturbation, &samples)?;
            let residual = (self.mode == DecodeMode::Residual)
                .then_some(Residual { embeddings: &embeddings, posteriors: &posteriors });
            b.score_latents(folded, &latents, residual, &mut scores)?;
        }
        Ok((originals, scores))
    }

    /// The samples that a block needs: the candidates of its ranks.
    fn samples(&self, posteriors: &B::Posteriors, origin: Origin, needed: &Needed) -> Result<Vec<Sample>> {
        let selection = self.backend.select(posteriors, origin, &self.perturbation)?;
        let sample = |&(row, rank): &(u32, u32)| Sample {
            row,
            candidate: selection.candidates[row as usize * selection.keep + rank as usize],
        };
        Ok(needed.ranks.iter().map(sample).collect())
    }

    /// Pairs `pairs` in one batch, held in memory.
    pub fn batch(&self, pairs: Range<u64>, dtype: Dtype) -> Result<PairBatch> {
        if pairs.is_empty() || pairs.end > self.plan.pairs() {
            let expected = format!("a range within 0..{}", self.plan.pairs());
            return Err(Error::shape("pair numbers", expected, format!("{pairs:?}")));
        }
        let count = (pairs.end - pairs.start) as usize;
        let rows = || RowsBuf::zeros(dtype, count, self.dim);
        let mut made = PairBatch { first: pairs.start, chosen: rows(), rejected: rows() };
        let first = pairs.start;
        let row = self.dim * dtype.size();
        self.embeddings(pairs, dtype, &mut |part| {
            let at = (part.first - first) as usize * row;
            for (to, from) in [(&mut made.chosen, &part.chosen), (&mut made.rejected, &part.rejected)] {
                let bytes = from.view().values().bytes();
                to.bytes_mut()[at..at + bytes.len()].copy_from_slice(bytes);
            }
            Ok(())
        })?;
        Ok(made)
    }

    /// Pair `j` alone, as embeddings of `dtype`: the same bits as in any batch.
    pub fn pair(&self, j: u64, dtype: Dtype) -> Result<PairBatch> {
        self.batch(j..j.saturating_add(1), dtype)
    }

    /// Walks over the pairs in order, cut into blocks of seeds whose samples fit the memory bound.
    fn blocks(&self, pairs: Range<u64>, row_bytes: usize, each: EachBlock<'_>) -> Result<()> {
        let n = self.plan.seeds;
        let extra = self.plan.fold - 1;
        let per_seed = row_bytes * (self.plan.per_side as usize + 1);
        let step = (DECODED / per_seed).min(MAX_PAIRS / extra as usize).clamp(1, MAX_SEEDS) as u64;
        // Originals: pair j is seed j.
        let mut from = pairs.start;
        while from < pairs.end.min(n) {
            let to = (from + step).min(pairs.end.min(n));
            let ids = (from..to).map(|j| self.plan.pair(j)).collect();
            each(from as usize..to as usize, &Ids { first: from, ids }, from)?;
            from = to;
        }
        // The rest, seed by seed.
        while from < pairs.end {
            let seed = (from - n) / extra;
            let last_seed = ((pairs.end - 1 - n) / extra).min(seed + step - 1);
            let to = (n + (last_seed + 1) * extra).min(pairs.end);
            let mut ids = Vec::with_capacity((to - from) as usize);
            for s in seed..=last_seed {
                let start = n + s * extra;
                let here = from.max(start) - start..(to - start).min(extra);
                let all = self.plan.combinations(s);
                ids.extend(
                    all[here.start as usize..here.end as usize].iter().map(|&(chosen, rejected)| PairId {
                        seed: s,
                        chosen,
                        rejected,
                    }),
                );
            }
            each(seed as usize..last_seed as usize + 1, &Ids { first: from, ids }, seed)?;
            from = to;
        }
        Ok(())
    }

    /// Which samples the pairs use, on either side.
    fn needed(&self, ids: &Ids, block_start: u64, rows: usize) -> Needed {
        let k = self.plan.per_side as usize;
        let mut used = vec![false; rows * k];
        for id in &ids.ids {
            let row = (id.seed - block_start) as usize;
            for rank in [id.chosen, id.rejected] {
                if rank > 0 {
                    used[row * k + rank as usize - 1] = true;
                }
            }
        }
        let mut needed = Needed { ranks: Vec::new(), index: vec![u32::MAX; rows * k] };
        for (slot, _) in used.iter().enumerate().filter(|(_, u)| **u) {
            needed.index[slot] = needed.ranks.len() as u32;
            needed.ranks.push(((slot / k) as u32, (slot % k) as u32));
        }
        needed
    }

    /// Encodes, selects, perturbs and (given a dtype) decodes one side of a block.
    fn side(
        &self,
        side: Side,
        range: Range<usize>,
        needed: &Needed,
        dtype: Option<Dtype>,
    ) -> Result<SideSamples> {
        let b = self.backend;
        let block = self.seeds.block(side, range.clone())?;
        let rows = block.view();
        let mut out = SideSamples {
            latents: Matrix::zeros(0, self.latent),
            candidates: Vec::new(),
            mu: Matrix::zeros(0, self.latent),
            decoded: None,
            originals: None,
        };
        if let Some(dtype) = dtype {
            out.originals = Some(store_originals(&rows, dtype, side, range.start)?);
        }
        if needed.ranks.is_empty() && dtype.is_some() {
            return Ok(out);
        }
        let embeddings = b.embeddings(rows.clone())?;
        let posteriors = b.encode(&self.vae, &embeddings)?;
        if dtype.is_none() {
            out.mu = b.posteriors(&posteriors)?.mu;
        }
        if needed.ranks.is_empty() {
            return Ok(out);
        }
        let origin = Origin { seed: self.plan.seed, side, first_row: range.start as u64 };
        let samples = self.samples(&posteriors, origin, needed)?;
        out.candidates = samples.iter().map(|s| s.candidate).collect();
        let latents = b.perturb(&posteriors, origin, &self.perturbation, &samples)?;
        match dtype {
            None => out.latents = b.latents(&latents)?,
            Some(dtype) => {
                let mut decoded = RowsBuf::zeros(dtype, samples.len(), self.dim);
                let residual = (self.mode == DecodeMode::Residual)
                    .then_some(Residual { embeddings: &embeddings, posteriors: &posteriors });
                b.decode(&self.vae, &latents, residual, decoded.values_mut())?;
                if let Some(at) = first_non_finite(decoded.view().values()) {
                    let (row, candidate) = (samples[at / self.dim].row, samples[at / self.dim].candidate);
                    return Err(Error::shape(
                        format!(
                            "decoded embedding of seed {} ({}, candidate {candidate}), column {}",
                            range.start + row as usize,
                            side.name(),
                            at % self.dim
                        ),
                        format!("a finite value that {dtype} can hold"),
                        "infinity or NaN; try another --dtype",
                    ));
                }
                out.decoded = Some(decoded);
            }
        }
        Ok(out)
    }
}

/// The originals of a block in the output's dtype.
fn store_originals(
    rows: &crate::matrix::RowSet<'_>,
    dtype: Dtype,
    side: Side,
    first: usize,
) -> Result<RowsBuf> {
    let mut stored = RowsBuf::zeros(dtype, rows.rows(), rows.cols());
    let mut wide = vec![0f32; rows.cols()];
    for row in 0..rows.rows() {
        rows.row(row).widen(&mut wide);
        stored.values_mut().narrow_at(row * rows.cols(), &wide);
    }
    match first_non_finite(stored.view().values()) {
        None => Ok(stored),
        Some(at) => Err(Error::shape(
            format!("seed {} ({}), column {}", first + at / rows.cols(), side.name(), at % rows.cols()),
            format!("a finite value that {dtype} can hold"),
            "infinity or NaN; try another --dtype",
        )),
    }
}

/// Index of the first value that is infinite or NaN.
fn first_non_finite(values: Values<'_>) -> Option<usize> {
    match values {
        Values::F32(v) => v.iter().position(|x| !x.is_finite()),
        Values::F16(v) => v.iter().position(|x| x.to_bits() & 0x7c00 == 0x7c00),
        Values::Bf16(v) => v.iter().position(|x| x.to_bits() & 0x7f80 == 0x7f80),
    }
}

impl Needed {
    fn at(&self, row: usize, rank: u32, per_side: u32) -> usize {
        self.index[row * per_side as usize + rank as usize - 1] as usize
    }
}

impl SideSamples {
    /// The stored values of a sample of a seed.
    fn stored(&self, row: usize, rank: u32, needed: &Needed, per_side: u32) -> Values<'_> {
        let (rows, at) = match rank {
            0 => (&self.originals, row),
            _ => (&self.decoded, needed.at(row, rank, per_side)),
        };
        rows.as_ref().expect("embeddings were asked for").view().row(at)
    }
}

/// Consecutive pairs.
struct Ids {
    first: u64,
    ids: Vec<PairId>,
}

impl Ids {
    /// Stretches of at most `most` pairs with the number of their first.
    fn chunk_by_first(&self, most: u64) -> impl Iterator<Item = (u64, &[PairId])> {
        self.ids.chunks(most as usize).enumerate().map(move |(i, ids)| (self.first + i as u64 * most, ids))
    }
}
