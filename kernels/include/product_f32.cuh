// A block's part of a training product in F32: 64 x 64 sums over a stretch of k. Of every sixteen of k, one
// half of the threads adds up the first eight and the other half the rest, each in k order; at the end both
// sums are added.
#pragma once
#include "train.cuh"

namespace product_f32 {

using gpu::load_4;
using gpu::operand;
using gpu::u32;

constexpr u32 THREADS = 128, TILE = 64, DEPTH = 16, STRIDE = TILE + 4;
constexpr u32 GROUPS = TILE * DEPTH / 4 / THREADS;

struct layout {
  static constexpr u32 PLACE = DEPTH * STRIDE;
  float *a, *b;  // two places each, [k][STRIDE]: the 16-byte loads of a quarter warp lie side by side

  GPU_FN explicit layout(gpu::carver& carve) {
    a = carve.take<float>(2 * PLACE);
    b = carve.take<float>(2 * PLACE);
  }
};
static_assert(2 * layout::PLACE * sizeof(float) >= 512 * sizeof(double), "room for column sums");
static_assert(2 * layout::PLACE >= TILE / 2 * TILE, "room for half of the sums");

/// By rows, two lanes read a sector.
template <bool BY_ROWS>
struct part : gpu::fetched<part<BY_ROWS>, BY_ROWS, GROUPS> {
  GPU_FN static u32 row(u32 i) { return BY_ROWS ? threadIdx.x / 2 : threadIdx.x % 16 * 4; }
  GPU_FN static u32 k(u32 i) { return BY_ROWS ? 8 * i + threadIdx.x % 2 * 4 : 8 * i + threadIdx.x / 16; }

  GPU_FN void put(float* to) const {
#pragma unroll
    for (u32 i = 0; i < GROUPS; i++) {
      const float4 v = this->group[i];
      float* own = to + k(i) * STRIDE + row(i);
      if (BY_ROWS) {
        // Sixteen rows and two groups of k a warp: 32 banks.
        own[0] = v.x;
        own[STRIDE] = v.y;
        own[2 * STRIDE] = v.z;
        own[3 * STRIDE] = v.w;
      } else {
        gpu::store_4(own, v);
      }
    }
  }
};

/// A thread's sums: four rows by two groups of four columns of the tile.
struct sums {
  float sum[4][2][4];

  /// A thread's half of the threads, and its rows and columns.
  GPU_FN static u32 half() { return threadIdx.x / 64; }
  GPU_FN static u32 ty() { return threadIdx.x / 8 % 8; }
  GPU_FN static u32 tx() { return threadIdx.x % 8; }

  /// The products of two operands over k from `from` to `end`. All threads of the block together.
  template <bool A_BY_ROWS, bool B_BY_ROWS>
  GPU_FN void multiply(const layout& shared, const operand& a, const operand& b, u32 from, u32 end) {
    // Eight by eight sums of half of k: a value from shared memory goes into eight products. Rows 4 ty and
    // 32 + 4 ty, columns 4 tx and 32 + 4 tx.
    float wide[8][2][4] = {};
    gpu::by_chunks<part<A_BY_ROWS>, part<B_BY_ROWS>, DEPTH>(
        shared, a, b, from, end, [&](const float* chunk_a, const float* chunk_b) {
          const float* own_a = chunk_a + 8 * half() * STRIDE + 4 * ty();
          const float* own_b = chunk_b + 8 * half() * STRIDE + 4 * tx();
#pragma unroll
          for (u32 i = 0; i < DEPTH / 2; i++) {
            const float4 low = load_4(own_a + i * STRIDE), high = load_4(own_a + i * STRIDE + 32);
            const float x[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
            for (u32 g = 0; g < 2; g++) {
              const float4 w = load_4(own_b + i * STRIDE + 32 * g);
#pragma unroll
              for (u32 r = 0; r < 8; r++) {
                float* const to = wide[r][g];
                to[0] = __fmaf_rn(x[r], w.x, to[0]);
                to[1] = __fmaf_rn(x[r], w.y, to[1]);
                to[2] = __fmaf_rn(x[r], w.z, to[2]);
                to[3] = __fmaf_rn(x[r], w.w, to[3]);
              }
            }
          }
        });
    exchange(shared, wide);
  }

  /// Adds the sums of both halves: the first one keeps the upper 32 rows of the tile, the second the lower.
  GPU_FN void exchange(const layout& shared, const float (&wide)[8][2][4]) {
    const bool upper = half() == 0;
    const u32 own = 4 * (threadIdx.x % 64);
    float* const give = (upper ? shared.a : shared.b) + own;
    const float* const get = (upper ? shared.b : shared.a) + own;
    __syncthreads();  // The last chunk has been multiplied.
#pragma unroll
    for (u32 r = 0; r < 4; r++) {
#pragma unroll
      for (u32 g = 0; g < 2; g++) {
        float v[4];
#pragma unroll
        for (u32 c = 0; c < 4; c++) {
          v[c] = upper ? wide[4 + r][g][c] : wide[r][g][c];
          sum[r][g][c] = upper ? wide[r][g][c] : wide[4 + r][g][c];
        }
        gpu::store_4(give + (2 * r + g) * 256, make_float4(v[0], v[1], v[2], v[3]));
      }
    }
    __syncthreads();
#pragma unroll
    for (u32 r = 0; r < 4; r++) {
#pragma unroll
      for (u32 g = 0; g < 2; g++) {
        const float4 other = load_4(get + (2 * r + g) * 256);
        sum[r][g][0] += other.x;
        sum[r][g][1] += other.y;
        sum[r][g][2] += other.z;
        sum[r][g][3] += other.w;
      }
    }
  }

  GPU_FN void join(const sums& other) {
#pragma unroll
    for (u32 i = 0; i < 32; i++) sum[i / 8][i / 4 % 2][i % 4] += other.sum[i / 8][i / 4 % 2][i % 4];
  }

  /// Calls f with row, first column and values of each group of neighbouring sums.
  template <class F>
  GPU_FN void each(F f) const {
#pragma unroll
    for (u32 r = 0; r < 4; r++) {
#pragma unroll
      for (u32 g = 0; g < 2; g++) f(32 * half() + 4 * ty() + r, 32 * g + 4 * tx(), sum[r][g]);
    }
  }
};

}  // namespace product_f32
