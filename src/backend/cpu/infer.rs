//! Encode, decode and score: blocks of rows over threads, the hidden tile in the first-level cache.
//!
//! A [`Precision`] is that of the products of d-wide and folded layers; the narrow layers between them are F32 always.

use std::ops::Range;

use rayon::prelude::*;

use super::ends::{Bias, FromLanes, FromSeeds, Partial, ToChains, ToHidden, ToRows, widen};
use super::forward::{Hidden, Layer, Stored, TILE, Tail, Wide};
use super::latent::Codes;
use super::panel::{ACROSS, Ends, Inputs, pad_lanes};
use crate::backend::Precision;
use crate::dtype::Element;
use crate::matrix::{RowSet, Values, ValuesMut};
use crate::model::{FoldedReward, RewardModel, Vae, VaeSize};
use crate::simd::{Isa, Lane, Simd, Task, WIDTH};

/// Bytes from which on decoded rows go past the caches: whoever reads them will not find them there.
const STREAMED: usize = 1 << 20;
/// Groups of panels that residual decoding takes at a time: as many as products of BF16 take side by side.
const GROUPS: usize = 2;

/// A VAE packed for inference.
#[derive(Clone, Debug)]
pub struct PackedVae {
    encoder: [Layer; 2],
    decoder: (Layer, Tail),
    size: VaeSize,
    model: Vae,
}

impl PackedVae {
    /// Packs a model.
    pub fn new(vae: &Vae, precision: Precision, level: Isa) -> PackedVae {
        let ([first, second], [third, last]) = (&vae.encoder, &vae.decoder);
        PackedVae {
            encoder: [Layer::new(first, precision), Layer::new(second, Precision::F32)],
            decoder: (Layer::new(third, Precision::F32), Tail::new(last, precision, level)),
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
    pub fn new(model: &RewardModel, precision: Precision) -> PackedReward {
        PackedReward {
            first: Layer::new(&model.layers[0], precision),
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
    fn reward<S: Simd>(&self, simd: S, chains: &Lane) -> f32 {
        simd.sum(chains) + self.bias
    }
}

/// Posteriors `[rows, latent]` as (mu, logvar).
pub fn encode(level: Isa, vae: &PackedVae, rows: &RowSet<'_>) -> (Vec<f32>, Vec<f32>) {
    struct Block<'a>(&'a PackedVae, Stored<'a>, &'a mut Scratch, &'a mut [f32], &'a mut [f32]);
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
            let count = rows.len();
            hidden.resize(count.next_multiple_of(TILE), first.panels().len() * WIDTH);
            first.forward_stored(simd, &rows, wide, ToHidden(hidden));
            let panels = second.panels().len();
            codes.resize(count * panels, [0.0; WIDTH]);
            second.forward(simd, hidden, count, Partial { sums: codes, panels });
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
    let block = vae.encoder[0].stored_rows(level, n);
    let outputs = mu.par_chunks_mut(block * latent).zip(logvar.par_chunks_mut(block * latent));
    outputs.enumerate().for_each_init(Scratch::default, |scratch, (i, (mu, logvar))| {
        let rows = vae.encoder[0].stored(level, rows, i * block, mu.len() / latent);
        level.run(Block(vae, rows, scratch, mu, logvar));
    });
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

/// Embeddings of latents into `out`, `[rows, d]`.
pub fn decode(level: Isa, vae: &PackedVae, z: Codes<'_>, base: Option<Base<'_>>, out: ValuesMut<'_>) {
    match out {
        ValuesMut::F32(out) => decode_into(level, vae, z, base, out),
        ValuesMut::F16(out) => decode_into(level, vae, z, base, out),
        ValuesMut::Bf16(out) => decode_into(level, vae, z, base, out),
    }
}

fn decode_into<T: Element>(level: Isa, vae: &PackedVae, z: Codes<'_>, base: Option<Base<'_>>, out: &mut [T]) {
    struct Block<'a, T> {
        vae: &'a PackedVae,
        z: Codes<'a>,
        range: Range<usize>,
        base: Option<Base<'a>>,
        stream: bool,
        scratch: &'a mut Scratch,
        out: &'a mut [T],
    }
    #[derive(Default)]
    struct Scratch {
        hidden: Hidden,
        lanes: Vec<Lane>,
    }
    impl<T: Element> Task for Block<'_, T> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            let Block { vae, z, range, base, stream, scratch: Scratch { hidden, lanes }, out } = self;
            let (first, tail) = &vae.decoder;
            let count = hidden.make(simd, first, tail, (z, range), base.map(|b| (b.mu, b.rows)));
            let dim = vae.size.dim;
            match base {
                None => {
                    let to = ToRows { out, dim, stream };
                    tail.products(simd, hidden, 0..tail.groups(), &mut Ends(Bias(&tail.bias), to));
                }
                Some(Base { embeddings, rows, .. }) => {
                    let seeds: Vec<Values<'_>> =
                        rows.iter().map(|&row| embeddings.row(row as usize)).collect();
                    for group in (0..tail.groups()).step_by(GROUPS) {
                        let groups = group..(group + GROUPS).min(tail.groups());
                        let panels = groups.start * ACROSS..(groups.end * ACROSS).min(tail.panels());
                        lanes.resize(count * panels.len(), [0.0; WIDTH]);
                        for (seed, lanes) in seeds.iter().zip(lanes.chunks_exact_mut(panels.len())) {
                            for (panel, lane) in panels.clone().zip(lanes) {
                                widen(simd, *seed, panel, lane);
                            }
                        }
                        // The bias is in both decodings and falls out of their difference; as with it, -0 is taken as 0.
                        lanes.as_flattened_mut().iter_mut().for_each(|v| *v += 0.0);
                        let start = FromLanes { lanes, panels };
                        let to = ToRows { out: &mut *out, dim, stream };
                        tail.products(simd, hidden, groups, &mut Ends(start, to));
                    }
                }
            }
            if stream {
                simd.fence();
            }
        }
    }
    let dim = vae.size.dim;
    let block = vae.decoder.1.rows(z.count());
    let stream = size_of_val(out) >= STREAMED;
    out.par_chunks_mut(block * dim).enumerate().for_each_init(Scratch::default, |scratch, (i, out)| {
        let range = i * block..i * block + out.len() / dim;
        let base = base.map(|b| Base { rows: &b.rows[range.clone()], ..b });
        level.run(Block { vae, z, range, base, stream, scratch, out });
    });
}

/// Rewards of stored rows.
pub fn score(level: Isa, model: &PackedReward, rows: &RowSet<'_>, out: &mut [f32]) {
    struct Block<'a>(&'a PackedReward, Stored<'a>, &'a mut Scratch, &'a mut [f32]);
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
                *out = model.reward(simd, chains);
            }
        }
    }
    let block = model.first.stored_rows(level, out.len());
    out.par_chunks_mut(block).enumerate().for_each_init(Scratch::default, |scratch, (i, out)| {
        let rows = model.first.stored(level, rows, i * block, out.len());
        level.run(Block(model, rows, scratch, out));
    });
}

