//! Layers in inference: packed weights, stored rows going in, what stands behind a ReLU.

use std::ops::Range;

use super::active::{self, Active, Slabs};
use super::direct::{self, Direct};
use super::ends::{Bias, Fetching, Partial, ToHidden, ToWords, pairs, widen};
use super::lanes::Lanes;
use super::latent::{Codes, Drawing, put};
use super::panel::{
    ACROSS, DEPTH, Ends, Finish, Inputs, Panels, Sums, inputs_of_word, pad_lanes, products, take,
};
use crate::backend::Precision;
use crate::dtype::Dtype;
use crate::matrix::{RowSet, Values};
use crate::model::Linear;
use crate::simd::{Isa, Lane, Rows, Simd, TALL, WIDTH};

/// Blocks are multiples of this, the tile heights of all levels, unless they are multiples of [`TALL`].
pub const TILE: usize = 12;
/// Most rows that one task takes through all layers at a time.
const BLOCK: usize = 48;
/// The same behind a hidden layer: slabs of weights come into the first-level cache once for so many rows.
const BEHIND_BLOCK: usize = 96;
/// The same where products are those of matrices: enough that large weights are fetched as fast as rows pass them.
const MATRIX_BLOCK: usize = 192;
/// Words of stored rows that matrix instructions take at a time: 32 rows stay in the first-level cache.
const MATRIX_STRETCH: usize = 128;
/// The same of large weights, which have to stay in the second-level cache.
const LARGE_STRETCH: usize = 1024;
/// Words of a wide layer's inputs that are made at a time.
const STRETCH: usize = 32 * DEPTH;

/// Rows of a block when `rows` rows are cut for the threads of the pool: no thread is left with much less.
fn block_rows(rows: usize, most: usize) -> usize {
    let share = rows.div_ceil(rayon::current_num_threads()).max(1);
    share.div_ceil(share.div_ceil(most)).next_multiple_of(if most.is_multiple_of(TALL) { TALL } else { TILE })
}

/// A layer packed for inference.
#[derive(Clone, Debug)]
pub struct Layer {
    weights: Panels,
    bias: Vec<Lane>,
}

impl Layer {
    /// Packs a layer.
    pub fn new(linear: &Linear, precision: Precision) -> Layer {
        Layer {
            weights: Panels::pack(&linear.weight, linear.inputs, linear.outputs, precision),
            bias: pad_lanes(&linear.bias),
        }
    }

    /// Its panels.
    pub fn panels(&self) -> Range<usize> {
        0..self.weights.count()
    }

    /// W x + b.
    #[inline(always)]
    pub fn forward<S: Simd>(&self, simd: S, a: &Inputs, rows: usize, to: impl Finish<S>) {
        let k = 0..self.weights.words();
        products(simd, (a, rows), &self.weights, k, self.panels(), &mut Ends(Bias(&self.bias), to));
    }

    /// The layer behind its ReLU, into `out`.
    #[inline(always)]
    pub fn hidden<S: Simd>(&self, simd: S, a: &Inputs, rows: usize, out: &mut Inputs) {
        out.resize(rows.next_multiple_of(TILE), self.weights.count() * WIDTH);
        self.forward(simd, a, rows, ToHidden(out));
    }

    /// W x + b of stored rows, made into words a stretch at a time.
    #[inline(always)]
    pub fn forward_stored<S: Simd>(
        &self,
        simd: S,
        rows: &Stored<'_>,
        scratch: &mut Wide,
        to: impl Finish<S>,
    ) {
        if S::MATRIX && self.weights.precision() == Precision::Bf16 {
            return self.forward_blocks(simd, rows, scratch, to);
        }
        let Wide { inputs, sums, .. } = scratch;
        let (words, panels, count) = (self.weights.words(), self.weights.count(), rows.count);
        let precision = self.weights.precision();
        sums.clear();
        for _ in 0..count {
            sums.extend_from_slice(&self.bias);
        }
        let stretch = if self.is_small() { STRETCH } else { STRETCH / (BLOCK / TILE) };
        let (tile, depth) = match rows.direct::<S>(precision) {
            Some((_, how)) => (direct::rows_of_tile::<S>(how), how.lanes() * DEPTH),
            None => {
                inputs.resize(count.next_multiple_of(TILE), stretch.min(words));
                (S::ROWS, DEPTH)
            }
        };
        // How often there is a meanwhile: for each panel, tile and piece of the stretch.
        let times = |k: Range<usize>| panels * count.div_ceil(tile) * S::PARTS * k.len().div_ceil(depth);
        let word = inputs_of_word(precision) * rows.rows[0].bytes().len() / rows.rows[0].len();
        let last = (words - 1) / stretch * stretch;
        for from in (0..last).step_by(stretch) {
            let k = from..from + stretch;
            let ahead = k.end * word..(k.end + stretch).min(words) * word;
            let (ends, times) = (Partial { sums, panels }, times(k.clone()));
            let mut ends = Fetching { ends, rows: &rows.rows, ahead, asked: 0, times, time: 0 };
            self.stretch(simd, rows, k, inputs, &mut ends);
        }
        let (ahead, times) = (0..stretch.min(words) * word, times(last..words));
        let ends = Ends(Partial { sums, panels }, to);
        let mut ends = Fetching { ends, rows: &rows.next, ahead, asked: 0, times, time: 0 };
        self.stretch(simd, rows, last..words, inputs, &mut ends);
    }

