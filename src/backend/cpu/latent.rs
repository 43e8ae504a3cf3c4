//! Posterior samples, perturbation, likelihood and top-k, with noise made a vector of counters at a time.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use rayon::prelude::*;

use crate::backend::{LatentSource, Likelihood, NoiseKey, Perturbation, Sample};
use crate::noise::math::exp;
use crate::noise::vector::{Counters, NORMALS, TOGETHER, normals, normals_by_word, store_all, store_first};
use crate::noise::{NoiseCounter, Purpose, key_words};
use crate::simd::{Isa, LANES, Simd, Task};

/// Rows that one task selects for.
const BLOCK: usize = 64;
/// Samples that one task makes.
const SAMPLES: usize = 256;

/// Posteriors on the CPU, `[rows, latent]`; copies share them.
#[derive(Clone, Debug)]
pub struct Posteriors {
    /// Means.
    pub mu: Arc<Vec<f32>>,
    /// Logarithms of the variances.
    pub logvar: Arc<Vec<f32>>,
    /// Dimension of the latent space.
    pub latent: usize,
}

impl Posteriors {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.mu.len() / self.latent
    }
}

/// The noise of samples for a purpose, `[samples, latent]`.
#[inline(always)]
fn noise<S: Simd>(
    simd: S,
    purpose: Purpose,
    origin: NoiseKey,
    samples: &[Sample],
    latent: usize,
    out: &mut [f32],
) {
    let key = key_words(origin.seed);
    let mut next = Runs { purpose, origin, samples, blocks: latent as u32 / 4, at: 0, block: 0 };
    let (whole, rest) = out.as_chunks_mut::<{ TOGETHER * NORMALS }>();
    for chunk in whole {
        let mut counters = [next.counters(simd); TOGETHER];
        for counters in &mut counters[1..] {
            *counters = next.counters(simd);
        }
        store_all(simd, normals(simd, counters, key), chunk);
    }
    for chunk in rest.chunks_mut(NORMALS) {
        store_first(simd, normals(simd, [next.counters(simd)], key)[0], chunk);
    }
}

/// Samples in runs of four blocks: as the dimension is a multiple of 16, each run lies within one sample, and a vector
/// of counters is four runs.
struct Runs<'a> {
    purpose: Purpose,
    origin: NoiseKey,
    samples: &'a [Sample],
    /// Blocks of a sample.
    blocks: u32,
    at: usize,
    block: u32,
}

impl Runs<'_> {
    /// The next vector of counters; past the last sample it is repeated.
    #[inline(always)]
    #[allow(clippy::needless_range_loop, reason = "a run is a column of the words")]
    fn counters<S: Simd>(&mut self, simd: S) -> Counters<S> {
        let mut words = [[0u32; LANES / 4]; 4];
        for run in 0..LANES / 4 {
            let Sample { row, candidate } = self.samples[self.at.min(self.samples.len() - 1)];
            let NoiseKey { side, first_row, .. } = self.origin;
            let address =
                NoiseCounter { purpose: self.purpose, side, row: first_row + u64::from(row), candidate };
            for (words, word) in words.iter_mut().zip(address.counter(self.block)) {
                words[run] = word;
            }
            self.block += 4;
            if self.block == self.blocks {
                (self.at, self.block) = (self.at + 1, 0);
            }
        }
        let [block, candidate, row, last] = words;
        let block = simd.add_words(simd.each_of_four(block), simd.load_words(&BLOCKS));
        [block, simd.each_of_four(candidate), simd.each_of_four(row), simd.each_of_four(last)]
    }
}

/// Blocks of runs, from each one's first on.
const BLOCKS: [u32; LANES] = [0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3];

