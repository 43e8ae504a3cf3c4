// Products of a warp on tensor cores: BF16 operands in shared memory, sums in F32 (sm_80 and newer).
//
// Operands lie by rows, [row][k], or by k, [k][row]; ldmatrix turns the latter. Rows of shared memory are 8
// values longer than they need be: an odd multiple of 16 bytes, so that the eight rows of a matrix fall into
// different banks.
#pragma once
#include "async_copy.cuh"
#include "mma.cuh"
#include "types.cuh"

#include <type_traits>

namespace gpu {
namespace tensor {

constexpr u32 THREADS = 128, WARPS = THREADS / WARP, OUTPUTS = 64;

/// Values between rows of an operand that is `k` long.
constexpr GPU_FN u32 stride_of(u32 k) { return k + 8; }

/// R x 16 rows by G x 16 outputs of a warp, as D fragments lie (mma.cuh).
template <u32 R, u32 G>
struct tile {
  float sum[R][2 * G][4];

  GPU_FN void clear() {
#pragma unroll
    for (u32 r = 0; r < R; r++) {
#pragma unroll
      for (u32 n = 0; n < 2 * G; n++) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) sum[r][n][i] = 0.0f;
      }
    }
  }

  /// Row, within the tile, of element i of fragment r, and output of element i of fragment n.
  GPU_FN static u32 row(u32 r, u32 i) { return 16 * r + threadIdx.x % WARP / 4 + (i & 2 ? 8 : 0); }
  GPU_FN static u32 output(u32 n, u32 i) { return 8 * n + threadIdx.x % 4 * 2 + (i & 1); }

  /// Starts every row from a bias, in global or shared memory, which points at that of the tile's first
  /// output; those from `there` on are missing. A bias that sums start from costs no addition behind them.
  GPU_FN void start(const float* bias, u32 there = 16 * G) {
    start_by([&](u32 o) { return read_2(bias + o); }, there);
  }
  GPU_FN void start_from_shared(const float* bias, u32 there) {
    start_by([&](u32 o) { return load_2(bias + o); }, there);
  }
  template <class F>
  GPU_FN void start_by(F bias, u32 there) {
#pragma unroll
    for (u32 n = 0; n < 2 * G; n++) {
      const float2 b = 8 * n < there ? bias(output(n, 0)) : make_float2(0.0f, 0.0f);
#pragma unroll
      for (u32 r = 0; r < R; r++) {
        sum[r][n][0] = sum[r][n][2] = b.x;
        sum[r][n][1] = sum[r][n][3] = b.y;
      }
    }
  }

  /// Adds the products over `depth`, a multiple of 16. a and b point at the tile's first row and output;
  /// `A_BY_ROWS`, `B_BY_ROWS` say how they lie. Of the G groups only the first `groups` are made.
  template <bool A_BY_ROWS, bool B_BY_ROWS>
  GPU_FN void add(const bf16* a, u32 a_stride, const bf16* b, u32 b_stride, u32 depth, u32 groups = G) {
    const u32 lane = threadIdx.x % WARP, low = lane % 8, first = lane / 8 % 2 * 8, second = lane / 16 * 8;
    for (u32 k = 0; k < depth; k += 16) {
      u32 x[R][4];
#pragma unroll
      for (u32 r = 0; r < R; r++) {
        // Matrices 0 to 3: rows 0-7 and 8-15 at k 0-7, then at k 8-15.
        if (A_BY_ROWS)
          ldmatrix_x4(x[r], a + (16 * r + first + low) * a_stride + k + second);
        else
          ldmatrix_x4_trans(x[r], a + (k + second + low) * a_stride + 16 * r + first);
      }
#pragma unroll
      for (u32 g = 0; g < G; g++) {
        if (g >= groups) break;
        // Matrices 0 to 3: k 0-7 and 8-15 of outputs 0-7, then of outputs 8-15.
        u32 w[4];
        if (B_BY_ROWS)
          ldmatrix_x4(w, b + (16 * g + second + low) * b_stride + k + first);
        else
          ldmatrix_x4_trans(w, b + (k + first + low) * b_stride + 16 * g + second);
        multiply(g, x, w);
      }
    }
  }

