//! The CUDA backend as a whole, its kernels under emulation: the command, the launch layer's sizes, memory
//! that runs out, and the driver's calls through a stand-in for libcuda.

#![cfg(target_os = "linux")]

mod common;
#[path = "cuda/steps.rs"]
mod steps;

use std::fmt::Debug;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;

use common::cli::{Lab, Said, bare};
use common::emulation::{Build, Emulator, Schedule, emulated, library, stand_in, tested_gpu};
use common::{data_buf, poisoned, standardizer, widened};
use lensmith::backend::cpu::Cpu;
use lensmith::backend::cuda::{Cuda, Emulated, EmulatedDriver, kernels, layout};
use lensmith::backend::{
    Adam, AnyBackend, Backend, Divergence, LatentSource, Likelihood, NoiseKey, PairData, PairRows,
    Perturbation, Precision, Reduction, Residual, RewardData, RewardObjective, RewardSide, Sample, Synthetic,
    VaeObjective,
};
use lensmith::dtype::Dtype;
use lensmith::matrix::{Matrix, RowSet, Side};
use lensmith::model::{FoldedReward, RewardModel, RewardSize, Vae, VaeSize};
use serde_json::Value;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata};

const HIDDEN: [usize; 5] = [16, 48, 64, 80, 256];
const LATENT: [usize; 3] = [16, 32, 48];

/// A kernel's own count of its shared memory against the launch layer's.
#[test]
fn shared_memory_is_what_the_kernels_count() {
    let emulator = Emulator::get(Build::Fast);
    let same = |kernel: &str, sizes: &[usize], ours: usize| {
        let sizes: Vec<u32> = sizes.iter().map(|&s| s as u32).collect();
        assert_eq!(emulator.shared_bytes(kernel, &sizes), ours, "{kernel} {sizes:?}");
    };
    for (precision, p) in [(Precision::F32, "f32"), (Precision::Bf16, "bf16")] {
        for form in ["nt", "tn", "nn"] {
            same(&format!("product_{form}_{p}"), &[], layout::product(precision));
        }
        for dtype in ["f32", "f16", "bf16"] {
            same(&format!("score_{p}_{dtype}"), &[], layout::score(precision).shared);
        }
        for latent in LATENT {
            for hidden in HIDDEN {
                let size = VaeSize::new(100, hidden, latent).expect("sizes");
                for dtype in ["f32", "f16", "bf16"] {
                    let encode = layout::encode(precision, size).shared;
                    same(&format!("encode_{p}_{dtype}"), &[hidden, latent], encode);
                    for columns in layout::SLICES {
                        let decode = layout::decode(precision, size, columns).shared;
                        same(&format!("decode_{p}_{dtype}"), &[hidden, latent, columns], decode);
                    }
                }
                let score = layout::score_latents(precision, size, 256).shared;
                // The exact kernel loops over the width in slices of 64.
                let sizes = [hidden, latent, 256];
                let sizes = if precision == Precision::F32 { &sizes[..2] } else { &sizes };
                same(&format!("score_latents_{p}"), sizes, score);
            }
        }
    }
    for latent in LATENT {
        for (keep, drawn) in [(1, 1), (1, 4), (3, 12), (31, 124), (256, 1024), (256, 256)] {
            same("select_f32", &[latent, keep, drawn], layout::select(latent, keep, drawn).shared);
        }
    }
}

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
        let expected = match name.split('_').next().expect("a word") {
            "encode" => layout::encode(precision, size).shared,
            "decode" => layout::decode(precision, size, layout::SLICES[0]).shared,
            "score" if name.contains("latents") => layout::score_latents(precision, size, 256).shared,
            "score" => layout::score(precision).shared,
            _ => layout::product(precision),
        };
        assert_eq!(shared.replace(',', "").parse(), Ok(expected), "{name}");
        let of = |line: &&str| line.split_whitespace().next() == Some(name);
        let bound = expectations.lines().find(of).unwrap_or_else(|| panic!("{name} has no expectations"));
        assert!(bound.contains(&format!("registers<={registers} ")), "{name}: {bound}");
        stated += 1;
    }
    assert_eq!(stated, 26);
}

