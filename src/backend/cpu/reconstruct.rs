//! The decoder's last layer in training: reconstruction, loss, gradients and step of a slice of its outputs while the
//! slice is in the cache.

use rayon::prelude::*;

use super::adam::{Update, Vector, Weights};
use super::simd::{Lane, Level, Simd, Task, WIDTH};
use super::tile::{Add, Sink, ZERO, columns, rows};
use super::wide::{SLICE, STRIDE, Sums, Wide};
use crate::model::Linear;

/// Panels of outputs in a slice.
const ACROSS: usize = SLICE / WIDTH;

/// The layer with its bias, moments and scratch.
#[derive(Debug)]
pub struct Reconstruction {
    /// Its inputs are the layer's outputs: `[d][hidden]`.
    weight: Wide,
    bias: Vector,
    /// Gradients by the hidden layer.
    sums: Sums,
    /// A group's slice of the gradient by the reconstruction, `[rows][STRIDE]`, one after the other.
    differences: Vec<f32>,
    /// A group's slice of the weights, transposed: `[ACROSS][hidden][32]`.
    across: Vec<Lane>,
    squares: Vec<f64>,
}

/// What is reconstructed.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    /// Slices of the embeddings, see [`Wide::blocks`].
    pub blocks: &'a [f32],
    /// Distance of two slices.
    pub size: usize,
    /// The loss's slope by a difference of 1.
    pub slope: f32,
}

impl Reconstruction {
    /// Starts from `layer`.
    pub fn new(layer: &Linear) -> Reconstruction {
        let weight = Wide::new(layer.outputs, layer.inputs, |h, i| layer.weight[i * layer.inputs + h]);
        Reconstruction {
            bias: Vector::new(&layer.bias, weight.slices() * ACROSS),
            weight,
            sums: Sums::default(),
            differences: Vec::new(),
            across: Vec::new(),
            squares: Vec::new(),
        }
    }

    /// The parameters.
    pub fn parameters(&self) -> Linear {
        let (inputs, outputs) = (self.weight.outputs(), self.weight.inputs());
        let mut weight = vec![0f32; inputs * outputs];
        self.weight.each_weight(|h, i, w| weight[i * inputs + h] = w);
        Linear { weight, bias: self.bias.values(), inputs, outputs }
    }

    /// The gradients kept last.
    pub fn gradients(&self) -> Linear {
        let (inputs, outputs) = (self.weight.outputs(), self.weight.inputs());
        let mut weight = vec![0f32; inputs * outputs];
        self.weight.each_gradient(|h, i, w| weight[i * inputs + h] = w);
        Linear { weight, bias: self.bias.gradients(), inputs, outputs }
    }

    /// Gradients by the hidden layer of the last [`Reconstruction::pass`], `[panel][rows]`.
    pub fn sums(&self) -> &Sums {
        &self.sums
    }

    /// Reconstructs from the hidden layer, given as rows `[rows, hidden]` and as `[panel][rows]`; gives the sum of
    /// squared differences, updates the layer, and leaves the gradient by the hidden layer in
    /// [`Reconstruction::sums`].
    pub fn pass(
        &mut self,
        level: Level,
        hidden: &[f32],
        panels: &[Lane],
        target: Target<'_>,
        update: Update,
    ) -> f64 {
        let width = self.weight.outputs();
        let (count, slices, down) = (hidden.len() / width, self.weight.slices(), self.weight.panels());
        let together = self.sums.clear(slices, down, count);
        let groups = slices.div_ceil(together);
        self.differences.resize(groups * count * STRIDE, 0.0);
        self.across.resize(groups * ACROSS * width, ZERO);
        self.squares.resize(slices, 0.0);
        let weights = self.weight.weights(together, Some(update));
        let mut bias = self.bias.weights();
        let mut tasks = Vec::with_capacity(groups);
        let scratch = self
            .differences
            .chunks_exact_mut(count * STRIDE)
            .zip(self.across.chunks_exact_mut(ACROSS * width));
        let blocks = target.blocks.chunks(together * target.size).zip(self.squares.chunks_mut(together));
        for (((weights, sums), (differences, across)), (blocks, squares)) in
            weights.into_iter().zip(self.sums.groups()).zip(scratch).zip(blocks)
        {
            let (now, later) = bias.split(squares.len() * ACROSS);
            bias = later;
            tasks.push(Group {
                weights,
                bias: now,
                hidden,
                panels,
                count,
                width,
                blocks,
                target,
                differences,
                across,
                sums,
                squares,
                update,
            });
        }
        tasks.into_par_iter().with_max_len(1).for_each(|task| level.run(task));
        self.squares.iter().sum()
    }
}

