//! Pairs of a plan in any order.
//!
//! What all pairs of a seed share is made once for all seeds and kept: their posteriors and the numbers of their selected
//! candidates, `8 latent + 4 k` bytes a seed and side, and which samples meet, 4 bytes a pair. A pair then costs no more than its two samples, wherever it is.

use super::generate::{PairBatch, require_memory, unstorable};
use super::plan::{PairId, Plan};
use super::recipe::SynthesisOptions;
use crate::backend::{
    Backend, DecodeMode, DeviceArray, NoiseKey, Perturbation, Residual, Sample, Selection, Synthetic,
};
use crate::data::PairSource;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::matrix::{RowsBuf, Side};
use crate::model::Vae;

/// One side of all seeds.
struct SeedSide<B: Backend> {
    posteriors: B::Posteriors,
    selection: Selection,
}

/// The seeds of a plan with all that their pairs share, for making any of them.
pub struct PairLookup<'a, B: Backend> {
    backend: &'a B,
    vae: B::Vae,
    seeds: &'a dyn PairSource,
    plan: Plan,
    perturbation: Perturbation,
    mode: DecodeMode,
    sides: [SeedSide<B>; 2],
    /// The samples of every synthetic pair, chosen and rejected, where they are not too many to keep.
    samples: Option<Vec<[u16; 2]>>,
}

/// Most bytes of samples that are kept; beyond, the list of a seed's pairs is made again for each pair.
const MOST_SAMPLE_BYTES: u64 = 256 << 20;

