//! Layers of d inputs in training. A step takes one pass over the weights: while a slice of them lies in the
//! second-level cache its gradient is made and goes straight into Adam, the next batch's inputs are fetched, and the
//! slice's share of the next batch's outputs is summed. Gradients never reach memory, and weights and moments are read
//! and written once a step.
//!
//! With [`Precision::Bf16`] the operands of products are rounded on their way in; weights, moments and sums are F32.

use std::ops::Range;

use rayon::prelude::*;

use super::adam::{Update, Weights};
use super::halves::{halve, interleave, pair_lanes};
use super::lanes::Lanes;
use super::panel::{Pairs, Single};
use super::tile::{Add, Sink, ZERO, columns, rows};
use crate::backend::Precision;
use crate::simd::{LANES, Lane, Level, Rows, Simd, TALL, Task, WIDTH};

/// Inputs that are worked on at a time.
pub const SLICE: usize = 128;
/// Distance of a block's rows: not a power of two, whose rows would share a few sets of the cache.
pub const STRIDE: usize = SLICE + 16;
/// Distance of a block's rows in words of two values.
const HALF_STRIDE: usize = SLICE / 2 + 16;
/// Most sums over slices that run side by side. A number of their own makes results independent of the threads.
const GROUPS: usize = 16;
/// Lanes that sums side by side may take together.
const SUMS: usize = 1 << 20;

/// Weights `[outputs, inputs]` with their moments, and what a batch needs of its inputs.
#[derive(Debug)]
pub struct Wide {
    inputs: usize,
    outputs: usize,
    panels: usize,
    /// `[slice][panel][SLICE][32]`, padded with zeros, which stay zero.
    w: Lanes,
    m: Lanes,
    v: Lanes,
    g: Lanes,
    /// Inputs of the batch, `[slice][capacity][STRIDE]`; columns past the last input are zero.
    blocks: Lanes,
    /// The same as operands of BF16 products, a [`Halves`] for each slice.
    halves: Lanes,
    capacity: usize,
    sums: Sums,
    precision: Precision,
}

/// Rows of a slice as operands of BF16 products.
pub struct Halves<'a> {
    /// Words of two columns, `[rows][HALF_STRIDE]`.
    along: &'a mut [f32],
    /// Words of two rows: `[rows / 2][STRIDE]`, or where products are those of matrices, turned, `[SLICE][down_stride]`.
    down: &'a mut [f32],
    rows: usize,
}

/// Rows that matrix instructions read together.
const TOGETHER: usize = 2 * LANES;

/// Distance of the turned words of columns of so many rows.
fn down_stride(rows: usize) -> usize {
    // Not a power of two, as with [`STRIDE`].
    rows.next_multiple_of(TOGETHER) / 2 + LANES
}

impl<'a> Halves<'a> {
    /// Values that so many rows need, whole lanes.
    pub fn room(rows: usize) -> usize {
        let down = (rows.div_ceil(2) * STRIDE).max(SLICE * down_stride(rows));
        (rows.next_multiple_of(TOGETHER) * HALF_STRIDE + down).next_multiple_of(WIDTH)
    }

