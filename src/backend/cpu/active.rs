//! Products with a hidden layer behind its ReLU. About half of its units are zero, and terms of zero are left out: of
//! the terms that are left every output element is still one chain in rising order, so no bit changes but the sign of a
//! sum that is zero.
//!
//! A row has units of its own, so rows cannot share a tile of weights as in `panel.rs`. Instead four panels side by
//! side, a slab that stays in the first-level cache, go past one row at a time.

use std::ops::Range;

use super::lanes::Lanes;
use super::panel::{Arithmetic, Inputs, Pairs, Place, Single, Sums};
use crate::backend::Precision;
use crate::dtype::Element;
use crate::model::Linear;
use crate::simd::{HalfLane, LANES, Lane, Simd, WIDTH, apart};

/// Panels of a slab.
pub const ACROSS: usize = 4;

/// A weight matrix packed for [`products`]: slabs of [`ACROSS`] panels, each `[inputs][ACROSS][32]`, the last one padded
/// with zeros. Of BF16 a lane has two halves, columns in the order of [`apart`].
#[derive(Clone, Debug)]
pub struct Slabs {
    lanes: Lanes,
    inputs: usize,
    outputs: usize,
    precision: Precision,
}

impl Slabs {
    /// Packs the weights of a layer.
    pub fn pack(layer: &Linear, precision: Precision) -> Slabs {
        let (inputs, outputs) = (layer.inputs, layer.outputs);
        let places = outputs.div_ceil(ACROSS * WIDTH) * inputs * ACROSS;
        // (place of the panel's input, column)
        let each = layer.weight.chunks_exact(inputs).enumerate().flat_map(|(o, row)| {
            let (panel, column) = (o / WIDTH, o % WIDTH);
            let first = panel / ACROSS * inputs * ACROSS + panel % ACROSS;
            row.iter().enumerate().map(move |(k, &w)| (first + k * ACROSS, column, w))
        });
        let lanes = match precision {
            Precision::F32 => {
                let mut lanes = Lanes::zeros(places);
                each.for_each(|(at, column, w)| lanes[at][column] = w);
                lanes
            }
            Precision::Bf16 => {
                let mut lanes = Lanes::zeros(places.div_ceil(2));
                let halves: &mut [HalfLane] = bytemuck::cast_slice_mut(&mut *lanes);
                each.for_each(|(at, column, w)| {
                    let mut rounded = [half::bf16::ZERO];
                    half::bf16::narrow(&[w], &mut rounded);
                    halves[at][apart(column)] = rounded[0].to_bits();
                });
                lanes
            }
        };
        Slabs { lanes, inputs, outputs, precision }
    }

    /// Number of inputs.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Number of panels.
    pub fn panels(&self) -> usize {
        self.outputs.div_ceil(WIDTH)
    }

    /// Number of slabs.
    pub fn count(&self) -> usize {
        self.outputs.div_ceil(ACROSS * WIDTH)
    }

    /// What the weights are.
    pub fn precision(&self) -> Precision {
        self.precision
    }
}

/// The units of rows that are not zero, in rising order, and their values in words.
#[derive(Debug, Default)]
pub struct Active {
    units: Vec<u32>,
    words: Vec<f32>,
    counts: Vec<usize>,
    /// Room of a row.
    room: usize,
}

impl Active {
    /// Takes rows of `units` units, a multiple of [`LANES`], from hidden layers.
    #[inline(always)]
    pub fn gather<S: Simd>(
        &mut self,
        simd: S,
        rows: &Inputs,
        count: usize,
        units: usize,
        precision: Precision,
    ) {
        // Whole lanes, and what the last vector writes past its values.
        self.room = units.next_multiple_of(WIDTH) + WIDTH;
        self.counts.clear();
        self.units.resize(count * self.room, 0);
        self.words.resize(count * self.room, 0.0);
        let room = self.room;
        let places = self.units.chunks_exact_mut(room).zip(self.words.chunks_exact_mut(room));
        for (row, (places, values)) in places.enumerate().take(count) {
            let mut active = 0;
            for first in (0..units).step_by(LANES) {
                let lane = rows.lane(row, first / WIDTH);
                let from = lane[first % WIDTH..][..LANES].try_into().expect("half a lane");
                let places = (&mut places[active..][..LANES]).try_into().expect("room");
                let values = (&mut values[active..][..LANES]).try_into().expect("room");
                active += simd.nonzero(from, first as u32, places, values);
            }
            // In pairs, an odd one out is with a zero.
            (places[active], values[active]) = (0, 0.0);
            self.counts.push(active);
        }
        if precision == Precision::Bf16 {
            // In a loop of its own: what was written in pieces can be read whole once it is in the cache.
            for (words, active) in self.words.chunks_exact_mut(room).zip(&mut self.counts) {
                for at in 0..active.div_ceil(WIDTH) {
                    let (lanes, _) = words.as_chunks::<WIDTH>();
                    let mut halves: HalfLane = [0; WIDTH];
                    for part in 0..S::PARTS {
                        simd.store_bf16(simd.load(&lanes[at], part), &mut halves, part);
                    }
                    let words: &mut [HalfLane] = bytemuck::cast_slice_mut(&mut *words);
                    words[at] = halves;
                }
                *active = active.div_ceil(2);
            }
        }
    }

