// archs: sm_75+
// Products of training: x W^T (nt), dy^T x (tn), dy W (nn), in F32, with bias, ReLU, mask or sum behind them
// nt: a [m, k], b [n, k]; tn: a [k, m], b [k, n]; nn: a [m, k], b [k, n]; out [m, n]; leading dimensions free
// A block owns 64 x 64 of out over one slice of k; a tile's last block adds the slices; tn: up to 4 products
// 2 m n k FLOP; reads a n / 64 times and b m / 64 times, from L2 at the sizes of training
// Needs leading dimensions that are multiples of 4 for 16-byte loads, else loads one by one
// Accuracy: F32 sums in k order, two a slice (product_f32.cuh), relative error about sqrt(k / 2) u
// Reference: src/backend/cpu/gemm/mod.rs, `gemm`
// H200 by model, 2026-11, all launches of a step of 128 pairs: VAE 32.1 us, reward 32.4 us; bound by issue
#define LAUNCHES_START_EARLY
#include "include/product.cuh"
#include "include/product_f32.cuh"

namespace product_f32 {

using product = gpu::product<sums, layout, TILE, DEPTH, THREADS>;

}  // namespace product_f32

#define KERNEL(name, B_BY_ROWS) \
  extern "C" __global__ void __launch_bounds__(product_f32::THREADS, 3) \
      name(const __grid_constant__ params::product p) { \
    gpu::begin_early(); \
    product_f32::product::run<true, B_BY_ROWS, false>(p, gpu::place::of_block<product_f32::TILE>()); \
  }
KERNEL(product_nt_f32, true)
KERNEL(product_nn_f32, false)
#undef KERNEL

extern "C" __global__ void __launch_bounds__(product_f32::THREADS, 3)
    product_tn_f32(const __grid_constant__ params::products p) {
  gpu::begin_early();
  product_f32::product::run_group(p);
}
