//! Encode, decode and score: blocks of rows over threads, the hidden tile in the first-level cache.
//!
//! A [`Precision`] is that of the products of d-wide and folded layers; the narrow layers between them are F32 always.

use std::ops::Range;

use rayon::prelude::*;

use super::active::{self, Active, Slabs};
use super::ends::{Bias, Fetching, FromLanes, FromSeeds, Partial, ToChains, ToHidden, ToRows, ToWords, pairs, widen};
use super::lanes::Lanes;
use super::latent::{Codes, Drawing};
use super::panel::{
    ACROSS, DEPTH, Ends, Finish, Inputs, Panels, Sums, TILE, inputs_of_word, pad_lanes, products, take,
    whole_tiles,
};
use crate::backend::Precision;
use crate::dtype::Element;
use crate::matrix::{RowSet, Values, ValuesMut};
use crate::model::{FoldedReward, Linear, RewardModel, Vae, VaeSize};
use crate::simd::{Lane, Level, Rows, Simd, TALL, Task, WIDTH};

/// Most rows that one task takes through all layers at a time.
const BLOCK: usize = 48;
/// The same where products are those of matrices, past which larger weights are fetched faster than rows need them.
const MATRIX_BLOCK: usize = 192;
/// Words of a wide layer's inputs that are made at a time.
const STRETCH: usize = 32 * DEPTH;
/// Bytes from which on decoded rows go past the caches: whoever reads them will not find them there.
const STREAMED: usize = 1 << 20;

/// Rows of a block when `rows` rows are cut for the threads of the pool: no thread is left with much less.
fn block_rows(rows: usize, most: usize) -> usize {
    let share = rows.div_ceil(rayon::current_num_threads()).max(1);
    share.div_ceil(share.div_ceil(most)).next_multiple_of(if most % TALL == 0 { TALL } else { TILE })
}

/// A layer packed for inference.
#[derive(Clone, Debug)]
pub struct Layer {
    weights: Panels,
    bias: Vec<Lane>,
}

impl Layer {
    fn new(linear: &Linear, precision: Precision) -> Layer {
        Layer {
            weights: Panels::pack(&linear.weight, linear.inputs, linear.outputs, precision),
            bias: pad_lanes(&linear.bias),
        }
    }

    fn panels(&self) -> Range<usize> {
        0..self.weights.count()
    }

    /// W x + b.
    #[inline(always)]
    fn forward<S: Simd>(&self, simd: S, a: &Inputs, rows: usize, to: impl Finish<S>) {
        let k = 0..self.weights.words();
        products(simd, (a, rows), &self.weights, k, self.panels(), &mut Ends(Bias(&self.bias), to));
    }

    /// The layer behind its ReLU, into `out`.
    #[inline(always)]
    fn hidden<S: Simd>(&self, simd: S, a: &Inputs, rows: usize, out: &mut Inputs) {
        out.resize(whole_tiles::<S>(rows), self.weights.count() * WIDTH);
        self.forward(simd, a, rows, ToHidden(out));
    }

    /// W x + b of stored rows, made into words a stretch at a time.
    #[inline(always)]
    fn forward_stored<S: Simd>(&self, simd: S, rows: &Stored<'_>, scratch: &mut Wide, to: impl Finish<S>) {
        if S::MATRIX && self.weights.precision() == Precision::Bf16 {
            return self.forward_blocks(simd, rows, scratch, to);
        }
        let Wide { inputs, sums, .. } = scratch;
        let Stored { rows, next, .. } = rows;
        let (words, panels) = (self.weights.words(), self.weights.count());
        let precision = self.weights.precision();
        sums.clear();
        for _ in rows {
            sums.extend_from_slice(&self.bias);
        }
        let stretch = if self.is_small() { STRETCH } else { STRETCH / (BLOCK / TILE) };
        inputs.resize(whole_tiles::<S>(rows.len()), stretch.min(words));
        // How often there is a meanwhile: for each panel, tile and piece of the stretch.
        let times =
            |k: Range<usize>| panels * rows.len().div_ceil(S::ROWS) * S::PARTS * k.len().div_ceil(DEPTH);
        let word = inputs_of_word(precision) * rows[0].bytes().len() / rows[0].len();
        let last = (words - 1) / stretch * stretch;
        for from in (0..last).step_by(stretch) {
            let k = from..from + stretch;
            fill_stretch(simd, rows, k.clone(), precision, inputs);
            let ahead = k.end * word..(k.end + stretch).min(words) * word;
            let ends = Partial { sums, panels };
            let mut ends = Fetching { ends, rows, ahead, asked: 0, times: times(k.clone()), time: 0 };
            products(simd, (inputs, rows.len()), &self.weights, k, self.panels(), &mut ends);
        }
        fill_stretch(simd, rows, last..words, precision, inputs);
        let ends = Ends(Partial { sums, panels }, to);
        let (ahead, times) = (0..stretch.min(words) * word, times(last..words));
        let mut ends = Fetching { ends, rows: next, ahead, asked: 0, times, time: 0 };
        products(simd, (inputs, rows.len()), &self.weights, last..words, self.panels(), &mut ends);
    }

