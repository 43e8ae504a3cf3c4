// An epoch of VAE training in one cooperative launch: what the launches of its steps do, in the same order of
// additions, with five barriers of the grid a step (docs/design/31-an-epoch-in-one-launch.md).
//
// Blocks take turns over the parts of each phase, whose number follows from sizes alone: tiles of products as
// the graph has them, pairs for what lies between. A tile of the gradients belongs to one block for all of
// the epoch, which keeps its moments in shared memory and puts the sums straight into Adam. Weights go
// through memory, as every block needs those of others in the next step.
//
// P holds products of a precision: `sums` and `layout` as in product_*.cuh, and `rows` for the two rows of a
// pair.
#pragma once
#include "adam.cuh"
#include "gather.cuh"
#include "grid.cuh"
#include "product.cuh"
#include "vae_codes.cuh"

namespace gpu {

template <class P>
class vae_epoch {
  static constexpr u32 THREADS = 128, WARPS = THREADS / WARP, TILE = 64, VALUES = TILE * TILE;
  using sums = typename P::sums;

  const params::vae_epoch& p;
  const u32 rows, row_tiles, hidden_tiles;
  grid_barrier grid;
  params::step now = {};
  const float* x = nullptr;
  const typename P::layout operands;
  unsigned char* scratch;
  float* moments;  // of each own tile: m, then v, as the threads hold their sums

  GPU_FN vae_epoch(const params::vae_epoch& p, carver& carve)
      : p(p),
        rows(2 * p.batch),
        row_tiles(place::tiles<TILE>(rows)),
        hidden_tiles(place::tiles<TILE>(p.hidden)),
        grid(p.arrived),
        operands(carve),
        scratch(carve.take<unsigned char>(p.scratch)),
        moments(carve.take<float>(0)) {}

  GPU_FN float* batch_of(u32 step) const { return p.x + u64(step % 2) * rows * p.dim; }
  GPU_FN u32 side_row(u32 pair, u32 side) const { return side * p.batch + pair; }

  /// The rows of the batch of a step, a pair a block.
  GPU_FN void gather(u32 step) const {
    const params::step of = running(p.steps + step);
    for (u32 r = blockIdx.x; r < rows; r += gridDim.x) {
      const u32 pair = r % p.batch;
      const u32 source = pair < of.pairs ? read(p.order + of.first + pair) : NO_ROW;
      gather_row<THREADS>(p.from, r / p.batch, source, p.dim, p.mean, p.std, batch_of(step) + u64(r) * p.dim);
    }
  }

  /// Stores a tile of slice `slice` of sums over dim, [rows, hidden].
  GPU_FN void store_partial(const sums& t, u32 slice, u32 row, u32 column) const {
    t.each([&](u32 r, u32 c, const auto& values) {
      // Hidden units come in sixteens: a group is there or not.
      if (row + r >= rows || column + c >= p.hidden) return;
      float* to = p.partial + (u64(slice) * rows + row + r) * p.hidden + column + c;
      // To global memory by name: of an assignment the compiler makes several stores here.
      if constexpr (sizeof(values) == sizeof(float4))
        __stwb(reinterpret_cast<float4*>(to), make_float4(values[0], values[1], values[2], values[3]));
      else
        store_2(to, make_float2(values[0], values[1]));
    });
  }

  /// The sums of slices of element `at` of [rows, hidden].
  GPU_FN float joined(u64 at) const {
    float sum = p.partial[at];
#pragma unroll 16
    for (u32 s = 1; s < p.slices; s++) sum += p.partial[u64(s) * rows * p.hidden + at];
    return sum;
  }

  /// Slices of x W^T of the encoder's first layer.
  GPU_FN void encode() const {
    const u32 tiles = row_tiles * hidden_tiles;
    for (u32 i = blockIdx.x; i < tiles * p.slices; i += gridDim.x) {
      const u32 slice = i / tiles, row = i % tiles / hidden_tiles * TILE, column = i % hidden_tiles * TILE;
      const u32 from = slice * p.deep;
      sums t;
      t.template multiply<true, true>(operands, {x, p.dim, row, rows},
                                      {p.w + p.weight[0], p.dim, column, p.hidden}, from,
                                      min(from + p.deep, p.dim));
      store_partial(t, slice, row, column);
    }
  }

