//! Operands of products, packed: weights once, inputs a block at a time.

use std::ops::{Deref, DerefMut, Range};

use half::bf16;

use crate::backend::Precision;
use crate::dtype::Element;
use crate::matrix::{Pages, Values};
use crate::simd::{AMX_TILE, NR, NrRow, NrRow16, RowsRef, Simd, VLEN};

/// A row of zeros.
pub const ZERO: NrRow = [0.0; NR];

/// Values that a word of 32 bits holds.
pub const fn inputs_per_word(precision: Precision) -> usize {
    match precision {
        Precision::F32 => 1,
        Precision::Bf16 => 2,
    }
}

/// Rows aligned to cache lines, in huge pages where there are many: a training step walks through all weights and
/// moments, and finding 4 KiB pages takes as long as reading them.
#[derive(Clone, Debug, Default)]
pub struct AlignedRows(Pages);

impl AlignedRows {
    /// Zeros.
    pub fn zeros(len: usize) -> AlignedRows {
        AlignedRows(Pages::zeros(len * size_of::<NrRow>()))
    }

    /// Makes it so long; what is new is zero.
    pub fn resize(&mut self, len: usize) {
        let before = self.len();
        self.0.resize(len * size_of::<NrRow>());
        if let Some(new) = self.0.bytes_mut().get_mut(before * size_of::<NrRow>()..) {
            new.fill(0);
        }
    }
}

impl Deref for AlignedRows {
    type Target = [NrRow];

    #[inline(always)]
    fn deref(&self) -> &[NrRow] {
        bytemuck::cast_slice(self.0.bytes())
    }
}

impl DerefMut for AlignedRows {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [NrRow] {
        bytemuck::cast_slice_mut(self.0.bytes_mut())
    }
}

/// A vector padded with zeros to whole rows: a bias beside [`PackedB`].
pub fn pad_rows(values: &[f32]) -> Vec<NrRow> {
    let mut rows = vec![ZERO; values.len().div_ceil(NR)];
    rows.as_flattened_mut()[..values.len()].copy_from_slice(values);
    rows
}

/// A weight matrix `[outputs, inputs]`, packed: panels of [`NR`] outputs, each `[words][NR]`, the last one padded with
/// zeros.
#[derive(Clone, Debug)]
pub struct PackedB {
    rows: AlignedRows,
    words: usize,
    panels: usize,
    precision: Precision,
}

impl PackedB {
    /// Packs a row-major `[outputs, inputs]` weight.
    pub fn new(weight: &[f32], inputs: usize, outputs: usize, precision: Precision) -> PackedB {
        let words = inputs.div_ceil(inputs_per_word(precision));
        let panels = outputs.div_ceil(NR);
        let mut rows = AlignedRows::zeros(panels * words);
        for (o, weights) in weight.chunks_exact(inputs).enumerate() {
            let panel = &mut rows[o / NR * words..][..words];
            for (row, w) in panel.iter_mut().zip(weights.chunks(inputs_per_word(precision))) {
                row[o % NR] = match precision {
                    Precision::F32 => w[0],
                    Precision::Bf16 => bf16x2(w[0], w.get(1).copied().unwrap_or(0.0)),
                };
            }
        }
        PackedB { rows, words, panels, precision }
    }

    /// Words of an output's inputs.
    pub fn words(&self) -> usize {
        self.words
    }

    pub fn panels(&self) -> usize {
        self.panels
    }

    pub fn precision(&self) -> Precision {
        self.precision
    }

    pub fn bytes(&self) -> usize {
        size_of_val(&*self.rows)
    }

    /// Words `k` of a panel, `[k][NR]`.
    #[inline(always)]
    pub fn panel(&self, panel: usize, k: &Range<usize>) -> &[NrRow] {
        &self.rows[panel * self.words..(panel + 1) * self.words][k.clone()]
    }
}

/// A block of input rows in words, row-major. Readable up to a multiple of 16 rows, as AMX tiles need.
#[derive(Debug, Default)]
pub struct PackedA {
    words: AlignedRows,
    stride: usize,
}

impl PackedA {
    /// Room for `rows` rows of `words` words, of any content.
    pub fn resize(&mut self, rows: usize, words: usize) {
        // Not a power of two, whose rows would share a few sets of the cache.
        self.stride = words.next_multiple_of(NR) + VLEN;
        self.words.resize((rows.next_multiple_of(AMX_TILE) * self.stride).div_ceil(NR));
    }

    #[inline(always)]
    pub fn row_mut(&mut self, row: usize) -> &mut [f32] {
        &mut self.words.as_flattened_mut()[row * self.stride..][..self.stride]
    }

    /// All words, and the distance from a row to the next.
    #[inline(always)]
    pub fn raw_mut(&mut self) -> (&mut [f32], usize) {
        (self.words.as_flattened_mut(), self.stride)
    }

    /// The first `count` rows.
    #[inline(always)]
    pub fn rows(&self, count: usize) -> RowsRef<'_> {
        RowsRef { words: self.words.as_flattened(), count, stride: self.stride }
    }
}

