// Decoder: e' = W2 relu(W1 z + b1) + b2 (plain), or e + W2 (h(z) - h(mu of the seed)) (residual)
// latents [count, latent] stored or drawn here, W1 [hidden, latent], W2 [dim, hidden] BF16; out [count, dim]
// A block keeps a slice of W2 (blockIdx.y) in shared memory; a warp takes 16 latents at a time, on its own
// 2 (latent hidden + hidden dim) FLOP a latent; writes a row by 16 bytes, reads the seed's if residual
// Needs hidden and latent multiples of 16, columns a multiple of 64, shared memory as counted below
// Accuracy: operands and the hidden layer rounded to BF16, sums in F32: 2^-8 of the summed magnitudes
// Reference: src/backend/cpu/infer.rs, `decode`
// Measured under emulation only; bound by memory (writes)
#include "include/mlp_bf16.cuh"

namespace decode_bf16 {

using gpu::bf16;
using gpu::u32;
using gpu::u64;
using namespace gpu::tensor;

constexpr u32 STAGE_STRIDE = OUTPUTS + 4;

struct layout {
  decoder_input input;
  bf16* w2;
  float* stage;  // 16 rows by 64 columns of each warp

  GPU_BOTH layout(gpu::carver& carve, u32 hidden, u32 latent, u32 columns) : input(carve, hidden, latent) {
    w2 = carve.take<bf16>(size_t(columns) * stride_of(hidden));
    stage = carve.take<float>(ROWS * STAGE_STRIDE);
  }
};

/// Writes the warp's 16 rows by `wide` columns out of its stage, with bias or base, 16 bytes a lane.
template <class S>
GPU_FN void write_out(const float* stage, const gpu::latents& source, u64 row, u64 count, u32 dim, u32 column,
                      u32 wide, const float* b2, const gpu::seeds& seeds, S* out) {
  constexpr u32 COUNT = gpu::vec16<S>::COUNT, PIECES = OUTPUTS / COUNT;
  const bool vector = dim % COUNT == 0;
#pragma unroll 1
  for (u32 i = 0; i < ROWS_OF_WARP * PIECES / gpu::WARP; i++) {
    const u32 at = threadIdx.x % gpu::WARP + i * gpu::WARP, r = at / PIECES, c = at % PIECES * COUNT;
    if (row + r >= count || c >= wide) continue;
    const u32 there = wide - c < COUNT ? wide - c : COUNT;
    float v[COUNT];
#pragma unroll
    for (u32 j = 0; j < COUNT; j++) {
      v[j] = stage[r * STAGE_STRIDE + c + j];
      if (!seeds.mu && j < there) v[j] += b2[column + c + j];
    }
    if (seeds.mu) {
      const u64 from = u64(gpu::owner_of(source, row + r)) * dim + column + c;
      float base[COUNT];
      gpu::load_typed(base, seeds.embeddings, seeds.dtype, from, there);
#pragma unroll
      for (u32 j = 0; j < COUNT; j++) v[j] += base[j];
    }
    S* to = out + (row + r) * dim + column + c;
    if (vector && there == COUNT) {
      gpu::vec16<S> piece;
#pragma unroll
      for (u32 j = 0; j < COUNT; j++) piece.value[j] = gpu::from_f32<S>(v[j]);
      gpu::store_16_streaming(to, piece);
    } else {
#pragma unroll
      for (u32 j = 0; j < COUNT; j++)
        if (j < there) to[j] = gpu::from_f32<S>(v[j]);
    }
  }
}

template <class S>
GPU_FN void run(const gpu::latents& source, u64 count, u32 dim, u32 hidden, u32 latent, u32 columns,
                const bf16* w1, const float* b1, const bf16* w2, const float* b2, const gpu::seeds& seeds,
                S* out) {
  GPU_DYN_SHARED(memory);
  gpu::carver carve(memory);
  const layout shared(carve, hidden, latent, columns);
  const u32 stride = stride_of(hidden), slice = blockIdx.y * columns;
  const u32 width = dim - slice < columns ? dim - slice : columns;
  shared.input.load(w1, hidden, latent);
  copy_rows(shared.w2, stride, w2, slice, dim, hidden, 0, hidden, columns);
  gpu::copy_async_wait_all();
  __syncthreads();

  const u32 own = shared.input.first_row();
  float* const stage = shared.stage + own * STAGE_STRIDE;
  for (u64 first = u64(blockIdx.x) * ROWS; first + own < count; first += u64(gridDim.x) * ROWS) {
    shared.input.fill(source, first, count, latent, hidden, b1, seeds.mu);
    for (u32 from = 0; from < width; from += OUTPUTS) {
      tile<1, OUTPUTS / 16> t;
      t.clear();
      const bf16* h = shared.input.hidden + own * stride;
      t.template add<true, true>(h, stride, shared.w2 + from * stride, stride, hidden);
      __syncwarp();
#pragma unroll
      for (u32 n = 0; n < OUTPUTS / 8; n++) {
#pragma unroll
        for (u32 i = 0; i < 4; i += 2) {
          float* to = stage + t.row(0, i) * STAGE_STRIDE + t.output(n, i);
          *reinterpret_cast<float2*>(to) = make_float2(t.sum[0][n][i], t.sum[0][n][i + 1]);
        }
      }
      __syncwarp();
      const u32 wide = width - from < OUTPUTS ? width - from : OUTPUTS;
      write_out(stage, source, first + own, count, dim, slice + from, wide, b2, seeds, out);
    }
  }
}

}  // namespace decode_bf16

