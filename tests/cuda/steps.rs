//! Training steps: how many launches they are, what trainers keep from one epoch to the next, and that
//! nothing of an epoch is left over in another.

use std::sync::Arc;

use lensmith::backend::cpu::Cpu;
use lensmith::backend::cuda::Cuda;
use lensmith::backend::cuda::driver::Driver;
use lensmith::backend::{
    Adam, Backend, Divergence, LatentSource, Likelihood, NoiseKey, PairData, PairRows, Perturbation,
    Precision, Reduction, Residual, RewardData, RewardObjective, RewardSide, Sample, Synthetic, VaeObjective,
};
use lensmith::dtype::Dtype;
use lensmith::matrix::{Matrix, RowsBuf, Side};
use lensmith::model::{Head, RewardModel, RewardSize, Vae, VaeSize};

use crate::common::device::{Races, Simulated, gpu, tested_gpu};
use crate::common::{data_buf, indices, normals, standardizer};
use crate::watched::Watched;

/// With a learning rate of 0 parameters stay as they are, so that epochs can be compared one by one.
fn vae_objective(batch: usize) -> VaeObjective {
    VaeObjective {
        reconstruction: Reduction::Sum,
        beta: 0.5,
        gamma: 0.1,
        divergence: Divergence::W2,
        batch,
        adam: Adam::with_lr(0.0),
        seed: 1,
    }
}

fn reward_objective(batch: usize) -> RewardObjective {
    RewardObjective { batch, adam: Adam::with_lr(0.0), ..RewardObjective::default() }
}

/// Two sides of rows on the host.
fn sides(seed: u64, dtypes: [Dtype; 2], rows: usize, dim: usize) -> [RowsBuf; 2] {
    [0, 1].map(|s| data_buf(dtypes[s], seed + s as u64, rows, dim))
}

/// How samples take part in reward training.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Samples {
    /// There are none.
    None,
    /// Plain, of the chosen side alone, stored.
    Stored,
    /// Plain, of both sides, drawn.
    Drawn,
    /// Residual, with the originals as seeds.
    Residual,
    /// Residual, with the other side's originals as seeds.
    Others,
}

/// Runs `each` with a backend's reward data: `rows` and 20 samples of `vae` a side.
fn with_reward_data<B: Backend + 'static>(
    b: &B,
    (vae, rows, seed): (&Vae, &[RowsBuf; 2], u64),
    samples: Samples,
    each: &mut dyn FnMut(&RewardData<'_, '_, B>, &[PairRows]),
) {
    let (n, latent) = (rows[0].rows(), vae.size().latent);
    let device_vae = b.load_vae(vae).expect("loads");
    let originals = rows.each_ref().map(|s| b.embeddings(s.view().into()).expect("uploads"));
    let posteriors = originals.each_ref().map(|e| b.encode(&device_vae, e).expect("encodes"));
    let owners = indices(seed, 20, n);
    let latents = [Side::Chosen, Side::Rejected].map(|side| {
        if samples == Samples::Drawn {
            let options = Perturbation {
                sigma2: 0.1,
                top_k: 20,
                oversample: 1,
                likelihood: Likelihood::None,
                source: LatentSource::Sample,
            };
            let drawn: Vec<Sample> =
                owners.iter().zip(0..).map(|(&row, candidate)| Sample { row, candidate }).collect();
            let key = NoiseKey { seed, side, first_row: 0 };
            return b.perturb(&posteriors[side as usize], key, &options, &drawn).expect("draws");
        }
        let z = Matrix::new(normals(seed, side as u64, 20 * latent), 20, latent).expect("a matrix");
        b.load_latents(&z, &owners).expect("uploads")
    });
    let has = |s: usize| samples != Samples::None && (s == 0 || samples != Samples::Stored);
    let side = |s: usize| {
        let seeds = if samples == Samples::Others { 1 - s } else { s };
        let residual = matches!(samples, Samples::Residual | Samples::Others)
            .then_some(Residual { embeddings: &originals[seeds], posteriors: &posteriors[seeds] });
        let synthetic = Synthetic { vae: &device_vae, latents: &latents[s], residual };
        RewardSide { originals: &originals[s], synthetic: has(s).then_some(synthetic) }
    };
    let ends = [0, 1].map(|s| indices(seed + 1 + s as u64, n + 13, if has(s) { n + 20 } else { n }));
    let pairs: Vec<PairRows> = ends[0].iter().zip(&ends[1]).map(|(&a, &b)| [a, b]).collect();
    each(&RewardData { chosen: side(0), rejected: side(1) }, &pairs);
}

