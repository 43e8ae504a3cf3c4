//! What lies between the wide layers of the VAE in training: narrow, and by rows, which threads share in blocks of a fixed
//! number, so that results do not depend on the threads.

use super::adam::Vector;
use super::halves::word;
use super::layers::{Dense, relu, relu_backward};
use super::wide::{Sums, pair};
use crate::backend::{Divergence, Precision, VaeLoss, VaeObjective, W2_EPS};
use crate::noise::math::exp;
use crate::noise::{NoiseCounter, Purpose, Side, fill_normals_at};
use crate::simd::{Isa, Lane, Simd, Task, WIDTH};

/// Rows that a task takes.
const TOGETHER: usize = 32;

/// Activations and gradients of one batch, row by row; the first half of the rows is the chosen side.
#[derive(Debug, Default)]
pub struct Between {
    encoder_hidden: Vec<f32>,
    code: Vec<f32>,
    /// Noise, then half of it times sigma: the gradient of z by logvar.
    eps: Vec<f32>,
    z: Vec<f32>,
    /// The decoder's hidden layer.
    pub decoder_hidden: Vec<f32>,
    /// The same in words of two values, where products are BF16.
    halves: Vec<f32>,
    /// Gradient by the decoder's hidden layer.
    dhidden: Vec<f32>,
    dz: Vec<f32>,
    dcode: Vec<f32>,
    /// Gradient by the encoder's hidden layer.
    pub dencoder: Vec<f32>,
}

/// The narrow layers, and what a batch is.
#[derive(Clone, Copy)]
pub struct Batch<'a> {
    /// Instruction set.
    pub level: Isa,
    /// hidden -> 2 latent, latent -> hidden.
    pub middle: &'a [Dense; 2],
    /// Seed pairs.
    pub pairs: &'a [u32],
    /// Seed of the noise.
    pub seed: u64,
    /// Number of the epoch.
    pub epoch: u32,
}

impl Batch<'_> {
    fn latent(&self) -> usize {
        self.middle[1].linear.inputs
    }

    fn hidden(&self) -> usize {
        self.middle[1].linear.outputs
    }
}

impl Between {
    /// Makes room for the rows of a batch, its hidden layer in words too if `words`.
    pub fn resize(&mut self, batch: Batch<'_>, words: bool) {
        let (rows, latent, hidden) = (2 * batch.pairs.len(), batch.latent(), batch.hidden());
        for (buffer, width) in [
            (&mut self.encoder_hidden, hidden),
            (&mut self.code, 2 * latent),
            (&mut self.eps, latent),
            (&mut self.z, latent),
            (&mut self.decoder_hidden, hidden),
            (&mut self.dhidden, hidden),
            (&mut self.dz, latent),
            (&mut self.dcode, 2 * latent),
            (&mut self.dencoder, hidden),
        ] {
            buffer.resize(rows * width, 0.0);
        }
        // Matrix instructions read up to 15 rows past the last.
        self.halves.resize(if words { (rows + 15) * hidden / 2 } else { 0 }, 0.0);
    }

