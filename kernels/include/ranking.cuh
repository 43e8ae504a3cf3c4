// The likeliest candidates of rows, by the lanes of a warp: what select and the fused synthesis rank with.
#pragma once
#include "latent.cuh"

namespace gpu {
namespace ranking {

constexpr u32 THREADS = 128;
constexpr u64 NO_KEY = ~u64(0);

/// Numbers of `lensmith::backend::Likelihood`.
enum class likelihood : u32 { posterior = 0, prior = 1, none = 2 };

/// How candidates are drawn, and by what they are ranked.
struct options {
  params::noise noise;
  u32 latent, keep, drawn;
  ranking::likelihood likelihood;
};

constexpr GPU_FN u32 power_of_two(u32 n) {
  u32 p = 1;
  while (p < n) p *= 2;
  return p;
}

/// Lanes that share a row: enough for all candidates, and for a long latent, whose rows take more shared
/// memory.
constexpr GPU_FN u32 lanes_of_row(u32 latent, u32 drawn) {
  u32 lanes = 4;
  while (lanes < WARP && (lanes < drawn || 16 * lanes < latent)) lanes *= 2;
  return lanes;
}

/// Keys a row has room for, a power of two: the kept and a further round of candidates.
constexpr GPU_FN u32 keys_of_row(u32 keep, u32 drawn, u32 lanes) {
  return drawn <= lanes ? lanes : power_of_two(keep + lanes);
}

/// The block's shared memory: per row of the block, its start z, center and precision, and its list of keys.
struct layout {
  u32 lanes, capacity, rows;
  float *start, *center, *precision;
  u64* keys;

