// Keywords, vector types, scalar intrinsics and half conversions of CUDA C++, in plain C++.
#pragma once
// Standard headers come before the keywords below, which some of them use as names.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <source_location>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(n) alignas(n)
#define __constant__ static const

struct alignas(8) uint2 {
  unsigned x, y;
};
struct uint3 {
  unsigned x, y, z;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

// Arithmetic with its rounding in the name: the host's own, as long as nothing is contracted
// (-ffp-contract=off).
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __uint2float_rn(uint32_t a) { return float(a); }
inline float __int2float_rn(int a) { return float(a); }
// The device saturates, and turns NaN into 0; on the host both would be undefined.
inline int __float2int_rz(float a) {
  if (a != a) return 0;
  return a >= 2147483648.0f ? INT32_MAX : a < -2147483648.0f ? INT32_MIN : int(a);
}
inline int __float2int_rn(float a) { return __float2int_rz(std::nearbyint(a)); }

inline uint32_t __float_as_uint(float a) { return std::bit_cast<uint32_t>(a); }
inline float __uint_as_float(uint32_t a) { return std::bit_cast<float>(a); }
inline int __float_as_int(float a) { return std::bit_cast<int>(a); }
inline float __int_as_float(int a) { return std::bit_cast<float>(a); }
inline uint32_t __umulhi(uint32_t a, uint32_t b) { return uint32_t(uint64_t(a) * b >> 32); }
inline int __popc(uint32_t a) { return std::popcount(a); }
inline int __popcll(unsigned long long a) { return std::popcount(a); }
inline int __clz(int a) { return std::countl_zero(uint32_t(a)); }
inline int __ffs(int a) { return a ? std::countr_zero(uint32_t(a)) + 1 : 0; }
inline float rsqrtf(float a) { return float(1.0 / std::sqrt(double(a))); }

template <class A, class B>
std::common_type_t<A, B> min(A a, B b) {
  return a < b ? a : b;
}
template <class A, class B>
std::common_type_t<A, B> max(A a, B b) {
  return a < b ? b : a;
}

namespace emulation {

/// Round to nearest even; NaN becomes 0x7fff, as cvt.rn does.
inline uint16_t bf16_from_float(float f) {
  const uint32_t u = std::bit_cast<uint32_t>(f);
  return f != f ? 0x7fff : uint16_t((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
inline float bf16_to_float(uint16_t h) { return std::bit_cast<float>(uint32_t(h) << 16); }

inline uint16_t f16_from_float(float f) {
  const uint32_t u = std::bit_cast<uint32_t>(f), sign = u >> 16 & 0x8000;
  uint32_t m = u & 0x7fffffff;
  if (m > 0x7f800000) return 0x7fff;
  if (m >= 0x477ff000) return uint16_t(sign | 0x7c00);
  // Below 2^-14 the half's step is 2^-24, that of floats from 0.5 on: the addition rounds.
  if (m < 0x38800000)
    return uint16_t(sign | (std::bit_cast<uint32_t>(std::bit_cast<float>(m) + 0.5f) - 0x3f000000));
  m += 0xc8000fff + (m >> 13 & 1);
  return uint16_t(sign | m >> 13);
}
inline float f16_to_float(uint16_t h) {
  const uint32_t sign = uint32_t(h & 0x8000) << 16, m = h & 0x7fff;
  if (m >= 0x7c00) return std::bit_cast<float>(sign | 0x7f800000 | (m & 0x3ff) << 13);
  if (m < 0x400) return (sign ? -1.0f : 1.0f) * std::ldexp(float(m), -24);
  return std::bit_cast<float>(sign | ((m << 13) + 0x38000000));
}

/// Round to nearest, ties away from zero (cvt.rna).
inline uint32_t tf32_from_float(float f) {
  const uint32_t u = std::bit_cast<uint32_t>(f);
  return f != f ? 0x7fffffff : (u & 0x7f800000) == 0x7f800000 ? u : (u + 0x1000) & ~0x1fffu;
}

}  // namespace emulation
