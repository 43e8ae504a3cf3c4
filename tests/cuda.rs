//! The CUDA backend as a whole over a stand-in for the driver library, its kernels in the machine for PTX: the
//! command, the launch layer's sizes, memory that runs out, schedules and devices side by side.

#![cfg(target_os = "linux")]

mod common;
#[path = "cuda/epochs.rs"]
mod epochs;
#[path = "cuda/steps.rs"]
mod steps;
#[path = "cuda/watched.rs"]
mod watched;

use std::fmt::Debug;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

use common::cli::{Lab, Said, bare};
use common::device::{Races, Schedule, Simulated, gpu, settings, simulated, stand_in, tested_gpu};
use common::{data_buf, poisoned, standardizer, widened};
use lensmith::SynthesisOptions;
use lensmith::backend::cpu::Cpu;
use lensmith::backend::cuda::{Cuda, kernels, layout};
use lensmith::backend::{
    Adam, AnyBackend, Backend, DecodeMode, DeviceArray, Divergence, LatentSource, Likelihood, NoiseKey,
    PairData, PairRows, Perturbation, Precision, Reduction, Residual, RewardData, RewardObjective,
    RewardSide, Sample, Synthetic, VaeObjective,
};
use lensmith::dtype::Dtype;
use lensmith::matrix::{Matrix, RowSet, RowsBuf, Side};
use lensmith::model::{FoldedReward, RewardModel, RewardSize, Vae, VaeSize};
use lensmith::synth::PairLookup;
use serde_json::Value;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata};

/// The table of kernels/README.md: bounds of registers as CI enforces them, bytes as the launch layer asks
/// for them.
#[test]
fn stated_figures_are_those_in_force() {
    let read = |name: &str| {
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels").join(name)).expect(name)
    };
    let (readme, expectations) = (read("README.md"), read("expectations.txt"));
    let size = VaeSize::new(4096, 64, 16).expect("sizes");
    let mut stated = 0;
    for line in readme.lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, name, registers, shared, _] = cells[..] else { continue };
        let (name, Ok(registers)) = (name.trim_matches('`'), registers.parse::<u32>()) else { continue };
        let precision = if name.split('_').any(|w| w == "bf16") && !name.contains("_f32_bf16") {
            Precision::Bf16
        } else {
            Precision::F32
        };
        let stored = Dtype::ALL.into_iter().find(|d| name.ends_with(&format!("_{d}"))).unwrap_or(Dtype::F32);
        let expected = match name.split('_').next().expect("a word") {
            "encode" if name.contains("tma") => layout::encode_tma(stored, 16).shared,
            "score" if name.contains("wgmma") => layout::score_wgmma(stored).shared,
            "encode" => layout::encode(precision, size).shared,
            "synthesize" => layout::synthesize(size, 2, 8).shared,
            "reconstruct" => layout::synthesize(size, 0, 0).shared,
            "decode" => layout::decode(precision, size, layout::SLICES[0]).shared,
            "score" if name.contains("latents") => layout::score_latents(precision, size, 256).shared,
            "score" => layout::score(precision).shared,
            // A block's own tile of the gradients, and slices of 128 columns.
            "vae" => layout::vae_epoch(precision, size, 128, 1).1,
            _ => layout::product(precision),
        };
        assert_eq!(shared.replace(',', "").parse(), Ok(expected), "{name}");
        let of = |line: &&str| line.split_whitespace().next() == Some(name);
        let bound = expectations.lines().find(of).unwrap_or_else(|| panic!("{name} has no expectations"));
        assert!(bound.contains(&format!("registers<={registers} ")), "{name}: {bound}");
        stated += 1;
    }
    assert_eq!(stated, 38);
}

/// At the paper's sizes a multiprocessor of an H100, with 228 KiB of shared memory and 1 KiB of it taken by
/// every block, has room for three blocks of each kernel that goes through rows in BF16 but `score` and
/// `synthesize`, which have room for two. Registers allow as many: 168 a thread of 128 (`kernels/expectations.txt`).
#[test]
fn three_blocks_fit_a_multiprocessor() {
    let size = VaeSize::new(4096, 64, 16).expect("sizes");
    let room = |block: layout::Block| (228 << 10) / (block.shared + 1024);
    assert_eq!(room(layout::encode(Precision::Bf16, size)), 3);
    assert_eq!(room(layout::decode(Precision::Bf16, size, layout::SLICES[0])), 3);
    assert_eq!(room(layout::score_latents(Precision::Bf16, size, 256)), 3);
    assert_eq!(room(layout::score(Precision::Bf16)), 2);
    assert_eq!(room(layout::synthesize(size, 2, 8)), 2);
}