/// At the paper's sizes a multiprocessor of an H100, with 228 KiB of shared memory and 1 KiB of it taken by
/// every block, has room for three blocks of each kernel that goes through rows in BF16 but `score`, which
/// has room for two. Registers allow as many: 168 a thread of 128 (`kernels/expectations.txt`).
#[test]
fn three_blocks_fit_a_multiprocessor() {
    let size = VaeSize::new(4096, 64, 16).expect("sizes");
    let room = |block: layout::Block| (228 << 10) / (block.shared + 1024);
    assert_eq!(room(layout::encode(Precision::Bf16, size)), 3);
    assert_eq!(room(layout::decode(Precision::Bf16, size, layout::SLICES[0])), 3);
    assert_eq!(room(layout::score_latents(Precision::Bf16, size, 256)), 3);
    assert_eq!(room(layout::score(Precision::Bf16)), 2);
}

/// Every kernel of the launch layer is compiled for GPUs, and the other way round.
#[test]
fn emulated_and_compiled_kernels_are_the_same() {
    if kernels::TOOLKIT.is_none() {
        return;
    }
    let mut compiled: Vec<&str> = kernels::IMAGES.iter().flat_map(|i| i.symbols.iter().copied()).collect();
    compiled.sort_unstable();
    let emulated = Emulator::get(Build::Fast).kernels();
    let cases = |name: &&String| !name.starts_with("correct_") && !name.starts_with("fault_");
    let emulated: Vec<&str> = emulated.iter().filter(cases).map(String::as_str).collect();
    assert_eq!(compiled, emulated);
}

