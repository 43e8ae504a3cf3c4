//! The oracle: every operation as one plain loop in F64. Slow, obvious, and what every other backend is tested
//! against. Inputs are the stored values and F32 parameters; nothing is rounded until a result leaves.

use super::{
    Adam, Backend, DeviceInfo, Divergence, LatentSource, Likelihood, Origin, PairData, PairRows,
    Perturbation, PosteriorsHost, Reduction, Residual, RewardData, RewardObjective, RewardSide, Sample,
    Selection, VaeLoss, VaeObjective, W2_EPS, check,
};
use crate::error::Result;
use crate::matrix::{Matrix, RowSet, ValuesMut};
use crate::model::{Linear, RewardModel, Standardizer, Vae};
use crate::noise::{Address, Purpose, Side, fill_normals};

/// The reference backend. Single-threaded.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reference;

impl Reference {
    /// The reference backend.
    pub fn new() -> Reference {
        Reference
    }
}

/// A layer in F64.
#[derive(Clone, Debug)]
struct Layer {
    weight: Vec<f64>,
    bias: Vec<f64>,
    inputs: usize,
}

impl Layer {
    fn new(linear: &Linear) -> Layer {
        Layer { weight: widen(&linear.weight), bias: widen(&linear.bias), inputs: linear.inputs }
    }

    fn zeros_like(&self) -> Layer {
        Layer { weight: vec![0.0; self.weight.len()], bias: vec![0.0; self.bias.len()], inputs: self.inputs }
    }

    fn to_linear(&self) -> Linear {
        let (weight, bias) = (narrow(&self.weight), narrow(&self.bias));
        Linear { weight, bias, inputs: self.inputs, outputs: self.bias.len() }
    }

    /// W x + b.
    fn forward(&self, x: &[f64]) -> Vec<f64> {
        let dot = |w: &[f64]| w.iter().zip(x).map(|(w, x)| w * x).sum::<f64>();
        self.weight.chunks_exact(self.inputs).zip(&self.bias).map(|(w, b)| dot(w) + b).collect()
    }

    /// Adds the gradients of W and b for input x and output gradient dy; gives the input gradient W^T dy.
    fn backward(&self, x: &[f64], dy: &[f64], gradient: &mut Layer) -> Vec<f64> {
        let mut dx = vec![0.0; self.inputs];
        for (o, &g) in dy.iter().enumerate() {
            gradient.bias[o] += g;
            let row = o * self.inputs..(o + 1) * self.inputs;
            for ((dw, w), (x, dx)) in
                gradient.weight[row.clone()].iter_mut().zip(&self.weight[row]).zip(x.iter().zip(&mut dx))
            {
                *dw += g * x;
                *dx += g * w;
            }
        }
        dx
    }
}

fn widen(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

fn narrow(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&v| v as f32).collect()
}

fn relu(x: &[f64]) -> Vec<f64> {
    x.iter().map(|&v| v.max(0.0)).collect()
}

/// The gradient through ReLU: zero where the input was not positive.
fn relu_backward(x: &[f64], dy: &[f64]) -> Vec<f64> {
    x.iter().zip(dy).map(|(&x, &g)| if x > 0.0 { g } else { 0.0 }).collect()
}

/// Adam over several layers.
#[derive(Debug)]
struct Optimizer {
    how: Adam,
    steps: i32,
    first: Vec<Layer>,
    second: Vec<Layer>,
}

impl Optimizer {
    fn new(how: Adam, layers: &[Layer]) -> Optimizer {
        let zeros = || layers.iter().map(Layer::zeros_like).collect();
        Optimizer { how, steps: 0, first: zeros(), second: zeros() }
    }

