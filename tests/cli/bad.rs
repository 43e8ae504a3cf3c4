//! Bad input: one line that names the culprit, the right exit code, and nothing left behind.

use std::fs::{self, File};

use crate::common::cli::binary;
use crate::support::{bad, check, with_everything, with_models};

/// What a run of `synth` into a new folder leaves when it fails after it began: the state to resume from.
const BEGUN: &[&str] = &["new", "new/.synth.lock", "new/manifest.json", "new/recipe.json"];

fn synth(options: &str) -> String {
    format!("synth @seeds.safetensors --vae @vae.safetensors --out @new {options}")
}

fn train_vae(source: &str) -> String {
    format!("train-vae @{source} --out @new.safetensors")
}

fn train_reward(rest: &str) -> String {
    format!("train-reward {rest} --out @new.safetensors")
}

fn run(rest: &str) -> String {
    format!("run @seeds.safetensors --out @new {rest}")
}

#[test]
fn wrong_usage() {
    let lab = with_models();
    let mut cases = vec![
        bad("unknown command", "frobnicate", 2, &["frobnicate"]),
        bad("unknown option", synth("--frobnicate"), 2, &["--frobnicate"]),
        bad("no output", "train-vae @seeds.safetensors", 2, &["--out"]),
        bad("no pairs", "train-vae --out @new.safetensors", 2, &["PAIRS"]),
        bad("no VAE", "synth @seeds.safetensors --out @new", 2, &["--vae"]),
        bad("no model", "score @emb.safetensors", 2, &["--model"]),
        bad("no model to evaluate", "eval @test.safetensors", 2, &["--model"]),
        bad("no model to select with", "best-of-n @sets.safetensors", 2, &["--model"]),
        bad("nothing to inspect", "inspect", 2, &["PATH"]),
        bad("nothing to verify", "verify", 2, &["PATH"]),
        bad("neither pairs nor recipe", train_reward(""), 2, &["PAIRS"]),
        bad(
            "pairs and recipe",
            train_reward("@seeds.safetensors --recipe @synth/recipe.json"),
            2,
            &["--recipe"],
        ),
        bad(
            "validation twice",
            run("--seeds 9 --validation @val.safetensors --validation-pairs 9"),
            2,
            &["--validation-pairs"],
        ),
        bad(
            "device",
            "verify @synth --device abacus",
            2,
            &["--device", "auto, cpu, cuda, cuda:N, cuda:all or reference", "abacus"],
        ),
        bad("dtype", synth("--dtype f8"), 2, &["--dtype", "f8", "bf16"]),
        bad("likelihood", synth("--likelihood some"), 2, &["--likelihood", "some", "posterior", "none"]),
        bad("source", synth("--source mode"), 2, &["--source", "mode", "sample", "mean"]),
        bad("mode", synth("--mode fancy"), 2, &["--mode", "fancy", "plain", "residual"]),
        bad("pairing", synth("--pairing all"), 2, &["--pairing", "all", "combine", "match"]),
        bad("output kind", synth("--output text"), 2, &["--output", "text", "latents", "recipe"]),
        bad("reduction", train_vae("seeds.safetensors --reduction max"), 2, &["--reduction", "max", "sum"]),
        bad(
            "divergence",
            train_vae("seeds.safetensors --divergence kl"),
            2,
            &["--divergence", "kl", "w2-squared"],
        ),
        bad("io", train_vae("seeds.safetensors --io ftp"), 2, &["--io", "ftp", "mmap"]),
        bad("seed below 0", train_vae("seeds.safetensors --seed=-1"), 2, &["--seed", "-1"]),
        bad("threads", train_vae("seeds.safetensors --threads many"), 2, &["--threads", "many"]),
        bad(
            "too many threads",
            train_vae("seeds.safetensors --threads 1000000"),
            2,
            &["--threads", "0 to 4096"],
        ),
        bad("a count that is no number", synth("--fold eight"), 2, &["--fold", "eight"]),
        bad("fold 1", synth("--fold 1"), 2, &["--fold", "expected 2 to", ": 1 "]),
        bad("fold past per-side", synth("--fold 10 --per-side 2"), 2, &["--fold", "2 to 9", ": 10 "]),
        bad("fold past match", synth("--fold 4 --per-side 2 --pairing match"), 2, &["--fold", "2 to 3"]),
        bad("per-side 0", synth("--per-side 0"), 2, &["--per-side", "1 to 256", ": 0 "]),
        bad("per-side 257", synth("--per-side 257"), 2, &["--per-side", "1 to 256", ": 257 "]),
        bad("sigma2 negative", synth("--sigma2=-1"), 2, &["--sigma2", "0 or more", "-1"]),
        bad("sigma2 negative, apart", synth("--sigma2 -1"), 2, &["--sigma2", "0 or more", "-1"]),
        bad("sigma2 NaN", synth("--sigma2 nan"), 2, &["--sigma2", "finite", "NaN"]),
        bad("sigma2 infinite", synth("--sigma2 inf"), 2, &["--sigma2", "finite", "inf"]),
        bad("oversample 0", synth("--oversample 0"), 2, &["--oversample", "1 to 64", ": 0 "]),
        bad("oversample 65", synth("--oversample 65"), 2, &["--oversample", "1 to 64", ": 65 "]),
        bad(
            "too many shards",
            synth("--shard-rows 1 --per-side 256"),
            2,
            &["--shard-rows", "27 or more for 100000 shards", ": 1 "],
        ),
        bad("shard-rows 0", synth("--shard-rows 0"), 2, &["--shard-rows", "1 or more", ": 0 "]),
        bad("part 3/3", synth("--part 3/3"), 2, &["--part", "3/3", "0 to N - 1"]),
        bad("part x", synth("--part x"), 2, &["--part", "i/N"]),
        bad("part 0/0", synth("--part 0/0"), 2, &["--part", "0/0"]),
        bad(
            "more parts than shards",
            synth("--shard-rows 40 --part 0/9"),
            2,
            &["--part", "0/9", "at most 4 parts", "4 shards of 40 pairs"],
        ),
        bad("part of a recipe", synth("--output recipe --part 0/2"), 2, &["--part", "--output recipe"]),
        bad(
            "hidden 20",
            train_vae("seeds.safetensors --hidden 20"),
            2,
            &["--hidden", "multiple of 16", "20"],
        ),
        bad(
            "latent 0",
            train_vae("seeds.safetensors --latent 0"),
            2,
            &["--latent", "multiple of 16", ": 0 "],
        ),
        bad("VAE epochs", train_vae("seeds.safetensors --vae-epochs 0"), 2, &["--vae-epochs", "1 or more"]),
        bad("VAE batch", train_vae("seeds.safetensors --vae-batch 0"), 2, &["--vae-batch", "1 or more"]),
        bad("VAE lr 0", train_vae("seeds.safetensors --vae-lr 0"), 2, &["--vae-lr", "above 0", ": 0 "]),
        bad("beta NaN", train_vae("seeds.safetensors --beta nan"), 2, &["--beta", "finite", "NaN"]),
        bad("gamma below 0", train_vae("seeds.safetensors --gamma=-1"), 2, &["--gamma", "0 or more", "-1"]),
        bad(
            "reward hidden",
            train_reward("@seeds.safetensors --reward-hidden 20"),
            2,
            &["--reward-hidden", "multiple of 16", "20"],
        ),
        bad("no splits", run("--seeds 9 --repeats 0"), 2, &["--repeats", "1 or more"]),
        bad("no seeds", run(""), 2, &["--seeds", "40 pairs", "--test"]),
        bad("run: fold 1", run("--seeds 9 --validation-pairs 9 --fold 1"), 2, &["--fold", "2 to"]),
        bad("run: hidden", run("--seeds 9 --validation-pairs 9 --hidden 20"), 2, &["--hidden", "20"]),
        bad(
            "run: reward hidden",
            run("--seeds 9 --validation-pairs 9 --reward-hidden 20"),
            2,
            &["--reward-hidden", "20"],
        ),
        bad(
            "pair past the end",
            "inspect @synth/recipe.json --pair 160",
            2,
            &["--pair", "below 160", ": 160 "],
        ),
    ];
    cases.extend([
        bad("bench: rows", "bench --rows 0", 2, &["--rows", "1 or more", ": 0 "]),
        bad("bench: trials", "bench --repeat 0", 2, &["--repeat", "1 or more", ": 0 "]),
        bad("bench: seeds", "bench --seeds 1", 2, &["--seeds", "2 or more", ": 1 "]),
        bad("bench: operation", "bench --only decoding", 2, &["--only", "decoding"]),
        bad("bench: roof without limits", "bench --no-limits --plot r.svg", 2, &["--no-limits", "--plot"]),
        bad(
            "bench: pairs",
            "bench --only run --no-limits --pairs none.safetensors",
            1,
            &["none.safetensors"],
        ),
        bad("demo: repeats", "demo --repeats 0", 2, &["--repeats", "1 or more", ": 0 "]),
        bad("demo: dimension", "demo --dim 0", 2, &["--dim", "1 to 65536", ": 0 "]),
        bad("demo: seeds", "demo --seeds 1", 2, &["--seeds", "2 or more", ": 1 "]),
    ]);
    for (name, line) in [("batch", "--batch 0"), ("epochs", "--epochs 0")] {
        cases.push(bad(name, train_reward(&format!("@seeds.safetensors {line}")), 2, &["1 or more", ": 0 "]));
    }
    for value in ["0", "nan", "=-1", "inf"] {
        let option = if let Some(joined) = value.strip_prefix('=') {
            format!("--lr={joined}")
        } else {
            format!("--lr {value}")
        };
        cases.push(bad(
            "lr",
            train_reward(&format!("@seeds.safetensors {option}")),
            2,
            &["--lr", "a finite number above 0"],
        ));
    }
    assert!(check(&lab, &cases) >= 60);
}

