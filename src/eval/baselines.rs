//! Synthetic embeddings without a VAE: the paper's two baselines, and mixup.

use rayon::prelude::*;

use crate::matrix::{Matrix, RowSet, Side};
use crate::model::Standardizer;
use crate::noise::{NoiseCounter, Purpose, Stream, fill_normals};

/// Direct perturbation: e'_j = e_j + sigma std_j eta_j, with std_j the standard deviation of dimension j over
/// the seeds and eta_j standard normal. `per_side` samples of every row, sample a of row i at `i * per_side +
/// a`.
pub fn direct_perturbation(
    rows: &RowSet<'_>,
    side: Side,
    standardizer: &Standardizer,
    sigma: f32,
    per_side: usize,
    seed: u64,
) -> Matrix {
    let mut out = Matrix::zeros(rows.rows() * per_side, rows.cols());
    let dim = rows.cols();
    out.values.par_chunks_mut(dim).enumerate().for_each(|(j, out)| {
        let (row, candidate) = (j / per_side, (j % per_side) as u32);
        let mut noise = vec![0f32; dim];
        let purpose = Purpose::DirectPerturbation;
        fill_normals(seed, NoiseCounter { purpose, side, row: row as u64, candidate }, &mut noise);
        rows.row(row).widen(out);
        for ((e, n), s) in out.iter_mut().zip(&noise).zip(&standardizer.std) {
            *e += sigma * s * n;
        }
    });
    out
}

/// Gaussian sampling: samples of N(mean, covariance), fitted to the n rows of one side. The sum mean + sum_i
/// g_i (e_i - mean) / sqrt(n), with independent standard normal g_i, has exactly the rows' covariance,
/// without the d x d matrix. Sample a of row i is at `i * per_side + a`.
pub fn gaussian_sampling(rows: &RowSet<'_>, side: Side, per_side: usize, seed: u64) -> Matrix {
    let (n, dim) = (rows.rows(), rows.cols());
    let mut centred = Matrix::zeros(n, dim);
    rows.widen(0..n, &mut centred.values);
    let mean = Standardizer::fit(&[rows]).mean;
    for row in centred.values.chunks_exact_mut(dim) {
        row.iter_mut().zip(&mean).for_each(|(x, m)| *x -= m);
    }
    let mut out = Matrix::zeros(n * per_side, dim);
    let scale = 1.0 / (n as f32).sqrt();
    out.values.par_chunks_mut(dim).enumerate().for_each(|(j, out)| {
        let (row, candidate) = ((j / per_side) as u64, (j % per_side) as u32);
        let mut weights = vec![0f32; n];
        let purpose = Purpose::GaussianSampling;
        fill_normals(seed, NoiseCounter { purpose, side, row, candidate }, &mut weights);
        out.copy_from_slice(&mean);
        for (weight, row) in weights.iter().zip(centred.values.chunks_exact(dim)) {
            let weight = weight * scale;
            out.iter_mut().zip(row).for_each(|(o, x)| *o += weight * x);
        }
    });
    out
}

