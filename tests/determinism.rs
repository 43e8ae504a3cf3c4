//! The same seed gives the same bytes, however the work is cut: threads, batches, parts, instruction sets; and a pair
//! made alone is the one in the shard.

mod common;

use std::collections::BTreeMap;

use common::cli::{Lab, assert_same_files, outputs, shards};
use lensmith::backend::cpu::Cpu;
use lensmith::backend::{Backend, DecodeMode, DeviceChoice, Precision, Residual};
use lensmith::data::{Io, PairOptions, PairSet};
use lensmith::dtype::Dtype;
use lensmith::matrix::{Matrix, RowSet, Rows, RowsBuf, Side};
use lensmith::noise::{Purpose, Stream};
use lensmith::synth::{Moved, Part, Synthesizer};
use lensmith::{Engine, Recipe, Vae};
use safetensors::SafeTensors;

const SEEDS: usize = 45;
const DIM: usize = 40;
const VAE: &str = "--hidden 16 --latent 16 --vae-epochs 3 --vae-batch 16 --vae-lr 1e-3";

/// Options of a synthesis that together take every value of every enumeration, and its storage type.
const WAYS: [(&str, Dtype); 9] = [
    ("--fold 5", Dtype::F32),
    ("--fold 5", Dtype::F16),
    ("--fold 5", Dtype::Bf16),
    ("--fold 8 --mode residual", Dtype::F32),
    ("--fold 4 --mode residual --pairing match --source mean", Dtype::F16),
    ("--per-side 2 --mode residual --likelihood prior", Dtype::Bf16),
    ("--per-side 3 --pairing match --likelihood none --oversample 1", Dtype::F32),
    ("--fold 3 --per-side 6 --likelihood prior --source mean --sigma2 0.3", Dtype::F32),
    ("--fold 6 --per-side 9 --likelihood none --sigma2 0 --oversample 2", Dtype::Bf16),
];

fn lab() -> Lab {
    let lab = Lab::new();
    lab.pairs("seeds.safetensors", Dtype::F32, SEEDS, DIM, 1);
    lab.fine(&format!("train-vae @seeds.safetensors --out @vae.safetensors {VAE}"));
    lab
}

fn synth(options: &str, dtype: Dtype, out: &str) -> String {
    let dtype = dtype.to_string().to_lowercase();
    format!(
        "synth @seeds.safetensors --vae @vae.safetensors --dtype {dtype} --shard-rows 50 {options} --out @{out}"
    )
}

/// What `synth` wrote: its recipe with the seeds and the VAE, and the pairs on disk.
struct Made {
    recipe: Recipe,
    seeds: PairSet,
    vae: Vae,
    stored: PairSet,
}

impl Made {
    fn open(lab: &Lab, folder: &str) -> Made {
        let path = lab.at(&format!("{folder}/recipe.json"));
        let recipe = Recipe::read(&path).expect("a recipe");
        let (seeds, vae) = recipe.open(&path, Io::Mmap, &Moved::default()).expect("its files");
        let stored = PairSet::open(&[lab.text(folder)], &PairOptions::default()).expect("its shards");
        assert_eq!(stored.len() as u64, recipe.plan.pairs());
        Made { recipe, seeds, vae, stored }
    }

    /// Panics unless `made` holds the bytes of the stored pairs from `first`.
    #[track_caller]
    fn assert_stored(&self, what: &str, first: u64, made: [&RowsBuf; 2]) {
        for (side, made) in Side::BOTH.into_iter().zip(made) {
            let from = first as usize;
            let block = self.stored.rows(side, from..from + made.rows()).expect("stored rows");
            let rows = block.view();
            assert!(made.rows() > 0, "{what}: nothing made");
            for row in 0..made.rows() {
                let (got, want) = (made.view().row(row), rows.row(row));
                assert_eq!(got.dtype(), want.dtype(), "{what}");
                assert!(!want.bytes().is_empty(), "{what}: no bytes");
                assert!(
                    got.bytes() == want.bytes(),
                    "{what}: pair {} ({}) differs from the shard",
                    from + row,
                    side.name()
                );
            }
        }
    }
}