    fn step(&mut self, layers: &mut [Layer], gradients: &[Layer]) {
        self.steps += 1;
        let Adam { lr, beta1, beta2, eps } = self.how;
        let correct1 = 1.0 - beta1.powi(self.steps);
        let correct2 = 1.0 - beta2.powi(self.steps);
        let update = |w: &mut [f64], g: &[f64], m: &mut [f64], v: &mut [f64]| {
            for i in 0..w.len() {
                m[i] = beta1 * m[i] + (1.0 - beta1) * g[i];
                v[i] = beta2 * v[i] + (1.0 - beta2) * g[i] * g[i];
                w[i] -= lr * (m[i] / correct1) / ((v[i] / correct2).sqrt() + eps);
            }
        };
        for (i, (layer, gradient)) in layers.iter_mut().zip(gradients).enumerate() {
            let (m, v) = (&mut self.first[i], &mut self.second[i]);
            update(&mut layer.weight, &gradient.weight, &mut m.weight, &mut v.weight);
            update(&mut layer.bias, &gradient.bias, &mut m.bias, &mut v.bias);
        }
    }
}

/// Posteriors in F64, `[rows, latent]`.
#[derive(Clone, Debug)]
pub struct Posteriors {
    mu: Vec<f64>,
    logvar: Vec<f64>,
    latent: usize,
}

impl Posteriors {
    fn rows(&self) -> usize {
        self.mu.len() / self.latent
    }

    /// z_i: a posterior sample or the mean.
    fn start(&self, row: usize, origin: Origin, source: LatentSource) -> Vec<f64> {
        let at = row * self.latent..(row + 1) * self.latent;
        let (mu, logvar) = (&self.mu[at.clone()], &self.logvar[at]);
        match source {
            LatentSource::Mean => mu.to_vec(),
            LatentSource::Sample => {
                let eps = normals(self.latent, Purpose::Posterior, origin, row, 0);
                mu.iter().zip(logvar).zip(eps).map(|((m, lv), e)| m + (lv / 2.0).exp() * e).collect()
            }
        }
    }

    /// z' = z_i + sigma eta.
    fn candidate(&self, row: usize, candidate: u32, origin: Origin, how: &Perturbation) -> Vec<f64> {
        let sigma = f64::from(how.sigma2.sqrt());
        let eta = normals(self.latent, Purpose::Perturb, origin, row, candidate);
        self.start(row, origin, how.source).iter().zip(eta).map(|(z, e)| z + sigma * e).collect()
    }

