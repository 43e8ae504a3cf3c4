// A tile of seeds through the encoder, with its codes in shared memory, and latents of it through the
// decoder, with W4 streamed past them: what kernels that do both in one launch share.
#pragma once
#include "decoder_bf16.cuh"
#include "encoder_bf16.cuh"

namespace gpu {
namespace tensor {

/// Stages of asynchronous copies: of rows and W1, and of 64 columns of W4.
constexpr u32 ENCODER_STAGES = 3, DECODER_STAGES = 3;
/// Most vectors of which a stage brings 64 columns beside W4, as the bias is one.
constexpr u32 VECTORS = 3;

/// Shared memory. What follows the decoder's W3 has three uses, one after the other for each tile: stages and
/// the hidden layer of the encoder; `free` for whoever stands between; latents and stages of the decoder.
struct autoencoder {
  bf16* w2;
  float *mu, *logvar, *start;  // [ROWS, latent]
  u32* candidates;             // [ROWS, keep]
  decoder_input input;
  bf16* w4;
  float* vectors;
  unsigned char* free;
  bf16 *stages, *hidden;

  GPU_FN autoencoder(carver& carve, u32 size, u32 latent, u32 keep)
      : w2(carve.take<bf16>(size_t(2) * latent * stride_of(size))),
        mu(carve.take<float>(size_t(ROWS) * latent)),
        logvar(carve.take<float>(size_t(ROWS) * latent)),
        start(carve.take<float>(size_t(ROWS) * latent)),
        candidates(carve.take<u32>(size_t(ROWS) * keep)),
        input(carve, size, latent) {
    w4 = carve.take<bf16>(size_t(DECODER_STAGES) * OUTPUTS * stride_of(size));
    vectors = carve.take<float>(DECODER_STAGES * VECTORS * OUTPUTS);
    free = reinterpret_cast<unsigned char*>(input.z);
    carver encoder(free);
    stages = encoder.take<bf16>(stages_of(ENCODER_STAGES, OUTPUTS));
    hidden = encoder.take<bf16>(size_t(ROWS) * stride_of(size));
  }

  /// Brings in what stays: W2 and W3.
  GPU_FN void load(const params::autoencoder<bf16>& p) const {
    copy_rows(w2, stride_of(p.hidden), p.w2, 0, 2 * p.latent, p.hidden, 0, p.hidden, 2 * p.latent);
    input.load(p.w3, p.hidden, p.latent);
    copy_async_wait_all();
    // The first barrier of add_stored stands between this and its use.
  }

  /// Codes of the 64 rows from `first` on, and what their candidates start from: one posterior sample, or mu.
  /// Behind this all threads may read them, and `free` is free.
  GPU_FN void encode(const params::autoencoder<bf16>& p, u64 first) const {
    const u32 size = p.hidden, latent = p.latent, own = threadIdx.x / WARP * ROWS_OF_WARP;
    bf16* const rows = hidden + own * stride_of(size);
    by_type(p.dtype, [&](auto type) {
      using S = decltype(type);
      encode_hidden<true, ENCODER_STAGES>(rows, stages, static_cast<const S*>(p.embeddings), first, p.rows,
                                          p.w1, p.b1, size, p.dim);
    });
    __syncwarp();
    encode_codes(rows, w2, p.b2, size, latent, [&](float2 m, float2 v, u32 row, u32 at) {
      const u32 to = (own + row) * latent + at;
      *reinterpret_cast<float2*>(mu + to) = m;
      *reinterpret_cast<float2*>(logvar + to) = v;
    });
    __syncwarp();
    const u32 blocks = latent / 4;
    for (u32 i = threadIdx.x % WARP; i < ROWS_OF_WARP * blocks; i += WARP) {
      const u32 row = own + i / blocks, block = i % blocks, at = row * latent + 4 * block;
      const u64 number = p.noise.first_row + first + row;
      const float4 m = load_4(mu + at), v = load_4(logvar + at);
      store_4(start + at, start_of(p.noise, number, block, m, v, p.mean != 0));
    }
    __syncthreads();
  }

  /// Decodes the latents whose hidden rows lie in `input`, 16 R of them a warp's own, 64 columns at a time:
  /// `begin(rows, column, v)` starts sums, `end(rows, column, v)` takes results; v points at those columns of
  /// each of `wanted`, 64 after 64. A warp that has no latents, without `some`, waits for the others. The
  /// width is a multiple of 64.
  template <u32 R, class S, u32 V, class BEGIN, class END>
  GPU_FN void decode(const params::autoencoder<bf16>& p, u32 size, bool some, const float* const (&wanted)[V],
                     BEGIN begin, END end) const {
    static_assert(V <= VECTORS);
    using rows = decoded<S, R>;
    const u32 stride = stride_of(size), stage = OUTPUTS * stride, slices = p.dim / OUTPUTS;
    const bf16* const own = input.hidden + threadIdx.x / WARP * 16 * R * stride;
    // A thread brings eight values at a time of every 16th row of a stage. Those of row s + 16 i lie behind
    // those of row s by as many columns for every s: `column_of` keeps the two parts of its argument apart.
    const column_of<rows::COUNT> column{0};
    const u32 row = threadIdx.x / 8, unit = threadIdx.x % 8 * 8;
    const bf16* from = p.w4 + column(row) * size + unit;
    auto bring = [&](u32 to, u32 slice) {
      if (slice < slices) {
        if (threadIdx.x < OUTPUTS / 4) {
#pragma unroll
          for (u32 i = 0; i < V; i++) {
            float* const target = vectors + (to * VECTORS + i) * OUTPUTS + 4 * threadIdx.x;
            copy_async_16(target, wanted[i] + slice * OUTPUTS + 4 * threadIdx.x);
          }
        }
        for (u32 k = unit; k < size; k += 64) {
#pragma unroll
          for (u32 i = 0; i < OUTPUTS / 16; i++) {
            bf16* const target = w4 + to * stage + (row + 16 * i) * stride + k;
            copy_async_16(target, from + u32(column(16 * i)) * size + (k - unit));
          }
        }
        from += OUTPUTS * size;
      }
      copy_async_commit();
    };
    // The stages may still be read for what came before.
    __syncthreads();
#pragma unroll
    for (u32 s = 0; s < DECODER_STAGES - 1; s++) bring(s, s);
    // The stage that is read, and the one that is filled.
    u32 read = 0, write = DECODER_STAGES - 1;
#pragma unroll 1
    for (u32 slice = 0; slice < slices; slice++) {
      copy_async_wait<DECODER_STAGES - 2>();
      __syncthreads();
      // Into the stage that all have left since the barrier.
      bring(write, slice + DECODER_STAGES - 1);
      if (some) {
        const float* const v = vectors + read * (VECTORS * OUTPUTS);
        rows t;
        begin(t, slice * OUTPUTS, v);
        t.template add<true, true>(own, stride, w4 + read * stage, stride, size);
        end(t, slice * OUTPUTS, v);
      }
      read = read == DECODER_STAGES - 1 ? 0 : read + 1;
      write = write == DECODER_STAGES - 1 ? 0 : write + 1;
    }
  }
};

}  // namespace tensor
}  // namespace gpu
