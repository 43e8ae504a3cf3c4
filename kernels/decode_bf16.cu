// Decoder: e' = W2 relu(W1 z + b1) + b2 (plain), or e + W2 (h(z) - h(mu of the seed)) (residual)
// latents [count, latent] stored, W1 [hidden, latent], W2 [dim, hidden] BF16; out [count, dim]
// A block keeps a slice of W2 (blockIdx.y) in shared memory; a warp takes 32 latents at a time, on its own
// 2 (latent hidden + hidden dim) FLOP a latent; writes a row by 16 bytes, reads the seed's if residual
// Needs hidden and latent multiples of 16, columns a multiple of 64, shared memory as layout.rs counts it
// Accuracy: operands and the hidden layer rounded to BF16, sums in F32: 2^-8 of the summed magnitudes
// Reference: src/backend/cpu/infer.rs, `decode`
// H200 by model, 2026-11, ns a row at d = 4096: DRAM 1.91, L2 1.88, L1 1.34, tensor 0.83; bound by memory
#include "include/decoder_bf16.cuh"

namespace decode_bf16 {

using gpu::bf16;
using gpu::u32;
using gpu::u64;
using namespace gpu::tensor;

struct layout {
  decoder_input input;
  bf16* w2;     // of the slice, its columns in the order of `column_of`
  float* bias;  // in order; zeros behind the last column

  GPU_FN layout(gpu::carver& carve, u32 hidden, u32 latent, u32 columns) : input(carve, hidden, latent) {
    w2 = carve.take<bf16>(size_t(columns) * stride_of(hidden));
    bias = carve.take<float>(columns);
  }
};

/// Decodes with sizes that the caller knows more or less of: constants make the loops straight. 16 R rows
/// of a warp's latents go through the slice together; what is not known takes registers from them. `whole`:
/// rows are whole 16 bytes of S, and the width of the slice whole tiles.
template <u32 R, class S>
GPU_FN void decode(const layout& shared, const params::latents& source, u64 count, u32 dim, u32 hidden,
                   u32 latent, u32 slice, u32 width, const float* b1, const params::seeds& seeds,
                   bool residual, bool whole, S* out) {
  using tile = decoded<S, R>;
  constexpr u32 COUNT = tile::COUNT;
  const u32 stride = stride_of(hidden), own = shared.input.first_row();
  for (u64 first = u64(blockIdx.x) * LATENTS; first + own < count; first += u64(gridDim.x) * LATENTS) {
    shared.input.fill(source, first, count, latent, hidden, b1, residual ? seeds.mu : nullptr);
    for (u32 part = own; part < own + LATENTS_OF_WARP; part += 16 * R) {
      const bf16* const h = shared.input.hidden + part * stride;
      const u64 row = first + part + tile::row_of(0);
      S* const to = out + row * dim + slice;
      u32 seed[2 * R], there = 0;  // `there`: a bit for each of the lane's rows
#pragma unroll
      for (u32 i = 0; i < 2 * R; i++) {
        if (row + 8 * i < count) there |= 1u << i;
        seed[i] = residual && row + 8 * i < count ? gpu::owner_of(source, row + 8 * i) : 0;
      }
#pragma unroll 1
      for (u32 from = 0; from < width; from += OUTPUTS) {
        tile t;
        if (residual) {
          by_type(seeds.dtype, [&](auto type) {
            t.each([&](u32 i, u32 c, float(&v)[COUNT]) {
              const u32 left = whole ? COUNT : width > from + c ? width - from - c : 0;
              const u64 at = u64(seed[i]) * dim + slice + from + c;
              gpu::read_as<decltype(type)>(v, seeds.embeddings, at, left, whole);
            });
          });
        } else {
          t.each([&](u32, u32 c, float(&v)[COUNT]) { gpu::load_aligned(v, shared.bias + from + c); });
        }
        t.template add<true, true>(h, stride, shared.w2 + from * stride, stride, hidden);
        t.each([&](u32 i, u32 c, float(&v)[COUNT]) {
          if (!(there >> i & 1)) return;
          S* const at = to + u64(8 * i) * dim + from + c;
          if (whole) {
            gpu::store_16_streaming(at, gpu::pack_16(v, S{}));
          } else {
#pragma unroll
            for (u32 j = 0; j < COUNT; j++)
              if (from + c + j < width) at[j] = gpu::from_f32<S>(v[j]);
          }
        });
      }
    }
  }
}

template <class S>
GPU_FN void run(const params::decode<S, bf16>& p) {
  const float* b1 = p.b1;
  S* out = p.out;
  const params::latents& source = p.source;
  const params::seeds& seeds = p.seeds;
  const u64 count = p.count;
  const u32 dim = p.dim, hidden = p.hidden, latent = p.latent, columns = p.columns;
  extern __shared__ __align__(1024) unsigned char memory[];
  gpu::carver carve(memory);
  const layout shared(carve, hidden, latent, columns);
  const u32 slice = blockIdx.y * columns, width = dim - slice < columns ? dim - slice : columns;
  shared.input.load(p.w1, hidden, latent);
  copy_rows_of(shared.w2, stride_of(hidden), p.w2, column_of<gpu::vec16<S>::COUNT>{slice}, dim, hidden, 0,
               hidden, columns);
  for (u32 c = threadIdx.x; c < columns; c += THREADS)
    shared.bias[c] = c < width ? gpu::read(p.b2 + slice + c) : 0.0f;
  gpu::copy_async_wait_all();
  __syncthreads();

  const bool whole = dim % gpu::vec16<S>::COUNT == 0 && width % OUTPUTS == 0, residual = seeds.mu;
  if (whole && hidden == 64 && latent == 16 && residual)
    decode<2>(shared, source, count, dim, 64, 16, slice, width, b1, seeds, true, true, out);
  else if (whole && hidden == 64 && latent == 16)
    decode<2>(shared, source, count, dim, 64, 16, slice, width, b1, seeds, false, true, out);
  else
    decode<1>(shared, source, count, dim, hidden, latent, slice, width, b1, seeds, residual, whole, out);
}

}  // namespace decode_bf16

#define KERNEL(name, S) \
  extern "C" __global__ void __launch_bounds__(gpu::tensor::THREADS, 3) \
      name(const __grid_constant__ params::decode<S, gpu::bf16> p) { \
    decode_bf16::run(p); \
  }
KERNEL(decode_bf16_f32, float)
KERNEL(decode_bf16_f16, gpu::f16)
KERNEL(decode_bf16_bf16, gpu::bf16)
#undef KERNEL
