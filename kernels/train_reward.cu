// archs: sm_75+
// Reward training between the products: folded hidden rows, the head, the Bradley-Terry loss, its gradients
// rows [2 batch] of (part, source, latent, pair), the part's lowest bit the side; act, dpre [2 batch, width]
// Heads of an ensemble lie side by side: column j of width is of head j / units; a linear head is a column
// A warp owns a row, a thread a column of the backward pass; rows past the batch's end get zeros
// 2 latent hidden FLOP a synthetic row, 6 a value of act
// Needs latent and hidden multiples of 16, depth = hidden + 16
// Accuracy: losses, slopes and sums over the batch in F64, rounded once
// Reference: src/backend/cpu/train/{reward,samples}.rs
// H200 by model, 2026-11: among the 24.0 us of a reward step in BF16, 26.5 us with folded samples
#define LAUNCHES_START_EARLY
#include "include/latent.cuh"
#include "include/reduce.cuh"
#include "include/train.cuh"

namespace train_reward {

using gpu::u32;
using gpu::u64;
using params::step;

constexpr u32 THREADS = 128, WARPS = THREADS / gpu::WARP, NONE = 0xffffffffu;

/// W1 z + b1 of one output, behind its ReLU.
GPU_FN float hidden_of(const float* z, const float* w, float bias, u32 latent) {
  float sum = bias;
  for (u32 j = 0; j < latent; j++) sum = __fmaf_rn(z[j], w[j], sum);
  return gpu::relu(sum);
}

/// -log sigmoid(r(a) - r(b)) of each pair by a head, losses [heads, batch], and its slope by each row's
/// reward, slope [heads, 2 batch]; db2 [heads], the sum of a head's slopes, is 0, as they cancel in pairs, or
/// null. `slots`: the rows of a pair's two sides. `own`: the head's rewards, which other blocks wrote.
GPU_FN void pair_losses(const params::reward_head& p, u32 head, const float* own) {
  const uint2* __restrict__ slots = p.slots;
  const step now = gpu::running(p.now);
  const u32 batch = p.batch;
  float* const slopes = p.slope + u64(head) * 2 * batch;
  double* const losses = p.losses + u64(head) * batch;
  for (u32 r = threadIdx.x; r < 2 * batch; r += THREADS) slopes[r] = 0.0f;
  __syncthreads();
  for (u32 pair = threadIdx.x; pair < batch; pair += THREADS) {
    double loss = 0.0;
    if (pair < now.pairs) {
      const uint2 at = slots[now.first + pair];
      const double margin = double(own[at.x]) - double(own[at.y]);
      // Without overflow for either sign.
      loss = (margin < 0.0 ? -margin : 0.0) + ::log1p(::exp(margin < 0.0 ? margin : -margin));
      // A margin that is no number must not look like a small loss.
      if (margin != margin) loss = margin;
      const double down = -1.0 / (1.0 + ::exp(margin)) / double(now.pairs);
      slopes[at.x] = float(down);
      slopes[at.y] = -float(down);
    }
    losses[pair] = loss;
  }
  if (p.db2 && threadIdx.x == 0) p.db2[head] = 0.0f;
}

}  // namespace train_reward

/// The decoder's hidden layer of each row's latent, h(z) or h(z) - h(mu of the seed); in the column behind it
/// 1 where the decoder's bias takes part (plain), so that one product gives (W D) h + W c. Zeros without a
/// latent. out [2 batch, hidden + 16]
extern "C" __global__ void __launch_bounds__(train_reward::THREADS)
    reward_hidden(const __grid_constant__ params::reward_hidden p) {
  gpu::begin_early();
  using namespace train_reward;
  const uint4* __restrict__ rows = p.rows;
  const step now = gpu::running(p.now);
  const float *__restrict__ w1 = p.w1, *__restrict__ b1 = p.b1;
  float* __restrict__ out = p.out;
  const params::samples& of = p.of;
  const u32 batch = p.batch, hidden = p.hidden, latent = p.latent;
  const u32 lane = threadIdx.x % gpu::WARP, depth = hidden + 16;
  for (u32 r = blockIdx.x * WARPS + threadIdx.x / gpu::WARP; r < 2 * batch; r += gridDim.x * WARPS) {
    const uint4 row = rows[u64(2) * now.first + r];
    const u32 side = row.x & 1u;
    const bool there = row.z != NONE;
    const float* mu = gpu::pick(of.mu, side);
    const float* own = there ? gpu::pick(of.z, side) + u64(row.z) * latent : nullptr;
    const float* seed = there && mu ? mu + u64(gpu::pick(of.owners, side)[row.z]) * latent : nullptr;
    for (u32 j = lane; j < depth; j += gpu::WARP) {
      float value = 0.0f;
      if (there && j < hidden) {
        value = hidden_of(own, w1 + u64(j) * latent, b1[j], latent);
        if (seed) value -= hidden_of(seed, w1 + u64(j) * latent, b1[j], latent);
      } else if (there && j == hidden && !mu) {
        value = 1.0f;
      }
      out[u64(r) * depth + j] = value;
    }
  }
}

