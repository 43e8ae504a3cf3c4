//! Layers of d inputs in training. A step takes one pass over the weights: while a slice of them lies in the
//! second-level cache its gradient is made and goes straight into Adam, the next batch's inputs are fetched, and the
//! slice's share of the next batch's outputs is summed. Gradients never reach memory, and weights and moments are read
//! and written once a step.
//!
//! With [`Precision::Bf16`] the operands of products are rounded on their way in; weights, moments and sums are F32.

use std::ops::Range;

use super::adam::{Update, Weights};
use super::halves::{HALF_STRIDE, Halves, TOGETHER, pair_lanes};
use super::lanes::Lanes;
use super::panel::Single;
use super::scratch::{PerThread, each};
use super::tile::{Add, ZERO, columns, rows};
use crate::backend::Precision;
use crate::simd::{Isa, Lane, Rows, Simd, TALL, Task, WIDTH};

/// Inputs that are worked on at a time.
pub const SLICE: usize = 128;
/// Distance of a block's rows: not a power of two, whose rows would share a few sets of the cache.
pub const STRIDE: usize = SLICE + 16;
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
    /// The same turned, as operands of BF16 products, see [`Halves`].
    turned: Lanes,
    /// Whether blocks are kept; else only what products need of them is.
    kept: bool,
    capacity: usize,
    sums: Sums,
    precision: Precision,
    scratch: PerThread<Scratch>,
}

/// What a thread needs for a pass.
#[derive(Debug, Default)]
struct Scratch {
    /// A block that is not kept.
    block: Lanes,
    /// Rows of some slices for BF16 products, see [`Halves`].
    along: Lanes,
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
    /// Writes inputs `columns` of all rows, one row every [`STRIDE`] values; `kept` says that those of the batch before
    /// are still there.
    fn fill<S: Simd>(&self, simd: S, columns: Range<usize>, block: &mut [f32], kept: bool);
}

/// Rows that are asked for before they are wanted: they lie apart, where the machine does not foresee them.
pub const AHEAD: usize = 12;

/// Values by panels, `[panel][rows]`, as an operand of [`Wide::pass`]: themselves, or where products are BF16 words of
/// two rows.
#[derive(Debug, Default)]
pub struct Operand {
    lanes: Lanes,
    words: Lanes,
    panels: usize,
}

impl Operand {
    /// Room for so many rows.
    pub fn resize(&mut self, level: Isa, precision: Precision, panels: usize, rows: usize) {
        let words = match precision {
            Precision::F32 => 0,
            // In whole steps; what is past the last row is zero.
            Precision::Bf16 if level.is_matrix() => rows.next_multiple_of(TOGETHER) / 2,
            Precision::Bf16 => rows.div_ceil(2),
        };
        self.panels = panels;
        self.lanes.resize(panels * rows);
        self.words.resize(panels * words);
    }

    /// Values and words of each panel, which [`pair`] makes of them.
    pub fn panels(&mut self) -> impl Iterator<Item = (&mut [Lane], &mut [Lane])> {
        let (rows, words) = (self.lanes.len() / self.panels, self.words.len() / self.panels);
        let mut words = self.words.chunks_exact_mut(words.max(1));
        self.lanes.chunks_exact_mut(rows).map(move |lanes| (lanes, words.next().unwrap_or_default()))
    }

    /// What products take, equally much for each panel.
    pub fn get(&self) -> &[Lane] {
        if self.words.is_empty() { &self.lanes } else { &self.words }
    }
}

/// Makes a panel's words of its values, if it has any.
#[inline(always)]
pub fn pair<S: Simd>(simd: S, lanes: &[Lane], words: &mut [Lane]) {
    pair_lanes(simd, lanes, words);
    if let Some(rest) = words.get_mut(lanes.len().div_ceil(2)..) {
        rest.fill(ZERO);
    }
}

