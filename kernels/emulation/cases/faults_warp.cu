// One divergence or wrong mask a kernel, and fragments written to the wrong place. Launched and marked like
// faults_memory.cu.
#include "../../include/mma.cuh"

using gpu::u32;

#define THREAD (threadIdx.x)
#define ELEMENT (blockIdx.x * blockDim.x + threadIdx.x)

GPU_KERNEL fault_barrier_in_a_branch(const float* in, float* out, uint32_t) {
  if (THREAD < 64) __syncthreads();  //! __syncthreads
  out[ELEMENT] = in[ELEMENT];
}
GPU_EXPORT(fault_barrier_in_a_branch);

GPU_KERNEL fault_two_barriers(const float* in, float* out, uint32_t) {
  if (THREAD < 64)
    __syncthreads();  //! divergent
  else
    __syncthreads();  //! divergent
  out[ELEMENT] = in[ELEMENT];
}
GPU_EXPORT(fault_two_barriers);

GPU_KERNEL fault_exit_before_barrier(const float* in, float* out, uint32_t n) {
  if (THREAD == n - 28) return;
  __syncthreads();  //! exit
  out[ELEMENT] = in[ELEMENT];
}
GPU_EXPORT(fault_exit_before_barrier);

GPU_KERNEL fault_barrier_count_differs(const float* in, float* out, uint32_t) {
  for (u32 i = 0; i < 1 + THREAD / 64; i++) __syncthreads();  //! __syncthreads
  out[ELEMENT] = in[ELEMENT];
}
GPU_EXPORT(fault_barrier_count_differs);

GPU_KERNEL fault_shuffle_in_half_the_warp(const float* in, float* out, uint32_t) {
  float x = in[ELEMENT];
  if (THREAD % 32 < 16) x = __shfl_xor_sync(0xffffffffu, x, 1);  //! shuffle
  out[ELEMENT] = x;
}
GPU_EXPORT(fault_shuffle_in_half_the_warp);

GPU_KERNEL fault_shuffle_mask_without_caller(const float* in, float* out, uint32_t) {
  out[ELEMENT] = __shfl_xor_sync(0x0000ffffu, in[ELEMENT], 1);  //! leaves out
}
GPU_EXPORT(fault_shuffle_mask_without_caller);

GPU_KERNEL fault_shuffle_from_outside_the_mask(const float* in, float* out, uint32_t) {
  float x = in[ELEMENT];
  if (THREAD % 32 < 16) x = __shfl_xor_sync(0x0000ffffu, x, 16);  //! not in mask
  out[ELEMENT] = x;
}
GPU_EXPORT(fault_shuffle_from_outside_the_mask);

GPU_KERNEL fault_overlapping_masks(const float* in, float* out, uint32_t) {
  const u32 mask = THREAD % 32 < 16 ? 0xffffffffu : 0xffff8000u;
  out[ELEMENT] = __shfl_xor_sync(mask, in[ELEMENT], 0);  //! shuffle
}
GPU_EXPORT(fault_overlapping_masks);

GPU_KERNEL fault_vote_meets_shuffle(const float* in, float* out, uint32_t) {
  float x = in[ELEMENT];
  if (THREAD % 2)
    x += __shfl_xor_sync(~0u, x, 2);  //! divergent warp
  else
    x += float(__ballot_sync(~0u, 1));  //! divergent warp
  out[ELEMENT] = x;
}
GPU_EXPORT(fault_vote_meets_shuffle);

GPU_KERNEL fault_lanes_left_the_warp(const float* in, float* out, uint32_t) {
  out[ELEMENT] = in[ELEMENT];
  if (THREAD % 32 == 31) return;
  out[ELEMENT] = __shfl_down_sync(~0u, in[ELEMENT], 1);  //! exit
}
GPU_EXPORT(fault_lanes_left_the_warp);

GPU_KERNEL fault_mma_in_half_the_warp(const float*, float* out, uint32_t) {
  const u32 a[4] = {0, 0, 0, 0}, b[2] = {0, 0};
  float c[4] = {0, 0, 0, 0};
  if (THREAD & 16) gpu::mma_m16n8k16_bf16(c, a, b);  //! mma
  out[ELEMENT] = c[0];
}
GPU_EXPORT(fault_mma_in_half_the_warp);

// Rows g and g + 8 of a result fragment, with the second taken for g + 1.
GPU_KERNEL fault_fragment_row(const float*, float* out, uint32_t) {
  const u32 a[4] = {0, 0, 0, 0}, b[2] = {0, 0};
  float c[4] = {1, 2, 3, 4};
  gpu::mma_m16n8k16_bf16(c, a, b);
  const u32 g = THREAD / 4, t = THREAD % 4;
  if (THREAD >= 32 || blockIdx.x > 0) return;
  for (u32 r = 0; r < 4; r++) out[(g + r / 2) * 8 + 2 * t + r % 2] = c[r];  //! race
}
GPU_EXPORT(fault_fragment_row);
