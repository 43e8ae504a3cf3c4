//! Standardisation: the map x -> (x - mean) / std that gives every embedding dimension mean 0 and standard
//! deviation 1.

use std::ops::Range;

use crate::matrix::RowSet;

/// The map x -> (x - mean) / std, per dimension. Fitted on the seed pairs and folded into the trained models.
#[derive(Clone, Debug, PartialEq)]
pub struct Standardizer {
    /// Mean of each dimension, `[d]`.
    pub mean: Vec<f32>,
    /// Standard deviation of each dimension, `[d]`; 1 where the data is constant, so that nothing is divided
    /// by 0.
    pub std: Vec<f32>,
}

impl Standardizer {
    /// The map that changes nothing.
    pub fn identity(dim: usize) -> Standardizer {
        Standardizer { mean: vec![0.0; dim], std: vec![1.0; dim] }
    }

    /// Mean and population standard deviation over the rows of all sets together, in two passes of F64 sums.
    pub fn fit(sets: &[&RowSet<'_>]) -> Standardizer {
        let dim = sets.first().map_or(0, |s| s.cols());
        let n: usize = sets.iter().map(|s| s.rows()).sum();
        let mut row = vec![0f32; dim];
        let mut for_each_row = |f: &mut dyn FnMut(&[f32])| {
            for set in sets {
                for r in 0..set.rows() {
                    set.row(r).widen(&mut row);
                    f(&row);
                }
            }
        };
        let mut mean = vec![0f64; dim];
        for_each_row(&mut |row| mean.iter_mut().zip(row).for_each(|(sum, &v)| *sum += f64::from(v)));
        mean.iter_mut().for_each(|m| *m /= n.max(1) as f64);
        let mut variance = vec![0f64; dim];
        for_each_row(&mut |row| {
            for ((sum, &m), &v) in variance.iter_mut().zip(&mean).zip(row) {
                *sum += (f64::from(v) - m) * (f64::from(v) - m);
            }
        });
        let std = variance
            .iter()
            .zip(&mean)
            .map(|(v, m)| {
                let std = (v / n.max(1) as f64).sqrt();
                // A spread within the rounding of the mean is no information: scaling it up would train on
                // noise.
                let rounding = m.abs() * f64::from(f32::EPSILON);
                if std > rounding && std > f64::from(f32::MIN_POSITIVE) { std as f32 } else { 1.0 }
            })
            .collect();
        Standardizer { mean: mean.iter().map(|&m| m as f32).collect(), std }
    }

    /// Applies the map in place to rows of width d.
    pub fn apply(&self, rows: &mut [f32]) {
        for row in rows.chunks_exact_mut(self.mean.len()) {
            self.apply_to(0..row.len(), row);
        }
    }

    /// Applies the map in place to dimensions `columns` of a row.
    #[inline]
    pub fn apply_to(&self, columns: Range<usize>, row: &mut [f32]) {
        let (mean, std) = (&self.mean[columns.clone()], &self.std[columns]);
        for ((x, m), s) in row.iter_mut().zip(mean).zip(std) {
            *x = (*x - m) / s;
        }
    }
}
