//! Rows of pairs on their way from a device to the disk: every backend puts them in order, and through a
//! stand-in for libcuda they land in registered memory.

#![cfg(target_os = "linux")]

mod common;

use std::path::Path;
use std::process::Command;

use common::cli::{Lab, Said, bare};
use common::device::{Machine, Races, Schedule, Simulated, cuda, settings, simulated, stand_in, tested_gpu};
use common::{data, data_buf, indices, normals};
use lensmith::backend::cpu::Cpu;
use lensmith::backend::reference::Reference;
use lensmith::backend::{
    Backend, DecodeMode, LatentSource, Likelihood, Perturbation, Precision, Residual, Synthetic,
};
use lensmith::dtype::Dtype;
use lensmith::matrix::{Matrix, RowSet, Rows, RowsBuf};
use lensmith::model::{Vae, VaeSize};
use lensmith::synth::{PairLookup, Pairing, Plan, SynthesisOptions, Synthesizer};

/// Originals of a block, its latents and their owners, and an order of rows that repeats some and leaves some
/// out.
struct Case {
    originals: RowsBuf,
    vae: Vae,
    z: Matrix,
    owners: Vec<u32>,
    index: Vec<u32>,
}

impl Case {
    fn new(dtype: Dtype, n: usize, samples: usize, dim: usize) -> Case {
        Case {
            originals: data_buf(dtype, 3, n, dim),
            vae: Vae::init(VaeSize::new(dim, 32, 16).expect("sizes"), 1),
            z: Matrix::new(normals(4, 4, samples * 16), samples, 16).expect("a matrix"),
            owners: indices(1, samples, n),
            index: indices(2, n + 2 * samples, n + samples),
        }
    }

    /// The rows in the order of the index as a backend puts them, and where the first lies that is not
    /// finite.
    fn picked<B: Backend>(&self, b: &B, residual: bool, dtype: Dtype) -> (Vec<u8>, Option<(usize, usize)>) {
        let dim = self.originals.cols();
        let vae = b.load_vae(&self.vae).expect("loads");
        let originals = b.embeddings(self.originals.view().into()).expect("uploads");
        let posteriors = b.encode(&vae, &originals).expect("encodes");
        let latents = b.load_latents(&self.z, &self.owners).expect("uploads");
        let residual = residual.then_some(Residual { embeddings: &originals, posteriors: &posteriors });
        let mut rows = b.rows(dtype, dim);
        b.store_rows(&originals, &Synthetic { vae: &vae, latents: &latents, residual }, &mut rows)
            .expect("stores");
        let mut out = common::poisoned(dtype, self.index.len(), dim);
        b.pick_rows(&rows, &self.index, &mut out).expect("picks");
        (out.bytes().to_vec(), b.first_non_finite(&rows).expect("looks"))
    }

    /// The same by hand, from what the backend decodes.
    fn expected<B: Backend>(&self, b: &B, residual: bool, dtype: Dtype) -> Vec<u8> {
        let dim = self.originals.cols();
        let vae = b.load_vae(&self.vae).expect("loads");
        let originals = b.embeddings(self.originals.view().into()).expect("uploads");
        let posteriors = b.encode(&vae, &originals).expect("encodes");
        let latents = b.load_latents(&self.z, &self.owners).expect("uploads");
        let residual = residual.then_some(Residual { embeddings: &originals, posteriors: &posteriors });
        let mut decoded = RowsBuf::zeros(dtype, self.owners.len(), dim);
        b.decode(&vae, &latents, residual, decoded.values_mut()).expect("decodes");
        let wide = common::widened(&self.originals);
        let rounded = RowsBuf::from_f32(dtype, &wide, dim).expect("rows");
        let all = [rounded.bytes(), decoded.bytes()].concat();
        let row = dim * dtype.size();
        self.index.iter().flat_map(|&i| all[i as usize * row..][..row].to_vec()).collect()
    }
}

