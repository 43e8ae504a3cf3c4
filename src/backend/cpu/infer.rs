//! Encode, decode and score: blocks of rows over threads, each through all its layers in the caches of one core.
//!
//! A [`Precision`] is that of the products of d-wide and folded layers; the narrow layers between them are F32 always.

use std::ops::Range;

use rayon::prelude::*;

use super::gemm::{
    self, ActiveRows, AlignedRows, Finish, Inference, PackedA, PackedB, RowsOut, Start, Tile, ZERO,
    inputs_per_word, pack_stored, pack_words, pad_rows,
};
use super::latents::{self, LatentRows};
use crate::backend::Precision;
use crate::dtype::Dtype;
use crate::interrupt::Interrupt;
use crate::matrix::{RowSet, Values, ValuesMut};
use crate::model::{FoldedReward, Linear, RewardModel, Vae, VaeSize};
use crate::simd::{AMX_M, AMX_TILE, Isa, NR, NrRow, RowsRef, Simd, Task};

/// Bytes of decoded rows from which on they go past the caches: they are larger than those.
const STREAMED: usize = 1 << 20;
/// Bytes of weights that a core's second-level cache holds.
const SMALL: usize = 1 << 20;
/// Rows of a block behind a hidden layer.
const DECODE_ROWS: usize = 96;
/// The same with AMX: enough that large weights are fetched as fast as rows pass them.
const AMX_ROWS: usize = 192;
/// Panels of outputs that residual decoding takes at a time.
const RESIDUAL_PANELS: usize = 8;

/// Rows of a block when `rows` rows are cut for the threads of the pool: no thread is left with much less.
fn block_rows(rows: usize, most: usize) -> usize {
    let share = rows.div_ceil(rayon::current_num_threads()).max(1);
    share.div_ceil(share.div_ceil(most)).next_multiple_of(if most.is_multiple_of(AMX_M) { AMX_M } else { 12 })
}

/// A layer packed for inference.
#[derive(Clone, Debug)]
struct Layer {
    weights: PackedB,
    bias: Vec<NrRow>,
}