/// Bytes of shared memory that the kernels below are launched with.
inline size_t decode_bf16_shared(uint32_t hidden, uint32_t latent, uint32_t columns) {
  gpu::carver count;
  const decode_bf16::layout shared(count, hidden, latent, columns);
  return count.bytes();
}

GPU_KERNEL __launch_bounds__(gpu::tensor::THREADS)
    decode_bf16_f32(gpu::latents source, uint64_t count, uint32_t dim, uint32_t hidden, uint32_t latent,
                    uint32_t columns, const gpu::bf16* __restrict__ w1, const float* __restrict__ b1,
                    const gpu::bf16* __restrict__ w2, const float* __restrict__ b2,
                    const void* __restrict__ base, uint32_t base_dtype, const float* __restrict__ base_mu,
                    float* __restrict__ out) {
  decode_bf16::run(source, count, dim, hidden, latent, columns, w1, b1, w2, b2, {base, base_dtype, base_mu},
                   out);
}
GPU_EXPORT(decode_bf16_f32);
GPU_EXPORT_SHARED(decode_bf16_f32, decode_bf16_shared);

GPU_KERNEL __launch_bounds__(gpu::tensor::THREADS)
    decode_bf16_f16(gpu::latents source, uint64_t count, uint32_t dim, uint32_t hidden, uint32_t latent,
                    uint32_t columns, const gpu::bf16* __restrict__ w1, const float* __restrict__ b1,
                    const gpu::bf16* __restrict__ w2, const float* __restrict__ b2,
                    const void* __restrict__ base, uint32_t base_dtype, const float* __restrict__ base_mu,
                    gpu::f16* __restrict__ out) {
  decode_bf16::run(source, count, dim, hidden, latent, columns, w1, b1, w2, b2, {base, base_dtype, base_mu},
                   out);
}
GPU_EXPORT(decode_bf16_f16);
GPU_EXPORT_SHARED(decode_bf16_f16, decode_bf16_shared);

GPU_KERNEL __launch_bounds__(gpu::tensor::THREADS)
    decode_bf16_bf16(gpu::latents source, uint64_t count, uint32_t dim, uint32_t hidden, uint32_t latent,
                     uint32_t columns, const gpu::bf16* __restrict__ w1, const float* __restrict__ b1,
                     const gpu::bf16* __restrict__ w2, const float* __restrict__ b2,
                     const void* __restrict__ base, uint32_t base_dtype, const float* __restrict__ base_mu,
                     gpu::bf16* __restrict__ out) {
  decode_bf16::run(source, count, dim, hidden, latent, columns, w1, b1, w2, b2, {base, base_dtype, base_mu},
                   out);
}
GPU_EXPORT(decode_bf16_bf16);
GPU_EXPORT_SHARED(decode_bf16_bf16, decode_bf16_shared);