/// A group of slices.
struct Group<'a> {
    weights: Weights<'a>,
    bias: Weights<'a>,
    hidden: &'a [f32],
    panels: &'a [Lane],
    count: usize,
    width: usize,
    blocks: &'a [f32],
    target: Target<'a>,
    differences: &'a mut [f32],
    across: &'a mut [Lane],
    sums: &'a mut [Lane],
    squares: &'a mut [f64],
    update: Update,
}

impl Task for Group<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let (count, width) = (self.count, self.width);
        let down = width.div_ceil(WIDTH) * SLICE;
        for (i, block) in self.blocks.chunks(self.target.size).enumerate() {
            let mut weights = self.weights.part(i * down, down);
            let mut bias = self.bias.part(i * ACROSS, ACROSS);
            for (q, across) in self.across.chunks_exact_mut(width).enumerate() {
                for (h, lane) in across.iter_mut().enumerate() {
                    let from = &weights.w[h / WIDTH * SLICE + q * WIDTH..][..WIDTH];
                    *lane = std::array::from_fn(|j| from[j][h % WIDTH]);
                }
            }
            self.squares[i] = 0.0;
            for (q, across) in self.across.chunks_exact(width).enumerate() {
                let mut compare = Compare {
                    bias: bias.w[q],
                    from: q * WIDTH,
                    block,
                    out: self.differences,
                    slope: self.target.slope,
                    squares: ZERO,
                    sums: [0.0; WIDTH],
                };
                rows(simd, self.hidden, width, count, across, &mut compare);
                let Compare { squares, sums, .. } = compare;
                self.squares[i] += squares.iter().map(|&s| f64::from(s)).sum::<f64>();
                let slope = f64::from(self.target.slope);
                let gradient = std::array::from_fn(|j| (slope * sums[j]) as f32);
                bias.part(q, 1).learn(self.update).take(0, &[gradient]);
            }
            for (p, sums) in self.sums.chunks_exact_mut(count).enumerate() {
                let lanes = &weights.w[p * SLICE..(p + 1) * SLICE];
                rows(simd, self.differences, STRIDE, count, lanes, &mut Add(sums));
            }
            for (p, lanes) in self.panels.chunks_exact(count).enumerate() {
                let mut learn = weights.part(p * SLICE, SLICE);
                columns(simd, self.differences, STRIDE, SLICE, lanes, &mut learn.learn(self.update));
            }
        }
    }
}

/// A sink for a panel of reconstructions: compares them with the embeddings and keeps the loss's gradient.
struct Compare<'a> {
    bias: Lane,
    /// First column of the panel within the slice.
    from: usize,
    block: &'a [f32],
    out: &'a mut [f32],
    slope: f32,
    squares: Lane,
    /// Differences, summed over rows.
    sums: [f64; WIDTH],
}

impl Sink for Compare<'_> {
    #[inline(always)]
    fn take(&mut self, at: usize, made: &[Lane]) {
        let mut sums = ZERO;
        for (i, made) in made.iter().enumerate() {
            let from = (at + i) * STRIDE + self.from;
            let (x, out) = (&self.block[from..][..WIDTH], &mut self.out[from..][..WIDTH]);
            for j in 0..WIDTH {
                let difference = made[j] + self.bias[j] - x[j];
                self.squares[j] += difference * difference;
                sums[j] += difference;
                out[j] = self.slope * difference;
            }
        }
        for (total, sum) in self.sums.iter_mut().zip(sums) {
            *total += f64::from(sum);
        }
    }
}
