//! Bytes of shared memory that kernels are launched with: the twins of the `layout` structures in `kernels/`, which
//! count by the same steps. A test holds each against the kernel's own count.

use crate::backend::Precision;
use crate::dtype::Dtype;
use crate::model::{RewardSize, VaeSize};

/// `gpu::carver` without a base: counts what arrays take.
#[derive(Debug, Default)]
struct Carver {
    bytes: usize,
}

impl Carver {
    /// Room for `count` values of T, on a multiple of 16 bytes.
    fn take<T>(&mut self, count: usize) -> &mut Carver {
        self.bytes = (self.bytes + count * size_of::<T>()).next_multiple_of(16);
        self
    }
}

/// The shape of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Threads.
    pub threads: u32,
    /// Items (rows, latents) that it takes at a time.
    pub tile: usize,
    /// Bytes of shared memory.
    pub shared: usize,
}

/// Most candidates that `select_f32` keeps.
pub const MOST_KEPT: usize = 256;

/// Threads of a block of `select_f32` and `perturb_f32`.
const PERTURB_THREADS: u32 = 128;

/// `perturb_f32`.
pub fn perturb(latent: usize) -> Block {
    Block { threads: PERTURB_THREADS, tile: (4 * PERTURB_THREADS as usize / latent).max(1), shared: 0 }
}

/// `select_f32`.
pub fn select(latent: usize, keep: usize, drawn: usize) -> Block {
    let mut lanes = 4;
    while lanes < 32 && (lanes < drawn || 16 * lanes < latent) {
        lanes *= 2;
    }
    let capacity = if drawn <= lanes { lanes } else { (keep + lanes).next_power_of_two() };
    let rows = PERTURB_THREADS as usize / lanes;
    let mut carver = Carver::default();
    carver.take::<f32>(rows * latent).take::<f32>(rows * latent).take::<f32>(rows * latent);
    let shared = carver.take::<u64>(rows * capacity).bytes;
    Block { threads: PERTURB_THREADS, tile: rows, shared }
}

/// The least width of a slice of output columns of `decode`, and what every width is a multiple of.
pub const COLUMNS: usize = 64;
/// Widths of slices, the best first.
pub const SLICES: [usize; 3] = [256, 128, 64];

/// Rows and threads of a block of the exact kernels (`kernels/include/mlp_exact.cuh`).
const EXACT: (usize, u32) = (64, 128);

fn exact_stride(k: usize) -> usize {
    k + 4
}

impl Carver {
    /// `exact::decoder_input`.
    fn exact_decoder_input(&mut self, hidden: usize, latent: usize) -> &mut Carver {
        let rows = EXACT.0;
        self.take::<f32>(rows * exact_stride(latent));
        self.take::<f32>(rows * exact_stride(latent));
        self.take::<f32>(rows * exact_stride(hidden))
    }

    /// Two chunks of operands.
    fn exact_chunks(&mut self) -> &mut Carver {
        self.take::<f32>(EXACT.0 * 36).take::<f32>(EXACT.0 * 36)
    }

    fn exact(&self) -> Block {
        Block { threads: EXACT.1, tile: EXACT.0, shared: self.bytes }
    }
}

/// Blocks of `encode`, the best first.
pub fn encode(precision: Precision, size: VaeSize, _: Dtype) -> Vec<Block> {
    let rows = EXACT.0;
    match precision {
        Precision::F32 | Precision::Bf16 => {
            let mut carver = Carver::default();
            carver.exact_chunks().take::<f32>(rows * exact_stride(size.hidden));
            vec![carver.take::<f32>(rows * exact_stride(2 * size.latent)).exact()]
        }
    }
}

/// The block of `decode` for a slice of `columns`.
pub fn decode(precision: Precision, size: VaeSize, columns: usize, _: Dtype) -> Block {
    match precision {
        Precision::F32 | Precision::Bf16 => {
            let mut carver = Carver::default();
            carver.exact_decoder_input(size.hidden, size.latent);
            carver.take::<f32>(columns * exact_stride(size.hidden)).exact()
        }
    }
}

/// Blocks of `score`, the best first.
pub fn score(precision: Precision, _: RewardSize, _: Dtype) -> Vec<Block> {
    match precision {
        Precision::F32 | Precision::Bf16 => {
            vec![Carver::default().exact_chunks().take::<f32>(EXACT.0 * exact_stride(64)).exact()]
        }
    }
}

/// Blocks of `score_latents` for a reward model of `width`, the best first.
pub fn score_latents(precision: Precision, size: VaeSize, _: usize) -> Vec<Block> {
    match precision {
        Precision::F32 | Precision::Bf16 => {
            let mut carver = Carver::default();
            carver.exact_decoder_input(size.hidden, size.latent);
            carver.take::<f32>(64 * exact_stride(size.hidden));
            vec![carver.take::<f32>(EXACT.0 * exact_stride(64)).exact()]
        }
    }
}
