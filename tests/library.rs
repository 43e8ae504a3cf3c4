//! The crate as its users see it: what files give, memory gives too, and the library leaves its host alone.

use std::path::Path;

use lensmith::{
    CandidateSet, Checkpoint, DeviceChoice, Dtype, EmbeddingSet, Engine, Error, Io, PairBatch, PairOptions,
    PairSet, PairStream, Recipe, RewardModel, RewardTraining, RowSet, SynthJob, SynthesisOptions, Updates,
    Vae, VaeTraining, write_pairs,
};

const DIM: usize = 48;
const PAIRS: usize = 60;

fn values(seed: u32) -> Vec<f32> {
    (0..PAIRS * DIM)
        .map(|i| ((i as u32).wrapping_mul(2_654_435_761 + seed) >> 8) as f32 / 2e7 - 0.4)
        .collect()
}

fn engine() -> Engine {
    Engine::builder().device(DeviceChoice::Cpu).threads(2).build().expect("a CPU")
}

fn vae_options() -> VaeTraining {
    VaeTraining { epochs: 3, ..VaeTraining::default() }
}

fn reward_options() -> RewardTraining {
    RewardTraining { hidden: 32, updates: Updates::Epochs(2), ..RewardTraining::default() }
}

fn synthesis() -> SynthesisOptions {
    SynthesisOptions { pairs_per_seed: Some(3), ..SynthesisOptions::default() }
}

