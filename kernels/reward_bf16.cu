// Rewards: r = w2 . relu(W1 e + b1) + b2 of embeddings; r = w2 . relu(F h(z) + f) + b2 of latents, folded
// embeddings [rows, dim], W1 [width, dim]; latents [count, latent], W [hidden, latent], F [width, hidden]
// Embeddings: a block owns 64 rows by 256 of width at a time; latents: a warp owns 16, weights stay put
// 2 dim width FLOP an embedding, read once per 256 of width; 2 (latent hidden + hidden width) a latent
// Needs hidden, latent and width multiples of 16, and shared memory as counted below
// Accuracy: operands and the decoder's hidden layer rounded to BF16, sums in F32: 2^-8 of summed magnitudes
// Reference: src/backend/cpu/infer.rs, `score`, `preactivations`, `score_latents`
// Measured under emulation only; bound by the tensor cores (embeddings), by noise and shared memory (latents)
#include "include/mlp_bf16.cuh"
#include "include/reduce.cuh"

namespace reward_bf16 {

using gpu::bf16;
using gpu::relu;
using gpu::u32;
using gpu::u64;
using namespace gpu::tensor;

// Four warps, two by two: 32 rows by 128 of width each.
constexpr u32 STAGES = 2, SIDE_BY_SIDE = 2, GROUPS = 8, WIDE = 16 * GROUPS * SIDE_BY_SIDE;

struct layout {
  bf16* stages;
  float* part;  // of each row, by the two halves of width

  GPU_BOTH explicit layout(gpu::carver& carve) {
    stages = carve.take<bf16>(stages_of(STAGES, WIDE));
    part = carve.take<float>(SIDE_BY_SIDE * ROWS);
  }
};

/// Sum over the four lanes that hold a row of a fragment.
GPU_FN float row_sum(float v) {
  v += __shfl_xor_sync(gpu::ALL_LANES, v, 1);
  return v + __shfl_xor_sync(gpu::ALL_LANES, v, 2);
}

template <class S>
GPU_FN void run(const S* embeddings, u64 rows, u32 dim, u32 width, const bf16* w1, const float* b1,
                const float* w2, float b2, float* out, float* pre) {
  GPU_DYN_SHARED(memory);
  gpu::carver carve(memory);
  const layout shared(carve);
  const u32 warp = threadIdx.x / gpu::WARP, own = warp / SIDE_BY_SIDE * 32, half = warp % SIDE_BY_SIDE;
  for (u64 first = u64(blockIdx.x) * ROWS; first < rows; first += u64(gridDim.x) * ROWS) {
    float part[2][2] = {};
    for (u32 from = 0; from < width; from += WIDE) {
      tile<2, GROUPS> t;
      t.clear();
      add_stored<STAGES, SIDE_BY_SIDE>(t, shared.stages, embeddings, first, rows, w1, from, width, dim);
#pragma unroll
      for (u32 n = 0; n < 2 * GROUPS; n++) {
        const u32 o = from + half * 16 * GROUPS + t.output(n, 0);
        if (o >= width) continue;
        const float bias[2] = {b1[o], b1[o + 1]}, weight[2] = {w2[o], w2[o + 1]};
#pragma unroll
        for (u32 r = 0; r < 2; r++) {
#pragma unroll
          for (u32 h = 0; h < 2; h++) {
            const float low = t.sum[r][n][2 * h] + bias[0], high = t.sum[r][n][2 * h + 1] + bias[1];
            const u64 row = first + own + t.row(r, 2 * h);
            if (pre && row < rows) *reinterpret_cast<float2*>(pre + row * width + o) = make_float2(low, high);
            part[r][h] += relu(low) * weight[0] + relu(high) * weight[1];
          }
        }
      }
    }
    if (!out) continue;
#pragma unroll
    for (u32 r = 0; r < 2; r++) {
#pragma unroll
      for (u32 h = 0; h < 2; h++) {
        const float sum = row_sum(part[r][h]);
        if (threadIdx.x % 4 == 0) shared.part[half * ROWS + own + tile<2, GROUPS>::row(r, 2 * h)] = sum;
      }
    }
    __syncthreads();
    if (threadIdx.x < ROWS && first + threadIdx.x < rows)
      out[first + threadIdx.x] = shared.part[threadIdx.x] + shared.part[ROWS + threadIdx.x] + b2;
    // add_stored's barrier stands between this and the next rows' parts.
  }
}

struct latent_layout {
  decoder_input input;
  bf16* folded;

  GPU_BOTH latent_layout(gpu::carver& carve, u32 hidden, u32 latent, u32 width)
      : input(carve, hidden, latent) {
    folded = carve.take<bf16>(size_t(width) * stride_of(hidden));
  }
};

}  // namespace reward_bf16

/// Bytes of shared memory that score_bf16_* are launched with, for any size.
inline size_t score_bf16_shared() {
  gpu::carver count;
  const reward_bf16::layout shared(count);
  return count.bytes();
}

/// Bytes of shared memory that score_latents_bf16 is launched with.
inline size_t score_latents_bf16_shared(uint32_t hidden, uint32_t latent, uint32_t width) {
  gpu::carver count;
  const reward_bf16::latent_layout shared(count, hidden, latent, width);
  return count.bytes();
}

