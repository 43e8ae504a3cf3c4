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
  if (p.relu) value = relu(value);
  if (p.mask) value = p.mask[at] > 0.0f ? value : 0.0f;
  return p.add ? p.out[at] + value : value;
}

/// What a block has to do of a product: rows below m, and its slice of k, which ends with a multiple of
/// `granule` or with k. `LIMITS_K`: the limit is on k, else on m.
struct share {
  u32 m, from, end;

  template <bool LIMITS_K>
  GPU_FN static share of(const product& p, u32 granule) {
    const u32 limit = p.limit ? *p.limit : 0xffffffffu;
    const u32 m = LIMITS_K ? p.m : min(limit, p.m), k = LIMITS_K ? min(limit, p.k) : p.k;
    const u32 deep = u32(round_up((k + gridDim.z - 1) / gridDim.z, granule));
    return {m, blockIdx.z * deep, min(blockIdx.z * deep + deep, k)};
  }
};

}  // namespace gpu