  /// From the sums of the encoder's first layer to the decoder's hidden layer, a pair a block; losses of the
  /// codes and their gradients.
  GPU_FN void pass_codes() const {
    const u32 hidden = p.hidden, latent = p.latent;
    const params::vae_codes codes = {p.code, p.order, nullptr, p.eps,  p.z,     p.dcode,  p.losses, p.seed,
                                     p.beta, p.gamma, p.w2_eps, p.batch, latent, p.squared, 0};
    const typename P::rows a(scratch, max(hidden, 2 * latent));
    for (u32 pair = blockIdx.x; pair < p.batch; pair += gridDim.x) {
      a.clear();
      for (u32 i = threadIdx.x; i < 2 * hidden; i += THREADS) {
        const u32 side = i / hidden, j = i % hidden;
        const u64 at = u64(side_row(pair, side)) * hidden + j;
        const float value = relu(joined(at) + p.w[p.bias[0] + j]);
        p.encoder_hidden[at] = value;
        a.put(side, j, value);
      }
      a.template product<true>(p.w + p.weight[1], 2 * latent, hidden, [&](u32 side, u32 o, float sum) {
        p.code[u64(side_row(pair, side)) * 2 * latent + o] = sum + p.w[p.bias[1] + o];
      });
      if (threadIdx.x < WARP) compare_codes(codes, now, pair);
      for (u32 i = THREADS - 1 - threadIdx.x; i < latent / 2; i += THREADS) {
        const u32 side = i % 2, block = i / 2;
        const float4 s = sample_code(codes, now, side_row(pair, side), block);
        a.put(side, 4 * block, s.x);
        a.put(side, 4 * block + 1, s.y);
        a.put(side, 4 * block + 2, s.z);
        a.put(side, 4 * block + 3, s.w);
      }
      a.template product<true>(p.w + p.weight[2], hidden, latent, [&](u32 side, u32 o, float sum) {
        p.decoder_hidden[u64(side_row(pair, side)) * hidden + o] = relu(sum + p.w[p.bias[2] + o]);
      });
    }
  }

  /// The reconstruction, its error and its gradient, 64 rows by a slice of columns at a time; what comes back
  /// through the slice to the decoder's hidden layer.
  GPU_FN void decode() const {
    const u32 stride = p.deep + 4, lane = threadIdx.x % WARP;
    const float slope = float(2.0 * p.scale / double(now.pairs));
    float* const tile = reinterpret_cast<float*>(scratch);
    const float* const weight = p.w + p.weight[3];
    for (u32 i = blockIdx.x; i < row_tiles * p.slices; i += gridDim.x) {
      const u32 slice = i / row_tiles, row = i % row_tiles * TILE, from = slice * p.deep;
      // The last slices may be empty.
      const u32 end = max(min(from + p.deep, p.dim), from);
      __syncthreads();
      for (u32 column = from; column < end; column += TILE) {
        sums t;
        t.template multiply<true, true>(operands, {p.decoder_hidden, p.hidden, row, rows},
                                        {weight, p.hidden, column, end}, 0, p.hidden);
        t.each([&](u32 r, u32 c, const auto& values) {
          constexpr u32 COUNT = sizeof(values) / sizeof(float);
          const u32 there = row + r < rows ? below(end, column + c) : 0;
          float bias[COUNT], own[COUNT], v[COUNT];
          load_up_to(bias, p.w + p.bias[3] + column + c, there, true);
          load_up_to(own, x + u64(row + r) * p.dim + column + c, there, p.dim % COUNT == 0);
#pragma unroll
          for (u32 j = 0; j < COUNT; j++) v[j] = values[j] + bias[j] - own[j];
          store_up_to(tile + r * stride + column - from + c, v, there, true);
        });
      }
      __syncthreads();
      for (u32 r = threadIdx.x / WARP; r < TILE && row + r < rows; r += WARPS) {
        const bool there = (row + r) % p.batch < now.pairs;
        double sum = 0.0;
        for (u32 c = from + lane; c < end; c += WARP) {
          float& value = tile[r * stride + c - from];
          const float difference = value;
          value = there ? slope * difference : 0.0f;
          p.out[u64(row + r) * p.dim + c] = value;
          sum = __fma_rn(double(difference), double(difference), sum);
        }
        sum = warp_sum(sum);
        if (lane == 0) p.errors[u64(slice) * rows + row + r] = sum;
      }
      __syncthreads();
      for (u32 h = 0; h < hidden_tiles; h++) {
        sums t;
        t.template multiply<true, false>(operands, {tile, stride, 0, rows - row},
                                         {weight + u64(from) * p.hidden, p.hidden, h * TILE, p.hidden}, 0,
                                         end - from);
        store_partial(t, slice, row, h * TILE);
      }
    }
  }