/// Inputs of a layer.
#[derive(Clone, Copy)]
enum Inputs<'a> {
    All(RowsRef<'a>),
    /// Those behind a ReLU that are not zero.
    Active(&'a ActiveRows),
}

/// Scratch of a layer of stored rows: a block of k of its inputs, and its sums, `[panel][rows]`.
#[derive(Default)]
struct WideScratch {
    inputs: PackedA,
    sums: AlignedRows,
}

impl Layer {
    fn new(linear: &Linear, precision: Precision) -> Layer {
        Layer {
            weights: PackedB::new(&linear.weight, linear.inputs, linear.outputs, precision),
            bias: pad_rows(&linear.bias),
        }
    }

    /// A layer behind a ReLU. Its sums start from 0 where the bias is -0, so that the sign of a zero does not depend on
    /// whether terms of zero are added.
    fn behind_relu(linear: &Linear, precision: Precision) -> Layer {
        let mut layer = Layer::new(linear, precision);
        layer.bias.as_flattened_mut().iter_mut().for_each(|b| *b += 0.0);
        layer
    }

    fn panels(&self) -> usize {
        self.weights.panels()
    }

    /// W x + b.
    #[inline(always)]
    fn forward<S: Simd>(&self, simd: S, x: RowsRef<'_>, finish: Finish<'_>) {
        self.products(
            simd,
            Inputs::All(x),
            0..self.panels(),
            Inference { start: Start::Bias(&self.bias), finish },
        );
    }

    /// W x and an epilogue, for the panels asked for. A function of its own for each instruction set.
    #[inline(always)]
    fn products<S: Simd>(&self, simd: S, x: Inputs<'_>, panels: Range<usize>, epilogue: Inference<'_>) {
        struct Products<'a>(&'a PackedB, Inputs<'a>, Range<usize>, Inference<'a>);
        impl Task for Products<'_> {
            type Output = ();
            #[inline(always)]
            fn run<S: Simd>(self, simd: S) {
                let Products(weights, x, panels, mut epilogue) = self;
                match x {
                    Inputs::All(x) => gemm::gemm(simd, x, weights, 0..weights.words(), panels, &mut epilogue),
                    Inputs::Active(x) => gemm::gemm_active(simd, x, weights, panels, &mut epilogue),
                }
            }
        }
        simd.call(Products(&self.weights, x, panels, epilogue));
    }

    /// W x + b of stored rows. Blocks of k are packed in turn, so that what is read of the rows stays in the first-level
    /// cache; with AMX rows are taken from where BF16 is stored.
    #[inline(always)]
    fn forward_stored<S: Simd>(
        &self,
        simd: S,
        set: &RowSet<'_>,
        rows: Range<usize>,
        scratch: &mut WideScratch,
        finish: Finish<'_>,
    ) {
        struct Forward<'a>(&'a Layer, &'a RowSet<'a>, Range<usize>, &'a mut WideScratch, Finish<'a>);
        impl Task for Forward<'_> {
            type Output = ();
            #[inline(always)]
            fn run<S: Simd>(self, simd: S) {
                let Forward(layer, set, rows, WideScratch { inputs, sums }, finish) = self;
                let (weights, count, precision) = (&layer.weights, rows.len(), layer.weights.precision());
                let mut epilogue = Inference { start: Start::Bias(&layer.bias), finish };
                sums.resize(layer.panels() * count);
                for (panel, sums) in sums.chunks_exact_mut(count).enumerate() {
                    gemm::start(simd, precision, Tile { row: 0, panel }, sums, &epilogue);
                }
                let stored =
                    stored_words(set, &rows).filter(|_| simd.has_amx() && precision == Precision::Bf16);
                let kc = layer.kc(stored.is_some());
                for from in (0..weights.words()).step_by(kc) {
                    let k = from..(from + kc).min(weights.words());
                    let x = match stored {
                        Some(stored) => RowsRef { words: &stored.words[from..], ..stored },
                        None => {
                            inputs.resize(count, kc);
                            for (i, row) in rows.clone().enumerate() {
                                pack_stored(simd, set.row(row), &k, precision, inputs.row_mut(i));
                            }
                            inputs.rows(count)
                        }
                    };
                    for (panel, sums) in sums.chunks_exact_mut(count).enumerate() {
                        gemm::accumulate(simd, precision, x, weights.panel(panel, &k), sums);
                    }
                }
                for (panel, sums) in sums.chunks_exact_mut(count).enumerate() {
                    gemm::finish(simd, precision, Tile { row: 0, panel }, sums, &mut epilogue);
                }
            }
        }
        simd.call(Forward(self, set, rows, scratch, finish));
    }

    /// Whether the weights fit the second-level cache, so that few rows may pass them at a time.
    fn is_small(&self) -> bool {
        self.weights.bytes() <= SMALL
    }

    fn is_amx(&self, isa: Isa) -> bool {
        isa.has_amx() && self.weights.precision() == Precision::Bf16
    }

    /// Words of a block of k.
    fn kc(&self, amx: bool) -> usize {
        match (amx, self.is_small()) {
            (false, _) => 512,
            // 32 rows stay in the first-level cache.
            (true, true) => 128,
            (true, false) => 1024,
        }
    }

    /// Rows of a block of stored rows: few, so that they stay in the first-level cache, unless the weights have to be
    /// fetched from far for each block.
    fn stored_rows(&self, isa: Isa, rows: usize) -> usize {
        block_rows(
            rows,
            match (self.is_amx(isa), self.is_small()) {
                (false, true) => 24,
                (false, false) => 48,
                (true, true) => AMX_M,
                (true, false) => AMX_ROWS,
            },
        )
    }

    /// Rows of a block behind a hidden layer.
    fn hidden_rows(&self, isa: Isa, rows: usize) -> usize {
        block_rows(rows, if self.is_amx(isa) { AMX_ROWS } else { DECODE_ROWS })
    }
}

