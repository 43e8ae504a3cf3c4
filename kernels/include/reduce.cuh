// Sums and maxima over a warp and a block, in one fixed order: the result depends on the values and the block
// size alone, never on timing. Warp results reach every lane, block results every thread. And who of several
// blocks comes last.
#pragma once
#include "gpu.cuh"

namespace gpu {

/// Sum over the 32 lanes by a butterfly; all lanes must call it and get equal bits.
template <class T>
GPU_FN T warp_sum(T value) {
#pragma unroll
  for (int step = 16; step > 0; step >>= 1) value += __shfl_xor_sync(ALL_LANES, value, step, 32);
  return value;
}

/// Maximum over the 32 lanes. NaN is passed over unless every lane holds it, as fmaxf does.
GPU_FN float warp_max(float value) {
#pragma unroll
  for (int step = 16; step > 0; step >>= 1)
    value = fmaxf(value, __shfl_xor_sync(ALL_LANES, value, step, 32));
  return value;
}

/// Sum over the block: warps first, then the warp sums in rising order of the warp.
///
/// All threads of a one-dimensional block of whole warps must call it. `scratch` holds one T per warp in
/// shared memory; it may be used again at once, as the barrier at the entry keeps a former use from being
/// overwritten.
template <class T>
GPU_FN T block_sum(T value, T* scratch) {
  const u32 warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
  value = warp_sum(value);
  __syncthreads();
  if (threadIdx.x % WARP == 0) scratch[warp] = value;
  __syncthreads();
  T total = scratch[0];
  for (u32 w = 1; w < warps; w++) total += scratch[w];
  return total;
}

/// Maximum over the block; the same contract as block_sum.
GPU_FN float block_max(float value, float* scratch) {
  const u32 warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
  value = warp_max(value);
  __syncthreads();
  if (threadIdx.x % WARP == 0) scratch[warp] = value;
  __syncthreads();
  float largest = scratch[0];
  for (u32 w = 1; w < warps; w++) largest = fmaxf(largest, scratch[w]);
  return largest;
}

/// Whether this block is the last of `blocks` that call it with `ticket`; the last may read what the others
/// wrote before. `ticket` is zero before the first call and after the last.
///
/// All threads of the block must call it, and get the same answer.
GPU_FN bool last_block(u32* ticket, u32 blocks) {
  // The barrier puts the writes of all threads before the fence of the first.
  __syncthreads();
  bool last = false;
  if (threadIdx.x == 0) {
    __threadfence();
    last = atomicAdd(ticket, 1u) + 1 == blocks;
    if (last) {
      *ticket = 0;
      // Keeps the reads of all threads behind the ticket.
      __threadfence();
    }
  }
  return __syncthreads_or(last) != 0;
}

}  // namespace gpu