/// The numbers that kernels/README.md states, at the paper's sizes, where products are cut into slices.
#[test]
fn a_step_has_few_launches() {
    let dim = 4096;
    let vae = Vae::init(VaeSize::new(dim, 64, 16).expect("sizes"), 7);
    let model = RewardModel::init(RewardSize::new(dim, 256).expect("sizes"), 3);
    let rows = sides(5, [Dtype::Bf16, Dtype::F32], 130, dim);
    let order: Vec<u32> = (0..130).collect();
    for precision in [Precision::F32, Precision::Bf16] {
        let watched = Watched::new(Races::Ignored, usize::MAX, false);
        let b = watched.backend(precision);
        // Gradients alone take as many: in place of Adam a launch of its own ends the step.
        let check = |what: &str, count: usize, learns: &mut dyn FnMut(bool)| {
            for learn in [true, false] {
                learns(learn);
                let last = watched.last();
                assert_eq!(last.contains(&"end_step"), !learn, "{what}: {last:?}");
                assert_eq!(last.len(), count, "{what}, {precision}, learn {learn}: {last:?}");
            }
        };
        let [chosen, rejected] = rows.each_ref().map(|s| b.embeddings(s.view().into()).expect("uploads"));
        let data = PairData { chosen: &chosen, rejected: &rejected };
        let mut trainer = b.vae_trainer(&vae, &standardizer(dim), &vae_objective(128)).expect("starts");
        check("VAE", 13, &mut |learn| match learn {
            true => b.vae_epoch(&mut trainer, &data, &order, 0).map(drop).expect("trains"),
            false => b.vae_gradients(&mut trainer, &data, &order, 0).map(drop).expect("gradients"),
        });
        for (samples, count) in [
            (Samples::None, 6),
            (Samples::Stored, 9),
            (Samples::Drawn, 9),
            (Samples::Residual, 9),
            (Samples::Others, 9),
        ] {
            let mut trainer =
                b.reward_trainer(&model, &standardizer(dim), &reward_objective(128)).expect("starts");
            with_reward_data(&b, (&vae, &rows, 1), samples, &mut |data, pairs| {
                check(&format!("reward, {samples:?}"), count, &mut |learn| match learn {
                    true => b.reward_epoch(&mut trainer, data, pairs).map(drop).expect("trains"),
                    false => b.reward_gradients(&mut trainer, data, pairs).map(drop).expect("gradients"),
                });
            });
        }
    }
}

/// Epochs of one batch size run one recording in the same memory.
#[test]
fn an_epoch_keeps_what_the_last_one_made() {
    let dim = 40;
    let vae = Vae::init(VaeSize::new(dim, 48, 16).expect("sizes"), 7);
    let rows = sides(5, [Dtype::Bf16, Dtype::F32], 64, dim);
    let watched = Watched::new(Races::Ignored, usize::MAX, true);
    let b = watched.backend(Precision::F32);
    let [chosen, rejected] = rows.each_ref().map(|s| b.embeddings(s.view().into()).expect("uploads"));
    let data = PairData { chosen: &chosen, rejected: &rejected };
    let mut trainer = b.vae_trainer(&vae, &standardizer(dim), &vae_objective(8)).expect("starts");
    // Pairs of an epoch, and whether its step is recorded: the first; as long, shorter, the last batch
    // smaller; too long for order and table; shorter again; less than a batch.
    for (epoch, (pairs, recorded)) in
        [(20, true), (20, false), (8, false), (19, false), (41, true), (20, false), (5, true), (5, false)]
            .into_iter()
            .enumerate()
    {
        let before = (watched.recordings(), watched.allocations());
        let order: Vec<u32> = (0..pairs).rev().collect();
        b.vae_epoch(&mut trainer, &data, &order, epoch as u32).expect("trains");
        let after = (watched.recordings(), watched.allocations());
        assert_eq!(after.0 - before.0, usize::from(recorded), "epoch {epoch}");
        assert_eq!(after.1 > before.1, recorded, "epoch {epoch}: {} allocations", after.1 - before.1);
    }

    let model = RewardModel::init(RewardSize::new(dim, 80).expect("sizes"), 3);
    let mut trainer = b.reward_trainer(&model, &standardizer(dim), &reward_objective(8)).expect("starts");
    with_reward_data(&b, (&vae, &rows, 1), Samples::Drawn, &mut |data, pairs| {
        for (epoch, (count, recorded)) in
            [(20, true), (20, false), (17, false), (41, true), (20, false), (5, false)]
                .into_iter()
                .enumerate()
        {
            let before = (watched.recordings(), watched.allocations());
            b.reward_epoch(&mut trainer, data, &pairs[..count]).expect("trains");
            let after = (watched.recordings(), watched.allocations());
            assert_eq!(after.0 - before.0, usize::from(recorded), "epoch {epoch}");
            assert_eq!(after.1 > before.1, recorded, "epoch {epoch}: {} allocations", after.1 - before.1);
        }
    });
}

