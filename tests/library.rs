//! The crate as its users see it: what files give, memory gives too, and the library leaves its host alone.

use std::path::Path;

use lensmith::{
    CandidateSet, Checkpoint, DecodeMode, DeviceChoice, Dtype, EmbeddingSet, Engine, Error, Io, PairBatch,
    PairOptions, PairSet, PairStream, Recipe, ResponseSet, RewardModel, RewardTraining, RowSet,
    SelectOptions, SelectedFigures, SynthJob, SynthesisOptions, Updates, Vae, VaeTraining, write_pairs,
    write_pairs_until,
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

    let texts = "{\"responses\": [\"a\", \"b\", \"c\", \"d\"]}\n".repeat(PAIRS / 4).into_bytes();
    let mut responses = ResponseSet::from_memory("texts", texts, &Default::default()).expect("rows");
    responses.pair_with(PAIRS / 4, 4, None).expect("as many");
    let mut sum = 0.0;
    let summary = engine.select(model, &rows[0], &responses, &SelectOptions::default(), &mut |taken| {
        let SelectedFigures::One { candidate, reward, uncertainty: None } = taken.figures else {
            panic!("figures of one response of one head: {taken:?}");
        };
        assert_eq!(reward, scores[0][taken.row as usize * 4 + candidate]);
        sum += f64::from(reward);
        Ok(())
    });
    let summary = summary.expect("a selection");
    assert_eq!((summary.selected, summary.reward), (15, sum / 15.0));
    assert!((summary.reward - best.points[3].model).abs() < 1e-9 && summary.reward > summary.random);
    responses.pair_with(10, 4, None).expect_err("fewer prompts than rows");
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
fn pairs_in_any_order_have_the_bits_of_a_stream() {
    let folder = tempfile::tempdir().expect("a folder");
    let (rows, set, _) = data(&[values(9), values(10)], folder.path());
    let engine = engine();
    let vae = engine.train_vae(&rows, &vae_options(), &mut |_, _| ()).expect("a VAE").vae;
    let pairs = 5 * PAIRS as u64;
    // Originals and synthetic pairs, some twice, in no order.
    let numbers: Vec<u64> = (0..200).map(|i| (i * 7919 + 13) % pairs).chain([0, 0, pairs - 1]).collect();
    for mode in [DecodeMode::Plain, DecodeMode::Residual] {
        for dtype in Dtype::ALL {
            let options = SynthesisOptions { pairs_per_seed: Some(5), mode, ..synthesis() };
            let stream = engine.stream(&options, &rows, &vae, 64, dtype).expect("a stream");
            let (chosen, rejected) = concatenated(stream);
            for seeds in [&rows as &dyn lensmith::PairSource, &set] {
                let index = engine.index(&options, seeds, &vae).expect("an index");
                assert_eq!(index.pairs(), pairs);
                let taken = index.take(&numbers, dtype).expect("pairs");
                let row = DIM * dtype.size();
                for (i, &j) in numbers.iter().enumerate() {
                    let of = |bytes: &[u8], at: usize| bytes[at * row..(at + 1) * row].to_vec();
                    assert_eq!(of(taken.chosen.bytes(), i), of(&chosen, j as usize), "{mode:?} {dtype} {j}");
                    assert_eq!(
                        of(taken.rejected.bytes(), i),
                        of(&rejected, j as usize),
                        "{mode:?} {dtype} {j}"
                    );
                }
            }
        }
    }
    let index = engine.index(&synthesis(), &rows, &vae).expect("an index");
    let error = index.take(&[index.pairs()], Dtype::F32).unwrap_err();
    assert!(matches!(error, Error::InvalidArgument { field: "pair number", .. }), "{error}");
    assert!(matches!(index.take(&[], Dtype::F32), Err(Error::TooFew { .. })));
    // A value that F16 cannot hold is an error that names it.
    let large = [vec![1e6f32; PAIRS * DIM], values(10)];
    let large = large.each_ref().map(|side| RowSet::from_f32(side, DIM).expect("whole rows"));
    let index = engine.index(&synthesis(), &large, &vae).expect("an index");
    let error = index.take(&[3], Dtype::F16).unwrap_err().to_string();
    assert!(error.contains("seed 3 (chosen), column 0"), "{error}");
}

#[test]
fn latents_come_out_and_go_in() {
    let sides = [values(11), values(12)];
    let rows = sides.each_ref().map(|side| RowSet::from_f32(side, DIM).expect("whole rows"));
    let engine = engine();
    let vae = engine.train_vae(&rows, &vae_options(), &mut |_, _| ()).expect("a VAE").vae;
    let codes = engine.encode(&vae, &rows[0]).expect("posteriors");
    assert_eq!((codes.mu.rows, codes.mu.cols, codes.logvar.rows), (PAIRS, vae.size().latent, PAIRS));
    let decoded = engine.decode(&vae, &codes.mu).expect("embeddings");
    // The definition, in F64.
    let layer = |layer: &lensmith::Linear, x: &[f64], relu: bool| -> Vec<f64> {
        let rows = layer.weight.chunks_exact(layer.inputs).zip(&layer.bias);
        let sums = rows.map(|(w, &b)| {
            let sum = w.iter().zip(x).map(|(&w, x)| f64::from(w) * x).sum::<f64>() + f64::from(b);
            if relu { sum.max(0.0) } else { sum }
        });
        sums.collect()
    };
    for row in [0, PAIRS - 1] {
        let x: Vec<f64> = sides[0][row * DIM..(row + 1) * DIM].iter().map(|&v| f64::from(v)).collect();
        let code = layer(&vae.encoder[1], &layer(&vae.encoder[0], &x, true), false);
        let z: Vec<f64> = codes.mu.row(row).iter().map(|&v| f64::from(v)).collect();
        let near = |a: &[f64], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - f64::from(*b)).abs() < 1e-4);
        assert!(near(&code[..z.len()], codes.mu.row(row)) && near(&code[z.len()..], codes.logvar.row(row)));
        assert!(near(&layer(&vae.decoder[1], &layer(&vae.decoder[0], &z, true), false), decoded.row(row)));
    }
    let wrong = lensmith::Matrix::zeros(3, vae.size().latent + 1);
    assert!(matches!(engine.decode(&vae, &wrong), Err(Error::Shape { .. })));
}