/// Rows of BF16 values as bf16x2 words, where they stand one after the other, whole words each and whole tiles of rows.
fn stored_words<'a>(set: &RowSet<'a>, rows: &Range<usize>) -> Option<RowsRef<'a>> {
    let Values::Bf16(values) = set.span(rows.clone())?.values() else { return None };
    let whole = set.cols().is_multiple_of(2) && rows.len().is_multiple_of(AMX_TILE);
    let words = bytemuck::try_cast_slice(values).ok().filter(|_| whole)?;
    Some(RowsRef { words, count: rows.len(), stride: set.cols() / 2 })
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
    pub fn new(vae: &Vae, precision: Precision) -> PackedVae {
        let ([first, second], [third, last]) = (&vae.encoder, &vae.decoder);
        PackedVae {
            encoder: [Layer::new(first, precision), Layer::new(second, Precision::F32)],
            decoder: [Layer::new(third, Precision::F32), Layer::behind_relu(last, precision)],
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
    second: Vec<NrRow>,
    bias: f32,
    dim: usize,
}

impl PackedReward {
    /// Packs a model.
    pub fn new(model: &RewardModel, precision: Precision) -> PackedReward {
        let model = model.as_mlp();
        PackedReward {
            first: Layer::new(&model.layers[0], precision),
            second: pad_rows(&model.layers[1].weight),
            bias: model.layers[1].bias[0],
            dim: model.size().dim,
        }
    }

    /// Dimension of the embeddings.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Rewards of rows from the partial sums of [`Finish::Reward`].
    #[inline(always)]
    fn rewards<S: Simd>(&self, simd: S, sums: &[NrRow], out: &mut [f32]) {
        for (sums, out) in sums.iter().zip(out) {
            *out = simd.sum(sums) + self.bias;
        }
    }
}

/// Posteriors `[rows, latent]` as (mu, logvar).
pub fn encode(isa: Isa, vae: &PackedVae, set: &RowSet<'_>, interrupt: &Interrupt) -> (Vec<f32>, Vec<f32>) {
    struct Block<'a> {
        vae: &'a PackedVae,
        set: &'a RowSet<'a>,
        rows: Range<usize>,
        scratch: &'a mut Scratch,
        mu: &'a mut [f32],
        logvar: &'a mut [f32],
    }
    #[derive(Default)]
    struct Scratch {
        wide: WideScratch,
        hidden: PackedA,
        codes: Vec<NrRow>,
    }
    impl Task for Block<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            let Block { vae, set, rows, scratch: Scratch { wide, hidden, codes }, mu, logvar } = self;
            let [first, second] = &vae.encoder;
            let (count, panels) = (rows.len(), second.panels());
            hidden.resize(count, first.panels() * NR);
            first.forward_stored(simd, set, rows, wide, Finish::Hidden(hidden));
            codes.resize(count * panels, ZERO);
            second.forward(simd, hidden.rows(count), Finish::Rows(codes, panels));
            let latent = vae.size.latent;
            let codes = codes.as_flattened().chunks_exact(panels * NR);
            for ((code, mu), logvar) in codes.zip(mu.chunks_mut(latent)).zip(logvar.chunks_mut(latent)) {
                mu.copy_from_slice(&code[..latent]);
                logvar.copy_from_slice(&code[latent..2 * latent]);
            }
        }
    }
    let (n, latent) = (set.rows(), vae.size.latent);
    let (mut mu, mut logvar) = (vec![0f32; n * latent], vec![0f32; n * latent]);
    let block = vae.encoder[0].stored_rows(isa, n);
    let outputs = mu.par_chunks_mut(block * latent).zip(logvar.par_chunks_mut(block * latent));
    outputs.enumerate().for_each_init(Scratch::default, |scratch, (i, (mu, logvar))| {
        let rows = i * block..i * block + mu.len() / latent;
        if !interrupt.is_raised() {
            isa.run(Block { vae, set, rows, scratch, mu, logvar });
        }
    });
    (mu, logvar)
}

/// The hidden layer of decoders for a block of latents.
#[derive(Default)]
struct Hidden {
    draw: latents::Scratch,
    latents: PackedA,
    rows: PackedA,
    means: PackedA,
    /// The same in bf16x2 words.
    words: PackedA,
    active: ActiveRows,
}

/// The means of the seeds that residual samples belong to: `[seeds, latent]`, and the seed of each latent.
#[derive(Clone, Copy)]
struct Means<'a> {
    mu: &'a [f32],
    seeds: &'a [u32],
}