#[test]
fn threads_do_not_matter() {
    let lab = lab();
    for (i, (options, dtype)) in WAYS.into_iter().enumerate() {
        for threads in [1, 2, 5] {
            lab.fine(&format!("{} --threads {threads}", synth(options, dtype, &format!("{i}-{threads}"))));
        }
        let [one, two, five] = [1, 2, 5].map(|t| outputs(&lab.at(&format!("{i}-{t}"))));
        assert!(shards(&one).len() > 1, "one shard shows nothing");
        assert_same_files(&format!("{options}, 2 threads"), &two, &one);
        assert_same_files(&format!("{options}, 5 threads"), &five, &one);
    }
    let latents = |threads: u32| {
        let out = format!("z-{threads}");
        lab.fine(&format!("{} --output latents --threads {threads}", synth("--fold 6", Dtype::F32, &out)));
        outputs(&lab.at(&out))
    };
    assert_same_files("latents", &latents(5), &latents(1));
}

#[test]
fn batches_and_single_pairs_are_those_of_the_shards() {
    let lab = lab();
    for (i, (options, dtype)) in WAYS.into_iter().enumerate() {
        let folder = format!("{i}");
        lab.fine(&synth(options, dtype, &folder));
        let made = Made::open(&lab, &folder);
        let (recipe, seeds, vae) = (&made.recipe, &made.seeds, &made.vae);
        let pairs = recipe.plan.pairs();
        let engine =
            Engine::builder().device(DeviceChoice::Cpu).threads(1 + i % 3).build().expect("a device");

        for batch in [1, 7, 64, pairs as usize] {
            let mut next = 0;
            for part in engine.stream(&recipe.options(), seeds, vae, batch, dtype).expect("a stream") {
                let part = part.expect("pairs");
                assert_eq!(part.first, next);
                next += part.chosen.rows() as u64;
                let what = format!("{options}, batches of {batch}");
                made.assert_stored(&what, part.first, [&part.chosen, &part.rejected]);
            }
            assert_eq!(next, pairs, "{options}, batches of {batch}");
        }

        // Originals, first and last of a seed, around a shard's end, last of all; and some at random.
        let (n, extra) = (recipe.plan.seeds, recipe.plan.pairs_per_seed - 1);
        let mut alone =
            vec![0, 1, n - 1, n, n + extra - 1, n + extra, n + 7 * extra, n + 8 * extra - 1, 49, 50, 51];
        alone.extend([pairs - extra, pairs - 1]);
        let mut random = Stream::new(i as u64, Purpose::Simulation, 5);
        alone.extend((0..6).map(|_| u64::from(random.below(pairs as u32))));
        for j in alone {
            let pair = engine.pair(&recipe.options(), seeds, vae, j, dtype).expect("a pair");
            assert_eq!((pair.first, pair.chosen.rows()), (j, 1));
            made.assert_stored(&format!("{options}, pair {j} alone"), j, [&pair.chosen, &pair.rejected]);
        }

        // Stretches that start and end inside a seed.
        let backend = Cpu::new(2, Precision::F32).expect("a device");
        let setup = (recipe.plan, recipe.perturbation);
        let synthesizer = Synthesizer::new(&backend, vae, seeds, setup, recipe.mode).expect("a synthesizer");
        for range in [n - 3..n + 4, n + 1..n + 2, n + 1..n + extra + 2, 13..pairs - 1] {
            let part = synthesizer.batch(range.clone(), dtype).expect("a stretch");
            let what = format!("{options}, pairs {range:?}");
            made.assert_stored(&what, range.start, [&part.chosen, &part.rejected]);
        }
    }
}

#[test]
fn originals_are_the_seeds_themselves() {
    let lab = lab();
    lab.fine(&synth("--fold 3", Dtype::F32, "made"));
    let made = Made::open(&lab, "made");
    let blocks = Side::BOTH.map(|side| made.seeds.rows(side, 0..SEEDS).expect("seeds"));
    for (side, block) in Side::BOTH.into_iter().zip(&blocks) {
        let there = made.stored.rows(side, 0..SEEDS).expect("originals");
        for row in 0..SEEDS {
            assert!(there.view().row(row).bytes() == block.view().row(row).bytes(), "original {row}");
        }
    }
}

