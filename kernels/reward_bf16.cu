// Rewards: r = w2 . relu(W1 e + b1) + b2 of embeddings; r = w2 . relu(F h(z) + f) + b2 of latents, folded
// embeddings [rows, dim], W1 [width, dim]; latents [count, latent], W [hidden, latent], F [width, hidden]
// Embeddings: a block owns 64 rows by 256 of width at a time; latents: a warp owns 32, weights stay put
// 2 dim width FLOP an embedding, read once per 256 of width; 2 (latent hidden + hidden width) a latent
// Needs hidden, latent and width multiples of 16, and shared memory as src/backend/cuda/layout.rs counts it
// Accuracy: operands and the decoder's hidden layer rounded to BF16, sums in F32: 2^-8 of summed magnitudes
// Reference: src/backend/cpu/infer.rs, `score`, `preactivations`, `score_latents`
// H200 by model, 2026-11, ns at width 256: a row L2 7.33, L1 3.68, tensor 3.11; a latent L1 0.08, issue 0.07
#include "include/decoder_bf16.cuh"
#include "include/reduce.cuh"

namespace reward_bf16 {

using gpu::bf16;
using gpu::load_2;
using gpu::read_2;
using gpu::relu_nan;
using gpu::u32;
using gpu::u64;
using namespace gpu::tensor;

// Four warps, two by two: 32 rows by 128 of width each.
constexpr u32 STAGES = 2, SIDE_BY_SIDE = 2, GROUPS = 8, WIDE = 16 * GROUPS * SIDE_BY_SIDE;

struct layout {
  bf16* stages;
  float* part;  // of each row, by the two halves of width

  GPU_FN explicit layout(gpu::carver& carve) {
    stages = carve.take<bf16>(stages_of(STAGES, WIDE));
    part = carve.take<float>(SIDE_BY_SIDE * ROWS);
  }
};

/// Sum over the four lanes that hold a row of a fragment.
GPU_FN float row_sum(float v) {
  v += __shfl_xor_sync(gpu::ALL_LANES, v, 1);
  return v + __shfl_xor_sync(gpu::ALL_LANES, v, 2);
}

template <bool ALIGNED, class S>
GPU_FN void score(const params::score<S, bf16>& p) {
  const u64 rows = p.rows;
  const u32 dim = p.dim, width = p.width;
  const float b2 = p.b2;
  extern __shared__ __align__(1024) unsigned char memory[];
  gpu::carver carve(memory);
  const layout shared(carve);
  const u32 warp = threadIdx.x / gpu::WARP, half = warp % SIDE_BY_SIDE, own = warp / SIDE_BY_SIDE * 32;
  for (u64 first = u64(blockIdx.x) * ROWS; first < rows; first += u64(gridDim.x) * ROWS) {
    float part[2][2] = {};
    for (u32 from = 0; from < width; from += WIDE) {
      const u32 ours = from + half * 16 * GROUPS;
      tile<2, GROUPS> t;
      t.start(p.b1 + ours, width > ours ? width - ours : 0);
      add_stored<ALIGNED, STAGES, SIDE_BY_SIDE>(t, shared.stages, p.embeddings, first, rows, p.w1, from,
                                                width, dim);
#pragma unroll
      for (u32 n = 0; n < 2 * GROUPS; n++) {
        const u32 o = ours + t.output(n, 0);
        if (o >= width) continue;
        const float2 weight = read_2(p.w2 + o);
#pragma unroll
        for (u32 r = 0; r < 2; r++) {
#pragma unroll
          for (u32 h = 0; h < 2; h++) {
            const float low = t.sum[r][n][2 * h], high = t.sum[r][n][2 * h + 1];
            const u64 row = first + own + t.row(r, 2 * h);
            const float2 act = make_float2(relu_nan(low), relu_nan(high));
            if (p.pre && row < rows)
              gpu::store_2(p.pre + row * width + o, p.relu ? act : make_float2(low, high));
            part[r][h] = __fmaf_rn(act.x, weight.x, part[r][h]);
            part[r][h] = __fmaf_rn(act.y, weight.y, part[r][h]);
          }
        }
      }
    }
    if (!p.out) continue;
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
      p.out[first + threadIdx.x] = shared.part[threadIdx.x] + shared.part[ROWS + threadIdx.x] + b2;
    // add_stored's barrier stands between this and the next rows' parts.
  }
}

template <class S>
GPU_FN void run(const params::score<S, bf16>& p) {
  if (p.dim % 8 == 0)
    score<true>(p);
  else
    score<false>(p);
}

struct latent_layout {
  decoder_input input;
  bf16* folded;
  float *bias, *weight;  // folded bias and second layer, [width]

