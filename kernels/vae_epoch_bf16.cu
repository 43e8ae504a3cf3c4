// VAE training in BF16: all steps of an epoch in one cooperative launch, include/vae_epoch.cuh
// Embeddings [n, dim] of both sides, order [pairs], a table of steps; parameters and moments are updated
// Blocks own tiles of the gradients with their moments; tiles of products and pairs are shared out by number
// 10 rows dim hidden FLOP a step; bytes as in docs/design/31-an-epoch-in-one-launch.md
// Needs hidden below 256, latent and hidden multiples of 16, all blocks on the device at once
// Accuracy: the bits of the step's launches (train_vae.cu, product_bf16.cu, adam.cu)
// Reference: those launches
// H200 by model, 2026-11, a step of 128 pairs: 15.0 us, and five barriers of the grid; bound by L2
#define LAUNCHES_START_EARLY  // Loads by the coherent cache: the launch writes what it reads.
#include "include/product_bf16.cuh"
#include "include/vae_epoch.cuh"

namespace epoch_bf16 {

using gpu::bf16;
using gpu::u32;
using namespace gpu::tensor;

/// The two rows of a pair as the first of 16, and their products with a small weight: a warp makes 16 outputs
/// at a time.
struct rows {
  static constexpr u32 ROWS = 16;
  bf16 *value, *weight;  // [16][stride of width]; [outputs][stride of depth] or [depth][stride of outputs]
  u32 width;

  GPU_FN rows(unsigned char* memory, u32 width) : width(width) {
    gpu::carver carve(memory);
    value = carve.take<bf16>(ROWS * stride_of(width));
    weight = carve.take<bf16>(0);
  }
  GPU_FN void clear() const {
    u32* words = reinterpret_cast<u32*>(value + 2 * stride_of(width));
    for (u32 i = threadIdx.x; i < (ROWS - 2) * stride_of(width) / 2; i += THREADS) words[i] = 0;
  }
  GPU_FN void put(u32 row, u32 k, float v) const {
    value[row * stride_of(width) + k] = gpu::from_f32<bf16>(v);
  }

  /// f(row, output, sum over k of the row's values and those of w), w [outputs, depth] or else
  /// [depth, outputs]. Barriers before and behind.
  template <bool BY_ROWS, class F>
  GPU_FN void product(const float* w, u32 outputs, u32 depth, F f) const {
    const u32 stride = stride_of(BY_ROWS ? depth : outputs);
    copy_rows(weight, stride, w, 0, BY_ROWS ? outputs : depth, BY_ROWS ? depth : outputs, 0,
              BY_ROWS ? depth : outputs, BY_ROWS ? outputs : depth);
    __syncthreads();
    const u32 lane = threadIdx.x % gpu::WARP;
    for (u32 o = threadIdx.x / gpu::WARP * 16; o < outputs; o += WARPS * 16) {
      tile<1, 1> t;
      t.clear();
      t.add<true, BY_ROWS>(value, stride_of(width), weight + (BY_ROWS ? o * stride : o), stride, depth);
#pragma unroll
      for (u32 i = 0; i < 4; i++)
        if (lane < 8) f(lane / 4, o + t.output(i / 2, i % 2), t.sum[0][i / 2][i % 2]);
    }
    __syncthreads();
  }
};

struct products {
  using sums = product_bf16::sums;
  using layout = product_bf16::layout;
  using rows = epoch_bf16::rows;
  static constexpr u32 DEPTH = product_bf16::DEPTH;
};

}  // namespace epoch_bf16

extern "C" __global__ void __launch_bounds__(gpu::tensor::THREADS)
    vae_epoch_bf16(const __grid_constant__ params::vae_epoch p) {
  gpu::vae_epoch<epoch_bf16::products>::run(p);
}
