"""lensmith.alignment on small files in the layout of the project, held against plain loops over arrays."""

from __future__ import annotations

import fcntl
import itertools
import json
import math
import os
import pickle
import subprocess
import sys
import textwrap
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import lensmith as lm
from lensmith import alignment

DIM = 16


def responses(prompts: int, count: int, seed: int = 0, dim: int = DIM):
    """Embeddings [prompts, count, dim] and rewards [prompts, count, 1], linear in them but for noise."""
    rng = np.random.default_rng(seed)
    embeddings = rng.normal(size=(prompts, count, dim)).astype(np.float32)
    direction = np.random.default_rng(99).normal(size=dim)
    rewards = embeddings @ direction + 0.1 * rng.normal(size=(prompts, count))
    return embeddings, rewards[:, :, None].astype(np.float32)


def write(folder: Path, name: str, split: str, embeddings, rewards) -> tuple[Path, Path]:
    paths = folder / f"embd_{name}_{split}.npy", folder / f"reward_{name}_{split}.npy"
    np.save(paths[0], embeddings)
    np.save(paths[1], rewards)
    return paths


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two tasks, with train and test, and a third that has only its train split."""
    for at, name in enumerate(["Gemma2b-sft_Gemma2b_Harmless", "Gemma2b-sft_Gemma2b_Helpful"]):
        write(tmp_path, name, "train", *responses(400, 10, seed=at))
        write(tmp_path, name, "test", *responses(20, 30, seed=10 + at))
    write(tmp_path, "LLama3_8b_Gemma2b_Code", "train", *responses(5, 4, seed=20))
    return tmp_path


def pairs_by_loop(embeddings, rewards, quality: float, per_prompt: int):
    """Pairs as pair_annotate of the project draws them from the state of numpy.random."""
    spread = np.std(rewards) + 1e-8
    winners, losers, numbers = [], [], []
    for prompt in range(len(embeddings)):
        chosen_pairs, attempts = set(), 0
        while len(chosen_pairs) < per_prompt and attempts < 5 * per_prompt:
            pair = tuple(sorted(np.random.choice(embeddings.shape[1], 2, replace=False)))
            if pair not in chosen_pairs:
                chosen_pairs.add(pair)
            attempts += 1
        for j, k in chosen_pairs:
            if np.random.rand() >= 0.5:
                j, k = k, j
            difference = rewards[prompt, j, 0] - rewards[prompt, k, 0]
            if quality < 0:
                wins = rewards[prompt, j, 0] > rewards[prompt, k, 0]
            else:
                with np.errstate(over="ignore"):
                    wins = np.random.rand() < 1 / (1 + np.exp(-(difference / spread) * quality))
            winner, loser = (j, k) if wins else (k, j)
            winners.append(embeddings[prompt, winner])
            losers.append(embeddings[prompt, loser])
            numbers.append(prompt)
    return np.array(winners), np.array(losers), np.array(numbers)


def bon_by_loop(predictions, rewards, sizes, repeats):
    """Best-of-N as step6_eval_rms.py of the same author computes it."""
    table = []
    for repeat in range(repeats):
        np.random.seed(repeat)
        order = np.random.choice(rewards.shape[1], rewards.shape[1], replace=False)
        row = []
        for size in sizes:
            some = order[:size]
            picked = np.argmax(predictions[:, some], axis=1)
            row.append(np.mean([rewards[i, some][picked[i]] for i in range(len(rewards))]))
        table.append(row)
    return np.array(table)


# ---------------------------------------------------------------- finding and reading


def test_setups_and_names(folder: Path) -> None:
    assert alignment.setups(folder) == {
        "Gemma2b-sft_Gemma2b_Harmless": ("test", "train"),
        "Gemma2b-sft_Gemma2b_Helpful": ("test", "train"),
        "LLama3_8b_Gemma2b_Code": ("train",),
    }
    data = alignment.open(folder, task="harmless")
    assert data.name == "Gemma2b-sft_Gemma2b_Harmless"
    assert data.train.shape == (400, 10, DIM) and data.test.shape == (20, 30, DIM)
    assert len(data.test) == 20 and "20 prompts x 30 responses" in repr(data.test)
    # A name with an underscore, given in full or by its neighbour.
    for names in (
        {"res_gen_model": "LLama3_8b"},
        {"task": "Code"},
        {"res_gen_model": "LLama3_8b", "embed_model": "Gemma2b"},
    ):
        assert alignment.open(folder, **names).name == "LLama3_8b_Gemma2b_Code"


def test_case_counts_where_both_are_there(tmp_path: Path) -> None:
    for task in ("harmless", "Harmless"):
        write(tmp_path, f"a_b_{task}", "train", *responses(3, 3))
    assert alignment.open(tmp_path, task="Harmless").name == "a_b_Harmless"
    with pytest.raises(ValueError, match=r"expected one setup .*a_b_Harmless, a_b_harmless"):
        alignment.open(tmp_path, task="HARMLESS")


def test_nothing_is_found_by_name(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as found:
        alignment.open(folder, task="Helpless", embed_model="Gemma2b")
    assert "looked for embd_*_Gemma2b_Helpless_*.npy" in str(found.value)
    assert "Gemma2b-sft_Gemma2b_Harmless" in str(found.value)
    with pytest.raises(ValueError, match=r"Harmless, Gemma2b-sft_Gemma2b_Helpful.*give task"):
        alignment.open(folder, embed_model="Gemma2b", res_gen_model="Gemma2b-sft")
    with pytest.raises(FileNotFoundError, match="no_such"):
        alignment.open(tmp_path / "no_such")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no file embd_"):
        alignment.open(tmp_path / "empty")


def test_missing_splits_are_named(folder: Path) -> None:
    data = alignment.open(folder, task="Code")
    assert len(data.train) == 5
    with pytest.raises(FileNotFoundError) as found:
        data.test  # noqa: B018
    assert "embd_LLama3_8b_Gemma2b_Code_test.npy" in str(found.value)
    assert "reward_LLama3_8b_Gemma2b_Code_test.npy" in str(found.value)
    (folder / "reward_LLama3_8b_Gemma2b_Code_train.npy").unlink()
    with pytest.raises(FileNotFoundError) as found:
        data.split("train")
    assert "reward_" in str(found.value) and "embd_" not in str(found.value)


@pytest.mark.parametrize("dtype", ["<f4", "<f2", "<f8", ">f4"])
@pytest.mark.parametrize("axes", [3, 2])
def test_values_are_those_of_the_files(tmp_path: Path, dtype: str, axes: int) -> None:
    embeddings, rewards = responses(6, 4)
    stored, gold = embeddings.astype(dtype), rewards.astype(dtype) if axes == 3 else rewards[:, :, 0]
    write(tmp_path, "a_b_c", "test", stored, gold)
    test = alignment.open(tmp_path).test
    assert isinstance(test.candidates, np.memmap) and not test.candidates.flags.writeable
    np.testing.assert_array_equal(test.candidates, stored)
    np.testing.assert_array_equal(test.gold, gold.reshape(6, 4))
    assert test.dtype == ("float16" if dtype == "<f2" else "float32")
    pairs = test.take([0, 5, 23], [1, 4, 20], group=[7, 8, 9])
    assert pairs.dtype == test.dtype
    flat = stored.reshape(24, DIM).astype(test.dtype)
    np.testing.assert_array_equal(np.asarray(pairs.chosen), flat[[0, 5, 23]])
    np.testing.assert_array_equal(np.asarray(pairs.rejected), flat[[1, 4, 20]])
    assert pairs.group.tolist() == [7, 8, 9]
    np.testing.assert_array_equal(np.concatenate(list(test.blocks())), flat)
    test.check()


def test_integer_rewards_become_floats(tmp_path: Path) -> None:
    embeddings, _ = responses(3, 2)
    rewards = np.array([[250, 1], [0, 255], [3, 2]], np.uint8)
    paths = write(tmp_path, "a_b_c", "train", embeddings, rewards[:, :, None])
    train = alignment.Responses(*paths)
    assert train.gold.dtype == np.float64
    pairs = train.pairs(annotation_quality=-1)
    best = rewards.argmax(axis=1)
    np.testing.assert_array_equal(np.asarray(pairs.chosen), embeddings[np.arange(3), best])


def test_responses_pickle_as_paths(folder: Path) -> None:
    test = alignment.open(folder, task="Harmless").test
    bytes_ = pickle.dumps(test)
    assert len(bytes_) < 1000
    np.testing.assert_array_equal(pickle.loads(bytes_).candidates, test.candidates)


# ---------------------------------------------------------------- pairs


@pytest.mark.parametrize("reward_dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("quality", [0.1, 10.0, -1])
@pytest.mark.parametrize("per_prompt", [1, 10])
def test_pairs_are_those_of_pair_annotate(
    tmp_path: Path, reward_dtype, quality: float, per_prompt: int
) -> None:
    embeddings, rewards = responses(60, 6)
    rewards = rewards.astype(reward_dtype)
    write(tmp_path, "a_b_c", "train", embeddings, rewards)
    data = alignment.open(tmp_path)
    np.random.seed(6)
    chosen, rejected, group = pairs_by_loop(embeddings, rewards, quality, per_prompt)
    for n in (1, 37, len(chosen), None):
        pairs = data.pairs(n, seed=6, per_prompt=per_prompt, annotation_quality=quality)
        assert len(pairs) == (n or len(chosen))
        np.testing.assert_array_equal(np.asarray(pairs.chosen), chosen[:n])
        np.testing.assert_array_equal(np.asarray(pairs.rejected), rejected[:n])
        np.testing.assert_array_equal(pairs.group, group[:n])
    other = data.pairs(37, seed=7, per_prompt=per_prompt, annotation_quality=quality)
    assert not np.array_equal(np.asarray(other.chosen), chosen[:37])


def test_pairs_of_some_prompts(folder: Path) -> None:
    train = alignment.open(folder, task="Harmless").train
    embeddings, rewards = np.asarray(train.candidates), np.asarray(train.gold)[:, :, None]
    for prompts in (slice(300, None), [7, 3, 399], range(10, 20)):
        selected = np.arange(400)[prompts]
        np.random.seed(1)
        chosen, _, group = pairs_by_loop(embeddings[selected], rewards[selected], 10.0, 2)
        pairs = train.pairs(seed=1, per_prompt=2, prompts=prompts)
        np.testing.assert_array_equal(np.asarray(pairs.chosen), chosen)
        np.testing.assert_array_equal(pairs.group, selected[group])


def test_scale_divides_the_difference(folder: Path) -> None:
    train = alignment.open(folder, task="Harmless").train
    spread = float(np.std(train.gold) + 1e-8)
    same = train.pairs(seed=3, annotation_quality=20.0, scale=2 * spread)
    plain = train.pairs(seed=3)
    assert (np.asarray(same.chosen) == np.asarray(plain.chosen)).all(axis=1).mean() > 0.99
    coin = train.pairs(seed=3, scale=1e9)
    assert 0.3 < (np.asarray(coin.chosen) == np.asarray(plain.chosen)).all(axis=1).mean() < 0.7


def test_pairs_across_prompts(folder: Path) -> None:
    train = alignment.open(folder, task="Helpful").train
    embeddings, scores = np.asarray(train.candidates), np.asarray(train.gold)
    n = 50
    np.random.seed(6)
    two = [np.random.choice(10, 2, replace=False) for _ in range(n)]
    chosen, rejected = [], []
    for i in range(n):
        mine = np.random.choice(two[i], 1, replace=False)[0]
        j = np.random.choice(n, 1, replace=False)[0]
        its = np.random.choice(two[j], 1, replace=False).item()
        wins = np.random.rand() < 1 / (1 + np.exp(-((scores[j, its] - scores[i, mine]) / 6.0) * 10.0))
        sides = (embeddings[j, its], embeddings[i, mine])
        chosen.append(sides[0] if wins else sides[1])
        rejected.append(sides[1] if wins else sides[0])
    pairs = train.pairs(n, seed=6, strategy="across-prompts", scale=6.0)
    np.testing.assert_array_equal(np.asarray(pairs.chosen), chosen)
    np.testing.assert_array_equal(np.asarray(pairs.rejected), rejected)
    assert pairs.group is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 401}, "n: expected at most 400, .* found 401"),
        ({"n": 0}, "n: expected 1 or more, found 0"),
        ({"per_prompt": 0}, "per_prompt: expected 1 or more"),
        ({"scale": 0.0}, "scale: expected a positive number"),
        ({"strategy": "best"}, "strategy: expected 'random' or 'across-prompts', found 'best'"),
        ({"strategy": "across-prompts", "per_prompt": 2}, "expected 1 with across-prompts"),
        ({"prompts": slice(400, None)}, "prompts: expected numbers from 0 to 399, found none"),
        ({"shard_rows": 0, "out": "x"}, "shard_rows: expected 1 or more"),
    ],
)
def test_options_that_cannot_be(folder: Path, options, message: str, monkeypatch) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(ValueError, match=message):
        alignment.open(folder, task="Harmless").pairs(**options)


def test_rows_that_cannot_be(folder: Path) -> None:
    train = alignment.open(folder, task="Harmless").train
    with pytest.raises(IndexError, match=r"rejected\[1\]: expected a row from 0 to 3999, found 4000"):
        train.take([0, 1], [1, 4000])
    with pytest.raises(IndexError, match=r"chosen\[0\].*found -1"):
        train.take([-1], [1])
    with pytest.raises(ValueError, match="rejected: expected 2 integers as in chosen"):
        train.take([0, 1], [1])
    with pytest.raises(ValueError, match="group: expected 2 integers"):
        train.take([0, 1], [1, 2], group=[0])
    with pytest.raises(ValueError, match="chosen: expected one or more integers"):
        train.take([0.5], [1])
    with pytest.raises(TypeError, match="dtype: expected 'float32' or 'float16', found 'float64'"):
        train.take([0], [1], dtype="float64")


# ---------------------------------------------------------------- shards


def listing(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_pairs_in_a_folder_are_those_in_memory(tmp_path: Path, dtype, monkeypatch) -> None:
    monkeypatch.setattr(alignment, "_BLOCK_BYTES", 1000)
    embeddings, rewards = responses(50, 5)
    write(tmp_path, "a_b_c", "train", embeddings.astype(dtype), rewards)
    data = alignment.open(tmp_path)
    memory, disk = data.pairs(seed=1), data.pairs(seed=1, out=tmp_path / "pairs", shard_rows=20)
    assert sorted(listing(tmp_path / "pairs")) == [
        *(f"pairs-0000{i}.safetensors" for i in range(3)),
        "source.json",
    ]
    assert disk.dtype == memory.dtype
    np.testing.assert_array_equal(np.asarray(disk.chosen), np.asarray(memory.chosen))
    np.testing.assert_array_equal(np.asarray(disk.rejected), np.asarray(memory.rejected))
    np.testing.assert_array_equal(disk.group, memory.group)
    # Any reader of safetensors finds them too.
    last = load_file(tmp_path / "pairs" / "pairs-00002.safetensors")
    np.testing.assert_array_equal(last["chosen"], np.asarray(memory.chosen)[40:])


def test_candidates_in_a_folder(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(alignment, "_BLOCK_BYTES", 1000)
    embeddings, rewards = responses(7, 30)
    write(tmp_path, "a_b_c", "test", embeddings.astype(np.float64), rewards.astype(np.float64))
    out = alignment.open(tmp_path).test.to_shards(tmp_path / "sets", shard_rows=3, dtype="float16")
    shards = [load_file(path) for path in sorted(out.glob("candidates-*.safetensors"))]
    assert [len(shard["gold"]) for shard in shards] == [3, 3, 1]
    np.testing.assert_array_equal(
        np.concatenate([s["candidates"] for s in shards]), embeddings.astype(np.float16)
    )
    np.testing.assert_array_equal(
        np.concatenate([s["gold"] for s in shards]), rewards[:, :, 0].astype(np.float64)
    )


def test_interrupted_conversion_goes_on(tmp_path: Path, monkeypatch) -> None:
    write(tmp_path, "a_b_c", "train", *responses(50, 5))
    data = alignment.open(tmp_path)
    out, partial = tmp_path / "pairs", tmp_path / ".pairs.partial"
    data.pairs(seed=1, out=tmp_path / "whole", shard_rows=10)

    original = alignment.whole_file

    @contextmanager
    def interrupted(path: Path):
        with original(path) as file:
            if path.name == "pairs-00003.safetensors":
                file.write(b"half")
                raise KeyboardInterrupt
            yield file

    monkeypatch.setattr(alignment, "whole_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        data.pairs(seed=1, out=out, shard_rows=10)
    monkeypatch.undo()
    assert not out.exists()
    assert sorted(listing(partial)) == [*(f"pairs-0000{i}.safetensors" for i in range(3)), "source.json"]
    with pytest.raises(ValueError, match=r"\.pairs\.partial: expected the shards of this call.*drawing"):
        data.pairs(seed=2, out=out, shard_rows=10)
    before = {path.name: path.stat().st_ino for path in partial.iterdir()}
    pairs = data.pairs(seed=1, out=out, shard_rows=10)
    assert len(pairs) == 50 and not partial.exists()
    assert listing(out) == listing(tmp_path / "whole")
    after = {path.name: path.stat().st_ino for path in out.iterdir()}
    assert before.items() <= after.items(), "finished shards are not written again"
    # Once more, nothing is written; something else is not replaced.
    data.pairs(seed=1, out=out, shard_rows=10)
    assert {path.name: path.stat().st_ino for path in out.iterdir()} == after
    with pytest.raises(FileExistsError, match="expected no such folder, found one of other content"):
        data.pairs(seed=2, out=out, shard_rows=10)


def test_a_killed_conversion_goes_on(tmp_path: Path) -> None:
    write(tmp_path, "a_b_c", "train", *responses(50, 5))
    script = """
        import os, signal, sys
        from lensmith import alignment
        original = os.replace
        def replace(a, b):
            if str(b).endswith("pairs-00002.safetensors"):
                os.kill(os.getpid(), signal.SIGKILL)
            original(a, b)
        os.replace = replace
        alignment.open(sys.argv[1]).pairs(seed=1, out=sys.argv[2], shard_rows=10)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), tmp_path, tmp_path / "pairs"], check=False
    )
    assert done.returncode == -9
    assert (tmp_path / ".pairs.partial" / ".pairs-00002.safetensors.tmp").exists()
    data = alignment.open(tmp_path)
    data.pairs(seed=1, out=tmp_path / "pairs", shard_rows=10)
    data.pairs(seed=1, out=tmp_path / "whole", shard_rows=10)
    assert listing(tmp_path / "pairs") == listing(tmp_path / "whole")


