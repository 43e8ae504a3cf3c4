//! Operations of the CPU backend at the paper's sizes (d = 4096, hidden 64, latent 16, reward hidden 256) on random
//! data: `cargo bench --bench operations`. Rates are rows (or normals, or training pairs) per second; compare runs on
//! one machine only. `lensmith bench` holds the same operations against the machine's limits.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use half::bf16;
use lensmith::backend::cpu::Cpu;
use lensmith::backend::{
    Adam, Backend, Divergence, LatentSource, Likelihood, NoiseKey, PairData, Perturbation, Precision,
    Reduction, RewardData, RewardObjective, RewardSide, Sample, Synthetic, VaeObjective,
};
use lensmith::dtype::{Dtype, Element};
use lensmith::matrix::{Matrix, RowSet, Rows, RowsBuf, Side, Values};
use lensmith::model::{FoldedReward, RewardModel, RewardSize, Standardizer, Vae, VaeSize};
use lensmith::noise::{NoiseCounter, Purpose, fill_normals};

const DIM: usize = 4096;
const ROWS: usize = 4096;

fn normals(n: usize, row: u64) -> Vec<f32> {
    let mut out = vec![0f32; n];
    let address = NoiseCounter { purpose: Purpose::Simulation, side: Side::Chosen, row, candidate: 0 };
    fill_normals(1, address, &mut out);
    out
}

fn stored(rows: usize, row: u64) -> Vec<bf16> {
    let wide = normals(rows * DIM, row);
    let mut out = vec![bf16::ZERO; wide.len()];
    bf16::narrow(&wide, &mut out);
    out
}

fn view(values: &[bf16]) -> RowSet<'_> {
    Rows::new(Values::Bf16(values), values.len() / DIM, DIM).expect("whole rows").into()
}

fn models() -> (Vae, RewardModel) {
    let vae = Vae::init(VaeSize::new(DIM, 64, 16).expect("valid"), 1);
    (vae, RewardModel::init(RewardSize::new(DIM, 256).expect("valid"), 1))
}

fn operations(c: &mut Criterion) {
    for precision in [Precision::F32, Precision::Bf16] {
        inference(c, precision);
        training(c, precision);
    }
}

fn inference(c: &mut Criterion, precision: Precision) {
    let cpu = Cpu::new(0, precision).expect("threads start");
    let (vae_model, reward_model) = models();
    let vae = cpu.load_vae(&vae_model).expect("loads");
    let reward = cpu.load_reward(&reward_model).expect("loads");
    let folded = FoldedReward::new(&vae_model, &reward_model).expect("folds");
    let folded = cpu.load_folded(&folded).expect("loads");
    let values = stored(ROWS, 0);
    let rows = cpu.embeddings(view(&values)).expect("borrows");
    let posteriors = cpu.encode(&vae, &rows).expect("encodes");
    let origin = NoiseKey { seed: 1, side: Side::Chosen, first_row: 0 };
    let how = Perturbation {
        sigma2: 0.01,
        top_k: 7,
        oversample: 4,
        likelihood: Likelihood::Posterior,
        source: LatentSource::Sample,
    };
    let samples: Vec<Sample> = (0..ROWS as u32).map(|row| Sample { row, candidate: row % 28 }).collect();
    let latents = cpu.perturb(&posteriors, origin, &how, &samples).expect("perturbs");

    let mut group = c.benchmark_group(format!("cpu in {precision}, d = {DIM}, {}", cpu.info().detail));
    group.sample_size(10).throughput(Throughput::Elements(ROWS as u64));
    group.bench_function("encode BF16", |b| b.iter(|| cpu.encode(&vae, &rows)));
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
        let mut out = RowsBuf::zeros(dtype, ROWS, DIM);
        group.bench_function(format!("decode {dtype}"), |b| {
            b.iter(|| cpu.decode(&vae, &latents, None, out.values_mut()))
        });
    }
    let mut scores = vec![0f32; ROWS];
    group.bench_function("score BF16", |b| b.iter(|| cpu.score(&reward, &rows, &mut scores)));
    group.bench_function("perturb", |b| {
        b.iter(|| {
            let latents = cpu.perturb(&posteriors, origin, &how, &samples).expect("perturbs");
            cpu.make_latents(&latents).len()
        })
    });
    group.bench_function("score latents, folded", |b| {
        b.iter(|| cpu.score_latents(&folded, &latents, None, &mut scores))
    });
    group.throughput(Throughput::Elements((ROWS as u32 * how.drawn()) as u64));
    group.bench_function("select, per candidate", |b| b.iter(|| cpu.select(&posteriors, origin, &how)));
    group.throughput(Throughput::Elements(1 << 20));
    group.bench_function("normals", |b| b.iter(|| normals(1 << 20, 0)));
    group.finish();
}

fn training(c: &mut Criterion, precision: Precision) {
    const PAIRS: usize = 1024;
    let cpu = Cpu::new(0, precision).expect("threads start");
    let (plus, minus) = (stored(PAIRS, 0), stored(PAIRS, 1));
    let (chosen, rejected) = (view(&plus), view(&minus));
    let standardizer = Standardizer::fit(&[&chosen, &rejected]);
    let order: Vec<u32> = (0..PAIRS as u32).collect();
    let adam = Adam::with_lr(1e-4);

    let mut group = c.benchmark_group(format!("cpu in {precision}, training, batch 128"));
    group.sample_size(10).throughput(Throughput::Elements(PAIRS as u64));
    let objective = VaeObjective {
        reconstruction: Reduction::Mean,
        beta: 1e-2,
        gamma: 0.1,
        divergence: Divergence::W2,
        batch: 128,
        adam,
        seed: 1,
    };
    let (initial, reward) = models();
    let mut trainer = cpu.vae_trainer(&initial, &standardizer, &objective).expect("starts");
    let data = PairData { chosen: &chosen, rejected: &rejected };
    group.bench_function("VAE epoch", |b| b.iter(|| cpu.vae_epoch(&mut trainer, &data, &order, 0)));

    let objective = RewardObjective { batch: 128, adam, ..RewardObjective::default() };
    let mut trainer = cpu.reward_trainer(&reward, &standardizer, &objective).expect("starts");
    let data = RewardData {
        chosen: RewardSide { originals: &chosen, synthetic: None },
        rejected: RewardSide { originals: &rejected, synthetic: None },
    };
    let pairs: Vec<[u32; 2]> = order.iter().map(|&i| [i, i]).collect();
    group.bench_function("reward epoch, originals", |b| {
        b.iter(|| cpu.reward_epoch(&mut trainer, &data, &pairs))
    });

    // The same number of pairs, all synthetic.
    let loaded = cpu.load_vae(&initial).expect("loads");
    let z = Matrix::new(normals(PAIRS * 16, 3), PAIRS, 16).expect("whole rows");
    let latents = cpu.load_latents(&z, &order).expect("loads");
    let side = |originals| RewardSide {
        originals,
        synthetic: Some(Synthetic { vae: &loaded, latents: &latents, residual: None }),
    };
    let data = RewardData { chosen: side(&chosen), rejected: side(&rejected) };
    let mut trainer = cpu.reward_trainer(&reward, &standardizer, &objective).expect("starts");
    let pairs: Vec<[u32; 2]> =
        order.iter().map(|&i| [PAIRS as u32 + i, (2 * PAIRS - 1) as u32 - i]).collect();
    group.bench_function("reward epoch, synthetic", |b| {
        b.iter(|| cpu.reward_epoch(&mut trainer, &data, &pairs))
    });
    group.finish();
}

criterion_group!(benches, operations);
criterion_main!(benches);
