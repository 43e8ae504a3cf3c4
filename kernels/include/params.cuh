// The parameters of kernels, one structure a kernel (or for all of a kind): what a launch copies to a device.
//
// Each is laid out as the structure of the same name in src/backend/cuda/params.rs: values of 8 bytes first,
// no hidden padding, sizes asserted on both sides. `S` is how embeddings are stored, `W` how weights are.
//
// Of a structure's pointers the compiler does not know that they share nothing, and keeps to loads that see
// stores. So kernels read what their launch does not write by gpu::read (read.cuh), or, where that is enough,
// through `__restrict__` pointers of their own.
#pragma once
#include "gpu.cuh"

namespace params {

using gpu::u16;
using gpu::u32;
using gpu::u64;

/// Whose noise it is, and how much.
struct noise {
  u64 seed;
  u64 first_row;  // data-set row of the first row of the launch
  u32 side;
  float sigma;

  GPU_FN uint2 key() const { return make_uint2(u32(seed), u32(seed >> 32)); }
};
static_assert(sizeof(noise) == 24);

/// Latents, `latent` wide, each with a row of a block of seeds that it belongs to; stored or drawn.
struct latents {
  const float* z;        // stored [count, latent]; null: they are drawn wherever they are read
  const u32* owners;     // [count], the row of each; null: the samples name it
  const uint2* samples;  // drawn: [count], (row, candidate)
  const float* starts;   // drawn: what each row's candidates start from, [rows, latent]
  params::noise noise;   // drawn
};
static_assert(sizeof(latents) == 56);

/// What residual decoding adds to: embeddings [seeds, dim] of a type as in read_typed, means [seeds, latent].
struct seeds {
  const void* embeddings;
  const float* mu;  // null: plain
  u32 dtype;
  u32 unused;
};
static_assert(sizeof(seeds) == 24);

/// encode_*: embeddings [rows, dim], W1 [hidden, dim], W2 [2 latent, hidden].
template <class S, class W>
struct encode {
  const S* embeddings;
  u64 rows;
  const W* w1;
  const float* b1;
  const W* w2;
  const float* b2;
  float *mu, *logvar;  // [rows, latent]
  float* z;            // the same, samples of `noise`; null: not wanted
  params::noise noise;
  u32 dim, hidden, latent;
  u32 unused;
};
static_assert(sizeof(encode<float, float>) == 112);

/// What the copy engine knows of a matrix: a CUtensorMap, made by the driver on the host.
struct __align__(128) tensor_map {
  u64 opaque[16];
};
static_assert(sizeof(tensor_map) == 128);

/// encode_tma_*: `of`, and maps of its embeddings and of W1.
template <class S, class W>
struct encode_tma {
  tensor_map embeddings, w1;
  encode<S, W> of;
  u64 unused[2];
};
static_assert(sizeof(encode_tma<float, float>) == 384);

/// decode_*: W1 [hidden, latent], W2 [dim, hidden], out [count, dim], by slices of `columns` columns.
template <class S, class W>
struct decode {
  latents source;
  u64 count;
  const W* w1;
  const float* b1;
  const W* w2;
  const float* b2;
  params::seeds seeds;
  S* out;
  u32 dim, hidden, latent, columns;
};
static_assert(sizeof(decode<float, float>) == 144);

/// score_*: embeddings [rows, dim], W1 [width, dim].
template <class S, class W>
struct score {
  const S* embeddings;
  u64 rows;
  const W* w1;
  const float *b1, *w2;
  float* out;  // rewards [rows], or null
  float* pre;  // pre-activations [rows, width], or null
  u32 dim, width;
  float b2;
  u32 unused;
};
static_assert(sizeof(score<float, float>) == 72);

/// score_wgmma_*: `of`, and maps of its embeddings and of W1.
template <class S, class W>
struct score_wgmma {
  tensor_map embeddings, w1;
  score<S, W> of;
  u64 unused[7];
};
static_assert(sizeof(score_wgmma<float, float>) == 384);

/// score_latents_*: W1 [hidden, latent], folded [width, hidden], out [count].
template <class W>
struct score_latents {
  latents source;
  u64 count;
  const W* w1;
  const float* b1;
  const W* folded;
  const float *folded_bias, *w2;
  const float* base_pre;  // residual: pre-activations of the seeds, [seeds, width]; null: plain
  const float* base_mu;   // and their means, [seeds, latent]
  float* out;
  u32 latent, hidden, width;
  float b2;
};
static_assert(sizeof(score_latents<float>) == 144);

/// select_f32.
struct select {
  const float *mu, *logvar;  // [rows, latent]
  u32* out;                  // [rows, keep]
  u64 rows;
  params::noise noise;
  u32 latent, keep, drawn;
  u32 likelihood;  // a number of perturb::likelihood
  u32 mean;        // 1: candidates start from mu, not from a sample
  u32 unused;
};
static_assert(sizeof(select) == 80);

/// start_f32: all arrays [rows, latent].
struct start {
  const float *mu, *logvar;
  float* out;
  u64 rows;
  params::noise noise;
  u32 latent;
  u32 unused;
};
static_assert(sizeof(start) == 64);

/// perturb_f32.
struct perturb {
  const float* starts;   // [rows, latent]
  const uint2* samples;  // [count]
  float* out;            // [count, latent]
  u64 count;
  params::noise noise;
  u32 latent;
  u32 unused;
};
static_assert(sizeof(perturb) == 64);

/// pick_rows.
struct pick_rows {
  const u16* from;
  const u32* index;  // [count]
  u16* out;
  u64 count;
  u32 row_bytes;
  u32 unused;
};
static_assert(sizeof(pick_rows) == 40);

/// find_non_finite_*.
template <class S>
struct find_non_finite {
  const S* values;
  unsigned long long* first;
  u64 count;
};
static_assert(sizeof(find_non_finite<float>) == 24);

/// floor_*.
struct floor {
  const void* from;
  void* out;
  u64 n;  // words of 16 bytes, or rounds of products
};
static_assert(sizeof(floor) == 24);

/// A training step, in memory: the host writes a table of them, and kernels read the one that runs.
struct step {
  u32 first;           // place of its first pair in the order of the epoch
  u32 pairs;           // at most the batch size
  u32 wide;            // reward: rows below have embeddings, the others are folded
  u32 candidate;       // candidate number of its noise: VAE the epoch, reward the steps before
  float rate;          // Adam: learning rate over the first bias correction
  float inverse_root;  // Adam: one over the root of the second
};
static_assert(sizeof(step) == 24);

/// end_step, and the end of adam_f32.
struct end_step {
  const double* losses;  // [terms, count]
  double* totals;        // [terms]
  const step* table;
  u32* turn;
  step* now;
  u32 count, terms;
};
static_assert(sizeof(end_step) == 48);

/// adam_f32: flat arrays [n].
struct adam {
  float* w;
  const float* g;
  float *m, *v;
  end_step end;
  u32* ticket;  // a zero
  u64 n;
  float beta1, keep1, beta2, keep2;  // keep = 1 - beta, from F64
  float eps;
  float decay;  // 1 without weight decay
};
static_assert(sizeof(adam) == 120);

/// product_*: out [m, n] = op(a) op(b), each dense, row-major with rows `lda`, `ldb`, `ldo` values apart.
struct product {
  const float* a;
  const float* b;
  float* out;
  const float* bias;  // [n], or null
  const float* mask;  // as out: where not positive, the result is 0; or null
  const u32* limit;   // rows of the batch that count, or null: m in nt and nn, k in tn; beyond, results are 0
  const float* c;     // nt: c [m, l] d [n, l] is the last slice, or null
  const float* d;
  float* sums;     // tn: [m], sums of a's columns by blocks of their own, or null
  float* partial;  // with several slices: room for them, [slices, m, ldo]
  u32* tickets;    // and a zero for each tile
  u32 m, n, k, l, lda, ldb, ldo;
  u32 relu;    // 1: the result goes through it
  u32 add;     // 1: added to what out holds
  u32 slices;  // that of c d^T among them
};
static_assert(sizeof(product) == 128);

/// product_tn_*: products of one launch. Those behind the last have no blocks.
struct products {
  product of[4];
  u32 blocks[4];  // of each: a row of tiles of column sums, then tiles by slices
};
static_assert(sizeof(products) == 528);

/// Where rows of a batch come from.
struct sources {
  const void* rows[4];  // embeddings [n, dim] of each part, or null
  u32 dtype[4];         // their storage types, as read_typed has them
};
static_assert(sizeof(sources) == 48);

/// gather_pairs: x [2 batch, dim].
struct gather_pairs {
  sources from;
  const u32* order;
  const step* now;
  const float *mean, *std;
  float* x;
  u32 dim, batch;
};
static_assert(sizeof(gather_pairs) == 96);

/// gather_rows: x [2 batch, dim].
struct gather_rows {
  sources from;
  const uint4* rows;
  const step* now;
  const float *mean, *std;
  float* x;
  u64 seed;
  u32 dim, batch;
  float noise;  // standard deviation, or 0
  u32 unused;
};
static_assert(sizeof(gather_rows) == 112);

/// vae_codes.
struct vae_codes {
  const float* code;
  const u32* order;
  const step* now;
  float *eps, *z, *dcode;
  double* losses;
  u64 seed;
  double beta, gamma, w2_eps;
  u32 batch, latent;
  u32 squared;  // 1: W2 squared in place of its root
  u32 unused;
};
static_assert(sizeof(vae_codes) == 104);

/// vae_reconstruct.
struct vae_reconstruct {
  float* out;
  const float *bias, *x;
  const step* now;
  double* losses;
  double scale;
  u32 batch, dim;
};
static_assert(sizeof(vae_reconstruct) == 56);

/// vae_through_sample.
struct vae_through_sample {
  const float *code, *eps, *dz;
  float* dcode;
  u32 rows, latent;
};
static_assert(sizeof(vae_through_sample) == 40);

/// The samples of both sides.
struct samples {
  const float* z[2];     // latents [count, latent], or null
  const u32* owners[2];  // the seed of each
  const float* mu[2];    // means of the seeds, where residual, or null
};
static_assert(sizeof(samples) == 48);

/// reward_hidden.
struct reward_hidden {
  samples of;
  const uint4* rows;
  const step* now;
  const float *w1, *b1;
  float* out;
  u32 batch, hidden, latent;
  u32 unused;
};
static_assert(sizeof(reward_hidden) == 104);

/// reward_head.
struct reward_head {
  const float* act;
  const float *w2, *b2;  // null: linear heads
  float* reward;
  const uint2* slots;
  const step* now;
  float* slope;
  float* db2;  // or null
  double* losses;
  u32* tickets;  // a zero for each head
  u32 batch, heads, units;
  u32 unused;
};
static_assert(sizeof(reward_head) == 96);

/// reward_backward.
struct reward_backward {
  const float *act, *slope;
  const float* w2;  // null, as is dw2: linear heads
  float *dpre, *db1, *dw2;
  u32 rows, width, units;
  u32 unused;
};
static_assert(sizeof(reward_backward) == 64);

}  // namespace params
