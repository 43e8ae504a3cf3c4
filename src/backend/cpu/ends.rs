//! Where the sums of products start from and where they go: biases and stored rows; rows in storage type, hidden
//! layers behind their ReLU, the chains of a reward. Everything happens to sums in registers.

use std::ops::Range;

use super::panel::{Finish, Inputs, Place, Start};
use crate::dtype::{Dtype, Element};
use crate::matrix::Values;
use crate::simd::{HalfLane, Lane, Simd, WIDTH};

/// Sums that start from the layer's bias.
#[derive(Clone, Copy, Default)]
pub struct Bias<'a>(pub &'a [Lane]);

impl<S: Simd> Start<S> for Bias<'_> {
    #[inline(always)]
    fn start(&self, simd: S, at: Place) -> S::Row {
        simd.load(&self.0[at.panel], at.part)
    }

    #[inline(always)]
    fn start_all<const N: usize>(&self, simd: S, at: Place) -> [S::Row; N] {
        load_all(simd, &self.0[at.panel..], at.part)
    }
}

/// Part `part` of the first lanes.
#[inline(always)]
fn load_all<S: Simd, const N: usize>(simd: S, lanes: &[Lane], part: usize) -> [S::Row; N] {
    let lanes: &[Lane; N] = lanes[..N].try_into().expect("as many panels");
    let mut all = [simd.load(&lanes[0], part); N];
    for i in 1..N {
        all[i] = simd.load(&lanes[i], part);
    }
    all
}

/// Sums that start from lanes `[rows][panels]`.
#[derive(Default)]
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

    #[inline(always)]
    fn start_all<const N: usize>(&self, simd: S, at: Place) -> [S::Row; N] {
        load_all(simd, &self.lanes[at.row * self.panels.len() + at.panel - self.panels.start..], at.part)
    }
}

/// Sums that start from lanes of seeds, `[seeds][panels]`.
#[derive(Default)]
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

    #[inline(always)]
    fn start_all<const N: usize>(&self, simd: S, at: Place) -> [S::Row; N] {
        load_all(simd, &self.lanes[self.seeds[at.row] as usize * self.panels + at.panel..], at.part)
    }
}

/// Ends of sums that meanwhile ask for what comes next of stored rows to be brought near: they are too far apart for the
/// machine to foresee, and all at once the requests would have to wait for one another.
pub struct Fetching<'a, Z> {
    /// The ends.
    pub ends: Z,
    /// The rows.
    pub rows: &'a [Values<'a>],
    /// Their bytes to come.
    pub ahead: Range<usize>,
    /// How many pieces were asked for.
    pub asked: usize,
    /// How often there will be a meanwhile.
    pub times: usize,
    /// How often there was one.
    pub time: usize,
}

impl<S: Simd, Z: Start<S>> Start<S> for Fetching<'_, Z> {
    #[inline(always)]
    fn start(&self, simd: S, at: Place) -> S::Row {
        self.ends.start(simd, at)
    }
}

impl<S: Simd, Z: Finish<S>> Finish<S> for Fetching<'_, Z> {
    #[inline(always)]
    fn finish(&mut self, simd: S, at: Place, sums: S::Row) {
        self.ends.finish(simd, at, sums);
    }

    #[inline(always)]
    fn meanwhile(&mut self, simd: S) {
        /// Bytes of a row that are asked for at a time.
        const PIECE: usize = 512;
        self.time += 1;
        let pieces = self.ahead.len().div_ceil(PIECE);
        let all = self.rows.len() * pieces;
        while self.asked < all && self.asked * self.times < self.time * all {
            let from = self.ahead.start + self.asked % pieces * PIECE;
            let bytes = self.rows[self.asked / pieces].bytes();
            let piece = bytes.get(from..(from + PIECE).min(bytes.len())).unwrap_or_default();
            simd.prefetch_all(piece);
            self.asked += 1;
        }
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

/// Takes sums through the ReLU and rounds them, two a word, as the inputs of the next layer. What is below the normal
/// range may count as zero.
pub struct ToWords<'a>(pub &'a mut Inputs);

impl<S: Simd> Finish<S> for ToWords<'_> {
    #[inline(always)]
    fn finish(&mut self, simd: S, at: Place, sums: S::Row) {
        simd.store_bf16_normal(simd.relu(sums), self.0.halves_mut(at.row, at.panel), at.part, false);
    }
}

/// Rounds sums into rows of `dim` stored values.
pub struct ToRows<'a, T> {
    /// The rows.
    pub out: &'a mut [T],
    /// Values of a row.
    pub dim: usize,
    /// Whether they go past the caches, and [`Simd::fence`] follows.
    pub stream: bool,
}

impl<T> Default for ToRows<'_, T> {
    fn default() -> Self {
        ToRows { out: &mut [], dim: 0, stream: false }
    }
}

