// One fault of memory a kernel: bounds, alignment, initialisation. Launched like the kernels of correct.cu. A
// report must hold the text after the exclamation mark and name every line that has one, from any schedule of
// the check build.
#include "../../include/async_copy.cuh"
#include "../../include/mma.cuh"
#include "../../include/types.cuh"

using gpu::u32;

#define THREAD (threadIdx.x)
#define ELEMENT (blockIdx.x * blockDim.x + threadIdx.x)
#define SHARED_ARRAY(name, count) \
  GPU_DYN_SHARED(memory);         \
  gpu::carver carve(memory);      \
  float* name = carve.take<float>(count)

GPU_KERNEL fault_shared_write_behind_array(const float* in, float* out, uint32_t) {
  SHARED_ARRAY(s, 128);
  float* other = carve.take<float>(128);
  other[THREAD] = 0;
  __syncthreads();
  s[THREAD + 1] = in[ELEMENT];  //! out of bounds
  __syncthreads();
  out[ELEMENT] = other[THREAD];
}
GPU_EXPORT(fault_shared_write_behind_array);

GPU_KERNEL fault_shared_read_behind_array(const float* in, float* out, uint32_t) {
  SHARED_ARRAY(s, 128);
  s[THREAD] = in[ELEMENT];
  __syncthreads();
  out[ELEMENT] = s[THREAD + 1];  //! out of bounds
}
GPU_EXPORT(fault_shared_read_behind_array);

GPU_KERNEL fault_shared_far_behind(const float* in, float* out, uint32_t) {
  SHARED_ARRAY(s, 128);
  s[THREAD + 5000] = in[ELEMENT];  //! behind shared memory
  out[ELEMENT] = 0;
}
GPU_EXPORT(fault_shared_far_behind);

GPU_KERNEL fault_shared_across_end(const float* in, float* out, uint32_t) {
  SHARED_ARRAY(s, 126);
  if (THREAD < 126) s[THREAD] = in[ELEMENT];
  __syncthreads();
  out[ELEMENT] = THREAD < 32 ? gpu::load_16(s + 4 * THREAD).value[0] : 0;  //! out of bounds
}
GPU_EXPORT(fault_shared_across_end);

// The launch's shared memory is too small; there is no access yet, and so no line.
GPU_KERNEL fault_shared_layout_too_large(const float* in, float* out, uint32_t) {
  SHARED_ARRAY(s, 4096);
  s[THREAD] = in[ELEMENT];
  out[ELEMENT] = s[THREAD];
}
GPU_EXPORT(fault_shared_layout_too_large);

GPU_KERNEL fault_shared_uninitialised(const float*, float* out, uint32_t) {
  SHARED_ARRAY(s, 128);
  if (THREAD < 127) s[THREAD] = 1;
  __syncthreads();
  out[ELEMENT] = s[THREAD];  //! uninitialised
}
GPU_EXPORT(fault_shared_uninitialised);

GPU_KERNEL fault_shared_left_by_former_block(const float* in, float* out, uint32_t) {
  SHARED_ARRAY(s, 128);
  if (blockIdx.x == 0) s[THREAD] = in[ELEMENT];
  __syncthreads();
  out[ELEMENT] = s[THREAD];  //! uninitialised
}
GPU_EXPORT(fault_shared_left_by_former_block);

GPU_KERNEL fault_copy_zero_filled_too_little(const float* in, float* out, uint32_t) {
  SHARED_ARRAY(s, 512);
  if (THREAD < 100) gpu::copy_async_16(s + 4 * THREAD, in, 4);
  gpu::copy_async_wait_all();
  __syncthreads();
  out[ELEMENT] = s[4 * THREAD];  //! uninitialised
}
GPU_EXPORT(fault_copy_zero_filled_too_little);

GPU_KERNEL fault_global_read_behind(const float* in, float* out, uint32_t) {
  out[ELEMENT] = in[ELEMENT + 1];  //! out of bounds
}
GPU_EXPORT(fault_global_read_behind);

GPU_KERNEL fault_global_write_behind(const float* in, float* out, uint32_t) {
  out[ELEMENT + 1] = in[ELEMENT];  //! behind buffer out
}
GPU_EXPORT(fault_global_write_behind);

