// What lies between a VAE's encoder and decoder in training: samples, KL, divergence and their gradients.
#pragma once
#include "latent.cuh"
#include "reduce.cuh"
#include "train.cuh"

namespace gpu {

/// sigma = exp(logvar / 2).
GPU_FN double sigma_of(const float* code, u32 latent, u32 j) {
  return ::exp(0.5 * double(read(code + latent + j)));
}

/// z = mu + exp(logvar / 2) eps with the noise of training, beside eps itself: four elements of a row.
GPU_FN float4 sample_code(const params::vae_codes& p, const params::step& now, u32 row, u32 block) {
  const u32 latent = p.latent, side = row / p.batch, pair = row % p.batch;
  float4 e = make_float4(0.0f, 0.0f, 0.0f, 0.0f), s = e;
  if (pair < now.pairs) {
    const uint2 key = make_uint2(u32(p.seed), u32(p.seed >> 32));
    const u32 source = read(p.order + now.first + pair);
    e = normals({purpose::train_vae, side, source, now.candidate}, block, key);
    const float* from = p.code + u64(row) * 2 * latent + 4 * block;
    s = reparameterise(read_4(from), read_4(from + latent), e);
  }
  store_4(p.eps + u64(row) * latent + 4 * block, e);
  store_4(p.z + u64(row) * latent + 4 * block, s);
  return s;
}

/// KL and divergence of a pair, losses [2, batch], and their gradients by the codes. For a warp.
GPU_FN void compare_codes(const params::vae_codes& p, const params::step& now, u32 pair) {
  const u32 batch = p.batch, latent = p.latent, lane = threadIdx.x % WARP;
  const double beta = p.beta, gamma = p.gamma;
  const float *plus = p.code + u64(pair) * 2 * latent, *minus = p.code + u64(batch + pair) * 2 * latent;
  const bool there = pair < now.pairs;
  double square = 0.0;
#pragma unroll 1
  for (u32 j = lane; there && j < latent; j += WARP) {
    const double apart = double(read(plus + j)) - double(read(minus + j));
    const double wider = sigma_of(plus, latent, j) - sigma_of(minus, latent, j);
    square += apart * apart + wider * wider;
  }
  square = warp_sum(square);
  const double root = ::sqrt(square + p.w2_eps), value = p.squared ? -square : -root;
  const double slope = p.squared ? -1.0 : -0.5 / root, share = 1.0 / double(now.pairs);
  double kl = 0.0;
#pragma unroll 1
  for (u32 j = lane; j < 2 * latent; j += WARP) {
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
  kl = warp_sum(kl);
  if (lane == 0) {
    p.losses[pair] = there ? kl : 0.0;
    p.losses[batch + pair] = there ? value : 0.0;
  }
}

/// What comes back through element i of z [rows, latent]: dmu += dz, dlogvar += dz eps sigma / 2, at `at` of
/// the codes' gradients and `latent` behind it.
struct code_gradient {
  u64 at;
  float mu, logvar;
};
GPU_FN code_gradient through_sample(const float* code, float eps, float dz, u32 i, u32 latent) {
  const u64 at = u64(i / latent) * 2 * latent + i % latent;
  const float half_sigma = 0.5f * exp(0.5f * read(code + at + latent));
  return {at, dz, half_sigma * eps * dz};
}

}  // namespace gpu