GPU_KERNEL __launch_bounds__(gpu::tensor::THREADS)
    score_bf16_f32(const float* __restrict__ embeddings, uint64_t rows, uint32_t dim, uint32_t width,
                   const gpu::bf16* __restrict__ w1, const float* __restrict__ b1,
                   const float* __restrict__ w2, float b2, float* __restrict__ out,
                   float* __restrict__ pre) {
  reward_bf16::run(embeddings, rows, dim, width, w1, b1, w2, b2, out, pre);
}
GPU_EXPORT(score_bf16_f32);
GPU_EXPORT_SHARED(score_bf16_f32, score_bf16_shared);

GPU_KERNEL __launch_bounds__(gpu::tensor::THREADS)
    score_bf16_f16(const gpu::f16* __restrict__ embeddings, uint64_t rows, uint32_t dim, uint32_t width,
                   const gpu::bf16* __restrict__ w1, const float* __restrict__ b1,
                   const float* __restrict__ w2, float b2, float* __restrict__ out,
                   float* __restrict__ pre) {
  reward_bf16::run(embeddings, rows, dim, width, w1, b1, w2, b2, out, pre);
}
GPU_EXPORT(score_bf16_f16);
GPU_EXPORT_SHARED(score_bf16_f16, score_bf16_shared);

GPU_KERNEL __launch_bounds__(gpu::tensor::THREADS)
    score_bf16_bf16(const gpu::bf16* __restrict__ embeddings, uint64_t rows, uint32_t dim, uint32_t width,
                    const gpu::bf16* __restrict__ w1, const float* __restrict__ b1,
                    const float* __restrict__ w2, float b2, float* __restrict__ out,
                    float* __restrict__ pre) {
  reward_bf16::run(embeddings, rows, dim, width, w1, b1, w2, b2, out, pre);
}
GPU_EXPORT(score_bf16_bf16);
GPU_EXPORT_SHARED(score_bf16_bf16, score_bf16_shared);

/// base_pre [seeds, width] are the pre-activations of the seeds for residual scoring, null for plain.
GPU_KERNEL __launch_bounds__(gpu::tensor::THREADS)
    score_latents_bf16(gpu::latents source, uint64_t count, uint32_t latent, uint32_t hidden, uint32_t width,
                       const gpu::bf16* __restrict__ w1, const float* __restrict__ b1,
                       const gpu::bf16* __restrict__ folded, const float* __restrict__ folded_bias,
                       const float* __restrict__ w2, float b2, const float* __restrict__ base_pre,
                       const float* __restrict__ base_mu, float* __restrict__ out) {
  using namespace reward_bf16;
  GPU_DYN_SHARED(memory);
  gpu::carver carve(memory);
  const latent_layout shared(carve, hidden, latent, width);
  const u32 stride = stride_of(hidden);
  shared.input.load(w1, hidden, latent);
  copy_rows(shared.folded, stride, folded, 0, width, hidden, 0, hidden, width);
  gpu::copy_async_wait_all();
  __syncthreads();

  const u32 own = shared.input.first_row();
  for (u64 first = u64(blockIdx.x) * ROWS; first + own < count; first += u64(gridDim.x) * ROWS) {
    shared.input.fill(source, first, count, latent, hidden, b1, base_mu);
    u64 start[2] = {0, 0};
#pragma unroll
    for (u32 h = 0; h < 2; h++) {
      const u64 row = first + own + tile<1, 4>::row(0, 2 * h);
      if (base_pre && row < count) start[h] = u64(gpu::owner_of(source, row)) * width;
    }
    float part[2] = {};
    for (u32 from = 0; from < width; from += OUTPUTS) {
      const u32 left = width - from, wide = left < OUTPUTS ? left / 16 : OUTPUTS / 16;
      tile<1, OUTPUTS / 16> t;
      t.clear();
      t.add<true, true>(shared.input.hidden + own * stride, stride, shared.folded + from * stride, stride,
                        hidden, wide);
#pragma unroll
      for (u32 n = 0; n < OUTPUTS / 8; n++) {
        if (n >= 2 * wide) break;
        const u32 o = from + t.output(n, 0);
        const float weight[2] = {w2[o], w2[o + 1]};
#pragma unroll
        for (u32 h = 0; h < 2; h++) {
          const float* bias = base_pre ? base_pre + start[h] + o : folded_bias + o;
          part[h] += relu(t.sum[0][n][2 * h] + bias[0]) * weight[0];
          part[h] += relu(t.sum[0][n][2 * h + 1] + bias[1]) * weight[1];
        }
      }
    }
#pragma unroll
    for (u32 h = 0; h < 2; h++) {
      const float sum = row_sum(part[h]);
      const u64 row = first + own + tile<1, 4>::row(0, 2 * h);
      if (threadIdx.x % 4 == 0 && row < count) out[row] = sum + b2;
    }
  }
}
GPU_EXPORT(score_latents_bf16);
GPU_EXPORT_SHARED(score_latents_bf16, score_latents_bf16_shared);