impl<S: Simd, T: Element> Finish<S> for ToRows<'_, T> {
    #[inline(always)]
    fn finish(&mut self, simd: S, at: Place, sums: S::Row) {
        let columns = at.panel * WIDTH..((at.panel + 1) * WIDTH).min(self.dim);
        write(simd, sums, &mut self.out[at.row * self.dim..][columns], at.part, self.stream);
    }

    #[inline(always)]
    #[allow(clippy::needless_range_loop, reason = "an iterator would move the sums to memory")]
    fn finish_all<const N: usize>(&mut self, simd: S, at: Place, sums: [S::Row; N], normal: bool) {
        let row = &mut self.out[at.row * self.dim..][..self.dim];
        let Some(to) = row[at.panel * WIDTH..].get_mut(..N * WIDTH) else {
            // By way of memory: a loop that is not unrolled would keep all sums there.
            let mut lanes = [[0f32; WIDTH]; N];
            for i in 0..N {
                simd.store(sums[i], &mut lanes[i], at.part);
            }
            for (i, lane) in lanes.iter().enumerate() {
                self.finish(simd, Place { panel: at.panel + i, ..at }, simd.load(lane, at.part));
            }
            return;
        };
        // Each way a loop of its own, so that the sums stay in registers.
        let part = at.part;
        if T::DTYPE == Dtype::Bf16 {
            let to: &mut [u16] = bytemuck::cast_slice_mut(to);
            let mut subnormal = false;
            for i in 0..N {
                subnormal |= !normal && simd.any_subnormal(sums[i]);
            }
            if subnormal {
                let mut lanes = [[0f32; WIDTH]; N];
                for i in 0..N {
                    simd.store(sums[i], &mut lanes[i], part);
                }
                return round_part(&lanes, to, part, S::PARTS);
            }
            let (to, _) = to.as_chunks_mut::<WIDTH>();
            if self.stream {
                for i in 0..N {
                    simd.store_bf16_normal(sums[i], &mut to[i], part, true);
                }
            } else {
                for i in 0..N {
                    simd.store_bf16_normal(sums[i], &mut to[i], part, false);
                }
            }
            return;
        }
        if self.stream {
            for i in 0..N {
                write_whole(simd, sums[i], &mut to[i * WIDTH..][..WIDTH], part, true);
            }
        } else {
            for i in 0..N {
                write_whole(simd, sums[i], &mut to[i * WIDTH..][..WIDTH], part, false);
            }
        }
    }
}

/// Rounds a part of lanes to BF16, one value after the other.
#[cold]
#[inline(never)]
fn round_part(lanes: &[Lane], to: &mut [u16], part: usize, parts: usize) {
    for (lane, to) in lanes.iter().zip(to.chunks_exact_mut(WIDTH)) {
        let columns = WIDTH / parts * part..WIDTH / parts * (part + 1);
        half::bf16::narrow(&lane[columns.clone()], bytemuck::cast_slice_mut(&mut to[columns]));
    }
}

/// Takes the first layer of a reward model, before its ReLU, into the 32 chains of each row's reward.
#[derive(Default)]
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

    #[inline(always)]
    fn finish_all<const N: usize>(&mut self, simd: S, at: Place, sums: [S::Row; N], _: bool) {
        let chain = &mut self.chains[at.row];
        let second: &[Lane; N] = self.second[at.panel..][..N].try_into().expect("panels");
        let mut sum = simd.load(chain, at.part);
        for i in 0..N {
            sum = simd.fma_rows(simd.relu(sums[i]), simd.load(&second[i], at.part), sum);
        }
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

/// Words `32 p` to `32 p + 31` of a row of values, each two BF16 values, zeros past their end. What is not BF16 is rounded.
#[inline(always)]
pub fn pairs<S: Simd>(simd: S, row: Values<'_>, p: usize, to: &mut Lane) {
    let halves: &mut [HalfLane; 2] = bytemuck::cast_mut(to);
    for (i, halves) in halves.iter_mut().enumerate() {
        let panel = 2 * p + i;
        if panel * WIDTH >= row.len() {
            *halves = [0; WIDTH];
            continue;
        }
        let mut wide = [0f32; WIDTH];
        widen(simd, row, panel, &mut wide);
        for part in 0..S::PARTS {
            simd.store_bf16(simd.load(&wide, part), halves, part);
        }
    }
}

#[inline(always)]
fn lane<T>(values: &[T]) -> &[T; WIDTH] {
    values.try_into().expect("a lane")
}

/// Rounds part `part` of a lane into `to`, the lane's place or what the row has of it.
#[inline(always)]
fn write<S: Simd, T: Element>(simd: S, row: S::Row, to: &mut [T], part: usize, stream: bool) {
    if to.len() == WIDTH {
        return write_whole(simd, row, to, part, stream);
    }
    let mut lane = [T::zeroed(); WIDTH];
    write_whole(simd, row, &mut lane, part, false);
    let columns = WIDTH / S::PARTS * part..(WIDTH / S::PARTS * (part + 1)).min(to.len());
    if let Some(to) = to.get_mut(columns.clone()) {
        to.copy_from_slice(&lane[columns]);
    }
}

#[inline(always)]
fn write_whole<S: Simd, T: Element>(simd: S, row: S::Row, to: &mut [T], part: usize, stream: bool) {
    const WHOLE: &str = "a lane";
    match T::DTYPE {
        Dtype::F32 => {
            let to = bytemuck::cast_slice_mut(to).try_into().expect(WHOLE);
            if stream { simd.stream(row, to, part) } else { simd.store(row, to, part) }
        }
        Dtype::F16 => {
            let to = bytemuck::cast_slice_mut(to).try_into().expect(WHOLE);
            if stream { simd.stream_f16(row, to, part) } else { simd.store_f16(row, to, part) }
        }
        Dtype::Bf16 => {
            let to = bytemuck::cast_slice_mut(to).try_into().expect(WHOLE);
            if stream { simd.stream_bf16(row, to, part) } else { simd.store_bf16(row, to, part) }
        }
    }
}
