"""The package, the program and the engine give the same bytes for the same recipe, however they are asked."""

from __future__ import annotations

import json
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import DIM, HH, arrays_of, environment

import lensmith as lm
from lensmith import _lensmith

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")

pytestmark = pytest.mark.filterwarnings("ignore::lensmith.LensmithWarning")  # trained for a moment only

KINDS = ["float32", "float16", "bfloat16"]
VAE = {"hidden": 16, "latent": 16}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("bytes")


@pytest.fixture(scope="module")
def seeds_file(folder) -> Path:
    path = folder / "seeds.safetensors"
    lm.PairSet(*arrays_of(60), group=np.arange(60) // 3).save(path)
    return path


@pytest.fixture(scope="module")
def held_out_file(folder) -> Path:
    path = folder / "held_out.safetensors"
    lm.PairSet(*arrays_of(40, seed=9)).save(path)
    return path


@pytest.fixture(scope="module")
def seeds(seeds_file, engine) -> lm.PairSet:
    return lm.PairSet.open(seeds_file, engine=engine)


@pytest.fixture(scope="module")
def held_out(held_out_file, engine) -> lm.PairSet:
    return lm.PairSet.open(held_out_file, engine=engine)


@pytest.fixture(scope="module")
def vae_file(folder, vae) -> Path:
    path = folder / "vae.safetensors"
    vae.save(path)
    return path


def same_parameters(model, path: Path) -> None:
    state, stored = model.state_dict(), safetensors_torch.load_file(path)
    assert set(state) == set(stored)
    for name, values in state.items():
        assert values.dtype == np.float32 and tuple(values.shape) == tuple(stored[name].shape), name
        assert values.tobytes() == stored[name].numpy().tobytes(), name
    assert type(model).load(path)._core.size == model._core.size


# Training.


@pytest.mark.parametrize(
    ("flags", "options"),
    [
        ([], {}),
        (["--seed", 2**63 + 5], {"seed": 2**63 + 5}),
        (["--hidden", 32, "--latent", 32, "--vae-batch", 7], {"hidden": 32, "latent": 32, "batch_size": 7}),
        (["--vae-lr", 1e-3, "--beta", 0.1, "--gamma", 0], {"lr": 1e-3, "beta": 0.1, "gamma": 0.0}),
        (
            ["--reduction", "sum", "--divergence", "w2-squared"],
            {"reconstruction": "sum", "beta": 1.0, "divergence": "w2-squared"},
        ),
    ],
)
def test_a_vae_is_that_of_the_program(seeds, seeds_file, tmp_path, engine, program, flags, options):
    path = tmp_path / "vae.safetensors"
    sizes = [] if "--hidden" in flags else ["--hidden", 16, "--latent", 16]
    found = program("train-vae", seeds_file, *sizes, *flags, "--vae-epochs", 4, "--out", path, "--json")
    model = lm.Vae.fit(seeds, **{**VAE, **options}, epochs=4, engine=engine)
    same_parameters(model, path)
    in_memory = lm.PairSet(seeds.chosen, seeds.rejected, engine=engine)
    assert lm.Vae.fit(in_memory, **{**VAE, **options}, epochs=4, engine=engine)._core.equals(model._core)
    said = json.loads(found.stdout)["health"]
    health = model.health(seed=options.get("seed", 0), engine=engine).to_dict()
    assert {name: said[name] for name in health} == health


@pytest.mark.parametrize(
    ("flags", "options"),
    [
        ([], {}),
        (["--head", "linear", "--seed", 3], {"head": "linear", "seed": 3}),
        (["--ensemble", 3, "--reward-hidden", 32], {"ensemble": 3, "hidden": 32}),
        (["--validate-every", 2, "--patience", 1], {"validate_every": 2, "patience": 1}),
        (["--patience", 0, "--lr", 1e-2], {"patience": None, "lr": 1e-2}),
        (
            ["--weight-decay", 0.5, "--input-noise", 0.3, "--across-prompts", 0.5],
            {"weight_decay": 0.5, "input_noise": 0.3, "across_prompts": 0.5},
        ),
    ],
)
@pytest.mark.parametrize("validated", [True, False])
def test_a_reward_model_is_that_of_the_program(
    seeds, seeds_file, held_out, held_out_file, tmp_path, engine, program, flags, options, validated
):
    path = tmp_path / "reward.safetensors"
    validation = ["--validation", held_out_file] if validated else []
    sizes = ["--reward-hidden", 16, "--batch", 16, "--epochs", 4]
    flags = [*sizes[2 if "--reward-hidden" in flags else 0 :], *flags]
    found = json.loads(
        program("train-reward", seeds_file, *validation, *flags, "--out", path, "--json").stdout
    )
    options = {"hidden": 16, "batch_size": 16, "epochs": 4, "engine": engine, **options}
    model = lm.RewardModel.fit(seeds, held_out if validated else None, **options)
    same_parameters(model, path)
    assert (
        model.best_epoch == found["best_epoch"]
        and model.steps == found["steps"]
        and model.capped == found["capped"]
    )


@pytest.mark.parametrize("mode", ["plain", "residual"])
@pytest.mark.parametrize("options", [{}, {"head": "linear"}, {"ensemble": 2, "hidden": 32}])
def test_a_reward_model_of_synthetic_pairs_is_that_of_the_program(
    seeds, seeds_file, held_out, held_out_file, vae, vae_file, tmp_path, engine, program, mode, options
):
    program(
        "synth",
        seeds_file,
        "--vae",
        vae_file,
        "--fold",
        5,
        "--mode",
        mode,
        "--output",
        "recipe",
        "--out",
        tmp_path / "recipe",
    )
    path = tmp_path / "reward.safetensors"
    flags = ["--epochs", 3, "--batch", 32, "--seed", 4, "--allow-outside", "--validation", held_out_file]
    flags += [
        "--reward-hidden",
        options.get("hidden", 16),
        "--head",
        options.get("head", "mlp"),
        "--ensemble",
        options.get("ensemble", 1),
    ]
    program("train-reward", "--recipe", tmp_path / "recipe" / "recipe.json", *flags, "--out", path)
    synthetic = lm.synthesize(vae, seeds, fold=5, mode=mode, engine=engine)
    model = lm.RewardModel.fit(
        synthetic, held_out, **{"hidden": 16, "epochs": 3, "batch_size": 32, "seed": 4, **options}
    )
    same_parameters(model, path)


# Synthesis.

PLANS = [
    {"fold": 5},
    {"fold": 4, "seed": 7, "mode": "residual"},
    {"fold": None, "per_side": 3, "pairing": "match"},
    {"fold": 7, "per_side": 4, "likelihood": "prior", "source": "mean", "oversample": 2},
    {"fold": 2, "sigma2": 0.5, "likelihood": "none"},
]
FLAGS = {
    "fold": "--fold",
    "per_side": "--per-side",
    "seed": "--seed",
    "mode": "--mode",
    "pairing": "--pairing",
}
FLAGS |= {
    "likelihood": "--likelihood",
    "source": "--source",
    "oversample": "--oversample",
    "sigma2": "--sigma2",
}


def flags_of(plan: dict) -> list:
    return [part for name, value in plan.items() if value is not None for part in (FLAGS[name], value)]


@pytest.mark.parametrize(
    ("plan", "output", "dtype"),
    [
        *((plan, "embeddings", "f32") for plan in PLANS),
        (PLANS[0], "embeddings", "bf16"),
        (PLANS[1], "embeddings", "f16"),
        *((plan, "latents", "bf16") for plan in PLANS[1:4]),
        *((plan, "recipe", "bf16") for plan in PLANS[2:4]),
    ],
    ids=str,
)
def test_a_folder_is_that_of_the_program(
    seeds, seeds_file, vae, vae_file, tmp_path, engine, program, plan, output, dtype
):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    stored = ["--dtype", dtype] if output == "embeddings" else []
    rows = ["--shard-rows", 32] if output != "recipe" else []
    flags = [
        "--vae",
        vae_file,
        *flags_of(plan),
        "--output",
        output,
        *stored,
        *rows,
        "--out",
        theirs,
        "--json",
    ]
    said = json.loads(program("synth", seeds_file, *flags).stdout)
    made = lm.synthesize(vae, seeds, **plan, engine=engine)
    done = made.write(ours, output=output, dtype=dtype, **({"shard_rows": 32} if rows else {}))
    assert {name: said[name] for name in ("pairs", "resumed", "shards", "bytes")}.items() <= done.items()
    assert done["pairs"] == (0 if output == "recipe" else len(made))
    # The recipe names the file of the VAE where it is.
    recipe = json.loads((ours / "recipe.json").read_text())
    assert Path(recipe["vae"].pop("path")).read_bytes() == vae_file.read_bytes()
    other = json.loads((theirs / "recipe.json").read_text())
    assert other["vae"].pop("path") and recipe == other
    names = {path.name for path in theirs.iterdir()}
    assert {path.name for path in ours.iterdir()} == names | {"inputs"}
    if output != "recipe":
        assert (ours / "manifest.json").read_bytes() == (theirs / "manifest.json").read_bytes()
    for name in names - {"recipe.json"}:
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name
    if output != "recipe":
        program("verify", ours, "--recompute", "all", "--allow-outside")
    assert made.options["seed"] == plan.get("seed", 0)


def test_seeds_in_memory_give_the_same_shards_and_a_folder_that_may_be_moved(
    seeds, vae, tmp_path, engine, program
):
    in_memory = lm.PairSet(seeds.chosen, seeds.rejected, engine=engine)
    lm.synthesize(vae, seeds, fold=3, engine=engine).write(tmp_path / "a", dtype="f32")
    lm.synthesize(vae, in_memory, fold=3, engine=engine).write(tmp_path / "b", dtype="f32")
    a, b = (safetensors_torch.load_file(tmp_path / name / "pairs-00000.safetensors") for name in "ab")
    assert a.keys() == b.keys() and all(torch.equal(rows, b[name]) for name, rows in a.items())
    shards = [path.read_bytes() for path in sorted((tmp_path / "b").glob("*.safetensors"))]
    shutil.move(tmp_path / "b", tmp_path / "moved")
    program("verify", tmp_path / "moved", "--recompute", "all")
    program("materialize", tmp_path / "moved" / "recipe.json", "--dtype", "f32", "--out", tmp_path / "again")
    assert [path.read_bytes() for path in sorted((tmp_path / "again").glob("*.safetensors"))] == shards


@pytest.mark.parametrize("mode", ["plain", "residual"])
@pytest.mark.parametrize("by", ["package", "program"])
def test_a_recipe_opens_as_the_pairs_that_it_was_written_of(
    seeds, seeds_file, vae, vae_file, tmp_path, engine, program, by, mode
):
    made = lm.synthesize(vae, seeds, fold=5, mode=mode, seed=3, engine=engine)
    if by == "package":
        made.write(tmp_path / "out", output="recipe")
    else:
        flags = ["--fold", 5, "--mode", mode, "--seed", 3, "--output", "recipe"]
        program("synth", seeds_file, "--vae", vae_file, *flags, "--out", tmp_path / "out")
    with pytest.raises(lm.LensmithError, match="allow-outside|allow_outside"):
        lm.SyntheticPairs.open(tmp_path / "out", engine=engine)
    for path in (tmp_path / "out", tmp_path / "out" / "recipe.json", str(tmp_path / "out")):
        opened = lm.SyntheticPairs.open(path, dtype="float16", allow_outside=True, engine=engine)
        assert len(opened) == len(made) == 300 and opened.dtype == "float16"
        assert {**opened.options, "per_side": None} == {**made.options, "per_side": None}
        whole = (
            opened.with_engine(engine)[:],
            lm.synthesize(vae, seeds, fold=5, mode=mode, seed=3, dtype="float16", engine=engine)[:],
        )
        assert (
            whole[0].chosen.tobytes() == whole[1].chosen.tobytes()
            and whole[0].rejected.tobytes() == whole[1].rejected.tobytes()
        )
        assert opened.vae._core.equals(vae._core) and opened.seeds.chosen.tobytes() == seeds.chosen.tobytes()
    lm.PairSet(*arrays_of(60, seed=1)).save(tmp_path / "seeds.safetensors")
    recipe = json.loads((tmp_path / "out" / "recipe.json").read_text())
    recipe["seeds"]["sources"] = [str(tmp_path / "seeds.safetensors")]
    (tmp_path / "out" / "recipe.json").write_text(json.dumps(recipe))
    with pytest.raises(lm.LensmithError, match="seed"):
        lm.SyntheticPairs.open(tmp_path / "out", allow_outside=True, engine=engine)
    with pytest.raises(lm.LensmithError, match="No such file"):
        lm.SyntheticPairs.open(tmp_path / "missing", engine=engine)


def test_parts_make_the_files_of_the_whole(synthetic, tmp_path, program):
    synthetic.write(tmp_path / "whole", dtype="f16", shard_rows=40)
    for index in (2, 0, 1):
        done = synthetic.write(tmp_path / "parts", dtype="f16", shard_rows=40, part=(index, 3))
        assert done["pairs"] < 300
    program("merge-manifests", tmp_path / "parts")
    for path in (tmp_path / "whole").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "parts" / path.name).read_bytes(), path.name
    assert len(list((tmp_path / "parts").glob("pairs-*.safetensors"))) == 8
    program("verify", tmp_path / "parts")