/// Pairs in memory, and the same in a file below `folder`.
fn data(sides: &[Vec<f32>; 2], folder: &Path) -> ([RowSet<'static>; 2], PairSet, Vec<String>) {
    let rows = sides.each_ref().map(|side| {
        let leaked: &'static [f32] = Vec::leak(side.clone());
        RowSet::from_f32(leaked, DIM).expect("whole rows")
    });
    let path = folder.join("pairs.safetensors");
    write_pairs(&path, [&rows[0], &rows[1]], None).expect("a shard");
    let sources = vec![path.to_string_lossy().into_owned()];
    let set = PairSet::open(&sources, &PairOptions::default()).expect("pairs");
    (rows, set, sources)
}

fn bits(vae: &Vae) -> Vec<u32> {
    let layers = vae.encoder.iter().chain(&vae.decoder);
    layers.flat_map(|l| l.weight.iter().chain(&l.bias)).map(|v| v.to_bits()).collect()
}

fn reward_bits(model: &RewardModel) -> Vec<u32> {
    model.layers.iter().flat_map(|l| l.weight.iter().chain(&l.bias)).map(|v| v.to_bits()).collect()
}

fn concatenated(stream: PairStream<'_>) -> (Vec<u8>, Vec<u8>) {
    let batches: Vec<PairBatch> = stream.collect::<lensmith::Result<_>>().expect("pairs");
    let side = |of: fn(&PairBatch) -> &[u8]| batches.iter().flat_map(|b| of(b).to_vec()).collect();
    (side(|b| b.chosen.bytes()), side(|b| b.rejected.bytes()))
}

#[test]
fn files_and_memory_give_the_same_bits() {
    let folder = tempfile::tempdir().expect("a folder");
    let (rows, set, sources) = data(&[values(1), values(2)], folder.path());
    let engine = engine();
    let vae = engine.train_vae(&rows, &vae_options(), &mut |_, _| ()).expect("a VAE").vae;
    assert_eq!(bits(&vae), bits(&engine.train_vae(&set, &vae_options(), &mut |_, _| ()).expect("a VAE").vae));

    let options = synthesis();
    let in_memory = engine.stream(&options, &rows, &vae, 7, Dtype::Bf16).expect("a stream");
    let from_files = engine.stream(&options, &set, &vae, 64, Dtype::Bf16).expect("a stream");
    assert_eq!((in_memory.pairs(), from_files.pairs()), (3 * PAIRS as u64, 3 * PAIRS as u64));
    let (in_memory, from_files) = (concatenated(in_memory), concatenated(from_files));
    assert!(in_memory == from_files && in_memory.0.len() == 3 * PAIRS * DIM * 2);

    let on = |pairs: &dyn lensmith::PairSource| {
        let stored = engine.train_reward(pairs, None, Some(pairs), &reward_options(), &mut |_| ());
        let synthetic = engine.train_reward_on_synthetic(
            &options,
            pairs,
            &vae,
            Some(pairs),
            &reward_options(),
            &mut |_| (),
        );
        [stored.expect("a model").model, synthetic.expect("a model").model]
    };
    let (memory_models, file_models) = (on(&rows), on(&set));
    assert_eq!(memory_models.each_ref().map(reward_bits), file_models.each_ref().map(reward_bits));
    let model = &memory_models[0];
    assert_eq!(
        engine.evaluate(model, &rows, None).expect("figures"),
        engine.evaluate(model, &set, None).expect("figures")
    );

    let embeddings = EmbeddingSet::open(&sources, "chosen", Io::Read).expect("embeddings");
    let mut scores = [Vec::new(), Vec::new()];
    let sources: [&dyn lensmith::RowSource; 2] = [&rows[0], &embeddings];
    for (scores, source) in scores.iter_mut().zip(sources) {
        let mut take = |part: &[f32]| {
            scores.extend_from_slice(part);
            Ok(())
        };
        engine.score(model, source, &mut take).expect("scores");
    }
    assert!(scores[0] == scores[1] && scores[0].len() == PAIRS);
    let best = engine.best_of_n(model, &rows[0], &scores[0], 4).expect("figures");
    let (best, rank) = best;
    assert_eq!((best.prompts, best.points.len()), ((PAIRS / 4) as u64, 4), "{best:?}");
    let own = best.points.iter().all(|p| (p.model - p.oracle).abs() < 1e-12);
    assert!(own && rank.within_prompts == Some(1.0), "by its own scores a model chooses the best: {best:?}");
    let error = engine.best_of_n(model, &rows[0], &scores[0], 7).unwrap_err();
    assert!(matches!(error, Error::Shape { .. }), "{error}");
    let none: lensmith::Result<CandidateSet> = CandidateSet::open(&[], "candidates", "gold", Io::Mmap);
    assert!(none.is_err());
}

#[test]
fn a_folder_holds_the_pairs_of_a_stream() {
    let folder = tempfile::tempdir().expect("a folder");
    let (rows, _, sources) = data(&[values(3), values(4)], folder.path());
    let engine = engine();
    let vae = engine.train_vae(&rows, &vae_options(), &mut |_, _| ()).expect("a VAE").vae;
    let path = folder.path().join("vae.safetensors");
    vae.save(&path, &Default::default()).expect("a checkpoint");
    let (recipe, seeds, vae) =
        Recipe::new(&sources, &PairOptions::default(), &path, &synthesis()).expect("a recipe");
    let out = folder.path().join("out");
    let job = SynthJob { shard_rows: Some(50), ..SynthJob::new(&recipe, &out) };
    let summary = engine.synthesize(&job, &seeds, &vae, &mut |_| ()).expect("shards");
    assert_eq!((summary.pairs, summary.shards), (180, 4));
    let written =
        PairSet::open(&[out.to_string_lossy().into_owned()], &PairOptions::default()).expect("pairs");
    assert_eq!(written.len(), 180);
    let mut at = 0;
    let stream = engine.stream(&recipe.options(), &rows, &vae, 50, Dtype::Bf16).expect("a stream");
    for batch in stream {
        let batch = batch.expect("pairs");
        let range = at..at + batch.chosen.rows();
        at = range.end;
        let block = written.rows(lensmith::Side::Chosen, range).expect("rows");
        let stored: Vec<u8> = block.view().parts().iter().flat_map(|p| p.values().bytes().to_vec()).collect();
        assert_eq!(stored, batch.chosen.bytes());
    }
    assert_eq!(at, 180);
}

#[test]
fn a_stream_goes_to_another_thread_and_on_from_any_pair() {
    let sides = [values(5), values(6)];
    let rows = sides.each_ref().map(|side| RowSet::from_f32(side, DIM).expect("whole rows"));
    let engine = engine();
    let vae = engine.train_vae(&rows, &vae_options(), &mut |_, _| ()).expect("a VAE").vae;
    let options = synthesis();
    let mut stream = engine.stream(&options, &rows, &vae, 16, Dtype::F32).expect("a stream");
    stream.seek(100);
    let last = std::thread::scope(|scope| {
        scope.spawn(move || stream.last().expect("batches").expect("pairs")).join().expect("no panic")
    });
    assert_eq!((last.first, last.chosen.rows()), (164, 16));
    let alone = engine.pair(&options, &rows, &vae, 179, Dtype::F32).expect("a pair");
    assert_eq!(&last.chosen.bytes()[15 * 4 * DIM..], alone.chosen.bytes());
}

#[test]
fn wrong_arguments_name_fields() {
    let sides = [values(7), values(8)];
    let rows = sides.each_ref().map(|side| RowSet::from_f32(side, DIM).expect("whole rows"));
    let engine = engine();
    let field = |error: Error| match error {
        Error::InvalidArgument { field, .. } => field,
        other => panic!("{other}"),
    };
    let bad = VaeTraining { epochs: 0, ..VaeTraining::default() };
    assert_eq!(field(engine.train_vae(&rows, &bad, &mut |_, _| ()).unwrap_err()), "vae.epochs");
    let vae = engine.train_vae(&rows, &vae_options(), &mut |_, _| ()).expect("a VAE").vae;
    for (options, expected) in [
        (SynthesisOptions { sigma2: f64::NAN, ..synthesis() }, "sigma2"),
        (SynthesisOptions { pairs_per_seed: Some(1), ..synthesis() }, "pairs_per_seed"),
        (SynthesisOptions { oversample: 0, ..synthesis() }, "oversample"),
    ] {
        assert_eq!(
            field(engine.stream(&options, &rows, &vae, 4, Dtype::F32).map(drop).unwrap_err()),
            expected
        );
    }
    assert_eq!(
        field(engine.stream(&synthesis(), &rows, &vae, 0, Dtype::F32).map(drop).unwrap_err()),
        "batch"
    );
    assert_eq!(field(Engine::builder().threads(1 << 20).build().map(drop).unwrap_err()), "threads");
    let other = [rows[0].clone(), rows[1].slice(0..9)];
    assert!(matches!(engine.train_vae(&other, &vae_options(), &mut |_, _| ()), Err(Error::Shape { .. })));
}

/// What handles SIGBUS in this process, as the kernel shows it: bit 6 of the mask of caught signals.
#[cfg(target_os = "linux")]
fn catches_sigbus() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").expect("the status");
    let caught = status.lines().find_map(|l| l.strip_prefix("SigCgt:")).expect("the mask");
    u64::from_str_radix(caught.trim(), 16).expect("hexadecimal") >> 6 & 1 == 1
}

