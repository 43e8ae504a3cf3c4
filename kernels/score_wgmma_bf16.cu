// archs: sm_90a
// Rewards as score_bf16_*, on wgmma: r = w2 . relu(W1 e + b1) + b2; or the pre-activations W1 e + b1
// embeddings [rows, dim] F32, F16 or BF16; W1 [width, dim] BF16
// Two blocks, a cluster, own 128 rows each, by 256 of width at a time; each brings half of W1 in for both
// 2 dim width FLOP a row; reads the row once per 256 of width, and 8 dim bytes of W1 from L2 (4 at width 128)
// Needs dim a multiple of 8, width a multiple of 16, shared memory as src/backend/cuda/layout.rs counts it
// Accuracy: operands rounded to BF16, sums in F32: 2^-8 of the summed magnitudes
// Reference: src/backend/cpu/infer.rs, `score`, `preactivations`
// H200 by model, 2026-11, ns a row at width 256: L2 2.95, tensor 1.96, DRAM 1.90, L1 1.72; bound by L2
#include "include/boxed_rows.cuh"
#include "include/reduce.cuh"
#include "include/wgmma.cuh"

namespace score_wgmma {

using gpu::bf16;
using gpu::u32;
using gpu::u64;
using gpu::WARP;

// Two warpgroups multiply, 64 rows each; one more warp asks for stages.
constexpr u32 WIDE = 256, ROWS = 128, GROUP_ROWS = 64, WARPS = 8, THREADS = (WARPS + 1) * WARP;
constexpr u32 BLOCKS = 2;  // of a cluster

/// Stages of rows of type S.
template <class S>
struct shape : gpu::boxed_stage<S, ROWS, WIDE> {
  static constexpr u32 STAGES = gpu::boxed_rows<S>::BOXES == 1 ? 4 : 3;
};

template <class S>
struct layout {
  unsigned char* buffer;
  gpu::stages<shape<S>::STAGES> stages;

