// archs: sm_75+
// VAE training in F32: all steps of an epoch in one cooperative launch, include/vae_epoch.cuh
// Embeddings [n, dim] of both sides, order [pairs], a table of steps; parameters and moments are updated
// Blocks own tiles of the gradients with their moments; tiles of products and pairs are shared out by number
// 10 rows dim hidden FLOP a step; bytes as in docs/design/31-an-epoch-in-one-launch.md
// Needs hidden below 256, latent and hidden multiples of 16, all blocks on the device at once
// Accuracy: the bits of the step's launches (train_vae.cu, product_f32.cu, adam.cu)
// Reference: those launches
// H200 by model, 2026-11, a step of 128 pairs: 20.1 us, and five barriers of the grid; bound by issue
#define LAUNCHES_START_EARLY  // Loads by the coherent cache: the launch writes what it reads.
#include "include/product_f32.cuh"
#include "include/vae_epoch.cuh"

namespace epoch_f32 {

using gpu::u32;

/// The two rows of a pair, and their products with a small weight: a thread makes sums of its own.
struct rows {
  float* value;  // [2][width]
  u32 width;

  GPU_FN rows(unsigned char* memory, u32 width)
      : value(reinterpret_cast<float*>(memory)), width(width) {}
  GPU_FN void clear() const {}
  GPU_FN void put(u32 row, u32 k, float v) const { value[row * width + k] = v; }

  /// f(row, output, sum over k of the row's values and those of w), w [outputs, depth] or else
  /// [depth, outputs]. Barriers before and behind.
  template <bool BY_ROWS, class F>
  GPU_FN void product(const float* w, u32 outputs, u32 depth, F f) const {
    __syncthreads();
    for (u32 i = threadIdx.x; i < 2 * outputs; i += product_f32::THREADS) {
      const u32 row = i / outputs, o = i % outputs;
      const float* own = value + row * width;
      // As product_f32.cuh adds: of sixteen, the first eight into one sum and the rest into another.
      float sum[2] = {};
#pragma unroll 4
      for (u32 k = 0; k < depth; k += 4) {
        const float4 a = gpu::load_4(own + k);
        float4 b;
        if (BY_ROWS) {
          b = gpu::read_4(w + o * depth + k);
        } else {
          const float* from = w + k * outputs + o;
          b = make_float4(gpu::read(from), gpu::read(from + outputs), gpu::read(from + 2 * outputs),
                          gpu::read(from + 3 * outputs));
        }
        float& to = sum[k / 8 % 2];
        to = __fmaf_rn(a.x, b.x, to);
        to = __fmaf_rn(a.y, b.y, to);
        to = __fmaf_rn(a.z, b.z, to);
        to = __fmaf_rn(a.w, b.w, to);
      }
      f(row, o, sum[0] + sum[1]);
    }
    __syncthreads();
  }
};

struct products {
  using sums = product_f32::sums;
  using layout = product_f32::layout;
  using rows = epoch_f32::rows;
  static constexpr u32 DEPTH = product_f32::DEPTH;
};

}  // namespace epoch_f32

extern "C" __global__ void __launch_bounds__(product_f32::THREADS)
    vae_epoch_f32(const __grid_constant__ params::vae_epoch p) {
  gpu::vae_epoch<epoch_f32::products>::run(p);
}
