//! Encode, decode and score: blocks of rows over threads, the hidden tile in the first-level cache.

use std::ops::Range;

use rayon::prelude::*;

use super::ends::{Bias, FromLanes, FromSeeds, Partial, ToChains, ToHidden, ToRows, widen};
use super::panel::{DEPTH, Ends, Finish, Inputs, Panels, pad_lanes, products};
use crate::dtype::Element;
use crate::matrix::{RowSet, Values, ValuesMut};
use crate::model::{FoldedReward, Linear, RewardModel, Vae, VaeSize};
use crate::simd::{Lane, Level, Simd, Task, WIDTH};

/// Most rows that one task takes through all layers at a time.
const BLOCK: usize = 48;
/// Blocks are multiples of this, the tile heights of all levels.
const TILE: usize = 12;
/// Inputs of a wide layer that are widened at a time.
const STRETCH: usize = 8 * DEPTH;
/// Panels of a wide output that are made at a time.
const GROUP: usize = 4;

/// Rows of a block when `rows` rows are cut for the threads of the pool: no thread is left with much less.
fn block_rows(rows: usize) -> usize {
    let share = rows.div_ceil(rayon::current_num_threads()).max(1);
    share.div_ceil(share.div_ceil(BLOCK)).next_multiple_of(TILE)
}

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

    fn panels(&self) -> Range<usize> {
        0..self.weights.count()
    }

    /// W x + b.
    #[inline(always)]
    fn forward<S: Simd>(&self, simd: S, a: &Inputs, rows: usize, to: impl Finish<S>) {
        let k = 0..self.weights.inputs();
        products(simd, (a, rows), &self.weights, k, self.panels(), &mut Ends(Bias(&self.bias), to));
    }

    /// The layer behind its ReLU, into `out`.
    #[inline(always)]
    fn hidden<S: Simd>(&self, simd: S, a: &Inputs, rows: usize, out: &mut Inputs) {
        out.resize(rows.next_multiple_of(TILE), self.weights.count() * WIDTH);
        self.forward(simd, a, rows, ToHidden(out));
    }

    /// W x + b of stored rows, widened a stretch at a time.
    #[inline(always)]
    fn forward_stored<S: Simd>(&self, simd: S, rows: &[Values<'_>], scratch: &mut Wide, to: impl Finish<S>) {
        let Wide { inputs, sums } = scratch;
        let (dim, panels) = (self.weights.inputs(), self.weights.count());
        sums.clear();
        for _ in rows {
            sums.extend_from_slice(&self.bias);
        }
        inputs.resize(rows.len().next_multiple_of(TILE), STRETCH.min(dim));
        let mut sums = Partial { sums, panels };
        let last = (dim - 1) / STRETCH * STRETCH;
        for from in (0..last).step_by(STRETCH) {
            let k = from..from + STRETCH;
            widen_stretch(simd, rows, k.clone(), inputs);
            products(simd, (inputs, rows.len()), &self.weights, k, self.panels(), &mut sums);
        }
        widen_stretch(simd, rows, last..dim, inputs);
        let ends = &mut Ends(sums, to);
        products(simd, (inputs, rows.len()), &self.weights, last..dim, self.panels(), ends);
    }
}