    /// Room for `rows` rows.
    pub fn new(room: &'a mut [f32], rows: usize) -> Halves<'a> {
        let (along, down) = room.split_at_mut(rows.next_multiple_of(TOGETHER) * HALF_STRIDE);
        Halves { along, down, rows }
    }

    /// Takes rows of a block.
    #[inline(always)]
    pub fn take<S: Simd>(&mut self, simd: S, block: &[f32]) {
        let rows = block.chunks_exact(STRIDE).zip(self.along.chunks_exact_mut(HALF_STRIDE));
        for (row, along) in rows {
            halve(simd, &row[..SLICE], along);
        }
        let count = block.len() / STRIDE;
        if S::MATRIX {
            return self.turn(simd, count);
        }
        let pairs = self.along[..count * HALF_STRIDE].chunks(2 * HALF_STRIDE);
        for (pair, down) in pairs.zip(self.down.chunks_exact_mut(STRIDE)) {
            let odd = (pair.len() > HALF_STRIDE).then(|| &pair[HALF_STRIDE..][..SLICE / 2]);
            interleave(&pair[..SLICE / 2], odd, &mut down[..SLICE]);
        }
    }

    /// Turns the words of `count` rows.
    #[inline(always)]
    fn turn<S: Simd>(&mut self, simd: S, count: usize) {
        let stride = down_stride(self.rows);
        let mut square = [[[0f32; LANES]; LANES]; SLICE / LANES];
        for (i, rows) in self.along[..count * HALF_STRIDE].chunks(TOGETHER * HALF_STRIDE).enumerate() {
            for square in &mut square {
                // Of the last rows there may be fewer.
                square[rows.len().div_ceil(2 * HALF_STRIDE)..].fill([0.0; LANES]);
            }
            for (k, pair) in rows.chunks(2 * HALF_STRIDE).enumerate() {
                let odd = (pair.len() > HALF_STRIDE).then(|| &pair[HALF_STRIDE..][..SLICE / 2]);
                let mut down = [0f32; SLICE];
                interleave(&pair[..SLICE / 2], odd, &mut down);
                for (square, words) in square.iter_mut().zip(down.as_chunks().0) {
                    square[k] = *words;
                }
            }
            for (q, square) in square.iter().enumerate() {
                for (column, words) in simd.turn(square).iter().enumerate() {
                    let at = (q * LANES + column) * stride + i * LANES;
                    self.down[at..at + LANES].copy_from_slice(words);
                }
            }
        }
    }

    /// Row r of the product of `count` rows with weights, `[SLICE / 2]` words.
    #[inline(always)]
    pub fn rows<S: Simd>(&self, simd: S, count: usize, weights: &[Lane], sink: &mut impl Sink) {
        rows::<S, Pairs, _>(simd, self.along, HALF_STRIDE, count, weights, sink);
    }

    /// Column c of the product of all columns with lanes of words of two rows.
    #[inline(always)]
    pub fn columns<S: Simd>(&self, simd: S, lanes: &[Lane], sink: &mut impl Sink) {
        if S::MATRIX {
            return rows::<S, Pairs, _>(simd, self.down, down_stride(self.rows), SLICE, lanes, sink);
        }
        columns::<S, Pairs, _>(simd, self.down, STRIDE, SLICE, lanes, sink);
    }
}

/// Sums over groups of slices, `[group][panel][rows]`.
#[derive(Debug, Default)]
pub struct Sums {
    lanes: Lanes,
    /// Lanes of a group.
    size: usize,
}

impl Sums {
    /// Room for `rows` rows of `panels` panels, which the tasks of the groups zero; gives the slices that make a group.
    pub fn resize(&mut self, slices: usize, panels: usize, rows: usize) -> usize {
        self.size = panels * rows;
        let most = (SUMS / self.size.max(1)).clamp(1, GROUPS);
        let together = slices.div_ceil(most);
        self.lanes.resize(slices.div_ceil(together) * self.size);
        together
    }

    /// The groups' lanes.
    pub fn groups(&mut self) -> impl Iterator<Item = &mut [Lane]> {
        self.lanes.chunks_exact_mut(self.size)
    }

