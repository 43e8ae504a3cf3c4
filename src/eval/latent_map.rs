//! Latents in a plane: the two directions of their largest variance (principal components), for a picture of what the
//! perturbation does.

use serde::{Deserialize, Serialize};

use crate::backend::{Backend, NoiseKey, Perturbation};
use crate::error::Result;
use crate::matrix::{Matrix, RowSet, Side};
use crate::model::Vae;

/// Most originals of a side that are shown.
const MOST: usize = 400;

/// Latents of seeds and of their samples, in the coordinates of their two first principal components.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LatentMap {
    /// Share of the variance of the seeds' posterior means along each component.
    pub explained: [f64; 2],
    /// Posterior means of the seeds, of the chosen and the rejected side.
    pub originals: [Vec<[f64; 2]>; 2],
    /// One synthetic latent of each of those seeds.
    pub synthetic: [Vec<[f64; 2]>; 2],
}

/// The map of up to 400 seeds a side.
///
/// # Errors
/// A VAE that does not fit the seeds.
pub fn latent_map<B: Backend>(
    backend: &B,
    vae: &Vae,
    seeds: &[RowSet<'_>; 2],
    (perturbation, seed): (&Perturbation, u64),
) -> Result<LatentMap> {
    let vae = backend.load_vae(vae)?;
    let rows: Vec<usize> = (0..seeds[0].rows().min(MOST)).collect();
    let one = Perturbation { top_k: 1, ..*perturbation };
    let mut means = Vec::new();
    let mut samples = Vec::new();
    for (side, rows) in Side::BOTH.into_iter().zip(seeds.each_ref().map(|side| side.pick(&rows))) {
        let posteriors = backend.encode(&vae, &backend.embeddings(rows)?)?;
        let key = NoiseKey { seed, side, first_row: 0 };
        let selection = backend.select(&posteriors, key, &one)?;
        let latents = backend.perturb(&posteriors, key, &one, &selection.samples())?;
        means.push(backend.posteriors(&posteriors)?.mu);
        samples.push(backend.latents(&latents)?);
    }
    let axes = Axes::of(&means);
    let place = |m: &Matrix| m.values.chunks_exact(m.cols).map(|z| axes.place(z)).collect::<Vec<_>>();
    Ok(LatentMap {
        explained: axes.explained,
        originals: [place(&means[0]), place(&means[1])],
        synthetic: [place(&samples[0]), place(&samples[1])],
    })
}

/// The mean and the first two principal directions.
struct Axes {
    mean: Vec<f64>,
    directions: [Vec<f64>; 2],
    explained: [f64; 2],
}

impl Axes {
    fn of(sets: &[Matrix]) -> Axes {
        let dim = sets[0].cols;
        let rows = || sets.iter().flat_map(|m| m.values.chunks_exact(dim));
        let n = rows().count().max(1) as f64;
        let mut mean = vec![0f64; dim];
        rows().for_each(|z| mean.iter_mut().zip(z).for_each(|(m, &v)| *m += f64::from(v) / n));
        let mut covariance = vec![0f64; dim * dim];
        for z in rows() {
            let off: Vec<f64> = z.iter().zip(&mean).map(|(&v, m)| f64::from(v) - m).collect();
            for (row, a) in covariance.chunks_exact_mut(dim).zip(&off) {
                row.iter_mut().zip(&off).for_each(|(c, b)| *c += a * b / n);
            }
        }
        let trace: f64 = (0..dim).map(|i| covariance[i * dim + i]).sum();
        let mut explained = [0.0; 2];
        let directions = std::array::from_fn(|k| {
            let (value, direction) = largest(&covariance, dim);
            explained[k] = if trace > 0.0 { value / trace } else { 0.0 };
            // What this direction explains is taken out.
            for (row, a) in covariance.chunks_exact_mut(dim).zip(&direction) {
                row.iter_mut().zip(&direction).for_each(|(c, b)| *c -= value * a * b);
            }
            direction
        });
        Axes { mean, directions, explained }
    }

    /// Coordinates, to three decimals.
    fn place(&self, z: &[f32]) -> [f64; 2] {
        self.directions.each_ref().map(|direction| {
            let along = z.iter().zip(&self.mean).zip(direction).map(|((&v, m), d)| (f64::from(v) - m) * d);
            (along.sum::<f64>() * 1000.0).round() / 1000.0
        })
    }
}

/// The largest eigenvalue of a symmetric matrix without negative ones, and its direction, by power iteration. The entry of
/// the direction with the largest size is positive.
fn largest(matrix: &[f64], dim: usize) -> (f64, Vec<f64>) {
    // No direction of a matrix from data is orthogonal to this one.
    let mut v: Vec<f64> = (0..dim).map(|i| 1.0 + 0.37 * ((i * 7 + 3) % 5) as f64).collect();
    let mut value = 0.0;
    for _ in 0..1000 {
        let next: Vec<f64> =
            matrix.chunks_exact(dim).map(|row| row.iter().zip(&v).map(|(a, b)| a * b).sum()).collect();
        let norm = next.iter().map(|x| x * x).sum::<f64>().sqrt();
        if norm <= f64::MIN_POSITIVE {
            return (0.0, vec![0.0; dim]);
        }
        let moved: f64 = next.iter().zip(&v).map(|(a, b)| (a / norm - b).powi(2)).sum();
        v = next.iter().map(|x| x / norm).collect();
        value = norm;
        if moved < 1e-24 {
            break;
        }
    }
    let peak = v.iter().copied().fold(0.0, |most: f64, x| if x.abs() > most.abs() { x } else { most });
    if peak < 0.0 {
        v.iter_mut().for_each(|x| *x = -*x);
    }
    (value, v)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::{NoiseCounter, Purpose, fill_normals};

    #[test]
    fn directions_of_known_variances_are_found() {
        let (n, dim) = (4000, 16);
        let mut values = vec![0f32; n * dim];
        let counter = NoiseCounter { purpose: Purpose::Simulation, side: Side::Chosen, row: 0, candidate: 0 };
        fill_normals(1, counter, &mut values);
        for row in values.chunks_mut(dim) {
            row[5] = 3.0 * row[5] + 7.0;
            row[2] *= 2.0;
        }
        let axes = Axes::of(&[Matrix::new(values, n, dim).unwrap()]);
        assert!(axes.directions[0][5] > 0.99 && axes.directions[1][2] > 0.98, "{:?}", axes.directions);
        // Variances 9, 4 and fourteen of 1.
        for (found, want) in axes.explained.iter().zip([9.0 / 27.0, 4.0 / 27.0]) {
            assert!((found - want).abs() < 0.02, "{:?}", axes.explained);
        }
        let constant = Axes::of(&[Matrix::new(vec![2.0; 32], 2, 16).unwrap()]);
        assert_eq!((constant.explained, constant.place(&[2.0; 16])), ([0.0; 2], [0.0; 2]));
    }
}
