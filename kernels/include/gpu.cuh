// What every kernel file includes first: names of types, and the layout of a block's shared memory.
//
// Kernels are plain CUDA C++ for nvcc. They are declared `extern "C" __global__ void`, so that a symbol is
// the name that the host asks for. Kernels that differ in types alone are lines of a macro KERNEL, whose
// first argument is the name: build/sources.rs finds both.
#pragma once
#include <stddef.h>
#include <stdint.h>

#define GPU_FN __device__ __forceinline__

namespace gpu {

using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;

constexpr u32 WARP = 32;
constexpr u32 ALL_LANES = 0xffffffffu;

/// `n` rounded up to a multiple of the power of two `to`.
constexpr GPU_FN size_t round_up(size_t n, size_t to) { return (n + to - 1) & ~(to - 1); }

/// Lays arrays out in a block's dynamic shared memory, one after the other, each on a multiple of 16 bytes.
/// src/backend/cuda/layout.rs counts the same arrays. All shared memory is dynamic: the host lets every
/// kernel ask for as much as a block may have, which leaves none for static arrays.
class carver {
 public:
  GPU_FN explicit carver(unsigned char* base) : base_(base) {}

  /// Room for `count` values of T.
  template <class T>
  GPU_FN T* take(size_t count) {
    static_assert(alignof(T) <= 16, "arrays start on multiples of 16 bytes");
    T* const taken = reinterpret_cast<T*>(base_ + bytes_);
    bytes_ = round_up(bytes_ + count * sizeof(T), 16);
    return taken;
  }

 private:
  unsigned char* base_;
  size_t bytes_ = 0;
};

}  // namespace gpu
