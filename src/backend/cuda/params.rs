//! Structures that kernels take by value, laid out as those of the same name in `kernels/`.

use bytemuck::{Pod, Zeroable};

/// `gpu::latents` of `kernels/include/latent.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Latents {
    /// Stored latents `[count, latent]`; null if kernels draw them from the fields below.
    pub z: u64,
    /// The row of each, `[count]`; null if the samples name it.
    pub owners: u64,
    /// (row, candidate) of each drawn latent, `[count]`.
    pub samples: u64,
    /// Where each row's candidates start, `[rows, latent]`.
    pub starts: u64,
    /// The run's seed.
    pub seed: u64,
    /// Data-set row of the block's first.
    pub first_row: u64,
    /// Side of the block.
    pub side: u32,
    /// Standard deviation of the noise.
    pub sigma: f32,
}

/// `gpu::step` of `kernels/include/train.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Step {
    /// Index of the step's first pair in the order of the epoch.
    pub first: u32,
    /// Pairs of the step.
    pub pairs: u32,
    /// Reward training: rows of the batch that have embeddings (and come first).
    pub wide: u32,
    /// Candidate number of the noise: the epoch in VAE training, the steps before this one in reward training.
    pub candidate: u32,
    /// Learning rate over Adam's first bias correction.
    pub rate: f32,
    /// One over the root of Adam's second bias correction.
    pub inverse_root: f32,
}

impl Step {
    /// Offset of `wide` in bytes.
    pub const WIDE: u64 = 8;
}

/// `gpu::product` of `kernels/include/train.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Product {
    /// First operand.
    pub a: u64,
    /// Second operand.
    pub b: u64,
    /// Result.
    pub out: u64,
    /// Bias `[n]`, or null.
    pub bias: u64,
    /// Output of a ReLU `[m, n]`: where it is not positive, the result is 0. Or null.
    pub mask: u64,
    /// Number of rows of the batch that take part, or null for all.
    pub limit: u64,
    /// First operand of a second product that is added, computed by the last slice; or null.
    pub c: u64,
    /// Second operand of the second product.
    pub d: u64,
    /// Where column sums of `a` go, `[m]`, or null.
    pub sums: u64,
    /// Sums of the slices, `[slices, m, n]`.
    pub partial: u64,
    /// A counter for every tile, 0 before and after.
    pub tickets: u64,
    /// Rows of the result.
    pub m: u32,
    /// Columns of the result.
    pub n: u32,
    /// Terms of each sum.
    pub k: u32,
    /// Terms of each sum of the second product.
    pub l: u32,
    /// Values between rows of `a`.
    pub lda: u32,
    /// Values between rows of `b`.
    pub ldb: u32,
    /// Values between rows of the result.
    pub ldo: u32,
    /// 1: ReLU.
    pub relu: u32,
    /// 1: added to what is there.
    pub add: u32,
    /// Padding to a multiple of 8 bytes.
    pub unused: u32,
}

/// `train::sources` of `kernels/train.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct Sources {
    /// Embeddings of each part, or null.
    pub rows: [u64; 4],
    /// Their storage types, as numbers of [`crate::dtype::Dtype`].
    pub dtypes: [u32; 4],
}

/// `train_reward::samples` of `kernels/train_reward.cu`, each of the chosen and the rejected side.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct Samples {
    /// Latents, or null.
    pub z: [u64; 2],
    /// The seed of each.
    pub owners: [u64; 2],
    /// Means of the seeds, where residual, or null.
    pub mu: [u64; 2],
}
