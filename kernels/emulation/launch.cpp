// The C interface, shaped like the CUDA driver's: memory, copies, and launches of kernels by name. Calls may
// come from any thread; one runs at a time. Functions give 0, or 1 with a message of at most `capacity`
// bytes.
#include <cstdio>
#include <cstring>
#include <map>
#include <mutex>

#include "memory.hpp"

namespace emulation {
namespace {

struct Kernel {
  void (*kernel)();
  Invoke invoke;
  std::vector<size_t> parameters;  // the size of each
};
struct Shared {
  void (*function)();
  CountBytes count;
  unsigned parameters;
};
// Filled by static constructors of kernel files, in any order.
std::map<std::string, Kernel>& kernels() {
  static std::map<std::string, Kernel> table;
  return table;
}
std::map<std::string, Shared>& layouts() {
  static std::map<std::string, Shared> table;
  return table;
}
std::mutex one_at_a_time;

int answer(const std::string& error, char* message, size_t capacity) {
  snprintf(message, capacity, "%s", error.c_str());
  return error.empty() ? 0 : 1;
}

struct Call {
  const Kernel* kernel;
  void* const* arguments;
};

std::string launch(const char* name, Extent grid, Extent block, size_t shared, void* const* arguments,
                   unsigned count, const Schedule& schedule) {
  auto it = kernels().find(name);
  if (it == kernels().end()) return std::string("no kernel is named ") + name;
  const std::string head = std::string(name) + ": ";
  if (count != it->second.parameters.size())
    return head + std::to_string(count) + " arguments for " + std::to_string(it->second.parameters.size()) +
           " parameters";
  if (!block.count() || block.count() > 1024 || block.z > 64)
    return head + "a block has 1 to 1,024 threads, not " + std::to_string(block.count());
  if (!grid.count() || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
    return head + "a grid has 1 to 2^31 - 1, 65,535 and 65,535 blocks";
  if (shared > 232448) return head + std::to_string(shared) + " bytes of shared memory, at most 232,448";
  machine.kernel = name;
  machine.grid = grid;
  machine.block = block;
  machine.shared_bytes = shared;
  machine.schedule = schedule;
  Call call{&it->second, arguments};
  machine.body = [](void* p) {
    const Call& c = *static_cast<Call*>(p);
    c.kernel->invoke(c.kernel->kernel, c.arguments);
  };
  machine.body_argument = &call;
  run_grid();
  return machine.error;
}

}  // namespace

void add_kernel(const char* name, void (*kernel)(), Invoke invoke, std::initializer_list<size_t> parameters) {
  kernels()[name] = {kernel, invoke, parameters};
}
void add_shared(const char* name, void (*function)(), CountBytes count, unsigned parameters) {
  layouts()[name] = {function, count, parameters};
}

}  // namespace emulation

#pragma GCC visibility push(default)
extern "C" {

/// Uninitialised memory of `bytes` bytes, named `label` in reports.
void* emulation_malloc(size_t bytes, const char* label) {
  const std::lock_guard lock(emulation::one_at_a_time);
  return emulation::allocate(bytes, label);
}

int emulation_free(void* p) {
  const std::lock_guard lock(emulation::one_at_a_time);
  return emulation::release(p) ? 0 : 1;
}

int emulation_copy_in(void* to, const void* from, size_t n) {
  const std::lock_guard lock(emulation::one_at_a_time);
  return emulation::copy_in(to, from, n) ? 0 : 1;
}

int emulation_copy_out(void* to, const void* from, size_t n) {
  const std::lock_guard lock(emulation::one_at_a_time);
  return emulation::copy_out(to, from, n) ? 0 : 1;
}

/// Bytes of a buffer that nobody has written; always 0 in the fast build.
uint64_t emulation_unwritten(const void* p) {
  const std::lock_guard lock(emulation::one_at_a_time);
  return emulation::unwritten(p);
}

/// Runs a kernel; `schedule` holds order, landing and sums as in machine.hpp.
int emulation_launch(const char* kernel, const unsigned grid[3], const unsigned block[3], size_t shared,
                     void* const* arguments, unsigned count, const int schedule[3], uint64_t seed,
                     char* message, size_t capacity) {
  using namespace emulation;
  const std::lock_guard lock(one_at_a_time);
  const Schedule s{Order(schedule[0]), Landing(schedule[1]), Sums(schedule[2]), seed};
  const Extent g{grid[0], grid[1], grid[2]}, b{block[0], block[1], block[2]};
  return answer(launch(kernel, g, b, shared, arguments, count, s), message, capacity);
}

/// The bytes of shared memory that a kernel's layout takes for these sizes; SIZE_MAX if it has none of that
/// many.
size_t emulation_shared_bytes(const char* kernel, const uint32_t* arguments, unsigned count) {
  auto it = emulation::layouts().find(kernel);
  if (it == emulation::layouts().end() || it->second.parameters != count) return SIZE_MAX;
  return it->second.count(it->second.function, arguments);
}

/// The number of a kernel's parameters, and the size of each of the first `capacity`; 0 for no kernel.
unsigned emulation_parameters(const char* kernel, size_t* sizes, unsigned capacity) {
  auto it = emulation::kernels().find(kernel);
  if (it == emulation::kernels().end()) return 0;
  const auto& all = it->second.parameters;
  for (size_t i = 0; i < all.size() && i < capacity; i++) sizes[i] = all[i];
  return unsigned(all.size());
}

/// The names of all kernels, one a line, in rising order.
int emulation_kernels(char* names, size_t capacity) {
  std::string all;
  for (auto& [name, kernel] : emulation::kernels()) all += name + "\n";
  snprintf(names, capacity, "%s", all.c_str());
  return all.size() < capacity ? 0 : 1;
}
}
#pragma GCC visibility pop
