//! What sums of a product start from and what becomes of them.

use super::pack::{PackedA, ZERO};
use crate::dtype::Dtype;
use crate::simd::{Line, NR, NrRow, NrRow16, Simd};

/// Where sums belong: rows `row..` of the block, columns of one panel.
#[derive(Clone, Copy, Debug)]
pub struct Tile {
    pub row: usize,
    pub panel: usize,
}

/// The ends of a product's sums. Both methods must be `#[inline(always)]`.
pub trait Epilogue {
    /// What the sums of a row and panel start from.
    #[inline(always)]
    fn start(&self, _row: usize, _panel: usize) -> &NrRow {
        &ZERO
    }

    /// Takes the sums of a tile; may change them in place.
    fn finish<S: Simd>(&mut self, simd: S, tile: Tile, sums: &mut [NrRow]);
}

/// Adds the product to sums `[rows]` of one panel.
pub struct Add<'a>(pub &'a mut [NrRow]);

impl Epilogue for Add<'_> {
    #[inline(always)]
    fn finish<S: Simd>(&mut self, _: S, tile: Tile, sums: &mut [NrRow]) {
        // One loop over all values: compilers vectorise it, but not one a row.
        let to = self.0[tile.row..][..sums.len()].as_flattened_mut();
        to.iter_mut().zip(sums.as_flattened()).for_each(|(to, sum)| *to += sum);
    }
}

/// Stores the product as `[rows]` of one panel.
pub struct Keep<'a>(pub &'a mut [NrRow]);

impl Epilogue for Keep<'_> {
    #[inline(always)]
    fn finish<S: Simd>(&mut self, _: S, tile: Tile, sums: &mut [NrRow]) {
        self.0[tile.row..][..sums.len()].copy_from_slice(sums);
    }
}

/// The epilogue of every layer in inference. Two enums rather than types of their own: each type would be compiled
/// again for every instruction set, and the choice is made once a tile.
pub struct Inference<'a> {
    pub start: Start<'a>,
    pub finish: Finish<'a>,
}

/// Where sums start from.
#[derive(Clone, Copy)]
pub enum Start<'a> {
    /// The layer's bias, `[panels]`.
    Bias(&'a [NrRow]),
    /// Rows `[rows][panels]` of the panels from `first` on.
    Rows { rows: &'a [NrRow], first: usize, panels: usize },
    /// The row of each one's seed among rows `[seeds][panels]`.
    Seeds { rows: &'a [NrRow], seeds: &'a [u32], panels: usize },
}

/// Where they go.
pub enum Finish<'a> {
    /// Through the ReLU into the inputs of the next layer.
    Hidden(&'a mut PackedA),
    /// Rows `[rows][panels]`.
    Rows(&'a mut [NrRow], usize),
    /// Rounded into stored rows.
    Stored(RowsOut<'a>),
    /// Through the ReLU and a layer of one output, as 32 partial sums a row: `second` are that layer's weights.
    Reward { second: &'a [NrRow], sums: &'a mut [NrRow] },
}

impl Epilogue for Inference<'_> {
    #[inline(always)]
    fn start(&self, row: usize, panel: usize) -> &NrRow {
        match self.start {
            Start::Bias(bias) => &bias[panel],
            Start::Rows { rows, first, panels } => &rows[row * panels + panel - first],
            Start::Seeds { rows, seeds, panels } => &rows[seeds[row] as usize * panels + panel],
        }
    }

    #[inline(always)]
    fn finish<S: Simd>(&mut self, simd: S, tile: Tile, sums: &mut [NrRow]) {
        let Tile { row, panel } = tile;
        match &mut self.finish {
            Finish::Hidden(out) => {
                for (row, sum) in (row..).zip(sums) {
                    simd.relu(sum);
                    out.row_mut(row)[panel * NR..][..NR].copy_from_slice(sum);
                }
            }
            Finish::Rows(out, panels) => {
                for (row, sum) in (row..).zip(sums) {
                    out[row * *panels + panel] = *sum;
                }
            }
            Finish::Stored(out) => {
                for (row, sum) in (row..).zip(sums) {
                    out.put(simd, row, panel, sum);
                }
            }
            Finish::Reward { second, sums: out } => {
                let weights = &second[panel];
                for (out, sum) in out[row..].iter_mut().zip(sums) {
                    simd.relu(sum);
                    // Values of their own, which cannot overlap: else the loop would not be vectorised.
                    let (sum, weights, before) = (*sum, *weights, *out);
                    *out = std::array::from_fn(|i| sum[i].mul_add(weights[i], before[i]));
                }
            }
        }
    }
}

/// Rows of `dim` stored values, as bytes.
pub struct RowsOut<'a> {
    pub bytes: &'a mut [u8],
    pub dtype: Dtype,
    pub dim: usize,
    /// Whether they go past the caches.
    pub stream: bool,
}

impl RowsOut<'_> {
    #[inline(always)]
    fn put<S: Simd>(&mut self, simd: S, row: usize, panel: usize, sums: &NrRow) {
        let size = self.dtype.size();
        let width = (self.dim - panel * NR).min(NR);
        let to = &mut self.bytes[(row * self.dim + panel * NR) * size..][..width * size];
        if self.dtype == Dtype::F32 {
            return copy(simd, bytemuck::bytes_of(sums), to, self.stream);
        }
        let mut halves: NrRow16 = [0; NR];
        match self.dtype {
            Dtype::F16 => simd.narrow_f16(sums, &mut halves),
            _ => simd.narrow_bf16(sums, &mut halves),
        }
        copy(simd, bytemuck::bytes_of(&halves), to, self.stream);
    }
}

/// Copies as many bytes as `to` has room for, whole cache lines past the caches if so asked.
#[inline(always)]
fn copy<S: Simd>(simd: S, from: &[u8], to: &mut [u8], stream: bool) {
    if to.len() < from.len() {
        let len = to.len();
        return to.copy_from_slice(&from[..len]);
    }
    let lines = from.as_chunks::<{ size_of::<Line>() }>().0;
    for (from, to) in lines.iter().zip(to.as_chunks_mut::<{ size_of::<Line>() }>().0) {
        if stream {
            simd.stream(from, to);
        } else {
            *to = *from;
        }
    }
}
