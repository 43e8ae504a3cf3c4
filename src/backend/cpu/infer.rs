//! Encode, decode and score: blocks of rows over threads, the hidden tile in the first-level cache.

use std::ops::Range;

use rayon::prelude::*;

use super::panel::{Panels, accumulate, pad_lanes};
use super::simd::{Lane, Level, Simd, Task, WIDTH};
use crate::dtype::Element;
use crate::matrix::{RowSet, ValuesMut};
use crate::model::{FoldedReward, Linear, RewardModel, Vae, VaeSize};

/// Rows that one task takes through all layers.
const BLOCK: usize = 64;
/// Inputs of a wide layer that are widened at a time: 64 rows of them fill the first-level cache's neighbour.
const DEPTH: usize = 256;
/// Panels of a wide output that are made at a time.
const GROUP: usize = 8;

/// A layer packed for inference.
#[derive(Clone, Debug)]
pub struct Layer {
    weights: Panels,
    bias: Vec<Lane>,
}

impl Layer {
    fn new(linear: &Linear) -> Layer {
        Layer {
            weights: Panels::pack(&linear.weight, linear.inputs, linear.outputs),
            bias: pad_lanes(&linear.bias),
        }
    }

    /// W x + b for rows in memory: `a` as in [`accumulate`].
    #[inline(always)]
    fn forward<S: Simd>(&self, simd: S, a: (&[f32], usize), rows: usize) -> Vec<Lane> {
        let mut out = self.bias.repeat(rows);
        self.add_to(simd, a, &mut out);
        out
    }

    /// Adds W x to what `out` holds, `[rows][panels]`.
    #[inline(always)]
    fn add_to<S: Simd>(&self, simd: S, a: (&[f32], usize), out: &mut [Lane]) {
        accumulate(simd, a, &self.weights, 0..self.weights.inputs(), 0..self.weights.count(), out);
    }

    /// The layer behind its ReLU, of dense rows `[rows, inputs]`.
    #[inline(always)]
    fn hidden<S: Simd>(&self, simd: S, x: &[f32]) -> Vec<Lane> {
        let inputs = self.weights.inputs();
        let mut out = self.forward(simd, (x, inputs), x.len() / inputs);
        relu(&mut out);
        out
    }

    /// W x + b for stored rows, widened a stretch at a time.
    #[inline(always)]
    fn forward_stored<S: Simd>(&self, simd: S, rows: &RowSet<'_>, range: Range<usize>) -> Vec<Lane> {
        let mut out = self.bias.repeat(range.len());
        let mut stretch = vec![0f32; range.len() * DEPTH.min(rows.cols())];
        for from in (0..rows.cols()).step_by(DEPTH) {
            let k = from..(from + DEPTH).min(rows.cols());
            let depth = k.len();
            for (row, to) in range.clone().zip(stretch.chunks_exact_mut(depth)) {
                rows.row(row).slice(k.clone()).widen(to);
            }
            accumulate(simd, (&stretch, depth), &self.weights, k, 0..self.weights.count(), &mut out);
        }
        out
    }
}

#[inline(always)]
fn relu(lanes: &mut [Lane]) {
    for v in lanes.as_flattened_mut() {
        // Written so that NaN stays NaN.
        *v = if *v < 0.0 { 0.0 } else { *v };
    }
}

/// A VAE packed for inference.
#[derive(Clone, Debug)]
pub struct PackedVae {
    encoder: [Layer; 2],
    decoder: [Layer; 2],
    size: VaeSize,
    model: Vae,
}

impl PackedVae {
    /// Packs a model.
    pub fn new(vae: &Vae) -> PackedVae {
        PackedVae {
            encoder: vae.encoder.each_ref().map(Layer::new),
            decoder: vae.decoder.each_ref().map(Layer::new),
            size: vae.size(),
            model: vae.clone(),
        }
    }

    /// The model as it was given.
    pub fn model(&self) -> &Vae {
        &self.model
    }

    /// The sizes.
    pub fn size(&self) -> VaeSize {
        self.size
    }
}

/// A reward model packed for inference.
#[derive(Clone, Debug)]
pub struct PackedReward {
    first: Layer,
    second: Vec<Lane>,
    bias: f32,
    dim: usize,
    width: usize,
}

impl PackedReward {
    /// Packs a model.
    pub fn new(model: &RewardModel) -> PackedReward {
        PackedReward {
            first: Layer::new(&model.layers[0]),
            second: pad_lanes(&model.layers[1].weight),
            bias: model.layers[1].bias[0],
            dim: model.size().dim,
            width: model.size().hidden,
        }
    }

    /// Dimension of the embeddings.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Width of the hidden layer.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rewards from the first layer before ReLU, `[rows][panels]`: 32 chains over the panels, added by halves.
    #[inline(always)]
    fn head(&self, mut hidden: Vec<Lane>, out: &mut [f32]) {
        relu(&mut hidden);
        for (hidden, out) in hidden.chunks_exact(self.second.len()).zip(out) {
            let mut acc = [0f32; WIDTH];
            for (h, w) in hidden.iter().zip(&self.second) {
                for i in 0..WIDTH {
                    acc[i] = h[i].mul_add(w[i], acc[i]);
                }
            }
            let mut width = WIDTH / 2;
            while width > 0 {
                for i in 0..width {
                    acc[i] += acc[i + width];
                }
                width /= 2;
            }
            *out = acc[0] + self.bias;
        }
    }
}

