// What every kernel file includes first: the words a kernel is declared with, and the layout of its shared
// memory.
//
// A kernel file is compiled twice: by nvcc for the device, and by a host compiler for the emulator of
// kernels/emulation, chosen by __CUDACC__. So a kernel holds no inline PTX (wrappers: async_copy.cuh,
// mma.cuh), no static __shared__ array (the carver below hands out dynamic shared memory) and no CUDA library
// header.
#pragma once

#if defined(__CUDACC__)
#include <stddef.h>
#include <stdint.h>
// The block's dynamic shared memory; 1,024 bytes is the largest alignment any bulk copy asks for.
#define GPU_DYN_SHARED(name) extern __shared__ __align__(1024) unsigned char name[]
// Makes a kernel known by name: to the emulator's table. The device has its own symbol table.
#define GPU_EXPORT(kernel) static_assert(true, #kernel)
// Makes the function that counts a kernel's shared memory known beside it: from uint32_t arguments to bytes.
#define GPU_EXPORT_SHARED(kernel, bytes) static_assert(true, #kernel)
// Last parameter of a function that synchronises, and its hand-over to the next, after other arguments or
// alone: reports of the emulator name the caller's line.
#define GPU_SITE
#define GPU_HERE
#define GPU_ONLY_HERE
// States an access of full width, which a host compiler may narrow to the part that is used. Within GPU_SITE
// functions.
#define GPU_ACCESS(kind, address, bytes) static_cast<void>(0)
#else
#include "../emulation/cuda.hpp"
#define GPU_DYN_SHARED(name) \
  constexpr ::emulation::SharedBase name {}
#define GPU_EXPORT(kernel) static const ::emulation::Export emulation_export_##kernel(#kernel, kernel)
#define GPU_EXPORT_SHARED(kernel, bytes) \
  static const ::emulation::ExportShared emulation_shared_##kernel(#kernel, bytes)
#define GPU_SITE , ::emulation::Site site = ::emulation::Site::current()
#define GPU_HERE , site
#define GPU_ONLY_HERE site
#define GPU_ACCESS(kind, address, bytes) ::emulation::note_##kind(address, bytes GPU_HERE)
#endif

#define GPU_KERNEL extern "C" __global__ void
#define GPU_FN __device__ __forceinline__
// For what the host computes with the same code, such as layouts.
#define GPU_BOTH __host__ __device__ __forceinline__

namespace gpu {

using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;

constexpr u32 WARP = 32;
constexpr u32 ALL_LANES = 0xffffffffu;

/// `n` rounded up to a multiple of the power of two `to`.
constexpr GPU_BOTH size_t round_up(size_t n, size_t to) { return (n + to - 1) & ~(to - 1); }

/// Lays arrays out in dynamic shared memory, one after the other, each on a multiple of 16 bytes (or more, if
/// asked).
///
/// A kernel's layout is a struct whose constructor takes every array from a carver. On the device the carver
/// starts at GPU_DYN_SHARED and hands out pointers; without a base it only counts, so the bytes to launch
/// with come from the same constructor. Under emulation each array is followed by a red zone, and the count
/// is held against the launch.
class carver {
 public:
  /// Counts only: arrays are null.
  GPU_BOTH carver() {}
#if defined(__CUDACC__)
  GPU_FN explicit carver(unsigned char* base) : base_(base) {}
#else
  explicit carver(::emulation::SharedBase) : live_(true) {}
#endif

  /// Room for `count` values of T.
  template <class T>
  GPU_BOTH T* take(size_t count, size_t align = 16) {
    static_assert(alignof(T) <= 16, "ask for the alignment by name");
    bytes_ = round_up(bytes_, align);
    const size_t at = bytes_;
    bytes_ = round_up(bytes_ + count * sizeof(T), 16);
#if defined(__CUDACC__)
    return base_ ? reinterpret_cast<T*>(base_ + at) : nullptr;
#else
    (void)at;
    return live_ ? static_cast<T*>(::emulation::carve(bytes_, place_, count * sizeof(T), align)) : nullptr;
#endif
  }

  /// Bytes taken so far: what a launch must offer.
  GPU_BOTH size_t bytes() const { return bytes_; }

 private:
  size_t bytes_ = 0;
#if defined(__CUDACC__)
  unsigned char* base_ = nullptr;
#else
  bool live_ = false;
  size_t place_ = 0;
#endif
};

}  // namespace gpu