#[test]
fn nothing_at_all_shows_the_help() {
    let output = binary().output().expect("the binary starts");
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stdout.is_empty());
    let text = String::from_utf8(output.stderr).expect("text");
    assert!(text.contains("Usage: lensmith") && text.contains("train-reward"), "{text}");
}

#[test]
fn bad_data() {
    let lab = with_everything();
    let cases = [
        bad(
            "missing file",
            train_vae("gone.safetensors"),
            1,
            &["cannot open", "gone.safetensors", "No such file"],
        ),
        bad("empty file", train_vae("empty.safetensors"), 1, &["empty.safetensors", "the file is empty"]),
        bad("text", train_vae("text.safetensors"), 1, &["text.safetensors", "100000000"]),
        bad(
            "truncated payload",
            train_vae("short.safetensors"),
            1,
            &["short.safetensors", "truncated: expected", "found"],
        ),
        bad(
            "truncated header",
            train_vae("stub.safetensors"),
            1,
            &["stub.safetensors", "truncated", "found 1000"],
        ),
        bad(
            "too long",
            train_vae("long.safetensors"),
            1,
            &["long.safetensors", "too long: expected", "found"],
        ),
        bad("header length", train_vae("huge.safetensors"), 1, &["huge.safetensors", "18446744073709551615"]),
        bad(
            "header lies",
            train_vae("lie.safetensors"),
            1,
            &["lie.safetensors", "`chosen`", "0 to 16", "takes 324"],
        ),
        bad(
            "hole in the payload",
            train_vae("hole.safetensors"),
            1,
            &["hole.safetensors", "not a usable safetensors file"],
        ),
        bad("header no JSON", train_vae("notjson.safetensors"), 1, &["notjson.safetensors", "header"]),
        bad(
            "device file",
            "train-vae /dev/null --out @new.safetensors",
            1,
            &["/dev/null", "not a regular file"],
        ),
        bad(
            "integers",
            train_vae("int.safetensors"),
            1,
            &["int.safetensors", "`chosen`", "I64", "expected F32, F16 or BF16"],
        ),
        bad("F64", synth("").replace("seeds", "f64"), 1, &["f64.safetensors", "F64", "expected F32"]),
        bad(
            "one axis",
            train_vae("rank.safetensors"),
            1,
            &["rank.safetensors", "`chosen`", "expected 2, found 1"],
        ),
        bad(
            "unequal sides",
            train_vae("rows.safetensors"),
            1,
            &["rows.safetensors", "`rejected`", "[2, 4]", "[3, 4]"],
        ),
        bad("mixed sides", train_vae("mixed.safetensors"), 1, &["mixed.safetensors", "`rejected`", "F16"]),
        bad(
            "empty set",
            train_vae("none.safetensors"),
            1,
            &["none.safetensors", "rows of tensor `chosen`: 0, at least 1"],
        ),
        bad(
            "no columns",
            train_vae("thin.safetensors"),
            1,
            &["thin.safetensors", "columns of tensor `chosen`: 0"],
        ),
        bad(
            "empty set to synth",
            synth("").replace("seeds", "none"),
            1,
            &["none.safetensors", "at least 1 needed"],
        ),
        bad("one pair", train_vae("one.safetensors"), 1, &["seed pairs for VAE training: 1, at least 2"]),
        bad(
            "NaN in row 17",
            train_vae("nan17.safetensors"),
            1,
            &["nan17.safetensors", "`rejected`, row 17, column 3: NaN"],
        ),
        bad(
            "NaN to synth",
            synth("").replace("seeds", "nan17"),
            1,
            &["nan17.safetensors", "row 17, column 3"],
        ),
        bad(
            "NaN to train-reward",
            train_reward("@nan17.safetensors"),
            1,
            &["nan17.safetensors", "row 17, column 3"],
        ),
        bad(
            "NaN to eval",
            "eval @nan17.safetensors --model @reward.safetensors",
            1,
            &["nan17.safetensors", "row 17"],
        ),
        bad("NaN to run", "run @nan17.safetensors --seeds 9 --out @new", 1, &["nan17.safetensors", "row 17"]),
        bad(
            "infinite value",
            train_reward("@inf.safetensors"),
            1,
            &["inf.safetensors", "`chosen`, row 5, column 31: inf"],
        ),
        bad(
            "infinite embedding",
            "score @bad_emb.safetensors --model @reward.safetensors",
            1,
            &["bad_emb.safetensors", "`embeddings`, row 17, column 9: -inf"],
        ),
        bad(
            "infinite embedding, to a file",
            "score @bad_emb.safetensors --model @reward.safetensors --out @new.safetensors",
            1,
            &["row 17, column 9"],
        ),
        bad(
            "no such tensor",
            train_vae("emb.safetensors"),
            1,
            &["emb.safetensors", "`chosen`", "found: `embeddings`"],
        ),
        bad(
            "no such tensor by option",
            train_vae("seeds.safetensors --rejected refused"),
            1,
            &["seeds.safetensors", "`refused`", "`rejected`"],
        ),
        bad(
            "no such tensor to score",
            "score @seeds.safetensors --model @reward.safetensors",
            1,
            &["seeds.safetensors", "`embeddings`", "`chosen`"],
        ),
        bad(
            "shards of different width",
            train_vae("mixed"),
            1,
            &["b.safetensors", "expected 32 as in", "a.safetensors", "found 48"],
        ),
        bad("empty folder", train_vae("nothing"), 1, &["nothing", "*.safetensors files in this folder: 0"]),
        bad(
            "folder without shards",
            train_reward("@notes"),
            1,
            &["notes", "*.safetensors files in this folder: 0"],
        ),
        bad(
            "pattern without matches",
            train_vae("seeds-*.safetensors"),
            1,
            &["seeds-*.safetensors", "match this pattern: 0"],
        ),
        bad(
            "one file twice",
            train_vae("seeds.safetensors @seeds.safetensors"),
            1,
            &["seeds.safetensors", "expected 1, found 2"],
        ),
        bad(
            "short groups",
            train_vae("group.safetensors"),
            1,
            &["group.safetensors", "`group`", "expected 4, found 3"],
        ),
        bad(
            "groups of F32",
            train_vae("words.safetensors"),
            1,
            &["words.safetensors", "`group`", "F32", "expected I64"],
        ),
        bad("no groups", run("--seeds 9 --group prompt"), 1, &["seeds.safetensors", "`prompt`"]),
        bad(
            "width of the VAE",
            synth("").replace("seeds", "wide"),
            1,
            &["vae.safetensors", "48, that of the seed pairs", "found 32"],
        ),
        bad(
            "width of the model",
            "eval @wide.safetensors --model @reward.safetensors",
            1,
            &["reward.safetensors", "expected 48", "found 32"],
        ),
        bad(
            "width of embeddings",
            "score @wide_emb.safetensors --model @reward.safetensors",
            1,
            &["wide_emb.safetensors", "expected 32", "found 48"],
        ),
        bad(
            "width of the sets",
            "best-of-n @wide_sets.safetensors --model @reward.safetensors",
            1,
            &["reward.safetensors", "expected 48", "found 32"],
        ),
        bad(
            "width of the validation",
            train_reward("@seeds.safetensors --validation @wide.safetensors"),
            1,
            &["wide.safetensors", "expected 32", "found 48"],
        ),
        bad(
            "width of the recipe's validation",
            train_reward("--recipe @synth/recipe.json --validation @wide.safetensors"),
            1,
            &["wide.safetensors", "expected 32", "found 48"],
        ),
        bad(
            "width of the test",
            run("--seeds 9 --test @wide.safetensors"),
            1,
            &["wide.safetensors", "expected 32", "found 48"],
        ),
        bad(
            "width of the candidates",
            run("--seeds 9 --candidates @wide_sets.safetensors"),
            1,
            &["wide_sets.safetensors", "expected 32", "found 48"],
        ),
        bad(
            "one candidate a prompt",
            "best-of-n @alone.safetensors --model @reward.safetensors",
            1,
            &["alone.safetensors", "candidates per prompt: 1, at least 2"],
        ),
        bad(
            "gold of another shape",
            "best-of-n @gold.safetensors --model @reward.safetensors",
            1,
            &["gold.safetensors", "`gold`", "expected [6, 4], found [6, 3]"],
        ),
        bad(
            "NaN gold",
            "best-of-n @gold_nan.safetensors --model @reward.safetensors",
            1,
            &["gold_nan.safetensors", "`gold`, row 4, column 1: NaN"],
        ),
        bad(
            "sets that are pairs",
            "best-of-n @seeds.safetensors --model @reward.safetensors",
            1,
            &["seeds.safetensors", "`candidates`"],
        ),
        bad("more seeds than data", run("--seeds 1000"), 1, &["1000 seeds", ": 40, at least 1301"]),
        bad(
            "no room for a test",
            run("--seeds 30 --validation-pairs 10"),
            1,
            &["30 seeds", "10 validation", ": 40, at least 41"],
        ),
        bad(
            "NaN in a candidate",
            "run @seeds.safetensors --seeds 9 --candidates @gold_nan.safetensors --out @new",
            1,
            &["row 4, column 1"],
        ),
        bad("inspect what is no shard", "inspect @text.safetensors", 1, &["text.safetensors"]),
        bad(
            "more seeds than can be counted",
            run("--seeds 18446744073709551615"),
            1,
            &["18446744073709551615 seeds", ": 40, at least"],
        ),
        bad(
            "endless training that diverges",
            train_vae("seeds.safetensors --vae-lr 1e30 --vae-epochs 18446744073709551615"),
            1,
            &["VAE training diverged in epoch 2"],
        ),
        bad(
            "F16 overflow",
            "synth @large.safetensors --vae @vae.safetensors --dtype f16 --out @new",
            1,
            &["seed 6 (chosen), column 2", "F16", "--dtype"],
        )
        .leaves(BEGUN),
        bad(
            "VAE training diverges",
            train_vae("seeds.safetensors --vae-lr 1e30"),
            1,
            &["VAE training diverged in epoch", "--vae-lr"],
        ),
        bad(
            "VAE training diverges in its last step",
            train_vae("seeds.safetensors --vae-lr 3e38 --vae-epochs 1"),
            1,
            &["VAE training diverged in epoch 1", "--vae-lr"],
        ),
        bad(
            "reward training diverges",
            train_reward("@seeds.safetensors --lr 1e30 --reward-hidden 16"),
            1,
            &["reward training diverged in epoch", "--lr"],
        ),
        bad(
            "reward training diverges in its last step",
            train_reward("@seeds.safetensors --lr 3e38 --epochs 1 --reward-hidden 16"),
            1,
            &["reward training diverged in epoch 1", "--lr"],
        ),
    ];
    assert!(check(&lab, &cases) >= 55);
}

