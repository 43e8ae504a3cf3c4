// archs: sm_75+
// VAE training between the products: reparameterisation, KL, W2, reconstruction, and their gradients
// code [2 batch, 2 latent] = (mu, logvar), z and eps [2 batch, latent], out and x [2 batch, dim]
// A warp owns a pair of codes, a thread four values of z, a block a row of out; rows past the batch are zeros
// A few F64 operations and two exponentials a latent; reads and writes out once
// Needs latent a multiple of 16; row numbers below 2^32
// Accuracy: losses and gradients of the codes in F64, rounded once; sums of squares in F64
// Reference: src/backend/cpu/train/{vae,latent_block,output_layer}.rs; measured on nothing yet
#define LAUNCHES_START_EARLY
#include "include/latent.cuh"
#include "include/reduce.cuh"
#include "include/train.cuh"

namespace train_vae {

using gpu::read;
using gpu::u32;
using gpu::u64;
using params::step;

constexpr u32 THREADS = 128, WARPS = THREADS / gpu::WARP;

/// sigma = exp(logvar / 2).
GPU_FN double sigma_of(const float* code, u32 latent, u32 j) {
  return ::exp(0.5 * double(read(code + latent + j)));
}

/// z = mu + exp(logvar / 2) eps with the noise of training, beside eps itself. A thread makes four elements.
GPU_FN void sample(const params::vae_codes& p, u32 worker, u32 workers) {
  const step now = gpu::running(p.now);
  const u32 batch = p.batch, latent = p.latent;
  const u32 blocks = latent / 4, count = 2 * batch * blocks;
  for (u32 i = worker * THREADS + threadIdx.x; i < count; i += workers * THREADS) {
    const u32 row = i / blocks, block = i % blocks, side = row / batch, pair = row % batch;
    float4 e = make_float4(0.0f, 0.0f, 0.0f, 0.0f), s = e;
    if (pair < now.pairs) {
      const uint2 key = make_uint2(u32(p.seed), u32(p.seed >> 32));
      const u32 source = read(p.order + now.first + pair);
      e = gpu::normals({gpu::purpose::train_vae, side, source, now.candidate}, block, key);
      const float* from = p.code + u64(row) * 2 * latent + 4 * block;
      s = gpu::reparameterise(gpu::read_4(from), gpu::read_4(from + latent), e);
    }
    gpu::store_4(p.eps + u64(row) * latent + 4 * block, e);
    gpu::store_4(p.z + u64(row) * latent + 4 * block, s);
  }
}

/// KL and divergence of each pair, losses [2, batch], and their gradients by the codes.
GPU_FN void divergences(const params::vae_codes& p, u32 worker, u32 workers) {
  const step now = gpu::running(p.now);
  const u32 batch = p.batch, latent = p.latent;
  const double beta = p.beta, gamma = p.gamma;
  const u32 lane = threadIdx.x % gpu::WARP;
  for (u32 pair = worker * WARPS + threadIdx.x / gpu::WARP; pair < batch; pair += workers * WARPS) {
    const float *plus = p.code + u64(pair) * 2 * latent, *minus = p.code + u64(batch + pair) * 2 * latent;
    const bool there = pair < now.pairs;
    double square = 0.0;
#pragma unroll 1
    for (u32 j = lane; there && j < latent; j += gpu::WARP) {
      const double apart = double(read(plus + j)) - double(read(minus + j));
      const double wider = sigma_of(plus, latent, j) - sigma_of(minus, latent, j);
      square += apart * apart + wider * wider;
    }
    square = gpu::warp_sum(square);
    const double root = ::sqrt(square + p.w2_eps), value = p.squared ? -square : -root;
    const double slope = p.squared ? -1.0 : -0.5 / root, share = 1.0 / double(now.pairs);
    double kl = 0.0;
#pragma unroll 1
    for (u32 j = lane; j < 2 * latent; j += gpu::WARP) {
      // One element of one side at a time.
      const bool second = j >= latent;
      const u32 e = second ? j - latent : j;
      const float *own = second ? minus : plus, *other = second ? plus : minus;
      double dmu = 0.0, dlogvar = 0.0;
      if (there) {
        const double mu = read(own + e), logvar = read(own + latent + e), s = sigma_of(own, latent, e);
        kl += 0.5 * (mu * mu + s * s - 1.0 - logvar);
        dmu = (beta * mu + gamma * slope * 2.0 * (mu - double(read(other + e)))) * share;
        const double dsigma = gamma * slope * 2.0 * (s - sigma_of(other, latent, e));
        dlogvar = (beta * 0.5 * (s * s - 1.0) + 0.5 * s * dsigma) * share;
      }
      float* to = p.dcode + u64(second ? batch + pair : pair) * 2 * latent + e;
      to[0] = float(dmu);
      to[latent] = float(dlogvar);
    }
    kl = gpu::warp_sum(kl);
    if (lane == 0) {
      p.losses[pair] = there ? kl : 0.0;
      p.losses[batch + pair] = there ? value : 0.0;
    }
  }
}

}  // namespace train_vae

