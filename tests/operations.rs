//! The CPU and the CUDA backend (its kernels in the machine for PTX) against the F64 reference over shapes, storage types
//! and options; and what no bound excuses: a row's bits must not depend on its neighbours, on how rows are cut into calls
//! or files, on the thread count or on the device.

mod common;

#[cfg(target_os = "linux")]
use common::device::{Races, Schedule, Simulated, cuda, precisions, simulated};
use common::{
    Bound, Budgeted, LAMBDA, U, Worst, assert_same_bits, data, data_buf, indices, normals, operand_roundoff,
    poisoned, standardizer, wide, widened,
};
use half::{bf16, f16};
use lensmith::backend::cpu::Cpu;
use lensmith::backend::reference::Reference;
use lensmith::backend::{
    Adam, Backend, Divergence, LatentSource, Likelihood, NoiseKey, PairData, PairRows, Perturbation,
    PosteriorsHost, Precision, Reduction, Residual, RewardData, RewardObjective, RewardSide, Sample,
    Synthetic, SyntheticPath, VaeLoss, VaeObjective,
};
use lensmith::dtype::Dtype;
use lensmith::matrix::{Matrix, RowSet, Rows, RowsBuf};
use lensmith::model::{FoldedReward, Head, Linear, RewardModel, RewardSize, Standardizer, Vae, VaeSize};
use lensmith::noise::{NoiseCounter, Purpose, Side, fill_normals};
use lensmith::simd::Isa;

const ROWS: [usize; 13] = [1, 2, 3, 7, 8, 9, 15, 16, 17, 63, 64, 65, 200];
const DIMS: [usize; 9] = [1, 5, 31, 32, 33, 64, 100, 257, 1000];
/// Kinds and numbers of heads of reward models in training.
const HEADS: [(Head, usize); 5] =
    [(Head::Mlp, 1), (Head::Mlp, 3), (Head::Mlp, 1), (Head::Linear, 1), (Head::Linear, 35)];
const HIDDEN: [usize; 5] = [16, 32, 48, 64, 80];
const LATENT: [usize; 3] = [16, 32, 48];

fn cpu(threads: usize) -> Cpu {
    Cpu::new(threads, Precision::F32).expect("the CPU backend")
}

/// BF16 products of either kind, of pairs of values and of matrices, each at the fastest level that has them.
fn cpus_in_bf16() -> [Cpu; 2] {
    [false, true].map(|matrix| {
        let level = Isa::available().into_iter().find(|level| level.has_amx() == matrix);
        let cpu = Cpu::with_isa(2, Precision::Bf16, level.expect("a level of either kind"));
        cpu.expect("the CPU backend")
    })
}

/// One shape of the inference sweep.
#[derive(Clone, Copy, Debug)]
struct Shape {
    rows: usize,
    size: VaeSize,
    stored: Dtype,
    out: Dtype,
    seed: u64,
}

/// Every number of rows with every d, the other sizes and the dtypes in turn; then every pair of hidden and latent
/// size with every pair of dtypes.
fn shapes() -> Vec<Shape> {
    let mut shapes = Vec::new();
    let mut add = |rows, dim, hidden, latent, stored, out| {
        let size = VaeSize::new(dim, hidden, latent).expect("sizes");
        shapes.push(Shape { rows, size, stored, out, seed: shapes.len() as u64 });
    };
    for (i, &rows) in ROWS.iter().enumerate() {
        for (j, &dim) in DIMS.iter().enumerate() {
            let (hidden, latent) = (HIDDEN[(i + j) % 5], LATENT[(i + 2 * j) % 3]);
            add(rows, dim, hidden, latent, Dtype::ALL[(i + j) % 3], Dtype::ALL[(i + j / 3) % 3]);
        }
    }
    for hidden in HIDDEN {
        for latent in LATENT {
            for stored in Dtype::ALL {
                for out in Dtype::ALL {
                    add(17, 33, hidden, latent, stored, out);
                }
            }
        }
    }
    shapes
}

fn set(buf: &RowsBuf) -> RowSet<'_> {
    buf.view().into()
}

fn posteriors_of<B: Backend>(b: &B, vae: &Vae, rows: &RowsBuf) -> PosteriorsHost {
    let (vae, rows) = (b.load_vae(vae).expect("loads"), b.embeddings(set(rows)).expect("uploads"));
    b.posteriors(&b.encode(&vae, &rows).expect("encodes")).expect("downloads")
}

/// Decodes `z` whose rows are `owners` into `dtype`, as F32.
fn decoded<B: Backend>(
    b: &B,
    vae: &Vae,
    rows: &RowsBuf,
    (z, owners): (&Matrix, &[u32]),
    residual: bool,
    dtype: Dtype,
) -> Vec<f32> {
    let (vae, embeddings) = (b.load_vae(vae).expect("loads"), b.embeddings(set(rows)).expect("uploads"));
    let posteriors = b.encode(&vae, &embeddings).expect("encodes");
    let latents = b.load_latents(z, owners).expect("uploads");
    let residual = residual.then_some(Residual { embeddings: &embeddings, posteriors: &posteriors });
    let mut out = poisoned(dtype, z.rows, rows.cols());
    b.decode(&vae, &latents, residual, out.values_mut()).expect("decodes");
    widened(&out)
}

fn scored<B: Backend>(b: &B, model: &RewardModel, rows: &RowsBuf) -> Vec<f32> {
    let (model, embeddings) =
        (b.load_reward(model).expect("loads"), b.embeddings(set(rows)).expect("uploads"));
    let mut out = vec![f32::NAN; rows.rows()];
    b.score(&model, &embeddings, &mut out).expect("scores");
    out
}

/// Rewards of latents by the folded algebra, and the same by decoding and scoring in F64.
fn scored_latents<B: Backend>(
    b: &B,
    folded: &FoldedReward,
    rows: &RowsBuf,
    (z, owners): (&Matrix, &[u32]),
    residual: bool,
) -> Vec<f32> {
    let vae = b.load_vae(&folded.vae).expect("loads");
    let embeddings = b.embeddings(set(rows)).expect("uploads");
    let posteriors = b.encode(&vae, &embeddings).expect("encodes");
    let latents = b.load_latents(z, owners).expect("uploads");
    let residual = residual.then_some(Residual { embeddings: &embeddings, posteriors: &posteriors });
    let mut out = vec![f32::NAN; z.rows];
    let folded = b.load_folded(folded).expect("loads");
    b.score_latents(&folded, &latents, residual, &mut out).expect("scores");
    out
}

#[test]
fn encode_decode_and_score_over_shapes() {
    over_shapes(&cpu(2), Precision::F32, &shapes());
    for cpu in cpus_in_bf16() {
        over_shapes(&cpu, Precision::Bf16, &shapes());
    }
}

#[test]
fn nan_stays_in_its_row() {
    let [pairs, matrices] = cpus_in_bf16();
    for b in [cpu(2), pairs, matrices] {
        // Hidden layers that do not fill their last lane, or are wider than a mask has bits.
        [16, 48, 64, 80].into_iter().for_each(|hidden| nan_makes_its_row_nan(&b, hidden));
    }
}

#[cfg(target_os = "linux")]
#[test]
fn cuda_keeps_nan_in_its_row() {
    for &precision in precisions() {
        [48, 64].into_iter().for_each(|hidden| nan_makes_its_row_nan(&cuda(precision), hidden));
    }
}

