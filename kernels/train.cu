// archs: sm_75+
// Training, what both models need: standardised rows of the batch, summed losses, the turn of the next step
// embeddings [n, dim] F32, F16 or BF16; batch x [2 batch, dim] F32; table [steps + 1]
// A row of the batch belongs to one block; rows past the batch's end become zeros
// 2 FLOP a value; reads the storage type, writes 4 bytes
// Needs nothing of alignment
// Exact: the bits of `Standardizer::apply`
// Reference: src/model/standardizer.rs
// H200 by model, 2026-11: among the 25.2 us of a VAE step and the 24.0 us of a reward step (BF16)
#define LAUNCHES_START_EARLY
#include "include/gather.cuh"
#include "include/normal.cuh"

namespace train {

using gpu::read;
using gpu::u32;
using gpu::u64;
using params::step;

constexpr u32 THREADS = 256;

}  // namespace train

/// A batch of pairs, the chosen side (part 0) first: pair p is row `order[first + p]` of both parts.
extern "C" __global__ void __launch_bounds__(train::THREADS)
    gather_pairs(const __grid_constant__ params::gather_pairs p) {
  gpu::begin_early();
  using namespace train;
  const step now = gpu::running(p.now);
  const u32 dim = p.dim, batch = p.batch;
  for (u32 r = blockIdx.x; r < 2 * batch; r += gridDim.x) {
    const u32 side = r / batch, pair = r % batch;
    const u32 source = pair < now.pairs ? read(p.order + now.first + pair) : gpu::NO_ROW;
    gpu::gather_row<THREADS>(p.from, side, source, dim, p.mean, p.std, p.x + u64(r) * dim);
  }
}

/// Rows of a batch in any order: row r of step s is `rows[2 batch s + r]`, (part, source, latent, pair).
/// Those without a source are zeros. Where `noise` is positive, each row of a pair gets normals of that
/// standard deviation: element (row = pair, side = lowest bit of the part, candidate = step).
extern "C" __global__ void __launch_bounds__(train::THREADS)
    gather_rows(const __grid_constant__ params::gather_rows p) {
  gpu::begin_early();
  using namespace train;
  const step now = gpu::running(p.now);
  const u32 dim = p.dim, batch = p.batch;
  const float noise = p.noise;
  const uint2 key = make_uint2(u32(p.seed), u32(p.seed >> 32));
  for (u32 r = blockIdx.x; r < 2 * batch; r += gridDim.x) {
    const uint4 row = read(p.rows + u64(2) * now.first + r);
    float* const to = p.x + u64(r) * dim;
    gpu::gather_row<THREADS>(p.from, row.x, row.y, dim, p.mean, p.std, to);
    if (noise <= 0.0f || row.w == gpu::NO_ROW) continue;
    // Four elements a thread now, which other threads wrote.
    __syncthreads();
    const gpu::address at = {gpu::purpose::input_noise, row.x & 1u, row.w, now.candidate};
    for (u32 block = threadIdx.x; 4 * block < dim; block += THREADS) {
      const float4 n = gpu::normals(at, block, key);
      const float normals[4] = {n.x, n.y, n.z, n.w};
#pragma unroll
      for (u32 i = 0; i < 4; i++) {
        const u32 column = 4 * block + i;
        if (column < dim) to[column] = __fadd_rn(to[column], __fmul_rn(noise, normals[i]));
      }
    }
  }
}

/// Ends a step that does not learn (adam_f32 ends the others): a block a term of the losses.
extern "C" __global__ void __launch_bounds__(train::THREADS)
    end_step(const __grid_constant__ params::end_step p) {
  gpu::begin_early();
  extern __shared__ __align__(1024) unsigned char memory[];
  gpu::carver carve(memory);
  gpu::add_losses(p, carve.take<double>(train::THREADS / gpu::WARP));
  if (blockIdx.x == 0 && threadIdx.x == 0) gpu::next_step(p);
}
