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

/// Both halves of a VAE over rows of embeddings [rows, dim] of a type as in read_typed: the encoder's
/// W1 [hidden, dim], W2 [2 latent, hidden], the decoder's W3 [hidden, latent], W4 [dim, hidden].
template <class W>
struct autoencoder {
  const void* embeddings;
  u64 rows;
  const W* w1;
  const float* b1;
  const W* w2;
  const float* b2;
  const W* w3;
  const float* b3;
  const W* w4;
  const float* b4;
  params::noise noise;
  u32 dim, hidden, latent, dtype;
  u32 mean;  // 1: what is decoded starts from mu, not from a sample
  u32 unused;
};
static_assert(sizeof(autoencoder<float>) == 128);

/// synthesize_*: out [rows, keep, dim].
template <class S, class W>
struct synthesize {
  autoencoder<W> of;
  S* out;
  u32* candidates;  // [rows, keep]
  u32 keep, drawn;
  u32 likelihood;  // a number of ranking::likelihood
  u32 residual;    // 1: seeds are added
};
static_assert(sizeof(synthesize<float, float>) == 160);

/// reconstruct_*: codes, and squared errors and squares of standardised rows.
template <class W>
struct reconstruct {
  autoencoder<W> of;
  const float *mean, *scale;  // what is taken from each dimension, and what it is then times, [dim]
  float *mu, *logvar;         // [rows, latent]
  float* out;                 // [rows, 2]
};
static_assert(sizeof(reconstruct<float>) == 168);

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
  u32 relu;  // 1: `pre` gets their ReLU
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

/// layer_*: x [rows, depth], W [outputs, depth], out [rows, outputs].
template <class T, class W>
struct layer {
  const float* x;
  u64 rows;
  const W* w;
  const float* bias;  // or null
  T* out;
  latents source;       // where there are seeds: the owners of rows
  params::seeds seeds;  // embeddings that sums start from in place of the bias, or null
  u32 depth, outputs;
  u32 relu;  // 1: out gets the ReLU of sums
  u32 unused;
};
static_assert(sizeof(layer<float, float>) == 136);

/// subtract_rows: out and of, `width` wide.
struct subtract_rows {
  float* out;  // [rows, width]
  const float* of;
  latents source;  // the owners of rows
  u64 rows;
  u32 width;
  u32 unused;
};
static_assert(sizeof(subtract_rows) == 88);

/// head_f32.
struct head {
  const float *pre, *w2;  // [rows, width], [width]
  float* out;             // [rows]
  u64 rows;
  u32 width;
  float b2;
};
static_assert(sizeof(head) == 40);

/// select_f32.
struct select {
  const float *mu, *logvar;  // [rows, latent]
  u32* out;                  // [rows, keep]
  u64 rows;
  params::noise noise;
  u32 latent, keep, drawn;
  u32 likelihood;  // a number of ranking::likelihood
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

}  // namespace params
