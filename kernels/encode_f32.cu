// archs: sm_75+
// Encoder: (mu, logvar) = W2 relu(W1 e + b1) + b2, and z = mu + exp(logvar / 2) eps where it is wanted
// embeddings [rows, dim] F32, F16 or BF16; W1 [hidden, dim], W2 [2 latent, hidden]; results [rows, latent]
// A block owns 64 rows at a time; a grid of any size gives the same bits
// 2 (dim hidden + 2 hidden latent) FLOP a row; reads the row once per 64 hidden units, writes 8 latent bytes
// Needs hidden and latent multiples of 16, and shared memory as src/backend/cuda/layout.rs counts it
// Exact: the bits of src/backend/cpu/infer.rs, `encode`, and of latent.rs, `start`, for z
// H200 by model, 2026-11, ns a row (d 4096): L1 13.8, issue 10.9, L2 4.62, DRAM 1.93; bound by L1 and issue
#include "include/mlp_exact.cuh"

namespace encode_f32 {

using gpu::relu;
using gpu::u32;
using gpu::u64;
using namespace gpu::exact;

struct layout {
  float *x, *w, *hidden, *code;

  GPU_FN layout(gpu::carver& carve, u32 size, u32 latent) {
    x = carve.take<float>(ROWS * CHUNK_STRIDE);
    w = carve.take<float>(OUTPUTS * CHUNK_STRIDE);
    hidden = carve.take<float>(size_t(ROWS) * stride_of(size));
    code = carve.take<float>(size_t(ROWS) * stride_of(2 * latent));
  }
};

template <class S>
GPU_FN void run(const params::encode<S, float>& p) {
  const gpu::codes out = {p.mu, p.logvar, p.z, p.noise};
  const u64 rows = p.rows;
  const u32 dim = p.dim, size = p.hidden, latent = p.latent;
  extern __shared__ __align__(1024) unsigned char memory[];
  gpu::carver carve(memory);
  const layout shared(carve, size, latent);
  for (u64 first = u64(blockIdx.x) * ROWS; first < rows; first += u64(gridDim.x) * ROWS) {
    for (u32 from = 0; from < size; from += OUTPUTS) {
      tile t;
#pragma unroll
      for (u32 j = 0; j < 4; j++) {
        const u32 output = from + output_of(j);
#pragma unroll
        for (u32 i = 0; i < 8; i++) t.sum[i][j] = output < size ? gpu::read(p.b1 + output) : 0.0f;
      }
      add_stored(t, shared.x, shared.w, p.embeddings, first, rows, p.w1, from, size, dim);
#pragma unroll
      for (u32 j = 0; j < 4; j++) {
        const u32 output = from + output_of(j);
        if (output >= size) continue;
#pragma unroll
        for (u32 i = 0; i < 8; i++) shared.hidden[row_of(i) * stride_of(size) + output] = relu(t.sum[i][j]);
      }
    }
    __syncthreads();
    const u32 code_stride = stride_of(2 * latent);
    for (u32 from = 0; from < 2 * latent; from += gpu::WARP) {
      const u32 output = from + threadIdx.x % gpu::WARP;
      column c;
      c.product(shared.hidden, stride_of(size), p.w2 + u64(output) * size, gpu::read(p.b2 + output), size);
#pragma unroll
      for (u32 i = 0; i < ROWS_OF_WARP; i++) shared.code[column::row(i) * code_stride + output] = c.sum[i];
    }
    __syncthreads();
    const u32 groups = latent / 4;
    for (u32 at = threadIdx.x; at < ROWS * groups; at += THREADS) {
      const u64 row = first + at / groups;
      if (row >= rows) break;
      out.store(shared.code + at / groups * code_stride, row, at % groups, latent);
    }
  }
}

}  // namespace encode_f32

#define KERNEL(name, S) \
  extern "C" __global__ void __launch_bounds__(gpu::exact::THREADS, 3) \
      name(const __grid_constant__ params::encode<S, float> p) { \
    encode_f32::run(p); \
  }
KERNEL(encode_f32_f32, float)
KERNEL(encode_f32_f16, gpu::f16)
KERNEL(encode_f32_bf16, gpu::bf16)
#undef KERNEL
