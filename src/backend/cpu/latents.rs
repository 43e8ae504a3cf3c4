//! Posterior samples, candidates and perturbed latents, drawn from their counters.
//!
//! A latent is z' = z + sigma eta, where z = mu + exp(logvar / 2) eps is a sample of its seed's posterior (or the mean).
//! Noise comes cheaper from its counter than from memory, so latents of a perturbation stay samples ([`Latents`]) until
//! a block of them is wanted, and are drawn into that block's cache ([`LatentRows::put`]).

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use rayon::prelude::*;

use crate::backend::{LatentSource, Likelihood, NoiseKey, Perturbation, Sample};
use crate::noise::math::exp;
use crate::noise::vector::{BLOCKS, normals, store};
use crate::noise::{NoiseCounter, Purpose, key_words};
use crate::simd::{Isa, Simd, Task};

/// Rows that one task selects for.
const SELECT_ROWS: usize = 64;
/// Samples that one task makes.
const DRAW_ROWS: usize = 256;
/// Candidates of a row whose likelihoods are summed together.
const CANDIDATES: usize = 16;

/// Posteriors on the CPU, `[rows, latent]`; copies share them.
#[derive(Clone, Debug)]
pub struct Posteriors {
    /// Means.
    pub mu: Arc<Vec<f32>>,
    /// Logarithms of the variances.
    pub logvar: Arc<Vec<f32>>,
    /// Dimension of the latent space, a multiple of 16.
    pub latent: usize,
}

impl Posteriors {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.mu.len() / self.latent
    }

    fn row(&self, row: u32) -> (&[f32], &[f32]) {
        let at = row as usize * self.latent..(row as usize + 1) * self.latent;
        (&self.mu[at.clone()], &self.logvar[at])
    }
}

fn counter(purpose: Purpose, key: NoiseKey, sample: Sample) -> NoiseCounter {
    let row = key.first_row + u64::from(sample.row);
    NoiseCounter { purpose, side: key.side, row, candidate: sample.candidate }
}

/// The noise of samples for a purpose, `[samples, latent]`.
#[inline(always)]
fn noise<S: Simd>(
    simd: S,
    purpose: Purpose,
    key: NoiseKey,
    samples: &[Sample],
    latent: usize,
    out: &mut [f32],
) {
    /// Blocks of one sample that stand together: as the dimension is a multiple of 16, they always can.
    const RUN: usize = 4;
    let runs = latent / (4 * RUN);
    for (chunk, out) in out.chunks_mut(4 * BLOCKS).enumerate() {
        let mut counters = [[0u32; BLOCKS]; 4];
        for i in 0..out.len().div_ceil(4 * RUN) {
            let run = chunk * (BLOCKS / RUN) + i;
            let first = (run % runs * RUN) as u32;
            let words = counter(purpose, key, samples[run / runs]).block(first);
            for b in 0..RUN {
                for w in 0..4 {
                    counters[w][i * RUN + b] = words[w];
                }
                counters[0][i * RUN + b] += b as u32;
            }
        }
        store(&normals(simd, &counters, key_words(key.seed)), out);
    }
}

/// z of rows (samples of candidate 0), `[rows, latent]`.
#[inline(always)]
fn starts<S: Simd>(
    simd: S,
    p: &Posteriors,
    key: NoiseKey,
    source: LatentSource,
    rows: &[Sample],
    out: &mut [f32],
) {
    if source == LatentSource::Sample {
        noise(simd, Purpose::Posterior, key, rows, p.latent, out);
    }
    for (sample, out) in rows.iter().zip(out.chunks_exact_mut(p.latent)) {
        let (mu, logvar) = p.row(sample.row);
        match source {
            LatentSource::Mean => out.copy_from_slice(mu),
            LatentSource::Sample => {
                for ((z, m), lv) in out.iter_mut().zip(mu).zip(logvar) {
                    *z = exp(0.5 * lv).mul_add(*z, *m);
                }
            }
        }
    }
}

/// Rows as samples of candidate 0.
fn as_samples(rows: Range<usize>) -> Vec<Sample> {
    rows.map(|row| Sample { row: row as u32, candidate: 0 }).collect()
}

/// One posterior sample of every row, `[rows, latent]`.
pub fn posterior_samples(isa: Isa, p: &Posteriors, key: NoiseKey) -> Vec<f32> {
    struct Block<'a>(&'a Posteriors, NoiseKey, Vec<Sample>, &'a mut [f32]);
    impl Task for Block<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            let Block(p, key, rows, out) = self;
            starts(simd, p, key, LatentSource::Sample, &rows, out);
        }
    }
    let mut out = vec![0f32; p.mu.len()];
    out.par_chunks_mut(DRAW_ROWS * p.latent).enumerate().for_each(|(i, out)| {
        let rows = i * DRAW_ROWS..i * DRAW_ROWS + out.len() / p.latent;
        isa.run(Block(p, key, as_samples(rows), out));
    });
    out
}

