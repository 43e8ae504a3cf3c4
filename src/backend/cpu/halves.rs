//! Operands of products in BF16: words of two values, see [`Simd::dot`]. Parameters, moments, sums and losses
//! stay F32; what enters a product is rounded to nearest even.

use super::panel::Pairs;
use super::tile::{Sink, columns, rows};
use super::wide::{SLICE, STRIDE};
use crate::simd::{LANES, Lane, Simd, WIDTH};

/// A value rounded to BF16 on its bit pattern, in the high half of the word; NaN stays NaN.
#[inline(always)]
fn round(value: f32) -> u32 {
    let bits = value.to_bits();
    let up = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    (if value.is_nan() { bits | 0x0040_0000 } else { up }) & 0xffff_0000
}

/// The word of two values.
#[inline(always)]
pub fn word(even: f32, odd: f32) -> f32 {
    f32::from_bits(round(even) >> 16 | round(odd))
}

/// Words from twice as many lanes of values, an odd one paired with zeros; see [`Simd::pair`].
#[inline(always)]
pub fn pair_lanes<S: Simd>(simd: S, lanes: &[Lane], out: &mut [Lane]) {
    for (two, out) in lanes.chunks(2).zip(out) {
        simd.pair(&two[0], two.get(1).unwrap_or(&[0.0; WIDTH]), out);
    }
}

/// Words of whole lanes of values that stand side by side. What is below the normal range may count as zero.
#[inline(always)]
pub fn halve<S: Simd>(simd: S, row: &[f32], out: &mut [f32]) {
    let lanes = row.as_chunks::<WIDTH>().0;
    for (lane, out) in lanes.iter().zip(out.as_chunks_mut::<{ WIDTH / 2 }>().0) {
        for part in 0..S::PARTS {
            simd.store_bf16_normal(simd.load(lane, part), bytemuck::cast_mut(out), part, false);
        }
    }
}

/// Words of two rows of halves, one below the other; an odd row is paired with zeros.
#[inline(always)]
fn interleave(even: &[f32], odd: Option<&[f32]>, out: &mut [f32]) {
    let even: &[u16] = bytemuck::cast_slice(even);
    match odd {
        Some(odd) => {
            let odd: &[u16] = bytemuck::cast_slice(odd);
            for ((out, &even), &odd) in out.iter_mut().zip(even).zip(odd) {
                *out = f32::from_bits(u32::from(even) | u32::from(odd) << 16);
            }
        }
        None => {
            for (out, &even) in out.iter_mut().zip(even) {
                *out = f32::from_bits(u32::from(even));
            }
        }
    }
}

/// Distance of a block's rows in words of two values.
pub const HALF_STRIDE: usize = SLICE / 2 + 16;

/// Rows of a slice as operands of BF16 products.
pub struct Halves<'a> {
    /// Words of two columns, `[rows][HALF_STRIDE]`.
    along: &'a mut [f32],
    /// Words of two rows: `[rows / 2][STRIDE]`, or where products are those of matrices, turned, `[SLICE][down_stride]`.
    down: &'a mut [f32],
    rows: usize,
}

/// Rows that matrix instructions read together.
pub const TOGETHER: usize = 2 * LANES;

/// Distance of the turned words of columns of so many rows.
fn down_stride(rows: usize) -> usize {
    // Not a power of two, as with [`STRIDE`].
    rows.next_multiple_of(TOGETHER) / 2 + LANES
}

impl<'a> Halves<'a> {
    /// Values that words along so many rows need, whole lanes.
    pub fn along_room(rows: usize) -> usize {
        rows.next_multiple_of(TOGETHER) * HALF_STRIDE
    }

    /// Values that words of two of so many rows need, whole lanes.
    pub fn down_room(rows: usize) -> usize {
        (rows.div_ceil(2) * STRIDE).max(SLICE * down_stride(rows)).next_multiple_of(WIDTH)
    }