KILLED = """
import sys, time
import lensmith as lm
engine = lm.Engine("cpu", threads=1)
pairs, vae = lm.PairSet.open(sys.argv[1], engine=engine), lm.Vae.load(sys.argv[2])
pairs = lm.PairSet(pairs.chosen, pairs.rejected, engine=engine)
lm.synthesize(vae, pairs, fold=2000, engine=engine).write(sys.argv[3], dtype="f32", shard_rows=1000)
"""


def test_a_write_that_was_killed_goes_on_to_the_same_bytes(
    seeds, seeds_file, vae, vae_file, tmp_path, engine
):
    made = lambda name: sorted((tmp_path / name).glob("pairs-*.safetensors"))  # noqa: E731
    command = [sys.executable, "-c", KILLED, seeds_file, vae_file, tmp_path / "killed"]
    with subprocess.Popen(command, env=environment()) as process:
        while len(made("killed")) < 10 and process.poll() is None:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    assert 10 <= len(made("killed")) < 120, "killed on its way"
    in_memory = lm.PairSet(seeds.chosen, seeds.rejected, engine=engine)
    synthetic = lm.synthesize(vae, in_memory, fold=2000, engine=engine)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed" / "inputs").iterdir()}
    done = synthetic.write(tmp_path / "killed", dtype="f32", shard_rows=1000)
    assert done["pairs"] == 120_000 and 5000 <= done["resumed"] < 120_000
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "killed" / "inputs").iterdir()} == before
    synthetic.write(tmp_path / "whole", dtype="f32", shard_rows=1000)
    assert [path.name for path in made("killed")] == [path.name for path in made("whole")]
    for a, b in zip(made("killed"), made("whole"), strict=True):
        assert a.read_bytes() == b.read_bytes(), a.name
    assert (tmp_path / "killed" / "manifest.json").read_bytes() == (
        tmp_path / "whole" / "manifest.json"
    ).read_bytes()
    assert synthetic.write(tmp_path / "killed", dtype="f32", shard_rows=1000)["resumed"] == 120_000


