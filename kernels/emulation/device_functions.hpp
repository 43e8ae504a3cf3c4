// CUDA's index variables, barriers, shuffles, votes, atomics and cached accesses, by calls into the runtime.
// Each that synchronises knows the line it was called from.
#pragma once
#include "interface.hpp"

#define threadIdx (::emulation::thread_index())
#define blockIdx (::emulation::block_index())
#define blockDim (::emulation::block_extent())
#define gridDim (::emulation::grid_extent())
#define EMULATION_SITE ::emulation::Site site = ::emulation::Site::current()

inline void __syncthreads(EMULATION_SITE) { ::emulation::block_barrier(false, site); }
inline int __syncthreads_count(int predicate, EMULATION_SITE) {
  return int(::emulation::block_barrier(predicate != 0, site));
}
inline int __syncthreads_or(int predicate, EMULATION_SITE) {
  return ::emulation::block_barrier(predicate != 0, site) != 0;
}
inline int __syncthreads_and(int predicate, EMULATION_SITE) {
  return ::emulation::block_barrier(predicate == 0, site) == 0;
}
inline void __syncwarp(uint32_t mask = ~0u, EMULATION_SITE) {
  ::emulation::collective(::emulation::warp_barrier, mask, nullptr, site);
}
inline void __threadfence() { ::emulation::memory_fence(); }
inline void __threadfence_block() {}

namespace emulation {

template <class T>
T shuffle(uint32_t mask, T value, int source, Site site) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  Shuffle s{std::bit_cast<Bits>(value), source, 0};
  collective(shuffle_up_to_8_bytes, mask, &s, site);
  return std::bit_cast<T>(Bits(s.result));
}

inline uint32_t reduce(char operation, uint32_t mask, uint32_t value, Site site) {
  IntegerReduction r{operation, value, 0};
  collective(integer_reduction, mask, &r, site);
  return r.result;
}

}  // namespace emulation

// A lane out of its segment of `width` lanes reads its own value, but for the indexed form, which wraps.
template <class T>
T __shfl_sync(uint32_t mask, T value, int source, int width = 32, EMULATION_SITE) {
  const int lane = ::emulation::lane();
  return ::emulation::shuffle(mask, value, (lane & ~(width - 1)) | (source & (width - 1)), site);
}
template <class T>
T __shfl_xor_sync(uint32_t mask, T value, int bits, int width = 32, EMULATION_SITE) {
  const int lane = ::emulation::lane(), source = lane ^ bits;
  return ::emulation::shuffle(mask, value, source < (lane & ~(width - 1)) + width ? source : lane, site);
}
template <class T>
T __shfl_down_sync(uint32_t mask, T value, unsigned delta, int width = 32, EMULATION_SITE) {
  const int lane = ::emulation::lane();
  return ::emulation::shuffle(mask, value,
                              (lane & (width - 1)) + int(delta) < width ? lane + int(delta) : lane, site);
}
template <class T>
T __shfl_up_sync(uint32_t mask, T value, unsigned delta, int width = 32, EMULATION_SITE) {
  const int lane = ::emulation::lane();
  return ::emulation::shuffle(mask, value, (lane & (width - 1)) >= int(delta) ? lane - int(delta) : lane,
                              site);
}
inline uint32_t __ballot_sync(uint32_t mask, int predicate, EMULATION_SITE) {
  ::emulation::Vote v{predicate != 0, 0};
  ::emulation::collective(::emulation::vote, mask, &v, site);
  return v.result;
}
inline int __any_sync(uint32_t mask, int predicate, EMULATION_SITE) {
  return __ballot_sync(mask, predicate, site) != 0;
}
inline int __all_sync(uint32_t mask, int predicate, EMULATION_SITE) {
  return __ballot_sync(mask, predicate, site) == mask;
}
inline uint32_t __reduce_add_sync(uint32_t mask, uint32_t value, EMULATION_SITE) {
  return ::emulation::reduce('+', mask, value, site);
}
inline uint32_t __reduce_min_sync(uint32_t mask, uint32_t value, EMULATION_SITE) {
  return ::emulation::reduce('<', mask, value, site);
}
inline uint32_t __reduce_max_sync(uint32_t mask, uint32_t value, EMULATION_SITE) {
  return ::emulation::reduce('>', mask, value, site);
}

// Cache hints change no result.
template <class T>
T __ldg(const T* at) {
  return *at;
}
template <class T>
T __ldcs(const T* at) {
  return *at;
}
template <class T>
void __stcs(T* at, T value) {
  *at = value;
}

template <class T>
T atomicAdd(T* at, std::type_identity_t<T> value, EMULATION_SITE) {
  return ::emulation::atomic<T>(::emulation::Atomic::add, at, value, T{}, site);
}
template <class T>
T atomicMin(T* at, std::type_identity_t<T> value, EMULATION_SITE) {
  return ::emulation::atomic<T>(::emulation::Atomic::minimum, at, value, T{}, site);
}
template <class T>
T atomicMax(T* at, std::type_identity_t<T> value, EMULATION_SITE) {
  return ::emulation::atomic<T>(::emulation::Atomic::maximum, at, value, T{}, site);
}
template <class T>
T atomicExch(T* at, std::type_identity_t<T> value, EMULATION_SITE) {
  return ::emulation::atomic<T>(::emulation::Atomic::exchange, at, value, T{}, site);
}
template <class T>
T atomicCAS(T* at, std::type_identity_t<T> compare, std::type_identity_t<T> value, EMULATION_SITE) {
  return ::emulation::atomic<T>(::emulation::Atomic::compare_exchange, at, value, compare, site);
}
template <class T>
T atomicOr(T* at, std::type_identity_t<T> value, EMULATION_SITE) {
  return ::emulation::atomic<T>(::emulation::Atomic::bit_or, at, value, T{}, site);
}
template <class T>
T atomicAnd(T* at, std::type_identity_t<T> value, EMULATION_SITE) {
  return ::emulation::atomic<T>(::emulation::Atomic::bit_and, at, value, T{}, site);
}
