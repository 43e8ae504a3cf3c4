// Every wrapper of kernels/include by itself, on given inputs: what tests compare with plain arithmetic. One
// warp or one block each, shapes as stated; nothing here is on a fast path.
#include "include/async_copy.cuh"
#include "include/mma.cuh"
#include "include/normal.cuh"
#include "include/params.cuh"
#include "include/reduce.cuh"
#include "include/types.cuh"

using gpu::u16;
using gpu::u32;
using gpu::u64;

// The parameters of each kernel, as tests have them.
namespace params {

struct probe_normals {
  float* out;
  u64 first_row, seed;
  u32 rows, blocks, purpose, side, candidate;
  u32 unused;
};
static_assert(sizeof(probe_normals) == 48);

struct probe_scalars {
  const float* in;
  float* out;
  u32 n;
  u32 unused;
};
static_assert(sizeof(probe_scalars) == 24);

struct probe_mma {
  const u16 *a, *b;
  const float* c;
  float* d;
  u32 half, variant;
};
static_assert(sizeof(probe_mma) == 40);

struct probe_mma_tf32 {
  const float *a, *b, *c;
  float* d;
};
static_assert(sizeof(probe_mma_tf32) == 32);

struct probe_copy {
  const u32* in;
  u32* out;
  u32 bytes;
  u32 unused;
};
static_assert(sizeof(probe_copy) == 24);

struct probe_reduce {
  const float* in;
  float* out;
};
static_assert(sizeof(probe_reduce) == 16);

}  // namespace params

/// out [rows, 4 * blocks]: the normals of (purpose, side, first_row + row, candidate). A thread makes four.
extern "C" __global__ void probe_normals_f32(const __grid_constant__ params::probe_normals p) {
  const u32 i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= p.rows * p.blocks) return;
  const gpu::address a = {gpu::purpose(p.purpose), p.side, p.first_row + i / p.blocks, p.candidate};
  const float4 v = gpu::normals(a, i % p.blocks, make_uint2(u32(p.seed), u32(p.seed >> 32)));
  *reinterpret_cast<float4*>(p.out + 4 * u64(i)) = v;
}

/// ln |x|, exp x, sine and cosine of the turn that the bits of x name, and x through BF16, half and TF32: [7,
/// n].
extern "C" __global__ void probe_scalars_f32(const __grid_constant__ params::probe_scalars p) {
  const u32 i = blockIdx.x * blockDim.x + threadIdx.x;
  const u32 n = p.n;
  if (i >= n) return;
  const float x = p.in[i];
  float* const out = p.out;
  out[i] = gpu::ln(fabsf(x));
  out[n + i] = gpu::exp(x);
  float sine, cosine;
  gpu::sin_cos_turn(__float_as_uint(x), sine, cosine);
  out[2 * n + i] = sine;
  out[3 * n + i] = cosine;
  out[4 * n + i] = gpu::to_f32(gpu::from_f32<gpu::bf16>(x));
  out[5 * n + i] = gpu::to_f32(gpu::from_f32<gpu::f16>(x));
  out[6 * n + i] = __uint_as_float(gpu::to_tf32(x));
}

namespace probe {

/// A 16 x 16 and B 8 x 16 (n by k) of 16-bit values in shared memory, rows 24 elements apart.
constexpr u32 PITCH = 24;
struct operands {
  u16 *a, *b;
  GPU_FN explicit operands(gpu::carver& carve) {
    a = carve.take<u16>(16 * PITCH);
    b = carve.take<u16>(16 * PITCH);
  }
};

/// Stores a C or D fragment to a 16 x 8 matrix.
GPU_FN void store_fragment(float* d, const float (&c)[4]) {
  const u32 g = threadIdx.x / 4, t = threadIdx.x % 4;
  for (u32 r = 0; r < 4; r++) d[(g + 8 * (r / 2)) * 8 + 2 * t + r % 2] = c[r];
}
GPU_FN void load_fragment(float (&c)[4], const float* d) {
  const u32 g = threadIdx.x / 4, t = threadIdx.x % 4;
  for (u32 r = 0; r < 4; r++) c[r] = d[(g + 8 * (r / 2)) * 8 + 2 * t + r % 2];
}

}  // namespace probe