# All ways to the same pairs.


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("mode", ["plain", "residual"])
@pytest.mark.parametrize("kind", KINDS)
def test_pairs_have_the_same_bits_in_every_way(vae, engine, tmp_path, dtype, mode, kind):
    rows = [torch.from_numpy(side).to(getattr(torch, kind)) for side in arrays_of(60)]
    seeds = lm.PairSet(*rows, engine=engine)
    pairs = lm.synthesize(vae, seeds, fold=5, mode=mode, seed=3, dtype=dtype, engine=engine)
    n = len(pairs)
    assert n == 300 and pairs.dtype == dtype and pairs.dim == DIM

    def bits(batch) -> list[bytes]:
        """Each pair of a batch."""
        sides = [batch.chosen.tobytes(), batch.rejected.tobytes()]
        size = len(sides[0]) // len(batch)
        return [sides[0][i : i + size] + sides[1][i : i + size] for i in range(0, len(sides[0]), size)]

    def single(pair) -> bytes:
        sides = [side.view(torch.uint8).numpy() if dtype == "bfloat16" else side for side in pair]
        return sides[0].tobytes() + sides[1].tobytes()

    whole = bits(pairs[:])
    assert len(set(whole)) == len(whole) == n
    assert whole[:60] == bits(lm.PairSet(*(row.to(getattr(torch, dtype)) for row in rows))), (
        "originals, rounded as torch does"
    )
    for size in (1, 7, 128, 1000):
        batches = list(pairs.batches(size))
        assert [row for batch in batches for row in bits(batch)] == whole
        assert np.concatenate([batch.indices for batch in batches]).tolist() == list(range(n))
        assert {len(batch) for batch in batches[:-1]} <= {size}
    assert [row for batch in pairs.batches(64, start=77) for row in bits(batch)] == whole[77:]
    order = np.random.default_rng(0).permutation(n)
    for numbers in (
        order,
        order[:1],
        [5, 5, 299, 0, 60, 59],
        np.arange(n)[::-1],
        order.astype(np.uint64),
        list(range(100)),
    ):
        batch = pairs.take(numbers)
        assert bits(batch) == [whole[j] for j in numbers] and batch.indices.dtype == np.uint64
        assert batch.indices.tolist() == [int(j) for j in numbers]
    for some in (slice(3, 50), slice(59, 61), slice(-5, None), slice(250, 9, -7), slice(None, None, 50)):
        assert bits(pairs[some]) == whole[some]
    for some in ([5, -1, 5], range(9, 3, -2), torch.tensor([1, 299]), np.array([7], np.uint8)):
        assert bits(pairs[some]) == [whole[int(j)] for j in some]
    mask = np.arange(n) % 7 == 3
    assert bits(pairs[mask]) == bits(pairs[torch.from_numpy(mask)]) == whole[3::7]
    for j in (0, 59, 60, 61, 299, -1, -300, np.int64(123)):
        assert single(pairs[j]) == whole[j]
    assert [single(pair) for pair in pairs] == whole
    assert bits(pairs.to_pairs()) == whole
    assert bits(pickle.loads(pickle.dumps(pairs))[:]) == whole
    with lm.Engine("cpu", threads=1) as other:
        assert bits(pairs.with_engine(other)[:]) == whole
    pairs.write(tmp_path, dtype=dtype, shard_rows=64)
    assert bits(lm.PairSet.open(tmp_path, engine=engine)) == whole


