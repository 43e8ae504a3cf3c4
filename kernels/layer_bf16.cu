// Layers of models too wide for one block: W x + b, or its ReLU, or e + W x with e the embedding of the seed
// x [rows, depth] F32, W [outputs, depth] BF16; out [rows, outputs]
// A block owns 64 rows by 128 outputs at a time, a warp 32 by 64; k goes through two stages
// 2 depth outputs FLOP a row; reads x once per 128 outputs, the seed's row where it is added to
// Needs depth a multiple of 16, and shared memory as src/backend/cuda/layout.rs counts it
// Accuracy: operands rounded to BF16, sums in F32: 2^-8 of the summed magnitudes
// Reference: src/backend/cpu/infer.rs, whose layers these are
// Not modelled for a device: by count bound by L2, as encode_bf16.cu is
#include "include/latent.cuh"
#include "include/mlp_bf16.cuh"

namespace layer_bf16 {

using gpu::bf16;
using gpu::u32;
using gpu::u64;
using namespace gpu::tensor;

// Four warps, two by two.
constexpr u32 STAGES = 2, SIDE_BY_SIDE = 2, GROUPS = 4, WIDE = 16 * GROUPS * SIDE_BY_SIDE;

template <bool WHOLE, class T>
GPU_FN void layer(const params::layer<T, bf16>& p) {
  using tile = gpu::tensor::tile<2, GROUPS>;
  extern __shared__ __align__(1024) unsigned char memory[];
  gpu::carver carve(memory);
  bf16* const stages = carve.take<bf16>(stages_of(STAGES, WIDE));
  const u32 warp = threadIdx.x / gpu::WARP, own = warp / SIDE_BY_SIDE * 32;
  for (u64 first = u64(blockIdx.x) * ROWS; first < p.rows; first += u64(gridDim.x) * ROWS) {
    u64 start[4];  // of the seeds of the lane's rows
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
      const u64 row = first + own + tile::row(i / 2, i % 2 * 2);
      start[i] = p.seeds.embeddings && row < p.rows ? u64(gpu::owner_of(p.source, row)) * p.outputs : 0;
    }
    for (u32 from = 0; from < p.outputs; from += WIDE) {
      const u32 ours = from + warp % SIDE_BY_SIDE * 16 * GROUPS;
      tile t;
      // Calls f(place among the lane's rows, output, sum) for all that exist.
      auto each = [&](auto f) {
#pragma unroll
        for (u32 n = 0; n < 2 * GROUPS; n++) {
#pragma unroll
          for (u32 j = 0; j < 8; j++) {
            const u32 output = ours + t.output(n, j % 2);
            if (output < p.outputs) f(j / 2, output, t.sum[j / 4][n][j % 4]);
          }
        }
      };
      t.clear();
      each([&](u32 i, u32 output, float& sum) {
        float base[1] = {p.bias ? gpu::read(p.bias + output) : 0.0f};
        if (p.seeds.embeddings)
          gpu::read_typed(base, p.seeds.embeddings, p.seeds.dtype, start[i] + output);
        sum = base[0];
      });
      // Outputs that are no multiple of 16 are found one by one.
      using rows_of_w = std::conditional_t<WHOLE, aligned_rows<bf16, WIDE>, any_rows<bf16, WIDE>>;
      add_chunks<STAGES, SIDE_BY_SIDE>(t, stages, aligned_rows<float, ROWS>(p.x, first, p.rows, p.depth),
                                       rows_of_w(p.w, from, p.outputs, p.depth),
                                       (p.depth + DEPTH - 1) / DEPTH);
      each([&](u32 i, u32 output, float& sum) {
        const u64 row = first + own + tile::row(i / 2, i % 2 * 2);
        if (row < p.rows)
          p.out[row * p.outputs + output] = gpu::from_f32<T>(p.relu ? gpu::relu_nan(sum) : sum);
      });
    }
  }
}

template <class T>
GPU_FN void run(const params::layer<T, bf16>& p) {
  if (p.outputs % 16 == 0)
    layer<true>(p);
  else
    layer<false>(p);
}

}  // namespace layer_bf16

#define KERNEL(name, T) \
  extern "C" __global__ void __launch_bounds__(gpu::tensor::THREADS, 2) \
      name(const __grid_constant__ params::layer<T, gpu::bf16> p) { \
    layer_bf16::run(p); \
  }
KERNEL(layer_bf16_f32, float)
KERNEL(layer_bf16_f16, gpu::f16)
KERNEL(layer_bf16_bf16, gpu::bf16)
#undef KERNEL