/// d = a b + c for one warp: a [16, 16], b [16, 8] of `half` or BF16, c and d [16, 8]. The operands go
/// through ldmatrix: as they are where `variant` is 0 (b as its columns), transposed where it is 1, one
/// matrix at a time at 2.
extern "C" __global__ void probe_mma(const __grid_constant__ params::probe_mma p) {
  const u32 variant = p.variant;
  extern __shared__ __align__(1024) unsigned char memory[];
  gpu::carver carve(memory);
  const probe::operands s(carve);
  const u32 lane = threadIdx.x, matrix = lane / 8, row = lane % 8;
  for (u32 i = lane; i < 256; i += 32)
    s.a[variant == 1 ? i % 16 * probe::PITCH + i / 16 : i / 16 * probe::PITCH + i % 16] = p.a[i];
  for (u32 i = lane; i < 128; i += 32)
    s.b[variant == 1 ? i / 8 * probe::PITCH + i % 8 : i % 8 * probe::PITCH + i / 8] = p.b[i];
  __syncwarp();
  u32 fa[4], fb[2];
  if (variant == 1) {
    // Matrices in the order a0 a1 a2 a3 of A; in the transposed one, rows are k.
    gpu::ldmatrix_x4_trans(fa, s.a + (8 * (matrix / 2) + row) * probe::PITCH + 8 * (matrix % 2));
    gpu::ldmatrix_x2_trans(fb, s.b + (8 * (matrix % 2) + row) * probe::PITCH);
  } else if (variant == 0) {
    gpu::ldmatrix_x4(fa, s.a + (8 * (matrix % 2) + row) * probe::PITCH + 8 * (matrix / 2));
    gpu::ldmatrix_x2(fb, s.b + row * probe::PITCH + 8 * (matrix % 2));
  } else {
    u32 one[1];
    for (u32 m = 0; m < 4; m++) {
      gpu::ldmatrix_x1(one, s.a + (8 * (m % 2) + row) * probe::PITCH + 8 * (m / 2));
      fa[m] = one[0];
    }
    for (u32 m = 0; m < 2; m++) {
      gpu::ldmatrix_x1(one, s.b + row * probe::PITCH + 8 * m);
      fb[m] = one[0];
    }
  }
  float sum[4];
  probe::load_fragment(sum, p.c);
  if (p.half)
    gpu::mma_m16n8k16_f16(sum, fa, fb);
  else
    gpu::mma_m16n8k16_bf16(sum, fa, fb);
  probe::store_fragment(p.d, sum);
}

/// The same in TF32: a [16, 8], b [8, 8], c and d [16, 8], all F32.
extern "C" __global__ void probe_mma_tf32(const __grid_constant__ params::probe_mma_tf32 p) {
  const u32 g = threadIdx.x / 4, t = threadIdx.x % 4;
  u32 fa[4], fb[2];
  for (u32 r = 0; r < 4; r++) fa[r] = gpu::to_tf32(p.a[(g + 8 * (r % 2)) * 8 + t + 4 * (r / 2)]);
  for (u32 r = 0; r < 2; r++) fb[r] = gpu::to_tf32(p.b[(t + 4 * r) * 8 + g]);
  float sum[4];
  probe::load_fragment(sum, p.c);
  gpu::mma_m16n8k8_tf32(sum, fa, fb);
  probe::store_fragment(p.d, sum);
}

/// Thread i copies words 7 i .. 7 i + 6 of `in` to `out` in copies of 16, 8 and 4 bytes, of which the first
/// `bytes` each are read. Rows of 4, 2 and 1 words a thread lie behind each other, so that every copy is
/// aligned.
extern "C" __global__ void probe_copy(const __grid_constant__ params::probe_copy p) {
  const u32* const in = p.in;
  u32* const out = p.out;
  const u32 bytes = p.bytes;
  extern __shared__ __align__(1024) unsigned char memory[];
  gpu::carver carve(memory);
  const u32 n = blockDim.x, i = threadIdx.x;
  u32* s = carve.take<u32>(7 * n);
  gpu::copy_async_16(s + 4 * i, in + 4 * i, min(bytes, 16u));
  gpu::copy_async_commit();
  gpu::copy_async_8(s + 4 * n + 2 * i, in + 4 * n + 2 * i, min(bytes, 8u));
  gpu::copy_async_4(s + 6 * n + i, in + 6 * n + i, min(bytes, 4u));
  gpu::copy_async_commit();
  gpu::copy_async_wait<1>();
  __syncthreads();
  for (u32 w = i; w < 4 * n; w += n) out[w] = s[w];
  gpu::copy_async_wait<0>();
  __syncthreads();
  for (u32 w = 4 * n + i; w < 7 * n; w += n) out[w] = s[w];
}

/// out [3, threads]: the block's sum, maximum and negated sum, as every thread sees them, by one scratch.
extern "C" __global__ void probe_reduce_f32(const __grid_constant__ params::probe_reduce p) {
  extern __shared__ __align__(1024) unsigned char memory[];
  gpu::carver carve(memory);
  float* scratch = carve.take<float>(blockDim.x / 32);
  const float x = p.in[threadIdx.x];
  p.out[threadIdx.x] = gpu::block_sum(x, scratch);
  p.out[blockDim.x + threadIdx.x] = gpu::block_max(x, scratch);
  p.out[2 * blockDim.x + threadIdx.x] = gpu::block_sum(-x, scratch);
}
