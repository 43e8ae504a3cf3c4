// The decoder's first layer on tensor cores, from latents to hidden rows in shared memory: what decode and
// the folded score begin with.
#pragma once
#include "latent.cuh"
#include "mlp_bf16.cuh"

namespace gpu {
namespace tensor {

/// Latents that a warp of a decoder owns at a time, and a block.
constexpr u32 LATENTS_OF_WARP = 32, LATENTS = WARPS * LATENTS_OF_WARP;

/// The decoder's first layer of a block's latents, 32 of them a warp's own: nothing here waits for other
/// warps.
struct decoder_input {
  bf16 *w1, *z, *mean, *hidden;

  GPU_FN decoder_input(carver& carve, u32 size, u32 latent) {
    w1 = carve.take<bf16>(size_t(size) * stride_of(latent));
    z = carve.take<bf16>(size_t(LATENTS) * stride_of(latent));
    mean = carve.take<bf16>(size_t(LATENTS) * stride_of(latent));
    hidden = carve.take<bf16>(size_t(LATENTS) * stride_of(size));
  }

  /// Brings W1 [size, latent] in; the caller waits for all copies and puts a barrier behind it.
  GPU_FN void load(const bf16* from, u32 size, u32 latent) const {
    copy_rows(w1, stride_of(latent), from, 0, size, latent, 0, latent, size);
  }

  GPU_FN u32 first_row() const { return threadIdx.x / WARP * LATENTS_OF_WARP; }

  /// hidden = relu(W1 z + b1) of the warp's rows of latents `first` and on, or, given the seeds' means, its
  /// difference from that of the latent's seed.
  GPU_FN void fill(const params::latents& source, u64 first, u64 count, u32 latent, u32 size, const float* b1,
                   const float* base_mu) const {
    const u32 own = first_row() + threadIdx.x % WARP, stride = stride_of(latent);
    const u64 row = first + own;
    const bool there = row < count;
    const u64 seed = base_mu && there ? owner_of(source, row) : 0;
    // A lane brings one latent in. What the warp read of the former ones lies before the barrier at the end.
#pragma unroll 1
    for (u32 block = 0; block < latent / 4; block++) {
      const float4 none = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      const float4 v = there ? latent_of(source, row, block, latent) : none;
      store_4_as_bf16(z + own * stride + 4 * block, v);
      if (base_mu)
        store_4_as_bf16(mean + own * stride + 4 * block,
                        there ? read_4(base_mu + seed * latent + 4 * block) : none);
    }
    __syncwarp();
#pragma unroll 1
    for (u32 from = first_row(); from < first_row() + LATENTS_OF_WARP; from += 16) {
      for (u32 output = 0; output < size; output += OUTPUTS) {
        const u32 left = size - output, wide = left < OUTPUTS ? left / 16 : OUTPUTS / 16;
        tile<1, OUTPUTS / 16> h, of_mean;
        h.start(b1 + output, left);
        h.add<true, true>(z + from * stride, stride, w1 + output * stride, stride, latent, wide);
        if (base_mu) {
          of_mean.start(b1 + output, left);
          of_mean.add<true, true>(mean + from * stride, stride, w1 + output * stride, stride, latent, wide);
        }
#pragma unroll
        for (u32 n = 0; n < 2 * OUTPUTS / 16; n++) {
          if (n >= 2 * wide) break;
#pragma unroll
          for (u32 i = 0; i < 4; i += 2) {
            float low = relu_nan(h.sum[0][n][i]), high = relu_nan(h.sum[0][n][i + 1]);
            if (base_mu) {
              low -= relu_nan(of_mean.sum[0][n][i]);
              high -= relu_nan(of_mean.sum[0][n][i + 1]);
            }
            bf16* const to = hidden + (from + h.row(0, i)) * stride_of(size) + output + h.output(n, i);
            *reinterpret_cast<u32*>(to) = pack_bf16(low, high);
          }
        }
      }
    }
    __syncwarp();
  }

 private:
  GPU_FN static void store_4_as_bf16(bf16* to, float4 v) {
    *reinterpret_cast<uint2*>(to) = make_uint2(pack_bf16(v.x, v.y), pack_bf16(v.z, v.w));
  }
};

}  // namespace tensor
}  // namespace gpu