/// Rust's runtime installs a handler of SIGBUS of its own, for stack overflows: what counts is that ours is not there.
/// A file that is cut short ends the process without the guard, and is an error with it.
#[cfg(target_os = "linux")]
#[test]
fn only_the_guard_survives_a_file_that_is_cut_short() {
    if let Ok(path) = std::env::var("LENSMITH_TEST_CUT_SHORT") {
        assert!(catches_sigbus(), "Rust's runtime handles stack overflows");
        let guard = std::env::var("LENSMITH_TEST_GUARD").is_ok();
        let engine = Engine::builder().device(DeviceChoice::Cpu).sigbus_guard(guard).build().expect("a CPU");
        let set = PairSet::open(std::slice::from_ref(&path), &PairOptions::default()).expect("pairs");
        std::fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .expect("the file")
            .set_len(4096)
            .expect("shorter");
        let error = engine.train_vae(&set, &vae_options(), &mut |_, _| ()).expect_err("lost rows");
        assert!(matches!(error, Error::Changed { .. } | Error::Diverged { .. }), "{error}");
        std::process::exit(17);
    }
    for (guard, expected) in [(true, Some(17)), (false, None)] {
        let folder = tempfile::tempdir().expect("a folder");
        let big = [1, 2].map(|seed| values(seed).repeat(8));
        let (_, _, sources) = data(&big, folder.path());
        let mut this = std::process::Command::new(std::env::current_exe().expect("this program"));
        this.args(["--exact", "only_the_guard_survives_a_file_that_is_cut_short"]);
        this.env("LENSMITH_TEST_CUT_SHORT", &sources[0]);
        if guard {
            this.env("LENSMITH_TEST_GUARD", "1");
        }
        let output = this.output().expect("it runs");
        assert_eq!(output.status.code(), expected, "guard {guard}: {output:?}");
    }
}
