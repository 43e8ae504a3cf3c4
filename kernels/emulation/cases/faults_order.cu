// One missing order a kernel: races through shared and global memory, and asynchronous copies used too early.
// Launched and marked like faults_memory.cu; a race names both of its lines.
#include "../../include/async_copy.cuh"

using gpu::u32;

#define THREAD (threadIdx.x)
#define ELEMENT (blockIdx.x * blockDim.x + threadIdx.x)
#define SHARED_ARRAY(name, count) \
  GPU_DYN_SHARED(memory);         \
  gpu::carver carve(memory);      \
  float* name = carve.take<float>(count)

GPU_KERNEL fault_barrier_missing(const float* in, float* out, uint32_t) {
  SHARED_ARRAY(s, 128);
  s[THREAD] = 0;
  __syncthreads();
  s[THREAD] = in[ELEMENT];         //! race
  out[ELEMENT] = s[127 - THREAD];  //! race
}
GPU_EXPORT(fault_barrier_missing);

GPU_KERNEL fault_barrier_missing_at_loop_end(const float* in, float* out, uint32_t) {
  SHARED_ARRAY(s, 128);
  float sum = 0;
  for (int i = 0; i < 2; i++) {
    s[THREAD] = in[ELEMENT] + float(i);  //! race
    __syncthreads();
    sum += s[127 - THREAD];  //! race
  }
  out[ELEMENT] = sum;
}
GPU_EXPORT(fault_barrier_missing_at_loop_end);

GPU_KERNEL fault_two_threads_write_one_place(const float* in, float* out, uint32_t) {
  SHARED_ARRAY(s, 128);
  s[THREAD / 2] = in[ELEMENT];  //! race
  __syncthreads();
  out[ELEMENT] = s[THREAD / 2];
}
GPU_EXPORT(fault_two_threads_write_one_place);

GPU_KERNEL fault_syncwarp_missing(const float* in, float* out, uint32_t) {
  SHARED_ARRAY(s, 128);
  s[THREAD] = 0;
  __syncthreads();
  s[THREAD] = in[ELEMENT];       //! race
  out[ELEMENT] = s[THREAD ^ 1];  //! race
}
GPU_EXPORT(fault_syncwarp_missing);

// A shuffle brings lanes together, but does not order their memory.
GPU_KERNEL fault_shuffle_for_syncwarp(const float* in, float* out, uint32_t) {
  SHARED_ARRAY(s, 128);
  s[THREAD] = 0;
  __syncthreads();
  s[THREAD] = in[ELEMENT];  //! race
  const float x = __shfl_xor_sync(~0u, in[ELEMENT], 1);
  out[ELEMENT] = x + s[THREAD ^ 1];  //! race
}
GPU_EXPORT(fault_shuffle_for_syncwarp);

GPU_KERNEL fault_syncwarp_for_syncthreads(const float* in, float* out, uint32_t) {
  SHARED_ARRAY(s, 128);
  s[THREAD] = 0;
  __syncthreads();
  s[THREAD] = in[ELEMENT];  //! race
  __syncwarp();
  out[ELEMENT] = s[THREAD ^ 32];  //! race
}
GPU_EXPORT(fault_syncwarp_for_syncthreads);

GPU_KERNEL fault_half_warp_sync(const float* in, float* out, uint32_t) {
  SHARED_ARRAY(s, 128);
  s[THREAD] = 0;
  __syncthreads();
  s[THREAD] = in[ELEMENT];  //! race
  __syncwarp(THREAD & 16 ? 0xffff0000u : 0x0000ffffu);
  out[ELEMENT] = s[THREAD ^ 16];  //! race
}
GPU_EXPORT(fault_half_warp_sync);

GPU_KERNEL fault_global_race_in_block(const float* in, float* out, uint32_t) {
  out[blockIdx.x] = in[ELEMENT];  //! race
}
GPU_EXPORT(fault_global_race_in_block);

GPU_KERNEL fault_global_race_between_blocks(const float* in, float* out, uint32_t) {
  if (THREAD == 0) out[0] = in[blockIdx.x];  //! race
}
GPU_EXPORT(fault_global_race_between_blocks);