/// What an epoch of a VAE gives: losses and the gradients of a batch, as bits.
fn vae_epoch(
    b: &Cuda,
    trainer: &mut <Cuda as Backend>::VaeTrainer,
    rows: &[RowsBuf; 2],
    epoch: u32,
) -> Vec<u64> {
    let [chosen, rejected] = rows.each_ref().map(|s| b.embeddings(s.view().into()).expect("uploads"));
    let data = PairData { chosen: &chosen, rejected: &rejected };
    let order: Vec<u32> = (0..rows[0].rows() as u32).rev().collect();
    let loss = b.vae_epoch(trainer, &data, &order, epoch).expect("trains");
    let (other, gradients) = b.vae_gradients(trainer, &data, &order[..11], epoch).expect("gradients");
    let losses = [loss.total, loss.kl, loss.divergence, other.total].map(f64::to_bits);
    let layers = gradients.encoder.iter().chain(&gradients.decoder);
    let values = layers.flat_map(|l| l.weight.iter().chain(&l.bias)).map(|v| u64::from(v.to_bits()));
    losses.into_iter().chain(values).collect()
}

fn reward_epoch(
    b: &Cuda,
    trainer: &mut <Cuda as Backend>::RewardTrainer,
    of: (&Vae, &[RowsBuf; 2], u64),
    samples: Samples,
) -> Vec<u64> {
    let mut out = Vec::new();
    with_reward_data(b, of, samples, &mut |data, pairs| {
        let loss = b.reward_epoch(trainer, data, pairs).expect("trains");
        let (other, gradients) = b.reward_gradients(trainer, data, &pairs[..11]).expect("gradients");
        let values = gradients.layers.iter().flat_map(|l| l.weight.iter().chain(&l.bias));
        out = vec![loss.to_bits(), other.to_bits()];
        out.extend(values.map(|v| u64::from(v.to_bits())));
    });
    out
}