#[test]
fn bad_checkpoints_and_recipes() {
    let lab = with_everything();
    let vae = |name: &str| format!("synth @seeds.safetensors --vae @{name}.safetensors --out @new");
    let model = |name: &str| format!("score @emb.safetensors --model @{name}.safetensors");
    let recipe = |name: &str| train_reward(&format!("--recipe @{name}.recipe.json"));
    let cases = [
        bad(
            "reward model as VAE",
            vae("reward"),
            1,
            &["reward.safetensors", "expected a VAE checkpoint, found reward model"],
        ),
        bad(
            "VAE as reward model",
            model("vae"),
            1,
            &["vae.safetensors", "expected a reward model checkpoint, found VAE"],
        ),
        bad(
            "VAE to eval",
            "eval @test.safetensors --model @vae.safetensors",
            1,
            &["vae.safetensors", "found VAE"],
        ),
        bad(
            "VAE to best-of-n",
            "best-of-n @sets.safetensors --model @vae.safetensors",
            1,
            &["vae.safetensors", "found VAE"],
        ),
        bad(
            "shard as VAE",
            vae("seeds"),
            1,
            &["seeds.safetensors", "expected a VAE checkpoint, found preference shard"],
        ),
        bad(
            "shard as reward model",
            model("seeds"),
            1,
            &["seeds.safetensors", "expected a reward model", "found preference shard"],
        ),
        bad(
            "embeddings as reward model",
            model("emb"),
            1,
            &["emb.safetensors", "`0.weight`", "`embeddings`"],
        ),
        bad("missing checkpoint", vae("gone"), 1, &["gone.safetensors", "No such file"]),
        bad("folder as checkpoint", "score @emb.safetensors --model @synth", 1, &["synth", "it is a folder"]),
        bad("truncated checkpoint", vae("stub"), 1, &["stub.safetensors", "truncated"]),
        bad("wrong shape", vae("dict"), 1, &["dict.safetensors", "encoder.2", "expected 16, found 8"]),
        bad("wrong rows", vae("rows.vae"), 1, &["rows.vae.safetensors", "decoder.2"]),
        bad(
            "NaN parameter",
            vae("nan.vae"),
            1,
            &["nan.vae.safetensors", "`decoder.0.weight`, row 3, column 5: NaN"],
        ),
        bad("missing bias", vae("bias.vae"), 1, &["bias.vae.safetensors", "`decoder.2.bias`"]),
        bad(
            "integer parameter",
            vae("int.vae"),
            1,
            &["int.vae.safetensors", "`encoder.0.bias`", "I32", "expected F32, F16 or BF16"],
        ),
        bad(
            "odd size in a file",
            model("odd.reward"),
            1,
            &["odd.reward.safetensors", "multiple of 16", "found 20"],
        ),
        bad("recipe no JSON", recipe("text"), 1, &["text.recipe.json", "not a usable recipe file"]),
        bad(
            "recipe of another format",
            recipe("format"),
            1,
            &["format.recipe.json", "expected format 1, found 2"],
        ),
        bad("recipe with another plan", recipe("plan"), 1, &["plan.recipe.json", "plan"]),
        bad("recipe with an impossible fold", recipe("fold"), 1, &["fold.recipe.json", "2 to"]),
        bad("recipe without seeds", recipe("lost"), 1, &["gone.safetensors", "No such file"]),
        bad(
            "seeds changed by one bit",
            recipe("bit"),
            1,
            &["bit.recipe.json", "seed pairs", "expected", "found"],
        ),
        bad(
            "changed seeds to inspect",
            "inspect @bit.recipe.json --pair 3",
            1,
            &["bit.recipe.json", "seed pairs"],
        ),
        bad(
            "changed seeds to eval",
            "eval @test.safetensors --model @reward.safetensors --recipe @bit.recipe.json",
            1,
            &["bit.recipe.json"],
        ),
        bad(
            "another VAE",
            recipe("vae"),
            1,
            &["other.vae.safetensors", "checksum of the VAE", "expected", "found"],
        ),
        bad("missing recipe", recipe("gone"), 1, &["gone.recipe.json", "No such file"]),
        bad(
            "manifest as recipe",
            "inspect @synth/manifest.json --pair 3",
            1,
            &["manifest.json", "not a usable recipe file"],
        ),
        bad("inspect a folder without manifest", "inspect @nothing", 1, &["manifest.json", "No such file"]),
        bad(
            "inspect a manifest of another version",
            "inspect @version",
            1,
            &["manifest.json", "expected version 1, found 7"],
        ),
        bad(
            "verify: flipped byte",
            "verify @flipped",
            1,
            &["pairs-00002.safetensors", "checksum of tensor", "expected", "found"],
        ),
        bad(
            "verify: flipped byte, read",
            "verify @flipped --io read",
            1,
            &["pairs-00002.safetensors", "checksum of tensor"],
        ),
        bad(
            "verify: one flipped shard",
            "verify @flipped/pairs-00002.safetensors",
            1,
            &["pairs-00002.safetensors", "checksum of tensor"],
        ),
        bad(
            "verify: changed header",
            "verify @header",
            1,
            &["pairs-00001.safetensors", "checksum of the header"],
        ),
        bad("verify: missing shard", "verify @missing", 1, &["pairs-00001.safetensors", "No such file"]),
        bad("verify: cut shard", "verify @cut", 1, &["pairs-00003.safetensors", "truncated"]),
        bad(
            "verify: swapped shards",
            "verify @swapped",
            1,
            &["pairs-00001.safetensors", "record in the manifest"],
        ),
        bad(
            "verify: interrupted run",
            "verify @interrupted",
            1,
            &["interrupted: 4 of the run's 4 shards are missing", "manifest.json was interrupted"],
        ),
        bad(
            "verify: manifest without a shard",
            "verify @fewer",
            1,
            &["manifest.json", "expected 4", "found 3"],
        ),
        bad(
            "verify: manifest of another version",
            "verify @version",
            1,
            &["manifest.json", "expected version 1, found 7"],
        ),
        bad(
            "verify: manifest no JSON",
            "verify @scrawl",
            1,
            &["manifest.json", "not a usable manifest file"],
        ),
        bad("verify: no manifest", "verify @orphan", 1, &["orphan", "manifests: 0"]),
        bad("verify: an empty folder", "verify @nothing", 1, &["nothing", "manifests: 0"]),
        bad("verify: a missing path", "verify @gone", 1, &["gone", "No such file"]),
        bad(
            "verify: a file without checksums",
            "verify @emb.safetensors",
            1,
            &["emb.safetensors", "no checksums"],
        ),
    ];
    assert!(check(&lab, &cases) >= 40);
}

