// The state of the one launch that runs at a time, shared by the runtime's source files.
#pragma once
#include <string>
#include <vector>

#include "fiber.hpp"
#include "interface.hpp"

namespace emulation {

enum class Order : int { forward, reverse, random };  // in which threads and blocks take their turns
enum class Landing : int { late, early, random };     // when an asynchronous copy reaches shared memory
enum class Sums : int { exact, chained, truncated };  // how a tensor-core product adds

struct Schedule {
  Order order = Order::forward;
  Landing landing = Landing::late;
  Sums sums = Sums::exact;
  uint64_t seed = 0;
};

enum class Status : uint8_t { ready, at_barrier, at_collective, done };

/// An asynchronous copy that its thread has not waited for.
struct Copy {
  char* to;
  const char* from;
  unsigned size, bytes;  // written, and of these copied; the rest is zero
  unsigned group;
  Site site;
};

struct Thread {
  uint3 index;
  unsigned id, warp, lane;
  Status status;
  Context context;
  const char* stack;
  const char* waits_for;  // what `site` calls, while it waits
  Site site;
  std::vector<Copy> copies;
  unsigned group;  // of the copies issued next
  bool fenced;     // since its last atomic operation
};

/// Lanes on their way into one collective.
struct Rendezvous {
  uint32_t mask = 0, arrived = 0;
  const Operation* operation;
  Site site;
  void* arguments[32];
};

struct Warp {
  uint32_t present, exited;
  Rendezvous open[4];
  // Vector clocks: lane a has seen what lane b did up to time known[a][b] of b's clock. Only operations that
  // order memory move them; times of different barrier intervals are never compared.
  uint32_t clock[32], known[32][32];
};

constexpr unsigned MOST_WARPS = 32;
constexpr size_t SHARED_CAPACITY = 512 << 10;  // holds the 227 KiB of a device, and red zones

struct Machine {
  Schedule schedule;
  std::string kernel;
  Extent grid, block;
  uint3 block_index;
  void (*body)(void*);
  void* body_argument;
  size_t shared_bytes;

  unsigned threads, living;
  std::vector<Thread> thread;
  Thread* current;
  std::vector<Thread*> ready;
  Warp warp[MOST_WARPS];
  Context outside;
  bool active;  // kernel code is running
  uint64_t random;
  std::string error;

  unsigned waiting, voted, verdict;  // at the block barrier: threads, true predicates, result of the last
  Site barrier_site;

  // Epochs number barrier intervals: one starts at every launch, block and block barrier.
  uint32_t epoch = 2, block_epoch, launch_epoch;
};
extern Machine machine;

uint32_t draw(uint32_t below);

// schedule.cpp
void wake(Thread& t);
void yield();
void run_block();
/// Runs all blocks; the report is in machine.error.
void run_grid();

// report.cpp
std::string place(Site site);
std::string describe(const Thread& t);
std::string describe(unsigned thread);
/// The source line of a code address, by addr2line.
std::string place_of_code(uintptr_t pc);
/// A message behind the kernel's, block's and thread's names.
std::string headed(const std::string& message);

// memory.cpp
void reset_shared();
std::string overrun_of_shared();
std::string overrun_of_buffers();
/// Which guarded memory an invalid address is next to.
std::string nearby(uintptr_t address);
/// Signals while kernel code runs become reports.
struct Traps {
  Traps();
  ~Traps();
};

// copies.cpp
void check_copies_done(const Thread& t);

void need_alignment(const void* p, size_t n, const char* what, Site site);

}  // namespace emulation
