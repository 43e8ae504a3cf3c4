// Synthesis in one launch: seeds are encoded, their candidates z' ranked as in perturb.cu, the best decoded:
// e' = W4 relu(W3 z' + b3) + b4 (plain), or e + W4 (h(z') - h(mu)) (residual); and errors of reconstruction
// embeddings [rows, dim] F32, F16 or BF16; out [rows, keep, dim], candidates [rows, keep]; errors [rows, 2]
// A block owns 64 seeds at a time; codes and latents stay in shared memory, W1 and W4 stream past from L2
// 2 hidden (dim + 2 latent) FLOP a row, 2 hidden (latent + dim) a latent; reads a row, writes `keep` rows
// Needs dim a multiple of 64, hidden and latent of 16, keep <= 256, shared memory as layout.rs counts it
// Accuracy: the bits of encode_bf16.cu, perturb.cu and decode_bf16.cu; errors are sums in F32
// Reference: src/backend/steps.rs
// H200 by model, 2026-11, ns a seed, d = 4096, 2 of 8 kept: L2 7.37, DRAM 5.69, L1 4.35, ALU 2.37; residual
// L2 8.84, DRAM 5.69; errors L2 6.02, L1 4.24, DRAM 1.93; bound by L2
#include "include/autoencoder_bf16.cuh"
#include "include/ranking.cuh"

namespace synthesize_bf16 {

using gpu::bf16;
using gpu::load_4;
using gpu::u32;
using gpu::u64;
using namespace gpu::tensor;
namespace ranking = gpu::ranking;

/// Numbers of the candidates of the 64 seeds from `first` on, best first, to shared and global memory.
template <class S>
GPU_FN void select(const autoencoder& shared, const params::synthesize<S, bf16>& p, u64 first) {
  const ranking::options o = {p.of.noise, p.of.latent, p.keep, p.drawn, ranking::likelihood(p.likelihood)};
  if (o.likelihood == ranking::likelihood::none) {
    for (u32 i = threadIdx.x; i < ROWS * o.keep; i += THREADS) shared.candidates[i] = i % o.keep;
  } else {
    gpu::carver carve(shared.free);
    const ranking::layout lists(carve, o.latent, o.keep, o.drawn);
    const u64 last = p.of.rows - first < ROWS ? p.of.rows : first + ROWS;
    for (u64 base = first; base < last; base += lists.rows)
      ranking::rank(
          lists, o, base, last,
          [&](u64 row, u32 block, float4& m, float4& v) {
            const u32 at = u32(row - first) * o.latent + 4 * block;
            m = load_4(shared.mu + at);
            v = load_4(shared.logvar + at);
            return load_4(shared.start + at);
          },
          [&](u64 row, u32 i, u32 candidate) {
            shared.candidates[u32(row - first) * o.keep + i] = candidate;
          });
  }
  __syncthreads();
}

/// Decodes what was selected of the seeds from `first` on, 16 R latents a warp at a time, with sizes that the
/// caller knows more or less of: what is not known takes registers from them.
template <u32 R, class S>
GPU_FN void decode(const autoencoder& shared, const params::synthesize<S, bf16>& p, u64 first, u32 size,
                   u32 latent, bool residual) {
  using rows = decoded<S, R>;
  constexpr u32 COUNT = rows::COUNT, OF_WARP = 16 * R;
  const u32 keep = p.keep, seeds = p.of.rows - first < ROWS ? u32(p.of.rows - first) : ROWS;
  const u32 count = seeds * keep, own = threadIdx.x / gpu::WARP * OF_WARP;
  S* const out = p.out + first * keep * p.of.dim;
  for (u32 i = threadIdx.x; i < count; i += THREADS)
    p.candidates[first * keep + i] = shared.candidates[i];
  for (u32 from = 0; from < count; from += WARPS * OF_WARP) {
    const u32 number = from + own + threadIdx.x % gpu::WARP;
    const bool there = number < count;
    const u32 seed = there ? number / keep : 0, candidate = there ? shared.candidates[number] : 0;
    const u64 row = p.of.noise.first_row + first + seed;
    const float4 none = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    shared.input.fill_by<OF_WARP>(
        [&](u32 block) {
          if (!there) return none;
          const float4 start = load_4(shared.start + seed * latent + 4 * block);
          return gpu::candidate_of(p.of.noise, row, candidate, block, start);
        },
        [&](u32 block) { return there ? load_4(shared.mu + seed * latent + 4 * block) : none; }, residual,
        latent, size, p.of.b3);
    const u32 ours = from + own + rows::row_of(0);
    S* const to = out + u64(ours) * p.of.dim;
    u32 seed_of[2 * R], exist = 0;  // of the lane's rows; a bit for each
#pragma unroll
    for (u32 i = 0; i < 2 * R; i++) {
      if (ours + 8 * i < count) exist |= 1u << i;
      seed_of[i] = residual && ours + 8 * i < count ? (ours + 8 * i) / keep : 0;
    }
    shared.template decode<R, S>(
        p.of, size, from + own < count, {p.of.b4},
        [&](rows& t, u32 column, const float* bias) {
          if (residual) {
            by_type(p.of.dtype, [&](auto type) {
              t.each([&](u32 i, u32 c, float(&v)[COUNT]) {
                const u64 at = (first + seed_of[i]) * p.of.dim + column + c;
                gpu::read_as<decltype(type)>(v, p.of.embeddings, at, COUNT, true);
              });
            });
          } else {
            t.each([&](u32, u32 c, float(&v)[COUNT]) { gpu::load_aligned(v, bias + c); });
          }
        },
        [&](rows& t, u32 column, const float*) {
          t.each([&](u32 i, u32 c, float(&v)[COUNT]) {
            if (exist >> i & 1)
              gpu::store_16_streaming(to + u64(8 * i) * p.of.dim + column + c, gpu::pack_16(v, S{}));
          });
        });
  }
}

template <class S>
GPU_FN void run(const params::synthesize<S, bf16>& p) {
  extern __shared__ __align__(1024) unsigned char memory[];
  gpu::carver carve(memory);
  const autoencoder shared(carve, p.of.hidden, p.of.latent, p.keep);
  shared.load(p.of);
  for (u64 first = u64(blockIdx.x) * ROWS; first < p.of.rows; first += u64(gridDim.x) * ROWS) {
    shared.encode(p.of, first);
    select(shared, p, first);
    if (p.of.hidden == 64 && p.of.latent == 16 && p.residual)
      decode<2>(shared, p, first, 64, 16, true);
    else if (p.of.hidden == 64 && p.of.latent == 16)
      decode<2>(shared, p, first, 64, 16, false);
    else
      decode<1>(shared, p, first, p.of.hidden, p.of.latent, p.residual);
  }
}

}  // namespace synthesize_bf16

