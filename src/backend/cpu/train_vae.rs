//! VAE training: the wide layers at either end in one pass each over their weights, the narrow ones between them.

use std::ops::Range;

use rayon::prelude::*;

use super::adam::{Rates, Update, Vector};
use super::halves::word;
use super::lanes::Lanes;
use super::layers::{Dense, relu, relu_backward};
use super::reconstruct::{Reconstruction, Target};
use super::tile::ZERO;
use super::wide::{AHEAD, Back, Fill, STRIDE, Wide};
use crate::backend::{Divergence, Precision, Reduction, VaeLoss, VaeObjective, W2_EPS};
use crate::matrix::RowSet;
use crate::model::{Linear, Standardizer, Vae};
use crate::noise::math::exp;
use crate::noise::{Address, Purpose, Side, fill_normals};
use crate::simd::{Lane, Level, Simd, Task, WIDTH};

/// Parameters, moments and scratch.
#[derive(Debug)]
pub struct VaeTrainer {
    /// d -> hidden.
    first: Wide,
    first_bias: Vector,
    /// hidden -> 2 latent, latent -> hidden.
    middle: [Dense; 2],
    /// hidden -> d.
    last: Reconstruction,
    objective: VaeObjective,
    standardizer: Standardizer,
    steps: i32,
    scratch: Scratch,
}

/// Activations and gradients of one batch; the first half of the rows is the chosen side.
#[derive(Debug, Default)]
struct Scratch {
    /// Gradient by the first layer's outputs, `[panel][rows]`.
    back: Lanes,
    /// The decoder's hidden layer, `[panel][rows]`.
    panels: Lanes,
    /// One of them as an operand.
    operand: Lanes,
    encoder_hidden: Vec<f32>,
    code: Vec<f32>,
    eps: Vec<f32>,
    z: Vec<f32>,
    decoder_hidden: Vec<f32>,
    /// The same in words of two values.
    halves: Vec<f32>,
    dhidden: Vec<f32>,
    dz: Vec<f32>,
    dcode: Vec<f32>,
}

/// The seed pairs that a batch names, standardised.
struct Batch<'a> {
    sides: [&'a RowSet<'a>; 2],
    rows: &'a [u32],
    standardizer: &'a Standardizer,
}

impl Batch<'_> {
    /// Side and seed row of row r of the batch.
    fn place(&self, r: usize) -> (Side, u32) {
        (Side::BOTH[r / self.rows.len()], self.rows[r % self.rows.len()])
    }
}

impl Fill for Batch<'_> {
    fn rows(&self) -> usize {
        2 * self.rows.len()
    }

    #[inline(always)]
    fn fill<S: Simd>(&self, simd: S, columns: Range<usize>, block: &mut [f32]) {
        let values = |r: usize| {
            let (side, row) = self.place(r);
            self.sides[side as usize].row(row as usize).slice(columns.clone())
        };
        for (r, to) in block.chunks_exact_mut(STRIDE).enumerate() {
            if r + AHEAD < self.rows() {
                simd.prefetch_all(values(r + AHEAD).bytes());
            }
            let to = &mut to[..columns.len()];
            values(r).widen(to);
            self.standardizer.apply_to(columns.clone(), to);
        }
    }
}

impl VaeTrainer {
    /// Starts from a model for standardised embeddings.
    pub fn new(
        initial: &Vae,
        standardizer: &Standardizer,
        objective: &VaeObjective,
        precision: Precision,
    ) -> VaeTrainer {
        let [first, second] = &initial.encoder;
        let [third, last] = &initial.decoder;
        VaeTrainer {
            first: Wide::new(first.inputs, first.outputs, precision, |o, i| {
                first.weight[o * first.inputs + i]
            }),
            first_bias: Vector::new(&first.bias, 0),
            middle: [Dense::new(second), Dense::new(third)],
            last: Reconstruction::new(last, precision),
            objective: *objective,
            standardizer: standardizer.clone(),
            steps: 0,
            scratch: Scratch::default(),
        }
    }

    /// Dimension of the embeddings.
    pub fn dim(&self) -> usize {
        self.first.inputs()
    }

    fn latent(&self) -> usize {
        self.middle[1].linear.inputs
    }

    /// The parameters.
    pub fn parameters(&self) -> Vae {
        let [second, third] = self.middle.each_ref().map(|d| d.linear.clone());
        let bias = self.first_bias.values();
        let first = self.first_layer(bias, |weight, inputs| {
            self.first.each_weight(|o, i, w| weight[o * inputs + i] = w);
        });
        Vae { encoder: [first, second], decoder: [third, self.last.parameters()] }
    }

