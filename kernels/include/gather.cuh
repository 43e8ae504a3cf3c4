// Rows of a training batch, standardised: the bits of `Standardizer::apply`.
#pragma once
#include "train.cuh"

namespace gpu {

/// In place of a row: there is none.
constexpr u32 NO_ROW = 0xffffffffu;

template <class S, u32 THREADS>
GPU_FN void standardise(const void* rows, u32 source, u32 dim, const float* mean, const float* std,
                        float* to) {
  const S* from = static_cast<const S*>(rows) + u64(source) * dim;
  for (u32 i = threadIdx.x; i < dim; i += THREADS)
    to[i] = __fdiv_rn(__fsub_rn(to_f32(read(from + i)), read(mean + i)), read(std + i));
}

/// Row `source` of a part, standardised, or zeros. A block of THREADS together.
template <u32 THREADS>
GPU_FN void gather_row(const params::sources& from, u32 part, u32 source, u32 dim, const float* mean,
                       const float* std, float* to) {
  const void* rows = pick(from.rows, part);
  const u32 dtype = pick(from.dtype, part);
  if (source == NO_ROW) {
    for (u32 i = threadIdx.x; i < dim; i += THREADS) to[i] = 0.0f;
  } else if (dtype == 0) {
    standardise<float, THREADS>(rows, source, dim, mean, std, to);
  } else if (dtype == 1) {
    standardise<f16, THREADS>(rows, source, dim, mean, std, to);
  } else {
    standardise<bf16, THREADS>(rows, source, dim, mean, std, to);
  }
}

}  // namespace gpu