/// A latent that is not a number makes its own row so, and no other.
fn nan_makes_its_row_nan<B: Backend>(b: &B, hidden: usize) {
    let size = VaeSize::new(100, hidden, 16).expect("sizes");
    let (vae, model) = (Vae::init(size, 3), RewardModel::init(RewardSize::new(100, 48).expect("sizes"), 4));
    let folded = FoldedReward::new(&vae, &model).expect("one dimension");
    let embeddings = data_buf(Dtype::Bf16, 5, 4, 100);
    let owners = [0, 1, 2, 3];
    let mut z = Matrix::new(normals(6, 7, 4 * 16), 4, 16).expect("a matrix");
    let clean = z.clone();
    z.values[2 * 16 + 5] = f32::NAN;
    for with_base in [false, true] {
        let rows = |z: &Matrix| decoded(b, &vae, &embeddings, (z, &owners), with_base, Dtype::F32);
        let scores = |z: &Matrix| scored_latents(b, &folded, &embeddings, (z, &owners), with_base);
        for (got, want, width) in [(rows(&z), rows(&clean), 100), (scores(&z), scores(&clean), 1)] {
            for (row, (got, want)) in got.chunks_exact(width).zip(want.chunks_exact(width)).enumerate() {
                let what = format!("{}, hidden {hidden}, {with_base}, row {row}", b.arithmetic());
                match row {
                    2 => assert!(got.iter().all(|v| v.is_nan()), "{what}: {got:?}"),
                    _ => assert_same_bits(&what, got, want),
                }
            }
        }
    }
}

#[cfg(target_os = "linux")]
#[test]
fn cuda_encodes_decodes_and_scores_over_shapes() {
    // Every shape with at most 65 rows would take minutes in the machine for PTX.
    let mut some: Vec<Shape> =
        shapes().into_iter().filter(|s| s.rows * s.size.dim <= 6500).step_by(3).collect();
    assert!(some.len() > 40, "{}", some.len());
    // Wider than what the kernels of any architecture take at a time.
    let size = VaeSize::new(72, 272, 16).expect("sizes");
    some.extend(Dtype::ALL.map(|stored| Shape { rows: 67, size, stored, out: stored, seed: 7 }));
    precisions().iter().for_each(|&precision| over_shapes(&cuda(precision), precision, &some));
}

fn over_shapes<B: Backend>(b: &B, precision: Precision, shapes: &[Shape]) {
    let reference = Reference::new();
    let mut folded_score = Worst::default();
    let (mut encode, mut score) = (Worst::default(), Worst::default());
    // One for each dtype of the output: rounding to the short ones would hide the rest.
    let (mut plain, mut residual): ([Worst; 3], [Worst; 3]) = Default::default();
    for &shape in shapes {
        let Shape { rows, size, stored, out, seed } = shape;
        let what = format!("{shape:?}");
        let vae = Vae::init(size, seed);
        let embeddings = data_buf(stored, seed, rows, size.dim);
        let values = widened(&embeddings);
        let codes: Vec<Budgeted> = values
            .chunks_exact(size.dim)
            .map(|x| Budgeted::entering(x, precision).mlp(&vae.encoder))
            .collect();

        let (got, want) = (posteriors_of(b, &vae, &embeddings), posteriors_of(&reference, &vae, &embeddings));
        for (r, code) in codes.iter().enumerate() {
            let budget = code.rounded(Dtype::F32);
            let (mu, logvar) = budget.split_at(size.latent);
            encode.check(&what, got.mu.row(r), &wide(want.mu.row(r)), Bound::Given(mu));
            encode.check(&what, got.logvar.row(r), &wide(want.logvar.row(r)), Bound::Given(logvar));
        }

        // More latents than rows, in no order.
        let count = rows + 3;
        let owners = indices(seed, count, rows);
        let z = Matrix::new(normals(seed, 7, count * size.latent), count, size.latent).expect("a matrix");
        for with_base in [false, true] {
            let got = decoded(b, &vae, &embeddings, (&z, &owners), with_base, out);
            let want = decoded(&reference, &vae, &embeddings, (&z, &owners), with_base, Dtype::F32);
            for (j, &owner) in owners.iter().enumerate() {
                let mut made = Budgeted::entering(z.row(j), precision).mlp(&vae.decoder);
                if with_base {
                    let code = &codes[owner as usize];
                    let mean = code.first(size.latent).mlp(&vae.decoder);
                    for k in 0..size.dim {
                        let base = f64::from(values[owner as usize * size.dim + k]);
                        // Two more additions, whose intermediate results are no larger than this sum.
                        let large = base.abs() + made.value[k].abs() + mean.value[k].abs();
                        made.error[k] += mean.error[k] + 2.0 * U * large;
                        made.value[k] += base - mean.value[k];
                    }
                }
                let at = j * size.dim..(j + 1) * size.dim;
                let worst = if with_base { &mut residual } else { &mut plain };
                let worst = &mut worst[out as usize];
                let budget = made.rounded(out);
                worst.check(&what, &got[at.clone()], &wide(&want[at]), Bound::Given(&budget));
            }
        }

        let model = RewardModel::init(RewardSize::new(size.dim, size.hidden).expect("sizes"), seed);
        let budget: Vec<f64> = values
            .chunks_exact(size.dim)
            .map(|x| Budgeted::entering(x, precision).mlp(&model.layers).rounded(Dtype::F32)[0])
            .collect();
        let want = wide(&scored(&reference, &model, &embeddings));
        score.check(&what, &scored(b, &model, &embeddings), &want, Bound::Given(&budget));

        let folded = FoldedReward::new(&vae, &model).expect("one dimension");
        for with_base in [false, true] {
            let got = scored_latents(b, &folded, &embeddings, (&z, &owners), with_base);
            let want = scored_latents(&reference, &folded, &embeddings, (&z, &owners), with_base);
            let budget: Vec<f64> = owners
                .iter()
                .enumerate()
                .map(|(j, &owner)| {
                    let row = &values[owner as usize * size.dim..][..size.dim];
                    let base = with_base.then(|| (row, &codes[owner as usize]));
                    folded_budget(&folded, precision, z.row(j), base)
                })
                .collect();
            folded_score.check(&what, &got, &wide(&want), Bound::Given(&budget));
        }
    }
    folded_score.report("score of latents");
    encode.report("encode");
    for (i, dtype) in Dtype::ALL.into_iter().enumerate() {
        plain[i].report(&format!("decode to {dtype}"));
        residual[i].report(&format!("decode to {dtype}, residual"));
    }
    score.report("score");
}

/// How far the folded score of a latent may be off; `base` is the seed's embedding and its code.
fn folded_budget(
    folded: &FoldedReward,
    precision: Precision,
    z: &[f32],
    base: Option<(&[f32], &Budgeted)>,
) -> f64 {
    let mut hidden = Budgeted::entering(z, precision).linear(folded.decoder()).relu();
    let mut start = None;
    if let Some((row, code)) = base {
        let mean = code.first(z.len()).linear(folded.decoder()).relu();
        for (k, (value, error)) in hidden.value.iter_mut().zip(&mut hidden.error).enumerate() {
            *error += mean.error[k] + U * (value.abs() + mean.value[k].abs());
            *value -= mean.value[k];
        }
        start = Some(Budgeted::entering(row, precision).linear(&folded.reward.layers[0]));
    }
    let mut pre = hidden.linear(&folded.folded);
    // Folded weights and biases are rounded once.
    for (error, (row, bias)) in pre
        .error
        .iter_mut()
        .zip(folded.folded.weight.chunks_exact(folded.folded.inputs).zip(&folded.folded.bias))
    {
        let size: f64 = row.iter().zip(&hidden.value).map(|(&w, h)| (f64::from(w) * h).abs()).sum();
        *error += U * (size + f64::from(bias.abs()));
    }
    if let Some(start) = start {
        for (i, bias) in folded.folded.bias.iter().enumerate() {
            pre.value[i] += start.value[i] - f64::from(*bias);
            pre.error[i] += start.error[i] + LAMBDA * U * start.value[i].abs();
        }
    }
    pre.relu().linear(&folded.reward.layers[1]).rounded(Dtype::F32)[0]
}