  /// Adds fragments of A times group g of B, 16 outputs, over k = 16.
  GPU_FN void multiply(u32 g, const u32 (&x)[R][4], const u32 (&w)[4]) {
    const u32 left[2] = {w[0], w[1]}, right[2] = {w[2], w[3]};
#pragma unroll
    for (u32 r = 0; r < R; r++) {
      mma_m16n8k16_bf16(sum[r][2 * g], x[r], left);
      mma_m16n8k16_bf16(sum[r][2 * g + 1], x[r], right);
    }
  }
};

/// Values of a source that one lane moves at a time, of 16 bytes: neighbours read whole sectors.
template <class S>
constexpr u32 GROUP = vec16<S>::COUNT;

/// A group to shared memory as BF16, or zeros.
template <class S>
GPU_FN void put_group(bf16* to, const vec16<S>& group, bool there) {
  u32 pair[GROUP<S> / 2];
#pragma unroll
  for (u32 i = 0; i < GROUP<S> / 2; i++)
    pair[i] = there ? pack_bf16(to_f32(group.value[2 * i]), to_f32(group.value[2 * i + 1])) : 0;
  if constexpr (GROUP<S> == 8)
    *reinterpret_cast<uint4*>(to) = make_uint4(pair[0], pair[1], pair[2], pair[3]);
  else
    *reinterpret_cast<uint2*>(to) = make_uint2(pair[0], pair[1]);
}

/// The same of values from `at` on, of which `there` exist; the others are 0.
template <class S>
GPU_FN void put_up_to(bf16* to, const S* at, u32 there, bool vector) {
  if (there >= GROUP<S> && vector) {
    put_group(to, read_16(at), true);
  } else {
    // Pair by pair: rare, and beside a product's sums there are few registers.
#pragma unroll 1
    for (u32 i = 0; i < GROUP<S>; i += 2) {
      const float low = i < there ? to_f32(read(at + i)) : 0.0f;
      const float high = i + 1 < there ? to_f32(read(at + i + 1)) : 0.0f;
      *reinterpret_cast<u32*>(to + i) = pack_bf16(low, high);
    }
  }
}

template <class S>
struct is_bf16 {
  static constexpr bool VALUE = false;
};
template <>
struct is_bf16<bf16> {
  static constexpr bool VALUE = true;
};

/// The rows of a source from `first` on.
struct rows_from {
  u64 first;
  GPU_FN u64 operator()(u32 r) const { return first + r; }
};

/// Copies `count` rows by `columns` values, a multiple of 8, of a matrix [rows, ld] to shared memory
/// [count][stride], as BF16 with zeros outside: row r from the source's row `source_of(r)`, columns from
/// `column` on. BF16 rows that lie on multiples of 16 bytes go asynchronously: the caller commits and waits.
/// All threads of the block together. Addresses are found for each copy anew: not for inner loops.
template <class S, class F>
GPU_FN void copy_rows_of(bf16* to, u32 stride, const S* from, F source_of, u64 rows, u32 ld, u32 column,
                         u32 columns, u32 count) {
  const u32 groups = columns / GROUP<S>;
  const bool vector = ld % GROUP<S> == 0;
  for (u32 at = threadIdx.x; at < count * groups; at += blockDim.x) {
    const u32 r = at / groups, c = column + at % groups * GROUP<S>;
    const u64 row = source_of(r);
    const u32 there = row < rows && c < ld ? min(ld - c, GROUP<S>) : 0;
    const S* source = there ? from + row * ld + c : from;
    bf16* target = to + r * stride + at % groups * GROUP<S>;
    if (is_bf16<S>::VALUE && vector)
      copy_async_16(target, source, 2 * there);
    else
      put_up_to(target, source, there, vector);
  }
}

/// The same of consecutive rows, from `row` on.
template <class S>
GPU_FN void copy_rows(bf16* to, u32 stride, const S* from, u64 row, u64 rows, u32 ld, u32 column, u32 columns,
                      u32 count) {
  copy_rows_of(to, stride, from, rows_from{row}, rows, ld, column, columns, count);
}

constexpr u32 DEPTH = 64, CHUNK_STRIDE = DEPTH + 8;