/// z_i of rows (samples of candidate 0): mu + exp(logvar / 2) eps, or mu.
#[inline(always)]
fn starts<S: Simd>(
    simd: S,
    p: &Posteriors,
    origin: NoiseKey,
    source: LatentSource,
    rows: &[Sample],
    out: &mut [f32],
) {
    if source == LatentSource::Sample {
        noise(simd, Purpose::Posterior, origin, rows, p.latent, out);
    }
    for (sample, out) in rows.iter().zip(out.chunks_exact_mut(p.latent)) {
        let at = sample.row as usize * p.latent..(sample.row as usize + 1) * p.latent;
        let (mu, logvar) = (&p.mu[at.clone()], &p.logvar[at]);
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

/// Rows `range` as samples of candidate 0.
fn rows_of(range: Range<usize>) -> Vec<Sample> {
    range.map(|row| Sample { row: row as u32, candidate: 0 }).collect()
}

/// One posterior sample of every row, `[rows, latent]`.
pub fn start(level: Isa, p: &Posteriors, origin: NoiseKey) -> Vec<f32> {
    struct Block<'a>(&'a Posteriors, NoiseKey, Vec<Sample>, &'a mut [f32]);
    impl Task for Block<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            let Block(p, origin, rows, out) = self;
            starts(simd, p, origin, LatentSource::Sample, &rows, out);
        }
    }
    let mut out = vec![0f32; p.mu.len()];
    out.par_chunks_mut(SAMPLES * p.latent).enumerate().for_each(|(i, out)| {
        let rows = i * SAMPLES..i * SAMPLES + out.len() / p.latent;
        level.run(Block(p, origin, rows_of(rows), out));
    });
    out
}

/// The `keep` candidates of every row, best first: `[rows, keep]`.
pub fn select(level: Isa, p: &Posteriors, origin: NoiseKey, how: &Perturbation) -> Vec<u32> {
    let keep = how.top_k as usize;
    if how.likelihood == Likelihood::None {
        return (0..p.rows()).flat_map(|_| 0..how.top_k).collect();
    }
    let mut out = vec![0u32; p.rows() * keep];
    out.par_chunks_mut(BLOCK * keep).enumerate().for_each(|(block, out)| {
        let rows = rows_of(block * BLOCK..block * BLOCK + out.len() / keep);
        level.run(SelectBlock { p, origin, how, rows, out });
    });
    out
}

struct SelectBlock<'a> {
    p: &'a Posteriors,
    origin: NoiseKey,
    how: &'a Perturbation,
    rows: Vec<Sample>,
    out: &'a mut [u32],
}

impl Task for SelectBlock<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let SelectBlock { p, origin, how, rows, out } = self;
        let latent = p.latent;
        let mut start = vec![0f32; rows.len() * latent];
        starts(simd, p, origin, how.source, &rows, &mut start);
        let mut precision = vec![1f32; latent];
        let mut center = vec![0f32; latent];
        let mut ranked: Vec<u64> = Vec::with_capacity(how.drawn() as usize + LANES);
        let keep = how.top_k as usize;
        for ((sample, z), out) in rows.iter().zip(start.chunks_exact(latent)).zip(out.chunks_exact_mut(keep))
        {
            // The likelihood of N(center, 1 / precision^2), up to terms that all candidates share, falls with the
            // sum of squares ((z' - center) * precision)^2.
            if how.likelihood == Likelihood::Posterior {
                let at = sample.row as usize * latent..(sample.row as usize + 1) * latent;
                center.copy_from_slice(&p.mu[at.clone()]);
                for (precision, lv) in precision.iter_mut().zip(&p.logvar[at]) {
                    *precision = exp(-0.5 * lv);
                }
            }
            ranked.clear();
            for first in (0..how.drawn()).step_by(LANES) {
                let squares = squares(simd, origin, sample.row, first, how.sigma(), z, &center, &precision);
                // A sum of squares is not negative, so its bits order as it does, with NaN last; the candidate
                // number below them breaks ties.
                let keys = squares.iter().zip(first..);
                ranked.extend(keys.map(|(s, candidate)| u64::from(s.to_bits()) << 32 | u64::from(candidate)));
            }
            ranked.truncate(how.drawn() as usize);
            if keep < ranked.len() {
                ranked.select_nth_unstable(keep - 1);
            }
            ranked[..keep].sort_unstable();
            for (to, key) in out.iter_mut().zip(&ranked) {
                *to = *key as u32;
            }
        }
    }
}