/// A Turing GPU runs everything in F32: what needs no BF16 tensor cores is compiled for it.
#[test]
fn every_kernel_of_f32_is_compiled_for_turing() {
    let of_tensor_cores = |name: &&str| {
        ["probe_", "floor_"].iter().any(|start| name.starts_with(start))
            || name.contains("_bf16_")
            || ["score_latents_bf16", "product_nt_bf16", "product_tn_bf16", "product_nn_bf16"].contains(name)
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
    emulated(Build::Fast, Emulated { memory, ..Emulated::default() }, Precision::F32)
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
    let rows = data_buf(Dtype::F32, 3, 700, 128);
    let set = || RowSet::from(rows.view());
    let (vae, _) = models(128);
    let b = with_memory(60_000);
    let said = b.load_vae(&vae).map(drop).expect_err("no room for the model").to_string();
    assert!(said.contains("device cuda:0: out of memory") && said.contains("MiB free"), "{said}");
    assert!(said.contains("`device` cpu"), "{said}");

    // Training needs its embeddings on the device.
    let b = with_memory(600_000);
    let objective = VaeObjective {
        reconstruction: Reduction::Mean,
        beta: 1e-3,
        gamma: 0.1,
        divergence: Divergence::W2,
        batch: 16,
        adam: Adam::with_lr(1e-3),
        seed: 1,
    };
    let mut trainer = b.vae_trainer(&vae, &standardizer(128), &objective).expect("starts");
    let embeddings = b.embeddings(set()).expect("stays on the host");
    let data = PairData { chosen: &embeddings, rejected: &embeddings };
    let said = b.vae_epoch(&mut trainer, &data, &[0, 1], 0).expect_err("not resident").to_string();
    assert!(said.contains("training needs all embeddings on the GPU"), "{said}");
}

#[test]
fn models_too_wide_for_a_block_are_refused_with_words() {
    let options = Emulated { shared: 48 << 10, ..Emulated::default() };
    let b = emulated(Build::Fast, options, Precision::F32);
    let vae = Vae::init(VaeSize::new(40, 512, 16).expect("sizes"), 1);
    let rows = data_buf(Dtype::F32, 3, 5, 40);
    let vae = b.load_vae(&vae).expect("loads");
    let embeddings = b.embeddings(rows.view().into()).expect("uploads");
    let said = b.encode(&vae, &embeddings).map(drop).expect_err("too wide").to_string();
    assert!(said.contains("bytes of shared memory") && said.contains("`vae.hidden`"), "{said}");
    let old = Emulated { tensor_cores: false, ..Emulated::default() };
    let driver = EmulatedDriver::new(Emulator::get(Build::Fast).library(), old);
    let said = Cuda::emulated(driver, Precision::Bf16).expect_err("no tensor cores").to_string();
    assert!(said.contains("`precision` bf16 needs BF16 tensor cores"), "{said}");
}

/// A Turing GPU has less shared memory and no BF16 tensor cores: narrower slices, the same bits.
#[test]
fn a_turing_gpu_gives_the_cpus_bits() {
    let turing = Emulated { shared: 64 << 10, tensor_cores: false, ..Emulated::default() };
    let b = emulated(Build::Fast, turing, Precision::F32);
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

/// Training under the check build: no race, no uninitialised read, no access past an array, in any launch of
/// a step.
#[test]
fn every_launch_passes_the_check_build() {
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
    for (build, schedule) in [
        (Build::Check, Schedule::ALL[0]),
        (Build::Check, Schedule::ALL[2]),
        (Build::Fast, Schedule::ALL[1]),
        (Build::Fast, Schedule::ALL[3]),
    ] {
        let b = emulated(build, Emulated { schedule, ..Emulated::default() }, Precision::F32);
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
fn every_launch_of_reward_training_passes_the_check_build() {
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
        for (build, schedule) in [(Build::Check, Schedule::ALL[2]), (Build::Fast, Schedule::ALL[1])] {
            let b = emulated(build, Emulated { schedule, ..Emulated::default() }, precision);
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
            let objective =
                RewardObjective { batch: 20, adam: Adam::with_lr(1e-3), ..RewardObjective::default() };
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

/// Runs `line` on `device` with the emulator behind it: as the driver, or through the stand-in for libcuda.
fn run(lab: &Lab, line: &str, device: &str, environment: &[(&str, &Path)]) -> Said {
    let mut command = bare(Command::new(env!("CARGO_BIN_EXE_lensmith")));
    command.args(lab.words(line)).args(["--device", device]).envs(environment.iter().copied());
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

/// A name, `--device`, and the environment that leads to it.
type Way<'a> = (&'a str, &'a str, Vec<(&'a str, &'a Path)>);

#[test]
fn a_run_on_the_device_is_the_cpus() {
    let lab = Lab::new();
    lab.pairs("pairs.safetensors", Dtype::F32, 70, 24, 5);
    let (folder, emulator) = (stand_in(&lab.at("")), library(Build::Fast));
    let ways: [Way<'_>; 3] = [
        ("cpu", "cpu", Vec::new()),
        ("emulator", "cuda", vec![("LENSMITH_CUDA_EMULATOR", &emulator)]),
        ("libcuda", "cuda:0", vec![("LD_LIBRARY_PATH", &folder), ("FAKE_EMULATOR", &emulator)]),
    ];
    let mut runs = Vec::new();
    for (name, device, environment) in &ways {
        // The stand-in for libcuda needs compiled kernels.
        if *name == "libcuda" && kernels::TOOLKIT.is_none() {
            continue;
        }
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
        run(&lab, &synth, "cuda", &[("LENSMITH_CUDA_EMULATOR", &emulator)]);
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
    let emulator = library(Build::Fast);
    let line = "bench --dim 24 --rows 8 --hidden 16 --reward-hidden 16 --seeds 4 --repeat 1 --only decode --only encode \
                --only folded --only vae-epoch --plot @roof.svg --json";
    let report = run(&lab, line, "cuda", &[("LENSMITH_CUDA_EMULATOR", &emulator)]).json();
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
fn emulated_devices_stand_side_by_side() {
    if tested_gpu().is_some() {
        return;
    }
    let first = EmulatedDriver::new(Emulator::get(Build::Fast).library(), Emulated::default());
    let second = first.beside(1);
    let both = [first, second].map(|d| Cuda::emulated(d, Precision::F32).expect("an emulated device"));
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
    assert!(said.contains("device cuda:1: encode_f32") && said.contains("uses memory of cuda:0"), "{said}");
    let [a, b] = both;
    let all = AnyBackend::Cuda(vec![a, b]);
    let names: Vec<String> = all.infos().into_iter().map(|i| i.name).collect();
    assert_eq!((names, all.info().name.as_str()), (vec!["cuda:0".to_string(), "cuda:1".into()], "cuda:0"));
}

/// Several devices make the same bytes as one; commands that use one device take the first.
#[test]
fn all_devices_write_what_one_writes() {
    let lab = Lab::new();
    lab.pairs("pairs.safetensors", Dtype::F32, 40, 24, 5);
    let (folder, emulator) = (stand_in(&lab.at("")), library(Build::Fast));
    let train = "train-vae @pairs.safetensors --hidden 16 --vae-epochs 2 --out @vae.safetensors";
    run(&lab, train, "cpu", &[]);
    let line = "synth @pairs.safetensors --vae @vae.safetensors --fold 8 --shard-rows 20 --out @";
    for kind in ["embeddings", "latents"] {
        run(&lab, &format!("{line}cpu-{kind} --output {kind}"), "cpu", &[]);
    }
    let path = Path::new;
    let three = vec![("LENSMITH_CUDA_EMULATOR", &*emulator), ("LENSMITH_CUDA_EMULATOR_DEVICES", path("3"))];
    let two = vec![("LD_LIBRARY_PATH", &*folder), ("FAKE_EMULATOR", &*emulator), ("FAKE_COUNT", path("2"))];
    for (name, environment) in [("emulator", &three), ("libcuda", &two)] {
        // The stand-in for libcuda needs compiled kernels.
        if name == "libcuda" && kernels::TOOLKIT.is_none() {
            continue;
        }
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

/// The number of emulated devices has bounds.
#[test]
fn emulated_devices_are_counted() {
    let lab = Lab::new();
    let emulator = library(Build::Fast);
    let refused = |device: &str, count: Option<&str>, code: i32, words: &[&str]| {
        let mut command = bare(Command::new(env!("CARGO_BIN_EXE_lensmith")));
        command.args(lab.words("demo --device")).arg(device).env("LENSMITH_CUDA_EMULATOR", &emulator);
        command.envs(count.map(|c| ("LENSMITH_CUDA_EMULATOR_DEVICES", c)));
        let said: Said = command.output().expect("lensmith runs").into();
        assert_eq!(said.code, Some(code), "{said:?}");
        assert!(words.iter().all(|w| said.err.contains(w)), "{said:?}");
    };
    refused("cuda:1", None, 1, &["device cuda:1: ", "only 1 emulated device"]);
    refused("cuda:2", Some("2"), 1, &["device cuda:2: ", "only 2 emulated devices"]);
    for count in ["0", "65", "-1", "two", ""] {
        refused("cuda:all", Some(count), 2, &["LENSMITH_CUDA_EMULATOR_DEVICES", "1 to 64"]);
    }
}

#[test]
fn a_run_in_bf16_loses_as_the_cpus() {
    let lab = Lab::new();
    lab.pairs("pairs.safetensors", Dtype::Bf16, 200, 64, 5);
    let emulator = library(Build::Fast);
    let line = "run @pairs.safetensors --seeds 128 --validation-pairs 30 --latent 16 --reward-hidden 32 \
        --vae-epochs 4 --vae-batch 64 --epochs 3 --batch 64 --vae-lr 1e-3 --fold 4 --json";
    run(&lab, &format!("{line} --out @cpu"), "cpu", &[]);
    let bf16 = format!("{line} --precision bf16 --out @bf16");
    run(&lab, &bf16, "cuda", &[("LENSMITH_CUDA_EMULATOR", &emulator)]);
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
