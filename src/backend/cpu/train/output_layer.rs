//! The decoder's last layer in training: reconstruction, loss, gradients and step of a slice of its outputs while the
//! slice is in the cache.
//!
//! The weights are held as those of a [`FusedLinear`] of d inputs, `W^T`: `[d][hidden]`. For each slice of [`SLICE`]
//! columns of the embeddings: X' = H W^T, panel by panel with weights transposed on the way; D = X' + b - X, the
//! differences; dH += D W; then W and b take their steps with D^T H and the sums of D.

use super::adam::SLICE;
use super::adam::{ParamVector, Update, Weights};
use super::linear::{
    FusedLinear, STRIDE, Sums, add_slices, pack_block, packed_block, transpose_block, transposed_room,
    transposed_stride, word_room,
};
use super::{PerThread, each};
use crate::backend::Precision;
use crate::backend::cpu::gemm::{self, AlignedRows, Keep, ZERO, inputs_per_word, pack_words, transpose};
use crate::model::Linear;
use crate::simd::{Isa, NR, NrRow, RowsRef, Simd, Task};

/// Panels of outputs in a slice.
const PANELS: usize = SLICE / NR;

/// The layer with its bias, moments and scratch.
#[derive(Debug)]
pub struct OutputLayer {
    /// Its inputs are the layer's outputs.
    weight: FusedLinear,
    bias: ParamVector,
    /// Gradients by the hidden layer, over the slope.
    sums: Sums,
    squares: Vec<f64>,
    scratch: PerThread<Scratch>,
}

/// What a thread needs for a slice.
#[derive(Debug, Default)]
struct Scratch {
    /// A panel of the weights, transposed: `[words][NR]`.
    panel: AlignedRows,
    /// A panel of the reconstruction, `[rows]`.
    made: AlignedRows,
    /// The differences of a slice, `[rows][STRIDE]`, also as bf16x2 words and transposed.
    differences: AlignedRows,
    words: AlignedRows,
    transposed: AlignedRows,
}

/// What is reconstructed.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    /// Slices of the embeddings, see [`FusedLinear::blocks`].
    pub blocks: &'a [f32],
    /// Distance of two slices.
    pub size: usize,
    /// The loss's slope by a difference of 1.
    pub slope: f64,
}

