//! Loss and gradients of both models, one pair at a time.

use super::infer::{Reference, decode_latent, encode_row, normals, row_f64};
use super::layers::{Layer, Optimizer, relu, relu_backward};
use crate::backend::{
    Divergence, NoiseKey, PairData, PairRows, Reduction, RewardData, RewardObjective, RewardSide, VaeLoss,
    VaeObjective, W2_EPS,
};
use crate::matrix::RowSet;
use crate::model::Standardizer;
use crate::noise::{Purpose, Side};

/// Parameters and moments of VAE training.
#[derive(Debug)]
pub struct VaeTrainer {
    /// encoder.0, encoder.2, decoder.0, decoder.2
    pub(super) layers: Vec<Layer>,
    pub(super) optimizer: Optimizer,
    pub(super) objective: VaeObjective,
    pub(super) standardizer: Standardizer,
    pub(super) latent: usize,
}

/// Parameters and moments of reward training.
#[derive(Debug)]
pub struct RewardTrainer {
    pub(super) layers: Vec<Layer>,
    pub(super) optimizer: Optimizer,
    pub(super) objective: RewardObjective,
    pub(super) standardizer: Standardizer,
}

fn standardized(row: &[f64], standardizer: &Standardizer) -> Vec<f64> {
    let Standardizer { mean, std } = standardizer;
    row.iter().zip(mean.iter().zip(std)).map(|(x, (&m, &s))| (x - f64::from(m)) / f64::from(s)).collect()
}

impl RewardTrainer {
    /// A row of a side, standardised.
    pub(super) fn row(&self, side: &RewardSide<'_, '_, Reference>, row: u32) -> Vec<f64> {
        let row = row as usize;
        let originals = side.originals.rows();
        let raw = match &side.synthetic {
            Some(s) if row >= originals => decode_latent(s.vae, s.latents, row - originals, s.residual),
            _ => row_f64(side.originals, row),
        };
        standardized(&raw, &self.standardizer)
    }

    /// The same with the noise of a step.
    fn noisy_row(&self, side: &RewardSide<'_, '_, Reference>, row: u32, at: (Side, usize)) -> Vec<f64> {
        let RewardObjective { input_noise, seed, .. } = self.objective;
        let mut x = self.row(side, row);
        if input_noise > 0.0 {
            let key = NoiseKey { seed, side: at.0, first_row: 0 };
            let noise = normals(x.len(), Purpose::InputNoise, key, at.1, self.optimizer.steps());
            x.iter_mut().zip(noise).for_each(|(x, n)| *x += input_noise * n);
        }
        x
    }

    pub(super) fn batch(
        &self,
        data: &RewardData<'_, '_, Reference>,
        batch: &[PairRows],
    ) -> (f64, Vec<Layer>) {
        let mut gradients: Vec<Layer> = self.layers.iter().map(Layer::zeros_like).collect();
        let n = batch.len() as f64;
        let heads = self.layers.last().map_or(0, |l| l.bias.len());
        let mut loss = 0.0;
        for (p, &[a, b]) in batch.iter().enumerate() {
            let inputs = [
                self.noisy_row(&data.chosen, a, (Side::Chosen, p)),
                self.noisy_row(&data.rejected, b, (Side::Rejected, p)),
            ];
            let first = inputs.each_ref().map(|x| self.layers[0].forward(x));
            let rewards = first.each_ref().map(|first| self.rewards(first));
            let slopes: Vec<f64> = (0..heads)
                .map(|k| {
                    let margin = rewards[0][k] - rewards[1][k];
                    // -log sigmoid(margin), without overflow for either sign.
                    loss += ((-margin).max(0.0) + (-margin.abs()).exp().ln_1p()) / heads as f64;
                    -1.0 / (1.0 + margin.exp()) / n
                })
                .collect();
            for (side, sign) in [(0, 1.0), (1, -1.0)] {
                let slopes: Vec<f64> = slopes.iter().map(|slope| sign * slope).collect();
                let dfirst = match self.layers.len() {
                    1 => slopes,
                    _ => self.second_backward(&first[side], &slopes, &mut gradients[1]),
                };
                self.layers[0].backward(&inputs[side], &dfirst, &mut gradients[0]);
            }
        }
        (loss / n, gradients)
    }

    /// The reward by each head, from the first layer's outputs.
    fn rewards(&self, first: &[f64]) -> Vec<f64> {
        let Some(second) = self.layers.get(1) else { return first.to_vec() };
        let active = relu(first);
        let heads = second.weight.chunks_exact(second.inputs).zip(active.chunks_exact(second.inputs));
        heads
            .zip(&second.bias)
            .map(|((w, x), b)| w.iter().zip(x).map(|(w, x)| w * x).sum::<f64>() + b)
            .collect()
    }

    /// Adds the gradients of the second layers; gives the gradient by the first layer's outputs.
    fn second_backward(&self, first: &[f64], slopes: &[f64], gradient: &mut Layer) -> Vec<f64> {
        let (second, active) = (&self.layers[1], relu(first));
        let mut dactive = vec![0.0; first.len()];
        for (k, slope) in slopes.iter().enumerate() {
            gradient.bias[k] += slope;
            for j in k * second.inputs..(k + 1) * second.inputs {
                gradient.weight[j] += slope * active[j];
                dactive[j] = slope * second.weight[j];
            }
        }
        relu_backward(first, &dactive)
    }
}

