//! Posterior samples, perturbation, likelihood and top-k, with the noise of several candidates made at once.

use rayon::prelude::*;

use crate::backend::{LatentSource, Likelihood, Origin, Perturbation, Sample};
use crate::noise::math::exp;
use crate::noise::{Address, Purpose, fill_normals, key_words, normal_lanes};
use crate::simd::{Level, Simd, Task};

/// Candidates whose noise is made together.
const LANES: usize = 16;
/// Rows that one task selects for.
const BLOCK: usize = 16;
/// Samples that one task makes.
const SAMPLES: usize = 256;

/// Posteriors on the CPU, `[rows, latent]`.
#[derive(Clone, Debug)]
pub struct Posteriors {
    /// Means.
    pub mu: Vec<f32>,
    /// Logarithms of the variances.
    pub logvar: Vec<f32>,
    /// Dimension of the latent space.
    pub latent: usize,
}

impl Posteriors {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.mu.len() / self.latent
    }

    fn row(&self, row: usize) -> (&[f32], &[f32]) {
        let at = row * self.latent..(row + 1) * self.latent;
        (&self.mu[at.clone()], &self.logvar[at])
    }

    /// z_i: mu + exp(logvar / 2) eps, or mu.
    fn start(&self, row: usize, origin: Origin, source: LatentSource, out: &mut [f32]) {
        let (mu, logvar) = self.row(row);
        if source == LatentSource::Mean {
            out.copy_from_slice(mu);
            return;
        }
        let row = origin.first_row + row as u64;
        fill_normals(
            origin.seed,
            Address { purpose: Purpose::Posterior, side: origin.side, row, candidate: 0 },
            out,
        );
        for ((z, m), lv) in out.iter_mut().zip(mu).zip(logvar) {
            *z = exp(0.5 * lv).mul_add(*z, *m);
        }
    }
}

/// One posterior sample of every row, `[rows, latent]`.
pub fn start(p: &Posteriors, origin: Origin) -> Vec<f32> {
    let mut out = vec![0f32; p.mu.len()];
    out.par_chunks_mut(p.latent)
        .enumerate()
        .for_each(|(row, z)| p.start(row, origin, LatentSource::Sample, z));
    out
}

/// The `keep` candidates of every row, best first: `[rows, keep]`.
pub fn select(level: Level, p: &Posteriors, origin: Origin, how: &Perturbation) -> Vec<u32> {
    let keep = how.keep as usize;
    if how.likelihood == Likelihood::None {
        return (0..p.rows()).flat_map(|_| 0..how.keep).collect();
    }
    let mut out = vec![0u32; p.rows() * keep];
    out.par_chunks_mut(BLOCK * keep).enumerate().for_each(|(block, out)| {
        let first = block * BLOCK;
        level.run(SelectBlock { p, origin, how, first, out });
    });
    out
}

struct SelectBlock<'a> {
    p: &'a Posteriors,
    origin: Origin,
    how: &'a Perturbation,
    first: usize,
    out: &'a mut [u32],
}

impl Task for SelectBlock<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let SelectBlock { p, origin, how, first, out } = self;
        let keep = how.keep as usize;
        let sigma = how.sigma();
        let mut z = vec![0f32; p.latent];
        let mut ranked: Vec<u64> = Vec::with_capacity(how.drawn() as usize + LANES);
        for (i, out) in out.chunks_exact_mut(keep).enumerate() {
            let row = first + i;
            p.start(row, origin, how.source, &mut z);
            let (mu, logvar) = p.row(row);
            // The likelihood of N(center, 1 / precision^2), up to terms that all candidates share, falls with the
            // sum of squares ((z' - center) * precision)^2.
            let center = |j: usize| if how.likelihood == Likelihood::Posterior { mu[j] } else { 0.0 };
            let precision: Vec<f32> = logvar
                .iter()
                .map(|lv| if how.likelihood == Likelihood::Posterior { exp(-0.5 * lv) } else { 1.0 })
                .collect();
            ranked.clear();
            for candidate in (0..how.drawn()).step_by(LANES) {
                let candidates: [u32; LANES] = std::array::from_fn(|l| candidate + l as u32);
                let mut squares = [0f32; LANES];
                for block in 0..p.latent / 4 {
                    let eta = noise(origin, &[row as u32; LANES], &candidates, block as u32);
                    for (w, eta) in eta.iter().enumerate() {
                        let j = 4 * block + w;
                        for l in 0..LANES {
                            let distance = (sigma.mul_add(eta[l], z[j]) - center(j)) * precision[j];
                            squares[l] = distance.mul_add(distance, squares[l]);
                        }
                    }
                }
                // A sum of squares is not negative, so its bits order as it does, with NaN last; the candidate
                // number below them breaks ties.
                ranked.extend(
                    (0..LANES).map(|l| u64::from(squares[l].to_bits()) << 32 | u64::from(candidates[l])),
                );
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

/// The perturbation noise of 16 (row, candidate) places: value w of lane l is element 4 block + w.
#[inline(always)]
fn noise(origin: Origin, rows: &[u32; LANES], candidates: &[u32; LANES], block: u32) -> [[f32; LANES]; 4] {
    let mut counter = [[0u32; LANES]; 4];
    for l in 0..LANES {
        let address = Address {
            purpose: Purpose::Perturb,
            side: origin.side,
            row: origin.first_row + u64::from(rows[l]),
            candidate: candidates[l],
        };
        let c = address.counter(block);
        for w in 0..4 {
            counter[w][l] = c[w];
        }
    }
    normal_lanes(counter, key_words(origin.seed))
}

/// The latents z' of samples, `[samples, latent]`.
pub fn perturb(
    level: Level,
    p: &Posteriors,
    origin: Origin,
    how: &Perturbation,
    samples: &[Sample],
) -> Vec<f32> {
    let mut out = vec![0f32; samples.len() * p.latent];
    out.par_chunks_mut(SAMPLES * p.latent).zip(samples.par_chunks(SAMPLES)).for_each(|(out, samples)| {
        level.run(PerturbBlock { p, origin, how, samples, out });
    });
    out
}

struct PerturbBlock<'a> {
    p: &'a Posteriors,
    origin: Origin,
    how: &'a Perturbation,
    samples: &'a [Sample],
    out: &'a mut [f32],
}

impl Task for PerturbBlock<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let PerturbBlock { p, origin, how, samples, out } = self;
        let latent = p.latent;
        let sigma = how.sigma();
        let mut start = vec![0f32; latent];
        let mut started = None;
        for (samples, out) in samples.chunks(LANES).zip(out.chunks_mut(LANES * latent)) {
            let lane = |l: usize| samples[l.min(samples.len() - 1)];
            let rows: [u32; LANES] = std::array::from_fn(|l| lane(l).row);
            let candidates: [u32; LANES] = std::array::from_fn(|l| lane(l).candidate);
            for (z, sample) in out.chunks_exact_mut(latent).zip(samples) {
                if started != Some(sample.row) {
                    p.start(sample.row as usize, origin, how.source, &mut start);
                    started = Some(sample.row);
                }
                z.copy_from_slice(&start);
            }
            for block in 0..latent / 4 {
                let eta = noise(origin, &rows, &candidates, block as u32);
                for (l, z) in out.chunks_exact_mut(latent).enumerate() {
                    for w in 0..4 {
                        z[4 * block + w] = sigma.mul_add(eta[w][l], z[4 * block + w]);
                    }
                }
            }
        }
    }
}