/// A Turing GPU runs everything in F32: what needs no BF16 tensor cores is compiled for it.
#[test]
fn every_kernel_of_f32_is_compiled_for_turing() {
    let of_tensor_cores = |name: &&str| {
        ["probe_", "floor_"].iter().any(|start| name.starts_with(start))
            || name.contains("_bf16_")
            || [
                "reconstruct_bf16",
                "vae_epoch_bf16",
                "score_latents_bf16",
                "product_nt_bf16",
                "product_tn_bf16",
                "product_nn_bf16",
            ]
            .contains(name)
    };
    for image in kernels::IMAGES {
        // LENSMITH_CUDA_ARCHS chose other architectures than the build's default.
        if image.ptx.is_none() || std::env::var_os("LENSMITH_CUDA_ARCHS").is_some() {
            continue;
        }
        for symbol in image.symbols.iter().filter(|s| !of_tensor_cores(s)) {
            assert!(image.lowest <= 75, "{symbol} is not compiled for compute capability 7.5");
        }
    }
}

fn models(dim: usize) -> (Vae, RewardModel) {
    let vae = Vae::init(VaeSize::new(dim, 64, 16).expect("sizes"), 1);
    (vae, RewardModel::init(RewardSize::new(dim, 64).expect("sizes"), 2))
}

/// Posteriors, decoded rows and scores of 700 rows on a device.
fn made(b: &impl Backend, rows: RowSet<'_>, vae: &Vae, reward: &RewardModel) -> [Vec<f32>; 3] {
    let (dim, n) = (rows.cols(), rows.rows());
    let (vae, reward) = (b.load_vae(vae).expect("loads"), b.load_reward(reward).expect("loads"));
    let embeddings = b.embeddings(rows).expect("uploads");
    let codes = b.posteriors(&b.encode(&vae, &embeddings).expect("encodes")).expect("downloads");
    let z = Matrix::new(codes.mu.values.clone(), n, 16).expect("a matrix");
    let latents = b.load_latents(&z, &vec![0; n]).expect("uploads");
    let mut out = poisoned(Dtype::Bf16, n, dim);
    b.decode(&vae, &latents, None, out.values_mut()).expect("decodes");
    let mut scores = vec![f32::NAN; n];
    b.score(&reward, &embeddings, &mut scores).expect("scores");
    [codes.mu.values, widened(&out), scores]
}

fn with_memory(memory: usize) -> Cuda {
    simulated(Races::Ignored, Simulated { memory, ..Simulated::default() }, Precision::F32)
}

/// Lines of the library's log.
static SAID: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Listener;

