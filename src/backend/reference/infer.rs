//! Inference in F64, one row at a time.

use super::layers::{Layer, relu, widen};
use crate::backend::{LatentSource, Likelihood, NoiseKey, Perturbation, Residual};
use crate::interrupt::Interrupt;
use crate::matrix::RowSet;
use crate::model::Vae;
use crate::noise::{NoiseCounter, Purpose, fill_normals};

/// The oracle; single-threaded.
#[derive(Clone, Debug, Default)]
pub struct Reference {
    interrupt: Interrupt,
}

impl Reference {
    /// Needs nothing.
    pub fn new() -> Reference {
        Reference::default()
    }

    /// The flag that stops this backend's work, looked at between the steps of a training.
    pub fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }
}

/// Posteriors in F64, `[rows, latent]`.
#[derive(Clone, Debug)]
pub struct Posteriors {
    pub(super) mu: Vec<f64>,
    pub(super) logvar: Vec<f64>,
    pub(super) latent: usize,
}

impl Posteriors {
    pub(super) fn rows(&self) -> usize {
        self.mu.len() / self.latent
    }

    /// z_i: a posterior sample or the mean.
    pub(super) fn start(&self, row: usize, key: NoiseKey, source: LatentSource) -> Vec<f64> {
        let at = row * self.latent..(row + 1) * self.latent;
        let (mu, logvar) = (&self.mu[at.clone()], &self.logvar[at]);
        match source {
            LatentSource::Mean => mu.to_vec(),
            LatentSource::Sample => {
                let eps = normals(self.latent, Purpose::Posterior, key, row, 0);
                mu.iter().zip(logvar).zip(eps).map(|((m, lv), e)| m + (lv / 2.0).exp() * e).collect()
            }
        }
    }

    /// z' = z_i + sigma eta.
    pub(super) fn candidate(
        &self,
        row: usize,
        candidate: u32,
        key: NoiseKey,
        options: &Perturbation,
    ) -> Vec<f64> {
        let sigma = f64::from(options.sigma());
        let eta = normals(self.latent, Purpose::Perturb, key, row, candidate);
        self.start(row, key, options.source).iter().zip(eta).map(|(z, e)| z + sigma * e).collect()
    }

    /// The log-likelihood that ranks a candidate, without the terms that all candidates of a row share.
    pub(super) fn log_likelihood(&self, row: usize, z: &[f64], likelihood: Likelihood) -> f64 {
        let at = row * self.latent..(row + 1) * self.latent;
        let (mu, logvar) = (&self.mu[at.clone()], &self.logvar[at]);
        match likelihood {
            Likelihood::None => 0.0,
            Likelihood::Prior => -0.5 * z.iter().map(|z| z * z).sum::<f64>(),
            Likelihood::Posterior => {
                let square = |((z, m), lv): ((&f64, &f64), &f64)| (z - m) * (z - m) / lv.exp();
                -0.5 * z.iter().zip(mu).zip(logvar).map(square).sum::<f64>()
            }
        }
    }
}

pub(super) fn normals(n: usize, purpose: Purpose, key: NoiseKey, row: usize, candidate: u32) -> Vec<f64> {
    let mut out = vec![0f32; n];
    let counter = NoiseCounter { purpose, side: key.side, row: key.first_row + row as u64, candidate };
    fill_normals(key.seed, counter, &mut out);
    widen(&out)
}

/// Latents in F64 with the block row each belongs to.
#[derive(Clone, Debug)]
pub struct Latents {
    pub(super) z: Vec<f64>,
    pub(super) latent: usize,
    pub(super) rows: Vec<u32>,
}

pub(super) fn row_f64(rows: &RowSet<'_>, row: usize) -> Vec<f64> {
    let mut out = vec![0f32; rows.cols()];
    rows.row(row).widen(&mut out);
    widen(&out)
}

/// The encoder's hidden layer before ReLU, and its output (mu, logvar).
pub(super) fn encode_row(layers: [&Layer; 2], x: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let hidden = layers[0].forward(x);
    let out = layers[1].forward(&relu(&hidden));
    (hidden, out)
}

pub(super) fn decode_row(vae: &Vae, z: &[f64]) -> Vec<f64> {
    let hidden = relu(&Layer::new(&vae.decoder[0]).forward(z));
    Layer::new(&vae.decoder[1]).forward(&hidden)
}

/// Latent j as an embedding, plain or residual.
pub(super) fn decode_latent(
    vae: &Vae,
    latents: &Latents,
    j: usize,
    residual: Option<Residual<'_, '_, Reference>>,
) -> Vec<f64> {
    let mut out = decode_row(vae, &latents.z[j * latents.latent..(j + 1) * latents.latent]);
    if let Some(Residual { embeddings, posteriors }) = residual {
        let row = latents.rows[j] as usize;
        let mean = decode_row(vae, &posteriors.mu[row * latents.latent..(row + 1) * latents.latent]);
        let original = row_f64(embeddings, row);
        for ((o, m), e) in out.iter_mut().zip(mean).zip(original) {
            *o += e - m;
        }
    }
    out
}

pub(super) fn reward_of(layers: &[Layer; 2], x: &[f64]) -> f64 {
    layers[1].forward(&relu(&layers[0].forward(x)))[0]
}
