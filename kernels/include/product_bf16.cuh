// A block's part of a training product on tensor cores: 64 x 64 sums over a stretch of k; operands are F32 in
// memory and become BF16 on their way.
#pragma once
#include "mlp_bf16.cuh"
#include "train.cuh"

namespace product_bf16 {

using gpu::bf16;
using gpu::u32;
using gpu::u64;
using namespace gpu::tensor;

constexpr u32 TILE = 64, DEPTH = 32;
constexpr u32 GROUPS = TILE * DEPTH / 4 / THREADS;
static_assert(TILE * stride_of(DEPTH) * sizeof(bf16) >= 512 * sizeof(double), "room for column sums");

struct layout {
  bf16 *a, *b;  // 64 rows of 32 of k, or 32 of k by 64 rows

  GPU_FN explicit layout(gpu::carver& carve) {
    a = carve.take<bf16>(TILE * stride_of(DEPTH));
    b = carve.take<bf16>(TILE * stride_of(DEPTH));
  }
};

/// Values between rows of an operand in shared memory; 64 rows of 40 or 32 of 72 both fit 64 x 40.
constexpr GPU_FN u32 stride_in(bool by_rows) { return by_rows ? stride_of(DEPTH) : stride_of(TILE); }

/// A thread's part of 64 rows by 32 of k, on its way from global to shared memory. By rows: k runs along a
/// row of the source, of which eight lanes read 128 bytes; else k counts its rows.
template <bool BY_ROWS>
struct part {
  float4 group[GROUPS];

  /// The row of group `at` by rows: a half of a warp writes rows four apart, whose banks differ.
  GPU_FN static u32 row_of(u32 at) { return at / 64 * 8 + at / 8 % 2 * 4 + at / 16 % 4; }

  GPU_FN void fetch(const float* from, u32 ld, u32 row, u32 rows, u32 k, u32 end) {
    const bool vector = ld % 4 == 0;
#pragma unroll
    for (u32 i = 0; i < GROUPS; i++) {
      const u32 at = threadIdx.x + i * THREADS;
      if (BY_ROWS) {
        const u32 r = row + row_of(at), c = k + at % 8 * 4;
        group[i] = gpu::load_up_to_4(from + u64(r) * ld + c, r < rows ? gpu::below(end, c) : 0, vector);
      } else {
        const u32 c = k + at / 16, r = row + at % 16 * 4;
        group[i] = gpu::load_up_to_4(from + u64(c) * ld + r, c < end ? gpu::below(rows, r) : 0, vector);
      }
    }
  }

  GPU_FN void put(bf16* to) const {
#pragma unroll
    for (u32 i = 0; i < GROUPS; i++) {
      const u32 at = threadIdx.x + i * THREADS;
      const u32 place = BY_ROWS ? row_of(at) * stride_in(true) + at % 8 * 4
                                : at / 16 * stride_in(false) + at % 16 * 4;
      const float4 v = group[i];
      // One store of 8 bytes; of a pair of words the compiler makes two.
      *reinterpret_cast<u64*>(to + place) =
          u64(gpu::pack_bf16(v.z, v.w)) << 32 | gpu::pack_bf16(v.x, v.y);
    }
  }
};

/// A warp's sums: 32 x 32 of the tile.
struct sums : tile<2, 2> {
  GPU_FN static u32 own() { return threadIdx.x / gpu::WARP / 2 * 32; }
  GPU_FN static u32 aside() { return threadIdx.x / gpu::WARP % 2 * 32; }

  /// Adds the products of two operands over k from `from` to `end`: rows `row` .. below `m` of a, columns
  /// `column` .. below `n`. All threads of the block together.
  template <bool A_BY_ROWS, bool B_BY_ROWS>
  GPU_FN void add(const layout& shared, const float* pa, u32 lda, u32 row, u32 m, const float* pb, u32 ldb,
                  u32 column, u32 n, u32 from, u32 end) {
    // The same for the whole block: rows past the limit are zeros without work.
    if (row >= m || from >= end) return;
    part<A_BY_ROWS> x;
    part<B_BY_ROWS> w;
    x.fetch(pa, lda, row, m, from, end);
    w.fetch(pb, ldb, column, n, from, end);
    for (u32 k = from; k < end; k += DEPTH) {
      __syncthreads();
      x.put(shared.a);
      w.put(shared.b);
      __syncthreads();
      if (k + DEPTH < end) {
        x.fetch(pa, lda, row, m, k + DEPTH, end);
        w.fetch(pb, ldb, column, n, k + DEPTH, end);
      }
      const bf16* a = shared.a + (A_BY_ROWS ? own() * stride_in(true) : own());
      const bf16* b = shared.b + (B_BY_ROWS ? aside() * stride_in(true) : aside());
      tile::add<A_BY_ROWS, B_BY_ROWS>(a, stride_in(A_BY_ROWS), b, stride_in(B_BY_ROWS), DEPTH);
    }
  }

  GPU_FN void join(const sums& other) {
#pragma unroll
    for (u32 r = 0; r < 2; r++) {
#pragma unroll
      for (u32 n = 0; n < 4; n++) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) sum[r][n][i] += other.sum[r][n][i];
      }
    }
  }

  /// Calls f with row, first column and values of each group of neighbouring sums.
  template <class F>
  GPU_FN void each(F f) const {
#pragma unroll
    for (u32 r = 0; r < 2; r++) {
#pragma unroll
      for (u32 n = 0; n < 4; n++) {
#pragma unroll
        for (u32 h = 0; h < 2; h++) {
          const float v[2] = {sum[r][n][2 * h], sum[r][n][2 * h + 1]};
          f(own() + row(r, 2 * h), aside() + output(n, 0), v);
        }
      }
    }
  }
};

}  // namespace product_bf16
