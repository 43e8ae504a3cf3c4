// Products of a block in exact F32: every output element is one chain of fused multiply-adds over k in
// rising order, from what it holds: the order of src/backend/cpu/gemm/microkernel.rs, and its bits.
//
// A block of 128 threads owns 64 rows by 64 outputs at a time; thread t holds rows t / 16 + 8 i and outputs
// t % 16 + 16 j. Operands lie in shared memory as [row][k] with strides of 4 modulo 16 words:
// the 16-byte loads of a quarter warp then fall into different banks.
#pragma once
#include "latent.cuh"
#include "reduce.cuh"
#include "types.cuh"

namespace gpu {
namespace exact {

constexpr u32 THREADS = 128, ROWS = 64, OUTPUTS = 64, DEPTH = 32;
constexpr u32 CHUNK_STRIDE = DEPTH + 4;
constexpr u32 WARPS = THREADS / WARP, ROWS_OF_WARP = ROWS / WARPS;

/// Words between rows of an operand that is `k` deep.
constexpr GPU_FN u32 stride_of(u32 k) { return k + 4; }

GPU_FN u32 row_of(u32 i) { return threadIdx.x / 16 + 8 * i; }
GPU_FN u32 output_of(u32 j) { return threadIdx.x % 16 + 16 * j; }

/// A thread's part of 64 rows by 64 outputs.
struct tile {
  float sum[8][4];
};

GPU_FN void add_products_4(tile& t, const float* a, u32 a_stride, const float* b, u32 b_stride) {
  float4 x[8], w[4];
#pragma unroll
  for (u32 i = 0; i < 8; i++) x[i] = load_4(a + row_of(i) * a_stride);
#pragma unroll
  for (u32 j = 0; j < 4; j++) w[j] = load_4(b + output_of(j) * b_stride);
#pragma unroll
  for (u32 i = 0; i < 8; i++) {
#pragma unroll
    for (u32 j = 0; j < 4; j++) {
      float s = t.sum[i][j];
      s = __fmaf_rn(x[i].x, w[j].x, s);
      s = __fmaf_rn(x[i].y, w[j].y, s);
      s = __fmaf_rn(x[i].z, w[j].z, s);
      t.sum[i][j] = __fmaf_rn(x[i].w, w[j].w, s);
    }
  }
}

/// Adds a[row][k] * b[output][k] for k below `depth`, a multiple of 4.
GPU_FN void add_products(tile& t, const float* a, u32 a_stride, const float* b, u32 b_stride, u32 depth) {
#pragma unroll 1
  for (u32 k = 0; k < depth; k += 4) add_products_4(t, a + k, a_stride, b + k, b_stride);
}

/// Values k .. k + 3 of row `row` of a matrix [rows, columns], widened; zero outside of it.
template <class S>
GPU_FN float4 fetch_4(const S* from, u64 row, u64 rows, u32 columns, u32 k) {
  if (row >= rows) return make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  const S* at = from + row * columns + k;
  if (columns % 4 == 0 && k < columns) {
    float v[4];
    read_aligned(v, at);
    return make_float4(v[0], v[1], v[2], v[3]);
  }
  auto value = [&](u32 i) { return k + i < columns ? to_f32(read(at + i)) : 0.0f; };
  return make_float4(value(0), value(1), value(2), value(3));
}

/// A thread's part of 64 rows by 32 columns: groups of four, a warp taking whole rows.
struct chunk {
  float4 group[ROWS * DEPTH / 4 / THREADS];

  template <class S>
  GPU_FN void fetch(const S* from, u64 first, u64 rows, u32 columns, u32 k) {
#pragma unroll
    for (u32 i = 0; i < ROWS * DEPTH / 4 / THREADS; i++) {
      const u32 at = threadIdx.x + i * THREADS;
      group[i] = fetch_4(from, first + at / 8, rows, columns, k + at % 8 * 4);
    }
  }

  GPU_FN void put(float* to) const {
#pragma unroll
    for (u32 i = 0; i < ROWS * DEPTH / 4 / THREADS; i++) {
      const u32 at = threadIdx.x + i * THREADS;
      store_4(to + at / 8 * CHUNK_STRIDE + at % 8 * 4, group[i]);
    }
  }
};

/// Adds the products of rows `first` .. `first` + 63 of x [rows, dim] with outputs `output` .. `output` + 63
/// of w [outputs, dim]. `a` and `b` are 64 x CHUNK_STRIDE words of shared memory each. The next chunk is on
/// its way in registers while one is multiplied. Barriers at entry and within: all threads together.
template <class S>
GPU_FN void add_stored(tile& t, float* a, float* b, const S* x, u64 first, u64 rows, const float* w,
                       u32 output, u32 outputs, u32 dim) {
  chunk next_x, next_w;
  next_x.fetch(x, first, rows, dim, 0);
  next_w.fetch(w, output, outputs, dim, 0);
  for (u32 k = 0; k < dim; k += DEPTH) {
    __syncthreads();
    next_x.put(a);
    next_w.put(b);
    __syncthreads();
    if (dim - k > DEPTH) {
      next_x.fetch(x, first, rows, dim, k + DEPTH);
      next_w.fetch(w, output, outputs, dim, k + DEPTH);
    }
    if (dim - k >= DEPTH) {
      add_products(t, a, CHUNK_STRIDE, b, CHUNK_STRIDE, DEPTH);
    } else {
      // The chain must not run on over columns that are not there: even adding 0 turns -0 into 0.
      for (u32 c = 0; c < dim - k; c++) {
#pragma unroll
        for (u32 i = 0; i < 8; i++) {
#pragma unroll
          for (u32 j = 0; j < 4; j++)
            t.sum[i][j] = __fmaf_rn(a[row_of(i) * CHUNK_STRIDE + c], b[output_of(j) * CHUNK_STRIDE + c],
                                    t.sum[i][j]);
        }
      }
    }
  }
}

/// Rows of a warp by 32 outputs of a small layer, a lane an output: sum[i] = bias + x[warp + 4 i] . w, with
/// x [64][stride] in shared memory and the output's w [depth] in global memory.
struct column {
  float sum[ROWS_OF_WARP];