/// What pairs are made of comes out byte for byte: any types, widths that suit no vector, plain and residual.
#[test]
fn rows_are_put_in_order() {
    let cpu = Cpu::new(2, Precision::F32).expect("the CPU backend");
    let (exact, rounded) = (cuda(Precision::F32), cuda(Precision::Bf16));
    for dim in [24, 33] {
        for from in Dtype::ALL {
            for to in Dtype::ALL {
                for residual in [false, true] {
                    let what = format!("{from} to {to}, {dim} wide, residual {residual}");
                    let case = Case::new(from, 9, 70, dim);
                    let want = case.expected(&cpu, residual, to);
                    assert!(case.picked(&cpu, residual, to) == (want.clone(), None), "cpu, {what}");
                    assert!(case.picked(&exact, residual, to) == (want, None), "cuda, {what}");
                    let want = case.expected(&rounded, residual, to);
                    assert!(case.picked(&rounded, residual, to) == (want, None), "cuda in BF16, {what}");
                }
            }
        }
    }
    let case = Case::new(Dtype::F16, 3, 5, 24);
    let want = case.expected(&Reference::new(), true, Dtype::Bf16);
    assert!(case.picked(&Reference::new(), true, Dtype::Bf16) == (want, None), "reference");
}

/// Where the device has no room for the rows, or none for many at a time, the bytes are the same.
#[test]
fn short_of_memory_the_rows_stay() {
    let case = Case::new(Dtype::F32, 40, 700, 128);
    let want = case.expected(&Cpu::new(1, Precision::F32).expect("the CPU backend"), false, Dtype::F32);
    // The rows take 379 KB, a piece of output another 128 KB at least.
    for memory in [1 << 30, 800_000, 350_000] {
        let b = simulated(Races::Ignored, Simulated { memory, ..Simulated::default() }, Precision::F32);
        assert!(case.picked(&b, false, Dtype::F32) == (want.clone(), None), "{memory} bytes");
    }
}

/// The first value that the type cannot hold, among originals and behind them.
#[test]
fn what_is_not_finite_is_found() {
    let found = |case: &Case, to: Dtype| {
        let cpu = Cpu::new(1, Precision::F32).expect("the CPU backend");
        let want = case.picked(&cpu, false, to).1;
        assert_eq!(case.picked(&cuda(Precision::F32), false, to).1, want);
        want
    };
    let mut case = Case::new(Dtype::F32, 9, 30, 33);
    assert_eq!(found(&case, Dtype::F16), None);
    case.vae.decoder[1].bias[7] = 70_000.0;
    assert_eq!(found(&case, Dtype::F32), None);
    assert_eq!(found(&case, Dtype::F16), Some((9, 7)));
    let mut values = common::widened(&case.originals);
    (values[5 * 33 + 32], values[6 * 33]) = (-1e6, 1e6);
    case.originals = RowsBuf::from_f32(Dtype::F32, &values, 33).expect("rows");
    assert_eq!(found(&case, Dtype::F16), Some((5, 32)));
    values[5 * 33 + 32] = 3.4e38;
    case.originals = RowsBuf::from_f32(Dtype::F32, &values, 33).expect("rows");
    assert_eq!(found(&case, Dtype::Bf16), Some((5, 32)));
    case.vae.decoder[1].bias[7] = f32::NAN;
    assert_eq!(found(&case, Dtype::F32), Some((9, 7)));
}

/// Rows that are not there, and outputs of another shape.
#[test]
fn orders_that_do_not_fit_are_refused() {
    let case = Case::new(Dtype::F32, 3, 5, 24);
    fn refused<B: Backend>(b: &B, case: &Case, index: &[u32], out: &mut RowsBuf) -> String {
        let vae = b.load_vae(&case.vae).expect("loads");
        let originals = b.embeddings(case.originals.view().into()).expect("uploads");
        let latents = b.load_latents(&case.z, &case.owners).expect("uploads");
        let mut rows = b.rows(Dtype::F32, 24);
        let samples = Synthetic { vae: &vae, latents: &latents, residual: None };
        b.store_rows(&originals, &samples, &mut rows).expect("stores");
        b.pick_rows(&rows, index, out).expect_err("does not fit").to_string()
    }
    let (cpu, gpu) = (Cpu::new(1, Precision::F32).expect("the CPU backend"), cuda(Precision::F32));
    for (index, dtype, rows, cols, words) in [
        (vec![0, 8], Dtype::F32, 2, 24, "below 8"),
        (vec![0, 7], Dtype::F32, 3, 24, "rows to be picked"),
        (vec![0, 7], Dtype::F16, 2, 24, "values of F16"),
        (vec![0, 7], Dtype::F32, 2, 23, "23 values"),
    ] {
        let mut out = RowsBuf::zeros(dtype, rows, cols);
        let said = [refused(&cpu, &case, &index, &mut out), refused(&gpu, &case, &index, &mut out)];
        assert!(said[0].contains(words) && said[0] == said[1], "{said:?}");
    }
}

