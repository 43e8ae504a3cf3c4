// The decoder's first layer on tensor cores, from latents to hidden rows in shared memory: what decode and
// the folded score begin with.
#pragma once
#include "latent.cuh"
#include "mlp_bf16.cuh"

namespace gpu {
namespace tensor {

/// Latents that a warp of a decoder owns at a time, and a block.
constexpr u32 LATENTS_OF_WARP = 32, LATENTS = WARPS * LATENTS_OF_WARP;

/// The decoder's first layer of a block's latents, as many of them a warp's own: nothing here waits for other
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

  GPU_FN static u32 first_row() { return threadIdx.x / WARP * LATENTS_OF_WARP; }

  /// hidden = relu(W1 z + b1) of the warp's rows of latents `first` and on, or, given the seeds' means, its
  /// difference from that of the latent's seed.
  GPU_FN void fill(const params::latents& source, u64 first, u64 count, u32 latent, u32 size, const float* b1,
                   const float* base_mu) const {
    const u64 row = first + first_row() + threadIdx.x % WARP;
    const bool there = row < count;
    const u64 seed = base_mu && there ? owner_of(source, row) : 0;
    const float4 none = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    fill_by<LATENTS_OF_WARP>(
        [&](u32 block) { return there ? latent_of(source, row, block, latent) : none; },
        [&](u32 block) { return there ? read_4(base_mu + seed * latent + 4 * block) : none; }, base_mu,
        latent, size, b1);
  }

  /// The same of `OF_WARP` latents a warp, a lane's own by `value(block)`, and its seed's mean by
  /// `mean_of(block)`: elements 4 * block .. 4 * block + 3. What the warp read of the former ones must lie
  /// before a barrier, as that at the end of this.
  template <u32 OF_WARP, class Z, class M>
  GPU_FN void fill_by(Z value, M mean_of, bool residual, u32 latent, u32 size, const float* b1) const {
    const u32 lane = threadIdx.x % WARP, first = threadIdx.x / WARP * OF_WARP, stride = stride_of(latent);
    if (OF_WARP == WARP || lane < OF_WARP) {
#pragma unroll 1
      for (u32 block = 0; block < latent / 4; block++) {
        store_4_as_bf16(z + (first + lane) * stride + 4 * block, value(block));
        if (residual) store_4_as_bf16(mean + (first + lane) * stride + 4 * block, mean_of(block));
      }
    }
    __syncwarp();
#pragma unroll 1
    for (u32 from = first; from < first + OF_WARP; from += 16) {
      for (u32 output = 0; output < size; output += OUTPUTS) {
        const u32 left = size - output, wide = left < OUTPUTS ? left / 16 : OUTPUTS / 16;
        tile<1, OUTPUTS / 16> h, of_mean;
        h.start(b1 + output, left);
        h.add<true, true>(z + from * stride, stride, w1 + output * stride, stride, latent, wide);
        if (residual) {
          of_mean.start(b1 + output, left);
          of_mean.add<true, true>(mean + from * stride, stride, w1 + output * stride, stride, latent, wide);
        }
#pragma unroll
        for (u32 n = 0; n < 2 * OUTPUTS / 16; n++) {
          if (n >= 2 * wide) break;
#pragma unroll
          for (u32 i = 0; i < 4; i += 2) {
            float low = relu_nan(h.sum[0][n][i]), high = relu_nan(h.sum[0][n][i + 1]);
            if (residual) {
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

/// Which column of a slice lies in row s of the shared W2. In the fragments of a product a lane holds two
/// neighbouring outputs out of every eight; in this order those of COUNT / 2 fragments are COUNT neighbouring
/// columns, 16 bytes of S, so that results are stored straight from registers. Within every
/// 4 COUNT outputs, output 8 m + 2 t + i is column COUNT t + 2 m + i.
template <u32 COUNT>
struct column_of {
  u32 slice;
  GPU_FN u64 operator()(u32 s) const {
    const u32 group = s / (4 * COUNT), m = s % (4 * COUNT) / 8, t = s % 8 / 2;
    return slice + 4 * COUNT * group + COUNT * t + 2 * m + s % 2;
  }
};

/// A warp's decoded rows: 16 R rows by 64 columns of type S, of which a lane holds COUNT neighbours at a
/// time.
template <class S, u32 R>
struct decoded : tile<R, OUTPUTS / 16> {
  static constexpr u32 COUNT = vec16<S>::COUNT, GROUPS = OUTPUTS / (4 * COUNT);

  /// First column of the lane's part of a group.
  GPU_FN static u32 column(u32 group) { return 4 * COUNT * group + threadIdx.x % 4 * COUNT; }
  GPU_FN float& at(u32 r, u32 half, u32 group, u32 j) {
    return this->sum[r][COUNT / 2 * group + j / 2][2 * half + j % 2];
  }

  /// Calls f(row within the tile, column, values of the lane there) for each 16 bytes, and takes them back.
  template <class F>
  GPU_FN void each(F f) {
#pragma unroll
    for (u32 r = 0; r < R; r++) {
#pragma unroll
      for (u32 half = 0; half < 2; half++) {
#pragma unroll
        for (u32 group = 0; group < GROUPS; group++) {
          float v[COUNT];
#pragma unroll
          for (u32 j = 0; j < COUNT; j++) v[j] = at(r, half, group, j);
          f(2 * r + half, column(group), v);
#pragma unroll
          for (u32 j = 0; j < COUNT; j++) at(r, half, group, j) = v[j];
        }
      }
    }
  }
  /// Row within the tile of the number that `each` gives.
  GPU_FN static u32 row_of(u32 number) { return 8 * number + threadIdx.x % WARP / 4; }
};

/// Calls f(a value of the type) for one that is known at run time: 0 F32, 1 F16, 2 BF16. One branch for all
/// that f does.
template <class F>
GPU_FN void by_type(u32 dtype, F f) {
  if (dtype == 0)
    f(float{});
  else if (dtype == 1)
    f(f16{});
  else
    f(bf16{});
}

}  // namespace tensor
}  // namespace gpu
