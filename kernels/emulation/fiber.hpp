// Fibers: one stack per CUDA thread, switched by hand.
#pragma once
#include <cstddef>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace emulation {

/// Bytes of one fiber's stack; the page below it faults.
constexpr size_t STACK = 128 << 10;
constexpr size_t PAGE = 4096;

#if defined(__x86_64__)
/// A stopped fiber is its stack pointer: the callee-saved registers lie on its stack.
using Context = void*;
#else
using Context = ucontext_t;
#endif

/// Makes `context` start `entry` on the stack whose lowest byte is `stack`. `entry` must not return.
void prepare(Context& context, char* stack, void (*entry)());
/// Stops the running code in `from` and goes on with `to`.
void switch_to(Context& from, Context& to);

/// The lowest byte of the stack of fiber `index`; stacks are mapped once, for 1,024 threads.
char* stack_of(unsigned index);
/// Whether an address lies on any fiber's stack.
bool on_some_stack(const void* p);

}  // namespace emulation