def test_one_writer_at_a_time_and_sources_that_change(tmp_path: Path) -> None:
    paths = write(tmp_path, "a_b_c", "train", *responses(50, 5))
    data = alignment.open(tmp_path)
    partial = tmp_path / ".pairs.partial"
    partial.mkdir()
    descriptor = os.open(partial, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(FileExistsError, match="expected no other writer"):
        data.pairs(out=tmp_path / "pairs")
    os.close(descriptor)
    assert len(data.train) == 50
    os.utime(paths[0], (1, 1))
    with pytest.raises(
        ValueError, match=r"embd_a_b_c_train.npy: expected the file that was opened, found it changed"
    ):
        data.pairs(out=tmp_path / "pairs")
    assert not (tmp_path / "pairs").exists()


# ---------------------------------------------------------------- memory

SPARSE = """
import resource, sys
import numpy as np
import lensmith as lm
from lensmith import alignment

def data_limit(more):
    used = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, (used * 1024 + more, resource.RLIM_INFINITY))

folder, what = sys.argv[1], sys.argv[2]
data = alignment.open(folder)
shape = data.test.shape
assert data.test.candidates.nbytes >= 250 * 2**20
weights = np.ones((1, shape[2]), np.float32)
model = lm.RewardModel.from_state_dict({"score.weight": weights, "score.bias": np.zeros(1, np.float32)})
model.score(np.zeros((4, shape[2]), np.float32))  # the engine has its threads from here on
data_limit(100 << 20)
if what == "copy":
    np.array(data.test.candidates)
elif what == "best-of-n":
    print(model.best_of_n(data.test.candidates, data.test.gold)["best_of_n"]["points"][-1]["model"])
elif what == "score":
    print(float(data.test.score(model).max()))
elif what == "pairs":
    print(len(data.test.pairs(500)))
elif what == "check":
    data.test.check()
elif what == "shards":
    print(len(list(data.test.to_shards(folder + "/sets").glob("*.safetensors"))))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits on private memory are Linux's")
@pytest.mark.parametrize(
    ("what", "dtype"),
    [
        *itertools.product(["copy", "score", "pairs", "check", "shards"], ["<f4", "<f8"]),
        ("best-of-n", "<f4"),
    ],
)
def test_memory_is_that_of_a_block(tmp_path: Path, what: str, dtype: str) -> None:
    prompts, count, dim = 500, 64, 2048 if dtype == "<f4" else 1024
    path = tmp_path / "embd_a_b_c_test.npy"
    with path.open("wb") as file:
        header = {"descr": dtype, "fortran_order": False, "shape": (prompts, count, dim)}
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + prompts * count * dim * np.dtype(dtype).itemsize)
    np.save(tmp_path / "reward_a_b_c_test.npy", np.random.default_rng(0).normal(size=(prompts, count, 1)))
    command = [sys.executable, "-c", SPARSE, str(tmp_path), what]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    if what == "copy":
        assert "MemoryError" in done.stderr, "the limit is there"
    else:
        assert done.returncode == 0, done.stderr
        expected = {"score": "0.0", "pairs": "500", "check": "", "shards": "1"}
        assert done.stdout.strip() == expected.get(what, done.stdout.strip())


# ---------------------------------------------------------------- best-of-N


@pytest.fixture
def scores():
    rng = np.random.default_rng(3)
    gold = rng.normal(size=(25, 60, 1))
    predictions = gold + rng.normal(size=gold.shape)
    predictions[:, 10] = predictions[:, 20]  # equal predictions
    return predictions, gold


def test_draws_are_those_of_a_plain_loop(scores) -> None:
    predictions, gold = scores
    sizes = [2, 5, 10, 30, 50, 60]
    table = bon_by_loop(predictions[:, :, 0], gold[:, :, 0], sizes, 20)
    np.testing.assert_allclose(alignment.bon_draws(predictions, gold, sizes, 20), table, rtol=1e-13)


def test_best_of_all_is_the_argmax_and_of_some_the_mean_over_sets(scores) -> None:
    predictions, gold = scores
    first = [gold[i, np.argmax(predictions[i]), 0] for i in range(len(gold))]
    assert alignment.calc_bon(predictions, gold, N=60) == pytest.approx(np.mean(first), rel=1e-13)
    assert alignment.calc_bon(predictions, gold, N=1) == pytest.approx(gold.mean(), rel=1e-12)
    few, few_gold = predictions[:4, :7], gold[:4, :7]
    for size in range(1, 8):
        sets = [list(some) for some in itertools.combinations(range(7), size)]
        mean = np.mean([few_gold[i, s][np.argmax(few[i, s]), 0] for i in range(4) for s in sets])
        assert alignment.calc_bon(few, few_gold, N=size) == pytest.approx(mean, rel=1e-12)


def test_spearman_is_scipys(scores) -> None:
    stats = pytest.importorskip("scipy.stats")
    predictions, gold = (values.copy() for values in scores)
    gold[:, :5] = 1.0  # ties
    found = [stats.spearmanr(predictions[i], gold[i]).correlation for i in range(len(gold))]
    assert alignment.calc_spearmanr(predictions, gold) == pytest.approx(np.mean(found), abs=1e-12)
    predictions[0] = 2.0  # no correlation: left out
    assert alignment.calc_spearmanr(predictions, gold) == pytest.approx(np.mean(found[1:]), abs=1e-12)
    assert math.isnan(alignment.calc_spearmanr(predictions[:1], gold[:1]))


def test_bad_figures(scores) -> None:
    predictions, gold = (values.copy() for values in scores)
    with pytest.raises(ValueError, match="N: expected 1 to 60, the responses of a prompt, found 500"):
        alignment.calc_bon(predictions, gold)
    with pytest.raises(ValueError, match="sizes: expected numbers from 1 to 60"):
        alignment.bon_draws(predictions, gold)
    with pytest.raises(
        ValueError, match=r"predictions: expected the shape \(25, 60\) of rewards, found \(25, 59\)"
    ):
        alignment.calc_spearmanr(predictions[:, 1:], gold)
    predictions[4, 7] = np.nan
    with pytest.raises(
        ValueError, match="predictions: prompt 4, response 7: expected a finite number, found nan"
    ):
        alignment.calc_bon(predictions, gold, N=2)


@pytest.mark.filterwarnings("ignore::lensmith.LensmithWarning")  # trained for a moment only
def test_three_lines_and_two_more(folder: Path) -> None:
    data = alignment.open(folder, task="Harmless")
    validation = data.pairs(80, seed=7, prompts=slice(300, None))
    rm = lm.RewardModel.fit(data.pairs(300, seed=6), validation=validation, hidden=32, lr=1e-2, epochs=5)
    figures = rm.best_of_n(data.test.candidates, data.test.gold)

    vae = lm.Vae.fit(data.pairs(300, seed=6), epochs=2)
    lens = lm.RewardModel.fit(
        lm.synthesize(vae, data.pairs(300, seed=6), fold=2), validation=validation, epochs=2
    )

    # What the project computes: scores of every response, the argmax, its gold reward.
    gold = np.asarray(data.test.gold, np.float64)
    scores = np.array([rm.score(data.test.candidates[i]) for i in range(20)])
    best = np.mean([gold[i, np.argmax(scores[i])] for i in range(20)])
    points = figures["best_of_n"]["points"]
    assert points[-1]["candidates"] == 30
    assert points[-1]["model"] == pytest.approx(best, rel=1e-6)
    for point in points:
        exact = alignment.calc_bon(scores, gold, N=point["candidates"])
        assert point["model"] == pytest.approx(exact, rel=1e-5, abs=1e-6)
    assert figures["rank"]["within_prompts"] == pytest.approx(
        alignment.calc_spearmanr(scores, gold), abs=1e-6
    )
    assert alignment.calc_spearmanr(scores, gold) > 0.5, "the reward is linear: it is learnt"

    np.testing.assert_array_equal(data.test.score(rm), scores)
    found = data.test.evaluate(rm, repeats=10)
    assert list(found["best_of_n"]) == [2, 5, 10, 30]
    table = bon_by_loop(scores, gold, [2, 5, 10, 30], 10)
    np.testing.assert_allclose(list(found["best_of_n"].values()), table.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(
        list(found["best_of_n_deviation"].values()), table.std(axis=0), rtol=1e-6, atol=1e-9
    )
    quantiles = [np.mean(gold[i] <= gold[i, np.argmax(scores[i])]) for i in range(20)]
    assert found["quantile"] == pytest.approx(np.mean(quantiles))
    assert lens.dim == DIM and np.isfinite(lens.score(data.test.candidates[0])).all()


def test_the_readme_of_the_project_runs(folder: Path) -> None:
    names = {"task": "Harmless", "res_gen_model": "Gemma2b-sft", "embed_model": "Gemma2b", "folder": folder}
    train_embeddings, train_rewards = alignment.load_embd_data(split="train", **names)
    test_embeddings, test_rewards = alignment.load_embd_data(split="test", **names)
    assert train_embeddings.shape == (400, 10, DIM) and train_rewards.shape == (400, 10, 1)
    np.random.seed(0)
    train_comparisons, train_labels = alignment.pair_annotate(
        train_embeddings, train_rewards, annotation_quality=5.0
    )
    np.random.seed(0)
    chosen, rejected, _ = pairs_by_loop(train_embeddings, train_rewards, 5.0, 10)
    np.testing.assert_array_equal(train_comparisons, np.stack([chosen, rejected], axis=1))
    assert train_labels.dtype == np.int32 and train_labels.tolist() == [1] * len(chosen)
    again, _ = alignment.pair_annotate(train_embeddings, train_rewards, annotation_quality=5.0, seed=0)
    np.testing.assert_array_equal(again, train_comparisons)

    reward_model = alignment.BT_MLP(hidden=32, lr=1e-2, epochs=3)
    reward_model.fit(train_comparisons, train_labels)
    rm_predictions = reward_model.predict(test_embeddings)
    assert rm_predictions.shape == (20, 30, 1)
    assert alignment.calc_bon(rm_predictions, test_rewards, N=30) > test_rewards.mean()
    assert alignment.calc_spearmanr(rm_predictions, test_rewards) > 0.5
    np.testing.assert_array_equal(reward_model.model.score(test_embeddings[3]), rm_predictions[3, :, 0])

    # Labels of 0 turn pairs round: the same training.
    turned, labels = train_comparisons.copy(), train_labels.copy()
    turned[::3], labels[::3] = turned[::3, ::-1], 0
    same = alignment.BT_MLP(hidden=32, lr=1e-2, epochs=3).fit(turned, labels)
    np.testing.assert_array_equal(same.predict(test_embeddings), rm_predictions)
    with pytest.raises(ValueError, match="labels: expected"):
        alignment.BT_MLP().fit(train_comparisons, train_labels + 1)
    with pytest.raises(ValueError, match=r"comparisons: expected the shape \[M, 2, d\]"):
        alignment.BT_MLP().fit(train_comparisons[:, 0])
    with pytest.raises(ValueError, match="pair_strategy: expected 'random', found 'best'"):
        alignment.pair_annotate(train_embeddings, train_rewards, pair_strategy="best")
    with pytest.raises(ValueError, match="embeddings, rewards: expected the shapes"):
        alignment.pair_annotate(train_embeddings[:3], train_rewards)


def test_score_takes_any_function(folder: Path, monkeypatch) -> None:
    monkeypatch.setattr(alignment, "_BLOCK_BYTES", 1000)
    test = alignment.open(folder, task="Harmless").test
    scores = test.score(lambda block: block.sum(axis=1)[:, None])
    np.testing.assert_allclose(scores, np.asarray(test.candidates).sum(axis=2), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="model: expected 15 rewards of a block, found 1"):
        test.score(lambda block: block[:1, 0])


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize("what", ["embd", "reward"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "found an empty file"),
        (b"<!DOCTYPE html><html>quota exceeded", "found a page of HTML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "found a pointer of Git LFS"),
        (b"PK\x03\x04rest", "found a zip"),
        (b"\x93NUMPY\x01\x00\x10", "found a damaged header"),
        (b"\x80\x04pickle", "found a file that starts with b'"),
    ],
)
def test_files_that_are_none(folder: Path, what: str, content: bytes, message: str) -> None:
    path = folder / f"{what}_Gemma2b-sft_Gemma2b_Harmless_test.npy"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as found:
        alignment.open(folder, task="Harmless").test  # noqa: B018
    assert str(path) in str(found.value)


@pytest.mark.parametrize("cut", [1, 5000])
@pytest.mark.parametrize("what", ["embd", "reward"])
def test_truncated_and_long_files(folder: Path, what: str, cut: int) -> None:
    path = folder / f"{what}_Gemma2b-sft_Gemma2b_Harmless_test.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[: -min(cut, len(whole) - 200)])
    with pytest.raises(
        ValueError, match=f"{path.name}: expected {len(whole)} bytes .* the file is truncated"
    ):
        alignment.open(folder, task="Harmless").test  # noqa: B018
    path.write_bytes(whole + b"x" * cut)
    with pytest.raises(ValueError, match="the file is too long"):
        alignment.open(folder, task="Harmless").test  # noqa: B018


def test_pickled_objects_are_refused(tmp_path: Path) -> None:
    marker = tmp_path / "unpickled"

    class Evil:
        def __reduce__(self):
            return Path.touch, (marker,)

    objects = np.empty((3, 2, 4), object)
    objects[...] = Evil()
    embeddings, rewards = responses(3, 2, dim=4)
    for pair in ((objects, rewards), (embeddings, objects[:, :, :1])):
        paths = write(tmp_path, "a_b_c", "train", *pair)
        with pytest.raises(TypeError, match="found pickled Python objects, which are not read"):
            alignment.Responses(*paths)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("embeddings", "rewards", "error", "message"),
    [
        (
            np.zeros((3, 2, 4), np.int64),
            np.zeros((3, 2, 1)),
            TypeError,
            "expected float16, float32 or float64, found int64",
        ),
        (np.zeros((3, 2, 4), "V2"), np.zeros((3, 2, 1)), TypeError, "bfloat16 saved by NumPy"),
        (np.zeros((3, 2, 4), "c8"), np.zeros((3, 2, 1)), TypeError, "found complex64"),
        (
            np.zeros((6, 4), "f4"),
            np.zeros((3, 2, 1)),
            ValueError,
            r"expected the shape \[prompts, responses, d\], found",
        ),
        (np.zeros((3, 2, 4), "f4"), np.zeros((3, 2), "U3"), TypeError, "expected floats or integers"),
        (np.zeros((3, 2, 4), "f4"), np.zeros((2, 3, 1)), ValueError, r"expected rewards of \(3, 2\) prompts"),
        (
            np.zeros((3, 2, 4), "f4"),
            np.zeros((3, 2, 2)),
            ValueError,
            r"\[prompts, responses, 1\], found \(3, 2, 2\)",
        ),
        (np.zeros((3, 2, 4), "f4"), np.zeros(6), ValueError, r"\[prompts, responses, 1\], found \(6,\)"),
        (np.zeros((0, 2, 4), "f4"), np.zeros((0, 2, 1)), ValueError, r"found the shape \(0, 2, 4\)"),
        (np.zeros((3, 2, 4), "f4", order="F"), np.zeros((3, 2, 1)), ValueError, "found Fortran order"),
    ],
)
def test_wrong_dtypes_and_shapes(tmp_path: Path, embeddings, rewards, error, message: str) -> None:
    paths = write(tmp_path, "a_b_c", "train", embeddings, rewards)
    with pytest.raises(error, match=message):
        alignment.Responses(*paths)


def test_a_file_that_is_cut_while_it_is_open(folder: Path) -> None:
    train = alignment.open(folder, task="Harmless").train
    os.truncate(train.paths[0], train.paths[0].stat().st_size - 5)
    assert len(train.take([3998], [0])) == 1
    with pytest.raises(ValueError, match=r"train.npy: expected row 3999, found the end: the file was cut"):
        train.take([3999], [0])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_named(tmp_path: Path, bad: float, monkeypatch) -> None:
    monkeypatch.setattr(alignment, "_BLOCK_BYTES", 1000)
    embeddings, rewards = responses(50, 5)
    embeddings[33, 2, 7] = bad
    paths = write(tmp_path, "a_b_c", "train", embeddings, rewards)
    train = alignment.Responses(*paths)
    where = (
        "embd_a_b_c_train.npy: prompt 33, response 2, value 7: expected a finite number .* found -?(nan|inf)"
    )
    with pytest.raises(ValueError, match=where):
        train.check()
    with pytest.raises(ValueError, match=where):
        train.take([1, 33 * 5 + 2, 3], [4, 5, 6])
    with pytest.raises(ValueError, match=where):
        train.to_shards(tmp_path / "sets", shard_rows=10)
    assert not (tmp_path / "sets").exists()
    assert len(train.pairs(prompts=slice(0, 33))) == 33, "rows that are not asked for are not read"
    rewards[12, 3] = bad
    with pytest.raises(
        ValueError, match=r"reward_a_b_c_train.npy: prompt 12, response 3: expected a finite number"
    ):
        alignment.Responses(*write(tmp_path, "a_b_c", "train", embeddings, rewards))


def test_values_too_large_for_the_stored_type(tmp_path: Path) -> None:
    embeddings, rewards = responses(4, 3)
    stored = embeddings.astype(np.float64)
    stored[2, 1, 0] = 1e300
    train = alignment.Responses(*write(tmp_path, "a_b_c", "train", stored, rewards))
    with pytest.raises(
        ValueError, match=r"prompt 2, response 1, value 0: .* in the range of float32, found 1e\+300"
    ):
        train.check()
    stored[2, 1, 0] = 1e5
    train = alignment.Responses(*write(tmp_path, "a_b_c", "train", stored, rewards))
    train.check()
    with pytest.raises(ValueError, match=r"in the range of float16, found 100000.0"):
        train.take([7], [0], dtype="float16")


def test_source_json_tells_where_shards_come_from(folder: Path) -> None:
    data = alignment.open(folder, task="Harmless")
    data.pairs(20, seed=4, out=folder / "pairs")
    found = json.loads((folder / "pairs" / "source.json").read_text())
    assert [source["file"] for source in found["sources"]] == [path.name for path in data.train.paths]
    assert found["kind"] == "pairs" and found["rows_in_all"] == 20
    assert found["drawing"]["seed"] == 4 and found["drawing"]["n"] == 20
