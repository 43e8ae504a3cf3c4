// Philox4x32-10 (Salmon et al., SC 2011) and the counters of the crate, as in src/noise/{mod,philox}.rs.
#pragma once
#include "gpu.cuh"

namespace gpu {

/// What a random value is for; the numbers are those of `lensmith::noise::Purpose`.
enum class purpose : u32 { posterior = 0, perturb = 1, train_vae = 2, input_noise = 10 };

/// The logical element that a vector of noise belongs to, as `lensmith::noise::Address`.
struct address {
  purpose what;
  u32 side;       // 0 chosen, 1 rejected
  u64 row;        // in the whole data set, below 2^48
  u32 candidate;  // or epoch, for training noise
};

/// The Philox counter of elements 4 * block .. 4 * block + 3 of an address.
GPU_FN uint4 counter_of(const address& a, u32 block) {
  const u32 high = u32(a.row >> 32) & 0xffffu;
  return make_uint4(block, a.candidate, u32(a.row), high | a.side << 16 | u32(a.what) << 24);
}

/// Four random words for a counter and a key.
GPU_FN uint4 philox4x32_10(uint4 c, uint2 key) {
#pragma unroll
  for (int round = 0; round < 10; round++) {
    const u32 high0 = __umulhi(0xD2511F53u, c.x), low0 = 0xD2511F53u * c.x;
    const u32 high1 = __umulhi(0xCD9E8D57u, c.z), low1 = 0xCD9E8D57u * c.z;
    c = make_uint4(high1 ^ c.y ^ key.x, low1, high0 ^ c.w ^ key.y, low0);
    key.x += 0x9E3779B9u;
    key.y += 0xBB67AE85u;
  }
  return c;
}

}  // namespace gpu