impl OutputLayer {
    /// Starts from `layer`.
    pub fn new(layer: &Linear, precision: Precision) -> OutputLayer {
        let transposed = |h, i| layer.weight[i * layer.inputs + h];
        let weight = FusedLinear::new(layer.outputs, layer.inputs, precision, transposed);
        OutputLayer {
            bias: ParamVector::new(&layer.bias, weight.slices() * PANELS),
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

    /// Gradients by the hidden layer, over the slope, of the last [`OutputLayer::pass`], `[panel][rows]`.
    pub fn sums(&self) -> &Sums {
        &self.sums
    }

    /// Reconstructs rows from the hidden layer, given as rows of words and, times the slope, as
    /// [`Operand`](super::linear::Operand) has it; gives the sum of squared differences, updates the layer, and leaves
    /// the gradient by the hidden layer, over the slope, in [`OutputLayer::sums`].
    pub fn pass(
        &mut self,
        isa: Isa,
        hidden: RowsRef<'_>,
        operand: &[NrRow],
        target: Target<'_>,
        update: Update,
    ) -> f64 {
        let (width, precision) = (self.weight.outputs(), self.weight.precision());
        let (slices, panels) = (self.weight.slices(), self.weight.panels());
        let per_group = self.sums.resize(slices, panels, hidden.count);
        self.scratch.resize();
        self.squares.resize(slices, 0.0);
        let weights = self.weight.weights(per_group, Some(update));
        let mut bias = self.bias.weights();
        let mut tasks = Vec::with_capacity(weights.len());
        let blocks = target.blocks.chunks(per_group * target.size).zip(self.squares.chunks_mut(per_group));
        for ((weights, sums), (blocks, squares)) in weights.into_iter().zip(self.sums.groups()).zip(blocks) {
            let (now, later) = bias.split(squares.len() * PANELS);
            bias = later;
            tasks.push(Group {
                weights,
                bias: now,
                hidden,
                operand,
                width,
                precision,
                blocks,
                target,
                sums,
                squares,
                update,
            });
        }
        each(tasks, |group| self.scratch.with(|scratch| isa.run(Pass { group, scratch })));
        self.squares.iter().sum()
    }
}

/// A group of slices.
struct Group<'a> {
    weights: Weights<'a>,
    bias: Weights<'a>,
    hidden: RowsRef<'a>,
    operand: &'a [NrRow],
    width: usize,
    precision: Precision,
    blocks: &'a [f32],
    target: Target<'a>,
    sums: &'a mut [NrRow],
    squares: &'a mut [f64],
    update: Update,
}

/// A group with a thread's scratch.
struct Pass<'s, 'a> {
    group: Group<'a>,
    scratch: &'s mut Scratch,
}

impl Task for Pass<'_, '_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Pass { group, scratch } = self;
        let Group { mut weights, mut bias, hidden, operand, width, precision, .. } = group;
        let Group { blocks, target, sums, squares, update, .. } = group;
        let (count, panels, bf16) = (hidden.count, width.div_ceil(NR), precision == Precision::Bf16);
        let Scratch { panel: across, made, differences, words, transposed } = scratch;
        across.resize(width.next_multiple_of(NR) / inputs_per_word(precision));
        made.resize(count);
        differences.resize((count * STRIDE).div_ceil(NR));
        words.resize(if bf16 { word_room(count) } else { 0 });
        transposed.resize(transposed_room(count, precision));
        let differences = &mut differences.as_flattened_mut()[..count * STRIDE];
        sums.fill(ZERO);
        for (slice, block) in blocks.chunks(target.size).enumerate() {
            let mut bias = bias.part(slice * PANELS, PANELS);
            let mut gradient = [ZERO; PANELS];
            squares[slice] = 0.0;
            for q in 0..PANELS {
                for p in 0..panels {
                    let rows = &weights.panel(panels, slice, p)[q * NR..][..NR];
                    turn_panel(simd, precision, rows, p, across);
                }
                let b = &across[..width / inputs_per_word(precision)];
                gemm::product(simd, precision, hidden, b, q, &mut Keep(made));
                let (square, totals) = compare(simd, &bias.w[q], &block[q * NR..], made);
                squares[slice] += square;
                for (to, total) in gradient[q].iter_mut().zip(totals) {
                    *to = (target.slope * total) as f32;
                }
                for (row, to) in made.iter().zip(differences.chunks_exact_mut(STRIDE)) {
                    to[q * NR..][..NR].copy_from_slice(row);
                }
            }
            bias.learn(update).take(0, &gradient);
            if bf16 {
                pack_block(simd, differences, 0, words.as_flattened_mut());
            }
            for (p, sums) in sums.chunks_exact_mut(count).enumerate() {
                match bf16 {
                    true => {
                        let d = packed_block(words.as_flattened(), count);
                        add_slices(simd, d, &weights, panels, slice..slice + 1, p, sums);
                    }
                    false => {
                        let d = RowsRef { words: differences, count, stride: STRIDE };
                        gemm::add(simd, precision, d, weights.panel(panels, slice, p), SLICE, sums);
                    }
                }
            }
            let out = (transposed.as_flattened_mut(), transposed_stride(count, precision));
            let d = transpose_block(simd, precision, differences, count, out);
            for (p, h) in operand.chunks_exact(operand.len() / panels).enumerate() {
                let mut weights = weights.part((slice * panels + p) * SLICE, SLICE);
                gemm::product(simd, precision, d, h, p, &mut weights.learn(update));
            }
        }
    }
}

/// Transposes [`NR`] rows of weights by [`NR`] hidden units into panel `p` of packed words, `[units or words][NR]`.
#[inline(always)]
fn turn_panel<S: Simd>(simd: S, precision: Precision, rows: &[NrRow], p: usize, out: &mut [NrRow]) {
    let words = NR / inputs_per_word(precision);
    let out = out[p * words..][..words].as_flattened_mut();
    match precision {
        Precision::F32 => {
            let rows = RowsRef { words: rows.as_flattened(), count: NR, stride: NR };
            transpose(simd, rows, NR, out, NR);
        }
        Precision::Bf16 => {
            let mut packed = [[0f32; NR / 2]; NR];
            for (row, packed) in rows.iter().zip(&mut packed) {
                pack_words(simd, row, packed);
            }
            let rows = RowsRef { words: packed.as_flattened(), count: NR, stride: NR / 2 };
            transpose(simd, rows, NR / 2, out, NR);
        }
    }
}

/// Makes `made`, a panel of reconstructions without bias, their differences from the embeddings, whose rows lie
/// [`STRIDE`] apart in `block`; gives the sum of the squares, and the sums of the differences over rows.
#[inline(always)]
fn compare<S: Simd>(simd: S, bias: &NrRow, block: &[f32], made: &mut [NrRow]) -> (f64, [f64; NR]) {
    /// Rows that are summed in F32.
    const F32_ROWS: usize = 16;
    let (mut total, mut totals) = (0f64, [0f64; NR]);
    for (made, block) in made.chunks_mut(F32_ROWS).zip(block.chunks(F32_ROWS * STRIDE)) {
        let (mut squares, mut sums) = ([0f32; NR], [0f32; NR]);
        for (made, x) in made.iter_mut().zip(block.chunks(STRIDE)) {
            let x = &x[..NR];
            for j in 0..NR {
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