/// The sums of squares of [`LANES`] candidates of a row, from candidate `first` on.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn squares<S: Simd>(
    simd: S,
    origin: NoiseKey,
    row: u32,
    first: u32,
    sigma: f32,
    z: &[f32],
    center: &[f32],
    precision: &[f32],
) -> [f32; LANES] {
    let row = origin.first_row + u64::from(row);
    let address = NoiseCounter { purpose: Purpose::Perturb, side: origin.side, row, candidate: first };
    let [_, first, row, last] = address.counter(0);
    let candidates: [u32; LANES] = std::array::from_fn(|l| first.wrapping_add(l as u32));
    let (candidates, row, last) = (simd.load_words(&candidates), simd.words(row), simd.words(last));
    let (sigma, key) = (simd.floats(sigma), key_words(origin.seed));
    let mut squares = simd.floats(0.0);
    // As the dimension is a multiple of 16, blocks come in whole groups.
    const COLUMNS: usize = 4 * TOGETHER;
    const { assert!(LANES.is_multiple_of(COLUMNS), "no column is left over") };
    let columns = z.chunks_exact(COLUMNS).zip(center.chunks_exact(COLUMNS));
    for (group, ((z, center), precision)) in columns.zip(precision.chunks_exact(COLUMNS)).enumerate() {
        let mut counters = [[row; 4]; TOGETHER];
        for (i, counters) in counters.iter_mut().enumerate() {
            *counters = [simd.words((TOGETHER * group + i) as u32), candidates, row, last];
        }
        let eta = normals_by_word(simd, counters, key);
        for (column, eta) in eta.as_flattened().iter().enumerate() {
            let moved = simd.mul_add(sigma, *eta, simd.floats(z[column]));
            let away = simd.sub(moved, simd.floats(center[column]));
            let distance = simd.mul(away, simd.floats(precision[column]));
            squares = simd.mul_add(distance, distance, squares);
        }
    }
    let mut out = [0f32; LANES];
    simd.store_floats(squares, &mut out);
    out
}

/// Latents on the CPU, `[m, latent]`, with the block row that each belongs to.
///
/// Those of a perturbation are made where they are wanted, in the cache of who wants them: noise comes cheaper from
/// its counter than from memory.
#[derive(Clone, Debug)]
pub struct Latents {
    made: OnceLock<Vec<f32>>,
    drawn: Option<Drawn>,
    latent: usize,
    rows: Vec<u32>,
}

/// Samples of a perturbation.
#[derive(Clone, Debug)]
pub struct Drawn {
    posteriors: Posteriors,
    origin: NoiseKey,
    how: Perturbation,
    samples: Vec<Sample>,
}

/// Latents `[m, latent]`, there already or to be drawn.
#[derive(Clone, Copy, Debug)]
pub enum Codes<'a> {
    /// Values and the dimension of the latent space.
    Made(&'a [f32], usize),
    /// Samples.
    Drawn(&'a Drawn),
}

/// Scratch of a thread that draws.
#[derive(Debug, Default)]
pub struct Drawing {
    noise: Vec<f32>,
    start: Vec<f32>,
    distinct: Vec<Sample>,
}

/// Where latents are put.
pub trait Target {
    /// Columns `16 group` to `16 group + 15` of a latent.
    fn columns(&mut self, latent: usize, group: usize) -> &mut [f32; LANES];
}

/// Latents one after the other, and the dimension of the latent space.
struct Matrix<'a>(&'a mut [f32], usize);

impl Target for Matrix<'_> {
    #[inline(always)]
    fn columns(&mut self, latent: usize, group: usize) -> &mut [f32; LANES] {
        self.0[latent * self.1..][group * LANES..].first_chunk_mut().expect("whole groups")
    }
}

impl Latents {
    /// Latents with the block row of each.
    pub fn new(z: Vec<f32>, latent: usize, rows: Vec<u32>) -> Latents {
        Latents { made: OnceLock::from(z), drawn: None, latent, rows }
    }

    /// The latents z' of samples.
    pub fn perturbed(
        posteriors: &Posteriors,
        origin: NoiseKey,
        how: &Perturbation,
        samples: &[Sample],
    ) -> Latents {
        let drawn = Drawn { posteriors: posteriors.clone(), origin, how: *how, samples: samples.to_vec() };
        let rows = samples.iter().map(|s| s.row).collect();
        Latents { made: OnceLock::new(), latent: posteriors.latent, drawn: Some(drawn), rows }
    }

    /// Dimension of the latent space.
    pub fn latent(&self) -> usize {
        self.latent
    }

    /// The block row of each.
    pub fn rows(&self) -> &[u32] {
        &self.rows
    }

