// Latents as kernels take them: stored, or drawn again from posteriors and noise counters wherever they are
// needed. Also what both are made of: the start z_i of a row's candidates, and a candidate z_i + sigma eta.
#pragma once
#include "normal.cuh"
#include "types.cuh"

namespace gpu {

/// Whose noise it is, and how much.
struct noise {
  uint2 key;
  u32 side;
  float sigma;
};

/// mu + exp(logvar / 2) eps: the reparameterisation, four elements at a time.
GPU_FN float4 reparameterise(float4 mu, float4 logvar, float4 eps) {
  return make_float4(__fmaf_rn(exp(__fmul_rn(0.5f, logvar.x)), eps.x, mu.x),
                     __fmaf_rn(exp(__fmul_rn(0.5f, logvar.y)), eps.y, mu.y),
                     __fmaf_rn(exp(__fmul_rn(0.5f, logvar.z)), eps.z, mu.z),
                     __fmaf_rn(exp(__fmul_rn(0.5f, logvar.w)), eps.w, mu.w));
}

/// Elements 4 * block .. 4 * block + 3 of the latent a row's candidates start from: one posterior sample, or
/// mu.
GPU_FN float4 start_of(const noise& n, u64 row, u32 block, float4 mu, float4 logvar, bool mean) {
  if (mean) return mu;
  return reparameterise(mu, logvar, normals({purpose::posterior, n.side, row, 0}, block, n.key));
}

/// The same elements of a candidate.
GPU_FN float4 candidate_of(const noise& n, u64 row, u32 candidate, u32 block, float4 start) {
  const float4 eta = normals({purpose::perturb, n.side, row, candidate}, block, n.key);
  return make_float4(__fmaf_rn(n.sigma, eta.x, start.x), __fmaf_rn(n.sigma, eta.y, start.y),
                     __fmaf_rn(n.sigma, eta.z, start.z), __fmaf_rn(n.sigma, eta.w, start.w));
}

/// `count` latents, `latent` wide, each with a row of a block of seeds that it belongs to. A parameter, the
/// twin of `Latents` in src/backend/cuda/params.rs.
struct latents {
  const float* z;        // stored [count, latent]; null if they are drawn
  const u32* owners;     // stored: [count], the row of each
  const uint2* samples;  // drawn: [count], (row, candidate)
  const float* mu;       // drawn: posteriors of the rows, [rows, latent]
  const float* logvar;
  u64 seed;
  u64 first_row;  // data-set row of the block's first
  u32 side;
  float sigma;
  u32 mean;  // 1: candidates start at mu, 0: at a posterior sample
  u32 unused;
};

/// The row of the block that latent i belongs to.
GPU_FN u32 owner_of(const latents& l, u64 i) { return l.z ? l.owners[i] : l.samples[i].x; }

/// Elements 4 * block .. 4 * block + 3 of latent i. The same bits whether stored or drawn.
GPU_FN float4 latent_of(const latents& l, u64 i, u32 block, u32 latent) {
  if (l.z) return load_4(l.z + i * latent + 4 * block);
  const noise n = {make_uint2(u32(l.seed), u32(l.seed >> 32)), l.side, l.sigma};
  const uint2 who = l.samples[i];
  const u64 from = u64(who.x) * latent + 4 * block, row = l.first_row + who.x;
  const float4 start = start_of(n, row, block, load_4(l.mu + from), load_4(l.logvar + from), l.mean != 0);
  return candidate_of(n, row, who.y, block, start);
}

/// What residual decoding adds to: embeddings [seeds, dim] of a type as in load_typed, means [seeds, latent].
struct seeds {
  const void* embeddings;
  u32 dtype;
  const float* mu;  // null: plain
};

/// Where an encoder's codes go, [rows, latent] each, and whose samples z are.
struct codes {
  float *mu, *logvar;
  float* z;  // null: not wanted
  u64 seed;
  u32 side;
  u64 first_row;

  /// Elements 4 * block .. 4 * block + 3 of a row out of its code (mu, logvar), as they lie in shared memory.
  GPU_FN void store(const float* code, u64 row, u32 block, u32 latent) const {
    const float4 m = load_4(code + 4 * block), v = load_4(code + latent + 4 * block);
    const u64 to = row * latent + 4 * block;
    store_4(mu + to, m);
    store_4(logvar + to, v);
    if (!z) return;
    const address a = {purpose::posterior, side, first_row + row, 0};
    store_4(z + to, reparameterise(m, v, normals(a, block, make_uint2(u32(seed), u32(seed >> 32)))));
  }
};

}  // namespace gpu
