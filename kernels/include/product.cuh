// Training products of either precision, over the parts of a block in product_f32.cuh or product_bf16.cuh.
#pragma once
#include "train.cuh"

namespace gpu {

/// A block's tile and slice of a product. `LIMITS_K`: the limit is on k, else on m.
template <class SUMS, class LAYOUT, u32 TILE, u32 DEPTH, u32 THREADS>
struct product {
  template <bool A_BY_ROWS, bool B_BY_ROWS, bool LIMITS_K>
  GPU_FN static void run(const params::product& p, const place& place) {
    extern __shared__ __align__(1024) unsigned char memory[];
    carver carve(memory);
    const LAYOUT shared(carve);
    const share own = share::of<LIMITS_K>(p, place, DEPTH);
    SUMS t;
    t.template multiply<A_BY_ROWS, B_BY_ROWS>(shared, own.a, own.b, own.from, own.end);
    const bool whole = p.slices == 1;
    float* out = whole ? p.out : p.partial + u64(place.slice) * p.m * p.ldo;
    t.each([&](u32 r, u32 c, const auto& values) {
      constexpr u32 COUNT = sizeof(values) / sizeof(float);
      const u32 row = place.row + r, column = place.column + c, there = below(p.n, column);
      const u64 at = u64(row) * p.ldo + column;
      if (row >= p.m) return;
      float v[COUNT];
#pragma unroll
      for (u32 i = 0; i < COUNT; i++)
        v[i] = whole && i < there ? finished(p, values[i], at + i, column + i) : values[i];
      store_up_to(out + at, v, there, p.ldo % COUNT == 0);
    });
    if (!whole) join_slices<TILE, THREADS>(p, place);
  }

  /// Blocks of a group: column sums of a product, then its tiles by slices.
  GPU_FN static void run_group(const params::products& group) {
    u32 block;
    const params::product& p = own_product(group, block);
    const u32 sums = p.sums ? place::tiles<TILE>(p.m) : 0;
    if (block < sums) {
      extern __shared__ __align__(1024) unsigned char memory[];
      carver carve(memory);
      double* scratch = reinterpret_cast<double*>(LAYOUT(carve).a);
      column_sums(p.a, p.k, p.m, block * TILE, scratch, [&](u32 column, float sum) { p.sums[column] = sum; });
    } else {
      run<false, false, true>(p, place::of<TILE>(p, block - sums));
    }
  }
};

}  // namespace gpu