/// Widens columns `k`, which start at a whole lane, of stored rows, and asks for those that come next: rows are too
/// far apart for the machine to foresee them.
#[inline(always)]
fn widen_stretch<S: Simd>(simd: S, rows: &[Values<'_>], k: Range<usize>, to: &mut Inputs) {
    let panels = k.start / WIDTH..k.end.div_ceil(WIDTH);
    for (row, values) in rows.iter().enumerate() {
        let bytes = values.bytes();
        let width = bytes.len() / values.len();
        for next in bytes.get(k.end * width..(k.end + k.len()) * width).unwrap_or_default().iter().step_by(64)
        {
            simd.prefetch(next);
        }
        for panel in panels.clone() {
            widen(simd, *values, panel, to.lane_mut(row, panel - panels.start));
        }
    }
}

/// Scratch of wide layers: a stretch of the rows' inputs, and the sums so far, `[rows][panels]`.
#[derive(Default)]
struct Wide {
    inputs: Inputs,
    sums: Vec<Lane>,
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

    /// The reward: the 32 chains added by halves.
    #[inline(always)]
    fn reward(&self, mut chains: Lane) -> f32 {
        let mut width = WIDTH / 2;
        while width > 0 {
            for i in 0..width {
                chains[i] += chains[i + width];
            }
            width /= 2;
        }
        chains[0] + self.bias
    }
}

/// Posteriors `[rows, latent]` as (mu, logvar).
pub fn encode(level: Level, vae: &PackedVae, rows: &RowSet<'_>) -> (Vec<f32>, Vec<f32>) {
    struct Block<'a>(&'a PackedVae, Vec<Values<'a>>, &'a mut Scratch, &'a mut [f32], &'a mut [f32]);
    #[derive(Default)]
    struct Scratch {
        wide: Wide,
        hidden: Inputs,
        codes: Vec<Lane>,
    }
    impl Task for Block<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            let Block(vae, rows, Scratch { wide, hidden, codes }, mu, logvar) = self;
            let [first, second] = &vae.encoder;
            hidden.resize(rows.len().next_multiple_of(TILE), first.weights.count() * WIDTH);
            first.forward_stored(simd, &rows, wide, ToHidden(hidden));
            let panels = second.weights.count();
            codes.resize(rows.len() * panels, [0.0; WIDTH]);
            second.forward(simd, hidden, rows.len(), Partial { sums: codes, panels });
            let latent = vae.size.latent;
            let codes = codes.as_flattened().chunks_exact(panels * WIDTH);
            for ((code, mu), logvar) in codes.zip(mu.chunks_mut(latent)).zip(logvar.chunks_mut(latent)) {
                mu.copy_from_slice(&code[..latent]);
                logvar.copy_from_slice(&code[latent..2 * latent]);
            }
        }
    }
    let (n, latent) = (rows.rows(), vae.size.latent);
    let (mut mu, mut logvar) = (vec![0f32; n * latent], vec![0f32; n * latent]);
    let block = block_rows(n);
    let outputs = mu.par_chunks_mut(block * latent).zip(logvar.par_chunks_mut(block * latent));
    outputs.enumerate().for_each_init(Scratch::default, |scratch, (i, (mu, logvar))| {
        let rows = views(rows, i * block, mu.len() / latent);
        level.run(Block(vae, rows, scratch, mu, logvar));
    });
    (mu, logvar)
}

/// The stored values of `count` rows from row `first` on.
fn views<'a>(rows: &RowSet<'a>, first: usize, count: usize) -> Vec<Values<'a>> {
    (first..first + count).map(|row| rows.row(row)).collect()
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
    struct Block<'a, T>(&'a PackedVae, &'a [f32], Option<Base<'a>>, &'a mut Scratch, &'a mut [T]);
    #[derive(Default)]
    struct Scratch {
        hidden: Hidden,
        lanes: Vec<Lane>,
    }
    impl<T: Element> Task for Block<'_, T> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            let Block(vae, z, base, Scratch { hidden, lanes }, out) = self;
            let [first, last] = &vae.decoder;
            let count = hidden.make(simd, first, z, base.map(|b| (b.mu, b.rows)));
            let mut to = ToRows { out, dim: vae.size.dim };
            // The bias is in both decodings of a residual and falls out of their difference.
            let seeds: Option<Vec<Values<'_>>> =
                base.map(|b| b.rows.iter().map(|&row| b.embeddings.row(row as usize)).collect());
            let (weights, inputs) = (&last.weights, last.weights.inputs());
            for from in (0..weights.count()).step_by(GROUP) {
                let panels = from..(from + GROUP).min(weights.count());
                let a = (&hidden.rows, count);
                let Some(seeds) = &seeds else {
                    products(simd, a, weights, 0..inputs, panels, &mut Ends(Bias(&last.bias), &mut to));
                    continue;
                };
                lanes.resize(count * panels.len(), [0.0; WIDTH]);
                for (seed, lanes) in seeds.iter().zip(lanes.chunks_exact_mut(panels.len())) {
                    for (panel, lane) in panels.clone().zip(lanes) {
                        widen(simd, *seed, panel, lane);
                    }
                }
                let start = FromLanes { lanes, panels: panels.clone() };
                products(simd, a, weights, 0..inputs, panels, &mut Ends(start, &mut to));
            }
        }
    }
    let VaeSize { dim, latent, .. } = vae.size;
    let block = block_rows(z.len() / latent);
    z.par_chunks(block * latent).zip(out.par_chunks_mut(block * dim)).enumerate().for_each_init(
        Scratch::default,
        |scratch, (i, (z, out))| {
            let base = base.map(|b| Base { rows: &b.rows[i * block..][..z.len() / latent], ..b });
            level.run(Block(vae, z, base, scratch, out));
        },
    );
}

/// The hidden layers of decoders.
#[derive(Default)]
struct Hidden {
    latents: Inputs,
    /// The hidden layer of a block.
    rows: Inputs,
    means: Inputs,
}