#[test]
fn an_interrupt_stops_every_operation_and_the_engine_works_on() {
    let sides = [values(13), values(14)];
    let rows = sides.each_ref().map(|side| RowSet::from_f32(side, DIM).expect("whole rows"));
    for device in [DeviceChoice::Cpu, DeviceChoice::Reference] {
        let engine = Engine::builder().device(device).threads(2).build().expect("a device");
        let interrupt = engine.interrupt();
        let vae = engine.train_vae(&rows, &vae_options(), &mut |_, _| ()).expect("a VAE").vae;
        // From a callback, in the middle of a training that would take for ever.
        let endless = VaeTraining { epochs: usize::MAX, ..VaeTraining::default() };
        let mut epochs = 0;
        let stopped = engine.train_vae(&rows, &endless, &mut |epoch, _| {
            epochs = epoch;
            if epoch == 2 {
                interrupt.raise();
            }
        });
        assert!(matches!(stopped, Err(Error::Interrupted)), "{stopped:?}");
        assert_eq!(epochs, 2);
        // Raised, it stops whatever is begun.
        let endless =
            RewardTraining { updates: Updates::Epochs(usize::MAX), patience: None, ..reward_options() };
        let reward = engine.train_reward(&rows, None, None, &endless, &mut |_| ());
        assert!(matches!(reward, Err(Error::Interrupted)), "{reward:?}");
        if device == DeviceChoice::Cpu {
            assert!(matches!(engine.encode(&vae, &rows[0]), Err(Error::Interrupted)));
            let mut stream = engine.stream(&synthesis(), &rows, &vae, 500, Dtype::F32).expect("a stream");
            assert!(matches!(stream.next(), Some(Err(Error::Interrupted))));
        }
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("pairs.safetensors");
        let sides = [&rows[0], &rows[1]];
        assert!(matches!(write_pairs_until(&path, sides, None, &interrupt), Err(Error::Interrupted)));
        assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 0, "nothing is left");
        write_pairs(&path, sides, None).expect("a shard");
        let set =
            PairSet::open(&[path.to_string_lossy().into_owned()], &PairOptions::default()).expect("pairs");
        assert!(matches!(set.scan_until(&interrupt), Err(Error::Interrupted)));
        set.scan().expect("finite values");
        interrupt.clear();
        // From another thread.
        std::thread::scope(|scope| {
            let interrupt = engine.interrupt();
            scope.spawn(move || {
                std::thread::sleep(std::time::Duration::from_millis(30));
                interrupt.raise();
            });
            let reward = engine.train_reward(&rows, None, None, &endless, &mut |_| ());
            assert!(matches!(reward, Err(Error::Interrupted)), "{reward:?}");
        });
        interrupt.clear();
        let again = engine.train_vae(&rows, &vae_options(), &mut |_, _| ()).expect("a VAE").vae;
        assert_eq!(bits(&again), bits(&vae), "what was interrupted leaves nothing behind");
    }
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