/// Parts of a run in an order of its own, some of them twice.
fn shuffled(parts: u64) -> Vec<u64> {
    let mut order: Vec<u64> = (0..parts).collect();
    let mut random = Stream::new(parts, Purpose::Simulation, 6);
    for i in (1..order.len()).rev() {
        order.swap(i, random.below(i as u32 + 1) as usize);
    }
    let again: Vec<u64> = order.iter().copied().step_by(2).collect();
    order.extend(again);
    order
}

/// More seeds than are encoded at a time, so that the parts meet blocks at other places than the whole.
#[test]
fn parts_make_the_files_of_the_whole() {
    let lab = Lab::new();
    lab.pairs("seeds.safetensors", Dtype::Bf16, 1100, 24, 2);
    lab.fine(&format!("train-vae @seeds.safetensors --out @vae.safetensors {VAE}"));
    let line = "synth @seeds.safetensors --vae @vae.safetensors --fold 3 --shard-rows 300 --out @";
    for (kind, options) in [("e", "--mode residual"), ("z", "--output latents")] {
        lab.fine(&format!("{line}{kind} {options}"));
        let whole = shards(&outputs(&lab.at(kind)));
        assert_eq!(whole.len(), 11);
        for parts in [1, 2, 3, 7] {
            let folder = format!("{kind}{parts}");
            let order = shuffled(parts);
            for part in &order {
                lab.fine(&format!(
                    "{line}{folder} {options} --part {part}/{parts} --threads {}",
                    1 + part % 3
                ));
            }
            let there = outputs(&lab.at(&folder));
            assert_same_files(&format!("{kind}: parts {order:?} of {parts}"), &shards(&there), &whole);
            let others = there.keys().filter(|p| !whole.contains_key(*p)).count();
            assert_eq!(others as u64, 1 + parts, "a recipe and a manifest each: {:?}", there.keys());
            lab.fine(&format!("verify @{folder}"));
        }
        // One cut after another in one folder, and the whole at last.
        for part in ["1/2", "0/3", "2/3", "6/7"] {
            lab.fine(&format!("{line}{kind}-any {options} --part {part}"));
        }
        lab.fine(&format!("{line}{kind}-any {options}"));
        assert_same_files(
            &format!("{kind}: any cuts"),
            &shards(&outputs(&lab.at(&format!("{kind}-any")))),
            &whole,
        );
    }
}

#[test]
fn parts_are_read_as_written() {
    for text in ["0/1", "2/3", "6/7"] {
        let part: Part = text.parse().expect("a part");
        assert_eq!(format!("{}/{}", part.index, part.count), text);
    }
    for text in ["", "1", "1/", "/2", "2/2", "-1/2", "1/2/3", "1.0/2", "a/b"] {
        assert!(text.parse::<Part>().is_err(), "{text:?} is a part");
    }
}

/// A tensor of all shards of a folder, joined.
fn joined<T: bytemuck::Pod>(lab: &Lab, folder: &str, name: &str) -> Vec<T> {
    let mut all = Vec::new();
    for bytes in shards(&outputs(&lab.at(folder))).into_values() {
        let bytes = bytes.expect("a file");
        let file = SafeTensors::deserialize(&bytes).expect("safetensors");
        all.extend(bytemuck::pod_collect_to_vec::<u8, T>(file.tensor(name).expect("the tensor").data()));
    }
    assert!(!all.is_empty(), "{folder}: no {name}");
    all
}

