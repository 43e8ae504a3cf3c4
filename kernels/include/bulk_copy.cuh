// Bulk copies of boxes of matrices into shared memory, and the mbarriers that they complete on (PTX ISA
// 9.7.9.27 and 9.7.13.15): compute capability 9.0 and newer.
//
// One thread asks for a box of a matrix that a tensor map describes; the copy engine finds addresses, puts
// zeros where the box leaves the matrix, and counts the bytes that it wrote off an mbarrier. Rows of a box
// are 128 bytes, and swizzled: unit u of row r, 16 bytes, lies where unit u ^ (r % 8) would, so that eight
// rows at the same unit fall into different banks. Boxes start on multiples of 1,024 bytes.
//
// An mbarrier's phase ends when all arrivals and all bytes that it was told to expect are there. Phases
// alternate in parity, from 0.
#pragma once
#include "async_copy.cuh"
#include "params.cuh"

namespace gpu {

/// Bytes of a box's row.
constexpr u32 BOX_ROW = 128;

/// Where the 16-byte unit of row `first` + `row` lies in a box, in bytes; `first` is a multiple of 8.
GPU_FN u32 in_box(u32 first, u32 row, u32 unit) {
  return (first + row) * BOX_ROW + ((unit ^ (row % 8)) << 4);
}

/// Sets an mbarrier up for so many arrivals a phase. `mbarrier_visible` and a barrier stand between this and
/// its use.
GPU_FN void mbarrier_init(u64* barrier, u32 arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals)
               : "memory");
}

/// Lets the copy engine, and other blocks of the cluster, see what `mbarrier_init` did.
GPU_FN void mbarrier_visible() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

/// Arrives, and has the phase expect so many bytes more.
GPU_FN void mbarrier_arrive_expect(u64* barrier, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(bytes)
               : "memory");
}

GPU_FN void mbarrier_arrive(u64* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

/// Arrives at the mbarrier of block `rank` of the cluster that lies where `barrier` does.
GPU_FN void mbarrier_arrive_at(u64* barrier, u32 rank) {
  u32 there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(shared_address(barrier)), "r"(rank));
  asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(there) : "memory");
}

/// Waits until the phase of this parity is over.
GPU_FN void mbarrier_wait(u64* barrier, u32 parity) {
  u32 done;
  do {
    asm volatile(
        "{\n\t"
        ".reg .pred p;\n\t"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n\t"
        "selp.b32 %0, 1, 0, p;\n\t"
        "}"
        : "=r"(done)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
  } while (!done);
}

/// The same, with what other blocks of the cluster did before they arrived.
GPU_FN void mbarrier_wait_cluster(u64* barrier, u32 parity) {
  u32 done;
  do {
    asm volatile(
        "{\n\t"
        ".reg .pred p;\n\t"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n\t"
        "selp.b32 %0, 1, 0, p;\n\t"
        "}"
        : "=r"(done)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
  } while (!done);
}

/// How L2 treats what a copy brings.
enum class keep { once, often };

/// The policy: what is read once leaves first, what is read often stays.
template <keep KEEP>
GPU_FN u64 policy() {
  u64 out;
  if (KEEP == keep::once)
    asm("createpolicy.fractional.L2::evict_first.b64 %0;" : "=l"(out));
  else
    asm("createpolicy.fractional.L2::evict_last.b64 %0;" : "=l"(out));
  return out;
}

/// Copies the box of a matrix whose first value is (row, column). All of it counts, with what lies outside of
/// the matrix and becomes zero.
GPU_FN void copy_box(void* to, const params::tensor_map& from, u32 column, u32 row, u64* barrier,
                     u64 policy) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint [%0], "
      "[%1, {%2, %3}], [%4], %5;" ::"r"(shared_address(to)),
      "l"(&from), "r"(column), "r"(row), "r"(shared_address(barrier)), "l"(policy)
      : "memory");
}

/// The same into all blocks of the cluster that `blocks` has a bit for, at the same place of each, with the
/// bytes counted off the mbarrier of each.
GPU_FN void copy_box_to(u16 blocks, void* to, const params::tensor_map& from, u32 column, u32 row,
                        u64* barrier, u64 policy) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster"
      ".L2::cache_hint [%0], [%1, {%2, %3}], [%4], %5, %6;" ::"r"(shared_address(to)),
      "l"(&from), "r"(column), "r"(row), "r"(shared_address(barrier)), "h"(blocks), "l"(policy)
      : "memory");
}

/// Waits for all threads of the cluster.
GPU_FN void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

/// The block's number in its cluster.
GPU_FN u32 cluster_rank() {
  u32 rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

/// Stages of shared memory that one thread fills and others read, in turns: `full` counts the bytes of a
/// stage, `empty` its readers. Each side goes through the stages with a `turn` of its own.
template <u32 STAGES>
struct stages {
  u64 *full, *empty;

  GPU_FN explicit stages(carver& carve) {
    full = carve.take<u64>(STAGES);
    empty = carve.take<u64>(STAGES);
  }

  /// One thread sets them up, for so many arrivals of readers; a barrier must follow.
  GPU_FN void init(u32 readers) const {
    for (u32 s = 0; s < STAGES; s++) {
      mbarrier_init(full + s, 1);
      mbarrier_init(empty + s, readers);
    }
    mbarrier_visible();
  }

  struct turn {
    u32 stage = 0, parity = 0;
    GPU_FN void next() {
      if (++stage == STAGES) {
        stage = 0;
        parity ^= 1;
      }
    }
  };
};

}  // namespace gpu
