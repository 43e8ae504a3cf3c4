// Products of training on tensor cores: x W^T (nt), dy^T x (tn), dy W (nn), as product_f32.cu in BF16
// nt: a [m, k], b [n, k]; tn: a [k, m], b [k, n]; nn: a [m, k], b [k, n]; out [m, n]; all F32 in memory
// A block owns 64 x 64 of out over one slice of k, a warp 32 x 32; the last block adds slices
// 2 m n k FLOP; reads a n / 64 times and b m / 64 times, from L2 at the sizes of training
// Needs rows that are k or n values long; multiples of 4 for 16-byte loads, else loads one by one
// Accuracy: operands rounded to BF16 on their way, sums in F32: 2^-8 of the summed magnitudes
// Reference: src/backend/cpu/gemm/mod.rs, `gemm`
// H200 by model, 2026-11, all launches of a step of 128 pairs: VAE 25.2 us, reward 24.0 us; bound by L2
#define LAUNCHES_START_EARLY
#include "include/product.cuh"
#include "include/product_bf16.cuh"

namespace product_bf16 {

using product = gpu::product<sums, layout, TILE, DEPTH, THREADS>;

}  // namespace product_bf16

#define KERNEL(name, B_BY_ROWS) \
  extern "C" __global__ void __launch_bounds__(gpu::tensor::THREADS, 4) \
      name(const __grid_constant__ params::product p) { \
    gpu::begin_early(); \
    product_bf16::product::run<true, B_BY_ROWS, false>(p, gpu::place::of_block<product_bf16::TILE>()); \
  }
KERNEL(product_nt_bf16, true)
KERNEL(product_nn_bf16, false)
#undef KERNEL

extern "C" __global__ void __launch_bounds__(gpu::tensor::THREADS, 4)
    product_tn_bf16(const __grid_constant__ params::products p) {
  gpu::begin_early();
  product_bf16::product::run_group(p);
}
