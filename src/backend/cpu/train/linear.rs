//! A layer of d inputs in training, fused with Adam and with the next batch.
//!
//! The simple algorithm of a step is dW = X^T dY, then Adam, then Y' = X' W'^T for the next batch X': three passes over
//! weights of hundreds of megabytes. Here it is one pass ([`FusedLinear::pass`]): while a slice of [`SLICE`] inputs lies
//! in the second-level cache,
//!
//! 1. its gradient is made and goes straight into Adam (an [`Epilogue`]), so that it never reaches memory;
//! 2. the next batch's inputs are read and standardised into a block of rows;
//! 3. the slice's share of the next batch's outputs is summed.
//!
//! Slices are shared among threads in groups whose number depends on sizes alone, and groups' sums are added in order,
//! so results do not depend on the number of threads. With [`Precision::Bf16`] the operands of products are rounded on
//! their way in; weights, moments and sums are F32.

use std::ops::Range;

use super::adam::{SLICE, Update, Weights};
use super::{PerThread, each};
use crate::backend::Precision;
use crate::backend::cpu::gemm::{
    self, AlignedRows, ZERO, inputs_per_word, pack_pairs, pack_words, transpose, transpose_bf16x2,
};
use crate::simd::{AMX_TILE, Isa, NR, NrRow, RowsRef, Simd, Task, VLEN};

/// Distance of a block's rows: not a power of two, whose rows would share a few sets of the cache.
pub const STRIDE: usize = SLICE + 16;
/// The same in bf16x2 words, with room for the slices whose outputs are summed together.
const WORD_STRIDE: usize = SUMMED * SLICE / 2 + 16;
/// Slices of BF16 whose outputs are summed together: AMX takes less time for one than adding its sums to memory does.
const SUMMED: usize = 4;
/// Most sums over slices that run side by side. A number of their own makes results independent of the threads.
const GROUPS: usize = 16;
/// Rows that sums side by side may take together.
const SUMS: usize = 1 << 20;

/// Weights `[outputs, inputs]` with their moments, and what a batch needs of its inputs.
#[derive(Debug)]
pub struct FusedLinear {
    inputs: usize,
    outputs: usize,
    panels: usize,
    /// `[slice][panel][SLICE][NR]`, padded with zeros, which stay zero.
    w: AlignedRows,
    m: AlignedRows,
    v: AlignedRows,
    g: AlignedRows,
    /// Inputs of the batch, `[slice][capacity][STRIDE]`; columns past the last input are zero.
    blocks: AlignedRows,
    /// The same transposed in bf16x2 words, `[slice][SLICE][transposed_stride]`, where products are BF16.
    transposed: AlignedRows,
    /// Whether blocks are kept; else only what the gradient needs of them is.
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
    block: AlignedRows,
    /// Rows of [`SUMMED`] slices in bf16x2 words, `[rows][WORD_STRIDE]`.
    words: AlignedRows,
    /// A block transposed, where products are F32.
    transposed: AlignedRows,
}

/// Distance of the rows of a transposed block of `rows` rows in words.
pub fn transposed_stride(rows: usize, precision: Precision) -> usize {
    rows.div_ceil(inputs_per_word(precision)).next_multiple_of(VLEN) + VLEN
}

/// [`NrRow`]s that a transposed block takes.
pub fn transposed_room(rows: usize, precision: Precision) -> usize {
    (SLICE * transposed_stride(rows, precision)).div_ceil(NR)
}

/// Transposes the rows of a block, `STRIDE` apart, as the left operand of dW = X^T dY.
#[inline(always)]
pub fn transpose_block<'a, S: Simd>(
    simd: S,
    precision: Precision,
    block: &[f32],
    count: usize,
    (out, stride): (&'a mut [f32], usize),
) -> RowsRef<'a> {
    let rows = RowsRef { words: block, count, stride: STRIDE };
    match precision {
        Precision::F32 => transpose(simd, rows, SLICE, out, stride),
        Precision::Bf16 => transpose_bf16x2::<S, SLICE>(simd, rows, out, stride),
    }
    RowsRef { words: out, count: SLICE, stride }
}

