//! The VAE in training between its layers of d inputs and d outputs: two narrow layers, the reparameterisation and the
//! divergences. Threads share rows in blocks of a fixed size, so that results do not depend on the number of threads.

use super::adam::ParamVector;
use super::linear::Sums;
use super::narrow::{NarrowLinear, relu_backward};
use super::share;
use crate::backend::cpu::gemm::{ZERO, pack_pairs, pack_words};
use crate::backend::{Divergence, Precision, VaeLoss, VaeObjective, W2_EPS};
use crate::noise::math::exp;
use crate::noise::{NoiseCounter, Purpose, Side, fill_normals_in};
use crate::simd::{AMX_TILE, Isa, NR, NrRow, RowsRef, Simd, Task};

/// Rows that a task takes.
const ROWS: usize = 32;

/// Activations and gradients of one batch, row by row; the first half of the rows is the chosen side.
#[derive(Debug, Default)]
pub struct LatentBlock {
    encoder_hidden: Vec<f32>,
    code: Vec<f32>,
    /// Noise, then half of it times sigma: the gradient of z by logvar.
    eps: Vec<f32>,
    z: Vec<f32>,
    /// The decoder's hidden layer.
    pub decoder_hidden: Vec<f32>,
    /// The same in words of two values, where products are BF16.
    words: Vec<f32>,
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
    pub isa: Isa,
    /// hidden -> 2 latent, latent -> hidden.
    pub middle: &'a [NarrowLinear; 2],
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

/// The same for some of the rows, which one thread takes.
struct RowsMut<'a> {
    /// The first of them.
    at: usize,
    encoder_hidden: &'a mut [f32],
    code: &'a mut [f32],
    eps: &'a mut [f32],
    z: &'a mut [f32],
    decoder_hidden: &'a mut [f32],
    words: &'a mut [f32],
    dhidden: &'a mut [f32],
    dz: &'a mut [f32],
    dcode: &'a mut [f32],
    dencoder: &'a mut [f32],
}

impl LatentBlock {
    /// Makes room for the rows of a batch, its hidden layer in bf16x2 words too if `words`.
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
        // AMX reads whole tiles of rows.
        let rows = rows.next_multiple_of(AMX_TILE);
        self.words.resize(if words { rows * hidden / 2 } else { 0 }, 0.0);
    }

    /// The rows of a batch in blocks of [`ROWS`].
    fn blocks(&mut self, batch: Batch<'_>) -> impl Iterator<Item = RowsMut<'_>> {
        let (latent, hidden) = (ROWS * batch.latent(), ROWS * batch.hidden());
        let mut code = self.code.chunks_mut(2 * latent);
        let mut eps = self.eps.chunks_mut(latent);
        let mut z = self.z.chunks_mut(latent);
        let mut decoder_hidden = self.decoder_hidden.chunks_mut(hidden);
        let mut words = self.words.chunks_mut(hidden / 2);
        let mut dhidden = self.dhidden.chunks_mut(hidden);
        let mut dz = self.dz.chunks_mut(latent);
        let mut dcode = self.dcode.chunks_mut(2 * latent);
        let mut dencoder = self.dencoder.chunks_mut(hidden);
        self.encoder_hidden.chunks_mut(hidden).enumerate().map_while(move |(i, encoder_hidden)| {
            Some(RowsMut {
                at: i * ROWS,
                encoder_hidden,
                code: code.next()?,
                eps: eps.next()?,
                z: z.next()?,
                decoder_hidden: decoder_hidden.next()?,
                words: words.next().unwrap_or_default(),
                dhidden: dhidden.next()?,
                dz: dz.next()?,
                dcode: dcode.next()?,
                dencoder: dencoder.next()?,
            })
        })
    }

    /// From the first layer's sums to the decoder's hidden layer.
    pub fn forward(&mut self, batch: Batch<'_>, sums: &Sums, bias: &ParamVector) {
        share(batch.isa, self.blocks(batch).map(|rows| Forward { batch, sums, bias: &bias.w, rows }));
    }

    /// From the last layer's sums times `slope` to the gradient by the encoder's hidden layer. The gradient of the
    /// divergences must be there.
    pub fn backward(&mut self, batch: Batch<'_>, sums: &Sums, slope: f32) {
        share(batch.isa, self.blocks(batch).map(|rows| Backward { batch, sums, slope, rows }));
    }

    /// The gradients of the narrow layers.
    pub fn gradients(&self, isa: Isa, middle: &mut [NarrowLinear; 2]) {
        middle[1].gradients(isa, &self.z, &self.dhidden);
        middle[0].gradients(isa, &self.encoder_hidden, &self.dcode);
    }

    /// The decoder's hidden layer as rows of words, and what takes the divergences at the same time.
    pub fn divergences(&mut self, batch: Batch<'_>, precision: Precision) -> (RowsRef<'_>, Divergences<'_>) {
        let (count, hidden) = (2 * batch.pairs.len(), batch.hidden());
        let rows = match precision {
            Precision::F32 => RowsRef { words: &self.decoder_hidden, count, stride: hidden },
            Precision::Bf16 => RowsRef { words: &self.words, count, stride: hidden / 2 },
        };
        (rows, Divergences { code: &self.code, dcode: &mut self.dcode })
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

struct Forward<'a> {
    batch: Batch<'a>,
    sums: &'a Sums,
    bias: &'a [NrRow],
    rows: RowsMut<'a>,
}

impl Task for Forward<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Forward { batch, sums, bias, rows } = self;
        let RowsMut { at, encoder_hidden, code, eps, z, decoder_hidden, words, .. } = rows;
        let (latent, hidden, pairs) = (batch.latent(), batch.hidden(), batch.pairs.len());
        for (p, bias) in bias.iter().enumerate() {
            from_sums(sums, (p, 2 * pairs), at, bias, encoder_hidden, hidden);
        }
        simd.relu(encoder_hidden);
        batch.middle[0].forward(simd, encoder_hidden, code);
        let rows = eps.chunks_exact_mut(latent).zip(z.chunks_exact_mut(latent));
        for ((r, code), (eps, z)) in (at..).zip(code.chunks_exact(2 * latent)).zip(rows) {
            let (side, row) = (Side::BOTH[r / pairs], u64::from(batch.pairs[r % pairs]));
            let address = NoiseCounter { purpose: Purpose::TrainVae, side, row, candidate: batch.epoch };
            fill_normals_in(simd, batch.seed, address, eps);
            let (mu, logvar) = code.split_at(latent);
            for ((z, eps), (mu, logvar)) in z.iter_mut().zip(eps).zip(mu.iter().zip(logvar)) {
                let sigma = exp(0.5 * logvar);
                *z = sigma.mul_add(*eps, *mu);
                *eps *= 0.5 * sigma;
            }
        }
        batch.middle[1].forward(simd, z, decoder_hidden);
        simd.relu(decoder_hidden);
        if !words.is_empty() {
            pack_words(simd, decoder_hidden, words);
        }
    }
}

