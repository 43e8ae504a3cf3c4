//! What good input gives: JSON, and files that load and agree with each other.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use lensmith::data::Checkpoint;
use lensmith::data::{EmbeddingSet, Io};
use lensmith::dtype::Dtype;
use lensmith::model::{RewardModel, Vae};
use lensmith::synth::Moved;
use lensmith::{Engine, Recipe};
use serde_json::Value;

use crate::common::cli::{assert_same_files, bare, f32_bytes, outputs};
use crate::common::{Bound, assert_close, data, wide};
use crate::support::{DIM, REWARD, SEEDS, VAE, with_data, with_models};

/// Names of an object.
fn keys(value: &Value) -> BTreeSet<&str> {
    value.as_object().expect("an object").keys().map(String::as_str).collect()
}

#[test]
fn json_is_one_object_from_every_command() {
    let lab = with_models();
    let lines: [(String, &[&str]); 15] = [
        (
            format!("train-vae @seeds.safetensors --out @v.safetensors {VAE}"),
            &["out", "size", "parameters", "pairs", "epochs", "loss", "history", "seconds", "device"],
        ),
        (
            "synth @seeds.safetensors --vae @vae.safetensors --out @s".into(),
            &[
                "out", "kind", "pairs", "resumed", "shards", "bytes", "seconds", "seeds", "fold", "per_side",
                "device",
            ],
        ),
        (
            "synth @seeds.safetensors --vae @vae.safetensors --out @recipe --output recipe".into(),
            &[
                "out", "kind", "pairs", "resumed", "shards", "bytes", "seconds", "seeds", "fold", "per_side",
                "device",
            ],
        ),
        (
            format!("train-reward @synth --validation @val.safetensors --out @r.safetensors {REWARD}"),
            &["out", "size", "pairs", "best_epoch", "steps", "history", "seconds", "device"],
        ),
        ("score @emb.safetensors --model @reward.safetensors".into(), &["reward"]),
        (
            "score @emb.safetensors --model @reward.safetensors --out @rewards.safetensors".into(),
            &["out", "rows"],
        ),
        ("eval @test.safetensors --model @reward.safetensors".into(), &["pairs", "order"]),
        (
            "eval @test.safetensors --model @reward.safetensors --recipe @synth/recipe.json".into(),
            &["pairs", "order"],
        ),
        ("best-of-n @sets.safetensors --model @reward.safetensors".into(), &["curve", "rank"]),
        ("inspect @seeds.safetensors".into(), &["path", "tensors", "metadata", "record"]),
        (
            "inspect @synth".into(),
            &["format", "complete", "fingerprint", "settings", "pairs", "shard_rows", "part", "shards"],
        ),
        (
            "inspect @synth/recipe.json --pair 77".into(),
            &["pair", "seed", "chosen_sample", "rejected_sample", "chosen", "rejected"],
        ),
        (
            "merge-manifests @synth".into(),
            &["manifest", "already", "parts", "shards", "pairs", "bytes", "overlapping", "overlaps"],
        ),
        ("verify @synth".into(), &["shards", "pairs", "bytes", "recomputed"]),
        ("verify @synth/pairs-00001.safetensors".into(), &["file", "rows", "bytes", "tensors"]),
    ];
    for (line, want) in lines {
        let value = lab.fine(&format!("{line} --json")).json();
        let missing: Vec<&&str> =
            want.iter().chain(&["format"]).filter(|k| !keys(&value).contains(**k)).collect();
        assert!(missing.is_empty(), "{line}: {missing:?} not in {value}");
    }
    let value = lab.fine("verify @synth --recompute 1000 --json").json();
    let files = ["shards", "pairs", "recomputed"].map(|k| value[k].as_u64());
    assert_eq!(files, [Some(4), Some(160), Some(160)], "{value}");
    let value = lab.fine("inspect @synth/recipe.json --json").json();
    assert_eq!(value["plan"]["seeds"], SEEDS, "{value}");
}

#[test]
fn text_is_for_people() {
    let lab = with_models();
    for (line, says) in [
        ("inspect @seeds.safetensors", "chosen"),
        ("inspect @synth", "complete, 160 of 160 pairs in 4 shards of 40"),
        ("inspect @synth/recipe.json", "160 pairs from 40 seeds, 4-fold"),
        ("inspect @synth/recipe.json --pair 0", "the original"),
        ("inspect @synth --pair 159", "pair 159 of seed 39"),
        ("verify @synth", "in order; 160 pairs in 4 shards"),
        ("eval @test.safetensors --model @reward.safetensors", "on 24 pairs"),
        ("best-of-n @sets.safetensors --model @reward.safetensors", "6 prompts of 4 candidates"),
    ] {
        let said = lab.fine(line);
        assert!(said.out.contains(says), "{line}: {}", said.out);
    }
}

