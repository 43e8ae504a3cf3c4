// Memory that notices misuse: device buffers and shared memory end at pages that fault, hold poison until
// written, and have canaries where a page cannot reach. Also atomics, and the signals that a bad access ends
// in.
#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <map>
#include <pthread.h>
#include <sys/mman.h>
#include <ucontext.h>

#include "memory.hpp"

namespace emulation {
namespace {

constexpr unsigned char POISON = 0xff;  // NaN in every floating-point type
constexpr unsigned char CANARY = 0xa5;
constexpr size_t CANARY_BEFORE = 256, RED_ZONE = 64;

struct Mapping {
  char* map;
  size_t pages;  // bytes between the two guard pages
};

Mapping map_guarded(size_t bytes) {
  const size_t pages = (bytes + PAGE - 1) / PAGE * PAGE;
  void* m = mmap(nullptr, pages + 2 * PAGE, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (m == MAP_FAILED) abort();
  char* map = static_cast<char*>(m);
  if (mprotect(map, PAGE, PROT_NONE) || mprotect(map + PAGE + pages, PAGE, PROT_NONE)) abort();
  return {map, pages};
}

struct Buffer {
  std::string label;
  size_t bytes;
  Mapping mapping;
  Cell* cells;
  char* end() const { return mapping.map + PAGE + mapping.pages; }
};
std::map<char*, Buffer> buffers;

struct Arena {
  char* from;
  Cell* cells;
  size_t used;                                   // of the running block
  std::vector<std::pair<size_t, size_t>> zones;  // red zones, from and to
};
Arena& arena() {
  static Arena a{map_guarded(SHARED_CAPACITY).map + PAGE, new_cells(SHARED_CAPACITY), 0, {}};
  return a;
}

std::map<char*, Buffer>::iterator owner(const void* p) {
  auto it = buffers.upper_bound(static_cast<char*>(const_cast<void*>(p)));
  if (it == buffers.begin()) return buffers.end();
  --it;
  return static_cast<const char*>(p) <= it->first + it->second.bytes ? it : buffers.end();
}

/// The buffer's offset of p if n bytes from there lie in it.
bool find_bytes(const void* p, size_t n, Buffer*& buffer, size_t& offset) {
  auto it = owner(p);
  if (it == buffers.end()) return false;
  buffer = &it->second;
  offset = size_t(static_cast<const char*>(p) - it->first);
  return n <= buffer->bytes - offset;
}

}  // namespace

void* allocate(size_t bytes, const char* label) {
  Buffer b{label, bytes, map_guarded(bytes + 16 + CANARY_BEFORE), new_cells(bytes)};
  // As far back as alignment lets it: the guard page follows within 15 bytes, which hold canaries.
  char* p = b.end() - (bytes + 15) / 16 * 16;
  memset(p - CANARY_BEFORE, CANARY, CANARY_BEFORE);
  memset(p, POISON, bytes);
  memset(p + bytes, CANARY, size_t(b.end() - p) - bytes);
  buffers[p] = std::move(b);
  return p;
}

bool release(void* p) {
  auto it = buffers.find(static_cast<char*>(p));
  if (it == buffers.end()) return false;
  delete_cells(it->second.cells, it->second.bytes);
  munmap(it->second.mapping.map, it->second.mapping.pages + 2 * PAGE);
  buffers.erase(it);
  return true;
}

bool copy_in(void* to, const void* from, size_t n) {
  Buffer* b;
  size_t offset;
  if (!find_bytes(to, n, b, offset)) return false;
  memcpy(to, from, n);
  if (b->cells) mark_host_write(b->cells + offset, n);
  return true;
}

bool copy_out(void* to, const void* from, size_t n) {
  Buffer* b;
  size_t offset;
  if (!find_bytes(from, n, b, offset)) return false;
  memcpy(to, from, n);
  return true;
}

uint64_t unwritten(const void* p) {
  auto it = owner(p);
  return it == buffers.end() ? 0 : count_unwritten(it->second.cells, it->second.bytes);
}

std::vector<Span> buffer_spans() {
  std::vector<Span> spans;
  for (auto& [p, b] : buffers) spans.push_back({p, b.bytes, b.cells, b.label.c_str()});
  return spans;
}

Span shared_span() { return {arena().from, SHARED_CAPACITY, arena().cells, "shared memory"}; }

void reset_shared() {
  Arena& a = arena();
  // The first block also wipes what an abandoned launch left; others only what the last used.
  memset(a.from, POISON, a.used);
  if (a.cells) forbid_shared(0, a.used);
  a.used = 0;
  a.zones.clear();
  begin_block();
}

void* carve(size_t total, size_t& place, size_t bytes, size_t align) {
  Arena& a = arena();
  place = (place + align - 1) / align * align;
  const size_t from = place, end = from + bytes;
  place = (end + 15) / 16 * 16 + RED_ZONE;
  if (total > machine.shared_bytes)
    fail("the layout of shared memory takes %zu bytes or more, the launch gave %zu", total,
         machine.shared_bytes);
  if (place > SHARED_CAPACITY) fail("emulated shared memory is exhausted");
  if (place > a.used) {  // the block's first thread to come here
    if (a.cells) {
      forbid_shared(a.used, place - a.used);
      open_shared(from, bytes);
    }
    memset(a.from + a.used, POISON, place - a.used);
    a.used = place;
    a.zones.push_back({end, place});
  }
  return a.from + from;
}

void need_shared(const void* p, size_t n, const char* what, Site site) {
  const size_t at = size_t(static_cast<const char*>(p) - arena().from);
  if (at >= SHARED_CAPACITY || at + n > SHARED_CAPACITY)
    fail("out of bounds: %s at %s is not to shared memory", what, place(site).c_str());
}

static bool intact(const char* p, size_t n, unsigned char value) {
  return std::all_of(p, p + n, [=](char c) { return static_cast<unsigned char>(c) == value; });
}

std::string overrun_of_shared() {
  for (auto [from, to] : arena().zones)
    if (!intact(arena().from + from, to - from, POISON))
      return headed("out of bounds: something wrote behind the shared array that ends at byte " +
                    std::to_string(from));
  return {};
}

std::string overrun_of_buffers() {
  for (auto& [p, b] : buffers) {
    if (!intact(p - CANARY_BEFORE, CANARY_BEFORE, CANARY))
      return headed("out of bounds: something wrote before buffer " + b.label);
    if (!intact(p + b.bytes, size_t(b.end() - p) - b.bytes, CANARY))
      return headed("out of bounds: something wrote behind buffer " + b.label);
  }
  return {};
}

std::string nearby(uintptr_t address) {
  const char* a = reinterpret_cast<const char*>(address);
  for (auto& [p, b] : buffers) {
    if (a >= p + b.bytes && a < b.end() + PAGE)
      return ", " + std::to_string(a - p - b.bytes) + " bytes behind buffer " + b.label;
    if (a < p && a >= b.mapping.map) return ", " + std::to_string(p - a) + " bytes before buffer " + b.label;
  }
  if (a >= arena().from && a < arena().from + SHARED_CAPACITY + PAGE) return ", behind shared memory";
  const char* stack = machine.current->stack;
  if (a < stack && a >= stack - PAGE) return ", the thread's stack of 128 KiB is used up";
  return ", in no buffer";
}

void note_read(const void* from, size_t bytes, Site site) {
  need_alignment(from, bytes, "read", site);
  check_access(from, bytes, Access::read, site);
}
void note_write(const void* to, size_t bytes, Site site) {
  need_alignment(to, bytes, "write", site);
  check_access(to, bytes, Access::write, site);
}

// Fibers never interrupt each other, so a plain read and write is atomic here.
template <class T>
T atomic(Atomic operation, T* at, T operand, T compare, Site site) {
  need_alignment(at, sizeof(T), "atomic operation", site);
  check_access(at, sizeof(T), Access::atomic, site);
  order_blocks(at);
  const T old = *at;
  switch (operation) {
    case Atomic::add: *at = old + operand; break;
    case Atomic::minimum: *at = std::min(old, operand); break;
    case Atomic::maximum: *at = std::max(old, operand); break;
    case Atomic::exchange: *at = operand; break;
    case Atomic::compare_exchange: *at = old == compare ? operand : old; break;
    case Atomic::bit_or:
    case Atomic::bit_and:
      if constexpr (std::is_integral_v<T>) *at = operation == Atomic::bit_or ? old | operand : old & operand;
      break;
  }
  return old;
}
template int atomic(Atomic, int*, int, int, Site);
template unsigned atomic(Atomic, unsigned*, unsigned, unsigned, Site);
template unsigned long long atomic(Atomic, unsigned long long*, unsigned long long, unsigned long long, Site);
template float atomic(Atomic, float*, float, float, Site);
template double atomic(Atomic, double*, double, double, Site);

void memory_fence() { machine.current->fenced = true; }

// ---- signals

static pthread_t launcher;
static Trap trap;
static struct sigaction former[5];
static const int SIGNALS[5] = {SIGSEGV, SIGBUS, SIGILL, SIGTRAP, SIGFPE};
static stack_t former_stack;

static void on_signal(int number, siginfo_t* info, void* context) {
  if (!machine.active || !pthread_equal(pthread_self(), launcher)) {
    // Not ours: the instruction runs again, and faults into whoever was there before.
    for (int i = 0; i < 5; i++)
      if (SIGNALS[i] == number) sigaction(number, &former[i], nullptr);
    return;
  }
  machine.active = false;
  auto* u = static_cast<ucontext_t*>(context);
#if defined(__x86_64__)
  const uintptr_t pc = uintptr_t(u->uc_mcontext.gregs[REG_RIP]);
#elif defined(__aarch64__)
  const uintptr_t pc = uintptr_t(u->uc_mcontext.pc);
#else
  const uintptr_t pc = 0;
  (void)u;
#endif
  trap = {number, reinterpret_cast<uintptr_t>(info->si_addr), pc};
  // The block is abandoned, so leaving the handler for good is no loss; the report is written outside of it.
  switch_to(machine.current->context, machine.outside);
}

std::string take_trap() {
  if (!trap.signal) return {};
  const Trap t = trap;
  trap = {};
  const std::string where = place_of_code(t.pc + 1);
  if (t.signal == SIGSEGV || t.signal == SIGBUS)
    return headed("out of bounds: invalid address at " + where + nearby(t.address));
  return headed("undefined behaviour (misaligned access, array index, shift or overflow) at " + where);
}

Traps::Traps() {
  static char alternate[64 << 10];
  launcher = pthread_self();
  stack_t s{};
  s.ss_sp = alternate;
  s.ss_size = sizeof alternate;
  sigaltstack(&s, &former_stack);
  struct sigaction action {};
  action.sa_sigaction = on_signal;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  for (int i = 0; i < 5; i++) sigaction(SIGNALS[i], &action, &former[i]);
}
Traps::~Traps() {
  for (int i = 0; i < 5; i++) sigaction(SIGNALS[i], &former[i], nullptr);
  sigaltstack(&former_stack, nullptr);
}

}  // namespace emulation
