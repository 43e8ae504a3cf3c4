// Storage types and their conversions, and 16-byte vectors. The only header that knows CUDA's own half types.
#pragma once
#include "read.cuh"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace gpu {

/// A bfloat16 as stored: the upper half of an F32.
struct bf16 {
  u16 bits;
};

/// An IEEE half as stored.
struct f16 {
  u16 bits;
};

/// Widening is exact in all cases.
GPU_FN float to_f32(float x) { return x; }
GPU_FN float to_f32(bf16 x) { return __uint_as_float(u32(x.bits) << 16); }
GPU_FN float to_f32(f16 x) {
  return __half2float(__ushort_as_half(x.bits));
}

/// Narrowing rounds to nearest, ties to even; NaN becomes the canonical one (0x7fff), as cvt.rn does.
template <class T>
GPU_FN T from_f32(float x);
template <>
GPU_FN float from_f32<float>(float x) {
  return x;
}
template <>
GPU_FN bf16 from_f32<bf16>(float x) {
  return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
}
template <>
GPU_FN f16 from_f32<f16>(float x) {
  return {__half_as_ushort(__float2half_rn(x))};
}

/// Two values in one register, `low` in the lower half: one instruction on the device (cvt.rn.bf16x2.f32).
GPU_FN u32 pack_bf16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return u32(__bfloat16_as_ushort(pair.x)) | u32(__bfloat16_as_ushort(pair.y)) << 16;
}

/// The same in IEEE halves (cvt.rn.f16x2.f32).
GPU_FN u32 pack_f16(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return u32(__half_as_ushort(pair.x)) | u32(__half_as_ushort(pair.y)) << 16;
}

/// Written so that NaN stays NaN.
GPU_FN float relu(float x) { return x < 0.0f ? 0.0f : x; }

/// Two values on a multiple of 8 bytes, four on a multiple of 16.
GPU_FN float2 load_2(const float* from) { return *reinterpret_cast<const float2*>(from); }
/// To global memory; an assignment becomes two stores.
GPU_FN void store_2(float* to, float2 v) { __stwb(reinterpret_cast<float2*>(to), v); }
GPU_FN float4 load_4(const float* from) { return *reinterpret_cast<const float4*>(from); }
GPU_FN void store_4(float* to, float4 v) { *reinterpret_cast<float4*>(to) = v; }

/// Sixteen bytes of T, for loads and stores of full width.
template <class T>
struct __align__(16) vec16 {
  static constexpr int COUNT = 16 / sizeof(T);
  T value[COUNT];
};

/// As read.cuh has them, of storage types, and of two and four values as load_2 and load_4.
GPU_FN bf16 read(const bf16* from) { return {read(&from->bits)}; }
GPU_FN f16 read(const f16* from) { return {read(&from->bits)}; }
GPU_FN float2 read_2(const float* from) { return read(reinterpret_cast<const float2*>(from)); }
GPU_FN float4 read_4(const float* from) { return read(reinterpret_cast<const float4*>(from)); }
/// Sixteen bytes; `from` must lie on a multiple of 16.
template <class T>
GPU_FN vec16<T> load_16(const T* from) {
  vec16<T> out;
  *reinterpret_cast<uint4*>(&out) = *reinterpret_cast<const uint4*>(from);
  return out;
}
template <class T>
GPU_FN vec16<T> read_16(const T* from) {
  vec16<T> out;
  *reinterpret_cast<uint4*>(&out) = read(reinterpret_cast<const uint4*>(from));
  return out;
}

/// COUNT values of shared memory, from an address that a load of all of them, or of 16 bytes, may have.
template <u32 COUNT>
GPU_FN void load_aligned(float (&v)[COUNT], const float* from) {
#pragma unroll
  for (u32 i = 0; i < COUNT; i += 4) {
    const float4 part = load_4(from + i);
    v[i] = part.x;
    v[i + 1] = part.y;
    v[i + 2] = part.z;
    v[i + 3] = part.w;
  }
}

/// COUNT values, 1, 4 or 8, as `read`, from an address that a load of all of them, or of 16 bytes, may have.
template <class T, u32 COUNT>
GPU_FN void read_aligned(float (&v)[COUNT], const T* from) {
  if constexpr (COUNT * sizeof(T) >= 16) {
    constexpr u32 PART = vec16<T>::COUNT;
#pragma unroll
    for (u32 i = 0; i < COUNT; i += PART) {
      const vec16<T> part = read_16(from + i);
#pragma unroll
      for (u32 j = 0; j < PART; j++) v[i + j] = to_f32(part.value[j]);
    }
  } else if constexpr (COUNT == 4) {
    struct __align__(8) quad {
      T value[4];
    } part;
    *reinterpret_cast<uint2*>(&part) = read(reinterpret_cast<const uint2*>(from));
#pragma unroll
    for (u32 j = 0; j < 4; j++) v[j] = to_f32(part.value[j]);
  } else {
    static_assert(COUNT == 1);
    v[0] = to_f32(read(from));
  }
}

/// Values `at` and on, of which `there` exist, of a matrix of a type that is known at run time: 0 F32, 1 F16,
/// 2 BF16. The others are 0. `aligned`: all exist, and lie as read_aligned wants them. One branch for all.
template <class T, u32 COUNT>
GPU_FN void read_as(float (&v)[COUNT], const void* from, u64 at, u32 there, bool aligned) {
  if (aligned) {
    read_aligned(v, static_cast<const T*>(from) + at);
  } else {
#pragma unroll
    for (u32 i = 0; i < COUNT; i++)
      v[i] = i < there ? to_f32(read(static_cast<const T*>(from) + at + i)) : 0.0f;
  }
}
template <u32 COUNT>
GPU_FN void read_typed(float (&v)[COUNT], const void* from, u32 dtype, u64 at, u32 there = COUNT,
                       bool aligned = false) {
  if (dtype == 0)
    read_as<float>(v, from, at, there, aligned);
  else if (dtype == 1)
    read_as<f16>(v, from, at, there, aligned);
  else
    read_as<bf16>(v, from, at, there, aligned);
}

/// Stores 16 bytes; `to` must lie on a multiple of 16.
template <class T>
GPU_FN void store_16(T* to, const vec16<T>& from) {
  *reinterpret_cast<vec16<T>*>(to) = from;
}

/// Stores 16 bytes that this launch will not read again: they leave L2 first.
template <class T>
GPU_FN void store_16_streaming(T* to, const vec16<T>& from) {
  __stcs(reinterpret_cast<uint4*>(to), *reinterpret_cast<const uint4*>(&from));
}

/// Sixteen bytes of T out of F32 values, rounded in pairs where there is an instruction for that.
GPU_FN vec16<float> pack_16(const float (&v)[4], float) { return {{v[0], v[1], v[2], v[3]}}; }
GPU_FN vec16<bf16> pack_16(const float (&v)[8], bf16) {
  vec16<bf16> out;
#pragma unroll
  for (u32 i = 0; i < 8; i += 2) reinterpret_cast<u32*>(&out)[i / 2] = pack_bf16(v[i], v[i + 1]);
  return out;
}
GPU_FN vec16<f16> pack_16(const float (&v)[8], f16) {
  vec16<f16> out;
#pragma unroll
  for (u32 i = 0; i < 8; i += 2) reinterpret_cast<u32*>(&out)[i / 2] = pack_f16(v[i], v[i + 1]);
  return out;
}

}  // namespace gpu