  /// Back from the decoder's hidden layer to the encoder's, a pair a block.
  GPU_FN void return_codes() const {
    const u32 hidden = p.hidden, latent = p.latent;
    const typename P::rows a(scratch, max(hidden, 2 * latent));
    for (u32 pair = blockIdx.x; pair < p.batch; pair += gridDim.x) {
      a.clear();
      for (u32 i = threadIdx.x; i < 2 * hidden; i += THREADS) {
        const u32 side = i / hidden, j = i % hidden;
        const u64 at = u64(side_row(pair, side)) * hidden + j;
        const float sum = joined(at), value = p.decoder_hidden[at] > 0.0f ? sum : 0.0f;
        p.decoder_dhidden[at] = value;
        a.put(side, j, value);
      }
      if (threadIdx.x < 2) {
        const u32 row = side_row(pair, threadIdx.x);
        double sum = p.errors[row];
        for (u32 s = 1; s < p.slices; s++) sum += p.errors[u64(s) * rows + row];
        p.losses[2 * p.batch + row] = pair < now.pairs ? p.scale * sum : 0.0;
      }
      a.template product<false>(p.w + p.weight[2], latent, hidden, [&](u32 side, u32 o, float sum) {
        const u32 i = side_row(pair, side) * latent + o;
        const code_gradient d = through_sample(p.code, read(p.eps + i), sum, i, latent);
        p.dcode[d.at] += d.mu;
        p.dcode[d.at + latent] += d.logvar;
      });
      for (u32 i = threadIdx.x; i < 4 * latent; i += THREADS)
        a.put(i % 2, i / 2, p.dcode[u64(side_row(pair, i % 2)) * 2 * latent + i / 2]);
      a.template product<false>(p.w + p.weight[1], hidden, 2 * latent, [&](u32 side, u32 o, float sum) {
        const u64 at = u64(side_row(pair, side)) * hidden + o;
        p.encoder_dhidden[at] = p.encoder_hidden[at] > 0.0f ? sum : 0.0f;
      });
    }
  }

  /// The gradient of a layer, dy^T input: a tile of it belongs to a block.
  struct gradient {
    const float *dy, *input;
    u32 outputs, inputs, layer;
  };

  GPU_FN gradient gradient_of(u32 layer) const {
    if (layer == 3) return {p.out, p.decoder_hidden, p.dim, p.hidden, layer};
    if (layer == 2) return {p.decoder_dhidden, p.z, p.hidden, p.latent, layer};
    if (layer == 1) return {p.dcode, p.encoder_hidden, 2 * p.latent, p.hidden, layer};
    return {p.encoder_dhidden, x, p.hidden, p.dim, layer};
  }

  /// Calls f with the layer's gradient, first row and column, and number among the block's own, of each own
  /// tile.
  template <class F>
  GPU_FN void own_tiles(F f) const {
    u32 i = blockIdx.x, own = 0;
#pragma unroll 1
    for (u32 layer = 4; layer-- > 0;) {
      const gradient g = gradient_of(layer);
      const u32 columns = place::tiles<TILE>(g.inputs), tiles = place::tiles<TILE>(g.outputs) * columns;
#pragma unroll 1
      for (; i < tiles; i += gridDim.x) f(g, i / columns * TILE, i % columns * TILE, own++);
      i -= tiles;
    }
  }

  /// Calls f with the place of each group of a thread's parameters in a tile, how many of it exist, whether
  /// they lie for one access, their values in the tile and the first one's moments, THREADS and VALUES apart.
  template <class F>
  GPU_FN void own_values(const sums& t, const gradient& g, u32 row, u32 column, u32 own, F f) const {
    float* moment = moments + u64(own) * 2 * VALUES + threadIdx.x;
    t.each([&](u32 r, u32 c, const auto& values) {
      constexpr u32 COUNT = sizeof(values) / sizeof(float);
      const u32 there = row + r < g.outputs ? below(g.inputs, column + c) : 0;
      const u32 at = p.weight[g.layer] + (row + r) * g.inputs + column + c;
      f(at, there, g.inputs % COUNT == 0, values, moment);
      moment += COUNT * THREADS;
    });
  }