    /// Units and words of a row.
    #[inline(always)]
    fn row(&self, row: usize) -> (&[u32], &[f32]) {
        let at = row * self.room;
        (&self.units[at..][..self.room], &self.words[at..][..self.counts[row]])
    }
}

/// How words meet the weights of their units.
trait Terms: Arithmetic {
    /// The weights of a unit for 32 columns.
    type Weights;
    /// A slab, `[inputs][ACROSS]`.
    fn slab(slabs: &Slabs, slab: usize) -> &[[Self::Weights; ACROSS]];
    /// `acc` and the products of a word with the weights of its units.
    fn term<S: Simd>(
        simd: S,
        word: f32,
        weights: [&[Self::Weights; ACROSS]; 2],
        panel: usize,
        part: usize,
        acc: S::Row,
    ) -> S::Row;
}

impl Terms for Single {
    type Weights = Lane;

    #[inline(always)]
    fn slab(slabs: &Slabs, slab: usize) -> &[[Lane; ACROSS]] {
        &slabs.lanes.as_chunks().0[slab * slabs.inputs..][..slabs.inputs]
    }

    #[inline(always)]
    fn term<S: Simd>(
        simd: S,
        word: f32,
        [weights, _]: [&[Lane; ACROSS]; 2],
        panel: usize,
        part: usize,
        acc: S::Row,
    ) -> S::Row {
        simd.fma(word, simd.load(&weights[panel], part), acc)
    }
}

impl Terms for Pairs {
    type Weights = HalfLane;

    #[inline(always)]
    fn slab(slabs: &Slabs, slab: usize) -> &[[HalfLane; ACROSS]] {
        let halves: &[HalfLane] = bytemuck::cast_slice(&slabs.lanes);
        &halves.as_chunks().0[slab * slabs.inputs..][..slabs.inputs]
    }

    #[inline(always)]
    fn term<S: Simd>(
        simd: S,
        word: f32,
        [even, odd]: [&[HalfLane; ACROSS]; 2],
        panel: usize,
        part: usize,
        acc: S::Row,
    ) -> S::Row {
        simd.dot_apart(word, &even[panel], &odd[panel], part, acc)
    }
}

/// The products of rows with the slabs asked for.
#[inline(always)]
pub fn products<S: Simd>(
    simd: S,
    rows: &Active,
    weights: &Slabs,
    slabs: Range<usize>,
    sums: &mut impl Sums<S>,
) {
    match weights.precision {
        Precision::F32 => sweep::<S, Single>(simd, rows, weights, slabs, sums),
        Precision::Bf16 => sweep::<S, Pairs>(simd, rows, weights, slabs, sums),
    }
}

#[inline(always)]
fn sweep<S: Simd, A: Terms>(
    simd: S,
    rows: &Active,
    weights: &Slabs,
    slabs: Range<usize>,
    sums: &mut impl Sums<S>,
) {
    let panels = weights.panels();
    for slab in slabs {
        let first = slab * ACROSS;
        let weights = A::slab(weights, slab);
        for row in 0..rows.counts.len() {
            let (units, words) = rows.row(row);
            for part in 0..S::PARTS {
                // The last slab's padding repeats the last panel, and is not taken.
                let place = |i: usize| Place { panel: (first + i).min(panels - 1), row, part };
                let mut acc: [S::Row; ACROSS] = [sums.start(simd, place(0)); ACROSS];
                for (i, acc) in acc.iter_mut().enumerate().skip(1) {
                    *acc = sums.start(simd, place(i));
                }
                for (units, &word) in units.chunks_exact(A::INPUTS).zip(words) {
                    let of = [&weights[units[0] as usize], &weights[units[A::INPUTS - 1] as usize]];
                    for i in 0..ACROSS {
                        acc[i] = A::term(simd, word, of, i, part, acc[i]);
                    }
                }
                if first + ACROSS <= panels {
                    sums.finish_all(simd, place(0), acc);
                    continue;
                }
                for (i, acc) in acc.into_iter().enumerate().take(panels - first) {
                    sums.finish(simd, place(i), acc);
                }
            }
        }
    }
}