#[test]
fn latents_decode_to_the_embeddings() {
    let lab = lab();
    let backend = Cpu::new(2, Precision::F32).expect("a device");
    for (i, (options, dtype)) in WAYS.into_iter().enumerate() {
        let (plain, latents) = (format!("e{i}"), format!("z{i}"));
        lab.fine(&synth(options, dtype, &plain));
        lab.fine(&format!("{} --output latents", synth(options, Dtype::F32, &latents)));
        let made = Made::open(&lab, &plain);
        let vae = backend.load_vae(&made.vae).expect("a VAE");
        let seed_rows: Vec<i64> = joined(&lab, &latents, "seed");
        assert_eq!(seed_rows.len(), made.stored.len());
        for side in Side::BOTH {
            let z: Vec<f32> = joined(&lab, &latents, &format!("{}_z", side.name()));
            let candidates: Vec<i32> = joined(&lab, &latents, &format!("{}_candidate", side.name()));
            let block = made.seeds.rows(side, 0..SEEDS).expect("seeds");
            let embeddings = backend.embeddings(block.view()).expect("embeddings");
            let posteriors = backend.encode(&vae, &embeddings).expect("posteriors");
            let mu = backend.posteriors(&posteriors).expect("posteriors").mu;
            let stored = made.stored.rows(side, 0..made.stored.len()).expect("pairs");
            let width = z.len() / seed_rows.len();

            let rows: Vec<u32> = seed_rows.iter().map(|&r| r as u32).collect();
            let matrix = Matrix::new(z.clone(), rows.len(), width).expect("whole rows");
            let loaded = backend.load_latents(&matrix, &rows).expect("latents");
            let residual = (made.recipe.mode == DecodeMode::Residual)
                .then_some(Residual { embeddings: &embeddings, posteriors: &posteriors });
            let mut decoded = common::poisoned(dtype, rows.len(), DIM);
            backend.decode(&vae, &loaded, residual, decoded.values_mut()).expect("embeddings");

            let mut synthetic = 0;
            for (j, (&candidate, &seed)) in candidates.iter().zip(&rows).enumerate() {
                let there = stored.view();
                let there = there.row(j).bytes();
                let here = match candidate {
                    -1 => {
                        assert!(
                            z[j * width..][..width] == *mu.row(seed as usize),
                            "latent of original {seed}"
                        );
                        let mut wide = vec![0f32; DIM];
                        block.view().row(seed as usize).widen(&mut wide);
                        RowsBuf::from_f32(dtype, &wide, DIM).expect("a row").view().row(0).bytes().to_vec()
                    }
                    _ => {
                        synthetic += 1;
                        decoded.view().row(j).bytes().to_vec()
                    }
                };
                assert!(here == there, "{options}: pair {j} ({}), decoded from its latent", side.name());
            }
            assert!(synthetic >= SEEDS, "{synthetic} synthetic samples");
        }
    }
}

/// All instruction sets; those with products of matrices have bits of their own in BF16.
#[cfg(target_arch = "aarch64")]
const LEVELS: [&str; 3] = ["neon", "portable", "portable-amx"];
/// All instruction sets; those with products of matrices have bits of their own in BF16.
#[cfg(not(target_arch = "aarch64"))]
const LEVELS: [&str; 6] = ["amx", "avx512-bf16", "avx512", "avx2", "portable", "portable-amx"];

/// The instruction sets of this machine, which the binary takes by name; the others it refuses.
fn levels(lab: &Lab) -> Vec<&'static str> {
    let used = |level: &str| {
        let line = "synth @seeds.safetensors --vae @vae.safetensors --fold 2 --json --out @probe --overwrite";
        let said = lab.run_with(line, &[("LENSMITH_SIMD", level)]);
        if said.code == Some(2) {
            assert!(said.err.contains("LENSMITH_SIMD") && said.err.contains(level), "{}", said.err);
            return false;
        }
        let value = said.fine().json();
        assert!(value["device"]["detail"].as_str().is_some_and(|d| d.ends_with(level)), "{value}");
        true
    };
    assert!(!used("mmx"), "a level that no machine has");
    let found: Vec<&str> = LEVELS.into_iter().filter(|l| used(l)).collect();
    assert!(["portable", "portable-amx"].iter().all(|l| found.contains(l)), "{found:?}");
    if found.len() < LEVELS.len() {
        eprintln!(
            "\n*** this machine has {found:?} alone: the other instruction sets are NOT compared ***\n"
        );
    }
    found
}

