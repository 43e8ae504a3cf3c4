//! Whether a VAE has learnt anything, and whether its latent space is one to perturb in.
//!
//! Nothing in the losses says so by itself: with too small a beta the posterior means lie so far apart that the noise of
//! the perturbation is lost between them, and with too large a one they all fall together.

use serde::{Deserialize, Serialize};

use crate::backend::{Backend, NoiseKey, Perturbation, Sample, VaeLoss};
use crate::error::Result;
use crate::matrix::{RowSet, ValuesMut};
use crate::model::{Standardizer, Vae};
use crate::side::Side;

/// A latent unit is active if the variance of its posterior means over the data is above this (Burda et al. 2016).
const ACTIVE: f64 = 0.01;
/// A VAE that explains less of the variance has not learnt.
const LEARNT: f64 = 0.2;
/// A sigma below this share of the spread is lost in it.
const LOST: f64 = 0.05;
/// An improvement of the reconstruction by more than this over the last tenth of the epochs is one that goes on.
const IMPROVING: f64 = 0.01;
/// Values of the rows that are decoded at once.
const BLOCK_VALUES: usize = 1 << 22;

/// What a trained VAE does to the embeddings that it was trained on, and to others. Embeddings are compared standardised, as
/// in training: by mean and deviation of the seeds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VaeHealth {
    /// Seed pairs.
    pub pairs: u64,
    /// Share of the seeds' variance that decoding the posterior means explains: 1 at best, 0 for the mean embedding.
    pub explained_variance: f64,
    /// The same of held-out pairs.
    pub held_out_explained_variance: Option<f64>,
    /// Mean KL divergence of a posterior from the prior, in nats.
    pub kl: f64,
    /// Latent units whose posterior means have a variance above 0.01.
    pub active_units: usize,
    /// Latent units.
    pub latent: usize,
    /// Mean 2-Wasserstein distance of the posteriors of a pair.
    pub w2: f64,
    /// Deviation of the posterior means, as the root of its mean square over units.
    pub spread: f64,
    /// Deviation of the perturbation.
    pub sigma: f64,
    /// `sigma` over `spread`.
    pub sigma_share: f64,
    /// Variance of synthetic embeddings, one for each seed embedding, over that of the seeds.
    pub synthetic_variance: f64,
    /// By how much the reconstruction still improved over the last tenth of the epochs, as a share; None for less than
    /// two epochs.
    pub improving: Option<f64>,
    /// What is wrong, in words.
    pub warnings: Vec<String>,
}