    /// Room for `rows` rows. Words along them are scratch, the others may have been made before.
    pub fn new(along: &'a mut [f32], down: &'a mut [f32], rows: usize) -> Halves<'a> {
        Halves { along, down, rows }
    }

    /// Takes rows of a block.
    #[inline(always)]
    pub fn take<S: Simd>(&mut self, simd: S, block: &[f32]) {
        let rows = block.chunks_exact(STRIDE).zip(self.along.chunks_exact_mut(HALF_STRIDE));
        for (row, along) in rows {
            halve(simd, &row[..SLICE], along);
        }
        self.complete(simd, block.len() / STRIDE);
    }

    /// Takes columns `32 q` to `32 q + 31` of rows, from the first on.
    #[inline(always)]
    pub fn take_panel<S: Simd>(&mut self, simd: S, q: usize, lanes: &[Lane]) {
        for (lane, along) in lanes.iter().zip(self.along.chunks_exact_mut(HALF_STRIDE)) {
            halve(simd, lane, &mut along[q * WIDTH / 2..][..WIDTH / 2]);
        }
    }

    /// Makes the words of two rows, of `count` rows whose words along are there.
    #[inline(always)]
    pub fn complete<S: Simd>(&mut self, simd: S, count: usize) {
        if S::MATRIX {
            return self.turn(simd, count);
        }
        let pairs = self.along[..count * HALF_STRIDE].chunks(2 * HALF_STRIDE);
        for (pair, down) in pairs.zip(self.down.chunks_exact_mut(STRIDE)) {
            let odd = (pair.len() > HALF_STRIDE).then(|| &pair[HALF_STRIDE..][..SLICE / 2]);
            interleave(&pair[..SLICE / 2], odd, &mut down[..SLICE]);
        }
    }

    /// Turns the words of `count` rows.
    #[inline(always)]
    fn turn<S: Simd>(&mut self, simd: S, count: usize) {
        let stride = down_stride(self.rows);
        let mut square = [[[0f32; LANES]; LANES]; SLICE / LANES];
        for (i, rows) in self.along[..count * HALF_STRIDE].chunks(TOGETHER * HALF_STRIDE).enumerate() {
            for square in &mut square {
                // Of the last rows there may be fewer.
                square[rows.len().div_ceil(2 * HALF_STRIDE)..].fill([0.0; LANES]);
            }
            for (k, pair) in rows.chunks(2 * HALF_STRIDE).enumerate() {
                let odd = (pair.len() > HALF_STRIDE).then(|| &pair[HALF_STRIDE..][..SLICE / 2]);
                let mut down = [0f32; SLICE];
                interleave(&pair[..SLICE / 2], odd, &mut down);
                for (square, words) in square.iter_mut().zip(down.as_chunks().0) {
                    square[k] = *words;
                }
            }
            for (q, square) in square.iter().enumerate() {
                for (column, words) in simd.turn(square).iter().enumerate() {
                    let at = (q * LANES + column) * stride + i * LANES;
                    self.down[at..at + LANES].copy_from_slice(words);
                }
            }
        }
    }

    /// Row r of the product of `count` rows with weights, `[SLICE / 2]` words.
    #[inline(always)]
    pub fn rows<S: Simd>(&self, simd: S, count: usize, weights: &[Lane], sink: &mut impl Sink) {
        rows::<S, Pairs, _>(simd, self.along, HALF_STRIDE, count, weights, sink);
    }

    /// Column c of the product of all columns with lanes of words of two rows.
    #[inline(always)]
    pub fn columns<S: Simd>(&self, simd: S, lanes: &[Lane], sink: &mut impl Sink) {
        if S::MATRIX {
            return rows::<S, Pairs, _>(simd, self.down, down_stride(self.rows), SLICE, lanes, sink);
        }
        columns::<S, Pairs, _>(simd, self.down, STRIDE, SLICE, lanes, sink);
    }
}
