// A block's part of a training product in F32: 64 x 64 sums over a stretch of k, in k order.
#pragma once
#include "train.cuh"

namespace product_f32 {

using gpu::load_4;
using gpu::u32;
using gpu::u64;

constexpr u32 THREADS = 128, TILE = 64, DEPTH = 16, STRIDE = TILE + 4;
constexpr u32 GROUPS = TILE * DEPTH / 4 / THREADS;
static_assert(DEPTH * STRIDE * sizeof(float) >= 512 * sizeof(double), "room for column sums");

struct layout {
  float *a, *b;  // [k][STRIDE]: the 16-byte loads of a quarter warp lie side by side

  GPU_FN explicit layout(gpu::carver& carve) {
    a = carve.take<float>(DEPTH * STRIDE);
    b = carve.take<float>(DEPTH * STRIDE);
  }
};

/// A thread's part of 64 rows by 16 of k, on its way from global to shared memory. By rows: k runs along a
/// row of the source, of which two lanes read a sector; else k counts its rows.
template <bool BY_ROWS>
struct part {
  float4 group[GROUPS];

  GPU_FN void fetch(const float* from, u32 ld, u32 row, u32 rows, u32 k, u32 end) {
    const bool vector = ld % 4 == 0;
#pragma unroll
    for (u32 i = 0; i < GROUPS; i++) {
      const u32 at = threadIdx.x + i * THREADS;
      if (BY_ROWS) {
        const u32 r = row + at / 2 % TILE, c = k + at / (2 * TILE) * 8 + at % 2 * 4;
        group[i] = gpu::load_up_to_4(from + u64(r) * ld + c, r < rows ? gpu::below(end, c) : 0, vector);
      } else {
        const u32 c = k + at / 16, r = row + at % 16 * 4;
        group[i] = gpu::load_up_to_4(from + u64(c) * ld + r, c < end ? gpu::below(rows, r) : 0, vector);
      }
    }
  }

  GPU_FN void put(float* to) const {
#pragma unroll
    for (u32 i = 0; i < GROUPS; i++) {
      const u32 at = threadIdx.x + i * THREADS;
      if (BY_ROWS) {
        // Sixteen rows and two groups of k a warp: 32 banks.
        float* column = to + (at / (2 * TILE) * 8 + at % 2 * 4) * STRIDE + at / 2 % TILE;
        column[0] = group[i].x;
        column[STRIDE] = group[i].y;
        column[2 * STRIDE] = group[i].z;
        column[3 * STRIDE] = group[i].w;
      } else {
        gpu::store_4(to + at / 16 * STRIDE + at % 16 * 4, group[i]);
      }
    }
  }
};

/// A thread's sums: eight rows by four columns of the tile.
struct sums {
  float sum[8][4];

  GPU_FN void clear() {
#pragma unroll
    for (u32 r = 0; r < 8; r++) {
#pragma unroll
      for (u32 c = 0; c < 4; c++) sum[r][c] = 0.0f;
    }
  }

  /// Adds the products of two operands over k from `from` to `end`: rows `row` .. below `m` of a, columns
  /// `column` .. below `n`. All threads of the block together.
  template <bool A_BY_ROWS, bool B_BY_ROWS>
  GPU_FN void add(const layout& shared, const float* pa, u32 lda, u32 row, u32 m, const float* pb, u32 ldb,
                  u32 column, u32 n, u32 from, u32 end) {
    const u32 ty = threadIdx.x / 16, tx = threadIdx.x % 16;
    // The same for the whole block: rows past the limit are zeros without work.
    if (row >= m || from >= end) return;
    part<A_BY_ROWS> a;
    part<B_BY_ROWS> b;
    a.fetch(pa, lda, row, m, from, end);
    b.fetch(pb, ldb, column, n, from, end);
    for (u32 k = from; k < end; k += DEPTH) {
      __syncthreads();
      a.put(shared.a);
      b.put(shared.b);
      __syncthreads();
      if (k + DEPTH < end) {
        a.fetch(pa, lda, row, m, k + DEPTH, end);
        b.fetch(pb, ldb, column, n, k + DEPTH, end);
      }
#pragma unroll
      for (u32 i = 0; i < DEPTH; i++) {
        const float4 low = load_4(shared.a + i * STRIDE + 4 * ty);
        const float4 high = load_4(shared.a + i * STRIDE + 32 + 4 * ty);
        const float4 w = load_4(shared.b + i * STRIDE + 4 * tx);
        const float x[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
        for (u32 r = 0; r < 8; r++) {
          sum[r][0] = __fmaf_rn(x[r], w.x, sum[r][0]);
          sum[r][1] = __fmaf_rn(x[r], w.y, sum[r][1]);
          sum[r][2] = __fmaf_rn(x[r], w.z, sum[r][2]);
          sum[r][3] = __fmaf_rn(x[r], w.w, sum[r][3]);
        }
      }
    }
  }

  GPU_FN void join(const sums& other) {
#pragma unroll
    for (u32 r = 0; r < 8; r++) {
#pragma unroll
      for (u32 c = 0; c < 4; c++) sum[r][c] += other.sum[r][c];
    }
  }

  /// Calls f with row, first column and values of each group of neighbouring sums.
  template <class F>
  GPU_FN void each(F f) const {
    const u32 ty = threadIdx.x / 16, tx = threadIdx.x % 16;
#pragma unroll
    for (u32 r = 0; r < 8; r++) f(r < 4 ? 4 * ty + r : 28 + 4 * ty + r, 4 * tx, sum[r]);
  }
};

}  // namespace product_f32