impl Hidden {
    /// Makes the hidden layer of latents as inputs of the weights `next`; with means, less that of their seeds' means:
    /// the last layer is linear, so decoder(z') - decoder(mu) = W (h' - h_mu).
    #[inline(always)]
    fn make<S: Simd>(
        &mut self,
        simd: S,
        layer: &Layer,
        next: &PackedB,
        (z, range): (LatentRows<'_>, Range<usize>),
        means: Option<Means<'_>>,
    ) -> Inputs<'_> {
        let (count, latent, precision) = (range.len(), layer.weights.words(), next.precision());
        let hidden = layer.panels() * NR;
        self.latents.resize(count, latent);
        let (out, stride) = self.latents.raw_mut();
        z.put(simd, range, &mut self.draw, out, stride);
        self.rows.resize(count, hidden);
        layer.forward(simd, self.latents.rows(count), Finish::Hidden(&mut self.rows));
        if let Some(Means { mu, seeds }) = means {
            // Samples of one seed stand together: its mean goes through the layer once.
            let mut distinct = 0;
            for (i, &seed) in seeds.iter().enumerate() {
                if i == 0 || seed != seeds[i - 1] {
                    let mean = &mu[seed as usize * latent..][..latent];
                    self.latents.row_mut(distinct)[..latent].copy_from_slice(mean);
                    distinct += 1;
                }
            }
            self.means.resize(distinct, hidden);
            layer.forward(simd, self.latents.rows(distinct), Finish::Hidden(&mut self.means));
            let mut mean = 0;
            for (i, &seed) in seeds.iter().enumerate() {
                mean += usize::from(i > 0 && seed != seeds[i - 1]);
                let mean = &self.means.row_mut(mean)[..hidden];
                self.rows.row_mut(i)[..hidden].iter_mut().zip(mean).for_each(|(a, b)| *a -= b);
            }
        }
        let rows = match precision {
            Precision::F32 => self.rows.rows(count),
            Precision::Bf16 => {
                self.words.resize(count, hidden / inputs_per_word(precision));
                for row in 0..count {
                    pack_words(simd, &self.rows.row_mut(row)[..hidden], self.words.row_mut(row));
                }
                self.words.rows(count)
            }
        };
        if gemm::is_amx(simd, precision) {
            return Inputs::All(rows);
        }
        self.active.list(rows, next.words(), precision);
        Inputs::Active(&self.active)
    }
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
pub fn decode(
    isa: Isa,
    vae: &PackedVae,
    z: LatentRows<'_>,
    base: Option<Base<'_>>,
    out: ValuesMut<'_>,
    interrupt: &Interrupt,
) {
    struct Block<'a> {
        vae: &'a PackedVae,
        z: LatentRows<'a>,
        range: Range<usize>,
        base: Option<Base<'a>>,
        dtype: Dtype,
        stream: bool,
        scratch: &'a mut Scratch,
        out: &'a mut [u8],
    }
    #[derive(Default)]
    struct Scratch {
        hidden: Hidden,
        seeds: Vec<NrRow>,
    }
    impl Task for Block<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            let Block { vae, z, range, base, dtype, stream, scratch: Scratch { hidden, seeds }, out } = self;
            let [first, last] = &vae.decoder;
            let dim = vae.size.dim;
            let means = base.map(|b| Means { mu: b.mu, seeds: b.rows });
            let x = hidden.make(simd, first, &last.weights, (z, range), means);
            let Some(Base { embeddings, rows, .. }) = base else {
                let finish = Finish::Stored(RowsOut { bytes: out, dtype, dim, stream });
                let epilogue = Inference { start: Start::Bias(&last.bias), finish };
                return last.products(simd, x, 0..last.panels(), epilogue);
            };
            for first in (0..last.panels()).step_by(RESIDUAL_PANELS) {
                let panels = first..(first + RESIDUAL_PANELS).min(last.panels());
                let columns = first * NR..(panels.end * NR).min(dim);
                seeds.clear();
                seeds.resize(rows.len() * panels.len(), ZERO);
                for (&row, to) in rows.iter().zip(seeds.chunks_exact_mut(panels.len())) {
                    let to = &mut to.as_flattened_mut()[..columns.len()];
                    embeddings.row(row as usize).slice(columns.clone()).widen(to);
                    // The bias is in both decodings and falls out of their difference; as with it, -0 is taken as 0.
                    to.iter_mut().for_each(|v| *v += 0.0);
                }
                let start = Start::Rows { rows: seeds, first, panels: panels.len() };
                let finish = Finish::Stored(RowsOut { bytes: &mut *out, dtype, dim, stream });
                last.products(simd, x, panels, Inference { start, finish });
            }
        }
    }
    let (dtype, dim) = (out.dtype(), vae.size.dim);
    let out = out.into_bytes();
    let stream = out.len() >= STREAMED;
    let (block, row) = (vae.decoder[1].hidden_rows(isa, z.count()), dim * dtype.size());
    out.par_chunks_mut(block * row).enumerate().for_each_init(Scratch::default, |scratch, (i, out)| {
        let range = i * block..i * block + out.len() / row;
        let base = base.map(|b| Base { rows: &b.rows[range.clone()], ..b });
        if !interrupt.is_raised() {
            isa.run(Block { vae, z, range, base, dtype, stream, scratch, out });
        }
    });
}