    /// The log-likelihood that ranks a candidate, without the terms that all candidates of a row share.
    fn log_likelihood(&self, row: usize, z: &[f64], likelihood: Likelihood) -> f64 {
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

fn normals(n: usize, purpose: Purpose, origin: Origin, row: usize, candidate: u32) -> Vec<f64> {
    let mut out = vec![0f32; n];
    let address = Address { purpose, side: origin.side, row: origin.first_row + row as u64, candidate };
    fill_normals(origin.seed, address, &mut out);
    widen(&out)
}

/// Latents in F64 with the block row each belongs to.
#[derive(Clone, Debug)]
pub struct Latents {
    z: Vec<f64>,
    latent: usize,
    rows: Vec<u32>,
}

/// Parameters and moments of VAE training.
#[derive(Debug)]
pub struct VaeTrainer {
    /// encoder.0, encoder.2, decoder.0, decoder.2
    layers: Vec<Layer>,
    optimizer: Optimizer,
    objective: VaeObjective,
    standardizer: Standardizer,
    latent: usize,
}

/// Parameters and moments of reward training.
#[derive(Debug)]
pub struct RewardTrainer {
    layers: Vec<Layer>,
    optimizer: Optimizer,
    objective: RewardObjective,
    standardizer: Standardizer,
}

fn standardized(row: &[f64], standardizer: &Standardizer) -> Vec<f64> {
    let Standardizer { mean, std } = standardizer;
    row.iter().zip(mean.iter().zip(std)).map(|(x, (&m, &s))| (x - f64::from(m)) / f64::from(s)).collect()
}

fn row_f64(rows: &RowSet<'_>, row: usize) -> Vec<f64> {
    let mut out = vec![0f32; rows.cols()];
    rows.row(row).widen(&mut out);
    widen(&out)
}

/// The encoder's hidden layer before ReLU, and its output (mu, logvar).
fn encode_row(layers: [&Layer; 2], x: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let hidden = layers[0].forward(x);
    let out = layers[1].forward(&relu(&hidden));
    (hidden, out)
}

fn decode_row(vae: &Vae, z: &[f64]) -> Vec<f64> {
    let hidden = relu(&Layer::new(&vae.decoder[0]).forward(z));
    Layer::new(&vae.decoder[1]).forward(&hidden)
}

/// Latent j as an embedding, plain or residual.
fn decode_latent<'e>(
    vae: &Vae,
    latents: &Latents,
    j: usize,
    residual: Option<Residual<'_, 'e, Reference>>,
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

impl RewardTrainer {
    /// A row of a side, standardised.
    fn row(&self, side: &RewardSide<'_, '_, Reference>, row: u32) -> Vec<f64> {
        let row = row as usize;
        let originals = side.originals.rows();
        let raw = match &side.synthetic {
            Some(s) if row >= originals => decode_latent(s.vae, s.latents, row - originals, s.residual),
            _ => row_f64(side.originals, row),
        };
        standardized(&raw, &self.standardizer)
    }

    fn batch(&self, data: &RewardData<'_, '_, Reference>, batch: &[PairRows]) -> (f64, Vec<Layer>) {
        let mut gradients: Vec<Layer> = self.layers.iter().map(Layer::zeros_like).collect();
        let n = batch.len() as f64;
        let mut loss = 0.0;
        for &[a, b] in batch {
            let inputs = [self.row(&data.chosen, a), self.row(&data.rejected, b)];
            let hidden = inputs.each_ref().map(|x| self.layers[0].forward(x));
            let reward = hidden.each_ref().map(|h| self.layers[1].forward(&relu(h))[0]);
            let margin = reward[0] - reward[1];
            // -log sigmoid(margin), without overflow for either sign.
            loss += (-margin).max(0.0) + (-margin.abs()).exp().ln_1p();
            let slope = -1.0 / (1.0 + margin.exp()) / n;
            for (side, sign) in [(0, 1.0), (1, -1.0)] {
                let active = relu(&hidden[side]);
                let dh = self.layers[1].backward(&active, &[sign * slope], &mut gradients[1]);
                let dh = relu_backward(&hidden[side], &dh);
                self.layers[0].backward(&inputs[side], &dh, &mut gradients[0]);
            }
        }
        (loss / n, gradients)
    }
}

/// What one side of a pair contributes: everything the backward pass needs.
struct Pass {
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
    fn forward(&self, rows: &RowSet<'_>, row: u32, side: Side, epoch: u32) -> Pass {
        let x = standardized(&row_f64(rows, row as usize), &self.standardizer);
        let (encoder_hidden, out) = encode_row([&self.layers[0], &self.layers[1]], &x);
        let (mu, logvar) = (out[..self.latent].to_vec(), out[self.latent..].to_vec());
        let origin = Origin { seed: self.objective.seed, side, first_row: 0 };
        let eps = normals(self.latent, Purpose::TrainVae, origin, row as usize, epoch);
        let z: Vec<f64> = (0..self.latent).map(|j| mu[j] + (logvar[j] / 2.0).exp() * eps[j]).collect();
        let decoder_hidden = self.layers[2].forward(&z);
        let out = self.layers[3].forward(&relu(&decoder_hidden));
        let difference = out.iter().zip(&x).map(|(o, x)| o - x).collect();
        Pass { x, encoder_hidden, mu, logvar, eps, z, decoder_hidden, difference }
    }

    fn batch(&self, data: &PairData<'_, '_, Reference>, batch: &[u32], epoch: u32) -> (VaeLoss, Vec<Layer>) {
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

fn vae_of(layers: &[Layer]) -> Vae {
    Vae {
        encoder: [layers[0].to_linear(), layers[1].to_linear()],
        decoder: [layers[2].to_linear(), layers[3].to_linear()],
    }
}

impl Backend for Reference {
    type Embeddings<'a> = RowSet<'a>;
    type Vae = Vae;
    type Reward = RewardModel;
    type Posteriors = Posteriors;
    type Latents = Latents;
    type VaeTrainer = VaeTrainer;
    type RewardTrainer = RewardTrainer;

    fn info(&self) -> DeviceInfo {
        DeviceInfo { name: "reference".into(), detail: "plain F64 loops".into(), threads: 1 }
    }

    fn embeddings<'a>(&'a self, rows: RowSet<'a>) -> Result<RowSet<'a>> {
        Ok(rows)
    }

    fn load_vae(&self, vae: &Vae) -> Result<Vae> {
        Ok(vae.clone())
    }

    fn load_reward(&self, model: &RewardModel) -> Result<RewardModel> {
        Ok(model.clone())
    }

    fn load_latents(&self, z: &Matrix, rows: &[u32]) -> Result<Latents> {
        check::latent_rows(z, rows)?;
        Ok(Latents { z: widen(&z.values), latent: z.cols, rows: rows.to_vec() })
    }

    fn encode(&self, vae: &Vae, embeddings: &RowSet<'_>) -> Result<Posteriors> {
        check::width("VAE", vae.size().dim, embeddings.cols())?;
        let latent = vae.size().latent;
        let layers = [Layer::new(&vae.encoder[0]), Layer::new(&vae.encoder[1])];
        let (mut mu, mut logvar) = (Vec::new(), Vec::new());
        for row in 0..embeddings.rows() {
            let (_, out) = encode_row([&layers[0], &layers[1]], &row_f64(embeddings, row));
            mu.extend_from_slice(&out[..latent]);
            logvar.extend_from_slice(&out[latent..]);
        }
        Ok(Posteriors { mu, logvar, latent })
    }

    fn posteriors(&self, p: &Posteriors) -> Result<PosteriorsHost> {
        Ok(PosteriorsHost {
            mu: Matrix::new(narrow(&p.mu), p.rows(), p.latent)?,
            logvar: Matrix::new(narrow(&p.logvar), p.rows(), p.latent)?,
        })
    }

    fn select(&self, p: &Posteriors, origin: Origin, how: &Perturbation) -> Result<Selection> {
        let keep = how.keep as usize;
        let mut candidates = Vec::with_capacity(p.rows() * keep);
        for row in 0..p.rows() {
            let mut ranked: Vec<(f64, u32)> = (0..how.drawn())
                .map(|c| (p.log_likelihood(row, &p.candidate(row, c, origin, how), how.likelihood), c))
                .collect();
            ranked.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            candidates.extend(ranked[..keep].iter().map(|r| r.1));
        }
        Ok(Selection { keep, candidates })
    }

    fn perturb(
        &self,
        p: &Posteriors,
        origin: Origin,
        how: &Perturbation,
        samples: &[Sample],
    ) -> Result<Latents> {
        check::samples(samples, p.rows())?;
        let z = samples.iter().flat_map(|s| p.candidate(s.row as usize, s.candidate, origin, how)).collect();
        Ok(Latents { z, latent: p.latent, rows: samples.iter().map(|s| s.row).collect() })
    }

    fn latents(&self, latents: &Latents) -> Result<Matrix> {
        Matrix::new(narrow(&latents.z), latents.rows.len(), latents.latent)
    }

    fn decode<'e>(
        &self,
        vae: &Vae,
        latents: &Latents,
        residual: Option<Residual<'_, 'e, Self>>,
        mut out: ValuesMut<'_>,
    ) -> Result<()>
    where
        Self: 'e,
    {
        let seeds = residual.map(|r| (r.embeddings.rows(), r.embeddings.cols()));
        check::decode(vae.size(), (latents.latent, &latents.rows), seeds, out.len())?;
        for j in 0..latents.rows.len() {
            out.narrow_at(j * vae.size().dim, &narrow(&decode_latent(vae, latents, j, residual)));
        }
        Ok(())
    }

    fn score(&self, model: &RewardModel, embeddings: &RowSet<'_>, out: &mut [f32]) -> Result<()> {
        check::width("reward model", model.size().dim, embeddings.cols())?;
        check::length("scores", embeddings.rows(), out.len())?;
        let layers = [Layer::new(&model.layers[0]), Layer::new(&model.layers[1])];
        for (row, score) in out.iter_mut().enumerate() {
            let hidden = relu(&layers[0].forward(&row_f64(embeddings, row)));
            *score = layers[1].forward(&hidden)[0] as f32;
        }
        Ok(())
    }

    fn vae_trainer(
        &self,
        initial: &Vae,
        standardizer: &Standardizer,
        objective: &VaeObjective,
    ) -> Result<VaeTrainer> {
        let layers: Vec<Layer> = initial.encoder.iter().chain(&initial.decoder).map(Layer::new).collect();
        Ok(VaeTrainer {
            optimizer: Optimizer::new(objective.adam, &layers),
            layers,
            objective: *objective,
            standardizer: standardizer.clone(),
            latent: initial.size().latent,
        })
    }

    fn vae_epoch<'e>(
        &self,
        trainer: &mut VaeTrainer,
        data: &PairData<'_, 'e, Self>,
        order: &[u32],
        epoch: u32,
    ) -> Result<VaeLoss>
    where
        Self: 'e,
    {
        check::pair_data(trainer.layers[0].inputs, data.chosen, data.rejected, order)?;
        let mut mean = VaeLoss::default();
        for batch in order.chunks(trainer.objective.batch) {
            let (loss, gradients) = trainer.batch(data, batch, epoch);
            mean.add_scaled(&loss, batch.len() as f64 / order.len() as f64);
            trainer.optimizer.step(&mut trainer.layers, &gradients);
        }
        Ok(mean)
    }

    fn vae_gradients<'e>(
        &self,
        trainer: &mut VaeTrainer,
        data: &PairData<'_, 'e, Self>,
        batch: &[u32],
        epoch: u32,
    ) -> Result<(VaeLoss, Vae)>
    where
        Self: 'e,
    {
        check::pair_data(trainer.layers[0].inputs, data.chosen, data.rejected, batch)?;
        let (loss, gradients) = trainer.batch(data, batch, epoch);
        Ok((loss, vae_of(&gradients)))
    }

    fn vae_parameters(&self, trainer: &VaeTrainer) -> Result<Vae> {
        Ok(vae_of(&trainer.layers))
    }

    fn reward_trainer(
        &self,
        initial: &RewardModel,
        standardizer: &Standardizer,
        objective: &RewardObjective,
    ) -> Result<RewardTrainer> {
        let layers: Vec<Layer> = initial.layers.iter().map(Layer::new).collect();
        Ok(RewardTrainer {
            optimizer: Optimizer::new(objective.adam, &layers),
            layers,
            objective: *objective,
            standardizer: standardizer.clone(),
        })
    }

    fn reward_epoch<'e>(
        &self,
        trainer: &mut RewardTrainer,
        data: &RewardData<'_, 'e, Self>,
        pairs: &[PairRows],
    ) -> Result<f64>
    where
        Self: 'e,
    {
        self.check_reward_data(trainer, data, pairs)?;
        let mut mean = 0.0;
        for batch in pairs.chunks(trainer.objective.batch) {
            let (loss, gradients) = trainer.batch(data, batch);
            mean += loss * batch.len() as f64 / pairs.len() as f64;
            trainer.optimizer.step(&mut trainer.layers, &gradients);
        }
        Ok(mean)
    }