/// Looks at a VAE that was trained on `seeds` with losses `history`, and at what `perturbation` with `seed` makes of them.
///
/// # Errors
/// Sizes that do not fit, and what the device fails with.
pub fn vae_health<B: Backend>(
    backend: &B,
    vae: &Vae,
    seeds: &[RowSet<'_>; 2],
    held_out: Option<&[RowSet<'_>; 2]>,
    (perturbation, seed): (&Perturbation, u64),
    history: &[VaeLoss],
) -> Result<VaeHealth> {
    let standardizer = Standardizer::fit(&[&seeds[0], &seeds[1]]);
    let loaded = backend.load_vae(vae)?;
    let mut sums = Sums::new(vae.size().latent, vae.size().dim);
    sums.add(backend, &loaded, &standardizer, seeds, Some((perturbation, seed)))?;
    let held_out = held_out.map(|pairs| -> Result<f64> {
        let mut sums = Sums::new(vae.size().latent, vae.size().dim);
        sums.add(backend, &loaded, &standardizer, pairs, None)?;
        Ok(sums.explained())
    });
    let held_out = held_out.transpose()?;

    let rows = sums.rows as f64;
    let variances =
        sums.mu.iter().zip(&sums.mu_squares).map(|(sum, squares)| squares / rows - (sum / rows).powi(2));
    let variances: Vec<f64> = variances.collect();
    let spread = (variances.iter().sum::<f64>() / variances.len() as f64).max(0.0).sqrt();
    let synthetic = sums.synthetic.iter().zip(&sums.synthetic_squares);
    let synthetic: f64 = synthetic.map(|(sum, squares)| squares / rows - (sum / rows).powi(2)).sum();
    let sigma = perturbation.sigma2.sqrt();
    let mut health = VaeHealth {
        pairs: seeds[0].rows() as u64,
        explained_variance: sums.explained(),
        held_out_explained_variance: held_out,
        kl: sums.kl / rows,
        active_units: variances.iter().filter(|variance| **variance > ACTIVE).count(),
        latent: variances.len(),
        w2: sums.w2 / (rows / 2.0),
        spread,
        sigma,
        sigma_share: sigma / spread.max(f64::MIN_POSITIVE),
        synthetic_variance: synthetic / (sums.total / rows).max(f64::MIN_POSITIVE),
        improving: improving(history),
        warnings: Vec::new(),
    };
    health.warnings = health.judge();
    Ok(health)
}

impl VaeHealth {
    /// What is wrong. NaN is wrong too.
    fn judge(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let percent = |share: f64| format!("{:.0} %", 100.0 * share);
        let explained = self.explained_variance;
        if self.active_units == 0 {
            warnings.push(
                "the VAE has collapsed: no latent unit says anything of the embedding; a lower beta helps"
                    .into(),
            );
        } else if explained.is_nan() || explained < LEARNT {
            warnings.push(format!(
                "the VAE has not learnt: it explains {} of the variance; more epochs or a higher learning rate help",
                percent(explained)
            ));
        }
        if let Some(held_out) =
            self.held_out_explained_variance.filter(|h| *h < explained / 2.0 && explained >= LEARNT)
        {
            warnings.push(format!(
                "the VAE knows its seeds by heart: it explains {} of them and {} of held-out pairs",
                percent(explained),
                percent(held_out)
            ));
        }
        if let Some(improving) = self.improving.filter(|improving| *improving > IMPROVING) {
            warnings.push(format!(
                "the VAE was still improving: its reconstruction by {:.1} % over the last tenth of the epochs",
                100.0 * improving
            ));
        }
        if self.sigma > 0.0 && self.active_units > 0 && self.sigma_share < LOST {
            warnings.push(format!(
                "sigma is lost in the spread of the latent means: {:.2} against {:.2}; samples hardly differ from their \
                 seeds, and a higher sigma2 or beta helps",
                self.sigma, self.spread
            ));
        }
        warnings
    }
}

/// By how much the mean reconstruction error of the last tenth of the epochs is below that of the tenth before.
fn improving(history: &[VaeLoss]) -> Option<f64> {
    let tenth = (history.len() / 10).max(1);
    let (before, last) = history.get(history.len().checked_sub(2 * tenth)?..)?.split_at(tenth);
    let mean = |losses: &[VaeLoss]| losses.iter().map(|loss| loss.reconstruction).sum::<f64>() / tenth as f64;
    Some(1.0 - mean(last) / mean(before))
}

/// Sums over rows.
struct Sums {
    rows: u64,
    /// Squared error of the reconstruction, standardised.
    error: f64,
    /// Squared standardised values.
    total: f64,
    kl: f64,
    w2: f64,
    mu: Vec<f64>,
    mu_squares: Vec<f64>,
    /// Standardised synthetic values, `[d]`.
    synthetic: Vec<f64>,
    synthetic_squares: Vec<f64>,
}

impl Sums {
    fn new(latent: usize, dim: usize) -> Sums {
        let (units, values) = (vec![0.0; latent], vec![0.0; dim]);
        let (error, total, kl, w2) = (0.0, 0.0, 0.0, 0.0);
        let (mu_squares, synthetic_squares) = (units.clone(), values.clone());
        Sums { rows: 0, error, total, kl, w2, mu: units, mu_squares, synthetic: values, synthetic_squares }
    }

    fn explained(&self) -> f64 {
        1.0 - self.error / self.total
    }

    fn add<B: Backend>(
        &mut self,
        backend: &B,
        vae: &B::Vae,
        standardizer: &Standardizer,
        pairs: &[RowSet<'_>; 2],
        samples: Option<(&Perturbation, u64)>,
    ) -> Result<()> {
        let (all, dim) = (pairs[0].rows(), pairs[0].cols());
        let step = (BLOCK_VALUES / dim).max(1);
        let mut out = vec![0f32; if samples.is_some() { step.min(all) * dim } else { 0 }];
        for from in (0..all).step_by(step) {
            let range = from..(from + step).min(all);
            let rows = range.len();
            let mut both = Vec::new();
            for (side, set) in Side::BOTH.into_iter().zip(pairs) {
                let set = set.slice(range.clone());
                let embeddings = backend.embeddings(set)?;
                let (posteriors, sums) = backend.reconstruct(vae, &embeddings, standardizer, None)?;
                for row in sums {
                    self.total += row.total;
                    self.error += row.error;
                }
                let host = backend.posteriors(&posteriors)?;
                if let Some((perturbation, seed)) = samples {
                    let key = NoiseKey { seed, side, first_row: from as u64 };
                    let first: Vec<Sample> =
                        (0..rows as u32).map(|row| Sample { row, candidate: 0 }).collect();
                    let out = &mut out[..rows * dim];
                    let latents = backend.perturb(&posteriors, key, perturbation, &first)?;
                    backend.decode(vae, &latents, None, ValuesMut::F32(out))?;
                    for decoded in out.chunks_exact_mut(dim) {
                        standardizer.apply(decoded);
                        let sums = self.synthetic.iter_mut().zip(&mut self.synthetic_squares);
                        for ((sum, squares), &value) in sums.zip(&*decoded) {
                            *sum += f64::from(value);
                            *squares += f64::from(value).powi(2);
                        }
                    }
                }
                self.rows += rows as u64;
                both.push(host);
            }
            let [chosen, rejected] = &both[..] else { unreachable!("a pair has two sides") };
            for row in 0..rows {
                self.add_posteriors([chosen, rejected].map(|host| (host.mu.row(row), host.logvar.row(row))));
            }
        }
        Ok(())
    }

    /// Adds the posteriors (mu, log variance) of the two sides of a pair.
    fn add_posteriors(&mut self, sides: [(&[f32], &[f32]); 2]) {
        for (mu, logvar) in sides {
            let units = self.mu.iter_mut().zip(&mut self.mu_squares);
            for ((sum, squares), (&mu, &logvar)) in units.zip(mu.iter().zip(logvar)) {
                let (mu, logvar) = (f64::from(mu), f64::from(logvar));
                *sum += mu;
                *squares += mu * mu;
                self.kl += 0.5 * (mu * mu + logvar.exp() - 1.0 - logvar);
            }
        }
        let deviation = |logvar: f32| (f64::from(logvar) / 2.0).exp();
        let square = |a: f64, b: f64| (a - b).powi(2);
        let [(mu, logvar), (other_mu, other_logvar)] = sides;
        let means = mu.iter().zip(other_mu).map(|(&a, &b)| square(f64::from(a), f64::from(b)));
        let deviations = logvar.iter().zip(other_logvar).map(|(&a, &b)| square(deviation(a), deviation(b)));
        self.w2 += (means.sum::<f64>() + deviations.sum::<f64>()).sqrt();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn healthy() -> VaeHealth {
        VaeHealth {
            pairs: 100,
            explained_variance: 0.8,
            held_out_explained_variance: Some(0.7),
            kl: 60.0,
            active_units: 16,
            latent: 16,
            w2: 8.0,
            spread: 1.2,
            sigma: 0.1,
            sigma_share: 0.1 / 1.2,
            synthetic_variance: 0.8,
            improving: Some(0.001),
            warnings: Vec::new(),
        }
    }

    #[test]
    fn each_fault_has_its_warning() {
        assert_eq!(healthy().judge(), Vec::<String>::new());
        let cases: [(VaeHealth, &str); 6] = [
            (VaeHealth { explained_variance: 0.1, ..healthy() }, "has not learnt: it explains 10 %"),
            (VaeHealth { explained_variance: f64::NAN, ..healthy() }, "has not learnt"),
            (VaeHealth { active_units: 0, spread: 0.0, ..healthy() }, "has collapsed"),
            (VaeHealth { held_out_explained_variance: Some(0.3), ..healthy() }, "by heart"),
            (
                VaeHealth { improving: Some(0.03), ..healthy() },
                "still improving: its reconstruction by 3.0 %",
            ),
            (VaeHealth { sigma_share: 0.001, spread: 100.0, ..healthy() }, "lost in the spread"),
        ];
        for (health, word) in cases {
            let warnings = health.judge();
            assert!(warnings.len() == 1 && warnings[0].contains(word), "{word}: {warnings:?}");
        }
    }

    #[test]
    fn improvement_is_that_of_the_last_tenth() {
        let history = |losses: &[f64]| -> Vec<VaeLoss> {
            losses.iter().map(|&reconstruction| VaeLoss { reconstruction, ..VaeLoss::default() }).collect()
        };
        assert_eq!(improving(&history(&[])), None);
        assert_eq!(improving(&history(&[2.0])), None);
        assert_eq!(improving(&history(&[2.0, 1.0])), Some(0.5));
        let flat: Vec<f64> = (0..20).map(|epoch| if epoch < 16 { 9.0 } else { 1.0 }).collect();
        assert_eq!(improving(&history(&flat)), Some(0.0));
    }
}
