//! The decoder's last layer in training: reconstruction, loss, gradients and step of a slice of its outputs while the
//! slice is in the cache.

use rayon::prelude::*;

use super::adam::{Update, Vector, Weights};
use super::halves::{halve, pair_lanes};
use super::lanes::Lanes;
use super::panel::{Pairs, Single, inputs_of_word};
use super::tile::{Add, Sink, ZERO, columns, rows};
use super::wide::{Halves, SLICE, STRIDE, Sums, Wide};
use crate::backend::Precision;
use crate::model::Linear;
use crate::simd::{LANES, Lane, Level, Simd, Task, WIDTH};

/// Panels of outputs in a slice.
const ACROSS: usize = SLICE / WIDTH;

/// The layer with its bias, moments and scratch.
#[derive(Debug)]
pub struct Reconstruction {
    /// Its inputs are the layer's outputs: `[d][hidden]`.
    weight: Wide,
    bias: Vector,
    /// Gradients by the hidden layer, over the slope.
    sums: Sums,
    /// A group's slice of the reconstruction's differences from the embeddings, `[rows][STRIDE]`, one after the other.
    differences: Lanes,
    /// A group's panel of the weights, transposed: `[hidden or words][32]`.
    across: Lanes,
    /// A group's differences as operands of BF16 products.
    halves: Lanes,
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
    pub slope: f64,
}

impl Reconstruction {
    /// Starts from `layer`.
    pub fn new(layer: &Linear, precision: Precision) -> Reconstruction {
        let weight =
            Wide::new(layer.outputs, layer.inputs, precision, |h, i| layer.weight[i * layer.inputs + h]);
        Reconstruction {
            bias: Vector::new(&layer.bias, weight.slices() * ACROSS),
            weight,
            sums: Sums::default(),
            differences: Lanes::default(),
            across: Lanes::default(),
            halves: Lanes::default(),
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

    /// Gradients by the hidden layer, over the slope, of the last [`Reconstruction::pass`], `[panel][rows]`.
    pub fn sums(&self) -> &Sums {
        &self.sums
    }

    /// Reconstructs `count` rows from the hidden layer, given as rows `[rows, hidden]` (of words, if products are BF16,
    /// with room for a multiple of 16 rows) and, times the slope, as [`Wide::operand`]; gives the sum of squared
    /// differences, updates the layer, and leaves the gradient by the hidden layer, over the slope, in
    /// [`Reconstruction::sums`].
    pub fn pass(
        &mut self,
        level: Level,
        count: usize,
        hidden: &[f32],
        panels: &[Lane],
        target: Target<'_>,
        update: Update,
    ) -> f64 {
        let (width, precision) = (self.weight.outputs(), self.weight.precision());
        let words = width / inputs_of_word(precision);
        let (slices, down) = (self.weight.slices(), self.weight.panels());
        let together = self.sums.resize(slices, down, count);
        let groups = slices.div_ceil(together);
        let size = (count * STRIDE).next_multiple_of(WIDTH);
        self.differences.resize(groups * size / WIDTH);
        self.across.resize(groups * words);
        let room = Halves::room(count);
        if precision == Precision::Bf16 {
            self.halves.resize(groups * room / WIDTH);
        }
        let mut halves = self.halves.as_flattened_mut().chunks_exact_mut(room);
        self.squares.resize(slices, 0.0);
        let weights = self.weight.weights(together, Some(update));
        let mut bias = self.bias.weights();
        let mut tasks = Vec::with_capacity(groups);
        let across = self.across.chunks_exact_mut(words);
        let scratch = self.differences.as_flattened_mut().chunks_exact_mut(size).zip(across);
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
                halves: halves.next().map(|room| Halves::new(room, count)),
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
    /// Where products are BF16.
    halves: Option<Halves<'a>>,
    sums: &'a mut [Lane],
    squares: &'a mut [f64],
    update: Update,
}

impl Task for Group<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let (count, width) = (self.count, self.width);
        self.sums.fill(ZERO);
        let down = width.div_ceil(WIDTH) * SLICE;
        let mut words = [ZERO; SLICE / 2];
        for (i, block) in self.blocks.chunks(self.target.size).enumerate() {
            let mut weights = self.weights.part(i * down, down);
            let mut bias = self.bias.part(i * ACROSS, ACROSS);
            for q in 0..ACROSS {
                let mut place = Place { out: self.differences, from: q * WIDTH };
                let across = &mut *self.across;
                match &self.halves {
                    None => {
                        for (h, lane) in across.iter_mut().enumerate() {
                            let from = &weights.w[h / WIDTH * SLICE + q * WIDTH..][..WIDTH];
                            *lane = std::array::from_fn(|j| from[j][h % WIDTH]);
                        }
                        rows::<S, Single, _>(simd, self.hidden, width, count, across, &mut place);
                    }
                    Some(_) => {
                        let panels = weights.w.chunks_exact(SLICE).zip(across.chunks_mut(WIDTH / 2));
                        for (panel, across) in panels {
                            turn_pairs(simd, &panel[q * WIDTH..][..WIDTH], across);
                        }
                        rows::<S, Pairs, _>(simd, self.hidden, width / 2, count, across, &mut place);
                    }
                }
            }
            let (squares, sums) = compare(simd, bias.w.as_flattened(), block, self.differences);
            self.squares[i] = squares;
            let mut gradient = [ZERO; ACROSS];
            for (to, sum) in gradient.as_flattened_mut().iter_mut().zip(sums) {
                *to = (self.target.slope * sum) as f32;
            }
            bias.learn(self.update).take(0, &gradient);
            if let Some(halves) = &mut self.halves {
                halves.take(simd, &self.differences[..count * STRIDE]);
            }
            for (p, sums) in self.sums.chunks_exact_mut(count).enumerate() {
                let lanes = &weights.w[p * SLICE..(p + 1) * SLICE];
                match &self.halves {
                    None => {
                        rows::<S, Single, _>(simd, self.differences, STRIDE, count, lanes, &mut Add(sums));
                    }
                    Some(halves) => {
                        pair_lanes(lanes, &mut words);
                        halves.rows(simd, count, &words, &mut Add(sums));
                    }
                }
            }
            let panels = width.div_ceil(WIDTH);
            for (p, lanes) in self.panels.chunks_exact(self.panels.len() / panels).enumerate() {
                let mut learn = weights.part(p * SLICE, SLICE);
                let mut learn = learn.learn(self.update);
                match &self.halves {
                    None => {
                        columns::<S, Single, _>(simd, self.differences, STRIDE, SLICE, lanes, &mut learn);
                    }
                    Some(halves) => halves.columns(simd, lanes, &mut learn),
                }
            }
        }
    }
}

/// Words of neighbouring values of 32 lanes, transposed: lane h holds values 2 h and 2 h + 1 of every lane. Takes as many
/// as `to` has room for.
#[inline(always)]
fn turn_pairs<S: Simd>(simd: S, lanes: &[Lane], to: &mut [Lane]) {
    let mut words = [[0f32; WIDTH / 2]; WIDTH];
    for (lane, words) in lanes.iter().zip(&mut words) {
        halve(simd, lane, words);
    }
    let (upper, lower) = words.split_at(LANES);
    let left = simd.turn(upper.try_into().expect("a square"));
    let right = simd.turn(lower.try_into().expect("a square"));
    for (h, to) in to.iter_mut().enumerate() {
        to[..LANES].copy_from_slice(&left[h]);
        to[LANES..].copy_from_slice(&right[h]);
    }
}

/// A sink for a panel of a slice's rows.
struct Place<'a> {
    out: &'a mut [f32],
    /// First column of the panel.
    from: usize,
}