/// The first layer of stored rows before ReLU, `[rows][panels]`.
pub fn preactivations(level: Isa, model: &PackedReward, rows: &RowSet<'_>) -> Vec<Lane> {
    struct Block<'a>(&'a PackedReward, Stored<'a>, &'a mut Wide, &'a mut [Lane]);
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
    let block = model.first.stored_rows(level, rows.rows());
    out.par_chunks_mut(block * panels).enumerate().for_each_init(Wide::default, |scratch, (i, out)| {
        let rows = model.first.stored(level, rows, i * block, out.len() / panels);
        level.run(Block(model, rows, scratch, out));
    });
    out
}

/// A reward model packed for a VAE's latents.
#[derive(Clone, Debug)]
pub struct PackedFolded {
    decoder: Layer,
    folded: Tail,
    reward: PackedReward,
    size: VaeSize,
}

impl PackedFolded {
    /// Packs a model.
    pub fn new(model: &FoldedReward, precision: Precision, level: Isa) -> PackedFolded {
        PackedFolded {
            decoder: Layer::new(model.decoder(), Precision::F32),
            folded: Tail::new(&model.folded, precision, level),
            reward: PackedReward::new(&model.reward, precision),
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

/// Rewards of latents.
pub fn score_latents(
    level: Isa,
    model: &PackedFolded,
    z: Codes<'_>,
    base: Option<FoldedBase<'_>>,
    out: &mut [f32],
) {
    struct Block<'a> {
        model: &'a PackedFolded,
        z: Codes<'a>,
        range: Range<usize>,
        base: Option<FoldedBase<'a>>,
        scratch: &'a mut Scratch,
        out: &'a mut [f32],
    }
    #[derive(Default)]
    struct Scratch {
        hidden: Hidden,
        chains: Vec<Lane>,
    }
    impl Task for Block<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            let Block { model, z, range, base, scratch: Scratch { hidden, chains }, out } = self;
            let tail = &model.folded;
            let seeds = base.map(|b| (b.mu, b.rows));
            let count = hidden.make(simd, &model.decoder, tail, (z, range), seeds);
            chains.clear();
            chains.resize(count, [0.0; WIDTH]);
            let to = ToChains { second: &model.reward.second, chains };
            let groups = 0..tail.groups();
            match base {
                None => tail.products(simd, hidden, groups, &mut Ends(Bias(&tail.bias), to)),
                Some(base) => {
                    let start = FromSeeds { lanes: base.pre, seeds: base.rows, panels: tail.panels() };
                    tail.products(simd, hidden, groups, &mut Ends(start, to));
                }
            }
            for (chains, out) in chains.iter().zip(out) {
                *out = model.reward.reward(simd, chains);
            }
        }
    }
    let block = model.folded.rows(out.len());
    out.par_chunks_mut(block).enumerate().for_each_init(Scratch::default, |scratch, (i, out)| {
        let range = i * block..i * block + out.len();
        let base = base.map(|b| FoldedBase { rows: &b.rows[range.clone()], ..b });
        level.run(Block { model, z, range, base, scratch, out });
    });
}