/// Mixup (Zhang et al. 2018) of pairs: w e_i + (1 - w) e_j, with a partner j and a weight w uniform in [0.5, 1) that
/// depend on the row and the sample alone, so that both sides of a pair are mixed alike. Sample a of row i is at
/// `i * per_row + a`.
pub fn mixup(rows: &RowSet<'_>, per_row: usize, seed: u64) -> Matrix {
    let (n, dim) = (rows.rows(), rows.cols());
    let mut out = Matrix::zeros(n * per_row, dim);
    out.values.par_chunks_mut(dim).enumerate().for_each(|(j, out)| {
        let mut stream = Stream::new(seed, Purpose::Mixing, (1 << 40) | j as u64);
        let partner = stream.below(n as u32) as usize;
        let weight = 0.5 + 0.5 * stream.uniform();
        let mut other = vec![0f32; dim];
        rows.row(j / per_row).widen(out);
        rows.row(partner).widen(&mut other);
        out.iter_mut().zip(&other).for_each(|(e, o)| *e = weight * *e + (1.0 - weight) * o);
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::Rows;

    fn data() -> Vec<f32> {
        let mut values = vec![0f32; 400 * 3];
        fill_normals(
            5,
            NoiseCounter { purpose: Purpose::Simulation, side: Side::Chosen, row: 0, candidate: 0 },
            &mut values,
        );
        // Correlated, shifted, unequal scales.
        for row in values.chunks_exact_mut(3) {
            row[1] = 10.0 + 3.0 * row[0] + 0.5 * row[1];
            row[2] *= 0.01;
        }
        values
    }

    fn covariance(values: &[f32], i: usize, j: usize) -> f64 {
        let n = (values.len() / 3) as f64;
        let mean = |k: usize| values.chunks(3).map(|r| f64::from(r[k])).sum::<f64>() / n;
        let (a, b) = (mean(i), mean(j));
        values.chunks(3).map(|r| (f64::from(r[i]) - a) * (f64::from(r[j]) - b)).sum::<f64>() / n
    }

    #[test]
    fn gaussian_samples_have_the_rows_covariance() {
        let values = data();
        let rows = RowSet::from(Rows::from_f32(&values, 3).unwrap());
        let made = gaussian_sampling(&rows, Side::Chosen, 50, 1);
        for (i, j) in [(0, 0), (0, 1), (1, 1), (2, 2)] {
            let (want, got) = (covariance(&values, i, j), covariance(&made.values, i, j));
            assert!((got / want - 1.0).abs() < 0.05, "covariance {i} {j}: {got} for {want}");
        }
    }

    #[test]
    fn direct_noise_has_the_asked_variance_per_dimension() {
        let values = data();
        let rows = RowSet::from(Rows::from_f32(&values, 3).unwrap());
        let standardizer = Standardizer::fit(&[&rows]);
        let made = direct_perturbation(&rows, Side::Rejected, &standardizer, 0.2, 20, 1);
        for j in 0..3 {
            let square: f64 = made
                .values
                .chunks(3)
                .enumerate()
                .map(|(i, r)| f64::from(r[j] - values[i / 20 * 3 + j]).powi(2))
                .sum();
            let ratio = square / 8000.0 / (0.04 * f64::from(standardizer.std[j]).powi(2));
            assert!((ratio - 1.0).abs() < 0.06, "dimension {j}: {ratio}");
        }
    }

    #[test]
    fn mixtures_lie_between_their_rows_on_both_sides_alike() {
        let values = data();
        let rows = RowSet::from(Rows::from_f32(&values, 3).unwrap());
        let made = mixup(&rows, 3, 1);
        assert_eq!((made.rows, made.cols), (1200, 3));
        let doubled: Vec<f32> = values.iter().map(|v| 2.0 * v).collect();
        let other = mixup(&RowSet::from(Rows::from_f32(&doubled, 3).unwrap()), 3, 1);
        for (i, (row, other)) in made.values.chunks(3).zip(other.values.chunks(3)).enumerate() {
            // The same partner and weight for rows that are twice as large.
            assert!(row.iter().zip(other).all(|(a, b)| 2.0 * a == *b), "row {i}");
            // At least as near to the row as to any partner.
            let own = &values[i / 3 * 3..][..3];
            let inside = (0..400).any(|j| {
                let partner = &values[3 * j..][..3];
                let w =
                    if partner[0] == own[0] { 1.0 } else { (row[0] - partner[0]) / (own[0] - partner[0]) };
                let near = |k: usize| {
                    (w * own[k] + (1.0 - w) * partner[k] - row[k]).abs() < 1e-4 * (1.0 + row[k].abs())
                };
                (0.499..=1.001).contains(&w) && (0..3).all(near)
            });
            assert!(inside, "row {i}");
        }
    }
}
