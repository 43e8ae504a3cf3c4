// Products of a warp on tensor cores: BF16 operands in shared memory, sums in F32 (sm_80 and newer).
//
// Operands lie by rows, [row][k], or by k, [k][row]; ldmatrix turns the latter. Rows of shared memory are 8
// values longer than they need be: an odd multiple of 16 bytes, so that the eight rows of a matrix fall into
// different banks.
#pragma once
#include "async_copy.cuh"
#include "latent.cuh"
#include "mma.cuh"
#include "types.cuh"

namespace gpu {
namespace tensor {

constexpr u32 THREADS = 128, WARPS = THREADS / WARP, ROWS = 64, ROWS_OF_WARP = ROWS / WARPS, OUTPUTS = 64;

/// Values between rows of an operand that is `k` long.
constexpr GPU_BOTH u32 stride_of(u32 k) { return k + 8; }

/// R x 16 rows by G x 16 outputs of a warp, as D fragments lie (mma.cuh).
template <u32 R, u32 G>
struct tile {
  float sum[R][2 * G][4];

  GPU_FN void clear() {
#pragma unroll
    for (u32 r = 0; r < R; r++) {
#pragma unroll
      for (u32 n = 0; n < 2 * G; n++) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) sum[r][n][i] = 0.0f;
      }
    }
  }

  /// Row, within the tile, of element i of fragment r, and output of element i of fragment n.
  GPU_FN static u32 row(u32 r, u32 i) { return 16 * r + threadIdx.x % WARP / 4 + (i & 2 ? 8 : 0); }
  GPU_FN static u32 output(u32 n, u32 i) { return 8 * n + threadIdx.x % 4 * 2 + (i & 1); }

  /// Adds the products over `depth`, a multiple of 16. a and b point at the tile's first row and output;
  /// `A_BY_ROWS`, `B_BY_ROWS` say how they lie. Of the G groups only the first `groups` are made.
  template <bool A_BY_ROWS, bool B_BY_ROWS>
  GPU_FN void add(const bf16* a, u32 a_stride, const bf16* b, u32 b_stride, u32 depth, u32 groups = G) {
    const u32 lane = threadIdx.x % WARP, low = lane % 8, first = lane / 8 % 2 * 8, second = lane / 16 * 8;
    for (u32 k = 0; k < depth; k += 16) {
      u32 x[R][4];
#pragma unroll
      for (u32 r = 0; r < R; r++) {
        // Matrices 0 to 3: rows 0-7 and 8-15 at k 0-7, then at k 8-15.
        if (A_BY_ROWS)
          ldmatrix_x4(x[r], a + (16 * r + first + low) * a_stride + k + second);
        else
          ldmatrix_x4_trans(x[r], a + (k + second + low) * a_stride + 16 * r + first);
      }
#pragma unroll
      for (u32 g = 0; g < G; g++) {
        if (g >= groups) break;
        // Matrices 0 to 3: k 0-7 and 8-15 of outputs 0-7, then of outputs 8-15.
        u32 w[4];
        if (B_BY_ROWS)
          ldmatrix_x4(w, b + (16 * g + second + low) * b_stride + k + first);
        else
          ldmatrix_x4_trans(w, b + (k + first + low) * b_stride + 16 * g + second);
        const u32 left[2] = {w[0], w[1]}, right[2] = {w[2], w[3]};
#pragma unroll
        for (u32 r = 0; r < R; r++) {
          mma_m16n8k16_bf16(sum[r][2 * g], x[r], left, sum[r][2 * g]);
          mma_m16n8k16_bf16(sum[r][2 * g + 1], x[r], right, sum[r][2 * g + 1]);
        }
      }
    }
  }
};