    /// The same by matrix instructions, from where the rows are stored if they can be taken as they are. Sums over all
    /// words are whole before the bias comes to them, so that it makes no difference.
    #[inline(always)]
    fn forward_blocks<S: Simd>(&self, simd: S, rows: &Stored<'_>, scratch: &mut Wide, to: impl Finish<S>) {
        let Wide { inputs, blocks, .. } = scratch;
        let (words, panels, count) = (self.weights.words(), self.weights.count(), rows.rows.len());
        let stretch = if self.is_small() { 128 } else { 1024 };
        inputs.resize(whole_tiles::<S>(TALL), stretch);
        blocks.resize(count.div_ceil(TALL) * panels * TALL);
        let blocks = blocks.as_chunks_mut::<TALL>().0;
        for from in (0..words).step_by(stretch) {
            let k = from..(from + stretch).min(words);
            for (group, sums) in blocks.chunks_exact_mut(panels).enumerate() {
                let first = group * TALL;
                let range = first..(first + TALL).min(count);
                let a = match rows.block(range.clone(), &k) {
                    Some(block) => block,
                    None => {
                        fill_stretch(simd, &rows.rows[range.clone()], k.clone(), Precision::Bf16, inputs);
                        inputs.block(0, range.len())
                    }
                };
                for (p, sums) in sums.iter_mut().enumerate() {
                    simd.block(a, self.weights.panel(p, &k), sums, from > 0);
                }
            }
        }
        let mut ends = Ends(Bias(&self.bias), to);
        for (group, sums) in blocks.chunks_exact(panels).enumerate() {
            let first = group * TALL;
            take(simd, sums, first, 0, (count - first).min(TALL), &mut ends);
        }
    }

    /// Whether the weights fit the second-level cache, so that few rows may pass them at a time.
    fn is_small(&self) -> bool {
        /// What cores of servers have at least.
        const SMALL: usize = 1 << 20;
        self.weights.bytes() <= SMALL
    }

    /// Rows of a block of stored rows: few, so that they stay in the first-level cache, unless the weights have to be
    /// fetched from far for each block.
    fn stored_rows(&self, level: Level, rows: usize) -> usize {
        let matrix = level.is_matrix() && self.weights.precision() == Precision::Bf16;
        block_rows(rows, match (matrix, self.is_small()) {
            (false, true) => TILE,
            (false, false) => BLOCK,
            (true, true) => TALL,
            (true, false) => MATRIX_BLOCK,
        })
    }
}

/// Stored rows of a block, and those of the next.
struct Stored<'a> {
    rows: Vec<Values<'a>>,
    next: Vec<Values<'a>>,
    /// All of them as words, where they are BF16 and stand one after the other.
    words: Option<&'a [f32]>,
}

impl<'a> Stored<'a> {
    /// `count` rows from row `first` on.
    fn new(set: &RowSet<'a>, first: usize, count: usize) -> Stored<'a> {
        let (end, all) = (first + count, set.rows());
        let rows = |range: Range<usize>| range.map(|row| set.row(row)).collect();
        let words = match set.span(first..end).map(|rows| rows.values()) {
            Some(Values::Bf16(values)) if set.cols().is_multiple_of(2) => bytemuck::try_cast_slice(values).ok(),
            _ => None,
        };
        Stored { rows: rows(first..end), next: rows(end..all.min(end + count)), words }
    }

    /// Words `k` of rows, where a matrix instruction can take them as they are stored.
    #[inline(always)]
    fn block(&self, rows: Range<usize>, k: &Range<usize>) -> Option<Rows<'a>> {
        /// Rows that are read together.
        const TOGETHER: usize = 16;
        let stride = self.rows[0].len() / 2;
        let words = self.words?.get(rows.start * stride + k.start..)?;
        let whole = rows.len().is_multiple_of(TOGETHER);
        whole.then(|| Rows::side_by_side(words, rows.len(), stride))
    }
}