  GPU_FN layout(carver& carve, u32 latent, u32 keep, u32 drawn)
      : lanes(lanes_of_row(latent, drawn)), capacity(keys_of_row(keep, drawn, lanes)), rows(THREADS / lanes) {
    start = carve.take<float>(size_t(rows) * latent);
    center = carve.take<float>(size_t(rows) * latent);
    precision = carve.take<float>(size_t(rows) * latent);
    keys = carve.take<u64>(size_t(rows) * capacity);
  }
};

GPU_FN float add_square(float sum, float z, float center, float precision) {
  const float distance = __fmul_rn(__fsub_rn(z, center), precision);
  return __fmaf_rn(distance, distance, sum);
}

/// A candidate's place in the ranking, smaller is better: the bits of its sum of squares, which order as it
/// does because it is not negative, above its number. NaN comes last, in one form, as devices differ in its
/// bits.
GPU_FN u64 key_of(const options& o, const layout& shared, u32 in_block, u64 row, u32 candidate) {
  float sum = 0.0f;
  for (u32 block = 0; block < o.latent / 4; block++) {
    const u32 at = in_block * o.latent + 4 * block;
    const float4 start = load_4(shared.start + at);
    const float4 z = candidate_of(o.noise, o.noise.first_row + row, candidate, block, start);
    const float4 c = load_4(shared.center + at), p = load_4(shared.precision + at);
    sum = add_square(sum, z.x, c.x, p.x);
    sum = add_square(sum, z.y, c.y, p.y);
    sum = add_square(sum, z.z, c.z, p.z);
    sum = add_square(sum, z.w, c.w, p.w);
  }
  const u32 bits = sum == sum ? __float_as_uint(sum) : 0x7fffffffu;
  return u64(bits) << 32 | candidate;
}

/// The largest of the lanes' numbers. One instruction since sm_80 (redux), five shuffles for all.
GPU_FN u32 largest(u32 number) {
#pragma unroll
  for (u32 step = WARP / 2; step > 0; step /= 2) {
    const u32 other = __shfl_xor_sync(ALL_LANES, number, step);
    number = number < other ? other : number;
  }
  return number;
}

/// Sorts the lists of all rows of a warp, filling each from `held` to the longest one's next power of two,
/// and cuts them to `keep`. Gives the key that a further candidate must be below. Bitonic; all lanes of the
/// warp together. Orders what they wrote before: no __syncwarp is needed at the call.
GPU_FN u64 sort_and_cut(u64* keys, u32& held, u32 keep, u32 rank, u32 lanes) {
  const u32 size = power_of_two(largest(held));
  for (u32 i = held + rank; i < size; i += lanes) keys[i] = NO_KEY;
  __syncwarp();
  for (u32 run = 2; run <= size; run *= 2) {
    for (u32 step = run / 2; step > 0; step /= 2) {
      for (u32 i = rank; i < size / 2; i += lanes) {
        const u32 low = 2 * i - (i & (step - 1)), high = low + step;
        const u64 a = keys[low], b = keys[high];
        const bool rising = (low & run) == 0;
        if ((a > b) == rising) {
          keys[low] = b;
          keys[high] = a;
        }
      }
      __syncwarp();
    }
  }
  held = held < keep ? held : keep;
  return held == keep ? keys[keep - 1] : NO_KEY;
}

/// Ranks the candidates of rows `base` and on, as many as a block takes at a time, those past `rows` left
/// out. `code(row, block, m, v)` gives elements 4 * block .. 4 * block + 3 of a row's mu and log variance,
/// and the same of what its candidates start from; `put(row, i, candidate)` takes the i-th best. All lanes of
/// a warp together; no warp waits for another.
template <class CODE, class PUT>
GPU_FN void rank(const layout& shared, const options& o, u64 base, u64 rows, CODE code, PUT put) {
  const bool posterior = o.likelihood == likelihood::posterior;
  const u32 lanes = shared.lanes, in_block = threadIdx.x / lanes, rank = threadIdx.x % lanes;
  const u32 first_lane = threadIdx.x % WARP - rank;
  u64* const keys = shared.keys + in_block * shared.capacity;
  // A row past the end has no candidates, but its lanes take part in votes and sorts.
  const u64 row = base + in_block;
  const bool present = row < rows;
  if (present) {
    for (u32 block = rank; block < o.latent / 4; block += lanes) {
      const u32 to = in_block * o.latent + 4 * block;
      float4 m, v;
      store_4(shared.start + to, code(row, block, m, v));
      store_4(shared.center + to, posterior ? m : make_float4(0.0f, 0.0f, 0.0f, 0.0f));
      const float4 precision =
          make_float4(gpu::exp(__fmul_rn(-0.5f, v.x)), gpu::exp(__fmul_rn(-0.5f, v.y)),
                      gpu::exp(__fmul_rn(-0.5f, v.z)), gpu::exp(__fmul_rn(-0.5f, v.w)));
      store_4(shared.precision + to, posterior ? precision : make_float4(1.0f, 1.0f, 1.0f, 1.0f));
    }
  }
  // Also lets the former row's list be read to its end before new keys overwrite it.
  __syncwarp();

  u32 held = 0;
  u64 below = NO_KEY;
  for (u64 round = 0; round < o.drawn; round += lanes) {
    if (__any_sync(ALL_LANES, held + lanes > shared.capacity))
      below = sort_and_cut(keys, held, o.keep, rank, lanes);
    const u64 candidate = round + rank;
    u64 key = NO_KEY;
    if (present && candidate < o.drawn) key = key_of(o, shared, in_block, row, u32(candidate));
    // Those that may stay line up behind the list, in the order of their lanes.
    const u32 entering = __ballot_sync(ALL_LANES, key < below) >> first_lane & (0xffffffffu >> (32 - lanes));
    if (key < below) keys[held + __popc(entering & ((1u << rank) - 1))] = key;
    held += __popc(entering);
  }
  sort_and_cut(keys, held, o.keep, rank, lanes);
  if (present)
    for (u32 i = rank; i < o.keep; i += lanes) put(row, i, u32(keys[i]));
}

}  // namespace ranking
}  // namespace gpu
