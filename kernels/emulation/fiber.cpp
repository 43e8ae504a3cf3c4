// Stacks and switches. On x86-64 a switch is six pushes and pops; elsewhere the C library's, which is slower.
#include "fiber.hpp"

#include <cstdint>
#include <cstdlib>
#include <sys/mman.h>

namespace emulation {

#if defined(__x86_64__)

extern "C" void emulation_switch(void** save, void* to);
asm(R"(
.text
.p2align 4
.type emulation_switch, @function
emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulation_switch, .-emulation_switch
)");

void prepare(Context& context, char* stack, void (*entry)()) {
  void** top = reinterpret_cast<void**>(stack + STACK);
  *--top = nullptr;  // the return address `entry` never uses; keeps its frame on a multiple of 16
  *--top = reinterpret_cast<void*>(entry);
  for (int saved = 0; saved < 6; saved++) *--top = nullptr;
  context = top;
}
void switch_to(Context& from, Context& to) { emulation_switch(&from, to); }

#else

void prepare(Context& context, char* stack, void (*entry)()) {
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = STACK;
  context.uc_link = nullptr;
  makecontext(&context, entry, 0);
}
void switch_to(Context& from, Context& to) { swapcontext(&from, &to); }

#endif

constexpr unsigned FIBERS = 1024;

static char* stacks() {
  static char* const base = [] {
    void* m = mmap(nullptr, FIBERS * (STACK + PAGE), PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (m == MAP_FAILED) abort();
    for (unsigned i = 0; i < FIBERS; i++)
      if (mprotect(static_cast<char*>(m) + i * (STACK + PAGE), PAGE, PROT_NONE)) abort();
    return static_cast<char*>(m);
  }();
  return base;
}

char* stack_of(unsigned index) { return stacks() + index * (STACK + PAGE) + PAGE; }

bool on_some_stack(const void* p) {
  const uintptr_t a = reinterpret_cast<uintptr_t>(p), base = reinterpret_cast<uintptr_t>(stacks());
  return a >= base && a < base + FIBERS * (STACK + PAGE);
}

}  // namespace emulation