impl Sink for Place<'_> {
    #[inline(always)]
    fn take(&mut self, at: usize, made: &[Lane]) {
        for (i, made) in made.iter().enumerate() {
            self.out[(at + i) * STRIDE + self.from..][..WIDTH].copy_from_slice(made);
        }
    }
}

/// Makes `out`, a slice of reconstructions without bias, their differences from the embeddings; gives the sum of the
/// squares, and the sums of the differences over rows.
#[inline(always)]
fn compare<S: Simd>(simd: S, bias: &[f32], block: &[f32], out: &mut [f32]) -> (f64, [f64; SLICE]) {
    /// Rows that are summed in F32.
    const TOGETHER: usize = 16;
    let (mut total, mut totals) = (0f64, [0f64; SLICE]);
    for (out, block) in out.chunks_mut(TOGETHER * STRIDE).zip(block.chunks(TOGETHER * STRIDE)) {
        let (mut squares, mut sums) = ([0f32; SLICE], [0f32; SLICE]);
        for (out, x) in out.chunks_exact_mut(STRIDE).zip(block.chunks_exact(STRIDE)) {
            let (out, x, bias) = (&mut out[..SLICE], &x[..SLICE], &bias[..SLICE]);
            for j in 0..SLICE {
                let difference = out[j] + bias[j] - x[j];
                squares[j] += difference * difference;
                sums[j] += difference;
                out[j] = difference;
            }
        }
        for lane in squares.as_chunks().0 {
            total += f64::from(simd.sum(lane));
        }
        for (total, sum) in totals.iter_mut().zip(sums) {
            *total += f64::from(sum);
        }
    }
    (total, totals)
}