    fn reward_gradients<'e>(
        &self,
        trainer: &mut RewardTrainer,
        data: &RewardData<'_, 'e, Self>,
        batch: &[PairRows],
    ) -> Result<(f64, RewardModel)>
    where
        Self: 'e,
    {
        self.check_reward_data(trainer, data, batch)?;
        let (loss, gradients) = trainer.batch(data, batch);
        Ok((loss, RewardModel { layers: [gradients[0].to_linear(), gradients[1].to_linear()] }))
    }

    fn reward_parameters(&self, trainer: &RewardTrainer) -> Result<RewardModel> {
        Ok(RewardModel { layers: [trainer.layers[0].to_linear(), trainer.layers[1].to_linear()] })
    }
}

impl Reference {
    fn check_reward_data(
        &self,
        trainer: &RewardTrainer,
        data: &RewardData<'_, '_, Self>,
        pairs: &[PairRows],
    ) -> Result<()> {
        for (column, side) in [&data.chosen, &data.rejected].into_iter().enumerate() {
            check::width("reward model", trainer.layers[0].inputs, side.originals.cols())?;
            let synthetic = side.synthetic.as_ref().map_or(0, |s| s.latents.rows.len());
            check::pair_rows(pairs, column, side.originals.rows() + synthetic)?;
        }
        Ok(())
    }
}