/// Whoever looks into a folder, or takes the wrong file or option, reads what comes next.
#[test]
fn texts_lead_on() {
    let lab = with_models();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/convert");
    for name in ["chosen.npy", "stored.npz", "pandas.parquet", "file.arrow", "stream.arrow"] {
        let said = lab.run(&format!("run {} --out @new", golden.join(name).display()));
        assert!(said.code == Some(1) && said.err.contains("`lensmith import` makes shards"), "{said:?}");
    }
    let said = lab.run("score @seeds.safetensors --model @reward.safetensors");
    assert_eq!(said.code, Some(2), "{said:?}");
    assert!(said.err.contains("option --tensor: expected one of the tensors"), "{said:?}");
    let said = lab.run("synth @seeds.safetensors --vae @vae.safetensors --out @new --sigma 1");
    assert!(said.code == Some(2) && said.err.contains("similar: --sigma2"), "{said:?}");

    let part = "synth @seeds.safetensors --vae @vae.safetensors --fold 4 --shard-rows 40 --out @parts --part";
    let said = lab.fine(&format!("{part} 1/4"));
    assert!(said.out.contains("parts, part 1/4: 40 pairs"), "{said:?}");
    assert!(said.out.contains("once all 4 parts are there: lensmith merge-manifests"), "{said:?}");
    lab.fine(&format!("{part} 3/4"));
    let said = lab.fine("materialize @synth/recipe.json --shard-rows 40 --part 0/2 --out @made");
    assert!(said.out.contains("made, part 0/2: from the recipe, 80 pairs"), "{said:?}");
    assert!(said.out.contains("once all 2 parts are there: lensmith merge-manifests"), "{said:?}");
    let said = lab.fine("inspect @parts");
    assert!(said.out.contains("manifest.part-1-of-4.json  complete"), "{said:?}");
    let said = lab.fine("verify @parts");
    assert!(said.out.contains("80 pairs of the run's 160") && said.out.contains("made by `lensmith synth"));
    for missing in ["pairs-00000.safetensors of part 0/4", "pairs-00002.safetensors of part 2/4"] {
        assert!(said.out.contains(missing), "{said:?}");
    }
    std::fs::create_dir(lab.at("plain")).expect("a folder");
    std::fs::copy(lab.at("seeds.safetensors"), lab.at("plain/a.safetensors")).expect("a copy");
    let said = lab.fine("inspect @plain");
    assert!(said.out.contains("a.safetensors") && said.out.contains("chosen F32 [40"), "{said:?}");
}

#[test]
fn overwrite_replaces() {
    let lab = with_models();
    let again =
        "synth @seeds.safetensors --vae @vae.safetensors --fold 3 --dtype f32 --shard-rows 60 --out @";
    lab.fine(&format!("{again}fresh"));
    lab.fine(&format!("{again}synth --overwrite"));
    assert_same_files("replaced folder", &outputs(&lab.at("synth")), &outputs(&lab.at("fresh")));
    lab.fine("verify @synth");

    let other = "--reward-hidden 32 --epochs 1 --seed 4";
    lab.fine(&format!("train-reward @seeds.safetensors --out @other.safetensors {other}"));
    lab.fine(&format!("train-reward @seeds.safetensors --out @reward.safetensors --overwrite {other}"));
    assert!(lab.bytes("reward.safetensors") == lab.bytes("other.safetensors"), "the model was not replaced");
}

#[test]
fn ways_to_read_give_the_same_bytes() {
    let lab = with_data();
    for io in ["mmap", "read"] {
        lab.fine(&format!("train-vae @seeds.safetensors --out @{io}.vae.safetensors --io {io} {VAE}"));
        lab.fine(&format!("train-reward @seeds.safetensors --out @{io}.r.safetensors --io {io} {REWARD}"));
        lab.fine(&format!("synth @seeds.safetensors --vae @mmap.vae.safetensors --out @{io} --io {io}"));
        lab.fine(&format!(
            "score @emb.safetensors --model @mmap.r.safetensors --out @{io}.s.safetensors --io {io}"
        ));
    }
    for kind in ["vae", "r", "s"] {
        let [a, b] = ["mmap", "read"].map(|io| lab.bytes(&format!("{io}.{kind}.safetensors")));
        assert!(a == b && !a.is_empty(), "{kind} differs");
    }
    assert_same_files("synth", &outputs(&lab.at("read")), &outputs(&lab.at("mmap")));
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let lab = with_models();
    let rows = 20_000;
    lab.tensors("many.safetensors", &[("embeddings", "F32", &[rows, DIM], f32_bytes(&data(9, rows, DIM)))]);
    let script = r#""$0" "$@" | head -1; echo "${PIPESTATUS[0]}""#;
    let mut command = bare(Command::new("bash"));
    command.args(["-c", script, env!("CARGO_BIN_EXE_lensmith")]);
    command.args(lab.words("score @many.safetensors --model @reward.safetensors"));
    let output = command.output().expect("a shell");
    let text = String::from_utf8(output.stdout).expect("text");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[0].parse::<f32>().is_ok_and(f32::is_finite), "{lines:?}");
    assert_eq!(lines[1], "0");
}

