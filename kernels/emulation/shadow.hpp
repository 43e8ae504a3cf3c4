// Shadow memory of the check build: for every byte of shared memory and of device buffers, who wrote and who
// read it last. In the fast build all of these do nothing.
#pragma once
#include "machine.hpp"

namespace emulation {

enum class Access { read, write, atomic };

/// The last write and the last readers of one byte.
struct Cell {
  uint32_t write_epoch, write_time, write_code;
  uint32_t read_epoch, read_time, read_code;
  uint32_t read_lanes;  // of read_warp; several since no order between them is known
  uint16_t write_thread, read_warp;
  uint16_t read_thread, flags;
};

/// Cells for `bytes` bytes, as if never touched; null in the fast build.
Cell* new_cells(size_t bytes);
void delete_cells(Cell* cells, size_t bytes);
/// The host wrote these bytes.
void mark_host_write(Cell* cells, size_t bytes);
size_t count_unwritten(const Cell* cells, size_t bytes);

/// Part of shared memory that must not be touched, or of it, that may be. What was never either may not.
void forbid_shared(size_t from, size_t bytes);
void open_shared(size_t from, size_t bytes);
/// Bytes of shared memory written by other threads while a copy to them is in flight are reported.
void mark_in_flight(const void* p, size_t n, bool in_flight);

/// A wrapper's access, by the current thread.
void check_access(const void* p, size_t n, Access kind, Site site);
/// Forgets the last launch, and takes stock of the device buffers.
void begin_checking();
void begin_block();

/// An atomic operation at `at`: takes over what other blocks released there, and releases what the thread
/// fenced.
void order_blocks(const void* at);

// memory.cpp
struct Span {
  char* from;
  size_t bytes;
  Cell* cells;
  const char* name;
};
Span shared_span();
std::vector<Span> buffer_spans();
/// Stops the launch unless all bytes lie in the emulated shared memory.
void need_shared(const void* p, size_t n, const char* what, Site site);

}  // namespace emulation
