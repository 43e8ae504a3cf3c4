// cp.async: a copy may reach shared memory at any time between its issue and its wait. Landing late leaves
// poison there until the wait; landing early is what a kernel that forgot to wait relies on; random mixes
// both.
#include <algorithm>
#include <cstring>

#include "machine.hpp"
#include "shadow.hpp"

namespace emulation {

static void write(const Copy& c) {
  memcpy(c.to, c.from, c.bytes);
  memset(c.to + c.bytes, 0, c.size - c.bytes);
}

void copy_async(void* shared, const void* global, unsigned size, unsigned bytes, Site site) {
  need_alignment(shared, size, "destination of copy_async", site);
  need_alignment(global, size, "source of copy_async", site);
  if (bytes > size) fail("copy_async at %s: %u bytes of %u", place(site).c_str(), bytes, size);
  need_shared(shared, size, "copy_async", site);
  if (bytes) check_access(global, bytes, Access::read, site);
  check_access(shared, size, Access::write, site);
  const Copy c{static_cast<char*>(shared),
               static_cast<const char*>(global),
               size,
               bytes,
               machine.current->group,
               site};
  // Read now in any case, so that an invalid source is reported here.
  unsigned char first[16];
  memcpy(first, global, bytes);
  const Landing landing = machine.schedule.landing;
  if (landing == Landing::early || (landing == Landing::random && draw(2)))
    write(c);
  else
    memset(shared, 0xff, size);
  mark_in_flight(shared, size, true);
  machine.current->copies.push_back(c);
}

static void land(const Copy& c) {
  mark_in_flight(c.to, c.size, false);
  check_access(c.to, c.size, Access::write, c.site);
  write(c);
}

void copy_async_commit() { machine.current->group++; }

void copy_async_wait(unsigned newest) {
  Thread& t = *machine.current;
  auto done = [&](const Copy& c) { return c.group + newest < t.group; };
  for (auto& c : t.copies)
    if (done(c)) land(c);
  std::erase_if(t.copies, done);
}

void copy_async_wait_all() {
  for (auto& c : machine.current->copies) land(c);
  machine.current->copies.clear();
}

void check_copies_done(const Thread& t) {
  if (!t.copies.empty()) fail("exits with a copy_async of %s in flight", place(t.copies[0].site).c_str());
}

}  // namespace emulation