/// A thread's share of COUNT rows of a matrix [rows, ld] on their way into stages, DEPTH columns at a time:
/// eight values of every 16th row, in groups of 16 bytes. Their addresses are found once: a chunk costs an
/// addition and a load for each. Rows past the last are the last again, whose results nobody keeps; columns
/// past the last are zeros.
///
/// Three types do it for three ways of lying in memory. `start` begins the next chunk, of columns `k` and on;
/// `finish` ends it: between them stands the work that hides the time of the loads.
template <class S, u32 COUNT>
struct share_of_rows {
  static constexpr u32 STEP = THREADS / (DEPTH / 8), EACH = COUNT / STEP;
  // Groups of a thread in a row, and columns from one to the next.
  static constexpr u32 PARTS = 8 / GROUP<S>, APART = 8;
  // Many rows are those of a weight, whose number is a multiple of 16: what is missing of them is missing for
  // all threads, and offsets need no registers of a thread's own.
  static constexpr bool WHOLE_STEPS = EACH > 4;
  const S* from;                    // the thread's columns in its first row, of the chunk before
  u32 own[WHOLE_STEPS ? 1 : EACH];  // bytes from there to its rows, or to the second
  u32 column, ld, most;             // `most`: bytes to its last row that exists, where steps are whole

  GPU_FN share_of_rows(const S* first, u64 row, u64 rows, u32 ld)
      : column(first_column()), ld(ld) {
    const u32 r = threadIdx.x / (DEPTH / 8), count = u32(rows - row < COUNT ? rows - row : COUNT);
    const u32 bytes = ld * u32(sizeof(S));
    most = (count / STEP - 1) * STEP * bytes;
    if (WHOLE_STEPS) {
      from = first + (row + r) * ld + column - DEPTH;
      own[0] = STEP * bytes;
    } else {
      from = first + row * ld + column - DEPTH;
#pragma unroll
      for (u32 i = 0; i < EACH; i++) own[WHOLE_STEPS ? 0 : i] = min(r + i * STEP, count - 1) * bytes;
    }
  }

  /// Bytes from `from` to the thread's row i.
  GPU_FN u32 offset(u32 i) const { return WHOLE_STEPS ? min(i * own[0], most) : own[i]; }
  /// Two lanes share what groups of four leave apart, so that each access takes whole sectors and all banks.
  GPU_FN static u32 first_column() {
    const u32 lane = threadIdx.x % (DEPTH / 8);
    return PARTS == 1 ? 8 * lane : lane / 2 * 16 + lane % 2 * 4;
  }
  GPU_FN bool inside(u32 k, u32 part) const { return k + column + part * APART < ld; }
  GPU_FN bf16* target(bf16* stage, u32 i, u32 part) const {
    return stage + (threadIdx.x / (DEPTH / 8) + i * STEP) * CHUNK_STRIDE + column + part * APART;
  }
};

/// BF16 rows on multiples of 16 bytes, asynchronously.
template <class S, u32 COUNT>
struct aligned_rows;
template <u32 COUNT>
struct aligned_rows<bf16, COUNT> : share_of_rows<bf16, COUNT> {
  using share_of_rows<bf16, COUNT>::share_of_rows;

  GPU_FN void start(bf16* stage, u32 k) {
    const u32 bytes = this->inside(k, 0) ? 16 : 0;
    this->from += DEPTH;
#pragma unroll
    for (u32 i = 0; i < this->EACH; i++)
      copy_async_16(this->target(stage, i, 0), behind(this->from, this->offset(i)), bytes);
  }
  GPU_FN void finish(bf16*, u32) {}
};

/// F32 and F16 rows on multiples of 16 bytes, rounded to BF16 on their way through registers.
template <class S, u32 COUNT>
struct aligned_rows : share_of_rows<S, COUNT> {
  using share = share_of_rows<S, COUNT>;
  vec16<S> held[share::EACH][share::PARTS];

  using share::share_of_rows;

  GPU_FN void start(bf16*, u32 k) {
    this->from += DEPTH;
#pragma unroll
    for (u32 p = 0; p < share::PARTS; p++) {
      if (!this->inside(k, p)) return;
#pragma unroll
      for (u32 i = 0; i < share::EACH; i++) {
        const S* row = static_cast<const S*>(behind(this->from, this->offset(i)));
        held[i][p] = read_16(row + p * share::APART);
      }
    }
  }
  GPU_FN void finish(bf16* stage, u32 k) {
#pragma unroll
    for (u32 p = 0; p < share::PARTS; p++) {
#pragma unroll
      for (u32 i = 0; i < share::EACH; i++)
        put_group(this->target(stage, i, p), held[i][p], this->inside(k, p));
    }
  }
};