/// Posteriors `[rows, latent]` as (mu, logvar).
pub fn encode(level: Level, vae: &PackedVae, rows: &RowSet<'_>) -> (Vec<f32>, Vec<f32>) {
    struct Block<'a>(&'a PackedVae, &'a RowSet<'a>, Range<usize>, &'a mut [f32], &'a mut [f32]);
    impl Task for Block<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            let Block(vae, rows, range, mu, logvar) = self;
            let count = range.len();
            let mut hidden = vae.encoder[0].forward_stored(simd, rows, range);
            relu(&mut hidden);
            let stride = vae.encoder[0].weights.count() * WIDTH;
            let code = vae.encoder[1].forward(simd, (hidden.as_flattened(), stride), count);
            let latent = vae.size.latent;
            let stride = vae.encoder[1].weights.count() * WIDTH;
            let codes = code.as_flattened().chunks_exact(stride);
            for ((code, mu), logvar) in codes.zip(mu.chunks_mut(latent)).zip(logvar.chunks_mut(latent)) {
                mu.copy_from_slice(&code[..latent]);
                logvar.copy_from_slice(&code[latent..2 * latent]);
            }
        }
    }
    let n = rows.rows();
    let latent = vae.size.latent;
    let (mut mu, mut logvar) = (vec![0f32; n * latent], vec![0f32; n * latent]);
    mu.par_chunks_mut(BLOCK * latent).zip(logvar.par_chunks_mut(BLOCK * latent)).enumerate().for_each(
        |(block, (mu, logvar))| {
            let range = block * BLOCK..(block * BLOCK + mu.len() / latent);
            level.run(Block(vae, rows, range, mu, logvar));
        },
    );
    (mu, logvar)
}

/// What residual decoding adds to: the embeddings and means of the seeds, and the seed of each latent.
#[derive(Clone, Copy)]
pub struct Base<'a> {
    /// Embeddings of the block.
    pub embeddings: &'a RowSet<'a>,
    /// Posterior means of the block, `[rows, latent]`.
    pub mu: &'a [f32],
    /// Block row of each latent.
    pub rows: &'a [u32],
}

/// Embeddings of latents `z`, `[rows, latent]`, into `out`, `[rows, d]`.
pub fn decode(level: Level, vae: &PackedVae, z: &[f32], base: Option<Base<'_>>, out: ValuesMut<'_>) {
    match out {
        ValuesMut::F32(out) => decode_into(level, vae, z, base, out),
        ValuesMut::F16(out) => decode_into(level, vae, z, base, out),
        ValuesMut::Bf16(out) => decode_into(level, vae, z, base, out),
    }
}

fn decode_into<T: Element>(level: Level, vae: &PackedVae, z: &[f32], base: Option<Base<'_>>, out: &mut [T]) {
    struct Block<'a, T>(&'a PackedVae, &'a [f32], Option<Base<'a>>, &'a mut [T]);
    impl<T: Element> Task for Block<'_, T> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            let Block(vae, z, base, out) = self;
            let VaeSize { dim, latent, .. } = vae.size;
            let count = z.len() / latent;
            let mut hidden = vae.decoder[0].hidden(simd, z);
            if let Some(base) = base {
                subtract_mean(simd, &vae.decoder[0], base.mu, base.rows, &mut hidden);
            }
            let last = &vae.decoder[1];
            let (panels, inputs) = (last.weights.count(), last.weights.inputs());
            let stride = hidden.as_flattened().len() / count;
            let mut group = Vec::with_capacity(count * GROUP);
            for first in (0..panels).step_by(GROUP) {
                let range = first..(first + GROUP).min(panels);
                let columns = first * WIDTH..(range.end * WIDTH).min(dim);
                group.clear();
                for row in 0..count {
                    let from = group.len();
                    group.extend_from_slice(&last.bias[range.clone()]);
                    if let Some(base) = base {
                        let stored = base.embeddings.row(base.rows[row] as usize);
                        let lanes = group[from..].as_flattened_mut();
                        stored.slice(columns.clone()).widen(&mut lanes[..columns.len()]);
                    }
                }
                let width = range.len() * WIDTH;
                let a = (hidden.as_flattened(), stride);
                accumulate(simd, a, &last.weights, 0..inputs, range, &mut group);
                for (made, out) in group.as_flattened().chunks_exact(width).zip(out.chunks_exact_mut(dim)) {
                    T::narrow(&made[..columns.len()], &mut out[columns.clone()]);
                }
            }
        }
    }
    let VaeSize { dim, latent, .. } = vae.size;
    z.par_chunks(BLOCK * latent).zip(out.par_chunks_mut(BLOCK * dim)).enumerate().for_each(
        |(block, (z, out))| {
            let base = base.map(|b| Base { rows: &b.rows[block * BLOCK..][..z.len() / latent], ..b });
            level.run(Block(vae, z, base, out));
        },
    );
}