    /// The products with words `k` of stored rows.
    #[inline(always)]
    fn stretch<S: Simd>(
        &self,
        simd: S,
        rows: &Stored<'_>,
        k: Range<usize>,
        inputs: &mut Inputs,
        sums: &mut impl Sums<S>,
    ) {
        let precision = self.weights.precision();
        match rows.direct::<S>(precision) {
            Some((words, how)) => {
                let words = &words[k.start / how.lanes()..];
                let rows = Rows::side_by_side(words, rows.count, rows.stride);
                direct::products(simd, rows, how, &self.weights, k, self.panels(), sums);
            }
            None => {
                fill_stretch(simd, &rows.rows, k.clone(), precision, inputs);
                products(simd, (inputs, rows.count), &self.weights, k, self.panels(), sums);
            }
        }
    }

    /// The same by matrix instructions, from where the rows are stored if they can be taken as they are. Sums over all
    /// words are whole before the bias comes to them, so that it makes no difference.
    #[inline(always)]
    fn forward_blocks<S: Simd>(&self, simd: S, rows: &Stored<'_>, scratch: &mut Wide, to: impl Finish<S>) {
        let Wide { inputs, blocks, .. } = scratch;
        let (words, panels, count) = (self.weights.words(), self.weights.count(), rows.count);
        let stretch = if self.is_small() { MATRIX_STRETCH } else { LARGE_STRETCH };
        inputs.resize(TALL, stretch);
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

    fn is_matrix(&self, level: Isa) -> bool {
        level.is_matrix() && self.weights.precision() == Precision::Bf16
    }

    /// `count` rows from row `first` on.
    pub fn stored<'a>(&self, level: Isa, set: &RowSet<'a>, first: usize, count: usize) -> Stored<'a> {
        Stored::new(set, first, count, self.is_matrix(level))
    }

    /// Rows of a block of stored rows: few, so that they stay in the first-level cache, unless the weights have to be
    /// fetched from far for each block.
    pub fn stored_rows(&self, level: Isa, rows: usize) -> usize {
        block_rows(
            rows,
            match (self.is_matrix(level), self.is_small()) {
                (false, true) => 2 * TILE,
                (false, false) => BLOCK,
                (true, true) => TALL,
                (true, false) => MATRIX_BLOCK,
            },
        )
    }
}

/// Stored rows of a block, and those of the next.
pub struct Stored<'a> {
    /// Empty where matrix instructions take them all as they are stored.
    rows: Vec<Values<'a>>,
    next: Vec<Values<'a>>,
    count: usize,
    /// Words of a row.
    stride: usize,
    /// All of them as words, where they stand one after the other, and what the words hold: a value, or two of BF16.
    words: Option<(&'a [f32], Dtype)>,
}

/// Rows that a matrix instruction reads together.
const TOGETHER: usize = 16;

