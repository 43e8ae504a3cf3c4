// Copies from global to shared memory that pass registers by (PTX ISA 9.7.9.25, cp.async): sm_80 and newer.
//
// A thread issues copies, closes them into a group with commit, and waits until at most N of its groups are
// in flight. A wait covers the thread's own copies alone: a barrier must follow before other threads read
// what was copied. "memory" clobbers keep the compiler from moving loads and stores over an instruction that
// it cannot see through.
#pragma once
#include "gpu.cuh"

namespace gpu {

/// The 32-bit address of a generic pointer into shared memory, as PTX operands want it.
GPU_FN u32 shared_address(const void* p) { return static_cast<u32>(__cvta_generic_to_shared(p)); }

/// Copies 16 bytes past L1; of these the first `bytes` come from `global`, the others become zero.
/// Both pointers lie on multiples of 16. Nothing is read when `bytes` is 0: `global` may then point anywhere.
GPU_FN void copy_async_16(void* shared, const void* global, u32 bytes = 16) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
               "r"(bytes)
               : "memory");
}

/// Copies 8 bytes through L1, zero-filled as above; both pointers lie on multiples of 8.
GPU_FN void copy_async_8(void* shared, const void* global, u32 bytes = 8) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(shared_address(shared)), "l"(global),
               "r"(bytes)
               : "memory");
}

/// Copies 4 bytes through L1, zero-filled as above; both pointers lie on multiples of 4.
GPU_FN void copy_async_4(void* shared, const void* global, u32 bytes = 4) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(shared)), "l"(global),
               "r"(bytes)
               : "memory");
}

/// The address `bytes` behind `base`, in one instruction. Written out, since the compiler hoists a widened
/// offset out of a loop, into two registers, and then needs two additions.
GPU_FN const void* behind(const void* base, u32 bytes) {
  const void* out;
  asm("mad.wide.u32 %0, %1, 1, %2;" : "=l"(out) : "r"(bytes), "l"(base));
  return out;
}

/// Closes the copies issued since the last commit into a group.
GPU_FN void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

/// Waits until at most the N newest groups of this thread are in flight.
template <int N>
GPU_FN void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

/// Waits for every copy of this thread, committed or not.
GPU_FN void copy_async_wait_all() { asm volatile("cp.async.wait_all;" ::: "memory"); }

}  // namespace gpu
