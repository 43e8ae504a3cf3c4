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
use crate::simd::{HalfLane, LANES, Lane, Piece, Simd, WIDTH, apart};

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
        let room = (lanes + 1) * WIDTH / inputs_of_word(precision);
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
    sums: &mut impl Sums<S>,
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
    of: [&'a [[A::Weights; ACROSS]]; 2],
    /// The first slab's first panel.
    first: usize,
    /// Panels of all slabs.
    panels: usize,
    sums: &'a mut Z,
}

impl<S: Simd, A: Terms, Z: Sums<S>, const TWO: bool, const WHOLE: bool> Piece<S>
    for Sweep<'_, A, Z, TWO, WHOLE>
{
    type Output = ();
    #[inline(always)]
    #[allow(clippy::needless_range_loop, reason = "an iterator would move the sums to memory")]
    fn run(self, simd: S) {
        let Sweep { rows, of, first, panels, sums } = self;
        let lists = rows.units.chunks_exact(rows.room).zip(rows.words.chunks_exact(rows.room));
        for (row, ((units, words), &count)) in lists.zip(&rows.counts).enumerate() {
            let (units, words) = (&units[..count], &words[..count]);
            for part in 0..S::PARTS {
                // Two arrays of a few sums each: one of all would not stay in registers.
                let mut a = start::<S, WHOLE>(simd, sums, Place { panel: first, row, part }, panels);
                let mut b = a;
                if TWO {
                    b = start::<S, WHOLE>(simd, sums, Place { panel: first + ACROSS, row, part }, panels);
                }
                for (&units, &word) in units.iter().zip(words) {
                    let [even, odd] = A::units(units);
                    let pair = [&of[0][even], &of[0][odd]];
                    for i in 0..ACROSS {
                        a[i] = A::term(simd, word, pair, i, part, a[i]);
                    }
                    if TWO {
                        let pair = [&of[1][even], &of[1][odd]];
                        for i in 0..ACROSS {
                            b[i] = A::term(simd, word, pair, i, part, b[i]);
                        }
                    }
                }
                finish::<S, A, WHOLE>(simd, sums, Place { panel: first, row, part }, panels, a);
                if TWO {
                    finish::<S, A, WHOLE>(simd, sums, Place { panel: first + ACROSS, row, part }, panels, b);
                }
            }
        }
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