impl tracing::Subscriber for Listener {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && metadata.target().starts_with("lensmith")
    }

    fn event(&self, event: &Event<'_>) {
        struct Message;
        impl Visit for Message {
            fn record_debug(&mut self, _: &Field, value: &dyn Debug) {
                SAID.lock().expect("no test panics here").push(format!("{value:?}"));
            }
        }
        event.record(&mut Message);
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

#[test]
fn short_of_memory_the_pieces_shrink_and_the_bits_stay() {
    tracing::subscriber::set_global_default(Listener).expect("the only subscriber");
    let dim = 128;
    let rows = data_buf(Dtype::F32, 3, 700, dim);
    let set = || RowSet::from(rows.view());
    let (vae, reward) = models(dim);
    let want = made(&Cpu::new(1, Precision::F32).expect("the CPU backend"), set(), &vae, &reward);
    // Enough memory; too little for all embeddings; too little for two chunks of output of more than 128
    // rows.
    for memory in [1 << 30, 700_000, 300_000] {
        let got = made(&with_memory(memory), set(), &vae, &reward);
        for (got, want) in got.iter().zip(&want) {
            common::assert_same_bits(&format!("{memory} bytes"), got, want);
        }
    }
    if tested_gpu().is_none() {
        let said = SAID.lock().expect("no test panics here").join("\n");
        assert!(said.contains("700 embeddings stay on the host: out of memory"), "{said}");
        assert!(said.contains("short of memory: writing") && said.contains("instead of 700"), "{said}");
    }
}

#[test]
fn far_too_little_memory_is_an_error_that_says_so() {
    let (vae, _) = models(128);
    let b = with_memory(60_000);
    let said = b.load_vae(&vae).map(drop).expect_err("no room for the model").to_string();
    assert!(said.contains(": out of memory") && said.contains("MiB free"), "{said}");
    assert!(said.contains("MiB wanted for weight,"), "{said}");
    assert!(said.contains("`device` cpu"), "{said}");
}

/// Embeddings that do not fit are trained on, and added to in residual decoding, where they lie: over the bus.
#[test]
fn what_does_not_fit_is_read_from_the_host() {
    let rows = data_buf(Dtype::F32, 3, 700, 128);
    let set = || RowSet::from(rows.view());
    let (vae, _) = models(128);
    let objective = VaeObjective {
        reconstruction: Reduction::Mean,
        beta: 1e-3,
        gamma: 0.1,
        divergence: Divergence::W2,
        batch: 16,
        adam: Adam::with_lr(1e-3),
        seed: 1,
    };
    let order: Vec<u32> = (0..40).map(|i| i * 17 % 700).collect();
    let made = |b: &Cuda| {
        let mut trainer = b.vae_trainer(&vae, &standardizer(128), &objective).expect("starts");
        let embeddings = b.embeddings(set()).expect("uploads, or stays on the host");
        let data = PairData { chosen: &embeddings, rejected: &embeddings };
        b.vae_epoch(&mut trainer, &data, &order, 0).expect("trains");
        let trained = b.vae_parameters(&trainer).expect("downloads");
        drop(trainer);
        let device_vae = b.load_vae(&vae).expect("loads");
        let posteriors = b.encode(&device_vae, &embeddings).expect("encodes");
        let z = Matrix::new(vec![0.5; 40 * 16], 40, 16).expect("a matrix");
        let latents = b.load_latents(&z, &order).expect("uploads");
        let mut out = poisoned(Dtype::Bf16, 40, 128);
        let residual = Residual { embeddings: &embeddings, posteriors: &posteriors };
        b.decode(&device_vae, &latents, Some(residual), out.values_mut()).expect("decodes");
        let layers = trained.encoder.iter().chain(&trained.decoder).flat_map(|l| l.weight.clone());
        [layers.collect::<Vec<f32>>(), widened(&out)]
    };
    let want = made(&with_memory(1 << 30));
    let short = with_memory(600_000);
    for (got, want) in made(&short).iter().zip(&want) {
        common::assert_same_bits("weights and decoded rows", got, want);
    }
    if tested_gpu().is_none() {
        let fail = "cuMemHostGetDevicePointer_v2:2";
        let refusing = Simulated { memory: 600_000, fail, ..Simulated::default() };
        let b = simulated(Races::Ignored, refusing, Precision::F32);
        let mut trainer = b.vae_trainer(&vae, &standardizer(128), &objective).expect("starts");
        let embeddings = b.embeddings(set()).expect("stays on the host");
        let data = PairData { chosen: &embeddings, rejected: &embeddings };
        let said = b.vae_epoch(&mut trainer, &data, &order, 0).expect_err("no room at all").to_string();
        assert!(said.contains("no room for their 0.0 GiB") && said.contains("OUT_OF_MEMORY"), "{said}");
    }
}

#[test]
fn what_a_device_cannot_do_is_refused_with_words() {
    let options = Simulated { shared: 48 << 10, ..Simulated::default() };
    let b = simulated(Races::Ignored, options, Precision::F32);
    let vae = Vae::init(VaeSize::new(40, 16, 1024).expect("sizes"), 1);
    let rows = data_buf(Dtype::F32, 3, 5, 40);
    let vae = b.load_vae(&vae).expect("loads");
    let embeddings = b.embeddings(rows.view().into()).expect("uploads");
    let posteriors = b.encode(&vae, &embeddings).expect("encodes by layers");
    let key = NoiseKey { seed: 1, side: Side::Chosen, first_row: 0 };
    let said = b.select(&posteriors, key, &Perturbation::default()).map(drop).expect_err("too wide");
    let said = said.to_string();
    assert!(said.contains("bytes of shared memory") && said.contains("`vae.latent`"), "{said}");
    if tested_gpu().is_some() {
        return; // it has tensor cores
    }
    let old = gpu(Races::Ignored, Simulated { capability: (7, 5), ..Simulated::default() });
    let said = Cuda::over(Arc::new(old), Precision::Bf16).expect_err("no tensor cores").to_string();
    assert!(said.contains("`precision` bf16 needs BF16 tensor cores"), "{said}");
}

/// A Turing GPU has less shared memory and no BF16 tensor cores: narrower slices, the same bits.
#[test]
fn a_turing_gpu_gives_the_cpus_bits() {
    let turing = Simulated { shared: 64 << 10, capability: (7, 5), ..Simulated::default() };
    let b = simulated(Races::Ignored, turing, Precision::F32);
    let cpu = Cpu::new(1, Precision::F32).expect("the CPU backend");
    let rows = data_buf(Dtype::F16, 3, 70, 264);
    let (vae, reward) = models(264);
    let set = || RowSet::from(rows.view());
    for (got, want) in made(&b, set(), &vae, &reward).iter().zip(&made(&cpu, set(), &vae, &reward)) {
        common::assert_same_bits("encode, decode, score", got, want);
    }
    let [got, want] =
        [drawn_and_scored(&b, set(), &vae, &reward), drawn_and_scored(&cpu, set(), &vae, &reward)];
    assert_eq!(got.0, want.0, "candidates");
    common::assert_same_bits("latents", &got.1, &want.1);
    common::assert_same_bits("scores of latents", &got.2, &want.2);
}

/// Candidates, latents and scores of latents of a few samples a row.
fn drawn_and_scored(
    b: &impl Backend,
    rows: RowSet<'_>,
    vae: &Vae,
    reward: &RewardModel,
) -> (Vec<u32>, Vec<f32>, Vec<f32>) {
    let folded = FoldedReward::new(vae, reward).expect("folds");
    let (vae, folded) = (b.load_vae(vae).expect("loads"), b.load_folded(&folded).expect("loads"));
    let n = rows.rows() as u32;
    let posteriors = b.encode(&vae, &b.embeddings(rows).expect("uploads")).expect("encodes");
    let key = NoiseKey { seed: 9, side: Side::Rejected, first_row: 5 };
    let options = Perturbation {
        sigma2: 0.01,
        top_k: 3,
        oversample: 4,
        likelihood: Likelihood::Posterior,
        source: LatentSource::Sample,
    };
    let candidates = b.select(&posteriors, key, &options).expect("selects").candidates;
    let samples: Vec<Sample> =
        (0..3 * n).map(|i| Sample { row: i / 3, candidate: candidates[i as usize] }).collect();
    let latents = b.perturb(&posteriors, key, &options, &samples).expect("perturbs");
    let mut scores = vec![f32::NAN; samples.len()];
    b.score_latents(&folded, &latents, None, &mut scores).expect("scores");
    (candidates, b.latents(&latents).expect("downloads").values, scores)
}

/// VAE training with a search for races, and under several schedules: the same bits.
#[test]
fn vae_training_does_not_depend_on_the_schedule() {
    let dim = 40;
    let sides = [5, 6].map(|s| data_buf(Dtype::Bf16, s, 37, dim));
    let vae = Vae::init(VaeSize::new(dim, 48, 16).expect("sizes"), 7);
    let objective = VaeObjective {
        reconstruction: Reduction::Sum,
        beta: 1.0,
        gamma: 0.1,
        divergence: Divergence::W2,
        batch: 20,
        adam: Adam::with_lr(1e-3),
        seed: 1,
    };
    let order: Vec<u32> = (0..37).rev().collect();
    let mut seen: Vec<Vec<u32>> = Vec::new();
    for (races, schedule) in [
        (Races::Found, Schedule::ALL[0]),
        (Races::Found, Schedule::ALL[2]),
        (Races::Ignored, Schedule::ALL[1]),
        (Races::Ignored, Schedule::ALL[3]),
    ] {
        let b = simulated(races, Simulated { schedule, ..Simulated::default() }, Precision::F32);
        let [chosen, rejected] = sides.each_ref().map(|s| b.embeddings(s.view().into()).expect("uploads"));
        let mut trainer = b.vae_trainer(&vae, &standardizer(dim), &objective).expect("starts");
        let data = PairData { chosen: &chosen, rejected: &rejected };
        let loss = b.vae_epoch(&mut trainer, &data, &order, 3).expect("trains");
        let made = b.vae_parameters(&trainer).expect("parameters");
        let layers = made.encoder.iter().chain(&made.decoder);
        let mut bits: Vec<u32> =
            layers.flat_map(|l| l.weight.iter().chain(&l.bias)).map(|v| v.to_bits()).collect();
        bits.push(loss.total.to_bits() as u32);
        seen.push(bits);
    }
    assert!(seen.windows(2).all(|w| w[0] == w[1]), "training depends on the schedule");
}

/// The same for reward training: originals and folded samples mixed, plain and residual, in both precisions.
#[test]
fn reward_training_does_not_depend_on_the_schedule() {
    let dim = 40;
    let sides = [8, 9].map(|s| data_buf(Dtype::F16, s, 11, dim));
    let vae = Vae::init(VaeSize::new(dim, 48, 16).expect("sizes"), 7);
    let model = RewardModel::init(RewardSize::new(dim, 80).expect("sizes"), 3);
    let z = Matrix::new(common::normals(4, 4, 20 * 16), 20, 16).expect("a matrix");
    let owners = common::indices(1, 20, 11);
    // 37 pairs in batches of 20 over originals (below 11) and samples.
    let ends = [common::indices(2, 37, 31), common::indices(3, 37, 31)];
    let pairs: Vec<PairRows> = ends[0].iter().zip(&ends[1]).map(|(&a, &b)| [a, b]).collect();
    for (precision, residual) in [(Precision::F32, false), (Precision::F32, true), (Precision::Bf16, true)] {
        let mut seen: Vec<Vec<u32>> = Vec::new();
        for (races, schedule) in [(Races::Found, Schedule::ALL[2]), (Races::Ignored, Schedule::ALL[1])] {
            let b = simulated(races, Simulated { schedule, ..Simulated::default() }, precision);
            let device_vae = b.load_vae(&vae).expect("loads");
            let originals = sides.each_ref().map(|s| b.embeddings(s.view().into()).expect("uploads"));
            let posteriors = originals.each_ref().map(|e| b.encode(&device_vae, e).expect("encodes"));
            let latents = b.load_latents(&z, &owners).expect("uploads");
            let side = |s: usize| {
                let residual =
                    residual.then_some(Residual { embeddings: &originals[s], posteriors: &posteriors[s] });
                let synthetic = Synthetic { vae: &device_vae, latents: &latents, residual };
                RewardSide { originals: &originals[s], synthetic: Some(synthetic) }
            };
            let data = RewardData { chosen: side(0), rejected: side(1) };
            let (adam, input_noise) = (Adam::with_lr(1e-3), if residual { 0.2 } else { 0.0 });
            let objective =
                RewardObjective { batch: 20, adam, input_noise, seed: 4, ..RewardObjective::default() };
            let mut trainer = b.reward_trainer(&model, &standardizer(dim), &objective).expect("starts");
            let loss = b.reward_epoch(&mut trainer, &data, &pairs).expect("trains");
            let made = b.reward_parameters(&trainer).expect("parameters");
            assert!(loss.is_finite() && made != model);
            let values = made.layers.iter().flat_map(|l| l.weight.iter().chain(&l.bias));
            seen.push(values.map(|v| v.to_bits()).collect());
        }
        assert!(seen[0] == seen[1], "{precision}, residual {residual}: depends on the schedule");
    }
}

/// The environment of a process whose libcuda is the stand-in, with `more` settings.
fn driver(lab: &Lab, more: &str) -> [(&'static str, String); 2] {
    let folder = lab.at("driver");
    if !Path::new(&folder).exists() {
        std::fs::create_dir(&folder).expect("a folder");
        stand_in(Path::new(&folder));
    }
    let folder = folder.to_str().expect("a text").to_string();
    [("LD_LIBRARY_PATH", folder), ("PTX_DRIVER", settings(more))]
}

/// Runs `line` on `device`.
fn run(lab: &Lab, line: &str, device: &str, environment: &[(&str, String)]) -> Said {
    let mut command = bare(Command::new(env!("CARGO_BIN_EXE_lensmith")));
    command.args(lab.words(line)).args(["--device", device]).envs(environment.iter().cloned());
    let said: Said = command.output().expect("lensmith runs").into();
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_eq!(said.err, "", "{said:?}");
    said
}

const RUN: &str = "run @pairs.safetensors --seeds 40 --validation-pairs 10 --hidden 16 --latent 16 \
    --reward-hidden 16 --vae-epochs 3 --vae-batch 16 --epochs 2 --batch 32 --vae-lr 1e-3 --fold 4 --json";

fn number(value: &Value, pointer: &str) -> f64 {
    value.pointer(pointer).and_then(Value::as_f64).unwrap_or_else(|| panic!("no {pointer} in {value}"))
}

#[test]
fn a_run_on_the_device_is_the_cpus() {
    let lab = Lab::new();
    lab.pairs("pairs.safetensors", Dtype::F32, 70, 24, 5);
    let ways = [("cpu", "cpu", Vec::new()), ("cuda", "cuda:0", driver(&lab, "").to_vec())];
    let mut runs = Vec::new();
    for (name, device, environment) in &ways {
        run(&lab, &format!("{RUN} --out @{name}"), device, environment);
        runs.push((*name, lab.value(&format!("{name}/run.json"))));
        // The same seeds and one VAE, the CPU's: the same bytes of embeddings, whichever device decodes.
        let synth = format!(
            "synth @cpu/seeds.safetensors --vae @cpu/vae.safetensors --fold 8 --shard-rows 50 --out @synth_{name}"
        );
        run(&lab, &synth, device, environment);
    }
    // Two parts made on the device are, together, the data set that one job made on the CPU.
    for part in ["1/2", "0/2"] {
        let synth = format!(
            "synth @cpu/seeds.safetensors --vae @cpu/vae.safetensors --fold 8 --shard-rows 50 --part {part} --out @synth_parts"
        );
        run(&lab, &synth, "cuda", &driver(&lab, ""));
    }
    let shards = |name: &str| common::cli::shards(&common::cli::outputs(&lab.at(&format!("synth_{name}"))));
    let (first, want) = &runs[0];
    common::cli::assert_same_files("parts", &shards("parts"), &shards(first));
    for (name, got) in &runs[1..] {
        common::cli::assert_same_files(name, &shards(name), &shards(first));
        for loss in ["total", "reconstruction", "kl", "divergence"] {
            // The last of three epochs.
            let pointer = format!("/repeats/0/vae_history/2/{loss}");
            let (got, want) = (number(got, &pointer), number(want, &pointer));
            assert!((got - want).abs() <= 1e-5 * want.abs(), "{name} {loss}: {got}, {want} on the CPU");
        }
    }
}

/// On a GPU `bench` compares kernels with the GPU's memory rates; operations that end on the host have no
/// limit there.
#[test]
fn bench_measures_kernels_beside_calls() {
    let lab = Lab::new();
    let line = "bench --dim 24 --rows 8 --hidden 16 --reward-hidden 16 --seeds 4 --repeat 1 --only decode --only encode \
                --only folded --only vae-epoch --plot @roof.svg --json";
    let report = run(&lab, line, "cuda", &driver(&lab, "")).json();
    let limits = report["limits"].as_array().expect("limits").iter();
    let resources: Vec<&Value> = limits.map(|l| &l["resource"]).collect();
    assert!(resources.contains(&&"write".into()) && resources.contains(&&"copy".into()), "{report}");
    let entries = report["entries"].as_array().expect("entries");
    for operation in ["decode", "encode", "folded"] {
        let of = |end: &str| {
            let ends =
                |e: &&Value| e["operation"] == operation && e["what"].as_str().expect("words").ends_with(end);
            entries.iter().find(ends).unwrap_or_else(|| panic!("{operation}, no entry that ends with {end}"))
        };
        assert!(of("on the device")["share"].as_f64().is_some_and(|s| s > 0.0), "{operation}");
        assert!(of("to the host")["share"].is_null(), "{operation}");
    }
    assert!(std::fs::read_to_string(lab.at("roof.svg")).expect("a picture").contains("encode from BF16"));
}

/// Several devices open under names of their own, and refuse each other's memory.
#[test]
fn devices_stand_side_by_side() {
    if tested_gpu().is_some() {
        return;
    }
    let both = [0, 1].map(|_| simulated(Races::Ignored, Simulated::default(), Precision::F32));
    let (vae, reward) = models(24);
    let rows = data_buf(Dtype::F32, 3, 9, 24);
    let want =
        made(&Cpu::new(1, Precision::F32).expect("the CPU backend"), rows.view().into(), &vae, &reward);
    // At the same time, as their threads run.
    std::thread::scope(|scope| {
        for b in &both {
            scope.spawn(|| {
                for (got, want) in made(b, rows.view().into(), &vae, &reward).iter().zip(&want) {
                    common::assert_same_bits(&b.info().name, got, want);
                }
            });
        }
    });
    // A model on one device, embeddings on the other.
    let vae = both[0].load_vae(&vae).expect("loads");
    let embeddings = both[1].embeddings(rows.view().into()).expect("uploads");
    let said = both[1].encode(&vae, &embeddings).map(drop).expect_err("memory of another device").to_string();
    let names = both.each_ref().map(|b| b.info().name);
    assert!(said.contains(&format!("device {}: launching encode_f32", names[1])), "{said}");
    let [a, b] = both;
    let all = AnyBackend::Cuda(vec![a, b]);
    assert_eq!(all.infos().into_iter().map(|i| i.name).collect::<Vec<_>>(), names);
    assert_eq!(all.info().name, names[0]);
}

/// Several devices make the same bytes as one; commands that use one device take the first.
#[test]
fn all_devices_write_what_one_writes() {
    let lab = Lab::new();
    lab.pairs("pairs.safetensors", Dtype::F32, 40, 24, 5);
    let train = "train-vae @pairs.safetensors --hidden 16 --vae-epochs 2 --out @vae.safetensors";
    run(&lab, train, "cpu", &[]);
    let line = "synth @pairs.safetensors --vae @vae.safetensors --fold 8 --shard-rows 20 --out @";
    for kind in ["embeddings", "latents"] {
        run(&lab, &format!("{line}cpu-{kind} --output {kind}"), "cpu", &[]);
    }
    for (name, count) in [("three", 3), ("two", 2)] {
        let environment = &driver(&lab, &format!("count={count},queue=random:{count}"));
        for kind in ["embeddings", "latents"] {
            run(&lab, &format!("{line}{name}-{kind} --output {kind}"), "cuda:all", environment);
            let [got, want] = [name, "cpu"].map(|n| common::cli::outputs(&lab.at(&format!("{n}-{kind}"))));
            assert!(common::cli::shards(&want).len() == 16);
            common::cli::assert_same_files(name, &got, &want);
        }
        for (device, number) in [("cuda:all", 0), ("cuda:1", 1)] {
            let train = train.replace("@vae", &format!("@{name}-{number}"));
            let said = run(&lab, &format!("{train} --json"), device, environment).json();
            assert_eq!(said["device"]["name"], format!("cuda:{number}"), "{said}");
        }
    }
}

/// Rows that lie on the device are read where they lie, and results stay there, with the bits that copies have.
#[test]
fn arrays_on_the_device_have_the_bits_of_the_hosts() {
    let dim = 40;
    let rows = data_buf(Dtype::F16, 3, 23, dim);
    let (vae, reward) = models(dim);
    for exact in [true, false] {
        let b = simulated(Races::Found, Simulated { exact, ..Simulated::default() }, Precision::F32);
        let want = made(&b, rows.view().into(), &vae, &reward);
        let (v, r) = (b.load_vae(&vae).expect("loads"), b.load_reward(&reward).expect("loads"));
        let x = Backend::upload_array(&b, &rows).expect("uploads");
        assert_eq!((x.rows(), x.cols(), x.dtype()), (23, dim, Dtype::F16));
        let host = |array: &DeviceArray| Backend::download_array(&b, array).expect("downloads");
        assert_eq!(host(&x).bytes(), rows.bytes());
        let [mu, logvar] = b.encode_array(&v, &x).expect("encodes");
        common::assert_same_bits("mu", &widened(&host(&mu)), &want[0]);
        assert_eq!((logvar.rows(), logvar.cols(), logvar.dtype()), (23, 16, Dtype::F32));
        let out = b.decode_array(&v, &mu, Dtype::Bf16).expect("decodes");
        common::assert_same_bits("embeddings", &widened(&host(&out)), &want[1]);
        common::assert_same_bits(
            "rewards",
            &widened(&host(&b.score_array(&r, &x).expect("scores"))),
            &want[2],
        );

        // Rows 1 and on of the same memory, which begin at no multiple of 16 where the width is odd.
        let (odd, narrow) =
            (data_buf(Dtype::F16, 4, 9, 33), Vae::init(VaeSize::new(33, 16, 16).expect("sizes"), 5));
        let narrow = b.load_vae(&narrow).expect("loads");
        let whole = Backend::upload_array(&b, &odd).expect("uploads");
        let at = whole.address() + 33 * 2;
        // SAFETY: inside of the whole, which is kept.
        #[allow(unsafe_code)]
        let part =
            unsafe { DeviceArray::from_raw(x.device(), at, (8, 33), Dtype::F16, Arc::new(whole.clone())) };
        let [all, some] =
            [&whole, &part].map(|x| widened(&host(&b.encode_array(&narrow, x).expect("encodes")[0])));
        common::assert_same_bits("rows 1 and on", &some, &all[16..]);

        // None, too few columns, of another type.
        let none = Backend::upload_array(&b, &RowsBuf::zeros(Dtype::F32, 0, dim)).expect("uploads");
        assert_eq!(b.score_array(&r, &none).expect("scores").rows(), 0);
        let said = b.score_array(&r, &whole).expect_err("33 columns").to_string();
        assert!(said.contains("columns of the embeddings") && said.contains("40"), "{said}");
        let half = Backend::upload_array(&b, &data_buf(Dtype::F16, 5, 3, 16)).expect("uploads");
        let said = b.decode_array(&v, &half, Dtype::F32).expect_err("F16").to_string();
        assert!(said.contains("storage type of the latents"), "{said}");
        if tested_gpu().is_none() {
            let other = simulated(Races::Ignored, Simulated::default(), Precision::F32);
            let r = other.load_reward(&reward).expect("loads");
            let said = other.score_array(&r, &x).expect_err("of another device").to_string();
            assert!(said.contains("lie in the memory of cuda:"), "{said}");
        }
    }
    let cpu = Cpu::new(1, Precision::F32).expect("the CPU backend");
    let said = cpu.upload_array(&rows).expect_err("no GPU").to_string();
    assert!(said.contains("device: expected a GPU"), "{said}");
}

/// Pairs that stay on the device have the bits of those that are copied to the host, in any order.
#[test]
fn pairs_stay_on_the_device() {
    let dim = 40;
    let sides = [5, 6].map(|s| data_buf(Dtype::F32, s, 12, dim));
    let (vae, _) = models(dim);
    let seeds = sides.each_ref().map(|side| RowSet::from(side.view()));
    let cpu = Cpu::new(1, Precision::F32).expect("the CPU backend");
    for (mode, dtype) in [(DecodeMode::Plain, Dtype::Bf16), (DecodeMode::Residual, Dtype::F32)] {
        let options = SynthesisOptions { mode, ..SynthesisOptions::default() };
        let b = simulated(Races::Found, Simulated::default(), Precision::F32);
        let lookup = PairLookup::new(&b, &vae, &seeds, &options).expect("prepares");
        let host = PairLookup::new(&cpu, &vae, &seeds, &options).expect("prepares");
        // Originals and samples, mixed; originals alone; samples alone.
        let mixed: Vec<u64> = vec![3, 40, 0, 17, 12, 40, 11, 30];
        for numbers in [mixed, vec![2, 1], vec![20, 21, 22]] {
            let want = host.take(&numbers, dtype, false).expect("makes");
            let got = lookup.take_on_device(&numbers, dtype).expect("makes");
            for (got, want) in got.iter().zip([&want.chosen, &want.rejected]) {
                let got = Backend::download_array(&b, got).expect("downloads");
                assert!(got.bytes() == want.bytes(), "{mode:?}, {dtype}, {numbers:?}");
            }
        }
    }
}

#[test]
fn a_run_in_bf16_loses_as_the_cpus() {
    let lab = Lab::new();
    lab.pairs("pairs.safetensors", Dtype::Bf16, 200, 64, 5);
    let line = "run @pairs.safetensors --seeds 128 --validation-pairs 30 --latent 16 --reward-hidden 32 \
        --vae-epochs 4 --vae-batch 64 --epochs 3 --batch 64 --vae-lr 1e-3 --fold 4 --json";
    run(&lab, &format!("{line} --out @cpu"), "cpu", &[]);
    let bf16 = format!("{line} --precision bf16 --out @bf16");
    run(&lab, &bf16, "cuda", &driver(&lab, ""));
    let (want, got) = (lab.value("cpu/run.json"), lab.value("bf16/run.json"));
    for loss in ["total", "reconstruction", "divergence"] {
        // The last of four epochs.
        let pointer = format!("/repeats/0/vae_history/3/{loss}");
        let (got, want) = (number(&got, &pointer), number(&want, &pointer));
        println!("{loss}: off by {:e}", (got - want).abs() / want.abs());
        assert!((got - want).abs() <= 1e-3 * want.abs(), "{loss}: {got}, {want} on the CPU");
    }
    let mut arms = 0;
    for (got, want) in got["repeats"][0]["arms"]
        .as_array()
        .expect("arms")
        .iter()
        .zip(want["repeats"][0]["arms"].as_array().expect("arms"))
    {
        let (got, want) = (number(got, "/test/loss"), number(want, "/test/loss"));
        println!("test loss: off by {:e}", (got - want).abs() / want.abs());
        assert!((got - want).abs() <= 1e-3 * want.abs(), "{got}, {want} on the CPU");
        arms += 1;
    }
    assert!(arms >= 2, "{arms} arms");
}

#[test]
fn a_device_that_is_not_there_is_said_once() {
    let lab = Lab::new();
    lab.pairs("pairs.safetensors", Dtype::F32, 40, 24, 5);
    let line = "train-vae @pairs.safetensors --hidden 16 --vae-epochs 1 --out @vae.safetensors";
    let mut command = bare(Command::new(env!("CARGO_BIN_EXE_lensmith")));
    command.args(lab.words(line)).args(["--device", "auto"]).env("LD_LIBRARY_PATH", "/nowhere");
    let said: Said = command.output().expect("lensmith runs").into();
    assert_eq!(said.code, Some(0), "{said:?}");
    if said.out.contains(" on cuda:") {
        return; // this machine has a GPU
    }
    assert_eq!(said.err.lines().count(), 1, "{said:?}");
    assert!(said.err.starts_with("lensmith: computing on the CPU: "), "{said:?}");
    let mut command = bare(Command::new(env!("CARGO_BIN_EXE_lensmith")));
    command.args(lab.words(line)).args(["--device", "reference", "--overwrite", "--precision", "bf16"]);
    let said: Said = command.output().expect("lensmith runs").into();
    assert_eq!(said.code, Some(2), "{said:?}");
    assert!(said.err.contains("--precision") && said.err.contains("f32"), "{said:?}");
}

#[test]
fn posteriors_of_both_sides_keep_their_noise() {
    // The same block under several keys: neither sides nor rows may share noise.
    let (vae, _) = models(24);
    let rows = data_buf(Dtype::F16, 3, 9, 24);
    let b = with_memory(1 << 30);
    let vae = b.load_vae(&vae).expect("loads");
    let embeddings = b.embeddings(rows.view().into()).expect("uploads");
    let sample = |side, first_row| {
        let key = NoiseKey { seed: 5, side, first_row };
        let drawn = b.encode_sample(&vae, &embeddings, key).expect("samples");
        b.latents(&drawn).expect("downloads").values
    };
    let all = [sample(Side::Chosen, 0), sample(Side::Rejected, 0), sample(Side::Chosen, 9)];
    assert!(all[0] != all[1] && all[0] != all[2] && all[1] != all[2]);
    assert_eq!(sample(Side::Chosen, 0), all[0]);
}
