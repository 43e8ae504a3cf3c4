//! Where the sums of products start from and where they go: biases and stored rows; rows in storage type, hidden
//! layers behind their ReLU, the chains of a reward. Everything happens to sums in registers.

use std::ops::Range;

use super::panel::{Finish, Inputs, Place, Start};
use crate::dtype::{Dtype, Element};
use crate::matrix::Values;
use crate::simd::{Lane, Simd, WIDTH};

/// Sums that start from the layer's bias.
#[derive(Clone, Copy)]
pub struct Bias<'a>(pub &'a [Lane]);

impl<S: Simd> Start<S> for Bias<'_> {
    #[inline(always)]
    fn start(&self, simd: S, at: Place) -> S::Row {
        simd.load(&self.0[at.panel], at.part)
    }
}

/// Sums that start from lanes `[rows][panels]`.
pub struct FromLanes<'a> {
    /// The lanes.
    pub lanes: &'a [Lane],
    /// Which panels of the output they are.
    pub panels: Range<usize>,
}

impl<S: Simd> Start<S> for FromLanes<'_> {
    #[inline(always)]
    fn start(&self, simd: S, at: Place) -> S::Row {
        simd.load(&self.lanes[at.row * self.panels.len() + at.panel - self.panels.start], at.part)
    }
}

/// Sums that start from lanes of seeds, `[seeds][panels]`.
pub struct FromSeeds<'a> {
    /// The lanes.
    pub lanes: &'a [Lane],
    /// The seed of each row of the block.
    pub seeds: &'a [u32],
    /// Panels of the output.
    pub panels: usize,
}

impl<S: Simd> Start<S> for FromSeeds<'_> {
    #[inline(always)]
    fn start(&self, simd: S, at: Place) -> S::Row {
        simd.load(&self.lanes[self.seeds[at.row] as usize * self.panels + at.panel], at.part)
    }
}

/// Sums `[rows][panels]` that are not complete.
pub struct Partial<'a> {
    /// The sums.
    pub sums: &'a mut [Lane],
    /// Panels of a row.
    pub panels: usize,
}

impl<S: Simd> Start<S> for Partial<'_> {
    #[inline(always)]
    fn start(&self, simd: S, at: Place) -> S::Row {
        simd.load(&self.sums[at.row * self.panels + at.panel], at.part)
    }
}

impl<S: Simd> Finish<S> for Partial<'_> {
    #[inline(always)]
    fn finish(&mut self, simd: S, at: Place, sums: S::Row) {
        simd.store(sums, &mut self.sums[at.row * self.panels + at.panel], at.part);
    }
}

/// Takes sums through the ReLU, as the inputs of the next layer.
pub struct ToHidden<'a>(pub &'a mut Inputs);

impl<S: Simd> Finish<S> for ToHidden<'_> {
    #[inline(always)]
    fn finish(&mut self, simd: S, at: Place, sums: S::Row) {
        simd.store(simd.relu(sums), self.0.lane_mut(at.row, at.panel), at.part);
    }
}

/// Rounds sums into rows of `dim` stored values.
pub struct ToRows<'a, T> {
    /// The rows.
    pub out: &'a mut [T],
    /// Values of a row.
    pub dim: usize,
}

impl<S: Simd, T: Element> Finish<S> for ToRows<'_, T> {
    #[inline(always)]
    fn finish(&mut self, simd: S, at: Place, sums: S::Row) {
        let columns = at.panel * WIDTH..((at.panel + 1) * WIDTH).min(self.dim);
        write(simd, sums, &mut self.out[at.row * self.dim..][columns], at.part);
    }
}

/// Takes the first layer of a reward model, before its ReLU, into the 32 chains of each row's reward.
pub struct ToChains<'a> {
    /// The weights of the second layer.
    pub second: &'a [Lane],
    /// The chains of each row.
    pub chains: &'a mut [Lane],
}

impl<S: Simd> Finish<S> for ToChains<'_> {
    #[inline(always)]
    fn finish(&mut self, simd: S, at: Place, sums: S::Row) {
        let chain = &mut self.chains[at.row];
        let weights = simd.load(&self.second[at.panel], at.part);
        let sum = simd.fma_rows(simd.relu(sums), weights, simd.load(chain, at.part));
        simd.store(sum, chain, at.part);
    }
}

/// Widens lane `panel` of a row of values, zeros past their end; exact.
#[inline(always)]
pub fn widen<S: Simd>(simd: S, row: Values<'_>, panel: usize, to: &mut Lane) {
    let columns = panel * WIDTH..((panel + 1) * WIDTH).min(row.len());
    if columns.len() < WIDTH {
        *to = [0.0; WIDTH];
        return row.slice(columns.clone()).widen(&mut to[..columns.len()]);
    }
    for part in 0..S::PARTS {
        let values = match row {
            Values::F32(v) => simd.load(lane(&v[columns.clone()]), part),
            Values::F16(v) => simd.load_f16(lane(bytemuck::cast_slice(&v[columns.clone()])), part),
            Values::Bf16(v) => simd.load_bf16(lane(bytemuck::cast_slice(&v[columns.clone()])), part),
        };
        simd.store(values, to, part);
    }
}

#[inline(always)]
fn lane<T>(values: &[T]) -> &[T; WIDTH] {
    values.try_into().expect("a lane")
}

/// Rounds part `part` of a lane into `to`, the lane's place or what the row has of it.
#[inline(always)]
fn write<S: Simd, T: Element>(simd: S, row: S::Row, to: &mut [T], part: usize) {
    if to.len() == WIDTH {
        return write_whole(simd, row, to, part);
    }
    let mut lane = [T::zeroed(); WIDTH];
    write_whole(simd, row, &mut lane, part);
    let columns = WIDTH / S::PARTS * part..(WIDTH / S::PARTS * (part + 1)).min(to.len());
    if let Some(to) = to.get_mut(columns.clone()) {
        to.copy_from_slice(&lane[columns]);
    }
}

#[inline(always)]
fn write_whole<S: Simd, T: Element>(simd: S, row: S::Row, to: &mut [T], part: usize) {
    const WHOLE: &str = "a lane";
    match T::DTYPE {
        Dtype::F32 => simd.store(row, bytemuck::cast_slice_mut(to).try_into().expect(WHOLE), part),
        Dtype::F16 => simd.store_f16(row, bytemuck::cast_slice_mut(to).try_into().expect(WHOLE), part),
        Dtype::Bf16 => simd.store_bf16(row, bytemuck::cast_slice_mut(to).try_into().expect(WHOLE), part),
    }
}
