// Warp-wide operations: the rendezvous of lanes, shuffles, votes, reductions, and what orders memory within a
// warp.
#include <algorithm>
#include <cstring>

#include "machine.hpp"

namespace emulation {

void collective(const Operation& what, uint32_t mask, void* argument, Site site) {
  Thread& t = *machine.current;
  Warp& w = machine.warp[t.warp];
  if (!(mask >> t.lane & 1))
    fail("%s at %s: mask %08x leaves out the calling lane", what.name, place(site).c_str(), mask);
  if (const uint32_t absent = mask & (w.exited | ~w.present))
    fail("%s at %s: mask %08x names exited or absent lanes %08x", what.name, place(site).c_str(), mask,
         absent);
  if (what.whole_warp && mask != ~0u) fail("%s at %s needs all 32 lanes", what.name, place(site).c_str());

  // A lane that others wait for, with a mask that names them: each would wait for the other for ever.
  Rendezvous* here = nullptr;
  for (auto& r : w.open) {
    if (r.mask == mask) here = &r;
    if (r.mask != mask && r.mask & mask & r.arrived & ~(1u << t.lane) && r.mask >> t.lane & 1)
      fail("%s at %s with mask %08x while lanes %08x wait for this lane in %s at %s with mask %08x",
           what.name, place(site).c_str(), mask, r.arrived, r.operation->name, place(r.site).c_str(), r.mask);
  }
  if (!here) {
    for (auto& r : w.open)
      if (!r.mask) here = &r;
    if (!here) fail("%s at %s: more than 4 groups of lanes in collectives", what.name, place(site).c_str());
    here->mask = mask;
    here->arrived = 0;
    here->operation = &what;
    here->site = site;
  } else if (here->operation != &what || here->site.line() != site.line() ||
             strcmp(here->site.file_name(), site.file_name())) {
    fail("divergent warp: this lane is in %s at %s, lanes %08x are in %s at %s", what.name,
         place(site).c_str(), here->arrived, here->operation->name, place(here->site).c_str());
  }
  here->arguments[t.lane] = argument;
  here->arrived |= 1u << t.lane;
  t.waits_for = what.name;
  t.site = site;
  // All but the last lane stop here; the last one's combine has left the result in their arguments.
  if (here->arrived != mask) {
    t.status = Status::at_collective;
    yield();
    return;
  }
  if (what.combine) what.combine(here->arguments, mask);
  if (what.orders_memory) {
    // Every lane of the mask has seen all that any of them had, and all that each did up to now. Equal clocks
    // afterwards let a cell keep one time for several readers.
    uint32_t seen[32] = {}, latest = 0;
    for (unsigned l = 0; l < 32; l++) {
      if (!(mask >> l & 1)) continue;
      latest = std::max(latest, w.clock[l]);
      for (unsigned k = 0; k < 32; k++) seen[k] = std::max(seen[k], w.known[l][k]);
    }
    for (unsigned l = 0; l < 32; l++)
      if (mask >> l & 1) seen[l] = latest;
    for (unsigned l = 0; l < 32; l++) {
      if (!(mask >> l & 1)) continue;
      std::copy_n(seen, 32, w.known[l]);
      w.clock[l] = latest + 1;
    }
  }
  here->mask = 0;
  const bool reverse = machine.schedule.order == Order::reverse;
  for (unsigned i = 0; i < 32; i++) {
    const unsigned l = reverse ? i : 31 - i;
    if (mask >> l & 1 && l != t.lane) wake(machine.thread[t.warp * 32 + l]);
  }
}

static void combine_shuffle(void* const* arguments, uint32_t mask) {
  for (int l = 0; l < 32; l++) {
    if (!(mask >> l & 1)) continue;
    auto& mine = *static_cast<Shuffle*>(arguments[l]);
    if (mine.source < 0 || mine.source > 31 || !(mask >> mine.source & 1))
      fail("shuffle at %s: lane %d reads lane %d, which is not in mask %08x",
           place(machine.current->site).c_str(), l, mine.source, mask);
    mine.result = static_cast<Shuffle*>(arguments[mine.source])->value;
  }
}

static void combine_vote(void* const* arguments, uint32_t mask) {
  uint32_t ballot = 0;
  for (int l = 0; l < 32; l++)
    if (mask >> l & 1 && static_cast<Vote*>(arguments[l])->predicate) ballot |= 1u << l;
  for (int l = 0; l < 32; l++)
    if (mask >> l & 1) static_cast<Vote*>(arguments[l])->result = ballot;
}

static void combine_reduction(void* const* arguments, uint32_t mask) {
  uint32_t result = 0;
  bool first = true;
  for (int l = 0; l < 32; l++) {
    if (!(mask >> l & 1)) continue;
    auto& r = *static_cast<IntegerReduction*>(arguments[l]);
    if (first)
      result = r.value;
    else
      result = r.operation == '+'   ? result + r.value
               : r.operation == '<' ? std::min(result, r.value)
                                    : std::max(result, r.value);
    first = false;
  }
  for (int l = 0; l < 32; l++)
    if (mask >> l & 1) static_cast<IntegerReduction*>(arguments[l])->result = result;
}

const Operation warp_barrier{"__syncwarp", nullptr, false, true};
const Operation shuffle_up_to_8_bytes{"shuffle", combine_shuffle, false, false};
const Operation vote{"vote", combine_vote, false, false};
const Operation integer_reduction{"__reduce_sync", combine_reduction, false, false};

}  // namespace emulation
