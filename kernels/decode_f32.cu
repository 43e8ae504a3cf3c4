// archs: sm_75+
// Decoder: e' = W2 relu(W1 z + b1) + b2 (plain), or e + W2 (h(z) - h(mu of the seed)) (residual)
// latents [count, latent] stored or drawn here, W1 [hidden, latent], W2 [dim, hidden]; out [count, dim]
// A block keeps a slice of W2 (blockIdx.y) in shared memory and takes 64 latents at a time; any grid.x
// 2 (latent hidden + hidden dim) FLOP a latent; writes its row once, reads the seed's where residual
// Needs hidden and latent multiples of 16, columns a multiple of 64, shared memory as layout.rs counts it
// Exact: the bits of src/backend/cpu/infer.rs, `decode`
// H200 by model, 2026-11, ns a row (d 4096): L1 14.5, issue 12.6, L2 3.35, DRAM 1.91; bound by L1 and issue
#include "include/mlp_exact.cuh"

namespace decode_f32 {

using gpu::u32;
using gpu::u64;
using namespace gpu::exact;

struct layout {
  decoder_input input;
  float* w2;

  GPU_FN layout(gpu::carver& carve, u32 hidden, u32 latent, u32 columns)
      : input(carve, hidden, latent), w2(carve.take<float>(size_t(columns) * stride_of(hidden))) {}
};

template <class S>
GPU_FN void run(const params::decode<S, float>& p) {
  const params::latents& source = p.source;
  const params::seeds& seeds = p.seeds;
  const u64 count = p.count;
  const u32 dim = p.dim, hidden = p.hidden, latent = p.latent, columns = p.columns;
  extern __shared__ __align__(1024) unsigned char memory[];
  gpu::carver carve(memory);
  const layout shared(carve, hidden, latent, columns);
  const u32 stride = stride_of(hidden), slice = blockIdx.y * columns;
  const u32 width = dim - slice < columns ? dim - slice : columns;
  for (u32 at = threadIdx.x; at < columns * (hidden / 4); at += THREADS) {
    const u32 column = at / (hidden / 4), k = at % (hidden / 4) * 4;
    const float4 none = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    gpu::store_4(shared.w2 + column * stride + k,
                 column < width ? gpu::read_4(p.w2 + u64(slice + column) * hidden + k) : none);
  }
  for (u64 first = u64(blockIdx.x) * ROWS; first < count; first += u64(gridDim.x) * ROWS) {
    // Its first barrier also stands between the slice, or the former tile's reads, and what follows.
    shared.input.fill(source, first, count, latent, hidden, p.w1, p.b1, seeds.mu);
    u64 start[8];
#pragma unroll
    for (u32 i = 0; i < 8; i++) {
      const u64 row = first + row_of(i);
      start[i] = seeds.mu && row < count ? u64(gpu::owner_of(source, row)) * dim : 0;
    }
    for (u32 from = 0; from < width; from += OUTPUTS) {
      tile t;
#pragma unroll
      for (u32 j = 0; j < 4; j++) {
        const u32 column = slice + from + output_of(j);
        const bool there = from + output_of(j) < width;
        const float bias = there ? gpu::read(p.b2 + column) : 0.0f;
#pragma unroll
        for (u32 i = 0; i < 8; i++) {
          float base[1] = {bias};
          if (seeds.mu && there) gpu::read_typed(base, seeds.embeddings, seeds.dtype, start[i] + column);
          t.sum[i][j] = base[0];
        }
      }
      add_products(t, shared.input.hidden, stride, shared.w2 + from * stride, stride, hidden);
#pragma unroll
      for (u32 i = 0; i < 8; i++) {
        const u64 row = first + row_of(i);
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
          if (row < count && from + output_of(j) < width)
            p.out[row * dim + slice + from + output_of(j)] = gpu::from_f32<S>(t.sum[i][j]);
        }
      }
    }
  }
}

}  // namespace decode_f32

#define KERNEL(name, S) \
  extern "C" __global__ void __launch_bounds__(gpu::exact::THREADS, 3) \
      name(const __grid_constant__ params::decode<S, float> p) { \
    decode_f32::run(p); \
  }
KERNEL(decode_f32_f32, float)
KERNEL(decode_f32_f16, gpu::f16)
KERNEL(decode_f32_bf16, gpu::bf16)
#undef KERNEL