impl<'a> Stored<'a> {
    fn new(set: &RowSet<'a>, first: usize, count: usize, matrix: bool) -> Stored<'a> {
        let (end, all) = (first + count, set.rows());
        let (words, stride) = match set.span(first..end).map(|rows| rows.values()) {
            Some(Values::F32(values)) => (Some((values, Dtype::F32)), set.cols()),
            Some(Values::Bf16(values)) if set.cols().is_multiple_of(2) => {
                let words = bytemuck::try_cast_slice(values).ok();
                (words.map(|words| (words, Dtype::Bf16)), set.cols() / 2)
            }
            _ => (None, 0),
        };
        let taken =
            matrix && words.is_some_and(|(_, dtype)| dtype == Dtype::Bf16) && count.is_multiple_of(TOGETHER);
        let rows = |range: Range<usize>| match taken {
            true => Vec::new(),
            false => range.map(|row| set.row(row)).collect(),
        };
        let next = rows(end..all.min(end + count));
        Stored { rows: rows(first..end), next, count, stride, words }
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.count
    }

    /// All words, and how weights meet them, where products of a precision can take them as they are stored.
    #[inline(always)]
    fn direct<S: Simd>(&self, precision: Precision) -> Option<(&'a [f32], Direct)> {
        let (words, dtype) = self.words?;
        let how = match (precision, dtype) {
            (Precision::F32, Dtype::F32) => Direct::Single,
            // Where registers are few, copies cost less than two lanes of weights in them.
            (Precision::F32, Dtype::Bf16) if S::ROWS >= 12 => Direct::Widened,
            (Precision::Bf16, Dtype::Bf16) => Direct::Pairs,
            _ => return None,
        };
        Some((words, how))
    }

    /// Words `k` of rows, where a matrix instruction can take them as they are stored.
    #[inline(always)]
    fn block(&self, rows: Range<usize>, k: &Range<usize>) -> Option<Rows<'a>> {
        let (words, _) = self.words.filter(|(_, dtype)| *dtype == Dtype::Bf16)?;
        let words = words.get(rows.start * self.stride + k.start..)?;
        let whole = rows.len().is_multiple_of(TOGETHER);
        whole.then(|| Rows::side_by_side(words, rows.len(), self.stride))
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
pub struct Tail {
    weights: Behind,
    /// Its bias, in lanes.
    pub bias: Vec<Lane>,
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
    /// Packs a layer for a level.
    pub fn new(linear: &Linear, precision: Precision, level: Isa) -> Tail {
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
    pub fn rows(&self, rows: usize) -> usize {
        block_rows(
            rows,
            match self.weights {
                Behind::Active(_) => BEHIND_BLOCK,
                Behind::All(_) => MATRIX_BLOCK,
            },
        )
    }

    /// Panels of outputs.
    pub fn panels(&self) -> usize {
        self.bias.len()
    }

    /// Groups of [`ACROSS`] panels.
    pub fn groups(&self) -> usize {
        self.panels().div_ceil(ACROSS)
    }

    /// The products of a hidden layer with the groups asked for.
    #[inline(always)]
    pub fn products<S: Simd>(
        &self,
        simd: S,
        hidden: &Hidden,
        groups: Range<usize>,
        sums: &mut (impl Sums<S> + Default),
    ) {
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
pub struct Wide {
    inputs: Inputs,
    sums: Vec<Lane>,
    /// The sums of groups of rows, `[group][panel][TALL]`, where matrix instructions make them.
    blocks: Lanes,
}

/// The hidden layers of decoders.
#[derive(Default)]
pub struct Hidden {
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
    pub fn make<S: Simd>(
        &mut self,
        simd: S,
        decoder: &Layer,
        next: &Tail,
        (z, range): (Codes<'_>, Range<usize>),
        base: Option<(&[f32], &[u32])>,
    ) -> usize {
        let latent = decoder.weights.words();
        let count = range.len();
        self.latents.resize(count.next_multiple_of(TILE), latent);
        z.put(simd, range, &mut self.drawing, &mut self.latents);
        self.count = count;
        if let (Behind::All(weights), None) = (&next.weights, base) {
            self.words.resize(count.next_multiple_of(TALL), weights.words().next_multiple_of(WIDTH / 2));
            decoder.forward(simd, &self.latents, count, ToWords(&mut self.words));
            return count;
        }
        decoder.hidden(simd, &self.latents, count, &mut self.rows);
        if let Some((mu, seeds)) = base {
            // Samples of one seed stand together: its mean goes through the layer once.
            let mut distinct = 0;
            for (i, &seed) in seeds.iter().enumerate() {
                if i == 0 || seed != seeds[i - 1] {
                    put(simd, &mu[seed as usize * latent..][..latent], distinct, &mut self.latents);
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
                self.words.resize(count.next_multiple_of(TALL), weights.words());
                self.words.set_pairs(simd, &self.rows, count, weights.words());
            }
        }
        count
    }
}
