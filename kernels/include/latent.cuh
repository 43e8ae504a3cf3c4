// Latents as kernels take them: stored, or drawn again from posteriors and noise counters wherever they are
// needed. Also what both are made of: the start z_i of a row's candidates, and a candidate z_i + sigma eta.
#pragma once
#include "normal.cuh"
#include "params.cuh"
#include "types.cuh"

namespace gpu {

/// mu + exp(logvar / 2) eps: the reparameterisation, of one element or of four.
GPU_FN float reparameterise(float mu, float logvar, float eps) {
  return __fmaf_rn(exp(__fmul_rn(0.5f, logvar)), eps, mu);
}
GPU_FN float4 reparameterise(float4 mu, float4 logvar, float4 eps) {
  return make_float4(reparameterise(mu.x, logvar.x, eps.x), reparameterise(mu.y, logvar.y, eps.y),
                     reparameterise(mu.z, logvar.z, eps.z), reparameterise(mu.w, logvar.w, eps.w));
}

/// Elements 4 * block .. 4 * block + 3 of the latent a row's candidates start from: one posterior sample, or
/// mu.
GPU_FN float4 start_of(const params::noise& n, u64 row, u32 block, float4 mu, float4 logvar, bool mean) {
  if (mean) return mu;
  return reparameterise(mu, logvar, normals({purpose::posterior, n.side, row, 0}, block, n.key()));
}

/// The same elements of a candidate.
GPU_FN float4 candidate_of(const params::noise& n, u64 row, u32 candidate, u32 block, float4 start) {
  const float4 eta = normals({purpose::perturb, n.side, row, candidate}, block, n.key());
  return make_float4(__fmaf_rn(n.sigma, eta.x, start.x), __fmaf_rn(n.sigma, eta.y, start.y),
                     __fmaf_rn(n.sigma, eta.z, start.z), __fmaf_rn(n.sigma, eta.w, start.w));
}

/// The row of the block that latent i belongs to.
GPU_FN u32 owner_of(const params::latents& l, u64 i) {
  return l.owners ? read(l.owners + i) : read(l.samples + i).x;
}

/// Elements 4 * block .. 4 * block + 3 of latent i. The same bits whether stored or drawn.
GPU_FN float4 latent_of(const params::latents& l, u64 i, u32 block, u32 latent) {
  if (l.z) return read_4(l.z + i * latent + 4 * block);
  const uint2 who = read(l.samples + i);
  const float4 start = read_4(l.starts + u64(who.x) * latent + 4 * block);
  return candidate_of(l.noise, l.noise.first_row + who.x, who.y, block, start);
}

/// Where an encoder's codes go, [rows, latent] each, and whose samples z are.
struct codes {
  float *mu, *logvar;
  float* z;  // null: not wanted
  params::noise noise;

  /// Elements 4 * block .. 4 * block + 3 of a row out of its code (mu, logvar), as they lie in shared memory.
  GPU_FN void store(const float* code, u64 row, u32 block, u32 latent) const {
    const float4 m = load_4(code + 4 * block), v = load_4(code + latent + 4 * block);
    const u64 to = row * latent + 4 * block;
    store_4(mu + to, m);
    store_4(logvar + to, v);
    if (!z) return;
    const address a = {purpose::posterior, noise.side, noise.first_row + row, 0};
    store_4(z + to, reparameterise(m, v, normals(a, block, noise.key())));
  }

  /// Elements `at` and `at` + 1, an even number, of a row, as the fragments of a product hold them.
  GPU_FN void store_2(float2 m, float2 v, u64 row, u32 at, u32 latent) const {
    const u64 to = row * latent + at;
    gpu::store_2(mu + to, m);
    gpu::store_2(logvar + to, v);
    if (!z) return;
    const address a = {purpose::posterior, noise.side, noise.first_row + row, 0};
    const float4 eps = normals(a, at / 4, noise.key());
    const bool upper = at & 2;
    gpu::store_2(z + to, make_float2(reparameterise(m.x, v.x, upper ? eps.z : eps.x),
                                     reparameterise(m.y, v.y, upper ? eps.w : eps.y)));
  }
};

}  // namespace gpu