/// The log-likelihood of a candidate up to what all candidates of a row share, and how far F32 may be off.
fn likelihood(p: &Candidates, row: usize, candidate: u32, likelihood: Likelihood) -> (f64, f64) {
    let z = p.latent(row, candidate);
    let (mu, logvar) = (p.host.mu.row(row), p.host.logvar.row(row));
    let (mut sum, mut error) = (0.0, 0.0);
    for j in 0..mu.len() {
        let (mu, logvar) = (f64::from(mu[j]), f64::from(logvar[j]));
        // Posterior: the distance from the mean, whose own error is common to both ends; but the scale's is not.
        let (center, scale) = match likelihood {
            Likelihood::Posterior => (mu, (-logvar / 2.0).exp()),
            _ => (0.0, 1.0),
        };
        let distance = (z.value[j] - center) * scale;
        let off = (z.error[j] + 4.0 * U * (z.value[j].abs() + center.abs())) * scale
            + distance.abs() * (8.0 * U + p.logvar_error[row][j]);
        sum += distance * distance;
        error += 2.0 * distance.abs() * off + off * off;
    }
    let summing = LAMBDA * U * (mu.len() as f64).sqrt() * sum;
    (-0.5 * sum, 0.5 * (error + summing))
}

/// What the latents of a block should be.
struct Candidates {
    host: PosteriorsHost,
    mu_error: Vec<Vec<f64>>,
    logvar_error: Vec<Vec<f64>>,
    origin: NoiseKey,
    how: Perturbation,
}

impl Candidates {
    fn noise(&self, purpose: Purpose, row: usize, candidate: u32) -> Vec<f32> {
        let mut out = vec![0f32; self.host.mu.cols];
        let row = self.origin.first_row + row as u64;
        fill_normals(
            self.origin.seed,
            NoiseCounter { purpose, side: self.origin.side, row, candidate },
            &mut out,
        );
        out
    }

    /// z' and how far F32 may be off.
    fn latent(&self, row: usize, candidate: u32) -> Budgeted {
        let eps = self.noise(Purpose::Posterior, row, 0);
        let eta = self.noise(Purpose::Perturb, row, candidate);
        let sigma = f64::from(self.how.sigma());
        let mut out = Budgeted { value: Vec::new(), error: Vec::new(), operand: 0.0 };
        for j in 0..eps.len() {
            let mu = f64::from(self.host.mu.row(row)[j]);
            let mut sample = 0.0;
            if self.how.source == LatentSource::Sample {
                sample = (f64::from(self.host.logvar.row(row)[j]) / 2.0).exp() * f64::from(eps[j]);
            }
            let noise = sigma * f64::from(eta[j]);
            out.value.push(mu + sample + noise);
            // Roundings of exp, root, products and sums; and the posteriors' own.
            let rounding = 4.0 * U * (mu.abs() + sample.abs() + noise.abs());
            let posterior = self.mu_error[row][j] + 0.5 * sample.abs() * self.logvar_error[row][j];
            out.error.push(rounding + posterior);
        }
        out
    }
}

fn origin() -> NoiseKey {
    NoiseKey { seed: 0x1234_5678_9abc_def0, side: Side::Rejected, first_row: (1 << 33) + 5 }
}

fn candidates_of(vae: &Vae, rows: &RowsBuf, how: Perturbation) -> Candidates {
    let host = posteriors_of(&Reference::new(), vae, rows);
    let latent = vae.size().latent;
    let codes = widened(rows);
    let budgets = codes.chunks_exact(vae.size().dim).map(|x| Budgeted::exact(x).mlp(&vae.encoder));
    let (mu_error, logvar_error) = budgets
        .map(|code| {
            let mut mu = code.rounded(Dtype::F32);
            let logvar = mu.split_off(latent);
            (mu, logvar)
        })
        .unzip();
    Candidates { host, mu_error, logvar_error, origin: origin(), how }
}

fn selected<B: Backend>(b: &B, vae: &Vae, rows: &RowsBuf, how: &Perturbation) -> Vec<u32> {
    let (vae, rows) = (b.load_vae(vae).expect("loads"), b.embeddings(set(rows)).expect("uploads"));
    let posteriors = b.encode(&vae, &rows).expect("encodes");
    let selection = b.select(&posteriors, origin(), how).expect("selects");
    assert_eq!(selection.top_k, how.top_k as usize);
    selection.candidates
}

#[test]
fn select_takes_the_same_candidates() {
    let (cpu, reference) = (cpu(2), Reference::new());
    let (mut places, mut excused) = (0, 0);
    for (i, keep) in [1, 2, 5, 31, 256].into_iter().enumerate() {
        for (j, oversample) in [1, 4, 7].into_iter().enumerate() {
            for source in [LatentSource::Sample, LatentSource::Mean] {
                let latent = LATENT[(i + j) % 3];
                let vae = Vae::init(VaeSize::new(37, 32, latent).expect("sizes"), 11);
                let rows = data_buf(Dtype::ALL[j], 12, 19, 37);
                for kind in [Likelihood::Posterior, Likelihood::Prior, Likelihood::None] {
                    let how =
                        Perturbation { sigma2: 0.01, top_k: keep, oversample, likelihood: kind, source };
                    let got = selected(&cpu, &vae, &rows, &how);
                    let want = selected(&reference, &vae, &rows, &how);
                    assert_eq!((got.len(), want.len()), (19 * keep as usize, 19 * keep as usize));
                    if kind == Likelihood::None {
                        assert_eq!(got, (0..19).flat_map(|_| 0..keep).collect::<Vec<_>>());
                        assert_eq!(got, want);
                        continue;
                    }
                    let p = candidates_of(&vae, &rows, how);
                    let rows = got.chunks_exact(keep as usize).zip(want.chunks_exact(keep as usize));
                    for (row, (got, want)) in rows.enumerate() {
                        let mut once = got.to_vec();
                        once.sort_unstable();
                        once.dedup();
                        assert_eq!(once.len(), got.len(), "row {row} of {how:?}: a candidate twice");
                        assert!(got.iter().all(|&c| c < how.drawn()), "row {row} of {how:?}");
                        for (&g, &w) in got.iter().zip(want) {
                            places += 1;
                            if g == w {
                                continue;
                            }
                            // Another candidate in this place: only where rounding could swap the two.
                            excused += 1;
                            let (a, b) = (likelihood(&p, row, g, kind), likelihood(&p, row, w, kind));
                            let within = (a.0 - b.0).abs() <= a.1 + b.1;
                            assert!(within, "row {row} of {how:?}: {g} {a:?} in place of {w} {b:?}");
                        }
                    }
                }
            }
        }
    }
    println!("select: {places} places, {excused} differ within rounding");
    // A thousandth would mean that the budget hides mistakes.
    assert!(places > 10_000 && excused * 1000 <= places, "{excused} of {places}");
}

#[test]
fn select_breaks_ties_by_the_lower_candidate() {
    // Without noise every candidate is the same.
    let vae = Vae::init(VaeSize::new(20, 16, 16).expect("sizes"), 3);
    let rows = data_buf(Dtype::F32, 4, 9, 20);
    for likelihood in [Likelihood::Posterior, Likelihood::Prior, Likelihood::None] {
        for source in [LatentSource::Sample, LatentSource::Mean] {
            let how = Perturbation { sigma2: 0.0, top_k: 5, oversample: 7, likelihood, source };
            let expected: Vec<u32> = (0..9).flat_map(|_| 0..5).collect();
            assert_eq!(selected(&cpu(1), &vae, &rows, &how), expected);
            assert_eq!(selected(&Reference::new(), &vae, &rows, &how), expected);
        }
    }
}