    /// Adds lanes `from..from + out.len()` of all groups, in order, to `out`.
    #[inline(always)]
    pub fn add_to(&self, from: usize, out: &mut [Lane]) {
        let count = out.len();
        let out = out.as_flattened_mut();
        for group in self.lanes.chunks_exact(self.size) {
            for (to, part) in out.iter_mut().zip(group[from..from + count].as_flattened()) {
                *to += part;
            }
        }
    }
}

/// A batch's inputs. `fill` must be `#[inline(always)]`.
pub trait Fill: Sync {
    /// Rows of the batch.
    fn rows(&self) -> usize;
    /// Writes inputs `columns` of all rows, one row every [`STRIDE`] values.
    fn fill<S: Simd>(&self, simd: S, columns: Range<usize>, block: &mut [f32]);
}

/// Rows that are asked for before they are wanted: they lie apart, where the machine does not foresee them.
pub const AHEAD: usize = 12;

/// The gradient by a batch's outputs, and what it is for.
#[derive(Clone, Copy)]
pub struct Back<'a> {
    /// The gradient as [`Wide::operand`] makes it.
    pub lanes: &'a [Lane],
    /// What is done.
    pub update: Update,
}

impl Wide {
    /// Starts from weights `weight(output, input)` with zero moments.
    pub fn new(
        inputs: usize,
        outputs: usize,
        precision: Precision,
        weight: impl Fn(usize, usize) -> f32,
    ) -> Wide {
        let (slices, panels) = (inputs.div_ceil(SLICE), outputs.div_ceil(WIDTH));
        let mut w = Lanes::zeros(slices * panels * SLICE);
        for input in 0..inputs {
            for output in 0..outputs {
                w[place(panels, output, input)][output % WIDTH] = weight(output, input);
            }
        }
        Wide {
            inputs,
            outputs,
            panels,
            m: Lanes::zeros(w.len()),
            v: Lanes::zeros(w.len()),
            g: Lanes::default(),
            w,
            blocks: Lanes::default(),
            halves: Lanes::default(),
            capacity: 0,
            sums: Sums::default(),
            precision,
        }
    }