    /// What to take them from, a block at a time.
    pub fn codes(&self) -> Codes<'_> {
        match (self.made.get(), &self.drawn) {
            (None, Some(drawn)) => Codes::Drawn(drawn),
            (made, _) => Codes::Made(made.map_or(&[], Vec::as_slice), self.latent),
        }
    }

    /// All of them, `[m, latent]`.
    pub fn values(&self, level: Isa) -> &[f32] {
        struct All<'a>(&'a Drawn, Range<usize>, &'a mut Drawing, &'a mut [f32]);
        impl Task for All<'_> {
            type Output = ();
            #[inline(always)]
            fn run<S: Simd>(self, simd: S) {
                let All(drawn, range, scratch, out) = self;
                let latent = drawn.posteriors.latent;
                drawn.draw(simd, range, scratch, &mut Matrix(out, latent));
            }
        }
        self.made.get_or_init(|| {
            let Some(drawn) = &self.drawn else { return Vec::new() };
            let mut out = vec![0f32; self.rows.len() * self.latent];
            out.par_chunks_mut(SAMPLES * self.latent).enumerate().for_each_init(
                Drawing::default,
                |scratch, (i, out)| {
                    let range = i * SAMPLES..i * SAMPLES + out.len() / self.latent;
                    level.run(All(drawn, range, scratch, out));
                },
            );
            out
        })
    }
}

impl Codes<'_> {
    /// Dimension of the latent space.
    pub fn latent(&self) -> usize {
        match self {
            Codes::Made(_, latent) => *latent,
            Codes::Drawn(drawn) => drawn.posteriors.latent,
        }
    }

    /// Number of latents.
    pub fn count(&self) -> usize {
        match self {
            Codes::Made(z, latent) => z.len() / latent,
            Codes::Drawn(drawn) => drawn.samples.len(),
        }
    }

    /// Puts latents `range` where they belong, the first as latent 0.
    #[inline(always)]
    pub fn put<S: Simd>(&self, simd: S, range: Range<usize>, scratch: &mut Drawing, to: &mut impl Target) {
        match self {
            Codes::Made(z, latent) => {
                let z = &z[range.start * latent..range.end * latent];
                for (i, z) in z.chunks_exact(*latent).enumerate() {
                    put(simd, z, i, to);
                }
            }
            Codes::Drawn(drawn) => drawn.draw(simd, range, scratch, to),
        }
    }
}

/// Puts latent `i`. Vectors at a time: a copy of any length would be a call.
#[inline(always)]
pub fn put<S: Simd>(simd: S, z: &[f32], i: usize, to: &mut impl Target) {
    for (group, z) in z.as_chunks().0.iter().enumerate() {
        simd.store_floats(simd.load_floats(z), to.columns(i, group));
    }
}

impl Drawn {
    /// [`Codes::put`] of samples.
    #[inline(always)]
    fn draw<S: Simd>(&self, simd: S, range: Range<usize>, scratch: &mut Drawing, to: &mut impl Target) {
        let Drawn { posteriors: p, origin, how, samples } = self;
        let (samples, latent) = (&samples[range], p.latent);
        let Drawing { noise: eta, start, distinct } = scratch;
        eta.resize(samples.len() * latent, 0.0);
        noise(simd, Purpose::Perturb, *origin, samples, latent, eta);
        // Samples of one seed stand together: it is drawn once.
        distinct.clear();
        for sample in samples {
            if distinct.last().is_none_or(|last| last.row != sample.row) {
                distinct.push(Sample { candidate: 0, ..*sample });
            }
        }
        start.resize(distinct.len() * latent, 0.0);
        starts(simd, p, *origin, how.source, distinct, start);
        let sigma = simd.floats(how.sigma());
        let mut seed = 0;
        for (i, (sample, eta)) in samples.iter().zip(eta.chunks_exact(latent)).enumerate() {
            seed += usize::from(distinct[seed].row != sample.row);
            let start = start[seed * latent..][..latent].as_chunks().0;
            for (group, (eta, start)) in eta.as_chunks().0.iter().zip(start).enumerate() {
                let moved = simd.mul_add(sigma, simd.load_floats(eta), simd.load_floats(start));
                simd.store_floats(moved, to.columns(i, group));
            }
        }
    }
}
