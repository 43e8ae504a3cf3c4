// Floors: reads of `in`, writes of `out`, copies from `in` to `out`, and products on BF16 tensor cores
// Shapes:   in, out [n] of 16 bytes; sums [threads] u32; operands [16, 32] u32; products [warps, 32, 4] F32
// Owns:     a thread owns words i, i + threads, ..., four at a time; a warp makes all of its products
// Costs:    16 bytes a word read or written, 32 copied; 8 products 16 x 8 x 16, 32,768 FLOP, a warp and round
// Requires: no overlap, arrays on multiples of 16 bytes, one-dimensional grid and blocks of whole warps
// Accuracy: reads are joined by XOR, writes depend on the place alone; sums of products in F32
// Reference: plain arithmetic in tests
// Measured on: nothing yet; mma.sync, whose peak is below that of wgmma on compute capability 9.0
#include "include/mma.cuh"
#include "include/params.cuh"
#include "include/read.cuh"

namespace floors {

using gpu::u32;
using gpu::u64;

constexpr u32 THREADS = 256;
/// Words of 16 bytes that a thread has under way.
constexpr u32 WAYS = 4;
/// Fragments of A and of B that a warp holds, and the products of each with each.
constexpr u32 LEFT = 2, RIGHT = 4;

GPU_FN u64 first() { return u64(blockIdx.x) * blockDim.x + threadIdx.x; }
GPU_FN u64 threads() { return u64(gridDim.x) * blockDim.x; }

GPU_FN u32 joined(uint4 v) { return v.x ^ v.y ^ v.z ^ v.w; }

/// What is written to word i: no two neighbours alike, so that nothing can be compressed on its way.
GPU_FN uint4 word(u64 i) {
  const u32 low = u32(i) * 0x9e3779b9u;
  return make_uint4(low, ~low, low ^ u32(i >> 32), low + 0x85ebca6bu);
}

}  // namespace floors

extern "C" __global__ void __launch_bounds__(floors::THREADS)
    floor_read(const __grid_constant__ params::floor p) {
  using namespace floors;
  const uint4* __restrict__ in = static_cast<const uint4*>(p.from);
  u32* __restrict__ sums = static_cast<u32*>(p.out);
  const u64 n = p.n;
  const u64 step = threads();
  u32 sum = 0;
  u64 i = first();
  for (; i + (WAYS - 1) * step < n; i += WAYS * step) {
    uint4 v[WAYS];
#pragma unroll
    for (u32 w = 0; w < WAYS; w++) v[w] = in[i + w * step];
#pragma unroll
    for (u32 w = 0; w < WAYS; w++) sum ^= joined(v[w]);
  }
  for (; i < n; i += step) sum ^= joined(in[i]);
  sums[first()] = sum;
}

extern "C" __global__ void __launch_bounds__(floors::THREADS)
    floor_write(const __grid_constant__ params::floor p) {
  using namespace floors;
  uint4* __restrict__ out = static_cast<uint4*>(p.out);
  const u64 n = p.n;
  for (u64 i = first(); i < n; i += threads()) out[i] = word(i);
}

extern "C" __global__ void __launch_bounds__(floors::THREADS)
    floor_copy(const __grid_constant__ params::floor p) {
  using namespace floors;
  const uint4* __restrict__ in = static_cast<const uint4*>(p.from);
  uint4* __restrict__ out = static_cast<uint4*>(p.out);
  const u64 n = p.n;
  const u64 step = threads();
  u64 i = first();
  for (; i + (WAYS - 1) * step < n; i += WAYS * step) {
    uint4 v[WAYS];
#pragma unroll
    for (u32 w = 0; w < WAYS; w++) v[w] = in[i + w * step];
#pragma unroll
    for (u32 w = 0; w < WAYS; w++) out[i + w * step] = v[w];
  }
  for (; i < n; i += step) out[i] = in[i];
}

/// Operands are fragments, register by register: those of LEFT matrices A, then those of RIGHT matrices B, so
/// 4 LEFT + 2 RIGHT = 16 rows of 32 lanes. products: the sum over all rounds and products, a fragment a warp.
extern "C" __global__ void __launch_bounds__(floors::THREADS)
    floor_mma_bf16(const __grid_constant__ params::floor p) {
  using namespace floors;
  const u32* operands = static_cast<const u32*>(p.from);
  float4* products = static_cast<float4*>(p.out);
  const u32 rounds = u32(p.n);
  const u32 lane = threadIdx.x % gpu::WARP;
  u32 a[LEFT][4], b[RIGHT][2];
#pragma unroll
  for (u32 i = 0; i < 4 * LEFT; i++) a[i / 4][i % 4] = gpu::read(operands + i * gpu::WARP + lane);
#pragma unroll
  for (u32 i = 0; i < 2 * RIGHT; i++)
    b[i / 2][i % 2] = gpu::read(operands + (4 * LEFT + i) * gpu::WARP + lane);
  float sum[LEFT][RIGHT][4] = {};
  for (u32 round = 0; round < rounds; round++) {
#pragma unroll
    for (u32 l = 0; l < LEFT; l++)
#pragma unroll
      for (u32 r = 0; r < RIGHT; r++) gpu::mma_m16n8k16_bf16(sum[l][r], a[l], b[r]);
  }
  float4 all = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
  for (u32 l = 0; l < LEFT; l++)
#pragma unroll
    for (u32 r = 0; r < RIGHT; r++) {
      all.x += sum[l][r][0];
      all.y += sum[l][r][1];
      all.z += sum[l][r][2];
      all.w += sum[l][r][3];
    }
  products[first()] = all;
}