/// Rewards of stored rows.
pub fn score(isa: Isa, model: &PackedReward, set: &RowSet<'_>, out: &mut [f32], interrupt: &Interrupt) {
    struct Block<'a> {
        model: &'a PackedReward,
        set: &'a RowSet<'a>,
        rows: Range<usize>,
        scratch: &'a mut (WideScratch, Vec<NrRow>),
        out: &'a mut [f32],
    }
    impl Task for Block<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            let Block { model, set, rows, scratch: (wide, sums), out } = self;
            sums.clear();
            sums.resize(rows.len(), ZERO);
            let finish = Finish::Reward { second: &model.second, sums };
            model.first.forward_stored(simd, set, rows, wide, finish);
            model.rewards(simd, sums, out);
        }
    }
    let block = model.first.stored_rows(isa, out.len());
    out.par_chunks_mut(block).enumerate().for_each_init(Default::default, |scratch, (i, out)| {
        let rows = i * block..i * block + out.len();
        if !interrupt.is_raised() {
            isa.run(Block { model, set, rows, scratch, out });
        }
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
    pub fn new(model: &FoldedReward, precision: Precision) -> PackedFolded {
        PackedFolded {
            decoder: Layer::new(model.decoder(), Precision::F32),
            folded: Layer::behind_relu(&model.folded, precision),
            reward: PackedReward::new(&model.reward, precision),
            size: model.vae_size(),
        }
    }

    /// Sizes of the VAE.
    pub fn size(&self) -> VaeSize {
        self.size
    }

    /// The first layer of the seeds before its ReLU, `[seeds][panels]`: what residual scoring adds to.
    fn preactivations(&self, isa: Isa, set: &RowSet<'_>) -> Vec<NrRow> {
        struct Block<'a>(&'a Layer, &'a RowSet<'a>, Range<usize>, &'a mut WideScratch, &'a mut [NrRow]);
        impl Task for Block<'_> {
            type Output = ();
            #[inline(always)]
            fn run<S: Simd>(self, simd: S) {
                let Block(layer, set, rows, scratch, sums) = self;
                layer.forward_stored(simd, set, rows, scratch, Finish::Rows(sums, layer.panels()));
            }
        }
        let layer = &self.reward.first;
        let (panels, block) = (layer.panels(), layer.stored_rows(isa, set.rows()));
        let mut out = vec![ZERO; set.rows() * panels];
        let blocks = out.par_chunks_mut(block * panels).enumerate();
        blocks.for_each_init(WideScratch::default, |scratch, (i, out)| {
            let rows = i * block..i * block + out.len() / panels;
            isa.run(Block(layer, set, rows, scratch, out));
        });
        out
    }
}

/// Rewards of latents.
pub fn score_latents(
    isa: Isa,
    model: &PackedFolded,
    z: LatentRows<'_>,
    base: Option<Base<'_>>,
    out: &mut [f32],
    interrupt: &Interrupt,
) {
    struct Block<'a> {
        model: &'a PackedFolded,
        z: LatentRows<'a>,
        range: Range<usize>,
        base: Option<(&'a [NrRow], Means<'a>)>,
        scratch: &'a mut (Hidden, Vec<NrRow>),
        out: &'a mut [f32],
    }
    impl Task for Block<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            let Block { model, z, range, base, scratch: (hidden, sums), out } = self;
            let layer = &model.folded;
            let means = base.map(|(_, means)| means);
            let x = hidden.make(simd, &model.decoder, &layer.weights, (z, range), means);
            sums.clear();
            sums.resize(out.len(), ZERO);
            let start = match base {
                None => Start::Bias(&layer.bias),
                Some((rows, Means { seeds, .. })) => Start::Seeds { rows, seeds, panels: layer.panels() },
            };
            let finish = Finish::Reward { second: &model.reward.second, sums };
            layer.products(simd, x, 0..layer.panels(), Inference { start, finish });
            model.reward.rewards(simd, sums, out);
        }
    }
    let pre = base.map(|b| model.preactivations(isa, b.embeddings));
    let base = base.zip(pre.as_deref());
    let block = model.folded.hidden_rows(isa, out.len());
    out.par_chunks_mut(block).enumerate().for_each_init(Default::default, |scratch, (i, out)| {
        let range = i * block..i * block + out.len();
        let base = base.map(|(b, pre)| (pre, Means { mu: b.mu, seeds: &b.rows[range.clone()] }));
        if !interrupt.is_raised() {
            isa.run(Block { model, z, range, base, scratch, out });
        }
    });
}
