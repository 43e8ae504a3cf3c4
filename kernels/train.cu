// archs: sm_75+
// Training, what both models need: the turn of the next step, standardised rows of the batch, summed losses
// table [steps], state; embeddings [n, dim] F32, F16 or BF16; batch x [2 batch, dim] F32, chosen half first
// A row of the batch belongs to one block; rows past the batch's end become zeros
// 2 FLOP a value; reads the storage type, writes 4 bytes
// Needs nothing of alignment
// Exact: the bits of `Standardizer::apply`
// Reference: src/model/standardizer.rs; measured on nothing yet
#include "include/reduce.cuh"
#include "include/train.cuh"

namespace train {

using gpu::step;
using gpu::u32;
using gpu::u64;

constexpr u32 THREADS = 256, NONE = 0xffffffffu;

/// Row r of the batch from its source, or zeros.
template <class S>
GPU_FN void gather_row(const S* embeddings, u32 source, u32 dim, const float* mean, const float* std,
                       float* to) {
  if (source == NONE) {
    for (u32 i = threadIdx.x; i < dim; i += THREADS) to[i] = 0.0f;
    return;
  }
  const S* from = embeddings + u64(source) * dim;
  for (u32 i = threadIdx.x; i < dim; i += THREADS)
    to[i] = __fdiv_rn(__fsub_rn(gpu::to_f32(from[i]), mean[i]), std[i]);
}

/// One side of a batch of pairs: row r of the side is the data's row `order[first + r]`.
template <class S>
GPU_FN void gather_pairs(const S* embeddings, const u32* order, const step* now, u32 dim, u32 batch,
                         u32 side, const float* mean, const float* std, float* x) {
  for (u32 r = blockIdx.x; r < batch; r += gridDim.x) {
    const u32 source = r < now->pairs ? order[now->first + r] : NONE;
    gather_row(embeddings, source, dim, mean, std, x + u64(side * batch + r) * dim);
  }
}

/// Rows of a batch in any order: row r of step s is `rows[2 batch s + r]`, (part, source, latent). Those of
/// another part are left alone, those without a source are zeros.
template <class S>
GPU_FN void gather_rows(const S* embeddings, const uint3* rows, const step* now, u32 dim, u32 batch, u32 part,
                        const float* mean, const float* std, float* x) {
  for (u32 r = blockIdx.x; r < 2 * batch; r += gridDim.x) {
    const uint3 row = rows[u64(2) * now->first + r];
    if (row.x == part) gather_row(embeddings, row.y, dim, mean, std, x + u64(r) * dim);
  }
}

}  // namespace train

/// Copies the entry whose turn it is to `now`, and passes the turn on.
GPU_KERNEL __launch_bounds__(32)
    begin_step(const gpu::step* __restrict__ table, uint32_t* __restrict__ turn,
               gpu::step* __restrict__ now) {
  if (threadIdx.x == 0) {
    *now = table[*turn];
    *turn += 1;
  }
}
GPU_EXPORT(begin_step);

GPU_KERNEL __launch_bounds__(train::THREADS)
    gather_pairs_f32(const float* __restrict__ embeddings, const uint32_t* __restrict__ order,
                     const gpu::step* __restrict__ now, uint32_t dim, uint32_t batch, uint32_t side,
                     const float* __restrict__ mean, const float* __restrict__ std, float* __restrict__ x) {
  train::gather_pairs(embeddings, order, now, dim, batch, side, mean, std, x);
}
GPU_EXPORT(gather_pairs_f32);

GPU_KERNEL __launch_bounds__(train::THREADS)
    gather_pairs_f16(const gpu::f16* __restrict__ embeddings, const uint32_t* __restrict__ order,
                     const gpu::step* __restrict__ now, uint32_t dim, uint32_t batch, uint32_t side,
                     const float* __restrict__ mean, const float* __restrict__ std, float* __restrict__ x) {
  train::gather_pairs(embeddings, order, now, dim, batch, side, mean, std, x);
}
GPU_EXPORT(gather_pairs_f16);

GPU_KERNEL __launch_bounds__(train::THREADS)
    gather_pairs_bf16(const gpu::bf16* __restrict__ embeddings, const uint32_t* __restrict__ order,
                      const gpu::step* __restrict__ now, uint32_t dim, uint32_t batch, uint32_t side,
                      const float* __restrict__ mean, const float* __restrict__ std, float* __restrict__ x) {
  train::gather_pairs(embeddings, order, now, dim, batch, side, mean, std, x);
}
GPU_EXPORT(gather_pairs_bf16);

GPU_KERNEL __launch_bounds__(train::THREADS)
    gather_rows_f32(const float* __restrict__ embeddings, const uint3* __restrict__ rows,
                    const gpu::step* __restrict__ now, uint32_t dim, uint32_t batch, uint32_t part,
                    const float* __restrict__ mean, const float* __restrict__ std, float* __restrict__ x) {
  train::gather_rows(embeddings, rows, now, dim, batch, part, mean, std, x);
}
GPU_EXPORT(gather_rows_f32);

GPU_KERNEL __launch_bounds__(train::THREADS)
    gather_rows_f16(const gpu::f16* __restrict__ embeddings, const uint3* __restrict__ rows,
                    const gpu::step* __restrict__ now, uint32_t dim, uint32_t batch, uint32_t part,
                    const float* __restrict__ mean, const float* __restrict__ std, float* __restrict__ x) {
  train::gather_rows(embeddings, rows, now, dim, batch, part, mean, std, x);
}
GPU_EXPORT(gather_rows_f16);

GPU_KERNEL __launch_bounds__(train::THREADS)
    gather_rows_bf16(const gpu::bf16* __restrict__ embeddings, const uint3* __restrict__ rows,
                     const gpu::step* __restrict__ now, uint32_t dim, uint32_t batch, uint32_t part,
                     const float* __restrict__ mean, const float* __restrict__ std, float* __restrict__ x) {
  train::gather_rows(embeddings, rows, now, dim, batch, part, mean, std, x);
}
GPU_EXPORT(gather_rows_bf16);

/// Adds the sums of `terms` rows of losses [terms, count] to totals [terms], each in one fixed order.
GPU_KERNEL __launch_bounds__(train::THREADS)
    add_losses(const double* __restrict__ losses, double* __restrict__ totals, uint32_t terms,
               uint32_t count) {
  using namespace train;
  GPU_DYN_SHARED(memory);
  gpu::carver carve(memory);
  double* scratch = carve.take<double>(THREADS / gpu::WARP);
  for (u32 term = 0; term < terms; term++) {
    double sum = 0.0;
    for (u32 i = threadIdx.x; i < count; i += THREADS) sum += losses[u64(term) * count + i];
    sum = gpu::block_sum(sum, scratch);
    if (threadIdx.x == 0) totals[term] += sum;
  }
}
GPU_EXPORT(add_losses);
