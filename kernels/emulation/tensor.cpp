// mma.sync and ldmatrix: fragments are gathered from the lanes into matrices, and results handed back, after
// the layouts that kernels/include/mma.cuh explains.
#include <algorithm>
#include <cmath>

#include "machine.hpp"
#include "shadow.hpp"

namespace emulation {
namespace {

struct Product {
  float* d;
  const uint32_t* a;
  const uint32_t* b;
  const float* c;
};

/// One element as the hardware might add it: products exact, all terms cut to 24 bits below the largest
/// exponent.
float truncated_sum(const float* a, const float (*b)[8], int column, int depth, float c) {
  double terms[17];
  int largest = INT32_MIN;
  for (int k = 0; k < depth; k++) terms[k] = double(a[k]) * b[k][column];
  terms[depth] = c;
  for (int i = 0; i <= depth; i++)
    if (terms[i] != 0 && std::isfinite(terms[i])) largest = std::max(largest, std::ilogb(terms[i]));
  // Terms below the cut lose their lower bits; infinities and NaN go through as they are.
  double sum = 0;
  for (int i = 0; i <= depth; i++) {
    const bool cut = std::isfinite(terms[i]) && terms[i] != 0;
    sum += cut ? std::ldexp(std::trunc(std::ldexp(terms[i], 23 - largest)), largest - 23) : terms[i];
  }
  const float rounded = float(sum);
  return std::fabs(double(rounded)) > std::fabs(sum) ? std::nextafter(rounded, 0.0f) : rounded;
}

/// D = A B + C for the whole warp.
void multiply(const float (*a)[16], const float (*b)[8], float (*c)[8], int depth) {
  for (int row = 0; row < 16; row++) {
    double sums[8];
    for (int n = 0; n < 8; n++) sums[n] = c[row][n];
    const Sums how = machine.schedule.sums;
    for (int k = 0; k < depth && how == Sums::exact; k++)
      for (int n = 0; n < 8; n++) sums[n] += double(a[row][k]) * b[k][n];
    for (int n = 0; n < 8 && how == Sums::chained; n++)
      for (int k = 0; k < depth; k++) sums[n] = float(sums[n] + double(a[row][k]) * b[k][n]);
    for (int n = 0; n < 8 && how == Sums::truncated; n++)
      sums[n] = truncated_sum(a[row], b, n, depth, c[row][n]);
    for (int n = 0; n < 8; n++) c[row][n] = float(sums[n]);
  }
}

float low_half(uint32_t pair, bool half) {
  return half ? f16_to_float(uint16_t(pair)) : bf16_to_float(uint16_t(pair));
}

void gather_16_bit(void* const* arguments, float (*a)[16], float (*b)[8], bool half) {
  for (int l = 0; l < 32; l++) {
    const auto& p = *static_cast<Product*>(arguments[l]);
    const int g = l / 4, t = 2 * (l % 4);
    for (int r = 0; r < 4; r++)
      for (int i = 0; i < 2; i++) a[g + 8 * (r & 1)][t + 8 * (r >> 1) + i] = low_half(p.a[r] >> 16 * i, half);
    for (int r = 0; r < 2; r++)
      for (int i = 0; i < 2; i++) b[t + 8 * r + i][g] = low_half(p.b[r] >> 16 * i, half);
  }
}

void gather_tf32(void* const* arguments, float (*a)[16], float (*b)[8]) {
  auto value = [](uint32_t bits) { return std::bit_cast<float>(bits & ~0x1fffu); };
  for (int l = 0; l < 32; l++) {
    const auto& p = *static_cast<Product*>(arguments[l]);
    const int g = l / 4, t = l % 4;
    for (int r = 0; r < 4; r++) a[g + 8 * (r & 1)][t + 4 * (r >> 1)] = value(p.a[r]);
    for (int r = 0; r < 2; r++) b[t + 4 * r][g] = value(p.b[r]);
  }
}

enum class Input { bf16, f16, tf32 };

template <Input INPUT>
void combine_mma(void* const* arguments, uint32_t) {
  float a[16][16], b[16][8], c[16][8];
  if constexpr (INPUT == Input::tf32)
    gather_tf32(arguments, a, b);
  else
    gather_16_bit(arguments, a, b, INPUT == Input::f16);
  auto element = [&](int l, int r) -> float& { return c[l / 4 + 8 * (r >> 1)][2 * (l % 4) + (r & 1)]; };
  for (int l = 0; l < 32; l++)
    for (int r = 0; r < 4; r++) element(l, r) = static_cast<Product*>(arguments[l])->c[r];
  multiply(a, b, c, INPUT == Input::tf32 ? 8 : 16);
  for (int l = 0; l < 32; l++)
    for (int r = 0; r < 4; r++) static_cast<Product*>(arguments[l])->d[r] = element(l, r);
}

struct Load {
  uint32_t* result;
  const void* row;
  int matrices;
  bool transposed;
};

void combine_ldmatrix(void* const* arguments, uint32_t) {
  auto load = [&](int l) -> Load& { return *static_cast<Load*>(arguments[l]); };
  Thread* const last = machine.current;
  const Site site = last->site;
  const int matrices = load(0).matrices;
  for (int l = 0; l < 8 * matrices; l++) {
    // The access is that of the lane which gave the address.
    machine.current = &machine.thread[last->warp * 32 + unsigned(l)];
    need_alignment(load(l).row, 16, "ldmatrix", site);
    check_access(load(l).row, 16, Access::read, site);
  }
  machine.current = last;
  for (int l = 0; l < 32; l++)
    for (int m = 0; m < matrices; m++) {
      auto element = [&](int row, int column) {
        return uint32_t(static_cast<const uint16_t*>(load(8 * m + row).row)[column]);
      };
      const int g = l / 4, t = 2 * (l % 4);
      load(l).result[m] = load(0).transposed ? element(t, g) | element(t + 1, g) << 16
                                             : element(g, t) | element(g, t + 1) << 16;
    }
}

const Operation ldmatrix_operation{"ldmatrix", combine_ldmatrix, true, false};

}  // namespace

const Operation mma_bf16{"mma.m16n8k16 bf16", combine_mma<Input::bf16>, true, false};
const Operation mma_f16{"mma.m16n8k16 f16", combine_mma<Input::f16>, true, false};
const Operation mma_tf32{"mma.m16n8k8 tf32", combine_mma<Input::tf32>, true, false};

void mma(const Operation& kind, float* d, const uint32_t* a, const uint32_t* b, const float* c, Site site) {
  Product p{d, a, b, c};
  collective(kind, ~0u, &p, site);
}

void ldmatrix(uint32_t* result, const void* row, int matrices, bool transposed, Site site) {
  Load l{result, row, matrices, transposed};
  collective(ldmatrix_operation, ~0u, &l, site);
}

}  // namespace emulation