/// A trainer that goes from one data set to another gives for each what a fresh one gives: data sets of other
/// lengths, types and values, at other addresses and at those of freed ones.
#[test]
fn every_launch_reads_the_data_of_its_own_epoch() {
    let dim = 40;
    let (bf16, mixed) = ([Dtype::Bf16; 2], [Dtype::F32, Dtype::F16]);
    let sets = [
        sides(5, bf16, 37, dim),
        sides(7, bf16, 37, dim),
        sides(9, [Dtype::F16; 2], 37, dim),
        sides(11, mixed, 50, dim),
    ];
    let vaes = [7, 8].map(|seed| Vae::init(VaeSize::new(dim, 48, 16).expect("sizes"), seed));
    let wider = Vae::init(VaeSize::new(dim, 64, 32).expect("sizes"), 9);
    let model = RewardModel::init(RewardSize::new(dim, 80).expect("sizes"), 3);
    let watched = Watched::new(Races::Ignored, usize::MAX, true);
    for precision in [Precision::F32, Precision::Bf16] {
        let b = watched.backend(precision);
        let fresh_vae = || b.vae_trainer(&vaes[0], &standardizer(dim), &vae_objective(16)).expect("starts");
        let mut kept = fresh_vae();
        for (turn, set) in [0, 1, 2, 0, 3, 1, 3, 0].into_iter().enumerate() {
            let got = vae_epoch(&b, &mut kept, &sets[set], turn as u32);
            let want = vae_epoch(&b, &mut fresh_vae(), &sets[set], turn as u32);
            assert!(got == want, "VAE, {precision}: set {set} in epoch {turn}");
        }
        let fresh = || b.reward_trainer(&model, &standardizer(dim), &reward_objective(16)).expect("starts");
        let mut kept = fresh();
        for (turn, (set, vae, samples)) in [
            (0, &vaes[0], Samples::Stored),
            (1, &vaes[0], Samples::Drawn),
            // Another decoder of the same shape, at the address of the last one.
            (1, &vaes[1], Samples::Drawn),
            (2, &vaes[1], Samples::Residual),
            (0, &vaes[0], Samples::Others),
            (3, &vaes[0], Samples::None),
            (3, &vaes[0], Samples::Residual),
            (0, &wider, Samples::Residual),
            (1, &vaes[1], Samples::Stored),
        ]
        .into_iter()
        .enumerate()
        {
            let of = (vae, &sets[set], 20 + turn as u64);
            let got = reward_epoch(&b, &mut kept, of, samples);
            let want = reward_epoch(&b, &mut fresh(), of, samples);
            assert!(got == want, "reward, {precision}: {samples:?} of set {set} in epoch {turn}");
        }
    }
}

/// From compute capability 9.0 on all launches of a step but the first start early. The stand-in refuses what
/// they do before they have waited for the launch ahead.
#[test]
fn every_launch_waits_for_the_one_ahead() {
    if tested_gpu().is_some() {
        return; // it has one capability
    }
    let dim = 40;
    let vae = Vae::init(VaeSize::new(dim, 48, 16).expect("sizes"), 7);
    let model = RewardModel::init(RewardSize::new(dim, 80).expect("sizes"), 3);
    let rows = sides(5, [Dtype::Bf16, Dtype::F16], 37, dim);
    let watched = |options: Simulated| {
        let inner: Arc<dyn Driver> = Arc::new(gpu(Races::Ignored, options));
        Watched::over(inner, true)
    };
    for precision in [Precision::F32, Precision::Bf16] {
        let [new, old] = [(9, 0), (8, 0)].map(|capability| {
            let b = watched(Simulated { capability, ..Simulated::default() }).backend(precision);
            let mut trainer = b.vae_trainer(&vae, &standardizer(dim), &vae_objective(16)).expect("starts");
            let mut made = vae_epoch(&b, &mut trainer, &rows, 2);
            for samples in [Samples::None, Samples::Stored] {
                let mut trainer =
                    b.reward_trainer(&model, &standardizer(dim), &reward_objective(16)).expect("starts");
                made.extend(reward_epoch(&b, &mut trainer, (&vae, &rows, 1), samples));
            }
            made
        });
        assert!(new == old, "{precision}");
    }
    for (capability, asked) in [((9, 0), true), ((8, 0), false)] {
        let options = Simulated { capability, fail: "cuLaunchKernelEx:801", ..Simulated::default() };
        let b = watched(options).backend(Precision::F32);
        let [chosen, rejected] = rows.each_ref().map(|s| b.embeddings(s.view().into()).expect("uploads"));
        let data = PairData { chosen: &chosen, rejected: &rejected };
        let mut trainer = b.vae_trainer(&vae, &standardizer(dim), &vae_objective(16)).expect("starts");
        let said = b.vae_epoch(&mut trainer, &data, &[0, 1], 0).map(drop);
        assert_eq!(said.is_err(), asked, "{capability:?}: {said:?}");
        if let Err(said) = said {
            assert!(said.to_string().contains("launching product_nt_f32 failed"), "{said}");
        }
    }
}

