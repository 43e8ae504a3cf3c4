//! Folders of good data, and with one of every kind of bad file.

use std::fs;
use std::path::Path;

use lensmith::dtype::Dtype;
use serde_json::Value;

use crate::common::cli::{Lab, Tensor, f32_bytes, file, raw};
use crate::common::{data, normals};

/// Width of the data.
pub const DIM: usize = 32;
/// Seed pairs.
pub const SEEDS: usize = 40;

/// Options that keep the models small.
pub const VAE: &str = "--hidden 16 --latent 16 --vae-epochs 3";
/// The same for reward models.
pub const REWARD: &str = "--reward-hidden 16 --epochs 2";

/// Good data: seeds, validation and test pairs, embeddings, best-of-N sets.
pub fn with_data() -> Lab {
    let lab = Lab::new();
    for (name, rows, seed) in [("seeds", SEEDS, 1), ("val", 20, 2), ("test", 24, 3), ("one", 1, 4)] {
        lab.pairs(&format!("{name}.safetensors"), Dtype::F32, rows, DIM, seed);
    }
    let rows = data(5, 50, DIM);
    lab.tensors("emb.safetensors", &[("embeddings", "F32", &[50, DIM], f32_bytes(&rows))]);
    lab.put("sets.safetensors", &sets([6, 4, DIM], &[6, 4], normals(6, 0, 24)));
    lab.put("sampled.jsonl", sampled(6, 4).join("\n").as_bytes());
    lab
}

/// A best-of-N file.
pub fn sets(shape: [usize; 3], gold: &[usize], scores: Vec<f32>) -> Vec<u8> {
    let candidates = f32_bytes(&data(7, shape[0] * shape[1], shape[2]));
    file(&[("candidates", "F32", &shape, candidates), ("gold", "F32", gold, f32_bytes(&scores))])
}

/// Lines of JSON: `prompts` prompts with `responses` responses of 1, 2, 3, ... characters each.
pub fn sampled(prompts: usize, responses: usize) -> Vec<String> {
    let row = |p: usize| {
        let texts: Vec<String> = (0..responses).map(|r| format!("{p}{}", "x".repeat(r))).collect();
        serde_json::json!({ "prompt": format!("Prompt {p}: "), "responses": texts }).to_string()
    };
    (0..prompts).map(row).collect()
}

/// Good data with a VAE, a reward model and a folder `synth` of 4 shards.
pub fn with_models() -> Lab {
    let lab = with_data();
    lab.fine(&format!("train-vae @seeds.safetensors --out @vae.safetensors {VAE}"));
    lab.fine(&format!("train-reward @seeds.safetensors --out @reward.safetensors {REWARD}"));
    lab.fine(
        "synth @seeds.safetensors --vae @vae.safetensors --fold 4 --dtype f32 --shard-rows 40 --out @synth",
    );
    lab
}

/// A pair file with these two tensors.
fn two(chosen: Tensor<'_>, rejected: Tensor<'_>) -> Vec<u8> {
    file(&[chosen, rejected])
}

/// A tensor of zeros.
fn blank<'a>(name: &'a str, dtype: &'a str, shape: &'a [usize], bytes: usize) -> Tensor<'a> {
    (name, dtype, shape, vec![0; bytes])
}

/// A pair file of 20 rows with `value` at `row`, `column` of one side.
fn poisoned(side: usize, row: usize, column: usize, value: f32) -> Vec<u8> {
    let mut sides = [data(8, 20, DIM), data(9, 20, DIM)];
    sides[side][row * DIM + column] = value;
    let [chosen, rejected] = sides.map(|s| f32_bytes(&s));
    two(("chosen", "F32", &[20, DIM], chosen), ("rejected", "F32", &[20, DIM], rejected))
}

/// Changes a JSON file.
pub fn edit(lab: &Lab, from: &str, to: &str, change: impl FnOnce(&mut Value)) {
    let mut value = lab.value(from);
    change(&mut value);
    lab.put(to, value.to_string().as_bytes());
}

/// A copy of the files of a folder, lock files and subfolders aside.
pub fn copy_folder(lab: &Lab, from: &str, to: &str) {
    fs::create_dir_all(lab.at(to)).expect("a folder");
    for entry in fs::read_dir(lab.at(from)).expect("a folder") {
        let entry = entry.expect("an entry");
        if !entry.file_name().to_string_lossy().starts_with('.') {
            fs::copy(entry.path(), lab.at(to).join(entry.file_name())).expect("a copy");
        }
    }
}