/// Pairs by their numbers are the CPU's on every device, and those of a range.
#[test]
fn pairs_in_any_order_are_those_of_a_range() {
    fn taken<B: Backend>(
        b: &B,
        vae: &Vae,
        seeds: &[RowSet<'_>; 2],
        options: &SynthesisOptions,
    ) -> [RowsBuf; 4] {
        let lookup = PairLookup::new(b, vae, seeds, options).expect("starts");
        let numbers: Vec<u64> = (0..36).map(|i| i * 25 % 36).collect();
        let some = lookup.take(&numbers, Dtype::Bf16, false).expect("pairs");
        let setup = options.plan(9).expect("a plan");
        let make = Synthesizer::new(b, vae, seeds, setup, options.mode).expect("starts");
        let all = make.batch(0..36, Dtype::Bf16).expect("pairs");
        let back = |side: &RowsBuf| {
            let mut out = RowsBuf::zeros(Dtype::Bf16, 36, 24);
            let place = |j: usize| numbers.iter().position(|&n| n == j as u64).expect("every pair");
            RowSet::from(side.view()).copy_rows(&place, &mut out);
            out
        };
        [back(&some.chosen), back(&some.rejected), all.chosen, all.rejected]
    }
    let vae = Vae::init(VaeSize::new(24, 32, 16).expect("sizes"), 1);
    let (chosen, rejected) = (data(7, 9, 24), data(8, 9, 24));
    let set = |values| RowSet::from(Rows::from_f32(values, 24).expect("rows"));
    let seeds = [set(&chosen), set(&rejected)];
    let (cpu, gpu) = (Cpu::new(2, Precision::F32).expect("the CPU backend"), cuda(Precision::F32));
    for mode in [DecodeMode::Plain, DecodeMode::Residual] {
        let options = SynthesisOptions { mode, ..SynthesisOptions::default() };
        let [a, b, want_a, want_b] = taken(&cpu, &vae, &seeds, &options);
        assert!(a == want_a && b == want_b, "{mode:?} on the CPU");
        let of_gpu = taken(&gpu, &vae, &seeds, &options);
        assert!(of_gpu == [a, b, want_a, want_b], "{mode:?} on the GPU");
    }
}

/// A value that the type cannot hold names its seed or sample, side and column, whichever device finds it.
#[test]
fn unstorable_values_are_named() {
    fn said<B: Backend>(b: &B, vae: &Vae, chosen: &[f32]) -> String {
        let rejected = data(8, 9, 24);
        let set = |values| RowSet::from(Rows::from_f32(values, 24).expect("rows"));
        let seeds = [set(chosen), set(&rejected)];
        let plan = Plan::new(9, Some(4), Some(2), Pairing::Combine, 5).expect("a plan");
        let perturbation = Perturbation {
            sigma2: 0.01,
            top_k: 2,
            oversample: 2,
            likelihood: Likelihood::Posterior,
            source: LatentSource::Sample,
        };
        let make = Synthesizer::new(b, vae, &seeds, (plan, perturbation), DecodeMode::Plain).expect("starts");
        // The synthetic pairs of seeds 2 to 4.
        make.batch(9 + 6..9 + 15, Dtype::F16).expect_err("not storable").to_string()
    }
    let mut vae = Vae::init(VaeSize::new(24, 32, 16).expect("sizes"), 1);
    let mut chosen = data(7, 9, 24);
    let (cpu, gpu) = (Cpu::new(1, Precision::F32).expect("the CPU backend"), cuda(Precision::F32));
    let both = |vae: &Vae, chosen: &[f32], words: [&str; 2]| {
        let said = [said(&cpu, vae, chosen), said(&gpu, vae, chosen)];
        assert!(said[0] == said[1] && words.iter().all(|w| said[0].contains(w)), "{said:?}");
    };
    vae.decoder[1].bias[7] = 70_000.0;
    both(&vae, &chosen, ["decoded embedding of seed 2 (chosen, candidate ", ", column 7: "]);
    chosen[3 * 24 + 5] = 1e6;
    both(&vae, &chosen, ["seed 3 (chosen), column 5: ", "that F16 can hold"]);
}

/// Copies larger than all pinned buffers together come back as they went, and a few bytes too.
#[test]
fn copies_of_any_size_come_back() {
    let device = Machine::new(Races::Ignored, Schedule::ALL[2]);
    for bytes in [1, 65_535, 65_536, 65_537, (8 << 20) - 1, (40 << 20) + 5] {
        let values: Vec<u8> =
            (0..bytes as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        assert!(device.upload(&values).download() == values, "{bytes} bytes");
    }
    // More small uploads than there are buffers for, one upon the other.
    let buffers: Vec<_> = (0..100u32).map(|i| device.upload(&[i; 3])).collect();
    for (i, buffer) in buffers.iter().enumerate() {
        assert_eq!(buffer.download(), [i as u32; 3]);
    }
}

/// The tests above once more in a process that takes the stand-in for a GPU, whose work is done at random times: every
/// copy uses pinned memory, none before its buffer is free, and registered memory is there as long as it is registered.
#[test]
fn the_driver_is_called_as_it_should_be() {
    if tested_gpu().is_some() {
        return; // this is such a process
    }
    let lab = Lab::new();
    let mut again = Command::new(std::env::current_exe().expect("this program"));
    again.env("LD_LIBRARY_PATH", stand_in(&lab.at(""))).env("PTX_DRIVER", settings("queue=random:7"));
    let said: Said = again.env("LENSMITH_TEST_GPU", "0").output().expect("it starts").into();
    assert!(said.code == Some(0) && !said.err.contains("stand-in for libcuda"), "{said:?}");
}

/// Synthetic pairs go from the device to the memory that is written to disk, of which the driver knows; where
/// it refuses to, they are staged, with one word about it. The bytes are the CPU's.
#[test]
fn synthetic_pairs_land_in_registered_memory() {
    if tested_gpu().is_some() {
        return; // other processes have other devices
    }
    let lab = Lab::new();
    lab.pairs("pairs.safetensors", Dtype::F32, 40, 200, 5);
    let folder = stand_in(&lab.at(""));
    let on = |line: &str, device: &str, more: &[&str]| -> Said {
        let mut command = bare(Command::new(env!("CARGO_BIN_EXE_lensmith")));
        command.args(lab.words(line)).args(["--device", device]);
        command.env("LD_LIBRARY_PATH", &folder).env("PTX_DRIVER", settings(&more.join(",")));
        command.output().expect("lensmith runs").into()
    };
    // Rows take hundreds of kilobytes, candidates and means of one block a few.
    let only = "staged=8192";
    let refuses = "fail=cuMemHostRegister_v2:801";
    let train = "train-vae @pairs.safetensors --hidden 16 --vae-epochs 2 --out @vae.safetensors";
    on(train, "cpu", &[]).fine();
    let shards = |name: &str| common::cli::shards(&common::cli::outputs(&lab.at(name)));
    for (name, how) in [
        ("plain", "--shard-rows 200"),
        ("half", "--shard-rows 200 --dtype f16"),
        ("residual", "--shard-rows 150 --mode residual --dtype bf16"),
    ] {
        let line = format!(
            "synth @pairs.safetensors --vae @vae.safetensors --per-side 3 --fold 16 {how} --out @{name}"
        );
        on(&line, "cpu", &[]).fine();
        on(&format!("{line}-only"), "cuda", &[only]).fine();
        common::cli::assert_same_files(name, &shards(&format!("{name}-only")), &shards(name));
        let said = on(&format!("{line}-refused"), "cuda", &[refuses]);
        assert_eq!((said.code, said.err.lines().count()), (Some(0), 1), "{said:?}");
        assert!(said.err.contains("cuda:0: the driver does not register host memory"), "{said:?}");
        common::cli::assert_same_files(name, &shards(&format!("{name}-refused")), &shards(name));
    }
    // The stand-in would have said so.
    let line = "synth @pairs.safetensors --vae @vae.safetensors --per-side 3 --fold 16 --out @staged";
    let said = on(line, "cuda", &[only, refuses]);
    assert!(said.code == Some(1) && said.err.contains("a copy is staged"), "{said:?}");
    // Embeddings of stored latents take the same way.
    let latents =
        "synth @pairs.safetensors --vae @vae.safetensors --per-side 3 --fold 16 --output latents --out @z";
    on(latents, "cpu", &[]).fine();
    on("materialize @z --shard-rows 200 --out @made", "cuda", &[only]).fine();
    common::cli::assert_same_files("materialized", &shards("made"), &shards("plain"));
    let part = |part: &str| {
        let line = "synth @pairs.safetensors --vae @vae.safetensors --per-side 3 --fold 16 --shard-rows 200";
        on(&format!("{line} --part {part} --out @parts"), "cuda:all", &[only, "count=2"]).fine();
    };
    ["1/2", "0/2"].into_iter().for_each(part);
    common::cli::assert_same_files("parts", &shards("parts"), &shards("plain"));
    assert!(Path::new(&lab.at("parts")).join("manifest.part-0-of-2.json").exists());
}