/// Eight values from `at` on, of which `there` exist, rounded to BF16; the others are 0.
template <class S>
GPU_FN uint4 load_8(const S* at, u32 there, bool vector) {
  float v[8];
  if (there >= 8 && vector) {
#pragma unroll
    for (u32 i = 0; i < 8; i += vec16<S>::COUNT) {
      const vec16<S> part = load_16(at + i);
#pragma unroll
      for (u32 j = 0; j < vec16<S>::COUNT; j++) v[i + j] = to_f32(part.value[j]);
    }
  } else {
#pragma unroll
    for (u32 i = 0; i < 8; i++) v[i] = i < there ? to_f32(at[i]) : 0.0f;
  }
  return make_uint4(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]),
                    pack_bf16(v[6], v[7]));
}

template <class S>
struct is_bf16 {
  static constexpr bool VALUE = false;
};
template <>
struct is_bf16<bf16> {
  static constexpr bool VALUE = true;
};

/// Copies `count` rows by `columns` values, a multiple of 8, from rows `row` and columns `column` on of a
/// matrix [rows, ld] to shared memory [count][stride], as BF16 with zeros outside. BF16 rows that lie on
/// multiples of 16 bytes go asynchronously: the caller commits and waits. All threads of the block together.
template <class S>
GPU_FN void copy_rows(bf16* to, u32 stride, const S* from, u64 row, u64 rows, u32 ld, u32 column, u32 columns,
                      u32 count) {
  const u32 groups = columns / 8;
  const bool vector = ld % (16 / sizeof(S)) == 0;
  for (u32 at = threadIdx.x; at < count * groups; at += blockDim.x) {
    const u32 r = at / groups, c = column + at % groups * 8;
    const u32 there = row + r < rows && c < ld ? (ld - c < 8 ? ld - c : 8) : 0;
    const S* source = there ? from + (row + r) * ld + c : from;
    bf16* target = to + r * stride + at % groups * 8;
    if (is_bf16<S>::VALUE && vector)
      copy_async_16(target, source, 2 * there);
    else
      *reinterpret_cast<uint4*>(target) = load_8(source, there, vector);
  }
}

constexpr u32 DEPTH = 64, CHUNK_STRIDE = DEPTH + 8;

/// Values that the stages of add_stored take.
constexpr GPU_BOTH u32 stages_of(u32 stages, u32 wide) { return stages * (ROWS + wide) * CHUNK_STRIDE; }

/// Adds rows `row` .. of x [rows, dim] times outputs `output` .. of w [outputs, dim], 64 of k at a time, by
/// STAGES buffers of ROWS + 16 G N rows of shared memory each. The block's warps lie N side by side.
template <u32 STAGES, u32 N, u32 R, u32 G, class S>
GPU_FN void add_stored(tile<R, G>& t, bf16* stages, const S* x, u64 row, u64 rows, const bf16* w, u32 output,
                       u32 outputs, u32 dim) {
  constexpr u32 WIDE = 16 * G * N;
  const u32 warp = threadIdx.x / WARP, chunks = (dim + DEPTH - 1) / DEPTH;
  auto fill = [&](u32 chunk) {
    if (chunk < chunks) {
      bf16* stage = stages + chunk % STAGES * (ROWS + WIDE) * CHUNK_STRIDE;
      copy_rows(stage, CHUNK_STRIDE, x, row, rows, dim, chunk * DEPTH, DEPTH, ROWS);
      copy_rows(stage + ROWS * CHUNK_STRIDE, CHUNK_STRIDE, w, output, outputs, dim, chunk * DEPTH, DEPTH,
                WIDE);
    }
    copy_async_commit();
  };
  // The stages may still be read for what came before.
  __syncthreads();
#pragma unroll
  for (u32 s = 0; s < STAGES - 1; s++) fill(s);
  for (u32 chunk = 0; chunk < chunks; chunk++) {
    copy_async_wait<STAGES - 2>();
    __syncthreads();
    // Into the stage that all have left since the barrier.
    fill(chunk + STAGES - 1);
    const bf16* stage = stages + chunk % STAGES * (ROWS + WIDE) * CHUNK_STRIDE;
    const bf16* a = stage + warp / N * 16 * R * CHUNK_STRIDE;
    const bf16* b = stage + (ROWS + warp % N * 16 * G) * CHUNK_STRIDE;
    t.template add<true, true>(a, CHUNK_STRIDE, b, CHUNK_STRIDE, DEPTH);
  }
}