/// The state dict of a VAE 32 -> 16 -> 16 with one tensor replaced or, given no bytes, left out.
fn vae_dict(changed: Tensor<'_>) -> Vec<u8> {
    const D: usize = DIM;
    let shapes: [(&str, &[usize]); 8] = [
        ("encoder.0.weight", &[16, D]),
        ("encoder.0.bias", &[16]),
        ("encoder.2.weight", &[32, 16]),
        ("encoder.2.bias", &[32]),
        ("decoder.0.weight", &[16, 16]),
        ("decoder.0.bias", &[16]),
        ("decoder.2.weight", &[D, 16]),
        ("decoder.2.bias", &[D]),
    ];
    let mut tensors: Vec<Tensor<'_>> = Vec::new();
    for (i, (name, shape)) in shapes.into_iter().enumerate() {
        if name != changed.0 {
            tensors.push((name, "F32", shape, f32_bytes(&normals(10, i as u64, shape.iter().product()))));
        } else if !changed.3.is_empty() {
            tensors.push(changed.clone());
        }
    }
    file(&tensors)
}

/// [`with_models`] with every kind of bad file beside the good ones.
pub fn with_everything() -> Lab {
    let lab = with_models();
    let zeros = |n: usize| vec![0u8; n];
    let good = lab.bytes("seeds.safetensors");
    // Files that are no safetensors files.
    lab.put("empty.safetensors", b"");
    lab.put("text.safetensors", b"chosen,rejected\n1,2\n3,4 and a good deal more of the same\n");
    lab.put("short.safetensors", &good[..good.len() - 100]);
    lab.put("stub.safetensors", &good[..1000]);
    lab.put("long.safetensors", &[good.as_slice(), b"x"].concat());
    lab.put("huge.safetensors", &[&u64::MAX.to_le_bytes()[..], b"{}"].concat());
    let lie = "{\"chosen\":{\"dtype\":\"F32\",\"shape\":[9,9],\"data_offsets\":[0,16]}}";
    lab.put("lie.safetensors", &raw(lie, &zeros(16)));
    let hole = "{\"chosen\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,16]}}";
    lab.put("hole.safetensors", &raw(hole, &zeros(16)));
    lab.put("notjson.safetensors", &raw("{\"chosen\":", &[]));
    // Tensors that are no preference pairs.
    let cases: [(&str, [Tensor<'_>; 2]); 7] = [
        ("int", [blank("chosen", "I64", &[2, 4], 64), blank("rejected", "I64", &[2, 4], 64)]),
        ("f64", [blank("chosen", "F64", &[2, 4], 64), blank("rejected", "F64", &[2, 4], 64)]),
        ("rank", [blank("chosen", "F32", &[8], 32), blank("rejected", "F32", &[8], 32)]),
        ("rows", [blank("chosen", "F32", &[2, 4], 32), blank("rejected", "F32", &[3, 4], 48)]),
        ("mixed", [blank("chosen", "F32", &[2, 4], 32), blank("rejected", "F16", &[2, 4], 16)]),
        ("none", [blank("chosen", "F32", &[0, 4], 0), blank("rejected", "F32", &[0, 4], 0)]),
        ("thin", [blank("chosen", "F32", &[2, 0], 0), blank("rejected", "F32", &[2, 0], 0)]),
    ];
    for (name, [chosen, rejected]) in cases {
        lab.put(&format!("{name}.safetensors"), &two(chosen, rejected));
    }
    lab.put("nan17.safetensors", &poisoned(1, 17, 3, f32::NAN));
    lab.put("inf.safetensors", &poisoned(0, 5, 31, f32::INFINITY));
    lab.put("large.safetensors", &poisoned(0, 6, 2, 1e5));
    lab.pairs("wide.safetensors", Dtype::F32, 20, 48, 12);
    lab.pairs("mixed/a.safetensors", Dtype::F32, 20, DIM, 13);
    lab.pairs("mixed/b.safetensors", Dtype::F32, 20, 48, 14);
    fs::create_dir(lab.at("nothing")).expect("a folder");
    lab.put("notes/readme.txt", b"no shards here\n");
    let wide = f32_bytes(&data(15, 10, 48));
    lab.tensors("wide_emb.safetensors", &[("embeddings", "F32", &[10, 48], wide)]);
    let mut bad = data(16, 20, DIM);
    bad[17 * DIM + 9] = f32::NEG_INFINITY;
    lab.tensors("bad_emb.safetensors", &[("embeddings", "F32", &[20, DIM], f32_bytes(&bad))]);
    let pairs = [("chosen", "F32", &[4, DIM][..], f32_bytes(&data(17, 4, DIM)))];
    let [chosen] = pairs;
    let rejected = ("rejected", "F32", &[4, DIM][..], f32_bytes(&data(18, 4, DIM)));
    lab.tensors("group.safetensors", &[chosen.clone(), rejected.clone(), blank("group", "I64", &[3], 24)]);
    lab.tensors("words.safetensors", &[chosen, rejected, ("group", "F32", &[4], zeros(16))]);
    // Best-of-N sets.
    lab.put("alone.safetensors", &sets([6, 1, DIM], &[6, 1], normals(19, 0, 6)));
    lab.put("gold.safetensors", &sets([6, 4, DIM], &[6, 3], normals(19, 0, 18)));
    let mut scores = normals(20, 0, 24);
    scores[17] = f32::NAN;
    lab.put("gold_nan.safetensors", &sets([6, 4, DIM], &[6, 4], scores));
    lab.put("wide_sets.safetensors", &sets([6, 4, 48], &[6, 4], normals(21, 0, 24)));
    // Texts of best-of-N sets.
    let text = |name: &str, row: usize, line: &str| {
        let mut lines = sampled(6, 4);
        lines[row] = line.to_string();
        lab.put(name, lines.join("\n").as_bytes());
    };
    lab.put("few.jsonl", sampled(5, 4).join("\n").as_bytes());
    lab.put("many.jsonl", sampled(7, 4).join("\n").as_bytes());
    lab.put("blank.jsonl", b"\n\n");
    text("three.jsonl", 4, &sampled(1, 3)[0]);
    text("nojson.jsonl", 2, "{\"prompt\": \"a\", \"responses\": [");
    text("list.jsonl", 3, "[1, 2]");
    text("noprompt.jsonl", 1, "{\"responses\": [\"a\", \"b\", \"c\", \"d\"]}");
    text("null.jsonl", 5, "{\"prompt\": \"a\", \"responses\": [\"a\", null, \"c\", \"d\"]}");
    text(
        "roles.jsonl",
        0,
        "{\"prompt\": [{\"content\": \"a\"}], \"responses\": [\"a\", \"b\", \"c\", \"d\"]}",
    );
    text("one.jsonl", 0, "{\"prompt\": \"a\", \"responses\": \"a\"}");
    let repeated = |line: &str| line.replace("[\"", "[\"Prompt 0: ").replace(",\"", ",\"Prompt 0: ");
    let repeated: Vec<String> =
        vec![repeated(&sampled(1, 4)[0]).replace(",\"Prompt 0: responses", ",\"responses"); 6];
    lab.put("repeated.jsonl", repeated.join("\n").as_bytes());
    // Checkpoints.
    lab.put("dict.safetensors", &vae_dict(("encoder.2.weight", "F32", &[32, 8], zeros(32 * 8 * 4))));
    lab.put("rows.vae.safetensors", &vae_dict(("decoder.2.weight", "F32", &[16, DIM], zeros(2048))));
    let mut weights = normals(22, 0, 256);
    weights[16 * 3 + 5] = f32::NAN;
    lab.put("nan.vae.safetensors", &vae_dict(("decoder.0.weight", "F32", &[16, 16], f32_bytes(&weights))));
    lab.put("bias.vae.safetensors", &vae_dict(("decoder.2.bias", "F32", &[DIM], Vec::new())));
    lab.put("int.vae.safetensors", &vae_dict(("encoder.0.bias", "I32", &[16], zeros(64))));
    let reward = |hidden: usize| {
        let first = f32_bytes(&normals(23, 0, hidden * DIM));
        file(&[
            ("0.weight", "F32", &[hidden, DIM], first),
            ("0.bias", "F32", &[hidden], zeros(4 * hidden)),
            ("2.weight", "F32", &[1, hidden], zeros(4 * hidden)),
            ("2.bias", "F32", &[1], zeros(4)),
        ])
    };
    lab.put("odd.reward.safetensors", &reward(20));
    // Recipes, which name their files absolutely.
    lab.put("text.recipe.json", b"seeds = many\n");
    edit(&lab, "synth/recipe.json", "format.recipe.json", |r| r["format"] = 2.into());
    edit(&lab, "synth/recipe.json", "plan.recipe.json", |r| r["plan"]["seeds"] = 41.into());
    edit(&lab, "synth/recipe.json", "fold.recipe.json", |r| r["plan"]["fold"] = 1.into());
    edit(&lab, "synth/recipe.json", "lost.recipe.json", |r| {
        r["seeds"]["sources"][0] = lab.text("gone.safetensors").into();
    });
    let mut flipped = good.clone();
    *flipped.last_mut().expect("bytes") ^= 1;
    lab.put("changed.safetensors", &flipped);
    edit(&lab, "synth/recipe.json", "bit.recipe.json", |r| {
        r["seeds"]["sources"][0] = lab.text("changed.safetensors").into();
        r["seeds"]["files"][0]["file"] = "changed.safetensors".into();
    });
    lab.fine(&format!("train-vae @seeds.safetensors --out @other.vae.safetensors --seed 1 {VAE}"));
    edit(&lab, "synth/recipe.json", "vae.recipe.json", |r| {
        r["vae"]["path"] = lab.text("other.vae.safetensors").into();
    });
    // Folders made by synth in which something is wrong.
    let damaged = |name: &str, damage: &dyn Fn(&Path)| {
        copy_folder(&lab, "synth", name);
        damage(&lab.at(name));
    };
    let flip = |path: &Path, back: usize| {
        let mut bytes = fs::read(path).expect("a shard");
        let at = bytes.len() - back;
        bytes[at] ^= 0x10;
        fs::write(path, bytes).expect("a shard");
    };
    damaged("flipped", &|f| flip(&f.join("pairs-00002.safetensors"), 17));
    damaged("header", &|f| {
        let path = f.join("pairs-00001.safetensors");
        let text = fs::read(&path).expect("a shard");
        let at = text.windows(10).position(|w| w == b"first_pair").expect("the entry") + 13;
        let mut text = text;
        text[at] = b'9';
        fs::write(path, text).expect("a shard");
    });
    damaged("missing", &|f| fs::remove_file(f.join("pairs-00001.safetensors")).expect("a shard"));
    damaged("cut", &|f| {
        let path = f.join("pairs-00003.safetensors");
        let bytes = fs::read(&path).expect("a shard");
        fs::write(path, &bytes[..bytes.len() - 64]).expect("a shard");
    });
    damaged("swapped", &|f| {
        let [a, b, c] = ["pairs-00001.safetensors", "pairs-00002.safetensors", "x"].map(|n| f.join(n));
        for (from, to) in [(&a, &c), (&b, &a), (&c, &b)] {
            fs::rename(from, to).expect("a shard");
        }
    });
    damaged("interrupted", &|_| {});
    edit(&lab, "interrupted/manifest.json", "interrupted/manifest.json", |m| m["complete"] = false.into());
    damaged("fewer", &|_| {});
    edit(&lab, "fewer/manifest.json", "fewer/manifest.json", |m| {
        m["shards"].as_array_mut().expect("a list").pop();
    });
    damaged("hollow", &|_| {});
    edit(&lab, "hollow/manifest.json", "hollow/manifest.json", |m| m["shard_rows"] = 0.into());
    damaged("renamed", &|_| {});
    edit(&lab, "renamed/manifest.json", "renamed/manifest.json", |m| m["shards"][2] = m["shards"][1].clone());
    damaged("version", &|_| {});
    edit(&lab, "version/manifest.json", "version/manifest.json", |m| m["format"] = 7.into());
    damaged("scrawl", &|f| fs::write(f.join("manifest.json"), b"not JSON").expect("a manifest"));
    damaged("orphan", &|f| fs::remove_file(f.join("manifest.json")).expect("a manifest"));
    // Outputs that exist.
    lab.put("taken.safetensors", b"precious");
    lab.put("run/run.json", b"{}");
    fs::create_dir(lab.at("folder.safetensors")).expect("a folder");
    lab
}
