// Encoder: (mu, logvar) = W2 relu(W1 e + b1) + b2, and z = mu + exp(logvar / 2) eps where it is wanted
// embeddings [rows, dim] F32, F16 or BF16; W1 [hidden, dim], W2 [2 latent, hidden]; results [rows, latent]
// A block owns 64 rows at a time, a warp 16 of them; k goes through three stages of asynchronous copies
// 2 (dim hidden + 2 hidden latent) FLOP a row; reads the row once per 64 hidden units, writes 8 latent bytes
// Needs hidden and latent multiples of 16, and shared memory as encode_bf16_shared counts it
// Accuracy: operands and the hidden layer rounded to BF16, sums in F32: 2^-8 of the summed magnitudes
// Reference: src/backend/cpu/infer.rs, `encode`
// Measured under emulation only; bound by memory
#include "include/mlp_bf16.cuh"

namespace encode_bf16 {

using gpu::bf16;
using gpu::relu;
using gpu::u32;
using gpu::u64;
using namespace gpu::tensor;

constexpr u32 STAGES = 3;

/// Values between rows of the codes in F32.
constexpr GPU_BOTH u32 code_stride(u32 latent) { return 2 * latent + 4; }

struct layout {
  bf16 *stages, *hidden, *w2;
  float* code;

  GPU_BOTH layout(gpu::carver& carve, u32 size, u32 latent) {
    stages = carve.take<bf16>(stages_of(STAGES, OUTPUTS));
    hidden = carve.take<bf16>(size_t(ROWS) * stride_of(size));
    w2 = carve.take<bf16>(size_t(2) * latent * stride_of(size));
    code = carve.take<float>(size_t(ROWS) * code_stride(latent));
  }
};

template <class S>
GPU_FN void run(const S* embeddings, u64 rows, u32 dim, u32 size, u32 latent, const bf16* w1,
                const float* b1, const bf16* w2, const float* b2, const gpu::codes& out) {
  GPU_DYN_SHARED(memory);
  gpu::carver carve(memory);
  const layout shared(carve, size, latent);
  const u32 own = threadIdx.x / gpu::WARP * ROWS_OF_WARP, lane = threadIdx.x % gpu::WARP;
  copy_rows(shared.w2, stride_of(size), w2, 0, 2 * latent, size, 0, size, 2 * latent);
  gpu::copy_async_wait_all();
  // The first barrier of add_stored stands between this and its use.
  for (u64 first = u64(blockIdx.x) * ROWS; first < rows; first += u64(gridDim.x) * ROWS) {
    for (u32 from = 0; from < size; from += OUTPUTS) {
      tile<1, OUTPUTS / 16> t;
      t.clear();
      add_stored<STAGES, 1>(t, shared.stages, embeddings, first, rows, w1, from, size, dim);
#pragma unroll
      for (u32 n = 0; n < OUTPUTS / 8; n++) {
#pragma unroll
        for (u32 i = 0; i < 4; i += 2) {
          const u32 o = from + t.output(n, i);
          if (o < size)
            *reinterpret_cast<u32*>(shared.hidden + (own + t.row(0, i)) * stride_of(size) + o) =
                gpu::pack_bf16(relu(t.sum[0][n][i] + b1[o]), relu(t.sum[0][n][i + 1] + b1[o + 1]));
        }
      }
    }
    __syncwarp();
    for (u32 from = 0; from < 2 * latent; from += OUTPUTS) {
      const u32 left = 2 * latent - from, wide = left < OUTPUTS ? left / 16 : OUTPUTS / 16;
      tile<1, OUTPUTS / 16> t;
      t.clear();
      const u32 stride = stride_of(size);
      t.add<true, true>(shared.hidden + own * stride, stride, shared.w2 + from * stride, stride, size, wide);
#pragma unroll
      for (u32 n = 0; n < OUTPUTS / 8; n++) {
        if (n >= 2 * wide) break;
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
          const u32 o = from + t.output(n, i);
          shared.code[(own + t.row(0, i)) * code_stride(latent) + o] = t.sum[0][n][i] + b2[o];
        }
      }
    }
    __syncwarp();
    const u32 groups = latent / 4;
    for (u32 at = lane; at < ROWS_OF_WARP * groups; at += gpu::WARP) {
      const u64 row = first + own + at / groups;
      if (row >= rows) break;
      out.store(shared.code + (own + at / groups) * code_stride(latent), row, at % groups, latent);
    }
  }
}

}  // namespace encode_bf16

/// Bytes of shared memory that the kernels below are launched with.
inline size_t encode_bf16_shared(uint32_t hidden, uint32_t latent) {
  gpu::carver count;
  const encode_bf16::layout shared(count, hidden, latent);
  return count.bytes();
}

GPU_KERNEL __launch_bounds__(gpu::tensor::THREADS)
    encode_bf16_f32(const float* __restrict__ embeddings, uint64_t rows, uint32_t dim, uint32_t hidden,
                    uint32_t latent, const gpu::bf16* __restrict__ w1, const float* __restrict__ b1,
                    const gpu::bf16* __restrict__ w2, const float* __restrict__ b2, float* __restrict__ mu,
                    float* __restrict__ logvar, float* __restrict__ z, uint64_t seed, uint32_t side,
                    uint64_t first_row) {
  encode_bf16::run(embeddings, rows, dim, hidden, latent, w1, b1, w2, b2,
                   {mu, logvar, z, seed, side, first_row});
}
GPU_EXPORT(encode_bf16_f32);
GPU_EXPORT_SHARED(encode_bf16_f32, encode_bf16_shared);

GPU_KERNEL __launch_bounds__(gpu::tensor::THREADS)
    encode_bf16_f16(const gpu::f16* __restrict__ embeddings, uint64_t rows, uint32_t dim, uint32_t hidden,
                    uint32_t latent, const gpu::bf16* __restrict__ w1, const float* __restrict__ b1,
                    const gpu::bf16* __restrict__ w2, const float* __restrict__ b2, float* __restrict__ mu,
                    float* __restrict__ logvar, float* __restrict__ z, uint64_t seed, uint32_t side,
                    uint64_t first_row) {
  encode_bf16::run(embeddings, rows, dim, hidden, latent, w1, b1, w2, b2,
                   {mu, logvar, z, seed, side, first_row});
}
GPU_EXPORT(encode_bf16_f16);
GPU_EXPORT_SHARED(encode_bf16_f16, encode_bf16_shared);

GPU_KERNEL __launch_bounds__(gpu::tensor::THREADS)
    encode_bf16_bf16(const gpu::bf16* __restrict__ embeddings, uint64_t rows, uint32_t dim, uint32_t hidden,
                     uint32_t latent, const gpu::bf16* __restrict__ w1, const float* __restrict__ b1,
                     const gpu::bf16* __restrict__ w2, const float* __restrict__ b2, float* __restrict__ mu,
                     float* __restrict__ logvar, float* __restrict__ z, uint64_t seed, uint32_t side,
                     uint64_t first_row) {
  encode_bf16::run(embeddings, rows, dim, hidden, latent, w1, b1, w2, b2,
                   {mu, logvar, z, seed, side, first_row});
}
GPU_EXPORT(encode_bf16_bf16);
GPU_EXPORT_SHARED(encode_bf16_bf16, encode_bf16_shared);