/// The decoder's first layer of 64 latents, 16 of them a warp's own: nothing here waits for other warps.
struct decoder_input {
  bf16 *w1, *z, *mean, *hidden;

  GPU_BOTH decoder_input(carver& carve, u32 size, u32 latent) {
    w1 = carve.take<bf16>(size_t(size) * stride_of(latent));
    z = carve.take<bf16>(size_t(ROWS) * stride_of(latent));
    mean = carve.take<bf16>(size_t(ROWS) * stride_of(latent));
    hidden = carve.take<bf16>(size_t(ROWS) * stride_of(size));
  }

  /// Brings W1 [size, latent] in; the caller waits for all copies and puts a barrier behind it.
  GPU_FN void load(const bf16* from, u32 size, u32 latent) const {
    copy_rows(w1, stride_of(latent), from, 0, size, latent, 0, latent, size);
  }

  GPU_FN u32 first_row() const { return threadIdx.x / WARP * ROWS_OF_WARP; }

  /// hidden = relu(W1 z + b1) of the warp's rows of latents `first` and on, or, given the seeds' means, its
  /// difference from that of the latent's seed.
  GPU_FN void fill(const latents& source, u64 first, u64 count, u32 latent, u32 size, const float* b1,
                   const float* base_mu) const {
    const u32 lane = threadIdx.x % WARP, stride = stride_of(latent), groups = latent / 4, from = first_row();
    // What the lanes read of the former latents is behind them.
    __syncwarp();
    for (u32 at = lane; at < ROWS_OF_WARP * groups; at += WARP) {
      const u32 row = from + at / groups, block = at % groups;
      float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f), m = v;
      if (first + row < count) {
        v = latent_of(source, first + row, block, latent);
        if (base_mu) m = load_4(base_mu + u64(owner_of(source, first + row)) * latent + 4 * block);
      }
      *reinterpret_cast<uint2*>(z + row * stride + 4 * block) =
          make_uint2(pack_bf16(v.x, v.y), pack_bf16(v.z, v.w));
      if (base_mu)
        *reinterpret_cast<uint2*>(mean + row * stride + 4 * block) =
            make_uint2(pack_bf16(m.x, m.y), pack_bf16(m.z, m.w));
    }
    __syncwarp();
    for (u32 output = 0; output < size; output += OUTPUTS) {
      const u32 left = size - output, wide = left < OUTPUTS ? left / 16 : OUTPUTS / 16;
      tile<1, OUTPUTS / 16> h, h_mean;
      h.clear();
      h.add<true, true>(z + from * stride, stride, w1 + output * stride, stride, latent, wide);
      h_mean.clear();
      if (base_mu)
        h_mean.add<true, true>(mean + from * stride, stride, w1 + output * stride, stride, latent, wide);
#pragma unroll
      for (u32 n = 0; n < 2 * OUTPUTS / 16; n++) {
        if (n >= 2 * wide) break;
#pragma unroll
        for (u32 i = 0; i < 4; i += 2) {
          const u32 o = output + h.output(n, i), row = from + h.row(0, i);
          float low = relu(h.sum[0][n][i] + b1[o]), high = relu(h.sum[0][n][i + 1] + b1[o + 1]);
          if (base_mu) {
            low -= relu(h_mean.sum[0][n][i] + b1[o]);
            high -= relu(h_mean.sum[0][n][i + 1] + b1[o + 1]);
          }
          *reinterpret_cast<u32*>(hidden + row * stride_of(size) + o) = pack_bf16(low, high);
        }
      }
    }
    __syncwarp();
  }
};

}  // namespace tensor
}  // namespace gpu
