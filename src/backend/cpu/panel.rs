//! Matrix products for inference, with results that do not depend on how rows are cut into blocks.
//!
//! A library GEMM chooses its blocking from all three sizes, and with it the order of additions; here every output
//! element is one chain of fused multiply-adds over k in rising order, starting from what the output holds. So the
//! same row gives the same bits in a block of any size, on any thread, at any SIMD level.

use std::ops::Range;

use super::simd::{Lane, Simd, WIDTH};

/// A weight matrix `[outputs, inputs]` packed for [`accumulate`]: panels of 32 outputs, each `[inputs][32]`, the
/// last one padded with zeros.
#[derive(Clone, Debug)]
pub struct Panels {
    lanes: Vec<Lane>,
    inputs: usize,
    outputs: usize,
}

impl Panels {
    /// Packs a row-major `[outputs, inputs]` weight.
    pub fn pack(weight: &[f32], inputs: usize, outputs: usize) -> Panels {
        let mut lanes = vec![[0f32; WIDTH]; outputs.div_ceil(WIDTH) * inputs];
        for (o, row) in weight.chunks_exact(inputs).enumerate() {
            let panel = &mut lanes[o / WIDTH * inputs..][..inputs];
            for (lane, &w) in panel.iter_mut().zip(row) {
                lane[o % WIDTH] = w;
            }
        }
        Panels { lanes, inputs, outputs }
    }

    /// Number of inputs, the length of the products' sums.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Number of panels.
    pub fn count(&self) -> usize {
        self.outputs.div_ceil(WIDTH)
    }

    /// Panel `p`, `[inputs][32]`.
    fn panel(&self, p: usize) -> &[Lane] {
        &self.lanes[p * self.inputs..(p + 1) * self.inputs]
    }
}

/// A vector padded with zeros to whole lanes: a bias beside [`Panels`].
pub fn pad_lanes(values: &[f32]) -> Vec<Lane> {
    let mut lanes = vec![[0f32; WIDTH]; values.len().div_ceil(WIDTH)];
    lanes.as_flattened_mut()[..values.len()].copy_from_slice(values);
    lanes
}

/// For every row r: `out[r][q] += sum over k of a[r][k] * W[k_from + k][panel panels.start + q]`.
///
/// `a` holds inputs `k` of every row, one row every `a.1` values; `out` is `[rows][panels]`.
#[inline(always)]
pub fn accumulate<S: Simd>(
    simd: S,
    (a, a_stride): (&[f32], usize),
    weights: &Panels,
    k: Range<usize>,
    panels: Range<usize>,
    out: &mut [Lane],
) {
    let stride = panels.len();
    let rows = out.len() / stride;
    for (q, p) in panels.enumerate() {
        let b = &weights.panel(p)[k.clone()];
        let mut row = 0;
        while row < rows {
            // Tiles of the level's height, then single rows: the chain of each element is the same in both.
            let height = if rows - row >= S::ROWS { S::ROWS } else { 1 };
            let a = (&a[row * a_stride..], a_stride);
            let out = (&mut out[row * stride + q..], stride);
            match height {
                8 => tile::<S, 8>(simd, a, b, out),
                3 => tile::<S, 3>(simd, a, b, out),
                2 => tile::<S, 2>(simd, a, b, out),
                _ => tile::<S, 1>(simd, a, b, out),
            }
            row += height;
        }
    }
}

/// `R` rows by one panel, accumulators in registers.
#[inline(always)]
fn tile<S: Simd, const R: usize>(
    simd: S,
    (a, a_stride): (&[f32], usize),
    b: &[Lane],
    (out, stride): (&mut [Lane], usize),
) {
    let rows: [&[f32]; R] = std::array::from_fn(|r| &a[r * a_stride..][..b.len()]);
    let mut acc: [S::Row; R] = std::array::from_fn(|r| simd.load(&out[r * stride]));
    for (k, lane) in b.iter().enumerate() {
        let lane = simd.load(lane);
        for r in 0..R {
            acc[r] = simd.fma(rows[r][k], lane, acc[r]);
        }
    }
    for r in 0..R {
        simd.store(acc[r], &mut out[r * stride]);
    }
}