def test_real_pairs_go_the_same_way_in_the_program(hh, tmp_path, engine, program):
    split = lm.split(hh, seeds=100, validation=50)
    vae = lm.Vae.fit(split.seeds, epochs=2, engine=engine)
    split.seeds.save(tmp_path / "seeds.safetensors")
    program(
        "train-vae", tmp_path / "seeds.safetensors", "--vae-epochs", 2, "--out", tmp_path / "vae.safetensors"
    )
    same_parameters(vae, tmp_path / "vae.safetensors")
    program(
        "synth",
        tmp_path / "seeds.safetensors",
        "--vae",
        tmp_path / "vae.safetensors",
        "--dtype",
        "f16",
        "--out",
        tmp_path / "out",
    )
    made = lm.synthesize(vae, split.seeds, dtype="float16", engine=engine)[:]
    stored = lm.PairSet.open(tmp_path / "out", engine=engine)
    assert (
        stored.chosen.tobytes() == made.chosen.tobytes()
        and stored.rejected.tobytes() == made.rejected.tobytes()
    )
    assert made.chosen.numpy()[:100].tobytes() == split.seeds.chosen.tobytes()


# Splits, scores and figures.


@pytest.mark.parametrize(("seeds", "validation", "seed"), [(100, 50, 0), (1000, 300, 2**64 - 1), (1, 1, 3)])
def test_a_split_is_that_of_the_program(hh, tmp_path, engine, program, seeds, validation, seed):
    program(
        "split",
        HH,
        "--seeds",
        seeds,
        "--validation-pairs",
        validation,
        "--seed",
        seed,
        "--out",
        tmp_path / "split",
    )
    rows = json.loads((tmp_path / "split" / "split.json").read_text())
    parts = lm.split(hh, seeds=seeds, validation=validation, seed=seed)
    assert sorted(np.concatenate(list(parts.indices.values())).tolist()) == list(range(2312))
    for name in ("seeds", "validation", "test"):
        part, stored = (
            getattr(parts, name),
            lm.PairSet.open(tmp_path / "split" / f"{name}.safetensors", engine=engine),
        )
        assert parts.indices[name].dtype == np.int64 and parts.indices[name].tolist() == rows[name]
        assert (
            part.chosen.tobytes() == stored.chosen.tobytes()
            and part.rejected.tobytes() == stored.rejected.tobytes()
        )
        assert part.group.tolist() == stored.group.tolist() == hh.group[parts.indices[name]].tolist()
    groups = [set(getattr(parts, name).group.tolist()) for name in ("seeds", "validation", "test")]
    assert not (groups[0] & groups[1] or groups[0] & groups[2] or groups[1] & groups[2])