    /// The gradients of the last batch.
    pub fn gradients(&self) -> Vae {
        let [second, third] = self.middle.each_ref().map(|d| d.gradient.clone());
        let bias = self.first_bias.gradients();
        let first = self.first_layer(bias, |weight, inputs| {
            self.first.each_gradient(|o, i, w| weight[o * inputs + i] = w);
        });
        Vae { encoder: [first, second], decoder: [third, self.last.gradients()] }
    }

    fn first_layer(&self, bias: Vec<f32>, fill: impl FnOnce(&mut [f32], usize)) -> Linear {
        let (inputs, outputs) = (self.first.inputs(), self.first.outputs());
        let mut weight = vec![0f32; inputs * outputs];
        fill(&mut weight, inputs);
        Linear { weight, bias, inputs, outputs }
    }

    /// One pass over `order`.
    pub fn epoch(&mut self, level: Level, sides: [&RowSet<'_>; 2], order: &[u32], epoch: u32) -> VaeLoss {
        let mut mean = VaeLoss::default();
        let batches: Vec<&[u32]> = order.chunks(self.objective.batch).collect();
        self.first.reserve(2 * batches[0].len());
        self.first_pass(level, None, sides, Some(batches[0]));
        for (i, batch) in batches.iter().enumerate() {
            self.steps += 1;
            let update = Update::Adam(Rates::new(&self.objective.adam, self.steps));
            let loss = self.step(level, batch, epoch, update);
            mean.add_scaled(&loss, batch.len() as f64 / order.len() as f64);
            for layer in &mut self.middle {
                layer.step(&self.objective.adam, self.steps);
            }
            self.first_pass(level, Some(update), sides, batches.get(i + 1).copied());
        }
        mean
    }

    /// Loss and gradients of one batch.
    pub fn batch(&mut self, level: Level, sides: [&RowSet<'_>; 2], batch: &[u32], epoch: u32) -> VaeLoss {
        self.first.reserve(2 * batch.len());
        self.first_pass(level, None, sides, Some(batch));
        let loss = self.step(level, batch, epoch, Update::Keep);
        self.first_pass(level, Some(Update::Keep), sides, None);
        loss
    }

    fn first_pass(
        &mut self,
        level: Level,
        back: Option<Update>,
        sides: [&RowSet<'_>; 2],
        next: Option<&[u32]>,
    ) {
        let Scratch { back: lanes, operand, .. } = &mut self.scratch;
        let rows = lanes.len() / self.first.panels();
        let back = back.map(|update| {
            let lanes = Wide::operand(level, self.first.precision(), lanes, rows, operand);
            Back { lanes, update }
        });
        let next = next.map(|rows| Batch { sides, rows, standardizer: &self.standardizer });
        self.first.pass(level, back, next.as_ref());
    }

    /// From the first layer's sums to the gradient by them, which stays in `scratch.back`. The last layer and the
    /// first one's bias take their updates, the middle ones keep their gradients.
    fn step(&mut self, level: Level, batch: &[u32], epoch: u32, update: Update) -> VaeLoss {
        let (pairs, rows) = (batch.len(), 2 * batch.len());
        let (dim, latent, hidden) = (self.dim(), self.latent(), self.first.outputs());
        let lanes = self.first.panels() * rows;
        let s = &mut self.scratch;
        for (buffer, width) in [
            (&mut s.encoder_hidden, hidden),
            (&mut s.code, 2 * latent),
            (&mut s.eps, latent),
            (&mut s.z, latent),
            (&mut s.decoder_hidden, hidden),
            (&mut s.dhidden, hidden),
            (&mut s.dz, latent),
            (&mut s.dcode, 2 * latent),
        ] {
            buffer.resize(rows * width, 0.0);
        }
        s.back.resize(lanes);
        s.panels.resize(lanes);

        for (panel, bias) in s.back.chunks_exact_mut(rows).zip(&*self.first_bias.w) {
            panel.fill(*bias);
        }
        self.first.sums().add_to(0, &mut s.back);
        from_panels(&s.back, hidden, &mut s.encoder_hidden);
        relu(&mut s.encoder_hidden);
        self.middle[0].forward(&s.encoder_hidden, &mut s.code);
        let codes = s.code.par_chunks(TOGETHER * 2 * latent);
        let noise = s.eps.par_chunks_mut(TOGETHER * latent).zip(s.z.par_chunks_mut(TOGETHER * latent));
        let seed = self.objective.seed;
        codes.zip(noise).enumerate().for_each(|(i, (codes, (eps, z)))| {
            for (r, eps) in eps.chunks_exact_mut(latent).enumerate() {
                let r = i * TOGETHER + r;
                let (side, row) = (Side::BOTH[r / pairs], u64::from(batch[r % pairs]));
                let address = Address { purpose: Purpose::TrainVae, side, row, candidate: epoch };
                fill_normals(seed, address, eps);
            }
            level.run(Sampled { codes, eps, z, latent });
        });
        self.middle[1].forward(&s.z, &mut s.decoder_hidden);
        relu(&mut s.decoder_hidden);

        let scale = match self.objective.reconstruction {
            Reduction::Mean => 1.0 / dim as f64,
            Reduction::Sum => 1.0,
        };
        let (blocks, size) = self.first.blocks();
        let slope = 2.0 * scale / pairs as f64;
        let times_slope = |lanes: &mut [Lane]| {
            lanes.as_flattened_mut().iter_mut().for_each(|v| *v *= slope as f32);
        };
        to_panels(&s.decoder_hidden, hidden, &mut s.panels);
        times_slope(&mut s.panels);
        let target = Target { blocks, size, slope };
        let precision = self.first.precision();
        let panels = Wide::operand(level, precision, &s.panels, rows, &mut s.operand);
        let inputs = match precision {
            Precision::F32 => &s.decoder_hidden,
            Precision::Bf16 => {
                // Matrix instructions read up to 15 rows past the last.
                s.halves.resize((rows + 15) * hidden / 2, 0.0);
                let pairs = s.decoder_hidden.chunks_exact(2);
                s.halves.iter_mut().zip(pairs).for_each(|(to, two)| *to = word(two[0], two[1]));
                &s.halves
            }
        };
        let squares = self.last.pass(level, rows, inputs, panels, target, update);
        let mut loss = VaeLoss { reconstruction: scale * squares / pairs as f64, ..VaeLoss::default() };
        self.divergences(pairs, latent, &mut loss);
        loss.total =
            loss.reconstruction + self.objective.beta * loss.kl + self.objective.gamma * loss.divergence;

        let s = &mut self.scratch;
        s.panels.fill(ZERO);
        self.last.sums().add_to(0, &mut s.panels);
        times_slope(&mut s.panels);
        from_panels(&s.panels, hidden, &mut s.dhidden);
        relu_backward(&s.decoder_hidden, &mut s.dhidden);
        self.middle[1].gradients(&s.z, &s.dhidden);
        self.middle[1].backward(&s.dhidden, &mut s.dz);
        for (r, dcode) in s.dcode.chunks_exact_mut(2 * latent).enumerate() {
            let at = r * latent;
            for j in 0..latent {
                let half_sigma = 0.5 * exp(0.5 * s.code[2 * at + latent + j]);
                dcode[j] += s.dz[at + j];
                dcode[latent + j] += half_sigma * s.eps[at + j] * s.dz[at + j];
            }
        }
        self.middle[0].gradients(&s.encoder_hidden, &s.dcode);
        self.middle[0].backward(&s.dcode, &mut s.dhidden);
        relu_backward(&s.encoder_hidden, &mut s.dhidden);
        to_panels(&s.dhidden, hidden, &mut s.back);
        let mut sums = vec![0f64; self.first.panels() * WIDTH];
        for (sums, panel) in sums.chunks_exact_mut(WIDTH).zip(s.back.chunks_exact(rows)) {
            for lane in panel {
                sums.iter_mut().zip(lane).for_each(|(sum, &g)| *sum += f64::from(g));
            }
        }
        self.first_bias.learn(level, &sums, update);
        loss
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

/// Rows that a task takes through what lies between the products.
const TOGETHER: usize = 32;

/// z = mu + exp(logvar / 2) eps of some rows.
struct Sampled<'a> {
    codes: &'a [f32],
    eps: &'a [f32],
    z: &'a mut [f32],
    latent: usize,
}

impl Task for Sampled<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Sampled { codes, eps, z, latent } = self;
        let rows = eps.chunks_exact(latent).zip(z.chunks_exact_mut(latent));
        for (code, (eps, z)) in codes.chunks_exact(2 * latent).zip(rows) {
            for j in 0..latent {
                z[j] = exp(0.5 * code[latent + j]).mul_add(eps[j], code[j]);
            }
        }
    }
}

/// Rows `[rows, width]` from `[panel][rows]`.
fn from_panels(lanes: &[Lane], width: usize, out: &mut [f32]) {
    let rows = out.len() / width;
    for (p, panel) in lanes.chunks_exact(rows).enumerate() {
        let columns = p * WIDTH..((p + 1) * WIDTH).min(width);
        for (lane, out) in panel.iter().zip(out.chunks_exact_mut(width)) {
            out[columns.clone()].copy_from_slice(&lane[..columns.len()]);
        }
    }
}

/// `[panel][rows]` from rows `[rows, width]`; what pads the last panel is left as it is.
fn to_panels(rows: &[f32], width: usize, out: &mut [Lane]) {
    let count = rows.len() / width;
    for (p, panel) in out.chunks_exact_mut(count).enumerate() {
        let columns = p * WIDTH..((p + 1) * WIDTH).min(width);
        for (lane, row) in panel.iter_mut().zip(rows.chunks_exact(width)) {
            lane[..columns.len()].copy_from_slice(&row[columns.clone()]);
        }
    }
}
