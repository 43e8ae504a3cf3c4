// Rows of embeddings in boxes of shared memory (bulk_copy.cuh), as fragments of a product in BF16.
#pragma once
#include "bulk_copy.cuh"
#include "mma.cuh"
#include "types.cuh"

namespace gpu {

/// Values of a row in a stage; of F32 they lie in two boxes, side by side.
constexpr u32 BOX_DEPTH = 64;

/// Rows of type S. A fragment has 16 of them; which row of the box is which of the fragment is for the type
/// to say, as results of rows may leave in any order.
template <class S>
struct boxed_rows;

template <>
struct boxed_rows<bf16> {
  static constexpr u32 BOXES = 1;
  static constexpr bool AS_STORED = true;  // they are multiplied without a change

  /// Row, of the fragment's 16 in the box, of element i of a fragment of sums.
  GPU_FN static u32 row(u32 i) { return threadIdx.x % WARP / 4 + (i & 2 ? 8 : 0); }

  /// Values 16 k to 16 k + 15 of 16 rows from `first` on, a multiple of 8, as fragment A of m16n8k16. Boxes
  /// have so many rows.
  GPU_FN static void load(u32 (&x)[4], const unsigned char* box, u32 first, u32 k, u32) {
    const u32 lane = threadIdx.x % WARP;
    ldmatrix_x4(x, box + in_box(first, lane % 16, 2 * k + lane / 16));
  }
};

template <>
struct boxed_rows<f16> {
  static constexpr u32 BOXES = 1;
  static constexpr bool AS_STORED = false;

  GPU_FN static u32 row(u32 i) { return boxed_rows<bf16>::row(i); }
  GPU_FN static void load(u32 (&x)[4], const unsigned char* box, u32 first, u32 k, u32 rows) {
    boxed_rows<bf16>::load(x, box, first, k, rows);
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
      const f16 low = {u16(x[i])}, high = {u16(x[i] >> 16)};
      x[i] = pack_bf16(to_f32(low), to_f32(high));
    }
  }
};

template <>
struct boxed_rows<float> {
  static constexpr u32 BOXES = 2;
  static constexpr bool AS_STORED = false;

  /// Even rows first: half of a warp reads 32 bytes each of rows 0, 2, 4 and 6, or of 1, 3, 5 and 7, which
  /// the swizzle puts into different banks.
  GPU_FN static u32 row(u32 i) {
    const u32 g = threadIdx.x % WARP / 4;
    return g % 4 * 2 + g / 4 + (i & 2 ? 8 : 0);
  }
  GPU_FN static void load(u32 (&x)[4], const unsigned char* box, u32 first, u32 k, u32 rows) {
    const u32 t = threadIdx.x % 4;
    const unsigned char* const half = box + k / 2 * rows * BOX_ROW;
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
      const u32 unit = k % 2 * 4 + t / 2 + i / 2 * 2;
      const float2 v = load_2(
          reinterpret_cast<const float*>(half + in_box(first, row(i % 2 * 2), unit) + t % 2 * 8));
      x[i] = pack_bf16(v.x, v.y);
    }
  }
};

/// A stage of 64 columns: ROWS rows of type S, and behind them WIDE rows of a weight. Sizes in bytes.
template <class S, u32 ROWS, u32 WIDE>
struct boxed_stage {
  static constexpr u32 BOX = ROWS * BOX_ROW, BEHIND = boxed_rows<S>::BOXES * BOX,
                       BYTES = BEHIND + WIDE * BOX_ROW;

  /// Asks for the rows from (row, column) on.
  GPU_FN static void copy_rows(unsigned char* to, const params::tensor_map& from, u32 column, u32 row,
                               u64* full, u64 policy) {
#pragma unroll
    for (u32 b = 0; b < boxed_rows<S>::BOXES; b++)
      copy_box(to + b * BOX, from, column + b * BOX_DEPTH / 2, row, full, policy);
  }
};

}  // namespace gpu