def test_pairs_without_groups_split_too(small, tmp_path, program):
    pairs = lm.PairSet(small.chosen, small.rejected)
    pairs.save(tmp_path / "pairs.safetensors")
    program(
        "split",
        tmp_path / "pairs.safetensors",
        "--seeds",
        20,
        "--validation-pairs",
        10,
        "--out",
        tmp_path / "split",
    )
    parts = lm.split(pairs, 20, 10)
    assert [len(part) for part in (parts.seeds, parts.validation, parts.test)] == [20, 10, 30]
    assert {name: rows.tolist() for name, rows in parts.indices.items()}.items() <= json.loads(
        (tmp_path / "split" / "split.json").read_text()
    ).items()


@pytest.mark.parametrize("options", [{}, {"head": "linear"}, {"ensemble": 4, "hidden": 32}])
@pytest.mark.parametrize("kind", KINDS)
def test_scores_and_figures_are_those_of_the_program(seeds, tmp_path, engine, program, options, kind):
    model = lm.RewardModel.fit(seeds, **{"hidden": 16, "epochs": 5, "lr": 1e-3, "engine": engine, **options})
    rows = [torch.from_numpy(side).to(getattr(torch, kind)) for side in arrays_of(90, seed=5)]
    pairs = lm.PairSet(*rows, group=np.arange(90) // 2, engine=engine)
    model.save(tmp_path / "reward.safetensors")
    pairs.save(tmp_path / "pairs.safetensors")
    common = ["--model", tmp_path / "reward.safetensors"]
    program(
        "score",
        tmp_path / "pairs.safetensors",
        "--tensor",
        "chosen",
        *common,
        "--out",
        tmp_path / "scores.safetensors",
    )
    stored = safetensors_torch.load_file(tmp_path / "scores.safetensors")["reward"].numpy()
    scores = model.score(pairs.chosen, engine=engine)
    assert scores.dtype == np.float32 and scores.tobytes() == stored.tobytes()
    assert model(rows[0], engine=engine).tobytes() == scores.tobytes()
    for i in (0, 7, 89):
        assert model.score(rows[0][i : i + 1], engine=engine).tobytes() == scores[i : i + 1].tobytes()
    mean, deviation = model.spread(pairs.chosen, engine=engine)
    assert np.allclose(mean, scores, atol=1e-6) and (deviation > 0).all() == ("ensemble" in options)
    figures = model.evaluate(pairs, engine=engine)
    assert (
        figures
        == json.loads(program("eval", tmp_path / "pairs.safetensors", *common, "--json").stdout)["pairs"]
    )
    margins = scores - model.score(pairs.rejected, engine=engine)
    assert figures["pairs"] == 90 and figures["accuracy"] == pytest.approx((margins > 0).mean())
    assert figures["loss"] == pytest.approx(np.log1p(np.exp(-margins.astype(float))).mean(), rel=1e-5)


def test_order_preservation_is_that_of_the_program(
    seeds, seeds_file, vae, vae_file, held_out_file, reward, tmp_path, engine, program
):
    synthetic = lm.synthesize(vae, seeds, fold=6, engine=engine)
    synthetic.write(tmp_path / "out", output="recipe")
    reward.save(tmp_path / "reward.safetensors")
    flags = [
        "--model",
        tmp_path / "reward.safetensors",
        "--recipe",
        tmp_path / "out" / "recipe.json",
        "--allow-outside",
        "--json",
    ]
    assert (
        synthetic.order_preservation(reward)
        == json.loads(program("eval", held_out_file, *flags).stdout)["order"]
    )


def test_best_of_n_is_that_of_the_program(reward, tmp_path, engine, program):
    rng = np.random.default_rng(0)
    candidates, gold = (
        rng.standard_normal((12, 5, DIM), dtype=np.float32),
        rng.standard_normal((12, 5), dtype=np.float32),
    )
    safetensors_torch.save_file(
        {"candidates": torch.from_numpy(candidates), "gold": torch.from_numpy(gold)},
        tmp_path / "sets.safetensors",
    )
    reward.save(tmp_path / "reward.safetensors")
    found = program(
        "best-of-n", tmp_path / "sets.safetensors", "--model", tmp_path / "reward.safetensors", "--json"
    )
    said = json.loads(found.stdout)
    ours = reward.best_of_n(candidates, gold, engine=engine)
    assert ours["best_of_n"]["per_prompt"] == 5 and len(ours["best_of_n"]["points"]) == 5
    points = ours["best_of_n"]["points"]
    assert points == next(value["points"] for value in _dictionaries(said) if "points" in value)
    best = candidates.reshape(-1, DIM)[
        np.arange(12) * 5 + reward.score(candidates.reshape(-1, DIM), engine=engine).reshape(12, 5).argmax(1)
    ]
    assert best.shape == (12, DIM)
    chosen = reward.score(candidates.reshape(-1, DIM), engine=engine).reshape(12, 5).argmax(1)
    assert points[-1]["model"] == pytest.approx(gold[np.arange(12), chosen].mean(), abs=1e-6)
    assert points[-1]["oracle"] == pytest.approx(gold.max(1).mean(), abs=1e-6)


def _dictionaries(value):
    if isinstance(value, dict):
        yield value
        for part in value.values():
            yield from _dictionaries(part)
    elif isinstance(value, list):
        for part in value:
            yield from _dictionaries(part)


# Orders.


@pytest.mark.parametrize("n", [1, 2, 3, 97, 1000])
def test_permutations_are_orders_of_all_numbers(n):
    orders = [_lensmith.permutation(n, seed, epoch, 0, n) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    for order in orders:
        assert order.dtype == np.uint64 and sorted(order.tolist()) == list(range(n))
        parts = [_lensmith.permutation(n, 0, 0, i, min(i + 7, n)) for i in range(0, n, 7)]
        assert np.array_equal(np.concatenate(parts), orders[0])
    if n > 90:
        assert len({order.tobytes() for order in orders}) == 3
    assert len(_lensmith.permutation(2**63, 5, 9, 2**62, 2**62 + 10)) == 10


def test_a_saved_model_has_the_same_bytes_in_any_process(vae, reward, tmp_path, run_python):
    for model in (vae, reward):
        kind = type(model).__name__
        model.save(tmp_path / "a")
        run_python(
            f"import sys, lensmith as lm; lm.{kind}.load(sys.argv[1]).save(sys.argv[2])",
            tmp_path / "a",
            tmp_path / "b",
        )
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_program_is_installed_with_the_package(program, run_python, tmp_path):
    assert program("--version").stdout.split()[1] == lm.__version__
    assert program(
        "train-vae", tmp_path / "missing.safetensors", "--out", tmp_path / "vae", code_expected=1
    ).stderr.startswith("lensmith: ")
    assert "no-such-command" in program("no-such-command", code_expected=2).stderr
    code = (
        "import sys; sys.argv = ['lensmith', '--help']; from lensmith._program import main; sys.exit(main())"
    )
    assert "Commands:" in run_python(code).stdout


def test_a_reward_model_of_a_folder_is_that_of_the_program(vae, small, tmp_path, engine, program):
    folder, path = tmp_path / "out", tmp_path / "reward.safetensors"
    lm.synthesize(vae, small, fold=4, engine=engine).write(folder, dtype="f32", shard_rows=50)
    program("train-reward", folder, "--reward-hidden", 16, "--epochs", 2, "--out", path)
    theirs = lm.RewardModel.load(path).state_dict()
    pairs = lm.PairSet.open(folder, engine=engine)
    ours = lm.RewardModel.fit(pairs, hidden=16, epochs=2, engine=engine).state_dict()
    assert all(rows.tobytes() == theirs[name].tobytes() for name, rows in ours.items())
    # As plain pairs all of them standardise, which gives another model.
    plain = lm.RewardModel.fit(pairs[: len(pairs)], hidden=16, epochs=2, engine=engine).state_dict()
    assert plain["0.weight"].tobytes() != ours["0.weight"].tobytes()
