// archs: sm_75+
// Rewards: r = w2 . relu(W1 e + b1) + b2 of embeddings; r = w2 . relu(F h(z) + f) + b2 of latents, folded
// embeddings [rows, dim], W1 [width, dim]; latents [count, latent], W [hidden, latent], F [width, hidden]
// A block owns 64 rows or latents at a time; a grid of any size gives the same bits
// 2 dim width FLOP an embedding, which is read width / 64 times; 2 (latent hidden + hidden width) a latent
// Needs hidden, latent and width multiples of 16, and shared memory as src/backend/cuda/layout.rs counts it
// Exact: the bits of src/backend/cpu/infer.rs, `score`, `preactivations` and `score_latents`
// H200 by model, 2026-11, ns at d = 4096, width 256: a row L1 54.0, issue 43.9; a latent L1 1.04, issue 0.89
#include "include/mlp_exact.cuh"

namespace reward_f32 {

using gpu::relu;
using gpu::u32;
using gpu::u64;
using namespace gpu::exact;

struct layout {
  float *x, *w, *hidden;

  GPU_FN explicit layout(gpu::carver& carve) {
    x = carve.take<float>(ROWS * CHUNK_STRIDE);
    w = carve.take<float>(OUTPUTS * CHUNK_STRIDE);
    hidden = carve.take<float>(ROWS * stride_of(OUTPUTS));
  }
};

/// Puts a tile behind its ReLU where the head takes it from; all threads together. The barrier before is the
/// caller's.
GPU_FN void put_hidden(const tile& t, float* hidden) {
#pragma unroll
  for (u32 i = 0; i < 8; i++) {
#pragma unroll
    for (u32 j = 0; j < 4; j++) hidden[row_of(i) * stride_of(OUTPUTS) + output_of(j)] = relu(t.sum[i][j]);
  }
  __syncthreads();
}

template <class S>
GPU_FN void run(const params::score<S, float>& p) {
  float* out = p.out;
  const u64 rows = p.rows;
  const u32 dim = p.dim, width = p.width;
  const float b2 = p.b2;
  extern __shared__ __align__(1024) unsigned char memory[];
  gpu::carver carve(memory);
  const layout shared(carve);
  for (u64 first = u64(blockIdx.x) * ROWS; first < rows; first += u64(gridDim.x) * ROWS) {
    reward_head head;
    for (u32 from = 0; from < width; from += OUTPUTS) {
      tile t;
#pragma unroll
      for (u32 j = 0; j < 4; j++) {
        const u32 output = from + output_of(j);
#pragma unroll
        for (u32 i = 0; i < 8; i++) t.sum[i][j] = output < width ? gpu::read(p.b1 + output) : 0.0f;
      }
      // Its barriers also stand between the head's reads of the former outputs and what put_hidden writes.
      add_stored(t, shared.x, shared.w, p.embeddings, first, rows, p.w1, from, width, dim);
      if (p.pre) {
#pragma unroll
        for (u32 i = 0; i < 8; i++) {
          const u64 row = first + row_of(i);
#pragma unroll
          for (u32 j = 0; j < 4; j++) {
            const u32 output = from + output_of(j);
            if (row < rows && output < width)
              p.pre[row * width + output] = p.relu ? relu(t.sum[i][j]) : t.sum[i][j];
          }
        }
      }
      if (out) {
        put_hidden(t, shared.hidden);
        head.add(shared.hidden, p.w2, from, width);
      }
    }
    if (out) head.finish(out, b2, first, rows);
  }
}

struct latent_layout {
  decoder_input input;
  float *folded, *hidden;

  GPU_FN latent_layout(gpu::carver& carve, u32 size, u32 latent) : input(carve, size, latent) {
    folded = carve.take<float>(OUTPUTS * size_t(stride_of(size)));
    hidden = carve.take<float>(ROWS * stride_of(OUTPUTS));
  }
};

}  // namespace reward_f32

#define KERNEL(name, S) \
  extern "C" __global__ void __launch_bounds__(gpu::exact::THREADS, 3) \
      name(const __grid_constant__ params::score<S, float> p) { \
    reward_f32::run(p); \
  }
KERNEL(score_f32_f32, float)
KERNEL(score_f32_f16, gpu::f16)
KERNEL(score_f32_bf16, gpu::bf16)
#undef KERNEL

extern "C" __global__ void __launch_bounds__(gpu::exact::THREADS, 3)
    score_latents_f32(const __grid_constant__ params::score_latents<float> p) {
  using namespace reward_f32;
  const float* base_pre = p.base_pre;
  const params::latents& source = p.source;
  const u64 count = p.count;
  const u32 latent = p.latent, hidden = p.hidden, width = p.width;
  const float b2 = p.b2;
  extern __shared__ __align__(1024) unsigned char memory[];
  gpu::carver carve(memory);
  const latent_layout shared(carve, hidden, latent);
  const u32 stride = stride_of(hidden);
  for (u64 first = u64(blockIdx.x) * ROWS; first < count; first += u64(gridDim.x) * ROWS) {
    shared.input.fill(source, first, count, latent, hidden, p.w1, p.b1, p.base_mu);
    u64 start[8];
#pragma unroll
    for (u32 i = 0; i < 8; i++) {
      const u64 row = first + row_of(i);
      start[i] = base_pre && row < count ? u64(gpu::owner_of(source, row)) * width : 0;
    }
    reward_head head;
    for (u32 from = 0; from < width; from += OUTPUTS) {
      for (u32 at = threadIdx.x; at < OUTPUTS * (hidden / 4); at += THREADS) {
        const u32 output = from + at / (hidden / 4), k = at % (hidden / 4) * 4;
        const float4 none = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        gpu::store_4(shared.folded + at / (hidden / 4) * stride + k,
                     output < width ? gpu::read_4(p.folded + u64(output) * hidden + k) : none);
      }
      __syncthreads();
      tile t;
#pragma unroll
      for (u32 j = 0; j < 4; j++) {
        const u32 output = from + output_of(j);
        const float bias = output < width ? gpu::read(p.folded_bias + output) : 0.0f;
#pragma unroll
        for (u32 i = 0; i < 8; i++) {
          t.sum[i][j] = bias;
          if (base_pre && output < width) t.sum[i][j] = gpu::read(base_pre + start[i] + output);
        }
      }
      add_products(t, shared.input.hidden, stride, shared.folded, stride, hidden);
      put_hidden(t, shared.hidden);
      // The next outputs' weights go where all threads have read by now; their hidden values go where the
      // head has read once the barrier above was passed again.
      head.add(shared.hidden, p.w2, from, width);
    }
    head.finish(p.out, b2, first, count);
  }
}