fn perturbed<B: Backend>(
    b: &B,
    vae: &Vae,
    rows: &RowsBuf,
    how: &Perturbation,
    samples: &[Sample],
) -> Vec<f32> {
    let (vae, rows) = (b.load_vae(vae).expect("loads"), b.embeddings(set(rows)).expect("uploads"));
    let posteriors = b.encode(&vae, &rows).expect("encodes");
    let latents = b.perturb(&posteriors, origin(), how, samples).expect("perturbs");
    b.latents(&latents).expect("downloads").values
}

#[test]
fn perturb_over_shapes() {
    let (cpu, reference) = (cpu(2), Reference::new());
    let mut worst = Worst::default();
    for (i, &count) in ROWS.iter().enumerate() {
        for source in [LatentSource::Sample, LatentSource::Mean] {
            for sigma2 in [0.01, 1.0] {
                let latent = LATENT[i % 3];
                let vae = Vae::init(VaeSize::new(33, HIDDEN[i % 5], latent).expect("sizes"), i as u64);
                let rows = data_buf(Dtype::ALL[i % 3], i as u64, count, 33);
                let likelihood = Likelihood::Posterior;
                let how = Perturbation { sigma2, top_k: 3, oversample: 2, likelihood, source };
                // In no order; candidates need not be below the number drawn.
                let candidates = indices(1, 3 * count, 1000);
                let samples: Vec<Sample> = indices(2, 3 * count, count)
                    .iter()
                    .zip(candidates)
                    .map(|(&row, candidate)| Sample { row, candidate })
                    .collect();
                let got = perturbed(&cpu, &vae, &rows, &how, &samples);
                let want = perturbed(&reference, &vae, &rows, &how, &samples);
                let p = candidates_of(&vae, &rows, how);
                for (j, sample) in samples.iter().enumerate() {
                    let truth = p.latent(sample.row as usize, sample.candidate);
                    let budget = truth.rounded(Dtype::F32);
                    let at = j * latent..(j + 1) * latent;
                    let what = format!("{count} rows, {source:?}, {sample:?}");
                    worst.check(&what, &got[at.clone()], &truth.value, Bound::Given(&budget));
                    worst.check(&what, &want[at], &truth.value, Bound::Given(&budget));
                }
            }
        }
    }
    worst.report("perturb");
}

/// Everything that inference makes of one block of rows.
#[derive(Default)]
struct Made {
    mu: Vec<f32>,
    logvar: Vec<f32>,
    selected: Vec<u32>,
    latents: Vec<f32>,
    plain: Vec<f32>,
    residual: Vec<f32>,
    /// Scores of latents, plain and residual.
    folded: [Vec<f32>; 2],
    /// Posterior samples.
    starts: Vec<f32>,
    scores: Vec<f32>,
}

impl Made {
    /// Takes the rows from `first_row` on through the whole of inference and appends what comes out.
    fn add<B: Backend>(
        &mut self,
        b: &B,
        vae: &Vae,
        reward: &RewardModel,
        rows: RowSet<'_>,
        first_row: usize,
    ) {
        let folded = b.load_folded(&FoldedReward::new(vae, reward).expect("one dimension")).expect("loads");
        let (vae, reward) = (b.load_vae(vae).expect("loads"), b.load_reward(reward).expect("loads"));
        let (count, dim) = (rows.rows(), rows.cols());
        let rows = b.embeddings(rows).expect("uploads");
        let posteriors = b.encode(&vae, &rows).expect("encodes");
        let host = b.posteriors(&posteriors).expect("downloads");
        let origin = NoiseKey { first_row: origin().first_row + first_row as u64, ..origin() };
        let how = Perturbation {
            sigma2: 0.01,
            top_k: 3,
            oversample: 4,
            likelihood: Likelihood::Posterior,
            source: LatentSource::Sample,
        };
        let selection = b.select(&posteriors, origin, &how).expect("selects");
        let samples: Vec<Sample> = selection
            .candidates
            .iter()
            .enumerate()
            .map(|(i, &candidate)| Sample { row: (i / selection.top_k) as u32, candidate })
            .collect();
        let latents = b.perturb(&posteriors, origin, &how, &samples).expect("perturbs");
        let residual = Residual { embeddings: &rows, posteriors: &posteriors };
        for (residual, to) in [(None, &mut self.plain), (Some(residual), &mut self.residual)] {
            let mut out = poisoned(Dtype::F32, samples.len(), dim);
            b.decode(&vae, &latents, residual, out.values_mut()).expect("decodes");
            to.extend(widened(&out));
            let mut scores = vec![f32::NAN; samples.len()];
            b.score_latents(&folded, &latents, residual, &mut scores).expect("scores");
            self.folded[usize::from(residual.is_some())].extend(scores);
        }
        let drawn = b.encode_sample(&vae, &rows, origin).expect("encodes");
        self.starts.extend(b.latents(&drawn).expect("downloads").values);
        let mut scores = vec![f32::NAN; count];
        b.score(&reward, &rows, &mut scores).expect("scores");
        self.mu.extend(host.mu.values);
        self.logvar.extend(host.logvar.values);
        self.selected.extend(selection.candidates);
        self.latents.extend(b.latents(&latents).expect("downloads").values);
        self.scores.extend(scores);
    }

    fn assert_same(&self, other: &Made, what: &str) {
        assert_eq!(self.selected, other.selected, "{what}: selected");
        for (name, a, b) in [
            ("mu", &self.mu, &other.mu),
            ("logvar", &self.logvar, &other.logvar),
            ("latents", &self.latents, &other.latents),
            ("decoded", &self.plain, &other.plain),
            ("decoded residuals", &self.residual, &other.residual),
            ("scores of latents", &self.folded[0], &other.folded[0]),
            ("scores of latents, residual", &self.folded[1], &other.folded[1]),
            ("posterior samples", &self.starts, &other.starts),
            ("scores", &self.scores, &other.scores),
        ] {
            assert_same_bits(&format!("{what}: {name}"), a, b);
        }
    }
}

#[test]
fn bits_do_not_depend_on_blocks_threads_or_parts() {
    for (dim, stored) in [(33, Dtype::F32), (300, Dtype::Bf16), (1000, Dtype::F16)] {
        let rows = 131;
        let buf = data_buf(stored, 21, rows, dim);
        let vae = Vae::init(VaeSize::new(dim, 48, 16).expect("sizes"), 22);
        let reward = RewardModel::init(RewardSize::new(dim, 80).expect("sizes"), 23);
        let mut whole = Made::default();
        whole.add(&cpu(1), &vae, &reward, set(&buf), 0);
        for threads in [1, 2, 5] {
            let b = cpu(threads);
            for block in [1, 3, 64, rows] {
                let mut cut = Made::default();
                for from in (0..rows).step_by(block) {
                    let range = from..(from + block).min(rows);
                    cut.add(&b, &vae, &reward, set(&buf).slice(range), from);
                }
                cut.assert_same(&whole, &format!("d {dim}, {threads} threads, blocks of {block}"));
            }
            // The same rows as three files.
            let parts = [0..1, 1..70, 70..rows].map(|range| buf.view().slice(range)).to_vec();
            let mut joined = Made::default();
            joined.add(&b, &vae, &reward, RowSet::new(parts).expect("equal widths"), 0);
            joined.assert_same(&whole, &format!("d {dim}, {threads} threads, three parts"));
        }
    }
}

