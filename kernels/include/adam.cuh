// AdamW of one element.
#pragma once
#include "gpu.cuh"

namespace gpu {

/// Scalars; keep = 1 - beta and both bias corrections of the step come from the host, rounded from F64.
struct adam_step {
  float beta1, keep1, beta2, keep2, rate, inverse_root, eps, decay;
};

/// One element. The intrinsics keep the compiler from fusing a product with the sum that follows it.
GPU_FN void update(const adam_step& step, float& w, float g, float& m, float& v) {
  m = __fadd_rn(__fmul_rn(step.beta1, m), __fmul_rn(step.keep1, g));
  v = __fadd_rn(__fmul_rn(step.beta2, v), __fmul_rn(step.keep2, __fmul_rn(g, g)));
  const float root = __fadd_rn(__fmul_rn(__fsqrt_rn(v), step.inverse_root), step.eps);
  w = __fsub_rn(__fmul_rn(step.decay, w), __fdiv_rn(__fmul_rn(step.rate, m), root));
}

}  // namespace gpu