impl Hidden {
    /// Makes the hidden layer of latents, less that of their seeds' means where means and seeds are given: the
    /// decoder's last layer is linear, so decoder(z') - decoder(mu) = W (h' - h_mu). Gives the number of rows.
    #[inline(always)]
    fn make<S: Simd>(
        &mut self,
        simd: S,
        decoder: &Layer,
        z: &[f32],
        base: Option<(&[f32], &[u32])>,
    ) -> usize {
        let latent = decoder.weights.inputs();
        let count = z.len() / latent;
        self.latents.resize(count.next_multiple_of(TILE), latent);
        for (row, z) in z.chunks_exact(latent).enumerate() {
            self.latents.set_row(row, z);
        }
        decoder.hidden(simd, &self.latents, count, &mut self.rows);
        if let Some((mu, seeds)) = base {
            // Samples of one seed stand together: its mean goes through the layer once.
            let mut distinct = 0;
            for (i, &seed) in seeds.iter().enumerate() {
                if i == 0 || seed != seeds[i - 1] {
                    self.latents.set_row(distinct, &mu[seed as usize * latent..][..latent]);
                    distinct += 1;
                }
            }
            decoder.hidden(simd, &self.latents, distinct, &mut self.means);
            let mut mean = 0;
            for (i, &seed) in seeds.iter().enumerate() {
                mean += usize::from(i > 0 && seed != seeds[i - 1]);
                self.rows.subtract(i, &self.means, mean);
            }
        }
        count
    }
}

/// Rewards of stored rows.
pub fn score(level: Level, model: &PackedReward, rows: &RowSet<'_>, out: &mut [f32]) {
    struct Block<'a>(&'a PackedReward, Vec<Values<'a>>, &'a mut Scratch, &'a mut [f32]);
    #[derive(Default)]
    struct Scratch {
        wide: Wide,
        chains: Vec<Lane>,
    }
    impl Task for Block<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            let Block(model, rows, Scratch { wide, chains }, out) = self;
            chains.clear();
            chains.resize(rows.len(), [0.0; WIDTH]);
            model.first.forward_stored(simd, &rows, wide, ToChains { second: &model.second, chains });
            for (chains, out) in chains.iter().zip(out) {
                *out = model.reward(*chains);
            }
        }
    }
    let block = block_rows(out.len());
    out.par_chunks_mut(block).enumerate().for_each_init(Scratch::default, |scratch, (i, out)| {
        level.run(Block(model, views(rows, i * block, out.len()), scratch, out));
    });
}

/// The first layer of stored rows before ReLU, `[rows][panels]`.
pub fn preactivations(level: Level, model: &PackedReward, rows: &RowSet<'_>) -> Vec<Lane> {
    struct Block<'a>(&'a PackedReward, Vec<Values<'a>>, &'a mut Wide, &'a mut [Lane]);
    impl Task for Block<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            let Block(model, rows, scratch, sums) = self;
            let panels = model.second.len();
            model.first.forward_stored(simd, &rows, scratch, Partial { sums, panels });
        }
    }
    let panels = model.second.len();
    let mut out = vec![[0f32; WIDTH]; rows.rows() * panels];
    let block = block_rows(rows.rows());
    out.par_chunks_mut(block * panels).enumerate().for_each_init(Wide::default, |scratch, (i, out)| {
        let rows = views(rows, i * block, out.len() / panels);
        level.run(Block(model, rows, scratch, out));
    });
    out
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

/// What residual scoring adds to: pre-activations `[seeds][panels]` and means of the seeds.
#[derive(Clone, Copy, Debug)]
pub struct FoldedBase<'a> {
    /// [`preactivations`] of the seeds.
    pub pre: &'a [Lane],
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
    struct Block<'a>(&'a PackedFolded, &'a [f32], Option<FoldedBase<'a>>, &'a mut Scratch, &'a mut [f32]);
    #[derive(Default)]
    struct Scratch {
        hidden: Hidden,
        chains: Vec<Lane>,
    }
    impl Task for Block<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            let Block(model, z, base, Scratch { hidden, chains }, out) = self;
            let count = hidden.make(simd, &model.decoder, z, base.map(|b| (b.mu, b.rows)));
            chains.clear();
            chains.resize(count, [0.0; WIDTH]);
            let folded = &model.folded;
            let to = ToChains { second: &model.reward.second, chains };
            let (a, k) = (&hidden.rows, 0..folded.weights.inputs());
            match base {
                None => folded.forward(simd, a, count, to),
                Some(base) => {
                    let panels = folded.weights.count();
                    let start = FromSeeds { lanes: base.pre, seeds: base.rows, panels };
                    products(simd, (a, count), &folded.weights, k, 0..panels, &mut Ends(start, to));
                }
            }
            for (chains, out) in chains.iter().zip(out) {
                *out = model.reward.reward(*chains);
            }
        }
    }
    let latent = model.size.latent;
    let block = block_rows(out.len());
    out.par_chunks_mut(block).zip(z.par_chunks(block * latent)).enumerate().for_each_init(
        Scratch::default,
        |scratch, (i, (out, z))| {
            let base = base.map(|b| FoldedBase { rows: &b.rows[i * block..][..out.len()], ..b });
            level.run(Block(model, z, base, scratch, out));
        },
    );
}