impl<'a, B: Backend> PairLookup<'a, B> {
    /// Encodes all seeds and selects their candidates.
    ///
    /// # Errors
    /// Options out of range, sizes that do not fit, more than 2^32 - 1 seeds, or a file that changed.
    pub fn new(
        backend: &'a B,
        vae: &Vae,
        seeds: &'a dyn PairSource,
        options: &SynthesisOptions,
    ) -> Result<PairLookup<'a, B>> {
        let n = seeds.pairs();
        if n as u64 > u64::from(u32::MAX) {
            return Err(Error::shape("seeds whose pairs are made in any order", "at most 2^32 - 1", n));
        }
        let (plan, perturbation) = options.plan(n)?;
        let vae = backend.load_vae(vae)?;
        let side = |side| {
            let rows = seeds.block(side, 0..n)?;
            let posteriors = backend.encode(&vae, &backend.embeddings(rows.view())?)?;
            let selection = backend.select(&posteriors, key(&plan, side), &perturbation)?;
            Ok::<_, Error>(SeedSide { posteriors, selection })
        };
        let sides = [side(Side::Chosen)?, side(Side::Rejected)?];
        seeds.require_unchanged()?;
        let synthetic = plan.pairs() - plan.seeds;
        let samples = (4 * synthetic <= MOST_SAMPLE_BYTES).then(|| {
            // At most 256 samples a side: numbers of 16 bits.
            let of = |seed| plan.combinations(seed).into_iter().map(|(a, b)| [a as u16, b as u16]);
            (0..plan.seeds).flat_map(of).collect()
        });
        Ok(PairLookup { backend, vae, seeds, plan, perturbation, mode: options.mode, sides, samples })
    }

    /// Pair `j` of the plan.
    fn pair(&self, j: u64) -> PairId {
        let n = self.plan.seeds;
        match &self.samples {
            Some(samples) if j >= n => {
                let [chosen, rejected] = samples[(j - n) as usize].map(u32::from);
                PairId { seed: (j - n) / (self.plan.pairs_per_seed - 1), chosen, rejected }
            }
            _ => self.plan.pair(j),
        }
    }

    /// The pairs with these numbers, in this order, as embeddings of `dtype`: each has the bits that it has in a stream.
    /// `first` of the batch is the first of them. `pinned`: in memory that is registered with the device, if that is a GPU, for as
    /// long as the batch is kept.
    ///
    /// # Errors
    /// No number, a number beyond the plan's pairs, more than fit in memory, a value that `dtype` cannot hold, or a file that
    /// changed.
    pub fn take(&self, pairs: &[u64], dtype: Dtype, pinned: bool) -> Result<PairBatch> {
        require_memory(pairs.len(), self.seeds.dim(), dtype)?;
        let ids = self.ids(pairs)?;
        let chosen = self.side(Side::Chosen, &ids, (dtype, pinned))?;
        let rejected = self.side(Side::Rejected, &ids, (dtype, pinned))?;
        self.seeds.require_unchanged()?;
        Ok(PairBatch { first: pairs[0], chosen, rejected })
    }

    /// The same pairs in the memory of the device, a GPU: chosen and rejected.
    ///
    /// # Errors
    /// As [`PairLookup::take`]; a device whose memory is the host's.
    pub fn take_on_device(&self, pairs: &[u64], dtype: Dtype) -> Result<[DeviceArray; 2]> {
        let ids = self.ids(pairs)?;
        let chosen = self.side_on_device(Side::Chosen, &ids, dtype)?;
        let rejected = self.side_on_device(Side::Rejected, &ids, dtype)?;
        self.seeds.require_unchanged()?;
        Ok([chosen, rejected])
    }

    /// The pairs with these numbers, one or more.
    fn ids(&self, pairs: &[u64]) -> Result<Vec<PairId>> {
        let all = self.plan.pairs();
        let wrong = pairs.iter().find(|&&j| j >= all);
        if let Some(wrong) = wrong {
            return Err(Error::argument("pair number", format!("0 to {}", all.saturating_sub(1)), wrong));
        }
        if pairs.is_empty() {
            return Err(Error::TooFew { what: "pair numbers".into(), needed: 1, found: 0 });
        }
        Ok(pairs.iter().map(|&j| self.pair(j)).collect())
    }

    /// Sample `rank` of a seed, from 1.
    fn sample(&self, side: Side, seed: u64, rank: u32) -> Sample {
        let selection = &self.sides[side as usize].selection;
        let candidate = selection.candidates[seed as usize * selection.top_k + rank as usize - 1];
        Sample { row: seed as u32, candidate }
    }

    /// One side of pairs in the device's memory.
    fn side_on_device(&self, side: Side, ids: &[PairId], dtype: Dtype) -> Result<DeviceArray> {
        let (b, kept) = (self.backend, &self.sides[side as usize]);
        let seeds = self.seeds.block(side, 0..self.seeds.pairs())?;
        let seeds = seeds.view();
        // Originals first, and behind them what is decoded: only what these pairs need, but all seeds where samples add
        // to theirs.
        let (mut originals, mut samples) = (Vec::new(), Vec::new());
        for id in ids {
            match id.sample(side) {
                0 => originals.push(id.seed as usize),
                rank => samples.push(self.sample(side, id.seed, rank)),
            }
        }
        let residual = self.mode == DecodeMode::Residual && !samples.is_empty();
        let there = if residual { self.seeds.pairs() } else { originals.len() };
        let (mut original, mut sample) = (0, there as u32);
        let next = |of: &mut u32| std::mem::replace(of, *of + 1);
        let index: Vec<u32> = ids
            .iter()
            .map(|id| match id.sample(side) {
                0 if residual => id.seed as u32,
                0 => next(&mut original),
                _ => next(&mut sample),
            })
            .collect();
        let embeddings = b.embeddings(if residual { seeds } else { seeds.pick(&originals) })?;
        let latents = b.perturb(&kept.posteriors, key(&self.plan, side), &self.perturbation, &samples)?;
        let base = residual.then_some(Residual { embeddings: &embeddings, posteriors: &kept.posteriors });
        let mut rows = b.rows(dtype, self.seeds.dim());
        let made = Synthetic { vae: &self.vae, latents: &latents, residual: base };
        b.store_rows(&embeddings, &made, &mut rows)?;
        if let Some((row, column)) = b.first_non_finite(&rows)? {
            let seed = match row.checked_sub(there) {
                Some(sample) => u64::from(samples[sample].row),
                None if residual => row as u64,
                None => originals[row] as u64,
            };
            return Err(unstorable(format!("pair of seed {seed} ({})", side.name()), column, dtype));
        }
        b.pick_on_device(&rows, &index)
    }

    /// One side of pairs.
    fn side(&self, side: Side, ids: &[PairId], (dtype, pinned): (Dtype, bool)) -> Result<RowsBuf> {
        let (b, kept) = (self.backend, &self.sides[side as usize]);
        let mut out = RowsBuf::zeros(dtype, ids.len(), self.seeds.dim());
        if pinned {
            b.pin(&mut out);
        }
        let seeds = self.seeds.block(side, 0..self.seeds.pairs())?;
        let seeds = seeds.view();
        // Every row is decoded into its place, those of originals too, which are then written over.
        let sample = |id: &PairId| self.sample(side, id.seed, id.sample(side).max(1));
        let samples: Vec<Sample> = ids.iter().map(sample).collect();
        if ids.iter().any(|id| id.sample(side) > 0) {
            let latents = b.perturb(&kept.posteriors, key(&self.plan, side), &self.perturbation, &samples)?;
            // The seeds' rows matter where samples add to them.
            let needed = if self.mode == DecodeMode::Residual { seeds.clone() } else { seeds.slice(0..0) };
            let embeddings = b.embeddings(needed)?;
            let residual = (self.mode == DecodeMode::Residual)
                .then_some(Residual { embeddings: &embeddings, posteriors: &kept.posteriors });
            b.decode(&self.vae, &latents, residual, out.values_mut())?;
        }
        let row_bytes = out.cols() * dtype.size();
        let mut wide = vec![0f32; out.cols()];
        for (id, to) in ids.iter().zip(out.bytes_mut().chunks_exact_mut(row_bytes)) {
            if id.sample(side) == 0 {
                seeds.copy_row(id.seed as usize, dtype, to, &mut wide);
            }
        }
        match out.view().values().first_non_finite() {
            None => Ok(out),
            Some((at, _)) => {
                let (id, column) = (&ids[at / out.cols()], at % out.cols());
                Err(unstorable(format!("pair of seed {} ({})", id.seed, side.name()), column, dtype))
            }
        }
    }
}

fn key(plan: &Plan, side: Side) -> NoiseKey {
    NoiseKey { seed: plan.seed, side, first_row: 0 }
}