/// In BF16 too nothing depends on the schedule of threads, on when copies land, or on how rows are cut; and no launch
/// races or reads what nobody wrote.
#[cfg(target_os = "linux")]
#[test]
fn cuda_in_bf16_gives_the_same_bits_under_every_schedule() {
    // The last ones go through all stages of a pipeline several times.
    let cases = [
        (33, Dtype::F32, 48, 16, 80),
        (72, Dtype::Bf16, 64, 32, 272),
        (200, Dtype::Bf16, 80, 16, 64),
        (600, Dtype::Bf16, 64, 16, 48),
        (520, Dtype::F32, 48, 16, 64),
        (456, Dtype::F16, 16, 16, 16),
    ];
    for (dim, stored, hidden, latent, width) in cases {
        let rows = 83;
        let buf = data_buf(stored, 21, rows, dim);
        let vae = Vae::init(VaeSize::new(dim, hidden, latent).expect("sizes"), 22);
        let reward = RewardModel::init(RewardSize::new(dim, width).expect("sizes"), 23);
        let on = |build, schedule, block: usize| {
            let how = Simulated { schedule, ..Simulated::default() };
            let b = simulated(build, how, Precision::Bf16);
            let mut made = Made::default();
            for from in (0..rows).step_by(block) {
                made.add(&b, &vae, &reward, set(&buf).slice(from..(from + block).min(rows)), from);
            }
            made
        };
        let want = on(Races::Found, Schedule::PLAIN, rows);
        for schedule in Schedule::ALL {
            on(Races::Ignored, schedule, rows)
                .assert_same(&want, &format!("d {dim}, {stored}, {schedule:?}"));
        }
        on(Races::Ignored, Schedule::PLAIN, 30)
            .assert_same(&want, &format!("d {dim}, {stored}, blocks of 30"));
        // The exact kernels under the check build, and the normals' share of what both precisions make.
        let how = Simulated { schedule: Schedule::ALL[2], ..Simulated::default() };
        let mut exact = Made::default();
        exact.add(&simulated(Races::Found, how, Precision::F32), &vae, &reward, set(&buf), 0);
        assert_eq!(exact.selected.len(), want.selected.len());
        let same = exact.selected.iter().zip(&want.selected).filter(|(a, b)| a == b).count();
        println!("{same} of {} candidates are those of F32", want.selected.len());
        assert!(same * 10 >= want.selected.len() * 9, "{same} of {}", want.selected.len());
    }
}

/// F32 on a GPU is not close to the CPU's, it is the same: every bit, under every schedule of threads, in the pieces
/// that a small memory leaves, and from blocks of any size.
#[cfg(target_os = "linux")]
#[test]
fn cuda_gives_the_bits_of_the_cpu() {
    for (i, (dim, stored)) in
        [(33, Dtype::F32), (72, Dtype::Bf16), (300, Dtype::Bf16), (128, Dtype::F16)].into_iter().enumerate()
    {
        let rows = 131;
        let buf = data_buf(stored, 21, rows, dim);
        let (hidden, latent, width) = ([48, 64, 80, 16][i], [16, 32, 16, 48][i], [80, 64, 256, 16][i]);
        let vae = Vae::init(VaeSize::new(dim, hidden, latent).expect("sizes"), 22);
        let reward = RewardModel::init(RewardSize::new(dim, width).expect("sizes"), 23);
        let mut want = Made::default();
        want.add(&cpu(2), &vae, &reward, set(&buf), 0);
        let schedule = Schedule::ALL[i];
        let usual = Simulated { schedule, ..Simulated::default() };
        let mut got = Made::default();
        got.add(&simulated(Races::Ignored, usual, Precision::F32), &vae, &reward, set(&buf), 0);
        got.assert_same(&want, &format!("d {dim}, {stored}"));
        let mut cut = Made::default();
        let b = simulated(Races::Ignored, usual, Precision::F32);
        for from in (0..rows).step_by(50) {
            cut.add(&b, &vae, &reward, set(&buf).slice(from..(from + 50).min(rows)), from);
        }
        cut.assert_same(&want, &format!("d {dim}, {stored}, in blocks of 50"));
    }
}

/// Models whose layers do not fit a block's shared memory go layer by layer, to the same bits in F32.
#[cfg(target_os = "linux")]
#[test]
fn cuda_takes_models_that_fill_more_than_a_block() {
    // Room for `score` alone; and a hidden layer, and a width, that no block of any GPU has room for.
    let small = |shared| Simulated { shared, schedule: Schedule::ALL[2], ..Simulated::default() };
    let usual = Simulated::default();
    for (how, hidden, width) in [(small(36 << 10), 48, 80), (usual, 1024, 272), (usual, 64, 4096)] {
        let buf = data_buf(Dtype::Bf16, 21, 70, 40);
        let vae = Vae::init(VaeSize::new(40, hidden, 16).expect("sizes"), 22);
        let reward = RewardModel::init(RewardSize::new(40, width).expect("sizes"), 23);
        let (mut want, mut got) = (Made::default(), Made::default());
        want.add(&cpu(2), &vae, &reward, set(&buf), 0);
        got.add(&simulated(Races::Found, how, Precision::F32), &vae, &reward, set(&buf), 0);
        got.assert_same(&want, &format!("hidden {hidden}, width {width}"));
    }
    let shape = |rows, dim, hidden, latent, stored, out, seed| {
        let size = VaeSize::new(dim, hidden, latent).expect("sizes");
        Shape { rows, size, stored, out, seed }
    };
    let wide = [
        shape(70, 40, 1024, 16, Dtype::Bf16, Dtype::F16, 1),
        shape(65, 33, 224, 16, Dtype::F32, Dtype::Bf16, 2),
        shape(3, 100, 208, 32, Dtype::F16, Dtype::F32, 3),
    ];
    for &precision in precisions() {
        // In BF16 `score` takes 93 KB: with no more, `encode` and all that decodes have too little at these sizes.
        let shared = if precision == Precision::F32 { 36 << 10 } else { 93 << 10 };
        over_shapes(&simulated(Races::Found, small(shared), precision), precision, &wide);
    }
}

/// Numbers below the smallest normal one are kept: nothing flushes them to zero.
#[cfg(target_os = "linux")]
#[test]
fn cuda_gives_the_bits_of_the_cpu_for_subnormal_numbers() {
    for (dim, stored) in [(40, Dtype::F32), (33, Dtype::Bf16)] {
        let values: Vec<f32> = data(31, 70, dim).iter().map(|v| v * 1e-38).collect();
        let buf = RowsBuf::from_f32(stored, &values, dim).expect("whole rows");
        let mut reward = RewardModel::init(RewardSize::new(dim, 64).expect("sizes"), 23);
        for layer in &mut reward.layers {
            layer.bias.fill(0.0);
        }
        let want = scored(&cpu(1), &reward, &buf);
        let subnormal = want.iter().filter(|v| v.is_subnormal()).count();
        assert!(subnormal > 60, "{subnormal} of 70 rewards show anything");
        let cuda = simulated(Races::Ignored, Simulated::default(), Precision::F32);
        assert_same_bits(&format!("d {dim}, {stored}"), &scored(&cuda, &reward, &buf), &want);
    }
}

/// Rows that are stored in 16 bits are those of F32, rounded to nearest.
#[cfg(target_os = "linux")]
#[test]
fn cuda_rounds_decoded_rows_to_nearest() {
    for (&precision, dim) in precisions().iter().zip([100, 128]) {
        let b = cuda(precision);
        let vae = Vae::init(VaeSize::new(dim, 64, 16).expect("sizes"), 3);
        let embeddings = data_buf(Dtype::Bf16, 5, 7, dim);
        let z = Matrix::new(normals(6, 7, 33 * 16), 33, 16).expect("a matrix");
        let owners = indices(2, 33, 7);
        for residual in [false, true] {
            let [wide, half, brain] = [Dtype::F32, Dtype::F16, Dtype::Bf16]
                .map(|dtype| decoded(&b, &vae, &embeddings, (&z, &owners), residual, dtype));
            let what = format!("{precision}, residual {residual}");
            let rounded: Vec<f32> = wide.iter().map(|v| f16::from_f32(*v).to_f32()).collect();
            assert_same_bits(&format!("{what}, F16"), &half, &rounded);
            let rounded: Vec<f32> = wide.iter().map(|v| bf16::from_f32(*v).to_f32()).collect();
            assert_same_bits(&format!("{what}, BF16"), &brain, &rounded);
        }
    }
}