#[test]
fn outputs_in_the_way() {
    let lab = with_everything();
    // Other processes at work, as far as the binary can tell.
    let held = [("busy", ".synth.lock"), ("parted", ".synth-1-of-2.lock"), ("running", ".run.lock")];
    let locks: Vec<File> = held
        .iter()
        .map(|(folder, name)| {
            fs::create_dir(lab.at(folder)).expect("a folder");
            let file = File::create(lab.at(folder).join(name)).expect("a lock file");
            file.lock().expect("the lock");
            file
        })
        .collect();
    let again = |options: &str| {
        format!(
            "synth @seeds.safetensors --vae @vae.safetensors --dtype f32 --shard-rows 40 --out @synth {options}"
        )
    };
    const OTHER: &str = "it was made with other settings: ";
    let cases = [
        bad(
            "train-vae: output exists",
            "train-vae @seeds.safetensors --out @taken.safetensors",
            1,
            &["taken.safetensors exists already", "--overwrite"],
        ),
        bad(
            "train-reward: output exists",
            "train-reward @seeds.safetensors --out @taken.safetensors",
            1,
            &["taken.safetensors exists already", "--overwrite"],
        ),
        bad(
            "score: output exists",
            "score @emb.safetensors --model @reward.safetensors --out @taken.safetensors",
            1,
            &["taken.safetensors exists already", "--overwrite"],
        ),
        bad(
            "run: output exists",
            "run @seeds.safetensors --seeds 9 --validation-pairs 9 --out @run",
            1,
            &["run.json exists already", "--overwrite"],
        ),
        bad(
            "synth: other sigma2",
            again("--sigma2 0.5"),
            1,
            &[OTHER, "`perturbation.sigma2` is 0.01", "there and 0.5 now", "--overwrite"],
        ),
        bad("synth: other fold", again("--fold 3"), 1, &[OTHER, "`plan.fold` is 4 there and 3 now"]),
        bad("synth: other per-side", again("--fold 4 --per-side 5"), 1, &[OTHER, "is 1 there and 5 now"]),
        bad("synth: other seed", again("--seed 9"), 1, &[OTHER, "`plan.seed` is 0 there and 9 now"]),
        bad(
            "synth: other mode",
            again("--mode residual"),
            1,
            &[OTHER, "`mode` is \"plain\" there and \"residual\" now"],
        ),
        bad(
            "synth: other dtype",
            again("--fold 4").replace("f32", "f16"),
            1,
            &[OTHER, "`output.dtype` is \"F32\" there and \"F16\" now"],
        ),
        bad(
            "synth: other kind",
            again("--output latents"),
            1,
            &[OTHER, "`output.dtype` is \"F32\" there and nothing now"],
        ),
        bad(
            "synth: other shards",
            again("--fold 4").replace("40", "20"),
            1,
            &[OTHER, "`output.shard_rows` is 40 there and 20 now"],
        ),
        bad("synth: other VAE", again("").replace("@vae", "@other.vae"), 1, &[OTHER, "`vae.xxh3` is"]),
        bad(
            "synth: other seeds",
            again("").replace("@seeds", "@val"),
            1,
            &[OTHER, "`plan.seeds` is 40 there and 20 now"],
        ),
        bad(
            "synth: shards without manifest",
            again("").replace("@synth", "@orphan"),
            1,
            &["orphan", "does not belong to a run with a manifest", "--overwrite"],
        )
        .leaves(&["orphan/.synth.lock"]),
        bad(
            "synth: manifest no JSON",
            again("").replace("@synth", "@scrawl"),
            1,
            &["manifest.json", "not a usable manifest file"],
        )
        .leaves(&["scrawl/.synth.lock"]),
        bad(
            "synth: busy folder",
            synth("").replace("@new", "@busy"),
            1,
            &["busy", "another lensmith process"],
        ),
        bad(
            "synth: busy part",
            synth("--shard-rows 40 --part 1/2").replace("@new", "@parted"),
            1,
            &["parted", "another lensmith process"],
        ),
        bad(
            "run: busy folder",
            "run @seeds.safetensors --seeds 9 --validation-pairs 9 --out @running",
            1,
            &["running", "another lensmith process"],
        ),
        bad(
            "train-vae: missing folder",
            "train-vae @seeds.safetensors --out @no/such/vae.safetensors",
            1,
            &["no/such", "entity not found", "find folder"],
        ),
        bad(
            "train-reward: missing folder",
            "train-reward @seeds.safetensors --out @no/model.safetensors",
            1,
            &["/no", "find folder"],
        ),
        bad(
            "score: missing folder",
            "score @emb.safetensors --model @reward.safetensors --out @no/r.safetensors",
            1,
            &["no/r.safetensors", "No such file"],
        ),
        bad(
            "train-vae: output is a folder",
            "train-vae @seeds.safetensors --out @folder.safetensors",
            1,
            &["folder.safetensors exists already"],
        ),
        bad(
            "train-vae: folder, overwrite",
            "train-vae @seeds.safetensors --out @folder.safetensors --overwrite --vae-epochs 1",
            1,
            &["folder.safetensors", "cannot create"],
        ),
        bad(
            "score: folder, overwrite",
            "score @emb.safetensors --model @reward.safetensors --out @folder.safetensors --overwrite",
            1,
            &["folder.safetensors", "cannot create"],
        ),
        bad(
            "synth: output is a file",
            synth("").replace("@new", "@taken.safetensors"),
            1,
            &["taken.safetensors"],
        ),
        bad(
            "synth: below a file",
            synth("").replace("@new", "@taken.safetensors/x"),
            1,
            &["taken.safetensors/x", "Not a directory"],
        ),
        bad(
            "run: below a file",
            "run @seeds.safetensors --seeds 9 --validation-pairs 9 --out @taken.safetensors/x",
            1,
            &["taken.safetensors/x", "Not a directory"],
        ),
        bad(
            "train-vae: below a file",
            "train-vae @seeds.safetensors --out @taken.safetensors/x",
            1,
            &["taken.safetensors"],
        ),
        bad("synth: unwritable", synth("").replace("@new", "/proc/new"), 1, &["cannot create /proc/new"]),
        bad(
            "train-vae: unwritable",
            "train-vae @seeds.safetensors --out /proc/new --vae-epochs 1",
            1,
            &["cannot create /proc/new"],
        ),
        bad(
            "score: unwritable",
            "score @emb.safetensors --model @reward.safetensors --out /proc/new",
            1,
            &["cannot create /proc/new"],
        ),
    ];
    assert!(check(&lab, &cases) >= 30);
    drop(locks);
}
