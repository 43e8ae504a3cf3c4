// archs: sm_75+
// Of `drawn` candidates z' = z + sigma * eta of a row, the `keep` likeliest under N(center, 1 / precision^2)
// mu, logvar [rows, latent] F32, latent a multiple of 16; out [rows, keep] u32, best first, ties by number
// A row belongs to 4 to 32 lanes of one warp, as many as it has candidates; a lane owns a candidate at a time
// Reads 8 * latent bytes, writes 4 * keep a row; some 65 FLOP, 30 integer operations a latent and candidate
// Needs 1 <= keep <= 256, keep <= drawn, row numbers below 2^48, shared memory as layout.rs counts it
// Exact: candidates and bits of z' are those of the reference, at any launch geometry
// Reference: backend/cpu/latents.rs, `select` and `perturb`
// H200 by model, 2026-11, ns: select ALU 1.05, issue 0.96 a row; start DRAM 0.04; perturb ALU 0.03 a latent
#include "include/ranking.cuh"

namespace perturb {

using gpu::candidate_of;
using gpu::read_4;
using gpu::start_of;
using gpu::store_4;
using gpu::u32;
using gpu::u64;
using gpu::ranking::THREADS;

}  // namespace perturb

extern "C" __global__ void __launch_bounds__(perturb::THREADS)
    select_f32(const __grid_constant__ params::select p) {
  using namespace perturb;
  namespace ranking = gpu::ranking;
  const u64 rows = p.rows;
  const u32 latent = p.latent, keep = p.keep;
  const ranking::options options = {p.noise, latent, keep, p.drawn, ranking::likelihood(p.likelihood)};
  if (options.likelihood == ranking::likelihood::none) {
    // Nothing ranks them: the first ones stay.
    const u64 stride = u64(gridDim.x) * THREADS;
    for (u64 i = u64(blockIdx.x) * THREADS + threadIdx.x; i < rows * keep; i += stride)
      p.out[i] = u32(i % keep);
    return;
  }
  extern __shared__ __align__(1024) unsigned char memory[];
  gpu::carver carve(memory);
  const ranking::layout shared(carve, latent, keep, p.drawn);
  // All lanes of a warp go the same way through what follows.
  for (u64 base = u64(blockIdx.x) * shared.rows; base < rows; base += u64(gridDim.x) * shared.rows)
    ranking::rank(
        shared, options, base, rows,
        [&](u64 row, u32 block, float4& m, float4& v) {
          const u64 from = row * latent + 4 * block;
          m = read_4(p.mu + from);
          v = read_4(p.logvar + from);
          return start_of(p.noise, p.noise.first_row + row, block, m, v, p.mean != 0);
        },
        [&](u64 row, u32 i, u32 candidate) { p.out[row * keep + i] = candidate; });
}

/// What the candidates of each row start from, one posterior sample: [rows, latent]. A thread owns four
/// elements of a row. Made once for a block of rows, so that whoever draws its candidates needs one normal
/// an element, not two.
extern "C" __global__ void __launch_bounds__(perturb::THREADS)
    start_f32(const __grid_constant__ params::start p) {
  using namespace perturb;
  const u32 latent = p.latent;
  const u32 blocks = latent / 4;
  const u64 stride = u64(gridDim.x) * THREADS;
  for (u64 i = u64(blockIdx.x) * THREADS + threadIdx.x; i < p.rows * blocks; i += stride)
    store_4(p.out + 4 * i, start_of(p.noise, p.noise.first_row + i / blocks, u32(i % blocks),
                                  read_4(p.mu + 4 * i), read_4(p.logvar + 4 * i), false));
}

/// z' of samples (row in the block of rows, candidate) from their rows' starts: [count, latent]. A thread
/// owns four elements of a sample.
extern "C" __global__ void __launch_bounds__(perturb::THREADS)
    perturb_f32(const __grid_constant__ params::perturb p) {
  using namespace perturb;
  const u32 latent = p.latent;
  const u32 blocks = latent / 4;
  const u64 stride = u64(gridDim.x) * THREADS;
  for (u64 i = u64(blockIdx.x) * THREADS + threadIdx.x; i < p.count * blocks; i += stride) {
    const u32 block = u32(i % blocks);
    const uint2 who = gpu::read(p.samples + i / blocks);
    const float4 start = read_4(p.starts + u64(who.x) * latent + 4 * block);
    store_4(p.out + 4 * i, candidate_of(p.noise, p.noise.first_row + who.x, who.y, block, start));
  }
}
