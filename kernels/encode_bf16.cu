// Encoder: (mu, logvar) = W2 relu(W1 e + b1) + b2, and z = mu + exp(logvar / 2) eps where it is wanted
// embeddings [rows, dim] F32, F16 or BF16; W1 [hidden, dim], W2 [2 latent, hidden]; results [rows, latent]
// A block owns 64 rows at a time, a warp 16 of them; k goes through three stages of asynchronous copies
// 2 (dim hidden + 2 hidden latent) FLOP a row; reads the row once per 64 hidden units, writes 8 latent bytes
// Needs hidden and latent multiples of 16, and shared memory as src/backend/cuda/layout.rs counts it
// Accuracy: operands and the hidden layer rounded to BF16, sums in F32: 2^-8 of the summed magnitudes
// Reference: src/backend/cpu/infer.rs, `encode`
// H200 by model, 2026-11, ns a row at d = 4096: L2 2.95, DRAM 1.93, L1 1.74, tensor 0.78; bound by L2
#include "include/encoder_bf16.cuh"
#include "include/latent.cuh"

namespace encode_bf16 {

using gpu::bf16;
using gpu::u32;
using gpu::u64;
using namespace gpu::tensor;

constexpr u32 STAGES = 3;

struct layout {
  bf16 *stages, *hidden, *w2;

  GPU_FN layout(gpu::carver& carve, u32 size, u32 latent) {
    stages = carve.take<bf16>(stages_of(STAGES, OUTPUTS));
    hidden = carve.take<bf16>(size_t(ROWS) * stride_of(size));
    w2 = carve.take<bf16>(size_t(2) * latent * stride_of(size));
  }
};

template <bool ALIGNED, class S>
GPU_FN void encode(const params::encode<S, bf16>& p) {
  const gpu::codes out = {p.mu, p.logvar, p.z, p.noise};
  const u64 rows = p.rows;
  const u32 dim = p.dim, size = p.hidden, latent = p.latent;
  extern __shared__ __align__(1024) unsigned char memory[];
  gpu::carver carve(memory);
  const layout shared(carve, size, latent);
  const u32 own = threadIdx.x / gpu::WARP * ROWS_OF_WARP;
  bf16* const hidden = shared.hidden + own * stride_of(size);
  copy_rows(shared.w2, stride_of(size), p.w2, 0, 2 * latent, size, 0, size, 2 * latent);
  gpu::copy_async_wait_all();
  // The first barrier of add_stored stands between this and its use.
  for (u64 first = u64(blockIdx.x) * ROWS; first < rows; first += u64(gridDim.x) * ROWS) {
    encode_hidden<ALIGNED, STAGES>(hidden, shared.stages, p.embeddings, first, rows, p.w1, p.b1, size, dim);
    // A warp's hidden rows are read by itself alone.
    __syncwarp();
    encode_codes(hidden, shared.w2, p.b2, size, latent, [&](float2 m, float2 v, u32 row, u32 at) {
      if (first + own + row < rows) out.store_2(m, v, first + own + row, at, latent);
    });
    // The barriers of add_stored stand between this and the next hidden rows.
  }
}

template <class S>
GPU_FN void run(const params::encode<S, bf16>& p) {
  if (p.dim % 8 == 0)
    encode<true>(p);
  else
    encode<false>(p);
}

}  // namespace encode_bf16

#define KERNEL(name, S) \
  extern "C" __global__ void __launch_bounds__(gpu::tensor::THREADS, 3) \
      name(const __grid_constant__ params::encode<S, gpu::bf16> p) { \
    encode_bf16::run(p); \
  }
KERNEL(encode_bf16_f32, float)
KERNEL(encode_bf16_f16, gpu::f16)
KERNEL(encode_bf16_bf16, gpu::bf16)
#undef KERNEL