/// Rewards of stored rows.
pub fn score(level: Level, model: &PackedReward, rows: &RowSet<'_>, out: &mut [f32]) {
    struct Block<'a>(&'a PackedReward, &'a RowSet<'a>, Range<usize>, &'a mut [f32]);
    impl Task for Block<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            let Block(model, rows, range, out) = self;
            model.head(model.first.forward_stored(simd, rows, range), out);
        }
    }
    out.par_chunks_mut(BLOCK).enumerate().for_each(|(block, out)| {
        let range = block * BLOCK..block * BLOCK + out.len();
        level.run(Block(model, rows, range, out));
    });
}

/// The first layer of stored rows before ReLU, `[rows, width]`.
pub fn preactivations(level: Level, model: &PackedReward, rows: &RowSet<'_>, out: &mut [f32]) {
    struct Block<'a>(&'a PackedReward, &'a RowSet<'a>, Range<usize>, &'a mut [f32]);
    impl Task for Block<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            let Block(model, rows, range, out) = self;
            let made = model.first.forward_stored(simd, rows, range);
            for (made, out) in made.chunks(model.second.len()).zip(out.chunks_mut(model.width)) {
                out.copy_from_slice(&made.as_flattened()[..model.width]);
            }
        }
    }
    out.par_chunks_mut(BLOCK * model.width).enumerate().for_each(|(block, out)| {
        let range = block * BLOCK..block * BLOCK + out.len() / model.width;
        level.run(Block(model, rows, range, out));
    });
}

/// A reward model packed for a VAE's latents.
#[derive(Clone, Debug)]
pub struct PackedFolded {
    decoder: Layer,
    folded: Layer,
    reward: PackedReward,
    size: VaeSize,
}

impl PackedFolded {
    /// Packs a model.
    pub fn new(model: &FoldedReward) -> PackedFolded {
        PackedFolded {
            decoder: Layer::new(model.decoder()),
            folded: Layer::new(&model.folded),
            reward: PackedReward::new(&model.reward),
            size: model.vae_size(),
        }
    }

    /// Sizes of the VAE.
    pub fn size(&self) -> VaeSize {
        self.size
    }

    /// The reward model.
    pub fn reward(&self) -> &PackedReward {
        &self.reward
    }
}

/// What residual scoring adds to: pre-activations `[seeds, width]` and means of the seeds.
#[derive(Clone, Copy, Debug)]
pub struct FoldedBase<'a> {
    /// [`preactivations`] of the seeds.
    pub pre: &'a [f32],
    /// Posterior means, `[seeds, latent]`.
    pub mu: &'a [f32],
    /// The seed of each latent.
    pub rows: &'a [u32],
}

/// Rewards of latents `[samples, latent]`.
pub fn score_latents(
    level: Level,
    model: &PackedFolded,
    z: &[f32],
    base: Option<FoldedBase<'_>>,
    out: &mut [f32],
) {
    struct Block<'a>(&'a PackedFolded, &'a [f32], Option<FoldedBase<'a>>, &'a mut [f32]);
    impl Task for Block<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            let Block(model, z, base, out) = self;
            let mut hidden = model.decoder.hidden(simd, z);
            let mut pre = model.folded.bias.repeat(out.len());
            if let Some(base) = base {
                subtract_mean(simd, &model.decoder, base.mu, base.rows, &mut hidden);
                let width = model.reward.width;
                for (&row, pre) in base.rows.iter().zip(pre.chunks_mut(model.folded.bias.len())) {
                    let seed = &base.pre[row as usize * width..][..width];
                    pre.as_flattened_mut()[..width].copy_from_slice(seed);
                }
            }
            let stride = hidden.as_flattened().len() / out.len();
            model.folded.add_to(simd, (hidden.as_flattened(), stride), &mut pre);
            model.reward.head(pre, out);
        }
    }
    let latent = model.size.latent;
    out.par_chunks_mut(BLOCK).zip(z.par_chunks(BLOCK * latent)).enumerate().for_each(|(block, (out, z))| {
        let base = base.map(|b| FoldedBase { rows: &b.rows[block * BLOCK..][..out.len()], ..b });
        level.run(Block(model, z, base, out));
    });
}

/// Takes the hidden layer of the seeds' means from that of latents: the decoder's last layer is linear, so
/// decoder(z') - decoder(mu) = W (h' - h_mu).
#[inline(always)]
fn subtract_mean<S: Simd>(simd: S, decoder: &Layer, mu: &[f32], rows: &[u32], hidden: &mut [Lane]) {
    let latent = decoder.weights.inputs();
    let mu: Vec<f32> = rows.iter().flat_map(|&r| &mu[r as usize * latent..][..latent]).copied().collect();
    let mean = decoder.hidden(simd, &mu);
    for (h, m) in hidden.as_flattened_mut().iter_mut().zip(mean.as_flattened()) {
        *h -= m;
    }
}
