// What kernels of training share: products of matrices, their slices joined, their column sums; a step's end.
//
// A step is a fixed list of launches with constant arguments, so that it can be recorded once and replayed.
// What changes from step to step (params::step) stands in a table on the device. All kernels read the entry
// in `now`: the host writes the first, the last launch of a step each next one. All launches of a step but
// the first may start early (dependent.cuh), so each kernel begins with gpu::begin_early.
#pragma once
#include "dependent.cuh"
#include "operand.cuh"
#include "reduce.cuh"
#include "train_params.cuh"
#include "types.cuh"

namespace gpu {

/// The step that runs, in a launch that does not replace it.
GPU_FN params::step running(const params::step* now) {
  return {read(&now->first),     read(&now->pairs), read(&now->wide),
          read(&now->candidate), read(&now->rate),  read(&now->inverse_root)};
}

/// Adds the sum of each row of losses [terms, count] to totals [terms], in one fixed order for blocks of one
/// size. A block takes a term at a time; `scratch` is that of block_sum.
GPU_FN void add_losses(const params::end_step& p, double* scratch) {
  for (u32 term = blockIdx.x; term < p.terms; term += gridDim.x) {
    double sum = 0.0;
#pragma unroll 1
    for (u32 i = threadIdx.x; i < p.count; i += blockDim.x) sum += read(p.losses + u64(term) * p.count + i);
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) p.totals[term] += sum;
  }
}

/// Puts entry `turn` of the table in `now`, and passes the turn on. For one thread, when nobody reads `now`
/// any more.
GPU_FN void next_step(const params::end_step& p) {
  *p.now = running(p.table + *p.turn);
  *p.turn += 1;
}

/// Element i of an array in a kernel's parameters. A run-time index would first copy it to local memory.
template <class T, u32 COUNT>
GPU_FN T pick(const T (&of)[COUNT], u32 i) {
  T found = of[0];
#pragma unroll
  for (u32 j = 1; j < COUNT; j++) found = i == j ? of[j] : found;
  return found;
}

/// Bias, ReLU, mask and sum of one element.
GPU_FN float finished(const params::product& p, float value, u64 at, u32 column) {
  if (p.bias) value += p.bias[column];
  if (p.relu) value = relu(value);
  if (p.mask) value = p.mask[at] > 0.0f ? value : 0.0f;
  return p.add ? p.out[at] + value : value;
}

/// A block's part of a product: a tile of the result, of which it has the first row and column, by a slice of
/// k; and the number of the tile.
struct place {
  u32 row, column, slice, tile;

  /// In a grid [columns of tiles, rows of tiles, slices].
  template <u32 TILE>
  GPU_FN static place of_block() {
    return {blockIdx.y * TILE, blockIdx.x * TILE, blockIdx.z, blockIdx.y * gridDim.x + blockIdx.x};
  }

  /// In the row of blocks of a product, slice by slice.
  template <u32 TILE>
  GPU_FN static place of(const params::product& p, u32 block) {
    const u32 columns = tiles<TILE>(p.n), all = tiles<TILE>(p.m) * columns, tile = block % all;
    return {tile / columns * TILE, tile % columns * TILE, block / all, tile};
  }

  /// Tiles of `n` rows or columns.
  template <u32 TILE>
  GPU_FN static u32 tiles(u32 n) {
    return (n + TILE - 1) / TILE;
  }
};

/// The product that a block of a group works on; `block` becomes its number among that product's blocks.
GPU_FN const params::product& own_product(const params::products& group, u32& block) {
  u32 i = 0;
  for (block = blockIdx.x; block >= group.blocks[i]; i++) block -= group.blocks[i];
  return group.of[i];
}

/// What a block has to do of a product: its part of both operands, and its slice of k, which ends with a
/// multiple of `granule` or with k. `LIMITS_K`: the limit is on k, else on m.
struct share {
  operand a, b;
  u32 from, end;

  template <bool LIMITS_K>
  GPU_FN static share of(const params::product& p, const place& own, u32 granule) {
    const u32 slices = p.slices - (p.c ? 1 : 0);
    if (p.c && own.slice == slices) return {{p.c, p.l, own.row, p.m}, {p.d, p.l, own.column, p.n}, 0, p.l};
    const u32 limit = p.limit ? *p.limit : 0xffffffffu;
    const u32 m = LIMITS_K ? p.m : min(limit, p.m), k = LIMITS_K ? min(limit, p.k) : p.k;
    const u32 deep = u32(round_up((k + slices - 1) / slices, granule)), from = own.slice * deep;
    return {{p.a, p.lda, own.row, m}, {p.b, p.ldb, own.column, p.n}, from, min(from + deep, k)};
  }
};

/// The end of a block that wrote its slice of a TILE x TILE tile to p.partial: the tile's last block adds all
/// slices in their order, so that the bits do not depend on which block that is.
template <u32 TILE, u32 THREADS>
GPU_FN void join_slices(const params::product& p, const place& own) {
  if (!last_block(p.tickets + own.tile, p.slices)) return;
  const u64 slice = u64(p.m) * p.ldo;
  const bool vector = p.ldo % 4 == 0;
  for (u32 i = threadIdx.x; i < TILE * TILE / 4; i += THREADS) {
    const u32 r = own.row + i / (TILE / 4), first = own.column + i % (TILE / 4) * 4;
    const u32 there = below(p.n, first);
    if (r >= p.m || there == 0) continue;
    const u64 at = u64(r) * p.ldo + first;
    float4 sum = load_up_to_4(p.partial + at, there, vector);
#pragma unroll 8
    for (u32 s = 1; s < p.slices; s++) {
      const float4 next = load_up_to_4(p.partial + s * slice + at, there, vector);
      sum.x += next.x;
      sum.y += next.y;
      sum.z += next.z;
      sum.w += next.w;
    }
    float v[4] = {sum.x, sum.y, sum.z, sum.w};
#pragma unroll
    for (u32 c = 0; c < 4; c++)
      if (c < there) v[c] = finished(p, v[c], at + c, first + c);
    store_up_to(p.out + at, v, there, vector);
  }
}

/// Sums over k of 64 columns of a [k, columns] from `first` on, in F64, where a pair's opposite terms cancel
/// exactly; `take` gets each with its column, rounded once. For 128 threads, `scratch` [512].
template <class F>
GPU_FN void column_sums(const float* a, u32 rows, u32 columns, u32 first, double* scratch, F take) {
  // Eight sums a column, each of every eighth row. A warp makes two of them for two stretches of 32 columns.
  const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  double sum[2][2] = {};
  for (u32 row = warp; row < rows; row += 8) {
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
#pragma unroll
      for (u32 late = 0; late < 2; late++) {
        const u32 r = row + 4 * late, column = first + 32 * half + lane;
        if (r < rows && column < columns) sum[half][late] += double(a[u64(r) * columns + column]);
      }
    }
  }
#pragma unroll
  for (u32 half = 0; half < 2; half++) {
#pragma unroll
    for (u32 late = 0; late < 2; late++) scratch[(warp + 4 * late) * 64 + 32 * half + lane] = sum[half][late];
  }
  __syncthreads();
  if (threadIdx.x < 64 && first + threadIdx.x < columns) {
    double total = scratch[threadIdx.x];
    for (u32 g = 1; g < 8; g++) total += scratch[64 * g + threadIdx.x];
    take(first + threadIdx.x, float(total));
  }
}

}  // namespace gpu