GPU_KERNEL fault_global_write_before(const float* in, float* out, uint32_t n) {
  out[int(ELEMENT) - int(n == 128)] = in[ELEMENT];  //! before buffer out
}
GPU_EXPORT(fault_global_write_before);

GPU_KERNEL fault_global_far(const float* in, float* out, uint32_t) {
  out[ELEMENT] = in[ELEMENT + (1 << 28)];  //! out of bounds
}
GPU_EXPORT(fault_global_far);

// The index wraps at 32 bits before it becomes an address.
GPU_KERNEL fault_global_index_wraps(const float* in, float* out, uint32_t n) {
  const u32 row = 0x80000001u + ELEMENT;
  out[ELEMENT] = in[size_t(row) * (n / 64) - size_t(row * (n / 64))];  //! out of bounds
}
GPU_EXPORT(fault_global_index_wraps);

GPU_KERNEL fault_global_uninitialised(const float* in, float* out, uint32_t) {
  out[ELEMENT] += in[ELEMENT];  //! uninitialised
}
GPU_EXPORT(fault_global_uninitialised);

GPU_KERNEL fault_null_pointer(const float* in, float* out, uint32_t n) {
  const float* bias = n == 128 ? nullptr : in;
  out[ELEMENT] = bias[ELEMENT];  //! null
}
GPU_EXPORT(fault_null_pointer);

GPU_KERNEL fault_misaligned_vector(const float* in, float* out, uint32_t) {
  const float4 v = *reinterpret_cast<const float4*>(in + THREAD / 2);  //! misaligned
  out[ELEMENT] = v.x + v.w;
}
GPU_EXPORT(fault_misaligned_vector);

GPU_KERNEL fault_misaligned_copy(const float* in, float* out, uint32_t) {
  SHARED_ARRAY(s, 512);
  gpu::copy_async_16(s + 4 * THREAD, in + THREAD);  //! misaligned
  gpu::copy_async_wait_all();
  out[ELEMENT] = s[4 * THREAD];
}
GPU_EXPORT(fault_misaligned_copy);

GPU_KERNEL fault_copy_source_behind(const float* in, float* out, uint32_t) {
  SHARED_ARRAY(s, 512);
  gpu::copy_async_16(s + 4 * THREAD, in + 4 * THREAD);  //! out of bounds
  gpu::copy_async_wait_all();
  out[ELEMENT] = s[4 * THREAD];
}
GPU_EXPORT(fault_copy_source_behind);

GPU_KERNEL fault_misaligned_ldmatrix(const float* in, float* out, uint32_t) {
  SHARED_ARRAY(s, 256);
  for (u32 i = THREAD; i < 256; i += 128) s[i] = in[0];
  __syncthreads();
  u32 r[4];
  gpu::ldmatrix_x4(r, s + THREAD % 32 * 6);  //! misaligned
  out[ELEMENT] = float(r[0]);
}
GPU_EXPORT(fault_misaligned_ldmatrix);

GPU_KERNEL fault_ldmatrix_rows_uninitialised(const float* in, float* out, uint32_t) {
  SHARED_ARRAY(s, 128);
  if (THREAD < 124) s[THREAD] = in[ELEMENT];
  __syncthreads();
  u32 r[4];
  gpu::ldmatrix_x4(r, s + THREAD % 32 * 4);  //! uninitialised
  out[ELEMENT] = float(r[0]);
}
GPU_EXPORT(fault_ldmatrix_rows_uninitialised);

GPU_KERNEL fault_local_array_index(const float* in, float* out, uint32_t n) {
  float a[4] = {1, 2, 3, 4};
  for (u32 i = 0; i <= n / 32; i++) a[i] += in[ELEMENT];  //! undefined behaviour
  out[ELEMENT] = a[0] + a[3];
}
GPU_EXPORT(fault_local_array_index);

GPU_KERNEL fault_shift_too_far(const float* in, float* out, uint32_t n) {
  out[ELEMENT] = in[ELEMENT] + float(1u << n);  //! undefined behaviour
}
GPU_EXPORT(fault_shift_too_far);
