// archs: sm_75+
// AdamW: m' = beta1 m + keep1 g; v' = beta2 v + keep2 g^2;
//        w' = decay w - rate m' / (sqrt(v') inverse_root + eps), decay 1 without weight decay
//        and the end of a step: its losses added up, the next one put in place
// Shapes:   w, g, m, v flat [n] F32; w, m and v are updated in place, g is only read; losses [terms, count]
// Owns:     a thread owns elements i, i + threads, ... (groups of four where 16-byte accesses are possible)
// Costs:    28 bytes and 14 FLOPs an element (one division, one square root)
// Requires: no overlap among the arrays; any n and grid; a one-dimensional block of up to eight whole warps
// Accuracy: the bits of the reference: each operation rounds once, to nearest even; nothing is contracted
// Reference: src/backend/cpu/train/adam.rs
// H200 by model, 2026-11: among the 25.2 us of a VAE step and the 24.0 us of a reward step; bound by memory
#define LAUNCHES_START_EARLY
#include "include/adam.cuh"
#include "include/train.cuh"

namespace adam {

using gpu::u64;

constexpr int THREADS = 256;

GPU_FN bool aligned(const void* p) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0;
}

}  // namespace adam

extern "C" __global__ void __launch_bounds__(adam::THREADS)
    adam_f32(const __grid_constant__ params::adam p) {
  gpu::begin_early();
  using namespace adam;
  float *w = p.w, *m = p.m, *v = p.v;
  const float* g = p.g;
  const u64 n = p.n;
  // Not by gpu::running: this launch replaces it.
  const float rate = p.end.now->rate, inverse_root = p.end.now->inverse_root;
  const gpu::adam_step step{p.beta1, p.keep1, p.beta2, p.keep2, rate, inverse_root, p.eps, p.decay};
  const u64 first = u64(blockIdx.x) * blockDim.x + threadIdx.x;
  const u64 threads = u64(gridDim.x) * blockDim.x;

  // The same for every thread, so no warp diverges. Parts of a larger buffer may start anywhere.
  const bool vectors = aligned(w) && aligned(g) && aligned(m) && aligned(v);
  const u64 groups = vectors ? n / 4 : 0;
  for (u64 i = first; i < groups; i += threads) {
    // All four loads are in flight before the first is used.
    float4 w4 = reinterpret_cast<const float4*>(w)[i];
    const float4 g4 = gpu::read_4(g + 4 * i);
    float4 m4 = reinterpret_cast<const float4*>(m)[i];
    float4 v4 = reinterpret_cast<const float4*>(v)[i];
    gpu::update(step, w4.x, g4.x, m4.x, v4.x);
    gpu::update(step, w4.y, g4.y, m4.y, v4.y);
    gpu::update(step, w4.z, g4.z, m4.z, v4.z);
    gpu::update(step, w4.w, g4.w, m4.w, v4.w);
    reinterpret_cast<float4*>(w)[i] = w4;
    reinterpret_cast<float4*>(m)[i] = m4;
    reinterpret_cast<float4*>(v)[i] = v4;
  }
  // The last three at most, or everything.
  for (u64 i = groups * 4 + first; i < n; i += threads) {
    gpu::update(step, w[i], gpu::read(g + i), m[i], v[i]);
  }

  // The first blocks have a row of losses more each.
  extern __shared__ __align__(1024) unsigned char memory[];
  gpu::carver carve(memory);
  gpu::add_losses(p.end, carve.take<double>(THREADS / gpu::WARP));

  // Every block has read the step that it replaces.
  if (gpu::last_block(p.ticket, gridDim.x) && threadIdx.x == 0) gpu::next_step(p.end);
}
