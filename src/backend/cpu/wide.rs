//! Layers of d inputs in training. A step takes one pass over the weights: while a slice of them lies in the
//! second-level cache its gradient is made and goes straight into Adam, the next batch's inputs are fetched, and the
//! slice's share of the next batch's outputs is summed. Gradients never reach memory, and weights and moments are read
//! and written once a step.

use std::ops::Range;

use rayon::prelude::*;

use super::adam::{Update, Weights};
use super::lanes::Lanes;
use super::tile::{Add, ZERO, columns, rows};
use crate::simd::{Lane, Level, Simd, Task, WIDTH};

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
    capacity: usize,
    sums: Sums,
}

/// Sums over groups of slices, `[group][panel][rows]`.
#[derive(Debug, Default)]
pub struct Sums {
    lanes: Lanes,
    /// Lanes of a group.
    size: usize,
}

impl Sums {
    /// Room for `rows` rows of `panels` panels, zeroed; gives the slices that make a group.
    pub fn clear(&mut self, slices: usize, panels: usize, rows: usize) -> usize {
        self.size = panels * rows;
        let most = (SUMS / self.size.max(1)).clamp(1, GROUPS);
        let together = slices.div_ceil(most);
        self.lanes.resize(slices.div_ceil(together) * self.size);
        self.lanes.fill(ZERO);
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
    fn fill(&self, columns: Range<usize>, block: &mut [f32]);
}

/// The gradient by a batch's outputs, `[panel][rows]`, and what it is for.
#[derive(Clone, Copy)]
pub struct Back<'a> {
    /// The gradient.
    pub lanes: &'a [Lane],
    /// Rows of the batch that the blocks hold.
    pub rows: usize,
    /// What is done.
    pub update: Update,
}

impl Wide {
    /// Starts from weights `weight(output, input)` with zero moments.
    pub fn new(inputs: usize, outputs: usize, weight: impl Fn(usize, usize) -> f32) -> Wide {
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
            capacity: 0,
            sums: Sums::default(),
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
        assert!(rows.max(back.map_or(0, |b| b.rows)) <= self.capacity, "room for the batch");
        let (mut blocks, mut sums) = (std::mem::take(&mut self.blocks), std::mem::take(&mut self.sums));
        let together = sums.clear(slices, panels, rows);
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
                sums,
                panels,
                first: group * together * SLICE,
                inputs,
                back,
                next,
            })
            .collect();
        tasks.into_par_iter().with_max_len(1).for_each(|task| level.run(task));
        (self.blocks, self.sums) = (blocks, sums);
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
        let Pass { mut weights, blocks, size, sums, panels, first, inputs, back, next } = self;
        for (i, block) in blocks.chunks_mut(size).enumerate() {
            let mut weights = weights.part(i * panels * SLICE, panels * SLICE);
            if let Some(back) = back {
                for (p, lanes) in back.lanes.chunks_exact(back.rows).enumerate() {
                    let mut learn = weights.part(p * SLICE, SLICE);
                    columns(simd, block, STRIDE, SLICE, lanes, &mut learn.learn(back.update));
                }
            }
            if let Some(next) = next {
                let from = first + i * SLICE;
                let count = next.rows();
                next.fill(from..(from + SLICE).min(inputs), &mut block[..count * STRIDE]);
                for (p, sums) in sums.chunks_exact_mut(count).enumerate() {
                    let lanes = &weights.w[p * SLICE..(p + 1) * SLICE];
                    rows(simd, block, STRIDE, count, lanes, &mut Add(sums));
                }
            }
        }
    }
}
