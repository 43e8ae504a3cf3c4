// Race, initialisation and bounds checks. The compiler of a kernel calls __tsan_read4 and its like before
// every access to memory (-fsanitize=thread); linked without that sanitizer's library, the calls arrive here.
//
// Two accesses to a byte, one of them a write, race unless something orders them: a block barrier between
// (epochs), __syncwarp between lanes of a warp (vector clocks), the end of a launch, or, between blocks, a
// fence and an atomic operation that the later block's thread read from.
#include "shadow.hpp"

#if defined(EMULATION_CHECK)

#include <algorithm>
#include <cstring>
#include <link.h>
#include <map>
#include <sys/mman.h>

namespace emulation {
namespace {

enum Flag : uint16_t {
  IN_FLIGHT = 1,     // an asynchronous copy to it has not been waited for
  ATOMIC = 2,        // the last write was atomic
  MANY_WARPS = 4,    // read by several warps in read_epoch
  OTHER_BLOCKS = 8,  // read by another block of this launch before
  FORBIDDEN = 16,    // a red zone
};
constexpr uint32_t NEVER = 0, BY_HOST = 1;

struct Region {
  uintptr_t from, to;
  Cell* cells;
  const char* name;
  bool shared;
};

/// What a thread of a block had done when it released, in epochs: all before `until`, and its own work in
/// `until`.
struct Release {
  uint32_t from, until;
  unsigned thread;
};
/// A release that a thread of the running block has seen, and when.
struct Acquired {
  Release release;
  uint32_t epoch;
  unsigned thread;
};

std::vector<Region> regions;  // sorted; device buffers
Region shared;
const Region* latest;
std::map<uintptr_t, std::vector<Release>> released;
std::vector<Acquired> acquired;
std::vector<std::pair<uintptr_t, uintptr_t>> constants;
std::vector<const char*> files;
uintptr_t module_base;

// A place in the code, in 32 bits: an offset into this module, or with the top bit set a file's number and
// line.
uint32_t code_of(Site site) {
  auto it = std::find(files.begin(), files.end(), site.file_name());
  if (it == files.end()) it = files.insert(it, site.file_name());
  return 1u << 31 | uint32_t(it - files.begin()) << 20 | (site.line() & 0xfffff);
}
std::string place_of(uint32_t code) {
  if (!(code >> 31)) return place_of_code(module_base + code);
  const char* path = files[code >> 20 & 0x7ff];
  const char* slash = strrchr(path, '/');
  return std::string(slash ? slash + 1 : path) + ":" + std::to_string(code & 0xfffff);
}

struct Where {
  const Region& region;
  uintptr_t address;
  size_t bytes;
  Access kind;
  uint32_t code;
};

const char* verb(Access kind) {
  return kind == Access::read ? "read" : kind == Access::write ? "write" : "atomic operation";
}

[[noreturn]] void report(const char* what, const Where& w, const char* before = nullptr, unsigned thread = 0,
                         uint32_t code = 0) {
  std::string other;
  if (before) other = std::string("; ") + before + " " + describe(thread) + " at " + place_of(code);
  fail("%s: %s of %zu bytes at %s + %zu, %s%s", what, verb(w.kind), w.bytes, w.region.name,
       size_t(w.address - w.region.from), place_of(w.code).c_str(), other.c_str());
}

bool seen_from_other_block(uint32_t epoch, unsigned thread) {
  const Thread& t = *machine.current;
  for (const auto& [r, at, by] : acquired) {
    const bool known = at < machine.epoch || by == t.id;
    if (known && epoch >= r.from && (epoch < r.until || (epoch == r.until && thread == r.thread)))
      return true;
  }
  return false;
}

/// Whether an access of `thread` at that epoch and time came before all that the current thread does now.
bool ordered(uint32_t epoch, unsigned thread, uint32_t time, bool in_shared) {
  const Machine& m = machine;
  if (epoch < m.launch_epoch || (in_shared && epoch < m.block_epoch)) return true;
  if (epoch < m.block_epoch) return seen_from_other_block(epoch, thread);
  const Thread& t = *m.current;
  if (epoch < m.epoch || thread == t.id) return true;
  return thread / 32 == t.warp && m.warp[t.warp].known[t.lane][thread % 32] >= time;
}

/// Whether the current thread comes after all readers of the cell.
bool after_readers(const Cell& c, bool in_shared) {
  const Thread& t = *machine.current;
  if (c.read_epoch < machine.launch_epoch) return true;
  if (c.flags & OTHER_BLOCKS && !seen_from_other_block(c.read_epoch, c.read_thread)) return false;
  if (c.read_epoch != machine.epoch) return ordered(c.read_epoch, c.read_thread, c.read_time, in_shared);
  if (c.flags & MANY_WARPS) return false;
  if (c.read_warp != t.warp) return false;
  for (uint32_t lanes = c.read_lanes & ~(1u << t.lane); lanes; lanes &= lanes - 1)
    if (machine.warp[t.warp].known[t.lane][std::countr_zero(lanes)] < c.read_time) return false;
  return true;
}

void note_read(Cell& c, const Region& r, uint32_t code) {
  const Thread& t = *machine.current;
  const uint32_t time = machine.warp[t.warp].clock[t.lane];
  if (c.read_epoch != machine.epoch) {
    const bool others = !r.shared && c.read_epoch >= machine.launch_epoch &&
                        (c.read_epoch < machine.block_epoch || c.flags & OTHER_BLOCKS);
    c.flags = uint16_t((c.flags & ~(MANY_WARPS | OTHER_BLOCKS)) | (others ? OTHER_BLOCKS : 0));
    c.read_lanes = 0;
  } else if (c.read_warp != t.warp) {
    c.flags |= MANY_WARPS;
    c.read_lanes = 0;
  } else if (after_readers(c, r.shared)) {
    c.read_lanes = 0;
  }
  c.read_time = c.read_lanes ? std::max(c.read_time, time) : time;
  c.read_lanes |= 1u << t.lane;
  c.read_epoch = machine.epoch;
  c.read_warp = uint16_t(t.warp);
  c.read_thread = uint16_t(t.id);
  c.read_code = code;
}

void check_byte(Cell& c, const Where& w) {
  const Thread& t = *machine.current;
  const bool in_shared = w.region.shared;
  if (c.flags & FORBIDDEN) report("out of bounds, behind an array", w);
  if (c.flags & IN_FLIGHT)
    report("copy in flight", w, "the copy_async was issued by", c.write_thread, c.write_code);
  const bool unwritten = in_shared ? c.write_epoch < machine.block_epoch : c.write_epoch == NEVER;
  if (w.kind != Access::write && unwritten) report("uninitialised", w);
  const bool both_atomic = w.kind == Access::atomic && c.flags & ATOMIC;
  if (!both_atomic && !ordered(c.write_epoch, c.write_thread, c.write_time, in_shared))
    report("race", w, "written without order by", c.write_thread, c.write_code);
  if (w.kind == Access::read) {
    note_read(c, w.region, w.code);
    return;
  }
  if (c.read_epoch != NEVER && !after_readers(c, in_shared))
    report("race", w, "read without order by", c.read_thread, c.read_code);
  c.write_epoch = machine.epoch;
  c.write_time = machine.warp[t.warp].clock[t.lane];
  c.write_thread = uint16_t(t.id);
  c.write_code = w.code;
  c.read_epoch = NEVER;
  c.flags = w.kind == Access::atomic ? ATOMIC : 0;
}

const Region* find(uintptr_t a) {
  if (latest && a >= latest->from && a < latest->to) return latest;
  if (a >= shared.from && a < shared.to) return latest = &shared;
  auto it = std::upper_bound(regions.begin(), regions.end(), a,
                             [](uintptr_t x, const Region& r) { return x < r.from; });
  if (it == regions.begin() || a >= (--it)->to) return nullptr;
  return latest = &*it;
}

[[gnu::noinline]] void check(uintptr_t a, size_t n, Access kind, uint32_t code) {
  if (const Region* r = find(a)) {
    const Where w{*r, a, n, kind, code};
    if (a + n > r->to) report("out of bounds, across the end", w);
    Cell* c = r->cells + (a - r->from);
    for (size_t i = 0; i < n; i++) check_byte(c[i], w);
    return;
  }
  if (kind == Access::read)
    for (auto [from, to] : constants)
      if (a >= from && a + n <= to) return;
  const std::string near =
      on_some_stack(reinterpret_cast<void*>(a)) ? ", in another thread's local memory" : nearby(a);
  fail("out of bounds: %s of %zu bytes at %s%s", verb(kind), n, place_of(code).c_str(), near.c_str());
}

/// An access of instrumented code; other OS threads and the runtime itself run on other stacks than the
/// fiber's.
inline void hook(void* p, size_t n, Access kind, void* caller) {
  if (!machine.active) return;
  const uintptr_t stack = reinterpret_cast<uintptr_t>(machine.current->stack);
  if (reinterpret_cast<uintptr_t>(__builtin_frame_address(0)) - stack >= STACK) return;
  const uintptr_t a = reinterpret_cast<uintptr_t>(p);
  if (a - stack < STACK) return;
  check(a, n, kind, uint32_t(reinterpret_cast<uintptr_t>(caller) - module_base));
}

}  // namespace

Cell* new_cells(size_t bytes) {
  void* m = mmap(nullptr, std::max<size_t>(bytes, 1) * sizeof(Cell), PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (m == MAP_FAILED) abort();
  return static_cast<Cell*>(m);
}
void delete_cells(Cell* cells, size_t bytes) { munmap(cells, std::max<size_t>(bytes, 1) * sizeof(Cell)); }
void mark_host_write(Cell* cells, size_t bytes) {
  Cell written{};
  written.write_epoch = BY_HOST;
  std::fill_n(cells, bytes, written);
}
size_t count_unwritten(const Cell* cells, size_t bytes) {
  return size_t(std::count_if(cells, cells + bytes, [](const Cell& c) { return c.write_epoch == NEVER; }));
}

void open_shared(size_t from, size_t bytes) {
  for (size_t i = from; i < from + bytes; i++) shared.cells[i].flags &= uint16_t(~FORBIDDEN);
}
void forbid_shared(size_t from, size_t bytes) {
  shared.to = std::max(shared.to, shared.from + from + bytes);
  for (size_t i = from; i < from + bytes; i++) shared.cells[i].flags = FORBIDDEN;
}
void mark_in_flight(const void* p, size_t n, bool in_flight) {
  Cell* c = shared.cells + (reinterpret_cast<uintptr_t>(p) - shared.from);
  for (size_t i = 0; i < n; i++)
    c[i].flags = uint16_t(in_flight ? c[i].flags | IN_FLIGHT : c[i].flags & ~IN_FLIGHT);
}

void check_access(const void* p, size_t n, Access kind, Site site) {
  check(reinterpret_cast<uintptr_t>(p), n, kind, code_of(site));
}

void begin_checking() {
  const Span s = shared_span();
  const uintptr_t from = reinterpret_cast<uintptr_t>(s.from);
  shared = {from, from, s.cells, s.name, true};
  regions.clear();
  latest = nullptr;
  for (const Span& b : buffer_spans()) {
    const uintptr_t at = reinterpret_cast<uintptr_t>(b.from);
    regions.push_back({at, at + b.bytes, b.cells, b.name, false});
  }
  std::sort(regions.begin(), regions.end(), [](const Region& a, const Region& b) { return a.from < b.from; });
  released.clear();
  if (module_base) return;
  // Once: this module's place, and the read-only segments that hold kernels' constant tables.
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void*) {
        const uintptr_t here = reinterpret_cast<uintptr_t>(&begin_checking);
        bool ours = false;
        std::vector<std::pair<uintptr_t, uintptr_t>> read_only;
        for (int i = 0; i < info->dlpi_phnum; i++) {
          const auto& p = info->dlpi_phdr[i];
          const uintptr_t at = info->dlpi_addr + p.p_vaddr;
          if (p.p_type == PT_LOAD && here >= at && here < at + p.p_memsz) ours = true;
          if ((p.p_type == PT_LOAD && !(p.p_flags & PF_W)) || p.p_type == PT_GNU_RELRO)
            read_only.push_back({at, at + p.p_memsz});
        }
        if (ours) {
          module_base = info->dlpi_addr;
          constants = read_only;
        }
        return int(ours);
      },
      nullptr);
}

