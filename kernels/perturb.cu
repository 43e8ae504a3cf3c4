// archs: sm_75+
// Of `drawn` candidates z' = z + sigma * eta of a row, the `keep` likeliest under N(center, 1 / precision^2)
// mu, logvar [rows, latent] F32, latent a multiple of 16; out [rows, keep] u32, best first, ties by number
// A row belongs to 4 to 32 lanes of one warp, as many as it has candidates; a lane owns a candidate at a time
// Reads 8 * latent bytes, writes 4 * keep a row; some 65 FLOP, 30 integer operations a latent and candidate
// Needs 1 <= keep <= 256, keep <= drawn, row numbers below 2^48, shared memory as layout.rs counts it
// Exact: candidates and bits of z' are those of the reference, at any launch geometry
// Reference: backend/cpu/latents.rs, `select` and `perturb`
// H200 by model, 2026-11, ns: select ALU 0.98, issue 0.92 a row; start DRAM 0.04; perturb ALU 0.03 a latent
#include "include/latent.cuh"

namespace perturb {

using gpu::candidate_of;
using gpu::load_4;
using gpu::read_4;
using gpu::start_of;
using gpu::store_4;
using gpu::u32;
using gpu::u64;
using params::noise;

constexpr u32 THREADS = 128;
constexpr u64 NO_KEY = ~u64(0);

/// Numbers of `lensmith::backend::Likelihood`.
enum class likelihood : u32 { posterior = 0, prior = 1, none = 2 };

constexpr GPU_FN u32 power_of_two(u32 n) {
  u32 p = 1;
  while (p < n) p *= 2;
  return p;
}

/// Lanes that share a row: enough for all candidates, and for a long latent, whose rows take more shared
/// memory.
constexpr GPU_FN u32 lanes_of_row(u32 latent, u32 drawn) {
  u32 lanes = 4;
  while (lanes < gpu::WARP && (lanes < drawn || 16 * lanes < latent)) lanes *= 2;
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

  GPU_FN layout(gpu::carver& carve, u32 latent, u32 keep, u32 drawn)
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
GPU_FN u64 key_of(const noise& n, const layout& shared, u32 in_block, u32 latent, u64 row, u32 candidate) {
  float sum = 0.0f;
  for (u32 block = 0; block < latent / 4; block++) {
    const u32 at = in_block * latent + 4 * block;
    const float4 z = candidate_of(n, row, candidate, block, load_4(shared.start + at));
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
  for (u32 step = gpu::WARP / 2; step > 0; step /= 2) {
    const u32 other = __shfl_xor_sync(gpu::ALL_LANES, number, step);
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

}  // namespace perturb

extern "C" __global__ void __launch_bounds__(perturb::THREADS)
    select_f32(const __grid_constant__ params::select p) {
  using namespace perturb;
  const u64 rows = p.rows, first_row = p.noise.first_row;
  const u32 latent = p.latent, keep = p.keep, drawn = p.drawn;
  const noise& n = p.noise;
  const u64 stride = u64(gridDim.x) * THREADS;
  if (p.likelihood == u32(perturb::likelihood::none)) {
    // Nothing ranks them: the first ones stay.
    for (u64 i = u64(blockIdx.x) * THREADS + threadIdx.x; i < rows * keep; i += stride)
      p.out[i] = u32(i % keep);
    return;
  }
  extern __shared__ __align__(1024) unsigned char memory[];
  gpu::carver carve(memory);
  const layout shared(carve, latent, keep, drawn);
  const bool posterior = p.likelihood == u32(perturb::likelihood::posterior);
  const u32 lanes = shared.lanes, in_block = threadIdx.x / lanes, rank = threadIdx.x % lanes;
  const u32 first_lane = threadIdx.x % gpu::WARP - rank;
  u64* const keys = shared.keys + in_block * shared.capacity;

  // All lanes of a warp go the same way through what follows, rows past the end included.
  for (u64 base = u64(blockIdx.x) * shared.rows; base < rows; base += u64(gridDim.x) * shared.rows) {
    // A row past the end has no candidates, but its lanes take part in votes and sorts.
    const u64 row = base + in_block;
    const bool present = row < rows;
    if (present) {
      for (u32 block = rank; block < latent / 4; block += lanes) {
        const u64 from = row * latent + 4 * block;
        const u32 to = in_block * latent + 4 * block;
        const float4 m = read_4(p.mu + from), v = read_4(p.logvar + from);
        store_4(shared.start + to, start_of(n, first_row + row, block, m, v, p.mean != 0));
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
    for (u64 round = 0; round < drawn; round += lanes) {
      if (__any_sync(gpu::ALL_LANES, held + lanes > shared.capacity))
        below = sort_and_cut(keys, held, keep, rank, lanes);
      const u64 candidate = round + rank;
      u64 key = NO_KEY;
      if (present && candidate < drawn)
        key = key_of(n, shared, in_block, latent, first_row + row, u32(candidate));
      // Those that may stay line up behind the list, in the order of their lanes.
      const u32 entering =
          __ballot_sync(gpu::ALL_LANES, key < below) >> first_lane & (0xffffffffu >> (32 - lanes));
      if (key < below) keys[held + __popc(entering & ((1u << rank) - 1))] = key;
      held += __popc(entering);
    }
    sort_and_cut(keys, held, keep, rank, lanes);
    if (present)
      for (u32 i = rank; i < keep; i += lanes) p.out[row * keep + i] = u32(keys[i]);
  }
}

/// What the candidates of each row start from, one posterior sample: [rows, latent]. A thread owns four
/// elements of a row. Made once for a block of rows, so that whoever draws its candidates needs one normal
/// an element, not two.
extern "C" __global__ void __launch_bounds__(perturb::THREADS)
    start_f32(const __grid_constant__ params::start p) {
  using namespace perturb;
  const u32 latent = p.latent;
  const u32 blocks = latent / 4;
  const u64 stride = u64(gridDim.x) * THREADS;
  for (u64 i = u64(blockIdx.x) * THREADS + threadIdx.x; i < p.rows * blocks; i += stride)
    store_4(p.out + 4 * i, start_of(p.noise, p.noise.first_row + i / blocks, u32(i % blocks),
                                  read_4(p.mu + 4 * i), read_4(p.logvar + 4 * i), false));
}

/// z' of samples (row in the block of rows, candidate) from their rows' starts: [count, latent]. A thread
/// owns four elements of a sample.
extern "C" __global__ void __launch_bounds__(perturb::THREADS)
    perturb_f32(const __grid_constant__ params::perturb p) {
  using namespace perturb;
  const u32 latent = p.latent;
  const u32 blocks = latent / 4;
  const u64 stride = u64(gridDim.x) * THREADS;
  for (u64 i = u64(blockIdx.x) * THREADS + threadIdx.x; i < p.count * blocks; i += stride) {
    const u32 block = u32(i % blocks);
    const uint2 who = gpu::read(p.samples + i / blocks);
    const float4 start = read_4(p.starts + u64(who.x) * latent + 4 * block);
    store_4(p.out + 4 * i, candidate_of(p.noise, p.noise.first_row + who.x, who.y, block, start));
  }
}
