//! Block sizes, and the bytes of shared memory that kernels are launched with. Each function repeats, array
//! by array, a `layout` structure in `kernels/`; tests execute kernels with just these bytes.

use half::bf16;

use crate::backend::Precision;
use crate::model::VaeSize;

/// Counts the bytes of arrays as `gpu::carver` places them.
#[derive(Debug, Default)]
struct Carver {
    bytes: usize,
}

impl Carver {
    /// An array of `count` values of T; the next one starts on a multiple of 16 bytes.
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

/// Most candidates that `select_f32` keeps of a row.
pub const MOST_KEPT: usize = 256;

/// Threads of a block of `select_f32` and `perturb_f32`.
const PERTURB_THREADS: u32 = 128;

/// The block of `start_f32` and `perturb_f32`.
pub fn perturb(latent: usize) -> Block {
    Block { threads: PERTURB_THREADS, tile: (4 * PERTURB_THREADS as usize / latent).max(1), shared: 0 }
}

/// The block of `select_f32`: a row for each group of 4 to 32 lanes of a warp.
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

/// Slices of output columns of `decode` are a multiple of this wide.
pub const COLUMNS: usize = 64;
/// Widths of slices, the fastest first.
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

/// Rows and threads of a block of the tensor-core kernels (`kernels/include/mlp_bf16.cuh`), and its chunk of
/// k.
const TENSOR: (usize, u32) = (64, 128);
/// Latents of a block of the tensor-core kernels that decode.
const LATENTS: usize = 128;
const CHUNK: usize = 64;

fn tensor_stride(k: usize) -> usize {
    k + 8
}

impl Carver {
    /// `tensor::decoder_input`.
    fn tensor_decoder_input(&mut self, hidden: usize, latent: usize) -> &mut Carver {
        self.take::<bf16>(hidden * tensor_stride(latent));
        self.take::<bf16>(LATENTS * tensor_stride(latent)).take::<bf16>(LATENTS * tensor_stride(latent));
        self.take::<bf16>(LATENTS * tensor_stride(hidden))
    }

    /// Stages of `tensor::add_stored` for `wide` outputs.
    fn tensor_stages(&mut self, stages: usize, wide: usize) -> &mut Carver {
        self.take::<bf16>(stages * (TENSOR.0 + wide) * tensor_stride(CHUNK))
    }

    fn tensor(&self, tile: usize) -> Block {
        Block { threads: TENSOR.1, tile, shared: self.bytes }
    }
}

/// The block of `encode`.
pub fn encode(precision: Precision, size: VaeSize) -> Block {
    let VaeSize { hidden, latent, .. } = size;
    let mut carver = Carver::default();
    match precision {
        Precision::F32 => {
            carver.exact_chunks().take::<f32>(EXACT.0 * exact_stride(hidden));
            carver.take::<f32>(EXACT.0 * exact_stride(2 * latent)).exact()
        }
        Precision::Bf16 => {
            carver.tensor_stages(3, 64).take::<bf16>(TENSOR.0 * tensor_stride(hidden));
            carver.take::<bf16>(2 * latent * tensor_stride(hidden)).tensor(TENSOR.0)
        }
    }
}

/// The block of `decode` for a slice of `columns`.
pub fn decode(precision: Precision, size: VaeSize, columns: usize) -> Block {
    let VaeSize { hidden, latent, .. } = size;
    let mut carver = Carver::default();
    match precision {
        Precision::F32 => {
            carver.exact_decoder_input(hidden, latent).take::<f32>(columns * exact_stride(hidden)).exact()
        }
        Precision::Bf16 => {
            carver.tensor_decoder_input(hidden, latent).take::<bf16>(columns * tensor_stride(hidden));
            carver.take::<f32>(columns).tensor(LATENTS)
        }
    }
}

/// The block of `score`, for any size.
pub fn score(precision: Precision) -> Block {
    let mut carver = Carver::default();
    match precision {
        Precision::F32 => carver.exact_chunks().take::<f32>(EXACT.0 * exact_stride(64)).exact(),
        Precision::Bf16 => carver.tensor_stages(2, 256).take::<f32>(2 * TENSOR.0).tensor(TENSOR.0),
    }
}

/// The block of `score_latents` for a reward model of `width`.
pub fn score_latents(precision: Precision, size: VaeSize, width: usize) -> Block {
    let VaeSize { hidden, latent, .. } = size;
    let mut carver = Carver::default();
    match precision {
        Precision::F32 => {
            carver.exact_decoder_input(hidden, latent).take::<f32>(64 * exact_stride(hidden));
            carver.take::<f32>(EXACT.0 * exact_stride(64)).exact()
        }
        Precision::Bf16 => {
            carver.tensor_decoder_input(hidden, latent).take::<bf16>(width * tensor_stride(hidden));
            carver.take::<f32>(width).take::<f32>(width).tensor(LATENTS)
        }
    }
}

/// Shared memory of a product of training.
pub fn product(precision: Precision) -> usize {
    let mut carver = Carver::default();
    match precision {
        Precision::F32 => carver.take::<f32>(16 * 68).take::<f32>(16 * 68).bytes,
        Precision::Bf16 => carver.take::<bf16>(64 * 40).take::<bf16>(64 * 40).bytes,
    }
}
