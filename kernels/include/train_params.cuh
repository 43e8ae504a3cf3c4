// The parameters of training's kernels, as params.cuh has those of the others.
#pragma once
#include "params.cuh"

namespace params {

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
  u32 stretch;  // columns of a row whose errors are added first, those of a slice of the product behind
  u32 unused;
};
static_assert(sizeof(vae_reconstruct) == 64);

/// vae_through_sample.
struct vae_through_sample {
  const float *code, *eps, *dz;
  float* dcode;
  u32 rows, latent;
};
static_assert(sizeof(vae_through_sample) == 40);

/// vae_epoch_*: all steps of an epoch. Layers in the order encoder, decoder; rows = 2 batch.
struct vae_epoch {
  sources from;
  const u32* order;
  const step* steps;  // [count]
  const float *mean, *std;
  float *w, *m, *v;  // parameters and moments, flat
  float* x;          // two batches, [2, rows, dim]
  float* partial;    // [slices, rows, hidden]
  float *encoder_hidden, *decoder_hidden;        // [rows, hidden]
  float *encoder_dhidden, *decoder_dhidden;      // their gradients
  float *code, *dcode;                           // [rows, 2 latent]
  float *eps, *z;                                // [rows, latent]
  float* out;                                    // gradient of the reconstruction, [rows, dim]
  double* errors;                                // [slices, rows], of reconstruction
  double* losses;                                // [4, batch]
  double* totals;                                // [4]
  u32* arrived;                                  // a zero
  u64 seed;
  double beta, gamma, w2_eps, scale;
  u32 weight[4], bias[4];  // of each layer: where it starts in w, m and v
  u32 row_slices[4];       // slices of its gradient's sums over rows
  u32 slices, deep;        // of sums over dim, and the length of each
  u32 count;               // steps
  u32 batch, dim, hidden, latent;
  u32 squared;  // 1: W2 squared in place of its root
  u32 scratch;  // bytes of shared memory between operands and moments
  float beta1, keep1, beta2, keep2;
  float adam_eps, decay;
  u32 unused;
};
static_assert(sizeof(vae_epoch) == 376);

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