#define KERNEL(name, S) \
  extern "C" __global__ void __launch_bounds__(gpu::tensor::THREADS, 2) \
      name(const __grid_constant__ params::synthesize<S, gpu::bf16> p) { \
    synthesize_bf16::run(p); \
  }
KERNEL(synthesize_bf16_f32, float)
KERNEL(synthesize_bf16_f16, gpu::f16)
KERNEL(synthesize_bf16_bf16, gpu::bf16)
#undef KERNEL

/// Squared errors of decoded starts, and squares of the rows themselves, both standardised: [rows, 2].
extern "C" __global__ void __launch_bounds__(gpu::tensor::THREADS, 2)
    reconstruct_bf16(const __grid_constant__ params::reconstruct<gpu::bf16> p) {
  using namespace synthesize_bf16;
  using rows = decoded<bf16, 1>;
  constexpr u32 COUNT = rows::COUNT;
  extern __shared__ __align__(1024) unsigned char memory[];
  gpu::carver carve(memory);
  const autoencoder shared(carve, p.of.hidden, p.of.latent, 0);
  shared.load(p.of);
  const u32 latent = p.of.latent, own = threadIdx.x / gpu::WARP * ROWS_OF_WARP;
  const float* const start = shared.start + (own + threadIdx.x % gpu::WARP) * latent;
  for (u64 first = u64(blockIdx.x) * ROWS; first < p.of.rows; first += u64(gridDim.x) * ROWS) {
    shared.encode(p.of, first);
    const u32 seeds = p.of.rows - first < ROWS ? u32(p.of.rows - first) : ROWS;
    for (u32 i = threadIdx.x; i < seeds * latent; i += THREADS) {
      p.mu[first * latent + i] = shared.mu[i];
      p.logvar[first * latent + i] = shared.logvar[i];
    }
    // A warp decodes the rows that it encoded.
    shared.input.fill_by<ROWS_OF_WARP>(
        [&](u32 block) { return load_4(start + 4 * block); },
        [&](u32) { return make_float4(0.0f, 0.0f, 0.0f, 0.0f); }, false, latent, p.of.hidden, p.of.b3);
    u64 row[2];
#pragma unroll
    for (u32 i = 0; i < 2; i++) {
      row[i] = first + own + rows::row_of(i);
      if (row[i] >= p.of.rows) row[i] = p.of.rows - 1;
    }
    float error[2] = {}, total[2] = {};
    shared.decode<1, bf16>(
        p.of, p.of.hidden, true, {p.of.b4, p.mean, p.scale},
        [&](rows& t, u32, const float* vectors) {
          t.each([&](u32, u32 c, float(&v)[COUNT]) { gpu::load_aligned(v, vectors + c); });
        },
        [&](rows& t, u32 column, const float* vectors) {
          by_type(p.of.dtype, [&](auto type) {
            t.each([&](u32 i, u32 c, float(&v)[COUNT]) {
              float seed[COUNT], mean[COUNT], scale[COUNT];
              const u64 at = row[i] * p.of.dim + column + c;
              gpu::read_as<decltype(type)>(seed, p.of.embeddings, at, COUNT, true);
              gpu::load_aligned(mean, vectors + OUTPUTS + c);
              gpu::load_aligned(scale, vectors + 2 * OUTPUTS + c);
#pragma unroll
              for (u32 j = 0; j < COUNT; j++) {
                const float there = (seed[j] - mean[j]) * scale[j], off = (v[j] - seed[j]) * scale[j];
                error[i] = __fmaf_rn(off, off, error[i]);
                total[i] = __fmaf_rn(there, there, total[i]);
              }
            });
          });
        });
#pragma unroll
    for (u32 i = 0; i < 2; i++) {
      // Four lanes hold a row.
      for (u32 step = 1; step < 4; step *= 2) {
        error[i] += __shfl_xor_sync(gpu::ALL_LANES, error[i], step);
        total[i] += __shfl_xor_sync(gpu::ALL_LANES, total[i], step);
      }
      if (threadIdx.x % 4 == 0 && own + rows::row_of(i) < seeds)
        gpu::store_2(p.out + 2 * row[i], make_float2(error[i], total[i]));
    }
  }
}