/// Rows that stand one after the other are taken from where they are, rows that lie apart are copied first.
#[test]
fn where_rows_lie_does_not_matter() {
    let [pairs, matrices] = cpus_in_bf16();
    for (dim, stored) in [
        (33, Dtype::F32),
        (300, Dtype::Bf16),
        (2300, Dtype::F32),
        (4420, Dtype::Bf16),
        (4421, Dtype::Bf16),
        (1000, Dtype::F16),
    ] {
        let buf = data_buf(stored, 41, 29, dim);
        let vae = Vae::init(VaeSize::new(dim, 48, 16).expect("sizes"), 42);
        // Weights that fit the second-level cache, and some that do not.
        for hidden in [80, 272] {
            let reward = RewardModel::init(RewardSize::new(dim, hidden).expect("sizes"), 43);
            for b in [&cpu(1), &pairs, &matrices] {
                let all: Vec<usize> = (0..buf.rows()).collect();
                let (mut together, mut apart) = (Made::default(), Made::default());
                together.add(b, &vae, &reward, set(&buf), 0);
                apart.add(b, &vae, &reward, set(&buf).pick(&all), 0);
                apart.assert_same(&together, &format!("d {dim}, {stored}, {hidden} hidden units"));
            }
        }
    }
}

#[test]
fn parts_of_different_dtypes_make_one_set() {
    let (a, b) = (data_buf(Dtype::Bf16, 31, 5, 40), data_buf(Dtype::F16, 32, 6, 40));
    let mut values = widened(&a);
    values.extend(widened(&b));
    let joined = RowSet::new(vec![a.view(), b.view()]).expect("equal widths");
    let (vae, reward) = (
        Vae::init(VaeSize::new(40, 16, 16).expect("sizes"), 33),
        RewardModel::init(RewardSize::new(40, 16).expect("sizes"), 34),
    );
    let (mut mixed, mut widened) = (Made::default(), Made::default());
    mixed.add(&cpu(1), &vae, &reward, joined, 0);
    widened.add(&cpu(1), &vae, &reward, Rows::from_f32(&values, 40).expect("whole rows").into(), 0);
    mixed.assert_same(&widened, "mixed dtypes");
}

fn layers_of(vae: &Vae) -> Vec<&Linear> {
    vae.encoder.iter().chain(&vae.decoder).collect()
}

/// Gradients or parameters of one backend against another's: each tensor within `rtol` of its largest value, or of
/// a hundredth of the largest of all.
fn check_layers(
    worst: &mut Worst,
    what: &str,
    got: &[&Linear],
    want: &[&Linear],
    rtol: f64,
    precision: Precision,
) {
    if precision == Precision::Bf16 {
        let all = |layers: &[&Linear]| -> Vec<f32> {
            layers.iter().flat_map(|l| l.weight.iter().chain(&l.bias)).copied().collect()
        };
        worst.check(what, &all(got), &wide(&all(want)), Bound::Norm { rtol });
        return;
    }
    assert_eq!(got.len(), want.len(), "{what}");
    let all = want.iter().flat_map(|l| l.weight.iter().chain(&l.bias));
    let floor = 0.01 * all.fold(0f64, |a, v| a.max(f64::from(v.abs())));
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let bound = Bound::Largest { rtol, floor };
        worst.check(&format!("{what}, weight {i}"), &got.weight, &wide(&want.weight), bound);
        worst.check(&format!("{what}, bias {i}"), &got.bias, &wide(&want.bias), bound);
    }
}

fn same_layers(what: &str, got: &[&Linear], want: &[&Linear]) {
    assert!(!got.is_empty() && got.len() == want.len(), "{what}");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert_same_bits(&format!("{what}, weight {i}"), &got.weight, &want.weight);
        assert_same_bits(&format!("{what}, bias {i}"), &got.bias, &want.bias);
    }
}

/// What a sum over a batch and two layers may be off, relative to its largest value.
fn gradient_rtol(size: VaeSize, pairs: usize, precision: Precision) -> f64 {
    // Rounded operands put a share of about 2 u of the hidden units on the other side of their ReLU; in norm that is
    // its root, and twice as much is allowed.
    2.0 * (2.0 * operand_roundoff(precision)).sqrt()
        + 2.0 * LAMBDA * U * ((size.dim + size.hidden + size.latent + 2 * pairs) as f64).sqrt()
}

/// Closer to 0 than this, rounding may decide on which side of a ReLU's corner an input lies.
const CORNER: f64 = 1e-5;

fn nearest_corner(rows: &[Vec<f64>], layer: &Linear) -> f64 {
    let hidden = rows.iter().flat_map(|x| {
        Budgeted { value: x.clone(), error: vec![0.0; x.len()], operand: 0.0 }.linear(layer).value.into_iter()
    });
    hidden.fold(f64::INFINITY, |a, v| a.min(v.abs()))
}

/// Sides of pairs for training and how far their ReLU inputs are from the corner.
fn vae_case(size: VaeSize, pairs: usize, stored: Dtype, seed: u64) -> ([RowsBuf; 2], Vae, f64) {
    let sides = [seed, seed + 1000].map(|s| data_buf(stored, s, pairs, size.dim));
    let vae = Vae::init(size, seed);
    let map = standardizer(size.dim);
    let mut nearest = f64::INFINITY;
    for (side, buf) in Side::BOTH.into_iter().zip(&sides) {
        let mut values = widened(buf);
        map.apply(&mut values);
        let rows: Vec<Vec<f64>> = values.chunks_exact(size.dim).map(wide).collect();
        nearest = nearest.min(nearest_corner(&rows, &vae.encoder[0]));
        let mut latents = Vec::new();
        for (row, x) in values.chunks_exact(size.dim).enumerate() {
            let code = Budgeted::exact(x).mlp(&vae.encoder).value;
            let mut eps = vec![0f32; size.latent];
            let address = NoiseCounter { purpose: Purpose::TrainVae, side, row: row as u64, candidate: 2 };
            fill_normals(SEED, address, &mut eps);
            let latent =
                (0..size.latent).map(|j| code[j] + (code[size.latent + j] / 2.0).exp() * f64::from(eps[j]));
            latents.push(latent.collect());
        }
        nearest = nearest.min(nearest_corner(&latents, &vae.decoder[0]));
    }
    (sides, vae, nearest)
}

const SEED: u64 = 77;

fn vae_objective(reconstruction: Reduction, divergence: Divergence, batch: usize) -> VaeObjective {
    let beta = if reconstruction == Reduction::Mean { 1e-3 } else { 1.0 };
    let adam = Adam::with_lr(1e-3);
    VaeObjective { reconstruction, beta, gamma: 0.1, divergence, batch, adam, seed: SEED }
}

fn vae_gradients<B: Backend>(
    b: &B,
    sides: &[RowsBuf; 2],
    vae: &Vae,
    objective: &VaeObjective,
) -> (VaeLoss, Vae) {
    let map = standardizer(vae.size().dim);
    let mut trainer = b.vae_trainer(vae, &map, objective).expect("starts");
    let [chosen, rejected] = sides.each_ref().map(|s| b.embeddings(set(s)).expect("uploads"));
    let data = PairData { chosen: &chosen, rejected: &rejected };
    let batch: Vec<u32> = (0..sides[0].rows() as u32).rev().collect();
    b.vae_gradients(&mut trainer, &data, &batch, 2).expect("gradients")
}