/// Rows of any width and type, one value after the other where they must.
template <class S, u32 COUNT>
struct any_rows {
  const S* from;
  u64 row, rows;
  u32 ld;

  GPU_FN any_rows(const S* from, u64 row, u64 rows, u32 ld) : from(from), row(row), rows(rows), ld(ld) {}
  GPU_FN void start(bf16* stage, u32 k) {
    copy_rows(stage, CHUNK_STRIDE, from, row, rows, ld, k, DEPTH, COUNT);
  }
  GPU_FN void finish(bf16*, u32) {}
};

/// Rows that a block of encode and score owns at a time.
constexpr u32 ROWS = 64;

/// Values of a stage for `wide` outputs, and of the stages that add_stored takes.
constexpr GPU_FN u32 stage_of(u32 wide) { return (ROWS + wide) * CHUNK_STRIDE; }
constexpr GPU_FN u32 stages_of(u32 stages, u32 wide) { return stages * stage_of(wide); }

/// The chunks of add_stored, from sources that know their rows.
template <u32 STAGES, u32 N, u32 R, u32 G, class X, class W>
GPU_FN void add_chunks(tile<R, G>& t, bf16* stages, X x, W w, u32 chunks) {
  constexpr u32 SIZE = stage_of(16 * G * N);
  const u32 warp = threadIdx.x / WARP;
  auto start = [&](bf16* stage, u32 chunk) {
    if (chunk < chunks) {
      x.start(stage, chunk * DEPTH);
      w.start(stage + ROWS * CHUNK_STRIDE, chunk * DEPTH);
    }
    copy_async_commit();
  };
  auto finish = [&](bf16* stage, u32 chunk) {
    if (chunk < chunks) x.finish(stage, chunk * DEPTH);
  };
  // The stages may still be read for what came before.
  __syncthreads();
#pragma unroll
  for (u32 s = 0; s < STAGES - 1; s++) {
    start(stages + s * SIZE, s);
    finish(stages + s * SIZE, s);
  }
  // The stage that is read and the one that is filled. Pointers: behind an offset the compiler no longer
  // sees that a group can be stored at once.
  bf16* const last = stages + (STAGES - 1) * SIZE;
  bf16 *read = stages, *write = last;
#pragma unroll 1
  for (u32 chunk = 0; chunk < chunks; chunk++) {
    copy_async_wait<STAGES - 2>();
    __syncthreads();
    // Into the stage that all have left since the barrier.
    start(write, chunk + STAGES - 1);
    const bf16* a = read + warp / N * 16 * R * CHUNK_STRIDE;
    const bf16* b = read + (ROWS + warp % N * 16 * G) * CHUNK_STRIDE;
    t.template add<true, true>(a, CHUNK_STRIDE, b, CHUNK_STRIDE, DEPTH);
    finish(write, chunk + STAGES - 1);
    read = read == last ? stages : read + SIZE;
    write = write == last ? stages : write + SIZE;
  }
}

/// Adds rows `row` .. of x [rows, dim] times outputs `output` .. of w [outputs, dim], 64 of k at a time, by
/// STAGES buffers of ROWS + 16 G N rows of shared memory each. The block's warps lie N side by side. Sums of
/// rows and outputs past the last are of no use. `ALIGNED`: dim is a multiple of 8. A kernel branches on that
/// once, around all of its work: sums that two ways of loading share are moved between registers in the loop.
template <bool ALIGNED, u32 STAGES, u32 N, u32 R, u32 G, class S>
GPU_FN void add_stored(tile<R, G>& t, bf16* stages, const S* x, u64 row, u64 rows, const bf16* w, u32 output,
                       u32 outputs, u32 dim) {
  constexpr u32 WIDE = 16 * G * N;
  const u32 chunks = (dim + DEPTH - 1) / DEPTH;
  // Beside sums that take most registers there are none for values on their way: those are not held.
  constexpr bool HELD = is_bf16<S>::VALUE || R * G <= 8;
  using rows_of_x = std::conditional_t<ALIGNED && HELD, aligned_rows<S, ROWS>, any_rows<S, ROWS>>;
  using rows_of_w = std::conditional_t<ALIGNED, aligned_rows<bf16, WIDE>, any_rows<bf16, WIDE>>;
  add_chunks<STAGES, N>(t, stages, rows_of_x(x, row, rows, dim), rows_of_w(w, output, outputs, dim), chunks);
}

}  // namespace tensor
}  // namespace gpu
