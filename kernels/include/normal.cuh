// Standard normals, logarithm, exponential, sine and cosine, in every bit equal to those of
// src/noise/{math,normal}.rs. So every operation is named with its rounding (__fmaf_rn and its like): the
// compiler may neither contract nor approximate them, whatever its flags. The coefficients are those of the
// Rust sources; change both or none.
#pragma once
#include "philox.cuh"

namespace gpu {

/// Natural logarithm of a positive normal `x`; about 1 ulp.
GPU_FN float ln(float x) {
  constexpr u32 SQRT_HALF = 0x3f3504f3u;
  const u32 shifted = __float_as_uint(x) + (0x3f800000u - SQRT_HALF);
  const float exponent = __int2float_rn(int(shifted >> 23) - 127);
  const float f = __fadd_rn(__uint_as_float((shifted & 0x007fffffu) + SQRT_HALF), -1.0f);
  float p = 7.0376836e-2f;
  p = __fmaf_rn(p, f, -0.1151461f);
  p = __fmaf_rn(p, f, 0.11676999f);
  p = __fmaf_rn(p, f, -0.12420141f);
  p = __fmaf_rn(p, f, 0.14249323f);
  p = __fmaf_rn(p, f, -0.16668058f);
  p = __fmaf_rn(p, f, 0.20000714f);
  p = __fmaf_rn(p, f, -0.24999994f);
  p = __fmaf_rn(p, f, 0.3333333f);
  const float square = __fmul_rn(f, f);
  const float tail = __fmaf_rn(exponent, -2.12194442e-4f, __fmul_rn(__fmul_rn(p, f), square));
  return __fmaf_rn(exponent, 0.6933594f, __fadd_rn(f, __fmaf_rn(square, -0.5f, tail)));
}

/// e to the power `x`; `x` is clamped to [-87, 88], where the result is normal; about 1 ulp. NaN stays NaN.
GPU_FN float exp(float x) {
  constexpr float ROUND = 12582912.0f;  // 1.5 * 2^23: adding and subtracting it rounds to the nearest integer
  x = x < -87.0f ? -87.0f : x;
  x = x > 88.0f ? 88.0f : x;
  const float n = __fadd_rn(__fmaf_rn(x, 1.44269504088896340736f, ROUND), -ROUND);
  const float r = __fmaf_rn(n, 2.12194442e-4f, __fmaf_rn(n, -0.6933594f, x));
  float p = 1.9875691e-4f;
  p = __fmaf_rn(p, r, 1.3982e-3f);
  p = __fmaf_rn(p, r, 8.333452e-3f);
  p = __fmaf_rn(p, r, 4.1665796e-2f);
  p = __fmaf_rn(p, r, 0.16666665f);
  p = __fmaf_rn(p, r, 0.5f);
  const float y = __fadd_rn(__fmaf_rn(p, __fmul_rn(r, r), r), 1.0f);
  return __fmul_rn(y, __uint_as_float(u32(__float2int_rz(n) + 127) << 23));
}

/// Sine and cosine of the angle `turn / 2^32` of a full turn; absolute error under 1e-7.
GPU_FN void sin_cos_turn(u32 turn, float& sine, float& cosine) {
  // The nearest quarter turn, and what is left of the angle, within an eighth of a turn.
  const u32 quarter = (turn + (1u << 29)) >> 30;
  const int rest = int(turn - (quarter << 30));
  const float a = __fmul_rn(__int2float_rn(rest), 6.28318530717958647692f / 4294967296.0f);
  const float s = __fmul_rn(a, a);
  float x = __fmaf_rn(__fmaf_rn(s, -1.9515296e-4f, 8.332161e-3f), s, -0.16666655f);
  x = __fmaf_rn(__fmul_rn(x, s), a, a);
  float y = __fmaf_rn(__fmaf_rn(s, 2.4433157e-5f, -1.3887316e-3f), s, 4.1666646e-2f);
  y = __fmaf_rn(__fmul_rn(y, s), s, __fmaf_rn(s, -0.5f, 1.0f));
  // A quarter turn swaps the two and moves the signs.
  const bool swap = quarter & 1u;
  sine = __uint_as_float(__float_as_uint(swap ? y : x) ^ (quarter & 2u) << 30);
  cosine = __uint_as_float(__float_as_uint(swap ? x : y) ^ ((quarter + 1u) & 2u) << 30);
}

/// Two standard normals from two random words (Box-Muller); both roundings of the uniform are part of the
/// definition.
GPU_FN float2 normal_pair(u32 radius_word, u32 angle_word) {
  const float u = __fmaf_rn(__uint2float_rn(radius_word), 2.3283064365386963e-10f, 1.1641532182693481e-10f);
  const float r = __fsqrt_rn(__fmul_rn(-2.0f, ln(u)));
  float sine, cosine;
  sin_cos_turn(angle_word, sine, cosine);
  return make_float2(__fmul_rn(r, cosine), __fmul_rn(r, sine));
}

/// Elements 4 * block .. 4 * block + 3 of the standard normals of an address.
GPU_FN float4 normals(const address& a, u32 block, uint2 key) {
  const uint4 words = philox4x32_10(counter_of(a, block), key);
  const float2 first = normal_pair(words.x, words.y), second = normal_pair(words.z, words.w);
  return make_float4(first.x, first.y, second.x, second.y);
}

}  // namespace gpu
