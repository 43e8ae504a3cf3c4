// Operands of training products, F32 in memory, on their way to shared memory; values that may be missing.
#pragma once
#include "types.cuh"

namespace gpu {

/// How far `limit` is ahead, 0 from there on.
GPU_FN u32 below(u32 limit, u32 at) { return limit > at ? limit - at : 0; }

/// Four values, of which `there` exist; the others are 0.
GPU_FN float4 load_up_to_4(const float* at, u32 there, bool vector) {
  if (there >= 4 && vector) return load_4(at);
  return make_float4(there > 0 ? at[0] : 0.0f, there > 1 ? at[1] : 0.0f, there > 2 ? at[2] : 0.0f,
                     there > 3 ? at[3] : 0.0f);
}

/// The same of COUNT values, two or four, on a multiple of as many.
template <u32 COUNT>
GPU_FN void load_up_to(float (&v)[COUNT], const float* at, u32 there, bool vector) {
  if (there >= COUNT && vector) {
    if constexpr (COUNT == 4) {
      const float4 all = load_4(at);
      v[0] = all.x;
      v[1] = all.y;
      v[2] = all.z;
      v[3] = all.w;
    } else {
      const float2 both = load_2(at);
      v[0] = both.x;
      v[1] = both.y;
    }
  } else {
#pragma unroll
    for (u32 i = 0; i < COUNT; i++) v[i] = i < there ? at[i] : 0.0f;
  }
}

/// Stores those of them that exist.
template <u32 COUNT>
GPU_FN void store_up_to(float* to, const float (&v)[COUNT], u32 there, bool vector) {
  if (there >= COUNT && vector) {
    if constexpr (COUNT == 4)
      store_4(to, make_float4(v[0], v[1], v[2], v[3]));
    else
      *reinterpret_cast<float2*>(to) = make_float2(v[0], v[1]);
  } else {
#pragma unroll
    for (u32 i = 0; i < COUNT; i++)
      if (i < there) to[i] = v[i];
  }
}

/// The part of an operand that a tile of a product needs: rows `first` .. below `limit` of it, over k. By
/// rows, k runs along a row of memory, else from row to row; `ld` values from one row of memory to the next.
struct operand {
  const float* at;
  u32 ld, first, limit;
};

/// A thread's share of a chunk, 64 rows of an operand by some of k, on its way through registers: groups of
/// four values along a row of memory. PART says where in the chunk group i lies: row(i), k(i).
template <class PART, bool BY_ROWS, u32 GROUPS>
struct fetched {
  float4 group[GROUPS];

  GPU_FN void fetch(const operand& from, u32 k, u32 end) {
    const bool vector = from.ld % 4 == 0;
#pragma unroll
    for (u32 i = 0; i < GROUPS; i++) {
      const u32 r = from.first + PART::row(i), c = k + PART::k(i);
      if (BY_ROWS) {
        const u32 there = r < from.limit ? below(end, c) : 0;
        group[i] = load_up_to_4(from.at + u64(r) * from.ld + c, there, vector);
      } else {
        const u32 there = c < end ? below(from.limit, r) : 0;
        group[i] = load_up_to_4(from.at + u64(c) * from.ld + r, there, vector);
      }
    }
  }
};

/// Brings two operands through shared memory, chunk by chunk of k from `from` to `end`, and calls
/// multiply(a, b) with each. While a chunk is multiplied, the next one is on its way in registers; it goes to
/// the other one of two places, so that a chunk takes one barrier. `shared` has the places, A and B are the
/// parts of a thread. All threads of the block together.
template <class A, class B, u32 DEPTH, class LAYOUT, class F>
GPU_FN void by_chunks(const LAYOUT& shared, const operand& a, const operand& b, u32 from, u32 end,
                      F multiply) {
  // The same for the whole block: rows past the limit are zeros without work.
  if (a.first >= a.limit || from >= end) return;
  A next_a;
  B next_b;
  next_a.fetch(a, from, end);
  next_b.fetch(b, from, end);
  __syncthreads();  // Until here others may read what was there before.
  bool second = false;
  for (u32 k = from; k < end; k += DEPTH, second = !second) {
    // A choice of pointers: behind an index the compiler no longer sees that 16 bytes can be stored at once.
    auto* const to_a = second ? shared.a + LAYOUT::PLACE : shared.a;
    auto* const to_b = second ? shared.b + LAYOUT::PLACE : shared.b;
    next_a.put(to_a);
    next_b.put(to_b);
    __syncthreads();
    if (k + DEPTH < end) {
      next_a.fetch(a, k + DEPTH, end);
      next_b.fetch(b, k + DEPTH, end);
    }
    multiply(to_a, to_b);
  }
}

}  // namespace gpu