GPU_KERNEL fault_blocks_read_and_write(const float* in, float* out, uint32_t) {
  if (blockIdx.x == 0) const_cast<float*>(in)[THREAD] = 1;  //! race
  out[ELEMENT] = in[THREAD];                                //! race
}
GPU_EXPORT(fault_blocks_read_and_write);

GPU_KERNEL fault_last_block_without_fence(const float* in, float* out, uint32_t) {
  SHARED_ARRAY(last, 1);
  if (THREAD == 0) {
    out[1 + blockIdx.x] = in[ELEMENT];  //! race
    *last = float(atomicAdd(reinterpret_cast<int*>(out), 1));
  }
  __syncthreads();
  if (*last == float(gridDim.x - 1) && THREAD == 0) out[32] = out[1] + out[2];  //! race
}
GPU_EXPORT(fault_last_block_without_fence);

GPU_KERNEL fault_atomic_beside_plain(const float*, float* out, uint32_t) {
  atomicAdd(out, 1.0f);                           //! race
  if (THREAD == 7) out[1 + blockIdx.x] = out[0];  //! race
}
GPU_EXPORT(fault_atomic_beside_plain);

GPU_KERNEL fault_copy_not_waited_for(const float* in, float* out, uint32_t) {
  SHARED_ARRAY(s, 512);
  gpu::copy_async_16(s + 4 * THREAD, in);  //! copy in flight
  gpu::copy_async_commit();
  __syncthreads();
  out[ELEMENT] = s[THREAD];  //! copy in flight
  gpu::copy_async_wait<0>();
}
GPU_EXPORT(fault_copy_not_waited_for);

GPU_KERNEL fault_copy_not_committed(const float* in, float* out, uint32_t) {
  SHARED_ARRAY(s, 512);
  gpu::copy_async_16(s + 4 * THREAD, in);  //! copy in flight
  gpu::copy_async_wait<0>();
  __syncthreads();
  out[ELEMENT] = s[THREAD];  //! copy in flight
  gpu::copy_async_wait_all();
}
GPU_EXPORT(fault_copy_not_committed);

// Two stages in flight, and the wait leaves one too many.
GPU_KERNEL fault_copy_waits_for_too_few(const float* in, float* out, uint32_t) {
  SHARED_ARRAY(s, 256);
  gpu::copy_async_4(s + THREAD, in + THREAD);
  gpu::copy_async_commit();
  gpu::copy_async_4(s + 128 + THREAD, in + THREAD);  //! copy in flight
  gpu::copy_async_commit();
  gpu::copy_async_wait<1>();
  __syncthreads();
  out[ELEMENT] = s[127 - THREAD] + s[255 - THREAD];  //! copy in flight
  gpu::copy_async_wait_all();
}
GPU_EXPORT(fault_copy_waits_for_too_few);

GPU_KERNEL fault_copy_without_barrier(const float* in, float* out, uint32_t) {
  SHARED_ARRAY(s, 128);
  s[THREAD] = 0;
  __syncthreads();
  gpu::copy_async_4(s + THREAD, in + THREAD);  //! race|copy in flight
  gpu::copy_async_wait_all();
  out[ELEMENT] = s[127 - THREAD];  //! race|copy in flight
}
GPU_EXPORT(fault_copy_without_barrier);

GPU_KERNEL fault_copy_over_what_is_read(const float* in, float* out, uint32_t) {
  SHARED_ARRAY(s, 128);
  s[THREAD] = 0;
  __syncthreads();
  out[ELEMENT] = s[127 - THREAD];              //! race|copy in flight
  gpu::copy_async_4(s + THREAD, in + THREAD);  //! race|copy in flight
  gpu::copy_async_wait_all();
}
GPU_EXPORT(fault_copy_over_what_is_read);

GPU_KERNEL fault_copy_left_in_flight(const float* in, float* out, uint32_t) {
  SHARED_ARRAY(s, 128);
  out[ELEMENT] = in[ELEMENT];
  gpu::copy_async_4(s + THREAD, in + THREAD);  //! in flight
  gpu::copy_async_commit();
}
GPU_EXPORT(fault_copy_left_in_flight);
