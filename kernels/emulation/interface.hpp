// What kernels under emulation call into: the runtime's side of every wrapper. Nothing here is inline that
// touches the runtime's memory, because kernel files are compiled with access hooks in the check build and
// the runtime is not.
#pragma once
#include <initializer_list>

#include "language.hpp"

namespace emulation {

/// A line of a kernel source, for reports.
using Site = std::source_location;

/// Three extents, as in a launch.
struct Extent {
  unsigned x = 1, y = 1, z = 1;
  uint64_t count() const { return uint64_t(x) * y * z; }
};

// The running thread's place. Constant over the life of a thread, so that the compiler may ask once.
[[gnu::const]] uint3 thread_index();
[[gnu::const]] uint3 block_index();
[[gnu::const]] Extent block_extent();
[[gnu::const]] Extent grid_extent();
[[gnu::const]] int lane();

/// Stops the launch with a report. Does not return: the block is abandoned.
[[noreturn, gnu::format(printf, 1, 2)]] void fail(const char* format, ...);

/// A warp-wide operation: the last lane of the mask to arrive computes for all, from the lanes' arguments.
struct Operation {
  const char* name;
  void (*combine)(void* const* arguments, uint32_t mask);
  bool whole_warp;     // defined for all 32 lanes only
  bool orders_memory;  // what lanes did before is seen by the others after
};
void collective(const Operation& what, uint32_t mask, void* argument, Site site);

extern const Operation warp_barrier, shuffle_up_to_8_bytes, vote, integer_reduction;
struct Shuffle {
  uint64_t value;
  int source;
  uint64_t result;
};
struct Vote {
  bool predicate;
  uint32_t result;
};
struct IntegerReduction {
  char operation;  // '+', '<' (minimum), '>' (maximum)
  uint32_t value;
  uint32_t result;
};

/// __syncthreads; gives how many threads came with a true predicate.
unsigned block_barrier(bool predicate, Site site);
void memory_fence();

// Tensor-core operations (tensor.cpp).
extern const Operation mma_bf16, mma_f16, mma_tf32;
void mma(const Operation& kind, float* d, const uint32_t* a, const uint32_t* b, const float* c, Site site);
void ldmatrix(uint32_t* result, const void* row, int matrices, bool transposed, Site site);

// Asynchronous copies (copies.cpp).
void copy_async(void* shared, const void* global, unsigned size, unsigned bytes, Site site);
void copy_async_commit();
void copy_async_wait(unsigned newest);
void copy_async_wait_all();

// An access as wide as the instruction, in addition to what the compiled code does itself (memory.cpp).
void note_read(const void* from, size_t bytes, Site site);
void note_write(const void* to, size_t bytes, Site site);

// Shared memory (memory.cpp). The base is a token: only a carver can make pointers of it.
struct SharedBase {};
/// Places an array of `bytes` at `place` of the emulated shared memory, with a red zone behind it; `total` is
/// what the real layout has used so far.
void* carve(size_t total, size_t& place, size_t bytes, size_t align);

enum class Atomic { add, minimum, maximum, exchange, compare_exchange, bit_or, bit_and };
/// For 32- and 64-bit integers, float and double.
template <class T>
T atomic(Atomic operation, T* at, T operand, T compare, Site site);

// Kernels by name (launch.cpp). `invoke` unpacks the argument pointers of a launch.
using Invoke = void (*)(void (*kernel)(), void* const* arguments);
void add_kernel(const char* name, void (*kernel)(), Invoke invoke, std::initializer_list<size_t> parameters);
using CountBytes = size_t (*)(void (*function)(), const uint32_t* arguments);
void add_shared(const char* name, void (*function)(), CountBytes count, unsigned parameters);

// The argument arrays belong to the host: these calls must not pass through the access hooks.
#define EMULATION_UNHOOKED __attribute__((noinline, no_sanitize("thread")))

template <class... P>
struct Invoker {
  template <size_t... I>
  EMULATION_UNHOOKED static void with(void (*kernel)(P...), void* const* arguments,
                                      std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_cvref_t<P>*>(arguments[I])...);
  }
  EMULATION_UNHOOKED static void call(void (*kernel)(), void* const* arguments) {
    with(reinterpret_cast<void (*)(P...)>(kernel), arguments, std::index_sequence_for<P...>{});
  }
};
struct Export {
  template <class... P>
  Export(const char* name, void (*kernel)(P...)) {
    add_kernel(name, reinterpret_cast<void (*)()>(kernel), Invoker<P...>::call, {sizeof(P)...});
  }
};

template <class... A>
struct Counter {
  template <size_t... I>
  static size_t with(size_t (*function)(A...), const uint32_t* arguments, std::index_sequence<I...>) {
    return function(arguments[I]...);
  }
  static size_t call(void (*function)(), const uint32_t* arguments) {
    return with(reinterpret_cast<size_t (*)(A...)>(function), arguments, std::index_sequence_for<A...>{});
  }
};
struct ExportShared {
  template <class... A>
  ExportShared(const char* name, size_t (*function)(A...)) {
    add_shared(name, reinterpret_cast<void (*)()>(function), Counter<A...>::call, sizeof...(A));
  }
};

}  // namespace emulation