#[test]
fn vae_gradients_over_shapes() {
    vae_gradients_of(&cpu(2), Precision::F32, &ROWS);
}

#[test]
fn vae_gradients_in_bf16_point_the_same_way() {
    for cpu in cpus_in_bf16() {
        vae_gradients_of(&cpu, Precision::Bf16, &ROWS);
    }
}

/// Rows of a batch on a device: one, a few, and more than a tile.
#[cfg(target_os = "linux")]
const FEW_ROWS: [usize; 5] = [1, 3, 9, 17, 65];

#[cfg(target_os = "linux")]
#[test]
fn cuda_vae_gradients_over_shapes() {
    vae_gradients_of(&cuda(Precision::F32), Precision::F32, &FEW_ROWS);
}

/// BF16 operands: losses to a part in a hundred or better, gradients as vectors. A hidden unit near 0 may change
/// sides, so that no single element has a bound that is worth much.
#[cfg(target_os = "linux")]
#[test]
fn cuda_vae_gradients_in_bf16_point_the_same_way() {
    vae_gradients_of(&cuda(Precision::Bf16), Precision::Bf16, &FEW_ROWS);
}

fn vae_gradients_of<B: Backend>(b: &B, precision: Precision, rows: &[usize]) {
    let reference = Reference::new();
    let (mut losses, mut gradients) = (Worst::default(), Worst::default());
    for (i, &pairs) in rows.iter().enumerate() {
        for (j, &dim) in DIMS.iter().enumerate().filter(|(j, _)| (i + j) % 3 == 0) {
            let size = VaeSize::new(dim, HIDDEN[(i + j) % 5], LATENT[i % 3]).expect("sizes");
            let reconstruction = [Reduction::Mean, Reduction::Sum][i % 2];
            let divergence = [Divergence::W2, Divergence::W2Squared][j % 2];
            let stored = Dtype::ALL[j % 3];
            let (sides, vae, _) = (0..50)
                .map(|k| vae_case(size, pairs, stored, 100 * k + 10 * i as u64 + j as u64))
                .find(|(_, _, nearest)| *nearest > CORNER / 4.0)
                .expect("a case away from the corners");
            let objective = vae_objective(reconstruction, divergence, pairs);
            let (got, got_gradients) = vae_gradients(b, &sides, &vae, &objective);
            let (want, want_gradients) = vae_gradients(&reference, &sides, &vae, &objective);
            let what = format!("{pairs} pairs, {size:?}, {reconstruction:?}, {divergence:?}, {stored}");
            let rtol = gradient_rtol(size, pairs, precision);
            for (got, want) in [
                (got.total, want.total),
                (got.reconstruction, want.reconstruction),
                (got.kl, want.kl),
                (got.divergence, want.divergence),
            ] {
                losses.check(&what, &[got as f32], &[want], Bound::Each { atol: 0.0, rtol });
            }
            let (got, want) = (layers_of(&got_gradients), layers_of(&want_gradients));
            check_layers(&mut gradients, &what, &got, &want, rtol, precision);
        }
    }
    losses.report("VAE losses");
    gradients.report("VAE gradients");
}

/// Runs `$body` with `$data` bound to reward data of `$sides` with latents `$z`, whose rows are `$owners`.
macro_rules! with_reward_data {
    ($b:expr, $vae:expr, $sides:expr, $z:expr, $owners:expr, $residual:expr, $data:ident => $body:expr) => {{
        let vae = $b.load_vae($vae).expect("loads");
        let originals = $sides.each_ref().map(|s| $b.embeddings(set(s)).expect("uploads"));
        let posteriors = originals.each_ref().map(|e| $b.encode(&vae, e).expect("encodes"));
        let latents = [0, 1].map(|s| $b.load_latents(&$z[s], &$owners[s]).expect("uploads"));
        let side = |s: usize| {
            let residual = Residual { embeddings: &originals[s], posteriors: &posteriors[s] };
            let residual = $residual.then_some(residual);
            let synthetic = Synthetic { vae: &vae, latents: &latents[s], residual };
            RewardSide { originals: &originals[s], synthetic: Some(synthetic) }
        };
        let $data = RewardData { chosen: side(0), rejected: side(1) };
        $body
    }};
}

/// Latents of both sides, the rows they belong to, and training pairs of originals and latents.
fn reward_case(
    size: VaeSize,
    rows: usize,
    pairs: usize,
    seed: u64,
) -> ([Matrix; 2], [Vec<u32>; 2], Vec<PairRows>) {
    let count = rows + 2;
    let z = [3, 4]
        .map(|s| Matrix::new(normals(seed, s, count * size.latent), count, size.latent).expect("a matrix"));
    let owners = [5, 6].map(|s| indices(seed + s, count, rows));
    let ends = [7, 8].map(|s| indices(seed + s, pairs, rows + count));
    (z, owners, ends[0].iter().zip(&ends[1]).map(|(&a, &b)| [a, b]).collect())
}

#[test]
fn reward_gradients_over_shapes() {
    reward_gradients_of(&cpu(2), Precision::F32, SyntheticPath::Folded, &ROWS);
}

#[test]
fn reward_gradients_through_d_dimensions() {
    reward_gradients_of(&cpu(2), Precision::F32, SyntheticPath::Decoded, &ROWS);
}

#[test]
fn reward_gradients_in_bf16_point_the_same_way() {
    for path in [SyntheticPath::Folded, SyntheticPath::Decoded] {
        for cpu in cpus_in_bf16() {
            reward_gradients_of(&cpu, Precision::Bf16, path, &ROWS);
        }
    }
}

/// The CUDA backend never decodes what it trains on: the folded algebra against decoding in F64.
#[cfg(target_os = "linux")]
#[test]
fn cuda_reward_gradients_over_shapes() {
    reward_gradients_of(&cuda(Precision::F32), Precision::F32, SyntheticPath::Folded, &FEW_ROWS);
}

#[cfg(target_os = "linux")]
#[test]
fn cuda_reward_gradients_in_bf16_point_the_same_way() {
    reward_gradients_of(&cuda(Precision::Bf16), Precision::Bf16, SyntheticPath::Folded, &FEW_ROWS);
}