  GPU_FN latent_layout(gpu::carver& carve, u32 hidden, u32 latent, u32 width)
      : input(carve, hidden, latent) {
    folded = carve.take<bf16>(size_t(width) * stride_of(hidden));
    bias = carve.take<float>(width);
    weight = carve.take<float>(width);
  }
};

/// Rewards of latents, with sizes that the caller knows more or less of: constants make the loops straight.
/// `whole`: the width is a multiple of 64.
GPU_FN void score_latents(const latent_layout& shared, const params::latents& source, u64 count, u32 latent,
                          u32 hidden, u32 width, bool whole, const float* b1, float b2, const float* base_pre,
                          const float* base_mu, float* out) {
  constexpr u32 R = LATENTS_OF_WARP / 16;
  using tile = gpu::tensor::tile<R, OUTPUTS / 16>;
  const u32 stride = stride_of(hidden), own = shared.input.first_row();
  for (u64 first = u64(blockIdx.x) * LATENTS; first + own < count; first += u64(gridDim.x) * LATENTS) {
    shared.input.fill(source, first, count, latent, hidden, b1, base_mu);
    u32 seed[2 * R];
#pragma unroll
    for (u32 i = 0; i < 2 * R; i++) {
      const u64 row = first + own + tile::row(i / 2, i % 2 * 2);
      seed[i] = base_pre && row < count ? gpu::owner_of(source, row) : 0;
    }
    float part[R][2] = {};
#pragma unroll 1
    for (u32 from = 0; from < width; from += OUTPUTS) {
      const u32 left = whole || width - from > OUTPUTS ? OUTPUTS : width - from, wide = left / 16;
      tile t;
      if (base_pre) {
#pragma unroll
        for (u32 n = 0; n < OUTPUTS / 8; n++) {
#pragma unroll
          for (u32 i = 0; i < 2 * R; i++) {
            const float* pre = base_pre + u64(seed[i]) * width + from + t.output(n, 0);
            const float2 base = n < 2 * wide ? read_2(pre) : make_float2(0.0f, 0.0f);
            t.sum[i / 2][n][i % 2 * 2] = base.x;
            t.sum[i / 2][n][i % 2 * 2 + 1] = base.y;
          }
        }
      } else {
        t.start_from_shared(shared.bias + from, left);
      }
      t.template add<true, true>(shared.input.hidden + own * stride, stride, shared.folded + from * stride,
                                 stride, hidden, wide);
#pragma unroll
      for (u32 n = 0; n < OUTPUTS / 8; n++) {
        if (n >= 2 * wide) break;
        const float2 weight = load_2(shared.weight + from + t.output(n, 0));
#pragma unroll
        for (u32 i = 0; i < 2 * R; i++) {
          float& sum = part[i / 2][i % 2];
          sum = __fmaf_rn(relu_nan(t.sum[i / 2][n][i % 2 * 2]), weight.x, sum);
          sum = __fmaf_rn(relu_nan(t.sum[i / 2][n][i % 2 * 2 + 1]), weight.y, sum);
        }
      }
    }
#pragma unroll
    for (u32 i = 0; i < 2 * R; i++) {
      const float sum = row_sum(part[i / 2][i % 2]);
      const u64 row = first + own + tile::row(i / 2, i % 2 * 2);
      if (threadIdx.x % 4 == 0 && row < count) out[row] = sum + b2;
    }
  }
}

}  // namespace reward_bf16

#define KERNEL(name, S) \
  extern "C" __global__ void __launch_bounds__(gpu::tensor::THREADS, 2) \
      name(const __grid_constant__ params::score<S, gpu::bf16> p) { \
    reward_bf16::run(p); \
  }
KERNEL(score_bf16_f32, float)
KERNEL(score_bf16_f16, gpu::f16)
KERNEL(score_bf16_bf16, gpu::bf16)
#undef KERNEL

extern "C" __global__ void __launch_bounds__(gpu::tensor::THREADS, 3)
    score_latents_bf16(const __grid_constant__ params::score_latents<gpu::bf16> p) {
  using namespace reward_bf16;
  const params::latents& source = p.source;
  const u64 count = p.count;
  const u32 latent = p.latent, hidden = p.hidden, width = p.width;
  const float b2 = p.b2;
  extern __shared__ __align__(1024) unsigned char memory[];
  gpu::carver carve(memory);
  const latent_layout shared(carve, hidden, latent, width);
  shared.input.load(p.w1, hidden, latent);
  copy_rows(shared.folded, stride_of(hidden), p.folded, 0, width, hidden, 0, hidden, width);
  for (u32 i = threadIdx.x; i < width; i += THREADS) {
    shared.bias[i] = gpu::read(p.folded_bias + i);
    shared.weight[i] = gpu::read(p.w2 + i);
  }
  gpu::copy_async_wait_all();
  __syncthreads();

  if (hidden == 64 && latent == 16 && width % OUTPUTS == 0 && !p.base_pre)
    score_latents(shared, source, count, 16, 64, width, true, p.b1, b2, nullptr, nullptr, p.out);
  else
    score_latents(shared, source, count, latent, hidden, width, false, p.b1, b2, p.base_pre, p.base_mu,
                  p.out);
}