void begin_block() {
  acquired.clear();
  shared.to = shared.from;
}

void order_blocks(const void* at) {
  Thread& t = *machine.current;
  auto& here = released[reinterpret_cast<uintptr_t>(at)];
  for (const Release& r : here) acquired.push_back({r, machine.epoch, t.id});
  if (t.fenced) here.push_back({machine.block_epoch, machine.epoch, t.id});
  t.fenced = false;
}

}  // namespace emulation

#define EMULATION_HOOK(name, n, kind)                                                \
  extern "C" void name(void* p) {                                                    \
    ::emulation::hook(p, n, ::emulation::Access::kind, __builtin_return_address(0)); \
  }
#define EMULATION_HOOKS(n)                          \
  EMULATION_HOOK(__tsan_read##n, n, read)           \
  EMULATION_HOOK(__tsan_write##n, n, write)         \
  EMULATION_HOOK(__tsan_unaligned_read##n, n, read) \
  EMULATION_HOOK(__tsan_unaligned_write##n, n, write)
EMULATION_HOOKS(1)
EMULATION_HOOKS(2)
EMULATION_HOOKS(4)
EMULATION_HOOKS(8)
EMULATION_HOOKS(16)
extern "C" void __tsan_read_range(void* p, size_t n) {
  ::emulation::hook(p, n, ::emulation::Access::read, __builtin_return_address(0));
}
extern "C" void __tsan_write_range(void* p, size_t n) {
  ::emulation::hook(p, n, ::emulation::Access::write, __builtin_return_address(0));
}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}
extern "C" void __tsan_init() {}

#else

namespace emulation {
Cell* new_cells(size_t) { return nullptr; }
void delete_cells(Cell*, size_t) {}
void mark_host_write(Cell*, size_t) {}
size_t count_unwritten(const Cell*, size_t) { return 0; }
void open_shared(size_t, size_t) {}
void forbid_shared(size_t, size_t) {}
void mark_in_flight(const void*, size_t, bool) {}
void check_access(const void*, size_t, Access, Site) {}
void begin_checking() {}
void begin_block() {}
void order_blocks(const void*) {}
}  // namespace emulation

#endif