  /// Moments of own tiles from memory, or back.
  GPU_FN void move_moments(bool back) const {
    own_tiles([&](const gradient& g, u32 row, u32 column, u32 own) {
      const sums none = {};
      own_values(none, g, row, column, own, [&](u32 at, u32 there, bool, const auto& values, float* moment) {
#pragma unroll
        for (u32 j = 0; j < sizeof(values) / sizeof(float); j++) {
          float &m = moment[j * THREADS], &v = moment[VALUES + j * THREADS];
          if (j < there && back) {
            p.m[at + j] = m;
            p.v[at + j] = v;
          } else if (j < there) {
            m = p.m[at + j];
            v = p.v[at + j];
          }
        }
      });
    });
  }

  /// Gradients of own tiles over the rows of the batch, and a step of Adam with them.
  GPU_FN void learn() const {
    const adam_step step{p.beta1, p.keep1, p.beta2, p.keep2, now.rate, now.inverse_root, p.adam_eps, p.decay};
    own_tiles([&](const gradient& g, u32 row, u32 column, u32 own) {
      const u32 slices = p.row_slices[g.layer], deep = u32(round_up((rows + slices - 1) / slices, P::DEPTH));
      sums total, t;
#pragma unroll 1
      for (u32 s = 0; s < slices; s++) {
        t.template multiply<false, false>(operands, {g.dy, g.outputs, row, g.outputs},
                                          {g.input, g.inputs, column, g.inputs}, s * deep,
                                          min(s * deep + deep, rows));
        if (s == 0)
          total = t;
        else
          total.join(t);
      }
      auto take = [&](u32 at, u32 there, bool vector, const auto& sum, float* moment) {
        constexpr u32 COUNT = sizeof(sum) / sizeof(float);
        float w[COUNT];
        load_up_to(w, p.w + at, there, vector);
#pragma unroll
        for (u32 j = 0; j < COUNT; j++)
          if (j < there) update(step, w[j], sum[j], moment[j * THREADS], moment[VALUES + j * THREADS]);
        store_up_to(p.w + at, w, there, vector);
      };
      own_values(total, g, row, column, own, take);
      if (column == 0) {
        __syncthreads();
        column_sums(g.dy, rows, g.outputs, row, reinterpret_cast<double*>(operands.a), [&](u32 o, float sum) {
          const u32 at = p.bias[g.layer] + o;
          update(step, p.w[at], sum, p.m[at], p.v[at]);
        });
        __syncthreads();
      }
    });
    if (blockIdx.x == gridDim.x - 1) add_up();
  }

  /// Adds the step's losses to the totals: add_losses of a block of twice as many threads.
  GPU_FN void add_up() const {
    double* sum = reinterpret_cast<double*>(scratch);
    for (u32 term = 0; term < 4; term++) {
      __syncthreads();
#pragma unroll
      for (u32 half = 0; half < 2; half++) {
        double own = 0.0;
        for (u32 i = threadIdx.x + half * THREADS; i < p.batch; i += 2 * THREADS)
          own += read(p.losses + u64(term) * p.batch + i);
        own = warp_sum(own);
        if (threadIdx.x % WARP == 0) sum[half * WARPS + threadIdx.x / WARP] = own;
      }
      __syncthreads();
      if (threadIdx.x == 0) {
        double total = sum[0];
        for (u32 w = 1; w < 2 * WARPS; w++) total += sum[w];
        p.totals[term] += total;
      }
    }
  }

  GPU_FN void run() {
    move_moments(false);
    gather(0);
    grid.sync();
    for (u32 i = 0; i < p.count; i++) {
      now = running(p.steps + i);
      x = batch_of(i);
      encode();
      grid.arrive();
      if (i + 1 < p.count) gather(i + 1);
      grid.wait();
      pass_codes();
      grid.sync();
      decode();
      grid.sync();
      return_codes();
      grid.sync();
      learn();
      grid.sync();
    }
    move_moments(true);
  }

 public:
  GPU_FN static void run(const params::vae_epoch& p) {
    extern __shared__ __align__(1024) unsigned char memory[];
    carver carve(memory);
    vae_epoch(p, carve).run();
  }
};

}  // namespace gpu
