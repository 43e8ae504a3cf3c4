// What kernels of training share: the state of the step that runs, and the parameters of a matrix product.
//
// A step is a fixed list of launches with constant arguments, so that it can be recorded once and replayed.
// What changes from step to step stands in a table on the device; begin_step copies the entry whose turn it
// is to where all other kernels read it.
#pragma once
#include "types.cuh"

namespace gpu {

/// One step. Twin of `Step` in src/backend/cuda/params.rs.
struct step {
  u32 first;           // place of its first pair in the order of the epoch
  u32 pairs;           // at most the batch size
  u32 wide;            // reward: rows below have embeddings, the others are folded
  u32 epoch;           // VAE: candidate number of its noise
  float rate;          // Adam: learning rate over the first bias correction
  float inverse_root;  // Adam: one over the root of the second
};

/// out [m, n] = op(a) op(b), each dense, row-major with rows `lda`, `ldb`, `ldo` values apart.
/// A kernel parameter, twin of `Product` in src/backend/cuda/params.rs.
struct product {
  const float* a;
  const float* b;
  float* out;         // with several slices (gridDim.z) [slices, m, ldo], to be joined
  const float* bias;  // [n], or null
  const float* mask;  // as out: where not positive, the result is 0; or null
  const u32* limit;   // rows of the batch that count, or null: m in nt and nn, k in tn; beyond, results are 0
  u32 m, n, k, lda, ldb, ldo;
  u32 relu;  // 1: the result goes through it
  u32 add;   // 1: added to what out holds
};

/// Bias, ReLU, mask and sum of one element.
GPU_FN float finished(const product& p, float value, u64 at, u32 column) {
  if (p.bias) value += p.bias[column];
  if (p.relu) value = value < 0.0f ? 0.0f : value;
  if (p.mask) value = p.mask[at] > 0.0f ? value : 0.0f;
  return p.add ? p.out[at] + value : value;
}

/// The depth that a slice of a product sums over: from its number times this. A multiple of `granule`.
GPU_FN u32 depth_of_slice(u32 k, u32 slices, u32 granule) {
  const u32 even = (k + slices - 1) / slices;
  return (even + granule - 1) / granule * granule;
}

}  // namespace gpu