#[test]
fn instruction_sets_do_not_matter() {
    let lab = lab();
    let levels = levels(&lab);
    for precision in ["f32", "bf16"] {
        for level in &levels {
            let at = format!("{precision}/{level}");
            let env = [("LENSMITH_SIMD", *level)];
            let run = |line: String| lab.run_with(&format!("{line} --precision {precision}"), &env).fine();
            for (i, (options, dtype)) in WAYS.into_iter().enumerate() {
                run(synth(options, dtype, &format!("{at}/{i}")));
            }
            run(format!("{} --output latents", synth("--fold 6", Dtype::F32, &format!("{at}/z"))));
            run(format!("train-vae @seeds.safetensors --out @{at}/vae.safetensors {VAE}"));
            run(format!(
                "train-reward @seeds.safetensors --out @{at}/r.safetensors --reward-hidden 16 --epochs 3"
            ));
            run(format!(
                "train-reward --allow-outside --recipe @{at}/3/recipe.json --out @{at}/rr.safetensors --reward-hidden 16 --epochs 2"
            ));
            run(format!(
                "score @seeds.safetensors --tensor chosen --model @{at}/r.safetensors --out @{at}/s.safetensors"
            ));
        }
        for level in &levels {
            let like = match precision == "bf16" && level.ends_with("amx") {
                true => "portable-amx",
                false => "portable",
            };
            let want = outputs(&lab.at(&format!("{precision}/{like}")));
            assert_same_files(level, &outputs(&lab.at(&format!("{precision}/{level}"))), &want);
        }
    }
    let [f32, pairs, matrices] = ["f32/portable", "bf16/portable", "bf16/portable-amx"]
        .map(|p| lab.bytes(&format!("{p}/vae.safetensors")));
    assert!(f32 != pairs && pairs != matrices, "the arithmetic does nothing");
}

/// Lines that train each kind of model, by name.
fn trainings() -> BTreeMap<&'static str, String> {
    let reward = "--reward-hidden 32 --epochs 4 --batch 16 --lr 1e-3 --validation @val.safetensors";
    BTreeMap::from([
        ("vae", format!("train-vae @seeds.safetensors {VAE}")),
        (
            "sum",
            format!(
                "train-vae @seeds.safetensors {VAE} --reduction sum --divergence w2-squared --gamma 0.01"
            ),
        ),
        ("reward", format!("train-reward @seeds.safetensors {reward}")),
        ("shards", format!("train-reward @synth {reward}")),
        ("recipe", format!("train-reward --recipe @synth/recipe.json {reward}")),
        ("decoded", format!("train-reward --recipe @synth/recipe.json --synthetic-path decoded {reward}")),
    ])
}

#[test]
fn training_depends_on_the_seed_alone() {
    let lab = lab();
    lab.pairs("val.safetensors", Dtype::F16, 30, DIM, 3);
    lab.fine(&synth("--fold 4 --mode residual", Dtype::F32, "synth"));
    for (name, line) in trainings() {
        let train = |run: &str, options: &str| {
            let file = format!("{name}-{run}.safetensors");
            lab.fine(&format!("{line} --out @{file} {options}"));
            lab.bytes(&file)
        };
        let first = train("1", "--threads 1");
        assert!(first.len() > 4096, "{name}: {} bytes", first.len());
        for (run, options) in
            [("2", "--threads 2"), ("5", "--threads 5"), ("again", "--threads 1"), ("auto", "")]
        {
            assert!(train(run, options) == first, "{name}: another model with {options:?}");
        }
        assert!(train("seed", "--seed 1") != first, "{name}: the seed does nothing");
    }
}

#[test]
fn the_seed_of_a_synthesis_matters() {
    let lab = lab();
    let made = |seed: u64| {
        let out = format!("{seed}");
        lab.fine(&format!("{} --seed {seed}", synth("--fold 3", Dtype::F32, &out)));
        Made::open(&lab, &out)
    };
    let (a, b) = (made(1), made(2));
    let rows = |m: &Made, range: std::ops::Range<usize>| {
        let block = m.stored.rows(Side::Chosen, range).expect("rows");
        let view: RowSet<'_> = block.view();
        let mut wide = vec![0f32; view.rows() * view.cols()];
        view.widen(0..view.rows(), &mut wide);
        wide
    };
    assert!(rows(&a, 0..SEEDS) == rows(&b, 0..SEEDS), "the originals depend on the seed");
    let pairs = a.stored.len();
    let (x, y) = (rows(&a, SEEDS..pairs), rows(&b, SEEDS..pairs));
    let equal = x.chunks(DIM).zip(y.chunks(DIM)).filter(|(x, y)| x == y).count();
    // A synthetic pair may keep its chosen original; most do not.
    assert!(equal < (pairs - SEEDS) / 2, "{equal} of {} chosen sides are equal", pairs - SEEDS);
    assert!(Rows::from_f32(&x, DIM).is_ok());
}
