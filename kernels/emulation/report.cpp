// The words of reports: places in sources and names of threads.
#include <cstdio>
#include <cstring>
#include <dlfcn.h>

#include "machine.hpp"

namespace emulation {

static const char* base_name(const char* path) {
  const char* slash = strrchr(path, '/');
  return slash ? slash + 1 : path;
}

std::string place(Site site) {
  return std::string(base_name(site.file_name())) + ":" + std::to_string(site.line());
}

std::string describe(unsigned thread) {
  return "thread " + std::to_string(thread) + " (warp " + std::to_string(thread / 32) + " lane " +
         std::to_string(thread % 32) + ")";
}
std::string describe(const Thread& t) { return describe(t.id); }

std::string headed(const std::string& message) {
  const uint3 b = machine.block_index;
  std::string head = machine.kernel + ", block (" + std::to_string(b.x) + ", " + std::to_string(b.y) + ", " +
                     std::to_string(b.z) + "), ";
  return head + describe(*machine.current) + ": " + message;
}

std::string place_of_code(uintptr_t pc) {
  Dl_info module;
  if (!pc || !dladdr(reinterpret_cast<void*>(pc), &module) || !module.dli_fname) return "an unknown place";
  char command[4608], line[4096];
  // One byte back: a return address may already belong to the next line.
  snprintf(command, sizeof command, "addr2line -i -e '%s' 0x%zx 2>/dev/null", module.dli_fname,
           size_t(pc - 1 - reinterpret_cast<uintptr_t>(module.dli_fbase)));
  FILE* output = popen(command, "r");
  if (!output) return "an unknown place";
  // Inlined frames, innermost first: the first outside the emulator, and where that is a header, the kernel's
  // line too.
  std::string found, last;
  while (fgets(line, sizeof line, output)) {
    line[strcspn(line, " \n")] = 0;
    last = base_name(line);
    if (strstr(line, "/emulation/") && !strstr(line, "/cases/")) continue;
    if (strstr(line, "/include/") || strstr(line, "/c++/")) {
      if (found.empty()) found = last;
      continue;
    }
    found = found.empty() ? last : found + " from " + last;
    break;
  }
  pclose(output);
  return found.empty() ? (last.empty() ? "an unknown place" : last) : found;
}

void need_alignment(const void* p, size_t n, const char* what, Site site) {
  if (reinterpret_cast<uintptr_t>(p) % n)
    fail("misaligned: %s of %zu bytes at address %p, %s", what, n, p, place(site).c_str());
}

}  // namespace emulation