/// The `top_k` candidates of every row, best first: `[rows, top_k]`.
pub fn select(isa: Isa, p: &Posteriors, key: NoiseKey, options: &Perturbation) -> Vec<u32> {
    let top_k = options.top_k as usize;
    if options.likelihood == Likelihood::None {
        return (0..p.rows()).flat_map(|_| 0..options.top_k).collect();
    }
    let mut out = vec![0u32; p.rows() * top_k];
    out.par_chunks_mut(SELECT_ROWS * top_k).enumerate().for_each(|(block, out)| {
        let rows = as_samples(block * SELECT_ROWS..block * SELECT_ROWS + out.len() / top_k);
        isa.run(Select { p, key, options, rows, out });
    });
    out
}

struct Select<'a> {
    p: &'a Posteriors,
    key: NoiseKey,
    options: &'a Perturbation,
    rows: Vec<Sample>,
    out: &'a mut [u32],
}

impl Task for Select<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Select { p, key, options, rows, out } = self;
        let (latent, top_k) = (p.latent, options.top_k as usize);
        let mut start = vec![0f32; rows.len() * latent];
        starts(simd, p, key, options.source, &rows, &mut start);
        // The likelihood of N(center, 1 / precision^2), up to terms that all candidates share, falls with the sum of
        // squares ((z' - center) * precision)^2.
        let (mut center, mut precision) = (vec![0f32; latent], vec![1f32; latent]);
        let mut ranked: Vec<u64> = Vec::with_capacity(options.drawn() as usize + CANDIDATES);
        let row_starts = start.chunks_exact(latent);
        for ((sample, z), out) in rows.iter().zip(row_starts).zip(out.chunks_exact_mut(top_k)) {
            if options.likelihood == Likelihood::Posterior {
                let (mu, logvar) = p.row(sample.row);
                center.copy_from_slice(mu);
                for (precision, lv) in precision.iter_mut().zip(logvar) {
                    *precision = exp(-0.5 * lv);
                }
            }
            ranked.clear();
            for first in (0..options.drawn()).step_by(CANDIDATES) {
                let sample = Sample { candidate: first, ..*sample };
                let squares = squares(simd, key, sample, options.sigma(), z, &center, &precision);
                // A sum of squares is not negative, so its bits order as it does, with NaN last; the candidate number
                // below them breaks ties.
                let keys = squares.iter().zip(first..);
                ranked.extend(keys.map(|(s, candidate)| u64::from(s.to_bits()) << 32 | u64::from(candidate)));
            }
            ranked.truncate(options.drawn() as usize);
            if top_k < ranked.len() {
                ranked.select_nth_unstable(top_k - 1);
            }
            ranked[..top_k].sort_unstable();
            for (to, key) in out.iter_mut().zip(&ranked) {
                *to = *key as u32;
            }
        }
    }
}

/// The sums of squares of [`CANDIDATES`] candidates of a row, from that of `sample` on.
#[inline(always)]
fn squares<S: Simd>(
    simd: S,
    key: NoiseKey,
    sample: Sample,
    sigma: f32,
    z: &[f32],
    center: &[f32],
    precision: &[f32],
) -> [f32; CANDIDATES] {
    /// Blocks of each candidate that are made together.
    const TOGETHER: usize = BLOCKS / CANDIDATES;
    let words = counter(Purpose::Perturb, key, sample).block(0);
    let mut squares = [0f32; CANDIDATES];
    let columns = z.as_chunks::<{ 4 * TOGETHER }>().0.iter().zip(center.as_chunks::<{ 4 * TOGETHER }>().0);
    let columns = columns.zip(precision.as_chunks::<{ 4 * TOGETHER }>().0);
    for (group, ((z, center), precision)) in columns.enumerate() {
        let mut counters = words.map(|word| [word; BLOCKS]);
        let [block, candidate, ..] = &mut counters;
        for (i, (block, candidate)) in block.iter_mut().zip(candidate).enumerate() {
            *block = (TOGETHER * group + i / CANDIDATES) as u32;
            *candidate = words[1].wrapping_add((i % CANDIDATES) as u32);
        }
        let made = normals(simd, &counters, key_words(key.seed));
        for column in 0..4 * TOGETHER {
            let eta: &[f32; CANDIDATES] = &made[column % 4].as_chunks().0[column / 4];
            for i in 0..CANDIDATES {
                let distance = (sigma.mul_add(eta[i], z[column]) - center[column]) * precision[column];
                squares[i] = distance.mul_add(distance, squares[i]);
            }
        }
    }
    squares
}

/// Latents on the CPU, `[m, latent]`, with the block row that each belongs to.
#[derive(Clone, Debug)]
pub struct Latents {
    /// The values, once they are there.
    values: OnceLock<Vec<f32>>,
    /// What they are drawn from, unless they were given.
    perturbed: Option<Perturbed>,
    latent: usize,
    rows: Vec<u32>,
}

/// Samples of a perturbation.
#[derive(Clone, Debug)]
pub struct Perturbed {
    posteriors: Posteriors,
    key: NoiseKey,
    options: Perturbation,
    samples: Vec<Sample>,
}