/// The gradient by a batch's outputs, and what it is for.
#[derive(Clone, Copy)]
pub struct Back<'a> {
    /// The gradient, see [`Operand::get`].
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
            turned: Lanes::default(),
            kept: true,
            capacity: 0,
            sums: Sums::default(),
            precision,
            scratch: PerThread::default(),
        }
    }

    /// Arithmetic of the products.
    pub fn precision(&self) -> Precision {
        self.precision
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

    /// Inputs of the batch of the last [`Wide::pass`], a slice after the other, and the distance of two slices. Only where
    /// they are kept.
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

    /// Makes room for batches of up to `rows` rows, whose inputs are kept if `keep`. Forgets a batch that was filled in
    /// before.
    pub fn reserve(&mut self, rows: usize, keep: bool) {
        if rows > self.capacity {
            self.capacity = rows;
            self.kept = keep || self.precision == Precision::F32;
            let blocks = if self.kept { self.slices() * self.block() } else { 0 };
            self.blocks.resize(blocks / WIDTH);
            self.blocks.fill(ZERO);
            if self.precision == Precision::Bf16 {
                self.turned.resize(self.slices() * Halves::down_room(rows) / WIDTH);
                self.turned.fill(ZERO);
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
    pub fn pass<F: Fill>(&mut self, level: Isa, back: Option<Back<'_>>, next: Option<&F>) {
        let (inputs, panels, slices, size) = (self.inputs, self.panels, self.slices(), self.block());
        let rows = next.map_or(1, Fill::rows);
        assert!(rows <= self.capacity, "room for the batch");
        let (mut blocks, mut sums) = (std::mem::take(&mut self.blocks), std::mem::take(&mut self.sums));
        let (mut turned, mut scratch) = (std::mem::take(&mut self.turned), std::mem::take(&mut self.scratch));
        scratch.resize();
        let together = sums.resize(slices, panels, rows);
        let capacity = self.capacity;
        let mut kept = blocks.as_flattened_mut().chunks_mut(together * size);
        let mut rooms = turned.as_flattened_mut().chunks_mut(together * Halves::down_room(capacity));
        let weights = self.weights(together, back.map(|b| b.update));
        let tasks = weights.into_iter().zip(sums.groups()).enumerate().map(|(group, (weights, sums))| Pass {
            weights,
            blocks: kept.next().unwrap_or_default(),
            size,
            turned: rooms.next().unwrap_or_default(),
            capacity,
            sums,
            panels,
            first: group * together * SLICE,
            inputs,
            back,
            next,
        });
        each(tasks, |pass| scratch.with(|scratch| level.run(Run { pass, scratch })));
        (self.blocks, self.turned, self.sums, self.scratch) = (blocks, turned, sums, scratch);
    }
}

/// Where the weight of an input lies in the lane of its output.
fn place(panels: usize, output: usize, input: usize) -> usize {
    (input / SLICE * panels + output / WIDTH) * SLICE + input % SLICE
}

/// A group of slices.
struct Pass<'a, F> {
    weights: Weights<'a>,
    /// Empty where blocks are not kept.
    blocks: &'a mut [f32],
    size: usize,
    /// Empty where products are F32.
    turned: &'a mut [f32],
    capacity: usize,
    sums: &'a mut [Lane],
    panels: usize,
    first: usize,
    inputs: usize,
    back: Option<Back<'a>>,
    next: Option<&'a F>,
}

/// A pass with a thread's scratch.
struct Run<'s, 'a, F> {
    pass: Pass<'a, F>,
    scratch: &'s mut Scratch,
}

impl<F: Fill> Task for Run<'_, '_, F> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Run { pass, scratch } = self;
        let Pass { mut weights, blocks, size, turned, capacity, sums, panels, first, inputs, back, next } =
            pass;
        let (halved, kept) = (!turned.is_empty(), !blocks.is_empty());
        let (along_room, down_room) = (Halves::along_room(capacity), Halves::down_room(capacity));
        // Slices whose outputs are summed at a time: matrix instructions take less time than adding their sums would.
        let together = if S::MATRIX && halved { SUMMED } else { 1 };
        scratch.block.resize(if kept { 0 } else { size / WIDTH });
        scratch.along.resize(if halved { together * along_room / WIDTH } else { 0 });
        let (scratch, along) = (scratch.block.as_flattened_mut(), scratch.along.as_flattened_mut());
        let mut words = [ZERO; SLICE / 2];
        sums.fill(ZERO);
        let slices = weights.w.len() / (panels * SLICE);
        for start in (0..slices).step_by(together) {
            let some = start..(start + together).min(slices);
            for slice in some.clone() {
                let mut weights = weights.part(slice * panels * SLICE, panels * SLICE);
                let block = if kept { &mut blocks[slice * size..][..size] } else { &mut *scratch };
                let mut halves = halved.then(|| {
                    let along = &mut along[(slice - start) * along_room..][..along_room];
                    Halves::new(along, &mut turned[slice * down_room..][..down_room], capacity)
                });
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
                let to = (from + SLICE).min(inputs);
                let count = next.rows();
                let block = &mut block[..count * STRIDE];
                next.fill(simd, from..to, block, kept);
                if !kept && to < from + SLICE {
                    // Another slice's inputs may be there.
                    block.chunks_exact_mut(STRIDE).for_each(|row| row[to - from..SLICE].fill(0.0));
                }
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
                            pair_lanes(simd, lanes, &mut words);
                            halves.rows(simd, count, &words, &mut Add(sums));
                        }
                    }
                }
            }
            if let Some(next) = next.filter(|_| together > 1) {
                let weights = &weights.w[some.start * panels * SLICE..some.end * panels * SLICE];
                sum_slices(simd, along, along_room, weights, panels, next.rows(), sums);
            }
        }
    }
}

/// Slices that [`sum_slices`] takes at most.
const SUMMED: usize = 4;

/// Adds the outputs of some slices, whose rows lie `room` values apart, by matrix instructions.
#[inline(always)]
fn sum_slices<S: Simd>(
    simd: S,
    along: &[f32],
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
            pair_lanes(simd, &weights[p * SLICE..(p + 1) * SLICE], words);
        }
        let words = &words[..slices * WORDS];
        for (i, sums) in sums.chunks_mut(TALL).enumerate() {
            let at = &along[i * TALL * HALF_STRIDE..];
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