#[test]
fn scores_agree_in_every_form() {
    let lab = with_models();
    let text = lab.fine("score @emb.safetensors --model @reward.safetensors").out;
    let lines: Vec<f32> = text.lines().map(|l| l.parse().expect("a number")).collect();
    let value = lab.fine("score @emb.safetensors --model @reward.safetensors --json").json();
    let json: Vec<f32> = value["reward"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|v| v.as_f64().expect("a number") as f32)
        .collect();
    lab.fine("score @emb.safetensors --model @reward.safetensors --out @out.safetensors");
    let bytes = lab.bytes("out.safetensors");
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    let tensor = file.tensor("reward").expect("the rewards");
    assert_eq!(tensor.shape(), [50]);
    let stored: Vec<f32> = bytemuck::pod_collect_to_vec(tensor.data());
    let model = RewardModel::load(&lab.at("reward.safetensors")).expect("a model").0;
    let set = EmbeddingSet::open(&[lab.text("emb.safetensors")], "embeddings", Io::Read).expect("embeddings");
    let mut direct = Vec::new();
    let engine =
        Engine::builder().device(lensmith::backend::DeviceChoice::Cpu).threads(1).build().expect("a device");
    let sink = &mut |part: &[f32]| {
        direct.extend_from_slice(part);
        Ok(())
    };
    engine.score(&model, &set, sink).expect("scores");
    for (what, got) in [("text", &lines), ("JSON", &json), ("file", &stored)] {
        crate::common::assert_same_bits(what, got, &direct);
    }
}

/// All parameters of a reward model, in order.
fn parameters(path: &Path) -> Vec<f32> {
    let model = RewardModel::load(path).expect("a model").0;
    model.layers.iter().flat_map(|l| l.weight.iter().chain(&l.bias).copied().collect::<Vec<_>>()).collect()
}

/// A folder of F32 shards, the same folder made in parts, and the recipe train one model.
#[test]
fn shards_and_recipe_train_the_same_model() {
    let lab = with_models();
    let how = "--reward-hidden 16 --epochs 4 --lr 1e-3 --validation @val.safetensors";
    for part in 0..3 {
        lab.fine(&format!(
            "synth @seeds.safetensors --vae @vae.safetensors --fold 4 --dtype f32 --shard-rows 40 \
             --out @parts --part {part}/3"
        ));
    }
    lab.fine(&format!("train-reward --recipe @synth/recipe.json --out @recipe.r.safetensors {how}"));
    lab.fine(&format!("train-reward @synth --out @shards.r.safetensors {how}"));
    lab.fine(&format!("train-reward @parts --out @parts.r.safetensors {how}"));
    let [recipe, shards, parts] =
        ["recipe", "shards", "parts"].map(|n| parameters(&lab.at(&format!("{n}.r.safetensors"))));
    let untrained = {
        lab.fine(
            "train-reward @seeds.safetensors --out @u.safetensors --reward-hidden 16 --epochs 1 --lr 1e-9",
        );
        parameters(&lab.at("u.safetensors"))
    };
    let moved = shards.iter().zip(&untrained).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
    assert!(moved > 1e-2, "training moved the parameters by {moved} only");
    let bound = Bound::Largest { rtol: 1e-4, floor: 1.0 };
    assert_close("recipe against shards", &recipe, &wide(&shards), bound);
    assert_close("parts against the whole", &parts, &wide(&shards), bound);
}