/// The gradients of a batch of reward training.
fn reward_gradients<B: Backend + 'static>(
    b: &B,
    of: (&Vae, &[RowsBuf; 2], u64),
    samples: Samples,
    (model, input_noise): (&RewardModel, f64),
) -> (f64, RewardModel) {
    let dim = of.1[0].cols();
    let objective = RewardObjective { input_noise, seed: 6, ..reward_objective(16) };
    let mut trainer = b.reward_trainer(model, &standardizer(dim), &objective).expect("starts");
    let mut out = None;
    with_reward_data(b, of, samples, &mut |data, pairs| {
        out = Some(b.reward_gradients(&mut trainer, data, pairs).expect("gradients"));
    });
    out.expect("gradients")
}

/// Whatever the samples are and wherever their seeds come from, the gradients are the CPU's.
#[test]
fn every_launch_of_samples_gives_the_gradients_of_the_cpu() {
    let dim = 40;
    let vae = Vae::init(VaeSize::new(dim, 48, 16).expect("sizes"), 7);
    let rows = sides(5, [Dtype::Bf16, Dtype::F16], 37, dim);
    let cpu = Cpu::new(1, Precision::F32).expect("the CPU backend");
    let b = Watched::new(Races::Ignored, usize::MAX, true).backend(Precision::F32);
    let all = [Samples::None, Samples::Stored, Samples::Drawn, Samples::Residual, Samples::Others];
    let heads = [(Head::Mlp, 80, 1), (Head::Mlp, 32, 3), (Head::Linear, 0, 1), (Head::Linear, 0, 5)];
    let cases = all.into_iter().flat_map(|samples| heads.map(|heads| (samples, heads)));
    for (i, (samples, (head, hidden, count))) in cases.enumerate() {
        let size = RewardSize::of_heads(dim, head, hidden, count).expect("sizes");
        let model = (&RewardModel::init(size, 3), [0.0, 0.5][(i + i / 4) % 2]);
        let (loss, got) = reward_gradients(&b, (&vae, &rows, 1), samples, model);
        let (want_loss, want) = reward_gradients(&cpu, (&vae, &rows, 1), samples, model);
        let samples = format!("{samples:?}, {size:?}, noise {}", model.1);
        assert!((loss - want_loss).abs() <= 1e-5 * want_loss, "{samples:?}: {loss}, not {want_loss}");
        let [got, want] = [&got, &want].map(|model| {
            model.layers.iter().flat_map(|l| l.weight.iter().chain(&l.bias)).copied().collect::<Vec<f32>>()
        });
        let largest = want.iter().fold(0f32, |most, v| most.max(v.abs()));
        let near = |(got, want): (&f32, &f32)| (got - want).abs() <= 1e-4 * largest;
        assert!(got.len() == want.len() && largest > 0.0 && got.iter().zip(&want).all(near), "{samples:?}");
    }
}

/// A batch too large for the device's memory is an error that says so; training goes on with a smaller one.
#[test]
fn after_an_epoch_without_memory_a_smaller_one_trains() {
    if tested_gpu().is_some() {
        return; // its memory is no test's to bound
    }
    let dim = 128;
    let vae = Vae::init(VaeSize::new(dim, 64, 16).expect("sizes"), 7);
    let rows = sides(5, [Dtype::Bf16; 2], 600, dim);
    let b = Watched::new(Races::Ignored, 1_600_000, true).backend(Precision::F32);
    let [chosen, rejected] = rows.each_ref().map(|s| b.embeddings(s.view().into()).expect("uploads"));
    let data = PairData { chosen: &chosen, rejected: &rejected };
    let mut trainer = b.vae_trainer(&vae, &standardizer(dim), &vae_objective(600)).expect("starts");
    let order: Vec<u32> = (0..600).collect();
    let first = b.vae_epoch(&mut trainer, &data, &order[..16], 0).expect("fits");
    let said = b.vae_epoch(&mut trainer, &data, &order, 0).expect_err("does not fit").to_string();
    assert!(said.contains(": out of memory") && said.contains("use fewer seed pairs"), "{said}");
    let again = b.vae_epoch(&mut trainer, &data, &order[..16], 0).expect("fits");
    assert_eq!(first.total.to_bits(), again.total.to_bits());
}