    /// Arithmetic of the products.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// The gradient by a batch's outputs, `[panel][rows]`, as an operand of [`Wide::pass`], `[panel][rows or words]`;
    /// `out` is room for one that has to be made.
    pub fn operand<'a>(
        level: Level,
        precision: Precision,
        lanes: &'a [Lane],
        rows: usize,
        out: &'a mut Lanes,
    ) -> &'a [Lane] {
        match precision {
            Precision::F32 => lanes,
            Precision::Bf16 => {
                let words = match level.is_matrix() {
                    // In whole steps; what is past the last row is zero.
                    true => rows.next_multiple_of(TOGETHER) / 2,
                    false => rows.div_ceil(2),
                };
                out.resize(lanes.len() / rows * words);
                for (lanes, out) in lanes.chunks_exact(rows).zip(out.chunks_exact_mut(words)) {
                    pair_lanes(lanes, out);
                    out[rows.div_ceil(2)..].fill(ZERO);
                }
                out
            }
        }
    }

    /// d.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Number of outputs.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Panels of 32 outputs.
    pub fn panels(&self) -> usize {
        self.panels
    }

    /// Pieces of [`SLICE`] inputs.
    pub fn slices(&self) -> usize {
        self.inputs.div_ceil(SLICE)
    }

    /// Inputs of the batch of the last [`Wide::pass`], a slice after the other, and the distance of two slices.
    pub fn blocks(&self) -> (&[f32], usize) {
        (self.blocks.as_flattened(), self.block())
    }

    /// Sums of the last [`Wide::pass`].
    pub fn sums(&self) -> &Sums {
        &self.sums
    }

    /// Hands every weight to `take(output, input, weight)`.
    pub fn each_weight(&self, take: impl FnMut(usize, usize, f32)) {
        self.each(&self.w, take);
    }

    /// The same with the gradients kept last.
    pub fn each_gradient(&self, take: impl FnMut(usize, usize, f32)) {
        self.each(&self.g, take);
    }

    fn each(&self, lanes: &[Lane], mut take: impl FnMut(usize, usize, f32)) {
        if lanes.is_empty() {
            return;
        }
        for input in 0..self.inputs {
            for output in 0..self.outputs {
                take(output, input, lanes[place(self.panels, output, input)][output % WIDTH]);
            }
        }
    }

    /// Makes room for batches of up to `rows` rows. Forgets a batch that was filled in before.
    pub fn reserve(&mut self, rows: usize) {
        if rows > self.capacity {
            self.capacity = rows;
            self.blocks.resize(self.slices() * self.block() / WIDTH);
            self.blocks.fill(ZERO);
            if self.precision == Precision::Bf16 {
                self.halves.resize(self.slices() * Halves::room(rows) / WIDTH);
                self.halves.fill(ZERO);
            }
        }
    }

    /// Values of a slice's block, whole lanes.
    fn block(&self) -> usize {
        (self.capacity * STRIDE).next_multiple_of(WIDTH)
    }

    /// Weights and moments by `together` slices, for `update`.
    pub fn weights(&mut self, together: usize, update: Option<Update>) -> Vec<Weights<'_>> {
        if matches!(update, Some(Update::Keep)) {
            self.g.resize(self.w.len());
        }
        let size = together * self.panels * SLICE;
        let mut g = self.g.chunks_mut(size);
        let chunks = self.w.chunks_mut(size).zip(self.m.chunks_mut(size)).zip(self.v.chunks_mut(size));
        chunks.map(|((w, m), v)| Weights { w, m, v, g: g.next().unwrap_or(&mut []) }).collect()
    }

    /// Takes the gradient of the batch in the blocks, then the inputs of the next batch, and sums its outputs (without
    /// bias) into [`Wide::sums`]. Either may be missing.
    pub fn pass<F: Fill>(&mut self, level: Level, back: Option<Back<'_>>, next: Option<&F>) {
        let (inputs, panels, slices, size) = (self.inputs, self.panels, self.slices(), self.block());
        let rows = next.map_or(1, Fill::rows);
        assert!(rows <= self.capacity, "room for the batch");
        let (mut blocks, mut sums) = (std::mem::take(&mut self.blocks), std::mem::take(&mut self.sums));
        let mut halves = std::mem::take(&mut self.halves);
        let together = sums.resize(slices, panels, rows);
        let capacity = self.capacity;
        let mut rooms = halves.as_flattened_mut().chunks_mut(together * Halves::room(capacity));
        let weights = self.weights(together, back.map(|b| b.update));
        let tasks: Vec<_> = weights
            .into_iter()
            .zip(blocks.as_flattened_mut().chunks_mut(together * size))
            .zip(sums.groups())
            .enumerate()
            .map(|(group, ((weights, blocks), sums))| Pass {
                weights,
                blocks,
                size,
                halves: rooms.next().unwrap_or_default(),
                capacity,
                sums,
                panels,
                first: group * together * SLICE,
                inputs,
                back,
                next,
            })
            .collect();
        tasks.into_par_iter().with_max_len(1).for_each(|task| level.run(task));
        (self.blocks, self.halves, self.sums) = (blocks, halves, sums);
    }
}

/// Where the weight of an input lies in the lane of its output.
fn place(panels: usize, output: usize, input: usize) -> usize {
    (input / SLICE * panels + output / WIDTH) * SLICE + input % SLICE
}

/// A group of slices.
struct Pass<'a, F> {
    weights: Weights<'a>,
    blocks: &'a mut [f32],
    size: usize,
    /// Empty where products are F32.
    halves: &'a mut [f32],
    capacity: usize,
    sums: &'a mut [Lane],
    panels: usize,
    first: usize,
    inputs: usize,
    back: Option<Back<'a>>,
    next: Option<&'a F>,
}

