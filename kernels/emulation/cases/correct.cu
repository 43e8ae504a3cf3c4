// Kernels without a fault, each using a synchronisation that a checker may take for a race: 128 threads a
// block, two blocks, in [256], out [256], n = 128, 4,096 bytes of shared memory. No schedule may raise a
// report or change `out`.
#include "../../include/async_copy.cuh"
#include "../../include/reduce.cuh"

using gpu::u32;

#define THREAD (threadIdx.x)
#define ELEMENT (blockIdx.x * blockDim.x + threadIdx.x)

/// Barriers between write and read, and between read and the next write.
GPU_KERNEL correct_barriers(const float* in, float* out, uint32_t) {
  GPU_DYN_SHARED(memory);
  gpu::carver carve(memory);
  float* s = carve.take<float>(128);
  float sum = 0;
  for (int i = 0; i < 3; i++) {
    s[THREAD] = in[ELEMENT] * float(i);
    __syncthreads();
    sum += s[127 - THREAD];
    __syncthreads();
  }
  out[ELEMENT] = sum;
}
GPU_EXPORT(correct_barriers);

/// Exchange within warps, ordered by __syncwarp alone.
GPU_KERNEL correct_syncwarp(const float* in, float* out, uint32_t) {
  GPU_DYN_SHARED(memory);
  gpu::carver carve(memory);
  float* s = carve.take<float>(128);
  float sum = 0;
  for (int i = 0; i < 3; i++) {
    s[THREAD] = in[ELEMENT];
    __syncwarp();
    sum += s[THREAD ^ 5];
    __syncwarp();
  }
  out[ELEMENT] = sum;
}
GPU_EXPORT(correct_syncwarp);

/// The same within half-warps, whose halves are at different places in time.
GPU_KERNEL correct_half_warps(const float* in, float* out, uint32_t) {
  GPU_DYN_SHARED(memory);
  gpu::carver carve(memory);
  float* s = carve.take<float>(128);
  const u32 mask = THREAD & 16 ? 0xffff0000u : 0x0000ffffu;
  const int turns = THREAD & 16 ? 5 : 2;
  float sum = 0;
  for (int i = 0; i < turns; i++) {
    s[THREAD] = in[ELEMENT];
    __syncwarp(mask);
    sum += s[THREAD ^ 3] + __shfl_xor_sync(mask, in[ELEMENT], 1);
    __syncwarp(mask);
  }
  __syncwarp();
  out[ELEMENT] = sum + s[THREAD ^ 16];
}
GPU_EXPORT(correct_half_warps);

/// Shuffles, votes and reductions of every form.
GPU_KERNEL correct_collectives(const float* in, float* out, uint32_t n) {
  float x = in[ELEMENT];
  x += __shfl_sync(~0u, x, 3) + __shfl_up_sync(~0u, x, 1) + __shfl_down_sync(~0u, x, 2) +
       __shfl_xor_sync(~0u, x, 4);
  x += __shfl_sync(~0u, x, 9, 8) + __shfl_down_sync(~0u, x, 3, 4);
  const double wide = __shfl_xor_sync(~0u, double(x), 16);
  x += float(wide) + float(__popc(__ballot_sync(~0u, THREAD % 3 == 0)));
  x += float(__any_sync(~0u, THREAD == 5)) + float(__all_sync(~0u, n == 128));
  x += float(__reduce_add_sync(~0u, THREAD)) + float(__reduce_max_sync(~0u, THREAD));
  out[ELEMENT] = x;
}
GPU_EXPORT(correct_collectives);

/// Block reductions that use one scratch array twice.
GPU_KERNEL correct_block_reductions(const float* in, float* out, uint32_t) {
  GPU_DYN_SHARED(memory);
  gpu::carver carve(memory);
  float* scratch = carve.take<float>(4);
  const float x = in[ELEMENT];
  out[ELEMENT] = gpu::block_sum(x, scratch) + gpu::block_max(x, scratch);
}
GPU_EXPORT(correct_block_reductions);

/// Two groups of copies in flight, each waited for and published by a barrier; zero fill.
GPU_KERNEL correct_copies(const float* in, float* out, uint32_t) {
  GPU_DYN_SHARED(memory);
  gpu::carver carve(memory);
  float* a = carve.take<float>(512);
  float* b = carve.take<float>(128);
  const float* mine = in + blockIdx.x * blockDim.x;
  gpu::copy_async_16(a + 4 * THREAD, mine + 4 * (THREAD % 32), THREAD < 32 ? 16 : 4);
  gpu::copy_async_commit();
  gpu::copy_async_4(b + THREAD, mine + THREAD);
  gpu::copy_async_commit();
  gpu::copy_async_wait<1>();
  __syncthreads();
  float sum = a[511 - THREAD] + a[THREAD];
  gpu::copy_async_wait_all();
  __syncthreads();
  out[ELEMENT] = sum + b[127 - THREAD];
}
GPU_EXPORT(correct_copies);

/// Atomics of all threads of all blocks on one address; a predicate counted by the barrier.
GPU_KERNEL correct_atomics(const float*, float* out, uint32_t n) {
  const int even = __syncthreads_count(THREAD % 2 == 0);
  if (THREAD < n) atomicAdd(out, float(even));
}
GPU_EXPORT(correct_atomics);

/// The last block to finish reads what the others wrote, published by a fence and an atomic count.
GPU_KERNEL correct_last_block(const float* in, float* out, uint32_t) {
  GPU_DYN_SHARED(memory);
  gpu::carver carve(memory);
  float* scratch = carve.take<float>(4);
  u32* last = carve.take<u32>(1);
  const float sum = gpu::block_sum(in[ELEMENT], scratch);
  if (THREAD == 0) {
    out[1 + blockIdx.x] = sum;
    __threadfence();
    *last = atomicAdd(reinterpret_cast<int*>(out), 1) == int(gridDim.x) - 1;
  }
  __syncthreads();
  if (*last && THREAD < 32) out[32 + THREAD] = out[1] + out[2];
}
GPU_EXPORT(correct_last_block);

/// Warps that leave early where no barrier follows, and a block whose shared arrays differ in type and
/// alignment.
GPU_KERNEL correct_early_exit(const float* in, float* out, uint32_t) {
  GPU_DYN_SHARED(memory);
  gpu::carver carve(memory);
  uint8_t* bytes = carve.take<uint8_t>(130);
  double* wide = carve.take<double>(128, 128);
  bytes[THREAD] = uint8_t(THREAD);
  wide[THREAD] = double(in[ELEMENT]);
  out[ELEMENT] = 0;
  __syncthreads();
  if (THREAD >= 64) return;
  out[ELEMENT] = float(wide[THREAD ^ 1]) + float(bytes[THREAD ^ 2]);
}
GPU_EXPORT(correct_early_exit);
