// Device buffers and traps, for the C interface and the scheduler.
#pragma once
#include "shadow.hpp"

namespace emulation {

void* allocate(size_t bytes, const char* label);
/// False if p is no buffer's start.
bool release(void* p);
/// False unless all n bytes lie in one buffer.
bool copy_in(void* to, const void* from, size_t n);
bool copy_out(void* to, const void* from, size_t n);
/// Bytes of a buffer that neither host nor kernel has written (check build; 0 in the fast build).
uint64_t unwritten(const void* p);

/// A signal that ended the running block.
struct Trap {
  int signal = 0;
  uintptr_t address = 0, pc = 0;
};
/// The report of a trap since the last call; empty if there was none.
std::string take_trap();

}  // namespace emulation
