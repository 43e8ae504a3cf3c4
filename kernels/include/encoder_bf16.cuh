// The encoder on tensor cores, from rows of embeddings to codes in registers: what encode and the kernels
// that go on from codes begin with.
#pragma once
#include "mlp_bf16.cuh"

namespace gpu {
namespace tensor {

/// Rows of a block that a warp owns.
constexpr u32 ROWS_OF_WARP = ROWS / WARPS;

/// hidden = relu(W1 e + b1) of the block's 64 rows from `first` on, [64][stride_of(size)]; `own` points at
/// the first row of the warp, which writes and may read its rows alone, behind a __syncwarp. The block's
/// threads together; the stages are free behind the next barrier.
template <bool ALIGNED, u32 STAGES, class S>
GPU_FN void encode_hidden(bf16* own, bf16* stages, const S* embeddings, u64 first, u64 rows, const bf16* w1,
                          const float* b1, u32 size, u32 dim) {
  for (u32 from = 0; from < size; from += OUTPUTS) {
    tile<1, OUTPUTS / 16> t;
    t.start(b1 + from, size - from);
    add_stored<ALIGNED, STAGES, 1>(t, stages, embeddings, first, rows, w1, from, size, dim);
#pragma unroll
    for (u32 n = 0; n < OUTPUTS / 8; n++) {
#pragma unroll
      for (u32 i = 0; i < 4; i += 2) {
        const u32 o = from + t.output(n, i);
        if (o < size)
          *reinterpret_cast<u32*>(own + t.row(0, i) * stride_of(size) + o) =
              pack_bf16(relu_nan(t.sum[0][n][i]), relu_nan(t.sum[0][n][i + 1]));
      }
    }
  }
}

/// The second layer of a warp's rows, 16 elements of mu and of logvar at a time: a lane holds both of the
/// same elements. Calls put(mu, logvar, row within the warp's, element) with two elements of each.
template <class F>
GPU_FN void encode_codes(const bf16* own, const bf16* w2, const float* b2, u32 size, u32 latent, F put) {
  const u32 stride = stride_of(size);
  for (u32 from = 0; from < latent; from += 16) {
    tile<1, 1> mu, logvar;
    mu.start(b2 + from);
    logvar.start(b2 + latent + from);
    mu.add<true, true>(own, stride, w2 + from * stride, stride, size);
    logvar.add<true, true>(own, stride, w2 + (latent + from) * stride, stride, size);
#pragma unroll
    for (u32 n = 0; n < 2; n++) {
#pragma unroll
      for (u32 i = 0; i < 4; i += 2) {
        const float *m = &mu.sum[0][n][i], *v = &logvar.sum[0][n][i];
        put(make_float2(m[0], m[1]), make_float2(v[0], v[1]), mu.row(0, i), from + mu.output(n, i));
      }
    }
  }
}

}  // namespace tensor
}  // namespace gpu
