// archs: sm_75+
// Layers of models too wide for one block: W x + b, or its ReLU, or e + W x with e the embedding of the seed
// x [rows, depth] F32, W [outputs, depth]; out [rows, outputs]; subtract_rows: out [rows, width] -= of[owner]
// A block owns 64 rows at a time, by 64 outputs; a grid of any size gives the same bits
// 2 depth outputs FLOP a row; reads x once per 64 outputs, the seed's row where it is added to
// Needs depth a multiple of 4 for 16-byte loads, and shared memory as src/backend/cuda/layout.rs counts it
// Exact: the bits of src/backend/cpu/infer.rs, whose layers these are
// Not modelled for a device: by count bound as encode_f32.cu is
#include "include/latent.cuh"
#include "include/mlp_exact.cuh"

namespace layer_f32 {

using gpu::u32;
using gpu::u64;
using namespace gpu::exact;

template <class T>
GPU_FN void run(const params::layer<T, float>& p) {
  extern __shared__ __align__(1024) unsigned char memory[];
  gpu::carver carve(memory);
  float* const a = carve.take<float>(ROWS * CHUNK_STRIDE);
  float* const b = carve.take<float>(OUTPUTS * CHUNK_STRIDE);
  for (u64 first = u64(blockIdx.x) * ROWS; first < p.rows; first += u64(gridDim.x) * ROWS) {
    u64 start[8];
#pragma unroll
    for (u32 i = 0; i < 8; i++) {
      const u64 row = first + row_of(i);
      start[i] = p.seeds.embeddings && row < p.rows ? u64(gpu::owner_of(p.source, row)) * p.outputs : 0;
    }
    for (u32 from = 0; from < p.outputs; from += OUTPUTS) {
      tile t;
#pragma unroll
      for (u32 j = 0; j < 4; j++) {
        const u32 output = from + output_of(j);
        const bool there = output < p.outputs;
        const float bias = there && p.bias ? gpu::read(p.bias + output) : 0.0f;
#pragma unroll
        for (u32 i = 0; i < 8; i++) {
          float base[1] = {bias};
          if (p.seeds.embeddings && there)
            gpu::read_typed(base, p.seeds.embeddings, p.seeds.dtype, start[i] + output);
          t.sum[i][j] = base[0];
        }
      }
      add_stored(t, a, b, p.x, first, p.rows, p.w, from, p.outputs, p.depth);
#pragma unroll
      for (u32 i = 0; i < 8; i++) {
        const u64 row = first + row_of(i);
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
          const u32 output = from + output_of(j);
          if (row < p.rows && output < p.outputs)
            p.out[row * p.outputs + output] =
                gpu::from_f32<T>(p.relu ? gpu::relu(t.sum[i][j]) : t.sum[i][j]);
        }
      }
    }
  }
}

}  // namespace layer_f32

#define KERNEL(name, T) \
  extern "C" __global__ void __launch_bounds__(gpu::exact::THREADS, 3) \
      name(const __grid_constant__ params::layer<T, float> p) { \
    layer_f32::run(p); \
  }
KERNEL(layer_f32_f32, float)
KERNEL(layer_f32_f16, gpu::f16)
KERNEL(layer_f32_bf16, gpu::bf16)
#undef KERNEL

extern "C" __global__ void __launch_bounds__(gpu::exact::THREADS)
    subtract_rows(const __grid_constant__ params::subtract_rows p) {
  using gpu::u64;
  const u64 n = p.rows * p.width;
  for (u64 i = u64(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += u64(gridDim.x) * blockDim.x) {
    const u64 of = u64(gpu::owner_of(p.source, i / p.width)) * p.width + i % p.width;
    p.out[i] = __fsub_rn(p.out[i], gpu::read(p.of + of));
  }
}

/// Rewards from pre-activations, w2 . relu(pre) + b2, in the order of score_f32_*: a warp has 16 rows.
extern "C" __global__ void __launch_bounds__(gpu::exact::THREADS)
    head_f32(const __grid_constant__ params::head p) {
  using namespace gpu::exact;
  using gpu::u32;
  using gpu::u64;
  for (u64 first = u64(blockIdx.x) * ROWS; first < p.rows; first += u64(gridDim.x) * ROWS) {
    reward_head head;
    for (u32 from = 0; from < p.width; from += gpu::WARP) {
      const u32 at = from + threadIdx.x % gpu::WARP;
      const float w = at < p.width ? gpu::read(p.w2 + at) : 0.0f;
#pragma unroll
      for (u32 i = 0; i < ROWS_OF_WARP; i++) {
        const u64 row = first + column::row(i);
        const float pre = row < p.rows && at < p.width ? gpu::read(p.pre + row * p.width + at) : 0.0f;
        head.chain[i] = __fmaf_rn(gpu::relu(pre), w, head.chain[i]);
      }
    }
    head.finish(p.out, p.b2, first, p.rows);
  }
}