impl<F: Fill> Task for Pass<'_, F> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Pass { mut weights, blocks, size, sums, panels, first, inputs, back, next, .. } = self;
        sums.fill(ZERO);
        let room = Halves::room(self.capacity);
        // Slices whose outputs are summed at a time: matrix instructions take less time than adding their sums would.
        let together = if S::MATRIX && !self.halves.is_empty() { SUMMED } else { 1 };
        let mut words = [ZERO; SLICE / 2];
        for (i, blocks) in blocks.chunks_mut(size * together).enumerate() {
            let mut rooms = self.halves.chunks_mut(room).skip(i * together);
            for (j, block) in blocks.chunks_mut(size).enumerate() {
                let slice = i * together + j;
                let mut weights = weights.part(slice * panels * SLICE, panels * SLICE);
                let mut halves = rooms.next().map(|room| Halves::new(room, self.capacity));
                if let Some(back) = back {
                    let lanes = back.lanes.chunks_exact(back.lanes.len() / panels);
                    for (p, lanes) in lanes.enumerate() {
                        let mut learn = weights.part(p * SLICE, SLICE);
                        let mut learn = learn.learn(back.update);
                        match &halves {
                            None => columns::<S, Single, _>(simd, block, STRIDE, SLICE, lanes, &mut learn),
                            Some(halves) => halves.columns(simd, lanes, &mut learn),
                        }
                    }
                }
                let Some(next) = next else { continue };
                let from = first + slice * SLICE;
                let count = next.rows();
                let block = &mut block[..count * STRIDE];
                next.fill(simd, from..(from + SLICE).min(inputs), block);
                if let Some(halves) = &mut halves {
                    halves.take(simd, block);
                }
                if together > 1 {
                    continue;
                }
                for (p, sums) in sums.chunks_exact_mut(count).enumerate() {
                    let lanes = &weights.w[p * SLICE..(p + 1) * SLICE];
                    match &halves {
                        None => rows::<S, Single, _>(simd, block, STRIDE, count, lanes, &mut Add(sums)),
                        Some(halves) => {
                            pair_lanes(lanes, &mut words);
                            halves.rows(simd, count, &words, &mut Add(sums));
                        }
                    }
                }
            }
            if let Some(next) = next.filter(|_| together > 1) {
                let slices = i * together..i * together + blocks.len().div_ceil(size);
                let halves = &self.halves[slices.start * room..];
                let weights = &weights.w[slices.start * panels * SLICE..slices.end * panels * SLICE];
                sum_slices(simd, halves, room, weights, panels, next.rows(), sums);
            }
        }
    }
}

/// Slices that [`sum_slices`] takes at most.
const SUMMED: usize = 4;

/// Adds the outputs of some slices, each a [`Halves`] `room` values after the other, by matrix instructions.
#[inline(always)]
fn sum_slices<S: Simd>(
    simd: S,
    halves: &[f32],
    room: usize,
    weights: &[Lane],
    panels: usize,
    count: usize,
    sums: &mut [Lane],
) {
    /// Words of a slice.
    const WORDS: usize = SLICE / 2;
    let mut words = [ZERO; SUMMED * WORDS];
    let slices = weights.len() / (panels * SLICE);
    for (p, sums) in sums.chunks_exact_mut(count).enumerate() {
        for (weights, words) in weights.chunks_exact(panels * SLICE).zip(words.chunks_exact_mut(WORDS)) {
            pair_lanes(&weights[p * SLICE..(p + 1) * SLICE], words);
        }
        let words = &words[..slices * WORDS];
        for (i, sums) in sums.chunks_mut(TALL).enumerate() {
            let at = &halves[i * TALL * HALF_STRIDE..];
            let rows =
                Rows { words: at, count: sums.len(), stride: HALF_STRIDE, together: WORDS, apart: room };
            match <&mut [Lane; TALL]>::try_from(&mut *sums) {
                Ok(sums) => simd.block(rows, words, sums, true),
                Err(_) => {
                    let mut made = [ZERO; TALL];
                    made[..sums.len()].copy_from_slice(sums);
                    simd.block(rows, words, &mut made, true);
                    sums.copy_from_slice(&made[..sums.len()]);
                }
            }
        }
    }
}