/// What follows the codes: samples, and KL and divergence with their gradients. The first blocks, a
/// warp a pair, do the latter, which takes longer.
extern "C" __global__ void __launch_bounds__(train_vae::THREADS)
    vae_codes(const __grid_constant__ params::vae_codes p) {
  gpu::begin_early();
  using namespace train_vae;
  const u32 first = min((p.batch + WARPS - 1) / WARPS, gridDim.x / 2);
  if (blockIdx.x < first)
    divergences(p, blockIdx.x, first);
  else
    sample(p, blockIdx.x - first, gridDim.x - first);
}

/// out becomes the gradient of the reconstruction error, scale (out + bias - x)^2 a pair; losses [2 batch].
extern "C" __global__ void __launch_bounds__(256)
    vae_reconstruct(const __grid_constant__ params::vae_reconstruct p) {
  gpu::begin_early();
  using namespace train_vae;
  const step now = gpu::running(p.now);
  const u32 batch = p.batch, dim = p.dim;
  const double scale = p.scale;
  extern __shared__ __align__(1024) unsigned char memory[];
  gpu::carver carve(memory);
  double* scratch = carve.take<double>(256 / gpu::WARP);
  const float slope = float(2.0 * scale / double(now.pairs));
  for (u32 row = blockIdx.x; row < 2 * batch; row += gridDim.x) {
    const bool there = row % batch < now.pairs;
    float* const to = p.out + u64(row) * dim;
    const float* const from = p.x + u64(row) * dim;
    double sum = 0.0;
#pragma unroll 2
    for (u32 i = threadIdx.x; i < dim; i += 256) {
      const float difference = to[i] + read(p.bias + i) - read(from + i);
      to[i] = there ? slope * difference : 0.0f;
      sum = __fma_rn(double(difference), double(difference), sum);
    }
    sum = gpu::block_sum(sum, scratch);
    if (threadIdx.x == 0) p.losses[row] = there ? scale * sum : 0.0;
  }
}

/// Adds what comes back through z: dmu += dz, dlogvar += dz eps sigma / 2.
extern "C" __global__ void __launch_bounds__(train_vae::THREADS)
    vae_through_sample(const __grid_constant__ params::vae_through_sample p) {
  gpu::begin_early();
  using namespace train_vae;
  const u32 rows = p.rows, latent = p.latent;
  for (u32 i = blockIdx.x * THREADS + threadIdx.x; i < rows * latent; i += gridDim.x * THREADS) {
    const u64 at = u64(i / latent) * 2 * latent + i % latent;
    const float half_sigma = 0.5f * gpu::exp(0.5f * read(p.code + at + latent));
    p.dcode[at] += read(p.dz + i);
    p.dcode[at + latent] += half_sigma * read(p.eps + i) * read(p.dz + i);
  }
}