/// Where blocks of latents come from.
#[derive(Clone, Copy, Debug)]
pub enum LatentRows<'a> {
    /// Values, and the dimension of the latent space.
    Values(&'a [f32], usize),
    /// Drawn when wanted.
    Perturbed(&'a Perturbed),
}

/// Scratch of a thread that draws.
#[derive(Debug, Default)]
pub struct Scratch {
    noise: Vec<f32>,
    start: Vec<f32>,
    distinct: Vec<Sample>,
}

impl Latents {
    /// Latents with the block row of each.
    pub fn new(z: Vec<f32>, latent: usize, rows: Vec<u32>) -> Latents {
        Latents { values: OnceLock::from(z), perturbed: None, latent, rows }
    }

    /// The latents z' of samples.
    pub fn perturbed(
        posteriors: &Posteriors,
        key: NoiseKey,
        options: &Perturbation,
        samples: &[Sample],
    ) -> Latents {
        let rows = samples.iter().map(|s| s.row).collect();
        let perturbed =
            Perturbed { posteriors: posteriors.clone(), key, options: *options, samples: samples.to_vec() };
        Latents { values: OnceLock::new(), latent: posteriors.latent, perturbed: Some(perturbed), rows }
    }

    /// Dimension of the latent space.
    pub fn latent(&self) -> usize {
        self.latent
    }

    /// The block row of each.
    pub fn rows(&self) -> &[u32] {
        &self.rows
    }

    /// Where to take blocks of them from.
    pub fn source(&self) -> LatentRows<'_> {
        match (self.values.get(), &self.perturbed) {
            (None, Some(perturbed)) => LatentRows::Perturbed(perturbed),
            (values, _) => LatentRows::Values(values.map_or(&[], Vec::as_slice), self.latent),
        }
    }

    /// All of them, `[m, latent]`, drawn once and kept.
    pub fn values(&self, isa: Isa) -> &[f32] {
        struct Draw<'a>(&'a Perturbed, Range<usize>, &'a mut Scratch, &'a mut [f32]);
        impl Task for Draw<'_> {
            type Output = ();
            #[inline(always)]
            fn run<S: Simd>(self, simd: S) {
                let Draw(perturbed, range, scratch, out) = self;
                perturbed.draw(simd, range, scratch, out, perturbed.posteriors.latent);
            }
        }
        self.values.get_or_init(|| {
            let Some(perturbed) = &self.perturbed else { return Vec::new() };
            let mut out = vec![0f32; self.rows.len() * self.latent];
            let blocks = out.par_chunks_mut(DRAW_ROWS * self.latent).enumerate();
            blocks.for_each_init(Scratch::default, |scratch, (i, out)| {
                let range = i * DRAW_ROWS..i * DRAW_ROWS + out.len() / self.latent;
                isa.run(Draw(perturbed, range, scratch, out));
            });
            out
        })
    }
}

impl LatentRows<'_> {
    /// Number of latents.
    pub fn count(&self) -> usize {
        match self {
            LatentRows::Values(z, latent) => z.len() / latent,
            LatentRows::Perturbed(perturbed) => perturbed.samples.len(),
        }
    }

    /// Writes latents `range` as rows of `out`, `stride` apart.
    #[inline(always)]
    pub fn put<S: Simd>(
        &self,
        simd: S,
        range: Range<usize>,
        scratch: &mut Scratch,
        out: &mut [f32],
        stride: usize,
    ) {
        match self {
            LatentRows::Values(z, latent) => {
                let z = &z[range.start * latent..range.end * latent];
                for (z, out) in z.chunks_exact(*latent).zip(out.chunks_mut(stride)) {
                    out[..*latent].copy_from_slice(z);
                }
            }
            LatentRows::Perturbed(perturbed) => perturbed.draw(simd, range, scratch, out, stride),
        }
    }
}

impl Perturbed {
    /// [`LatentRows::put`] of samples.
    #[inline(always)]
    fn draw<S: Simd>(
        &self,
        simd: S,
        range: Range<usize>,
        scratch: &mut Scratch,
        out: &mut [f32],
        stride: usize,
    ) {
        let Perturbed { posteriors: p, key, options, samples } = self;
        let (samples, latent) = (&samples[range], p.latent);
        let Scratch { noise: eta, start, distinct } = scratch;
        eta.resize(samples.len() * latent, 0.0);
        noise(simd, Purpose::Perturb, *key, samples, latent, eta);
        // Samples of one seed stand together: its z is drawn once.
        distinct.clear();
        for sample in samples {
            if distinct.last().is_none_or(|last| last.row != sample.row) {
                distinct.push(Sample { candidate: 0, ..*sample });
            }
        }
        start.resize(distinct.len() * latent, 0.0);
        starts(simd, p, *key, options.source, distinct, start);
        let sigma = options.sigma();
        let mut seed = 0;
        for ((sample, eta), out) in samples.iter().zip(eta.chunks_exact(latent)).zip(out.chunks_mut(stride)) {
            seed += usize::from(distinct[seed].row != sample.row);
            for ((out, eta), start) in out.iter_mut().zip(eta).zip(&start[seed * latent..]) {
                *out = sigma.mul_add(*eta, *start);
            }
        }
    }
}
