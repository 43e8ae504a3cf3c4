// Runs a grid block by block and a block thread by thread: a thread goes on until it waits for others.
#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <map>

#include "memory.hpp"

namespace emulation {

Machine machine;

uint3 thread_index() { return machine.current->index; }
uint3 block_index() { return machine.block_index; }
Extent block_extent() { return machine.block; }
Extent grid_extent() { return machine.grid; }
int lane() { return int(machine.current->lane); }

uint32_t draw(uint32_t below) {
  machine.random = machine.random * 6364136223846793005ull + 1442695040888963407ull;
  return uint32_t((machine.random >> 33) % below);
}

void fail(const char* format, ...) {
  char text[1024];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  // Before anything that allocates or reads: the hooks must not check the runtime's own work.
  machine.active = false;
  machine.error = headed(text);
  switch_to(machine.current->context, machine.outside);
  __builtin_unreachable();
}

void wake(Thread& t) {
  t.status = Status::ready;
  machine.ready.push_back(&t);
}

static Thread* next() {
  auto& ready = machine.ready;
  if (ready.empty()) return nullptr;
  if (machine.schedule.order == Order::random) std::swap(ready[draw(uint32_t(ready.size()))], ready.back());
  Thread* t = ready.back();
  ready.pop_back();
  return t;
}

/// Goes on with another thread, or outside if none can go on: the block is done, or stuck.
void yield() {
  Thread* from = machine.current;
  Thread* to = next();
  if (to == from) return;
  if (to) {
    machine.current = to;
    switch_to(from->context, to->context);
  } else {
    switch_to(from->context, machine.outside);
  }
}

/// Makes all that wait at the barrier ready. Pushed last first, so that forward order takes thread 0 next.
static void wake_block() {
  const bool reverse = machine.schedule.order == Order::reverse;
  for (unsigned i = 0; i < machine.threads; i++) {
    Thread& t = machine.thread[reverse ? i : machine.threads - 1 - i];
    if (t.status == Status::at_barrier) wake(t);
  }
}

unsigned block_barrier(bool predicate, Site site) {
  Machine& m = machine;
  // Exited threads would count as arrived on a device; code that relies on it is fragile, so it is a report.
  if (m.living != m.threads)
    fail("__syncthreads at %s after %u threads of the block exited", place(site).c_str(),
         m.threads - m.living);
  if (!m.waiting)
    m.barrier_site = site;
  else if (m.barrier_site.line() != site.line() || strcmp(m.barrier_site.file_name(), site.file_name()))
    fail("divergent __syncthreads: this thread is at %s, %u others wait at %s", place(site).c_str(),
         m.waiting, place(m.barrier_site).c_str());
  Thread& t = *m.current;
  t.status = Status::at_barrier;
  t.waits_for = "__syncthreads";
  t.site = site;
  m.voted += predicate;
  if (++m.waiting == m.living) {
    m.verdict = m.voted;
    m.waiting = m.voted = 0;
    m.epoch++;
    wake_block();
  }
  yield();
  return m.verdict;
}

/// A fiber's whole life.
static void live() {
  Machine& m = machine;
  m.body(m.body_argument);
  Thread& t = *m.current;
  check_copies_done(t);
  Warp& w = m.warp[t.warp];
  for (auto& r : w.open)
    if (r.mask >> t.lane & 1)
      fail("exits while lanes %08x of its warp wait for it in %s at %s", r.arrived, r.operation->name,
           place(r.site).c_str());
  if (m.waiting)
    fail("exits while %u threads wait in __syncthreads at %s", m.waiting, place(m.barrier_site).c_str());
  t.status = Status::done;
  w.exited |= 1u << t.lane;
  m.living--;
  yield();
  __builtin_unreachable();
}

/// The report of a block in which nobody can go on.
static std::string deadlock() {
  std::map<std::string, std::vector<unsigned>> waiting;
  for (auto& t : machine.thread)
    if (t.status != Status::done) waiting[std::string(t.waits_for) + " at " + place(t.site)].push_back(t.id);
  std::string text = "deadlock, divergent code:";
  for (auto& [where, who] : waiting)
    text += " " + std::to_string(who.size()) + " threads (" + std::to_string(who.front()) + " to " +
            std::to_string(who.back()) + ") wait in " + where + ";";
  text.pop_back();
  return headed(text);
}

void run_block() {
  Machine& m = machine;
  m.block_epoch = ++m.epoch;
  reset_shared();
  m.ready.clear();
  m.living = m.threads;
  m.waiting = m.voted = 0;
  for (unsigned i = 0; i < m.threads; i++) {
    Thread& t = m.thread[i];
    t.index = {i % m.block.x, i / m.block.x % m.block.y, i / (m.block.x * m.block.y)};
    t.id = i;
    t.warp = i / 32;
    t.lane = i % 32;
    t.status = Status::at_barrier;
    t.group = 0;
    t.fenced = false;
    t.copies.clear();
    t.stack = stack_of(i);
    prepare(t.context, stack_of(i), live);
  }
  for (unsigned w = 0; w < (m.threads + 31) / 32; w++) {
    const unsigned lanes = std::min(32u, m.threads - 32 * w);
    m.warp[w] = Warp{lanes == 32 ? ~0u : (1u << lanes) - 1, 0, {}, {}, {}};
    std::fill_n(m.warp[w].clock, 32, 1);
  }
  wake_block();
  m.current = next();
  m.active = true;
  switch_to(m.outside, m.current->context);
  m.active = false;
  // In the order of what they explain: a trap stops a block that is then not done either.
  if (m.error.empty()) m.error = take_trap();
  if (!m.error.empty()) return;
  if (m.living) m.error = deadlock();
  if (m.error.empty()) m.error = overrun_of_shared();
  if (m.error.empty()) m.error = overrun_of_buffers();
}

void run_grid() {
  Machine& m = machine;
  m.launch_epoch = ++m.epoch;
  m.random = m.schedule.seed * 0x9e3779b97f4a7c15ull + 1;
  m.threads = unsigned(m.block.count());
  m.thread.resize(m.threads);
  m.error.clear();
  begin_checking();
  const Traps traps;
  std::vector<uint64_t> order(m.grid.count());
  for (uint64_t i = 0; i < order.size(); i++)
    order[i] = m.schedule.order == Order::reverse ? order.size() - 1 - i : i;
  if (m.schedule.order == Order::random)
    for (size_t i = order.size(); i > 1; i--) std::swap(order[i - 1], order[draw(uint32_t(i))]);
  for (const uint64_t b : order) {
    m.block_index = {unsigned(b % m.grid.x), unsigned(b / m.grid.x % m.grid.y),
                     unsigned(b / (uint64_t(m.grid.x) * m.grid.y))};
    run_block();
    if (!m.error.empty()) return;
  }
}

}  // namespace emulation
