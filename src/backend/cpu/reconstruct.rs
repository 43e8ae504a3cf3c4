//! The decoder's last layer in training: reconstruction, loss, gradients and step of a slice of its outputs while the
//! slice is in the cache.

use super::adam::{Update, Vector, Weights};
use super::halves::{Halves, halve, pair_lanes};
use super::lanes::Lanes;
use super::panel::{Pairs, Single, inputs_of_word};
use super::scratch::{PerThread, each};
use super::tile::{Add, Keep, Sink, ZERO, columns, rows};
use super::wide::{SLICE, STRIDE, Sums, Wide};
use crate::backend::Precision;
use crate::model::Linear;
use crate::simd::{Isa, LANES, Lane, Simd, Task, WIDTH};

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
    squares: Vec<f64>,
    scratch: PerThread<Scratch>,
}

/// What a thread needs for a slice.
#[derive(Debug, Default)]
struct Scratch {
    /// A panel of the weights, transposed: `[hidden or words][32]`.
    across: Lanes,
    /// A panel of the reconstruction, then its differences from the embeddings, `[rows][32]`.
    made: Lanes,
    /// The differences of all panels as operands of F32 products, `[rows][STRIDE]`.
    differences: Lanes,
    /// The same as operands of BF16 products, see [`Halves`].
    along: Lanes,
    turned: Lanes,
}

impl Scratch {
    /// Room for `count` rows.
    fn resize(&mut self, words: usize, count: usize, precision: Precision) {
        self.across.resize(words);
        self.made.resize(count);
        match precision {
            Precision::F32 => self.differences.resize((count * STRIDE).div_ceil(WIDTH)),
            Precision::Bf16 => {
                self.along.resize(Halves::along_room(count) / WIDTH);
                self.turned.resize(Halves::down_room(count) / WIDTH);
            }
        }
    }
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
            squares: Vec::new(),
            scratch: PerThread::default(),
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
    /// with room for a multiple of 16 rows) and, times the slope, as [`Operand`](super::wide::Operand) has it; gives the sum of squared
    /// differences, updates the layer, and leaves the gradient by the hidden layer, over the slope, in
    /// [`Reconstruction::sums`].
    pub fn pass(
        &mut self,
        level: Isa,
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
        self.scratch.resize();
        self.squares.resize(slices, 0.0);
        let weights = self.weight.weights(together, Some(update));
        let mut bias = self.bias.weights();
        let mut tasks = Vec::with_capacity(groups);
        let blocks = target.blocks.chunks(together * target.size).zip(self.squares.chunks_mut(together));
        for ((weights, sums), (blocks, squares)) in weights.into_iter().zip(self.sums.groups()).zip(blocks) {
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
                sums,
                squares,
                update,
            });
        }
        each(tasks, |group| {
            self.scratch.with(|scratch| {
                scratch.resize(words, count, precision);
                level.run(Run { group, scratch, precision });
            });
        });
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
    sums: &'a mut [Lane],
    squares: &'a mut [f64],
    update: Update,
}

/// A group with a thread's scratch.
struct Run<'s, 'a> {
    group: Group<'a>,
    scratch: &'s mut Scratch,
    precision: Precision,
}

impl Task for Run<'_, '_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Run { group, scratch, precision } = self;
        let Group {
            mut weights,
            mut bias,
            hidden,
            panels,
            count,
            width,
            blocks,
            target,
            sums,
            squares,
            update,
        } = group;
        let Scratch { across, made, differences, along, turned } = scratch;
        let differences = &mut differences.as_flattened_mut()[..];
        let mut halves = (precision == Precision::Bf16)
            .then(|| Halves::new(along.as_flattened_mut(), turned.as_flattened_mut(), count));
        sums.fill(ZERO);
        let down = width.div_ceil(WIDTH) * SLICE;
        let mut words = [ZERO; SLICE / 2];
        for (i, block) in blocks.chunks(target.size).enumerate() {
            let mut weights = weights.part(i * down, down);
            let mut bias = bias.part(i * ACROSS, ACROSS);
            let mut gradient = [ZERO; ACROSS];
            squares[i] = 0.0;
            for q in 0..ACROSS {
                match &halves {
                    None => {
                        for (h, lane) in across.iter_mut().enumerate() {
                            let from = &weights.w[h / WIDTH * SLICE + q * WIDTH..][..WIDTH];
                            *lane = std::array::from_fn(|j| from[j][h % WIDTH]);
                        }
                        rows::<S, Single, _>(simd, hidden, width, count, across, &mut Keep(made));
                    }
                    Some(_) => {
                        let panels = weights.w.chunks_exact(SLICE).zip(across.chunks_mut(WIDTH / 2));
                        for (panel, across) in panels {
                            turn_pairs(simd, &panel[q * WIDTH..][..WIDTH], across);
                        }
                        rows::<S, Pairs, _>(simd, hidden, width / 2, count, across, &mut Keep(made));
                    }
                }
                let (square, totals) = compare(simd, &bias.w[q], &block[q * WIDTH..], made);
                squares[i] += square;
                for (to, total) in gradient[q].iter_mut().zip(totals) {
                    *to = (target.slope * total) as f32;
                }
                match &mut halves {
                    None => {
                        for (lane, to) in made.iter().zip(differences.chunks_exact_mut(STRIDE)) {
                            to[q * WIDTH..][..WIDTH].copy_from_slice(lane);
                        }
                    }
                    Some(halves) => halves.take_panel(simd, q, made),
                }
            }
            bias.learn(update).take(0, &gradient);
            if let Some(halves) = &mut halves {
                halves.complete(simd, count);
            }
            for (p, sums) in sums.chunks_exact_mut(count).enumerate() {
                let lanes = &weights.w[p * SLICE..(p + 1) * SLICE];
                match &halves {
                    None => rows::<S, Single, _>(simd, differences, STRIDE, count, lanes, &mut Add(sums)),
                    Some(halves) => {
                        pair_lanes(simd, lanes, &mut words);
                        halves.rows(simd, count, &words, &mut Add(sums));
                    }
                }
            }
            for (p, lanes) in panels.chunks_exact(panels.len() / width.div_ceil(WIDTH)).enumerate() {
                let mut learn = weights.part(p * SLICE, SLICE);
                let mut learn = learn.learn(update);
                match &halves {
                    None => columns::<S, Single, _>(simd, differences, STRIDE, SLICE, lanes, &mut learn),
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

/// Makes `made`, a panel of reconstructions without bias, their differences from the embeddings, whose rows lie
/// [`STRIDE`] apart in `block`; gives the sum of the squares, and the sums of the differences over rows.
#[inline(always)]
fn compare<S: Simd>(simd: S, bias: &Lane, block: &[f32], made: &mut [Lane]) -> (f64, [f64; WIDTH]) {
    /// Rows that are summed in F32.
    const TOGETHER: usize = 16;
    let (mut total, mut totals) = (0f64, [0f64; WIDTH]);
    for (made, block) in made.chunks_mut(TOGETHER).zip(block.chunks(TOGETHER * STRIDE)) {
        let (mut squares, mut sums) = ([0f32; WIDTH], [0f32; WIDTH]);
        for (made, x) in made.iter_mut().zip(block.chunks(STRIDE)) {
            let x = &x[..WIDTH];
            for j in 0..WIDTH {
                let difference = made[j] + bias[j] - x[j];
                squares[j] += difference * difference;
                sums[j] += difference;
                made[j] = difference;
            }
        }
        total += f64::from(simd.sum(&squares));
        for (total, sum) in totals.iter_mut().zip(sums) {
            *total += f64::from(sum);
        }
    }
    (total, totals)
}