/// Makes words `k`, which start at a whole lane, of stored rows.
#[inline(always)]
fn fill_stretch<S: Simd>(
    simd: S,
    rows: &[Values<'_>],
    k: Range<usize>,
    precision: Precision,
    to: &mut Inputs,
) {
    let panels = k.start / WIDTH..k.end.div_ceil(WIDTH);
    for (row, values) in rows.iter().enumerate() {
        match (precision, values) {
            (Precision::F32, _) => {
                for panel in panels.clone() {
                    widen(simd, *values, panel, to.lane_mut(row, panel - panels.start));
                }
            }
            // As they are stored.
            (Precision::Bf16, Values::Bf16(values)) => {
                let stored = &values[2 * k.start..values.len().min(2 * k.end)];
                to.set_halves(row, bytemuck::cast_slice(stored));
            }
            (Precision::Bf16, _) => {
                for panel in panels.clone() {
                    pairs(simd, *values, panel, to.lane_mut(row, panel - panels.start));
                }
            }
        }
    }
}

/// A layer behind a hidden layer, packed for inference.
#[derive(Clone, Debug)]
struct Tail {
    weights: Behind,
    bias: Vec<Lane>,
}

/// Weights behind a hidden layer.
#[derive(Clone, Debug)]
enum Behind {
    /// For the units that are not zero.
    Active(Slabs),
    /// For all units: a matrix instruction takes less time than leaving any out would.
    All(Panels),
}

impl Tail {
    fn new(linear: &Linear, precision: Precision, level: Level) -> Tail {
        // A sum of no terms is its bias: that of -0 and that of all terms, zeros, would have other signs.
        let bias: Vec<f32> = linear.bias.iter().map(|b| b + 0.0).collect();
        let weights = match precision {
            Precision::Bf16 if level.is_matrix() => {
                Behind::All(Panels::pack(&linear.weight, linear.inputs, linear.outputs, precision))
            }
            _ => Behind::Active(Slabs::pack(linear, precision)),
        };
        Tail { weights, bias: pad_lanes(&bias) }
    }

    /// Rows of a block.
    fn rows(&self, rows: usize) -> usize {
        block_rows(rows, match self.weights {
            Behind::Active(_) => BLOCK,
            Behind::All(_) => std::env::var("DB").map_or(192, |v| v.parse().unwrap()),
        })
    }

    /// Panels of outputs.
    fn panels(&self) -> usize {
        self.bias.len()
    }

    /// Groups of [`ACROSS`] panels.
    fn groups(&self) -> usize {
        self.panels().div_ceil(ACROSS)
    }

    /// The products of a hidden layer with the groups asked for.
    #[inline(always)]
    fn products<S: Simd>(&self, simd: S, hidden: &Hidden, groups: Range<usize>, sums: &mut impl Sums<S>) {
        match &self.weights {
            Behind::Active(slabs) => active::products(simd, &hidden.active, slabs, groups, sums),
            Behind::All(weights) => {
                let (k, rows) = (0..weights.words(), hidden.count);
                let panels = groups.start * ACROSS..(groups.end * ACROSS).min(self.panels());
                products(simd, (&hidden.words, rows), weights, k, panels, sums);
            }
        }
    }
}

/// Scratch of wide layers: a stretch of the rows' inputs, and the sums so far, `[rows][panels]`.
#[derive(Default)]
struct Wide {
    inputs: Inputs,
    sums: Vec<Lane>,
    /// The sums of groups of rows, `[group][panel][TALL]`, where matrix instructions make them.
    blocks: Lanes,
}

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
    pub fn new(vae: &Vae, precision: Precision, level: Level) -> PackedVae {
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
pub fn encode(level: Level, vae: &PackedVae, rows: &RowSet<'_>) -> (Vec<f32>, Vec<f32>) {
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
            let count = rows.rows.len();
            hidden.resize(whole_tiles::<S>(count), first.weights.count() * WIDTH);
            first.forward_stored(simd, &rows, wide, ToHidden(hidden));
            let panels = second.weights.count();
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
        let rows = Stored::new(rows, i * block, mu.len() / latent);
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
pub fn decode(level: Level, vae: &PackedVae, z: Codes<'_>, base: Option<Base<'_>>, out: ValuesMut<'_>) {
    match out {
        ValuesMut::F32(out) => decode_into(level, vae, z, base, out),
        ValuesMut::F16(out) => decode_into(level, vae, z, base, out),
        ValuesMut::Bf16(out) => decode_into(level, vae, z, base, out),
    }
}

fn decode_into<T: Element>(
    level: Level,
    vae: &PackedVae,
    z: Codes<'_>,
    base: Option<Base<'_>>,
    out: &mut [T],
) {
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
            let mut to = ToRows { out, dim: vae.size.dim, stream };
            // The bias is in both decodings of a residual and falls out of their difference.
            let seeds: Option<Vec<Values<'_>>> =
                base.map(|b| b.rows.iter().map(|&row| b.embeddings.row(row as usize)).collect());
            for group in 0..tail.groups() {
                let groups = group..group + 1;
                let Some(seeds) = &seeds else {
                    tail.products(simd, hidden, groups, &mut Ends(Bias(&tail.bias), &mut to));
                    continue;
                };
                let panels = group * ACROSS..((group + 1) * ACROSS).min(tail.panels());
                lanes.resize(count * panels.len(), [0.0; WIDTH]);
                for (seed, lanes) in seeds.iter().zip(lanes.chunks_exact_mut(panels.len())) {
                    for (panel, lane) in panels.clone().zip(lanes) {
                        widen(simd, *seed, panel, lane);
                    }
                }
                // As with the bias, -0 is taken as 0.
                lanes.as_flattened_mut().iter_mut().for_each(|v| *v += 0.0);
                let start = FromLanes { lanes, panels };
                tail.products(simd, hidden, groups, &mut Ends(start, &mut to));
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

/// The hidden layers of decoders.
#[derive(Default)]
struct Hidden {
    drawing: Drawing,
    latents: Inputs,
    /// The hidden layer of a block.
    rows: Inputs,
    means: Inputs,
    /// Number of its rows.
    count: usize,
    /// What of it is not zero, for [`Behind::Active`].
    active: Active,
    /// All of it in words, for [`Behind::All`].
    words: Inputs,
}

impl Hidden {
    /// Makes the hidden layer of latents for the layer `next`, less that of their seeds' means where means and seeds are
    /// given: the decoder's last layer is linear, so decoder(z') - decoder(mu) = W (h' - h_mu). Gives the number of rows.
    #[inline(always)]
    fn make<S: Simd>(
        &mut self,
        simd: S,
        decoder: &Layer,
        next: &Tail,
        (z, range): (Codes<'_>, Range<usize>),
        base: Option<(&[f32], &[u32])>,
    ) -> usize {
        let latent = decoder.weights.words();
        let count = range.len();
        let z = z.block(simd, range, &mut self.drawing);
        self.latents.resize(whole_tiles::<S>(count), latent);
        for (row, z) in z.chunks_exact(latent).enumerate() {
            self.latents.set_row(row, z);
        }
        self.count = count;
        if let (Behind::All(weights), None) = (&next.weights, base) {
            self.words.resize(whole_tiles::<S>(count), weights.words().next_multiple_of(WIDTH / 2));
            decoder.forward(simd, &self.latents, count, ToWords(&mut self.words));
            return count;
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
        match &next.weights {
            Behind::Active(slabs) => {
                self.active.gather(simd, &self.rows, count, slabs.inputs(), slabs.precision());
            }
            Behind::All(weights) => {
                self.words.resize(whole_tiles::<S>(count), weights.words());
                self.words.set_pairs(simd, &self.rows, count, weights.words());
            }
        }
        count
    }
}

/// Rewards of stored rows.
pub fn score(level: Level, model: &PackedReward, rows: &RowSet<'_>, out: &mut [f32]) {
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
            chains.resize(rows.rows.len(), [0.0; WIDTH]);
            model.first.forward_stored(simd, &rows, wide, ToChains { second: &model.second, chains });
            for (chains, out) in chains.iter().zip(out) {
                *out = model.reward(simd, chains);
            }
        }
    }
    let block = model.first.stored_rows(level, out.len());
    out.par_chunks_mut(block).enumerate().for_each_init(Scratch::default, |scratch, (i, out)| {
        level.run(Block(model, Stored::new(rows, i * block, out.len()), scratch, out));
    });
}

/// The first layer of stored rows before ReLU, `[rows][panels]`.
pub fn preactivations(level: Level, model: &PackedReward, rows: &RowSet<'_>) -> Vec<Lane> {
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
        let rows = Stored::new(rows, i * block, out.len() / panels);
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
    pub fn new(model: &FoldedReward, precision: Precision, level: Level) -> PackedFolded {
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
    level: Level,
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
