// archs: sm_90+
// Encoder as encode_bf16.cu's, whose rows the copy engine brings in: (mu, logvar) = W2 relu(W1 e + b1) + b2
// embeddings [rows, dim] F32, F16 or BF16; W1 [hidden, dim], W2 [2 latent, hidden]; results [rows, latent]
// A block owns 256 rows at a time (F32: 128), a warp 32; one more warp asks for stages of 64 columns
// 2 (dim hidden + 2 hidden latent) FLOP a row; reads the row once, writes 8 latent bytes
// Needs dim a multiple of 8, hidden 16 to 64, it and latent multiples of 16, shared memory as in layout.rs
// Accuracy: operands and the hidden layer rounded to BF16, sums in F32: 2^-8 of the summed magnitudes
// Reference: src/backend/cpu/infer.rs, `encode`
// H200 by model, 2026-11, ns a row at d = 4096: DRAM 1.93, L2 1.85, L1 1.05, tensor 0.78; bound by memory
#include "include/boxed_rows.cuh"
#include "include/latent.cuh"
#include "include/mlp_bf16.cuh"

namespace encode_tma {

using gpu::bf16;
using gpu::u32;
using gpu::u64;
using gpu::WARP;
using gpu::tensor::tile;

constexpr u32 OUTPUTS = 64, STAGES = 4, OF_WARP = 32;

/// The shape of a block for rows of type S.
template <class S>
struct shape : gpu::boxed_stage<S, 512 / sizeof(S), OUTPUTS> {
  static constexpr u32 ROWS = 512 / sizeof(S), WARPS = ROWS / OF_WARP, THREADS = (WARPS + 1) * WARP;
};

template <class S>
struct layout {
  unsigned char* buffer;
  gpu::stages<STAGES> stages;
  bf16* w2;

