//! VAE training: forward, loss and backward of a batch as a few wide products and fused passes.

use rayon::prelude::*;

use super::layers::{Dense, relu_backward};
use crate::backend::{Divergence, Reduction, VaeLoss, VaeObjective, W2_EPS};
use crate::matrix::RowSet;
use crate::model::{Standardizer, Vae};
use crate::noise::math::exp;
use crate::noise::{Address, Purpose, Side, fill_normals};

/// Parameters, moments and scratch.
#[derive(Debug)]
pub struct VaeTrainer {
    encoder: [Dense; 2],
    decoder: [Dense; 2],
    objective: VaeObjective,
    standardizer: Standardizer,
    steps: i32,
    scratch: Scratch,
}

/// Activations and gradients of one batch; the first half of the rows is the chosen side.
#[derive(Debug, Default)]
struct Scratch {
    x: Vec<f32>,
    encoder_hidden: Vec<f32>,
    code: Vec<f32>,
    eps: Vec<f32>,
    z: Vec<f32>,
    decoder_hidden: Vec<f32>,
    /// The reconstruction, then its gradient.
    out: Vec<f32>,
    dhidden: Vec<f32>,
    dz: Vec<f32>,
    dcode: Vec<f32>,
}

impl VaeTrainer {
    /// Starts from a model for standardised embeddings.
    pub fn new(initial: &Vae, standardizer: &Standardizer, objective: &VaeObjective) -> VaeTrainer {
        VaeTrainer {
            encoder: initial.encoder.each_ref().map(Dense::new),
            decoder: initial.decoder.each_ref().map(Dense::new),
            objective: *objective,
            standardizer: standardizer.clone(),
            steps: 0,
            scratch: Scratch::default(),
        }
    }

    /// Dimension of the embeddings.
    pub fn dim(&self) -> usize {
        self.encoder[0].linear.inputs
    }

    /// The parameters.
    pub fn parameters(&self) -> Vae {
        Vae {
            encoder: self.encoder.each_ref().map(|d| d.linear.clone()),
            decoder: self.decoder.each_ref().map(|d| d.linear.clone()),
        }
    }

    /// The gradients of the last batch.
    pub fn gradients(&self) -> Vae {
        Vae {
            encoder: self.encoder.each_ref().map(|d| d.gradient.clone()),
            decoder: self.decoder.each_ref().map(|d| d.gradient.clone()),
        }
    }