/// What one side of a pair contributes: everything the backward pass needs.
pub(super) struct Pass {
    x: Vec<f64>,
    encoder_hidden: Vec<f64>,
    mu: Vec<f64>,
    logvar: Vec<f64>,
    eps: Vec<f64>,
    z: Vec<f64>,
    decoder_hidden: Vec<f64>,
    difference: Vec<f64>,
}

impl VaeTrainer {
    pub(super) fn forward(&self, rows: &RowSet<'_>, row: u32, side: Side, epoch: u32) -> Pass {
        let x = standardized(&row_f64(rows, row as usize), &self.standardizer);
        let (encoder_hidden, out) = encode_row([&self.layers[0], &self.layers[1]], &x);
        let (mu, logvar) = (out[..self.latent].to_vec(), out[self.latent..].to_vec());
        let key = NoiseKey { seed: self.objective.seed, side, first_row: 0 };
        let eps = normals(self.latent, Purpose::TrainVae, key, row as usize, epoch);
        let z: Vec<f64> = (0..self.latent).map(|j| mu[j] + (logvar[j] / 2.0).exp() * eps[j]).collect();
        let decoder_hidden = self.layers[2].forward(&z);
        let out = self.layers[3].forward(&relu(&decoder_hidden));
        let difference = out.iter().zip(&x).map(|(o, x)| o - x).collect();
        Pass { x, encoder_hidden, mu, logvar, eps, z, decoder_hidden, difference }
    }

    pub(super) fn batch(
        &self,
        data: &PairData<'_, '_, Reference>,
        batch: &[u32],
        epoch: u32,
    ) -> (VaeLoss, Vec<Layer>) {
        let VaeObjective { reconstruction, beta, gamma, divergence, .. } = self.objective;
        let n = batch.len() as f64;
        let scale = match reconstruction {
            Reduction::Mean => 1.0 / data.chosen.cols() as f64,
            Reduction::Sum => 1.0,
        };
        let mut gradients: Vec<Layer> = self.layers.iter().map(Layer::zeros_like).collect();
        let mut loss = VaeLoss::default();
        for &row in batch {
            let passes = [
                self.forward(data.chosen, row, Side::Chosen, epoch),
                self.forward(data.rejected, row, Side::Rejected, epoch),
            ];
            let sigma =
                passes.each_ref().map(|p| p.logvar.iter().map(|lv| (lv / 2.0).exp()).collect::<Vec<_>>());
            let w2 = |j: usize| {
                ((passes[0].mu[j] - passes[1].mu[j]).powi(2)) + (sigma[0][j] - sigma[1][j]).powi(2)
            };
            let square: f64 = (0..self.latent).map(w2).sum();
            // L_div and its derivative by the squared distance.
            let (div, slope) = match divergence {
                Divergence::W2 => (-(square + W2_EPS).sqrt(), -0.5 / (square + W2_EPS).sqrt()),
                Divergence::W2Squared => (-square, -1.0),
            };
            loss.divergence += div / n;
            for (side, pass) in passes.iter().enumerate() {
                loss.reconstruction += scale * pass.difference.iter().map(|d| d * d).sum::<f64>() / n;
                let kl = |(m, lv): (&f64, &f64)| 0.5 * (m * m + lv.exp() - 1.0 - lv);
                loss.kl += pass.mu.iter().zip(&pass.logvar).map(kl).sum::<f64>() / n;

                let dout: Vec<f64> = pass.difference.iter().map(|d| 2.0 * scale * d / n).collect();
                let dg = self.layers[3].backward(&relu(&pass.decoder_hidden), &dout, &mut gradients[3]);
                let dg = relu_backward(&pass.decoder_hidden, &dg);
                let dz = self.layers[2].backward(&pass.z, &dg, &mut gradients[2]);
                let other = &passes[1 - side];
                let mut dcode = vec![0.0; 2 * self.latent];
                for j in 0..self.latent {
                    let s = sigma[side][j];
                    let dmu_div = gamma * slope * 2.0 * (pass.mu[j] - other.mu[j]) / n;
                    let dsigma_div = gamma * slope * 2.0 * (s - sigma[1 - side][j]) / n;
                    dcode[j] = dz[j] + beta * pass.mu[j] / n + dmu_div;
                    dcode[self.latent + j] = 0.5 * s * (dz[j] * pass.eps[j] + dsigma_div)
                        + beta * 0.5 * (pass.logvar[j].exp() - 1.0) / n;
                }
                let dh = self.layers[1].backward(&relu(&pass.encoder_hidden), &dcode, &mut gradients[1]);
                let dh = relu_backward(&pass.encoder_hidden, &dh);
                self.layers[0].backward(&pass.x, &dh, &mut gradients[0]);
            }
        }
        loss.total = loss.reconstruction + beta * loss.kl + gamma * loss.divergence;
        (loss, gradients)
    }
}