fn reward_gradients_of<B: Backend>(b: &B, precision: Precision, synthetic: SyntheticPath, rows: &[usize]) {
    let reference = Reference::new();
    let (mut losses, mut gradients) = (Worst::default(), Worst::default());
    for (i, &pairs) in rows.iter().enumerate() {
        for (j, &dim) in DIMS.iter().enumerate().filter(|(j, _)| (i + j) % 3 == 1) {
            let size = VaeSize::new(dim, HIDDEN[i % 5], LATENT[j % 3]).expect("sizes");
            let (head, heads) = HEADS[(i + 2 * j) % HEADS.len()];
            let hidden = if heads > 1 { 32 * (1 + i % 2) } else { HIDDEN[(i + j) % 5] };
            let reward_size = RewardSize::of_heads(dim, head, hidden, heads).expect("sizes");
            let input_noise = [0.0, 0.4][(i + j) % 2];
            let (stored, residual) = (Dtype::ALL[i % 3], j % 2 == 0);
            let map = standardizer(dim);
            let rows = 1 + pairs / 2;
            // The rows that the reward model will see, to stay away from its corners: those of BF16 are wider, and of
            // few pairs a single unit on the other side is a large part.
            let far = if precision == Precision::Bf16 && pairs <= 3 { 2e-3 } else { CORNER / 4.0 };
            let corner = |seed: u64| {
                let sides = [seed, seed + 1000].map(|s| data_buf(stored, s, rows, dim));
                let (vae, model) = (Vae::init(size, seed), RewardModel::init(reward_size, seed + 1));
                let (z, owners, ends) = reward_case(size, rows, pairs, seed);
                let mut nearest = f64::INFINITY;
                for s in 0..2 {
                    let made = (&z[s], owners[s].as_slice());
                    let mut values = widened(&sides[s]);
                    values.extend(decoded(&reference, &vae, &sides[s], made, residual, Dtype::F32));
                    map.apply(&mut values);
                    let mut seen: Vec<Vec<f64>> =
                        ends.iter().map(|p| wide(&values[p[s] as usize * dim..][..dim])).collect();
                    for (p, x) in seen.iter_mut().enumerate() {
                        let mut noise = vec![0f32; dim];
                        let (purpose, side, row) = (Purpose::InputNoise, Side::BOTH[s], p as u64);
                        fill_normals(9, NoiseCounter { purpose, side, row, candidate: 0 }, &mut noise);
                        x.iter_mut().zip(noise).for_each(|(x, n)| *x += input_noise * f64::from(n));
                    }
                    nearest = nearest.min(nearest_corner(&seen, &model.layers[0]));
                }
                (nearest > far || head == Head::Linear).then_some((sides, vae, model, z, owners, ends))
            };
            let case = (0..50).find_map(|k| corner(100 * k + 10 * i as u64 + j as u64));
            let (sides, vae, model, z, owners, ends) = case.expect("a case away from the corners");
            let objective =
                RewardObjective { batch: pairs, adam: Adam::with_lr(1e-3), synthetic, input_noise, seed: 9 };
            let (got, got_gradients) = with_reward_data!(b, &vae, sides, z, owners, residual, data => {
                let mut trainer = b.reward_trainer(&model, &map, &objective).expect("starts");
                b.reward_gradients(&mut trainer, &data, &ends).expect("gradients")
            });
            let (want, want_gradients) = with_reward_data!(reference, &vae, sides, z, owners, residual, data => {
                let mut trainer = reference.reward_trainer(&model, &map, &objective).expect("starts");
                reference.reward_gradients(&mut trainer, &data, &ends).expect("gradients")
            });
            let what = format!(
                "{pairs} pairs, {size:?}, {reward_size:?}, noise {input_noise}, residual {residual}, {stored}"
            );
            let rtol = gradient_rtol(size, pairs, precision);
            losses.check(&what, &[got as f32], &[want], Bound::Each { atol: 0.0, rtol });
            let [got, want] = [&got_gradients, &want_gradients].map(|g| g.layers.iter().collect::<Vec<_>>());
            check_layers(&mut gradients, &what, &got, &want, rtol, precision);
        }
    }
    losses.report("reward losses");
    gradients.report("reward gradients");
}

#[test]
fn training_does_not_depend_on_threads() {
    for (dim, hidden, latent) in [(33, 48, 16), (257, 64, 32)] {
        let size = VaeSize::new(dim, hidden, latent).expect("sizes");
        let pairs = 200;
        let sides = [51, 52].map(|s| data_buf(Dtype::Bf16, s, pairs, dim));
        let map = standardizer(dim);
        let initial = Vae::init(size, 53);
        let (z, owners, ends) = reward_case(size, pairs, 333, 55);
        let order: Vec<u32> = (0..pairs as u32).rev().collect();
        for (synthetic, head, heads, input_noise) in [
            (SyntheticPath::Folded, Head::Mlp, 1, 0.0),
            (SyntheticPath::Decoded, Head::Mlp, 1, 0.5),
            (SyntheticPath::Folded, Head::Mlp, 3, 0.5),
            (SyntheticPath::Folded, Head::Linear, 40, 0.5),
            (SyntheticPath::Decoded, Head::Linear, 1, 0.0),
        ] {
            let reward_size = RewardSize::of_heads(dim, head, if heads > 1 { 64 } else { 80 }, heads);
            let model = RewardModel::init(reward_size.expect("sizes"), 54);
            let mut first: Option<(Vae, RewardModel, [f64; 4])> = None;
            for threads in [1, 2, 5] {
                let b = cpu(threads);
                let objective = vae_objective(Reduction::Mean, Divergence::W2, 64);
                let mut trainer = b.vae_trainer(&initial, &map, &objective).expect("starts");
                let [chosen, rejected] = sides.each_ref().map(|s| b.embeddings(set(s)).expect("uploads"));
                let data = PairData { chosen: &chosen, rejected: &rejected };
                let mut losses = [0.0; 4];
                for (epoch, loss) in losses[..2].iter_mut().enumerate() {
                    *loss = b.vae_epoch(&mut trainer, &data, &order, epoch as u32).expect("trains").total;
                }
                let vae = b.vae_parameters(&trainer).expect("parameters");
                let reward = with_reward_data!(b, &initial.fold(&map), sides, z, owners, true, data => {
                    let adam = Adam { weight_decay: 0.1, ..Adam::with_lr(1e-3) };
                    let objective = RewardObjective { batch: 64, adam, synthetic, input_noise, seed: 3 };
                    let mut trainer = b.reward_trainer(&model, &map, &objective).expect("starts");
                    for loss in &mut losses[2..] {
                        *loss = b.reward_epoch(&mut trainer, &data, &ends).expect("trains");
                    }
                    b.reward_parameters(&trainer).expect("parameters")
                });
                assert!(vae != initial && reward != model, "training moves the parameters");
                match &first {
                    None => first = Some((vae, reward, losses)),
                    Some((want_vae, want_reward, want_losses)) => {
                        let what = format!("d {dim}, {threads} threads");
                        assert_eq!(losses.map(f64::to_bits), want_losses.map(f64::to_bits), "{what}: losses");
                        same_layers(&what, &layers_of(&vae), &layers_of(want_vae));
                        let [got, want] = [&reward, want_reward].map(|m| m.layers.iter().collect::<Vec<_>>());
                        same_layers(&what, &got, &want);
                    }
                }
            }
        }
    }
}

#[test]
fn a_mapped_model_gives_what_the_map_and_the_model_give() {
    // Folding changes where rounding happens, not what is computed.
    let dim = 57;
    let map = standardizer(dim);
    let raw = data(61, 40, dim);
    let mut mapped = raw.clone();
    map.apply(&mut mapped);
    let (vae, reward) = (
        Vae::init(VaeSize::new(dim, 32, 16).expect("sizes"), 62),
        RewardModel::init(RewardSize::new(dim, 48).expect("sizes"), 63),
    );
    let [raw, mapped] = [raw, mapped].map(|v| RowsBuf::from_f32(Dtype::F32, &v, dim).expect("whole rows"));
    let b = Reference::new();
    let (got, want) = (posteriors_of(&b, &vae.fold(&map), &raw), posteriors_of(&b, &vae, &mapped));
    let mut worst = Worst::default();
    let bound = Bound::Largest { rtol: 2e-6, floor: 0.0 };
    worst.check("mu", &got.mu.values, &wide(&want.mu.values), bound);
    worst.check("logvar", &got.logvar.values, &wide(&want.logvar.values), bound);
    worst.check("scores", &scored(&b, &reward.fold(&map), &raw), &wide(&scored(&b, &reward, &mapped)), bound);
    let (z, owners) = (Matrix::new(normals(64, 0, 40 * 16), 40, 16).expect("a matrix"), indices(65, 40, 40));
    let got = decoded(&b, &vae.fold(&map), &raw, (&z, &owners), false, Dtype::F32);
    let plain = decoded(&b, &vae, &mapped, (&z, &owners), false, Dtype::F32);
    let Standardizer { mean, std } = &map;
    let want: Vec<f64> = plain
        .iter()
        .enumerate()
        .map(|(i, &v)| f64::from(v) * f64::from(std[i % dim]) + f64::from(mean[i % dim]))
        .collect();
    worst.check("decoded", &got, &want, bound);
    worst.report("folding");
}