    /// One pass over `order`.
    pub fn epoch(&mut self, sides: [&RowSet<'_>; 2], order: &[u32], epoch: u32, threads: usize) -> VaeLoss {
        let mut mean = VaeLoss::default();
        for batch in order.chunks(self.objective.batch) {
            let loss = self.batch(sides, batch, epoch, threads);
            mean.add_scaled(&loss, batch.len() as f64 / order.len() as f64);
            self.steps += 1;
            for layer in self.encoder.iter_mut().chain(&mut self.decoder) {
                layer.step(&self.objective.adam, self.steps);
            }
        }
        mean
    }

    /// Loss and gradients of one batch.
    pub fn batch(&mut self, sides: [&RowSet<'_>; 2], batch: &[u32], epoch: u32, threads: usize) -> VaeLoss {
        let rows = 2 * batch.len();
        let (dim, hidden) = (self.dim(), self.encoder[0].linear.outputs);
        let latent = self.decoder[0].linear.inputs;
        let s = &mut self.scratch;
        for (buffer, width) in [
            (&mut s.x, dim),
            (&mut s.encoder_hidden, hidden),
            (&mut s.code, 2 * latent),
            (&mut s.eps, latent),
            (&mut s.z, latent),
            (&mut s.decoder_hidden, hidden),
            (&mut s.out, dim),
            (&mut s.dhidden, hidden),
            (&mut s.dz, latent),
            (&mut s.dcode, 2 * latent),
        ] {
            buffer.resize(rows * width, 0.0);
        }
        let place = |r: usize| (Side::BOTH[r / batch.len()], batch[r % batch.len()]);

        let standardizer = &self.standardizer;
        s.x.par_chunks_mut(dim).enumerate().for_each(|(r, x)| {
            let (side, row) = place(r);
            sides[side as usize].row(row as usize).widen(x);
            standardizer.apply(x);
        });
        self.encoder[0].forward(&s.x, &mut s.encoder_hidden, true, threads);
        self.encoder[1].forward(&s.encoder_hidden, &mut s.code, false, threads);
        let codes = s.code.chunks_exact(2 * latent);
        let noise = s.eps.chunks_exact_mut(latent).zip(s.z.chunks_exact_mut(latent));
        for (r, (code, (eps, z))) in codes.zip(noise).enumerate() {
            let (side, row) = place(r);
            let address = Address { purpose: Purpose::TrainVae, side, row: u64::from(row), candidate: epoch };
            fill_normals(self.objective.seed, address, eps);
            for j in 0..latent {
                z[j] = exp(0.5 * code[latent + j]).mul_add(eps[j], code[j]);
            }
        }
        self.decoder[0].forward(&s.z, &mut s.decoder_hidden, true, threads);
        self.decoder[1].forward(&s.decoder_hidden, &mut s.out, false, threads);

        let mut loss = self.reconstruction(batch.len());
        self.divergences(batch.len(), latent, &mut loss);
        loss.total =
            loss.reconstruction + self.objective.beta * loss.kl + self.objective.gamma * loss.divergence;

        let s = &mut self.scratch;
        self.decoder[1].gradients(&s.decoder_hidden, &s.out, threads);
        self.decoder[1].backward(&s.out, &mut s.dhidden, threads);
        relu_backward(&s.decoder_hidden, &mut s.dhidden);
        self.decoder[0].gradients(&s.z, &s.dhidden, threads);
        self.decoder[0].backward(&s.dhidden, &mut s.dz, threads);
        for (r, dcode) in s.dcode.chunks_exact_mut(2 * latent).enumerate() {
            let at = r * latent;
            for j in 0..latent {
                let half_sigma = 0.5 * exp(0.5 * s.code[2 * at + latent + j]);
                dcode[j] += s.dz[at + j];
                dcode[latent + j] += half_sigma * s.eps[at + j] * s.dz[at + j];
            }
        }
        self.encoder[1].gradients(&s.encoder_hidden, &s.dcode, threads);
        self.encoder[1].backward(&s.dcode, &mut s.dhidden, threads);
        relu_backward(&s.encoder_hidden, &mut s.dhidden);
        self.encoder[0].gradients(&s.x, &s.dhidden, threads);
        loss
    }

    /// The reconstruction error; leaves its gradient in `out`.
    fn reconstruction(&mut self, pairs: usize) -> VaeLoss {
        let dim = self.dim();
        let scale = match self.objective.reconstruction {
            Reduction::Mean => 1.0 / dim as f64,
            Reduction::Sum => 1.0,
        };
        let slope = (2.0 * scale / pairs as f64) as f32;
        let s = &mut self.scratch;
        let squares: Vec<f64> = s
            .out
            .par_chunks_mut(dim)
            .zip(s.x.par_chunks(dim))
            .map(|(out, x)| {
                let mut sum = 0f64;
                for (out, x) in out.chunks_mut(256).zip(x.chunks(256)) {
                    let mut part = 0f32;
                    for (o, x) in out.iter_mut().zip(x) {
                        let difference = *o - x;
                        part += difference * difference;
                        *o = slope * difference;
                    }
                    sum += f64::from(part);
                }
                sum
            })
            .collect();
        let reconstruction = scale * squares.iter().sum::<f64>() / pairs as f64;
        VaeLoss { reconstruction, ..VaeLoss::default() }
    }

    /// KL and pair divergence in F64 (a few numbers per row); leaves their gradients by (mu, logvar) in `dcode`.
    fn divergences(&mut self, pairs: usize, latent: usize, loss: &mut VaeLoss) {
        let VaeObjective { beta, gamma, divergence, .. } = self.objective;
        let n = pairs as f64;
        let Scratch { code, dcode, .. } = &mut self.scratch;
        let (plus, minus) = code.split_at(pairs * 2 * latent);
        let (dplus, dminus) = dcode.split_at_mut(pairs * 2 * latent);
        for pair in 0..pairs {
            let at = pair * 2 * latent..(pair + 1) * 2 * latent;
            let codes = [&plus[at.clone()], &minus[at.clone()]];
            let sigma = |side: usize, j: usize| (0.5 * f64::from(codes[side][latent + j])).exp();
            let apart = |j: usize| f64::from(codes[0][j]) - f64::from(codes[1][j]);
            let square: f64 =
                (0..latent).map(|j| apart(j).powi(2) + (sigma(0, j) - sigma(1, j)).powi(2)).sum();
            let (value, slope) = match divergence {
                Divergence::W2 => (-(square + W2_EPS).sqrt(), -0.5 / (square + W2_EPS).sqrt()),
                Divergence::W2Squared => (-square, -1.0),
            };
            loss.divergence += value / n;
            for (side, dcode) in [&mut dplus[at.clone()], &mut dminus[at]].into_iter().enumerate() {
                let sign = if side == 0 { 1.0 } else { -1.0 };
                for j in 0..latent {
                    let (mu, logvar) = (f64::from(codes[side][j]), f64::from(codes[side][latent + j]));
                    let s = sigma(side, j);
                    loss.kl += 0.5 * (mu * mu + s * s - 1.0 - logvar) / n;
                    let dmu = beta * mu + gamma * slope * 2.0 * sign * apart(j);
                    let dsigma = gamma * slope * 2.0 * (s - sigma(1 - side, j));
                    let dlogvar = beta * 0.5 * (s * s - 1.0) + 0.5 * s * dsigma;
                    dcode[j] = (dmu / n) as f32;
                    dcode[latent + j] = (dlogvar / n) as f32;
                }
            }
        }
    }
}