  GPU_FN static u32 row(u32 i) { return threadIdx.x / WARP + WARPS * i; }

  GPU_FN void product(const float* x, u32 stride, const float* w, float bias, u32 depth) {
#pragma unroll
    for (u32 i = 0; i < ROWS_OF_WARP; i++) sum[i] = bias;
    for (u32 k = 0; k < depth; k += 4) {
      const float4 v = read_4(w + k);
#pragma unroll
      for (u32 i = 0; i < ROWS_OF_WARP; i++) {
        const float4 u = load_4(x + row(i) * stride + k);
        float s = sum[i];
        s = __fmaf_rn(u.x, v.x, s);
        s = __fmaf_rn(u.y, v.y, s);
        s = __fmaf_rn(u.z, v.z, s);
        sum[i] = __fmaf_rn(u.w, v.w, s);
      }
    }
  }
};

/// The decoder's first layer of 64 latents.
struct decoder_input {
  float *z, *mean, *hidden;

  GPU_FN decoder_input(carver& carve, u32 hidden_size, u32 latent) {
    z = carve.take<float>(size_t(ROWS) * stride_of(latent));
    mean = carve.take<float>(size_t(ROWS) * stride_of(latent));
    hidden = carve.take<float>(size_t(ROWS) * stride_of(hidden_size));
  }

  /// hidden = relu(W1 z + b1) of latents `first` and on, or, given the seeds' means, its difference from that
  /// of the latent's seed. Ends with a barrier; what was read of `hidden` before must be behind one.
  GPU_FN void fill(const params::latents& source, u64 first, u64 count, u32 latent, u32 size, const float* w1,
                   const float* b1, const float* base_mu) const {
    const u32 groups = latent / 4, stride = stride_of(latent);
    for (u32 at = threadIdx.x; at < ROWS * groups; at += THREADS) {
      const u32 row = at / groups, block = at % groups;
      float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f), m = v;
      if (first + row < count) {
        v = latent_of(source, first + row, block, latent);
        if (base_mu) m = read_4(base_mu + u64(owner_of(source, first + row)) * latent + 4 * block);
      }
      store_4(z + row * stride + 4 * block, v);
      if (base_mu) store_4(mean + row * stride + 4 * block, m);
    }
    __syncthreads();
    for (u32 from = 0; from < size; from += WARP) {
      const u32 output = from + threadIdx.x % WARP;
      if (output >= size) continue;
      // The second one has values though it may not be used: the compiler subtracts first and chooses then.
      column h, h_mean = {};
      const float bias = read(b1 + output);
      h.product(z, stride, w1 + u64(output) * latent, bias, latent);
      if (base_mu) h_mean.product(mean, stride, w1 + u64(output) * latent, bias, latent);
#pragma unroll
      for (u32 i = 0; i < ROWS_OF_WARP; i++) {
        float v = relu(h.sum[i]);
        if (base_mu) v = __fsub_rn(v, relu(h_mean.sum[i]));
        hidden[column::row(i) * stride_of(size) + output] = v;
      }
    }
    __syncthreads();
  }
};

/// The last layer of a reward model, in the CPU's order: 32 chains over the panels of 32 outputs, a lane
/// each, added by halves.
struct reward_head {
  float chain[ROWS_OF_WARP];

  GPU_FN reward_head() {
#pragma unroll
    for (u32 i = 0; i < ROWS_OF_WARP; i++) chain[i] = 0.0f;
  }

  /// Takes outputs `from` .. `from` + 63 of `width`, after ReLU, from hidden [64][stride of 64].
  GPU_FN void add(const float* hidden, const float* w2, u32 from, u32 width) {
#pragma unroll
    for (u32 panel = 0; panel < OUTPUTS; panel += WARP) {
      if (from + panel >= width) break;
      const u32 at = panel + threadIdx.x % WARP;
      const float w = from + at < width ? read(w2 + from + at) : 0.0f;
#pragma unroll
      for (u32 i = 0; i < ROWS_OF_WARP; i++)
        chain[i] = __fmaf_rn(hidden[column::row(i) * stride_of(OUTPUTS) + at], w, chain[i]);
    }
  }

  /// Rewards of rows `first` and on.
  GPU_FN void finish(float* out, float bias, u64 first, u64 rows) const {
#pragma unroll
    for (u32 i = 0; i < ROWS_OF_WARP; i++) {
      const float sum = warp_sum(chain[i]);
      const u64 row = first + column::row(i);
      if (threadIdx.x % WARP == 0 && row < rows) out[row] = __fadd_rn(sum, bias);
    }
  }
};

}  // namespace exact
}  // namespace gpu
