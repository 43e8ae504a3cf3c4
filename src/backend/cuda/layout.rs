//! Block sizes, and the bytes of shared memory that kernels are launched with. Each function repeats, array
//! by array, a `layout` structure in `kernels/`; tests execute kernels with just these bytes.

use half::bf16;

use crate::backend::Precision;
use crate::dtype::Dtype;
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
    /// Blocks of a cluster, which a grid has whole ones of; 1 where there are none.
    pub cluster: u32,
}

/// Most candidates that `select_f32` keeps of a row.
pub const MOST_KEPT: usize = 256;

/// Threads of a block of `select_f32` and `perturb_f32`.
const PERTURB_THREADS: u32 = 128;

/// The block of `start_f32` and `perturb_f32`.
pub fn perturb(latent: usize) -> Block {
    Block {
        threads: PERTURB_THREADS,
        tile: (4 * PERTURB_THREADS as usize / latent).max(1),
        shared: 0,
        cluster: 1,
    }
}

/// The block of `select_f32`, and what `synthesize_*` takes to rank: a row for each group of 4 to 32 lanes of a warp.
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
    Block { threads: PERTURB_THREADS, tile: rows, shared, cluster: 1 }
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
        Block { threads: EXACT.1, tile: EXACT.0, shared: self.bytes, cluster: 1 }
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
        Block { threads: TENSOR.1, tile, shared: self.bytes, cluster: 1 }
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

/// Bytes of a row of a box (`kernels/include/bulk_copy.cuh`).
pub const BOX_ROW: u32 = 128;
/// Hidden units of `encode_tma_*`, and those of W1 that a stage of it holds.
pub const TMA_HIDDEN: usize = 64;
/// Width of the reward model that a stage of `score_wgmma_*` holds, and that which each block of a cluster brings in.
const WGMMA_WIDTH: usize = 256;
/// See [`WGMMA_WIDTH`].
pub const WGMMA_BOX: usize = WGMMA_WIDTH / 2;

impl Carver {
    /// Stages of `rows` rows of embeddings and `wide` rows of W1, and their mbarriers (`gpu::stages`).
    fn boxed_stages(&mut self, stages: usize, dtype: Dtype, rows: usize, wide: usize) -> &mut Carver {
        // 64 columns: a box of 2-byte values, two of F32.
        let boxes = dtype.size().div_ceil(2);
        self.take::<u8>(stages * (boxes * rows + wide) * BOX_ROW as usize);
        self.take::<u64>(stages).take::<u64>(stages)
    }
}

/// The block of `encode_tma_*`.
pub fn encode_tma(dtype: Dtype, latent: usize) -> Block {
    let rows = 512 / dtype.size();
    let mut carver = Carver::default();
    carver.boxed_stages(4, dtype, rows, TMA_HIDDEN).take::<bf16>(2 * latent * tensor_stride(TMA_HIDDEN));
    // A warp for 32 rows, and one that asks for stages.
    Block { threads: rows as u32 + 32, tile: rows, shared: carver.bytes, cluster: 1 }
}

/// The block of `score_wgmma_*`, of which two are a cluster.
pub fn score_wgmma(dtype: Dtype) -> Block {
    let mut carver = Carver::default();
    let stages = if dtype == Dtype::F32 { 3 } else { 4 };
    carver.boxed_stages(stages, dtype, 128, WGMMA_WIDTH);
    Block { threads: 288, tile: 128, shared: carver.bytes, cluster: 2 }
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

/// The block of `synthesize_*`, which ranks `drawn` candidates to keep some (0: nothing ranks them), and, with neither,
/// of `reconstruct_*`.
pub fn synthesize(VaeSize { hidden, latent, .. }: VaeSize, keep: usize, drawn: usize) -> Block {
    let (codes, weights) = (TENSOR.0 * latent, 2 * latent * tensor_stride(hidden));
    let mut stays = Carver::default();
    stays.take::<bf16>(weights).take::<f32>(codes).take::<f32>(codes).take::<f32>(codes);
    stays.take::<u32>(TENSOR.0 * keep).take::<bf16>(hidden * tensor_stride(latent));
    let mut decoder = Carver::default();
    decoder.tensor_decoder_input(hidden, latent).take::<bf16>(3 * COLUMNS * tensor_stride(hidden));
    decoder.take::<f32>(3 * 3 * COLUMNS);
    // Of that, W3 stays.
    decoder.bytes -= Carver::default().take::<bf16>(hidden * tensor_stride(latent)).bytes;
    let mut encoder = Carver::default();
    encoder.tensor_stages(3, 64).take::<bf16>(TENSOR.0 * tensor_stride(hidden));
    let ranking = if drawn > 0 { select(latent, keep, drawn).shared } else { 0 };
    stays.bytes += decoder.bytes.max(encoder.bytes).max(ranking);
    stays.tensor(TENSOR.0)
}

/// The block of `score`, for any size.
pub fn score(precision: Precision) -> Block {
    let mut carver = Carver::default();
    match precision {
        Precision::F32 => carver.exact_chunks().take::<f32>(EXACT.0 * exact_stride(64)).exact(),
        Precision::Bf16 => carver.tensor_stages(2, 256).take::<f32>(2 * TENSOR.0).tensor(TENSOR.0),
    }
}

/// The block of `layer_*`, for any size.
pub fn layer(precision: Precision) -> Block {
    let mut carver = Carver::default();
    match precision {
        Precision::F32 => carver.exact_chunks().exact(),
        Precision::Bf16 => carver.tensor_stages(2, 128).tensor(TENSOR.0),
    }
}

/// The block of `subtract_rows` and `head_f32`, by values and by rows.
pub fn elementwise(tile: usize) -> Block {
    Block { threads: EXACT.1, tile, shared: 0, cluster: 1 }
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
        Precision::F32 => carver.take::<f32>(2 * 16 * 68).take::<f32>(2 * 16 * 68).bytes,
        Precision::Bf16 => carver.take::<bf16>(2 * 64 * 40).take::<bf16>(2 * 64 * 40).bytes,
    }
}

/// Shared memory of `vae_epoch_*`: bytes between operands and moments, and all with the moments of `own` tiles of the
/// gradients. `deep`: columns of a slice of the reconstruction.
pub fn vae_epoch(precision: Precision, size: VaeSize, deep: usize, own: usize) -> (usize, usize) {
    let VaeSize { hidden, latent, .. } = size;
    let width = hidden.max(2 * latent);
    let mut pair = Carver::default();
    match precision {
        Precision::F32 => pair.take::<f32>(2 * width),
        Precision::Bf16 => {
            let weight = (2 * latent * tensor_stride(hidden)).max(hidden * tensor_stride(latent));
            pair.take::<bf16>(16 * tensor_stride(width)).take::<bf16>(weight)
        }
    };
    let scratch = Carver::default().take::<f32>(64 * (deep + 4)).bytes.max(pair.bytes);
    let mut carver = Carver { bytes: product(precision) };
    (scratch, carver.take::<u8>(scratch).take::<f32>(own * 2 * 64 * 64).bytes)
}
