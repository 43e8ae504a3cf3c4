// Products of training on tensor cores: x W^T (nt), dy^T x (tn), dy W (nn), as product_f32.cu in BF16
// nt: a [m, k], b [n, k]; tn: a [k, m], b [k, n]; nn: a [m, k], b [k, n]; out [m, n]; all F32 in memory
// A block owns 64 x 64 of out over one slice of k, a warp 32 x 32; the last block adds slices
// 2 m n k FLOP; reads a n / 64 times and b m / 64 times, from L2 at the sizes of training
// Needs rows that are k or n values long; multiples of 4 for 16-byte loads, else loads one by one
// Accuracy: operands rounded to BF16 on their way, sums in F32: 2^-8 of the summed magnitudes
// Reference: src/backend/cpu/gemm/mod.rs, `gemm`
// Never measured on a GPU; by count bound by L2
#define LAUNCHES_START_EARLY
#include "include/mlp_bf16.cuh"
#include "include/train.cuh"

namespace product_bf16 {

using gpu::bf16;
using gpu::u32;
using gpu::u64;
using namespace gpu::tensor;

constexpr u32 TILE = 64, DEEP = 32;
static_assert(TILE * stride_of(DEEP) * sizeof(bf16) >= 512 * sizeof(double), "room for column sums");

struct layout {
  bf16 *a, *b;  // 64 rows of 32 of k, or 32 of k by 64 rows

  GPU_FN explicit layout(gpu::carver& carve) {
    a = carve.take<bf16>(TILE * stride_of(DEEP));
    b = carve.take<bf16>(TILE * stride_of(DEEP));
  }
};

/// Values between rows of an operand in shared memory; 64 rows of 40 or 32 of 72 both fit 64 x 40.
constexpr GPU_FN u32 stride_in(bool by_rows) { return by_rows ? stride_of(DEEP) : stride_of(TILE); }

/// Rows `row` .. and k .. of an operand, bounded by `rows` and `end`.
template <bool BY_ROWS>
GPU_FN void copy_operand(bf16* to, const float* from, u32 ld, u32 row, u32 rows, u32 k, u32 end) {
  if (BY_ROWS)
    copy_rows(to, stride_in(true), from, row, rows, ld, k, DEEP, TILE);
  else
    copy_rows(to, stride_in(false), from, k, end, ld, row, TILE, DEEP);
}

/// `LIMITS_K`: the limit is on k, else on m.
template <bool A_BY_ROWS, bool B_BY_ROWS, bool LIMITS_K>
GPU_FN void run(const params::product& p, const gpu::place& place) {
  extern __shared__ __align__(1024) unsigned char memory[];
  gpu::carver carve(memory);
  const layout shared(carve);
  const u32 row = place.row, column = place.column, warp = threadIdx.x / gpu::WARP;
  const auto [pa, pb, lda, ldb, m, from, end] = gpu::share::of<LIMITS_K>(p, place.slice, DEEP);
  const u32 own = warp / 2 * 32, aside = warp % 2 * 32;

  tile<2, 2> t;
  t.clear();
  // The same for the whole block: rows past the limit are zeros without work. A slice ends with a chunk or
  // with k, so that along its rows an operand needs no bound but its own.
  for (u32 k = from; row < m && k < end; k += DEEP) {
    __syncthreads();
    copy_operand<A_BY_ROWS>(shared.a, pa, lda, row, m, k, end);
    copy_operand<B_BY_ROWS>(shared.b, pb, ldb, column, p.n, k, end);
    __syncthreads();
    const bf16* a = shared.a + (A_BY_ROWS ? own * stride_in(true) : own);
    const bf16* b = shared.b + (B_BY_ROWS ? aside * stride_in(true) : aside);
    t.add<A_BY_ROWS, B_BY_ROWS>(a, stride_in(A_BY_ROWS), b, stride_in(B_BY_ROWS), DEEP);
  }

  const bool whole = p.slices == 1;
  float* out = whole ? p.out : p.partial + u64(place.slice) * p.m * p.ldo;
#pragma unroll
  for (u32 r = 0; r < 2; r++) {
#pragma unroll
    for (u32 n = 0; n < 4; n++) {
#pragma unroll
      for (u32 i = 0; i < 4; i++) {
        const u32 to = row + own + t.row(r, i), o = column + aside + t.output(n, i);
        const u64 at = u64(to) * p.ldo + o;
        if (to < p.m && o < p.n)
          out[at] = whole ? gpu::finished(p, t.sum[r][n][i], at, o) : t.sum[r][n][i];
      }
    }
  }
  if (!whole) gpu::join_slices<TILE, gpu::tensor::THREADS>(p, place);
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

}  // namespace product_bf16

#define KERNEL(name, B_BY_ROWS) \
  extern "C" __global__ void __launch_bounds__(gpu::tensor::THREADS, 4) \
      name(const __grid_constant__ params::product p) { \
    gpu::begin_early(); \
    product_bf16::run<true, B_BY_ROWS, false>(p, gpu::place::of_block<product_bf16::TILE>()); \
  }
KERNEL(product_nt_bf16, true)
KERNEL(product_nn_bf16, false)
#undef KERNEL

extern "C" __global__ void __launch_bounds__(gpu::tensor::THREADS, 4)
    product_tn_bf16(const __grid_constant__ params::products p) {
  gpu::begin_early();
  product_bf16::run_group(p);
}