/// r = w2 . act + b2 of each row by each head, reward [heads, 2 batch]; of linear heads, where w2 is null,
/// r = act. The block of a head that finishes last goes on to its losses.
extern "C" __global__ void __launch_bounds__(train_reward::THREADS)
    reward_head(const __grid_constant__ params::reward_head p) {
  gpu::begin_early();
  using namespace train_reward;
  const float *__restrict__ act = p.act, *__restrict__ w2 = p.w2, *__restrict__ b2 = p.b2;
  const u32 rows = 2 * p.batch, heads = p.heads, units = p.units;
  const u32 lane = threadIdx.x % gpu::WARP, width = heads * units, stretches = (rows + WARPS - 1) / WARPS;
  for (u32 i = blockIdx.x; i < heads * stretches; i += gridDim.x) {
    const u32 head = i / stretches, r = i % stretches * WARPS + threadIdx.x / gpu::WARP;
    float* const rewards = p.reward + u64(head) * rows;
    if (r < rows) {
      const float* own = act + u64(r) * width + head * units;
      float sum = 0.0f;
      if (w2) {
        for (u32 j = lane; j < units; j += gpu::WARP) sum = __fmaf_rn(own[j], w2[head * units + j], sum);
        sum = gpu::warp_sum(sum);
      }
      if (lane == 0) rewards[r] = w2 ? sum + b2[head] : own[0];
    }
    if (gpu::last_block(p.tickets + head, stretches)) pair_losses(p, head, rewards);
  }
}

/// dpre = slope w2 where act is positive, and its column sums db1; dw2 = the sum of slope act. Sums in F64.
/// Of linear heads, where w2 and dw2 are null, dpre = slope.
extern "C" __global__ void __launch_bounds__(256)
    reward_backward(const __grid_constant__ params::reward_backward p) {
  gpu::begin_early();
  using namespace train_reward;
  const float *__restrict__ act = p.act, *__restrict__ slope = p.slope, *__restrict__ w2 = p.w2;
  float *__restrict__ dpre = p.dpre, *__restrict__ db1 = p.db1, *__restrict__ dw2 = p.dw2;
  const u32 rows = p.rows, width = p.width, units = p.units;
  extern __shared__ __align__(1024) unsigned char memory[];
  gpu::carver carve(memory);
  double* bias_sums = carve.take<double>(256);
  double* weight_sums = carve.take<double>(256);
  // A warp takes 32 columns of every eighth row; the eight sums are added in their order.
  const u32 lane = threadIdx.x % 32, group = threadIdx.x / 32, column = blockIdx.x * 32 + lane;
  double bias = 0.0, weight = 0.0;
  if (column < width) {
    const float w = w2 ? w2[column] : 1.0f;
    const float* slopes = slope + u64(column / units) * rows;
    for (u32 row = group; row < rows; row += 8) {
      const u64 at = u64(row) * width + column;
      const float a = act[at], s = slopes[row], d = a > 0.0f || !w2 ? s * w : 0.0f;
      dpre[at] = d;
      bias += double(d);
      weight = __fma_rn(double(s), double(a), weight);
    }
  }
  bias_sums[threadIdx.x] = bias;
  weight_sums[threadIdx.x] = weight;
  __syncthreads();
  if (group == 0 && column < width) {
    for (u32 g = 1; g < 8; g++) {
      bias += bias_sums[32 * g + lane];
      weight += weight_sums[32 * g + lane];
    }
    db1[column] = float(bias);
    if (dw2) dw2[column] = float(weight);
  }
}