#[test]
fn a_run_leaves_a_report_and_files_that_load() {
    let lab = with_data();
    let line = format!(
        "run @seeds.safetensors --seeds 24 --validation-pairs 8 --candidates @sets.safetensors --fold 4 \
         --output embeddings {VAE} {REWARD} --out @"
    );
    let said = lab.fine(&format!("{line}first"));
    for says in ["24 seed, 8 validation and 8 test pairs", "no augmentation", "LENS 4x", "best-of-4"] {
        assert!(said.out.contains(says), "{}", said.out);
    }
    let report = lab.value("first/run.json");
    let top =
        ["comparisons", "device", "format", "lensmith", "repeats", "seconds", "seed", "settings", "sources"];
    assert_eq!(keys(&report), top.into());
    let first = &report["repeats"][0];
    assert_eq!(
        keys(first),
        [
            "seed",
            "folder",
            "pairs",
            "health",
            "vae_history",
            "vae_seconds",
            "latent_map",
            "gold_order",
            "arms"
        ]
        .into()
    );
    assert_eq!(keys(&report["sources"]), ["pairs", "validation", "test", "candidates"].into());
    assert_eq!(first["pairs"], serde_json::json!({ "seeds": 24, "validation": 8, "test": 8 }));
    let arms = first["arms"].as_array().expect("a list");
    assert_eq!(arms.len(), 3);
    // The report once more, from its file.
    assert_eq!(lab.fine("inspect @first").out, said.out);
    assert_eq!(lab.fine("inspect @first --json").json(), report);
    for arm in arms {
        let want = [
            "arm",
            "fold",
            "pairs",
            "steps",
            "best_epoch",
            "best_step",
            "capped",
            "input_noise",
            "history",
            "test",
            "best_of_n",
            "rank",
            "order",
            "seconds",
        ];
        assert_eq!(keys(arm), want.into());
        let best = &arm["best_of_n"]["points"][3]["model"];
        for figure in [&arm["test"]["accuracy"], &arm["test"]["loss"], best] {
            assert!(figure.as_f64().is_some_and(f64::is_finite), "{arm}");
        }
    }
    assert_eq!(arms.iter().map(|a| a["pairs"].as_u64()).collect::<Vec<_>>(), [Some(24), Some(24), Some(96)]);

    let (vae, _) = Vae::load(&lab.at("first/vae.safetensors")).expect("a VAE");
    assert_eq!((vae.size().dim, vae.size().hidden), (DIM, 16));
    for name in ["reward", "reward_none"] {
        let (model, provenance) =
            RewardModel::load(&lab.at(&format!("first/{name}.safetensors"))).expect("a model");
        assert_eq!(model.size().dim, DIM);
        assert!(provenance.contains_key("lensmith.result"));
    }
    // The folder can be moved: its recipes name its own files.
    std::fs::rename(lab.at("first"), lab.at("moved")).expect("a folder");
    let path = lab.at("moved/recipe.json");
    let recipe = Recipe::read(&path).expect("a recipe");
    let (seeds, vae) = recipe.open(&path, Io::Mmap, &Moved::default()).expect("its files");
    assert_eq!((seeds.len(), recipe.plan.pairs()), (24, 96));
    let engine =
        Engine::builder().device(lensmith::backend::DeviceChoice::Cpu).threads(1).build().expect("a device");
    assert_eq!(engine.stream(&recipe.options(), &seeds, &vae, 10, Dtype::F32).expect("pairs").count(), 10);
    let verified = lab.fine("verify @moved/synthetic --json").json();
    assert_eq!((&verified["pairs"], &verified["recomputed"]), (&96.into(), &16.into()));

    // Its parts are what the commands make of the same seeds.
    lab.fine(&format!("train-vae @moved/seeds.safetensors --out @same.safetensors {VAE}"));
    let [a, b] =
        ["same", "moved/vae"].map(|n| Vae::load(&lab.at(&format!("{n}.safetensors"))).expect("a VAE").0);
    assert!(a == b, "the run's VAE differs from that of train-vae");
    let again = lab.fine(&format!("{line}second --json")).json();
    assert_eq!(again["repeats"][0]["arms"][2]["test"], arms[2]["test"]);
    assert_eq!(lab.value("second/run.json"), again);
}

#[test]
fn repeats_are_separate_runs() {
    let lab = with_data();
    let line = format!("run @seeds.safetensors --seeds 20 --validation-pairs 8 {VAE} {REWARD} --out @runs");
    let said = lab.fine(&format!("{line} --repeats 2 --seed 5"));
    assert!(said.out.contains("±"), "{}", said.out);
    let report = lab.value("runs/run.json");
    let seeds: Vec<_> = report["repeats"].as_array().expect("a list").iter().map(|r| &r["seed"]).collect();
    assert_eq!(seeds, [&Value::from(5), &Value::from(6)]);
    let [a, b] = [5, 6].map(|s| lab.bytes(&format!("runs/seed-{s}/vae.safetensors")));
    assert!(a != b, "two splits gave one VAE");
}