    /// From the first layer's sums to the decoder's hidden layer, as tasks.
    pub fn forward<'a>(
        &'a mut self,
        batch: Batch<'a>,
        sums: &'a Sums,
        bias: &'a Vector,
    ) -> impl Iterator<Item = Forward<'a>> {
        let (latent, hidden) = (batch.latent(), batch.hidden());
        let mut halves = self.halves.chunks_mut(TOGETHER * hidden / 2);
        let narrow = self
            .code
            .chunks_mut(TOGETHER * 2 * latent)
            .zip(self.eps.chunks_mut(TOGETHER * latent))
            .zip(self.z.chunks_mut(TOGETHER * latent));
        let hiddens = self.encoder_hidden.chunks_mut(TOGETHER * hidden);
        let hiddens = hiddens.zip(self.decoder_hidden.chunks_mut(TOGETHER * hidden));
        hiddens.zip(narrow).enumerate().map(
            move |(i, ((encoder_hidden, decoder_hidden), ((code, eps), z)))| {
                let halves = halves.next().unwrap_or_default();
                let at = i * TOGETHER;
                Forward {
                    batch,
                    sums,
                    bias: &bias.w,
                    at,
                    encoder_hidden,
                    code,
                    eps,
                    z,
                    decoder_hidden,
                    halves,
                }
            },
        )
    }

    /// From the last layer's sums to the gradient by the encoder's hidden layer, as tasks. The gradient of the
    /// divergences must be there.
    pub fn backward<'a>(
        &'a mut self,
        batch: Batch<'a>,
        sums: &'a Sums,
        slope: f32,
    ) -> impl Iterator<Item = Backward<'a>> {
        let (latent, hidden) = (batch.latent(), batch.hidden());
        let hiddens = self.encoder_hidden.chunks(TOGETHER * hidden);
        let hiddens = hiddens.zip(self.decoder_hidden.chunks(TOGETHER * hidden));
        let gradients = self.dhidden.chunks_mut(TOGETHER * hidden);
        let gradients = gradients.zip(self.dencoder.chunks_mut(TOGETHER * hidden));
        let narrow = self
            .eps
            .chunks(TOGETHER * latent)
            .zip(self.dz.chunks_mut(TOGETHER * latent))
            .zip(self.dcode.chunks_mut(TOGETHER * 2 * latent));
        hiddens.zip(gradients).zip(narrow).enumerate().map(move |(i, ((hiddens, gradients), narrow))| {
            let ((eps, dz), dcode) = narrow;
            let (encoder_hidden, decoder_hidden) = hiddens;
            let (dhidden, dencoder) = gradients;
            let at = i * TOGETHER;
            Backward {
                batch,
                sums,
                slope,
                at,
                encoder_hidden,
                decoder_hidden,
                eps,
                dhidden,
                dz,
                dcode,
                dencoder,
            }
        })
    }

    /// The gradients of the narrow layers.
    pub fn gradients(&self, middle: &mut [Dense; 2]) {
        middle[1].gradients(&self.z, &self.dhidden);
        middle[0].gradients(&self.encoder_hidden, &self.dcode);
    }

    /// The decoder's hidden layer as rows of the last layer's products, and what takes the divergences meanwhile.
    pub fn divergences(&mut self, precision: Precision) -> (&[f32], Divergences<'_>) {
        let inputs = match precision {
            Precision::F32 => &self.decoder_hidden,
            Precision::Bf16 => &self.halves,
        };
        (inputs, Divergences { code: &self.code, dcode: &mut self.dcode })
    }
}

/// KL and pair divergence.
pub struct Divergences<'a> {
    code: &'a [f32],
    dcode: &'a mut [f32],
}

impl Divergences<'_> {
    /// Their values, in F64 (a few numbers per row); leaves their gradients by (mu, logvar).
    pub fn take(self, pairs: usize, latent: usize, objective: &VaeObjective) -> VaeLoss {
        let VaeObjective { beta, gamma, divergence, .. } = *objective;
        let mut loss = VaeLoss::default();
        let n = pairs as f64;
        let (plus, minus) = self.code.split_at(pairs * 2 * latent);
        let (dplus, dminus) = self.dcode.split_at_mut(pairs * 2 * latent);
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
        loss
    }
}

/// Some rows from the first layer's sums to the decoder's hidden layer.
pub struct Forward<'a> {
    batch: Batch<'a>,
    sums: &'a Sums,
    bias: &'a [Lane],
    /// The first of the rows.
    at: usize,
    encoder_hidden: &'a mut [f32],
    code: &'a mut [f32],
    eps: &'a mut [f32],
    z: &'a mut [f32],
    decoder_hidden: &'a mut [f32],
    halves: &'a mut [f32],
}

impl Task for Forward<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Forward { batch, sums, bias, at, encoder_hidden, code, eps, z, decoder_hidden, halves } = self;
        let (latent, hidden, pairs) = (batch.latent(), batch.hidden(), batch.pairs.len());
        for (p, bias) in bias.iter().enumerate() {
            from_sums(sums, (p, 2 * pairs), at, bias, encoder_hidden, hidden);
        }
        relu(encoder_hidden);
        batch.middle[0].forward(encoder_hidden, code);
        let rows = eps.chunks_exact_mut(latent).zip(z.chunks_exact_mut(latent));
        for ((r, code), (eps, z)) in (at..).zip(code.chunks_exact(2 * latent)).zip(rows) {
            let (side, row) = (Side::BOTH[r / pairs], u64::from(batch.pairs[r % pairs]));
            let address = NoiseCounter { purpose: Purpose::TrainVae, side, row, candidate: batch.epoch };
            fill_normals_at(batch.level, batch.seed, address, eps);
            let (mu, logvar) = code.split_at(latent);
            for ((z, eps), (mu, logvar)) in z.iter_mut().zip(eps).zip(mu.iter().zip(logvar)) {
                let sigma = exp(0.5 * logvar);
                *z = sigma.mul_add(*eps, *mu);
                *eps *= 0.5 * sigma;
            }
        }
        batch.middle[1].forward(z, decoder_hidden);
        relu(decoder_hidden);
        for (to, two) in halves.iter_mut().zip(decoder_hidden.chunks_exact(2)) {
            *to = word(two[0], two[1]);
        }
    }
}

