// archs: sm_75+
// VAE training between the products: reparameterisation, KL, W2, reconstruction, and their gradients
// code [2 batch, 2 latent] = (mu, logvar), z and eps [2 batch, latent], out and x [2 batch, dim]
// A warp owns a pair of codes, a thread four values of z, a block a row of out; rows past the batch are zeros
// A few F64 operations and two exponentials a latent; reads and writes out once
// Needs latent a multiple of 16; row numbers below 2^32
// Accuracy: losses and gradients of the codes in F64, rounded once; sums of squares in F64
// Reference: src/backend/cpu/train/{vae,latent_block,output_layer}.rs
// H200 by model, 2026-11: among the 25.2 us of a VAE step in BF16; vae_reconstruct bound by memory
#define LAUNCHES_START_EARLY
#include "include/vae_codes.cuh"

namespace train_vae {

using gpu::read;
using gpu::u32;
using gpu::u64;
using params::step;

constexpr u32 THREADS = 128, WARPS = THREADS / gpu::WARP;

/// z and eps of all codes. A thread makes four elements.
GPU_FN void sample(const params::vae_codes& p, const step& now, u32 worker, u32 workers) {
  const u32 blocks = p.latent / 4, count = 2 * p.batch * blocks;
  for (u32 i = worker * THREADS + threadIdx.x; i < count; i += workers * THREADS)
    gpu::sample_code(p, now, i / blocks, i % blocks);
}

/// KL and divergence of all pairs and their gradients. A warp takes a pair.
GPU_FN void divergences(const params::vae_codes& p, const step& now, u32 worker, u32 workers) {
  for (u32 pair = worker * WARPS + threadIdx.x / gpu::WARP; pair < p.batch; pair += workers * WARPS)
    gpu::compare_codes(p, now, pair);
}

}  // namespace train_vae

/// What follows the codes: samples, and KL and divergence with their gradients. The first blocks, a
/// warp a pair, do the latter, which takes longer.
extern "C" __global__ void __launch_bounds__(train_vae::THREADS)
    vae_codes(const __grid_constant__ params::vae_codes p) {
  gpu::begin_early();
  using namespace train_vae;
  const step now = gpu::running(p.now);
  const u32 first = min((p.batch + WARPS - 1) / WARPS, gridDim.x / 2);
  if (blockIdx.x < first)
    divergences(p, now, blockIdx.x, first);
  else
    sample(p, now, blockIdx.x - first, gridDim.x - first);
}

/// out becomes the gradient of the reconstruction error, scale (out + bias - x)^2 a pair; losses [2 batch].
/// The error of a row is the sum of those of its stretches, whose lanes take every 32nd column: the order in
/// which the epoch in one launch adds (vae_epoch.cuh).
extern "C" __global__ void __launch_bounds__(256)
    vae_reconstruct(const __grid_constant__ params::vae_reconstruct p) {
  gpu::begin_early();
  using namespace train_vae;
  const step now = gpu::running(p.now);
  const u32 batch = p.batch, dim = p.dim, stretch = p.stretch, stretches = (dim + stretch - 1) / stretch;
  const u32 lane = threadIdx.x % gpu::WARP, warp = threadIdx.x / gpu::WARP;
  const double scale = p.scale;
  extern __shared__ __align__(1024) unsigned char memory[];
  gpu::carver carve(memory);
  double* errors = carve.take<double>(stretches);
  const float slope = float(2.0 * scale / double(now.pairs));
  for (u32 row = blockIdx.x; row < 2 * batch; row += gridDim.x) {
    const bool there = row % batch < now.pairs;
    float* const to = p.out + u64(row) * dim;
    const float* const from = p.x + u64(row) * dim;
    for (u32 s = warp; s < stretches; s += 256 / gpu::WARP) {
      double sum = 0.0;
#pragma unroll 2
      for (u32 i = s * stretch + lane; i < min(s * stretch + stretch, dim); i += gpu::WARP) {
        const float difference = to[i] + read(p.bias + i) - read(from + i);
        to[i] = there ? slope * difference : 0.0f;
        sum = __fma_rn(double(difference), double(difference), sum);
      }
      sum = gpu::warp_sum(sum);
      if (lane == 0) errors[s] = sum;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      double sum = errors[0];
      for (u32 s = 1; s < stretches; s++) sum += errors[s];
      p.losses[row] = there ? scale * sum : 0.0;
    }
    __syncthreads();
  }
}

/// Adds what comes back through z: dmu += dz, dlogvar += dz eps sigma / 2.
extern "C" __global__ void __launch_bounds__(train_vae::THREADS)
    vae_through_sample(const __grid_constant__ params::vae_through_sample p) {
  gpu::begin_early();
  using namespace train_vae;
  const u32 rows = p.rows, latent = p.latent;
  for (u32 i = blockIdx.x * THREADS + threadIdx.x; i < rows * latent; i += gridDim.x * THREADS) {
    const gpu::code_gradient d = gpu::through_sample(p.code, read(p.eps + i), read(p.dz + i), i, latent);
    p.dcode[d.at] += d.mu;
    p.dcode[d.at + latent] += d.logvar;
  }
}