/// The bf16x2 word of two values, rounded to nearest even.
#[inline(always)]
pub fn bf16x2(even: f32, odd: f32) -> f32 {
    let mut halves = [bf16::ZERO; 2];
    bf16::narrow(&[even, odd], &mut halves);
    let [even, odd] = halves.map(|half| u32::from(half.to_bits()));
    f32::from_bits(even | odd << 16)
}

/// Rounds values to bf16x2 words; what is below the normal range may count as zero.
#[inline(always)]
pub fn pack_words<S: Simd>(simd: S, values: &[f32], out: &mut [f32]) {
    let (rows, rest) = values.as_chunks::<NR>();
    let (whole, last) = out.split_at_mut(rows.len() * NR / 2);
    for (row, out) in rows.iter().zip(whole.as_chunks_mut::<{ NR / 2 }>().0) {
        simd.narrow_bf16_flush(row, bytemuck::cast_mut(out));
    }
    for (two, out) in rest.chunks(2).zip(last) {
        *out = bf16x2(two[0], two.get(1).copied().unwrap_or(0.0));
    }
}

/// bf16x2 words of two rows each, an odd one paired with zeros; see [`Simd::pack_bf16x2`].
#[inline(always)]
pub fn pack_pairs<S: Simd>(simd: S, rows: &[NrRow], out: &mut [NrRow]) {
    for (two, out) in rows.chunks(2).zip(out) {
        simd.pack_bf16x2(&two[0], two.get(1).unwrap_or(&ZERO), out);
    }
}

/// Words `k` of a stored row, `k.start` a multiple of [`NR`].
#[inline(always)]
pub fn pack_stored<S: Simd>(
    simd: S,
    row: Values<'_>,
    k: &Range<usize>,
    precision: Precision,
    out: &mut [f32],
) {
    let per_word = inputs_per_word(precision);
    let columns = k.start * per_word..(k.end * per_word).min(row.len());
    match (precision, row.slice(columns.clone())) {
        (Precision::F32, values) => values.widen(&mut out[..columns.len()]),
        (Precision::Bf16, Values::Bf16(values)) => {
            // As they are stored; an odd one is paired with zero.
            let halves: &mut [bf16] = bytemuck::cast_slice_mut(&mut out[..k.len()]);
            halves[values.len()..].fill(bf16::ZERO);
            halves[..values.len()].copy_from_slice(values);
        }
        (Precision::Bf16, values) => {
            let mut wide = ZERO;
            for (i, out) in out[..k.len()].chunks_mut(NR / 2).enumerate() {
                let from = i * NR;
                let count = (columns.len() - from).min(NR);
                wide[count..].fill(0.0);
                values.slice(from..from + count).widen(&mut wide[..count]);
                let mut halves: NrRow16 = [0; NR];
                simd.narrow_bf16(&wide, &mut halves);
                let words: &[f32; NR / 2] = bytemuck::cast_ref(&halves);
                out.copy_from_slice(&words[..out.len()]);
            }
        }
    }
}

/// Transposes the first `columns` columns of `rows` into rows of `out`, `stride` apart; zeros up to a multiple of 16
/// behind the last row.
#[inline(always)]
pub fn transpose<S: Simd>(simd: S, rows: RowsRef<'_>, columns: usize, out: &mut [f32], stride: usize) {
    let mut square = [[0f32; VLEN]; VLEN];
    for row in (0..rows.count).step_by(VLEN) {
        let count = (rows.count - row).min(VLEN);
        square[count..].fill([0.0; VLEN]);
        for column in (0..columns).step_by(VLEN) {
            let width = (columns - column).min(VLEN);
            for (r, to) in square.iter_mut().enumerate().take(count) {
                to[..width].copy_from_slice(&rows.words[(row + r) * rows.stride + column..][..width]);
            }
            for (c, values) in simd.transpose(&square).iter().enumerate().take(width) {
                out[(column + c) * stride + row..][..VLEN].copy_from_slice(values);
            }
        }
    }
}

/// [`transpose`] of bf16x2 words of two rows each, an odd one paired with zeros; `COLUMNS` is a multiple of [`NR`].
#[inline(always)]
pub fn transpose_bf16x2<S: Simd, const COLUMNS: usize>(
    simd: S,
    rows: RowsRef<'_>,
    out: &mut [f32],
    stride: usize,
) {
    let mut words = [[0f32; COLUMNS]; VLEN];
    for (i, first) in (0..rows.count).step_by(2 * VLEN).enumerate() {
        let pairs = (rows.count - first).div_ceil(2).min(VLEN);
        for (pair, words) in words.iter_mut().enumerate().take(pairs) {
            let even = rows.row(first + 2 * pair, COLUMNS);
            let odd = (first + 2 * pair + 1 < rows.count).then(|| rows.row(first + 2 * pair + 1, COLUMNS));
            let (even, odd) = (even.as_chunks::<NR>().0, odd.map(|odd| odd.as_chunks::<NR>().0));
            for (c, out) in words.as_chunks_mut::<NR>().0.iter_mut().enumerate() {
                simd.pack_bf16x2(&even[c], odd.map_or(&ZERO, |odd| &odd[c]), out);
            }
        }
        let words = RowsRef { words: words.as_flattened(), count: pairs, stride: COLUMNS };
        transpose(simd, words, COLUMNS, &mut out[i * VLEN..], stride);
    }
}