  GPU_FN explicit layout(gpu::carver& carve)
      : buffer(carve.take<unsigned char>(shape<S>::STAGES * shape<S>::BYTES)), stages(carve) {}
};

/// Calls f(first row of this block) for each of the cluster's shares of the rows: as often in both blocks, of
/// which the second may have no rows at the end.
template <class F>
GPU_FN void each_share(u64 rows, F f) {
  const u32 rank = gpu::cluster_rank();
  for (u64 first = u64(blockIdx.x - rank) * ROWS; first < rows; first += u64(gridDim.x) * ROWS)
    f(first + rank * ROWS);
}

/// One thread: asks for the stages of all rows of the block, as both blocks have read what lay there.
template <class S>
GPU_FN void fill(const layout<S>& shared, const params::score_wgmma<S, bf16>& p) {
  using shape = score_wgmma::shape<S>;
  constexpr u32 HALF = WIDE / BLOCKS;
  const u64 once = gpu::policy<gpu::keep::once>(), often = gpu::policy<gpu::keep::often>();
  const u32 rank = gpu::cluster_rank();
  typename gpu::stages<shape::STAGES>::turn turn;
  each_share(p.of.rows, [&](u64 first) {
    for (u32 from = 0; from < p.of.width; from += WIDE) {
      for (u32 k = 0; k < p.of.dim; k += gpu::BOX_DEPTH) {
        unsigned char* const to = shared.buffer + turn.stage * shape::BYTES;
        u64* const full = shared.stages.full + turn.stage;
        gpu::mbarrier_wait_cluster(shared.stages.empty + turn.stage, turn.parity ^ 1);
        gpu::mbarrier_arrive_expect(full, shape::BYTES);
        shape::copy_rows(to, p.embeddings, k, u32(first), full, once);
        gpu::copy_box_to((1 << BLOCKS) - 1, to + shape::BEHIND + rank * HALF * gpu::BOX_ROW, p.w1, k,
                         from + rank * HALF, full, often);
        turn.next();
      }
    }
  });
}

/// The sums of a warpgroup's 64 rows over all of k. BF16 rows are multiplied where they lie, others go
/// through registers.
template <class S, class T>
GPU_FN void multiply(float (&d)[128], const layout<S>& shared, T& turn, u32 dim) {
  using shape = score_wgmma::shape<S>;
  const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  // A lane for each block of the cluster tells it that the warp has read a stage.
  auto free = [&](u32 stage) {
    __syncwarp();
    if (lane < BLOCKS) gpu::mbarrier_arrive_at(shared.stages.empty + stage, lane);
  };
  u32 before = 0;
#pragma unroll 1
  for (u32 k = 0; k < dim; k += gpu::BOX_DEPTH) {
    const unsigned char* const rows = shared.buffer + turn.stage * shape::BYTES;
    const u64 w1 = gpu::wgmma_operand(gpu::shared_address(rows + shape::BEHIND));
    gpu::mbarrier_wait(shared.stages.full + turn.stage, turn.parity);
    // Descriptors count in 16 bytes: a step of 16 values is two further.
    if constexpr (gpu::boxed_rows<S>::AS_STORED) {
      const u64 x = gpu::wgmma_operand(gpu::shared_address(rows + warp / 4 * GROUP_ROWS * gpu::BOX_ROW));
      gpu::wgmma_fence();
#pragma unroll
      for (u32 step = 0; step < gpu::BOX_DEPTH / 16; step++)
        gpu::wgmma_m64n256k16_bf16(d, x + 2 * step, w1 + 2 * step, k + step);
      gpu::wgmma_commit();
      // The products of the stage before are done.
      gpu::wgmma_wait<1>();
      if (k) free(before);
      before = turn.stage;
    } else {
      // Two steps at a time, for want of registers; meanwhile the other warpgroup multiplies.
#pragma unroll
      for (u32 step = 0; step < gpu::BOX_DEPTH / 16; step += 2) {
        u32 x[2][4];
        gpu::boxed_rows<S>::load(x[0], rows, 16 * warp, step, ROWS);
        gpu::boxed_rows<S>::load(x[1], rows, 16 * warp, step + 1, ROWS);
        gpu::wgmma_fence();
        gpu::wgmma_m64n256k16_bf16(d, x[0], w1 + 2 * step, k + step);
        gpu::wgmma_m64n256k16_bf16(d, x[1], w1 + 2 * step + 2, 1);
        gpu::wgmma_commit();
        gpu::wgmma_wait<0>();
      }
      free(turn.stage);
    }
    turn.next();
  }
  if constexpr (gpu::boxed_rows<S>::AS_STORED) {
    gpu::wgmma_wait<0>();
    free(before);
  }
}

template <class S>
GPU_FN void score(const layout<S>& shared, const params::score_wgmma<S, bf16>& p) {
  const params::score<S, bf16>& of = p.of;
  const u32 lane = threadIdx.x % WARP, own = threadIdx.x / WARP * 16;
  typename gpu::stages<shape<S>::STAGES>::turn turn;
  each_share(of.rows, [&](u64 first) {
    const u64 rows[2] = {first + own + gpu::boxed_rows<S>::row(0), first + own + gpu::boxed_rows<S>::row(2)};
    float part[2] = {};
#pragma unroll 1
    for (u32 from = 0; from < of.width; from += WIDE) {
      float d[WIDE / 2];
      multiply(d, shared, turn, of.dim);
#pragma unroll
      for (u32 n = 0; n < WIDE / 8; n++) {
        const u32 o = from + 8 * n + lane % 4 * 2;
        if (o >= of.width) break;
        const float2 bias = gpu::read_2(of.b1 + o), weight = gpu::read_2(of.w2 + o);
#pragma unroll
        for (u32 h = 0; h < 2; h++) {
          const float low = d[4 * n + 2 * h] + bias.x, high = d[4 * n + 2 * h + 1] + bias.y;
          const float2 act = make_float2(gpu::relu_nan(low), gpu::relu_nan(high));
          if (of.pre && rows[h] < of.rows)
            gpu::store_2(of.pre + rows[h] * of.width + o, of.relu ? act : make_float2(low, high));
          part[h] = __fmaf_rn(act.x, weight.x, part[h]);
          part[h] = __fmaf_rn(act.y, weight.y, part[h]);
        }
      }
    }
    if (!of.out) return;
#pragma unroll
    for (u32 h = 0; h < 2; h++) {
      // Four lanes hold a row.
      float sum = part[h];
      sum += __shfl_xor_sync(gpu::ALL_LANES, sum, 1);
      sum += __shfl_xor_sync(gpu::ALL_LANES, sum, 2);
      if (lane % 4 == 0 && rows[h] < of.rows) of.out[rows[h]] = sum + of.b2;
    }
  });
}

template <class S>
GPU_FN void run(const params::score_wgmma<S, bf16>& p) {
  extern __shared__ __align__(1024) unsigned char memory[];
  gpu::carver carve(memory);
  const layout<S> shared(carve);
  if (threadIdx.x == 0) shared.stages.init(WARPS * BLOCKS);
  // Neither block copies to the other, or leaves, before both are ready.
  gpu::cluster_sync();
  if (threadIdx.x / WARP < WARPS)
    score(shared, p);
  else if (threadIdx.x % WARP == 0)
    fill(shared, p);
  __syncwarp();
  gpu::cluster_sync();
}

}  // namespace score_wgmma

#define KERNEL(name, S) \
  extern "C" __global__ void __cluster_dims__(score_wgmma::BLOCKS) \
      __launch_bounds__(score_wgmma::THREADS, 1) \
          name(const __grid_constant__ params::score_wgmma<S, gpu::bf16> p) { \
    score_wgmma::run(p); \
  }
KERNEL(score_wgmma_bf16_f32, float)
KERNEL(score_wgmma_bf16_f16, gpu::f16)
KERNEL(score_wgmma_bf16_bf16, gpu::bf16)
#undef KERNEL
