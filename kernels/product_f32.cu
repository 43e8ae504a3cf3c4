// archs: sm_75+
// Products of training: x W^T (nt), dy^T x (tn), dy W (nn), in F32, with bias, ReLU, mask or sum behind them
// nt: a [m, k], b [n, k]; tn: a [k, m], b [k, n]; nn: a [m, k], b [k, n]; out [m, n]; leading dimensions free
// A block owns 64 x 64 of out over one slice of k; a tile's last block adds the slices; tn: up to 4 products
// 2 m n k FLOP; reads a n / 64 times and b m / 64 times, from L2 at the sizes of training
// Needs leading dimensions that are multiples of 4 for 16-byte loads, else loads one by one
// Accuracy: F32 sums in k order within a slice, relative error about sqrt(k) u
// Reference: src/backend/cpu/gemm/mod.rs, `gemm`; measured on nothing yet
#define LAUNCHES_START_EARLY
#include "include/train.cuh"

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
/// row of the source; else k counts its rows.
template <bool BY_ROWS>
struct part {
  float4 group[GROUPS];

  GPU_FN void fetch(const float* from, u32 ld, u32 row, u32 rows, u32 k, u32 end) {
    const bool vector = ld % 4 == 0;
#pragma unroll
    for (u32 i = 0; i < GROUPS; i++) {
      const u32 at = threadIdx.x + i * THREADS;
      if (BY_ROWS) {
        const u32 r = row + at % TILE, c = k + at / TILE * 4;
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
        float* column = to + at / TILE * 4 * STRIDE + at % TILE;
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

/// `LIMITS_K`: the limit is on k, else on m.
template <bool A_BY_ROWS, bool B_BY_ROWS, bool LIMITS_K>
GPU_FN void run(const params::product& p, const gpu::place& place) {
  extern __shared__ __align__(1024) unsigned char memory[];
  gpu::carver carve(memory);
  const layout shared(carve);
  const u32 row = place.row, column = place.column;
  const auto [pa, pb, lda, ldb, m, from, end] = gpu::share::of<LIMITS_K>(p, place.slice, DEPTH);

  float sum[8][4] = {};
  const u32 ty = threadIdx.x / 16, tx = threadIdx.x % 16;
  // The same for the whole block: rows past the limit are zeros without work.
  if (row < m && from < end) {
    part<A_BY_ROWS> a;
    part<B_BY_ROWS> b;
    a.fetch(pa, lda, row, m, from, end);
    b.fetch(pb, ldb, column, p.n, from, end);
    for (u32 k = from; k < end; k += DEPTH) {
      __syncthreads();
      a.put(shared.a);
      b.put(shared.b);
      __syncthreads();
      if (k + DEPTH < end) {
        a.fetch(pa, lda, row, m, k + DEPTH, end);
        b.fetch(pb, ldb, column, p.n, k + DEPTH, end);
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

  const bool whole = p.slices == 1;
  float* out = whole ? p.out : p.partial + u64(place.slice) * p.m * p.ldo;
#pragma unroll
  for (u32 r = 0; r < 8; r++) {
    const u32 to = row + (r < 4 ? 4 * ty + r : 28 + 4 * ty + r);
    if (to >= p.m) continue;
#pragma unroll
    for (u32 c = 0; c < 4; c++) {
      const u32 n = column + 4 * tx + c;
      const u64 at = u64(to) * p.ldo + n;
      if (n < p.n) out[at] = whole ? gpu::finished(p, sum[r][c], at, n) : sum[r][c];
    }
  }
  if (!whole) gpu::join_slices<TILE, THREADS>(p, place);
}

/// Blocks of a group: column sums of a product, then its tiles by slices.
GPU_FN void run_group(const params::products& group) {
  u32 block;
  const params::product& p = gpu::own_product(group, block);
  const u32 sums = p.sums ? gpu::place::tiles<TILE>(p.m) : 0;
  if (block < sums) {
    extern __shared__ __align__(1024) unsigned char memory[];
    gpu::carver carve(memory);
    gpu::column_sums(p, block * TILE, reinterpret_cast<double*>(layout(carve).a));
  } else {
    run<false, false, true>(p, gpu::place::of<TILE>(p, block - sums));
  }
}

}  // namespace product_f32

#define KERNEL(name, B_BY_ROWS) \
  extern "C" __global__ void __launch_bounds__(product_f32::THREADS) \
      name(const __grid_constant__ params::product p) { \
    gpu::begin_early(); \
    product_f32::run<true, B_BY_ROWS, false>(p, gpu::place::of_block<product_f32::TILE>()); \
  }
KERNEL(product_nt_f32, true)
KERNEL(product_nn_f32, false)
#undef KERNEL

extern "C" __global__ void __launch_bounds__(product_f32::THREADS)
    product_tn_f32(const __grid_constant__ params::products p) {
  gpu::begin_early();
  product_f32::run_group(p);
}