struct Backward<'a> {
    batch: Batch<'a>,
    sums: &'a Sums,
    slope: f32,
    rows: RowsMut<'a>,
}

impl Task for Backward<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Backward { batch, sums, slope, rows } = self;
        let RowsMut { at, encoder_hidden, decoder_hidden, eps, dhidden, dz, dcode, dencoder, .. } = rows;
        let (latent, hidden, count) = (batch.latent(), batch.hidden(), 2 * batch.pairs.len());
        for p in 0..hidden.div_ceil(NR) {
            from_sums(sums, (p, count), at, &ZERO, dhidden, hidden);
        }
        dhidden.iter_mut().for_each(|v| *v *= slope);
        relu_backward(decoder_hidden, dhidden);
        batch.middle[1].backward(simd, dhidden, dz);
        let rows = dz.chunks_exact(latent).zip(eps.chunks_exact(latent));
        for (dcode, (dz, eps)) in dcode.chunks_exact_mut(2 * latent).zip(rows) {
            for j in 0..latent {
                dcode[j] += dz[j];
                dcode[latent + j] += eps[j] * dz[j];
            }
        }
        batch.middle[0].backward(simd, dcode, dencoder);
        relu_backward(encoder_hidden, dencoder);
    }
}

/// Columns of panel `p` of rows `[rows, width]` from row `at` of sums over `count` rows on, started from `start`.
#[inline(always)]
fn from_sums(
    sums: &Sums,
    (p, count): (usize, usize),
    at: usize,
    start: &NrRow,
    out: &mut [f32],
    width: usize,
) {
    let columns = p * NR..((p + 1) * NR).min(width);
    let mut rows = [*start; ROWS];
    let rows = &mut rows[..out.len() / width];
    sums.add_to(p * count + at, rows);
    for (row, out) in rows.iter().zip(out.chunks_exact_mut(width)) {
        out[columns.clone()].copy_from_slice(&row[..columns.len()]);
    }
}

/// A panel of rows `[rows, width]` as an operand: rows of its values times `slope`, and words of them if there is room.
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
    pub packed: &'a mut [NrRow],
    /// Takes words.
    pub words: &'a mut [NrRow],
    /// Takes the sums over rows, if they are wanted.
    pub sums: Option<&'a mut [f64]>,
}

impl Task for ToPanel<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let ToPanel { panel, rows, width, slope, packed, words, sums } = self;
        let columns = panel * NR..((panel + 1) * NR).min(width);
        for (to_row, row) in packed.iter_mut().zip(rows.chunks_exact(width)) {
            *to_row = ZERO;
            for (to, v) in to_row.iter_mut().zip(&row[columns.clone()]) {
                *to = v * slope;
            }
        }
        pack_pairs(simd, packed, words);
        let Some(sums) = sums else { return };
        let mut made = [0f64; NR];
        for to_row in packed {
            for i in 0..NR {
                made[i] += f64::from(to_row[i]);
            }
        }
        sums.copy_from_slice(&made);
    }
}
