// A block's part of a training product on tensor cores: 64 x 64 sums over a stretch of k; operands are F32 in
// memory and become BF16 on their way.
#pragma once
#include "mlp_bf16.cuh"
#include "train.cuh"

namespace product_bf16 {

using gpu::bf16;
using gpu::operand;
using gpu::u32;
using gpu::u64;
using namespace gpu::tensor;

constexpr u32 TILE = 64, DEPTH = 32;
constexpr u32 GROUPS = TILE * DEPTH / 4 / THREADS;

struct layout {
  static constexpr u32 PLACE = TILE * stride_of(DEPTH);
  bf16 *a, *b;  // two places each: 64 rows of 32 of k, or 32 of k by 64 rows

  GPU_FN explicit layout(gpu::carver& carve) {
    a = carve.take<bf16>(2 * PLACE);
    b = carve.take<bf16>(2 * PLACE);
  }
};
static_assert(2 * layout::PLACE * sizeof(bf16) >= 512 * sizeof(double), "room for column sums");

/// Values between rows of an operand in shared memory; 64 rows of 40 or 32 of 72 both fit 64 x 40.
constexpr GPU_FN u32 stride_in(bool by_rows) { return by_rows ? stride_of(DEPTH) : stride_of(TILE); }

/// By rows, eight lanes read 128 bytes, and a half of a warp writes rows four apart, whose banks differ.
template <bool BY_ROWS>
struct part : gpu::fetched<part<BY_ROWS>, BY_ROWS, GROUPS> {
  GPU_FN static u32 at(u32 i) { return threadIdx.x + i * THREADS; }
  GPU_FN static u32 row(u32 i) {
    return BY_ROWS ? at(i) / 64 * 8 + at(i) / 8 % 2 * 4 + at(i) / 16 % 4 : at(i) % 16 * 4;
  }
  GPU_FN static u32 k(u32 i) { return BY_ROWS ? at(i) % 8 * 4 : at(i) / 16; }

  GPU_FN void put(bf16* to) const {
#pragma unroll
    for (u32 i = 0; i < GROUPS; i++) {
      const u32 place = BY_ROWS ? row(i) * stride_in(true) + k(i) : k(i) * stride_in(false) + row(i);
      const float4 v = this->group[i];
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

  /// The products of two operands over k from `from` to `end`. All threads of the block together.
  template <bool A_BY_ROWS, bool B_BY_ROWS>
  GPU_FN void multiply(const layout& shared, const operand& a, const operand& b, u32 from, u32 end) {
    clear();
    gpu::by_chunks<part<A_BY_ROWS>, part<B_BY_ROWS>, DEPTH>(
        shared, a, b, from, end, [&](const bf16* chunk_a, const bf16* chunk_b) {
          const bf16* x = chunk_a + (A_BY_ROWS ? own() * stride_in(true) : own());
          const bf16* w = chunk_b + (B_BY_ROWS ? aside() * stride_in(true) : aside());
          tile::add<A_BY_ROWS, B_BY_ROWS>(x, stride_in(A_BY_ROWS), w, stride_in(B_BY_ROWS), DEPTH);
        });
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