/// Sums over groups of slices, `[group][panel][rows]`.
#[derive(Debug, Default)]
pub struct Sums {
    rows: AlignedRows,
    /// Rows of a group.
    size: usize,
}

impl Sums {
    /// Room for `rows` rows of `panels` panels, which the tasks of the groups zero; gives the slices of a group.
    pub fn resize(&mut self, slices: usize, panels: usize, rows: usize) -> usize {
        self.size = panels * rows;
        let most = (SUMS / self.size.max(1)).clamp(1, GROUPS);
        let per_group = slices.div_ceil(most);
        self.rows.resize(slices.div_ceil(per_group) * self.size);
        per_group
    }

    /// The groups' sums.
    pub fn groups(&mut self) -> impl Iterator<Item = &mut [NrRow]> {
        self.rows.chunks_exact_mut(self.size)
    }

    /// Adds rows `from..from + out.len()` of all groups, in order, to `out`.
    #[inline(always)]
    pub fn add_to(&self, from: usize, out: &mut [NrRow]) {
        let count = out.len();
        let out = out.as_flattened_mut();
        for group in self.rows.chunks_exact(self.size) {
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

/// Values by panels, `[panel][rows]`, as the right operand of dW = X^T dY: themselves, or where products are BF16
/// bf16x2 words of two rows.
#[derive(Debug, Default)]
pub struct Operand {
    rows: AlignedRows,
    words: AlignedRows,
    panels: usize,
}

impl Operand {
    /// Room for so many rows.
    pub fn resize(&mut self, precision: Precision, panels: usize, rows: usize) {
        let words = if precision == Precision::Bf16 { rows.div_ceil(2) } else { 0 };
        self.panels = panels;
        self.rows.resize(panels * rows);
        self.words.resize(panels * words);
    }

    /// Values and words of each panel, which [`pack_pairs`] makes of them.
    pub fn panels(&mut self) -> impl Iterator<Item = (&mut [NrRow], &mut [NrRow])> {
        let (rows, words) = (self.rows.len() / self.panels, self.words.len() / self.panels);
        let mut words = self.words.chunks_exact_mut(words.max(1));
        self.rows.chunks_exact_mut(rows).map(move |rows| (rows, words.next().unwrap_or_default()))
    }

    /// What products take, equally much for each panel.
    pub fn get(&self) -> &[NrRow] {
        if self.words.is_empty() { &self.rows } else { &self.words }
    }
}

/// dL/dY of the batch in the blocks, and whether to apply Adam or keep dW.
#[derive(Clone, Copy)]
pub struct Back<'a> {
    /// The gradient, see [`Operand::get`].
    pub dy: &'a [NrRow],
    /// Its rows.
    pub rows: usize,
    /// What is done.
    pub update: Update,
}

impl FusedLinear {
    /// Starts from weights `weight(output, input)` with zero moments.
    pub fn new(
        inputs: usize,
        outputs: usize,
        precision: Precision,
        weight: impl Fn(usize, usize) -> f32,
    ) -> FusedLinear {
        let (slices, panels) = (inputs.div_ceil(SLICE), outputs.div_ceil(NR));
        let mut w = AlignedRows::zeros(slices * panels * SLICE);
        for input in 0..inputs {
            for output in 0..outputs {
                w[place(panels, output, input)][output % NR] = weight(output, input);
            }
        }
        FusedLinear {
            inputs,
            outputs,
            panels,
            m: AlignedRows::zeros(w.len()),
            v: AlignedRows::zeros(w.len()),
            g: AlignedRows::default(),
            w,
            blocks: AlignedRows::default(),
            transposed: AlignedRows::default(),
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

    /// Panels of [`NR`] outputs.
    pub fn panels(&self) -> usize {
        self.panels
    }

    /// Pieces of [`SLICE`] inputs.
    pub fn slices(&self) -> usize {
        self.inputs.div_ceil(SLICE)
    }

    /// Inputs of the batch of the last [`FusedLinear::pass`], a slice after the other, and the distance of two slices.
    /// Only where they are kept.
    pub fn blocks(&self) -> (&[f32], usize) {
        (self.blocks.as_flattened(), self.block())
    }

    /// Sums of the last [`FusedLinear::pass`].
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

    fn each(&self, rows: &[NrRow], mut take: impl FnMut(usize, usize, f32)) {
        if rows.is_empty() {
            return;
        }
        for input in 0..self.inputs {
            for output in 0..self.outputs {
                take(output, input, rows[place(self.panels, output, input)][output % NR]);
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
            self.blocks.resize(blocks / NR);
            self.blocks.fill(ZERO);
            if self.precision == Precision::Bf16 {
                self.transposed.resize(self.slices() * transposed_room(rows, self.precision));
                self.transposed.fill(ZERO);
            }
        }
    }

    /// Values of a slice's block, whole [`NrRow`]s.
    fn block(&self) -> usize {
        (self.capacity * STRIDE).next_multiple_of(NR)
    }

    /// Weights and moments by `per_group` slices, for `update`.
    pub fn weights(&mut self, per_group: usize, update: Option<Update>) -> Vec<Weights<'_>> {
        if matches!(update, Some(Update::Keep)) {
            self.g.resize(self.w.len());
        }
        let size = per_group * self.panels * SLICE;
        let mut g = self.g.chunks_mut(size);
        let chunks = self.w.chunks_mut(size).zip(self.m.chunks_mut(size)).zip(self.v.chunks_mut(size));
        chunks.map(|((w, m), v)| Weights { w, m, v, g: g.next().unwrap_or(&mut []) }).collect()
    }

    /// Takes the gradient of the batch in the blocks, then the inputs of the next batch, and sums its outputs (without
    /// bias) into [`FusedLinear::sums`]. Either may be missing.
    pub fn pass<F: Fill>(&mut self, isa: Isa, back: Option<Back<'_>>, next: Option<&F>) {
        let (inputs, panels, slices, size) = (self.inputs, self.panels, self.slices(), self.block());
        let (capacity, precision) = (self.capacity, self.precision);
        let rows = next.map_or(1, Fill::rows);
        assert!(rows <= capacity, "room for the batch");
        let (mut blocks, mut sums) = (std::mem::take(&mut self.blocks), std::mem::take(&mut self.sums));
        let mut transposed = std::mem::take(&mut self.transposed);
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.resize();
        let per_group = sums.resize(slices, panels, rows);
        let mut kept = blocks.as_flattened_mut().chunks_mut(per_group * size);
        let mut rooms = transposed.chunks_mut(per_group * transposed_room(capacity, Precision::Bf16));
        let weights = self.weights(per_group, back.map(|b| b.update));
        let tasks =
            weights.into_iter().zip(sums.groups()).enumerate().map(|(group, (weights, sums))| Group {
                weights,
                blocks: kept.next().unwrap_or_default(),
                size,
                transposed: rooms.next().unwrap_or_default().as_flattened_mut(),
                capacity,
                precision,
                sums,
                panels,
                first: group * per_group * SLICE,
                inputs,
                back,
                next,
            });
        each(tasks, |group| scratch.with(|scratch| isa.run(Pass { group, scratch })));
        (self.blocks, self.transposed, self.sums, self.scratch) = (blocks, transposed, sums, scratch);
    }
}

/// Where the weight of an input lies in the row of its output.
fn place(panels: usize, output: usize, input: usize) -> usize {
    (input / SLICE * panels + output / NR) * SLICE + input % SLICE
}

/// A group of slices.
struct Group<'a, F> {
    weights: Weights<'a>,
    /// Empty where blocks are not kept.
    blocks: &'a mut [f32],
    size: usize,
    /// Empty where products are F32.
    transposed: &'a mut [f32],
    capacity: usize,
    precision: Precision,
    sums: &'a mut [NrRow],
    panels: usize,
    first: usize,
    inputs: usize,
    back: Option<Back<'a>>,
    next: Option<&'a F>,
}

/// A group with a thread's scratch.
struct Pass<'s, 'a, F> {
    group: Group<'a, F>,
    scratch: &'s mut Scratch,
}

impl<F: Fill> Task for Pass<'_, '_, F> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Pass { group, scratch } = self;
        let Group { mut weights, blocks, size, transposed, capacity, precision, .. } = group;
        let Group { sums, panels, first, inputs, back, next, .. } = group;
        let (bf16, kept) = (precision == Precision::Bf16, !blocks.is_empty());
        let (stride, room) = (transposed_stride(capacity, precision), transposed_room(capacity, precision));
        scratch.block.resize(if kept { 0 } else { size / NR });
        scratch.words.resize(if bf16 { word_room(capacity) } else { 0 });
        scratch.transposed.resize(if bf16 { 0 } else { room });
        let words = scratch.words.as_flattened_mut();
        sums.fill(ZERO);
        let slices = weights.w.len() / (panels * SLICE);
        for slice in 0..slices {
            let block = match kept {
                true => &mut blocks[slice * size..][..size],
                false => scratch.block.as_flattened_mut(),
            };
            if let Some(Back { dy, rows, update }) = back {
                let x = match bf16 {
                    true => {
                        let words = &transposed[slice * room * NR..][..room * NR];
                        RowsRef { words, count: SLICE, stride }
                    }
                    false => {
                        let out = (scratch.transposed.as_flattened_mut(), stride);
                        transpose_block(simd, precision, block, rows, out)
                    }
                };
                for (p, dy) in dy.chunks_exact(dy.len() / panels).enumerate() {
                    let mut weights = weights.part((slice * panels + p) * SLICE, SLICE);
                    gemm::product(simd, precision, x, dy, p, &mut weights.learn(update));
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
            if !bf16 {
                let x = RowsRef { words: block, count, stride: STRIDE };
                for (p, sums) in sums.chunks_exact_mut(count).enumerate() {
                    gemm::add(simd, precision, x, weights.panel(panels, slice, p), SLICE, sums);
                }
                continue;
            }
            let out = (&mut transposed[slice * room * NR..][..room * NR], stride);
            transpose_block(simd, precision, block, count, out);
            pack_block(simd, block, slice % SUMMED, words);
            if slice % SUMMED == SUMMED - 1 || slice == slices - 1 {
                let slices = slice / SUMMED * SUMMED..slice + 1;
                let x = RowsRef { words, count, stride: WORD_STRIDE };
                for (p, sums) in sums.chunks_exact_mut(count).enumerate() {
                    add_slices(simd, x, &weights, panels, slices.clone(), p, sums);
                }
            }
        }
    }
}

/// [`NrRow`]s that rows in bf16x2 words take, readable up to whole tiles.
pub fn word_room(rows: usize) -> usize {
    (rows.next_multiple_of(AMX_TILE) * WORD_STRIDE).div_ceil(NR)
}

/// Packs the rows of a block as bf16x2 words, as the slice numbered `slice` of those summed together.
#[inline(always)]
pub fn pack_block<S: Simd>(simd: S, block: &[f32], slice: usize, words: &mut [f32]) {
    for (row, words) in block.chunks_exact(STRIDE).zip(words.chunks_exact_mut(WORD_STRIDE)) {
        pack_words(simd, &row[..SLICE], &mut words[slice * SLICE / 2..][..SLICE / 2]);
    }
}

/// One slice's rows that [`pack_block`] packed as number 0.
pub fn packed_block(words: &[f32], count: usize) -> RowsRef<'_> {
    RowsRef { words, count, stride: WORD_STRIDE }
}

/// Adds the outputs of some slices in BF16.
#[inline(always)]
pub fn add_slices<S: Simd>(
    simd: S,
    x: RowsRef<'_>,
    weights: &Weights<'_>,
    panels: usize,
    slices: Range<usize>,
    panel: usize,
    sums: &mut [NrRow],
) {
    let mut words = [ZERO; SUMMED * SLICE / 2];
    let count = slices.len();
    for (slice, words) in slices.zip(words.chunks_exact_mut(SLICE / 2)) {
        pack_pairs(simd, weights.panel(panels, slice, panel), words);
    }
    gemm::add(simd, Precision::Bf16, x, &words[..count * SLICE / 2], SLICE / 2, sums);
}
