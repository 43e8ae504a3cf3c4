//! Products with a hidden layer behind its ReLU. About half of its units are zero, and terms of zero are left out: of
//! the terms that are left every output element is still one chain in rising order, so no bit changes but the sign of a
//! sum that is zero.
//!
//! A row has units of its own, so rows cannot share a tile of weights as in `panel.rs`. Instead four panels side by
//! side, a slab that stays in the first-level cache, go past one row at a time.

use std::ops::Range;

use half::bf16;

use super::lanes::Lanes;
use super::panel::{ACROSS, Arithmetic, Inputs, Pairs, Place, Single, Sums};
use crate::backend::Precision;
use crate::model::Linear;
use crate::simd::{HalfLane, LANES, Lane, Simd, WIDTH, apart};

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
        assert!(inputs <= 1 << 16, "units are counted in 16 bits");
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
                let halves: &mut [HalfLane] = bytemuck::cast_slice_mut(&mut lanes);
                each.for_each(|(at, column, w)| halves[at][apart(column)] = bf16::from_f32(w).to_bits());
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

    /// What the weights are.
    pub fn precision(&self) -> Precision {
        self.precision
    }
}

/// The units of rows that are not zero, in rising order, and their values in words.
#[derive(Debug, Default)]
pub struct Active {
    /// Units, of BF16 two in each.
    units: Vec<u32>,
    words: Vec<f32>,
    /// Words of each row.
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
        // What the last vector writes goes past its values.
        let lanes = units.div_ceil(WIDTH);
        let room = (lanes + 1) * WIDTH;
        self.room = room;
        self.units.resize(count * room, 0);
        self.words.resize(count * room, 0.0);
        self.counts.clear();
        let places = self.units.chunks_exact_mut(room).zip(self.words.chunks_exact_mut(room));
        for (row, (places, words)) in places.enumerate().take(count) {
            let mut active = 0;
            match precision {
                Precision::F32 => {
                    for first in (0..units).step_by(LANES) {
                        let lane = rows.lane(row, first / WIDTH);
                        let from = lane[first % WIDTH..][..LANES].try_into().expect("half a lane");
                        let places = (&mut places[active..][..LANES]).try_into().expect("room");
                        let values = (&mut words[active..][..LANES]).try_into().expect("room");
                        active += simd.nonzero(from, first as u32, places, values);
                    }
                    self.counts.push(active);
                }
                Precision::Bf16 => {
                    let places: &mut [u16] = bytemuck::cast_slice_mut(places);
                    let halves: &mut [u16] = bytemuck::cast_slice_mut(words);
                    for p in 0..lanes {
                        let to_places = (&mut places[active..][..WIDTH]).try_into().expect("room");
                        let to_halves = (&mut halves[active..][..WIDTH]).try_into().expect("room");
                        let first = p * WIDTH;
                        let mut lane = rows.lane(row, p);
                        let mut part = [0f32; WIDTH];
                        if units - first < WIDTH {
                            // The padding's values are of no unit: zero, or NaN where all are.
                            part[..units - first].copy_from_slice(&lane[..units - first]);
                            lane = &part;
                        }
                        active += simd.nonzero_bf16(lane, first as u16, to_places, to_halves);
                    }
                    // In pairs, an odd one out is with a zero.
                    (places[active], halves[active]) = (0, 0);
                    self.counts.push(active.div_ceil(2));
                }
            }
        }
    }

    /// Units and words of a row.
    #[inline(always)]
    fn row(&self, row: usize) -> (&[u32], &[f32]) {
        let (at, count) = (row * self.room, self.counts[row]);
        (&self.units[at..][..count], &self.words[at..][..count])
    }
}

/// How words meet the weights of their units.
trait Terms: Arithmetic {
    /// The weights of a unit for 32 columns.
    type Weights;
    /// The units of a word.
    fn units(units: u32) -> [usize; 2];
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
    fn units(unit: u32) -> [usize; 2] {
        [unit as usize; 2]
    }

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
    fn units(units: u32) -> [usize; 2] {
        [(units & 0xffff) as usize, (units >> 16) as usize]
    }

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
    let mut slab = slabs.start;
    while slab < slabs.end {
        // Two slabs of halves fit the first-level cache, and their sums the registers that tiles of 12 rows need.
        slab += match weights.precision {
            Precision::F32 => sweep::<S, Single, ACROSS>(simd, rows, weights, slab, sums),
            Precision::Bf16 if S::ROWS >= 12 && slab + 1 < slabs.end => {
                sweep::<S, Pairs, { 2 * ACROSS }>(simd, rows, weights, slab, sums)
            }
            Precision::Bf16 => sweep::<S, Pairs, ACROSS>(simd, rows, weights, slab, sums),
        };
    }
}

/// Takes all rows past the `P` panels of one slab or two; gives the number of slabs.
#[inline(always)]
fn sweep<S: Simd, A: Terms, const P: usize>(
    simd: S,
    rows: &Active,
    weights: &Slabs,
    slab: usize,
    sums: &mut impl Sums<S>,
) -> usize {
    let (panels, slabs) = (weights.panels(), P / ACROSS);
    let of = [A::slab(weights, slab), A::slab(weights, slab + slabs - 1)];
    let first = slab * ACROSS;
    for row in 0..rows.counts.len() {
        let (units, words) = rows.row(row);
        for part in 0..S::PARTS {
            // The last slab's padding repeats the last panel, and is not taken.
            let place = |i: usize| Place { panel: (first + i).min(panels - 1), row, part };
            let mut acc: [S::Row; P] = [sums.start(simd, place(0)); P];
            for (i, acc) in acc.iter_mut().enumerate().skip(1) {
                *acc = sums.start(simd, place(i));
            }
            for (&units, &word) in units.iter().zip(words) {
                let [even, odd] = A::units(units);
                let pairs = [[&of[0][even], &of[0][odd]], [&of[1][even], &of[1][odd]]];
                for i in 0..P {
                    acc[i] = A::term(simd, word, pairs[i / ACROSS], i % ACROSS, part, acc[i]);
                }
            }
            if first + P <= panels {
                for s in 0..slabs {
                    let i = s * ACROSS;
                    // Written out, so that the sums stay in registers.
                    let whole = [acc[i], acc[i + 1], acc[i + 2], acc[i + 3]];
                    sums.finish_all(simd, place(i), whole, A::NORMAL);
                }
                continue;
            }
            for (i, acc) in acc.into_iter().enumerate().take(panels - first) {
                sums.finish(simd, place(i), acc);
            }
        }
    }
    slabs
}
