// Loads of global memory that nothing writes while the kernel runs (PTX ISA 9.7.9.9, ld.global.nc): past the
// coherent cache.
//
// Pointers come out of a structure (params.cuh), and of those the compiler does not know that they share
// nothing with what is written. Unlike CUDA's __ldg, which is volatile, these may move, and are dropped where
// nothing uses them.
//
// Launches that start early (dependent.cuh) live while the launch ahead still writes what they will
// read. Their files define LAUNCHES_START_EARLY, and loads go by the coherent cache.
#pragma once
#include "gpu.cuh"

#ifdef LAUNCHES_START_EARLY
#define READ_ONLY ""
#else
#define READ_ONLY ".nc"
#endif

namespace gpu {

GPU_FN u16 read(const u16* from) {
  u16 v;
  asm("ld.global" READ_ONLY ".u16 %0, [%1];" : "=h"(v) : "l"(__cvta_generic_to_global(from)));
  return v;
}
GPU_FN u32 read(const u32* from) {
  u32 v;
  asm("ld.global" READ_ONLY ".u32 %0, [%1];" : "=r"(v) : "l"(__cvta_generic_to_global(from)));
  return v;
}
GPU_FN float read(const float* from) {
  float v;
  asm("ld.global" READ_ONLY ".f32 %0, [%1];" : "=f"(v) : "l"(__cvta_generic_to_global(from)));
  return v;
}
GPU_FN double read(const double* from) {
  double v;
  asm("ld.global" READ_ONLY ".f64 %0, [%1];" : "=d"(v) : "l"(__cvta_generic_to_global(from)));
  return v;
}
GPU_FN uint2 read(const uint2* from) {
  uint2 v;
  asm("ld.global" READ_ONLY ".v2.u32 {%0, %1}, [%2];"
      : "=r"(v.x), "=r"(v.y)
      : "l"(__cvta_generic_to_global(from)));
  return v;
}
GPU_FN uint4 read(const uint4* from) {
  uint4 v;
  asm("ld.global" READ_ONLY ".v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
      : "l"(__cvta_generic_to_global(from)));
  return v;
}
/// Volatile, for biases: hoisted out of the loops over rows, they would take the registers of the sums.
GPU_FN float2 read(const float2* from) {
  float2 v;
  asm volatile("ld.global" READ_ONLY ".v2.f32 {%0, %1}, [%2];"
               : "=f"(v.x), "=f"(v.y)
               : "l"(__cvta_generic_to_global(from)));
  return v;
}
GPU_FN float4 read(const float4* from) {
  float4 v;
  asm("ld.global" READ_ONLY ".v4.f32 {%0, %1, %2, %3}, [%4];"
      : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
      : "l"(__cvta_generic_to_global(from)));
  return v;
}

}  // namespace gpu

#undef READ_ONLY
