//! Products with a hidden layer behind its ReLU. About half of its units are zero, and terms of zero are left out: of
//! the terms that are left every output element is still one chain in rising order, so no bit changes but the sign of a
//! sum that is zero.
//!
//! A row has units of its own, so rows cannot share a tile of weights as in `panel.rs`. Instead four panels side by
//! side, a slab that stays in the first-level cache, go past one row at a time.

use std::ops::Range;

use half::bf16;

use super::lanes::Lanes;
use super::panel::{ACROSS, Arithmetic, Inputs, Pairs, Place, Single, Sums, inputs_of_word};
use crate::backend::Precision;
use crate::model::Linear;
use crate::simd::{HalfLane, Lane, Piece, Simd, WIDTH, apart};

/// Units of a group: as many as a mask has bits.
const GROUP: usize = u64::BITS as usize;

/// A weight matrix packed for [`products`]: slabs of [`ACROSS`] panels, each `[groups][GROUP][ACROSS][32]`, padded with
/// zeros. Of BF16 a lane has two halves, columns in the order of [`apart`].
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
        let units = inputs.next_multiple_of(GROUP);
        let places = outputs.div_ceil(ACROSS * WIDTH) * units * ACROSS;
        // (place of the panel's input, column)
        let each = layer.weight.chunks_exact(inputs).enumerate().flat_map(|(o, row)| {
            let (panel, column) = (o / WIDTH, o % WIDTH);
            let first = panel / ACROSS * units * ACROSS + panel % ACROSS;
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

    /// Groups of inputs.
    fn groups(&self) -> usize {
        self.inputs.div_ceil(GROUP)
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

/// The units of rows that are not zero and their values, by groups.
///
/// A unit is a bit of a mask, not a number in a list: finding the next one is arithmetic on a register, and loads of
/// weights have the load units to themselves.
#[derive(Debug, Default)]
pub struct Active {
    /// Groups of a row.
    groups: usize,
    /// `[row][group]`.
    masks: Vec<u64>,
    /// `[row][group][GROUP / inputs of a word]`: values in rising order of their units, of BF16 two in a word.
    words: Vec<f32>,
}

impl Active {
    /// Takes rows of `units` units, a multiple of 16, from hidden layers.
    #[inline(always)]
    pub fn gather<S: Simd>(
        &mut self,
        simd: S,
        rows: &Inputs,
        count: usize,
        units: usize,
        precision: Precision,
    ) {
        let room = GROUP / inputs_of_word(precision);
        self.groups = units.div_ceil(GROUP);
        self.masks.resize(count * self.groups, 0);
        self.words.resize(count * self.groups * room, 0.0);
        let all =
            self.masks.chunks_exact_mut(self.groups).zip(self.words.chunks_exact_mut(self.groups * room));
        for (row, (masks, words)) in all.enumerate() {
            for (group, (mask, words)) in masks.iter_mut().zip(words.chunks_exact_mut(room)).enumerate() {
                let first = group * GROUP;
                let units = first..units.min(first + GROUP);
                *mask = pack(simd, rows, row, units, precision, words);
            }
        }
    }
}

/// Packs what is not zero of a row's units of one group; gives which they are.
#[inline(always)]
fn pack<S: Simd>(
    simd: S,
    rows: &Inputs,
    row: usize,
    units: Range<usize>,
    precision: Precision,
    words: &mut [f32],
) -> u64 {
    let mut mask = 0u64;
    for first in units.clone().step_by(WIDTH) {
        let (lane, count) = (rows.lane(row, first / WIDTH), mask.count_ones() as usize);
        let kept = match units.end - first {
            left @ ..WIDTH => {
                // The padding's values are of no unit: zero, or NaN where all are.
                let mut part = [0f32; WIDTH];
                part[..left].copy_from_slice(&lane[..left]);
                pack_lane(simd, &part, precision, words, count)
            }
            _ => pack_lane(simd, lane, precision, words, count),
        };
        mask |= u64::from(kept) << (first - units.start);
    }
    if precision == Precision::Bf16 {
        // In pairs, an odd one out is with a zero.
        let halves: &mut [u16] = bytemuck::cast_slice_mut(words);
        if let Some(odd) = halves.get_mut(mask.count_ones() as usize) {
            *odd = 0;
        }
    }
    mask
}

/// Packs what is not zero of a lane behind the `count` values that are there; gives which they are.
#[inline(always)]
fn pack_lane<S: Simd>(simd: S, lane: &Lane, precision: Precision, words: &mut [f32], count: usize) -> u32 {
    match precision {
        Precision::F32 => simd.nonzero(lane, room_behind(words, count)),
        Precision::Bf16 => simd.nonzero_bf16(lane, room_behind(bytemuck::cast_slice_mut(words), count)),
    }
}

/// Room for a lane behind the values that are packed already.
#[inline(always)]
fn room_behind<T>(values: &mut [T], count: usize) -> &mut [T; WIDTH] {
    values[count..].first_chunk_mut().expect("room for a lane")
}

/// How words meet the weights of their units.
trait Terms: Arithmetic {
    /// The weights of a unit for 32 columns.
    type Weights;
    /// Takes the units of the next word from a mask. One that is missing is any.
    fn units(mask: &mut u64) -> [usize; 2];
    /// The groups of a slab.
    fn slab(slabs: &Slabs, slab: usize) -> &[Group<Self::Weights>];
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

/// The weights of a group's units in a slab.
type Group<W> = [[W; ACROSS]; GROUP];

/// Takes the lowest unit from a mask, any from none.
#[inline(always)]
fn lowest(mask: &mut u64) -> usize {
    let unit = mask.trailing_zeros() as usize % GROUP;
    *mask &= mask.wrapping_sub(1);
    unit
}

impl Terms for Single {
    type Weights = Lane;

    #[inline(always)]
    fn units(mask: &mut u64) -> [usize; 2] {
        [lowest(mask); 2]
    }

    #[inline(always)]
    fn slab(slabs: &Slabs, slab: usize) -> &[Group<Lane>] {
        &slabs.lanes.as_chunks().0.as_chunks().0[slab * slabs.groups()..][..slabs.groups()]
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
    fn units(mask: &mut u64) -> [usize; 2] {
        [lowest(mask), lowest(mask)]
    }

    #[inline(always)]
    fn slab(slabs: &Slabs, slab: usize) -> &[Group<HalfLane>] {
        let halves: &[HalfLane] = bytemuck::cast_slice(&slabs.lanes);
        &halves.as_chunks().0.as_chunks().0[slab * slabs.groups()..][..slabs.groups()]
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

/// The products of rows with the slabs asked for. Meanwhile the default stands in the place of `sums`.
#[inline(always)]
pub fn products<S: Simd>(
    simd: S,
    rows: &Active,
    weights: &Slabs,
    slabs: Range<usize>,
    sums: &mut (impl Sums<S> + Default),
) {
    // Slabs without padding.
    let whole = slabs.end.min(weights.panels() / ACROSS);
    let mut slab = slabs.start;
    while slab < whole {
        // Two slabs of halves fit the first-level cache, and their sums the registers that tiles of 12 rows need.
        slab += match weights.precision {
            Precision::F32 => sweep::<S, Single, false, true>(simd, rows, weights, slab, sums),
            Precision::Bf16 if S::ROWS >= 12 && slab + 1 < whole => {
                sweep::<S, Pairs, true, true>(simd, rows, weights, slab, sums)
            }
            Precision::Bf16 => sweep::<S, Pairs, false, true>(simd, rows, weights, slab, sums),
        };
    }
    if slab < slabs.end {
        match weights.precision {
            Precision::F32 => sweep::<S, Single, false, false>(simd, rows, weights, slab, sums),
            Precision::Bf16 => sweep::<S, Pairs, false, false>(simd, rows, weights, slab, sums),
        };
    }
}

/// Takes all rows past the panels of one slab, or of two if `TWO`, `WHOLE` if none of them is padding; gives the number of
/// slabs.
#[inline(always)]
fn sweep<S: Simd, A: Terms, const TWO: bool, const WHOLE: bool>(
    simd: S,
    rows: &Active,
    weights: &Slabs,
    slab: usize,
    sums: &mut (impl Sums<S> + Default),
) -> usize {
    let slabs = 1 + usize::from(TWO);
    let of = [A::slab(weights, slab), A::slab(weights, slab + slabs - 1)];
    let (first, panels) = (slab * ACROSS, weights.panels());
    simd.outline(Sweep::<'_, A, _, TWO, WHOLE> { rows, of, first, panels, sums });
    slabs
}

/// Rows past two slabs, or past the first alone.
struct Sweep<'a, A: Terms, Z, const TWO: bool, const WHOLE: bool> {
    rows: &'a Active,
    of: [&'a [Group<A::Weights>]; 2],
    /// The first slab's first panel.
    first: usize,
    /// Panels of all slabs.
    panels: usize,
    sums: &'a mut Z,
}

impl<S: Simd, A: Terms, Z: Sums<S> + Default, const TWO: bool, const WHOLE: bool> Piece<S>
    for Sweep<'_, A, Z, TWO, WHOLE>
{
    type Output = ();
    #[inline(always)]
    #[allow(clippy::needless_range_loop, reason = "an iterator would move the sums to memory")]
    fn run(self, simd: S) {
        let Sweep { rows, of, first, panels, sums: shared } = self;
        // Behind a reference, all that says where sums come from and go to would be read and checked for each row.
        let mut own = std::mem::take(shared);
        let sums = &mut own;
        let room = GROUP / A::INPUTS;
        let lists = rows.masks.chunks_exact(rows.groups).zip(rows.words.chunks_exact(rows.groups * room));
        for (row, (masks, words)) in lists.enumerate() {
            for part in 0..S::PARTS {
                // Two arrays of a few sums each: one of all would not stay in registers.
                let mut a = start::<S, WHOLE>(simd, sums, Place { panel: first, row, part }, panels);
                let mut b = a;
                if TWO {
                    b = start::<S, WHOLE>(simd, sums, Place { panel: first + ACROSS, row, part }, panels);
                }
                for ((&mask, words), (of0, of1)) in
                    masks.iter().zip(words.chunks_exact(room)).zip(of[0].iter().zip(of[1]))
                {
                    let mut left = mask;
                    let count = (mask.count_ones() as usize).div_ceil(A::INPUTS);
                    for &word in &words[..count] {
                        let [even, odd] = A::units(&mut left);
                        let pair = [&of0[even], &of0[odd]];
                        for i in 0..ACROSS {
                            a[i] = A::term(simd, word, pair, i, part, a[i]);
                        }
                        if TWO {
                            let pair = [&of1[even], &of1[odd]];
                            for i in 0..ACROSS {
                                b[i] = A::term(simd, word, pair, i, part, b[i]);
                            }
                        }
                    }
                }
                finish::<S, A, WHOLE>(simd, sums, Place { panel: first, row, part }, panels, a);
                if TWO {
                    finish::<S, A, WHOLE>(simd, sums, Place { panel: first + ACROSS, row, part }, panels, b);
                }
            }
        }
        *shared = own;
    }
}

/// What the sums of a slab's panels from the place on start from. Padding repeats the last of `panels`, and is not taken.
#[inline(always)]
fn start<S: Simd, const WHOLE: bool>(
    simd: S,
    sums: &impl Sums<S>,
    at: Place,
    panels: usize,
) -> [S::Row; ACROSS] {
    if WHOLE {
        return sums.start_all(simd, at);
    }
    let mut all = [sums.start(simd, at); ACROSS];
    for (i, row) in all.iter_mut().enumerate().skip(1) {
        *row = sums.start(simd, Place { panel: (at.panel + i).min(panels - 1), ..at });
    }
    all
}

#[inline(always)]
fn finish<S: Simd, A: Arithmetic, const WHOLE: bool>(
    simd: S,
    sums: &mut impl Sums<S>,
    at: Place,
    panels: usize,
    all: [S::Row; ACROSS],
) {
    if WHOLE {
        return sums.finish_all(simd, at, all, A::NORMAL);
    }
    // By way of memory: an index that is not known would keep all sums there.
    let mut lanes = [[0f32; WIDTH]; ACROSS];
    for (row, lane) in all.into_iter().zip(&mut lanes) {
        simd.store(row, lane, at.part);
    }
    for (i, lane) in lanes.iter().enumerate().take(panels - at.panel) {
        sums.finish(simd, Place { panel: at.panel + i, ..at }, simd.load(lane, at.part));
    }
}