  GPU_FN layout(gpu::carver& carve, u32 latent)
      : buffer(carve.take<unsigned char>(STAGES * shape<S>::BYTES)), stages(carve) {
    w2 = carve.take<bf16>(size_t(2) * latent * gpu::tensor::stride_of(OUTPUTS));
  }
};

/// One thread: asks for the stages of all rows of the block, as they become free.
template <class S>
GPU_FN void fill(const layout<S>& shared, const params::encode_tma<S, bf16>& p) {
  using shape = encode_tma::shape<S>;
  const u64 once = gpu::policy<gpu::keep::once>(), often = gpu::policy<gpu::keep::often>();
  typename gpu::stages<STAGES>::turn turn;
  for (u64 first = u64(blockIdx.x) * shape::ROWS; first < p.of.rows; first += u64(gridDim.x) * shape::ROWS) {
    for (u32 k = 0; k < p.of.dim; k += gpu::BOX_DEPTH) {
      unsigned char* const to = shared.buffer + turn.stage * shape::BYTES;
      u64* const full = shared.stages.full + turn.stage;
      gpu::mbarrier_wait(shared.stages.empty + turn.stage, turn.parity ^ 1);
      gpu::mbarrier_arrive_expect(full, shape::BYTES);
      shape::copy_rows(to, p.embeddings, k, u32(first), full, once);
      gpu::copy_box(to + shape::BEHIND, p.w1, k, 0, full, often);
      turn.next();
    }
  }
}

/// A warp's 32 rows: through both layers in registers.
template <class S>
GPU_FN void encode(const layout<S>& shared, const params::encode_tma<S, bf16>& p) {
  using shape = encode_tma::shape<S>;
  const gpu::codes out = {p.of.mu, p.of.logvar, p.of.z, p.of.noise};
  const u32 size = p.of.hidden, latent = p.of.latent, stride = gpu::tensor::stride_of(OUTPUTS);
  const u32 own = threadIdx.x / WARP * OF_WARP, lane = threadIdx.x % WARP;
  // The lane's row and unit of what ldmatrix loads of B.
  const u32 output = lane / 16 * 8 + lane % 8, unit = lane / 8 % 2;
  typename gpu::stages<STAGES>::turn turn;
  for (u64 first = u64(blockIdx.x) * shape::ROWS; first < p.of.rows; first += u64(gridDim.x) * shape::ROWS) {
    tile<2, OUTPUTS / 16> t;
    t.start(p.of.b1, size);
#pragma unroll 1
    for (u32 k = 0; k < p.of.dim; k += gpu::BOX_DEPTH) {
      const unsigned char* const rows = shared.buffer + turn.stage * shape::BYTES;
      gpu::mbarrier_wait(shared.stages.full + turn.stage, turn.parity);
#pragma unroll
      for (u32 step = 0; step < gpu::BOX_DEPTH / 16; step++) {
        u32 x[2][4];
#pragma unroll
        for (u32 r = 0; r < 2; r++)
          gpu::boxed_rows<S>::load(x[r], rows, own + 16 * r, step, shape::ROWS);
#pragma unroll
        for (u32 g = 0; g < OUTPUTS / 16; g++) {
          u32 w[4];
          gpu::ldmatrix_x4(w, rows + shape::BEHIND + gpu::in_box(16 * g, output, 2 * step + unit));
          t.multiply(g, x, w);
        }
      }
      // All lanes have read.
      __syncwarp();
      if (lane == 0) gpu::mbarrier_arrive(shared.stages.empty + turn.stage);
      turn.next();
    }
    // Fragments of the first layer's sums, side by side, are those of A for the second.
    u32 h[OUTPUTS / 16][2][4];
#pragma unroll
    for (u32 s = 0; s < OUTPUTS / 16; s++) {
#pragma unroll
      for (u32 r = 0; r < 2; r++) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
          const float(&sum)[4] = t.sum[r][2 * s + i / 2];
          h[s][r][i] = gpu::pack_bf16(gpu::relu_nan(sum[i % 2 * 2]), gpu::relu_nan(sum[i % 2 * 2 + 1]));
        }
      }
    }
    // Sixteen elements of mu and of logvar at a time: a lane holds both of the same elements.
#pragma unroll 1
    for (u32 from = 0; from < latent; from += 16) {
      tile<2, 2> code;
      code.start_by([&](u32 o) { return gpu::read_2(p.of.b2 + from + o % 16 + o / 16 * latent); }, 32);
#pragma unroll
      for (u32 s = 0; s < OUTPUTS / 16; s++) {
#pragma unroll
        for (u32 g = 0; g < 2; g++) {
          u32 w[4];
          gpu::ldmatrix_x4(w, shared.w2 + (from + g * latent + output) * stride + 16 * s + 8 * unit);
          code.multiply(g, h[s], w);
        }
      }
#pragma unroll
      for (u32 r = 0; r < 2; r++) {
#pragma unroll
        for (u32 i = 0; i < 4; i += 2) {
          const u64 row = first + own + 16 * r + gpu::boxed_rows<S>::row(i);
          if (row >= p.of.rows) continue;
#pragma unroll
          for (u32 n = 0; n < 2; n++) {
            const float *m = &code.sum[r][n][i], *v = &code.sum[r][2 + n][i];
            out.store_2(make_float2(m[0], m[1]), make_float2(v[0], v[1]), row, from + code.output(n, i),
                        latent);
          }
        }
      }
    }
  }
}

template <class S>
GPU_FN void run(const params::encode_tma<S, bf16>& p) {
  const u32 size = p.of.hidden, latent = p.of.latent;
  extern __shared__ __align__(1024) unsigned char memory[];
  gpu::carver carve(memory);
  const layout<S> shared(carve, latent);
  if (threadIdx.x == 0) shared.stages.init(shape<S>::WARPS);
  // Columns past the hidden layer are zeros.
  gpu::tensor::copy_rows(shared.w2, gpu::tensor::stride_of(OUTPUTS), p.of.w2, 0, 2 * latent, size, 0, OUTPUTS,
                         2 * latent);
  gpu::copy_async_wait_all();
  __syncthreads();
  if (threadIdx.x >= shape<S>::WARPS * WARP) {
    if (threadIdx.x % WARP == 0) fill(shared, p);
  } else {
    encode(shared, p);
  }
}

}  // namespace encode_tma

#define KERNEL(name, S) \
  extern "C" __global__ void __launch_bounds__(encode_tma::shape<S>::THREADS, 1) \
      name(const __grid_constant__ params::encode_tma<S, gpu::bf16> p) { \
    encode_tma::run(p); \
  }
KERNEL(encode_tma_bf16_f32, float)
KERNEL(encode_tma_bf16_f16, gpu::f16)
KERNEL(encode_tma_bf16_bf16, gpu::bf16)
#undef KERNEL