/// Some rows from the last layer's sums to the gradient by the encoder's hidden layer.
pub struct Backward<'a> {
    batch: Batch<'a>,
    sums: &'a Sums,
    /// What the sums are to be multiplied by.
    slope: f32,
    /// The first of the rows.
    at: usize,
    encoder_hidden: &'a [f32],
    decoder_hidden: &'a [f32],
    eps: &'a [f32],
    dhidden: &'a mut [f32],
    dz: &'a mut [f32],
    dcode: &'a mut [f32],
    dencoder: &'a mut [f32],
}

impl Task for Backward<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Backward {
            batch,
            sums,
            slope,
            at,
            encoder_hidden,
            decoder_hidden,
            eps,
            dhidden,
            dz,
            dcode,
            dencoder,
        } = self;
        let (latent, hidden, rows) = (batch.latent(), batch.hidden(), 2 * batch.pairs.len());
        for p in 0..hidden.div_ceil(WIDTH) {
            from_sums(sums, (p, rows), at, &[0.0; WIDTH], dhidden, hidden);
        }
        dhidden.iter_mut().for_each(|v| *v *= slope);
        relu_backward(decoder_hidden, dhidden);
        batch.middle[1].backward(dhidden, dz);
        let rows = dz.chunks_exact(latent).zip(eps.chunks_exact(latent));
        for (dcode, (dz, eps)) in dcode.chunks_exact_mut(2 * latent).zip(rows) {
            for j in 0..latent {
                dcode[j] += dz[j];
                dcode[latent + j] += eps[j] * dz[j];
            }
        }
        batch.middle[0].backward(dcode, dencoder);
        relu_backward(encoder_hidden, dencoder);
    }
}

/// Columns of panel `p` of rows `[rows, width]` from row `at` of sums over `count` rows on, started from `start`.
#[inline(always)]
fn from_sums(
    sums: &Sums,
    (p, count): (usize, usize),
    at: usize,
    start: &Lane,
    out: &mut [f32],
    width: usize,
) {
    let columns = p * WIDTH..((p + 1) * WIDTH).min(width);
    let mut lanes = [*start; TOGETHER];
    let lanes = &mut lanes[..out.len() / width];
    sums.add_to(p * count + at, lanes);
    for (lane, out) in lanes.iter().zip(out.chunks_exact_mut(width)) {
        out[columns.clone()].copy_from_slice(&lane[..columns.len()]);
    }
}

/// A panel of rows `[rows, width]` as an operand: lanes of its values times `slope`, and words of them if there is room.
pub struct ToPanel<'a> {
    /// Number of the panel.
    pub panel: usize,
    /// The rows.
    pub rows: &'a [f32],
    /// Their length.
    pub width: usize,
    /// A factor.
    pub slope: f32,
    /// Takes the values.
    pub lanes: &'a mut [Lane],
    /// Takes words.
    pub words: &'a mut [Lane],
    /// Takes the sums over rows, if they are wanted.
    pub sums: Option<&'a mut [f64]>,
}

impl Task for ToPanel<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let ToPanel { panel, rows, width, slope, lanes, words, sums } = self;
        let columns = panel * WIDTH..((panel + 1) * WIDTH).min(width);
        for (lane, row) in lanes.iter_mut().zip(rows.chunks_exact(width)) {
            *lane = [0.0; WIDTH];
            for (to, v) in lane.iter_mut().zip(&row[columns.clone()]) {
                *to = v * slope;
            }
        }
        pair(simd, lanes, words);
        let Some(sums) = sums else { return };
        let mut made = [0f64; WIDTH];
        for lane in lanes {
            for i in 0..WIDTH {
                made[i] += f64::from(lane[i]);
            }
        }
        sums.copy_from_slice(&made);
    }
}
